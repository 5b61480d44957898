//! What a master target does with orders.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use component::{Duty, Heartbeat, Ticket};
use protocol::epoch::{DiskSize, PointKind};
use protocol::fault::code;
use protocol::machine::{NewDisks, Power};
use protocol::order::{Grant, Order, Outcome, Wishes};
use protocol::{Attempt, Fault, ItemId, Lineage};
use replica::{Content, DiskHome, DiskRecord, Replica, Spec};

use crate::absorb::absorb;
use crate::dialling::Dialling;
use crate::difference::difference;
use crate::fold::fold;
use crate::item::Item;
use crate::raise::{clear, lower, raise, roll_back};
use crate::record::{Record, Standing};
use crate::shelf::{Shelf, blocking};
use crate::standpoint::standpoint;
use crate::take_over::{Takeover, take_over};
use crate::verify::verify;
use crate::{made, served, test_machine};

pub(crate) struct MasterTarget {
    pub(crate) shelf: Arc<Shelf>,
    pub(crate) dialling: Dialling,
}

impl MasterTarget {
    async fn prepare(
        &self,
        id: ItemId,
        lineage: Lineage,
        disks: Vec<DiskSize>,
        grant: Grant,
        own: Option<NewDisks>,
    ) -> Result<Outcome, Fault> {
        if let Some(item) = self.shelf.get(&id) {
            if item.record().lineage != lineage {
                let message = format!("{id} is kept here with another history");
                return Err(Fault::new(code::REPLICA_EXISTS, message, "a machine of that name was protected before"));
            }
            item.change(|record| record.grant = Some(grant))?;
            return Ok(Outcome::Nothing);
        }
        let disks = match own {
            Some(own) => made::make(&self.shelf, &id, disks, &own).await?,
            None => {
                let inside = |disk: DiskSize| DiskRecord { key: disk.disk, size: disk.size, home: DiskHome::Inside };
                disks.into_iter().map(inside).collect()
            }
        };
        let spec = Spec { item: id.clone(), lineage, disks, content: Content::Empty };
        let record = Record::new(id, lineage, Some(grant));
        self.shelf.create(spec, record).await?;
        Ok(Outcome::Nothing)
    }

    async fn close(&self, item: &Arc<Item>) -> Result<Outcome, Fault> {
        let closed = item.clone();
        blocking(move || closed.close()).await?;
        Ok(Outcome::Closed { newest: item.replica.newest() })
    }

    async fn absorb(&self, item: &Arc<Item>, attempt: Attempt, cut_at_ms: u64) -> Result<Outcome, Fault> {
        let Some(raised) = item.record().raised else {
            // A repeated order: the point is there and the machine is gone.
            return item.replica.point(attempt).map(|point| Outcome::Absorbed { point }).ok_or_else(|| {
                Fault::new(
                    code::POINT_GONE,
                    format!("{} was not running here", item.id()),
                    "there is nothing to absorb",
                )
            });
        };
        let lineage = item.record().lineage;
        match self.shelf.platform.machine(&raised.spec.name).await?.map(|machine| machine.power) {
            Some(Power::Held) => drop(self.shelf.platform.settle(&raised.spec.name, lineage).await?),
            Some(power @ (Power::Running | Power::Paused)) => {
                let message = format!("{} is not off", raised.spec.name);
                return Err(Fault::new(code::MACHINE_RUNNING, message, format!("it is {power:?}")));
            }
            Some(Power::Off) | None => {}
        }
        let point = absorb(&self.shelf, item, &raised, attempt, cut_at_ms, PointKind::Final).await?;
        clear(&self.shelf, item, &raised).await?;
        Ok(Outcome::Absorbed { point })
    }

    async fn give_back(&self, item: &Arc<Item>) -> Result<Outcome, Fault> {
        let closed = item.clone();
        blocking(move || closed.close()).await?;
        if item.has_lost_its_way_back() {
            item.change(|record| record.damaged = true)?;
            return Err(item.damaged("their way back was given up, and something was written to them"));
        }
        let newest = item.replica.newest();
        if let (Some(kept), Some(newest)) = (item.record().kept, &newest)
            && newest.attempt != kept.at
        {
            // Named after what it returns to: the direction that is given up must not look as if it had sealed something.
            let point = roll_back(item, kept.at, kept.at.next()).await?;
            let standing = Standing { at: point.attempt, position: kept.position };
            item.change(|record| record.standing = Some(standing))?;
        }
        item.change(|record| record.kept = None)?;
        Ok(Outcome::Closed { newest: item.replica.newest() })
    }

    /// Waits for a fresh point, beside whatever else is done with the item, and pins it.
    async fn add_point(&self, id: &ItemId, within: Duration, ticket: &Ticket) -> Result<Outcome, Fault> {
        let item = self.shelf.must(id)?;
        ticket.step("waiting for the next recovery point", None);
        let none = |code, cause: &str| Fault::new(code, format!("no point of {id} was added"), cause);
        let point = tokio::select! {
            point = item.next_point() => point.ok_or_else(|| none(code::REPLICA_CLOSED, "its replica is gone"))?,
            () = tokio::time::sleep(within) => {
                let cause = format!("no epoch that was cut since was sealed within {} s", within.as_secs());
                return Err(none(code::ORDER_TIMED_OUT, &cause).with_remedy(format!("look at it: sockeye status {id}")));
            }
            () = ticket.cancelled() => return Err(none(code::CANCELLED, "control asks no longer")),
        };
        pin(&item, point.attempt, true).await?;
        Ok(Outcome::Added { point })
    }

    async fn drop_replica(&self, id: &ItemId) -> Result<Outcome, Fault> {
        let Some(item) = self.shelf.get(id) else {
            match self.shelf.folded(id) {
                // They are the machine's now.
                Some(_) => made::keep(&self.shelf, id)?,
                None => made::remove(&self.shelf, id)?,
            }
            self.shelf.forget_folded(id)?;
            return Ok(Outcome::Nothing);
        };
        if let Some(first) = item.record().stood_on().first() {
            let message = format!("point {first} of {id} is stood on");
            return Err(Fault::new(code::REPLICA_BUSY, message, "by a machine that was raised, a test or a view"));
        }
        let closed = item.clone();
        blocking(move || closed.close()).await?;
        self.shelf.remove(id);
        item.end_tending().await;
        let file = item.file().clone();
        blocking(move || {
            let failed =
                |error: std::io::Error| Fault::new(code::REPLICA_IO, "a record cannot be removed", error.to_string());
            let id = item.id();
            let replica = Arc::try_unwrap(item).map(|item| item.replica).map_err(|_| in_use(&id))?;
            let replica: Replica = Arc::try_unwrap(replica).map_err(|_| in_use(&id))?;
            replica.delete().map_err(|error| error.fault(&id))?;
            std::fs::remove_file(&file).map_err(failed)
        })
        .await?;
        made::remove(&self.shelf, id)?;
        Ok(Outcome::Nothing)
    }
}

/// Pins a point, or takes its pin away; what is not pinned any more may go at once.
async fn pin(item: &Arc<Item>, point: Attempt, pinned: bool) -> Result<Outcome, Fault> {
    let of = item.clone();
    blocking(move || {
        let replica = &of.replica;
        let done = if pinned { replica.pin(point) } else { replica.unpin(point) };
        done.map_err(|error| of.fault(&error))
    })
    .await?;
    item.tend();
    Ok(Outcome::Nothing)
}

fn in_use(item: &ItemId) -> Fault {
    Fault::new(
        code::REPLICA_BUSY,
        format!("the replica of {item} cannot be dropped"),
        "a session or a view still uses it",
    )
}

#[async_trait]
impl Duty for MasterTarget {
    async fn carry_out(&self, order: Order, ticket: &Ticket) -> Result<Outcome, Fault> {
        let shelf = &self.shelf;
        let item = match &order {
            Order::CloseReplica { item }
            | Order::Raise { item, .. }
            | Order::Release { item }
            | Order::Lower { item, .. }
            | Order::Absorb { item, .. }
            | Order::Standpoint { item, .. }
            | Order::GiveBack { item }
            | Order::PinPoint { item, .. }
            | Order::ListPoints { item } => Some(shelf.must(item)?),
            // Once its replica is gone there is only the record.
            Order::Fold { item } => shelf.get(item),
            _ => None,
        };
        let gate = item.clone();
        let _turn = match &gate {
            Some(item) => Some(item.gate.lock().await),
            None => None,
        };
        match (order, item) {
            (Order::PrepareReplica { item, lineage, disks, grant, own }, _) => {
                self.prepare(item, lineage, disks, grant, own).await
            }
            (Order::TakeOver { item, lineage, machine, settled, authored, grant, no_way_back }, _) => {
                ticket.step("keeping the present state as a recovery point", None);
                let what = Takeover { item, lineage, machine, settled, authored, grant, no_way_back };
                take_over(shelf, what).await
            }
            (Order::SetGuest { machine, what, within_ms }, _) => {
                let (platform, within) = (&*shelf.platform, Duration::from_millis(within_ms));
                let tell = |words: &str| ticket.step(words, None);
                let given = platforms::guest::give(platform, &machine, &what, within, &tell);
                tokio::select! {
                    told = given => told.map(|told| Outcome::GuestSet { told }),
                    () = ticket.cancelled() => {
                        let message = format!("the guest of {machine} was not given its addresses");
                        Err(Fault::new(code::CANCELLED, message, "control asks no longer"))
                    }
                }
            }
            // Not behind the item's own orders: what stands beside it neither waits for a move nor keeps one waiting.
            (Order::RaiseTest { item, spec, point }, _) => {
                let item = shelf.must(&item)?;
                let _turn = item.beside.lock().await;
                ticket.step("starting the test machine from its recovery point", None);
                test_machine::raise(shelf, &item, spec, point).await.map(|point| Outcome::Raised { point })
            }
            (Order::LowerTest { item }, _) => {
                let Some(item) = shelf.get(&item) else { return Ok(Outcome::Nothing) };
                let _turn = item.beside.lock().await;
                test_machine::lower(shelf, &item).await.map(|()| Outcome::Nothing)
            }
            (Order::ServeView { item, view, point, writable }, _) => {
                let item = shelf.must(&item)?;
                let _turn = item.beside.lock().await;
                let (point, disks) = served::serve(shelf, &item, view, point, writable).await?;
                Ok(Outcome::Serves { point, disks })
            }
            (Order::EndView { item, view }, _) => {
                let Some(item) = shelf.get(&item) else { return Ok(Outcome::Nothing) };
                let _turn = item.beside.lock().await;
                served::end(shelf, &item, view).await.map(|()| Outcome::Nothing)
            }
            (Order::DropReplica { item }, _) => self.drop_replica(&item).await,
            (Order::CloseReplica { .. }, Some(item)) => self.close(&item).await,
            (Order::Raise { spec, point, generation, .. }, Some(item)) => {
                ticket.step("starting the machine from its recovery point", None);
                raise(shelf, &item, spec, point, generation).await.map(|point| Outcome::Raised { point })
            }
            (Order::Release { .. }, Some(item)) => {
                let name = item.record().raised.map(|raised| raised.spec.name).ok_or_else(|| {
                    Fault::new(
                        code::MACHINE_ABSENT,
                        format!("{} is not raised", item.id()),
                        "there is nothing to release",
                    )
                })?;
                shelf.platform.resume(&name).await.map(|()| Outcome::Nothing)
            }
            (Order::Lower { keep, .. }, Some(item)) => lower(shelf, &item, keep).await.map(|()| Outcome::Nothing),
            (Order::Absorb { attempt, cut_at_ms, .. }, Some(item)) => {
                ticket.step("writing the overlay into the replica", None);
                self.absorb(&item, attempt, cut_at_ms).await
            }
            (Order::Standpoint { reader, .. }, Some(item)) => {
                if reader.is_some() {
                    item.change(|record| record.raised.iter_mut().for_each(|raised| raised.reader = reader.clone()))?;
                }
                standpoint(&item).await.map(|position| Outcome::Stands { position })
            }
            (Order::Fold { item: id }, item) => fold(shelf, &id, item, ticket).await,
            (Order::GiveBack { .. }, Some(item)) => {
                ticket.step("rolling the disks back to what they were", None);
                self.give_back(&item).await
            }
            (Order::DiffPoints { item, points }, _) => {
                ticket.step("comparing two recovery points", None);
                difference(&shelf.must(&item)?, points).await
            }
            // Without a turn: nothing waits for it.
            (Order::Verify { item }, _) => verify(&shelf.must(&item)?, ticket).await,
            (Order::ListPoints { .. }, Some(item)) => {
                Ok(Outcome::Points { points: item.replica.points(), pins: item.replica.pins() })
            }
            (Order::PinPoint { point, pinned, .. }, Some(item)) => pin(&item, point, pinned).await,
            (Order::AddPoint { item, within_ms }, _) => {
                self.add_point(&item, Duration::from_millis(within_ms), ticket).await
            }
            (other, _) => Err(Fault::new(
                code::INTERNAL,
                "a master target cannot carry out this order",
                format!("it belongs to a {}", other.role()),
            )),
        }
    }

    async fn follow(&self, wishes: Wishes) {
        let Wishes { replications: _, keepings, bandwidth: _ } = wishes;
        self.dialling.follow(&keepings);
        let shelf = self.shelf.clone();
        let kept = blocking(move || {
            shelf.keep_by(keepings);
            Ok(())
        });
        if let Err(fault) = kept.await {
            tracing::warn!(%fault, "which points are to be kept could not be taken over");
        }
    }

    async fn heartbeat(&self) -> Heartbeat {
        let items = self.shelf.all();
        let keepings =
            blocking(move || Ok(items.iter().map(|item| item.keeping()).collect())).await.unwrap_or_default();
        match self.shelf.platform.inventory().await {
            Ok(machines) => Heartbeat { machines: Some(machines), keepings, ..Heartbeat::default() },
            Err(fault) => Heartbeat { fault: Some(fault), keepings, ..Heartbeat::default() },
        }
    }
}
