//! Telling what two recovery points differ in. It may read for long: it waits for no order and no order waits for it.

use std::sync::Arc;

use protocol::difference::{Difference, DiskDifference, Pair};
use protocol::order::Outcome;
use protocol::{Attempt, Fault, Point};
use replica::ReplicaError;

use crate::item::Item;
use crate::shelf::blocking;

/// Reads both points wherever they may differ.
pub(crate) async fn difference(item: &Arc<Item>, points: Pair) -> Result<Outcome, Fault> {
    let item = item.clone();
    blocking(move || {
        let point = |attempt: Attempt| -> Result<Point, ReplicaError> {
            item.replica.point(attempt).ok_or(ReplicaError::PointGone(attempt))
        };
        let compare = || {
            let (from, to) = (point(points.from)?, point(points.to)?);
            let maps = item.replica.diff(points.from, points.to)?;
            let disks = maps.into_iter().map(|(disk, map)| DiskDifference::of(disk, &map)).collect();
            Ok(Difference { from, to, piece_bytes: replica::PIECE, disks })
        };
        let difference = compare().map_err(|error: ReplicaError| item.fault(&error))?;
        Ok(Outcome::Differ { difference })
    })
    .await
}
