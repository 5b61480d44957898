//! What an opening finds in the journal: the points as a chain, an epoch that was never sealed, and what nobody needs.

use std::collections::BTreeMap;
use std::sync::Arc;

use protocol::Attempt;

use crate::error::ReplicaError;
use crate::history::{Node, OpenSegment, Segment, SegmentFile, Step};
use crate::log::{Begun, Sealed};
use crate::manifest::Manifest;
use crate::scan::scan_all;
use crate::segment::{SUFFIX, SegmentId};
use crate::store::Open;
use crate::volume::Volume;

/// The segments of the epoch `attempt`, one for each disk.
pub(crate) fn ids(manifest: &Manifest, opened: u64, attempt: Attempt) -> impl Iterator<Item = SegmentId> + '_ {
    let disks = manifest.disks.len() as u16;
    manifest.disks.iter().enumerate().map(move |(disk, record)| SegmentId {
        lineage: manifest.lineage,
        attempt,
        opened,
        disk: disk as u16,
        disk_size: record.size,
        disks,
    })
}

/// The segment files that there are, with their lengths.
pub(crate) fn list(journal: &dyn Volume) -> Result<BTreeMap<String, u64>, ReplicaError> {
    let files = journal.list().map_err(|e| ReplicaError::io(format!("listing {}", journal.describe("")), e))?;
    Ok(files.into_iter().filter(|(name, _)| name.ends_with(SUFFIX)).collect())
}

/// The points as a chain. Takes the files that belong to it out of `files`.
pub(crate) fn chain(
    manifest: &Manifest,
    journal: &Arc<dyn Volume>,
    sealed: &[Sealed],
    files: &mut BTreeMap<String, u64>,
) -> Result<Vec<Arc<Node>>, ReplicaError> {
    let mut points: Vec<Arc<Node>> = Vec::with_capacity(sealed.len());
    for sealed in sealed {
        let node = Node::new(sealed.point.clone());
        // The segments of the oldest point lead to one that is gone.
        if let Some(last) = points.last() {
            let mut segments: Vec<Option<Segment>> = manifest.disks.iter().map(|_| None).collect();
            for id in ids(manifest, sealed.opened, sealed.point.attempt) {
                let disk = usize::from(id.disk);
                if let Some(sealed) = sealed.segments.iter().find(|sealed| sealed.disk == id.disk) {
                    let flaw = match files.remove(&id.file()) {
                        None => Some("the file is missing"),
                        Some(length) if length != sealed.length => Some("the file has another length than was sealed"),
                        Some(_) => None,
                    };
                    let file = SegmentFile::new(journal.clone(), id);
                    if let Some(flaw) = flaw {
                        tracing::warn!(item = %manifest.item, file = file.name, flaw, "older points cannot be read");
                    }
                    segments[disk] = Some(Segment::new(file, *sealed, flaw));
                }
            }
            last.link(Step { segments, to: node.clone() });
        }
        points.push(node);
    }
    Ok(points)
}

/// The epoch that was open when everything stopped. Takes its files out of `files`.
pub(crate) fn unfinished(
    manifest: &Manifest,
    journal: &Arc<dyn Volume>,
    begun: Begun,
    files: &mut BTreeMap<String, u64>,
) -> Result<Open, ReplicaError> {
    let mut segments = Vec::new();
    if begun.journalled {
        let ids: Vec<SegmentId> = ids(manifest, begun.opened, begun.attempt).collect();
        for (entries, id) in scan_all(journal.as_ref(), &ids)?.into_iter().zip(ids) {
            files.remove(&id.file());
            segments.push(OpenSegment::new(SegmentFile::new(journal.clone(), id), entries));
        }
    }
    Ok(Open { attempt: begun.attempt, opened: begun.opened, segments })
}

/// Removes segments that no point needs: what an interrupted removal or beginning left.
pub(crate) fn remove_orphans<'a>(
    journal: &dyn Volume,
    names: impl Iterator<Item = &'a String>,
) -> Result<(), ReplicaError> {
    for name in names {
        tracing::debug!(file = name, "removing a segment that no point needs");
        journal.remove(name).map_err(|e| ReplicaError::io(format!("removing {}", journal.describe(name)), e))?;
    }
    Ok(())
}
