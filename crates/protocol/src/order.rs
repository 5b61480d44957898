//! What control wants from the components at the sites, and what they tell it.
//!
//! ```text
//!   component ── POST /api/v1/components/{name}/exchange ──►  control
//!                { heartbeat, reports }                         │   held open until there is something to do
//!             ◄── { orders, wishes } ───────────────────────────┘
//! ```
//!
//! Control never calls into a site: components ask. Two kinds of work exist. An **order** is finite: it is handed out
//! again on every exchange until its outcome was reported, so it must be safe to repeat, and a component that already
//! runs it ignores the repetition. A **wish** is about the future: the complete list of what a process server should be
//! replicating, and of what a master target should be keeping; the component writes it down on its own disk and goes by it
//! while control is away.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::bandwidth::Bandwidth;
use crate::difference::Pair;
use crate::epoch::DiskSize;
use crate::fault::Fault;
use crate::guest::GuestWish;
use crate::id::{Attempt, DiskKey, ItemId, Lineage, SiteName};
use crate::keeping::{Keeping, KeepingStatus};
use crate::machine::{Machine, MachineSpec, NewDisks, Settled, SiteFacts};
pub use crate::outcome::Outcome;
use crate::position::Changes;
pub use crate::replication::{
    AppStatus, Grant, Moved, Progress, Replication, ReplicationPhase, ReplicationStatus, Sync,
};

/// The part that a process plays at its site.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Role {
    /// Captures, compares and sends; stops, starts and fences machines.
    ProcessServer,
    /// Receives, keeps replicas, serves recovery points, brings machines up from them.
    MasterTarget,
}

impl std::fmt::Display for Role {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Role::ProcessServer => "process-server",
            Role::MasterTarget => "master-target",
        })
    }
}

/// A component's first words to control.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Registration {
    /// Its name, unique in the whole system; the same after a restart (`home-process-server`).
    pub name: String,
    /// The site it stands at.
    pub site: SiteName,
    /// Its role there.
    pub role: Role,
    /// Where other movers reach it (`host:port`), for a master target.
    pub address: Option<String>,
    /// Its version.
    pub version: String,
    /// The platform that it steers.
    pub platform: String,
}

/// What a component says on each exchange.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct ExchangeRequest {
    /// The machines at its site; none when they could not be listed (`fault` then says why).
    pub machines: Option<Vec<Machine>>,
    /// Why something about the site cannot be told.
    pub fault: Option<Fault>,
    /// What else its site has; none where that was not looked at.
    #[serde(default)]
    pub site: Option<SiteFacts>,
    /// How each of its replications stands.
    pub replications: Vec<ReplicationStatus>,
    /// How the history of each item that it keeps stands.
    #[serde(default)]
    pub keepings: Vec<KeepingStatus>,
    /// What became of orders since the last exchange that control answered.
    pub reports: Vec<Report>,
    /// How long control may hold the request open while there is nothing to do, in ms.
    pub wait_ms: u64,
    /// The number of the last wishes that the component has taken over.
    pub seen: u64,
}

/// Control's answer.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct ExchangeReply {
    /// Everything that is to be done and whose outcome control does not know yet.
    pub orders: Vec<NumberedOrder>,
    /// What is wanted of the component from now on.
    pub wishes: Wishes,
    /// The number of these wishes; it rises when they change.
    pub number: u64,
}

/// What is wanted of a component from now on: always all of it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Wishes {
    /// What a process server should be replicating.
    pub replications: Vec<Replication>,
    /// What a master target should be keeping. An item that is not named stays as it is.
    pub keepings: Vec<Keeping>,
    /// How fast a process server may send in all.
    #[serde(default)]
    pub bandwidth: Bandwidth,
}

/// An order with the number under which its outcome is reported.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct NumberedOrder {
    /// Unique for ever.
    pub id: String,
    /// What is to be done.
    pub order: Order,
    /// Control no longer wants it: stop at the next safe point and report `Failed` with `CTL-016`, or `Done`.
    pub cancelled: bool,
}

/// How an order goes.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Report {
    /// The order's number.
    pub id: String,
    /// How it goes.
    pub state: ReportState,
}

/// How an order goes.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ReportState {
    /// It is being worked on.
    Running {
        /// What is being done, in an operator's words.
        step: String,
        /// How far, 0 to 100, when that is known.
        percent: Option<u8>,
    },
    /// It is done.
    Done(Outcome),
    /// It failed, and what it began is undone.
    Failed(Fault),
}

/// What can be ordered. Each says which role carries it out. All are safe to repeat.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "order")]
pub enum Order {
    // ---- process server: the machine at its site
    /// Shut the machine down and keep holding its disks. Outcome: `Stopped`.
    ShutDown {
        /// The machine's name.
        machine: String,
        /// How long the guest may take, in ms.
        timeout_ms: u64,
        /// Whether its power is taken after that time; otherwise the order fails with `PLT-004`.
        then_power_off: bool,
    },
    /// Start a machine that was shut down by an order (a cancelled move), tracked as it was. Outcome: `Nothing`.
    StartMachine {
        /// The machine's name.
        machine: String,
        /// The item's history.
        lineage: Lineage,
        /// What changes are counted from if no map is held.
        mark: Attempt,
    },
    /// Send what changed since the last epoch of a machine that stands still, as the last epoch of its generation.
    /// Outcome: `Final`.
    FinalDelta {
        /// The item, one of the component's replications.
        item: ItemId,
    },
    /// Make the next point application-consistent. Outcome: `Added`, once it is durable; PLT-015 or PLT-016 when the guest's agent
    /// did not do it (the point that was cut is crash-consistent, as any other).
    AppPoint {
        /// The item, one of the component's replications.
        item: ItemId,
    },
    /// Make sure the machine stands still, read the change maps that are left and let go of its disks. Refused with
    /// `CTL-015` when the guest runs and `stop` is false. Outcome: `Settled`.
    Settle {
        /// The machine's name.
        machine: String,
        /// The item's history.
        lineage: Lineage,
        /// Whether a running guest is shut down (then powered off after the time given, in ms).
        stop: Option<u64>,
    },
    /// Tell how much the machine's change map holds. Outcome: `Changed`.
    TellChanged {
        /// The machine's name.
        machine: String,
        /// The item's history.
        lineage: Lineage,
    },

    /// Tell which addresses the guest has. Outcome: `Guest`; PLT-015 where no agent answers.
    TellGuest {
        /// The machine's name.
        machine: String,
    },

    // ---- master target: replicas and the machines raised from them
    /// Give the guest of a machine that runs other addresses, or its own configuration back. Outcome: `GuestSet`.
    SetGuest {
        /// The machine's name.
        machine: String,
        /// What is to be done.
        what: GuestWish,
        /// How long its agent may take until it answers, in ms.
        within_ms: u64,
    },
    /// Make an empty replica and take epochs for it. Outcome: `Nothing`.
    PrepareReplica {
        /// The item.
        item: ItemId,
        /// Its history.
        lineage: Lineage,
        /// Its disks.
        disks: Vec<DiskSize>,
        /// Who may send.
        grant: Grant,
        /// Where its disks are made as the platform's own, for a machine that is to stay here (H13, R14).
        #[serde(default)]
        own: Option<NewDisks>,
    },
    /// Take over what this site has of the item (its own disks, or an overlay over its replica, or a replica at rest)
    /// as a replica with history, keep its present state as a point, and take epochs. Outcome: `Taken`.
    TakeOver {
        /// The item.
        item: ItemId,
        /// Its history.
        lineage: Lineage,
        /// The machine whose disks these are, by its name at this site.
        machine: String,
        /// What the site's process server, or control's records, know of the copy; the stamps are checked against the disks.
        settled: Settled,
        /// The generation whose epochs were cut from this copy.
        authored: Option<u64>,
        /// Who may send.
        grant: Grant,
        /// Whether the first epoch may overwrite the copy without keeping what was there: until it is sealed the copy is
        /// half written, and it cannot be given back (H14).
        #[serde(default)]
        no_way_back: bool,
    },
    /// Take no more epochs; an unfinished one is rolled back. Outcome: `Closed`.
    CloseReplica {
        /// The item.
        item: ItemId,
    },
    /// Bring the machine up, paused, on overlays over views of a point. Outcome: `Raised`.
    Raise {
        /// The item.
        item: ItemId,
        /// The machine; its disks' sources are replaced by overlays.
        spec: MachineSpec,
        /// The point, the newest if none is given.
        point: Option<Attempt>,
        /// The generation that the machine will write.
        generation: u64,
    },
    /// Bring a test machine up from a point, running, tracked by nobody; there is one test of an item at a time. Outcome:
    /// `Raised`.
    RaiseTest {
        /// The item.
        item: ItemId,
        /// The machine, under a name of its own; its disks' sources are replaced by overlays.
        spec: MachineSpec,
        /// The point, the newest if none is given.
        point: Option<Attempt>,
    },
    /// Throw the test machine away with everything it wrote. Outcome: `Nothing`.
    LowerTest {
        /// The item.
        item: ItemId,
    },
    /// Serve a point's disks over NBD until `EndView`. Outcome: `Serves`.
    ServeView {
        /// The item.
        item: ItemId,
        /// The number by which it is ended.
        view: i64,
        /// The point, the newest if none is given.
        point: Option<Attempt>,
        /// Whether it can be written, on a scratch overlay.
        writable: bool,
    },
    /// Serve a view no longer, and throw away what was written to it. Outcome: `Nothing`.
    EndView {
        /// The item.
        item: ItemId,
        /// The view's number.
        view: i64,
    },
    /// Let the raised machine go on: the point of no return of a move. Outcome: `Nothing`.
    Release {
        /// The item.
        item: ItemId,
    },
    /// Throw the raised machine away: overlays, views and its description. What it wrote is kept as a point when `keep`
    /// is set. Outcome: `Nothing`.
    Lower {
        /// The item.
        item: ItemId,
        /// Whether its writes are kept as a point of kind `Unreplicated`.
        keep: bool,
    },
    /// After a commit at the other side: write the overlay of the machine that ran here into the replica, as attempt
    /// `attempt`, and remove the machine (H13). Outcome: `Absorbed`.
    Absorb {
        /// The item.
        item: ItemId,
        /// The final attempt that the other side sealed: the replica then holds that very state.
        attempt: Attempt,
        /// When it was cut, ms since 1970.
        cut_at_ms: u64,
    },
    /// Where the disks of the raised machine stood when it was started. Outcome: `Stands`.
    Standpoint {
        /// The item.
        item: ItemId,
        /// The secret with which the machine's process server may ask for the kept hashes of those disks, from now on.
        #[serde(default)]
        reader: Option<String>,
    },
    /// Fold the raised machine, which runs on overlays over the newest point of a replica around the platform's own disks:
    /// it runs on those disks afterwards, and the replica with its history is gone; pinned points are written out as files of
    /// their own before. Outcome: `Folded`.
    Fold {
        /// The item.
        item: ItemId,
    },
    /// Undo what the direction of `grant` wrote: the replica becomes what it was when it was taken over. Outcome: `Closed`;
    /// RPL-010 when there is no way back: the copy is damaged then, and taken over again to be repaired.
    GiveBack {
        /// The item.
        item: ItemId,
    },
    /// Forget the item here: replica, journal, views. Disks that the platform owns stay. Outcome: `Nothing`.
    DropReplica {
        /// The item.
        item: ItemId,
    },
    /// The points that are kept. Outcome: `Points`.
    ListPoints {
        /// The item.
        item: ItemId,
    },
    /// Pin a point, so that retention never takes it, or take its pin away. Outcome: `Nothing`.
    PinPoint {
        /// The item.
        item: ItemId,
        /// The point.
        point: Attempt,
        /// Whether it is to be pinned.
        pinned: bool,
    },
    /// Wait for a point that is cut after this order was given, and pin it. Outcome: `Added`.
    AddPoint {
        /// The item.
        item: ItemId,
        /// How long to wait for one (milliseconds, from when the order is taken up); then none is added.
        within_ms: u64,
    },
    /// What two points differ in. Outcome: `Differ`.
    DiffPoints {
        /// The item.
        item: ItemId,
        /// The points.
        points: Pair,
    },
    /// Read the replica and its journal and compare them with what is known of them. Outcome: `Verified`.
    Verify {
        /// The item.
        item: ItemId,
    },
}

impl Order {
    /// Which role carries it out.
    pub fn role(&self) -> Role {
        match self {
            Order::ShutDown { .. }
            | Order::StartMachine { .. }
            | Order::FinalDelta { .. }
            | Order::AppPoint { .. }
            | Order::Settle { .. }
            | Order::TellGuest { .. }
            | Order::TellChanged { .. } => Role::ProcessServer,
            _ => Role::MasterTarget,
        }
    }
}

/// An empty set of changes for a copy of which control knows that nothing wrote it since `since`.
pub fn untouched(since: Attempt, stamps: BTreeMap<DiskKey, String>) -> Settled {
    Settled { since: Some(since), changes: Changes::none(), stamps }
}
