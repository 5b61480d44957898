//! Peers that mean harm: whatever bytes come, nobody panics, hangs, or allocates what the peer made up.
//!
//! ```text
//!   client under test ◄── a valid handshake, then a script of chunks: true, twisted, or noise
//!   server under test ◄── noise, twisted options, twisted requests; then an honest client must find all in order
//! ```
#![allow(clippy::unwrap_used, reason = "a helper of a test may panic as the test itself may")]

use std::{sync::Arc, time::Duration};

use crate::peers::{Memory, pattern};
use bytes::Bytes;
use nbd::{Address, Client, Error, Options, Server, Uri, status};
use proptest::{prelude::*, test_runner::TestRunner};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex},
    time::timeout,
};

const SIZE: u64 = 1 << 20;
const PIECE: u32 = 4096;
const CONTEXT: u32 = 7;
/// A test that hangs is found by this, and nothing else is measured by it.
const PATIENCE: Duration = Duration::from_secs(20);

fn config(cases: u32) -> ProptestConfig {
    ProptestConfig { cases, failure_persistence: None, ..Default::default() }
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

fn option_reply(option: u32, kind: u32, data: &[u8]) -> Vec<u8> {
    let head = [option.to_be_bytes(), kind.to_be_bytes(), (data.len() as u32).to_be_bytes()].concat();
    [&0x0003_e889_0455_65a9u64.to_be_bytes()[..], &head, data].concat()
}

fn greeting() -> Vec<u8> {
    [&b"NBDMAGICIHAVEOPT"[..], &3u16.to_be_bytes()].concat()
}

/// Everything a server says until requests may come: structured replies, one context, a disk of a mebibyte.
fn handshake() -> Vec<u8> {
    let context = [&CONTEXT.to_be_bytes()[..], status::ALLOCATION.as_bytes()].concat();
    let export = [&0u16.to_be_bytes()[..], &SIZE.to_be_bytes(), &0x0fedu16.to_be_bytes()].concat();
    [
        greeting(),
        option_reply(8, 1, &[]),
        option_reply(10, 4, &context),
        option_reply(10, 1, &[]),
        option_reply(7, 3, &export),
        option_reply(7, 1, &[]),
    ]
    .concat()
}

fn chunk(flags: u16, kind: u16, cookie: u64, length: u32, payload: &[u8]) -> Vec<u8> {
    let head = [&0x668e_33efu32.to_be_bytes()[..], &flags.to_be_bytes(), &kind.to_be_bytes()].concat();
    [&head[..], &cookie.to_be_bytes(), &length.to_be_bytes(), payload].concat()
}

fn data_chunk(flags: u16, cookie: u64, offset: u64, data: &[u8]) -> Vec<u8> {
    chunk(flags, 1, cookie, data.len() as u32 + 8, &[&offset.to_be_bytes()[..], data].concat())
}

fn hole_chunk(flags: u16, cookie: u64, offset: u64, length: u32) -> Vec<u8> {
    chunk(flags, 2, cookie, 12, &[&offset.to_be_bytes()[..], &length.to_be_bytes()].concat())
}

fn status_chunk(flags: u16, cookie: u64, context: u32, extents: &[(u32, u32)]) -> Vec<u8> {
    let mut payload = context.to_be_bytes().to_vec();
    for (length, flags) in extents {
        payload.extend_from_slice(&length.to_be_bytes());
        payload.extend_from_slice(&flags.to_be_bytes());
    }
    chunk(flags, 5, cookie, payload.len() as u32, &payload)
}

/// Three requests, with the cookies 1, 2 and 3: two reads and a block status; and what came of each.
type Results = (Result<Bytes, Error>, Result<Bytes, Error>, Result<Vec<nbd::StatusExtent>, Error>);

/// Lets a client ask its three questions of a server that answers with a script and hangs up.
async fn ask(script: Vec<u8>) -> Results {
    let (ours, mut theirs) = duplex(1 << 16);
    let server = async move {
        theirs.write_all(&handshake()).await.unwrap();
        // the three requests are out once these many bytes came: flags, the options, the requests
        let name = status::ALLOCATION.len();
        let mut asked = vec![0; 4 + 16 + (16 + 4 + 4 + 4 + name) + (16 + 4 + 2 + 2) + 3 * 28];
        theirs.read_exact(&mut asked).await.unwrap();
        // the client may hang up on us first, which is its right
        let _ = theirs.write_all(&script).await;
        let _ = theirs.shutdown().await;
        let _ = theirs.read_to_end(&mut Vec::new()).await;
    };
    let client = async move {
        let (incoming, outgoing) = tokio::io::split(ours);
        let options = Options::with_contexts([status::ALLOCATION]);
        let client = Client::over(incoming, outgoing, "", &options).await.unwrap();
        let results = tokio::join!(
            client.read(0, PIECE),
            client.read(u64::from(PIECE), PIECE),
            client.block_status(status::ALLOCATION, 0, SIZE)
        );
        drop(client);
        results
    };
    let both = async { tokio::join!(client, server).0 };
    timeout(PATIENCE, both).await.expect("client or server hangs")
}

/// A connection may die of a breach or of its end, but never of a panic in one of its tasks.
fn is_sane<T>(result: &Result<T, Error>) -> bool {
    match result {
        Err(Error::Lost { reason }) => !reason.contains("task") && !reason.contains("died"),
        _ => true,
    }
}

fn any_chunk() -> impl Strategy<Value = Vec<u8>> {
    let cookie = || 0u64..5;
    let noise = || proptest::collection::vec(any::<u8>(), 0..64);
    let offset = || prop_oneof![0u64..10_000, Just(u64::MAX), Just(4096), Just(0), any::<u64>()];
    let length = || prop_oneof![Just(0u32), Just(4096), Just(12), 0u32..10_000, Just(u32::MAX), any::<u32>()];
    prop_oneof![
        1 => noise(),
        1 => (any::<u32>(), cookie()).prop_map(|(error, cookie)| {
            [&0x6744_6698u32.to_be_bytes()[..], &error.to_be_bytes(), &cookie.to_be_bytes()].concat()
        }),
        3 => (0u16..4, prop_oneof![0u16..8, 0x8001u16..0x8004, any::<u16>()], cookie(), length(), noise())
            .prop_map(|(flags, kind, cookie, length, payload)| chunk(flags, kind, cookie, length, &payload)),
        3 => (0u16..2, cookie(), offset(), 0usize..5000)
            .prop_map(|(flags, cookie, offset, length)| data_chunk(flags, cookie, offset, &vec![1; length])),
        3 => (0u16..2, cookie(), offset(), length())
            .prop_map(|(flags, cookie, offset, length)| hole_chunk(flags, cookie, offset, length)),
        3 => (0u16..2, cookie(), 6u32..9, proptest::collection::vec((length(), 0u32..4), 0..20))
            .prop_map(|(flags, cookie, context, extents)| status_chunk(flags, cookie, context, &extents)),
        1 => (0u16..2, 0x8001u16..0x8004, cookie(), any::<u32>(), any::<u16>(), noise()).prop_map(
            |(flags, kind, cookie, error, length, words)| {
                let payload = [&error.to_be_bytes()[..], &length.to_be_bytes(), &words].concat();
                chunk(flags, kind, cookie, payload.len() as u32, &payload)
            }
        ),
    ]
}

#[test]
fn no_reply_makes_the_client_panic_or_hang() {
    let runtime = runtime();
    let script = proptest::collection::vec(any_chunk(), 0..12);
    let result = TestRunner::new(config(6000)).run(&script, |script| {
        let (first, second, extents) = runtime.block_on(ask(script.concat()));
        prop_assert!(is_sane(&first) && is_sane(&second) && is_sane(&extents), "{:?}", (first, second, extents));
        for data in [first, second].into_iter().flatten() {
            prop_assert_eq!(data.len(), PIECE as usize);
        }
        Ok(())
    });
    result.unwrap();
}

/// Cuts a read into chunks: data, or holes where the data is zero.
fn cut(cookie: u64, offset: u64, data: &[u8], cuts: &[usize]) -> Vec<Vec<u8>> {
    let mut places: Vec<usize> = cuts.iter().map(|cut| cut % data.len()).collect();
    places.extend([0, data.len()]);
    places.sort_unstable();
    places.dedup();
    let piece = |pair: &[usize]| {
        let (part, offset) = (&data[pair[0]..pair[1]], offset + pair[0] as u64);
        let is_hole = part.iter().all(|byte| *byte == 0);
        if is_hole { hole_chunk(0, cookie, offset, part.len() as u32) } else { data_chunk(0, cookie, offset, part) }
    };
    places.windows(2).map(piece).collect()
}

#[test]
fn replies_in_any_number_of_pieces_and_any_order_are_put_together_right() {
    let runtime = runtime();
    let cuts = || proptest::collection::vec(any::<usize>(), 0..12);
    let contents = pattern(3 * 65_536, 8)[65_536 - 4096..65_536 + 4096].to_vec();
    let strategy = (cuts(), cuts()).prop_flat_map({
        let contents = contents.clone();
        move |(first, second)| {
            let mut chunks = cut(1, 0, &contents[..4096], &first);
            chunks.extend(cut(2, 4096, &contents[4096..], &second));
            chunks.push(status_chunk(1, 3, CONTEXT, &[(4096, 0), (SIZE as u32 - 4096, 3)]));
            Just(chunks).prop_shuffle()
        }
    });
    let result = TestRunner::new(config(300)).run(&strategy, |mut chunks| {
        chunks.extend([chunk(1, 0, 1, 0, &[]), chunk(1, 0, 2, 0, &[])]);
        let (first, second, extents) = runtime.block_on(ask(chunks.concat()));
        prop_assert!(first.unwrap() == contents[..4096]);
        prop_assert!(second.unwrap() == contents[4096..]);
        prop_assert_eq!(extents.unwrap().len(), 2);
        Ok(())
    });
    result.unwrap();
}

#[test]
fn each_breach_is_named_and_ends_the_connection() {
    let whole = |cookie: u64| data_chunk(1, cookie, (cookie - 1) * 4096, &[1; 4096]);
    let cases: Vec<(&str, Vec<u8>)> = vec![
        ("magic", vec![0; 64]),
        ("nothing asked", whole(9)),
        ("nothing asked", [whole(1), whole(1)].concat()),
        ("past what was asked", data_chunk(1, 1, 1, &[1; 4096])),
        ("before what was asked", data_chunk(1, 2, 4095, &[1; 2])),
        ("past what was asked", hole_chunk(1, 1, 0, u32::MAX)),
        ("overlapping", [data_chunk(0, 1, 0, &[1; 10]), hole_chunk(0, 1, 9, 10)].concat()),
        ("parts missing", data_chunk(1, 1, 0, &[1; 4095])),
        ("parts missing", chunk(1, 0, 1, 0, &[])),
        ("empty chunk", hole_chunk(0, 1, 0, 0)),
        ("no place", data_chunk(1, 1, 0, &[])),
        ("no place", data_chunk(1, 3, 0, &[1; 10])),
        ("no place", chunk(0, 0, 1, 0, &[])),
        ("no place", chunk(1, 17, 1, u32::MAX, &[])),
        ("past what was asked", chunk(1, 1, 1, u32::MAX, &[0; 8])),
        ("malformed status", chunk(1, 5, 3, u32::MAX, &[])),
        ("malformed status", chunk(1, 5, 3, 4 + 8 * (1 << 20) + 8, &[])),
        ("malformed status", status_chunk(1, 3, CONTEXT, &[])),
        ("empty extent", status_chunk(1, 3, CONTEXT, &[(512, 0), (0, 1)])),
        ("without the context", status_chunk(1, 3, CONTEXT + 1, &[(512, 0)])),
        ("two statuses", [status_chunk(0, 3, CONTEXT, &[(512, 0)]), status_chunk(0, 3, CONTEXT, &[(512, 0)])].concat()),
        ("extents past", status_chunk(1, 3, CONTEXT, &[(SIZE as u32, 0), (512, 1)])),
        ("an error of", chunk(1, 0x8001, 1, u32::MAX, &[])),
        ("cut off", chunk(1, 0x8001, 1, 6, &[0, 0, 0, 5, 0xff, 0xff])),
        ("a simple reply to a read", [&0x6744_6698u32.to_be_bytes()[..], &[0; 4], &1u64.to_be_bytes()].concat()),
        ("the server closed it", vec![]),
        ("the server closed it", whole(1)[..100].to_vec()),
    ];
    let runtime = runtime();
    for (expected, script) in cases {
        let (first, second, extents) = runtime.block_on(ask(script));
        let errors = [first.err(), second.err(), extents.err()];
        let last = errors.iter().flatten().last().unwrap().to_string();
        assert!(last.contains(expected), "{expected}: {last}");
    }
}

#[test]
fn an_error_for_one_request_leaves_the_others_alone() {
    let error = chunk(1, 0x8001, 1, 10, &[&5u32.to_be_bytes()[..], &4u16.to_be_bytes(), b"disk"].concat());
    let script = [
        error,
        hole_chunk(1, 2, 4096, 4096),
        // more than was asked for in the last extent is allowed; a context nobody asked for is skipped
        status_chunk(0, 3, CONTEXT + 1, &[(1, 1), (1, 2)]),
        status_chunk(1, 3, CONTEXT, &[(4096, 0), (u32::MAX, 3)]),
    ];
    let (first, second, extents) = runtime().block_on(ask(script.concat()));
    let error = first.unwrap_err();
    assert_eq!(error.code(), Some(nbd::ErrorCode::Io));
    assert!(error.to_string().contains("(server says: disk)"), "{error}");
    assert!(second.unwrap().iter().all(|byte| *byte == 0));
    let extents: Vec<_> = extents.unwrap().iter().map(|extent| (extent.offset, extent.length, extent.flags)).collect();
    assert_eq!(extents, [(0, 4096, 0), (4096, SIZE - 4096, 3)]);
}

async fn shake_hands(script: &[u8]) -> Result<Client, Error> {
    let (ours, mut theirs) = duplex(1 << 16);
    let (incoming, outgoing) = tokio::io::split(ours);
    let options = Options::with_contexts([status::ALLOCATION]);
    let server = async {
        let _ = theirs.write_all(script).await;
        let _ = theirs.shutdown().await;
        let _ = theirs.read_to_end(&mut Vec::new()).await;
    };
    let client = async { Client::over(incoming, outgoing, "", &options).await };
    timeout(PATIENCE, async { tokio::join!(client, server).0 }).await.expect("the client hangs")
}

#[test]
fn no_handshake_makes_the_client_panic_or_hang() {
    let runtime = runtime();
    assert!(runtime.block_on(shake_hands(&handshake())).is_ok());
    // a true handshake with some bytes changed and the end cut off, or noise after the greeting
    let length = handshake().len();
    let twisted = (proptest::collection::vec((0..length, any::<u8>()), 0..4), 0..=length).prop_map(|(changes, end)| {
        let mut script = handshake();
        for (place, byte) in changes {
            script[place] = byte;
        }
        script.truncate(end);
        script
    });
    let noise = proptest::collection::vec(any::<u8>(), 0..300).prop_map(|noise| [greeting(), noise].concat());
    let result = TestRunner::new(config(6000)).run(&prop_oneof![twisted, noise], |script| {
        let _ = runtime.block_on(shake_hands(&script));
        Ok(())
    });
    result.unwrap();
}

#[test]
fn a_handshake_with_impossible_promises_is_refused() {
    let export = |size: u64| [&0u16.to_be_bytes()[..], &size.to_be_bytes(), &1u16.to_be_bytes()].concat();
    let block = |sizes: [u32; 3]| [&3u16.to_be_bytes()[..], &sizes.map(u32::to_be_bytes).concat()].concat();
    let before = [greeting(), option_reply(8, 1, &[]), option_reply(10, 1, &[])].concat();
    let go = |replies: &[Vec<u8>]| {
        let replies: Vec<u8> = replies.iter().flat_map(|data| option_reply(7, 3, data)).collect();
        [before.clone(), replies, option_reply(7, 1, &[])].concat()
    };
    let good = export(SIZE);
    let cases = [
        ("bytes", go(&[export(1 << 63)])),
        ("without a size", go(&[])),
        ("impossible", go(&[good.clone(), block([3, 4096, 65_536])])),
        ("impossible", go(&[good.clone(), block([0, 4096, 65_536])])),
        ("impossible", go(&[good.clone(), block([131_072, 131_072, 1 << 20])])),
        ("impossible", go(&[good.clone(), block([4096, 4096, 512])])),
        ("malformed", go(&[vec![0]])),
        ("a reply of", [before.clone(), option_reply(7, 3, &[])[..16].to_vec(), vec![0xff; 4]].concat()),
        ("endless", go(&vec![good.clone(); 2000])),
        ("TLS is required", [greeting(), option_reply(8, (1 << 31) + 5, b"")].concat()),
        ("greet", vec![0; 100]),
    ];
    let runtime = runtime();
    for (expected, script) in cases {
        let error = runtime.block_on(shake_hands(&script)).unwrap_err();
        assert!(error.to_string().contains(expected), "{expected}: {error}");
    }
    // a maximum beyond our own limit is no promise we have to use
    let client = runtime.block_on(shake_hands(&go(&[good, block([512, 4096, u32::MAX])]))).unwrap();
    assert_eq!(client.block_size().maximum, 32 << 20);
}

#[test]
fn a_server_of_the_time_before_go_is_opened_by_the_old_option() {
    let unsupported = |option| option_reply(option, (1 << 31) + 1, &[]);
    // it pads its answer with 124 zeroes, and does not know structured replies either
    let hello = [&b"NBDMAGICIHAVEOPT"[..], &1u16.to_be_bytes()].concat();
    let export = [&SIZE.to_be_bytes()[..], &3u16.to_be_bytes(), &[0; 124]].concat();
    let script = [hello, unsupported(8), unsupported(7), export].concat();
    let client = runtime().block_on(shake_hands(&script)).unwrap();
    assert_eq!((client.size(), client.read_only()), (SIZE, true));
    // and hangs up where the export is unknown, which is all it can say
    let error = runtime().block_on(shake_hands(&script[..script.len() - 134])).unwrap_err();
    assert!(matches!(error, Error::Refused { reason: "no such export", .. }), "{error}");
}

async fn talk_to_server(server: &Server, script: &[u8]) {
    let (ours, mut theirs): (DuplexStream, DuplexStream) = duplex(1 << 16);
    let (incoming, outgoing) = tokio::io::split(ours);
    let client = async {
        let (mut from, mut to) = tokio::io::split(&mut theirs);
        let listen = async { from.read_to_end(&mut Vec::new()).await };
        let speak = async {
            let _ = to.write_all(script).await;
            let _ = to.shutdown().await;
        };
        let _ = tokio::join!(listen, speak);
    };
    let both = async { tokio::join!(server.serve(incoming, outgoing), client) };
    timeout(PATIENCE, both).await.expect("the server hangs");
}

fn any_option() -> impl Strategy<Value = Vec<u8>> {
    let noise = || proptest::collection::vec(any::<u8>(), 0..40);
    let name = || prop_oneof![Just(b"disk".to_vec()), noise()];
    let named = |(option, name, rest): (u32, Vec<u8>, Vec<u8>)| {
        let data = [&(name.len() as u32).to_be_bytes()[..], &name, &rest].concat();
        [&b"IHAVEOPT"[..], &option.to_be_bytes(), &(data.len() as u32).to_be_bytes(), &data].concat()
    };
    prop_oneof![
        noise(),
        (0u32..13, any::<u32>(), noise()).prop_map(|(option, length, data)| {
            [&b"IHAVEOPT"[..], &option.to_be_bytes(), &length.to_be_bytes(), &data].concat()
        }),
        (0u32..13, noise()).prop_map(|(option, data)| {
            [&b"IHAVEOPT"[..], &option.to_be_bytes(), &(data.len() as u32).to_be_bytes(), &data].concat()
        }),
        (6u32..11, name(), noise()).prop_map(named),
        (9u32..11, name(), any::<u16>(), noise()).prop_map(move |(option, name, count, noise)| {
            named((option, name, [&u32::from(count).to_be_bytes()[..], &noise].concat()))
        }),
    ]
}

fn any_request() -> impl Strategy<Value = Vec<u8>> {
    let edges = || prop_oneof![Just(SIZE), Just(SIZE - 1), Just(u64::MAX), any::<u64>()];
    let offset = || prop_oneof![4 => 0u64..SIZE, 1 => edges()];
    let length = || prop_oneof![8 => 0u32..70_000, 1 => Just(SIZE as u32), 1 => Just(u32::MAX), 1 => any::<u32>()];
    let flags = || prop_oneof![4 => Just(0u16), 2 => 0u16..32, 1 => any::<u16>()];
    (flags(), prop_oneof![8 => 0u16..9, 1 => any::<u16>()], offset(), length(), 0usize..70_000).prop_map(
        |(flags, command, offset, length, data)| {
            let head = [&0x2560_9513u32.to_be_bytes()[..], &flags.to_be_bytes(), &command.to_be_bytes()].concat();
            let mut request = [&head[..], &1u64.to_be_bytes(), &offset.to_be_bytes(), &length.to_be_bytes()].concat();
            // with as much data as a write says, mostly, so that the next request is understood
            let data = if command == 1 && length < 100_000 { length as usize } else { data };
            if command == 1 {
                request.resize(request.len() + data, 0x42);
            }
            request
        },
    )
}

#[test]
fn no_client_makes_the_server_panic_hang_or_leave_the_disk() {
    // the panic of an export or of a connection's task goes to this hook, wherever it happens
    let panics = Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let count = panics.clone();
    let default = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        count.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
        default(info);
    }));
    let runtime = runtime();
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("server.sock");
    let server = runtime.block_on(Server::bind(&Address::Unix(socket.clone()))).unwrap();
    // the disk in memory panics outside of its bounds
    let disk = Arc::new(Memory::new(vec![0; SIZE as usize]));
    server.add("disk", disk.clone());

    let options = proptest::collection::vec(any_option(), 0..8).prop_map(|options| options.concat());
    let flags = prop_oneof![9 => 0u32..4, 1 => any::<u32>()];
    let haggling = (flags, options).prop_map(|(flags, rest)| [&flags.to_be_bytes()[..], &rest].concat());
    // the dialects in which requests can come: plain, and structured with a context
    let go = [&b"IHAVEOPT"[..], &7u32.to_be_bytes(), &10u32.to_be_bytes(), &4u32.to_be_bytes(), b"disk\0\0"].concat();
    let context = [&4u32.to_be_bytes()[..], b"disk", &1u32.to_be_bytes(), &15u32.to_be_bytes(), b"base:allocation"];
    let context = context.concat();
    let structured = [&b"IHAVEOPT"[..], &8u32.to_be_bytes(), &[0; 4]].concat();
    let select = [&b"IHAVEOPT"[..], &10u32.to_be_bytes(), &(context.len() as u32).to_be_bytes(), &context].concat();
    let plain = [&3u32.to_be_bytes()[..], &go].concat();
    let full = [&3u32.to_be_bytes()[..], &structured, &select, &go].concat();
    let requests = proptest::collection::vec(any_request(), 0..10);
    let requesting = (prop_oneof![Just(plain), Just(full)], requests)
        .prop_map(|(handshake, requests)| [handshake, requests.concat()].concat());

    let result = TestRunner::new(config(6000)).run(&prop_oneof![haggling, requesting], |script| {
        runtime.block_on(talk_to_server(&server, &script));
        prop_assert_eq!(panics.load(std::sync::atomic::Ordering::SeqCst), 0);
        Ok(())
    });
    result.unwrap();
    for done in [&disk.writes, &disk.zeroes, &disk.trims, &disk.flushes] {
        assert!(done.load(std::sync::atomic::Ordering::SeqCst) > 10, "this test hardly reaches the disk");
    }
    runtime.block_on(async {
        let client = Client::connect(&Uri::unix(&socket, "disk"), &Options::default()).await.unwrap();
        client.write(0, Bytes::from_static(b"all is well")).await.unwrap();
        assert_eq!(client.read(0, 11).await.unwrap(), &b"all is well"[..]);
        client.disconnect().await;
        server.withdraw("disk").await;
        server.stop().await;
    });
}
