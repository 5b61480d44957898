//! Steps that remember an item, turn its replication on and off, and wait for the first copy.

use protocol::bandwidth::Bandwidth;
use protocol::fault::{Fault, code};
use protocol::id::{Attempt, Lineage};
use protocol::leaf::LeafSize;
use protocol::order::{Order, Role, Sync};
use protocol::retention::Retention;
use protocol::stage::{Side, Stage};

use super::ordering::Undoing;
use super::{Context, Ending, Halt};
use crate::database::commit;
use crate::item::{self, Copy, Item};
use crate::stage_table::Event;
use crate::work::Work;
use crate::{job, policy, words};

impl Context<'_> {
    pub(super) async fn create_item(&mut self, created: Work) -> Result<Ending, Halt> {
        let Work::CreateItem { machine, from, to, interval_ms, policy, networks, addresses } = created else {
            return Ok(Ending::Done(None));
        };
        let spec = self.control.fleet().machine(&from, &machine).map(|(machine, _)| machine.spec.clone());
        let spec = spec.ok_or_else(|| {
            Fault::new(
                code::UNKNOWN_VM,
                format!("{from} knows no machine {machine}"),
                "its process server does not list it",
            )
        })?;
        let mut item = Item {
            name: self.item.clone(),
            home: from,
            away: to,
            spec,
            networks,
            addresses,
            guest: None,
            readdressed: false,
            lineage: Lineage::fresh(),
            generation: 1,
            stage: Stage::Unprotected,
            interval_ms,
            policy: policy.clone(),
            rpo_limit_ms: 0,
            retention: Retention::default(),
            bandwidth: Bandwidth::default(),
            app_interval_ms: 0,
            leaf_bytes: LeafSize::default(),
            home_copy: Copy { authored: Some(1), ..Copy::default() },
            away_copy: Copy { at_rest: true, ..Copy::default() },
            wish: None,
            last_move: None,
            test: None,
            views: vec![],
        };
        item.hear(Event::Protect)?;
        self.control.tick()?;
        let mut change = self.control.database().change().await?;
        policy::limit(&mut item, &policy::need(&mut change, &policy).await?);
        item::insert(&mut change, &item).await?;
        commit(change).await?;
        self.control.tick()?;
        self.control.announce_item(&self.item).await;
        Ok(Ending::Done(None))
    }

    pub(super) async fn forget_created(&mut self) -> Result<Option<String>, Halt> {
        let mut change = self.control.database().change().await?;
        if let Some((mut item, _)) = item::find(&mut change, &self.item).await? {
            item.hear(Event::UndoneUnprotected)?;
            item::remove(&mut change, &self.item).await?;
        }
        commit(change).await?;
        self.control.wake_exchanges();
        Ok(None)
    }

    pub(super) async fn replicate(&mut self, from: Side, sync: Sync, offline: bool) -> Result<Ending, Halt> {
        let standpoint = self.notes.standpoint.clone();
        self.change(|item| {
            let generation = item.generation;
            let Some(wish) = &mut item.wish else {
                return Err(Fault::new(code::INTERNAL, "there is nothing to replicate to", "no grant was made"));
            };
            wish.generation = generation;
            wish.standpoint = standpoint;
            (wish.sync, wish.offline, wish.quiesced, wish.active) = (sync, offline, false, true);
            wish.hurried = false;
            item.copy_mut(from).settled = None;
            Ok(())
        })
        .await?;
        Ok(Ending::Done(None))
    }

    pub(super) async fn undo_replicate(&mut self) -> Result<Option<String>, Halt> {
        self.set_active(false).await
    }

    pub(super) async fn stop_replication(&mut self) -> Result<Ending, Halt> {
        self.set_active(false).await.map(|_| Ending::Done(None))
    }

    pub(super) async fn undo_stop_replication(&mut self) -> Result<Option<String>, Halt> {
        self.set_active(true).await
    }

    /// What was measured is remembered when nobody tells it any more.
    async fn set_active(&mut self, active: bool) -> Result<Option<String>, Halt> {
        self.change(|item| {
            let from = item.stage.runs_at();
            let told = self.control.fleet().status(item.site(from), &item.name).map(|(status, _)| status.pace);
            if let (Some(pace), false) = (told, active) {
                let copy = item.copy_mut(from);
                copy.pace = pace.or(copy.pace);
            }
            if let Some(wish) = &mut item.wish {
                wish.active = active;
            }
            Ok(())
        })
        .await?;
        Ok(None)
    }

    /// Waits until the process server tells of a durable point of this generation, on the list that holds this wish.
    pub(super) async fn await_first(&mut self, from: Side, then: Option<Event>) -> Result<Ending, Halt> {
        let item = self.load().await?;
        let generation = item.wish.as_ref().map_or(item.generation, |wish| wish.generation);
        loop {
            let mut news = self.control.news();
            if let Some(detail) = self.first_is_durable(&item, from, generation).await? {
                self.change(|item| {
                    // The receiving copy is a replica now; what was known of the machine that stood there is history.
                    let received = item.copy_mut(from.other());
                    (received.settled, received.authored) = (None, None);
                    (received.raised, received.at_rest) = (false, true);
                    then.map_or(Ok(false), |event| item.hear(event))
                })
                .await?;
                return Ok(Ending::Done(Some(detail)));
            }
            let row = job::load(self.control.database(), self.id).await?;
            self.check_cancelled(&row)?;
            self.control.pause(&mut news).await?;
        }
    }

    async fn first_is_durable(&mut self, item: &Item, from: Side, generation: u64) -> Result<Option<String>, Halt> {
        let component = self.component(from, Role::ProcessServer).await?;
        let (number, _) = self.control.wishes_for(&component).await?;
        let (told, connected, current) = {
            let fleet = self.control.fleet();
            let known = fleet.components.get(&component);
            let told = known.and_then(|known| known.statuses.iter().find(|status| status.item == item.name).cloned());
            (told, fleet.connected(&component), known.is_some_and(|known| known.seen_list == number))
        };
        if !connected {
            self.control.tell(self.id, Some(format!("waiting for component {component}")), None);
            return Ok(None);
        }
        let Some(status) = told.filter(|status| current && status.generation == generation) else { return Ok(None) };
        let newest: Option<Attempt> = status.newest.as_ref().map(|point| point.attempt);
        if newest.is_none_or(|attempt| attempt.generation != generation) {
            let trouble = status.fault.as_ref().map(ToString::to_string);
            let (percent, moving) = (status.first.percent(), status.first.moving());
            let detail = trouble.or_else(|| moving.as_ref().map(words::moving));
            self.control.tell_all(self.id, job::Telling { detail, percent, moving });
            return Ok(None);
        }
        self.figures.sync = status.sync.or(self.figures.sync);
        self.figures.first = status.first_moved.or(self.figures.first);
        // Why it was not tracked, when that was asked for: what the taken over copy said is nearer to the cause.
        let asked = item.wish.as_ref().map(|wish| wish.sync);
        let fell_back = asked == Some(Sync::Tracked) && status.sync != Some(Sync::Tracked);
        let why = self.figures.distrust.take().or_else(|| status.distrust.map(|why| why.to_string()));
        let refused = code::TRACKED_REFUSED.code;
        let with_code = |why: String| if why.starts_with(refused) { why } else { format!("{refused}: {why}") };
        self.figures.distrust = why.filter(|_| fell_back).map(with_code);
        let sent = self.figures.first.map_or(0, |moved| moved.sent);
        let how = status.sync.map_or_else(String::new, |sync| format!("{sync}, "));
        Ok(Some(format!("{how}{sent} bytes sent")))
    }

    /// Deletes the replica, and the machine that may still stand on it. A master target that is gone does it when it is
    /// back; one that cannot keeps the item: nothing may be forgotten that is still there.
    pub(super) async fn drop_replica(&mut self, at: Side) -> Result<Ending, Halt> {
        let item = self.load().await?;
        if item.copy(at).raised {
            let order = Order::Lower { item: self.item.clone(), keep: false };
            if let Undoing::Ended(Err(fault)) = self.undo_order(at, "lower", order).await? {
                return Err(Halt::Fault(fault));
            }
        }
        match self.undo_order(at, "drop", Order::DropReplica { item: self.item.clone() }).await? {
            Undoing::Ended(Err(fault)) if !fault.is(code::REPLICA_ABSENT) => Err(Halt::Fault(fault)),
            Undoing::Ended(_) => Ok(Ending::Done(None)),
            left => Ok(Ending::Done(left.words())),
        }
    }

    pub(super) async fn remove_item(&mut self) -> Result<Ending, Halt> {
        self.control.tick()?;
        let mut change = self.control.database().change().await?;
        if let Some((mut item, _)) = item::find(&mut change, &self.item).await? {
            item.hear(Event::Unprotect)?;
            item::remove(&mut change, &self.item).await?;
        }
        commit(change).await?;
        self.control.tick()?;
        self.control.wake_exchanges();
        Ok(Ending::Done(None))
    }
}
