//! The server's side of the handshake: answer options until an export is chosen.
//!
//! # Always true
//! - Nothing a client says before GO touches an export beyond asking its size and abilities.
//! - At most 256 options, each at most 256 KiB; a longer one ends the connection without being read.
use std::io;

use bytes::Buf;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::{put_string, take_string};
use crate::{
    BlockSize,
    wire::{self, greeting, info, option, option_reply},
};

/// More than any client needs (guessed); bounds how long one can keep us busy without ever choosing an export.
const MAX_OPTIONS: usize = 256;
/// More meta context queries than this in one option are refused.
const MAX_QUERIES: usize = 128;

/// What the handshake needs to know of the exports. One disk among several.
pub(crate) trait Catalogue {
    /// The server's handle on an export.
    type Found;
    /// All names, in order.
    fn names(&self) -> Vec<String>;
    /// The export of this name.
    fn find(&self, name: &str) -> Option<Self::Found>;
    /// What a client may know of it.
    fn facts(&self, found: &Self::Found) -> Facts;
}

/// What a client is told of an export.
#[derive(Clone, Debug)]
pub(crate) struct Facts {
    pub size: u64,
    pub flags: u16,
    pub block: BlockSize,
    pub description: String,
    pub contexts: Vec<String>,
}

/// What both sides agreed on.
#[derive(Debug)]
pub(crate) struct Agreed<F> {
    pub found: F,
    pub structured: bool,
    /// The ids of contexts, and their names.
    pub contexts: Vec<(u32, String)>,
}

/// Greets a client and answers its options. `None` if it went without choosing an export.
pub(crate) async fn welcome<R, W, C>(
    incoming: &mut R,
    outgoing: &mut W,
    catalogue: &C,
) -> io::Result<Option<Agreed<C::Found>>>
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
    C: Catalogue,
{
    let mut hello = Vec::with_capacity(18);
    hello.extend_from_slice(&wire::NBD_MAGIC.to_be_bytes());
    hello.extend_from_slice(&wire::OPTION_MAGIC.to_be_bytes());
    hello.extend_from_slice(&(greeting::FIXED_NEWSTYLE | greeting::NO_ZEROES).to_be_bytes());
    outgoing.write_all(&hello).await?;
    outgoing.flush().await?;
    let flags = incoming.read_u32().await?;
    if flags & !(greeting::CLIENT_FIXED_NEWSTYLE | greeting::CLIENT_NO_ZEROES) != 0 {
        return Err(breach("unknown client flags"));
    }
    let no_zeroes = flags & greeting::CLIENT_NO_ZEROES != 0;
    let mut talk = Talk { incoming, outgoing, catalogue, structured: false, chosen: None };
    for _ in 0..MAX_OPTIONS {
        if talk.incoming.read_u64().await? != wire::OPTION_MAGIC {
            return Err(breach("a wrong magic before an option"));
        }
        let number = talk.incoming.read_u32().await?;
        let length = talk.incoming.read_u32().await?;
        if length > wire::MAX_OPTION {
            talk.reply(number, option_reply::TOO_BIG, b"this option is too long").await?;
            return Err(breach("an option too long"));
        }
        let mut data = vec![0; length as usize];
        talk.incoming.read_exact(&mut data).await?;
        match talk.answer(number, &data, no_zeroes).await? {
            Next::More => (),
            Next::End => return Ok(None),
            Next::Go(agreed) => return Ok(Some(agreed)),
        }
    }
    Err(breach("too many options"))
}

enum Next<F> {
    More,
    End,
    Go(Agreed<F>),
}

struct Talk<'a, R, W, C> {
    incoming: &'a mut R,
    outgoing: &'a mut W,
    catalogue: &'a C,
    structured: bool,
    /// The last SET_META_CONTEXT: for which export, and what was selected.
    chosen: Option<(String, Vec<(u32, String)>)>,
}

impl<R, W, C> Talk<'_, R, W, C>
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
    C: Catalogue,
{
    async fn answer(&mut self, number: u32, data: &[u8], no_zeroes: bool) -> io::Result<Next<C::Found>> {
        match number {
            option::EXPORT_NAME => return self.export_name(data, no_zeroes).await,
            option::INFO | option::GO => return self.info(number, data).await,
            option::ABORT => {
                // the client may be gone already, which is as good
                let _ = self.reply(number, option_reply::ACK, &[]).await;
                return Ok(Next::End);
            }
            option::LIST if data.is_empty() => {
                for name in self.catalogue.names() {
                    let mut server = Vec::new();
                    put_string(&mut server, &name);
                    self.reply(number, option_reply::SERVER, &server).await?;
                }
                self.reply(number, option_reply::ACK, &[]).await?;
            }
            option::STRUCTURED_REPLY if data.is_empty() => {
                self.structured = true;
                self.reply(number, option_reply::ACK, &[]).await?;
            }
            option::LIST | option::STRUCTURED_REPLY => {
                self.reply(number, option_reply::INVALID, b"this option has no data").await?;
            }
            option::LIST_META_CONTEXT | option::SET_META_CONTEXT => self.contexts(number, data).await?,
            _ => self.reply(number, option_reply::UNSUPPORTED, &[]).await?,
        }
        Ok(Next::More)
    }

    async fn reply(&mut self, number: u32, kind: u32, data: &[u8]) -> io::Result<()> {
        let mut message = Vec::with_capacity(20 + data.len());
        message.extend_from_slice(&wire::OPTION_REPLY_MAGIC.to_be_bytes());
        message.extend_from_slice(&number.to_be_bytes());
        message.extend_from_slice(&kind.to_be_bytes());
        message.extend_from_slice(&(data.len() as u32).to_be_bytes());
        message.extend_from_slice(data);
        self.outgoing.write_all(&message).await?;
        self.outgoing.flush().await
    }

    fn agreed(&mut self, name: &str, found: C::Found) -> Agreed<C::Found> {
        // contexts selected for another export do not hold for this one
        let contexts = match self.chosen.take() {
            Some((of, contexts)) if of == name && self.structured => contexts,
            _ => Vec::new(),
        };
        Agreed { found, structured: self.structured, contexts }
    }

    async fn export_name(&mut self, data: &[u8], no_zeroes: bool) -> io::Result<Next<C::Found>> {
        let name = std::str::from_utf8(data).ok().filter(|name| name.len() <= wire::MAX_STRING);
        let Some((name, found)) = name.and_then(|name| Some((name, self.catalogue.find(name)?))) else {
            return Err(breach("an unknown export by EXPORT_NAME, which has no answer but hanging up"));
        };
        let facts = self.catalogue.facts(&found);
        let mut message = Vec::with_capacity(134);
        message.extend_from_slice(&facts.size.to_be_bytes());
        message.extend_from_slice(&facts.flags.to_be_bytes());
        if !no_zeroes {
            message.extend_from_slice(&[0; 124]);
        }
        self.outgoing.write_all(&message).await?;
        self.outgoing.flush().await?;
        Ok(Next::Go(self.agreed(name, found)))
    }

    async fn info(&mut self, number: u32, data: &[u8]) -> io::Result<Next<C::Found>> {
        let Some((name, wanted)) = wanted_info(data) else {
            self.reply(number, option_reply::INVALID, b"malformed").await?;
            return Ok(Next::More);
        };
        let Some(found) = self.catalogue.find(&name) else {
            self.reply(number, option_reply::UNKNOWN, format!("no export '{name}'").as_bytes()).await?;
            return Ok(Next::More);
        };
        let facts = self.catalogue.facts(&found);
        let about = |kind: u16, parts: &[&[u8]]| [&kind.to_be_bytes()[..], &parts.concat()].concat();
        let export = about(info::EXPORT, &[&facts.size.to_be_bytes(), &facts.flags.to_be_bytes()]);
        self.reply(number, option_reply::INFO, &export).await?;
        if wanted.contains(&info::NAME) {
            self.reply(number, option_reply::INFO, &about(info::NAME, &[name.as_bytes()])).await?;
        }
        if wanted.contains(&info::DESCRIPTION) && !facts.description.is_empty() {
            let text = wire::text(facts.description.as_bytes());
            self.reply(number, option_reply::INFO, &about(info::DESCRIPTION, &[text.as_bytes()])).await?;
        }
        if wanted.contains(&info::BLOCK_SIZE) {
            let BlockSize { minimum, preferred, maximum } = facts.block;
            let sizes = [minimum.to_be_bytes(), preferred.to_be_bytes(), maximum.to_be_bytes()].concat();
            self.reply(number, option_reply::INFO, &about(info::BLOCK_SIZE, &[&sizes])).await?;
        }
        self.reply(number, option_reply::ACK, &[]).await?;
        if number == option::GO { Ok(Next::Go(self.agreed(&name, found))) } else { Ok(Next::More) }
    }

    async fn contexts(&mut self, number: u32, data: &[u8]) -> io::Result<()> {
        if number == option::SET_META_CONTEXT {
            self.chosen = None;
        }
        if !self.structured {
            return self.reply(number, option_reply::INVALID, b"structured replies come first").await;
        }
        let (name, queries) = match context_queries(data) {
            Ok(query) => query,
            Err(kind) => return self.reply(number, kind, b"malformed or too many queries").await,
        };
        let Some(found) = self.catalogue.find(&name) else {
            return self.reply(number, option_reply::UNKNOWN, format!("no export '{name}'").as_bytes()).await;
        };
        let ours = (1u32..).zip(self.catalogue.facts(&found).contexts);
        let listing = number == option::LIST_META_CONTEXT;
        let matching: Vec<(u32, String)> = ours.filter(|(_, ours)| selects(&queries, ours, listing)).collect();
        for (id, context) in &matching {
            // the id is reserved while listing
            let id = if listing { 0 } else { *id };
            let message = [&id.to_be_bytes()[..], context.as_bytes()].concat();
            self.reply(number, option_reply::META_CONTEXT, &message).await?;
        }
        if !listing {
            self.chosen = Some((name, matching));
        }
        self.reply(number, option_reply::ACK, &[]).await
    }
}

fn selects(queries: &[String], context: &str, listing: bool) -> bool {
    // a namespace alone ("base:") is a wildcard, for listing only
    queries.iter().any(|query| query == context || (listing && query.ends_with(':') && context.starts_with(&**query)))
        || (listing && queries.is_empty())
}

fn wanted_info(mut data: &[u8]) -> Option<(String, Vec<u16>)> {
    let name = take_string(&mut data)?;
    let count = data.try_get_u16().ok()? as usize;
    if data.len() != count * 2 {
        return None;
    }
    let wanted = data.chunks_exact(2).map(|pair| u16::from_be_bytes([pair[0], pair[1]])).collect();
    Some((name, wanted))
}

fn context_queries(mut data: &[u8]) -> Result<(String, Vec<String>), u32> {
    let name = take_string(&mut data).ok_or(option_reply::INVALID)?;
    let count = data.try_get_u32().map_err(|_| option_reply::INVALID)? as usize;
    if count > MAX_QUERIES {
        return Err(option_reply::TOO_BIG);
    }
    let mut queries = Vec::with_capacity(count);
    for _ in 0..count {
        queries.push(take_string(&mut data).ok_or(option_reply::INVALID)?);
    }
    if data.is_empty() { Ok((name, queries)) } else { Err(option_reply::INVALID) }
}

fn breach(what: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_wildcard_lists_but_does_not_select() {
        let query = ["base:".to_string()];
        assert!(selects(&query, "base:allocation", true));
        assert!(!selects(&query, "base:allocation", false));
        assert!(selects(&[], "base:allocation", true));
        assert!(!selects(&[], "base:allocation", false));
    }

    #[test]
    fn a_query_count_far_beyond_the_message_allocates_nothing() {
        let mut data = Vec::new();
        put_string(&mut data, "x");
        data.extend_from_slice(&u32::MAX.to_be_bytes());
        assert_eq!(context_queries(&data), Err(option_reply::TOO_BIG));
    }

    proptest! {
        #[test]
        fn no_option_data_makes_the_parsers_panic(data in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = wanted_info(&data);
            let _ = context_queries(&data);
        }
    }
}
