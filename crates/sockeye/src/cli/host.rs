//! The options of `init` and `join`: a host becomes part of a system.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum};
use protocol::id::SiteName;
use serde::{Deserialize, Serialize};

use super::PlatformName;
use super::value::duration;

/// What a host does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum HostRole {
    /// The control server
    Control,
    /// The process server of its site
    ProcessServer,
    /// The master target of its site
    MasterTarget,
}

#[derive(Debug, Args)]
pub struct Init {
    /// The site that this host stands at
    #[arg(long, value_name = "S")]
    pub site: SiteName,
    /// What this host does
    #[arg(long, value_name = "R", value_enum, value_delimiter = ',',
        default_values_t = [HostRole::Control, HostRole::ProcessServer, HostRole::MasterTarget])]
    pub roles: Vec<HostRole>,
    /// The address of this host where it listens (default: the one that leads to the outside)
    #[arg(long, value_name = "IP")]
    pub address: Option<IpAddr>,
    /// For how long the join token can be used that is made
    #[arg(long, value_name = "TIME", default_value = "24h", value_parser = duration)]
    pub token_expires: Duration,
    #[command(flatten)]
    pub host: Host,
}

#[derive(Debug, Args)]
#[command(group = clap::ArgGroup::new("join_secret").required(true).args(["token", "token_file"]))]
pub struct Join {
    /// The control server, as it is reached from here
    pub url: String,
    /// The join token: of `sockeye init`, or of `sockeye token add`
    #[arg(long, value_name = "T")]
    pub token: Option<String>,
    /// A file that holds it (keeps it out of the process list)
    #[arg(long, value_name = "F")]
    pub token_file: Option<PathBuf>,
    /// The site that this host stands at
    #[arg(long, value_name = "S")]
    pub site: SiteName,
    /// What this host does
    #[arg(long, value_name = "R", value_enum, value_delimiter = ',',
        default_values_t = [HostRole::ProcessServer, HostRole::MasterTarget])]
    pub roles: Vec<HostRole>,
    /// Listen at this address of this host for the movers of other sites (default: outbound connections only)
    #[arg(long, value_name = "IP")]
    pub address: Option<IpAddr>,
    #[command(flatten)]
    pub host: Host,
}

/// What both take.
#[derive(Debug, Clone, Args)]
pub struct Host {
    /// The name or address by which others reach this host (default: the address where it listens)
    #[arg(long, value_name = "H")]
    pub advertise: Option<String>,
    /// The first of three ports: control server, master target, process server
    #[arg(long, value_name = "N", default_value_t = 7410, value_parser = clap::value_parser!(u16).range(..=65533))]
    pub port: u16,
    /// The hypervisor of the site
    #[arg(long, value_enum, default_value_t = PlatformName::Qemu)]
    pub platform: PlatformName,
    /// Where libvirt is reached
    #[arg(long, value_name = "URI", default_value = "qemu:///system")]
    pub libvirt_uri: String,
    /// Run the roles in this process, until a signal, and not as services of this host
    #[arg(long)]
    pub foreground: bool,
    /// With --foreground: where everything is kept
    #[arg(long, value_name = "D", requires = "foreground", default_value = "sockeye-data")]
    pub data_dir: PathBuf,
}
