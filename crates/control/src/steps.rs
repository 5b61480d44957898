//! Steps: what each [`Work`] does, and how it is undone.
//!
//! A step works through its [`Context`]: it changes the item, gives orders and waits. An order's id is made of the
//! installation, the job, the step and a tag, so a step that is done again finds what it ordered before.

mod beside;
mod converging;
mod guest;
mod ordering;
mod raising;
mod receiving;
mod replicating;
mod stopping;

use protocol::fault::Fault;
use protocol::rest::{Figures, JobState};

use crate::beside::Lane;
use crate::database::commit;
use crate::item::Item;
use crate::job::{self, JobRow, Notes};
use crate::work::Work;
use crate::{Control, item, stage_table::Event};

/// How a step ends well.
#[derive(Debug)]
pub(crate) enum Ending {
    /// Done, perhaps with something to tell.
    Done(Option<String>),
    /// Not needed, because.
    Skipped(String),
}

/// Why a step does not end well.
#[derive(Debug)]
pub(crate) enum Halt {
    /// It failed.
    Fault(Fault),
    /// The job was cancelled while the step waited.
    Cancelled,
    /// The server stops.
    Stopped,
}

impl From<Fault> for Halt {
    fn from(fault: Fault) -> Halt {
        Halt::Fault(fault)
    }
}

impl From<crate::engine::Broken> for Halt {
    fn from(broken: crate::engine::Broken) -> Halt {
        match broken {
            crate::engine::Broken::Stopped => Halt::Stopped,
            crate::engine::Broken::Database(fault) => Halt::Fault(fault),
        }
    }
}

/// What a step works with.
pub(crate) struct Context<'a> {
    control: &'a Control,
    id: i64,
    item: protocol::ItemId,
    /// The line in which its orders wait for each other.
    line: String,
    started_at_ms: i64,
    work: Work,
    index: usize,
    attempt: u32,
    notes: &'a mut Notes,
    figures: &'a mut Figures,
}

impl<'a> Context<'a> {
    pub(crate) fn new(control: &'a Control, row: &'a mut JobRow, index: usize, attempt: u32) -> Context<'a> {
        Context {
            control,
            id: row.id,
            item: row.item.clone(),
            line: match Lane::of(&row.operation) {
                Lane::Item => row.item.to_string(),
                Lane::Test | Lane::Views | Lane::Verify => format!("{} beside {}", row.item, row.id),
            },
            started_at_ms: row.started_at_ms,
            work: row.steps[index].work.clone(),
            index,
            attempt,
            notes: &mut row.notes,
            figures: &mut row.figures,
        }
    }

    /// Does the step.
    pub(crate) async fn perform(&mut self) -> Result<Ending, Halt> {
        match self.work.clone() {
            created @ Work::CreateItem { .. } => self.create_item(created).await,
            Work::LearnGuest => self.learn_guest().await,
            Work::SetGuest { place } => self.set_guest(place).await,
            Work::Stage { event, .. } => self.stage(event).await,
            Work::Relocate { to, .. } => self.relocate(&to).await,
            Work::MakeDisks { at, datastore } => self.make_disks(at, datastore.as_deref()).await,
            Work::PrepareReplica { at } => self.prepare_replica(at).await,
            Work::Replicate { from, sync, offline } => self.replicate(from, sync, offline).await,
            Work::AwaitFirst { from, then } => self.await_first(from, then).await,
            Work::StopFirst { at, how } => self.stop_first(at, how).await,
            Work::ShutDown { at, timeout_ms, then_power_off } => self.shut_down(at, timeout_ms, then_power_off).await,
            Work::FinalDelta { at } => self.final_delta(at).await,
            Work::StopReplication => self.stop_replication().await,
            Work::CloseReplica { at } => self.close_replica(at).await,
            Work::Raise { at, generation, point } => self.raise(at, generation, point).await,
            Work::Discard { at, .. } => self.discard(at).await,
            Work::RaiseTest { at, point, network } => self.raise_test(at, point, network.as_deref()).await,
            Work::LowerTest { at, required } => self.lower_test(at, required).await,
            Work::ServeView { at, point, writable } => self.serve_view(at, point, writable).await,
            Work::EndView { at, view, required } => self.end_view(at, view, required).await,
            Work::Verify { at } => self.verify(at).await,
            Work::Authorise { at, generation, raised, planned } => {
                self.authorise(at, generation, raised, planned).await
            }
            Work::Release { at } => self.release(at).await,
            Work::StartAgain { at } => self.start_again(at).await,
            Work::LetGo { at, required } => self.let_go(at, required).await,
            Work::Absorb { at } => self.absorb(at).await,
            Work::Fold { at, required } => self.fold(at, required).await,
            Work::Lower { at } => self.lower(at).await,
            Work::Settle { at, shut_down } => self.settle(at, shut_down).await,
            Work::TakeOver { at, no_way_back } => self.take_over(at, no_way_back).await,
            Work::Standpoint { at } => self.standpoint(at).await,
            Work::Converge { max_downtime_ms } => self.converge(max_downtime_ms).await,
            Work::WaitForComplete { max_downtime_ms } => self.wait_for_complete(max_downtime_ms).await,
            Work::DropReplica { at } => self.drop_replica(at).await,
            Work::RemoveItem => self.remove_item().await,
        }
    }

    /// Undoes the step, whether it was done, half done or not done at all.
    pub(crate) async fn undo(&mut self) -> Result<Option<String>, Halt> {
        match self.work.clone() {
            Work::CreateItem { .. } => self.forget_created().await,
            Work::Stage { undo: Some(event), .. } => self.stage(event).await.map(|_| None),
            Work::Relocate { from, .. } => self.relocate(&from).await.map(|_| None),
            Work::MakeDisks { at, .. } => self.undo_make_disks(at).await,
            Work::PrepareReplica { at } => self.undo_prepare(at).await,
            Work::Replicate { .. } => self.undo_replicate().await,
            Work::StopFirst { at, .. } | Work::ShutDown { at, .. } => self.undo_shut_down(at).await,
            Work::FinalDelta { at } => self.undo_final_delta(at).await,
            Work::StopReplication => self.undo_stop_replication().await,
            Work::CloseReplica { at } => self.undo_close(at).await,
            Work::Raise { at, .. } => self.undo_raise(at).await,
            Work::Discard { at, generation, point } => self.undo_discard(at, generation, point).await,
            Work::RaiseTest { at, .. } => self.undo_raise_test(at).await,
            Work::ServeView { at, .. } => self.undo_serve_view(at).await,
            Work::TakeOver { at, .. } => self.undo_take_over(at).await,
            Work::Converge { .. } | Work::WaitForComplete { .. } => self.hurry(false).await.map(|_| None),
            _ => Ok(None),
        }
    }

    /// The item as it is now.
    async fn load(&self) -> Result<Item, Halt> {
        Ok(item::load(self.control.database(), &self.item).await?)
    }

    /// Changes the item in one transaction, and tells everybody.
    async fn change<T>(&self, change: impl FnOnce(&mut Item) -> Result<T, Fault>) -> Result<T, Halt> {
        self.control.tick()?;
        let answer = item::update(self.control.database(), &self.item, change).await?;
        self.control.tick()?;
        self.control.wake_exchanges();
        self.control.announce_item(&self.item).await;
        Ok(answer)
    }

    async fn stage(&self, event: Event) -> Result<Ending, Halt> {
        self.change(|item| item.hear(event)).await?;
        Ok(Ending::Done(None))
    }

    async fn set_job(&self, state: JobState, next: Option<&str>) -> Result<(), Halt> {
        self.control.tick()?;
        let mut change = self.control.database().change().await?;
        job::set_state(&mut change, self.id, state, None, next).await?;
        commit(change).await?;
        self.control.tick()?;
        self.control.announce_job(self.id).await;
        Ok(())
    }

    fn check_cancelled(&self, row: &JobRow) -> Result<(), Halt> {
        if row.cancel && !row.past_return { Err(Halt::Cancelled) } else { Ok(()) }
    }
}
