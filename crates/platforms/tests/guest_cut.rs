//! A real guest that writes as fast as it can is cut again and again: every cut is one instant of both disks.
//!
//! ```text
//!   guest: record n on A, then on B, then n+1 ..      cut ─► both disks read ─► the ledger is a prefix of that order
//!                                                      └─► the blocks named as changed make a copy equal to the cut
//! ```
//! The firmware guests of the conformance suite do not write by themselves, so they cannot tell a cut whose disks were
//! taken one after the other.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use guest::{Pattern, ReadAt, Scope, seed_pair, verify_readers};
use nbd::{Client, Options};
use platforms::qemu::Qemu;
use platforms::{CutDisk, Platform, Start};
use protocol::extent::{BLOCK, BlockMap};
use protocol::machine::{Boot, DiskFormat, DiskSource, DiskSpec, MachineSpec, Power};
use protocol::{Attempt, Changes, DiskKey, Lineage};

const NAME: &str = "web01";
const SIZE: u64 = 16 << 20;
/// Cuts with new records in them that have to be seen.
const TELLING: usize = 8;
/// A boot under TCG takes four seconds on an idle machine.
const PATIENCE: Duration = Duration::from_secs(120);

struct Disk(Vec<u8>);

impl ReadAt for Disk {
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> std::io::Result<()> {
        let from = usize::try_from(offset).unwrap();
        let bytes = self.0.get(from..from + buffer.len()).ok_or(std::io::ErrorKind::UnexpectedEof)?;
        buffer.copy_from_slice(bytes);
        Ok(())
    }
}

/// Ends the machine's QEMU, whatever became of the test.
struct Site {
    dir: tempfile::TempDir,
    platform: Qemu,
}

impl Drop for Site {
    fn drop(&mut self) {
        let pid = self.platform.machine_dir(NAME).ok().and_then(|dir| std::fs::read_to_string(dir.join("pid")).ok());
        let pid = pid.and_then(|pid| pid.trim().parse().ok()).and_then(rustix::process::Pid::from_raw);
        if let Some(pid) = pid {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        }
    }
}

impl Site {
    fn seeded() -> Site {
        let dir = tempfile::Builder::new().prefix("cut").tempdir().unwrap();
        seed_pair(&dir.path().join("a.raw"), &dir.path().join("b.raw"), SIZE, 1, 1 << 20).unwrap();
        let platform = Qemu::open(dir.path()).unwrap();
        Site { dir, platform }
    }

    fn spec(&self) -> MachineSpec {
        let built = built_guest();
        let file = |name: &str| built.join(name).to_string_lossy().into_owned();
        let disk = |(place, name): (usize, &str)| DiskSpec {
            key: format!("disk{place}").parse().unwrap(),
            size: SIZE,
            source: DiskSource::Own {
                path: self.dir.path().join(name).to_string_lossy().into_owned(),
                format: DiskFormat::Raw,
            },
        };
        MachineSpec {
            name: NAME.into(),
            memory_mib: 192,
            vcpus: 1,
            boot: Boot::Kernel {
                kernel: file("vmlinuz"),
                initrd: file("initrd.img"),
                command_line: guest::kernel_command_line(0, Pattern::Mixed),
            },
            disks: ["a.raw", "b.raw"].into_iter().enumerate().map(disk).collect(),
            cards: vec![],
            seed: None,
            native: BTreeMap::new(),
        }
    }
}

/// The folder of kernel and initramfs, beside the folder this test was built in.
fn built_guest() -> PathBuf {
    let this = std::env::current_exe().unwrap();
    let target = this.ancestors().find(|folder| folder.join("CACHEDIR.TAG").is_file()).map(Path::to_path_buf);
    let built = target.unwrap().join("guest");
    assert!(built.join("initrd.img").is_file(), "the test guest is not built; run: cargo xtask setup");
    built
}

async fn read(disk: &CutDisk) -> Vec<u8> {
    let client = Client::connect(&disk.export, &Options::default()).await.unwrap();
    let mut bytes = Vec::new();
    for piece in BlockMap::whole(disk.size).pieces(disk.read_limit) {
        bytes.extend_from_slice(&client.read(piece.offset, piece.length as u32).await.unwrap());
    }
    bytes
}

#[tokio::test]
async fn two_disks_of_a_writing_guest_are_cut_at_one_instant() {
    let site = Site::seeded();
    let lineage = Lineage::fresh();
    site.platform.define(&site.spec()).await.unwrap();
    site.platform.start(NAME, Start::default()).await.unwrap();
    let mut capture = site.platform.capture(NAME, lineage).await.unwrap();
    let (mut copies, mut newest, mut telling): (BTreeMap<DiskKey, Vec<u8>>, _, _) = (BTreeMap::new(), 0, 0);
    let deadline = tokio::time::Instant::now() + PATIENCE;
    let mut attempt = Attempt::start_of(1);
    while telling < TELLING {
        assert!(tokio::time::Instant::now() < deadline, "only {telling} cuts had new records: the last {newest}");
        attempt = attempt.next();
        let cut = capture.cut(attempt).await.unwrap();
        let mut disks = Vec::new();
        for disk in &cut.disks {
            let bytes = read(disk).await;
            let copy = copies.entry(disk.key.clone()).or_insert_with(|| bytes.clone());
            if let Changes::Known(maps) = &cut.changes {
                for piece in maps.get(&disk.key).iter().flat_map(|map| map.pieces(BLOCK)) {
                    let range = piece.offset as usize..piece.end() as usize;
                    copy[range.clone()].copy_from_slice(&bytes[range]);
                }
            }
            disks.push(Disk(bytes));
        }
        let report = verify_readers(&disks[0], &disks[1], Scope::WholeDisk).unwrap();
        assert!(report.consistent(), "the disks were not cut at one instant: {:?}", report.problems);
        assert!(report.highest >= newest, "the cut holds {}, an earlier one held {newest}", report.highest);
        for (copy, disk) in copies.values().zip(&disks) {
            assert!(*copy == disk.0, "a block changed that no epoch was told of");
        }
        telling += usize::from(report.highest > newest);
        newest = report.highest;
        capture.acknowledged(attempt).await.unwrap();
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    drop(capture);
    site.platform.power_off(NAME).await.unwrap();
    site.platform.settle(NAME, lineage).await.unwrap();
    assert_eq!(site.platform.machine(NAME).await.unwrap().unwrap().power, Power::Off);
}
