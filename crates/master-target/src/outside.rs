//! A platform's own disk as a replica disk: opened by `qemu-nbd`, so that its format is never parsed here and its image
//! lock keeps every other program from writing it.
//!
//! # If this process dies
//! - the child lives on and holds the lock; the next start finds its process id in a file beside the socket, makes sure
//!   that it is that very program, and ends it (which flushes) before it opens the disk itself.

use std::io;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use nbd::qemu_nbd::Settings;
use nbd::{Client, QemuNbd};
use protocol::BlockMap;
use protocol::machine::DiskFormat;
use replica::Disk;
use rustix::process::{Pid, Signal, kill_process};
use tokio::runtime::Handle;
use transfer::{ExportDisk, Reader};

use crate::witness::Witness;

/// A disk behind a `qemu-nbd` of our own. Its calls block; they are made on blocking threads only.
pub(crate) struct OutsideDisk {
    disk: ExportDisk,
    /// None where the image stands on others, of which it cannot tell.
    witness: Option<Witness>,
    // Ends the program when the disk is dropped.
    _program: QemuNbd,
}

impl OutsideDisk {
    /// Opens the image at `path`, with the socket at `socket`; how it looks at rest is noted at `note`. To be called on a
    /// blocking thread of `runtime`.
    pub(crate) fn open(
        path: &str,
        format: DiskFormat,
        socket: PathBuf,
        note: &Path,
        runtime: Handle,
    ) -> io::Result<OutsideDisk> {
        let format = match format {
            DiskFormat::Raw => nbd::qemu_nbd::Format::Raw,
            DiskFormat::Qcow2 => nbd::qemu_nbd::Format::Qcow2,
        };
        let (client, program, witness) = runtime.block_on(async {
            // A program that a dead predecessor left may still write down what it has.
            forget_program(&socket).await?;
            let alone = format == nbd::qemu_nbd::Format::Raw || stands_alone(path).await;
            let witness = alone.then(|| Witness::before_opening(Path::new(path), note));
            let program = begin_program(&Settings::file(path, format, &socket)).await?;
            let client = Client::connect(&program.uri(), &Reader::options()).await.map_err(io::Error::other)?;
            Ok::<_, io::Error>((client, program, witness))
        })?;
        witness.iter().for_each(Witness::opened);
        Ok(OutsideDisk { disk: ExportDisk::new(client, runtime), witness, _program: program })
    }
}

impl OutsideDisk {
    fn witnessed(&self, write: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
        match &self.witness {
            Some(witness) => witness.write(write),
            None => write(),
        }
    }
}

/// Whether all that a qcow2 shows is in it; an answer that cannot be had is none.
async fn stands_alone(path: &str) -> bool {
    let mut ask = tokio::process::Command::new("qemu-img");
    ask.args(["info", "-U", "--output=json", "-f", "qcow2", path]).stdin(Stdio::null()).kill_on_drop(true);
    let told = ask.output().await.ok().and_then(|told| serde_json::from_slice::<serde_json::Value>(&told.stdout).ok());
    told.is_some_and(|told| {
        told["format"] == "qcow2"
            && told["backing-filename"].is_null()
            && told["format-specific"]["data"]["data-file"].is_null()
    })
}

impl Disk for OutsideDisk {
    fn size(&self) -> u64 {
        self.disk.size()
    }
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.disk.read_at(offset, buffer)
    }
    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.witnessed(|| self.disk.write_at(offset, bytes))
    }
    fn write_zeroes(&self, offset: u64, length: u64) -> io::Result<()> {
        self.witnessed(|| self.disk.write_zeroes(offset, length))
    }
    fn flush(&self) -> io::Result<()> {
        match &self.witness {
            Some(witness) => witness.flush(|| self.disk.flush()),
            None => self.disk.flush(),
        }
    }
    fn unbroken(&self) -> Option<String> {
        self.witness.as_ref()?.unbroken()
    }
    fn data(&self, offset: u64, length: u64) -> io::Result<BlockMap> {
        self.disk.data(offset, length)
    }
}

/// Starts a `qemu-nbd` in the place of one that a dead predecessor may have left, and notes its process id.
pub(crate) async fn begin_program(settings: &Settings) -> io::Result<QemuNbd> {
    forget_program(&settings.socket).await?;
    let program = QemuNbd::start(settings).await.map_err(io::Error::other)?;
    if let Some(pid) = program.pid() {
        std::fs::write(pid_file(&settings.socket), pid.to_string())?;
    }
    Ok(program)
}

fn pid_file(socket: &Path) -> PathBuf {
    socket.with_extension("pid")
}

/// Ends the program on `socket`, if there is one: a dead predecessor left it, or its disk was closed just now. Its locks are
/// gone when this returns.
pub(crate) async fn forget_program(socket: &Path) -> io::Result<()> {
    let file = pid_file(socket);
    let Some(pid) = std::fs::read_to_string(&file).ok().and_then(|text| text.trim().parse().ok()) else {
        return Ok(());
    };
    let ours = |pid: i32| {
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&line).contains(&*socket.to_string_lossy())
    };
    for signal in [Signal::TERM, Signal::KILL] {
        for _ in 0..100 {
            if !ours(pid) {
                return std::fs::remove_file(&file);
            }
            if let Some(pid) = Pid::from_raw(pid) {
                let _ = kill_process(pid, signal);
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
    Err(io::Error::other(format!("a left-over qemu-nbd (process {pid}) does not end")))
}
