//! Replications: what a process server should be sending, as control wishes it, and how it goes, as the process server tells.
//!
//! ```text
//!   control ── [Replication] (a wish, kept at the site) ──► process server ── [ReplicationStatus] ──► control
//! ```

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::bandwidth::Bandwidth;
use crate::epoch::Point;
use crate::fault::Fault;
use crate::id::{ItemId, Lineage};
use crate::pace::Pace;
use crate::position::{Distrust, Position};
use crate::quote::Moving;

/// How the blocks of a first epoch of a direction are chosen (H6, H7).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema, Default)]
#[serde(rename_all = "snake_case")]
pub enum Sync {
    /// From the maps of both sides; compare, and say why, where a map is absent or unusable.
    #[default]
    Tracked,
    /// Hash both sides, send what differs.
    Compare,
    /// Send everything.
    Full,
}

impl std::fmt::Display for Sync {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Sync::Tracked => "tracked",
            Sync::Compare => "compare",
            Sync::Full => "full",
        })
    }
}

/// A component as others find it and recognise it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Peer {
    /// Its name, which its certificate must prove.
    pub name: String,
    /// Where it is dialled (`host:port`).
    pub address: String,
}

impl std::fmt::Display for Peer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} ({})", self.name, self.address)
    }
}

/// How a process server and its master target come together.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Target {
    /// The process server dials it.
    Dial(Peer),
    /// It cannot be dialled: it dials the process server. This is its name.
    Await(String),
}

impl std::fmt::Display for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Target::Dial(peer) => write!(f, "{peer}"),
            Target::Await(name) => write!(f, "{name} (which dials)"),
        }
    }
}

/// Who may send epochs to a replica.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Grant {
    /// The generation whose epochs are taken.
    pub generation: u64,
    /// The secret that the sender must present.
    pub token: String,
}

/// What a process server should be replicating.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Replication {
    /// The item.
    pub item: ItemId,
    /// The machine's name at this site.
    pub machine: String,
    /// The item's history.
    pub lineage: Lineage,
    /// The generation that this site is authorised to write.
    pub generation: u64,
    /// The master target.
    pub target: Target,
    /// The secret to present there.
    pub token: String,
    /// Where this copy stood when its generation began (the machine's own writes since are added by the process server
    /// from its maps); none for a machine that was never raised from a replica.
    pub standpoint: Option<Position>,
    /// The master target at this site that keeps what the machine was raised from, if it can be dialled: it knows hashes.
    #[serde(default)]
    pub beneath: Option<Peer>,
    /// How the first epoch is chosen.
    pub sync: Sync,
    /// Time from the start of one epoch to the start of the next, in ms.
    pub interval_ms: u64,
    /// The machine is off on purpose (`--offline`): copy once and wait for `FinalDelta`.
    pub offline: bool,
    /// No regular epochs: a final delta or a settle is under way.
    pub quiesced: bool,
    /// How fast it may go. A change of it is no new beginning.
    #[serde(default)]
    pub bandwidth: Bandwidth,
    /// How often a point is to be application-consistent, in ms; 0: never by itself. Nor is a change of this.
    #[serde(default)]
    pub app_interval_ms: u64,
}

/// How one replication stands.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct ReplicationStatus {
    /// The item.
    pub item: ItemId,
    /// The generation that is being sent.
    pub generation: u64,
    /// What is being done.
    pub phase: ReplicationPhase,
    /// The newest point that the target sealed in this generation.
    pub newest: Option<Point>,
    /// How the first epoch of this generation was chosen, once it was.
    pub sync: Option<Sync>,
    /// Why tracked was not possible, if it was asked for; also of a later epoch whose base was not proven.
    pub distrust: Option<Distrust>,
    /// The first epoch: expected and sent bytes, for a percentage.
    pub first: Progress,
    /// What the first epoch moved, once sealed.
    pub first_moved: Option<Moved>,
    /// Everything moved in this generation since the component started.
    pub moved: Moved,
    /// Number of epochs sealed since the component started.
    pub epochs: u64,
    /// The last pauses of the guest for a cut, in microseconds (newest last, at most 64).
    pub pauses_us: Vec<u64>,
    /// Ages of the newest point at the moments just before it was replaced, in ms (newest last, at most 256): the RPO as it was lived.
    pub rpo_ms: Vec<u64>,
    /// How fast its epochs go.
    #[serde(default)]
    pub pace: Pace,
    /// What hinders it at the moment, if anything does.
    pub fault: Option<Fault>,
    /// The bandwidth cap that it waits for, or has just waited for.
    #[serde(default)]
    pub capped: Option<Capped>,
    /// How its application-consistent points go.
    #[serde(default)]
    pub app: AppStatus,
}

/// How application-consistent points go, since the component started.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct AppStatus {
    /// The newest that the target sealed.
    pub newest: Option<Point>,
    /// Why the last one that was wanted became crash-consistent, if it did.
    pub fault: Option<Fault>,
}

/// A bandwidth cap that is felt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Capped {
    /// Whose it is.
    pub by: CapOf,
    /// How much it is (bits per second).
    pub bits_per_second: u64,
}

/// Whose bandwidth cap it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum CapOf {
    /// That of the item's policy.
    Policy,
    /// That of the process server, for all that it sends.
    Component,
}

impl std::fmt::Display for CapOf {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            CapOf::Policy => "the policy",
            CapOf::Component => "the process server",
        })
    }
}

/// What a replication is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ReplicationPhase {
    /// Opening the machine and the session.
    Connecting,
    /// The first epoch of the generation is being chosen and sent.
    FirstEpoch,
    /// Epochs flow.
    Epochs,
    /// The last epoch is sealed, or epochs are withheld by order.
    Quiesced,
    /// It cannot go on at the moment and repeats (the fault says why).
    Waiting,
}

/// Bytes expected and done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema, Default)]
pub struct Progress {
    /// Bytes to be looked at.
    pub expected: u64,
    /// Bytes done.
    pub done: u64,
    /// The time since it began, in ms.
    #[serde(default)]
    pub elapsed_ms: u64,
}

impl Progress {
    /// 0 to 100; none while nothing is known.
    pub fn percent(&self) -> Option<u8> {
        (self.expected > 0).then(|| (self.done.min(self.expected).saturating_mul(100) / self.expected) as u8)
    }

    /// The same with rate and time left; none while nothing is known.
    pub fn moving(&self) -> Option<Moving> {
        let Progress { expected, done, elapsed_ms } = *self;
        // Less than a second tells little of what is to come.
        let rate = (done > 0 && elapsed_ms >= 1000).then(|| (done.saturating_mul(1000) / elapsed_ms).max(1));
        let left_ms = rate.map(|rate| expected.saturating_sub(done).saturating_mul(1000) / rate);
        (expected > 0).then_some(Moving { done, expected, rate, left_ms })
    }
}

/// What moving cost, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema, Default)]
pub struct Moved {
    /// Bytes of the blocks that were to be made equal (those that differed, as far as that was known).
    pub changed: u64,
    /// Bytes read from disks at the source.
    pub read_source: u64,
    /// Bytes read from disks at the target (for a compare; before-images not counted).
    pub read_target: u64,
    /// Bytes sent over the connection, both ways.
    pub sent: u64,
    /// Blocks that travelled compressed.
    #[serde(default)]
    pub blocks_compressed: u64,
    /// Blocks that travelled as they are: they do not shrink, or the line was quicker than compressing.
    #[serde(default)]
    pub blocks_plain: u64,
    /// Bytes that compression kept off the connection.
    #[serde(default)]
    pub saved: u64,
}

impl std::ops::AddAssign for Moved {
    fn add_assign(&mut self, other: Moved) {
        self.changed += other.changed;
        self.read_source += other.read_source;
        self.read_target += other.read_target;
        self.sent += other.sent;
        self.blocks_compressed += other.blocks_compressed;
        self.blocks_plain += other.blocks_plain;
        self.saved += other.saved;
    }
}
