//! Items: what control remembers of each replicated machine.
//!
//! ```text
//!   item ── stage · generation (who may run) · wish (what is to be replicated) · home copy · away copy
//! ```
//!
//! What a process server should replicate is computed from these rows, never from jobs, so a lost job cannot leave a
//! replication behind. Rows are changed by compare-and-swap through [`update`]; the stage only through [`Item::hear`],
//! which asks the table.

use std::collections::BTreeMap;

use protocol::bandwidth::Bandwidth;
use protocol::fault::{Fault, code};
use protocol::guest::{CardAddresses, GuestNetwork};
use protocol::id::{Attempt, ItemId, Lineage, PolicyName, SiteName};
use protocol::leaf::LeafSize;
use protocol::machine::{Boot, MachineSpec, Settled};
use protocol::order::{Role, Sync};
use protocol::pace::Pace;
use protocol::position::Position;
use protocol::retention::Retention;
use protocol::stage::{Side, Stage};
use serde::{Deserialize, Serialize};
use sqlx::{Row, SqliteConnection};

use crate::beside::{Test, View};
use crate::database::{Database, commit, failed, from_text, to_text};
use crate::stage_table::{Decision, Event, decide};

/// What is known of the copy at one side.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Copy {
    /// Where it stands, as last told, while it does not run.
    pub settled: Option<Settled>,
    /// The last generation that its machine wrote.
    pub authored: Option<u64>,
    /// A machine raised from the replica stands here (on overlays).
    pub raised: bool,
    /// It is a replica and nothing else: no machine here has to be settled before it is taken over.
    pub at_rest: bool,
    /// The master target that keeps it.
    pub master_target: Option<String>,
    /// Where it stood when its generation began, once its machine was folded and no replica can tell any more.
    #[serde(default)]
    pub stands: Option<Position>,
    /// How fast the epochs went that were last sent from here.
    #[serde(default)]
    pub pace: Pace,
    /// How long it last took to bring the machine up here, in ms: from the last delta being durable to its start.
    #[serde(default)]
    pub bring_up_ms: Option<u64>,
    /// How long its guest last took to shut down here, in ms.
    #[serde(default)]
    pub shut_down_ms: Option<u64>,
}

/// What is to be replicated, from the side where the machine runs to the other.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Wish {
    /// The generation that is sent.
    pub generation: u64,
    /// The secret that both ends were given.
    pub token: String,
    /// Where the copy stood when its generation began.
    pub standpoint: Option<Position>,
    /// How the first epoch is chosen.
    pub sync: Sync,
    /// The machine is off on purpose.
    pub offline: bool,
    /// No regular epochs.
    pub quiesced: bool,
    /// Epochs follow each other as closely as they can: the machine is about to be stopped.
    #[serde(default)]
    pub hurried: bool,
    /// Whether it is given to the process server at all.
    pub active: bool,
}

/// How the machine last came to the side where it runs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LastMove {
    /// Whether nothing was lost: the machine was stopped and its last changes were sent.
    pub planned: bool,
    /// The point that it was started from.
    pub point: Option<Attempt>,
    /// When that point was cut, ms since 1970.
    pub cut_at_ms: u64,
    /// Whether the process server at the old side has let go of the disks.
    pub let_go: bool,
}

/// A replicated machine.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Item {
    /// Its name.
    pub name: ItemId,
    /// Where it was protected.
    pub home: SiteName,
    /// Where it is replicated to first.
    pub away: SiteName,
    /// The machine as it was found at home.
    pub spec: MachineSpec,
    /// What the networks of home are called at the other side.
    #[serde(default)]
    pub networks: BTreeMap<String, String>,
    /// Which addresses its guest has where.
    #[serde(default)]
    pub addresses: Vec<CardAddresses>,
    /// Which it had at home when its agent was last asked there.
    #[serde(default)]
    pub guest: Option<GuestNetwork>,
    /// Its guest's configuration is ours, and its own is kept in it.
    #[serde(default)]
    pub readdressed: bool,
    /// Its history.
    pub lineage: Lineage,
    /// The generation that is authorised to run.
    pub generation: u64,
    /// Its stage.
    pub stage: Stage,
    /// Time between epochs, in ms.
    pub interval_ms: u64,
    /// The policy whose limits follow.
    #[serde(default = "PolicyName::standard")]
    pub policy: PolicyName,
    /// How old the newest recovery point may be, in ms.
    pub rpo_limit_ms: u64,
    /// Which recovery points are kept.
    #[serde(default)]
    pub retention: Retention,
    /// How fast it may be replicated.
    #[serde(default)]
    pub bandwidth: Bandwidth,
    /// How often a point is to be application-consistent, in ms; 0: never by itself.
    #[serde(default = "protocol::keeping::app_interval_ms")]
    pub app_interval_ms: u64,
    /// How much of a disk one kept hash stands for.
    #[serde(default)]
    pub leaf_bytes: LeafSize,
    /// The copy at home.
    pub home_copy: Copy,
    /// The copy away.
    pub away_copy: Copy,
    /// What is to be replicated.
    pub wish: Option<Wish>,
    /// The last move.
    pub last_move: Option<LastMove>,
    /// The test failover that is under way.
    #[serde(default)]
    pub test: Option<Test>,
    /// The recovery points that are served.
    #[serde(default)]
    pub views: Vec<View>,
}

impl Item {
    /// The site of a side.
    pub fn site(&self, side: Side) -> &SiteName {
        match side {
            Side::Home => &self.home,
            Side::Away => &self.away,
        }
    }

    /// The copy at a side.
    pub fn copy(&self, side: Side) -> &Copy {
        match side {
            Side::Home => &self.home_copy,
            Side::Away => &self.away_copy,
        }
    }

    /// What its owner changed at home since it was protected, as home last told.
    pub fn learn(&mut self, told: &MachineSpec) {
        if self.is_of(told) {
            self.spec = MachineSpec { disks: self.spec.disks.clone(), seed: None, ..told.clone() };
        }
    }

    /// Whether that is this machine, by its disks.
    fn is_of(&self, told: &MachineSpec) -> bool {
        let keys = |spec: &MachineSpec| spec.disks.iter().map(|disk| disk.key.clone()).collect::<Vec<_>>();
        keys(told) == keys(&self.spec)
    }

    /// The machine as it is to be brought up at a side, given what the other side last told of it.
    pub fn description(&self, at: Side, told: Option<&MachineSpec>) -> MachineSpec {
        let told = told.filter(|told| self.is_of(told));
        let mut spec = self.spec.clone();
        match (at, told) {
            (Side::Away, Some(told)) => {
                let mut now = self.clone();
                now.learn(told);
                now.spec.connected(&self.networks)
            }
            (Side::Away, None) => spec.connected(&self.networks),
            (Side::Home, told) => {
                // What it is at home stays as it was there; its firmware has gone on.
                if let (Boot::Uefi { variables }, Some(Boot::Uefi { variables: Some(now) })) =
                    (&mut spec.boot, told.map(|told| &told.boot))
                {
                    *variables = Some(now.clone());
                }
                spec
            }
        }
    }

    /// The copy at a side, to be changed.
    pub fn copy_mut(&mut self, side: Side) -> &mut Copy {
        match side {
            Side::Home => &mut self.home_copy,
            Side::Away => &mut self.away_copy,
        }
    }

    /// Takes an event to the table and follows its answer. Tells whether the stage changed.
    pub fn hear(&mut self, event: Event) -> Result<bool, Fault> {
        match decide(self.stage, event) {
            Decision::Move(next) => {
                let changed = next != self.stage;
                self.stage = next;
                Ok(changed)
            }
            Decision::AlreadyThere => Ok(false),
            Decision::Refused(fault) => Err(for_item(fault, &self.name)),
        }
    }

    /// The wish that is in force, if one is.
    pub fn active_wish(&self) -> Option<&Wish> {
        self.wish.as_ref().filter(|wish| wish.active)
    }

    /// The name of the component that keeps this item's replica at `side`, where that was fixed.
    pub fn bound(&self, side: Side, role: Role) -> Option<&str> {
        match role {
            Role::MasterTarget => self.copy(side).master_target.as_deref(),
            Role::ProcessServer => None,
        }
    }
}

/// Puts the item's name where the table says ITEM.
pub fn for_item(mut fault: Fault, item: &ItemId) -> Fault {
    fault.remedy = fault.remedy.replace("ITEM", item.as_str());
    let of_stage = fault.is(code::STAGE_REFUSES) || fault.is(code::NOT_CANCELLABLE);
    if of_stage && !fault.message.starts_with(item.as_str()) {
        fault.message = format!("{item}: {}", fault.message);
    }
    fault
}

/// The refusal of a name that is no item's.
pub fn unknown(name: &ItemId) -> Fault {
    Fault::new(code::UNKNOWN_ITEM, format!("there is no item {name}"), "control has no record of it")
}

/// The item of that name and its version.
pub async fn find(on: &mut SqliteConnection, name: &ItemId) -> Result<Option<(Item, i64)>, Fault> {
    let row = sqlx::query("select body, version from item where name = $1")
        .bind(name.as_str())
        .fetch_optional(on)
        .await
        .map_err(failed)?;
    row.map(|row| Ok((from_text(&row.get::<String, _>(0))?, row.get(1)))).transpose()
}

/// The item of that name.
pub async fn load(database: &Database, name: &ItemId) -> Result<Item, Fault> {
    let mut on = database.readers().acquire().await.map_err(failed)?;
    find(&mut on, name).await?.map(|(item, _)| item).ok_or_else(|| unknown(name))
}

/// All items by name.
pub async fn all(database: &Database) -> Result<Vec<Item>, Fault> {
    let bodies: Vec<String> = sqlx::query_scalar("select body from item order by name")
        .fetch_all(database.readers())
        .await
        .map_err(failed)?;
    bodies.iter().map(|body| from_text(body)).collect()
}

/// The same with their versions, to be changed.
pub async fn all_on(on: &mut SqliteConnection) -> Result<Vec<(Item, i64)>, Fault> {
    let rows = sqlx::query("select body, version from item order by name").fetch_all(on).await.map_err(failed)?;
    rows.iter().map(|row| Ok((from_text(&row.get::<String, _>(0))?, row.get(1)))).collect()
}

/// Puts a new item into the database; one that is there already stays as it is.
pub async fn insert(on: &mut SqliteConnection, item: &Item) -> Result<(), Fault> {
    sqlx::query("insert into item (name, version, body) values ($1, 1, $2) on conflict (name) do nothing")
        .bind(item.name.as_str())
        .bind(to_text(item)?)
        .execute(on)
        .await
        .map_err(failed)?;
    Ok(())
}

/// Forgets an item.
pub async fn remove(on: &mut SqliteConnection, name: &ItemId) -> Result<(), Fault> {
    sqlx::query("delete from item where name = $1").bind(name.as_str()).execute(on).await.map_err(failed)?;
    Ok(())
}

/// Writes `item` if its row still has `version`.
pub async fn store(on: &mut SqliteConnection, item: &Item, version: i64) -> Result<(), Fault> {
    let done = sqlx::query("update item set body = $1, version = version + 1 where name = $2 and version = $3")
        .bind(to_text(item)?)
        .bind(item.name.as_str())
        .bind(version)
        .execute(on)
        .await
        .map_err(failed)?;
    if done.rows_affected() == 1 {
        return Ok(());
    }
    Err(Fault::new(
        code::INTERNAL,
        format!("{} was changed by somebody else", item.name),
        "its row has another version",
    ))
}

/// Reads, changes and writes an item in one transaction.
pub async fn update<T>(
    database: &Database,
    name: &ItemId,
    change: impl FnOnce(&mut Item) -> Result<T, Fault>,
) -> Result<T, Fault> {
    let mut transaction = database.change().await?;
    let (mut item, version) = find(&mut transaction, name).await?.ok_or_else(|| unknown(name))?;
    let before = item.clone();
    let answer = change(&mut item)?;
    if item != before {
        store(&mut transaction, &item, version).await?;
        commit(transaction).await?;
    }
    Ok(answer)
}
