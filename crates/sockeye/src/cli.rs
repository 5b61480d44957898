//! The command line: every verb with its options, as an operator types them.
//!
//! ```text
//!   sockeye [--output json|table] [--server URL | --profile P]  VERB …
//!            see:   status · item · points · job · component · vm list · explain · events · audit
//!            move:  protect · failover · commit · reprotect · failback · complete · cancel · reverse · unprotect
//!            roles: server · process-server · master-target · up
//! ```
//!
//! This page only says what can be typed; `verb/` and `roles/` do it. Names are checked here, before anything is sent:
//! what cannot be understood ends with exit code 2 and nothing has happened.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use protocol::id::{Attempt, DiskKey, ItemId, SiteName};
use protocol::machine::DiskFormat;
use protocol::order::Sync;
use protocol::rest::ShutDownFirst;

const AFTER_HELP: &str = "\
Exit codes:
  0  done, or already so
  1  failed (the job ended; what it had done is undone)
  2  the command line was not understood, or nobody was there to confirm: nothing was started
  3  refused by a check or by the item's stage: nothing changed
  4  waiting for a person: the next command is printed
  5  the server was not reached, or you are not signed in: repeating is safe

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
    /// The recovery points of an item, newest first
    Points {
        /// The item
        item: ItemId,
    },
    /// What was started, how it goes, and its figures
    #[command(subcommand)]
    Job(JobVerb),
    /// The process servers and master targets at the sites
    #[command(subcommand)]
    Component(ComponentVerb),
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
    /// Move a machine to the side where it does not run now
    #[command(after_help = "\
After it the item is `commit pending`: look at the machine, then either
  sockeye commit ITEM     make it final
  sockeye cancel ITEM     go back")]
    Failover(Failover),
    /// End a failover or failback: after it, it can no longer be cancelled
    Commit(OnItem),
    /// After a committed failover: begin to replicate back to the side the machine came from
    Reprotect(Reprotect),
    /// After a committed failback: begin to replicate again (the same job as reprotect)
    Reverse(Reprotect),
    /// Bring a machine home
    #[command(after_help = "\
Works straight from a committed failover as well as after `sockeye reprotect`. Phase 1 brings the disks at home up to
date while the machine runs on; the job then waits (exit code 4) for
  sockeye complete ITEM   stop the machine, send its last changes, start it at home
unless --complete is given, which lets the job run through.")]
    Failback(Failback),
    /// Complete a waiting failback: the short outage begins now
    Complete(OnItem),
    /// Give up what is under way, as far as the item's stage allows
    Cancel(OnItem),

    // ---- start
    /// Sign in to a control server and remember it
    Login(Login),
    /// Every role in one process, for one machine or for trying it out
    Up(Up),
    /// Two sites with a real guest on this machine: the whole circle, verified (needs root for hosts of their own)
    Demo(Demo),
    /// The control server: decisions, database, REST
    Server(Server),
    /// The process server of a site: captures, compares and sends; stops and starts machines
    ProcessServer(Mover),
    /// The master target of a site: receives, keeps replicas and their history, brings machines up from them
    MasterTarget(MasterTarget),
}

#[derive(Debug, Args)]
pub struct Demo {
    /// Where the test guest is (`vmlinuz`, `initrd.img`); `cargo xtask setup` makes it
    #[arg(long, value_name = "DIR", default_value = "target/guest", env = "SOCKEYE_GUEST")]
    pub guest: PathBuf,
    /// Leave disks and logs, and say how to check them without this program
    #[arg(long)]
    pub keep: bool,
    /// Where the two sites are made (default: a new directory in /tmp)
    #[arg(long, value_name = "DIR")]
    pub dir: Option<PathBuf>,
    /// Records that the guest writes a second
    #[arg(long, value_name = "N", default_value_t = 50)]
    pub rate: u32,
    /// Keep both sites on the loopback even where they could be hosts of their own
    #[arg(long)]
    pub no_namespaces: bool,
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
pub struct VmLocal {
    /// The qemu site's directory
    #[arg(long, value_name = "DIR")]
    pub site_dir: PathBuf,
    /// The machine
    pub name: String,
}

#[derive(Debug, Args)]
pub struct VmStop {
    #[command(flatten)]
    pub vm: VmLocal,
    /// How long the guest may take to shut itself down
    #[arg(long, value_name = "TIME", default_value = "5m", value_parser = duration)]
    pub shut_down_timeout: Duration,
    /// What to do after that time; without it the verb fails and the guest runs on
    #[arg(long, value_enum, value_name = "WHAT")]
    pub then: Option<Then>,
}

#[derive(Debug, Args)]
pub struct VmDefine {
    /// The qemu site's directory
    #[arg(long, value_name = "DIR")]
    pub site_dir: PathBuf,
    /// The machine's name
    #[arg(long)]
    pub name: ItemId,
    /// Memory in MiB
    #[arg(long, value_name = "MIB", default_value_t = 256)]
    pub memory: u64,
    /// Number of virtual processors
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub vcpus: u32,
    /// A disk, in the order in which the guest sees them; its size is taken from the image
    #[arg(long = "disk", value_name = "KEY=PATH[:raw|qcow2]", required = true, value_parser = disk)]
    pub disks: Vec<Disk>,
    /// Kernel to start directly; without it the firmware starts from the first disk
    #[arg(long, value_name = "PATH", requires = "initrd")]
    pub kernel: Option<PathBuf>,
    /// Initial RAM disk for --kernel
    #[arg(long, value_name = "PATH", requires = "kernel")]
    pub initrd: Option<PathBuf>,
    /// Command line for --kernel
    #[arg(
        long,
        value_name = "TEXT",
        requires = "kernel",
        default_value = "",
        hide_default_value = true,
        allow_hyphen_values = true
    )]
    pub append: String,
    /// Start it too
    #[arg(long)]
    pub start: bool,
}

/// A disk as it is given on the command line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Disk {
    pub key: DiskKey,
    pub path: PathBuf,
    pub format: DiskFormat,
}

#[derive(Debug, Args)]
pub struct OnItem {
    /// The item
    pub item: ItemId,
    #[command(flatten)]
    pub change: Change,
}

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
#[command(group = clap::ArgGroup::new("kind").required(true).args(["planned", "unplanned"]))]
pub struct Failover {
    /// The item
    pub item: ItemId,
    /// Both sides are well: shut the machine down, send its last changes, start it at the other side; nothing is lost
    #[arg(long)]
    pub planned: bool,
    /// The side where it runs is lost: start it from a recovery point
    #[arg(long)]
    pub unplanned: bool,
    /// Unplanned: whether the old machine is shut down first (try: if its site answers)
    #[arg(long, value_enum, value_name = "HOW", default_value_t = ShutDown::Try, conflicts_with = "planned")]
    pub shut_down: ShutDown,
    /// Unplanned: the recovery point to start from: `latest` or one of `sockeye points ITEM`
    #[arg(long, value_name = "POINT", default_value = "latest", value_parser = point, conflicts_with = "planned")]
    pub point: Which,
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
    This(Attempt),
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
pub struct Reprotect {
    /// The item
    pub item: ItemId,
    /// How the blocks of the first copy are chosen
    #[arg(long, value_enum, value_name = "HOW", default_value_t = HowToSync::Tracked)]
    pub sync: HowToSync,
    /// If the old machine still runs at the site to replicate to: shut it down; its writes are kept as a recovery point
    #[arg(long)]
    pub shut_down: bool,
    #[command(flatten)]
    pub change: Change,
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
    #[command(flatten)]
    pub stopping: Stopping,
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

#[derive(Debug, Args)]
pub struct Server {
    /// Where the database and the tokens are kept
    #[arg(long, value_name = "D")]
    pub data_dir: PathBuf,
    /// Where to listen
    #[arg(long, value_name = "A", default_value = "127.0.0.1:7410")]
    pub listen: SocketAddr,
}

#[derive(Debug, Args)]
#[command(group = clap::ArgGroup::new("secret").required(true).args(["join_token", "join_token_file"]))]
pub struct Mover {
    /// The token with which components join
    #[arg(long, value_name = "T")]
    pub join_token: Option<String>,
    /// A file that holds it (keeps it out of the process list)
    #[arg(long, value_name = "F")]
    pub join_token_file: Option<PathBuf>,
    /// The site that it stands at
    #[arg(long, value_name = "S")]
    pub site: SiteName,
    /// Its name, unique in the whole system (default: SITE-process-server or SITE-master-target)
    #[arg(long, value_name = "N")]
    pub name: Option<String>,
    /// Where it keeps what it must remember
    #[arg(long, value_name = "D")]
    pub data_dir: PathBuf,
    /// The hypervisor of the site
    #[arg(long, value_enum, default_value_t = PlatformName::Qemu)]
    pub platform: PlatformName,
    /// The qemu site's directory
    #[arg(long, value_name = "DIR")]
    pub site_dir: PathBuf,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum PlatformName {
    /// QEMU machines in a directory of this host
    Qemu,
}

#[derive(Debug, Args)]
pub struct MasterTarget {
    #[command(flatten)]
    pub mover: Mover,
    /// Where to listen for process servers
    #[arg(long, value_name = "A", default_value = "0.0.0.0:7411")]
    pub listen: SocketAddr,
    /// Where process servers reach it, as host:port (default: the listening address, when it names one host)
    #[arg(long, value_name = "H:P")]
    pub advertise: Option<String>,
    /// The retention volume: where recovery points are kept (default: DATA-DIR/retention)
    #[arg(long, value_name = "R")]
    pub retention: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub struct Up {
    /// Where everything is kept
    #[arg(long, value_name = "D", default_value = "sockeye-data")]
    pub data_dir: PathBuf,
    /// Where the control server listens
    #[arg(long, value_name = "A", default_value = "127.0.0.1:7410")]
    pub listen: SocketAddr,
    /// A qemu site and its directory, repeatable (default: home=D/home and cloud=D/cloud)
    #[arg(long = "site", value_name = "NAME=DIR", value_parser = site)]
    pub sites: Vec<(SiteName, PathBuf)>,
}

/// `500ms`, `1s`, `5m`, `1h30m`.
fn duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("{text:?} is no time above zero; write it like 500ms, 1s, 5m or 1h30m");
    let given: jiff::SignedDuration = text.parse().map_err(|_| wrong())?;
    let given = Duration::try_from(given).map_err(|_| wrong())?;
    // A year bounds what is added to clocks later on.
    if given < Duration::from_millis(1) || given > Duration::from_secs(366 * 86_400) { Err(wrong()) } else { Ok(given) }
}

fn point(text: &str) -> Result<Which, String> {
    if text == "latest" {
        return Ok(Which::Latest);
    }
    text.parse().map(Which::This).map_err(|_| format!("{text:?} is no recovery point: `latest`, or a number like 1.42"))
}

fn disk(text: &str) -> Result<Disk, String> {
    let (key, path) = text.split_once('=').ok_or("write it as KEY=PATH or KEY=PATH:qcow2")?;
    let (path, format) = match path.rsplit_once(':') {
        Some((path, "raw")) => (path, DiskFormat::Raw),
        Some((path, "qcow2")) => (path, DiskFormat::Qcow2),
        _ if path.ends_with(".qcow2") => (path, DiskFormat::Qcow2),
        _ => (path, DiskFormat::Raw),
    };
    let key = key.parse().map_err(|why: protocol::id::BadName| why.to_string())?;
    if path.is_empty() { Err("the path is empty".into()) } else { Ok(Disk { key, path: path.into(), format }) }
}

fn site(text: &str) -> Result<(SiteName, PathBuf), String> {
    let (name, dir) = text.split_once('=').ok_or("write it as NAME=DIR")?;
    let name = name.parse().map_err(|why: protocol::id::BadName| why.to_string())?;
    if dir.is_empty() { Err("the directory is empty".into()) } else { Ok((name, dir.into())) }
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
    fn times_are_read_as_people_write_them() {
        for (text, millis) in [("500ms", 500), ("1s", 1000), ("5m", 300_000), ("1h30m", 5_400_000)] {
            assert_eq!(duration(text).unwrap(), Duration::from_millis(millis), "{text}");
        }
        for bad in ["", "0s", "-1s", "5", "soon", "99999999h"] {
            assert!(duration(bad).is_err(), "{bad:?} was taken");
        }
    }

    #[test]
    fn a_disk_is_key_path_and_format() {
        let read = disk("disk0=/a:b/c.img:raw").unwrap();
        assert_eq!(
            (read.key.as_str(), read.path.to_str().unwrap(), read.format),
            ("disk0", "/a:b/c.img", DiskFormat::Raw)
        );
        assert_eq!(disk("d=/x.qcow2").unwrap().format, DiskFormat::Qcow2);
        assert_eq!(disk("d=/x:qcow2").unwrap().format, DiskFormat::Qcow2);
        for bad in ["", "disk0", "disk0=", "../x=/y"] {
            assert!(disk(bad).is_err(), "{bad:?} was taken");
        }
    }

    #[test]
    fn a_failover_says_which_kind_it_is() {
        let parse = |line: &str| Cli::try_parse_from(line.split(' '));
        assert!(parse("sockeye failover web01").is_err());
        assert!(parse("sockeye failover web01 --planned --unplanned").is_err());
        assert!(parse("sockeye failover web01 --planned --point 1.2").is_err());
        assert!(parse("sockeye failover ../web01 --planned").is_err());
        assert!(parse("sockeye failover web01 --unplanned --point 1.2 --shut-down skip --yes").is_ok());
        assert!(parse("sockeye failover web01 --planned --shut-down-timeout 10s --then power-off").is_ok());
    }
}
