//! The disks of an open cut as the engine reads them.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use platforms::{Cut, CutDisk};
use protocol::fault::code;
use protocol::{DiskKey, Fault};
use transfer::Reader;

/// Connects to all disks of a cut, in the cut's order. Bytes read are added to `read`.
pub(crate) async fn open(cut: &Cut, read: Arc<AtomicU64>) -> Result<Vec<Reader>, Fault> {
    let mut readers = Vec::with_capacity(cut.disks.len());
    for (index, CutDisk { key, size, export, beneath, read_limit }) in cut.disks.iter().enumerate() {
        let client = connect(key, export).await?;
        let beneath = match beneath {
            Some(uri) => Some(connect(key, uri).await?),
            None => None,
        };
        let place = (index as u16, key.clone());
        readers.push(Reader::export(place, client, beneath, (*size, *read_limit), read.clone()));
    }
    Ok(readers)
}

async fn connect(disk: &DiskKey, uri: &nbd::Uri) -> Result<nbd::Client, Fault> {
    nbd::Client::connect(uri, &Reader::options()).await.map_err(|error| {
        Fault::new(code::CAPTURE_LOST, format!("the open cut of {disk} cannot be read"), error.to_string())
    })
}
