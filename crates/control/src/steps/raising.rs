//! Steps that bring a machine up at its new side, and what becomes of the one at the old side.

use std::time::Duration;

use protocol::fault::{Fault, code};
use protocol::id::Attempt;
use protocol::machine::MachineSpec;
use protocol::order::{Order, Outcome, Role, untouched};
use protocol::quote::Downtime;
use protocol::stage::Side;

use super::ordering::{Patience, Undoing, unexpected};
use super::receiving::nothing_known;
use super::stopping::NO_CUT;
use super::{Context, Ending, Halt};
use crate::clock::now_ms;
use crate::database::commit;
use crate::guest_network;
use crate::item::{self, Item, LastMove};
use crate::job::Notes;
use crate::order_book;

/// What a planned move's downtime was made of.
fn parts(notes: &Notes, started: u64) -> Option<Downtime> {
    let (stopped, (sealed, seal_ms), ready) = (notes.stopped_at_ms?, notes.sealed?, notes.ready_at_ms?);
    let delta = sealed.saturating_sub(stopped);
    Some(Downtime {
        shut_down_ms: notes.shut_down_ms.unwrap_or(0),
        last_delta_ms: delta.saturating_sub(seal_ms),
        seal_ms: seal_ms.min(delta),
        bring_up_ms: ready.saturating_sub(sealed),
        start_ms: started.saturating_sub(ready),
    })
}

impl Context<'_> {
    pub(super) async fn raise(&mut self, at: Side, generation: u64, point: Option<Attempt>) -> Result<Ending, Halt> {
        let item = match at {
            Side::Away => self.learn().await?,
            Side::Home => self.load().await?,
        };
        let point = self.notes.last.or(point);
        let order =
            Order::Raise { item: self.item.clone(), spec: self.raised(&item, at, generation), point, generation };
        match self.order(at, "raise", order, Patience::UntilReported).await? {
            Outcome::Raised { point: stands } => {
                if point.is_some_and(|wanted| wanted != stands.attempt) {
                    return Err(Halt::Fault(Fault::new(
                        code::INTERNAL,
                        "the machine was brought up from another point",
                        format!("asked for {point:?}, it stands on {}", stands.attempt),
                    )));
                }
                self.notes.raised = Some((stands.attempt, stands.cut_at_ms));
                self.notes.ready_at_ms = Some(now_ms().unsigned_abs());
                let detail = format!("point {}", stands.attempt);
                self.figures.point = Some(stands);
                Ok(Ending::Done(Some(detail)))
            }
            other => Err(unexpected("raise", &other)),
        }
    }

    /// Keeps what home last told of the machine: it goes along, and comes home again.
    async fn learn(&self) -> Result<Item, Halt> {
        let item = self.load().await?;
        let told = self.control.fleet().machine(&item.home, &item.spec.name).map(|(machine, _)| machine.spec.clone());
        let Some(told) = told else { return Ok(item) };
        self.change(|item| {
            item.learn(&told);
            Ok(item.clone())
        })
        .await
    }

    /// The machine as it is to be brought up at a side. A card whose network is not there is connected to nothing: better a
    /// machine that its owner has to plug in than none.
    pub(super) fn description(&self, item: &Item, at: Side) -> MachineSpec {
        let fleet = self.control.fleet();
        let told = fleet.machine(item.site(at.other()), &item.spec.name).map(|(machine, _)| &machine.spec);
        let spec = item.description(at, told);
        match fleet.facts(item.site(at)) {
            Some(facts) => spec.unplugged(&facts.networks),
            None => spec,
        }
    }

    /// The same with what its guest reads when no agent can tell it.
    fn raised(&self, item: &Item, at: Side, generation: u64) -> MachineSpec {
        let seed = guest_network::seed(item, guest_network::place(at), generation);
        MachineSpec { seed, ..self.description(item, at) }
    }

    pub(super) async fn undo_raise(&mut self, at: Side) -> Result<Option<String>, Halt> {
        if !self.may_have_acted("raise").await? {
            return Ok(None);
        }
        // It never ran: there is nothing to keep.
        let order = Order::Lower { item: self.item.clone(), keep: false };
        Ok(self.undo_order(at, "lower", order).await?.words())
    }

    pub(super) async fn discard(&mut self, at: Side) -> Result<Ending, Halt> {
        let order = Order::Lower { item: self.item.clone(), keep: false };
        match self.order(at, "discard", order, Patience::UntilReported).await? {
            Outcome::Nothing => Ok(Ending::Done(None)),
            other => Err(unexpected("lower", &other)),
        }
    }

    /// What the machine wrote is gone; that it runs, in the generation that it had, is not.
    pub(super) async fn undo_discard(
        &mut self,
        at: Side,
        generation: u64,
        point: Option<Attempt>,
    ) -> Result<Option<String>, Halt> {
        if self.given("discard").await?.is_none() {
            return Ok(None);
        }
        let item = self.load().await?;
        let order =
            Order::Raise { item: self.item.clone(), spec: self.raised(&item, at, generation), point, generation };
        match self.undo_order(at, "raise-again", order).await? {
            Undoing::Ended(Ok(_)) => {}
            failed => return Ok(failed.words()),
        }
        Ok(self.undo_order(at, "release-again", Order::Release { item: self.item.clone() }).await?.words())
    }

    /// The point of no return: one transaction gives the authority to the new side and takes back every order that waits
    /// for a process server of the old one.
    pub(super) async fn authorise(
        &mut self,
        at: Side,
        generation: u64,
        raised: bool,
        planned: bool,
    ) -> Result<Ending, Halt> {
        self.control.tick()?;
        let mut change = self.control.database().change().await?;
        let (mut item, version) =
            item::find(&mut change, &self.item).await?.ok_or_else(|| item::unknown(&self.item))?;
        if item.generation != generation {
            let losers = self.control.fleet().all_at(item.site(at.other()), Role::ProcessServer);
            order_book::withdraw_all(&mut change, &self.item, &losers).await?;
            item.generation = generation;
            if let Some(wish) = &mut item.wish {
                wish.active = false;
            }
            let copy = item.copy_mut(at);
            copy.raised |= raised;
            (copy.at_rest, copy.settled, copy.authored, copy.stands) = (false, None, Some(generation), None);
            let (point, cut_at_ms) = self.notes.raised.map_or((None, 0), |(point, cut)| (Some(point), cut));
            // Taking a move back leaves nothing to be committed.
            item.last_move = raised.then_some(LastMove { planned, point, cut_at_ms, let_go: false });
            item::store(&mut change, &item, version).await?;
        }
        commit(change).await?;
        self.control.tick()?;
        self.control.wake_exchanges();
        Ok(Ending::Done(Some(format!("generation {generation}"))))
    }

    pub(super) async fn release(&mut self, at: Side) -> Result<Ending, Halt> {
        match self.order(at, "release", Order::Release { item: self.item.clone() }, Patience::UntilReported).await? {
            Outcome::Nothing => {
                let since = self.notes.stopped_at_ms.unwrap_or(self.started_at_ms.unsigned_abs());
                let now = now_ms().unsigned_abs();
                // A step that is done again after a crash finds its order done: the first measurement stands.
                let down = *self.figures.downtime_ms.get_or_insert(now.saturating_sub(since));
                if let Some(parts) = parts(self.notes, now)
                    && self.figures.downtime.is_none()
                {
                    self.figures.downtime = Some(parts);
                    self.change(|item| {
                        item.copy_mut(at).bring_up_ms = Some(parts.bring_up_ms + parts.start_ms);
                        item.copy_mut(at.other()).shut_down_ms = Some(parts.shut_down_ms);
                        Ok(())
                    })
                    .await?;
                }
                Ok(Ending::Done(Some(format!("{down} ms down"))))
            }
            other => Err(unexpected("release", &other)),
        }
    }

    pub(super) async fn start_again(&mut self, at: Side) -> Result<Ending, Halt> {
        let item = self.load().await?;
        let order = Order::StartMachine { machine: item.spec.name, lineage: item.lineage, mark: NO_CUT };
        match self.order(at, "start", order, Patience::UntilReported).await? {
            Outcome::Nothing => Ok(Ending::Done(None)),
            other => Err(unexpected("start", &other)),
        }
    }

    pub(super) async fn lower(&mut self, at: Side) -> Result<Ending, Halt> {
        let order = Order::Lower { item: self.item.clone(), keep: true };
        match self.order(at, "lower", order, Patience::UntilReported).await? {
            Outcome::Nothing => {
                self.change(|item| {
                    let copy = item.copy_mut(at);
                    (copy.raised, copy.at_rest, copy.authored) = (false, true, None);
                    copy.settled = Some(nothing_known());
                    Ok(())
                })
                .await?;
                Ok(Ending::Done(None))
            }
            other => Err(unexpected("lower", &other)),
        }
    }

    /// Gives the machine its own disks back. After a commit that is only a convenience: where it is not possible now, the
    /// machine goes on as it stands.
    pub(super) async fn fold(&mut self, at: Side, required: bool) -> Result<Ending, Halt> {
        if self.given("fold").await?.is_none() && !self.load().await?.copy(at).raised {
            return Ok(Ending::Skipped("it runs on its own disks".into()));
        }
        let order = Order::Fold { item: self.item.clone() };
        match self.order(at, "fold", order, Patience::UntilReported).await {
            Ok(Outcome::Folded { position, exported }) => {
                self.change(|item| {
                    let copy = item.copy_mut(at);
                    (copy.raised, copy.master_target, copy.stands) = (false, None, Some(position));
                    Ok(())
                })
                .await?;
                let mut words = "it runs on its own disks".to_string();
                if !exported.is_empty() {
                    words.push_str(&format!("; pinned points were written to {}", exported.join(", ")));
                }
                Ok(Ending::Done(Some(words)))
            }
            Ok(other) => Err(unexpected("fold", &other)),
            Err(Halt::Fault(fault)) if !required => {
                Ok(Ending::Skipped(format!("{fault}; later: sockeye fold {}", self.item)))
            }
            Err(halt) => Err(halt),
        }
    }

    /// Commit is a decision: where the old side does not answer, its machine stays for now, and reprotect takes it over
    /// as it stands.
    pub(super) async fn absorb(&mut self, at: Side) -> Result<Ending, Halt> {
        let item = self.load().await?;
        let Some((attempt, cut_at_ms)) =
            item.last_move.as_ref().and_then(|last| last.point.map(|point| (point, last.cut_at_ms)))
        else {
            return Ok(Ending::Skipped("it was not brought here from a point".into()));
        };
        if !item.copy(at).raised {
            return Ok(Ending::Done(None));
        }
        if !item.last_move.as_ref().is_some_and(|last| last.let_go)
            && let Ending::Skipped(why) = self.let_go(at, false).await?
        {
            return Ok(Ending::Skipped(why));
        }
        if !self.reachable(at, Role::MasterTarget).await? {
            return Ok(Ending::Skipped("its site does not answer; reprotect sees to it".into()));
        }
        let order = Order::Absorb { item: self.item.clone(), attempt, cut_at_ms };
        match self.order(at, "absorb", order, Patience::Bounded(Duration::from_secs(3600))).await {
            Ok(Outcome::Absorbed { point }) => {
                self.change(|item| {
                    let copy = item.copy_mut(at);
                    (copy.raised, copy.at_rest, copy.authored) = (false, true, None);
                    copy.settled = Some(untouched(point.attempt, Default::default()));
                    Ok(())
                })
                .await?;
                Ok(Ending::Done(Some(format!("the replica there stands at point {}", point.attempt))))
            }
            Ok(other) => Err(unexpected("absorb", &other)),
            Err(Halt::Fault(fault)) => Ok(Ending::Skipped(format!("{fault}; reprotect sees to it"))),
            Err(halt) => Err(halt),
        }
    }
}
