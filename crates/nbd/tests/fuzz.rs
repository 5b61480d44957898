//! Fuzz targets: what a peer may say to client and server. See CONTRIBUTING.md for how to run one for longer.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod peers;

use std::sync::Arc;
use std::time::Duration;

use nbd::{Address, Client, Options, Server, Uri};
use peers::{Memory, pattern};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio::time::timeout;

/// For each target in a run of all tests.
const WHILE: Duration = Duration::from_secs(8);
/// Nothing takes long; what takes this long hangs.
const PATIENCE: Duration = Duration::from_secs(20);
const SIZE: usize = 1 << 20;

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

/// A client's words until it may ask: fixed newstyle without zeroes, then GO for `d`, with nothing wanted to know.
fn opening() -> Vec<u8> {
    let go = [&1u32.to_be_bytes()[..], b"d", &0u16.to_be_bytes()].concat();
    let head = [&3u32.to_be_bytes()[..], b"IHAVEOPT", &7u32.to_be_bytes(), &(go.len() as u32).to_be_bytes()].concat();
    [head, go].concat()
}

/// Says it, leaves, and hears what comes.
async fn say(near: &mut DuplexStream, words: &[u8]) {
    let _ = near.write_all(words).await;
    let _ = near.shutdown().await;
    let _ = near.read_to_end(&mut Vec::new()).await;
}

#[test]
fn whatever_a_client_says() {
    let runtime = runtime();
    let dir = tempfile::tempdir().unwrap();
    let disk = Arc::new(Memory::new(pattern(SIZE, 1)));
    let server = runtime.block_on(async {
        let server = Server::bind(&Address::Unix(dir.path().join("s"))).await.unwrap();
        server.add("d", disk.clone());
        server
    });
    bolero::check!().with_max_len(2048).with_test_time(WHILE).for_each(|bytes: &[u8]| {
        let Some((how, rest)) = bytes.split_first() else { return };
        let words = match how % 3 {
            0 => rest.to_vec(),
            1 => [&3u32.to_be_bytes()[..], rest].concat(),
            _ => requests(rest),
        };
        runtime.block_on(async {
            let (mut near, far) = duplex(1 << 16);
            let (incoming, outgoing) = tokio::io::split(far);
            let talk = say(&mut near, &words);
            let both = async { tokio::join!(server.serve(incoming, outgoing), talk) };
            timeout(PATIENCE, both).await.expect("the server ends when its client has left");
        });
        // The export itself checks that every request was inside it: a slice out of bounds would have panicked.
        assert_eq!(disk.contents().len(), SIZE);
    });
}

/// A proper opening, then requests with true magics and everything else as it comes.
fn requests(rest: &[u8]) -> Vec<u8> {
    let mut words = opening();
    for request in rest.chunks(28) {
        words.extend_from_slice(&0x2560_9513u32.to_be_bytes());
        let mut fields = [0; 24];
        fields[..request.len().min(24)].copy_from_slice(&request[..request.len().min(24)]);
        // Known commands, and a length that a test can afford to send.
        fields[2] = 0;
        fields[3] %= 9;
        fields[20] = 0;
        fields[21] &= 0x1f;
        words.extend_from_slice(&fields);
    }
    words
}

#[test]
fn whatever_a_server_says() {
    let runtime = runtime();
    let greeting = [&b"NBDMAGICIHAVEOPT"[..], &3u16.to_be_bytes()].concat();
    bolero::check!().with_max_len(2048).with_test_time(WHILE).for_each(|bytes: &[u8]| {
        let Some((how, rest)) = bytes.split_first() else { return };
        let words = match how % 3 {
            0 => rest.to_vec(),
            1 => [&greeting[..], rest].concat(),
            _ => [&greeting[..], &replies(rest)].concat(),
        };
        runtime.block_on(async {
            let (mut near, far) = duplex(1 << 16);
            let (incoming, outgoing) = tokio::io::split(far);
            let talk = say(&mut near, &words);
            let asks = async {
                let options = Options { contexts: vec!["base:allocation".into()], ..Default::default() };
                let Ok(client) = Client::over(incoming, outgoing, "d", &options).await else { return };
                let _ = client.read(0, 512).await;
                if client.has_context("base:allocation") {
                    let _ = client.block_status("base:allocation", 0, 65536).await;
                }
                let _ = client.write(0, bytes::Bytes::from_static(&[1; 512])).await;
            };
            timeout(PATIENCE, async { tokio::join!(talk, asks) })
                .await
                .expect("the client gives up when its server has left");
        });
    });
}

/// Option replies and, once there were some, chunks of answers: true magics, everything else as it comes.
fn replies(rest: &[u8]) -> Vec<u8> {
    let mut words = Vec::new();
    for (n, part) in rest.chunks(24).enumerate() {
        let at = |index: usize| part.get(index).copied().unwrap_or_default();
        let data = part.get(6..).unwrap_or_default();
        if n < 6 {
            words.extend_from_slice(&0x0003_e889_0455_65a9u64.to_be_bytes());
            words.extend_from_slice(&[0, 0, 0, [7, 8, 10, at(0)][usize::from(at(1) % 4)]]);
            words.extend_from_slice(&[at(2) & 0x80, 0, 0, at(3) % 8]);
        } else {
            words.extend_from_slice(&0x668e_33efu32.to_be_bytes());
            words.extend_from_slice(&[0, at(0) & 1, at(1) & 0x80, at(2) % 6]);
            words.extend_from_slice(&u64::from(at(3) % 4).to_be_bytes());
        }
        words.extend_from_slice(&(data.len() as u32).to_be_bytes());
        words.extend_from_slice(data);
    }
    words
}

#[test]
fn whatever_is_said_to_be_an_address() {
    bolero::check!().with_max_len(200).with_test_time(WHILE).for_each(|bytes: &[u8]| {
        if let Ok(text) = std::str::from_utf8(bytes) {
            for text in [text.to_string(), format!("nbd://{text}"), format!("nbd+unix:///{text}")] {
                if let Ok(uri) = text.parse::<Uri>() {
                    let again: Uri = uri.to_string().parse().expect("an address can be written down");
                    assert_eq!(again, uri);
                }
            }
        }
    });
}
