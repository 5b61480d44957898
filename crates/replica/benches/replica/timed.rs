//! A disk and a volume that add up how long each kind of call takes: where the time of an ingest goes.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use protocol::{BlockMap, Extent};
use replica::{Disk, Volume};

/// Nanoseconds by kind.
#[derive(Default)]
pub struct Spent {
    pub disk_read: AtomicU64,
    pub disk_write: AtomicU64,
    pub disk_flush: AtomicU64,
    pub journal_write: AtomicU64,
    pub journal_sync: AtomicU64,
}

impl Spent {
    /// Names and nanoseconds, set to zero.
    pub fn take(&self) -> [(&'static str, u64); 5] {
        [
            ("read", &self.disk_read),
            ("journal", &self.journal_write),
            ("barrier", &self.journal_sync),
            ("write", &self.disk_write),
            ("flush", &self.disk_flush),
        ]
        .map(|(name, spent)| (name, spent.swap(0, Ordering::Relaxed)))
    }
}

fn timed<T>(into: &AtomicU64, work: impl FnOnce() -> T) -> T {
    let start = Instant::now();
    let result = work();
    into.fetch_add(start.elapsed().as_nanos() as u64, Ordering::Relaxed);
    result
}

pub struct TimedDisk(pub Arc<dyn Disk>, pub Arc<Spent>);

impl Disk for TimedDisk {
    fn size(&self) -> u64 {
        self.0.size()
    }
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        timed(&self.1.disk_read, || self.0.read_at(offset, buffer))
    }
    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        timed(&self.1.disk_write, || self.0.write_at(offset, bytes))
    }
    fn write_zeroes(&self, offset: u64, length: u64) -> io::Result<()> {
        timed(&self.1.disk_write, || self.0.write_zeroes(offset, length))
    }
    fn will_read(&self, extent: Extent) {
        timed(&self.1.disk_read, || self.0.will_read(extent));
    }
    fn write_out(&self, extent: Extent) {
        timed(&self.1.disk_write, || self.0.write_out(extent));
    }
    fn flush(&self) -> io::Result<()> {
        timed(&self.1.disk_flush, || self.0.flush())
    }
    fn data(&self, offset: u64, length: u64) -> io::Result<BlockMap> {
        self.0.data(offset, length)
    }
}

/// A volume whose calls are timed, or one that never syncs: for making a long history quickly.
pub struct Wrapped<V> {
    pub volume: V,
    pub spent: Arc<Spent>,
    pub syncs: bool,
}

impl<V: Volume> Volume for Wrapped<V> {
    fn create(&self, name: &str) -> io::Result<()> {
        self.volume.create(name)
    }
    fn write_at(&self, name: &str, offset: u64, bytes: &[u8]) -> io::Result<()> {
        timed(&self.spent.journal_write, || self.volume.write_at(name, offset, bytes))
    }
    fn read_at(&self, name: &str, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.volume.read_at(name, offset, buffer)
    }
    fn length(&self, name: &str) -> io::Result<u64> {
        self.volume.length(name)
    }
    fn truncate(&self, name: &str, length: u64) -> io::Result<()> {
        self.volume.truncate(name, length)
    }
    fn sync(&self, name: &str) -> io::Result<()> {
        if self.syncs { timed(&self.spent.journal_sync, || self.volume.sync(name)) } else { Ok(()) }
    }
    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.volume.rename(from, to)
    }
    fn remove(&self, name: &str) -> io::Result<()> {
        self.volume.remove(name)
    }
    fn list(&self) -> io::Result<Vec<(String, u64)>> {
        self.volume.list()
    }
    fn sync_directory(&self) -> io::Result<()> {
        if self.syncs { timed(&self.spent.journal_sync, || self.volume.sync_directory()) } else { Ok(()) }
    }
    fn lock(&self) -> io::Result<Box<dyn Send + Sync>> {
        self.volume.lock()
    }
    fn describe(&self, name: &str) -> String {
        self.volume.describe(name)
    }
}
