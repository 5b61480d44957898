//! Taking over what a site has of an item, so that epochs from the other side can be applied to it.
//!
//! Three things can be met here, and all become the same: a replica whose newest point is the copy as it was found, and
//! a position that says how that copy relates to a point the other side knows.
//!
//! ```text
//!   the platform's own disks (home, first time)   ─► replica around them, present state kept as a point
//!   an overlay over our replica (it ran here)      ─► absorbed as a point
//!   a replica at rest                              ─► as it is
//!   a damaged one                                  ─► as it is; it has no position, so the first epoch brings everything
//! ```

use std::sync::Arc;

use component::clock::now_ms;
use platforms::Platform;
use protocol::epoch::{Point, PointKind};
use protocol::fault::code;
use protocol::machine::{DiskSource, Machine, Power, Settled};
use protocol::order::{Grant, Outcome};
use protocol::position::Distrust;
use protocol::{Attempt, Changes, Fault, ItemId, Lineage, Position};
use replica::{Content, DiskHome, DiskRecord, Spec};

use crate::absorb::absorb;
use crate::item::Item;
use crate::raise::clear;
use crate::record::{Record, Standing};
use crate::shelf::{Shelf, blocking};

/// What is taken over, and on whose word.
pub(crate) struct Takeover {
    pub(crate) item: ItemId,
    pub(crate) lineage: Lineage,
    pub(crate) machine: String,
    pub(crate) settled: Settled,
    pub(crate) authored: Option<u64>,
    pub(crate) grant: Grant,
    /// The copy may be overwritten without a way back.
    pub(crate) no_way_back: bool,
}

/// Takes the copy over and opens it for the granted sender.
pub(crate) async fn take_over(shelf: &Shelf, what: Takeover) -> Result<Outcome, Fault> {
    let (item, kept) = match shelf.get(&what.item) {
        Some(item) if item.record().lineage != what.lineage => {
            let message = format!("{} is kept here with another history", what.item);
            return Err(Fault::new(code::REPLICA_EXISTS, message, "it belongs to a machine that was protected before"));
        }
        Some(item) if item.record().grant.as_ref() == Some(&what.grant) => {
            let kept = item.record().kept.map(|kept| kept.at).and_then(|at| item.replica.point(at));
            (item, kept)
        }
        Some(item) => {
            let kept = existing(shelf, &item, &what).await?;
            (item, kept)
        }
        None => {
            let (item, kept) = own_disks(shelf, &what).await?;
            (item, Some(kept))
        }
    };
    if kept.is_none() && !(item.record().damaged || item.record().no_way_back) {
        return Err(item.damaged("the first copy was never finished"));
    }
    let position = item.position();
    item.change(|record| {
        record.grant = Some(what.grant.clone());
        record.no_way_back = what.no_way_back;
        let standing = kept.as_ref().zip(position.clone());
        record.kept = standing.map(|(kept, position)| Standing { at: kept.attempt, position });
    })?;
    let changes = position.map_or(Changes::Unknown(Distrust::NoCommonBase), |position| position.changes);
    let distrust = match &changes {
        Changes::Unknown(why) => Some(*why),
        Changes::Known(_) => None,
    };
    Ok(Outcome::Taken { kept, distrust, changed_bytes: changes.bytes() })
}

/// A replica is here. If a machine ran on it, what that machine wrote becomes a point.
async fn existing(shelf: &Shelf, item: &Arc<Item>, what: &Takeover) -> Result<Option<Point>, Fault> {
    let Some(raised) = item.record().raised else { return Ok(item.replica.newest()) };
    must_be_off(shelf.platform.as_ref(), &raised.spec.name).await?;
    let attempt = unreplicated(what, item.replica.newest().map(|point| point.attempt));
    let point = absorb(shelf, item, &raised, attempt, now_ms(), PointKind::Unreplicated).await?;
    let position = position(what, what.settled.changes.clone());
    item.change(|record| record.standing = Some(Standing { at: point.attempt, position }))?;
    clear(shelf, item, &raised).await?;
    Ok(Some(point))
}

/// No replica is here, but the machine's own disks are: a replica is made around them.
async fn own_disks(shelf: &Shelf, what: &Takeover) -> Result<(Arc<Item>, Point), Fault> {
    let machine = must_be_off(shelf.platform.as_ref(), &what.machine).await?;
    let machine = machine.ok_or_else(|| {
        let message = format!("{} does not exist at this site", what.machine);
        Fault::new(code::MACHINE_ABSENT, message, "neither the machine nor a replica of it is here")
    })?;
    let changes = match shelf.platform.stamps(&what.machine).await? {
        now if now == what.settled.stamps => what.settled.changes.clone(),
        _ => Changes::Unknown(Distrust::DiskTouched),
    };
    let mut disks = Vec::new();
    for disk in &machine.spec.disks {
        let DiskSource::Own { path, format } = &disk.source else {
            let message = format!("{} of {} is not a disk of the platform's own", disk.key, what.machine);
            return Err(Fault::new(code::DISK_MISMATCH, message, "it stands on a recovery point of another item"));
        };
        let home = DiskHome::Outside { path: path.clone(), format: *format };
        disks.push(DiskRecord { key: disk.key.clone(), size: disk.size, home });
    }
    let spec = Spec { item: what.item.clone(), lineage: what.lineage, disks, content: Content::Existing };
    let record = Record::new(what.item.clone(), what.lineage, None);
    let item = shelf.create(spec, record).await?;
    let attempt = unreplicated(what, None);
    let (replica, of) = (item.replica.clone(), item.clone());
    let kept = blocking(move || {
        let now = now_ms();
        replica.keep(attempt, now, now, PointKind::Unreplicated).map_err(|error| of.fault(&error))
    })
    .await?;
    let position = position(what, changes);
    item.change(|record| record.standing = Some(Standing { at: kept.attempt, position }))?;
    Ok((item, kept))
}

/// Where a copy stands about which `settled` tells.
fn position(what: &Takeover, changes: Changes) -> Position {
    let (base, changes) = match what.settled.since {
        Some(since) => (since, changes),
        None => {
            let why = match changes {
                Changes::Unknown(why) => why,
                Changes::Known(_) => Distrust::MapAbsent,
            };
            (Attempt::start_of(what.authored.unwrap_or(0)), Changes::Unknown(why))
        }
    };
    Position { lineage: what.lineage, base, authored: what.authored, changes }
}

/// The name of the point that keeps a copy's unreplicated writes: after everything that this copy knows of.
fn unreplicated(what: &Takeover, newest: Option<Attempt>) -> Attempt {
    let authored = Attempt::start_of(what.authored.unwrap_or(0));
    [what.settled.since, newest, Some(authored)].into_iter().flatten().max().unwrap_or(authored).next()
}

async fn must_be_off(platform: &dyn Platform, name: &str) -> Result<Option<Machine>, Fault> {
    let machine = platform.machine(name).await?;
    match &machine {
        Some(found) if found.power != Power::Off => {
            let message = format!("{name} is not off at this site");
            Err(Fault::new(code::MACHINE_RUNNING, message, format!("it is {:?}", found.power)))
        }
        _ => Ok(machine),
    }
}
