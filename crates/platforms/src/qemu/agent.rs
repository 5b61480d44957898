//! The guest's agent, which freezes its file systems for a cut (QEMU's guest agent protocol: one JSON object a line).
//!
//! ```text
//!   agent.in, agent.out   two FIFOs ─► virtio-serial port org.qemu.guest_agent.0 ─► qemu-ga in the guest
//!
//!   freeze   is it there? ─► sync ─► arm the switch ─► guest-fsfreeze-freeze      thaw   guest-fsfreeze-thaw ─► disarm
//! ```
//! FIFOs and not a socket for the reason that `qmp` gives: what is written reaches the agent whatever becomes of the writer, and
//! more than one process can write, however many others are stopped in the middle of a conversation.
//!
//! One conversation at a time: whoever begins one has the lock `agent.lock` until its end.
//!
//! # The switch
//! A process of its own holds one end of a pipe to us. When we die, or drop what is frozen, the pipe ends, and it thaws the
//! guest at once; when we are only stopped it does so after a while. So a guest never stands still for want of us.
//!
//! # Always true
//! - `freeze` is sent only to an agent that has just answered: one that waits in the FIFO would freeze a guest that starts later.
//! - Behind every `freeze` a `thaw` is sent. An agent that is late reads both, and leaves nothing frozen.
//!
//! # If power fails
//! The guest is gone with the host.

use std::fs::File;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use protocol::fault::code;
use protocol::{Fault, Freeze, Quiesce};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::unix::pipe;
use tokio::process::{Child, ChildStdin, Command};

use super::qmp::Qmp;
use super::{power, process};
use crate::guest::agent::Ask;
use crate::host::folder::Folder;

/// The name of the channel's character device.
pub(crate) const CHANNEL: &str = "agent";
/// How long an agent that is there may take to answer that it is (libvirt's own patience).
const SYNC_PATIENCE: Duration = Duration::from_secs(5);
/// How long it may take to thaw: hooks are in it.
const THAW_PATIENCE: Duration = Duration::from_secs(20);
/// How long a cut may take between the two (some milliseconds) until the switch thaws the guest.
const CUT_TAKES: Duration = Duration::from_secs(10);
/// The note that the guest may be frozen.
const FROZEN: &str = "frozen.json";
/// The longest answer that is read, in bytes.
const LONGEST_LINE: u64 = 1024 * 1024;
/// Held by whoever speaks with the agent, and for how long the next one waits.
const TURN: &str = "agent.lock";
const TURN_PATIENCE: Duration = Duration::from_secs(20);
/// What the agent is told.
const THAW: &str = "{\"execute\":\"guest-fsfreeze-thaw\"}\n";

/// Waits for a word, or the end of the pipe, or so many seconds; thaws the guest unless the word came. The FIFO is opened at both
/// ends, so that this never waits for a QEMU that is gone.
const SWITCH: &str = r#"said=$(timeout "$1" head -n 1)
[ "$said" = thawed ] || { [ -p "$2" ] && printf '%s\n' '{"execute":"guest-fsfreeze-thaw"}' 1<>"$2"; }"#;

/// Why the agent did not do what it was told.
#[derive(Debug, thiserror::Error)]
enum AgentError {
    /// It understood and refused, or a hook did.
    #[error("{0}")]
    Refused(String),
    /// No answer in time.
    #[error("it did not answer within {} s", .0.as_secs_f32())]
    Silent(Duration),
    /// What it says is none of its protocol.
    #[error("it answered {0:?}")]
    Garbled(String),
    /// Its FIFOs fail.
    #[error("its channel failed: {0}")]
    Io(#[from] std::io::Error),
}

/// A conversation with the agent.
struct Agent {
    input: pipe::Sender,
    output: BufReader<pipe::Receiver>,
}

impl Agent {
    fn open(folder: &Folder) -> std::io::Result<Agent> {
        let output = pipe::OpenOptions::new().open_receiver(folder.file("agent.out"))?;
        let input = pipe::OpenOptions::new().open_sender(folder.file("agent.in"))?;
        Ok(Agent { input, output: BufReader::new(output) })
    }

    async fn say(&mut self, line: &[u8]) -> Result<(), AgentError> {
        // Where nobody reads any more the FIFO is full at some time.
        match tokio::time::timeout(SYNC_PATIENCE, self.input.write_all(line)).await {
            Ok(said) => Ok(said?),
            Err(_) => Err(AgentError::Silent(SYNC_PATIENCE)),
        }
    }

    /// Throws away what predecessors left unread, and sees that somebody is there.
    async fn sync(&mut self) -> Result<(), AgentError> {
        let id = uuid::Uuid::new_v4().as_u128() as u64 >> 12;
        let line = json!({ "execute": "guest-sync-delimited", "arguments": { "id": id } });
        let mut bytes = vec![0xff];
        bytes.extend_from_slice(format!("{line}\n").as_bytes());
        self.say(&bytes).await?;
        let answered = async {
            loop {
                while self.output.read_u8().await? != 0xff {}
                if self.line().await.is_ok_and(|answer| answer["return"] == id) {
                    return Ok(());
                }
            }
        };
        tokio::time::timeout(SYNC_PATIENCE, answered).await.map_err(|_| AgentError::Silent(SYNC_PATIENCE))?
    }

    async fn line(&mut self) -> Result<Value, AgentError> {
        let mut line = Vec::new();
        (&mut self.output).take(LONGEST_LINE).read_until(b'\n', &mut line).await?;
        let garbled = || AgentError::Garbled(String::from_utf8_lossy(&line).chars().take(200).collect());
        serde_json::from_slice(&line).map_err(|_| garbled())
    }

    /// The answer to what was just said.
    async fn answer(&mut self, patience: Duration) -> Result<Value, AgentError> {
        let mut line =
            tokio::time::timeout(patience, self.line()).await.map_err(|_| AgentError::Silent(patience))??;
        match (line.get_mut("return").map(Value::take), line["error"]["desc"].as_str()) {
            (Some(answer), _) => Ok(answer),
            (None, Some(words)) => Err(AgentError::Refused(words.to_string())),
            (None, None) => Err(AgentError::Garbled(line.to_string().chars().take(200).collect())),
        }
    }

    /// The same where it is a number.
    async fn number(&mut self, patience: Duration) -> Result<u32, AgentError> {
        let answer = self.answer(patience).await?;
        let number = answer.as_u64().ok_or_else(|| AgentError::Garbled(answer.to_string().chars().take(200).collect()));
        Ok(number?.try_into().unwrap_or(u32::MAX))
    }
}

/// Thaws the guest when we cannot.
struct Switch {
    program: Child,
    held: ChildStdin,
    until: Instant,
}

impl Switch {
    fn arm(fifo: &Path, within: Duration) -> std::io::Result<Switch> {
        let mut command = Command::new("setsid");
        command.args(["sh", "-c", SWITCH, "sh", &within.as_secs().max(1).to_string()]).arg(fifo);
        let mut program = command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
        let held = program.stdin.take().ok_or(std::io::ErrorKind::BrokenPipe)?;
        Ok(Switch { program, held, until: Instant::now() + within })
    }

    /// The guest is told already.
    async fn disarm(mut self) {
        let said = self.held.write_all(b"thawed\n").await;
        drop(self.held);
        if said.is_ok() {
            let _ = self.program.wait().await;
        }
    }
}

/// A guest that is frozen. Dropped, it is thawed.
pub(crate) struct Frozen {
    folder: Folder,
    agent: Agent,
    switch: Switch,
    /// Nobody else speaks with the agent.
    turn: File,
    file_systems: u32,
    freeze_ms: u64,
    since: Instant,
}

fn no_agent(folder: &Folder, why: &str) -> Fault {
    Fault::new(code::NO_GUEST_AGENT, format!("the guest of {} cannot be asked", folder.name()), why)
}

fn not_frozen(folder: &Folder, why: impl std::fmt::Display) -> Fault {
    Fault::new(code::GUEST_NOT_FROZEN, format!("the guest of {} is not frozen", folder.name()), why.to_string())
}

async fn told(folder: &Folder, qmp: &mut Qmp, what: &'static str) -> Result<Value, Fault> {
    qmp.execute(what, Value::Null).await.map_err(|why| folder.fault("cannot be asked", why))
}

async fn runs(folder: &Folder, qmp: &mut Qmp) -> Result<bool, Fault> {
    Ok(told(folder, qmp, "query-status").await?["running"] == true)
}

/// Refuses a guest in which nobody listens.
async fn present(folder: &Folder, qmp: &mut Qmp) -> Result<(), Fault> {
    let devices = told(folder, qmp, "query-chardev").await?;
    match devices.as_array().into_iter().flatten().find(|device| device["label"] == CHANNEL) {
        None => Err(no_agent(folder, "the machine has no channel to it: it was started by an older version")),
        Some(device) if device["frontend-open"] != true => {
            Err(no_agent(folder, "no program in the guest has the channel org.qemu.guest_agent.0 open"))
        }
        Some(_) => Ok(()),
    }
}

/// The agent of one machine, asked one thing at a time.
pub(crate) struct Asked(Folder);

impl Asked {
    pub fn new(folder: Folder) -> Asked {
        Asked(folder)
    }
}

#[async_trait]
impl Ask for Asked {
    fn machine(&self) -> &str {
        self.0.name()
    }

    async fn ask(&self, command: Value, patience: Duration) -> Result<Result<Value, String>, Fault> {
        let folder = &self.0;
        if process::running(folder).is_none() {
            return Err(no_agent(folder, "its machine does not run"));
        }
        let mut qmp = power::converse(folder).await?;
        if !runs(folder, &mut qmp).await? {
            return Err(no_agent(folder, "its machine does not run"));
        }
        present(folder, &mut qmp).await?;
        drop(qmp);
        let _turn = folder.lock(TURN, TURN_PATIENCE).await.map_err(|why| no_agent(folder, &why.cause))?;
        let answered = async {
            let mut agent = Agent::open(folder)?;
            agent.sync().await?;
            agent.say(format!("{command}\n").as_bytes()).await?;
            agent.answer(patience).await
        };
        match answered.await {
            Ok(answer) => Ok(Ok(answer)),
            Err(AgentError::Refused(words)) => Ok(Err(words)),
            Err(why) => Err(no_agent(folder, &why.to_string())),
        }
    }
}

/// Freezes the file systems of a guest that runs.
pub(crate) async fn freeze(folder: &Folder, qmp: &mut Qmp, wish: Quiesce) -> Result<Frozen, Fault> {
    if !runs(folder, qmp).await? {
        return Err(not_frozen(folder, "it does not run"));
    }
    present(folder, qmp).await?;
    let turn = folder.lock(TURN, TURN_PATIENCE).await.map_err(|why| not_frozen(folder, why.cause))?;
    let mut agent = Agent::open(folder).map_err(|why| not_frozen(folder, AgentError::Io(why)))?;
    agent.sync().await.map_err(|why| not_frozen(folder, format!("its agent does not answer: {why}")))?;
    let switch = Switch::arm(&folder.file("agent.in"), wish.within + CUT_TAKES);
    let switch =
        switch.map_err(|why| not_frozen(folder, format!("nobody could thaw it if this process died: {why}")))?;
    folder.write(FROZEN, &true)?;
    let begun = Instant::now();
    let answer = match agent.say(b"{\"execute\":\"guest-fsfreeze-freeze\"}\n").await {
        Ok(()) => agent.number(wish.within).await,
        Err(why) => Err(why),
    };
    let freeze_ms = begun.elapsed().as_millis().try_into().unwrap_or(u64::MAX);
    let since = Instant::now();
    let frozen = Frozen { folder: folder.clone(), agent, switch, turn, file_systems: 0, freeze_ms, since };
    match answer {
        Ok(file_systems) if file_systems > 0 => Ok(Frozen { file_systems, ..frozen }),
        Ok(_) => {
            frozen.let_go(false).await;
            Err(not_frozen(folder, "it has no file system mounted that can be frozen"))
        }
        // It may be half-way, and its hooks too.
        Err(why) => {
            let answers = !matches!(why, AgentError::Silent(_));
            frozen.let_go(answers).await;
            Err(not_frozen(folder, format!("its agent says: {why}")))
        }
    }
}

impl Frozen {
    /// Thaws the guest, and says whether it stood still until now.
    pub async fn thaw(self) -> Freeze {
        let (folder, file_systems) = (self.folder.clone(), self.file_systems);
        let (freeze_ms, since) = (self.freeze_ms, self.since);
        // A process that was stopped for long finds the guest thawed by the switch.
        let in_time = Instant::now() < self.switch.until;
        let (thawed, at) = self.let_go(true).await;
        let frozen_ms = at.duration_since(since).as_millis().try_into().unwrap_or(u64::MAX);
        let why = match thawed {
            Some(Ok(thawed)) if thawed >= file_systems && in_time => {
                return Freeze::Done { file_systems, freeze_ms, frozen_ms };
            }
            Some(Ok(_)) if !in_time => "the cut took so long that it was thawed before".into(),
            Some(Ok(thawed)) => {
                format!("somebody else thawed it meanwhile: {thawed} of {file_systems} were frozen yet")
            }
            Some(Err(why)) => format!("it is not known to have stood still until it was thawed: {why}"),
            None => "it could not be told to thaw".into(),
        };
        Freeze::failed(&not_frozen(&folder, why))
    }

    /// Tells the agent to thaw, and waits for its answer where it can give one. What it said, and when.
    async fn let_go(mut self, answers: bool) -> (Option<Result<u32, AgentError>>, Instant) {
        if let Err(why) = self.agent.say(THAW.as_bytes()).await {
            // Dropped armed: the switch tries too.
            tracing::warn!(machine = self.folder.name(), %why, "the guest could not be told to thaw");
            return (None, Instant::now());
        }
        let thawed = if answers { Some(self.agent.number(THAW_PATIENCE).await) } else { None };
        let at = Instant::now();
        // What was said waits in the FIFO, for an agent that is late too.
        self.switch.disarm().await;
        drop(self.turn);
        if let Err(fault) = self.folder.remove(FROZEN) {
            tracing::warn!(%fault, cause = fault.cause, "the next capture thaws the guest once more");
        }
        (thawed, at)
    }
}

/// Thaws a guest that somebody left frozen.
pub(crate) async fn goes_on(folder: &Folder) -> Result<(), Fault> {
    if folder.read::<bool>(FROZEN)?.is_none() {
        return Ok(());
    }
    let said = match Agent::open(folder) {
        Ok(mut agent) => agent.say(THAW.as_bytes()).await,
        Err(why) => Err(AgentError::Io(why)),
    };
    said.map_err(|why| folder.fault("may be frozen, and cannot be thawed", why))?;
    tracing::warn!(machine = folder.name(), "the guest may have been left frozen; it is told to thaw");
    folder.remove(FROZEN)
}

/// A guest that starts is not frozen.
pub(crate) fn forget(folder: &Folder) -> std::io::Result<()> {
    crate::host::folder::remove_file(&folder.file(FROZEN))
}

#[cfg(test)]
mod tests {
    use super::*;

    const LATE: Duration = Duration::from_secs(20);

    #[tokio::test]
    async fn the_switch_thaws_when_its_holder_is_gone_or_late_and_not_when_it_was_told() {
        let folder = tempfile::tempdir().unwrap();
        let fifo = folder.path().join("agent.in");
        let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
        rustix::fs::mknodat(rustix::fs::CWD, &fifo, rustix::fs::FileType::Fifo, mode, 0).unwrap();
        // As QEMU has it: open at both ends.
        let mut guest = BufReader::new(pipe::OpenOptions::new().read_write(true).open_receiver(&fifo).unwrap());
        let mut line = String::new();

        Switch::arm(&fifo, LATE).unwrap().disarm().await;
        let nothing = guest.get_mut().try_read(&mut [0; 1]).unwrap_err();
        assert_eq!(nothing.kind(), std::io::ErrorKind::WouldBlock, "it was told that the guest is thawed");

        drop(Switch::arm(&fifo, Duration::from_secs(3600)).unwrap());
        tokio::time::timeout(LATE, guest.read_line(&mut line)).await.unwrap().unwrap();
        assert_eq!(line, THAW, "its holder is gone");

        line.clear();
        let late = Switch::arm(&fifo, Duration::from_secs(1)).unwrap();
        tokio::time::timeout(LATE, guest.read_line(&mut line)).await.unwrap().unwrap();
        assert_eq!(line, THAW, "its holder stands still");
        drop(late);
    }
}
