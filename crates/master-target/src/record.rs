//! What a master target remembers of an item beside its replica: who may send, where the copy stands, what is raised.
//!
//! One JSON file per item, replaced as a whole (written beside, synced, renamed): it holds either the old or the new
//! truth. It is small and changes with orders, never with epochs.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::path::{Path, PathBuf};

use protocol::keeping::ItemManifest;
use protocol::leaf::LeafSize;
use protocol::machine::MachineSpec;
use protocol::order::Grant;
use protocol::{Attempt, DiskKey, ItemId, Lineage, Position, Retention};
use serde::{Deserialize, Serialize};

/// The record of one item.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Record {
    pub(crate) item: ItemId,
    pub(crate) lineage: Lineage,
    /// Who may send; none while the replica is closed.
    pub(crate) grant: Option<Grant>,
    /// Where the copy stands when its newest point is not itself one that the other side knows.
    pub(crate) standing: Option<Standing>,
    /// The point that `GiveBack` returns to: the copy as it was when it was taken over.
    pub(crate) kept: Option<Standing>,
    /// The first epoch of the grant may overwrite the copy without keeping what was there (H14).
    #[serde(default)]
    pub(crate) no_way_back: bool,
    /// It did, and was given up: nothing may be started from the copy before it was taken over again.
    #[serde(default)]
    pub(crate) damaged: bool,
    /// The machine that stands on a view of this replica.
    pub(crate) raised: Option<Raised>,
    /// The test machine that stands on another view.
    #[serde(default)]
    pub(crate) test: Option<Test>,
    /// Views that are served to people, by number.
    #[serde(default)]
    pub(crate) views: BTreeMap<i64, Served>,
    /// There is no replica any more: the machine that stood on it is being folded, or was.
    #[serde(default)]
    pub(crate) folded: Option<Folded>,
    /// Which points stay; as control last said.
    #[serde(default)]
    pub(crate) retention: Retention,
    /// How much of a disk one kept hash is to stand for.
    #[serde(default)]
    pub(crate) leaf_bytes: LeafSize,
    /// What control knows of the item, as it last said: a new control server is rebuilt from it.
    #[serde(default)]
    pub(crate) manifest: Option<ItemManifest>,
}

/// A machine that is folded into its own disks.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Folded {
    /// The machine's name.
    pub(crate) machine: String,
    /// Where its disks stood when its generation began.
    pub(crate) position: Position,
    /// The disks that the replica was made around.
    pub(crate) disks: Vec<DiskKey>,
    /// Where its pinned points were written out.
    #[serde(default)]
    pub(crate) exported: Vec<String>,
}

/// A point that only this copy has, and where the copy stands with it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Standing {
    /// While this is the newest point …
    pub(crate) at: Attempt,
    /// … the copy stands here.
    pub(crate) position: Position,
}

/// A machine raised from a point.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Raised {
    pub(crate) point: Attempt,
    pub(crate) generation: u64,
    /// The machine on its overlays.
    pub(crate) spec: MachineSpec,
    /// What the site knew under that name before, to be put back.
    pub(crate) before: Option<MachineSpec>,
    /// The secret with which its process server may ask for the kept hashes of what it stands on.
    #[serde(default)]
    pub(crate) reader: Option<String>,
}

/// A machine that runs from a point to be tried.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Test {
    pub(crate) point: Attempt,
    /// The machine on its overlays.
    pub(crate) spec: MachineSpec,
}

/// A point that is served to people.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Served {
    pub(crate) point: Attempt,
    /// On a scratch overlay.
    pub(crate) writable: bool,
}

impl Record {
    /// The record of an item for which nothing was done yet.
    pub(crate) fn new(item: ItemId, lineage: Lineage, grant: Option<Grant>) -> Record {
        Record {
            item,
            lineage,
            grant,
            standing: None,
            kept: None,
            no_way_back: false,
            damaged: false,
            raised: None,
            test: None,
            views: BTreeMap::new(),
            folded: None,
            retention: Retention::default(),
            leaf_bytes: LeafSize::default(),
            manifest: None,
        }
    }

    /// Every point that something stands on: none of them may be pruned.
    pub(crate) fn stood_on(&self) -> BTreeSet<Attempt> {
        let raised = self.raised.iter().map(|raised| raised.point);
        let test = self.test.iter().map(|test| test.point);
        raised.chain(test).chain(self.views.values().map(|view| view.point)).collect()
    }

    /// The points that stay whatever the policy says.
    pub(crate) fn needed(&self) -> Vec<Attempt> {
        self.stood_on().into_iter().chain(self.kept.as_ref().map(|kept| kept.at)).collect()
    }

    pub(crate) fn load(file: &Path) -> std::io::Result<Record> {
        Ok(serde_json::from_slice(&std::fs::read(file)?)?)
    }

    pub(crate) fn save(&self, file: &Path) -> std::io::Result<()> {
        replace(file, &serde_json::to_vec_pretty(self)?)
    }
}

/// Replaces a small file as a whole.
pub(crate) fn replace(file: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let fresh = file.with_extension("new");
    let mut out = std::fs::File::create(&fresh)?;
    out.write_all(bytes)?;
    out.sync_all()?;
    std::fs::rename(&fresh, file)?;
    sync_parent(file)
}

/// Makes the names in `file`'s directory durable.
pub(crate) fn sync_parent(file: &Path) -> std::io::Result<()> {
    let parent: PathBuf = file.parent().map_or_else(|| ".".into(), Path::to_path_buf);
    std::fs::File::open(parent)?.sync_all()
}
