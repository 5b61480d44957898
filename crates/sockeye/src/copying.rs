//! `copy` and `receive`: the engine on two disks, without a control server.
//!
//! ```text
//!   copy SRC DST                     both ends in this process
//!   copy SRC sockeye+tls://…         ═ TLS ═►  receive DST     on the other host
//! ```
//!
//! `receive` makes an authority of its own, certifies itself and one sender, and forgets the authority: the ticket that
//! it writes is the sender's identity. Nobody else gets in, and nobody else can be at the other end.

mod place;

use std::sync::Arc;
use std::time::Instant;

use component::{Dialler, Door, Listen};
use identity::{Authority, Credentials, Identity, IdentityError, Request};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use protocol::Fault;
use protocol::fault::code;
use protocol::order::Sync;
use protocol::replication::Peer;
use serde::Serialize;
use transfer::copy::{Copied, Failure, Taken, Wish, send};

use crate::cli::{Copy, CopySync, Place, Receive};
use crate::ending::{Ending, Trouble};
use crate::show::Screen;
use crate::show::words::{bytes, span};

/// What a copy did, as programs see it.
#[derive(Serialize)]
struct Report {
    sync: Sync,
    dry_run: bool,
    resumed: bool,
    verified: bool,
    size_bytes: u64,
    changed_bytes: u64,
    sent_bytes: u64,
    read_source_bytes: u64,
    read_target_bytes: u64,
    seconds: f64,
}

/// Copies a disk.
///
/// # Errors
/// One of the disks cannot be used, or the copy fails; what was written then is marked.
pub async fn copy(screen: Screen, copy: &Copy) -> Result<Ending, Trouble> {
    let begun = Instant::now();
    let (reader, read) = place::source(&copy.source, copy.connections).await.map_err(refused)?;
    let size = reader.size;
    let sync = match copy.sync {
        CopySync::Compare => Sync::Compare,
        CopySync::Full => Sync::Full,
    };
    let wish = Wish { sync, verify: copy.verify, dry_run: copy.dry_run };
    let bar = bar(screen);
    let progress = |expected, done| {
        bar.set_length(expected);
        bar.set_position(done);
    };
    let copied = match &copy.target {
        Place::Remote { address, name } => {
            let dialler = dialler(copy)?;
            let peer = Peer { name: name.clone(), address: address.clone() };
            send((reader, read), async || dialler.dial(&peer).await, wish, &progress).await
        }
        here => {
            let target = place::target(here, &copy.marks.state, copy.connections).map_err(refused)?;
            let target = Arc::new(tokio::sync::Mutex::new(target));
            let dial = async || {
                let (near, far) = component::Link::pair();
                let target = target.clone();
                // How it ends the sender hears.
                tokio::spawn(async move { target.lock().await.take(far).await });
                Ok(near)
            };
            send((reader, read), dial, wish, &progress).await
        }
    };
    bar.finish_and_clear();
    let Copied { sync, resumed, moved } = copied.map_err(trouble)?;
    let report = Report {
        sync,
        dry_run: copy.dry_run,
        resumed,
        verified: copy.verify && !copy.dry_run,
        size_bytes: size,
        changed_bytes: moved.changed,
        sent_bytes: moved.sent,
        read_source_bytes: moved.read_source,
        read_target_bytes: moved.read_target,
        seconds: begun.elapsed().as_secs_f64(),
    };
    screen.result(&report, &words(&report));
    Ok(Ending::Done)
}

fn words(report: &Report) -> String {
    let how = match report.sync {
        Sync::Full => "data",
        Sync::Compare | Sync::Tracked => "differing blocks",
    };
    let (changed, size) = (bytes(report.changed_bytes), bytes(report.size_bytes));
    let took = span((report.seconds * 1000.0) as u64);
    let reading =
        format!("read {} here and {} there", bytes(report.read_source_bytes), bytes(report.read_target_bytes));
    if report.dry_run {
        let resumed = if report.resumed { ", what an unfinished copy brought not counted" } else { "" };
        return format!("would copy {changed} of {how} ({size} disk{resumed}); {reading} in {took} to find out");
    }
    let rate = bytes((report.changed_bytes as f64 / report.seconds.max(0.001)) as u64);
    let mut text = format!("copied {changed} of {how} ({size} disk) in {took}, {rate}/s; {reading}");
    if report.sent_bytes > 0 {
        text.push_str(&format!("; {} over the line", bytes(report.sent_bytes)));
    }
    if report.resumed {
        text.push_str("; went on with a copy that had not finished");
    }
    if report.verified {
        text.push_str("; compared afterwards: equal");
    }
    text
}

/// Takes one copy from another host.
///
/// # Errors
/// The disk or the address cannot be used.
pub async fn receive(screen: Screen, receive: &Receive) -> Result<Ending, Trouble> {
    let mut target = place::target(&receive.target, &receive.marks.state, receive.connections).map_err(refused)?;
    let credentials = Arc::new(tickets(receive).map_err(|error| refused(unusable(receive, &error)))?);
    let advertise = receive.advertise.clone().unwrap_or_else(|| receive.listen.to_string());
    let (listener, address) = Listen { address: receive.listen, advertise }.bind().await?;
    let mut door = Door::open(listener, credentials);
    let (name, ticket) = (&receive.name, receive.ticket.display());
    screen.say(&format!("waiting for: sockeye copy SRC sockeye+tls://{address}/{name} --ticket {ticket}"));
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

/// An authority for one copy: the receiver's identity, and the sender's in the ticket.
fn tickets(receive: &Receive) -> Result<Credentials, IdentityError> {
    let authority = Authority::make()?;
    let certified = |name: &str| -> Result<Identity, IdentityError> {
        let request = Request::make()?;
        let certified = authority.certify(name, &request.pem)?;
        request.answered(&certified.certificate, &certified.authority)
    };
    Credentials::open(&receive.ticket)?.replace(certified("sender")?)?;
    Ok(Credentials::of(certified(&receive.name)?))
}

fn unusable(receive: &Receive, error: &IdentityError) -> Fault {
    let message = format!("the ticket {} cannot be written", receive.ticket.display());
    let cause = std::error::Error::source(error).map_or_else(|| error.to_string(), ToString::to_string);
    Fault::new(code::COPY_TARGET, message, cause).with_remedy("choose another file with --ticket")
}

fn dialler(copy: &Copy) -> Result<Dialler, Trouble> {
    let ticket = copy.ticket.as_ref().ok_or_else(|| {
        Trouble::usage(
            "a copy to another host needs a ticket",
            "give --ticket FILE, which `sockeye receive` wrote there",
        )
    })?;
    let credentials = Credentials::open(ticket).ok().filter(|credentials| credentials.now().is_some());
    let credentials = credentials.ok_or_else(|| {
        Trouble::usage(format!("{} is no ticket", ticket.display()), "it cannot be read, or is not what receive wrote")
    })?;
    Ok(Dialler { credentials: Arc::new(credentials), connections: copy.connections })
}

/// What cannot be copied from or to is refused before anything changes.
fn refused(fault: Fault) -> Trouble {
    Trouble::new(Ending::Refused, fault)
}

/// A copy that could not begin changed nothing; one that broke off has left its mark.
fn trouble(failure: Failure) -> Trouble {
    match failure {
        Failure::Refused(fault) => refused(fault),
        Failure::Unreached(fault) => Trouble::new(Ending::Unreached, fault),
        Failure::Failed(fault) => Trouble::new(Ending::Failed, fault),
    }
}

fn bar(screen: Screen) -> ProgressBar {
    let target = if screen.is_live() { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
    let bar = ProgressBar::with_draw_target(Some(0), target);
    let style = "{wide_bar} {binary_bytes}/{binary_total_bytes} {binary_bytes_per_sec} {eta}";
    bar.set_style(ProgressStyle::with_template(style).unwrap_or_else(|_| ProgressStyle::default_bar()));
    bar
}
