//! Our client against nbdkit, whose filters make a server as awkward as the protocol allows.
#![allow(clippy::unwrap_used, reason = "a helper of a test may panic as the test itself may")]

use std::time::Duration;

use crate::peers::{nbdkit, pattern};
use bytes::Bytes;
use nbd::{Client, Error, ErrorCode, Options, status};

const MIB: u64 = 1024 * 1024;

async fn connect(uri: &nbd::Uri) -> Client {
    Client::connect(uri, &Options::with_contexts([status::ALLOCATION])).await.unwrap()
}

#[tokio::test]
async fn block_size_constraints_are_obeyed() {
    let directory = tempfile::tempdir().unwrap();
    let policy = ["blocksize-minimum=4096", "blocksize-preferred=8192", "blocksize-maximum=65536"];
    // with this error policy the server fails whatever is not aligned or too large
    let arguments =
        [&["--filter=blocksize-policy", "memory", "8M", "blocksize-error-policy=error"], &policy[..]].concat();
    let (_guard, uri) = nbdkit(directory.path(), &arguments).await;
    let client = connect(&uri).await;
    let block = client.block_size();
    assert_eq!((block.minimum, block.preferred, block.maximum), (4096, 8192, 65_536));
    let data = pattern(3 * MIB as usize, 5);
    client.write(4096, Bytes::from(data.clone())).await.unwrap();
    // odd reads and questions are widened, odd writes are refused before they are sent
    assert!(client.read(5001, 1_000_003).await.unwrap() == data[905..1_000_908]);
    assert!(client.read(8 * MIB - 5, 5).await.unwrap() == vec![0; 5]);
    let extents = client.block_status(status::ALLOCATION, 4000, 100).await.unwrap();
    assert_eq!((extents[0].offset, extents.iter().map(|extent| extent.length).sum::<u64>()), (4000, 100));
    for (offset, length) in [(1, 4096), (4096, 4095)] {
        let error = client.write(offset, Bytes::from(vec![0; length])).await.unwrap_err();
        assert!(matches!(error, Error::Unaligned { minimum: 4096, .. }), "{error}");
    }
    assert!(matches!(client.write_zeroes(0, 100).await, Err(Error::Unaligned { .. })));
    client.trim(100, 100).await.unwrap();
    client.write_zeroes(0, 8 * MIB).await.unwrap();
    assert!(client.read(0, 8 * MIB as u32).await.unwrap().iter().all(|byte| *byte == 0));
}

#[tokio::test]
async fn errors_come_back_with_their_number_and_the_connection_lives_on() {
    let directory = tempfile::tempdir().unwrap();
    let trigger = directory.path().join("fail");
    let file = format!("error-pwrite-file={}", trigger.display());
    let arguments = ["--filter=error", "memory", "1M", "error-pwrite=ENOSPC", "error-pwrite-rate=1.0", &file];
    let (_guard, uri) = nbdkit(directory.path(), &arguments).await;
    let client = connect(&uri).await;
    client.write(0, Bytes::from_static(&[7; 512])).await.unwrap();
    std::fs::write(&trigger, "").unwrap();
    let error = client.write(512, Bytes::from_static(&[8; 512])).await.unwrap_err();
    assert_eq!(error.code(), Some(ErrorCode::NoSpace), "{error}");
    assert!(matches!(error, Error::Remote { command: "write", offset: 512, length: 512, .. }));
    std::fs::remove_file(&trigger).unwrap();
    client.write(512, Bytes::from_static(&[9; 512])).await.unwrap();
    assert!(client.read(0, 1024).await.unwrap() == [[7; 512], [9; 512]].concat());
}

#[tokio::test]
async fn a_read_error_is_an_error_and_not_a_short_or_zero_read() {
    let directory = tempfile::tempdir().unwrap();
    let arguments = ["--filter=error", "memory", "1M", "error-pread=EIO", "error-pread-rate=1.0"];
    let (_guard, uri) = nbdkit(directory.path(), &arguments).await;
    let client = connect(&uri).await;
    let error = client.read(4096, 4096).await.unwrap_err();
    assert_eq!(error.code(), Some(ErrorCode::Io), "{error}");
}

#[tokio::test]
async fn a_server_without_structured_replies_is_read_all_the_same() {
    let directory = tempfile::tempdir().unwrap();
    let (_guard, uri) = nbdkit(directory.path(), &["--no-sr", "memory", "64M"]).await;
    let client = connect(&uri).await;
    assert!(!client.has_context(status::ALLOCATION));
    let data = pattern(36 * MIB as usize, 6);
    client.write(MIB, Bytes::from(data.clone())).await.unwrap();
    assert!(client.read(MIB, data.len() as u32).await.unwrap() == data);
    let error = client.block_status(status::ALLOCATION, 0, 1).await.unwrap_err();
    assert!(matches!(error, Error::NoContext(_)), "{error}");
}

#[tokio::test]
async fn zeroes_are_written_out_where_the_server_cannot_zero() {
    let directory = tempfile::tempdir().unwrap();
    let arguments = ["--filter=nozero", "--filter=blocksize-policy", "memory", "4M", "blocksize-maximum=65536"];
    let (_guard, uri) = nbdkit(directory.path(), &arguments).await;
    let client = connect(&uri).await;
    assert!(!client.can_zero() && !client.can_fast_zero());
    client.write(0, Bytes::from(vec![0xff; 4 * MIB as usize])).await.unwrap();
    client.write_zeroes(1000, 3 * MIB).await.unwrap();
    let mut expected = vec![0xff; 4 * MIB as usize];
    expected[1000..1000 + 3 * MIB as usize].fill(0);
    assert!(client.read(0, 4 * MIB as u32).await.unwrap() == expected);
    let fast = nbd::Zeroing { fast: true, ..nbd::Zeroing::default() };
    assert!(matches!(client.zero(0, 512, fast).await, Err(Error::Unsupported(_))));
}

#[tokio::test]
async fn fast_zeroing_is_done_or_refused_and_never_replaced() {
    let directory = tempfile::tempdir().unwrap();
    let fast = nbd::Zeroing { fast: true, ..nbd::Zeroing::default() };
    let (guard, uri) = nbdkit(directory.path(), &["memory", "4M"]).await;
    let client = connect(&uri).await;
    assert!(client.can_fast_zero());
    client.write(0, Bytes::from(vec![1; 65_536])).await.unwrap();
    client.zero(0, 65_536, fast).await.unwrap();
    assert!(client.read(0, 65_536).await.unwrap().iter().all(|byte| *byte == 0));
    drop(guard);
    drop(client);

    let directory = tempfile::tempdir().unwrap();
    let arguments = ["--filter=nozero", "memory", "4M", "zeromode=emulate", "fastzeromode=slow"];
    let (_guard, uri) = nbdkit(directory.path(), &arguments).await;
    let client = connect(&uri).await;
    assert!(client.can_fast_zero());
    client.write(0, Bytes::from(vec![1; 4096])).await.unwrap();
    let error = client.zero(0, 4096, fast).await.unwrap_err();
    assert_eq!(error.code(), Some(ErrorCode::NotSupported), "{error}");
    assert!(client.read(0, 4096).await.unwrap().iter().all(|byte| *byte == 1));
    client.write_zeroes(0, 4096).await.unwrap();
    assert!(client.read(0, 4096).await.unwrap().iter().all(|byte| *byte == 0));
}

#[tokio::test]
async fn extents_of_a_sparse_disk_of_terabytes_are_found() {
    let directory = tempfile::tempdir().unwrap();
    let (_guard, uri) = nbdkit(directory.path(), &["memory", "6T"]).await;
    let client = connect(&uri).await;
    // one beyond 32 bits, one at the very end
    let places = [5 * 1024 * 1024 * MIB + 32_768, 6 * 1024 * 1024 * MIB - 32_768];
    for place in places {
        client.write(place, Bytes::from_static(&[1; 4096])).await.unwrap();
    }
    let extents = client.block_status(status::ALLOCATION, 0, client.size()).await.unwrap();
    let data: Vec<_> = extents.iter().filter(|extent| extent.flags == 0).collect();
    assert_eq!(data.iter().map(|extent| extent.offset).collect::<Vec<_>>(), places);
    assert_eq!(extents.iter().map(|extent| extent.length).sum::<u64>(), client.size());
    assert!(client.read(places[1], 4096).await.unwrap().iter().all(|byte| *byte == 1));
    // far more than one request may say, and more than one trim may take at a time
    client.write_zeroes(0, 8 * 1024 * MIB).await.unwrap();
}

#[tokio::test]
async fn many_slow_requests_take_the_time_of_one() {
    let directory = tempfile::tempdir().unwrap();
    let (_guard, uri) = nbdkit(directory.path(), &["--filter=delay", "memory", "1M", "rdelay=500ms"]).await;
    let client = connect(&uri).await;
    let begun = std::time::Instant::now();
    let reads: Vec<_> = (0..16)
        .map(|n| {
            tokio::spawn({
                let client = client.clone();
                async move { client.read(n * 4096, 4096).await.map(|data| data.len()) }
            })
        })
        .collect();
    for read in reads {
        assert_eq!(read.await.unwrap().unwrap(), 4096);
    }
    // one after another they would take 8 s
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
}

#[tokio::test]
async fn a_server_killed_in_the_middle_fails_every_request_with_the_reason() {
    let directory = tempfile::tempdir().unwrap();
    let (mut guard, uri) = nbdkit(directory.path(), &["--filter=delay", "memory", "1M", "rdelay=300"]).await;
    let client = connect(&uri).await;
    let reads: Vec<_> = (0..10)
        .map(|n| {
            tokio::spawn({
                let client = client.clone();
                async move { client.read(n * 4096, 4096).await }
            })
        })
        .collect();
    // answered, so the server is at work and the reads are on their way
    client.write(0, Bytes::from_static(&[1; 16])).await.unwrap();
    guard.0.kill().unwrap();
    for read in reads {
        let error = tokio::time::timeout(Duration::from_secs(20), read).await.unwrap().unwrap().unwrap_err();
        assert!(matches!(&error, Error::Lost { reason } if !reason.contains("task")), "{error}");
    }
    assert!(matches!(client.write(0, Bytes::from_static(&[1])).await, Err(Error::Lost { .. })));
    assert!(matches!(client.flush().await, Err(Error::Lost { .. })));
    guard.0.wait().unwrap();
    let error = Client::connect(&uri, &Options::default()).await.unwrap_err();
    assert!(matches!(error, Error::Connect { .. }), "{error}");
}

#[tokio::test]
async fn a_server_too_old_or_too_strict_is_refused_with_the_reason() {
    let directory = tempfile::tempdir().unwrap();
    let (guard, uri) = nbdkit(directory.path(), &["--oldstyle", "memory", "1M"]).await;
    let error = Client::connect(&uri, &Options::default()).await.unwrap_err();
    assert!(matches!(error, Error::Unsupported(_)), "{error}");
    drop(guard);
    let directory = tempfile::tempdir().unwrap();
    // without the flag of fixed newstyle
    let (_guard, uri) = nbdkit(directory.path(), &["--mask-handshake=0", "memory", "1M"]).await;
    let error = Client::connect(&uri, &Options::default()).await.unwrap_err();
    assert!(matches!(error, Error::Unsupported(_)), "{error}");
}

#[tokio::test]
async fn a_server_that_pads_the_handshake_with_zeroes_is_understood() {
    let directory = tempfile::tempdir().unwrap();
    let (_guard, uri) = nbdkit(directory.path(), &["--mask-handshake=1", "memory", "1M"]).await;
    let client = connect(&uri).await;
    client.write(0, Bytes::from_static(b"salmon")).await.unwrap();
    assert_eq!(client.read(0, 6).await.unwrap(), &b"salmon"[..]);
}
