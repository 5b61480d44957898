//! Our client against our server: what is written is what is read, whatever the order and the sizes.
#![allow(clippy::unwrap_used, reason = "a helper of a test may panic as the test itself may")]

use std::sync::{Arc, atomic::Ordering};

use crate::peers::{Memory, pattern, server};
use bytes::Bytes;
use nbd::{Client, Options, Uri, status};

#[tokio::test(flavor = "multi_thread")]
async fn what_is_written_is_read_over_both_kinds_of_socket() {
    let directory = tempfile::tempdir().unwrap();
    let (over_unix, socket) = server(directory.path()).await;
    let over_tcp = nbd::Server::bind(&nbd::Address::Tcp("127.0.0.1:0".parse().unwrap())).await.unwrap();
    for server in [over_unix, over_tcp] {
        let disk = Arc::new(Memory::new(vec![0; 1 << 20]));
        server.add("disk", disk.clone());
        let uri = Uri { address: server.local_address(), export: "disk".into() };
        let client = Client::connect(&uri, &Options::with_contexts([status::ALLOCATION])).await.unwrap();
        assert_eq!(client.size(), 1 << 20);
        assert!(
            !client.read_only() && client.can_zero() && client.can_trim() && client.can_flush() && client.can_fua()
        );
        let data = Bytes::from(pattern(70_001, 7));
        client.write(4099, data.clone()).await.unwrap();
        assert_eq!(client.read(4099, 70_001).await.unwrap(), data);
        assert_eq!(client.read(0, 4099).await.unwrap(), vec![0; 4099]);
        client.write_zeroes(5000, 1000).await.unwrap();
        assert_eq!(client.read(5000, 1000).await.unwrap(), vec![0; 1000]);
        assert_eq!((disk.zeroes.load(Ordering::SeqCst), disk.trims.load(Ordering::SeqCst)), (1, 0));
        client.flush().await.unwrap();
        assert_eq!(disk.flushes.load(Ordering::SeqCst), 1);
        let extents = client.block_status(status::ALLOCATION, 0, 1 << 20).await.unwrap();
        assert_eq!(extents.iter().map(|e| e.length).sum::<u64>(), 1 << 20);
        assert!(extents.len() > 1);
        client.disconnect().await;
        server.stop().await;
    }
    assert!(!socket.exists());
}
