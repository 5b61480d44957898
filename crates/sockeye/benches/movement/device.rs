//! The disk of a machine without a guest, written through its device, and offered as an NBD export to a program like fio.
//!
//! ```text
//!   fio ──NBD──► this ──QMP──► dev-0 ─► (filter of an open cut) ─► disk-0
//! ```
//! An export of QEMU's own cannot stand here: it would hang below the filter that the product puts between the device and
//! the disk at each cut, and QEMU refuses both: a second writer beside the device, and one below the filter. So what fio
//! writes is handed to the device's own block backend with the monitor's `qemu-io`, its bytes in a file beside the
//! disk. QEMU does one such request after the other; that costs the same whether the machine is replicated or not, but bounds
//! what can be written to some hundred megabytes a second.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

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
use tokio::sync::{Mutex, Semaphore, oneshot};

/// As many requests may be on their way at once: more than fio is asked for.
const DEPTH: usize = 16;

type Waiting = Arc<Mutex<VecDeque<oneshot::Sender<Value>>>>;

/// The first disk of a machine, open for writing.
pub struct Device {
    size: u64,
    monitor: Mutex<OwnedWriteHalf>,
    /// Who waits for an answer, in the order of their questions, which is that of the answers.
    waiting: Waiting,
    /// Files for the bytes of a request.
    files: Mutex<Vec<PathBuf>>,
    free: Semaphore,
}

impl Device {
    /// Opens the first disk of a machine that runs at a site.
    pub async fn open(world: &World, at: At, machine: &str, size: u64) -> Result<Device> {
        let stream = UnixStream::connect(world.machine_dir(at, machine).join("life-2.sock")).await;
        let (reader, writer) = stream.context("reaching the machine's monitor")?.into_split();
        let mut lines = BufReader::new(reader).lines();
        lines.next_line().await?.context("the monitor says nothing")?;
        let waiting = Waiting::default();
        tokio::spawn(hear(lines, waiting.clone()));
        // QEMU reads its monitor byte by byte, with all that goes with one: each byte of a command costs some microseconds.
        static OPENED: AtomicUsize = AtomicUsize::new(0);
        let opened = OPENED.fetch_add(1, Ordering::Relaxed);
        let place = world.settings.root.parent().context("a place that is none")?;
        let files = Mutex::new((0..DEPTH).map(|n| place.join(format!("{opened}.{n}"))).collect());
        let device = Device { size, monitor: Mutex::new(writer), waiting, files, free: Semaphore::new(DEPTH) };
        device.execute("qmp_capabilities", json!({})).await?;
        Ok(device)
    }

    async fn execute(&self, command: &str, arguments: Value) -> Result<Value> {
        let line = json!({ "execute": command, "arguments": arguments }).to_string() + "\n";
        let (answer, answered) = oneshot::channel();
        let mut monitor = self.monitor.lock().await;
        self.waiting.lock().await.push_back(answer);
        monitor.write_all(line.as_bytes()).await?;
        drop(monitor);
        let mut answer = answered.await.context("the machine's QEMU ended")?;
        ensure!(answer.get("error").is_none(), "{answer}");
        Ok(answer["return"].take())
    }

    /// Writes as the guest would.
    pub async fn write_all_at(&self, bytes: &[u8], offset: u64) -> Result<()> {
        let _place = self.free.acquire().await?;
        let file = self.files.lock().await.pop().context("more requests than files")?;
        // In memory or not worth waiting for: the same for all that is compared.
        std::fs::write(&file, bytes)?;
        let done = self.request(&format!("write -q -s {} {offset} {}", file.display(), bytes.len())).await;
        self.files.lock().await.push(file);
        done
    }

    /// Comes back when everything written is in the disk's file.
    pub async fn flush_all(&self) -> Result<()> {
        self.request("flush").await
    }

    async fn request(&self, request: &str) -> Result<()> {
        let line = format!("qemu-io -d dev-0/virtio-backend \"{request}\"");
        let said = self.execute("human-monitor-command", json!({ "command-line": line })).await?;
        ensure!(said.as_str().is_some_and(|said| said.trim().is_empty()), "{request}: {said}");
        Ok(())
    }
}

/// Gives each answer to who waits for it. When QEMU ends, they are all let go.
async fn hear(mut lines: Lines<BufReader<OwnedReadHalf>>, waiting: Waiting) {
    while let Ok(Some(line)) = lines.next_line().await {
        let Ok(said) = serde_json::from_str::<Value>(&line) else { break };
        if said.get("event").is_none()
            && let Some(answer) = waiting.lock().await.pop_front()
        {
            let _ = answer.send(said);
        }
    }
    waiting.lock().await.clear();
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
