//! A disk that is written through NBD.

use std::io;
use std::time::Duration;

use bytes::Bytes;
use protocol::{BlockMap, Extent};
use replica::Disk;
use tokio::runtime::Handle;

const ALLOCATION: &str = "base:allocation";
/// A request that takes longer than this is not slow storage but a dead server.
const STUCK: Duration = Duration::from_secs(120);

/// An export as a disk. Its calls block; they are made on blocking threads of `runtime` only.
pub struct ExportDisk {
    client: nbd::Client,
    runtime: Handle,
}

impl ExportDisk {
    /// The disk behind `client`, which was connected with [`crate::Reader::options`].
    pub fn new(client: nbd::Client, runtime: Handle) -> ExportDisk {
        ExportDisk { client, runtime }
    }

    fn wait<T>(&self, work: impl Future<Output = Result<T, nbd::Error>>) -> io::Result<T> {
        self.runtime.block_on(async {
            match tokio::time::timeout(STUCK, work).await {
                Ok(done) => done.map_err(io::Error::other),
                Err(_) => Err(io::ErrorKind::TimedOut.into()),
            }
        })
    }
}

impl Disk for ExportDisk {
    fn size(&self) -> u64 {
        self.client.size()
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let length = u32::try_from(buffer.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
        let bytes = self.wait(self.client.read(offset, length))?;
        buffer.copy_from_slice(&bytes);
        Ok(())
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.wait(self.client.write(offset, Bytes::copy_from_slice(bytes)))
    }

    fn write_zeroes(&self, offset: u64, length: u64) -> io::Result<()> {
        self.wait(self.client.write_zeroes(offset, length))
    }

    fn flush(&self) -> io::Result<()> {
        self.wait(self.client.flush())
    }

    fn data(&self, offset: u64, length: u64) -> io::Result<BlockMap> {
        if !self.client.has_context(ALLOCATION) {
            return Ok([Extent::new(offset, length)].into_iter().collect());
        }
        let told = self.wait(self.client.block_status(ALLOCATION, offset, length))?;
        let data = told.into_iter().filter(|extent| extent.flags & nbd::status::ZERO == 0);
        Ok(data.map(|extent| Extent::new(extent.offset, extent.length)).collect())
    }
}
