//! What a machine does, and holding one whose guest is off.
//!
//! ```text
//!   running ── guest shuts down, or its power is taken ──► shut off    libvirt ends QEMU, which writes its maps down
//!                                                             │
//!                      held.json says so, then ── started paused ──► Held: the last changes can be read; no guest runs
//! ```
//! # Always true
//! - That a machine is to be held is written down before its power is taken and before it is started paused: a machine that
//!   was only being held is never taken for one that may go on.
//!
//! # If power fails
//! It is shut off, and the note is there: whoever takes its power next holds it again.

use std::fs::File;
use std::time::Duration;

use protocol::Fault;
use protocol::fault::code;
use protocol::machine::Power;
use serde::{Deserialize, Serialize};

use super::virsh::VirshError;
use super::{Site, relay, run};
use crate::Stopped;
use crate::host::folder::Folder;

/// How often libvirt is asked what the guest does.
const LOOK_AGAIN: Duration = Duration::from_millis(100);
/// How often the guest is asked again to shut down: some press the button away while they boot.
const ASK_AGAIN: Duration = Duration::from_secs(3);
/// For how long a machine that we did not ask may be ending.
const ENDING_TAKES: Duration = Duration::from_secs(10);
/// The note that a machine is held.
const HELD: &str = "held.json";
/// The note that a guest stands still for a moment, so that its disks are flushed.
const FLUSHING: &str = "flushing.json";
/// For how long a paused guest may be one that is about to go on.
const FLUSH_TAKES: Duration = Duration::from_secs(5);

/// How a machine that is held came to stand still.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Hold {
    /// The guest shut itself down.
    ByGuest,
    /// Its power was taken.
    PoweredOff,
}

impl From<Hold> for Stopped {
    fn from(hold: Hold) -> Stopped {
        match hold {
            Hold::ByGuest => Stopped::ByGuest,
            Hold::PoweredOff => Stopped::PoweredOff,
        }
    }
}

/// What libvirt says of a machine (`virDomainState`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum State {
    Running,
    Paused,
    Off,
}

fn held(folder: &Folder) -> Result<Option<Hold>, Fault> {
    folder.read(HELD)
}

/// What libvirt says.
pub(crate) async fn state(site: &Site, folder: &Folder) -> Result<State, Fault> {
    let cannot = |why: String| folder.fault("cannot be asked", why);
    let told = site.virsh.ask(&["domstats", "--state", folder.name()]).await;
    let told = told.map_err(|why| cannot(why.to_string()))?;
    let number = told.lines().find_map(|line| line.trim().strip_prefix("state.state=")?.parse::<u8>().ok());
    match number {
        // Running, blocked, in the middle of shutting down, suspended by its own wish.
        Some(1 | 2 | 4 | 7) => Ok(State::Running),
        Some(3) => Ok(State::Paused),
        Some(5 | 6) => Ok(State::Off),
        _ => Err(cannot(format!("libvirt tells its state as {:?}", told.trim()))),
    }
}

/// What the machine does.
pub(crate) async fn power(site: &Site, folder: &Folder) -> Result<Power, Fault> {
    let start = tokio::time::Instant::now();
    loop {
        match state(site, folder).await? {
            State::Running => return Ok(Power::Running),
            State::Off => return Ok(Power::Off),
            State::Paused if held(folder)?.is_some() => return Ok(Power::Held),
            State::Paused if !is_flushing(folder)? || start.elapsed() > FLUSH_TAKES => return Ok(Power::Paused),
            State::Paused => tokio::time::sleep(LOOK_AGAIN).await,
        }
    }
}

fn is_flushing(folder: &Folder) -> Result<bool, Fault> {
    Ok(folder.read::<bool>(FLUSHING)?.is_some())
}

/// Has QEMU write down all that it holds of the machine's disks, which it does when the guest stands still: for a moment,
/// if it runs. One process stops it and lets it go on, whatever becomes of us meanwhile.
pub(crate) async fn flush(site: &Site, folder: &Folder, lock: &File) -> Result<Duration, Fault> {
    if state(site, folder).await? != State::Running {
        return Ok(Duration::ZERO);
    }
    #[cfg(feature = "sabotage")]
    if protocol::sabotage::is("overlays-not-flushed") {
        return Ok(Duration::ZERO);
    }
    folder.write(FLUSHING, &true)?;
    let begun = tokio::time::Instant::now();
    let both = format!("suspend {name}; resume {name}", name = folder.name());
    let flushed = site.virsh.run(lock, &[&both]).await;
    let took = begun.elapsed();
    goes_on(site, folder, lock).await?;
    flushed.map_err(|why| folder.fault("does not write its disks down", why))?;
    Ok(took)
}

/// Lets a guest go on that somebody stopped for a flush and left so.
pub(crate) async fn goes_on(site: &Site, folder: &Folder, lock: &File) -> Result<(), Fault> {
    if is_flushing(folder)? {
        if state(site, folder).await? == State::Paused && held(folder)?.is_none() {
            go(site, folder, lock).await?;
        }
        folder.remove(FLUSHING)?;
    }
    Ok(())
}

/// Takes the power from the guest, and holds its disks. The caller has the machine's lock.
pub(crate) async fn power_off(site: &Site, folder: &Folder, lock: &File) -> Result<Stopped, Fault> {
    match (state(site, folder).await?, held(folder)?) {
        (State::Off, None) => return Ok(Stopped::WasOff),
        (State::Off, Some(_)) => {}
        (State::Paused, Some(hold)) => return Ok(hold.into()),
        (State::Running | State::Paused, _) => {
            let ours = run::is_ours(site, folder).await?;
            folder.write(HELD, &Hold::PoweredOff)?;
            destroy(site, folder, lock).await?;
            return hold(site, folder, lock, ours).await;
        }
    }
    hold(site, folder, lock, false).await
}

/// Asks the guest to shut down until it does, at most `timeout`, and holds its disks. The caller has the machine's lock.
pub(crate) async fn shut_down(site: &Site, folder: &Folder, lock: &File, timeout: Duration) -> Result<Stopped, Fault> {
    let start = tokio::time::Instant::now();
    let mut asked: Option<tokio::time::Instant> = None;
    let mut refused: Option<tokio::time::Instant> = None;
    let mut paused: Option<tokio::time::Instant> = None;
    let ours = run::is_ours(site, folder).await?;
    loop {
        let is = state(site, folder).await?;
        let stood = match is {
            State::Paused => paused.get_or_insert_with(tokio::time::Instant::now).elapsed(),
            State::Running | State::Off => {
                paused = None;
                Duration::ZERO
            }
        };
        match (is, held(folder)?) {
            (State::Off, None) if asked.is_none() => return Ok(Stopped::WasOff),
            (State::Off, noted) => {
                if noted.is_none() {
                    folder.write(HELD, &Hold::ByGuest)?;
                }
                return hold(site, folder, lock, ours && asked.is_some()).await;
            }
            (State::Paused, Some(hold)) => return Ok(hold.into()),
            // For a moment only: somebody cuts.
            (State::Paused, None) if is_flushing(folder)? && stood < FLUSH_TAKES => {}
            (State::Paused, None) => return Err(ignores(folder, "it is paused and hears nothing")),
            (State::Running, _) if start.elapsed() >= timeout => {
                return Err(ignores(folder, &format!("it still ran after {} s", timeout.as_secs_f32())));
            }
            (State::Running, _) if asked.is_none_or(|at| at.elapsed() > ASK_AGAIN) => {
                match site.virsh.run(lock, &["shutdown", folder.name()]).await {
                    Ok(_) => asked = Some(tokio::time::Instant::now()),
                    // One that is ending is not heard any more, and is still said to run while QEMU writes out what it has.
                    Err(_) if asked.is_some() => asked = Some(tokio::time::Instant::now()),
                    // Somebody else may have asked it.
                    Err(why) => {
                        let since = refused.get_or_insert_with(tokio::time::Instant::now);
                        if since.elapsed() > ENDING_TAKES && state(site, folder).await? == State::Running {
                            return Err(folder.fault("cannot be shut down", why));
                        }
                    }
                }
            }
            (State::Running, _) => {}
        }
        tokio::time::sleep(LOOK_AGAIN).await;
    }
}

fn ignores(folder: &Folder, why: &str) -> Fault {
    Fault::new(code::GUEST_IGNORES_SHUTDOWN, format!("machine {} did not shut down", folder.name()), why)
}

/// Starts a machine whose guest is off, paused, so that what its disks keep can be read. `seen` says that its last run was
/// ours and that we saw it end: then this is the same run.
async fn hold(site: &Site, folder: &Folder, lock: &File, seen: bool) -> Result<Stopped, Fault> {
    launch(site, folder, lock).await?;
    if seen {
        run::claim(site, folder, lock).await?;
    }
    Ok(held(folder)?.map_or(Stopped::WasOff, Stopped::from))
}

/// Starts the machine with its processors standing still.
pub(crate) async fn launch(site: &Site, folder: &Folder, lock: &File) -> Result<(), Fault> {
    relay::begin(folder).await?;
    match site.virsh.run(lock, &["start", "--paused", folder.name()]).await {
        Ok(_) => Ok(()),
        Err(VirshError::Refused(words)) if words.contains("Is another process using the image") => {
            Err(Fault::new(code::DISK_IN_USE, format!("machine {} cannot have its disks", folder.name()), words))
        }
        Err(why) => Err(folder.fault("could not be started", why)),
    }
}

/// Lets the guest's processors go.
pub(crate) async fn go(site: &Site, folder: &Folder, lock: &File) -> Result<(), Fault> {
    let gone = site.virsh.run(lock, &["resume", folder.name()]).await;
    gone.map(drop).map_err(|why| folder.fault("cannot go on", why))
}

/// Ends QEMU, which writes its maps down first: it is asked, never killed.
pub(crate) async fn destroy(site: &Site, folder: &Folder, lock: &File) -> Result<(), Fault> {
    match site.virsh.run(lock, &["destroy", "--graceful", folder.name()]).await {
        Ok(_) => Ok(()),
        Err(_) if state(site, folder).await? == State::Off => Ok(()),
        Err(why) => Err(folder.fault("cannot be powered off", why)),
    }
}

/// Lets go of a machine that was held: it is off.
pub(crate) fn let_go(folder: &Folder) -> Result<(), Fault> {
    folder.remove(HELD)
}
