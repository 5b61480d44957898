//! Several connections to one export: used where the server says that they are as good as one, and nowhere else.
#![allow(clippy::unwrap_used, reason = "a helper of a test may panic as the test itself may")]

use std::collections::BTreeSet;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::peers::{nbdkit, pattern};
use bytes::Bytes;
use nbd::{Client, Options, QemuNbd, qemu_nbd, status};

const MIB: usize = 1 << 20;

fn wanted(connections: u8) -> Options {
    Options { connections, ..Options::with_contexts([status::ALLOCATION]) }
}

/// The connections on which nbdkit's log tells of a request that begins with that word, and the lines.
fn told(log: &Path, word: &str) -> (BTreeSet<String>, Vec<String>) {
    let text = std::fs::read_to_string(log).unwrap();
    let lines: Vec<String> = text.lines().filter(|line| line.contains(word)).map(String::from).collect();
    let of = |line: &String| line.split("connection=").nth(1).map(|rest| rest.split(' ').next().unwrap().to_string());
    (lines.iter().filter_map(of).collect(), lines)
}

/// Writes in pieces, flushes, asks for the allocation and reads it back.
async fn use_it(client: &Client) {
    let data = Bytes::from(pattern(8 * MIB, 3));
    let pieces = (0..8).map(|n| client.write((n * MIB) as u64, data.slice(n * MIB..(n + 1) * MIB)));
    for piece in pieces {
        piece.await.unwrap();
    }
    client.flush().await.unwrap();
    for n in 0..8 {
        let read = client.read((n * MIB) as u64, MIB as u32).await.unwrap();
        assert!(read == data[n * MIB..(n + 1) * MIB], "MiB {n} is not what was written on another connection");
        assert!(!client.block_status(status::ALLOCATION, 0, 8 * MIB as u64).await.unwrap().is_empty());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_take_the_connections_in_turn_and_one_flush_covers_all() {
    let directory = tempfile::tempdir().unwrap();
    let log = directory.path().join("log");
    let arguments = ["--filter=log", "memory", "8M", &format!("logfile={}", log.display())];
    let (_guard, uri) = nbdkit(directory.path(), &arguments).await;
    let client = Client::connect(&uri, &wanted(3)).await.unwrap();
    assert_eq!((client.connections(), client.can_multi_conn()), (3, true));
    use_it(&client).await;
    client.disconnect().await;
    for word in [" Read ", " Write "] {
        assert_eq!(told(&log, word).0.len(), 3, "{word}");
    }
    assert_eq!(told(&log, " Flush ").1.len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_does_not_say_so_is_used_over_one() {
    let directory = tempfile::tempdir().unwrap();
    let log = directory.path().join("log");
    let file = format!("logfile={}", log.display());
    let arguments = ["--filter=multi-conn", "--filter=log", "memory", "8M", &file, "multi-conn-mode=disable"];
    let (_guard, uri) = nbdkit(directory.path(), &arguments).await;
    let client = Client::connect(&uri, &wanted(8)).await.unwrap();
    assert_eq!((client.connections(), client.can_multi_conn()), (1, false));
    use_it(&client).await;
    client.disconnect().await;
    assert_eq!(told(&log, " Connect ").0.len(), 1);
}

/// qemu-nbd lets whoever is too many wait, for ever.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_takes_fewer_is_used_over_these() {
    let directory = tempfile::tempdir().unwrap();
    let image = directory.path().join("disk.raw");
    std::fs::write(&image, vec![0; 8 * MIB]).unwrap();
    let socket = directory.path().join("qemu.sock");
    let mut settings = qemu_nbd::Settings::file(&image, qemu_nbd::Format::Raw, &socket);
    settings.shared = 2;
    let server = QemuNbd::start(&settings).await.unwrap();
    let begun = Instant::now();
    let client = Client::connect(&server.uri(), &wanted(5)).await.unwrap();
    assert_eq!(client.connections(), 2);
    assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
    use_it(&client).await;
    client.disconnect().await;
    assert!(std::fs::read(image).unwrap() == pattern(8 * MIB, 3));
    server.stop().await.unwrap();
}
