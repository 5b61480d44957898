//! The options of the verbs that say which recovery points are kept: policies and pins.

use std::time::Duration;

use clap::{Args, Subcommand};
use protocol::id::{Attempt, ItemId, PolicyName, SiteName};
use protocol::leaf::LeafSize;
use protocol::retention::Spacing;

use super::bandwidth::BandwidthOptions;
use super::value::{duration, size, spacing};

#[derive(Debug, Subcommand)]
pub enum PolicyVerb {
    /// All policies
    List,
    /// One policy
    Show {
        /// Its name
        name: PolicyName,
    },
    /// Make a policy, or change one for all items that have it
    #[command(after_help = "\
Without options it is as `standard` is at first: all points for an hour, then one a minute for 24 hours; one an hour is to be
app-consistent, and those are also kept for 24 hours. An example that keeps a month:
  sockeye policy add month --all-for 1h --then 1m:24h --then 1h:30d --budget 200GiB
One whose items each take at most 20 Mbit/s of the line in office hours, in both directions:
  sockeye policy add polite --bandwidth-window mon-fri@08:00-18:00=20mbit --bandwidth-offset +01:00
The last changes of a machine that is shut down for a move are never held back.")]
    Add(AddPolicy),
    /// Remove a policy that no item has
    Remove {
        /// Its name
        name: PolicyName,
        #[command(flatten)]
        sure: Sure,
    },
    /// Give an item another policy
    Apply {
        /// The policy
        name: PolicyName,
        /// The item
        item: ItemId,
        #[command(flatten)]
        sure: Sure,
    },
}

#[derive(Debug, Args)]
pub struct AddPolicy {
    /// Its name
    pub name: PolicyName,
    /// Change it if there is one of that name
    #[arg(long)]
    pub replace: bool,
    /// An item is critical when its newest recovery point is older than this
    #[arg(long, value_name = "TIME", default_value = "15m", value_parser = duration)]
    pub rpo_limit: Duration,
    /// Keep all points for this time
    #[arg(long, value_name = "TIME", default_value = "1h", value_parser = duration)]
    pub all_for: Duration,
    /// Then keep one every so often until they are so old; may be repeated, each reaching further back
    #[arg(long, value_name = "EVERY:UNTIL", default_value = "1m:24h", value_parser = spacing)]
    pub then: Vec<Spacing>,
    /// Keep none that is older than --all-for says
    #[arg(long, conflicts_with = "then")]
    pub then_none: bool,
    /// Keep app-consistent ones by a rule of their own
    #[arg(long, value_name = "EVERY:UNTIL", default_value = "1h:24h", value_parser = spacing)]
    pub app: Spacing,
    /// Keep app-consistent ones like all others
    #[arg(long, conflicts_with = "app")]
    pub app_none: bool,
    /// The most that the history of an item may take at a site; without it, what its retention volume has
    #[arg(long, value_name = "SIZE", value_parser = size)]
    pub budget: Option<u64>,
    /// From which part of the budget on a warning is given, in percent
    #[arg(long, value_name = "PERCENT", default_value_t = 80, requires = "budget",
        value_parser = clap::value_parser!(u8).range(1..=100))]
    pub alarm: u8,
    /// Have a point every so often that is app-consistent, where the guest has an agent
    #[arg(long, value_name = "TIME", default_value = "1h", value_parser = duration)]
    pub app_every: Duration,
    /// Make none app-consistent, unless somebody asks for one
    #[arg(long, conflicts_with = "app_every")]
    pub app_never: bool,
    /// How much of a disk one of the hashes stands for that are kept of each replica, 64K to 4M; others are made anew
    #[arg(long, value_name = "SIZE", default_value_t = LeafSize::default())]
    pub leaf_size: LeafSize,
    #[command(flatten)]
    pub bandwidth: BandwidthOptions,
    #[command(flatten)]
    pub sure: Sure,
}

#[derive(Debug, Subcommand)]
pub enum PointVerb {
    /// Keep a point until it is unpinned, whatever the policy says
    Pin(OnPoint),
    /// Leave a point to the policy again
    Unpin(OnPoint),
    /// Take a recovery point now, where the item is replicated to, and pin it
    Add {
        /// The item
        item: ItemId,
        /// It must be app-consistent: the guest's agent freezes its file systems for the cut; refused where it does not
        #[arg(long)]
        app: bool,
        #[command(flatten)]
        sure: Sure,
    },
}

#[derive(Debug, Args)]
pub struct OnPoint {
    /// The item
    pub item: ItemId,
    /// The point: one of `sockeye points ITEM`
    #[arg(long, value_name = "ID")]
    pub point: Attempt,
    /// The site that keeps it (default: the one that receives)
    #[arg(long, value_name = "S")]
    pub at: Option<SiteName>,
    #[command(flatten)]
    pub sure: Sure,
}

/// Options of verbs that change something at once, without a job.
#[derive(Debug, Args)]
pub struct Sure {
    /// Show what would be done, and stop
    #[arg(long, help_heading = "Before and after")]
    pub dry_run: bool,
    /// Do not ask
    #[arg(long, short = 'y', help_heading = "Before and after")]
    pub yes: bool,
    /// Why, for the audit log
    #[arg(long, value_name = "TEXT", help_heading = "Before and after")]
    pub reason: Option<String>,
}
