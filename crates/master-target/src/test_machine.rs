//! A test of a failover: a machine of its own on a view of a recovery point, while everything else goes on.
//!
//! ```text
//!   view of the point ─► record ─► define on overlays ─► start, tracked by nobody
//!   end:                 power off ─► delete machine and overlays ─► withdraw the view ─► record
//! ```
//! # Always true
//! - The test shares nothing with the item's machine but the replica, which neither writes: its name, its overlays and its
//!   exports are its own, so either can come and go without the other.
//! - What stands in its way is never taken away: a machine of that name that is not our test stays as it is.
//!
//! # If power fails
//! The record is written before the machine exists and cleared after it is gone: ending the test again finds what is left.

use std::sync::Arc;

use platforms::Start;
use protocol::epoch::Point;
use protocol::fault::code;
use protocol::machine::{DiskSource, DiskSpec, Machine, MachineSpec, Power};
use protocol::{Attempt, Fault};

use crate::item::Item;
use crate::record::Test;
use crate::shelf::Shelf;
use crate::view::Use;

/// Brings the test machine up, running. Gives the point it stands on.
pub(crate) async fn raise(
    shelf: &Shelf,
    item: &Arc<Item>,
    spec: MachineSpec,
    wanted: Option<Attempt>,
) -> Result<Point, Fault> {
    let begun = item.record().test;
    // The newest point of a repeated order is the one that was the newest when it was first carried out.
    let point = item.chosen(wanted.or(begun.as_ref().map(|test| test.point)))?;
    let present = shelf.platform.machine(&spec.name).await?;
    match &begun {
        Some(test) if test.point != point.attempt || test.spec.name != spec.name => {
            let message = format!("a test of {} is under way already", item.id());
            return Err(Fault::new(code::REPLICA_BUSY, message, format!("from point {}", test.point)));
        }
        None if present.is_some() => {
            let message = format!("{} cannot be tested under the name {}", item.id(), spec.name);
            return Err(Fault::new(code::MACHINE_EXISTS, message, "its site has another machine of that name"));
        }
        _ => {}
    }
    if let Err(fault) = bring_up(shelf, item, spec, &point, present).await {
        if let Err(second) = lower(shelf, item).await {
            tracing::error!(%second, "a test machine that could not be started could not be taken away either");
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
    present: Option<Machine>,
) -> Result<(), Fault> {
    let name = spec.name.clone();
    match present.map(|machine| machine.power) {
        // Its guest shut itself down meanwhile: that is for the tester to see.
        Some(Power::Held) => return Ok(()),
        Some(Power::Running | Power::Paused) => {}
        Some(Power::Off) | None => {
            let views = shelf.serve_view(item, point.attempt, Use::Test).await?;
            let disks = item.replica.disks().iter().zip(views).map(|(disk, view)| {
                let overlay = shelf.overlay(&item.id(), &disk.key, "test").to_string_lossy().into_owned();
                let source = DiskSource::OverlayOnView { overlay, view: view.to_string() };
                DiskSpec { key: disk.key.clone(), size: disk.size, source }
            });
            let spec = MachineSpec { disks: disks.collect(), ..spec };
            let test = Test { point: point.attempt, spec: spec.clone() };
            item.change(|record| record.test = Some(test))?;
            shelf.platform.define(&spec).await?;
        }
    }
    shelf.platform.start(&name, Start { paused: false, track: None }).await
}

/// Takes the test machine away, and everything that it wrote. Nothing is done when there is none.
pub(crate) async fn lower(shelf: &Shelf, item: &Arc<Item>) -> Result<(), Fault> {
    let Some(test) = item.record().test else { return Ok(()) };
    let (name, lineage) = (&test.spec.name, item.record().lineage);
    let ours = |machine: &Machine| machine.spec.disks == test.spec.disks;
    if let Some(machine) = shelf.platform.machine(name).await?.filter(ours) {
        if machine.power != Power::Off {
            shelf.platform.power_off(name).await?;
            shelf.platform.settle(name, lineage).await?;
        }
        shelf.platform.delete(name).await?;
    }
    shelf.withdraw_view(item, test.point, Use::Test).await;
    item.change(|record| record.test = None)
}

/// Serves the view that the test machine stands on again: its guest waits for it.
pub(crate) async fn reopen(shelf: &Shelf, item: &Arc<Item>) -> Result<(), Fault> {
    match item.record().test {
        Some(test) => shelf.serve_view(item, test.point, Use::Test).await.map(|_| ()),
        None => Ok(()),
    }
}
