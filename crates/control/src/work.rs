//! What a step of a job does, as data: written down when the job is planned, shown, logged and executed as it is.
//!
//! A job's steps are made once, by [`crate::sequence`], and kept with it. A newer server that finds an older job in its
//! database does what was planned, not what it would plan today.

use std::collections::BTreeMap;

use protocol::beside::test_name;
use protocol::guest::{CardAddresses, Place};
use protocol::id::{Attempt, PolicyName, SiteName};
use protocol::order::Sync;
use protocol::rest::{MAX_DOWNTIME_MS, ShutDownFirst};
use protocol::stage::Side;
use serde::{Deserialize, Serialize};

use crate::stage_table::Event;

/// What one step does.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "work", rename_all = "snake_case")]
pub enum Work {
    /// Remember a new item, as its machine is found at `from`.
    CreateItem {
        /// The machine's name.
        machine: String,
        /// Home.
        from: SiteName,
        /// Away.
        to: SiteName,
        /// Time between epochs, in ms.
        interval_ms: u64,
        /// The limits that it is kept to.
        #[serde(default = "PolicyName::standard")]
        policy: PolicyName,
        /// What the networks of home are called away.
        #[serde(default)]
        networks: BTreeMap<String, String>,
        /// Which addresses its guest has where.
        #[serde(default)]
        addresses: Vec<CardAddresses>,
    },
    /// Ask the guest at home which addresses it has, and remember them.
    LearnGuest,
    /// Give the guest the addresses of a place, or its own configuration back.
    SetGuest {
        /// The place.
        place: Place,
    },
    /// Take an event to the table; undone by another one.
    Stage {
        /// The event.
        event: Event,
        /// What is heard when the job is undone.
        undo: Option<Event>,
    },
    /// From now on another site is the item's home. Nothing of it is there.
    Relocate {
        /// The home that was.
        from: SiteName,
        /// The new one.
        to: SiteName,
    },
    /// Make disks of the platform's own at a side where nothing of the machine is, and a replica around them.
    MakeDisks {
        /// That side.
        at: Side,
        /// The datastore; the first that takes them if none is given.
        datastore: Option<String>,
    },
    /// Make an empty replica.
    PrepareReplica {
        /// The side that receives.
        at: Side,
    },
    /// Let the process server replicate.
    Replicate {
        /// The side where the machine runs.
        from: Side,
        /// How the first epoch is chosen.
        sync: Sync,
        /// The machine is off on purpose.
        offline: bool,
    },
    /// Wait until the first epoch of the direction is durable.
    AwaitFirst {
        /// The side where the machine runs.
        from: Side,
        /// What the table is told then.
        then: Option<Event>,
    },
    /// Before an unplanned failover: stop the old machine, as far as that is wanted and possible.
    StopFirst {
        /// Its side.
        at: Side,
        /// How much it is wanted.
        how: ShutDownFirst,
    },
    /// Shut the machine down.
    ShutDown {
        /// Its side.
        at: Side,
        /// How long the guest may take, in ms.
        timeout_ms: u64,
        /// Whether its power is taken then.
        then_power_off: bool,
    },
    /// Send the last changes of the machine that stands still.
    FinalDelta {
        /// Its side.
        at: Side,
    },
    /// End replication.
    StopReplication,
    /// Let the replica take no more epochs.
    CloseReplica {
        /// Its side.
        at: Side,
    },
    /// Bring the machine up, paused.
    Raise {
        /// The new side.
        at: Side,
        /// The generation that it will write.
        generation: u64,
        /// The point; the final one of this job or the newest if none is given.
        point: Option<Attempt>,
    },
    /// Bring a test machine up from a point.
    RaiseTest {
        /// The side whose replica it stands on.
        at: Side,
        /// The point, the newest if none is given.
        point: Option<Attempt>,
        /// The network that its cards are connected with; nothing if none is given.
        #[serde(default)]
        network: Option<String>,
    },
    /// Throw the test machine away.
    LowerTest {
        /// Its side.
        at: Side,
        /// Whether the job waits for a master target that is gone.
        required: bool,
    },
    /// Serve a point to people.
    ServeView {
        /// The side whose replica is read.
        at: Side,
        /// The point, the newest if none is given.
        point: Option<Attempt>,
        /// Whether it can be written.
        writable: bool,
    },
    /// Serve a point no longer.
    EndView {
        /// Its side.
        at: Side,
        /// Its number.
        view: i64,
        /// Whether the job waits for a master target that is gone.
        required: bool,
    },
    /// Read a replica and its journal and compare them with what is known of them.
    Verify {
        /// Its side.
        at: Side,
    },
    /// Throw a raised machine away with everything it wrote. Undone by bringing it up from its point again, without that.
    Discard {
        /// Its side.
        at: Side,
        /// The generation that it writes.
        generation: u64,
        /// The point that it was raised from.
        point: Option<Attempt>,
    },
    /// Record who may run: the point of no return.
    Authorise {
        /// The side that may run.
        at: Side,
        /// The generation.
        generation: u64,
        /// Whether the machine there was raised from the replica by this job.
        raised: bool,
        /// Whether nothing was lost.
        planned: bool,
    },
    /// Let the raised machine go on.
    Release {
        /// Its side.
        at: Side,
    },
    /// Start the machine again at the side that it had left (a cancelled move).
    StartAgain {
        /// Its side.
        at: Side,
    },
    /// Let go of the disks at the old side, if it answers.
    LetGo {
        /// The old side.
        at: Side,
        /// Whether the job fails when that is not possible.
        required: bool,
    },
    /// Write the overlay of the machine that ran at the old side into its replica, and remove that machine (H13).
    Absorb {
        /// The old side.
        at: Side,
    },
    /// Write the overlay of the machine, which runs on, into the disks that it came from.
    Fold {
        /// Its side.
        at: Side,
        /// Whether the job fails when that is not possible.
        required: bool,
    },
    /// Throw the raised machine away and keep what it wrote as a point.
    Lower {
        /// Its side.
        at: Side,
    },
    /// Make sure that the machine at the receiving side stands still, and read what maps it left.
    Settle {
        /// The receiving side.
        at: Side,
        /// Whether a running machine is shut down (R26).
        shut_down: bool,
    },
    /// Take the receiving side's disks over as a replica.
    TakeOver {
        /// The receiving side.
        at: Side,
        /// Whether they may be overwritten without a way back.
        #[serde(default)]
        no_way_back: bool,
    },
    /// Ask where the running machine's disks stood when it was started.
    Standpoint {
        /// The side where it runs.
        at: Side,
    },
    /// While the machine runs on: let epochs follow each other until the downtime that is left to expect fits what is
    /// allowed. Where it cannot, a person is waited for.
    Converge {
        /// How long the machine may be down, in ms.
        max_downtime_ms: u64,
    },
    /// Wait for *Complete*, by a person or at its time, and for what is left to fit once more.
    WaitForComplete {
        /// How long the machine may be down, in ms, where no person says *Complete*.
        #[serde(default = "max_downtime_ms")]
        max_downtime_ms: u64,
    },
    /// Delete the replica.
    DropReplica {
        /// Its side.
        at: Side,
    },
    /// Forget the item.
    RemoveItem,
}

impl Work {
    /// Whether nothing is undone any more once this step is done.
    pub fn is_return(&self) -> bool {
        matches!(
            self,
            Work::Authorise { .. }
                | Work::RemoveItem
                | Work::DropReplica { .. }
                | Work::Stage { event: Event::Commit, .. }
                | Work::Absorb { .. }
        )
    }

    /// Whether a failure is answered by trying again: the authority has moved, the machine must go on.
    pub fn is_repeated(&self) -> bool {
        matches!(self, Work::Release { .. } | Work::StartAgain { .. })
    }

    /// The step in an operator's words.
    pub fn words(&self, machine: &str, site: impl Fn(Side) -> String) -> String {
        match self {
            Work::CreateItem { machine, from, to, .. } => format!("remember {machine}, from {from} to {to}"),
            Work::Stage { event, .. } => match event {
                Event::Failover => "begin the move".into(),
                Event::Failback => "begin the way home".into(),
                Event::Reprotect => "begin to reprotect".into(),
                Event::Converged => "phase 1 has converged".into(),
                Event::Complete => "begin phase 2".into(),
                Event::Started => "the move is ready to be committed".into(),
                Event::Commit => "commit".into(),
                Event::Fold => "look whether it can be folded".into(),
                Event::UndoneUnprotected => "the move is taken back".into(),
                other => other.words().into(),
            },
            Work::Relocate { from, to } => format!("let {to} be home in place of {from}"),
            Work::MakeDisks { at, datastore } => match datastore {
                Some(datastore) => format!("make disks for {machine} on {datastore} of {}", site(*at)),
                None => format!("make disks for {machine} at {}", site(*at)),
            },
            Work::PrepareReplica { at } => format!("make a replica at {}", site(*at)),
            Work::Replicate { from, sync, offline } => format!(
                "replicate {machine} from {} to {} ({sync}{})",
                site(*from),
                site(from.other()),
                if *offline { ", machine off" } else { "" }
            ),
            Work::AwaitFirst { from, .. } => format!("first copy to {}", site(from.other())),
            Work::StopFirst { at, how } => match how {
                ShutDownFirst::Try => format!("shut {machine} down at {}, if it answers", site(*at)),
                ShutDownFirst::Require => format!("shut {machine} down at {}", site(*at)),
                ShutDownFirst::Skip => format!("leave {machine} at {} alone", site(*at)),
            },
            Work::ShutDown { at, .. } => format!("shut {machine} down at {}", site(*at)),
            Work::FinalDelta { at } => format!("send the last changes from {}", site(*at)),
            Work::StopReplication => "end replication".into(),
            Work::CloseReplica { at } => format!("close the replica at {}", site(*at)),
            Work::Raise { at, point, .. } => {
                format!("bring {machine} up at {}{}, paused", site(*at), from_point(point))
            }
            Work::Discard { at, .. } => format!("remove {machine} at {} with everything it wrote", site(*at)),
            Work::RaiseTest { at, point, network } => {
                let (test, from) = (test_name(machine), from_point(point));
                let network = network.as_ref().map_or("nothing".into(), |network| format!("the network {network}"));
                format!("bring {test} up at {}{from}, connected to {network}", site(*at))
            }
            Work::LearnGuest => format!("ask the guest of {machine} which addresses it has at home"),
            Work::SetGuest { place: Place::Home } => format!("see that {machine}'s guest has its addresses of home"),
            Work::SetGuest { place: Place::Away } => format!("give {machine}'s guest its addresses of away"),
            Work::SetGuest { place: Place::Test } => {
                format!("give {}'s guest the addresses of a test", test_name(machine))
            }
            Work::LowerTest { at, .. } => format!("remove {} at {}", test_name(machine), site(*at)),
            Work::ServeView { at, point, writable } => {
                let how = if *writable { "on a scratch overlay" } else { "read only" };
                format!("serve {machine}'s disks at {}{}, {how}", site(*at), from_point(point))
            }
            Work::Verify { at } => format!("read the replica at {} and its journal, all of it", site(*at)),
            Work::EndView { at, view, .. } => format!("serve view {view} at {} no longer", site(*at)),
            Work::Authorise { at, .. } => format!("authorise {} to run {machine}", site(*at)),
            Work::Release { at } => format!("let {machine} go on at {}", site(*at)),
            Work::StartAgain { at } => format!("start {machine} at {} again", site(*at)),
            Work::LetGo { at, .. } => format!("let go of the disks at {}", site(*at)),
            Work::Absorb { at } => format!("remove the machine at {}, its writes go into the replica", site(*at)),
            Work::Fold { at, .. } => {
                format!("fold: {machine} gets its own disks at {} back, the history beside them ends", site(*at))
            }
            Work::Lower { at } => format!("remove the machine at {}, keep its writes as a point", site(*at)),
            Work::Settle { at, .. } => format!("look how the disks at {} were left", site(*at)),
            Work::TakeOver { at, no_way_back: false } => format!("take the disks at {} over as a replica", site(*at)),
            Work::TakeOver { at, no_way_back: true } => {
                format!("take the disks at {} over as a replica, WITHOUT keeping what they hold", site(*at))
            }
            Work::Standpoint { at } => format!("ask {} where its disks stood", site(*at)),
            Work::Converge { max_downtime_ms } => {
                format!("wait until the rest fits {} of downtime", seconds(*max_downtime_ms))
            }
            Work::WaitForComplete { .. } => "wait for Complete".into(),
            Work::DropReplica { at } => format!("delete the replica at {}", site(*at)),
            Work::RemoveItem => "forget the item".into(),
        }
    }
}

fn max_downtime_ms() -> u64 {
    MAX_DOWNTIME_MS
}

/// `5 s`, `2.5 s`.
pub(crate) fn seconds(ms: u64) -> String {
    if ms.is_multiple_of(1000) { format!("{} s", ms / 1000) } else { format!("{:.1} s", ms as f64 / 1000.0) }
}

fn from_point(point: &Option<Attempt>) -> String {
    point.map_or_else(String::new, |point| format!(" from point {point}"))
}
