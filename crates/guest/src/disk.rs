//! What the ledger needs of a disk: read here, write there, in buffers that O_DIRECT accepts.
//!
//! The traits are the seam: raw files and block devices are served here; whoever reads a qcow2 image over NBD, or
//! from memory, brings an own [`ReadAt`].

use std::fmt;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use rustix::fs::{SeekFrom, seek};

/// A disk that can be read at any offset.
pub trait ReadAt {
    /// Fills `buffer` from `offset` (bytes). Offset, length and the buffer's address are multiples of 4096.
    /// A short disk is an error (`UnexpectedEof`).
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()>;

    /// Whether all `length` bytes from `offset` are known to be a hole, hence zero. `false` may also mean "unknown":
    /// it only costs a read.
    fn is_hole(&self, _offset: u64, _length: u64) -> bool {
        false
    }
}

/// A disk that can be written, each write being durable when the call returns.
pub trait WriteAt: ReadAt {
    /// Writes all of `buffer` at `offset` (bytes), aligned as in [`ReadAt::read_at`].
    fn write_at(&self, offset: u64, buffer: &[u8]) -> io::Result<()>;
}

impl ReadAt for File {
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.read_exact_at(buffer, offset)
    }

    fn is_hole(&self, offset: u64, length: u64) -> bool {
        match seek(self, SeekFrom::Data(offset)) {
            Ok(data) => data >= offset.saturating_add(length),
            Err(error) => error == rustix::io::Errno::NXIO,
        }
    }
}

/// Durable only if the file was opened with O_DSYNC, as the guest does; tests on the host do not care.
impl WriteAt for File {
    fn write_at(&self, offset: u64, buffer: &[u8]) -> io::Result<()> {
        self.write_all_at(buffer, offset)
    }
}

/// Zeroed memory that begins at a multiple of 4096, as O_DIRECT wants it.
pub struct AlignedBuffer {
    memory: Vec<u8>,
    start: usize,
    length: usize,
}

impl AlignedBuffer {
    /// Memory for `length` bytes.
    pub fn new(length: usize) -> Self {
        let memory = vec![0u8; length + crate::BLOCK_BYTES];
        // The vector is never grown, so its address and with it the alignment stays.
        let start = memory.as_ptr().addr().wrapping_neg() % crate::BLOCK_BYTES;
        Self { memory, start, length }
    }

    /// The bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.memory[self.start..self.start + self.length]
    }

    /// The bytes, to be changed.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.memory[self.start..self.start + self.length]
    }
}

/// Why a disk could not be read as a ledger at all (what is wrong *in* a ledger stands in a report instead).
#[derive(Debug)]
pub enum DiskFault {
    /// Reading or writing failed.
    Io {
        /// What was being done, to which disk.
        doing: String,
        /// What the system said.
        source: io::Error,
    },
    /// The header block is not one of ours, or contradicts itself.
    NotALedger {
        /// The fact that gave it away.
        because: String,
    },
}

impl DiskFault {
    pub(crate) fn io(doing: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let doing = doing.into();
        move |source| Self::Io { doing, source }
    }

    pub(crate) fn not_a_ledger(because: impl Into<String>) -> Self {
        Self::NotALedger { because: because.into() }
    }
}

impl fmt::Display for DiskFault {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Io { doing, source } => write!(out, "{doing}: {source}"),
            Self::NotALedger { because } => {
                write!(out, "this disk carries no ledger: {because} (format one with: ledger seed)")
            }
        }
    }
}

impl std::error::Error for DiskFault {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Io { source, .. } => Some(source),
            Self::NotALedger { .. } => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_begin_where_o_direct_wants_them() {
        for length in [4096, 8192, 1 << 20] {
            let mut buffer = AlignedBuffer::new(length);
            assert_eq!(buffer.bytes().as_ptr().addr() % 4096, 0);
            assert_eq!(buffer.bytes_mut().len(), length);
        }
    }

    #[test]
    fn a_hole_is_known_without_reading_it() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(8 << 20).unwrap();
        file.write_all_at(&[1; 4096], 4 << 20).unwrap();
        assert!(file.is_hole(0, 4 << 20));
        assert!(!file.is_hole(4 << 20, 4096));
        assert!(file.is_hole(6 << 20, 2 << 20));
    }
}
