//! Checkpoints: libvirt's names for change maps, and what keeps ours and other programs' apart.
//!
//! ```text
//!   other.1 ◄── sockeye-…-1-7 ◄── other.2 ◄── sockeye-…-1-8      each holds what changed until the next one; the last grows
//!
//!   changed since 1.7 = sockeye-…-1-7 ∪ other.2 ∪ sockeye-…-1-8       libvirt itself makes the union
//!   1.8 is acknowledged: 1.7 is deleted, and other.1 takes in what it held       1.8 failed: other.2 takes in what it held
//! ```
//! # Always true
//! - Only checkpoints of ours are deleted, and with libvirt's own call, which gives what they held to the one before.

use std::fs::File;

use protocol::{Attempt, Fault, Lineage};
use xmltree::Element;

use super::Site;
use super::document::Document;
use super::virsh::VirshError;
use crate::Held;
use crate::host::folder::Folder;
use crate::host::maps;

/// The checkpoints of a machine.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Chain {
    /// All of them, each after the one it follows.
    pub names: Vec<String>,
    lineage: Option<Lineage>,
}

impl Chain {
    /// Asks libvirt.
    pub async fn ask(site: &Site, folder: &Folder, lineage: Lineage) -> Result<Chain, Fault> {
        let told = site.virsh.ask(&["checkpoint-list", "--topological", "--name", folder.name()]).await;
        let told = told.map_err(|why| folder.fault("does not tell its checkpoints", why))?;
        let names = told.lines().map(str::trim).filter(|line| !line.is_empty()).map(String::from).collect();
        Ok(Chain { names, lineage: Some(lineage) })
    }

    /// Ours of the lineage, ascending by cut.
    pub fn ours(&self) -> Vec<(Attempt, &str)> {
        let since = |name: &str| self.lineage.and_then(|lineage| maps::since(lineage, name));
        let mut ours: Vec<_> = self.names.iter().filter_map(|name| Some((since(name)?, name.as_str()))).collect();
        ours.sort();
        ours
    }

    /// All that hold changes since that cut, the cut's own first.
    pub fn from(&self, name: &str) -> &[String] {
        let place = self.names.iter().position(|other| other == name).unwrap_or(self.names.len());
        &self.names[place..]
    }
}

/// The maps of the lineage that a machine which libvirt runs holds and that can be believed, and whether some cannot.
pub(crate) async fn held(site: &Site, folder: &Folder, lineage: Lineage) -> Result<(Vec<Held>, bool), Fault> {
    let chain = Chain::ask(site, folder, lineage).await?;
    let mut held = Vec::new();
    let mut broken = false;
    for (since, name) in chain.ours() {
        // Nothing is known since a cut when one of the maps after it is lost.
        match bytes(site, folder, &chain, name).await? {
            Some(_) => held.push(Held { since, recording: false }),
            None => broken = true,
        }
    }
    if let Some(newest) = held.last_mut() {
        newest.recording = true;
    }
    Ok((held, broken))
}

/// How many bytes changed since a cut, as libvirt counts them; none where a map is missing or was in use when QEMU died.
pub(crate) async fn bytes(site: &Site, folder: &Folder, chain: &Chain, name: &str) -> Result<Option<u64>, Fault> {
    let cannot = |why: String| folder.fault("does not tell its change maps", why);
    let mut sum = 0;
    for name in chain.from(name) {
        let asked = site.virsh.ask(&["checkpoint-dumpxml", "--size", "--no-domain", folder.name(), name]).await;
        let told = match asked {
            Ok(told) => told,
            // "checkpoint inconsistent: missing or broken bitmap".
            Err(VirshError::Refused(words)) if words.contains("bitmap") => return Ok(None),
            Err(why) => return Err(cannot(why.to_string())),
        };
        let checkpoint = Element::read(&told).map_err(cannot)?;
        let disks = checkpoint.at(&["disks"]).into_iter().flat_map(|disks| disks.all("disk"));
        for disk in disks.filter(|disk| disk.has("checkpoint") == Some("bitmap")) {
            let Some(size) = disk.has("size").and_then(|size| size.parse::<u64>().ok()) else { return Ok(None) };
            sum += size;
        }
    }
    Ok(Some(sum))
}

/// Begins a map of all disks, which counts from now.
pub(crate) async fn begin(site: &Site, folder: &Folder, lock: &File, name: &str) -> Result<(), Fault> {
    let begun = site.virsh.run(lock, &["checkpoint-create-as", folder.name(), name]).await;
    begun.map(drop).map_err(|why| folder.fault("cannot be tracked", why))
}

/// Deletes one of ours. What it held goes to the checkpoint before it, if there is one.
pub(crate) async fn delete(site: &Site, folder: &Folder, lock: &File, name: &str) -> Result<(), Fault> {
    let deleted = site.virsh.run(lock, &["checkpoint-delete", folder.name(), name]).await;
    let Err(why) = deleted else { return Ok(()) };
    let left = site.virsh.ask(&["checkpoint-list", "--name", folder.name()]).await;
    if left.is_ok_and(|left| left.lines().all(|line| line.trim() != name)) {
        return Ok(());
    }
    // A map that was lost with its QEMU cannot be merged into another: only the name of it is left.
    match &why {
        VirshError::Refused(words) if words.contains("bitmap") => delete_name(site, folder, lock, name).await,
        _ => Err(folder.fault("cannot be rid of a checkpoint", why)),
    }
}

/// Deletes what libvirt knows of a checkpoint, if it does: the map is lost or gone already.
pub(crate) async fn delete_name(site: &Site, folder: &Folder, lock: &File, name: &str) -> Result<(), Fault> {
    let gone = site.virsh.run(lock, &["checkpoint-delete", "--metadata", folder.name(), name]).await;
    let Err(why) = gone else { return Ok(()) };
    let left = site.virsh.ask(&["checkpoint-list", "--name", folder.name()]).await;
    match left.is_ok_and(|left| left.lines().all(|line| line.trim() != name)) {
        true => Ok(()),
        false => Err(folder.fault("cannot be rid of a checkpoint", why)),
    }
}

/// Deletes every checkpoint of ours, of whatever lineage. Gives how many there were.
pub(crate) async fn forget_all(site: &Site, folder: &Folder, lock: &File) -> Result<usize, Fault> {
    let chain = Chain::ask(site, folder, Lineage::fresh()).await?;
    let ours: Vec<&String> = chain.names.iter().filter(|name| name.starts_with(maps::PREFIX)).collect();
    for name in &ours {
        delete(site, folder, lock, name).await?;
    }
    Ok(ours.len())
}
