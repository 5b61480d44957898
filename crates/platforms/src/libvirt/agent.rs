//! Freezing the guest for a cut, through libvirt and the agent in the guest.
//!
//! ```text
//!   one virsh:  guest-agent-timeout ─► domfsfreeze ─► backup-begin ─► domfsthaw ─► guest-agent-timeout (as it was)
//! ```
//! virsh goes on with the next command when one fails: without an agent the cut is made all the same, and a guest that was frozen
//! is thawed whatever became of the cut, and whatever becomes of us meanwhile.
//!
//! # An agent that is late
//! libvirt speaks only to an agent that answers at once. While a hook keeps it busy it cannot be told to thaw, and would freeze
//! the guest afterwards. So it is told again and again until it has been, first by the process that froze, then by whoever opens
//! the machine next.
//!
//! # Always true
//! - That the guest may be frozen is written down before it is, and forgotten only when libvirt has thawed it, or it is off.
//!
//! # If power fails
//! The guest is gone with the host.

use std::fs::File;
use std::time::Duration;

use async_trait::async_trait;
use protocol::fault::code;
use protocol::{Fault, Freeze, Quiesce};
use serde_json::Value;
use xmltree::Element;

use super::document::Document;
use super::virsh::{Timed, Virsh, VirshError};
use super::{Site, life};
use crate::guest::agent::Ask;
use crate::host::folder::Folder;

/// The name of the agent's channel.
const CHANNEL: &str = "org.qemu.guest_agent.0";
/// The note that the guest may be frozen.
const FROZEN: &str = "frozen.json";
/// How often an agent that is late is told to thaw, and for how long by one process.
const TELL_AGAIN: Duration = Duration::from_secs(1);
const TELL_FOR: Duration = Duration::from_secs(600);
/// The places of the commands in the line.
const FREEZE: usize = 1;
const BACKUP: usize = 2;
const THAW: usize = 3;

fn not_frozen(folder: &Folder, why: impl std::fmt::Display) -> Fault {
    Fault::new(code::GUEST_NOT_FROZEN, format!("the guest of {} is not frozen", folder.name()), why.to_string())
}

/// Why it makes no sense to ask the agent, if it makes none.
async fn absent(site: &Site, folder: &Folder) -> Result<Option<Fault>, Fault> {
    let told = site.virsh.ask(&["dumpxml", folder.name()]).await;
    let told = told.map_err(|why| folder.fault("is not described", why))?;
    let domain = Element::read(&told).map_err(|why| folder.fault("is described in words that cannot be read", why))?;
    let devices = domain.at(&["devices"]).into_iter();
    let mut targets = devices.flat_map(|devices| devices.all("channel")).filter_map(|channel| channel.at(&["target"]));
    let why = match targets.find(|target| target.has("name") == Some(CHANNEL)) {
        Some(target) if target.has("state") == Some("connected") => return Ok(None),
        Some(_) => format!("no program in the guest has the channel {CHANNEL} open"),
        None => format!("the machine has no channel {CHANNEL}"),
    };
    Ok(Some(no_agent(folder, why)))
}

fn no_agent(folder: &Folder, why: impl Into<String>) -> Fault {
    Fault::new(code::NO_GUEST_AGENT, format!("the guest of {} cannot be asked", folder.name()), why)
}

/// The agent of one machine, asked through libvirt, which lets one at a time speak with it.
pub(crate) struct Asked {
    site: Site,
    folder: Folder,
}

impl Asked {
    pub fn new(site: Site, folder: Folder) -> Asked {
        Asked { site, folder }
    }
}

#[async_trait]
impl Ask for Asked {
    fn machine(&self) -> &str {
        self.folder.name()
    }

    async fn ask(&self, command: Value, patience: Duration) -> Result<Result<Value, String>, Fault> {
        let (site, folder) = (&self.site, &self.folder);
        if life::state(site, folder).await? != life::State::Running {
            return Err(no_agent(folder, "its machine does not run"));
        }
        if let Some(fault) = absent(site, folder).await? {
            return Err(fault);
        }
        let (seconds, line) = (patience.as_secs().max(1).to_string(), command.to_string());
        let words = ["qemu-agent-command", "--timeout", &seconds, folder.name(), "--cmd", &line];
        match site.virsh.ask(&words).await {
            Ok(told) => {
                let read: Result<Value, _> = serde_json::from_str(told.trim());
                let mut answer = read.map_err(|_| no_agent(folder, "its answer cannot be read"))?;
                Ok(Ok(answer["return"].take()))
            }
            // The agent's own words are in it; whatever else libvirt says is that it has no answer.
            Err(VirshError::Refused(words)) => match words.split_once("unable to execute QEMU agent command") {
                Some((_, words)) => Ok(Err(words.trim().into())),
                None => Err(no_agent(folder, words)),
            },
            Err(why) => Err(no_agent(folder, why.to_string())),
        }
    }
}

/// Begins a backup by `words` with the guest frozen around it, as far as its agent does that. The caller looks whether the backup
/// runs; where it does not, what is given is why.
pub(crate) async fn freeze_around(
    site: &Site,
    folder: &Folder,
    lock: &File,
    wish: Quiesce,
    words: &[&str],
) -> Result<(Freeze, Result<(), String>), Fault> {
    let refused = match life::state(site, folder).await? {
        life::State::Running if folder.read::<bool>(FROZEN)?.is_some() => {
            Some(not_frozen(folder, "its agent has not answered since it was told to freeze and thaw before"))
        }
        life::State::Running => absent(site, folder).await?,
        life::State::Paused | life::State::Off => Some(not_frozen(folder, "it does not run")),
    };
    if let Some(fault) = refused {
        let begun = site.virsh.run(lock, words).await;
        return Ok((Freeze::failed(&fault), begun.map(drop).map_err(|why| why.to_string())));
    }
    folder.write(FROZEN, &true)?;
    let (name, seconds) = (folder.name(), wish.within.as_secs().max(1));
    let backup: Vec<String> = words.iter().map(|word| quoted(word)).collect();
    let line = format!(
        "guest-agent-timeout {name} --timeout {seconds}; domfsfreeze {name}; {}; domfsthaw {name}; \
         guest-agent-timeout {name} --timeout -2",
        backup.join(" ")
    );
    let told = site.virsh.timed(lock, &line).await;
    let thawed = told.as_ref().is_ok_and(|told| told.done(THAW).is_some());
    if thawed {
        folder.remove(FROZEN)?;
    } else {
        thaw_later(site, folder);
    }
    let told = told.map_err(|why| folder.fault("cannot be cut", why))?;
    let begun = if told.done(BACKUP).is_some() { Ok(()) } else { Err(told.errors.clone()) };
    Ok((outcome(folder, &told), begun))
}

/// What came of the freeze, by what virsh told.
fn outcome(folder: &Folder, told: &Timed) -> Freeze {
    let why = match (told.done(FREEZE).and_then(number), told.done(THAW).and_then(number)) {
        (Some(0), _) => "it has no file system mounted that can be frozen".to_string(),
        (Some(frozen), Some(thawed)) if thawed >= frozen => {
            let frozen_ms = told.took(BACKUP) + told.took(THAW);
            return Freeze::Done { file_systems: frozen, freeze_ms: told.took(FREEZE), frozen_ms };
        }
        (Some(frozen), Some(thawed)) => {
            format!("somebody else thawed it meanwhile: {thawed} of {frozen} were frozen yet")
        }
        (Some(_), None) => format!("it is not known to have stood still until it was thawed: {}", told.errors),
        (None, _) => told.errors.clone(),
    };
    Freeze::failed(&not_frozen(folder, why))
}

/// The first number in what was said.
fn number(said: &str) -> Option<u32> {
    said.split(|letter: char| !letter.is_ascii_digit()).find(|digits| !digits.is_empty())?.parse().ok()
}

/// A word as virsh takes it in a line of commands.
fn quoted(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}

/// Thaws a guest that somebody left frozen, as soon as its agent answers.
pub(crate) fn goes_on(site: &Site, folder: &Folder) -> Result<(), Fault> {
    if folder.read::<bool>(FROZEN)?.is_some() {
        tracing::warn!(machine = folder.name(), "the guest may have been left frozen; it is told to thaw");
        thaw_later(site, folder);
    }
    Ok(())
}

/// Tells the agent to thaw until it has, or its machine is off.
fn thaw_later(site: &Site, folder: &Folder) {
    // With a conversation of its own: nobody waits for an agent that is late.
    let (site, folder) = (Site { virsh: Virsh::new(site.virsh.uri()) }, folder.clone());
    tokio::spawn(async move {
        let begun = tokio::time::Instant::now();
        while begun.elapsed() < TELL_FOR {
            let thawed = site.virsh.ask(&["domfsthaw", folder.name()]).await.is_ok();
            let off = life::state(&site, &folder).await.is_ok_and(|now| now == life::State::Off);
            if thawed || off {
                if let Err(fault) = folder.remove(FROZEN) {
                    tracing::warn!(%fault, cause = fault.cause, "the next capture thaws the guest once more");
                }
                return;
            }
            tokio::time::sleep(TELL_AGAIN).await;
        }
        tracing::warn!(machine = folder.name(), "the guest's agent does not answer; it may be frozen");
    });
}
