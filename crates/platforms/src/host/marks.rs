//! What is known about overlays beyond their bitmaps, and which mark a start may count from.
//!
//! ```text
//!   created ─► Fresh ── start tracked from m ─► Since(m): everything that the overlay holds is a superset of "changed since m"
//!                └───── start untracked ──────► (no mark, ever)
//! ```
//! An overlay's allocation survives every crash of QEMU; its bitmaps do not. So after a crash the map since the mark is
//! `carry` (the allocation at the restart) plus a new bitmap, which is named after the mark and completed by the carry
//! wherever it is read.
//!
//! # Always true
//! - A mark belongs to the very file (inode) that was created with it.
//! - A mark is written down before the guest can write.
//! - A bitmap is named after the mark of a start only if no earlier start used that mark: on a disk of the platform's own
//!   a second start from the same mark means that the first one's map was lost.

use std::collections::BTreeMap;

use protocol::extent::BlockMap;
use protocol::machine::MachineSpec;
use protocol::{Attempt, DiskKey, Fault, Lineage};
use serde::{Deserialize, Serialize};

use super::folder::{self, Folder};
use super::image;

/// A cut of a lineage.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Mark {
    pub lineage: Lineage,
    pub attempt: Attempt,
}

/// What is known of one overlay.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Overlay {
    inode: u64,
    // None: it is empty, no guest has run on it.
    since: Option<Mark>,
}

/// What is known of a machine's overlays.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Marks(BTreeMap<DiskKey, Overlay>);

impl Marks {
    pub fn read(folder: &Folder) -> Result<Marks, Fault> {
        Ok(folder.read("marks.json")?.unwrap_or_default())
    }

    /// Remembers that the overlay of `disk` with this inode is empty.
    pub fn fresh(&mut self, folder: &Folder, disk: &DiskKey, inode: u64) -> Result<(), Fault> {
        self.0.insert(disk.clone(), Overlay { inode, since: None });
        folder.write("marks.json", self)
    }

    /// Remembers that a guest is about to run, tracked from `mark` or not.
    pub fn started(&mut self, folder: &Folder, mark: Option<Mark>) -> Result<(), Fault> {
        let before = self.clone();
        match mark {
            Some(mark) => self.0.values_mut().for_each(|overlay| overlay.since = overlay.since.or(Some(mark))),
            None => self.0.retain(|_, overlay| overlay.since.is_some()),
        }
        if *self == before { Ok(()) } else { folder.write("marks.json", self) }
    }

    /// Forgets what is known: the overlays are not those that were known.
    pub fn forget(&mut self, folder: &Folder) -> Result<(), Fault> {
        self.0.clear();
        folder.remove("marks.json")
    }

    /// The cut of `lineage` that the allocation of all disks counts from: every disk is an overlay with that mark.
    pub fn common(&self, folder: &Folder, spec: &MachineSpec, lineage: Lineage) -> Option<Attempt> {
        let mut common = None;
        for disk in &spec.disks {
            let overlay = disk.source.overlay()?;
            let known = self.0.get(&disk.key)?;
            let mark = known.since.filter(|mark| mark.lineage == lineage)?;
            if image::inode(&folder.overlay_path(overlay)).ok()? != known.inode {
                return None;
            }
            if common.is_some_and(|common| common != mark.attempt) {
                return None;
            }
            common = Some(mark.attempt);
        }
        common
    }
}

/// What every overlay of the machine holds.
pub(crate) async fn allocation(folder: &Folder, spec: &MachineSpec) -> Result<BTreeMap<DiskKey, BlockMap>, Fault> {
    let mut maps = BTreeMap::new();
    #[cfg(feature = "sabotage")]
    if protocol::sabotage::is("overlay-map-ignored") {
        return Ok(maps);
    }
    for disk in &spec.disks {
        if let Some(overlay) = disk.source.overlay() {
            let map = image::allocated(&folder.overlay_path(overlay)).await;
            let map = map.map_err(|why| folder.fault("has an overlay that cannot be read", why))?;
            maps.insert(disk.key.clone(), map);
        }
    }
    Ok(maps)
}

/// Changes that belong to the bitmaps since a mark but were made before those began.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Carry {
    pub since: Mark,
    pub maps: BTreeMap<DiskKey, BlockMap>,
}

impl Carry {
    /// The changes carried for maps that count from this cut; usually none.
    pub fn read(folder: &Folder, lineage: Lineage, since: Attempt) -> Result<BTreeMap<DiskKey, BlockMap>, Fault> {
        let carry: Option<Carry> = folder.read("carry.json")?;
        let mine = carry.filter(|carry| carry.since == Mark { lineage, attempt: since });
        Ok(mine.map(|carry| carry.maps).unwrap_or_default())
    }

    /// Forgets what is carried for maps that count from a cut before `attempt`.
    pub fn forget_before(folder: &Folder, lineage: Lineage, attempt: Attempt) -> Result<(), Fault> {
        let carry: Option<Carry> = folder.read("carry.json")?;
        match carry {
            Some(carry) if carry.since.lineage == lineage && carry.since.attempt < attempt => {
                folder.remove("carry.json")
            }
            _ => Ok(()),
        }
    }
}

/// Whether no start was ever tracked from this mark or a later one; from now on one was.
pub(crate) fn claim(folder: &Folder, mark: Mark) -> Result<bool, Fault> {
    let path = folder.started_path();
    let cannot = |why: std::io::Error| folder.fault("cannot be given a record of its starts", why);
    let mut newest: BTreeMap<Lineage, Attempt> = folder::read_json(&path).map_err(cannot)?.unwrap_or_default();
    if newest.get(&mark.lineage).is_some_and(|newest| *newest >= mark.attempt) {
        return Ok(false);
    }
    newest.insert(mark.lineage, mark.attempt);
    folder::write_json(&path, &newest).map_err(cannot)?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn machine(disks: &[(&str, bool)]) -> (tempfile::TempDir, Folder, MachineSpec, Marks) {
        let site = tempfile::tempdir().unwrap();
        let folder = Folder::new(site.path(), "m").unwrap();
        std::fs::create_dir_all(folder.file("overlays")).unwrap();
        std::fs::create_dir_all(site.path().join("started")).unwrap();
        let mut marks = Marks::default();
        let disks = disks.iter().map(|(key, overlay)| {
            let file = format!("{key}.qcow2");
            let key: DiskKey = key.parse().unwrap();
            let source = if *overlay {
                std::fs::write(folder.overlay_path(&file), b"").unwrap();
                marks.fresh(&folder, &key, image::inode(&folder.overlay_path(&file)).unwrap()).unwrap();
                serde_json::json!({ "overlay_on_view": { "overlay": file, "view": "nbd://127.0.0.1/x" } })
            } else {
                serde_json::json!({ "own": { "path": file, "format": "raw" } })
            };
            serde_json::json!({ "key": key, "size": 1 << 20, "source": source })
        });
        let disks: Vec<_> = disks.collect();
        let spec = serde_json::json!({ "name": "m", "memory_mib": 64, "vcpus": 1, "boot": "firmware", "disks": disks });
        (site, folder, serde_json::from_value(spec).unwrap(), marks)
    }

    fn mark(generation: u64) -> Mark {
        Mark { lineage: Lineage(uuid::Uuid::nil()), attempt: Attempt::start_of(generation) }
    }

    #[test]
    fn an_overlay_counts_from_its_first_tracked_start() {
        let (_site, folder, spec, mut marks) = machine(&[("a", true), ("b", true)]);
        assert_eq!(marks.common(&folder, &spec, mark(2).lineage), None);
        marks.started(&folder, Some(mark(2))).unwrap();
        marks.started(&folder, Some(mark(3))).unwrap();
        marks.started(&folder, None).unwrap();
        assert_eq!(Marks::read(&folder).unwrap(), marks);
        assert_eq!(marks.common(&folder, &spec, mark(2).lineage), Some(mark(2).attempt));
        assert_eq!(marks.common(&folder, &spec, Lineage::fresh()), None);
    }

    #[test]
    fn an_overlay_that_ran_untracked_or_was_replaced_never_counts() {
        let (_site, folder, spec, mut marks) = machine(&[("a", true)]);
        marks.started(&folder, None).unwrap();
        marks.started(&folder, Some(mark(2))).unwrap();
        assert_eq!(marks.common(&folder, &spec, mark(2).lineage), None);

        let (_site, folder, spec, mut marks) = machine(&[("a", true)]);
        marks.started(&folder, Some(mark(2))).unwrap();
        std::fs::write(folder.overlay_path("other"), b"").unwrap();
        std::fs::rename(folder.overlay_path("other"), folder.overlay_path("a.qcow2")).unwrap();
        assert_eq!(marks.common(&folder, &spec, mark(2).lineage), None);
    }

    #[test]
    fn one_disk_of_the_platforms_own_takes_the_allocation_from_all() {
        let (_site, folder, spec, mut marks) = machine(&[("a", true), ("b", false)]);
        marks.started(&folder, Some(mark(2))).unwrap();
        assert_eq!(marks.common(&folder, &spec, mark(2).lineage), None);
    }

    #[test]
    fn a_mark_is_claimed_once() {
        let (_site, folder, ..) = machine(&[]);
        assert!(claim(&folder, mark(2)).unwrap());
        assert!(!claim(&folder, mark(2)).unwrap());
        assert!(!claim(&folder, mark(1)).unwrap());
        assert!(claim(&folder, mark(3)).unwrap());
        assert!(claim(&folder, Mark { lineage: Lineage::fresh(), ..mark(2) }).unwrap());
    }

    #[test]
    fn a_carry_belongs_to_one_mark_and_goes_with_it() {
        let (_site, folder, ..) = machine(&[]);
        let maps: BTreeMap<DiskKey, BlockMap> = [("a".parse().unwrap(), BlockMap::whole(10))].into();
        folder.write("carry.json", &Carry { since: mark(2), maps: maps.clone() }).unwrap();
        let lineage = mark(2).lineage;
        assert_eq!(Carry::read(&folder, lineage, mark(2).attempt).unwrap(), maps);
        assert!(Carry::read(&folder, lineage, mark(2).attempt.next()).unwrap().is_empty());
        Carry::forget_before(&folder, lineage, mark(2).attempt).unwrap();
        assert_eq!(Carry::read(&folder, lineage, mark(2).attempt).unwrap(), maps);
        Carry::forget_before(&folder, lineage, mark(2).attempt.next()).unwrap();
        assert!(Carry::read(&folder, lineage, mark(2).attempt).unwrap().is_empty());
    }
}
