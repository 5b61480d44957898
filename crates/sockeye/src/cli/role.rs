//! The options of the roles: what runs until it is told to stop.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args, ValueEnum};
use protocol::id::SiteName;
use serde::{Deserialize, Serialize};

use super::value::site;

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
    /// The credential of this host (sockeye join makes it), or an operator's token
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
    /// The qemu site's directory; of a libvirt site, where overlays, scratch and notes are kept
    #[arg(long, value_name = "DIR")]
    pub site_dir: PathBuf,
    /// Where libvirt is reached
    #[arg(long, value_name = "URI", default_value = "qemu:///system")]
    pub libvirt_uri: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PlatformName {
    /// QEMU machines in a directory of this host
    Qemu,
    /// The machines of libvirt on this host
    Libvirt,
}

#[derive(Debug, Args)]
pub struct ProcessServer {
    #[command(flatten)]
    pub mover: Mover,
    /// Connections of each session with a master target, 1 to 32: more where the line is long and each is throttled
    #[arg(long, value_name = "N", default_value_t = component::CONNECTIONS, value_parser = clap::value_parser!(u8).range(1..=32))]
    pub connections: u8,
    /// Where to listen for master targets that cannot be dialled (--outbound-only)
    #[arg(long, value_name = "A")]
    pub listen: Option<SocketAddr>,
    /// Where they reach it, as host:port (default: the listening address, when it names one host)
    #[arg(long, value_name = "H:P", requires = "listen")]
    pub advertise: Option<String>,
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
    /// It cannot be dialled: it dials the process servers of other sites (theirs need --listen)
    #[arg(long, conflicts_with_all = ["listen", "advertise"])]
    pub outbound_only: bool,
    /// Connections of each link that it dials, 1 to 32
    #[arg(long, value_name = "N", default_value_t = component::CONNECTIONS, value_parser = clap::value_parser!(u8).range(1..=32))]
    pub connections: u8,
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
