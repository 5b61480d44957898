//! What an opening finds in the journal: the points, an epoch that was never sealed, and what nobody needs.

use std::collections::BTreeMap;
use std::sync::Arc;

use protocol::Attempt;

use crate::append::Tail;
use crate::chain::Step;
use crate::error::ReplicaError;
use crate::history::{OpenSegment, Segment, SegmentFile};
use crate::log::{Begun, Origin, Sealed};
use crate::manifest::Manifest;
use crate::run::{RUN_SUFFIX, Run, Window};
use crate::runs::Runs;
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

/// The segments and runs that there are, with their lengths.
pub(crate) fn list(journal: &dyn Volume) -> Result<BTreeMap<String, u64>, ReplicaError> {
    let files = journal.list().map_err(|e| ReplicaError::io(format!("listing {}", journal.describe("")), e))?;
    Ok(files.into_iter().filter(|(name, _)| name.ends_with(SUFFIX) || name.ends_with(RUN_SUFFIX)).collect())
}

/// The steps from point to point. Takes the files that belong to them out of `files`.
pub(crate) fn steps<'a>(
    manifest: &Manifest,
    journal: &Arc<dyn Volume>,
    sealed: impl Iterator<Item = &'a Sealed>,
    files: &mut BTreeMap<String, u64>,
) -> Vec<Step> {
    let mut steps: Vec<Step> = Vec::new();
    for sealed in sealed {
        let mut step =
            Step { from: sealed.opened, number: sealed.opened, point: sealed.point.clone(), segments: vec![] };
        // The segments of the oldest point lead to one that is gone.
        if let Some(last) = steps.last() {
            step.from = last.number;
            step.segments = manifest.disks.iter().map(|_| None).collect();
            for told in &sealed.segments {
                let own = Origin { opened: sealed.opened, attempt: sealed.point.attempt };
                let origin = told.origin.unwrap_or(own);
                let disk = usize::from(told.disk);
                let Some(id) = ids(manifest, origin.opened, origin.attempt).nth(disk) else { continue };
                let flaw = match files.remove(&id.file()) {
                    None => Some("the file is missing"),
                    Some(length) if length != told.length => Some("the file has another length than was sealed"),
                    Some(_) => None,
                };
                let file = SegmentFile::new(journal.clone(), id);
                if let Some(flaw) = flaw {
                    tracing::warn!(item = %manifest.item, file = file.name, flaw, "older points cannot be read");
                }
                step.segments[disk] = Some(Segment::new(file, *told, flaw));
            }
        }
        steps.push(step);
    }
    steps
}

/// An epoch that was open when everything stopped, and how far its segments had got.
pub(crate) struct Found {
    pub open: Arc<Open>,
    /// Where the whole frames end, for each disk; empty for an epoch that was not journalled.
    pub tails: Vec<Tail>,
    /// How much of that is durable for certain.
    pub durable: Vec<u64>,
}

/// The epoch that was open when everything stopped. Takes its files out of `files`.
pub(crate) fn unfinished(
    manifest: &Manifest,
    journal: &Arc<dyn Volume>,
    begun: Begun,
    files: &mut BTreeMap<String, u64>,
) -> Result<Found, ReplicaError> {
    let (mut segments, mut tails, mut durable) = (Vec::new(), Vec::new(), Vec::new());
    if begun.journalled {
        let ids: Vec<SegmentId> = ids(manifest, begun.opened, begun.attempt).collect();
        for (found, id) in scan_all(journal.as_ref(), &ids)?.into_iter().zip(ids) {
            files.remove(&id.file());
            segments.push(OpenSegment::new(SegmentFile::new(journal.clone(), id), found.entries));
            // A header alone is written again with the first frame.
            tails.push(if found.frames == 0 {
                Tail::default()
            } else {
                Tail { length: found.end, frames: found.frames }
            });
            durable.push(found.sure);
        }
    }
    Ok(Found { open: Arc::new(Open { attempt: begun.attempt, opened: begun.opened, segments }), tails, durable })
}

/// The runs that a view of a point may use. Takes their files out of `files`; whether they are whole shows when they are
/// read.
pub(crate) fn runs(
    manifest: &Manifest,
    journal: &Arc<dyn Volume>,
    steps: &[Step],
    files: &mut BTreeMap<String, u64>,
) -> Runs {
    let (Some(oldest), Some(newest)) = (steps.first(), steps.last()) else { return Runs::default() };
    let usable = |name: &String, length: &mut u64| {
        let window = Window::of_file(name).filter(|w| w.start >= oldest.number && w.end() <= newest.number)?;
        Some(Run::new(journal.clone(), manifest.lineage, window, *length))
    };
    let mut found = Vec::new();
    files.retain(|name, length| match usable(name, length) {
        Some(run) => {
            found.push(run);
            false
        }
        None => true,
    });
    Runs::new(found.into_iter())
}

/// Removes files that no point needs: what an interrupted removal or beginning left.
pub(crate) fn remove_orphans<'a>(
    journal: &dyn Volume,
    names: impl Iterator<Item = &'a String>,
) -> Result<(), ReplicaError> {
    for name in names {
        tracing::debug!(file = name, "removing a file that no point needs");
        journal.remove(name).map_err(|e| ReplicaError::io(format!("removing {}", journal.describe(name)), e))?;
    }
    Ok(())
}
