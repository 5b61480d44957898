//! QMP, QEMU's control protocol: one JSON object per line, in both directions.
//!
//! ```text
//!   life-0.sock, life-1.sock, ..   unix sockets   one short conversation per operation
//!   capture.in, capture.out        two FIFOs      one lasting conversation, guarded by a file lock
//! ```
//! A monitor serves one client at a time, and a client can be stopped (SIGSTOP) in the middle of a conversation: so there
//! are several life-cycle monitors, and whoever finds one occupied takes the next.
//!
//! Capture speaks over FIFOs because of how QEMU treats a client that dies: on a socket it drops every command that it has
//! not begun, even though the bytes are already in its receive buffer. Measured on 7.2: a client that wrote
//! `stop .. cont` in one write and was killed left the guest paused in 15 of 16 trials over a socket, in none of 16 over
//! FIFOs, whose other end QEMU itself keeps open. See [`Qmp::burst`].
//!
//! # Always true
//! - A reply belongs to the command whose id it carries; what a dead predecessor's commands still answer is thrown away.
//! - A line longer than [`LONGEST_LINE`] ends the conversation before it is held in memory.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedWriteHalf, pipe};

/// The longest line that is read, in bytes (guessed: a listing of a machine's nodes is some kB per disk).
const LONGEST_LINE: u64 = 16 << 20;
/// How long one command may take.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long a monitor may take to greet before it counts as occupied by another client.
const GREETING: Duration = Duration::from_secs(2);
/// What a FIFO holds; a burst must fit, so that it is taken over by the kernel in one piece.
const FIFO_BYTES: usize = 64 * 1024;
/// Events that are kept for [`Qmp::take_events`].
const MOST_EVENTS: usize = 1024;

/// Why a conversation with QEMU failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum QmpError {
    /// QEMU understood and refused.
    #[error("{command}: {reason}")]
    Refused {
        /// The command.
        command: String,
        /// QEMU's words.
        reason: String,
    },
    /// The connection failed.
    #[error("the connection to QEMU failed: {0}")]
    Io(#[from] std::io::Error),
    /// QEMU closed the connection.
    #[error("QEMU ended the connection")]
    Closed,
    /// No answer in time.
    #[error("QEMU did not answer {0} in time")]
    Silent(String),
    /// Every monitor is occupied by another client.
    #[error("every monitor of the machine is occupied by another program")]
    Occupied,
    /// An answer that is not QMP.
    #[error("QEMU answered something that is not QMP: {0}")]
    Garbled(String),
    /// A burst that a FIFO cannot take in one piece.
    #[error("{0} bytes of commands do not fit into one write")]
    TooMuch(usize),
}

/// One command with its arguments.
#[derive(Debug, Clone)]
pub(crate) struct Command {
    pub name: &'static str,
    pub arguments: Value,
}

impl Command {
    pub fn new(name: &'static str, arguments: Value) -> Command {
        Command { name, arguments }
    }
}

/// Something that happened in QEMU.
#[derive(Debug, Clone)]
pub(crate) struct Event {
    pub name: String,
    pub at: SystemTime,
    pub data: Value,
}

enum Writer {
    Socket(OwnedWriteHalf),
    Fifo(pipe::Sender),
}

/// A conversation with one QEMU.
pub(crate) struct Qmp {
    reader: BufReader<Box<dyn AsyncRead + Send + Sync + Unpin>>,
    writer: Writer,
    // Kept here and not in a future: a dropped future must not tear a line.
    line: Vec<u8>,
    session: String,
    count: u64,
    events: VecDeque<Event>,
}

impl Qmp {
    /// Opens a conversation on the first of `sockets` that greets.
    pub async fn over_sockets(sockets: &[PathBuf]) -> Result<Qmp, QmpError> {
        let mut last = QmpError::Occupied;
        for socket in sockets {
            match tokio::time::timeout(GREETING, Qmp::over_socket(socket)).await {
                Ok(Ok(qmp)) => return Ok(qmp),
                Ok(Err(error)) => last = error,
                Err(_) => {}
            }
        }
        Err(last)
    }

    async fn over_socket(socket: &Path) -> Result<Qmp, QmpError> {
        let (reader, writer) = UnixStream::connect(socket).await?.into_split();
        let mut qmp = Qmp::new(Box::new(reader), Writer::Socket(writer));
        qmp.next().await?; // the greeting
        qmp.execute("qmp_capabilities", Value::Null).await?;
        Ok(qmp)
    }

    /// Takes over the conversation on a pair of FIFOs. The caller holds the lock that makes it the only one.
    pub async fn over_fifos(input: &Path, output: &Path) -> Result<Qmp, QmpError> {
        let receiver = pipe::OpenOptions::new().open_receiver(output)?;
        let sender = pipe::OpenOptions::new().open_sender(input)?;
        let mut qmp = Qmp::new(Box::new(receiver), Writer::Fifo(sender));
        // The answer to this one is behind everything that predecessors left unread. Only the first client of all
        // negotiates; QEMU tells the later ones that it is done, which is as good.
        match qmp.execute("qmp_capabilities", Value::Null).await {
            Ok(_) | Err(QmpError::Refused { .. }) => {}
            Err(error) => return Err(error),
        }
        qmp.events.clear();
        Ok(qmp)
    }

    fn new(reader: Box<dyn AsyncRead + Send + Sync + Unpin>, writer: Writer) -> Qmp {
        Qmp {
            reader: BufReader::new(reader),
            writer,
            line: Vec::new(),
            session: uuid::Uuid::new_v4().simple().to_string(),
            count: 0,
            events: VecDeque::new(),
        }
    }

    /// Runs one command and waits for its answer.
    pub async fn execute(&mut self, name: &'static str, arguments: Value) -> Result<Value, QmpError> {
        let mut results = self.burst(&[Command::new(name, arguments)]).await?;
        results.pop().unwrap_or(Err(QmpError::Closed))
    }

    /// Hands all commands to QEMU in one write, then waits for all answers.
    ///
    /// Over FIFOs QEMU runs all of them in this order whatever becomes of this process once the write is done; a refused
    /// one does not stop those behind it.
    pub async fn burst(&mut self, commands: &[Command]) -> Result<Vec<Result<Value, QmpError>>, QmpError> {
        let mut bytes = Vec::new();
        let mut ids = Vec::with_capacity(commands.len());
        for command in commands {
            self.count += 1;
            let id = format!("{}-{}", self.session, self.count);
            let mut line = json!({ "execute": command.name, "id": id });
            if !command.arguments.is_null() {
                line["arguments"] = command.arguments.clone();
            }
            bytes.extend_from_slice(line.to_string().as_bytes());
            bytes.push(b'\n');
            ids.push(id);
        }
        self.write(&bytes).await?;
        let mut answers: Vec<Option<Result<Value, QmpError>>> = commands.iter().map(|_| None).collect();
        while let Some(waiting) = answers.iter().position(Option::is_none) {
            let name = commands[waiting].name;
            let message =
                tokio::time::timeout(PATIENCE, self.next()).await.map_err(|_| QmpError::Silent(name.to_string()))??;
            let Some(at) = message["id"].as_str().and_then(|id| ids.iter().position(|mine| mine == id)) else {
                continue; // an event, which `next` kept, or an answer to a predecessor
            };
            let refused = |error: &Value| QmpError::Refused {
                command: commands[at].name.to_string(),
                reason: error["desc"].as_str().unwrap_or("no reason given").to_string(),
            };
            answers[at] = Some(match message.get("error") {
                Some(error) => Err(refused(error)),
                None => Ok(message["return"].clone()),
            });
        }
        Ok(answers.into_iter().flatten().collect())
    }

    /// The events that arrived so far; they are handed out once.
    pub fn take_events(&mut self) -> Vec<Event> {
        self.events.drain(..).collect()
    }

    async fn write(&mut self, bytes: &[u8]) -> Result<(), QmpError> {
        match &mut self.writer {
            Writer::Socket(socket) => socket.write_all(bytes).await?,
            Writer::Fifo(fifo) => {
                if bytes.len() > FIFO_BYTES {
                    return Err(QmpError::TooMuch(bytes.len()));
                }
                // The FIFO is empty, since QEMU answered everything before: the kernel takes all of it at once.
                fifo.write_all(bytes).await?;
            }
        }
        Ok(())
    }

    /// The next message; events are also kept.
    async fn next(&mut self) -> Result<Value, QmpError> {
        let room = LONGEST_LINE.saturating_sub(self.line.len() as u64);
        let read = (&mut self.reader).take(room).read_until(b'\n', &mut self.line).await?;
        if !self.line.ends_with(b"\n") {
            return Err(if read == 0 && room > 0 {
                QmpError::Closed
            } else {
                QmpError::Garbled("a line without end".into())
            });
        }
        let line = std::mem::take(&mut self.line);
        let message: Value = serde_json::from_slice(&line)
            .map_err(|_| QmpError::Garbled(String::from_utf8_lossy(&line).chars().take(200).collect()))?;
        if let Some(name) = message["event"].as_str() {
            let stamp = &message["timestamp"];
            let seconds = stamp["seconds"].as_u64().unwrap_or_default();
            let micros = stamp["microseconds"].as_u64().unwrap_or_default();
            let since = Duration::from_secs(seconds).saturating_add(Duration::from_micros(micros));
            let at = UNIX_EPOCH.checked_add(since).unwrap_or(UNIX_EPOCH);
            if self.events.len() == MOST_EVENTS {
                self.events.pop_front();
            }
            self.events.push_back(Event { name: name.to_string(), at, data: message["data"].clone() });
        }
        Ok(message)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::net::UnixListener;

    async fn conversation(script: &'static str) -> Result<Vec<Result<Value, QmpError>>, QmpError> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("s");
        let listener = UnixListener::bind(&path).unwrap();
        tokio::spawn(async move {
            let (stream, _) = listener.accept().await.unwrap();
            let (reader, mut writer) = stream.into_split();
            let mut lines = BufReader::new(reader).lines();
            writer.write_all(b"{\"QMP\":{}}\n").await.unwrap();
            let id = |line: &str| serde_json::from_str::<Value>(line).unwrap()["id"].as_str().unwrap().to_string();
            let hello = id(&lines.next_line().await.unwrap().unwrap());
            writer.write_all(format!("{{\"return\":{{}},\"id\":\"{hello}\"}}\n").as_bytes()).await.unwrap();
            let (a, b) =
                (id(&lines.next_line().await.unwrap().unwrap()), id(&lines.next_line().await.unwrap().unwrap()));
            writer.write_all(script.replace("$A", &a).replace("$B", &b).as_bytes()).await.unwrap();
        });
        let mut qmp = Qmp::over_sockets(&[folder.path().join("absent"), path]).await?;
        qmp.burst(&[Command::new("a", Value::Null), Command::new("b", json!({"x": 1}))]).await
    }

    #[tokio::test]
    async fn answers_find_their_command_among_events_and_strangers() {
        let answers = conversation(
            "{\"event\":\"STOP\",\"timestamp\":{\"seconds\":1,\"microseconds\":2}}\n{\"return\":7,\"id\":\"stranger\"}\n\
             {\"error\":{\"class\":\"X\",\"desc\":\"no\"},\"id\":\"$B\"}\n{\"return\":5,\"id\":\"$A\"}\n",
        )
        .await
        .unwrap();
        assert_eq!(*answers[0].as_ref().unwrap(), json!(5));
        assert_eq!(answers[1].as_ref().unwrap_err().to_string(), "b: no");
    }

    #[tokio::test]
    async fn what_is_not_qmp_ends_the_conversation() {
        assert!(matches!(conversation("rubbish\n").await, Err(QmpError::Garbled(_))));
        assert!(matches!(conversation("{\"return\":5,").await, Err(QmpError::Garbled(_))));
        assert!(matches!(conversation("{\"return\":5,\"id\":\"$A\"}\n").await, Err(QmpError::Closed)));
    }
}
