//! The conversation with libvirt, through `virsh`, its own client (decision 0025).
//!
//! ```text
//!   run ─► virsh -c URI command …      its words are for people; what we decide by is XML and numbers
//! ```
//! # Always true
//! - A command that was begun is carried out by libvirt, whether this process then waits for it, gives up or dies. So the
//!   child holds the lock under which it was begun, as its standard input: whoever takes that lock next finds it done.

use std::fs::File;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use tokio::process::Command;
use tokio::sync::Mutex;

/// How long libvirt may take. A command waits 30 s by itself for another one on the same machine.
const PATIENCE: Duration = Duration::from_secs(90);

/// One libvirt, spoken to by one operation.
#[derive(Debug, Clone)]
pub(crate) struct Virsh {
    uri: String,
    // A command whose caller gave up is waited for by the next one.
    turn: Arc<Mutex<()>>,
}

/// Why a command came to nothing.
#[derive(Debug, thiserror::Error)]
pub(crate) enum VirshError {
    /// There is no such program.
    #[error("virsh cannot be run: {0}")]
    Absent(#[source] std::io::Error),
    /// libvirt, or virsh, says no.
    #[error("{0}")]
    Refused(String),
    /// No answer.
    #[error("libvirt did not answer within {} s", PATIENCE.as_secs())]
    Silent,
}

impl Virsh {
    pub fn new(uri: &str) -> Virsh {
        Virsh { uri: uri.into(), turn: Arc::default() }
    }

    /// Runs a command that only asks.
    pub async fn ask(&self, words: &[&str]) -> Result<String, VirshError> {
        let _turn = self.turn.lock().await;
        let mut command = self.command(words);
        command.stdin(Stdio::null()).kill_on_drop(true);
        finished(command).await
    }

    /// Runs a command that changes something, under a lock.
    pub async fn run(&self, lock: &File, words: &[&str]) -> Result<String, VirshError> {
        let turn = self.turn.clone().lock_owned().await;
        let mut command = self.command(words);
        command.stdin(lock.try_clone().map_err(VirshError::Absent)?);
        let carried_out = tokio::spawn(async move {
            let _turn = turn;
            finished(command).await
        });
        carried_out.await.unwrap_or(Err(VirshError::Silent))
    }

    /// Runs several commands, with `;` between them, in one process and under a lock: each is carried out whatever became of those
    /// before it, and of us.
    pub async fn timed(&self, lock: &File, line: &str) -> Result<Timed, VirshError> {
        let turn = self.turn.clone().lock_owned().await;
        let mut command = self.program("--timing", &[line]);
        command.stdin(lock.try_clone().map_err(VirshError::Absent)?);
        let carried_out = tokio::spawn(async move {
            let _turn = turn;
            let ended = tokio::time::timeout(PATIENCE, command.output()).await.map_err(|_| VirshError::Silent)?;
            Ok(Timed::of(&ended.map_err(VirshError::Absent)?))
        });
        carried_out.await.unwrap_or(Err(VirshError::Silent))
    }

    /// Where libvirt is reached.
    pub fn uri(&self) -> &str {
        &self.uri
    }

    fn command(&self, words: &[&str]) -> Command {
        self.program("--quiet", words)
    }

    fn program(&self, how: &str, words: &[&str]) -> Command {
        let mut command = Command::new("virsh");
        command.env("LC_ALL", "C").args([how, "--connect", &self.uri]).args(words);
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }
}

/// What came of several commands in one process.
#[derive(Debug)]
pub(crate) struct Timed {
    /// What each said, and how long it took in ms; one that failed says nothing.
    commands: Vec<(String, u64)>,
    /// Why those that failed did.
    pub errors: String,
}

impl Timed {
    fn of(ended: &std::process::Output) -> Timed {
        const MARK: &str = "(Time: ";
        let said = String::from_utf8_lossy(&ended.stdout);
        let mut commands = Vec::new();
        let mut rest = &*said;
        // Behind what a command said is how long it took.
        while let Some((words, behind)) = rest.split_once(MARK) {
            let (time, behind) = behind.split_once(')').unwrap_or((behind, ""));
            let took = time.split('.').next().and_then(|ms| ms.parse().ok()).unwrap_or_default();
            commands.push((words.trim().to_string(), took));
            rest = behind;
        }
        let errors = String::from_utf8_lossy(&ended.stderr);
        let errors = errors.lines().map(|line| line.strip_prefix("error: ").unwrap_or(line).trim());
        let errors: Vec<&str> = errors.filter(|line| !line.is_empty()).collect();
        Timed { commands, errors: errors.join("; ") }
    }

    /// What the command at this place said, if it was carried out.
    pub fn done(&self, place: usize) -> Option<&str> {
        self.commands.get(place).map(|(said, _)| &**said).filter(|said| !said.is_empty())
    }

    /// How long it took, in ms.
    pub fn took(&self, place: usize) -> u64 {
        self.commands.get(place).map_or(0, |(_, ms)| *ms)
    }
}

async fn finished(mut command: Command) -> Result<String, VirshError> {
    let ended = tokio::time::timeout(PATIENCE, command.output()).await.map_err(|_| VirshError::Silent)?;
    let ended = ended.map_err(VirshError::Absent)?;
    if ended.status.success() {
        return Ok(String::from_utf8_lossy(&ended.stdout).into_owned());
    }
    let said = String::from_utf8_lossy(&ended.stderr).trim().replace("\nerror: ", ": ");
    Err(VirshError::Refused(said.strip_prefix("error: ").unwrap_or(&said).into()))
}
