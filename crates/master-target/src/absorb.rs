//! Writing a machine's overlay into the replica beneath it, as one epoch, through the engine.
//!
//! ```text
//!   overlay (what the machine wrote since point r)  ┐
//!   journal (what the replica took in after r)      ┴─► one epoch: the replica becomes what the machine saw last
//! ```
//! The view of `r` that the overlay stands on does not change while the replica beneath it does: that is what the
//! journal is for. The source is read through `qemu-nbd` with that very view as backing.

use std::sync::Arc;

use bytes::Bytes;
use component::clock::now_ms;
use futures::{StreamExt, TryStreamExt, stream};
use nbd::{Client, Options, QemuNbd};
use protocol::epoch::{Basis, EpochHeader, Point, PointKind};
use protocol::fault::code;
use protocol::machine::DiskSource;
use protocol::{Attempt, BLOCK, BlockMap, Extent, Fault};
use replica::{Payload, Write};

use crate::item::Item;
use crate::record::Raised;
use crate::shelf::{Shelf, blocking};

const DEPTH: &str = "qemu:allocation-depth";
/// Reads in flight, and blocks applied at once (each batch costs one sync of the journal).
const READS: usize = 16;
const BATCH: usize = 128;

/// Makes the state of the raised machine, which stands still and is let go of, the newest point of its replica.
pub(crate) async fn absorb(
    shelf: &Shelf,
    item: &Arc<Item>,
    raised: &Raised,
    attempt: Attempt,
    cut_at_ms: u64,
    kind: PointKind,
) -> Result<Point, Fault> {
    if let Some(point) = item.replica.point(attempt) {
        return Ok(point);
    }
    let replica = item.replica.clone();
    let (of, since) = (item.clone(), raised.point);
    let journal = blocking(move || replica.changed_since(since).map_err(|error| of.fault(&error))).await?;
    let header = EpochHeader {
        lineage: item.record().lineage,
        attempt,
        base: item.replica.newest().map(|point| point.attempt),
        basis: Basis::Tracked,
        cut_at_ms,
        disks: item.disks(),
        kind,
        freeze: None,
        expected_bytes: 0,
    };
    let (replica, of) = (item.replica.clone(), item.clone());
    let mut epoch = blocking(move || replica.begin(&header).map_err(|error| of.fault(&error))).await?;
    for (index, disk) in item.replica.disks().iter().enumerate() {
        let spec = raised.spec.disks.iter().find(|spec| spec.key == disk.key);
        let Some(DiskSource::OverlayOnView { overlay, .. }) = spec.map(|spec| &spec.source) else { continue };
        let (program, client) = open(shelf, item, overlay, disk.key.as_str()).await?;
        let written = overlay_map(&client).await.map_err(|error| unreadable(overlay, &error))?;
        let changed = written.union(&journal.get(&disk.key).cloned().unwrap_or_default()).aligned(BLOCK, disk.size);
        let pieces: Vec<Extent> = changed.pieces(BLOCK).collect();
        for batch in pieces.chunks(BATCH) {
            let reads: Vec<_> = batch.iter().map(|piece| read(client.clone(), *piece)).collect();
            let read: Result<Vec<_>, nbd::Error> = stream::iter(reads).buffered(READS).try_collect().await;
            let read = read.map_err(|error| unreadable(overlay, &error))?;
            let writes: Vec<Write> = read
                .into_iter()
                .map(|(piece, bytes)| {
                    let zero = bytes.iter().all(|byte| *byte == 0);
                    let payload = if zero { Payload::Zero(piece.length) } else { Payload::Data(bytes) };
                    Write { disk: index as u16, offset: piece.offset, payload }
                })
                .collect();
            let of = item.clone();
            epoch = blocking(move || epoch.apply(&writes).map(|()| epoch).map_err(|error| of.fault(&error))).await?;
        }
        drop(client);
        program.stop().await.map_err(|error| unreadable(overlay, &error))?;
    }
    let of = item.clone();
    blocking(move || epoch.seal(now_ms()).map_err(|error| of.fault(&error))).await
}

/// Opens an overlay, read only. It names the view that it stands on itself; that view is served here, under the same name
/// after every restart.
async fn open(shelf: &Shelf, item: &Item, overlay: &str, disk: &str) -> Result<(QemuNbd, Client), Fault> {
    let socket = shelf.socket(&item.id(), &format!("{disk}-absorb"));
    let mut settings = nbd::qemu_nbd::Settings::file(overlay, nbd::qemu_nbd::Format::Qcow2, &socket).read_only();
    settings.allocation_depth = true;
    let program = QemuNbd::start(&settings).await.map_err(|error| unreadable(overlay, &error))?;
    let client = Client::connect(&program.uri(), &Options::with_contexts([DEPTH])).await;
    Ok((program, client.map_err(|error| unreadable(overlay, &error))?))
}

async fn read(client: Client, piece: Extent) -> Result<(Extent, Bytes), nbd::Error> {
    Ok((piece, client.read(piece.offset, piece.length as u32).await?))
}

/// What the overlay itself holds: allocation depth 1.
async fn overlay_map(client: &Client) -> Result<BlockMap, nbd::Error> {
    if !client.has_context(DEPTH) {
        return Ok(BlockMap::whole(client.size()));
    }
    let told = client.block_status(DEPTH, 0, client.size()).await?;
    Ok(told.into_iter().filter(|e| e.flags == 1).map(|e| Extent::new(e.offset, e.length)).collect())
}

fn unreadable(overlay: &str, error: &dyn std::fmt::Display) -> Fault {
    Fault::new(code::REPLICA_IO, format!("the overlay {overlay} cannot be read"), error.to_string())
}
