//! Change maps as QEMU's dirty bitmaps: one per disk and cut, named after the cut that it counts from.
//!
//! ```text
//!   cut 1.5      ── e1.5 grows ──────────────┐ cut 1.6
//!   e1.5 stands still: what 1.6 carries      ├── e1.6 grows ──
//!      acknowledged(1.6): e1.5 goes          │
//!      failed: e1.5 grows again and takes in e1.6, which goes (one transaction)
//! ```
//! # Always true
//! - The name is true: a bitmap holds every change since the cut that it is named after, or is not `recording`. So nothing
//!   else has to be written down about it. (An overlay's may be completed by a carry, see `marks`.)
//! - What is done to the bitmaps of a machine's disks is done in one transaction: to all disks or to none.
//!
//! # If power fails
//! QEMU marks the bitmaps in a qcow2 as in use while it has them open; after a crash they are inconsistent and useless.

use std::collections::BTreeMap;
use std::path::Path;

use protocol::{Attempt, Lineage};
use serde_json::{Value, json};

use super::qmp::{Command, Qmp, QmpError};
use crate::Held;
use crate::host::image::{self, Kept};
use crate::host::maps::{PREFIX, name, since};

/// Bytes of disk per bit: what is transferred at least.
pub(crate) const GRANULARITY: u64 = protocol::extent::BLOCK;

/// One bitmap of our lineage on one disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Bitmap {
    /// It grows with every write.
    pub recording: bool,
    /// It was in use when QEMU died: it says nothing, and can only be removed.
    pub inconsistent: bool,
    /// Bytes that it calls changed; an image that no QEMU has open does not tell.
    pub bytes: u64,
}

/// The bitmaps of a lineage that a qcow2 keeps, as they would be found by a QEMU that opens it.
pub(crate) async fn kept(image: &Path, lineage: Lineage) -> Result<BTreeMap<Attempt, Bitmap>, String> {
    let kept = image::bitmaps(image).await?;
    let of = |map: &Kept| {
        let since = since(lineage, &map.name)?;
        Some((since, Bitmap { recording: map.recording, inconsistent: map.inconsistent, bytes: 0 }))
    };
    Ok(kept.iter().filter_map(of).collect())
}

/// The bitmaps of a lineage on every disk of a machine.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Bitmaps {
    disks: Vec<BTreeMap<Attempt, Bitmap>>,
}

impl Bitmaps {
    /// One set per disk, in the order of the disks.
    pub fn new(disks: Vec<BTreeMap<Attempt, Bitmap>>) -> Bitmaps {
        Bitmaps { disks }
    }

    /// Asks a running QEMU. `nodes` are the disks' nodes.
    pub async fn ask(qmp: &mut Qmp, lineage: Lineage, nodes: &[String]) -> Result<Bitmaps, QmpError> {
        let all = qmp.execute("query-named-block-nodes", json!({ "flat": true })).await?;
        let of = |node: &String| {
            let found = all.as_array().into_iter().flatten().find(|found| found["node-name"] == **node);
            let maps = found.and_then(|found| found["dirty-bitmaps"].as_array()).into_iter().flatten();
            maps.filter_map(|map| {
                let since = since(lineage, map["name"].as_str()?)?;
                let inconsistent = map["inconsistent"].as_bool().unwrap_or(false);
                let (recording, bytes) =
                    (map["recording"].as_bool().unwrap_or(false), map["count"].as_u64().unwrap_or(0));
                Some((since, Bitmap { recording, inconsistent, bytes }))
            })
            .collect()
        };
        Ok(Bitmaps { disks: nodes.iter().map(of).collect() })
    }

    /// The maps that every disk has and that can be believed, ascending; empty unless the newest of them grows: one that
    /// stood still since nobody knows when holds less than its name says.
    pub fn held(&self) -> Vec<Held> {
        let Some((first, others)) = self.disks.split_first() else { return Vec::new() };
        let mut held = Vec::new();
        for (since, map) in first {
            let all = || std::iter::once(Some(map)).chain(others.iter().map(|disk| disk.get(since)));
            if all().all(|map| map.is_some_and(|map| !map.inconsistent)) {
                let recording = all().all(|map| map.is_some_and(|map| map.recording));
                held.push(Held { since: *since, recording });
            }
        }
        if held.last().is_some_and(|newest| newest.recording) { held } else { Vec::new() }
    }

    /// The cut that the oldest map counts from that can be believed, and what the maps hold together, at most.
    pub fn changed(&self) -> Option<(Attempt, u64)> {
        let held = self.held();
        let of = |disk: &BTreeMap<Attempt, Bitmap>| {
            held.iter().filter_map(|held| disk.get(&held.since)).map(|map| map.bytes).sum::<u64>()
        };
        held.first().map(|oldest| (oldest.since, self.disks.iter().map(of).sum()))
    }

    /// Whether any disk has one that was in use when QEMU died.
    pub fn inconsistent(&self) -> bool {
        self.disks.iter().flat_map(BTreeMap::values).any(|map| map.inconsistent)
    }

    /// Every bitmap for which `unwanted` holds, as actions that remove it.
    pub fn removals(&self, lineage: Lineage, nodes: &[String], unwanted: impl Fn(Attempt) -> bool) -> Vec<Value> {
        let disks = nodes.iter().zip(&self.disks);
        disks
            .flat_map(|(node, maps)| maps.keys().map(move |since| (node, since)))
            .filter(|(_, since)| unwanted(**since))
            .map(|(node, since)| {
                let data = json!({ "node": node, "name": name(lineage, *since) });
                json!({ "type": "block-dirty-bitmap-remove", "data": data })
            })
            .collect()
    }
}

/// Which disks, by node, can keep a bitmap over a restart of QEMU.
pub(crate) type Nodes<'a> = &'a [(String, bool)];

/// Actions that let new maps count from `since`.
pub(crate) fn begin(lineage: Lineage, since: Attempt, nodes: Nodes<'_>) -> Vec<Value> {
    let add = |(node, persistent): &(String, bool)| {
        let data =
            json!({ "node": node, "name": name(lineage, since), "granularity": GRANULARITY, "persistent": persistent });
        json!({ "type": "block-dirty-bitmap-add", "data": data })
    };
    nodes.iter().map(add).collect()
}

/// Actions that let the maps since `old` stand still.
pub(crate) fn freeze(lineage: Lineage, old: Attempt, nodes: Nodes<'_>) -> Vec<Value> {
    nodes.iter().map(|(node, _)| action("disable", node, &name(lineage, old))).collect()
}

/// Actions that let the maps since `old` grow again, with everything in those since `new`, which go.
pub(crate) fn merge_back(lineage: Lineage, old: Attempt, new: Attempt, nodes: Nodes<'_>) -> Vec<Value> {
    let (old, new) = (name(lineage, old), name(lineage, new));
    let each = |(node, _): &(String, bool)| {
        let merge = json!({ "node": node, "target": old, "bitmaps": [new] });
        [
            action("enable", node, &old),
            json!({ "type": "block-dirty-bitmap-merge", "data": merge }),
            action("remove", node, &new),
        ]
    };
    #[cfg(feature = "sabotage")]
    if protocol::sabotage::is("merge-back-skipped") {
        return nodes.iter().flat_map(each).filter(|action| action["type"] != "block-dirty-bitmap-merge").collect();
    }
    nodes.iter().flat_map(each).collect()
}

fn action(verb: &str, node: &str, name: &str) -> Value {
    json!({ "type": format!("block-dirty-bitmap-{verb}"), "data": { "node": node, "name": name } })
}

/// The transaction of some actions; none for no actions, which QEMU would refuse.
pub(crate) fn transaction(actions: Vec<Value>) -> Option<Command> {
    (!actions.is_empty()).then(|| Command::new("transaction", json!({ "actions": actions })))
}

/// Removes every map of ours, of whatever lineage, but those that nobody believes anyway. Gives how many there were.
pub(crate) async fn forget_all(qmp: &mut Qmp, nodes: &[String]) -> Result<usize, QmpError> {
    let all = qmp.execute("query-named-block-nodes", json!({ "flat": true })).await?;
    let mut actions = Vec::new();
    for found in all.as_array().into_iter().flatten() {
        let Some(node) = nodes.iter().find(|node| found["node-name"] == ***node) else { continue };
        for map in found["dirty-bitmaps"].as_array().into_iter().flatten() {
            if let Some(name) = map["name"].as_str().filter(|name| name.starts_with(PREFIX))
                && map["inconsistent"] != true
            {
                actions.push(action("remove", node, name));
            }
        }
    }
    let count = actions.len();
    transact(qmp, actions).await?;
    Ok(count)
}

/// Runs actions in one transaction.
pub(crate) async fn transact(qmp: &mut Qmp, actions: Vec<Value>) -> Result<(), QmpError> {
    if let Some(command) = transaction(actions) {
        qmp.execute(command.name, command.arguments).await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(number: u64) -> Attempt {
        Attempt { generation: 1, number }
    }

    fn maps(maps: &[(u64, bool, bool)]) -> BTreeMap<Attempt, Bitmap> {
        maps.iter()
            .map(|(n, recording, inconsistent)| {
                (at(*n), Bitmap { recording: *recording, inconsistent: *inconsistent, bytes: 10 })
            })
            .collect()
    }

    #[test]
    fn a_name_tells_its_cut_and_nobody_elses_is_ours() {
        let (mine, other) = (Lineage::fresh(), Lineage::fresh());
        assert_eq!(since(mine, &name(mine, at(17))), Some(at(17)));
        assert_eq!(since(mine, &name(other, at(17))), None);
        for stranger in [
            "",
            "sockeye",
            "backup-1",
            &format!("sockeye-{mine}-1"),
            &format!("sockeye-{mine}-1-2-3"),
            &format!("sockeye-{mine}-x-2"),
        ] {
            assert_eq!(since(mine, stranger), None, "{stranger}");
        }
    }

    #[test]
    fn only_what_every_disk_holds_can_be_believed() {
        let whole = Bitmaps::new(vec![
            maps(&[(1, false, false), (2, true, false)]),
            maps(&[(1, false, false), (2, true, false)]),
        ]);
        assert_eq!(whole.held(), [Held { since: at(1), recording: false }, Held { since: at(2), recording: true }]);
        assert_eq!(whole.changed(), Some((at(1), 40)));
        assert_eq!(Bitmaps::default().changed(), None);
        let one_disk_lacks_it = Bitmaps::new(vec![maps(&[(2, true, false)]), maps(&[])]);
        assert_eq!(one_disk_lacks_it.held(), []);
        let one_was_in_use = Bitmaps::new(vec![maps(&[(2, true, false)]), maps(&[(2, true, true)])]);
        assert_eq!(one_was_in_use.held(), []);
        assert!(one_was_in_use.inconsistent());
        let stands_still = Bitmaps::new(vec![maps(&[(2, false, false)])]);
        assert_eq!(stands_still.held(), []);
        let newer_is_lost = Bitmaps::new(vec![maps(&[(1, false, false), (2, true, true)])]);
        assert_eq!(newer_is_lost.held(), [], "the older one stopped growing at the newer one's cut");
        assert_eq!(Bitmaps::default().held(), []);
    }
}
