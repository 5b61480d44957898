//! A recovery point as an NBD export: what overlays stand on.
//!
//! Exports are named `item.disk.point` and what they are for, so that a machine finds its view again under the same name
//! after this process was restarted, and ending one use of a point ends no other.

use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use nbd::{ErrorCode, Export, StatusExtent};
use protocol::{Attempt, BlockMap, DiskKey, Extent, ItemId};
use replica::View;

/// What a view is served for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Use {
    /// The machine that was raised stands on it.
    Raised,
    /// The test machine stands on it.
    Test,
    /// People read it, under this number.
    People(i64),
    /// It is written out into files of its own.
    Export,
}

/// The name of a view's export.
pub(crate) fn name(item: &ItemId, disk: &DiskKey, point: Attempt, what_for: Use) -> String {
    match what_for {
        Use::Raised => format!("{item}.{disk}.{point}"),
        Use::Test => format!("{item}.{disk}.{point}.test"),
        Use::Export => format!("{item}.{disk}.{point}.export"),
        Use::People(number) => format!("{item}.{disk}.{point}.view{number}"),
    }
}

/// One disk of a view.
pub(crate) struct ViewExport {
    view: View,
    disk: usize,
}

impl ViewExport {
    pub(crate) fn new(view: View, disk: usize) -> Arc<ViewExport> {
        Arc::new(ViewExport { view, disk })
    }

    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&View, usize) -> Result<T, replica::ReplicaError> + Send + 'static,
    ) -> Result<T, ErrorCode> {
        let (view, disk) = (self.view.clone(), self.disk);
        let done = tokio::task::spawn_blocking(move || work(&view, disk)).await;
        match done {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(error)) => {
                tracing::error!(%error, "a view could not be read");
                Err(ErrorCode::Io)
            }
            Err(_) => Err(ErrorCode::Io),
        }
    }
}

#[async_trait]
impl Export for ViewExport {
    fn size(&self) -> u64 {
        self.view.size(self.disk)
    }

    fn read_only(&self) -> bool {
        true
    }

    async fn read(&self, offset: u64, length: u32) -> Result<Bytes, ErrorCode> {
        self.blocking(move |view, disk| {
            let mut buffer = vec![0; length as usize];
            view.read(disk, offset, &mut buffer)?;
            Ok(buffer.into())
        })
        .await
    }

    async fn allocation(&self, offset: u64, length: u64) -> Result<Vec<StatusExtent>, ErrorCode> {
        let data = self.blocking(move |view, disk| view.data(disk, offset, length)).await?;
        Ok(status(&data, offset, length))
    }
}

/// The range as alternating extents of data and holes.
fn status(data: &BlockMap, offset: u64, length: u64) -> Vec<StatusExtent> {
    let range: BlockMap = [Extent::new(offset, length)].into_iter().collect();
    let hole = nbd::status::HOLE | nbd::status::ZERO;
    let here = data.intersection(&range);
    let holes = range.difference(&here);
    let mut all: Vec<StatusExtent> = Vec::new();
    for (map, flags) in [(&here, 0), (&holes, hole)] {
        all.extend(map.extents().iter().map(|e| StatusExtent { offset: e.offset, length: e.length, flags }));
    }
    all.sort_unstable_by_key(|extent| extent.offset);
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_whole_range_is_told_in_order() {
        let data: BlockMap = [Extent::new(0, 10), Extent::new(50, 100)].into_iter().collect();
        let told = status(&data, 5, 60);
        let flat: Vec<(u64, u64, bool)> = told.iter().map(|e| (e.offset, e.length, e.flags == 0)).collect();
        assert_eq!(flat, [(5, 5, true), (10, 40, false), (50, 15, true)]);
    }
}
