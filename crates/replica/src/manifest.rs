//! The manifest: what a replica is, in a file that people can read and a new control server can be rebuilt from.
//!
//! Written whole to another name, synced, renamed, and the directory synced: it is the old one or the new one. It exists
//! exactly as long as the replica does: written last when one is made, marked first and removed last when one is
//! deleted.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use protocol::machine::DiskFormat;
use protocol::{DiskKey, ItemId, Lineage};
use serde::{Deserialize, Serialize};
use twox_hash::XxHash3_64;

use crate::disk::Disk;
use crate::error::ReplicaError;
use crate::volume::Volume;

/// Where a replica is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// The manifest and the disks that the replica keeps itself.
    pub directory: PathBuf,
    /// The item's journal on the retention volume.
    pub retention: PathBuf,
}

/// One disk of a replica.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskRecord {
    /// Its name for the machine's whole life.
    pub key: DiskKey,
    /// Its size in bytes.
    pub size: u64,
    /// Where its bytes are.
    pub home: DiskHome,
}

impl DiskRecord {
    /// The name of the disk's file in the replica's directory, if it is kept there.
    pub fn file_name(&self) -> String {
        format!("{}.raw", self.key)
    }

    /// The name of the file in the replica's directory where the opener may note how a disk outside looks at rest.
    pub fn rest_name(&self) -> String {
        format!("{}.rest", self.key)
    }
}

/// Where the bytes of a replica's disk are.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DiskHome {
    /// `<directory>/<key>.raw`, made and deleted with the replica.
    Inside,
    /// A disk of the platform's own, which is never deleted here; the opener knows how to open it.
    Outside {
        /// Path or volume name, as the platform names it.
        path: String,
        /// Image format.
        format: DiskFormat,
    },
}

/// Opens a disk of a replica, given its record and the replica's directory.
pub type Opener<'a> = &'a dyn Fn(&DiskRecord, &Path) -> io::Result<Arc<dyn Disk>>;

/// What a new replica is to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Spec {
    /// The item.
    pub item: ItemId,
    /// Its history.
    pub lineage: Lineage,
    /// Its disks; [`crate::Write`] names them by their place in this list.
    pub disks: Vec<DiskRecord>,
    /// What the disks hold.
    pub content: Content,
}

/// What the disks of a new replica hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Content {
    /// Zeroes: the first copy keeps no before-images, and there is no point before it is complete.
    Empty,
    /// Something that must not be lost: before-images are kept from the first write.
    Existing,
}

/// What a replica is, as its manifest says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// The version of the whole on-disk format.
    pub format: u32,
    /// The item.
    pub item: ItemId,
    /// Its history.
    pub lineage: Lineage,
    /// Its disks.
    pub disks: Vec<DiskRecord>,
    /// What the disks held when the replica was made.
    pub content: Content,
    /// The replica is being deleted: whoever finds this finishes it.
    #[serde(default)]
    pub being_deleted: bool,
}

/// The version of manifest and journal that this build writes, and the only one that it reads.
pub const FORMAT: u32 = 2;

pub(crate) const MANIFEST: &str = "manifest.json";
const NEW: &str = "manifest.json.new";

/// No manifest is longer (bytes): 256 disks with long paths.
const LONGEST: u64 = 4 << 20;

#[derive(Serialize, Deserialize)]
struct Written {
    manifest: Manifest,
    /// XXH3 of the manifest as compact JSON, in hexadecimal.
    checksum: String,
}

#[derive(Deserialize)]
struct AnyFormat {
    manifest: OnlyFormat,
}

#[derive(Deserialize)]
struct OnlyFormat {
    format: u32,
}

impl Manifest {
    fn checksum(&self) -> Result<String, serde_json::Error> {
        Ok(format!("{:016x}", XxHash3_64::oneshot(&serde_json::to_vec(self)?)))
    }

    /// Makes this the manifest in `directory`, durably.
    pub(crate) fn store(&self, directory: &dyn Volume) -> Result<(), ReplicaError> {
        let name = directory.describe(MANIFEST);
        let bytes = self
            .checksum()
            .and_then(|checksum| serde_json::to_vec_pretty(&Written { manifest: self.clone(), checksum }))
            .map_err(|error| ReplicaError::io(format!("writing {name}"), error.into()))?;
        let write = || -> io::Result<()> {
            directory.create(NEW)?;
            directory.write_at(NEW, 0, &bytes)?;
            directory.sync(NEW)?;
            directory.rename(NEW, MANIFEST)?;
            directory.sync_directory()
        };
        write().map_err(|error| ReplicaError::io(format!("writing {name}"), error))
    }

    /// The manifest in `directory`, none when there is none.
    pub(crate) fn load(directory: &dyn Volume) -> Result<Option<Manifest>, ReplicaError> {
        let name = directory.describe(MANIFEST);
        let read = || -> io::Result<Vec<u8>> {
            let length = directory.length(MANIFEST)?;
            if length > LONGEST {
                return Err(io::ErrorKind::FileTooLarge.into());
            }
            let mut bytes = vec![0; length as usize];
            directory.read_at(MANIFEST, 0, &mut bytes)?;
            Ok(bytes)
        };
        let bytes = match read() {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(ReplicaError::io(format!("reading {name}"), error)),
        };
        let damaged = |error: serde_json::Error| ReplicaError::damaged(&name, error.to_string());
        let format = serde_json::from_slice::<AnyFormat>(&bytes).map_err(damaged)?.manifest.format;
        if format != FORMAT {
            return Err(ReplicaError::damaged(
                &name,
                format!("format {format} is not known to this version ({FORMAT})"),
            ));
        }
        let written: Written = serde_json::from_slice(&bytes).map_err(damaged)?;
        if written.manifest.checksum().map_err(damaged)? != written.checksum {
            return Err(ReplicaError::damaged(&name, "its checksum does not fit"));
        }
        Ok(Some(written.manifest))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::volume::Folder;

    #[test]
    fn a_flipped_bit_is_refused_or_changes_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let folder = Folder::open(directory.path()).unwrap();
        assert_eq!(Manifest::load(&folder).unwrap(), None);
        let manifest = Manifest {
            format: FORMAT,
            item: "web01".parse().unwrap(),
            lineage: Lineage::fresh(),
            disks: vec![DiskRecord { key: "disk0".parse().unwrap(), size: 1 << 20, home: DiskHome::Inside }],
            content: Content::Empty,
            being_deleted: false,
        };
        manifest.store(&folder).unwrap();
        assert_eq!(Manifest::load(&folder).unwrap().unwrap(), manifest);
        let path = directory.path().join(MANIFEST);
        let good = std::fs::read(&path).unwrap();
        let mut refused = 0;
        for at in 0..good.len() {
            for bit in 0..8 {
                let mut bad = good.clone();
                bad[at] ^= 1 << bit;
                std::fs::write(&path, &bad).unwrap();
                match Manifest::load(&folder) {
                    Ok(read) => assert_eq!(read.as_ref(), Some(&manifest), "byte {at} bit {bit}"),
                    Err(ReplicaError::Damaged { .. }) => refused += 1,
                    Err(other) => panic!("{other}"),
                }
            }
        }
        assert!(refused > good.len() * 4);
    }
}
