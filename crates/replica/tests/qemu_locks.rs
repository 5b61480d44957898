//! QEMU keeps its hands off a disk that a replica has open, and reads it when the replica is closed.

#![allow(clippy::unwrap_used)]

use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use bytes::Bytes;
use protocol::epoch::{Basis, DiskSize};
use protocol::{Attempt, EpochHeader, Lineage, PointKind};
use replica::{Content, DiskHome, DiskRecord, FileDisk, Payload, Place, Replica, Spec, Write, open_inside};

const SIZE: u64 = 1 << 20;

fn qemu_io(path: &Path, arguments: &[&str]) -> Output {
    Command::new("qemu-io").args(["-f", "raw"]).args(arguments).arg(path).output().unwrap()
}

fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// Starts a machine on the overlay, without letting it run, and ends it at once.
fn start_machine(overlay: &Path) -> Output {
    let drive = format!("file={},format=qcow2,if=none,id=d", overlay.display());
    let mut machine = Command::new("qemu-system-x86_64")
        .args(["-machine", "q35,accel=tcg", "-nodefaults", "-display", "none", "-S", "-monitor", "stdio"])
        .args(["-drive", &drive, "-device", "virtio-blk-pci,drive=d"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // When it was refused it may have ended already.
    let _ = machine.stdin.take().unwrap().write_all(b"quit\n");
    machine.wait_with_output().unwrap()
}

#[test]
fn qemu_refuses_the_disk_of_an_open_replica_and_takes_it_when_it_is_closed() {
    let directory = tempfile::tempdir().unwrap();
    let place = Place { directory: directory.path().join("r"), retention: directory.path().join("j") };
    let (lineage, key) = (Lineage::fresh(), "disk0".parse::<protocol::DiskKey>().unwrap());
    let disks = vec![DiskRecord { key: key.clone(), size: SIZE, home: DiskHome::Inside }];
    let spec = Spec { item: "web01".parse().unwrap(), lineage, disks, content: Content::Empty };
    let replica = Replica::create(&place, &spec, &open_inside).unwrap();
    let header = EpochHeader {
        lineage,
        attempt: Attempt { generation: 1, number: 1 },
        base: None,
        basis: Basis::Full,
        cut_at_ms: 0,
        disks: vec![DiskSize { disk: key, size: SIZE }],
        kind: PointKind::CrashConsistent,
        freeze: None,
        expected_bytes: 0,
    };
    let mut epoch = replica.begin(&header).unwrap();
    let payload = Payload::Data(Bytes::from(vec![0x77; 8192]));
    epoch.apply(&[Write { disk: 0, offset: 4096, payload }]).unwrap();
    epoch.seal(0).unwrap();
    let disk = place.directory.join("disk0.raw");

    let write = qemu_io(&disk, &["-c", "write -P 1 0 512"]);
    assert!(text(&write).contains("lock"), "{}", text(&write));
    let backing = directory.path().join("overlay.qcow2");
    let base = disk.display().to_string();
    let create = ["create", "-u", "-f", "qcow2", "-F", "raw", "-b", &base, &backing.display().to_string(), "1M"];
    assert!(Command::new("qemu-img").args(create).output().unwrap().status.success());
    let machine = start_machine(&backing);
    assert!(!machine.status.success() && text(&machine).contains("lock"), "{}", text(&machine));
    let forced = qemu_io(&disk, &["-r", "-U", "-c", "read -P 0x77 4096 8192"]);
    assert!(text(&forced).contains("read 8192/8192") && !text(&forced).contains("failed"), "{}", text(&forced));

    replica.close();
    let after = qemu_io(&disk, &["-c", "read -P 0x77 4096 8192", "-c", "read -P 0 0 4096"]);
    assert!(text(&after).contains("read 8192/8192") && !text(&after).contains("failed"), "{}", text(&after));
    let machine = start_machine(&backing);
    assert!(machine.status.success(), "{}", text(&machine));
    assert!(FileDisk::open(&disk).is_ok());
}
