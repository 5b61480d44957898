//! A machine's folder: everything the platform knows of one machine is a file in it.
//!
//! ```text
//!   <site>/boot/                    kernels that came from another site, found by file name
//!   <site>/started/<name>.json      the newest mark that a start was tracked from; outlives the machine's deletion
//!   <site>/machines/<name>/
//!       machine.json                the description
//!       lock                        held while the machine is defined, started, settled, deleted
//!       pid                         QEMU's; gone after a clean end
//!       life-0..2.sock              monitors for the life cycle
//!       capture.in .out .lock       the monitor for capture, and who may speak on it
//!       agent.in .out .lock         the channel to the guest's agent (see `qemu::agent`), and who may speak on it
//!       frozen.json                 the guest may be frozen
//!       seed.img                    what the guest reads about its network when it starts
//!       cut.lock                    held while the guest stands still for a cut
//!       nbd.sock                    exports of open cuts
//!       console.log                 what the guest printed, over all starts
//!       power-taken                 power was taken from the guest of the QEMU whose id is in it
//!       marks.json, carry.json      what is known about overlays, see `marks`
//!       rest.json, doubt.json       how QEMU left the images, and whether they were found so, see `rest`
//!       overlays/  scratch/
//! ```
//! # If power fails
//! A file is replaced by writing a new one beside it, syncing it, renaming it over the old one and syncing the folder.

use std::fs::{File, OpenOptions};
use std::path::{Path, PathBuf};
use std::time::Duration;

use protocol::Fault;
use protocol::fault::code;
use protocol::machine::MachineSpec;
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Monitors for the life cycle: as many as there may be clients at once, stopped ones among them.
const MONITORS: usize = 3;
/// The longest path of a unix socket (`sun_path`).
const LONGEST_SOCKET: usize = 107;

/// The folder of one machine.
#[derive(Debug, Clone)]
pub(crate) struct Folder {
    site: PathBuf,
    name: String,
    path: PathBuf,
}

impl Folder {
    /// The folder of the machine `name`, which need not exist.
    pub fn new(site: &Path, name: &str) -> Result<Folder, Fault> {
        // A machine's name becomes a file name: the rules for item names are the rules here.
        if let Err(bad) = name.parse::<protocol::ItemId>() {
            return Err(Fault::new(code::MACHINE_ABSENT, format!("there can be no machine {name:?}"), bad.to_string()));
        }
        let folder =
            Folder { site: site.to_path_buf(), name: name.to_string(), path: site.join("machines").join(name) };
        let longest = folder.path.join("capture.lock").as_os_str().len();
        if longest > LONGEST_SOCKET {
            return Err(folder.fault("cannot be kept there", format!("its sockets' paths would have {longest} bytes, more than {LONGEST_SOCKET}; use a site folder with a shorter path")));
        }
        Ok(folder)
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    pub fn life_sockets(&self) -> Vec<PathBuf> {
        (0..MONITORS).map(|n| self.file(&format!("life-{n}.sock"))).collect()
    }

    /// Where a disk of the site is: absolute paths as they are, others below the site's folder.
    pub fn disk_path(&self, path: &str) -> PathBuf {
        self.site.join(path)
    }

    /// Where an overlay is: absolute paths as they are, others below the machine's own folder.
    pub fn overlay_path(&self, path: &str) -> PathBuf {
        self.path.join("overlays").join(path)
    }

    /// Where a kernel is: where it is said to be, else under the same file name at this site.
    pub fn boot_path(&self, path: &str) -> PathBuf {
        let said = self.site.join(path);
        let here = said.file_name().map(|name| self.site.join("boot").join(name));
        if said.exists() { said } else { here.filter(|here| here.exists()).unwrap_or(said) }
    }

    /// The record of the newest mark that a start was tracked from.
    pub fn started_path(&self) -> PathBuf {
        self.site.join("started").join(format!("{}.json", self.name))
    }

    /// A `PLT-001` about this machine.
    pub fn fault(&self, what: &str, why: impl std::fmt::Display) -> Fault {
        Fault::new(code::HYPERVISOR, format!("machine {} {what}", self.name), why.to_string())
    }

    /// The machine's description, none if there is no such machine.
    pub fn spec(&self) -> Result<Option<MachineSpec>, Fault> {
        self.read("machine.json")
    }

    /// The machine's description; `PLT-002` if there is no such machine.
    pub fn known_spec(&self) -> Result<MachineSpec, Fault> {
        self.spec()?.ok_or_else(|| {
            Fault::new(code::MACHINE_ABSENT, format!("there is no machine {}", self.name), "it was never defined here")
        })
    }

    /// A file of the folder as JSON, none if there is no such file.
    pub fn read<T: DeserializeOwned>(&self, name: &str) -> Result<Option<T>, Fault> {
        read_json(&self.file(name)).map_err(|why| self.fault(&format!("has an unreadable {name}"), why))
    }

    /// Replaces a file of the folder, durably.
    pub fn write<T: Serialize>(&self, name: &str, value: &T) -> Result<(), Fault> {
        write_json(&self.file(name), value).map_err(|why| self.fault(&format!("cannot be given its {name}"), why))
    }

    /// Removes a file of the folder, durably; absent is fine.
    pub fn remove(&self, name: &str) -> Result<(), Fault> {
        remove_file(&self.file(name)).map_err(|why| self.fault(&format!("cannot be rid of its {name}"), why))
    }

    /// Takes the lock `name` of the machine, waiting at most `patience` for another process.
    pub async fn lock(&self, name: &str, patience: Duration) -> Result<File, Fault> {
        let path = self.file(name);
        let file = OpenOptions::new().create(true).truncate(false).write(true).open(&path);
        let file = file.map_err(|why| self.fault("cannot be locked", why))?;
        let deadline = tokio::time::Instant::now() + patience;
        loop {
            match rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => return Ok(file),
                Err(rustix::io::Errno::WOULDBLOCK) if tokio::time::Instant::now() < deadline => {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
                Err(rustix::io::Errno::WOULDBLOCK) => {
                    return Err(self.fault("is busy", format!("another process holds {}", path.display())));
                }
                Err(why) => return Err(self.fault("cannot be locked", why)),
            }
        }
    }
}

/// A file as JSON, none if there is no such file.
pub(crate) fn read_json<T: DeserializeOwned>(path: &Path) -> std::io::Result<Option<T>> {
    match std::fs::read(path) {
        Ok(bytes) => Ok(Some(serde_json::from_slice(&bytes)?)),
        Err(why) if why.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(why) => Err(why),
    }
}

/// Replaces a file, durably, so that there is always the old or the new one.
pub(crate) fn write_json<T: Serialize>(path: &Path, value: &T) -> std::io::Result<()> {
    write_new(path, &serde_json::to_vec_pretty(value)?)
}

/// Writes a new file: it is whole when it is there.
pub(crate) fn write_new(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let fresh = path.with_extension("new");
    std::fs::write(&fresh, bytes)?;
    std::fs::File::open(&fresh)?.sync_all()?;
    std::fs::rename(&fresh, path)?;
    sync_parent(path)
}

/// Removes a file, durably; absent is fine.
pub(crate) fn remove_file(path: &Path) -> std::io::Result<()> {
    match std::fs::remove_file(path) {
        Ok(()) => sync_parent(path),
        Err(why) if why.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(why) => Err(why),
    }
}

/// Makes what happened to the names in a file's folder durable.
pub(crate) fn sync_parent(path: &Path) -> std::io::Result<()> {
    path.parent().map_or(Ok(()), |parent| File::open(parent)?.sync_all())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_never_leaves_the_sites_folder() {
        let site = tempfile::tempdir().unwrap();
        for bad in ["..", "a/b", "", ".x"] {
            assert!(Folder::new(site.path(), bad).unwrap_err().is(code::MACHINE_ABSENT));
        }
        assert!(Folder::new(site.path(), "web01").is_ok());
    }

    #[test]
    fn a_kernel_is_found_by_file_name_at_another_site() {
        let site = tempfile::tempdir().unwrap();
        let folder = Folder::new(site.path(), "m").unwrap();
        std::fs::create_dir(site.path().join("boot")).unwrap();
        std::fs::write(site.path().join("boot/vmlinuz"), b"x").unwrap();
        assert_eq!(folder.boot_path("/elsewhere/vmlinuz"), site.path().join("boot/vmlinuz"));
        assert_eq!(folder.boot_path("/elsewhere/other"), Path::new("/elsewhere/other"));
    }

    #[tokio::test]
    async fn a_lock_is_given_once_at_a_time() {
        let site = tempfile::tempdir().unwrap();
        let folder = Folder::new(site.path(), "m").unwrap();
        std::fs::create_dir_all(folder.path()).unwrap();
        let first = folder.lock("lock", Duration::ZERO).await.unwrap();
        assert!(folder.lock("lock", Duration::from_millis(50)).await.is_err());
        drop(first);
        folder.lock("lock", Duration::ZERO).await.unwrap();
    }
}
