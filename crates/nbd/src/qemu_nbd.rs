//! `qemu-nbd` as a child process: the way to any image format without parsing one.
//!
//! ```text
//!   disk.qcow2 ─► qemu-nbd (child) ─► unix socket ─► Client
//! ```
//! # Always true
//! - `start` comes back when the socket answers a real handshake, or with the words the program died with.
//! - The child is ended with SIGTERM, which makes it flush; only one that does not obey is killed.
//!
//! # If power fails
//! A qcow2 image written through here is durable up to the last answered flush.
use std::{
    ffi::OsString,
    io,
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process};
use tokio::{
    io::AsyncReadExt,
    process::{Child, ChildStderr, Command},
    task::JoinHandle,
    time::{Instant, sleep, timeout},
};

use crate::{Address, Client, Uri, server::is_abandoned};

/// How long the program may take to open the image and listen.
const START: Duration = Duration::from_secs(30);
/// How long it may take to flush and go; a full page cache on a slow disk takes its time.
const STOP: Duration = Duration::from_secs(60);
/// The most of its words that is kept.
const MAX_WORDS: u64 = 16 * 1024;

/// The format of an image. It is always named: guessing it from content a guest wrote is a hole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Format {
    /// Bytes as they are.
    Raw,
    /// QEMU's own.
    Qcow2,
    /// Any other that QEMU knows, by its name there: `vmdk`, `vpc`, `vhdx`.
    Other(String),
}

impl Format {
    /// QEMU's name for it.
    pub fn name(&self) -> &str {
        match self {
            Format::Raw => "raw",
            Format::Qcow2 => "qcow2",
            Format::Other(name) => name,
        }
    }
}

/// What is to be served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Image {
    /// A file in a format.
    File(PathBuf, Format),
    /// QEMU's own description of a node, as `--image-opts` takes it.
    Options(String),
}

/// How the host's page cache is used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Cache {
    /// Through the page cache, durable after a flush.
    #[default]
    Writeback,
    /// O_DIRECT.
    None,
}

/// What is done with writes that happen to be zeroes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DetectZeroes {
    /// Written as they come.
    #[default]
    Off,
    /// Written efficiently.
    On,
    /// Turned into holes.
    Unmap,
}

/// How to run the program.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The program, by default the `qemu-nbd` of the path.
    pub program: PathBuf,
    /// What is served.
    pub image: Image,
    /// The socket; its directory exists. A socket there on which nobody listens is replaced.
    pub socket: PathBuf,
    /// The name of the export, by default empty.
    pub export: String,
    /// Nothing may be written.
    pub read_only: bool,
    /// How many clients at a time.
    pub shared: u32,
    /// Use of the host's page cache.
    pub cache: Cache,
    /// Trims free storage.
    pub discard: bool,
    /// What is done with writes that happen to be zeroes; [`DetectZeroes::Unmap`] needs `discard`.
    pub detect_zeroes: DetectZeroes,
    /// Dirty bitmaps of the image to publish as meta contexts.
    pub bitmaps: Vec<String>,
    /// Publish the meta context `qemu:allocation-depth`.
    pub allocation_depth: bool,
}

impl Settings {
    /// Serves an image file, writable, to at most 8 clients, trims freeing storage.
    pub fn file(image: impl AsRef<Path>, format: Format, socket: impl AsRef<Path>) -> Settings {
        Settings::new(Image::File(image.as_ref().to_path_buf(), format), socket)
    }

    /// Serves a node that QEMU's own options describe.
    pub fn options(image: impl Into<String>, socket: impl AsRef<Path>) -> Settings {
        Settings::new(Image::Options(image.into()), socket)
    }

    fn new(image: Image, socket: impl AsRef<Path>) -> Settings {
        Settings {
            program: PathBuf::from("qemu-nbd"),
            image,
            socket: socket.as_ref().to_path_buf(),
            export: String::new(),
            read_only: false,
            shared: 8,
            cache: Cache::default(),
            discard: true,
            detect_zeroes: DetectZeroes::default(),
            bitmaps: Vec::new(),
            allocation_depth: false,
        }
    }

    /// The same, with nothing written.
    pub fn read_only(mut self) -> Settings {
        self.read_only = true;
        self
    }

    fn arguments(&self) -> Vec<OsString> {
        let with = |name: &str, value: &std::ffi::OsStr| {
            let mut argument = OsString::from(name);
            argument.push(value);
            argument
        };
        let mut arguments: Vec<OsString> = vec![
            "--persistent".into(),
            format!("--shared={}", self.shared).into(),
            with("--socket=", self.socket.as_os_str()),
            with("--export-name=", self.export.as_ref()),
            format!("--discard={}", if self.discard { "unmap" } else { "ignore" }).into(),
        ];
        arguments.push(match self.cache {
            Cache::Writeback => "--cache=writeback".into(),
            Cache::None => "--cache=none".into(),
        });
        match self.detect_zeroes {
            DetectZeroes::Off => (),
            DetectZeroes::On => arguments.push("--detect-zeroes=on".into()),
            DetectZeroes::Unmap => arguments.push("--detect-zeroes=unmap".into()),
        }
        if self.read_only {
            arguments.push("--read-only".into());
        }
        for bitmap in &self.bitmaps {
            arguments.push(with("--bitmap=", bitmap.as_ref()));
        }
        if self.allocation_depth {
            arguments.push("--allocation-depth".into());
        }
        match &self.image {
            Image::File(path, format) => {
                arguments.push(format!("--format={}", format.name()).into());
                arguments.push("--".into());
                arguments.push(literal(path));
            }
            Image::Options(options) => {
                arguments.push("--image-opts".into());
                arguments.push("--".into());
                arguments.push(options.into());
            }
        }
        arguments
    }
}

/// A path as QEMU takes it: a relative one with a colon early on would be read as a protocol.
fn literal(path: &Path) -> OsString {
    if path.is_absolute() { path.into() } else { Path::new(".").join(path).into() }
}

/// Why `qemu-nbd` did not start, or did not end well.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum QemuNbdError {
    /// The program could not be run.
    #[error("cannot run {program}: is the package qemu-utils installed?")]
    Run {
        /// What was tried.
        program: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// Another server listens on the socket.
    #[error("{socket} is in use: another server listens there, or it is not a socket")]
    SocketInUse {
        /// The socket.
        socket: PathBuf,
    },
    /// The program ended instead of serving.
    #[error("qemu-nbd ended ({status}): {words}")]
    Ended {
        /// How it ended.
        status: ExitStatus,
        /// What it said.
        words: String,
    },
    /// The program runs, but does not answer.
    #[error("qemu-nbd did not answer within {seconds} s: {words}")]
    Silent {
        /// How long we waited.
        seconds: u64,
        /// What it said.
        words: String,
    },
    /// The program did not end when asked, and was killed: what it had not flushed may be lost.
    #[error("qemu-nbd did not end within {seconds} s and was killed")]
    Killed {
        /// How long we waited.
        seconds: u64,
    },
    /// The operating system failed us while waiting for the program.
    #[error("cannot wait for qemu-nbd")]
    Wait(#[source] io::Error),
}

/// A running `qemu-nbd`. Dropping it asks it to end; [`QemuNbd::stop`] also waits until it has.
#[derive(Debug)]
pub struct QemuNbd {
    /// Taken only when it is being ended.
    child: Option<Child>,
    words: Option<JoinHandle<String>>,
    socket: PathBuf,
    export: String,
}

impl QemuNbd {
    /// Runs the program and waits until it serves.
    pub async fn start(settings: &Settings) -> Result<QemuNbd, QemuNbdError> {
        let socket = settings.socket.clone();
        if std::fs::symlink_metadata(&socket).is_ok() {
            if !is_abandoned(&socket).await {
                return Err(QemuNbdError::SocketInUse { socket });
            }
            let _ = std::fs::remove_file(&socket);
        }
        let mut child = Command::new(&settings.program)
            .args(settings.arguments())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .map_err(|source| QemuNbdError::Run { program: settings.program.clone(), source })?;
        let words = child.stderr.take().map(|stderr| tokio::spawn(listen(stderr)));
        let mut started = QemuNbd { child: Some(child), words, socket, export: settings.export.clone() };
        started.wait_until_it_serves().await?;
        Ok(started)
    }

    /// Where its export is.
    pub fn uri(&self) -> Uri {
        Uri::unix(&self.socket, self.export.clone())
    }

    /// Its process id, while it runs.
    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().and_then(Child::id)
    }

    /// Whether it has not ended by itself.
    pub fn is_running(&mut self) -> bool {
        self.child.as_mut().is_some_and(|child| matches!(child.try_wait(), Ok(None)))
    }

    /// Asks it to end and waits until it has flushed and gone. Connected clients are cut off.
    pub async fn stop(mut self) -> Result<(), QemuNbdError> {
        let Some(mut child) = self.child.take() else { return Ok(()) };
        let status = end(&mut child).await?;
        let _ = std::fs::remove_file(&self.socket);
        if status.success() {
            return Ok(());
        }
        Err(QemuNbdError::Ended { status, words: self.words().await })
    }

    async fn wait_until_it_serves(&mut self) -> Result<(), QemuNbdError> {
        let address = Address::Unix(self.socket.clone());
        let deadline = Instant::now() + START;
        while Instant::now() < deadline {
            // a whole handshake, not a bare connect: that is what a client will need, and it leaves politely
            if self.socket.exists() && matches!(timeout(START, Client::list(&address)).await, Ok(Ok(_))) {
                return Ok(());
            }
            let ended = self.child.as_mut().and_then(|child| child.try_wait().transpose());
            match ended {
                Some(Ok(status)) => return Err(QemuNbdError::Ended { status, words: self.words().await }),
                Some(Err(error)) => return Err(QemuNbdError::Wait(error)),
                None => sleep(Duration::from_millis(10)).await,
            }
        }
        if let Some(child) = &mut self.child {
            let _ = child.start_kill();
        }
        Err(QemuNbdError::Silent { seconds: START.as_secs(), words: self.words().await })
    }

    /// What the program said on its way out.
    async fn words(&mut self) -> String {
        match self.words.take() {
            // a grandchild could hold the pipe open for ever
            Some(words) => timeout(Duration::from_secs(5), words).await.ok().and_then(Result::ok).unwrap_or_default(),
            None => String::new(),
        }
    }
}

impl Drop for QemuNbd {
    fn drop(&mut self) {
        let Some(mut child) = self.child.take() else { return };
        ask_to_end(&child);
        // reaped in the background; without a runtime, or if that ends first, kill_on_drop does the rest
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move {
                let _ = timeout(STOP, child.wait()).await;
            });
        }
    }
}

/// A process that has been waited for has no id any more, so this cannot hit a stranger.
fn ask_to_end(child: &Child) {
    let pid = child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
    if let Some(pid) = pid {
        let _ = kill_process(pid, Signal::TERM);
    }
}

async fn end(child: &mut Child) -> Result<ExitStatus, QemuNbdError> {
    ask_to_end(child);
    match timeout(STOP, child.wait()).await {
        Ok(waited) => waited.map_err(QemuNbdError::Wait),
        Err(_) => {
            child.kill().await.map_err(QemuNbdError::Wait)?;
            Err(QemuNbdError::Killed { seconds: STOP.as_secs() })
        }
    }
}

/// Keeps the beginning of what the program says, and reads on so that it never blocks on a full pipe.
async fn listen(mut stderr: ChildStderr) -> String {
    let mut words = Vec::new();
    let _ = (&mut stderr).take(MAX_WORDS).read_to_end(&mut words).await;
    let _ = tokio::io::copy(&mut stderr, &mut tokio::io::sink()).await;
    String::from_utf8_lossy(&words).trim().to_string()
}
