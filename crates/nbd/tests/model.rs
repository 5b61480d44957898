//! Our client and our server against a model of ten lines: a vector of bytes, and random operations in any order.
#![allow(clippy::unwrap_used, reason = "a helper of a test may panic as the test itself may")]

use std::sync::{Arc, Mutex};

use crate::peers::{Memory, server};
use async_trait::async_trait;
use bytes::Bytes;
use nbd::{BlockSize, Client, Error, ErrorCode, Export, Options, Uri, Zeroing, status};
use proptest::{prelude::*, test_runner::TestRunner};

const SIZE: usize = 300_000;

#[derive(Clone, Debug)]
enum Step {
    Read(usize, usize),
    Write(usize, usize, u8),
    WriteDurable(usize, usize, u8),
    Zero(usize, usize, bool),
    Trim(usize, usize),
    Status(usize, usize),
    Flush,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let range = || (0..SIZE, prop_oneof![1usize..10_000, 1usize..SIZE]);
    let step = prop_oneof![
        4 => range().prop_map(|(offset, length)| Step::Read(offset, length)),
        4 => (range(), 1u8..).prop_map(|((offset, length), byte)| Step::Write(offset, length, byte)),
        1 => (range(), 1u8..).prop_map(|((offset, length), byte)| Step::WriteDurable(offset, length, byte)),
        2 => (range(), any::<bool>()).prop_map(|((offset, length), no_hole)| Step::Zero(offset, length, no_hole)),
        1 => range().prop_map(|(offset, length)| Step::Trim(offset, length)),
        1 => range().prop_map(|(offset, length)| Step::Status(offset, length)),
        1 => Just(Step::Flush),
    ];
    proptest::collection::vec(step, 1..25)
}

/// The part of a range that lies on the disk and fits its blocks.
fn fitted(offset: usize, length: usize, minimum: usize) -> (usize, usize) {
    let start = offset / minimum * minimum;
    let end = (offset + length).min(SIZE) / minimum * minimum;
    (start, end.saturating_sub(start))
}

/// Bytes that differ along the way, so that a piece in the wrong place shows.
fn data(length: usize, byte: u8) -> Vec<u8> {
    (0..length).map(|index| byte.wrapping_add((index / 97) as u8) | 1).collect()
}

async fn apply(client: &Client, model: &mut [u8], step: &Step, minimum: usize) -> Result<(), TestCaseError> {
    match *step {
        Step::Read(offset, length) => {
            let length = length.min(SIZE - offset);
            let read = client.read(offset as u64, length as u32).await.unwrap();
            prop_assert!(read == model[offset..offset + length], "{step:?}");
        }
        Step::Write(offset, length, byte) | Step::WriteDurable(offset, length, byte) => {
            let (start, length) = fitted(offset, length, minimum);
            let data = data(length, byte);
            model[start..start + length].copy_from_slice(&data);
            let data = Bytes::from(data);
            match step {
                Step::Write(..) => client.write(start as u64, data).await.unwrap(),
                _ => client.write_durable(start as u64, data).await.unwrap(),
            }
        }
        Step::Zero(offset, length, no_hole) => {
            let (start, length) = fitted(offset, length, minimum);
            model[start..start + length].fill(0);
            client.zero(start as u64, length as u64, Zeroing { no_hole, fast: false }).await.unwrap();
        }
        Step::Trim(offset, length) => {
            let length = length.min(SIZE - offset);
            client.trim(offset as u64, length as u64).await.unwrap();
            // the disk in memory fills what is trimmed with 0xdd; a trim is shrunk to whole blocks
            let (start, end) = (offset.next_multiple_of(minimum), (offset + length) / minimum * minimum);
            if start < end {
                model[start..end].fill(0xdd);
            }
        }
        Step::Status(offset, length) => {
            let length = length.min(SIZE - offset);
            let extents = client.block_status(status::ALLOCATION, offset as u64, length as u64).await.unwrap();
            let mut position = offset as u64;
            for extent in &extents {
                prop_assert_eq!(extent.offset, position);
                let bytes = &model[extent.offset as usize..extent.end() as usize];
                prop_assert!(extent.flags == 0 || bytes.iter().all(|byte| *byte == 0), "{:?}", extent);
                position = extent.end();
            }
            prop_assert_eq!(position, (offset + length) as u64);
            prop_assert!(extents.windows(2).all(|pair| pair[0].flags != pair[1].flags));
        }
        Step::Flush => client.flush().await.unwrap(),
    }
    Ok(())
}

#[test]
fn any_sequence_of_operations_leaves_what_the_model_says() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let directory = tempfile::tempdir().unwrap();
    let (server, socket) = runtime.block_on(server(directory.path()));
    // a size that is a multiple of no block size larger than 32, and maxima that split nearly everything
    let blocks =
        prop_oneof![Just((1, 4096)), Just((1, 1000)), Just((32, 65_536)), Just((512, 512)), Just((4096, 20_480))];
    let mut runner = TestRunner::new(ProptestConfig { cases: 60, failure_persistence: None, ..Default::default() });
    let result = runner.run(&(blocks, steps()), |((minimum, maximum), steps)| {
        runtime.block_on(async {
            let block = BlockSize { minimum, preferred: 4096.min(maximum), maximum };
            let disk = Arc::new(Memory { block, ..Memory::new(vec![0; SIZE]) });
            server.add("disk", disk.clone());
            let options = Options::with_contexts([status::ALLOCATION]);
            let client = Client::connect(&Uri::unix(&socket, "disk"), &options).await.unwrap();
            let mut model = vec![0; SIZE];
            for step in &steps {
                apply(&client, &mut model, step, minimum as usize).await?;
            }
            prop_assert!(disk.contents() == model);
            client.disconnect().await;
            Ok(())
        })
    });
    result.unwrap();
    runtime.block_on(server.stop());
}

#[tokio::test(flavor = "multi_thread")]
async fn clones_that_work_at_the_same_time_do_not_mix_their_answers() {
    let directory = tempfile::tempdir().unwrap();
    let (server, socket) = server(directory.path()).await;
    let block = BlockSize { minimum: 1, preferred: 4096, maximum: 8192 };
    server.add("disk", Arc::new(Memory { block, ..Memory::new(vec![0; 1 << 20]) }));
    let client = Client::connect(&Uri::unix(&socket, "disk"), &Options::default()).await.unwrap();
    let workers: Vec<_> = (0..16u64)
        .map(|worker| {
            let client = client.clone();
            tokio::spawn(async move {
                for round in 0..40u64 {
                    let data = Bytes::from(data(60_000, (worker * 16 + round) as u8));
                    client.write(worker * 65_536, data.clone()).await.unwrap();
                    assert!(client.read(worker * 65_536, 60_000).await.unwrap() == data);
                }
            })
        })
        .collect();
    for worker in workers {
        worker.await.unwrap();
    }
    server.stop().await;
}

/// A disk of zeroes that remembers which ranges were read and written.
#[derive(Default)]
struct Diary {
    ranges: Mutex<Vec<(u64, u64)>>,
}

#[async_trait]
impl Export for Diary {
    fn size(&self) -> u64 {
        SIZE as u64
    }

    fn read_only(&self) -> bool {
        false
    }

    async fn read(&self, offset: u64, length: u32) -> Result<Bytes, ErrorCode> {
        self.ranges.lock().unwrap().push((offset, u64::from(length)));
        Ok(Bytes::from(data(length as usize, 1)))
    }

    async fn write(&self, offset: u64, data: Bytes) -> Result<(), ErrorCode> {
        self.ranges.lock().unwrap().push((offset, data.len() as u64));
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_request_crosses_the_cut() {
    const CUT: u64 = 65_536;
    let directory = tempfile::tempdir().unwrap();
    let (server, socket) = server(directory.path()).await;
    let diary = Arc::new(Diary::default());
    server.add("disk", diary.clone());
    let uri = Uri::unix(&socket, "disk");
    let options = Options { cut_at: Some(CUT as u32), ..Options::default() };
    let client = Client::connect(&uri, &options).await.unwrap();
    for (offset, length) in [(0, SIZE), (1, 200_000), (65_535, 2), (65_536, 65_536), (100_000, 10)] {
        assert_eq!(client.read(offset, length as u32).await.unwrap().len(), length);
        client.write(offset, Bytes::from(vec![1; length])).await.unwrap();
    }
    let ranges = diary.ranges.lock().unwrap().clone();
    assert_eq!(ranges.len(), 2 * (5 + 4 + 2 + 1 + 1));
    for (offset, length) in ranges {
        assert_eq!(offset / CUT, (offset + length - 1) / CUT, "{length} bytes at {offset}");
    }
    for cut_at in [Some(0), Some(1000)] {
        let error = Client::connect(&uri, &Options { cut_at, ..Options::default() }).await.unwrap_err();
        assert!(matches!(error, Error::Unsupported(_)), "{error}");
    }
    server.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_nobody_waits_for_disturbs_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let (server, socket) = server(directory.path()).await;
    let contents = data(1 << 20, 3);
    server.add("disk", Arc::new(Memory::new(contents.clone())));
    let client = Client::connect(&Uri::unix(&socket, "disk"), &Options::default()).await.unwrap();
    // more than there are places for requests in flight: none may leak
    for round in 0..500u64 {
        let offset = round * 100;
        tokio::select! {
            biased;
            _ = client.read(offset, 70_000) => (),
            _ = tokio::task::yield_now() => (),
        }
    }
    for round in 0..10usize {
        assert!(client.read(round as u64 * 5000, 4096).await.unwrap() == contents[round * 5000..][..4096]);
    }
    let error = client.read((1 << 20) - 1, 2).await.unwrap_err();
    assert!(matches!(error, Error::OutOfBounds { size: 0x10_0000, .. }), "{error}");
    server.stop().await;
}
