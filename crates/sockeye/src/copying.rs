//! `copy`: the engine on two disks, without a control server.
//!
//! ```text
//!   copy SRC DST                     both ends in this process
//!   copy SRC sockeye+tls://…         ═ TLS ═►  receive DST     on the other host
//!   copy sockeye+tls://… DST         ◄═ TLS ═  send SRC        on the other host
//! ```

mod place;
mod remote;

use std::sync::Arc;
use std::time::Instant;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use protocol::Fault;
use protocol::order::Sync;
use serde::Serialize;
use tokio::sync::Mutex;
use transfer::copy::{Copied, Failure, Wish, fetch, send};

use crate::cli::{Copy, CopySync, Place};
use crate::ending::{Ending, Trouble};
use crate::show::Screen;
use crate::show::words::{bytes, span};

pub use remote::{receive, send as send_to};

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
    let sync = match copy.sync {
        CopySync::Compare => Sync::Compare,
        CopySync::Full => Sync::Full,
    };
    let wish = Wish { sync, verify: copy.verify, dry_run: copy.dry_run, leaf_bytes: copy.leaf_size };
    let bar = bar(screen);
    let progress = {
        let bar = bar.clone();
        move |expected, done| {
            bar.set_length(expected);
            bar.set_position(done);
        }
    };
    let source = async || place::source(&copy.source, &copy.marks.state, copy.connections).await.map_err(refused);
    let target = || place::target(&copy.target, &copy.marks.state, copy.connections).map_err(refused);
    let copied = match (&copy.source, &copy.target) {
        (Place::Remote(_), Place::Remote(_)) => {
            let remedy = "run it on one of their hosts, and on the other one sockeye send or sockeye receive";
            return Err(Trouble::usage("both disks are on other hosts", remedy));
        }
        (Place::Remote(peer), _) => {
            let dialler = remote::dialler(copy)?;
            fetch(&mut target()?.with_progress(progress), async || dialler.dial(peer).await, wish).await
        }
        (_, Place::Remote(peer)) => {
            let (source, dialler) = (source().await?, remote::dialler(copy)?);
            send(source, async || dialler.dial(peer).await, wish, &progress).await
        }
        _ => {
            let (source, target) = (source().await?, Arc::new(Mutex::new(target()?)));
            let dial = async || {
                let (near, far) = component::Link::pair();
                let target = target.clone();
                // How it ends the sender hears.
                tokio::spawn(async move { target.lock().await.take(far).await });
                Ok(near)
            };
            send(source, dial, wish, &progress).await
        }
    };
    bar.finish_and_clear();
    let Copied { size, sync, resumed, moved } = copied.map_err(trouble)?;
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
    let source_is_here = !matches!(copy.source, Place::Remote(_));
    screen.result(&report, &words(&report, source_is_here));
    Ok(Ending::Done)
}

fn words(report: &Report, source_is_here: bool) -> String {
    let how = match report.sync {
        Sync::Full => "data",
        Sync::Compare | Sync::Tracked => "differing blocks",
    };
    let (changed, size) = (bytes(report.changed_bytes), bytes(report.size_bytes));
    let took = span((report.seconds * 1000.0) as u64);
    let (here, there) = match source_is_here {
        true => (report.read_source_bytes, report.read_target_bytes),
        false => (report.read_target_bytes, report.read_source_bytes),
    };
    let reading = format!("read {} here and {} there", bytes(here), bytes(there));
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
