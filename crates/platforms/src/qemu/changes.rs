//! Where a QEMU publishes its exports, and with them the change maps: as a context that is asked for there.

use serde_json::json;

use super::qmp::{Qmp, QmpError};
use crate::host::folder::Folder;

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
