//! An open cut as libvirt keeps it: a pull-mode backup, which serves every disk as it was when the backup began.
//!
//! ```text
//!   begin     scratch per disk ─► backup-begin { since: checkpoint, new: checkpoint }      one transaction inside QEMU
//!   read      NBD over a socket in the machine's folder; the map it closed is a context of each export
//!   end       domjobabort ─► scratch goes
//! ```
//! # Always true
//! - The guest's writes never fail for want of scratch: before the backup begins, the file system has set room aside for a
//!   whole disk each (past the end of the file, so that the image in it stays small). Where it cannot, there is no cut.
//! - One backup at a time is libvirt's rule. Another program's is never ended by us.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nbd::Uri;
use protocol::extent::BlockMap;
use protocol::{Fault, Freeze, Lineage, Quiesce};
use xmltree::Element;

use super::access::RUN;
use super::document::Document;
use super::domain::Target;
use super::virsh::VirshError;
use super::{Site, agent, life};
use crate::host::folder::Folder;
use crate::host::{image, maps};

/// The map that a backup closed, as a context of its exports.
const CHANGES: &str = "changes";
/// How long a backup may take to end, and how often it is looked whether it has.
const END_PATIENCE: Duration = Duration::from_secs(10);
const LOOK_AGAIN: Duration = Duration::from_millis(10);

/// Where a machine's backups are served.
fn socket(folder: &Folder) -> PathBuf {
    folder.file(RUN).join("nbd.sock")
}

fn scratch(folder: &Folder, target: &Target) -> PathBuf {
    folder.file("scratch").join(format!("{}.qcow2", target.dev))
}

/// What a backup is to be.
pub(crate) struct Wish<'a> {
    /// Its disks, and how large they are.
    pub disks: &'a [(Target, u64)],
    /// The checkpoint since which changes are told.
    pub since: Option<&'a str>,
    /// The checkpoint that is made with it.
    pub begins: Option<&'a str>,
    /// What its exports' names begin with.
    pub name: &'a str,
    /// Whether the guest may write meanwhile.
    pub writes: bool,
    /// Whether the guest's agent is asked to freeze it for the beginning.
    pub quiesce: Option<Quiesce>,
}

impl Wish<'_> {
    fn export(&self, target: &Target) -> String {
        format!("{}-{}", self.name, target.key)
    }

    /// What libvirt is told.
    fn document(&self, folder: &Folder) -> Element {
        let mut backup = Element::new("domainbackup");
        backup.set("mode", "pull");
        if let Some(since) = self.since {
            backup.child("incremental").say(since);
        }
        backup.child("server").set("transport", "unix").set("socket", socket(folder).display());
        let disks = backup.child("disks");
        for (target, _) in self.disks {
            let mut disk = Element::new("disk");
            disk.set("name", &target.dev).set("backup", "yes").set("type", "file");
            disk.set("exportname", self.export(target)).set("exportbitmap", CHANGES);
            disk.child("driver").set("type", "qcow2");
            disk.child("scratch").set("file", scratch(folder, target).display());
            disks.add(disk);
        }
        backup
    }

    /// Begins it. What the guest's agent did, where it was asked.
    pub async fn begin(&self, site: &Site, folder: &Folder, lock: &File) -> Result<Option<Freeze>, Fault> {
        let cannot = |why: String| folder.fault("cannot be cut", why);
        if let Some(whose) = whose(site, folder).await? {
            return Err(cannot(format!("a backup is under way ({whose}), and libvirt runs one at a time")));
        }
        self.prepare(folder).await.map_err(|why| folder.fault("cannot be given scratch for a cut", why))?;
        let (backup, checkpoint) = (folder.file("backup.xml"), folder.file("checkpoint.xml"));
        let write =
            |path: &Path, what: &Element| std::fs::write(path, what.written()).map_err(|why| cannot(why.to_string()));
        write(&backup, &self.document(folder))?;
        let mut words = vec!["backup-begin", folder.name(), "--reuse-external", "--backupxml"];
        let (backup, checkpoint_path) = (backup.to_string_lossy(), checkpoint.to_string_lossy());
        words.push(&backup);
        if let Some(begins) = self.begins {
            let mut document = Element::new("domaincheckpoint");
            document.child("name").say(begins);
            write(&checkpoint, &document)?;
            words.extend(["--checkpointxml", &checkpoint_path]);
        }
        let Some(wish) = self.quiesce else {
            return site.virsh.run(lock, &words).await.map(|_| None).map_err(|why| cannot(why.to_string()));
        };
        let (freeze, begun) = agent::freeze_around(site, folder, lock, wish, &words).await?;
        begun.map(|()| Some(freeze)).map_err(cannot)
    }

    /// Makes scratch, with room set aside where the guest may write.
    async fn prepare(&self, folder: &Folder) -> Result<(), String> {
        let told = |why: std::io::Error| why.to_string();
        let _ = std::fs::remove_file(socket(folder));
        for (target, size) in self.disks {
            let path = scratch(folder, target);
            let _ = std::fs::remove_file(&path);
            image::create_empty(&path, *size).await?;
            if self.writes {
                let file = File::options().write(true).open(&path).map_err(told)?;
                set_aside(&file, *size).map_err(|why| {
                    format!("{size} bytes cannot be set aside in {} for disk {}: {why}", path.display(), target.key)
                })?;
            }
        }
        Ok(())
    }

    /// The exports of it, in the order of the disks.
    pub fn exports(&self, folder: &Folder) -> Vec<Uri> {
        self.disks.iter().map(|(target, _)| Uri::unix(socket(folder), self.export(target))).collect()
    }

    /// What changed on each disk since the checkpoint that it was begun with.
    pub async fn changes(&self, folder: &Folder) -> Result<Vec<BlockMap>, Fault> {
        let mut all = Vec::new();
        for export in self.exports(folder) {
            let read = maps::read(&export, CHANGES).await;
            all.push(read.map_err(|why| folder.fault("does not tell what changed", why))?.0);
        }
        Ok(all)
    }
}

/// Sets room aside for all that a scratch image can become, with what it needs to find it again (a 512th, generously).
fn set_aside(file: &File, size: u64) -> std::io::Result<()> {
    let most = size.saturating_add(size / 512).saturating_add(4 << 20);
    rustix::fs::fallocate(file, rustix::fs::FallocateFlags::KEEP_SIZE, 0, most)?;
    Ok(())
}

/// Whose backup runs: what its server is called; none where none does.
async fn whose(site: &Site, folder: &Folder) -> Result<Option<String>, Fault> {
    match site.virsh.ask(&["backup-dumpxml", folder.name()]).await {
        Ok(told) => {
            let backup = Element::read(&told).map_err(|why| folder.fault("does not tell its backup", why))?;
            let served = backup.has_at(&["server"], "socket").or(backup.has_at(&["server"], "name"));
            Ok(Some(served.unwrap_or("pushed to a file").into()))
        }
        // There is none, or the machine is off: unless nobody can be asked.
        Err(VirshError::Refused(_)) => life::state(site, folder).await.map(|_| None),
        Err(why) => Err(folder.fault("does not tell its backup", why)),
    }
}

/// Ends our backup, if one runs, and takes its scratch away.
pub(crate) async fn end(site: &Site, folder: &Folder, lock: &File) -> Result<(), Fault> {
    if is_ours(site, folder).await? {
        let ended = site.virsh.run(lock, &["domjobabort", folder.name()]).await;
        // It is over when it is gone: the next one could not begin before.
        let start = tokio::time::Instant::now();
        while is_ours(site, folder).await? {
            if start.elapsed() > END_PATIENCE {
                let why = ended.err().map_or("its backup runs on".into(), |why| why.to_string());
                return Err(folder.fault("does not end a cut", why));
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }
    if let Ok(files) = std::fs::read_dir(folder.file("scratch")) {
        files.flatten().for_each(|file| drop(std::fs::remove_file(file.path())));
    }
    Ok(())
}

/// Whether a backup of ours runs.
async fn is_ours(site: &Site, folder: &Folder) -> Result<bool, Fault> {
    Ok(whose(site, folder).await?.is_some_and(|whose| Path::new(&whose) == socket(folder)))
}

/// Reads what changed since our checkpoint `since` on a machine whose guest stands still, without making one.
pub(crate) async fn read_changes(
    site: &Site,
    folder: &Folder,
    lock: &File,
    disks: &[(Target, u64)],
    lineage: Lineage,
    since: protocol::Attempt,
) -> Result<Vec<BlockMap>, Fault> {
    let since = maps::name(lineage, since);
    let wish = Wish { disks, since: Some(&since), begins: None, name: "settle", writes: false, quiesce: None };
    wish.begin(site, folder, lock).await?;
    let changes = wish.changes(folder).await;
    end(site, folder, lock).await?;
    changes
}

/// Whether libvirt can follow what changes on every disk: it keeps its maps in qcow2 images only.
pub(crate) fn is_tracked(spec: &protocol::machine::MachineSpec) -> bool {
    use protocol::machine::{DiskFormat, DiskSource};
    let raw = |source: &DiskSource| matches!(source, DiskSource::Own { format: DiskFormat::Raw, .. });
    !spec.disks.iter().any(|disk| raw(&disk.source))
}
