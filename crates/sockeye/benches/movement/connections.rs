//! A copy to another process by the number of its connections, directly and through a line that takes its time.
//!
//! ```text
//!   copy ══ TLS ══► a stand-in for a line: each byte arrives so much later, as many under way as there may be ══► receive
//! ```
//! The line belongs to this program and takes its share of the two cores: what it costs without any delay stands beside it.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Result;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::Bench;
use crate::copies::{self, Copy};
use crate::figures::{head, median, range, row};

const GIB: u64 = 1;
const RUNS: usize = 3;
const CONNECTIONS: [&str; 3] = ["1", "4", "32"];
/// There and back.
const DELAYS: [(&str, Option<Duration>); 3] = [
    ("none", None),
    ("the line without delay", Some(Duration::ZERO)),
    ("the line, 20 ms there and back", Some(Duration::from_millis(20))),
];

pub fn measure(bench: &Bench) -> Result<()> {
    let (bytes, dir) = (bench.bytes(GIB), bench.place("connections")?);
    let (source, target) = (dir.join("source.raw"), dir.join("target.raw"));
    copies::make(&source, bytes)?;
    let held = copies::held(bytes);
    head(
        &format!("full copy of {} GiB, {:.2} GB of data, over TLS, by connections", bytes >> 30, held as f64 / 1e9),
        &["between", "connections", "median MB/s", "range"],
    );
    for (words, delay) in DELAYS {
        let line = delay.map(Line::new).transpose()?;
        for connections in CONNECTIONS {
            let mut rates = Vec::new();
            for _ in 0..bench.runs.unwrap_or(RUNS) {
                let dial = line.as_ref().map_or(copies::ADDRESS.to_string(), |line| line.address.to_string());
                let words = ["--sync", "full", "--connections", connections];
                let copy = Copy { source: &source.display().to_string(), target: &target, words: &words, dial: &dial };
                rates.push(held as f64 / copies::over_tls(&bench.sockeye, &copy)?.0 / 1e6);
                std::fs::remove_file(&target)?;
            }
            row(&[words.into(), connections.into(), format!("{:.0}", median(&rates)), range(&rates, 0)]);
        }
    }
    std::fs::remove_dir_all(dir)?;
    Ok(())
}

/// A line to where `receive` listens. It ends when it is dropped.
struct Line {
    address: SocketAddr,
    _runtime: tokio::runtime::Runtime,
}

impl Line {
    fn new(there_and_back: Duration) -> Result<Line> {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
        let listener = runtime.block_on(TcpListener::bind(("127.0.0.1", 0)))?;
        let address = listener.local_addr()?;
        runtime.spawn(async move {
            while let Ok((near, _)) = listener.accept().await {
                tokio::spawn(async move {
                    let Ok(far) = TcpStream::connect(copies::ADDRESS).await else { return };
                    let _ = (near.set_nodelay(true), far.set_nodelay(true));
                    let ((near_read, near_write), (far_read, far_write)) = (near.into_split(), far.into_split());
                    tokio::spawn(carry(near_read, far_write, there_and_back / 2));
                    tokio::spawn(carry(far_read, near_write, there_and_back / 2));
                });
            }
        });
        Ok(Line { address, _runtime: runtime })
    }
}

/// Carries what comes from one end to the other, each byte so much later.
async fn carry(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, delay: Duration) {
    // Enough that the line is never what bounds: 64 MiB a connection.
    let (sender, mut receiver) = mpsc::channel::<(Instant, Vec<u8>)>(256);
    tokio::spawn(async move {
        while let Some((due, bytes)) = receiver.recv().await {
            tokio::time::sleep_until(due).await;
            if to.write_all(&bytes).await.is_err() {
                return;
            }
        }
    });
    loop {
        let mut bytes = vec![0; 256 << 10];
        let Ok(count @ 1..) = from.read(&mut bytes).await else { return };
        bytes.truncate(count);
        if sender.send((Instant::now() + delay, bytes)).await.is_err() {
            return;
        }
    }
}
