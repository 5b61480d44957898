//! The end of a copy on the other host: `receive`, which has the target, and `send`, which has the source.
//!
//! Whoever waits makes an authority of its own, certifies itself and one peer, and forgets the authority: the ticket that it
//! writes is the peer's identity. Nobody else gets in, and nobody else can be at the other end.

use std::io::ErrorKind;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use component::{Dialler, Door, Link, LinkError, Listen};
use identity::{Authority, Credentials, Identity, IdentityError, Request};
use protocol::Fault;
use protocol::fault::code;
use protocol::session::Message;
use transfer::copy::{Failure, Taken, Wish, give};

use super::{place, refused};
use crate::cli::{Copy, Receive, Send, Waiting};
use crate::ending::{Ending, Trouble};
use crate::show::Screen;
use crate::show::words::bytes;

/// How long somebody who dialled may take to say how it wants the copy.
const WISH: Duration = Duration::from_secs(10);
/// How long a target whose link broke is waited for before it is looked whether anything else is to be done.
const AGAIN: Duration = Duration::from_secs(10);

/// Takes one copy from another host.
///
/// # Errors
/// The disk or the address cannot be used.
pub async fn receive(screen: Screen, receive: &Receive) -> Result<Ending, Trouble> {
    let mut target = place::target(&receive.target, &receive.marks.state, receive.connections).map_err(refused)?;
    let (mut door, place) = open(&receive.waiting).await?;
    let ticket = receive.waiting.ticket.display();
    screen.say(&format!("waiting for: sockeye copy SRC {place} --ticket {ticket}"));
    while let Some(link) = door.next().await {
        match target.take(link).await {
            Ok(Taken::Whole) => {
                screen.say("the copy is whole");
                return Ok(Ending::Done);
            }
            Ok(Taken::Left) => screen.say("the sender left; waiting for it"),
            Err(fault) => screen.error(&fault),
        }
    }
    Ok(Ending::Failed)
}

/// Gives one copy to another host.
///
/// # Errors
/// The disk or the address cannot be used.
pub async fn send(screen: Screen, send: &Send) -> Result<Ending, Trouble> {
    // Refused now if it is refused at all; opened for each copy anew, so that none counts what another one read.
    place::source(&send.source, &send.marks.state, send.connections).await.map_err(refused)?;
    let (door, place) = open(&send.waiting).await?;
    let (door, ticket) = (tokio::sync::Mutex::new(door), send.waiting.ticket.display());
    screen.say(&format!("waiting for: sockeye copy {place} DST --ticket {ticket}"));
    loop {
        let Some((link, wish)) = wished(&door).await else { return Ok(Ending::Failed) };
        let source = place::source(&send.source, &send.marks.state, send.connections).await;
        let source = match source {
            Ok(source) => source,
            Err(fault) => {
                let Link { mut incoming, outgoing, .. } = link;
                // Whether it hears that or not.
                let _ = component::link::refuse(&mut incoming, outgoing, fault.clone()).await;
                screen.error(&fault);
                continue;
            }
        };
        let first = Mutex::new(Some(link));
        let dialled = async || {
            let first = first.lock().unwrap_or_else(PoisonError::into_inner).take();
            match first {
                Some(link) => Ok(link),
                None => match tokio::time::timeout(AGAIN, wished(&door)).await {
                    Ok(Some((link, _))) => Ok(link),
                    _ => Err(LinkError::Io { peer: "the target".into(), source: ErrorKind::TimedOut.into() }),
                },
            }
        };
        match give(source, dialled, wish, &|_, _| ()).await {
            Ok(_) if wish.dry_run => screen.say("it was asked what would travel; waiting"),
            Ok(copied) => {
                screen.say(&format!("the copy is whole: {} travelled", bytes(copied.moved.changed)));
                return Ok(Ending::Done);
            }
            Err(Failure::Refused(fault) | Failure::Unreached(fault) | Failure::Failed(fault)) => {
                screen.error(&fault);
                screen.say("waiting for the target");
            }
        }
    }
}

/// Who dialled next, and how it wants the copy; none when the door is closed.
async fn wished(door: &tokio::sync::Mutex<Door>) -> Option<(Link, Wish)> {
    loop {
        let mut link = door.lock().await.next().await?;
        match tokio::time::timeout(WISH, link.incoming.message("a wish")).await {
            Ok(Ok(Message::Fetch { sync, verify, dry_run, leaf_bytes })) => {
                return Some((link, Wish { sync, verify, dry_run, leaf_bytes }));
            }
            Ok(Ok(_)) => {
                let cause = "the one that dialled did not ask for a copy; sockeye send gives one, and takes none";
                let fault = Fault::new(code::PROTOCOL, "there is nothing here to be written to", cause);
                let Link { mut incoming, outgoing, .. } = link;
                let _ = component::link::refuse(&mut incoming, outgoing, fault).await;
            }
            Ok(Err(_)) | Err(_) => {}
        }
    }
}

/// Begins to listen, and writes the ticket. Gives what the other host calls the disk, too.
async fn open(waiting: &Waiting) -> Result<(Door, String), Trouble> {
    let credentials = Arc::new(tickets(waiting).map_err(|error| refused(unusable(waiting, &error)))?);
    let advertise = waiting.advertise.clone().unwrap_or_else(|| waiting.listen.to_string());
    let (listener, address) = Listen { address: waiting.listen, advertise }.bind().await?;
    Ok((Door::open(listener, credentials), format!("sockeye+tls://{address}/{}", waiting.name)))
}

/// An authority for one copy: the identity of whoever waits, and the other one's in the ticket.
fn tickets(waiting: &Waiting) -> Result<Credentials, IdentityError> {
    let authority = Authority::make()?;
    let certified = |name: &str| -> Result<Identity, IdentityError> {
        let request = Request::make()?;
        let certified = authority.certify(name, &request.pem)?;
        request.answered(&certified.certificate, &certified.authority)
    };
    Credentials::open(&waiting.ticket)?.replace(certified("peer")?)?;
    Ok(Credentials::of(certified(&waiting.name)?))
}

fn unusable(waiting: &Waiting, error: &IdentityError) -> Fault {
    let message = format!("the ticket {} cannot be written", waiting.ticket.display());
    let cause = std::error::Error::source(error).map_or_else(|| error.to_string(), ToString::to_string);
    Fault::new(code::COPY_TARGET, message, cause).with_remedy("choose another file with --ticket")
}

/// Dials whoever wrote the ticket.
pub(super) fn dialler(copy: &Copy) -> Result<Dialler, Trouble> {
    let ticket = copy.ticket.as_ref().ok_or_else(|| {
        Trouble::usage(
            "a copy to or from another host needs a ticket",
            "give --ticket FILE, which `sockeye receive` or `sockeye send` wrote there",
        )
    })?;
    let credentials = Credentials::open(ticket).ok().filter(|credentials| credentials.now().is_some());
    let credentials = credentials.ok_or_else(|| {
        let cause = "it cannot be read, or is not what receive or send wrote";
        Trouble::usage(format!("{} is no ticket", ticket.display()), cause)
    })?;
    Ok(Dialler { credentials: Arc::new(credentials), connections: copy.connections })
}
