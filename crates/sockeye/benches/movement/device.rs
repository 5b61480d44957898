//! The disk of a machine without a guest, written through its device, and offered as an NBD export to a program like fio.
//!
//! ```text
//!   fio ──NBD──► this ──QMP──► dev-0 ─► (filter of an open cut) ─► disk-0
//! ```
//! An export of QEMU's own cannot stand here: it would hang below the filter that the product puts between the device and
//! the disk at each cut, and QEMU refuses both: a second writer beside the device, and one below the filter. So what fio
//! writes is handed to the device's own block backend with the monitor's `qemu-io`, one request at a time, its bytes in a
//! file in memory. That costs the same whether the machine is replicated or not.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use async_trait::async_trait;
use bytes::Bytes;
use demo::world::{At, World};
use nbd::{Address, ErrorCode, Export, Server};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::runtime::Runtime;
use tokio::sync::Mutex;

/// The first disk of a machine, open for writing.
pub struct Device {
    size: u64,
    /// Where a request's bytes are put.
    bytes: PathBuf,
    monitor: Mutex<(Lines<BufReader<OwnedReadHalf>>, OwnedWriteHalf)>,
}

impl Device {
    /// Opens the first disk of a machine that runs at a site.
    pub async fn open(world: &World, at: At, machine: &str, size: u64) -> Result<Device> {
        let stream = UnixStream::connect(world.machine_dir(at, machine).join("life-2.sock")).await;
        let (reader, writer) = stream.context("reaching the machine's monitor")?.into_split();
        let mut lines = BufReader::new(reader).lines();
        lines.next_line().await?.context("the monitor says nothing")?;
        let bytes = world.settings.root.join(format!("{machine}-{}.bytes", at.name()));
        let device = Device { size, bytes, monitor: Mutex::new((lines, writer)) };
        device.execute("qmp_capabilities", json!({})).await?;
        Ok(device)
    }

    async fn execute(&self, command: &str, arguments: Value) -> Result<Value> {
        let mut monitor = self.monitor.lock().await;
        let (lines, writer) = &mut *monitor;
        let line = json!({ "execute": command, "arguments": arguments }).to_string() + "\n";
        writer.write_all(line.as_bytes()).await?;
        loop {
            let answer = lines.next_line().await?.context("the machine's QEMU ended")?;
            let mut answer: Value = serde_json::from_str(&answer)?;
            if answer.get("event").is_none() {
                ensure!(answer.get("error").is_none(), "{answer}");
                return Ok(answer["return"].take());
            }
        }
    }

    /// Writes as the guest would.
    pub async fn write_all_at(&self, bytes: &[u8], offset: u64) -> Result<()> {
        // In memory or not worth waiting for: the same for all that is compared.
        std::fs::write(&self.bytes, bytes)?;
        self.request(&format!("write -q -s {} {offset} {}", self.bytes.display(), bytes.len())).await
    }

    /// Comes back when everything written is in the disk's file.
    pub async fn flush_all(&self) -> Result<()> {
        self.request("flush").await
    }

    async fn request(&self, request: &str) -> Result<()> {
        let line = format!("qemu-io -d /machine/peripheral/dev-0/virtio-backend \"{request}\"");
        let said = self.execute("human-monitor-command", json!({ "command-line": line })).await?;
        ensure!(said.as_str().is_some_and(|said| said.trim().is_empty()), "{request}: {said}");
        Ok(())
    }
}

#[async_trait]
impl Export for Device {
    fn size(&self) -> u64 {
        self.size
    }

    fn read_only(&self) -> bool {
        false
    }

    async fn read(&self, _: u64, _: u32) -> Result<Bytes, ErrorCode> {
        // Nobody reads here who measures.
        Err(ErrorCode::NotPermitted)
    }

    async fn write(&self, offset: u64, data: Bytes) -> Result<(), ErrorCode> {
        self.write_all_at(&data, offset).await.map_err(told)
    }

    async fn flush(&self) -> Result<(), ErrorCode> {
        self.flush_all().await.map_err(told)
    }
}

fn told(why: anyhow::Error) -> ErrorCode {
    eprintln!("bench: {why:#}");
    ErrorCode::Io
}

/// A machine's disk as an NBD export. Ends when it is dropped.
pub struct Offered {
    /// Where it is.
    pub uri: String,
    _server: Server,
    // After the server: it needs it to end.
    _runtime: Runtime,
}

/// Offers a machine's disk. The threads that serve it run where this thread may.
pub fn offer(world: &World, at: At, machine: &str, size: u64, socket: &Path) -> Result<Offered> {
    let runtime = runtime()?;
    let server = runtime.block_on(async {
        let device = Device::open(world, at, machine, size).await?;
        let server = Server::bind(&Address::Unix(socket.to_path_buf())).await?;
        server.add("disk", Arc::new(device));
        anyhow::Ok(server)
    })?;
    Ok(Offered { uri: format!("nbd+unix:///disk?socket={}", socket.display()), _server: server, _runtime: runtime })
}

/// Threads for I/O.
pub fn runtime() -> Result<Runtime> {
    Ok(tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?)
}
