//! What a master target is to keep of an item's history, and how that stands.
//!
//! ```text
//!   control: policy ─► item ── Keeping ──► master target: prunes and thins after each point
//!   control: health, status ◄── KeepingStatus ──┘
//! ```
//! A keeping is a wish, like a replication: the list is complete each time, and the master target goes by what it last
//! heard of an item while control is away.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::bandwidth::Bandwidth;
use crate::epoch::Point;
use crate::fault::Fault;
use crate::id::{ItemId, Lineage, PolicyName, SiteName};
use crate::leaf::LeafSize;
use crate::machine::MachineSpec;
use crate::replication::Peer;
use crate::retention::{Retention, Space};
use crate::stage::Stage;

/// The limits that one or more items are kept to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Policy {
    /// Its name.
    pub name: PolicyName,
    /// An item is critical when its newest recovery point is older than this (ms).
    pub rpo_limit_ms: u64,
    /// Which recovery points are kept, at both sites.
    pub retention: Retention,
    /// How fast each item may be replicated, in both directions.
    #[serde(default)]
    pub bandwidth: Bandwidth,
    /// How often a point is to be application-consistent, in ms; 0: never by itself.
    #[serde(default = "app_interval_ms")]
    pub app_interval_ms: u64,
    /// How much of a disk one kept hash stands for, at both sites: 65536 or up to six times twice that.
    #[serde(default)]
    #[schema(value_type = u64)]
    pub leaf_bytes: LeafSize,
}

/// R12: the limit from the reference's policy.
const RPO_LIMIT_MS: u64 = 15 * 60 * 1000;
/// R12: how often the reference's policy has an application-consistent point.
const APP_INTERVAL_MS: u64 = 60 * 60 * 1000;
/// The guest stands still for each: more often than this it would hardly do anything else (guessed).
pub const LEAST_APP_INTERVAL_MS: u64 = 10 * 1000;

/// How often a point is application-consistent where nobody said.
pub fn app_interval_ms() -> u64 {
    APP_INTERVAL_MS
}

impl Policy {
    /// The policy that every item has for which no other was chosen (R12); it is there from the start.
    pub fn standard() -> Policy {
        Policy {
            name: PolicyName::standard(),
            rpo_limit_ms: RPO_LIMIT_MS,
            retention: Retention::default(),
            bandwidth: Bandwidth::default(),
            app_interval_ms: APP_INTERVAL_MS,
            leaf_bytes: LeafSize::default(),
        }
    }
}

/// Sets a policy, for all items that have it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SetPolicy {
    /// The policy; one of that name is replaced.
    pub policy: Policy,
    /// Only tells what it would do.
    #[serde(default)]
    pub preview: bool,
    /// For the audit log.
    pub reason: Option<String>,
}

/// Gives an item another policy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ApplyPolicy {
    /// The policy's name.
    pub policy: PolicyName,
    /// Only tells what it would do.
    #[serde(default)]
    pub preview: bool,
    /// For the audit log.
    pub reason: Option<String>,
}

/// What another policy means for the items that get it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PolicyEffect {
    /// The policy.
    pub policy: Policy,
    /// Whether nothing changes, because it is so already.
    pub already: bool,
    /// The items that it is for.
    pub items: Vec<ItemEffect>,
}

/// What another policy means for one item.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ItemEffect {
    /// The item.
    pub item: ItemId,
    /// How many recovery points it has where it is replicated to; none when that site does not answer.
    pub points: Option<u64>,
    /// How many of them go at once, by age (those that a full budget costs are not counted).
    pub go: Option<u64>,
}

/// A recovery point, and what keeps it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct KeptPoint {
    /// The point.
    #[serde(flatten)]
    pub point: Point,
    /// Whether retention never takes it.
    pub pinned: bool,
}

/// Pins a point, or takes its pin away.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PinPoint {
    /// Whether it is to be pinned.
    pub pinned: bool,
    /// For the audit log.
    pub reason: Option<String>,
}

/// Takes a recovery point now and pins it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct AddPoint {
    /// Whether it must be application-consistent; refused where the guest's agent does not do it.
    #[serde(default)]
    pub app: bool,
    /// For the audit log.
    pub reason: Option<String>,
}

/// What is to be kept of one item.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Keeping {
    /// The item.
    pub item: ItemId,
    /// Its history: a replica of another one is not meant.
    pub lineage: Lineage,
    /// Which points stay.
    pub retention: Retention,
    /// How much of a disk one kept hash is to stand for.
    #[serde(default)]
    pub leaf_bytes: LeafSize,
    /// The process server that sends its epochs and cannot dial here: it is to be dialled.
    #[serde(default)]
    pub sender: Option<Peer>,
    /// What control knows of it.
    pub manifest: ItemManifest,
}

/// What a control server knows of an item: kept beside its replicas, for a new one to be rebuilt from when it is lost.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ItemManifest {
    /// Where it was protected.
    pub home: SiteName,
    /// Where it is replicated to first.
    pub away: SiteName,
    /// The machine as it was found at home.
    pub machine: MachineSpec,
    /// The generation that is authorised to run.
    pub generation: u64,
    /// The stage, which says where it runs.
    pub stage: Stage,
    /// The policy's name.
    pub policy: PolicyName,
    /// How old the newest recovery point may be (ms).
    pub rpo_limit_ms: u64,
    /// Time between epochs (ms).
    pub interval_ms: u64,
    /// How fast it may be replicated.
    #[serde(default)]
    pub bandwidth: Bandwidth,
    /// How often a point of it is to be application-consistent (ms; 0: never).
    #[serde(default = "app_interval_ms")]
    pub app_interval_ms: u64,
    /// How much of a disk one kept hash is to stand for.
    #[serde(default)]
    pub leaf_bytes: LeafSize,
}

/// How the history of one item stands at a master target.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct KeepingStatus {
    /// The item.
    pub item: ItemId,
    /// How many recovery points are kept.
    pub points: u64,
    /// When the oldest of them was cut, ms since 1970.
    pub oldest_cut_at_ms: Option<u64>,
    /// What the journal takes (bytes).
    pub journal_bytes: u64,
    /// What it may take: the policy's budget, or less when the retention volume has less (bytes).
    pub budget_bytes: u64,
    /// How it stands against that. `exceeded`: points go before the policy lets them.
    pub space: Space,
    /// Why the history cannot be tended, or why no epoch can be taken (`RPL-003`).
    pub fault: Option<Fault>,
}
