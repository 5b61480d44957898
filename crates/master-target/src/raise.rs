//! Bringing a machine up from a recovery point, and taking it down again.
//!
//! ```text
//!   raise:  view of the point ─► record ─► define on overlays ─► start paused      release: go on
//!   lower:  stand still ─► (keep what it wrote as a point) ─► delete ─► what was there before ─► record
//! ```
//! The record is written before the machine exists and cleared after it is gone: whatever dies in between, a repetition
//! finds its way from what it meets.

use std::sync::Arc;

use component::clock::now_ms;
use platforms::Start;
use protocol::epoch::{Point, PointKind};
use protocol::fault::code;
use protocol::machine::{DiskSource, DiskSpec, MachineSpec, Power};
use protocol::{Attempt, Fault};

use crate::absorb::absorb;
use crate::item::Item;
use crate::record::{Raised, Standing};
use crate::shelf::{Shelf, blocking};
use crate::view::Use;

/// Brings the machine up, paused. Gives the point it stands on.
pub(crate) async fn raise(
    shelf: &Shelf,
    item: &Arc<Item>,
    spec: MachineSpec,
    point: Option<Attempt>,
    generation: u64,
) -> Result<Point, Fault> {
    let point = item.chosen(point)?;
    if let Some(raised) = item.record().raised
        && (raised.generation != generation || raised.point != point.attempt)
    {
        let message = format!("{} is raised already", item.id());
        return Err(Fault::new(code::REPLICA_BUSY, message, format!("from point {}", raised.point)));
    }
    let result = bring_up(shelf, item, spec, &point, generation).await;
    if let Err(fault) = result {
        if let Err(second) = lower(shelf, item, false).await {
            tracing::error!(%second, "a machine that could not be started could not be taken away either");
        }
        return Err(fault);
    }
    Ok(point)
}

async fn bring_up(
    shelf: &Shelf,
    item: &Arc<Item>,
    spec: MachineSpec,
    point: &Point,
    generation: u64,
) -> Result<(), Fault> {
    let name = spec.name.clone();
    let present = shelf.platform.machine(&name).await?;
    let launched = present.as_ref().is_some_and(|present| matches!(present.power, Power::Running | Power::Paused));
    if item.record().raised.is_none() || !launched {
        let views = shelf.serve_view(item, point.attempt, Use::Raised).await?;
        let disks = item.replica.disks().iter().zip(views).map(|(disk, view)| {
            let overlay = shelf.overlay(&item.id(), &disk.key, &format!("g{generation}"));
            let (overlay, view) = (overlay.to_string_lossy().into_owned(), view.to_string());
            DiskSpec { key: disk.key.clone(), size: disk.size, source: DiskSource::OverlayOnView { overlay, view } }
        });
        let spec = MachineSpec { disks: disks.collect(), ..spec };
        let before = item.record().raised.map_or(present.map(|present| present.spec), |raised| raised.before);
        let raised = Raised { point: point.attempt, generation, spec: spec.clone(), before, reader: None };
        item.change(|record| record.raised = Some(raised))?;
        shelf.platform.define(&spec).await?;
    }
    // A machine that was launched already may have been left before it was tracked.
    let track = Some((item.record().lineage, Attempt::start_of(generation)));
    shelf.platform.start(&name, Start { paused: true, track }).await
}

/// Takes the raised machine away; what it wrote is kept as a point when `keep` is set, and the replica then rolled back
/// to what it was. Nothing is done when nothing is raised.
pub(crate) async fn lower(shelf: &Shelf, item: &Arc<Item>, keep: bool) -> Result<(), Fault> {
    let Some(raised) = item.record().raised else { return Ok(()) };
    let lineage = item.record().lineage;
    if shelf.platform.machine(&raised.spec.name).await?.is_some_and(|machine| machine.power != Power::Off) {
        shelf.platform.power_off(&raised.spec.name).await?;
        shelf.platform.settle(&raised.spec.name, lineage).await?;
    }
    if keep {
        let newest = item.replica.newest().map(|point| point.attempt);
        let position = item.position();
        let kept = Attempt::start_of(raised.generation).next();
        absorb(shelf, item, &raised, kept, now_ms(), PointKind::Unreplicated).await?;
        if let (Some(newest), Some(position)) = (newest, position) {
            let point = roll_back(item, newest, kept.next()).await?;
            item.change(|record| record.standing = Some(Standing { at: point.attempt, position }))?;
        }
    }
    clear(shelf, item, &raised).await
}

/// Removes the machine and its view, and puts back what the site had before.
pub(crate) async fn clear(shelf: &Shelf, item: &Arc<Item>, raised: &Raised) -> Result<(), Fault> {
    let ours = |machine: &protocol::machine::Machine| {
        machine.spec.disks.iter().any(|disk| matches!(disk.source, DiskSource::OverlayOnView { .. }))
    };
    let is_ours = shelf.platform.machine(&raised.spec.name).await?.as_ref().is_some_and(ours);
    match &raised.before {
        // Never deleted first: what its owner set there, and no description of ours speaks of, would be gone.
        Some(before) => shelf.platform.define(before).await?,
        None if is_ours => shelf.platform.delete(&raised.spec.name).await?,
        None => {}
    }
    shelf.withdraw_view(item, raised.point, Use::Raised).await;
    item.change(|record| record.raised = None)
}

/// Makes the replica what it was at `to`, as a point of its own with the name `named`; newer points survive.
pub(crate) async fn roll_back(item: &Arc<Item>, to: Attempt, named: Attempt) -> Result<Point, Fault> {
    let (replica, of) = (item.replica.clone(), item.clone());
    blocking(move || replica.roll_back_to(to, named, now_ms()).map_err(|error| of.fault(&error))).await
}
