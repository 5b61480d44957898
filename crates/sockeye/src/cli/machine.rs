//! The options of the local verbs of a qemu site: `vm define | start | stop`.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use protocol::id::{DiskKey, ItemId};
use protocol::machine::DiskFormat;

use super::Then;
use super::value::{disk, duration};

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
    /// A network card and what it is connected to: `user` (behind the host's own address) or a bridge of the host
    #[arg(long = "network", value_name = "NAME")]
    pub networks: Vec<String>,
    /// Its firmware is UEFI (OVMF), not a BIOS
    #[arg(long, conflicts_with = "kernel")]
    pub uefi: bool,
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
