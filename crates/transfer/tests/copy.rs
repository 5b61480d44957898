//! Copies between two disks of this process: what travels, what is left when one is broken off, and what is refused.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use component::{Link, LinkError};
use protocol::fault::code;
use protocol::frame::Frame;
use protocol::leaf::LeafSize;
use protocol::order::Sync;
use protocol::session::Message;
use protocol::{BLOCK, BlockMap, Fault};
use replica::{Disk, FileDisk};
use tokio::sync::mpsc;
use transfer::Reader;
use transfer::copy::{Copied, Failure, Mark, Receiving, Taken, Wish, fetch, give, send};

/// Several stretches, and an end inside a block.
const SIZE: u64 = (40 << 20) + 12_288;

/// Numbers that are the same in every run.
struct Dice(u64);

impl Dice {
    fn roll(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
}

/// A disk that fails after so many blocks were written.
struct Failing {
    disk: FileDisk,
    writes: AtomicU64,
}

impl Disk for Failing {
    fn size(&self) -> u64 {
        self.disk.size()
    }
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.disk.read_at(offset, buffer)
    }
    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let blocks = (bytes.len() as u64).div_ceil(BLOCK);
        match self.writes.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(blocks)) {
            Ok(_) => self.disk.write_at(offset, bytes),
            Err(_) => Err(io::ErrorKind::StorageFull.into()),
        }
    }
    fn write_zeroes(&self, offset: u64, length: u64) -> io::Result<()> {
        self.disk.write_zeroes(offset, length)
    }
    fn flush(&self) -> io::Result<()> {
        self.disk.flush()
    }
    fn data(&self, offset: u64, length: u64) -> io::Result<BlockMap> {
        self.disk.data(offset, length)
    }
}

/// Two disk images, one of which becomes the other.
struct Pair {
    directory: tempfile::TempDir,
    dice: Dice,
    /// Blocks that the target takes before it fails.
    writes: u64,
    /// Frames of data after which links break, the last one first.
    breaks: Mutex<Vec<usize>>,
    /// Whether it is the target that dials.
    fetched: bool,
}

impl Pair {
    /// A source of which a third are holes and a third is zeroes that are written; no target.
    fn new(seed: u64) -> Pair {
        let (directory, breaks) = (tempfile::tempdir().unwrap(), Mutex::default());
        let mut pair = Pair { directory, dice: Dice(seed), writes: u64::MAX, breaks, fetched: false };
        let disk = FileDisk::create(&pair.source(), SIZE).unwrap();
        for at in (0..SIZE).step_by(BLOCK as usize) {
            let length = BLOCK.min(SIZE - at) as usize;
            let byte = pair.dice.roll() as u8 | 1;
            match pair.dice.roll() % 3 {
                0 => {}
                1 => disk.write_at(at, &vec![0; length]).unwrap(),
                _ => disk.write_at(at, &vec![byte; length]).unwrap(),
            }
        }
        pair
    }

    fn source(&self) -> PathBuf {
        self.directory.path().join("source.raw")
    }

    fn target(&self) -> PathBuf {
        self.directory.path().join("target.raw")
    }

    /// Changes so many whole blocks of the source by a byte each; which.
    fn change(&mut self, blocks: u64) -> std::collections::BTreeSet<u64> {
        let disk = FileDisk::open(&self.source()).unwrap();
        let mut changed = std::collections::BTreeSet::new();
        while (changed.len() as u64) < blocks {
            changed.insert(self.dice.roll() % (SIZE / BLOCK));
        }
        for block in &changed {
            let mut bytes = vec![0; BLOCK as usize];
            disk.read_at(block * BLOCK, &mut bytes).unwrap();
            bytes[(self.dice.roll() % BLOCK) as usize] ^= 128;
            disk.write_at(block * BLOCK, &bytes).unwrap();
        }
        changed
    }

    async fn copy(&self, sync: Sync) -> Result<Copied, Failure> {
        self.copy_as(Wish { sync, verify: true, dry_run: false, leaf_bytes: LeafSize::default() }).await
    }

    async fn copy_as(&self, wish: Wish) -> Result<Copied, Failure> {
        let (path, writes) = (self.target(), self.writes);
        let open = move |size, _| -> Result<Arc<dyn Disk>, Fault> {
            let disk = if path.exists() { FileDisk::open(&path) } else { FileDisk::create(&path, size) }.unwrap();
            Ok(Arc::new(Failing { disk, writes: AtomicU64::new(writes) }))
        };
        let mut receiving = Receiving::new(Box::new(open), Mark::beside(&self.target()));
        if self.fetched {
            return self.fetch_to(&mut receiving, wish).await;
        }
        self.send_to(Arc::new(tokio::sync::Mutex::new(receiving)), wish).await
    }

    /// The next link with its end at the target.
    fn link(&self) -> (Link, Link) {
        let (near, far) = Link::pair();
        match self.breaks.lock().unwrap().pop() {
            None => (near, far),
            Some(frames) => (near, breaks_after(frames, far)),
        }
    }

    fn reader(&self) -> (Reader, Arc<AtomicU64>) {
        let read = Arc::new(AtomicU64::new(0));
        let disk = Arc::new(FileDisk::read_only(&self.source()).unwrap());
        (Reader::disk((0, "disk".parse().unwrap()), disk, read.clone()), read)
    }

    async fn fetch_to(&self, receiving: &mut Receiving, wish: Wish) -> Result<Copied, Failure> {
        let (tell, dialled) = mpsc::unbounded_channel::<Link>();
        let dialled = tokio::sync::Mutex::new(dialled);
        let giving = async {
            let next = async || {
                let mut link = dialled.lock().await.recv().await.unwrap();
                let wished = link.incoming.message("a wish").await?;
                assert_eq!(
                    wished,
                    Message::Fetch {
                        sync: wish.sync,
                        verify: wish.verify,
                        dry_run: wish.dry_run,
                        leaf_bytes: wish.leaf_bytes
                    }
                );
                Ok(link)
            };
            // One that failed is given again, to whoever dials next.
            while give(self.reader(), next, wish, &|_, _| {}).await.is_err() {}
            std::future::pending::<Copied>().await
        };
        let dial = async || {
            let (near, far) = self.link();
            tell.send(near).unwrap();
            Ok(far)
        };
        tokio::select! {
            copied = fetch(receiving, dial, wish) => copied,
            _ = giving => unreachable!("it waits for ever"),
        }
    }

    async fn send_to(&self, receiving: Arc<tokio::sync::Mutex<Receiving>>, wish: Wish) -> Result<Copied, Failure> {
        let ends = Mutex::new(Vec::new());
        let dial = async || {
            let (near, far) = self.link();
            let receiving = receiving.clone();
            ends.lock().unwrap().push(tokio::spawn(async move { drop(receiving.lock().await.take(far).await) }));
            Ok::<_, LinkError>(near)
        };
        let copied = send(self.reader(), dial, wish, &|_, _| {}).await;
        // Whoever opens the target next must find it closed.
        for end in ends.into_inner().unwrap() {
            end.await.unwrap();
        }
        copied
    }

    fn are_equal(&self) -> bool {
        std::fs::read(self.source()).unwrap() == std::fs::read(self.target()).unwrap()
    }

    fn is_marked(&self) -> bool {
        Mark::beside(&self.target()).is_set().unwrap()
    }
}

/// The same, once as the sender dials and once as the target does.
fn both(seed: u64) -> [Pair; 2] {
    [false, true].map(|fetched| Pair { fetched, ..Pair::new(seed) })
}

/// The other end of a link that lets so many frames of data pass and then is gone.
fn breaks_after(frames: usize, link: Link) -> Link {
    let (here, beyond) = Link::pair();
    tokio::spawn(async move {
        let Link { incoming: mut sent, outgoing: mut answers, .. } = link;
        let Link { incoming: mut answered, outgoing: mut sends, .. } = here;
        let there = async move {
            let mut left = frames;
            while left > 0 {
                let Ok(Some((frame, _))) = sent.next().await else { return };
                left -= usize::from(!matches!(frame, Frame::Message(_)));
                if sends.send(&frame).await.is_err() {
                    return;
                }
            }
        };
        // Apart from it: a line on which one direction waits for the other stands still for ever.
        let back = async move {
            while let Ok(Some((frame, _))) = answered.next().await {
                if answers.send(&frame).await.is_err() {
                    return;
                }
            }
        };
        tokio::select! {
            () = there => {}
            () = back => {}
        }
    });
    beyond
}

fn allocated(path: &Path) -> u64 {
    FileDisk::read_only(path).unwrap().data(0, SIZE).unwrap().bytes()
}

/// Blocks that hold anything.
fn data_blocks(path: &Path) -> u64 {
    let bytes = std::fs::read(path).unwrap();
    bytes.chunks(BLOCK as usize).filter(|block| block.iter().any(|byte| *byte != 0)).count() as u64
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_onto_nothing_is_the_source_and_what_is_zero_stays_a_hole() {
    for pair in both(1) {
        let copied = pair.copy(Sync::Compare).await.unwrap();
        assert!(pair.are_equal() && !pair.is_marked());
        assert_eq!((copied.sync, copied.resumed, copied.moved.read_target), (Sync::Full, false, 0), "{copied:?}");
        let most = data_blocks(&pair.source()) * BLOCK;
        let found = allocated(&pair.target());
        assert!(found <= most && found < allocated(&pair.source()), "{found} bytes are allocated, {most} hold data");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_blocks_that_differ_travel_and_a_full_copy_reads_nothing_at_the_target() {
    for mut pair in both(2) {
        pair.copy(Sync::Full).await.unwrap();
        for blocks in [0, 1, 7, 150] {
            pair.change(blocks);
            let before = allocated(&pair.target());
            let dry = pair
                .copy_as(Wish { sync: Sync::Compare, verify: false, dry_run: true, leaf_bytes: LeafSize::default() })
                .await
                .unwrap();
            assert!(blocks == 0 || !pair.are_equal(), "a dry run wrote");
            let copied = pair.copy(Sync::Compare).await.unwrap();
            assert!(pair.are_equal() && !pair.is_marked());
            assert_eq!((copied.moved.changed, dry.moved.changed), (blocks * BLOCK, blocks * BLOCK), "{copied:?}");
            assert_eq!(copied.moved.read_target.div_ceil(BLOCK), before.div_ceil(BLOCK), "all but holes is read once");
        }
        // What is zero at the source becomes zero at a target that holds something else.
        let target = FileDisk::open(&pair.target()).unwrap();
        target.write_at(0, &vec![7; SIZE as usize]).unwrap();
        drop(target);
        let copied = pair.copy(Sync::Full).await.unwrap();
        assert!(pair.are_equal() && copied.moved.read_target == 0, "{copied:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn larger_leaves_find_the_same_and_of_each_that_differs_all_travels() {
    for mut pair in both(9) {
        pair.copy(Sync::Full).await.unwrap();
        for size in ["128K", "512K", "4M"] {
            let leaf_bytes: LeafSize = size.parse().unwrap();
            let changed = pair.change(3);
            let leaves: std::collections::BTreeSet<u64> =
                changed.iter().map(|block| block * BLOCK / leaf_bytes.bytes()).collect();
            let reach = |leaf: &u64| leaf_bytes.bytes().min(SIZE - leaf * leaf_bytes.bytes());
            let most = leaves.iter().map(reach).sum::<u64>();
            let wish = Wish { sync: Sync::Compare, verify: true, dry_run: false, leaf_bytes };
            let copied = pair.copy_as(wish).await.unwrap();
            assert!(pair.are_equal() && !pair.is_marked(), "{size}");
            assert_eq!(copied.moved.changed, most, "{size}: {copied:?}");
            let again = pair.copy_as(wish).await.unwrap();
            assert_eq!((again.moved.changed, pair.are_equal()), (0, true), "{size}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_goes_on_over_another_link_and_no_block_is_counted_twice() {
    for mut pair in both(3) {
        *pair.breaks.lock().unwrap() = vec![90, 1, 40];
        let copied = pair.copy(Sync::Full).await.unwrap();
        assert!(pair.are_equal() && pair.breaks.lock().unwrap().is_empty());
        assert!(copied.moved.changed <= allocated(&pair.source()) + BLOCK, "{copied:?}");
        pair.change(100);
        *pair.breaks.lock().unwrap() = vec![30, 3];
        let copied = pair.copy(Sync::Compare).await.unwrap();
        assert!(pair.are_equal() && pair.breaks.lock().unwrap().is_empty() && !pair.is_marked());
        assert_eq!(copied.moved.changed, 100 * BLOCK, "{copied:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_that_fails_leaves_its_mark_and_the_next_one_goes_on() {
    for mut pair in both(4) {
        pair.writes = 100;
        let failure = pair.copy(Sync::Full).await.unwrap_err();
        let is_told = matches!(&failure, Failure::Failed(fault) if fault.is(code::COPY_BROKEN_OFF));
        assert!(is_told && pair.is_marked(), "{failure:?}");
        pair.writes = u64::MAX;
        let copied = pair.copy(Sync::Full).await.unwrap();
        assert!(pair.are_equal() && !pair.is_marked());
        assert_eq!((copied.sync, copied.resumed), (Sync::Compare, true));
        let missing = data_blocks(&pair.source()) - 100;
        // The write that failed carried several blocks, of which some might have had room.
        let again = copied.moved.changed.div_ceil(BLOCK);
        assert!((missing..missing + 4).contains(&again), "{copied:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sender_that_is_started_again_finds_the_same_receiver_waiting() {
    let pair = Pair::new(6);
    let path = pair.target();
    let open = move |size, _| -> Result<Arc<dyn Disk>, Fault> {
        let disk = if path.exists() { FileDisk::open(&path) } else { FileDisk::create(&path, size) };
        Ok(Arc::new(disk.map_err(|error| Fault::new(code::COPY_TARGET, "it is locked", error.to_string()))?))
    };
    let mut receiving = Receiving::new(Box::new(open), Mark::beside(&pair.target()));
    let (mut near, far) = Link::pair();
    near.outgoing
        .say(Message::Copy { id: uuid::Uuid::new_v4(), size: SIZE, dry_run: false, leaf_bytes: LeafSize::default() })
        .await
        .unwrap();
    let first = Frame::Data { sequence: 1, disk: 0, offset: 0, bytes: vec![1; 512].into() };
    near.outgoing.send(&first).await.unwrap();
    let talk = async {
        near.incoming.message("readiness").await.unwrap();
        drop(near);
    };
    let (taken, ()) = tokio::join!(receiving.take(far), talk);
    assert_eq!(taken.unwrap(), Taken::Left);
    assert!(pair.is_marked());

    let receiving = Arc::new(tokio::sync::Mutex::new(receiving));
    let copied = pair
        .send_to(receiving, Wish { sync: Sync::Full, verify: true, dry_run: false, leaf_bytes: LeafSize::default() })
        .await
        .unwrap();
    assert!(copied.resumed && pair.are_equal() && !pair.is_marked(), "{copied:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_only_asks_what_would_travel_is_not_written_to_by_a_sender_that_goes_on_with_another_copy() {
    let pair = Pair::new(7);
    let path = pair.target();
    let open = move |size, _| -> Result<Arc<dyn Disk>, Fault> { Ok(Arc::new(FileDisk::create(&path, size).unwrap())) };
    let mut receiving = Receiving::new(Box::new(open), Mark::beside(&pair.target()));
    let (tell, mut dialled) = mpsc::unbounded_channel::<Link>();
    let sending = async {
        let mut link = dialled.recv().await.unwrap();
        link.incoming.message("a wish").await.unwrap();
        link.outgoing
            .say(Message::Copy {
                id: uuid::Uuid::new_v4(),
                size: SIZE,
                dry_run: false,
                leaf_bytes: LeafSize::default(),
            })
            .await
            .unwrap();
        let refused = link.incoming.message("readiness").await.unwrap_err();
        assert!(refused.fault().is(code::LINK), "{refused:?}");
        // It is asked again, for nothing but that.
        dialled.recv().await.unwrap()
    };
    let dial = async || {
        let (near, far) = Link::pair();
        tell.send(far).unwrap();
        Ok(near)
    };
    let wish = Wish { sync: Sync::Full, verify: false, dry_run: true, leaf_bytes: LeafSize::default() };
    tokio::select! {
        copied = fetch(&mut receiving, dial, wish) => panic!("{copied:?}"),
        _again = sending => {}
    }
    assert!(!pair.target().exists() && !pair.is_marked());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sender_that_breaks_the_rules_changes_nothing() {
    let pair = Pair::new(5);
    let path = pair.target();
    let open = move |size, _| -> Result<Arc<dyn Disk>, Fault> { Ok(Arc::new(FileDisk::create(&path, size).unwrap())) };
    let id = uuid::Uuid::new_v4();
    let data = |sequence, disk, offset| Frame::Data { sequence, disk, offset, bytes: vec![1; 512].into() };
    let question = Message::HashRequest { disk: 0, level: 3, offset: 0, length: 1 << 20 };
    let wrong =
        [data(2, 0, 0), data(1, 1, 0), data(1, 0, 1 << 20), Message::Ping { number: 1 }.into(), question.into()];
    for frame in wrong {
        let mut receiving = Receiving::new(Box::new(open.clone()), Mark::beside(&pair.target()));
        let (mut near, far) = Link::pair();
        let taken = tokio::spawn(async move { receiving.take(far).await });
        near.outgoing
            .say(Message::Copy { id, size: 1 << 20, dry_run: false, leaf_bytes: LeafSize::default() })
            .await
            .unwrap();
        near.incoming.message("readiness").await.unwrap();
        near.outgoing.send(&frame).await.unwrap();
        // It may be refused already.
        let _ = near.outgoing.say(Message::CopyEnd { totals: Default::default() }).await;
        let fault = taken.await.unwrap().unwrap_err();
        assert!(fault.is(code::PROTOCOL), "{frame:?}: {fault:?}");
        assert!(!pair.is_marked(), "{frame:?}");
        assert_eq!(std::fs::read(pair.target()).unwrap(), vec![0; 1 << 20]);
        std::fs::remove_file(pair.target()).unwrap();
    }
}
