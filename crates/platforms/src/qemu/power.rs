//! What a machine does, and taking its power.
//!
//! ```text
//!   running ── guest shuts down ──────────► shutdown   QEMU stays (`-no-shutdown`), holds disks and maps: Held
//!      │    ── reboot=shutdown, reset ────► shutdown   power is taken the same way
//!   paused  ── power taken: a file says so ► paused    but Held, and never resumed
//! ```
//! In the run state `shutdown` QEMU itself refuses `cont`. So a cut that is under way in another process while the power is
//! taken cannot wake the guest again, which a guest that was only stopped would not survive.

use std::time::Duration;

use protocol::Fault;
use protocol::fault::code;
use protocol::machine::Power;
use serde_json::{Value, json};

use super::process;
use super::qmp::{Qmp, QmpError};
use crate::Stopped;
use crate::host::folder::Folder;

/// How often the guest is asked again to shut down: some press the button away while they boot.
const ASK_AGAIN: Duration = Duration::from_secs(3);
/// How often QEMU is asked what the guest does.
const LOOK_AGAIN: Duration = Duration::from_millis(50);
/// For how long a paused guest may be one that a cut is about to continue.
const CUT_TAKES: Duration = Duration::from_secs(2);
/// The lock of whoever stops the guest for a cut.
pub(crate) const CUTTING: &str = "cut.lock";
/// How long a cut of another process is waited for.
pub(crate) const CUT_LOCK_PATIENCE: Duration = Duration::from_secs(10);
/// How long a QEMU may live without answering: connecting the view under an overlay is in it.
const LAUNCH_TAKES: Duration = Duration::from_secs(20);
/// How long QEMU may take to act on a reset.
const RESET_PATIENCE: Duration = Duration::from_secs(10);
/// The file that says that power was taken from a paused guest.
const TAKEN: &str = "power-taken";

/// What QEMU says of the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Running,
    Paused,
    /// Has not run yet.
    Waiting,
    /// Cannot go on: shut down, or dead.
    Ended,
}

/// A conversation about the life of the machine, which runs under QEMU. One that is just being launched is waited for.
pub(crate) async fn converse(folder: &Folder) -> Result<Qmp, Fault> {
    let start = tokio::time::Instant::now();
    loop {
        match Qmp::over_sockets(&folder.life_sockets()).await {
            Ok(qmp) => return Ok(qmp),
            Err(_) if start.elapsed() < LAUNCH_TAKES && process::running(folder).is_some() => {
                tokio::time::sleep(LOOK_AGAIN).await;
            }
            Err(why) => return Err(folder.fault("cannot be asked", why)),
        }
    }
}

async fn state(qmp: &mut Qmp) -> Result<State, QmpError> {
    let status = qmp.execute("query-status", Value::Null).await?;
    Ok(match status["status"].as_str().unwrap_or_default() {
        "running" | "suspended" => State::Running,
        "prelaunch" => State::Waiting,
        "shutdown" | "internal-error" | "guest-panicked" => State::Ended,
        _ => State::Paused,
    })
}

/// Whether the guest has not run yet in this QEMU.
pub(crate) async fn waits(folder: &Folder, qmp: &mut Qmp) -> Result<bool, Fault> {
    let now = state(qmp).await.map_err(|why| folder.fault("cannot be asked", why))?;
    Ok(now == State::Waiting)
}

fn taken(folder: &Folder) -> bool {
    folder.file(TAKEN).exists()
}

/// What the machine does. A guest that stands still for the moment of a cut counts as running.
pub(crate) async fn power(folder: &Folder) -> Result<Power, Fault> {
    if process::running(folder).is_none() {
        return Ok(Power::Off);
    }
    match ask(folder).await {
        Ok(State::Running) => Ok(Power::Running),
        Ok(State::Paused | State::Waiting) if taken(folder) => Ok(Power::Held),
        Ok(State::Paused | State::Waiting) => Ok(Power::Paused),
        Ok(State::Ended) => Ok(Power::Held),
        // It may have ended while it was asked.
        Err(_) if process::running(folder).is_none() => Ok(Power::Off),
        Err(why) => Err(why),
    }
}

async fn ask(folder: &Folder) -> Result<State, Fault> {
    let mut qmp = converse(folder).await?;
    let start = tokio::time::Instant::now();
    loop {
        let now = state(&mut qmp).await.map_err(|why| folder.fault("cannot be asked", why))?;
        if now != State::Paused || taken(folder) || start.elapsed() > CUT_TAKES {
            return Ok(now);
        }
        tokio::time::sleep(LOOK_AGAIN).await;
    }
}

/// Lets a paused guest go on; one whose power was taken never does.
pub(crate) async fn resume(folder: &Folder) -> Result<(), Fault> {
    match power(folder).await? {
        Power::Running => Ok(()),
        Power::Off => Err(folder.fault("cannot go on", "it is off")),
        Power::Held => Err(folder.fault("cannot go on", "its guest is off; it has to be settled and started")),
        Power::Paused => go(folder, &mut converse(folder).await?).await,
    }
}

/// Lets the guest's processors go, but never in the middle of a cut, which would then not be exact. (A cutter that died in
/// the middle has let go of the lock, but nobody will read its cut; its maps are exact by themselves.)
pub(crate) async fn go(folder: &Folder, qmp: &mut Qmp) -> Result<(), Fault> {
    let _no_cut = folder.lock(CUTTING, CUT_LOCK_PATIENCE).await?;
    let done = qmp.execute("cont", Value::Null).await;
    done.map(|_| ()).map_err(|why| folder.fault("cannot go on", why))
}

/// Asks the guest to shut down until it does, at most `timeout`.
pub(crate) async fn shut_down(folder: &Folder, timeout: Duration) -> Result<Stopped, Fault> {
    let start = tokio::time::Instant::now();
    let mut asked: Option<tokio::time::Instant> = None;
    loop {
        match power(folder).await? {
            Power::Off if asked.is_none() => return Ok(Stopped::WasOff),
            Power::Off => return Err(folder.fault("did not shut down", "QEMU ended while it was waited for")),
            Power::Held if taken(folder) => return Ok(Stopped::PoweredOff),
            Power::Held => return Ok(Stopped::ByGuest),
            Power::Paused if start.elapsed() > CUT_TAKES => {
                return Err(ignores(folder, "it is paused and hears nothing"));
            }
            Power::Paused => {}
            Power::Running if start.elapsed() >= timeout => {
                return Err(ignores(folder, &format!("it still ran after {} s", timeout.as_secs_f32())));
            }
            Power::Running if asked.is_none_or(|at| at.elapsed() > ASK_AGAIN) => {
                let mut qmp = converse(folder).await?;
                let pressed = qmp.execute("system_powerdown", Value::Null).await;
                pressed.map_err(|why| folder.fault("cannot be shut down", why))?;
                asked = Some(tokio::time::Instant::now());
            }
            Power::Running => {}
        }
        tokio::time::sleep(LOOK_AGAIN).await;
    }
}

fn ignores(folder: &Folder, why: &str) -> Fault {
    Fault::new(code::GUEST_IGNORES_SHUTDOWN, format!("machine {} did not shut down", folder.name()), why)
}

/// Takes the power from the guest; QEMU goes on to hold its disks.
pub(crate) async fn power_off(folder: &Folder) -> Result<Stopped, Fault> {
    let cannot = |why: QmpError| folder.fault("cannot be powered off", why);
    match power(folder).await? {
        Power::Off => return Ok(Stopped::WasOff),
        Power::Held if taken(folder) => return Ok(Stopped::PoweredOff),
        Power::Held => return Ok(Stopped::ByGuest),
        Power::Running | Power::Paused => {}
    }
    let mut qmp = converse(folder).await?;
    let start = tokio::time::Instant::now();
    let mut reset: Option<tokio::time::Instant> = None;
    loop {
        match state(&mut qmp).await.map_err(cannot)? {
            State::Paused if start.elapsed() <= CUT_TAKES => {}
            // Where the guest ended, the note only tells a later question how; the run state is what keeps it off.
            State::Ended | State::Waiting | State::Paused => {
                folder.write(TAKEN, &process::running(folder))?;
                return Ok(Stopped::PoweredOff);
            }
            State::Running if start.elapsed() > RESET_PATIENCE => {
                return Err(folder.fault("cannot be powered off", "it runs on after a reset that should have ended it"));
            }
            State::Running if reset.is_none_or(|at| at.elapsed() > Duration::from_secs(1)) => {
                qmp.execute("set-action", json!({ "reboot": "shutdown" })).await.map_err(cannot)?;
                qmp.execute("system_reset", Value::Null).await.map_err(cannot)?;
                reset = Some(tokio::time::Instant::now());
            }
            State::Running => {}
        }
        tokio::time::sleep(LOOK_AGAIN).await;
    }
}
