//! Reading change maps out of QEMU: bitmaps are published as a context of an NBD export, and asked for there.

use nbd::{Client, Options, Uri, status};
use protocol::extent::{BlockMap, Extent};
use serde_json::json;

use super::folder::Folder;
use super::qmp::{Qmp, QmpError};

/// The socket on which a machine's QEMU serves its exports.
pub(crate) fn socket(folder: &Folder) -> std::path::PathBuf {
    folder.file("nbd.sock")
}

/// Lets QEMU serve exports, if it does not yet.
pub(crate) async fn serve(folder: &Folder, qmp: &mut Qmp) -> Result<(), QmpError> {
    let address = json!({ "type": "unix", "data": { "path": socket(folder) } });
    match qmp.execute("nbd-server-start", json!({ "addr": address })).await {
        Err(QmpError::Refused { reason, .. }) if reason.contains("already running") => Ok(()),
        result => result.map(|_| ()),
    }
}

/// The blocks in the bitmap `bitmap` of an export, and the size of its disk.
pub(crate) async fn read(export: &Uri, bitmap: &str) -> Result<(BlockMap, u64), nbd::Error> {
    let context = status::dirty_bitmap(bitmap);
    let client = Client::connect(export, &Options::with_contexts([context.clone()])).await?;
    let size = client.size();
    let extents = client.block_status(&context, 0, size).await?;
    let dirty = extents.iter().filter(|extent| extent.flags & status::DIRTY != 0);
    Ok((dirty.map(|extent| Extent::new(extent.offset, extent.length)).collect(), size))
}
