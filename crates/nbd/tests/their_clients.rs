//! Our server against the clients of others: libnbd's nbdinfo and nbdcopy, QEMU's qemu-img and qemu-io.
#![allow(clippy::unwrap_used, reason = "a helper of a test may panic as the test itself may")]

use std::{
    path::Path,
    sync::{Arc, atomic::Ordering},
};

use crate::peers::{Memory, pattern, run, server, succeed};
use async_trait::async_trait;
use bytes::Bytes;
use nbd::{Address, BlockSize, ErrorCode, Export, QemuNbd, Server, StatusExtent, Uri, qemu_nbd, status};
use serde_json::Value;

const MIB: usize = 1024 * 1024;

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn nbdinfo_sees_what_we_serve() {
    let directory = tempfile::tempdir().unwrap();
    let (server, socket) = server(directory.path()).await;
    let block = BlockSize { minimum: 512, preferred: 65_536, maximum: 1 << 20 };
    server.add("web01/disk0", Arc::new(Memory { block, ..Memory::new(vec![0; 3 * MIB]) }));
    server.add("view", Arc::new(Memory::read_only(pattern(MIB, 1))));

    let uri = Uri::unix(&socket, "web01/disk0").to_string();
    let seen: Value = serde_json::from_str(&succeed("nbdinfo", &["--no-content", "--json", &uri]).await).unwrap();
    assert_eq!((&seen["protocol"], &seen["structured"]), (&"newstyle-fixed".into(), &true.into()));
    let export = &seen["exports"][0];
    assert_eq!(export["export-name"], "web01/disk0");
    assert_eq!(export["export-size"], 3 * MIB);
    assert_eq!(export["description"], "a disk in memory");
    assert_eq!(export["contexts"], serde_json::json!(["base:allocation"]));
    for (ability, expected) in [
        ("is_read_only", false),
        ("can_fua", true),
        ("can_flush", true),
        ("can_trim", true),
        ("can_zero", true),
        ("can_df", true),
        ("can_multi_conn", false),
        ("can_fast_zero", false),
    ] {
        assert_eq!(export[ability], expected, "{ability}");
    }
    let sizes = (&export["block_size_minimum"], &export["block_size_preferred"], &export["block_size_maximum"]);
    assert_eq!(sizes, (&512.into(), &65_536.into(), &(1 << 20).into()));

    let view = Uri::unix(&socket, "view").to_string();
    let seen: Value = serde_json::from_str(&succeed("nbdinfo", &["--no-content", "--json", &view]).await).unwrap();
    assert_eq!(
        (&seen["exports"][0]["is_read_only"], &seen["exports"][0]["can_multi_conn"]),
        (&true.into(), &true.into())
    );

    let list = Uri::unix(&socket, "").to_string();
    let seen: Value =
        serde_json::from_str(&succeed("nbdinfo", &["--no-content", "--list", "--json", &list]).await).unwrap();
    let names: Vec<_> = seen["exports"].as_array().unwrap().iter().map(|export| &export["export-name"]).collect();
    assert_eq!(names, ["view", "web01/disk0"]);
    assert_eq!(nbd::Client::list(&Address::Unix(socket.clone())).await.unwrap(), ["view", "web01/disk0"]);

    let unknown = run("nbdinfo", &[&Uri::unix(&socket, "nothing").to_string()]).await;
    assert!(!unknown.status.success());
    assert!(String::from_utf8_lossy(&unknown.stderr).contains("No such file or directory"), "{unknown:?}");
    server.stop().await;
}

/// Stretches of equal kind as (offset, length, is a hole), from the contents.
fn stretches(bytes: &[u8]) -> Vec<(u64, u64, bool)> {
    let mut stretches: Vec<(u64, u64, bool)> = Vec::new();
    for (index, block) in bytes.chunks(4096).enumerate() {
        let (hole, length) = (block.iter().all(|byte| *byte == 0), block.len() as u64);
        match stretches.last_mut() {
            Some(last) if last.2 == hole => last.1 += length,
            _ => stretches.push((index as u64 * 4096, length, hole)),
        }
    }
    stretches
}

#[tokio::test(flavor = "multi_thread")]
async fn the_map_is_the_same_for_nbdinfo_and_qemu_img() {
    let directory = tempfile::tempdir().unwrap();
    let (server, socket) = server(directory.path()).await;
    let mut contents = pattern(2 * MIB, 3);
    contents[MIB..].fill(0);
    contents[MIB + 300_000] = 1;
    server.add("disk", Arc::new(Memory::new(contents.clone())));
    let uri = Uri::unix(&socket, "disk").to_string();
    let expected = stretches(&contents);
    assert!(expected.len() > 8);

    let map: Value = serde_json::from_str(&succeed("nbdinfo", &["--map", "--json", &uri]).await).unwrap();
    let seen: Vec<_> = map
        .as_array()
        .unwrap()
        .iter()
        .map(|extent| {
            let number = |key: &str| extent[key].as_u64().unwrap();
            (number("offset"), number("length"), number("type") == 3)
        })
        .collect();
    assert_eq!(seen, expected);

    let map = succeed("qemu-img", &["map", "--output=json", "-f", "raw", &uri]).await;
    let map: Value = serde_json::from_str(&map).unwrap();
    let seen: Vec<_> = map
        .as_array()
        .unwrap()
        .iter()
        .map(|extent| {
            (extent["start"].as_u64().unwrap(), extent["length"].as_u64().unwrap(), extent["zero"].as_bool().unwrap())
        })
        .collect();
    assert_eq!(seen, expected);
    server.stop().await;
}

/// A view that also tells what changed, under the name QEMU would give a bitmap.
struct Changed(Memory);

#[async_trait]
impl Export for Changed {
    fn size(&self) -> u64 {
        self.0.size()
    }

    fn read_only(&self) -> bool {
        true
    }

    async fn read(&self, offset: u64, length: u32) -> Result<Bytes, ErrorCode> {
        self.0.read(offset, length).await
    }

    fn contexts(&self) -> Vec<String> {
        vec![status::ALLOCATION.into(), status::dirty_bitmap("epoch-1")]
    }

    async fn status(&self, context: &str, offset: u64, length: u64) -> Result<Vec<StatusExtent>, ErrorCode> {
        if context == status::ALLOCATION {
            return self.0.allocation(offset, length).await;
        }
        // every second 64 KiB
        let (mut extents, mut position) = (Vec::new(), offset);
        while position < offset + length {
            let end = (position / 65_536 + 1) * 65_536;
            let flags = if (position / 65_536) % 2 == 1 { status::DIRTY } else { 0 };
            extents.push(StatusExtent { offset: position, length: end - position, flags });
            position = end;
        }
        Ok(extents)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_context_of_an_export_s_own_is_seen_by_others() {
    let directory = tempfile::tempdir().unwrap();
    let (server, socket) = server(directory.path()).await;
    server.add("view", Arc::new(Changed(Memory::read_only(pattern(MIB, 1)))));
    let uri = Uri::unix(&socket, "view").to_string();
    let map = succeed("nbdinfo", &["--map=qemu:dirty-bitmap:epoch-1", "--json", &uri]).await;
    let map: Value = serde_json::from_str(&map).unwrap();
    let dirty: Vec<_> =
        map.as_array().unwrap().iter().filter(|extent| extent["type"] == 1).map(|extent| &extent["offset"]).collect();
    assert_eq!(dirty, (0..8).map(|n| n * 131_072 + 65_536).collect::<Vec<u64>>());
    // QEMU reads the bitmap as if it were its own
    let options = format!(
        "driver=nbd,server.type=unix,server.path={},export=view,x-dirty-bitmap=qemu:dirty-bitmap:epoch-1",
        text(&socket)
    );
    let map = succeed("qemu-img", &["map", "--output=json", "--image-opts", &options]).await;
    let map: Value = serde_json::from_str(&map).unwrap();
    // with x-dirty-bitmap, QEMU shows what is dirty as not being data
    let seen: Vec<_> = map
        .as_array()
        .unwrap()
        .iter()
        .filter(|extent| extent["data"] == false)
        .map(|extent| &extent["start"])
        .collect();
    assert_eq!(seen, dirty);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nbdcopy_copies_both_ways_over_both_kinds_of_socket() {
    let directory = tempfile::tempdir().unwrap();
    let (over_unix, _) = server(directory.path()).await;
    let over_tcp = Server::bind(&Address::Tcp("127.0.0.1:0".parse().unwrap())).await.unwrap();
    let contents = pattern(24 * MIB + 512, 4);
    let (source, result) = (directory.path().join("source"), directory.path().join("result"));
    std::fs::write(&source, &contents).unwrap();
    for server in [over_unix, over_tcp] {
        // read-only: nbdcopy opens several connections; a small maximum: nbdcopy must respect it
        let block = BlockSize { minimum: 1, preferred: 4096, maximum: 65_536 };
        server.add("view", Arc::new(Memory { block, ..Memory::read_only(contents.clone()) }));
        let target = Arc::new(Memory::new(vec![0xee; contents.len()]));
        server.add("target", target.clone());
        let uri = |export: &str| Uri { address: server.local_address(), export: export.into() }.to_string();

        let small = "--request-size=65536";
        succeed("nbdcopy", &[small, "--connections=4", &uri("view"), text(&result)]).await;
        assert!(std::fs::read(&result).unwrap() == contents);
        succeed("nbdcopy", &["--flush", text(&source), &uri("target")]).await;
        assert!(target.contents() == contents);
        assert!(target.flushes.load(Ordering::SeqCst) >= 1);
        assert!(target.zeroes.load(Ordering::SeqCst) + target.trims.load(Ordering::SeqCst) > 0);
        // from us to us, synchronously
        target.bytes.lock().unwrap().fill(0xaa);
        succeed("nbdcopy", &["--synchronous", small, &uri("view"), &uri("target")]).await;
        assert!(target.contents() == contents);
        server.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn qemu_img_converts_from_us_and_onto_us() {
    let directory = tempfile::tempdir().unwrap();
    let (server, socket) = server(directory.path()).await;
    let contents = pattern(16 * MIB, 5);
    let target = Arc::new(Memory::new(vec![0xee; contents.len()]));
    server.add("view", Arc::new(Memory::read_only(contents.clone())));
    server.add("target", target.clone());
    let (view, onto) = (Uri::unix(&socket, "view").to_string(), Uri::unix(&socket, "target").to_string());
    let image = directory.path().join("image.qcow2");
    succeed("qemu-img", &["convert", "-f", "raw", "-O", "qcow2", &view, text(&image)]).await;
    succeed("qemu-img", &["compare", "-f", "raw", "-F", "qcow2", &view, text(&image)]).await;
    // holes became holes: what was allocated is about the data, two thirds of it
    assert!(std::fs::metadata(&image).unwrap().len() < 13 * MIB as u64);
    succeed("qemu-img", &["convert", "-n", "-f", "qcow2", "-O", "raw", text(&image), &onto]).await;
    assert!(target.contents() == contents);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn qemu_io_reads_the_patterns_it_wrote() {
    let directory = tempfile::tempdir().unwrap();
    let (server, socket) = server(directory.path()).await;
    for (name, minimum) in [("fine", 1), ("coarse", 4096)] {
        let block = BlockSize { minimum, preferred: 4096, maximum: 128 * 1024 };
        let disk = Arc::new(Memory { block, ..Memory::new(vec![0; 8 * MIB]) });
        server.add(name, disk.clone());
        let uri = Uri::unix(&socket, name).to_string();
        let steps = [
            "write -P 0xab 4096 1M",
            "write -f -P 0xcd 512 512",
            "write -z 8k 64k",
            "write -z -u 2M 1M",
            "aio_write -P 0x11 4M 300k",
            "aio_write -P 0x22 5M 300k",
            "aio_flush",
            "discard 7M 1M",
            "flush",
            "read -P 0xab 4096 4096",
            "read -P 0 8k 64k",
            "read -P 0xab 72k 900k",
            "read -P 0xcd 512 512",
            "read -P 0x11 4M 300k",
            "read -P 0x22 5M 300k",
        ];
        let commands: Vec<&str> = steps.iter().flat_map(|step| ["-c", step]).collect();
        let printed = succeed("qemu-io", &[&["-f", "raw"][..], &commands, &[uri.as_str()]].concat()).await;
        assert!(!printed.contains("failed"), "{printed}");
        let bytes = disk.contents();
        assert!(bytes[512..1024].iter().all(|byte| *byte == 0xcd));
        assert!(bytes[4 * MIB..4 * MIB + 300 * 1024].iter().all(|byte| *byte == 0x11));
        assert_eq!(disk.trims.load(Ordering::SeqCst), 1);
        assert!(disk.flushes.load(Ordering::SeqCst) >= 2, "FUA and flush both flush");
        let wrong = run("qemu-io", &["-f", "raw", "-c", "read -P 0xab 512 512", &uri]).await;
        let printed = String::from_utf8_lossy(&wrong.stdout).into_owned();
        assert!(printed.contains("Pattern verification failed"), "this check can fail: {printed}");
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_overlay_over_our_view_works_like_a_disk_and_folds_back() {
    let directory = tempfile::tempdir().unwrap();
    let (server, socket) = server(directory.path()).await;
    let contents = pattern(8 * MIB, 6);
    let disk = Arc::new(Memory::new(contents.clone()));
    server.add("point", Arc::new(Memory::read_only(contents.clone())));
    server.add("disk", disk.clone());
    let point = Uri::unix(&socket, "point").to_string();
    let overlay = directory.path().join("overlay.qcow2");
    succeed("qemu-img", &["create", "-q", "-f", "qcow2", "-F", "raw", "-b", &point, text(&overlay)]).await;
    // a partial cluster makes QEMU read the rest of it from us
    succeed("qemu-io", &["-f", "qcow2", "-c", "write -P 0x77 1000k 3k", text(&overlay)]).await;
    let mut expected = contents.clone();
    expected[1000 * 1024..1003 * 1024].fill(0x77);
    let flat = directory.path().join("flat");
    succeed("qemu-img", &["convert", "-f", "qcow2", "-O", "raw", text(&overlay), text(&flat)]).await;
    assert!(std::fs::read(&flat).unwrap() == expected);

    // our client sees the same through qemu-nbd on the overlay on our server
    let settings = qemu_nbd::Settings::file(&overlay, qemu_nbd::Format::Qcow2, directory.path().join("overlay.sock"));
    let qemu = QemuNbd::start(&settings).await.unwrap();
    let client = nbd::Client::connect(&qemu.uri(), &nbd::Options::default()).await.unwrap();
    assert!(client.read(0, 8 * MIB as u32).await.unwrap() == expected);
    client.disconnect().await;
    qemu.stop().await.unwrap();

    // folded into a writable export
    let base = Uri::unix(&socket, "disk").to_string();
    succeed("qemu-img", &["rebase", "-u", "-f", "qcow2", "-F", "raw", "-b", &base, text(&overlay)]).await;
    succeed("qemu-img", &["commit", "-q", "-f", "qcow2", text(&overlay)]).await;
    assert!(disk.contents() == expected);
    server.stop().await;
}
