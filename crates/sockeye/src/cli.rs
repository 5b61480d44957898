//! The command line: every verb with its options, as an operator types them.
//!
//! ```text
//!   sockeye [--output json|table] [--server URL | --profile P]  VERB …
//!            see:   status · item · points · point · policy · quote · verify · job · component · token · vm list · explain
//!                   · events · audit
//!            move:  protect · failover · cleanup · view · change-point · commit · fold · reprotect · failback · complete · cancel
//!                   · reverse · unprotect
//!            copy:  copy · receive · send    a disk onto a disk, without a server
//!            start: init · join · login
//!            roles: server · process-server · master-target · up
//! ```
//!
//! This page only says what can be typed; `verb/` and `roles/` do it. Names are checked here, before anything is sent:
//! what cannot be understood ends with exit code 2 and nothing has happened.

mod bandwidth;
mod copy;
mod history;
mod host;
mod machine;
mod moves;
mod network;
mod role;
mod token;
mod value;

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use protocol::id::{Attempt, ItemId, SiteName};

pub use bandwidth::SetComponent;
pub use copy::{Copy, CopySync, Place, Receive, Send, Waiting};
pub use history::{AddPolicy, OnPoint, PointVerb, PolicyVerb, Sure};
pub use host::{Host, HostRole, Init, Join};
pub use machine::{Disk, VmDefine, VmLocal, VmStop};
pub use moves::{ChangePoint, Commit, Complete, Failback, Failover, Protect, Reprotect, Then, Unprotect, View, Which};
pub use network::NetworkVerb;
pub use role::{Demo, MasterTarget, Mover, PlatformName, ProcessServer, Server, Up};
pub use token::{AddToken, TokenVerb};

use value::duration;

const AFTER_HELP: &str = "\
Exit codes:
  0  done, or already so
  1  failed (the job ended, and what it had done is undone; the target of a copy is marked as half written)
  2  the command line was not understood, or nobody was there to confirm: nothing was started
  3  refused by a check or by the item's stage: nothing changed
  4  waiting for a person: the next command is printed
  5  the server (or the other host of a copy) was not reached, or you are not signed in: repeating is safe

Where the server is: --server URL, or --profile P, or SOCKEYE_SERVER with SOCKEYE_TOKEN, or the profile of the last
`sockeye login`. Profiles are kept in ~/.config/sockeye/profiles.toml (or the file named by SOCKEYE_CONFIG).";

/// Replicates virtual machines between sites, fails them over, and brings them home.
#[derive(Debug, Parser)]
#[command(name = "sockeye", version, after_help = AFTER_HELP, max_term_width = 120)]
pub struct Cli {
    #[command(flatten)]
    pub global: Global,
    #[command(subcommand)]
    pub verb: Verb,
}

/// Options of every verb.
#[derive(Debug, Clone, Args)]
pub struct Global {
    /// How results are printed. `json`: exactly one document on stdout, progress goes to stderr
    #[arg(long, value_enum, default_value_t = Output::Table, global = true, value_name = "FORM", help_heading = "Every verb")]
    pub output: Output,
    /// The control server, for example http://127.0.0.1:7410 (or SOCKEYE_SERVER)
    #[arg(long, global = true, value_name = "URL", conflicts_with = "profile", help_heading = "Every verb")]
    pub server: Option<String>,
    /// A profile that `sockeye login` stored
    #[arg(long, global = true, value_name = "P", help_heading = "Every verb")]
    pub profile: Option<String>,
    /// How long to keep trying when the server stops answering while a job is followed
    #[arg(long, global = true, value_name = "TIME", default_value = "1m", value_parser = duration, help_heading = "Every verb")]
    pub patience: Duration,
}

/// How results are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// For people.
    Table,
    /// For programs.
    Json,
}

/// What a verb that changes something takes besides its own options.
#[derive(Debug, Clone, Args)]
pub struct Change {
    /// Show what would be done, change nothing
    #[arg(long, help_heading = "Before and after")]
    pub dry_run: bool,
    /// Do not ask
    #[arg(long, short = 'y', help_heading = "Before and after")]
    pub yes: bool,
    /// Start the job and return; follow it later with `sockeye job watch`
    #[arg(long, help_heading = "Before and after")]
    pub detach: bool,
    /// Why, for the audit log
    #[arg(long, value_name = "TEXT", help_heading = "Before and after")]
    pub reason: Option<String>,
}

#[derive(Debug, Subcommand)]
pub enum Verb {
    // ---- see
    /// How every item (or one) stands, and what to do next
    Status(Status),
    /// The protected machines
    #[command(subcommand)]
    Item(ItemVerb),
    /// The recovery points of an item, newest first; or what two of them differ in
    Points(Points),
    /// Pin recovery points, or take one now
    #[command(subcommand)]
    Point(PointVerb),
    /// Which recovery points are kept, and how old the newest may be
    #[command(subcommand)]
    Policy(PolicyVerb),
    /// What moving an item would cost: bytes, time, downtime, and what limits it, as far as that is known
    Quote {
        /// The item
        item: ItemId,
    },
    /// Prove a replica: read it and its journal, and compare them with what is known of them
    #[command(after_help = "\
Replication and everything else goes on meanwhile. Exit code 1 when something is damaged: which disk and where is shown, and
comes with --output json.")]
    Verify(Verify),
    /// The addresses of a protected machine's guest, at each place
    #[command(subcommand)]
    Network(NetworkVerb),
    /// What was started, how it goes, and its figures
    #[command(subcommand)]
    Job(JobVerb),
    /// The process servers and master targets at the sites
    #[command(subcommand)]
    Component(ComponentVerb),
    /// The sites, their networks and their datastores
    #[command(subcommand)]
    Site(SiteVerb),
    /// Let hosts join, see which did, and put them out
    #[command(subcommand)]
    Token(TokenVerb),
    /// Virtual machines: those a site has; and the qemu sites' own little machine definer
    #[command(subcommand)]
    Vm(VmVerb),
    /// What a fault code means, or what is allowed on an item now and why not the rest
    Explain {
        /// A fault code such as CTL-002, or an item
        what: String,
    },
    /// Follow what changes, until Ctrl-C (with --output json: one document per line)
    Events,
    /// Who did what, when and why
    Audit,

    // ---- protect
    /// Begin to replicate a machine to another site
    Protect(Protect),
    /// Stop replicating a machine and forget the item; the machine runs on
    Unprotect(Unprotect),

    // ---- move
    /// Move a machine to the side where it does not run now, or try whether it would go
    #[command(after_help = "\
After --test the copy runs until: sockeye cleanup ITEM. After the others the item is `commit pending`: look at the machine, then either
  sockeye commit ITEM     make it final
  sockeye cancel ITEM     go back")]
    Failover(Failover),
    /// End a test failover: its machine and everything it wrote are thrown away
    Cleanup(OnItem),
    /// Serve the disks of a recovery point over NBD, or serve them no longer
    #[command(after_help = "\
Any number of views can be served at once, while recovery points go on arriving. The URIs that are printed are those of the
host of the master target that keeps the point. A view stays until
  sockeye view ITEM --end NUMBER")]
    View(View),
    /// After an unplanned failover, before it is committed: start the machine from another recovery point
    ///
    /// What it wrote since the failover is thrown away. It can be done any number of times.
    ChangePoint(ChangePoint),
    /// End a failover or failback: after it, it can no longer be cancelled
    Commit(Commit),
    /// After a committed failback: give the machine, which runs on, its own disks back (commit does it unless told not to)
    Fold(OnItem),
    /// After a committed failover: begin to replicate back to the side the machine came from
    Reprotect(Reprotect),
    /// After a committed failback: begin to replicate again (the same job as reprotect)
    Reverse(Reprotect),
    /// Bring a machine home
    #[command(after_help = "\
Works straight from a committed failover as well as after `sockeye reprotect`. Phase 1 brings the disks at home up to
date while the machine runs on; the job then waits (exit code 4) for
  sockeye complete ITEM   stop the machine, send its last changes, start it at home
unless --complete is given, which lets the job run through, or --complete-at, which says when. The machine is stopped once what
is left fits --max-downtime. Where it cannot (the guest writes faster than the link carries) the job says so and waits (exit code 4):
complete goes ahead all the same, cancel goes back.")]
    Failback(Failback),
    /// Complete a waiting failback or failover: the short outage begins now, or at a time
    Complete(Complete),
    /// Give up what is under way, as far as the item's stage allows
    Cancel(OnItem),

    // ---- copy
    /// Make one disk a copy of another, sending only what differs (asks no server)
    #[command(after_help = "\
A copy that is broken off leaves a mark (DST.half-written): the target must not be used then. The same command goes on, and
what had arrived is not copied again.")]
    Copy(Copy),
    /// Take one copy from `sockeye copy` on another host (asks no server)
    Receive(Receive),
    /// Give one copy to `sockeye copy` on another host (asks no server)
    Send(Send),

    // ---- start
    /// Make this host the first of a system: control server and movers; says how others join
    #[command(after_help = "\
It can be repeated: what is so already stays, and another join token is made. REST is plain HTTP: tokens travel in it, so let
only a network that you trust reach the address. The control server listens at the first port, the master target at the second,
the process server (for sites that nobody can dial) at the third.")]
    Init(Init),
    /// Make this host part of a system: the movers of a site, with outbound connections only
    #[command(after_help = "\
It can be repeated, also when an answer was lost: a token lets one host in, and this host is known again. With --address others
dial this host, too (needed where two hosts that joined replicate to each other).")]
    Join(Join),
    /// Sign in to a control server and remember it
    Login(Login),
    /// Every role in one process, for one machine or for trying it out
    Up(Up),
    /// Two sites with a real guest on this machine: the whole circle, verified (needs root for hosts of their own)
    Demo(Demo),
    /// The control server: decisions, database, REST
    Server(Server),
    /// The process server of a site: captures, compares and sends; stops and starts machines
    ProcessServer(ProcessServer),
    /// The master target of a site: receives, keeps replicas and their history, brings machines up from them
    MasterTarget(MasterTarget),
    /// Write the man pages and completions that a package ships
    #[command(hide = true)]
    Pages {
        /// Where: `man/` and `completions/` are made there
        dir: PathBuf,
    },
}

#[derive(Debug, Args)]
pub struct Points {
    /// The item
    pub item: ItemId,
    /// What two points differ in: extents and bytes of each disk
    #[arg(long, num_args = 2, value_names = ["A", "B"])]
    pub diff: Option<Vec<Attempt>>,
    /// The site that keeps them (default: the one that receives; before commit the one where the machine runs)
    #[arg(long, value_name = "S")]
    pub at: Option<SiteName>,
}

#[derive(Debug, Args)]
pub struct Verify {
    /// The item
    pub item: ItemId,
    /// The site that keeps the replica (default: the one that receives)
    #[arg(long, value_name = "S")]
    pub at: Option<SiteName>,
    #[command(flatten)]
    pub change: Change,
}

#[derive(Debug, Args)]
pub struct Status {
    /// Only this item
    pub item: Option<ItemId>,
    /// Show it again as it changes, until Ctrl-C
    #[arg(long)]
    pub watch: bool,
    /// Exit with 1 if any item shown is not healthy
    #[arg(long, conflicts_with = "watch")]
    pub check: bool,
}

#[derive(Debug, Subcommand)]
pub enum ItemVerb {
    /// All items
    List,
    /// Everything about one item
    Show {
        /// The item
        item: ItemId,
    },
}

#[derive(Debug, Subcommand)]
pub enum JobVerb {
    /// All jobs, newest first
    List,
    /// One job with its steps and figures
    Show {
        /// The job's number
        id: i64,
    },
    /// Follow a job to its end (or until it waits for a person)
    Watch {
        /// The job's number
        id: i64,
    },
    /// Stop a job and undo what it did
    Cancel(OnJob),
    /// Take a failed job up again
    Retry(OnJob),
}

#[derive(Debug, Args)]
pub struct OnJob {
    /// The job's number
    pub id: i64,
    #[command(flatten)]
    pub change: Change,
}

#[derive(Debug, Subcommand)]
pub enum ComponentVerb {
    /// All components
    List,
    /// One component
    Show {
        /// Its name
        name: String,
    },
    /// Say how fast a process server may send in all, whatever the policies of its items say
    #[command(after_help = "\
It is felt at once by what is under way, and needs no new session. Without options every cap of its own is taken away. An
example that leaves most of the line to others in office hours:
  sockeye component set paris-process-server --bandwidth 500mbit --bandwidth-window mon-fri@08:00-18:00=50mbit \\
      --bandwidth-offset +01:00
The last changes of a machine that is shut down for a move are never held back.")]
    Set(SetComponent),
}

#[derive(Debug, Subcommand)]
pub enum SiteVerb {
    /// All sites
    List,
    /// One site: its networks, and its storage pools (datastores) with their room
    Show {
        /// Its name
        name: SiteName,
    },
}

#[derive(Debug, Subcommand)]
pub enum VmVerb {
    /// The machines of all sites, or of one, as their components tell
    List {
        /// Only this site
        #[arg(long, value_name = "S")]
        site: Option<SiteName>,
    },
    /// Define a machine of a qemu site on this host (acts locally, asks no server)
    #[command(after_help = "\
This is the hypervisor's own tool, not Sockeye's: a qemu site is a directory on this host, and this verb writes a
machine into it. The control server learns of the machine from the site's components.")]
    Define(VmDefine),
    /// Start a machine of a qemu site on this host (acts locally; for protected items use failover and failback)
    Start(VmLocal),
    /// Shut down a machine of a qemu site on this host (acts locally)
    Stop(VmStop),
}

#[derive(Debug, Args)]
pub struct OnItem {
    /// The item
    pub item: ItemId,
    #[command(flatten)]
    pub change: Change,
}

#[derive(Debug, Args)]
pub struct Login {
    /// The control server, for example http://127.0.0.1:7410
    pub url: String,
    /// The token; asked for (or read from stdin) when it is not given
    #[arg(long, value_name = "T")]
    pub token: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_failover_says_which_kind_it_is() {
        let parse = |line: &str| Cli::try_parse_from(line.split(' '));
        assert!(parse("sockeye failover web01").is_err());
        assert!(parse("sockeye failover web01 --planned --unplanned").is_err());
        assert!(parse("sockeye failover web01 --planned --point 1.2").is_err());
        assert!(parse("sockeye failover web01 --planned --test").is_err());
        assert!(parse("sockeye failover web01 --test --shut-down skip").is_err());
        assert!(parse("sockeye failover web01 --test --point 1.2").is_ok());
        assert!(parse("sockeye change-point web01").is_err());
        assert!(parse("sockeye view web01").is_err());
        assert!(parse("sockeye view web01 --end 7 --writable").is_err());
        assert!(parse("sockeye view web01 --end 7 --point latest").is_err());
        assert!(parse("sockeye failover ../web01 --planned").is_err());
        assert!(parse("sockeye failover web01 --unplanned --point 1.2 --shut-down skip --yes").is_ok());
        assert!(parse("sockeye failover web01 --planned --shut-down-timeout 10s --then power-off").is_ok());
        assert!(parse("sockeye failover web01 --planned --max-downtime 500ms").is_ok());
        assert!(parse("sockeye failover web01 --test --max-downtime 5s").is_err());
        assert!(parse("sockeye failback web01 --complete-at 22:00 --complete").is_err());
        assert!(parse("sockeye failback web01 --complete-at 22:00 --offline").is_err());
        assert!(parse("sockeye complete web01 --at 22:00/04:00").is_ok());
    }

    #[test]
    fn a_size_that_no_leaf_can_have_is_refused_and_those_it_can_have_are_told() {
        for verb in ["copy a b", "policy add polite"] {
            for size in ["63K", "8M", "0", "65536", "96K"] {
                let refused = Cli::try_parse_from(format!("sockeye {verb} --leaf-size {size}").split(' ')).unwrap_err();
                let said = refused.to_string();
                assert!(said.contains(size) && said.contains("64K, 128K, 256K, 512K, 1M, 2M and 4M"), "{said}");
            }
            assert!(Cli::try_parse_from(format!("sockeye {verb} --leaf-size 256K").split(' ')).is_ok());
        }
    }
}
