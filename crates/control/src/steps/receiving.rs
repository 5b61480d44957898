//! Steps at the receiving side: make a replica, take a copy over as one, close it, give it back.

use protocol::epoch::DiskSize;
use protocol::fault::{Fault, code};
use protocol::id::SiteName;
use protocol::machine::{NewDisks, Settled};
use protocol::order::{Grant, Order, Outcome, Role, Sync};
use protocol::position::{Changes, Distrust};
use protocol::stage::Side;

use super::ordering::{Patience, Undoing, unexpected};
use super::{Context, Ending, Halt};
use crate::item::{Copy, Item, Wish};
use crate::landing;
use crate::stage_table::Event;

/// How long a machine that still runs at the receiving side may take to shut down, in ms.
const STOP_MS: u64 = 60_000;

impl Context<'_> {
    /// Makes the grant of a new direction: the same secret for both ends, remembered before anybody is told. Keeps the
    /// replica at the master target that gets it.
    async fn new_grant(&self, at: Side) -> Result<(Item, Grant), Halt> {
        let keeper = self.component(at, Role::MasterTarget).await?;
        let token = self.secret();
        let item = self
            .change(|item| {
                let generation = item.generation;
                if item.wish.as_ref().is_none_or(|wish| wish.token != token) {
                    item.wish = Some(Wish {
                        generation,
                        token,
                        standpoint: None,
                        sync: Sync::default(),
                        offline: false,
                        quiesced: false,
                        hurried: false,
                        active: false,
                    });
                }
                item.copy_mut(at).master_target = Some(keeper);
                Ok(item.clone())
            })
            .await?;
        let grant = grant_of(&item)?;
        Ok((item, grant))
    }

    pub(super) async fn prepare_replica(&mut self, at: Side) -> Result<Ending, Halt> {
        let (item, grant) = self.new_grant(at).await?;
        match self.order(at, "prepare", prepare(&item, grant, None), Patience::UntilReported).await? {
            Outcome::Nothing => Ok(Ending::Done(None)),
            other => Err(unexpected("prepare replica", &other)),
        }
    }

    /// Another site becomes home: nothing is known of a copy there.
    pub(super) async fn relocate(&self, to: &SiteName) -> Result<Ending, Halt> {
        self.change(|item| {
            if item.home != *to {
                item.home = to.clone();
                item.home_copy = Copy::default();
            }
            Ok(())
        })
        .await?;
        Ok(Ending::Done(None))
    }

    pub(super) async fn make_disks(&mut self, at: Side, datastore: Option<&str>) -> Result<Ending, Halt> {
        let item = self.load().await?;
        let size = item.spec.disks.iter().map(|disk| disk.size).sum();
        let pool = landing::pool(&self.control.fleet(), item.site(at), datastore, size).cloned()?;
        let folder = pool.folder.unwrap_or_default();
        self.change(|item| {
            *item.copy_mut(at) = Copy { at_rest: true, ..Copy::default() };
            Ok(())
        })
        .await?;
        let (item, grant) = self.new_grant(at).await?;
        let own = NewDisks { folder, machine: item.spec.name.clone() };
        match self.order(at, "prepare", prepare(&item, grant, Some(own)), Patience::UntilReported).await? {
            Outcome::Nothing => Ok(Ending::Done(Some(format!("on {}", pool.name)))),
            other => Err(unexpected("make disks", &other)),
        }
    }

    pub(super) async fn undo_make_disks(&mut self, at: Side) -> Result<Option<String>, Halt> {
        let words = self.undo_prepare(at).await?;
        self.change(|item| {
            *item.copy_mut(at) = Copy::default();
            Ok(())
        })
        .await?;
        Ok(words)
    }

    pub(super) async fn undo_prepare(&mut self, at: Side) -> Result<Option<String>, Halt> {
        // A master target that refused because it keeps somebody else's replica must not be told to drop that.
        if !self.may_have_acted("prepare").await? {
            return Ok(None);
        }
        let order = Order::DropReplica { item: self.item.clone() };
        Ok(self.undo_order(at, "drop", order).await?.words())
    }

    pub(super) async fn close_replica(&mut self, at: Side) -> Result<Ending, Halt> {
        let order = Order::CloseReplica { item: self.item.clone() };
        let newest = match self.order(at, "close", order, Patience::UntilReported).await? {
            Outcome::Closed { newest } => newest.map(|point| point.attempt),
            other => return Err(unexpected("close replica", &other)),
        };
        match (self.notes.last, newest) {
            (Some(last), newest) if newest != Some(last) => Err(Halt::Fault(Fault::new(
                code::INTERNAL,
                "the replica does not end with the last changes",
                format!("the final delta is point {last}, the replica's newest is {newest:?}"),
            ))),
            (_, None) => Err(Halt::Fault(Fault::new(
                code::UNKNOWN_POINT,
                "the replica has no recovery point",
                "there is nothing to start from",
            ))),
            (_, Some(newest)) => Ok(Ending::Done(Some(format!("newest point {newest}")))),
        }
    }

    /// Lets the replica take epochs again, with the grant that it had.
    pub(super) async fn undo_close(&mut self, at: Side) -> Result<Option<String>, Halt> {
        if self.given("close").await?.is_none() {
            return Ok(None);
        }
        let item = self.load().await?;
        let grant = grant_of(&item)?;
        Ok(self.undo_order(at, "reopen", prepare(&item, grant, None)).await?.words())
    }

    pub(super) async fn settle(&mut self, at: Side, shut_down: bool) -> Result<Ending, Halt> {
        let item = self.load().await?;
        if item.copy(at).at_rest {
            self.notes.settled = item.copy(at).settled.clone();
            return Ok(Ending::Skipped("a replica at rest; no machine stands there".into()));
        }
        let order = Order::Settle {
            machine: item.spec.name.clone(),
            lineage: item.lineage,
            stop: shut_down.then_some(STOP_MS),
        };
        match self.order(at, "settle", order, Patience::UntilReported).await? {
            Outcome::Settled { settled, was_running } => {
                let settled = merged(item.copy(at).settled.as_ref(), settled);
                let detail = match &settled.changes {
                    Changes::Known(_) => format!("{} bytes changed there", settled.changes.bytes().unwrap_or(0)),
                    Changes::Unknown(why) => why.to_string(),
                };
                self.notes.settled = Some(settled.clone());
                self.change(|item| {
                    item.copy_mut(at).settled = Some(settled);
                    Ok(())
                })
                .await?;
                let stopped = if was_running { "it still ran and was shut down; " } else { "" };
                Ok(Ending::Done(Some(format!("{stopped}{detail}"))))
            }
            other => Err(unexpected("settle", &other)),
        }
    }

    pub(super) async fn take_over(&mut self, at: Side, no_way_back: bool) -> Result<Ending, Halt> {
        let (item, grant) = self.new_grant(at).await?;
        let copy = item.copy(at);
        let settled = self.notes.settled.clone().or_else(|| copy.settled.clone()).unwrap_or_else(nothing_known);
        let order = Order::TakeOver {
            item: self.item.clone(),
            lineage: item.lineage,
            machine: item.spec.name.clone(),
            settled,
            authored: copy.authored,
            grant,
            no_way_back,
        };
        match self.order(at, "take-over", order, Patience::UntilReported).await? {
            Outcome::Taken { kept, distrust, changed_bytes } => {
                self.figures.unreplicated_bytes = changed_bytes;
                self.figures.distrust = distrust.map(|why| why.to_string());
                Ok(Ending::Done(Some(match kept {
                    Some(kept) if no_way_back => {
                        format!("its state is point {}, which goes when the first data arrives", kept.attempt)
                    }
                    Some(kept) => format!("its state is kept as point {}", kept.attempt),
                    None => "its disks are damaged; the first copy repairs them".into(),
                })))
            }
            other => Err(unexpected("take over", &other)),
        }
    }

    /// Gives the copy back as it was. If that fails its disks are half written (H14); if its component is gone, it is
    /// done when that is back, before anything else there.
    pub(super) async fn undo_take_over(&mut self, at: Side) -> Result<Option<String>, Halt> {
        if !self.may_have_acted("take-over").await? {
            return Ok(None);
        }
        let undoing = self.undo_order(at, "give-back", Order::GiveBack { item: self.item.clone() }).await?;
        if matches!(undoing, Undoing::Ended(Err(_))) {
            self.change(|item| item.hear(Event::HalfWritten)).await?;
        }
        Ok(undoing.words())
    }

    pub(super) async fn standpoint(&mut self, at: Side) -> Result<Ending, Halt> {
        let copy = self.load().await?.copy(at).clone();
        if !copy.raised {
            self.notes.standpoint = copy.stands;
            return Ok(Ending::Skipped("it runs on its own disks".into()));
        }
        let reader = self.load().await?.wish.map(|wish| wish.token);
        let order = Order::Standpoint { item: self.item.clone(), reader };
        match self.order(at, "standpoint", order, Patience::UntilReported).await? {
            Outcome::Stands { position } => {
                let detail = format!("point {}", position.base);
                self.notes.standpoint = Some(position);
                Ok(Ending::Done(Some(detail)))
            }
            other => Err(unexpected("standpoint", &other)),
        }
    }
}

fn prepare(item: &Item, grant: Grant, own: Option<NewDisks>) -> Order {
    let disks = item.spec.disks.iter().map(|disk| DiskSize { disk: disk.key.clone(), size: disk.size }).collect();
    Order::PrepareReplica { item: item.name.clone(), lineage: item.lineage, disks, grant, own }
}

fn grant_of(item: &Item) -> Result<Grant, Fault> {
    item.wish
        .as_ref()
        .map(|wish| Grant { generation: wish.generation, token: wish.token.clone() })
        .ok_or_else(|| Fault::new(code::INTERNAL, format!("{} has no grant", item.name), "none was ever made"))
}

/// What is known of a copy of which nobody told anything.
pub(super) fn nothing_known() -> Settled {
    Settled { since: None, changes: Changes::Unknown(Distrust::MapAbsent), stamps: Default::default() }
}

/// What to believe of a copy: what its process server tells now, unless it does not know and the disks are still, stamp
/// for stamp, those of which control knows more.
fn merged(remembered: Option<&Settled>, told: Settled) -> Settled {
    match remembered {
        Some(known)
            if matches!(told.changes, Changes::Unknown(_))
                && matches!(known.changes, Changes::Known(_))
                && !known.stamps.is_empty()
                && known.stamps == told.stamps =>
        {
            known.clone()
        }
        _ => told,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use protocol::id::Attempt;
    use protocol::order::untouched;

    #[test]
    fn what_control_remembers_counts_only_while_the_stamps_are_equal() {
        let stamps = |text: &str| [("disk0".parse().unwrap(), text.to_string())].into();
        let known = untouched(Attempt { generation: 1, number: 7 }, stamps("a"));
        let told = |text| Settled { since: None, changes: Changes::Unknown(Distrust::MapAbsent), stamps: stamps(text) };
        assert_eq!(merged(Some(&known), told("a")), known);
        assert_eq!(merged(Some(&known), told("b")), told("b"));
        assert_eq!(merged(None, told("a")), told("a"));
        let better = untouched(Attempt { generation: 1, number: 9 }, stamps("a"));
        assert_eq!(merged(Some(&known), better.clone()), better);
        let nameless = Settled { stamps: Default::default(), ..known };
        let told = Settled { stamps: Default::default(), ..told("a") };
        assert_eq!(merged(Some(&nameless), told.clone()), told, "no stamps prove nothing");
    }
}
