//! What happens when the other side, the disk or the operator interrupts: who is told what, and who is not disturbed.
#![allow(clippy::unwrap_used, reason = "a helper of a test may panic as the test itself may")]

use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use crate::peers::{Memory, pattern, server};
use async_trait::async_trait;
use bytes::Bytes;
use nbd::{Address, Client, Error, ErrorCode, Export, Options, Server, StatusExtent, Uri, status};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UnixStream,
    sync::Semaphore,
    time::timeout,
};

/// A disk of zeroes whose reads wait until the test lets them pass, and which fails in chosen ways.
struct Gate {
    passes: Semaphore,
    inside: AtomicUsize,
    most_inside: AtomicUsize,
    done: AtomicU64,
}

impl Gate {
    fn closed() -> Arc<Gate> {
        Arc::new(Gate {
            passes: Semaphore::new(0),
            inside: AtomicUsize::new(0),
            most_inside: AtomicUsize::new(0),
            done: AtomicU64::new(0),
        })
    }

    async fn pass(&self) {
        let inside = self.inside.fetch_add(1, Ordering::SeqCst) + 1;
        self.most_inside.fetch_max(inside, Ordering::SeqCst);
        self.passes.acquire().await.unwrap().forget();
        self.inside.fetch_sub(1, Ordering::SeqCst);
        self.done.fetch_add(1, Ordering::SeqCst);
    }
}

/// Offsets at which the gate's disk misbehaves.
const PANICS: u64 = 1 << 20;
const GIVES_TOO_LITTLE: u64 = 2 << 20;
const FAILS: u64 = 3 << 20;

#[async_trait]
impl Export for Gate {
    fn size(&self) -> u64 {
        1 << 30
    }

    fn read_only(&self) -> bool {
        false
    }

    async fn read(&self, offset: u64, length: u32) -> Result<Bytes, ErrorCode> {
        match offset {
            PANICS => panic!("the export panics, as this test wants it to"),
            GIVES_TOO_LITTLE => return Ok(Bytes::from_static(&[1; 10])),
            FAILS => return Err(ErrorCode::NoMemory),
            _ => self.pass().await,
        }
        Ok(Bytes::from(vec![1; length as usize]))
    }

    async fn write(&self, _: u64, _: Bytes) -> Result<(), ErrorCode> {
        self.pass().await;
        Ok(())
    }

    async fn allocation(&self, offset: u64, length: u64) -> Result<Vec<StatusExtent>, ErrorCode> {
        let extent = |offset, length| StatusExtent { offset, length, flags: 0 };
        match offset {
            PANICS => Ok(Vec::new()),
            GIVES_TOO_LITTLE => Ok(vec![extent(offset, 100), extent(offset + 200, length)]),
            FAILS => Err(ErrorCode::Io),
            // far past what was asked for
            _ => Ok(vec![extent(offset, u64::MAX - offset)]),
        }
    }
}

async fn connect(socket: &Path, export: &str) -> Client {
    Client::connect(&Uri::unix(socket, export), &Options::with_contexts([status::ALLOCATION])).await.unwrap()
}

async fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    for _ in 0..3000 {
        if condition() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("not in 30 s: {what}");
}

/// A raw connection on which the handshake is done, without structured replies.
async fn raw(socket: &Path, export: &str) -> UnixStream {
    let mut stream = UnixStream::connect(socket).await.unwrap();
    let mut greeting = [0; 18];
    stream.read_exact(&mut greeting).await.unwrap();
    let mut hello = 3u32.to_be_bytes().to_vec();
    hello.extend_from_slice(b"IHAVEOPT");
    hello.extend_from_slice(&1u32.to_be_bytes());
    hello.extend_from_slice(&(export.len() as u32).to_be_bytes());
    hello.extend_from_slice(export.as_bytes());
    stream.write_all(&hello).await.unwrap();
    let mut answer = [0; 10];
    stream.read_exact(&mut answer).await.unwrap();
    stream
}

fn request(command: u16, cookie: u64, offset: u64, length: u32) -> Vec<u8> {
    let mut bytes = 0x2560_9513u32.to_be_bytes().to_vec();
    bytes.extend_from_slice(&0u16.to_be_bytes());
    bytes.extend_from_slice(&command.to_be_bytes());
    bytes.extend_from_slice(&cookie.to_be_bytes());
    bytes.extend_from_slice(&offset.to_be_bytes());
    bytes.extend_from_slice(&length.to_be_bytes());
    bytes
}

#[tokio::test(flavor = "multi_thread")]
async fn sixteen_requests_of_a_connection_are_served_at_a_time_and_no_more() {
    let directory = tempfile::tempdir().unwrap();
    let (server, socket) = server(directory.path()).await;
    let gate = Gate::closed();
    server.add("gate", gate.clone());
    let client = connect(&socket, "gate").await;
    let reads: Vec<_> = (0..40u64)
        .map(|n| {
            let client = client.clone();
            tokio::spawn(async move { client.read(n * 512, 512).await })
        })
        .collect();
    eventually("16 are inside", || gate.inside.load(Ordering::SeqCst) == 16).await;
    // another connection is not held up by this one
    let other = connect(&socket, "gate").await;
    let waiting = tokio::spawn(async move { other.read(0, 1).await });
    eventually("the other's is inside", || gate.inside.load(Ordering::SeqCst) == 17).await;
    gate.passes.add_permits(41);
    for read in reads {
        assert_eq!(read.await.unwrap().unwrap(), vec![1; 512]);
    }
    waiting.await.unwrap().unwrap();
    assert!(gate.most_inside.load(Ordering::SeqCst) <= 17);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_more_than_64_mebibytes_of_a_connection_are_held() {
    let directory = tempfile::tempdir().unwrap();
    let (server, socket) = server(directory.path()).await;
    let gate = Gate::closed();
    server.add("gate", gate.clone());
    let client = connect(&socket, "gate").await;
    let data = Bytes::from(vec![5; 32 << 20]);
    let writes: Vec<_> = (0..4u64)
        .map(|n| {
            let (client, data) = (client.clone(), data.clone());
            tokio::spawn(async move { client.write(n << 25, data).await })
        })
        .collect();
    eventually("two are inside", || gate.inside.load(Ordering::SeqCst) == 2).await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(gate.inside.load(Ordering::SeqCst), 2);
    gate.passes.add_permits(4);
    for write in writes {
        write.await.unwrap().unwrap();
    }
    assert_eq!(gate.most_inside.load(Ordering::SeqCst), 2);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_export_that_misbehaves_costs_its_own_request_or_connection_only() {
    let directory = tempfile::tempdir().unwrap();
    let (server, socket) = server(directory.path()).await;
    let contents = pattern(1 << 16, 1);
    server.add("gate", Gate::closed());
    server.add("good", Arc::new(Memory::new(contents.clone())));
    let (client, good) = (connect(&socket, "gate").await, connect(&socket, "good").await);
    assert_eq!(client.read(GIVES_TOO_LITTLE, 512).await.unwrap_err().code(), Some(ErrorCode::Io));
    let error = client.read(FAILS, 512).await.unwrap_err();
    assert!(matches!(&error, Error::Remote { message, .. } if message.contains("ENOMEM")), "{error}");
    for nonsense in [PANICS, GIVES_TOO_LITTLE, FAILS] {
        let error = client.block_status(status::ALLOCATION, nonsense, 4096).await.unwrap_err();
        assert_eq!(error.code(), Some(ErrorCode::Io), "{nonsense}");
    }
    let clipped = client.block_status(status::ALLOCATION, 512, 1024).await.unwrap();
    assert_eq!(clipped, [StatusExtent { offset: 512, length: 1024, flags: 0 }]);
    assert_eq!(client.flush().await.unwrap_err().code(), Some(ErrorCode::NotPermitted));
    let error = timeout(Duration::from_secs(20), client.read(PANICS, 512)).await.unwrap().unwrap_err();
    assert!(matches!(error, Error::Lost { .. }), "{error}");
    assert!(good.read(0, 1 << 16).await.unwrap() == contents);
    connect(&socket, "gate").await.disconnect().await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_dies_in_the_middle_of_a_write_writes_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let (server, socket) = server(directory.path()).await;
    let disk = Arc::new(Memory::new(pattern(1 << 20, 2)));
    server.add("disk", disk.clone());
    let other = connect(&socket, "disk").await;
    let mut dying = raw(&socket, "disk").await;
    eventually("both are connected", || server.connections("disk") == 2).await;
    dying.write_all(&request(1, 1, 0, 65_536)).await.unwrap();
    dying.write_all(&[9; 30_000]).await.unwrap();
    drop(dying);
    eventually("the dead one is gone", || server.connections("disk") == 1).await;
    assert!(disk.contents() == pattern(1 << 20, 2));
    assert!(other.read(0, 4096).await.unwrap() == pattern(1 << 20, 2)[..4096]);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn garbage_ends_the_connection_it_came_on_and_no_other() {
    let directory = tempfile::tempdir().unwrap();
    let (server, socket) = server(directory.path()).await;
    server.add("disk", Arc::new(Memory::new(pattern(1 << 20, 2))));
    let client = connect(&socket, "disk").await;
    for garbage in [&[0xff; 4000][..], b"GET / HTTP/1.1\r\nHost: disk\r\n\r\n"] {
        let mut stream = UnixStream::connect(&socket).await.unwrap();
        // it may be hung up on while still talking
        let _ = stream.write_all(garbage).await;
        let mut rest = Vec::new();
        let _ = timeout(Duration::from_secs(20), stream.read_to_end(&mut rest)).await.unwrap();
    }
    let mut stream = raw(&socket, "disk").await;
    stream.write_all(&[0xee; 28]).await.unwrap();
    let mut rest = Vec::new();
    let _ = timeout(Duration::from_secs(20), stream.read_to_end(&mut rest)).await.unwrap();
    assert!(rest.is_empty());
    assert!(client.read(0, 4096).await.is_ok());
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_the_protocol_forbids_get_the_error_it_names() {
    let directory = tempfile::tempdir().unwrap();
    let (server, socket) = server(directory.path()).await;
    let block = nbd::BlockSize { minimum: 512, preferred: 4096, maximum: 65_536 };
    server.add("disk", Arc::new(Memory { block, ..Memory::new(vec![1; 1 << 20]) }));
    server.add("view", Arc::new(Memory::read_only(vec![1; 1 << 20])));
    const MIB: u64 = 1 << 20;
    let (perm, invalid, full, overflow) = (1, 22, 28, 75);
    // command, offset, length, flags, data sent, error expected
    let on_the_disk = [
        (0, MIB, 512, 0, 0, invalid),
        (0, u64::MAX - 511, 512, 0, 0, invalid),
        (0, 1, 512, 0, 0, invalid),
        (0, 0, 1 << 26, 0, 0, overflow),
        (0, 0, 131_072, 0, 0, overflow),
        (1, MIB - 512, 1024, 0, 1024, full),
        (1, 0, 100, 0, 100, invalid),
        (1, 0, 131_072, 0, 131_072, invalid),
        (1, 0, 34 << 20, 0, 34 << 20, full),
        (3, 0, 0, 0, 0, 0),
        (4, MIB, 512, 0, 0, invalid),
        (6, MIB, 512, 0, 0, full),
        (6, 0, 512, 1 << 4, 0, invalid),
        (6, 0, 512, 1 << 1, 0, 0),
        (5, 0, 512, 0, 0, invalid),
        (99, 0, 0, 0, 0, invalid),
        (0, 0, 512, 1 << 9, 0, invalid),
        (7, 0, 512, 0, 0, invalid),
    ];
    let on_the_view = [(1, 0, 512, 0, 512, perm), (4, 0, 512, 0, 0, perm), (6, 0, 512, 0, 0, perm), (3, 0, 0, 0, 0, 0)];
    for (export, cases) in [("disk", &on_the_disk[..]), ("view", &on_the_view)] {
        let mut stream = raw(&socket, export).await;
        for &(command, offset, length, flags, data, error) in cases {
            let mut message = request(command, 77, offset, length);
            message[4..6].copy_from_slice(&u16::to_be_bytes(flags));
            message.resize(message.len() + data, 0);
            stream.write_all(&message).await.unwrap();
            let mut reply = [0; 16];
            timeout(Duration::from_secs(20), stream.read_exact(&mut reply)).await.unwrap().unwrap();
            assert_eq!(&reply[..4], &0x6744_6698u32.to_be_bytes());
            let what = format!("{export}: command {command} offset {offset} length {length} flags {flags}");
            // a write longer than any may be is refused before its bounds are looked at
            let error = if length == 34 << 20 { invalid } else { error };
            assert_eq!(u32::from_be_bytes(reply[4..8].try_into().unwrap()), error, "{what}");
            assert_eq!(u64::from_be_bytes(reply[8..].try_into().unwrap()), 77, "{what}");
        }
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn removing_an_export_ends_its_clients_and_waits_for_what_is_inside() {
    let directory = tempfile::tempdir().unwrap();
    let (server, socket) = server(directory.path()).await;
    let gate = Gate::closed();
    server.add("gate", gate.clone());
    server.add("good", Arc::new(Memory::new(vec![3; 4096])));
    let (client, good) = (connect(&socket, "gate").await, connect(&socket, "good").await);
    let read = tokio::spawn({
        let client = client.clone();
        async move { client.read(0, 512).await }
    });
    eventually("it is inside", || gate.inside.load(Ordering::SeqCst) == 1).await;
    let withdrawal = tokio::spawn({
        let server = server.clone();
        async move { server.withdraw("gate").await }
    });
    eventually("it is no longer offered", || server.names() == ["good"]).await;
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert!(!withdrawal.is_finished());
    gate.passes.add_permits(1);
    timeout(Duration::from_secs(20), withdrawal).await.unwrap().unwrap();
    assert_eq!(gate.done.load(Ordering::SeqCst), 1);
    // what was begun was answered, what comes now is not
    assert_eq!(read.await.unwrap().unwrap(), vec![1; 512]);
    eventually("the client notices", || !client.is_connected()).await;
    assert!(matches!(client.read(0, 1).await, Err(Error::Lost { .. })));
    let error = Client::connect(&Uri::unix(&socket, "gate"), &Options::default()).await.unwrap_err();
    assert!(matches!(error, Error::Refused { .. }), "{error}");
    assert!(good.read(0, 4096).await.is_ok());

    // an export that takes over a name ends the clients of the former one
    server.add("good", Arc::new(Memory::new(vec![4; 4096])));
    eventually("the client of the former notices", || !good.is_connected()).await;
    assert_eq!(connect(&socket, "good").await.read(0, 1).await.unwrap(), &[4][..]);
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn stopping_ends_everybody_even_a_client_that_does_not_listen() {
    let directory = tempfile::tempdir().unwrap();
    let (server, socket) = server(directory.path()).await;
    server.add("disk", Arc::new(Memory::new(pattern(32 << 20, 1))));
    let client = connect(&socket, "disk").await;
    // asks for a lot, and never reads it
    let mut deaf = raw(&socket, "disk").await;
    for cookie in 0..4 {
        deaf.write_all(&request(0, cookie, 0, 30 << 20)).await.unwrap();
    }
    let silent = UnixStream::connect(&socket).await.unwrap();
    eventually("all are connected", || server.connections("disk") == 2).await;
    timeout(Duration::from_secs(30), server.clone().stop()).await.unwrap();
    assert!(!socket.exists());
    eventually("the client notices", || !client.is_connected()).await;
    drop((deaf, silent));
    let error = Client::connect(&Uri::unix(&socket, "disk"), &Options::default()).await.unwrap_err();
    assert!(matches!(error, Error::Connect { .. }), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn dropping_the_last_handle_of_a_server_ends_it() {
    let directory = tempfile::tempdir().unwrap();
    let (server, socket) = server(directory.path()).await;
    server.add("disk", Arc::new(Memory::new(vec![1; 4096])));
    let client = connect(&socket, "disk").await;
    let clone = server.clone();
    drop(server);
    assert!(client.read(0, 1).await.is_ok());
    drop(clone);
    eventually("the client notices", || !client.is_connected()).await;
    eventually("the socket is gone", || !socket.exists()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_socket_of_a_dead_server_is_replaced_and_that_of_a_living_one_is_not() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("server.sock");
    let address = Address::Unix(socket.clone());
    // a dead server leaves the file behind
    drop(std::os::unix::net::UnixListener::bind(&socket).unwrap());
    assert!(socket.exists());
    let server = Server::bind(&address).await.unwrap();
    let error = Server::bind(&address).await.unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::AddrInUse);
    assert!(Client::list(&address).await.unwrap().is_empty());
    // a server that has lost its path to another does not take the other's file along
    std::fs::remove_file(&socket).unwrap();
    let heir = Server::bind(&address).await.unwrap();
    server.stop().await;
    assert!(Client::list(&address).await.unwrap().is_empty());
    heir.stop().await;
    assert!(!socket.exists());
    // what is no socket is never removed
    std::fs::write(&socket, "precious").unwrap();
    assert!(Server::bind(&address).await.is_err());
    assert_eq!(std::fs::read_to_string(&socket).unwrap(), "precious");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disconnect_lets_the_server_finish_what_is_in_flight() {
    let directory = tempfile::tempdir().unwrap();
    let (server, socket) = server(directory.path()).await;
    let gate = Gate::closed();
    server.add("gate", gate.clone());
    let client = connect(&socket, "gate").await;
    let write = tokio::spawn({
        let client = client.clone();
        async move { client.write(0, Bytes::from_static(&[1; 512])).await }
    });
    eventually("it is inside", || gate.inside.load(Ordering::SeqCst) == 1).await;
    let goodbye = tokio::spawn(client.clone().disconnect());
    tokio::time::sleep(Duration::from_millis(50)).await;
    gate.passes.add_permits(1);
    timeout(Duration::from_secs(20), goodbye).await.unwrap().unwrap();
    write.await.unwrap().unwrap();
    let error = client.read(0, 1).await.unwrap_err();
    assert!(matches!(&error, Error::Lost { reason } if reason.contains("closed by us")), "{error}");
    eventually("the server forgot it", || server.connections("gate") == 0).await;

    // dropping the last clone is a goodbye, too
    let client = connect(&socket, "gate").await;
    eventually("it is connected", || server.connections("gate") == 1).await;
    drop(client);
    eventually("the server forgot it", || server.connections("gate") == 0).await;
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_never_greets_is_given_up_in_time() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("silent.sock");
    let _listener = tokio::net::UnixListener::bind(&socket).unwrap();
    let options = Options { timeout: Duration::from_millis(300), ..Options::default() };
    let uri = Uri::unix(&socket, "");
    let error = timeout(Duration::from_secs(20), Client::connect(&uri, &options)).await.unwrap().unwrap_err();
    assert!(matches!(error, Error::TimedOut { .. }), "{error}");
}
