//! A disk that is read: an NBD export or a disk of this host.
//!
//! Reads honour an export's limit (QEMU 7.2 answers longer ones with live data, see `platforms`): a longer one is made of
//! several that are in flight together.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use futures::stream::FuturesOrdered;
use futures::{StreamExt, TryStreamExt, stream};
use protocol::fault::code;
use protocol::leaf::{Leaf, Recipe, ZERO_LEAF};
use protocol::{BLOCK, BlockMap, DiskKey, Extent, Fault};
use replica::Disk;

use crate::HASHERS;

/// How many bytes of an export are being read at once. Guessed: enough to hide an NBD round trip on a unix socket.
const READ_BYTES: u64 = 16 * BLOCK;
/// Bytes that a disk is asked for at once while it is hashed (measured: `dd` is fastest with this, too).
const CHUNK: u64 = 256 * 1024;
const ALLOCATION: &str = "base:allocation";

/// A disk of the end with the source, as it was cut or as it stands still.
#[derive(Clone)]
pub struct Reader {
    /// Its place in the sender's order.
    pub disk: u16,
    /// Its name.
    pub key: DiskKey,
    /// Its size in bytes.
    pub size: u64,
    source: Source,
    read: Arc<AtomicU64>,
}

#[derive(Clone)]
enum Source {
    Export { client: nbd::Client, beneath: Option<nbd::Client>, limit: u64 },
    Disk(Arc<dyn Disk>),
}

impl Reader {
    /// A disk that is exported. A hole that the export does not call zero shows what lies `beneath`, if that is known.
    /// Bytes read are added to `read`.
    pub fn export(
        (disk, key): (u16, DiskKey),
        client: nbd::Client,
        beneath: Option<nbd::Client>,
        (size, limit): (u64, u64),
        read: Arc<AtomicU64>,
    ) -> Reader {
        Reader { disk, key, size, source: Source::Export { client, beneath, limit: limit.max(4096) }, read }
    }

    /// A disk of this host. Bytes read are added to `read`.
    pub fn disk((place, key): (u16, DiskKey), disk: Arc<dyn Disk>, read: Arc<AtomicU64>) -> Reader {
        Reader { disk: place, key, size: disk.size(), source: Source::Disk(disk), read }
    }

    /// What an export has to be asked for when it is connected. Several connections are used where the export takes them.
    pub fn options() -> nbd::Options {
        nbd::Options::with_contexts([ALLOCATION])
    }

    /// The bytes of `extent`.
    ///
    /// # Errors
    /// `PLT-006`.
    pub async fn read(&self, extent: Extent) -> Result<Bytes, Fault> {
        self.read.fetch_add(extent.length, Ordering::Relaxed);
        match &self.source {
            Source::Disk(disk) => {
                let (disk, key) = (disk.clone(), self.key.clone());
                blocking(move || {
                    let mut bytes = vec![0; extent.length as usize];
                    disk.read_at(extent.offset, &mut bytes).map_err(|error| lost(&key, &error))?;
                    Ok(bytes.into())
                })
                .await
            }
            Source::Export { client, limit, .. } => {
                if extent.offset / limit == (extent.end() - 1) / limit {
                    let read = client.read(extent.offset, extent.length as u32).await;
                    return read.map_err(|error| lost(&self.key, &error));
                }
                let parts: BlockMap = [extent].into_iter().collect();
                let mut reads: FuturesOrdered<_> = parts.pieces(*limit).map(|part| part_of(client, part)).collect();
                let mut whole = Vec::with_capacity(extent.length as usize);
                while let Some(bytes) = reads.next().await {
                    whole.extend_from_slice(&bytes.map_err(|error| lost(&self.key, &error))?);
                }
                Ok(whole.into())
            }
        }
    }

    /// Which blocks may hold anything but zeroes.
    ///
    /// # Errors
    /// `PLT-006`.
    pub async fn data(&self, within: Extent) -> Result<BlockMap, Fault> {
        match &self.source {
            Source::Disk(disk) => {
                let (disk, key, size) = (disk.clone(), self.key.clone(), self.size);
                blocking(move || {
                    let data = disk.data(within.offset, within.length).map_err(|error| lost(&key, &error))?;
                    Ok(data.aligned(BLOCK, size))
                })
                .await
            }
            Source::Export { client, beneath, .. } => {
                let (data, unsaid) = self.status(client, within).await?;
                let Some(beneath) = beneath else { return Ok(data.union(&unsaid).aligned(BLOCK, self.size)) };
                // A hole that is not said to be zero shows what lies beneath, which may well be zero.
                let (data_there, unsaid_there) = self.status(beneath, within).await?;
                let shown = unsaid.intersection(&data_there.union(&unsaid_there));
                Ok(data.union(&shown).aligned(BLOCK, self.size))
            }
        }
    }

    /// What a range of an export holds: bytes, and holes of which it does not say that they are zero.
    async fn status(&self, client: &nbd::Client, within: Extent) -> Result<(BlockMap, BlockMap), Fault> {
        if !client.has_context(ALLOCATION) {
            return Ok(([within].into_iter().collect(), BlockMap::new()));
        }
        let told = client.block_status(ALLOCATION, within.offset, within.length).await;
        let told = told.map_err(|error| lost(&self.key, &error))?;
        let of = |flags: u32| -> BlockMap {
            let these = told.iter().filter(|extent| extent.flags & (nbd::status::HOLE | nbd::status::ZERO) == flags);
            these.map(|extent| Extent::new(extent.offset, extent.length)).collect()
        };
        Ok((of(0), of(nbd::status::HOLE)))
    }

    /// The leaves of `extent`, which begins at a multiple of what one stands for. Holes are not read.
    pub(crate) async fn leaves(&self, extent: Extent, recipe: Recipe) -> Result<Vec<Leaf>, Fault> {
        // Never closed.
        let _permit = HASHERS.acquire().await;
        if let Source::Disk(disk) = &self.source {
            let (disk, name, count) = (disk.clone(), self.key.clone(), self.read.clone());
            return blocking(move || {
                let (leaves, read) = leaves_of(disk.as_ref(), extent, &recipe).map_err(|error| lost(&name, &error))?;
                count.fetch_add(read, Ordering::Relaxed);
                Ok(leaves)
            })
            .await;
        }
        let data = self.data(extent).await?;
        let grain = recipe.bytes.bytes();
        let pieces = (extent.offset..extent.end()).step_by(grain as usize);
        let leaves = stream::iter(pieces.map(|offset| {
            let piece = Extent::new(offset, grain.min(extent.end() - offset));
            let is_hole = data.intersection(&[piece].into_iter().collect()).is_empty();
            async move {
                match is_hole {
                    true => Ok(ZERO_LEAF),
                    false => Ok(recipe.leaf(&self.read(piece).await?)),
                }
            }
        }));
        leaves.buffered((READ_BYTES / grain).max(1) as usize).try_collect().await
    }
}

/// The leaves of a part of a disk, and how much was read for them. Blocks.
pub(crate) fn leaves_of(disk: &dyn Disk, extent: Extent, recipe: &Recipe) -> std::io::Result<(Vec<Leaf>, u64)> {
    let mut leaves = vec![ZERO_LEAF; recipe.count(extent.length)];
    let (mut read, grain) = (0, recipe.bytes.bytes());
    let most = CHUNK.max(grain);
    let mut buffer = vec![0; most.min(extent.length) as usize];
    let data = disk.data(extent.offset, extent.length)?.aligned(grain, extent.end());
    for chunk in data.pieces(most) {
        let bytes = &mut buffer[..chunk.length as usize];
        disk.read_at(chunk.offset, bytes)?;
        read += chunk.length;
        let first = recipe.count(chunk.offset - extent.offset);
        for (n, piece) in bytes.chunks(grain as usize).enumerate() {
            leaves[first + n] = recipe.leaf(piece);
        }
    }
    Ok((leaves, read))
}

async fn part_of(client: &nbd::Client, part: Extent) -> Result<Bytes, nbd::Error> {
    client.read(part.offset, part.length as u32).await
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T, Fault> + Send + 'static) -> Result<T, Fault> {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(error) => Err(Fault::new(code::CAPTURE_LOST, "a disk could not be read", error.to_string())),
    }
}

fn lost(disk: &DiskKey, error: &dyn std::error::Error) -> Fault {
    Fault::new(code::CAPTURE_LOST, format!("the disk {disk} cannot be read"), error.to_string())
}
