//! What the tests of this room share: a disk in memory, a way to run real programs, and where they are.
#![allow(dead_code, clippy::unwrap_used, reason = "for tests only, and each test file uses its part of this")]

use std::{
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    sync::{
        Mutex,
        atomic::{AtomicU64, Ordering},
    },
};

use async_trait::async_trait;
use bytes::Bytes;
use nbd::{Address, BlockSize, ErrorCode, Export, Server, StatusExtent, Uri, status};

/// A disk in memory that counts what is done to it.
pub struct Memory {
    pub bytes: Mutex<Vec<u8>>,
    pub read_only: bool,
    pub block: BlockSize,
    pub writes: AtomicU64,
    pub zeroes: AtomicU64,
    pub trims: AtomicU64,
    pub flushes: AtomicU64,
}

impl Memory {
    pub fn new(bytes: Vec<u8>) -> Memory {
        Memory {
            bytes: Mutex::new(bytes),
            read_only: false,
            block: BlockSize::default(),
            writes: AtomicU64::new(0),
            zeroes: AtomicU64::new(0),
            trims: AtomicU64::new(0),
            flushes: AtomicU64::new(0),
        }
    }

    pub fn read_only(bytes: Vec<u8>) -> Memory {
        Memory { read_only: true, ..Memory::new(bytes) }
    }

    pub fn contents(&self) -> Vec<u8> {
        self.bytes.lock().unwrap().clone()
    }
}

#[async_trait]
impl Export for Memory {
    fn size(&self) -> u64 {
        self.bytes.lock().unwrap().len() as u64
    }

    fn read_only(&self) -> bool {
        self.read_only
    }

    fn block_size(&self) -> BlockSize {
        self.block
    }

    fn description(&self) -> String {
        "a disk in memory".into()
    }

    async fn read(&self, offset: u64, length: u32) -> Result<Bytes, ErrorCode> {
        let offset = offset as usize;
        Ok(Bytes::copy_from_slice(&self.bytes.lock().unwrap()[offset..offset + length as usize]))
    }

    async fn write(&self, offset: u64, data: Bytes) -> Result<(), ErrorCode> {
        self.writes.fetch_add(1, Ordering::SeqCst);
        let offset = offset as usize;
        self.bytes.lock().unwrap()[offset..offset + data.len()].copy_from_slice(&data);
        Ok(())
    }

    async fn write_zeroes(&self, offset: u64, length: u64) -> Result<(), ErrorCode> {
        self.zeroes.fetch_add(1, Ordering::SeqCst);
        self.bytes.lock().unwrap()[offset as usize..(offset + length) as usize].fill(0);
        Ok(())
    }

    async fn trim(&self, offset: u64, length: u64) -> Result<(), ErrorCode> {
        self.trims.fetch_add(1, Ordering::SeqCst);
        // not zero, so that nobody can take a trim for a write of zeroes
        self.bytes.lock().unwrap()[offset as usize..(offset + length) as usize].fill(0xdd);
        Ok(())
    }

    async fn flush(&self) -> Result<(), ErrorCode> {
        self.flushes.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }

    /// Holes are the zero blocks of 4 KiB.
    async fn allocation(&self, offset: u64, length: u64) -> Result<Vec<StatusExtent>, ErrorCode> {
        let bytes = self.bytes.lock().unwrap();
        let (mut extents, mut position, end) = (Vec::new(), offset, offset + length);
        while position < end {
            let stop = ((position / 4096 + 1) * 4096).min(end);
            let zero = bytes[position as usize..stop as usize].iter().all(|byte| *byte == 0);
            let flags = if zero { status::HOLE | status::ZERO } else { 0 };
            extents.push(StatusExtent { offset: position, length: stop - position, flags });
            position = stop;
        }
        Ok(extents)
    }
}

/// A server on a unix socket in this directory.
pub async fn server(directory: &Path) -> (Server, PathBuf) {
    let socket = directory.join("server.sock");
    (Server::bind(&Address::Unix(socket.clone())).await.unwrap(), socket)
}

/// Runs a program to its end beside the tests' own server.
pub async fn run(program: &str, arguments: &[&str]) -> Output {
    let (program, arguments) = (program.to_string(), arguments.iter().map(|a| a.to_string()).collect::<Vec<_>>());
    let output =
        tokio::process::Command::new(&program).args(&arguments).stdin(Stdio::null()).kill_on_drop(true).output();
    let limit = std::time::Duration::from_secs(60);
    tokio::time::timeout(limit, output)
        .await
        .unwrap_or_else(|_| panic!("{program} {arguments:?} hangs"))
        .unwrap_or_else(|error| panic!("{program} cannot be run, is its package installed? {error}"))
}

/// Runs a program that must succeed, and gives what it printed.
pub async fn succeed(program: &str, arguments: &[&str]) -> String {
    let output = run(program, arguments).await;
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?}: {}: {said}", output.status);
    String::from_utf8(output.stdout).unwrap()
}

/// Contents in which every place differs from every other, with zero stretches in between.
pub fn pattern(length: usize, seed: u64) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(length + 8);
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    while bytes.len() < length {
        if (bytes.len() / 65_536) % 3 == 1 {
            bytes.extend_from_slice(&[0; 8]);
            continue;
        }
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        bytes.extend_from_slice(&(state ^ (state >> 29)).to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

/// A child that is killed when the test ends.
pub struct Guard(pub std::process::Child);

impl Drop for Guard {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// `nbdkit` in the foreground on a unix socket, ready to be talked to.
pub async fn nbdkit(directory: &Path, arguments: &[&str]) -> (Guard, Uri) {
    let (socket, pid_file) = (directory.join("nbdkit.sock"), directory.join("nbdkit.pid"));
    let child = Command::new("nbdkit")
        .args(["--foreground", "--exit-with-parent", "--unix"])
        .arg(&socket)
        .arg("--pidfile")
        .arg(&pid_file)
        .args(arguments)
        .stdin(Stdio::null())
        .spawn()
        .expect("nbdkit cannot be run, is its package installed?");
    let guard = Guard(child);
    for _ in 0..3000 {
        // written when the socket listens
        if pid_file.exists() {
            return (guard, Uri::unix(&socket, ""));
        }
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    panic!("nbdkit {arguments:?} does not start");
}
