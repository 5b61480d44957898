//! The client's side of the handshake: ask for structured replies and contexts, then for the export.
//!
//! Falls back step by step: no structured replies, no contexts, no GO (then EXPORT_NAME, whose only answer to an
//! unknown export is a closed connection). Before *fixed* newstyle we do not go: such servers died out in 2011.
use std::io;

use bytes::Buf;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use super::{put_string, take_string};
use crate::{
    BlockSize, Error,
    wire::{self, greeting, info, option, option_reply, transmission},
};

/// More replies than this to one option are not an answer but an attack; a server with more exports is not listed.
const MAX_REPLIES: usize = 65_536;

/// What both sides agreed on.
#[derive(Clone, Debug)]
pub(crate) struct Agreed {
    pub size: u64,
    pub flags: u16,
    pub block: BlockSize,
    pub structured: bool,
    pub contexts: Vec<(u32, String)>,
}

/// Goes from the first byte to the transmission phase of one export.
pub(crate) async fn open<R, W>(
    incoming: &mut R,
    outgoing: &mut W,
    export: &str,
    contexts: &[String],
) -> Result<Agreed, Error>
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    let mut talk = Talk::begin(incoming, outgoing).await?;
    let structured = talk.structured_replies().await?;
    let contexts = if structured && !contexts.is_empty() { talk.contexts(export, contexts).await? } else { Vec::new() };
    let mut agreed = match talk.go(export).await? {
        Some(agreed) => agreed,
        None => talk.export_name(export).await?,
    };
    agreed.structured = structured;
    agreed.contexts = contexts;
    if agreed.size > i64::MAX as u64 {
        return Err(Error::Protocol(format!("an export of {} bytes", agreed.size)));
    }
    Ok(agreed)
}

/// The names of all exports, then a polite end.
pub(crate) async fn list<R, W>(incoming: &mut R, outgoing: &mut W) -> Result<Vec<String>, Error>
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    let mut talk = Talk::begin(incoming, outgoing).await?;
    talk.ask(option::LIST, &[]).await?;
    let mut names = Vec::new();
    for _ in 0..MAX_REPLIES {
        let reply = talk.reply(option::LIST).await?;
        match reply.kind {
            option_reply::SERVER => {
                let name = take_string(&mut &reply.data[..])
                    .ok_or_else(|| Error::Protocol("a malformed name in the list of exports".into()))?;
                names.push(name);
            }
            option_reply::ACK => {
                // the server may hang up without answering this, so no answer is awaited
                let _ = talk.ask(option::ABORT, &[]).await;
                return Ok(names);
            }
            _ => return Err(reply.refusal(option::LIST)),
        }
    }
    Err(Error::Protocol("an endless list of exports".into()))
}

struct Reply {
    kind: u32,
    data: Vec<u8>,
}

impl Reply {
    fn is_error(&self) -> bool {
        self.kind & option_reply::ERROR != 0
    }

    /// The error this reply is; a reply of an unexpected kind is a breach of the protocol.
    fn refusal(&self, asked: u32) -> Error {
        if self.is_error() {
            Error::Refused {
                option: option::name(asked),
                reason: option_reply::reason(self.kind),
                message: wire::text(&self.data),
            }
        } else {
            Error::Protocol(format!("reply type {} to {}", self.kind, option::name(asked)))
        }
    }
}

struct Talk<'a, R, W> {
    incoming: &'a mut R,
    outgoing: &'a mut W,
    no_zeroes: bool,
}

impl<'a, R, W> Talk<'a, R, W>
where
    R: AsyncRead + Unpin,
    W: AsyncWrite + Unpin,
{
    async fn begin(incoming: &'a mut R, outgoing: &'a mut W) -> Result<Self, Error> {
        if incoming.read_u64().await.map_err(broken)? != wire::NBD_MAGIC {
            return Err(Error::Protocol("it does not greet like an NBD server".into()));
        }
        match incoming.read_u64().await.map_err(broken)? {
            wire::OPTION_MAGIC => (),
            wire::OLDSTYLE_MAGIC => return Err(Error::Unsupported("the newstyle handshake")),
            _ => return Err(Error::Protocol("an unknown handshake".into())),
        }
        let offered = incoming.read_u16().await.map_err(broken)?;
        if offered & greeting::FIXED_NEWSTYLE == 0 {
            return Err(Error::Unsupported("the fixed newstyle handshake"));
        }
        let no_zeroes = offered & greeting::NO_ZEROES != 0;
        let flags = greeting::CLIENT_FIXED_NEWSTYLE | if no_zeroes { greeting::CLIENT_NO_ZEROES } else { 0 };
        outgoing.write_u32(flags).await.map_err(broken)?;
        outgoing.flush().await.map_err(broken)?;
        Ok(Talk { incoming, outgoing, no_zeroes })
    }

    async fn ask(&mut self, number: u32, data: &[u8]) -> Result<(), Error> {
        let mut message = Vec::with_capacity(16 + data.len());
        message.extend_from_slice(&wire::OPTION_MAGIC.to_be_bytes());
        message.extend_from_slice(&number.to_be_bytes());
        message.extend_from_slice(&(data.len() as u32).to_be_bytes());
        message.extend_from_slice(data);
        self.outgoing.write_all(&message).await.map_err(broken)?;
        self.outgoing.flush().await.map_err(broken)
    }

    async fn reply(&mut self, asked: u32) -> Result<Reply, Error> {
        if self.incoming.read_u64().await.map_err(broken)? != wire::OPTION_REPLY_MAGIC {
            return Err(Error::Protocol("a wrong magic in the reply to an option".into()));
        }
        let answered = self.incoming.read_u32().await.map_err(broken)?;
        let kind = self.incoming.read_u32().await.map_err(broken)?;
        let length = self.incoming.read_u32().await.map_err(broken)?;
        if answered != asked {
            return Err(Error::Protocol(format!("a reply to option {answered} instead of {asked}")));
        }
        if length > wire::MAX_OPTION {
            return Err(Error::Protocol(format!("a reply of {length} bytes to {}", option::name(asked))));
        }
        let mut data = vec![0; length as usize];
        self.incoming.read_exact(&mut data).await.map_err(broken)?;
        Ok(Reply { kind, data })
    }

    async fn structured_replies(&mut self) -> Result<bool, Error> {
        self.ask(option::STRUCTURED_REPLY, &[]).await?;
        let reply = self.reply(option::STRUCTURED_REPLY).await?;
        match reply.kind {
            option_reply::ACK => Ok(true),
            // with TLS required every option but STARTTLS gets this; say so instead of failing obscurely later
            option_reply::TLS_REQUIRED => Err(reply.refusal(option::STRUCTURED_REPLY)),
            _ if reply.is_error() => Ok(false),
            _ => Err(reply.refusal(option::STRUCTURED_REPLY)),
        }
    }

    /// The contexts the server has of those wanted. An error is not fatal: if the export is unknown, GO will say it.
    async fn contexts(&mut self, export: &str, wanted: &[String]) -> Result<Vec<(u32, String)>, Error> {
        let mut data = Vec::new();
        put_string(&mut data, export);
        data.extend_from_slice(&(wanted.len() as u32).to_be_bytes());
        for name in wanted {
            put_string(&mut data, name);
        }
        self.ask(option::SET_META_CONTEXT, &data).await?;
        let mut contexts = Vec::new();
        // a name may be a pattern of the server's own, so more than asked for can come back, but not without end
        for _ in 0..wanted.len().saturating_add(1024) {
            let reply = self.reply(option::SET_META_CONTEXT).await?;
            match reply.kind {
                option_reply::META_CONTEXT => contexts.push(context(&reply.data)?),
                option_reply::ACK => return Ok(contexts),
                _ if reply.is_error() => return Ok(Vec::new()),
                _ => return Err(reply.refusal(option::SET_META_CONTEXT)),
            }
        }
        Err(Error::Protocol("an endless list of meta contexts".into()))
    }

    /// `None` if the server does not know GO.
    async fn go(&mut self, export: &str) -> Result<Option<Agreed>, Error> {
        let mut data = Vec::new();
        put_string(&mut data, export);
        data.extend_from_slice(&1u16.to_be_bytes());
        data.extend_from_slice(&info::BLOCK_SIZE.to_be_bytes());
        self.ask(option::GO, &data).await?;
        let (mut size_and_flags, mut block) = (None, BlockSize::default());
        for _ in 0..1024 {
            let reply = self.reply(option::GO).await?;
            match reply.kind {
                option_reply::INFO => {
                    let mut data = &reply.data[..];
                    let malformed = |_| Error::Protocol("malformed information about the export".into());
                    match data.try_get_u16().map_err(malformed)? {
                        info::EXPORT => {
                            let size = data.try_get_u64().map_err(malformed)?;
                            size_and_flags = Some((size, data.try_get_u16().map_err(malformed)?));
                        }
                        info::BLOCK_SIZE => block = block_size(data).map_err(malformed)?,
                        _ => (),
                    }
                }
                option_reply::ACK => {
                    let (size, flags) =
                        size_and_flags.ok_or_else(|| Error::Protocol("an export without a size".into()))?;
                    let block = block.usable().ok_or_else(|| Error::Protocol(format!("impossible {block:?}")))?;
                    return Ok(Some(Agreed { size, flags, block, structured: false, contexts: Vec::new() }));
                }
                option_reply::UNSUPPORTED => return Ok(None),
                _ => return Err(reply.refusal(option::GO)),
            }
        }
        Err(Error::Protocol("endless information about the export".into()))
    }

    async fn export_name(&mut self, export: &str) -> Result<Agreed, Error> {
        self.ask(option::EXPORT_NAME, export.as_bytes()).await?;
        let refused = |error: io::Error| match error.kind() {
            io::ErrorKind::UnexpectedEof => Error::Refused {
                option: option::name(option::EXPORT_NAME),
                reason: option_reply::reason(option_reply::UNKNOWN),
                message: String::new(),
            },
            _ => broken(error),
        };
        let size = self.incoming.read_u64().await.map_err(refused)?;
        let flags = self.incoming.read_u16().await.map_err(broken)?;
        if !self.no_zeroes {
            self.incoming.read_exact(&mut [0; 124]).await.map_err(broken)?;
        }
        Ok(Agreed { size, flags, block: BlockSize::default(), structured: false, contexts: Vec::new() })
    }
}

fn block_size(mut data: &[u8]) -> Result<BlockSize, wire::Short> {
    Ok(BlockSize { minimum: data.try_get_u32()?, preferred: data.try_get_u32()?, maximum: data.try_get_u32()? })
}

fn context(data: &[u8]) -> Result<(u32, String), Error> {
    let malformed = || Error::Protocol("a malformed meta context".into());
    let mut data = data;
    let id = data.try_get_u32().map_err(|_| malformed())?;
    if data.len() > wire::MAX_STRING {
        return Err(malformed());
    }
    Ok((id, String::from_utf8(data.to_vec()).map_err(|_| malformed())?))
}

fn broken(error: io::Error) -> Error {
    Error::Handshake(error)
}

impl Agreed {
    /// Whether the export has all the abilities of `flags`.
    pub fn has(&self, flags: u16) -> bool {
        self.flags & transmission::HAS_FLAGS != 0 && self.flags & flags == flags
    }
}
