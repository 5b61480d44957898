//! The places of a replica: its directory and its journal on the retention volume.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::disk::{Disk, FileDisk, never_written};
use crate::error::ReplicaError;
use crate::leaves::PREFIX;
use crate::log::LOG;
use crate::manifest::{DiskHome, DiskRecord, MANIFEST, Manifest, Opener, Place};
use crate::run::RUN_SUFFIX;
use crate::segment::SUFFIX;
use crate::store::Held;
use crate::volume::{Folder, Volume};

/// Where a replica is kept, as the operations that it needs: the seam that the simulator implements.
#[derive(Clone)]
pub struct Stores {
    /// Holds the manifest and the disks that are kept inside.
    pub directory: Arc<dyn Volume>,
    /// Holds the journal.
    pub retention: Arc<dyn Volume>,
    /// What the opener is told the directory is.
    pub path: PathBuf,
}

impl Stores {
    pub(crate) fn real(place: &Place, make: bool) -> Result<Stores, ReplicaError> {
        let folder = |path: &Path| -> Result<Arc<dyn Volume>, ReplicaError> {
            let folder = if make { Folder::create(path) } else { Folder::open(path) };
            match folder {
                Ok(folder) => Ok(Arc::new(folder)),
                Err(error) => Err(ReplicaError::io(format!("opening {}", path.display()), error)),
            }
        };
        let directory = match folder(&place.directory) {
            Err(ReplicaError::Io { source, .. }) if !make && source.kind() == io::ErrorKind::NotFound => {
                return Err(ReplicaError::Absent(place.directory.display().to_string()));
            }
            directory => directory?,
        };
        // A retention volume that is not mounted must not look like an empty one.
        Ok(Stores { directory, retention: folder(&place.retention)?, path: place.directory.clone() })
    }

    pub(crate) fn lock(&self) -> Result<Held, ReplicaError> {
        let name = self.directory.describe("");
        let lock = self.directory.lock().map_err(|error| match error.kind() {
            io::ErrorKind::WouldBlock => ReplicaError::Busy(format!("another process has {name} open")),
            _ => ReplicaError::io(format!("locking {name}"), error),
        })?;
        Ok(vec![lock])
    }

    /// Opens and checks the disks of `records`.
    pub(crate) fn disks(&self, records: &[DiskRecord], open: Opener) -> Result<Vec<Arc<dyn Disk>>, ReplicaError> {
        let one = |record: &DiskRecord| {
            let disk = open(record, &self.path).map_err(|error| match error.kind() {
                io::ErrorKind::WouldBlock => ReplicaError::Busy(format!("{}: {error}", record.key)),
                _ => ReplicaError::io(format!("opening {}", record.key), error),
            })?;
            if disk.size() != record.size {
                let (key, found, wanted) = (&record.key, disk.size(), record.size);
                return Err(ReplicaError::Disks(format!("{key} has {found} bytes, the replica's has {wanted}")));
            }
            Ok(disk)
        };
        records.iter().map(one).collect()
    }

    /// Removes the replica `manifest`; repeated after a crash, it goes on.
    pub(crate) fn delete(&self, manifest: &Manifest) -> Result<(), ReplicaError> {
        let manifest = Manifest { being_deleted: true, ..manifest.clone() };
        manifest.store(self.directory.as_ref())?;
        let remove = |volume: &dyn Volume, name: &str| match volume.remove(name) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(ReplicaError::io(format!("removing {}", volume.describe(name)), error))
            }
            _ => Ok(()),
        };
        let list = self.retention.list();
        for (name, _) in list.map_err(|e| ReplicaError::io(format!("listing {}", self.retention.describe("")), e))? {
            let ours = [SUFFIX, RUN_SUFFIX].iter().any(|end| name.ends_with(end));
            if ours || [LOG, PREFIX].iter().any(|start| name.starts_with(start)) {
                remove(self.retention.as_ref(), &name)?;
            }
        }
        for record in &manifest.disks {
            let name = if record.home == DiskHome::Inside { record.file_name() } else { record.rest_name() };
            remove(self.directory.as_ref(), &name)?;
        }
        let sync = |volume: &dyn Volume| {
            volume.sync_directory().map_err(|e| ReplicaError::io(format!("syncing {}", volume.describe("")), e))
        };
        sync(self.retention.as_ref())?;
        sync(self.directory.as_ref())?;
        remove(self.directory.as_ref(), MANIFEST)?;
        sync(self.directory.as_ref())
    }
}

/// Makes the file of a disk inside the directory. One that an interrupted creation left is taken if it was never written.
pub(crate) fn make_inside(record: &DiskRecord, directory: &Path) -> io::Result<()> {
    let path = directory.join(record.file_name());
    match FileDisk::create(&path, record.size) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            if !never_written(&path)? {
                return Err(io::Error::new(error.kind(), format!("{} exists and holds data", path.display())));
            }
            let file = std::fs::File::options().write(true).open(&path)?;
            file.set_len(record.size)?;
            file.sync_all()
        }
        made => made.map(drop),
    }
}
