//! Our client against QEMU's own server, and the care of `qemu-nbd` as a child.
#![allow(clippy::unwrap_used, reason = "a helper of a test may panic as the test itself may")]

use std::{path::Path, time::Duration};

use crate::peers::{pattern, run, succeed};
use bytes::Bytes;
use nbd::{
    Client, Error, Options, QemuNbd, StatusExtent, Zeroing,
    qemu_nbd::{Cache, DetectZeroes, Format, QemuNbdError, Settings},
    status,
};

const MIB: u64 = 1024 * 1024;

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

async fn create(image: &Path, format: &str, size: &str) {
    succeed("qemu-img", &["create", "-q", "-f", format, text(image), size]).await;
}

#[tokio::test]
async fn a_raw_and_a_qcow2_image_take_every_command_and_keep_the_result() {
    let directory = tempfile::tempdir().unwrap();
    for (format, name) in [(Format::Raw, "raw"), (Format::Qcow2, "qcow2")] {
        let image = directory.path().join(format!("disk.{name}"));
        create(&image, name, "64M").await;
        let settings = Settings::file(&image, format, directory.path().join("qemu.sock"));
        let qemu = QemuNbd::start(&settings).await.unwrap();
        let client = Client::connect(&qemu.uri(), &Options::with_contexts([status::ALLOCATION])).await.unwrap();
        assert_eq!(client.size(), 64 * MIB);
        assert!(client.can_zero() && client.can_trim() && client.can_flush() && client.can_fua());
        assert!(!client.read_only() && client.has_context(status::ALLOCATION));

        // more than one request can carry, so it is split
        let mut model = vec![0; 64 * MIB as usize];
        let data = pattern(40 * MIB as usize, 1);
        client.write(MIB, Bytes::from(data.clone())).await.unwrap();
        model[MIB as usize..41 * MIB as usize].copy_from_slice(&data);
        client.write_durable(50 * MIB, Bytes::from(data[..65536].to_vec())).await.unwrap();
        model[50 * MIB as usize..][..65536].copy_from_slice(&data[..65536]);
        client.write_zeroes(2 * MIB, 3 * MIB).await.unwrap();
        model[2 * MIB as usize..5 * MIB as usize].fill(0);
        client.zero(6 * MIB, MIB, Zeroing { no_hole: true, fast: false }).await.unwrap();
        model[6 * MIB as usize..7 * MIB as usize].fill(0);
        // what a trim leaves behind is not defined, so it is written again
        client.trim(20 * MIB, 2 * MIB).await.unwrap();
        client.write(20 * MIB, Bytes::from(vec![0x5a; 2 * MIB as usize])).await.unwrap();
        model[20 * MIB as usize..22 * MIB as usize].fill(0x5a);
        client.flush().await.unwrap();
        assert!(
            client.read(0, 64 * MIB as u32).await.unwrap() == model,
            "{name}: what is read is not what was written"
        );
        assert!(client.read(MIB - 3, 7).await.unwrap() == model[MIB as usize - 3..][..7]);

        let extents = client.block_status(status::ALLOCATION, 0, 64 * MIB).await.unwrap();
        assert_covers(&extents, 0, 64 * MIB);
        for extent in extents.iter().filter(|extent| extent.flags & status::ZERO != 0) {
            assert!(model[extent.offset as usize..extent.end() as usize].iter().all(|byte| *byte == 0));
        }
        assert!(extents.iter().any(|extent| extent.flags & status::ZERO != 0 && extent.length >= 8 * MIB));
        client.disconnect().await;
        qemu.stop().await.unwrap();

        let plain = directory.path().join("plain");
        succeed("qemu-img", &["convert", "-f", name, "-O", "raw", text(&image), text(&plain)]).await;
        assert!(std::fs::read(&plain).unwrap() == model, "{name}: the image does not hold what was written");
    }
}

fn assert_covers(extents: &[StatusExtent], start: u64, end: u64) {
    let mut position = start;
    for extent in extents {
        assert_eq!(extent.offset, position);
        assert!(extent.length > 0);
        position = extent.end();
    }
    assert_eq!(position, end);
    assert!(extents.windows(2).all(|pair| pair[0].flags != pair[1].flags));
}

#[tokio::test]
async fn a_dirty_bitmap_tells_exactly_what_was_written() {
    const GRAIN: u64 = 65_536;
    let directory = tempfile::tempdir().unwrap();
    let image = directory.path().join("disk.qcow2");
    create(&image, "qcow2", "256M").await;
    succeed("qemu-io", &["-f", "qcow2", "-c", "write -q 0 8M", text(&image)]).await;
    succeed("qemu-img", &["bitmap", "--add", "-g", "65536", "-f", "qcow2", text(&image), "epoch-1"]).await;

    let settings = Settings::file(&image, Format::Qcow2, directory.path().join("qemu.sock"));
    let qemu = QemuNbd::start(&settings).await.unwrap();
    let client = Client::connect(&qemu.uri(), &Options::default()).await.unwrap();
    let mut dirty = vec![false; (256 * MIB / GRAIN) as usize];
    // a write, one across a boundary of grains, a zeroing, a trim, the last byte, and a scatter of 300
    let mut ranges = vec![(0, 1), (5 * GRAIN - 1, 2), (64 * MIB, 3 * GRAIN), (256 * MIB - 1, 1)];
    ranges.extend((0..300).map(|n| (100 * MIB + n * 3 * GRAIN + n, 100)));
    for (offset, length) in &ranges {
        client.write(*offset, Bytes::from(vec![1; *length as usize])).await.unwrap();
    }
    client.write_zeroes(10 * GRAIN, 2 * GRAIN).await.unwrap();
    client.trim(20 * GRAIN, 2 * GRAIN).await.unwrap();
    ranges.extend([(10 * GRAIN, 2 * GRAIN), (20 * GRAIN, 2 * GRAIN)]);
    for (offset, length) in ranges {
        dirty[(offset / GRAIN) as usize..(offset + length).div_ceil(GRAIN) as usize].fill(true);
    }
    client.flush().await.unwrap();
    client.disconnect().await;
    qemu.stop().await.unwrap();

    let mut settings = settings.read_only();
    settings.bitmaps = vec!["epoch-1".into()];
    let qemu = QemuNbd::start(&settings).await.unwrap();
    let context = status::dirty_bitmap("epoch-1");
    let options = Options::with_contexts([&context, status::ALLOCATION, "qemu:dirty-bitmap:none-of-this-name"]);
    let client = Client::connect(&qemu.uri(), &options).await.unwrap();
    assert!(client.read_only() && client.has_context(&context) && client.has_context(status::ALLOCATION));
    assert!(!client.has_context("qemu:dirty-bitmap:none-of-this-name"));
    let extents = client.block_status(&context, 0, 256 * MIB).await.unwrap();
    assert_covers(&extents, 0, 256 * MIB);
    let mut found = vec![false; dirty.len()];
    for extent in extents.iter().filter(|extent| extent.flags & status::DIRTY != 0) {
        assert_eq!((extent.offset % GRAIN, extent.length % GRAIN), (0, 0));
        found[(extent.offset / GRAIN) as usize..(extent.end() / GRAIN) as usize].fill(true);
    }
    assert!(dirty.iter().filter(|bit| **bit).count() > 300);
    assert!(found == dirty, "the bitmap over NBD is not what was written");

    // a question in the middle of an extent is answered for exactly what was asked
    let part = client.block_status(&context, 64 * MIB + 100, GRAIN).await.unwrap();
    assert_eq!(part, [StatusExtent { offset: 64 * MIB + 100, length: GRAIN, flags: status::DIRTY }]);
    let error = client.block_status("qemu:dirty-bitmap:none-of-this-name", 0, 1).await.unwrap_err();
    assert!(matches!(error, Error::NoContext(_)), "{error}");
    client.disconnect().await;
    qemu.stop().await.unwrap();
}

#[tokio::test]
async fn the_allocation_depth_tells_overlay_from_base() {
    let directory = tempfile::tempdir().unwrap();
    let (base, overlay) = (directory.path().join("base.qcow2"), directory.path().join("overlay.qcow2"));
    create(&base, "qcow2", "8M").await;
    succeed("qemu-io", &["-f", "qcow2", "-c", "write -q -P 1 0 2M", text(&base)]).await;
    succeed("qemu-img", &["create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", text(&base), text(&overlay)]).await;
    succeed("qemu-io", &["-f", "qcow2", "-c", "write -q -P 2 1M 3M", text(&overlay)]).await;

    let socket = directory.path().join("qemu.sock");
    let mut settings = Settings::file(&overlay, Format::Qcow2, &socket).read_only();
    settings.allocation_depth = true;
    let qemu = QemuNbd::start(&settings).await.unwrap();
    let client = Client::connect(&qemu.uri(), &Options::with_contexts([status::ALLOCATION_DEPTH])).await.unwrap();
    let extents = client.block_status(status::ALLOCATION_DEPTH, 0, 8 * MIB).await.unwrap();
    let seen: Vec<_> = extents.iter().map(|extent| (extent.length / MIB, extent.flags)).collect();
    assert_eq!(seen, [(1, 2), (3, 1), (4, 0)]);
    assert!(client.read(0, MIB as u32).await.unwrap().iter().all(|byte| *byte == 1));
    assert!(client.read(MIB, 3 * MIB as u32).await.unwrap().iter().all(|byte| *byte == 2));
    qemu.stop().await.unwrap();

    // the same through QEMU's own options instead of a file name
    let options = format!("driver=qcow2,file.driver=file,file.filename={}", text(&overlay));
    let qemu = QemuNbd::start(&Settings::options(options, &socket).read_only()).await.unwrap();
    let client = Client::connect(&qemu.uri(), &Options::default()).await.unwrap();
    assert!(client.read(MIB, 16).await.unwrap().iter().all(|byte| *byte == 2));
    qemu.stop().await.unwrap();
}

#[tokio::test]
async fn what_the_server_refuses_is_said_in_its_words() {
    let directory = tempfile::tempdir().unwrap();
    let image = directory.path().join("disk.raw");
    create(&image, "raw", "1M").await;
    let mut settings = Settings::file(&image, Format::Raw, directory.path().join("qemu.sock")).read_only();
    settings.export = "a name with spaces & ümlauts".into();
    let qemu = QemuNbd::start(&settings).await.unwrap();
    let uri = qemu.uri();
    assert_eq!(Client::list(&uri.address).await.unwrap(), [settings.export.as_str()]);

    let other = nbd::Uri { export: "other".into(), ..uri.clone() };
    let error = Client::connect(&other, &Options::with_contexts([status::ALLOCATION])).await.unwrap_err();
    assert!(matches!(error, Error::Refused { reason: "no such export", .. }), "{error}");

    let client = Client::connect(&uri, &Options::default()).await.unwrap();
    assert!(client.read_only());
    assert!(matches!(client.write(0, Bytes::from_static(&[1])).await, Err(Error::ReadOnly)));
    assert!(matches!(client.write_zeroes(0, 1).await, Err(Error::ReadOnly)));
    assert!(matches!(client.trim(0, 1).await, Err(Error::ReadOnly)));
    assert!(matches!(client.read(MIB - 1, 2).await, Err(Error::OutOfBounds { .. })));
    assert!(matches!(client.read(u64::MAX, 2).await, Err(Error::OutOfBounds { .. })));
    assert_eq!(client.read(MIB, 0).await.unwrap().len(), 0);
    client.flush().await.unwrap();
    // the same URI is understood by others
    succeed("nbdinfo", &["--size", &uri.to_string()]).await;
    qemu.stop().await.unwrap();
}

#[tokio::test]
async fn direct_io_and_zero_detection_can_be_chosen() {
    // O_DIRECT needs a real file system, which the directory for temporary files may not be
    let directory = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let image = directory.path().join("disk.raw");
    create(&image, "raw", "4M").await;
    let mut settings = Settings::file(&image, Format::Raw, directory.path().join("qemu.sock"));
    settings.cache = Cache::None;
    settings.detect_zeroes = DetectZeroes::Unmap;
    let qemu = QemuNbd::start(&settings).await.unwrap();
    let client = Client::connect(&qemu.uri(), &Options::default()).await.unwrap();
    client.write(0, Bytes::from(pattern(2 * MIB as usize, 3))).await.unwrap();
    client.write(MIB, Bytes::from(vec![0; MIB as usize])).await.unwrap();
    client.flush().await.unwrap();
    // whatever the block of the disk below, an odd read is widened to it
    assert!(client.read(513, 1000).await.unwrap() == pattern(2 * MIB as usize, 3)[513..1513]);
    qemu.stop().await.unwrap();
    let mut expected = pattern(2 * MIB as usize, 3);
    expected[MIB as usize..].fill(0);
    expected.resize(4 * MIB as usize, 0);
    assert!(std::fs::read(&image).unwrap() == expected);
}

#[tokio::test]
async fn a_failed_start_gives_the_words_of_the_program() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("qemu.sock");
    let missing = Settings::file(directory.path().join("missing"), Format::Raw, &socket);
    let error = QemuNbd::start(&missing).await.unwrap_err();
    assert!(matches!(&error, QemuNbdError::Ended { words, .. } if words.contains("No such file")), "{error}");

    let image = directory.path().join("disk.raw");
    create(&image, "raw", "1M").await;
    let error = QemuNbd::start(&Settings::file(&image, Format::Qcow2, &socket)).await.unwrap_err();
    assert!(matches!(&error, QemuNbdError::Ended { words, .. } if words.contains("qcow2")), "{error}");

    // qcow2, since QEMU lets two servers share one raw image
    let locked = directory.path().join("disk.qcow2");
    create(&locked, "qcow2", "1M").await;
    let first = QemuNbd::start(&Settings::file(&locked, Format::Qcow2, &socket)).await.unwrap();
    let error = QemuNbd::start(&Settings::file(&locked, Format::Qcow2, &socket)).await.unwrap_err();
    assert!(matches!(error, QemuNbdError::SocketInUse { .. }), "{error}");
    let other = directory.path().join("other.sock");
    let error = QemuNbd::start(&Settings::file(&locked, Format::Qcow2, &other)).await.unwrap_err();
    assert!(matches!(&error, QemuNbdError::Ended { words, .. } if words.contains("lock")), "{error}");
    first.stop().await.unwrap();

    let mut absent = Settings::file(&image, Format::Raw, &socket);
    absent.program = "qemu-nbd-that-is-not-installed".into();
    assert!(matches!(QemuNbd::start(&absent).await.unwrap_err(), QemuNbdError::Run { .. }));
}

#[tokio::test]
async fn the_child_leaves_nothing_behind_stopped_dropped_or_killed() {
    let directory = tempfile::tempdir().unwrap();
    let (image, socket) = (directory.path().join("disk.qcow2"), directory.path().join("qemu.sock"));
    create(&image, "qcow2", "16M").await;
    let settings = Settings::file(&image, Format::Qcow2, &socket);

    // written, not flushed, client still connected: stop flushes
    let qemu = QemuNbd::start(&settings).await.unwrap();
    let client = Client::connect(&qemu.uri(), &Options::default()).await.unwrap();
    client.write(0, Bytes::from(pattern(MIB as usize, 9))).await.unwrap();
    let pid = qemu.pid().unwrap();
    qemu.stop().await.unwrap();
    assert!(!is_alive(pid) && !socket.exists());
    let error = client.read(0, 1).await.unwrap_err();
    assert!(matches!(error, Error::Lost { .. }), "{error}");
    assert!(!client.is_connected());

    let qemu = QemuNbd::start(&settings).await.unwrap();
    let client = Client::connect(&qemu.uri(), &Options::default()).await.unwrap();
    assert!(client.read(0, MIB as u32).await.unwrap() == pattern(MIB as usize, 9));
    let pid = qemu.pid().unwrap();
    drop(qemu);
    wait_until("the dropped child is gone", || !is_alive(pid)).await;

    // killed: the socket file stays behind, and does not hinder the next start
    let mut qemu = QemuNbd::start(&settings).await.unwrap();
    let client = Client::connect(&qemu.uri(), &Options::default()).await.unwrap();
    assert!(qemu.is_running());
    succeed("kill", &["-KILL", &qemu.pid().unwrap().to_string()]).await;
    let error = loop {
        match client.read(0, 4096).await {
            Ok(_) => tokio::time::sleep(Duration::from_millis(5)).await,
            Err(error) => break error,
        }
    };
    assert!(matches!(error, Error::Lost { .. }), "{error}");
    wait_until("the killed child is noticed", || !qemu.is_running()).await;
    assert!(socket.exists());
    let again = QemuNbd::start(&settings).await.unwrap();
    again.stop().await.unwrap();
    let check = run("qemu-img", &["check", "-q", text(&image)]).await;
    assert!(check.status.success());
}

fn is_alive(pid: u32) -> bool {
    // a zombie is dead, only not yet buried
    std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
}

async fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    for _ in 0..3000 {
        if condition() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("not in 30 s: {what}");
}
