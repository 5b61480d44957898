//! The options of the verbs that protect machines and move them.

use std::time::Duration;

use clap::{Args, ValueEnum};
use protocol::guest::CardAddresses;
use protocol::id::{Attempt, ItemId, PolicyName, SiteName};
use protocol::operation::Landing;
use protocol::order::Sync;
use protocol::quote::Window;
use protocol::rest::ShutDownFirst;

use super::Change;
use super::value::{duration, networks, point, window};

#[derive(Debug, Args)]
pub struct Protect {
    /// The machine's name at its site; the item gets the same name
    pub vm: ItemId,
    /// The site where it runs
    #[arg(long, value_name = "S")]
    pub from: SiteName,
    /// The site to replicate to
    #[arg(long, value_name = "T")]
    pub to: SiteName,
    /// Time between two epochs
    #[arg(long, value_name = "TIME", default_value = "1s", value_parser = duration)]
    pub interval: Duration,
    /// Which recovery points are kept, and how old the newest may be: one of `sockeye policy list`
    #[arg(long, value_name = "P", default_value = "standard")]
    pub policy: PolicyName,
    /// Connect cards that are in network A with network B there, repeatable (default: the network of the same name)
    #[arg(long = "network", value_name = "A=B", value_parser = networks)]
    pub networks: Vec<(String, String)>,
    /// Give a card of the guest these addresses away, in a test, or at home (default: its own, put back), repeatable; PLACE is
    /// away, test or home
    #[arg(long = "address", value_name = "PLACE:MAC=ADDRESS/LENGTH[,gateway=G][,dns=D]")]
    pub addresses: Vec<CardAddresses>,
    #[command(flatten)]
    pub change: Change,
}

#[derive(Debug, Args)]
pub struct Unprotect {
    /// The item
    pub item: ItemId,
    /// Delete the replica and its recovery points too
    #[arg(long)]
    pub delete: bool,
    #[command(flatten)]
    pub change: Change,
}

#[derive(Debug, Args)]
#[command(group = clap::ArgGroup::new("kind").required(true).args(["planned", "unplanned", "test"]))]
pub struct Failover {
    /// The item
    pub item: ItemId,
    /// Both sides are well: shut the machine down, send its last changes, start it at the other side; nothing is lost
    #[arg(long)]
    pub planned: bool,
    /// The side where it runs is lost: start it from a recovery point
    #[arg(long)]
    pub unplanned: bool,
    /// Try it: start a copy of the machine under a name of its own, on no network of production, while everything else goes on
    #[arg(long)]
    pub test: bool,
    /// Test: connect the copy's cards with this network, on which no protected machine stands (default: with nothing)
    #[arg(long, value_name = "N", conflicts_with_all = ["planned", "unplanned"])]
    pub network: Option<String>,
    /// Unplanned: whether the old machine is shut down first (try: if its site answers)
    #[arg(long, value_enum, value_name = "HOW", default_value_t = ShutDown::Try, conflicts_with_all = ["planned", "test"])]
    pub shut_down: ShutDown,
    /// Unplanned or test: the recovery point to start from: `latest`, `latest-app` (the newest that is app-consistent), one of
    /// `sockeye points ITEM`, or a time, which stands for the newest point that was cut by then
    #[arg(long, value_name = "POINT", default_value = "latest", value_parser = point, conflicts_with = "planned")]
    pub point: Which,
    /// Planned: how long the machine may be down, without the guest's shutting down; it is not stopped before the rest fits
    #[arg(long, value_name = "TIME", default_value = "5s", value_parser = duration, conflicts_with_all = ["unplanned", "test"])]
    pub max_downtime: Duration,
    #[command(flatten)]
    pub stopping: Stopping,
    #[command(flatten)]
    pub change: Change,
}

/// How long a guest may take to shut down, and what then.
#[derive(Debug, Clone, Args)]
pub struct Stopping {
    /// How long the guest may take to shut down
    #[arg(long, value_name = "TIME", default_value = "5m", value_parser = duration)]
    pub shut_down_timeout: Duration,
    /// What to do after that time; without it the job fails and the machine runs on where it is
    #[arg(long, value_enum, value_name = "WHAT")]
    pub then: Option<Then>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Then {
    /// Take its power
    PowerOff,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ShutDown {
    /// If its site answers
    Try,
    /// Fail if that is not possible
    Require,
    /// Not at all
    Skip,
}

impl From<ShutDown> for ShutDownFirst {
    fn from(how: ShutDown) -> ShutDownFirst {
        match how {
            ShutDown::Try => ShutDownFirst::Try,
            ShutDown::Require => ShutDownFirst::Require,
            ShutDown::Skip => ShutDownFirst::Skip,
        }
    }
}

/// Which recovery point.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Which {
    Latest,
    /// The newest that is application-consistent.
    LatestApp,
    This(Attempt),
    /// The newest that was cut by then, ms since 1970.
    By(u64),
}

#[derive(Debug, Args)]
pub struct ChangePoint {
    /// The item
    pub item: ItemId,
    /// The recovery point: `latest`, one of `sockeye points ITEM`, or a time, which stands for the newest that was cut by then
    #[arg(long, value_name = "POINT", value_parser = point)]
    pub point: Which,
    #[command(flatten)]
    pub change: Change,
}

#[derive(Debug, Args)]
#[command(group = clap::ArgGroup::new("what").required(true).args(["point", "end"]))]
pub struct View {
    /// The item
    pub item: ItemId,
    /// The recovery point: `latest`, one of `sockeye points ITEM`, or a time
    #[arg(long, value_name = "POINT", value_parser = point)]
    pub point: Option<Which>,
    /// Let it be written; what is written is thrown away when the view is ended
    #[arg(long, conflicts_with = "end")]
    pub writable: bool,
    /// The site that keeps it (default: the one that receives; before commit the one where the machine runs)
    #[arg(long, value_name = "S", conflicts_with = "end")]
    pub at: Option<SiteName>,
    /// End the view of this number
    #[arg(long, value_name = "NUMBER")]
    pub end: Option<i64>,
    #[command(flatten)]
    pub change: Change,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum HowToSync {
    /// From the change maps of both sides; compares, and says why, where a map is absent or unusable
    Tracked,
    /// Hash both sides, send what differs
    Compare,
    /// Send everything
    Full,
}

impl From<HowToSync> for Sync {
    fn from(how: HowToSync) -> Sync {
        match how {
            HowToSync::Tracked => Sync::Tracked,
            HowToSync::Compare => Sync::Compare,
            HowToSync::Full => Sync::Full,
        }
    }
}

#[derive(Debug, Args)]
pub struct Commit {
    /// The item
    pub item: ItemId,
    /// At home: leave the machine on its overlay, so that the recovery points kept beside its disks stay; fold it later
    #[arg(long)]
    pub keep_history: bool,
    #[command(flatten)]
    pub change: Change,
}

#[derive(Debug, Args)]
pub struct Reprotect {
    /// The item
    pub item: ItemId,
    /// How the blocks of the first copy are chosen
    #[arg(long, value_enum, value_name = "HOW", default_value_t = HowToSync::Tracked)]
    pub sync: HowToSync,
    /// If the old machine still runs at the site to replicate to: shut it down; its writes are kept as a recovery point
    #[arg(long)]
    pub shut_down: bool,
    /// Without retention space: do not keep what the disks there hold. Given up half-way, they are damaged until it is run again
    #[arg(long)]
    pub no_way_back: bool,
    #[command(flatten)]
    pub create: Create,
    #[command(flatten)]
    pub change: Change,
}

/// Where a machine is created when nothing of it is there.
#[derive(Debug, Clone, Args)]
pub struct Create {
    /// The machine is not there any more: create it, and copy its disks whole
    #[arg(long)]
    pub create_vm: bool,
    /// The datastore where its disks are made (default: the first that takes them; see `sockeye site show`)
    #[arg(long, value_name = "D", requires = "create_vm")]
    pub datastore: Option<String>,
    /// Another site, which becomes its home (default: `original`, the one that is)
    #[arg(long, value_name = "SITE", requires = "create_vm")]
    pub to: Option<SiteName>,
}

impl From<Create> for Option<Landing> {
    fn from(create: Create) -> Option<Landing> {
        let site = create.to.filter(|site| site.as_str() != "original");
        create.create_vm.then_some(Landing { site, datastore: create.datastore })
    }
}

#[derive(Debug, Args)]
pub struct Failback {
    /// The item
    pub item: ItemId,
    /// How the blocks of the first copy are chosen
    #[arg(long, value_enum, value_name = "HOW", default_value_t = HowToSync::Tracked)]
    pub sync: HowToSync,
    /// Switch the machine off before anything is copied: shorter in total, but down all the time
    #[arg(long)]
    pub offline: bool,
    /// Do not wait for `sockeye complete`: run through
    #[arg(long)]
    pub complete: bool,
    /// If the old machine still runs at home: shut it down; its writes are kept as a recovery point
    #[arg(long)]
    pub shut_down: bool,
    /// Without retention space: do not keep what the disks at home hold. Given up half-way, they are damaged until it is run again
    #[arg(long)]
    pub no_way_back: bool,
    /// How long the machine may be down, without the guest's shutting down; it is not stopped before the rest fits, unless a
    /// person completes
    #[arg(long, value_name = "TIME", default_value = "5s", value_parser = duration, conflicts_with = "offline")]
    pub max_downtime: Duration,
    /// When to complete by itself: 2026-11-23T22:00:00Z or 22:00 (the next one, UTC), within the hour after that; or from one
    /// to another, like 22:00/04:00
    #[arg(long, value_name = "TIME", value_parser = window, conflicts_with_all = ["complete", "offline"])]
    pub complete_at: Option<Window>,
    #[command(flatten)]
    pub create: Create,
    #[command(flatten)]
    pub stopping: Stopping,
    #[command(flatten)]
    pub change: Change,
}

#[derive(Debug, Args)]
pub struct Complete {
    /// The item
    pub item: ItemId,
    /// Not now, but by itself: 2026-11-23T22:00:00Z or 22:00 (the next one, UTC), within the hour after that; or from one to
    /// another, like 22:00/04:00. It can be given again, and called off with `sockeye cancel`
    #[arg(long, value_name = "TIME", value_parser = window)]
    pub at: Option<Window>,
    #[command(flatten)]
    pub change: Change,
}
