//! A disk of a replica as the engine needs it, and the plain one: a raw sparse file.
//!
//! The engine writes blocks, zeroes and flushes; it never parses a format. While a [`FileDisk`] is open it holds QEMU's
//! own locks on the file, because a hypervisor (or a second master target) that wrote the disk beside us would break
//! every recovery point: see [`crate::lock`].

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::num::NonZeroU64;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, FileTypeExt, OpenOptionsExt};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use protocol::{BlockMap, Extent};
use rustix::fs::{Advice, FallocateFlags, SeekFrom, fadvise, fallocate, seek};

use crate::fields::blank;
use crate::lock;
use crate::manifest::{DiskHome, DiskRecord};

/// One disk of a replica: a plain file here, an image in a platform's format, or a crashing one in tests.
pub trait Disk: Send + Sync {
    /// Its size in bytes; it never changes while the disk is open.
    fn size(&self) -> u64;
    /// Fills `buffer` with the bytes at `offset`.
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()>;
    /// Writes all `bytes` at `offset`. Durable after the next successful [`Disk::flush`].
    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()>;
    /// Makes `offset .. offset + length` read as zeroes, whatever that does to the allocation.
    fn write_zeroes(&self, offset: u64, length: u64) -> io::Result<()>;
    /// Returns when all that was written is on stable storage. After an error nothing is believed any more.
    fn flush(&self) -> io::Result<()>;
    /// A hint: this will be read soon.
    fn will_read(&self, _extent: Extent) {}
    /// A hint: what was written here may go to the medium now rather than all at once in the next [`Disk::flush`], which
    /// alone says whether it got there.
    fn write_out(&self, _extent: Extent) {}
    /// A hint: what is read next should come from the medium rather than from memory.
    fn forget(&self) {}
    /// Names the time in which nobody but who has this disk open wrote it, also across openings: two equal answers mean that
    /// nobody else did in between. None where nobody can tell. A disk that is nobody else's has one name for ever.
    fn unbroken(&self) -> Option<String> {
        Some(String::new())
    }
    /// A superset of the bytes in `offset .. offset + length` that may be other than zero.
    fn data(&self, offset: u64, length: u64) -> io::Result<BlockMap> {
        Ok([Extent::new(offset, length)].into_iter().collect())
    }
}

/// A raw sparse file, locked against QEMU and against other master targets while it is open.
pub struct FileDisk {
    file: File,
    size: u64,
    /// Long stretches of data, start to end. To find where one ends, a file system walks all of it (tmpfs page by page, ext4
    /// extent by extent): asked anew for each block that took over half of a master target's time. QEMU keeps the last such
    /// stretch for the same reason.
    known: Mutex<BTreeMap<u64, u64>>,
}

/// Shorter stretches are not worth remembering; so a disk of 1 TiB has at most 65,536 that are.
const WORTH_KNOWING: u64 = 16 << 20;

impl FileDisk {
    /// A new file of `size` zero bytes, all of it a hole.
    ///
    /// # Errors
    /// `AlreadyExists`; `WouldBlock` when somebody took it meanwhile; what the file system says.
    pub fn create(path: &Path, size: u64) -> io::Result<FileDisk> {
        let file = File::options().read(true).write(true).create_new(true).open(path)?;
        file.set_len(size)?;
        file.sync_all()?;
        FileDisk::over(file)
    }

    /// The file or block device at `path`, whose length is the disk's size.
    ///
    /// # Errors
    /// `WouldBlock` when another program has the disk open, `ResourceBusy` when a device is mounted; what the file system
    /// says.
    pub fn open(path: &Path) -> io::Result<FileDisk> {
        let mut options = File::options();
        options.read(true).write(true);
        if path.metadata()?.file_type().is_block_device() {
            // The kernel then refuses a device that is mounted, or part of another.
            options.custom_flags(libc::O_EXCL);
        }
        FileDisk::over(options.open(path)?)
    }

    /// The file or block device at `path`, to be read: nobody writes it meanwhile. Writing fails.
    ///
    /// # Errors
    /// As for [`FileDisk::open`], but others may read it, too.
    pub fn read_only(path: &Path) -> io::Result<FileDisk> {
        let file = File::open(path)?;
        lock::share(&file)?;
        let size = length(&file)?;
        Ok(FileDisk { file, size, known: Mutex::default() })
    }

    fn over(file: File) -> io::Result<FileDisk> {
        lock::take(&file)?;
        let size = length(&file)?;
        // A sync that failed in an earlier life may have left pages that were never written: the truth is on the medium.
        fadvise(&file, 0, None, Advice::DontNeed)?;
        Ok(FileDisk { file, size, known: Mutex::default() })
    }

    fn known(&self) -> MutexGuard<'_, BTreeMap<u64, u64>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where the data at `start` ends, or a later place up to which there is nothing but data; none if nobody can tell.
    fn end_of_data(&self, start: u64) -> Option<u64> {
        let known = self.known().range(..=start).next_back().map(|(_, end)| *end).filter(|end| *end > start);
        if known.is_some() {
            return known;
        }
        let hole = seek(&self.file, SeekFrom::Hole(start)).ok().filter(|hole| *hole > start)?;
        if hole - start >= WORTH_KNOWING {
            let mut known = self.known();
            let within: Vec<u64> = known.range(start..hole).map(|(start, _)| *start).collect();
            for inner in within {
                known.remove(&inner);
            }
            known.insert(start, hole);
        }
        Some(hole)
    }

    /// A hole may be there now. What was known before and behind it is still data.
    fn forget_data(&self, offset: u64, end: u64) {
        let mut known = self.known();
        let cut: Vec<(u64, u64)> =
            known.range(..end).rev().map(|(s, e)| (*s, *e)).take_while(|(_, e)| *e > offset).collect();
        for (start, until) in cut {
            known.remove(&start);
            for (start, until) in [(start, until.min(offset)), (start.max(end), until)] {
                if until.saturating_sub(start) >= WORTH_KNOWING {
                    known.insert(start, until);
                }
            }
        }
    }

    fn write_zeroes_in_full(&self, offset: u64, length: u64) -> io::Result<()> {
        let zeroes = vec![0; length.min(1 << 20) as usize];
        let end = offset + length;
        let mut at = offset;
        while at < end {
            let piece = (end - at).min(zeroes.len() as u64);
            self.file.write_all_at(&zeroes[..piece as usize], at)?;
            at += piece;
        }
        Ok(())
    }
}

impl Disk for FileDisk {
    fn size(&self) -> u64 {
        self.size
    }
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.file.read_exact_at(buffer, offset)
    }
    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all_at(bytes, offset)
    }
    fn write_zeroes(&self, offset: u64, length: u64) -> io::Result<()> {
        if length == 0 {
            return Ok(());
        }
        // A hole in a regular file reads as zeroes by definition; on a hole this allocates nothing.
        match fallocate(&self.file, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, offset, length) {
            Err(rustix::io::Errno::OPNOTSUPP | rustix::io::Errno::NOSYS) => self.write_zeroes_in_full(offset, length),
            result => {
                self.forget_data(offset, offset.saturating_add(length));
                Ok(result?)
            }
        }
    }
    fn flush(&self) -> io::Result<()> {
        self.file.sync_data()
    }
    fn will_read(&self, extent: Extent) {
        // A file system that cannot is read without it.
        let _ = fadvise(&self.file, extent.offset, NonZeroU64::new(extent.length), Advice::WillNeed);
    }
    #[allow(unsafe_code)]
    fn write_out(&self, extent: Extent) {
        let (offset, length) = (extent.offset as libc::off64_t, extent.length as libc::off64_t);
        // rustix does not have it. SAFETY: takes numbers only; the descriptor is open as long as `self` is borrowed.
        // Without the flags that wait, it consumes no error: the next flush still reports it.
        unsafe { libc::sync_file_range(self.file.as_raw_fd(), offset, length, libc::SYNC_FILE_RANGE_WRITE) };
    }
    fn forget(&self) {
        // What cannot be forgotten is read from memory.
        let _ = fadvise(&self.file, 0, None, Advice::DontNeed);
    }
    fn data(&self, offset: u64, length: u64) -> io::Result<BlockMap> {
        let mut map = BlockMap::new();
        let end = offset.saturating_add(length).min(self.size);
        let mut at = offset;
        while at < end {
            // Behind a stretch that is known comes a hole, or what was written since: the file system tells which.
            let start = match seek(&self.file, SeekFrom::Data(at)) {
                Ok(start) => start.max(at),
                Err(rustix::io::Errno::NXIO) => break,
                // A file system that cannot tell: everything may be data.
                Err(rustix::io::Errno::INVAL | rustix::io::Errno::OPNOTSUPP) => at,
                Err(error) => return Err(error.into()),
            };
            if start >= end {
                break;
            }
            let until = self.end_of_data(start).map_or(end, |hole| hole.min(end));
            map.insert(Extent::new(start, until - start));
            at = until;
        }
        Ok(map)
    }
}

/// Bytes of a file or of a block device, of which the metadata say nothing.
fn length(file: &File) -> io::Result<u64> {
    Ok(seek(file, SeekFrom::End(0))?)
}

/// Opens a disk that the replica keeps in its own directory. An opener for [`crate::Replica::open`] and
/// [`crate::Replica::create`] (which makes the file first); `Unsupported` for a disk that is elsewhere.
///
/// # Errors
/// Those of [`FileDisk::open`].
pub fn open_inside(record: &DiskRecord, directory: &Path) -> io::Result<Arc<dyn Disk>> {
    match &record.home {
        DiskHome::Inside => Ok(Arc::new(FileDisk::open(&directory.join(record.file_name()))?)),
        DiskHome::Outside { path, .. } => {
            Err(io::Error::new(io::ErrorKind::Unsupported, format!("{path} is opened by its platform")))
        }
    }
}

/// Whether the file at `path` holds nothing but zeroes, as far as its holes tell without reading it all.
pub(crate) fn never_written(path: &Path) -> io::Result<bool> {
    let file = File::open(path)?;
    let size = file.metadata()?.len();
    match seek(&file, SeekFrom::Data(0)) {
        Err(rustix::io::Errno::NXIO) => Ok(true),
        Ok(_) if size <= 1 << 20 => {
            let mut all = vec![0; size as usize];
            file.read_exact_at(&mut all, 0)?;
            Ok(blank(&all))
        }
        _ => Ok(false),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zeroes_read_as_zeroes_and_free_their_space() {
        let directory = tempfile::tempdir().unwrap();
        let disk = FileDisk::create(&directory.path().join("d.raw"), 1 << 20).unwrap();
        assert!(disk.data(0, 1 << 20).unwrap().is_empty());
        disk.write_at(65536, &[7; 131072]).unwrap();
        disk.write_zeroes(100_000, 50_000).unwrap();
        let mut read = vec![1; 1 << 20];
        disk.read_at(0, &mut read).unwrap();
        for (at, byte) in read.iter().enumerate() {
            let written = (65536..196608).contains(&at) && !(100_000..150_000).contains(&at);
            assert_eq!(*byte, if written { 7 } else { 0 }, "at {at}");
        }
        let data = disk.data(0, 1 << 20).unwrap();
        assert!(data.covers(&[Extent::new(65536, 100_000 - 65536)].into_iter().collect()));
        assert!(data.end() <= 196608);
        disk.write_zeroes_in_full(0, 1 << 20).unwrap();
        disk.read_at(0, &mut read).unwrap();
        assert!(blank(&read));
        disk.flush().unwrap();
    }
    #[test]
    fn known_data_is_not_asked_for_again_and_what_becomes_a_hole_is_no_longer_known() {
        const MIB: u64 = 1 << 20;
        let directory = tempfile::tempdir().unwrap();
        let disk = FileDisk::create(&directory.path().join("d.raw"), 128 * MIB).unwrap();
        for at in 0..80 {
            disk.write_at(at * MIB, &vec![7; MIB as usize]).unwrap();
        }
        let data = |from: u64, to: u64| disk.data(from * MIB, (to - from) * MIB).unwrap().bytes() / MIB;
        let known = || disk.known().iter().map(|(start, end)| (start / MIB, end / MIB)).collect::<Vec<_>>();
        assert_eq!((data(40, 41), data(79, 81), data(80, 128)), (1, 1, 0));
        if known().is_empty() {
            return; // A file system that cannot tell holes.
        }
        assert_eq!(known(), [(40, 80)]);
        assert_eq!((data(10, 90), known()), (70, vec![(10, 80)]));
        disk.write_zeroes(30 * MIB, 2 * MIB).unwrap();
        assert_eq!(known(), [(10, 30), (32, 80)]);
        assert_eq!((data(0, 128), data(29, 33)), (78, 2));
        disk.write_zeroes(0, 20 * MIB).unwrap();
        assert_eq!((data(0, 128), known()), (58, vec![(32, 80)]));
        disk.write_at(5 * MIB, &[7; 4096]).unwrap();
        assert!((4096..MIB).contains(&disk.data(0, 20 * MIB).unwrap().bytes()));
        disk.write_at(80 * MIB, &vec![7; MIB as usize]).unwrap();
        assert_eq!(data(70, 90), 11);
        disk.write_zeroes(0, 128 * MIB).unwrap();
        assert_eq!((data(0, 128), known()), (0, vec![]));
    }
}
