//! What a process server does with orders: it stops, starts and settles machines, and sends last epochs.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::PoisonError;
use std::time::{Duration, Instant};

use async_trait::async_trait;
use component::clock::now_ms;
use component::{Duty, Heartbeat, Ticket};
use platforms::{Start, Stopped};
use protocol::fault::code;
use protocol::guest::GuestNetwork;
use protocol::machine::{Power, SiteFacts};
use protocol::order::{Order, Outcome, Replication, Wishes};
use protocol::{Attempt, Fault, ItemId, Lineage};
use tokio::sync::Mutex;

use crate::replication::{Means, Running};

/// How long a last epoch waits for its replication to be in the list: the list and the order travel together, but a
/// restarted process server takes the order before it has begun the replication.
const LIST_PATIENCE: Duration = Duration::from_secs(10);

/// How often a machine that is to run again is tried, and the pause between: whoever orders it has no other way on.
const START_TRIES: u32 = 3;
const START_PAUSE: Duration = Duration::from_secs(1);

/// How old what is known of the site's networks and pools may be.
const LOOK_AGAIN: Duration = Duration::from_secs(10);

pub(crate) struct ProcessServer {
    means: Means,
    running: Mutex<BTreeMap<ItemId, Running>>,
    /// Machines whose QEMU is about to end: no replication may have its hands in them. Changed only under `running`.
    aside: std::sync::Mutex<BTreeSet<String>>,
    /// What the site has beside machines, and when that was looked at.
    site: Mutex<Option<(Instant, SiteFacts)>>,
}

impl ProcessServer {
    /// Begins with the replications of its own list.
    pub(crate) async fn start(means: Means) -> ProcessServer {
        let replications = means.keep.replications();
        let server =
            ProcessServer { means, running: Mutex::default(), aside: Default::default(), site: Mutex::default() };
        server.adjust(replications).await;
        server
    }

    /// Ends all replications; change maps stay.
    pub(crate) async fn stop(&self) {
        let running = std::mem::take(&mut *self.running.lock().await);
        for (_, running) in running {
            running.stop().await;
        }
    }

    /// What the site has beside machines, looked at now and then. What cannot be told now is not told.
    async fn site(&self) -> Option<SiteFacts> {
        let mut known = self.site.lock().await;
        if known.as_ref().is_none_or(|(when, _)| when.elapsed() >= LOOK_AGAIN) {
            let now = self.means.platform.site().await;
            let told =
                now.inspect_err(|fault| tracing::warn!(%fault, cause = fault.cause, "the site is not described"));
            *known = told.ok().map(|facts| (Instant::now(), facts));
        }
        known.as_ref().map(|(_, facts)| facts.clone())
    }

    async fn adjust(&self, replications: Vec<Replication>) {
        let mut running = self.running.lock().await;
        let aside = self.aside().clone();
        let mut wanted: BTreeMap<ItemId, Replication> = replications
            .into_iter()
            .filter(|replication| !aside.contains(&replication.machine))
            .map(|replication| (replication.item.clone(), replication))
            .collect();
        for item in running.keys().cloned().collect::<Vec<_>>() {
            let goes_on = match (wanted.get(&item), running.get(&item)) {
                (Some(wish), Some(now)) => now.continues(wish),
                _ => false,
            };
            if goes_on {
                if let (Some(wish), Some(now)) = (wanted.remove(&item), running.get(&item)) {
                    now.take_over(wish);
                }
            } else if let Some(gone) = running.remove(&item) {
                gone.stop().await;
            }
        }
        for (item, wish) in wanted {
            tracing::info!(%item, generation = wish.generation, target = %wish.target, "replication begins");
            let begun = Running::begin(wish, self.means.clone());
            running.insert(item, begun);
        }
    }

    async fn shut_down(&self, machine: &str, timeout: Duration, then_power_off: bool) -> Result<Outcome, Fault> {
        let stopped = match self.means.platform.shut_down(machine, timeout).await {
            Err(fault) if then_power_off && fault.is(code::GUEST_IGNORES_SHUTDOWN) => {
                self.means.platform.power_off(machine).await?
            }
            other => other?,
        };
        Ok(Outcome::Stopped { by_guest: stopped == Stopped::ByGuest, at_ms: now_ms() })
    }

    fn aside(&self) -> std::sync::MutexGuard<'_, BTreeSet<String>> {
        self.aside.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does `work`, at whose end the machine's present hypervisor process is gone, with no replication having the machine
    /// open: two hands taking one cut apart have ended QEMU itself. Afterwards the list is carried on.
    async fn alone<T>(&self, machine: &str, work: impl Future<Output = T>) -> T {
        let gone: Vec<Running> = {
            let mut running = self.running.lock().await;
            self.aside().insert(machine.to_string());
            let items: Vec<ItemId> =
                running.iter().filter(|(_, running)| running.is_of(machine)).map(|(item, _)| item.clone()).collect();
            items.iter().filter_map(|item| running.remove(item)).collect()
        };
        for replication in gone {
            replication.stop().await;
        }
        let result = work.await;
        {
            let _running = self.running.lock().await;
            self.aside().remove(machine);
        }
        self.adjust(self.means.keep.replications()).await;
        result
    }

    async fn start_machine(&self, machine: &str, lineage: Lineage, mark: Attempt) -> Result<Outcome, Fault> {
        let found = self.means.platform.machine(machine).await?;
        if found.is_some_and(|found| found.power == Power::Running) {
            return Ok(Outcome::Nothing);
        }
        let started = self.alone(machine, async {
            let mut tries = 1;
            loop {
                match self.start_anew(machine, lineage, mark).await {
                    Err(fault) if tries < START_TRIES => {
                        tracing::warn!(machine, %fault, cause = %fault.cause, "it does not start; trying again");
                        tries += 1;
                        tokio::time::sleep(START_PAUSE).await;
                    }
                    other => break other,
                }
            }
        });
        started.await.map(|()| Outcome::Nothing)
    }

    /// A machine that is held cannot go on: it is let go of first. A qcow2 keeps its maps through that.
    async fn start_anew(&self, machine: &str, lineage: Lineage, mark: Attempt) -> Result<(), Fault> {
        self.means.platform.settle(machine, lineage).await?;
        self.means.platform.start(machine, Start { paused: false, track: Some((lineage, mark)) }).await
    }

    /// Asks the item's replication for its last epoch, or for an application-consistent point, until it answers.
    async fn ask(&self, item: &ItemId, is_final: bool, ticket: &Ticket) -> Result<Outcome, Fault> {
        let deadline = tokio::time::Instant::now() + LIST_PATIENCE;
        loop {
            let answered = match self.running.lock().await.get(item) {
                Some(running) if is_final => Some(running.final_delta().await),
                Some(running) => Some(running.app_point().await),
                None => None,
            };
            if let Some(answered) = answered {
                tokio::select! {
                    answer = answered => if let Ok(outcome) = answer { return outcome },
                    () = ticket.cancelled() => return Err(cancelled()),
                }
            }
            if tokio::time::Instant::now() > deadline {
                let message = format!("{item} is not being replicated from here");
                return Err(Fault::new(code::CAPTURE_LOST, message, "it is not in this process server's list"));
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    async fn settle(&self, machine: &str, lineage: Lineage, stop: Option<u64>) -> Result<Outcome, Fault> {
        let found = self.means.platform.machine(machine).await?;
        let power = found.map_or(Power::Off, |found| found.power);
        let was_running = matches!(power, Power::Running | Power::Paused);
        match (was_running, stop) {
            (true, None) => {
                let message = format!("{machine} still runs at this site");
                let cause = "a copy that is being written cannot be replicated to";
                return Err(Fault::new(code::MACHINE_RUNS_AT_HOME, message, cause));
            }
            (true, Some(timeout_ms)) => {
                self.shut_down(machine, Duration::from_millis(timeout_ms), true).await?;
            }
            (false, _) => {}
        }
        let settled = self.alone(machine, self.means.platform.settle(machine, lineage)).await?;
        Ok(Outcome::Settled { settled, was_running })
    }
}

fn cancelled() -> Fault {
    Fault::new(code::CANCELLED, "the epoch was called off", "control no longer wants it")
}

#[async_trait]
impl Duty for ProcessServer {
    async fn carry_out(&self, order: Order, ticket: &Ticket) -> Result<Outcome, Fault> {
        match order {
            Order::ShutDown { machine, timeout_ms, then_power_off } => {
                ticket.step(format!("waiting for the guest of {machine} to shut down"), None);
                self.shut_down(&machine, Duration::from_millis(timeout_ms), then_power_off).await
            }
            Order::StartMachine { machine, lineage, mark } => self.start_machine(&machine, lineage, mark).await,
            Order::FinalDelta { item } => {
                ticket.step("sending the last changes", None);
                self.ask(&item, true, ticket).await
            }
            Order::AppPoint { item } => {
                ticket.step("making an app-consistent point", None);
                self.ask(&item, false, ticket).await
            }
            Order::Settle { machine, lineage, stop } => {
                ticket.step(format!("reading the change maps of {machine}"), None);
                self.settle(&machine, lineage, stop).await
            }
            Order::TellGuest { machine } => {
                let network = self.means.platform.guest_network(&machine).await?;
                Ok(Outcome::Guest { network: GuestNetwork { at_ms: now_ms(), ..network } })
            }
            Order::TellChanged { machine, lineage } => {
                let bytes = self.means.platform.changed(&machine, lineage).await?;
                Ok(Outcome::Changed { bytes })
            }
            other => Err(Fault::new(
                code::INTERNAL,
                "a process server cannot carry out this order",
                format!("it belongs to a {}", other.role()),
            )),
        }
    }

    async fn follow(&self, wishes: Wishes) {
        let Wishes { replications, keepings: _, bandwidth } = wishes;
        if let Err(error) = self.means.keep.set_wishes(&replications, &bandwidth) {
            tracing::warn!(%error, "the list of replications could not be kept; a restart would wait for control");
        }
        self.means.cap.set(bandwidth);
        self.adjust(replications).await;
    }

    async fn heartbeat(&self) -> Heartbeat {
        let (machines, fault) = match self.means.platform.inventory().await {
            Ok(machines) => (Some(machines), None),
            Err(fault) => (None, Some(fault)),
        };
        let replications = self.running.lock().await.values().map(Running::status).collect();
        Heartbeat { machines, site: self.site().await, fault, replications, keepings: vec![] }
    }
}
