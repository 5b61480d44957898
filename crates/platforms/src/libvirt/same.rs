//! Whether a machine still has the disks that it was opened with: people add, take out and resize disks of machines that run.

use std::collections::BTreeMap;

use protocol::Fault;
use protocol::fault::code;

use super::Site;
use super::domain::{self, Target};
use crate::host::folder::Folder;

/// Refuses a machine whose disks are not these any more.
pub(crate) async fn disks(site: &Site, folder: &Folder, known: &[(Target, u64)]) -> Result<(), Fault> {
    let told = site.virsh.ask(&["domstats", "--block", folder.name()]).await;
    let now = sizes(&told.map_err(|why| folder.fault("does not tell of its disks", why))?);
    let mut changed = Vec::new();
    for (target, size) in known {
        match now.get(&target.dev) {
            None => changed.push(format!("{} was taken out", target.key)),
            Some(now) if now != size => changed.push(format!("{} had {size} bytes and has {now}", target.key)),
            Some(_) => {}
        }
    }
    if now.keys().any(|dev| known.iter().all(|(target, _)| target.dev != *dev))
        && let Some(live) = site.live(folder).await
    {
        // CD-ROMs and floppies are told of as well.
        let targets = domain::targets(&live).map_err(|why| folder.fault("does not tell of its disks", why))?;
        let added = targets.iter().filter(|target| known.iter().all(|(other, _)| other.dev != target.dev));
        changed.extend(added.map(|target| format!("{} was added", target.key)));
    }
    if changed.is_empty() {
        return Ok(());
    }
    let message = format!("the disks of machine {} are not those that are replicated", folder.name());
    Err(Fault::new(code::DISK_MISMATCH, message, changed.join(", ")))
}

/// The size of each block device, by libvirt's name for it.
fn sizes(told: &str) -> BTreeMap<String, u64> {
    let fields: BTreeMap<&str, &str> = told.lines().filter_map(|line| line.trim().split_once('=')).collect();
    let field = |place: usize, name: &str| fields.get(format!("block.{place}.{name}").as_str()).copied();
    let count = fields.get("block.count").and_then(|count| count.parse().ok()).unwrap_or(0);
    let of = |place| {
        let size = field(place, "capacity").and_then(|size| size.parse().ok()).unwrap_or(0);
        Some((field(place, "name")?.to_string(), size))
    };
    (0..count).filter_map(of).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_told_by_name() {
        let told = "Domain: 'm'\n  block.count=2\n  block.0.name=vda\n  block.0.path=/a=b\n  block.0.capacity=8388608\n  block.1.name=sda\n\n";
        assert_eq!(sizes(told), [("vda".to_string(), 8 << 20), ("sda".into(), 0)].into());
        assert_eq!(sizes(""), BTreeMap::new());
    }
}
