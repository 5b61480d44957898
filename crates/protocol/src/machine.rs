//! Machines in neutral words: what any hypervisor can be told, and what it tells about one.
//!
//! A description travels with its item from site to site. What only one platform understands is kept verbatim beside
//! the neutral part (`native`), so that a machine that goes home finds what its owner had set there.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::guest::Seed;
use crate::id::Attempt;
use crate::id::DiskKey;
use crate::position::Changes;
use crate::uefi::Variables;

/// A virtual machine, described without a word of any hypervisor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct MachineSpec {
    /// The machine's name at its site.
    pub name: String,
    /// Memory in MiB.
    pub memory_mib: u64,
    /// Number of virtual processors.
    pub vcpus: u32,
    /// What is started.
    pub boot: Boot,
    /// The disks in the order in which the guest sees them.
    pub disks: Vec<DiskSpec>,
    /// The network cards in the order in which the guest sees them.
    #[serde(default)]
    pub cards: Vec<NetworkCard>,
    /// What the guest reads about its network when it starts, on a small disk behind its own ones.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seed: Option<Seed>,
    /// What only one platform understands, by platform name; passed on untouched.
    #[serde(default)]
    pub native: BTreeMap<String, serde_json::Value>,
}

impl MachineSpec {
    /// The same machine with its cards in the networks that take the place of theirs.
    pub fn connected(mut self, networks: &BTreeMap<String, String>) -> MachineSpec {
        for card in &mut self.cards {
            if let Connection::Network(name) = &mut card.connection
                && let Some(other) = networks.get(name)
            {
                name.clone_from(other);
            }
        }
        self
    }

    /// The networks that its cards are connected with and that are none of these.
    pub fn missing_networks(&self, there: &[String]) -> BTreeSet<&str> {
        let named = self.cards.iter().filter_map(|card| match &card.connection {
            Connection::Network(name) => Some(name.as_str()),
            Connection::Nothing => None,
        });
        named.filter(|name| !there.iter().any(|other| other == name)).collect()
    }

    /// The same machine with the cards connected to nothing whose network is none of these.
    pub fn unplugged(mut self, there: &[String]) -> MachineSpec {
        for card in &mut self.cards {
            if matches!(&card.connection, Connection::Network(name) if !there.contains(name)) {
                card.connection = Connection::Nothing;
            }
        }
        self
    }

    /// The networks that its cards are connected with.
    pub fn networks(&self) -> BTreeSet<&str> {
        self.missing_networks(&[])
    }

    /// The same machine under another name, all its cards connected with the one network that is given, or with nothing: what a
    /// test of it is.
    pub fn isolated(&self, name: &str, network: Option<&str>) -> MachineSpec {
        let connection = network.map_or(Connection::Nothing, |network| Connection::Network(network.into()));
        let cards = self.cards.iter().map(|card| NetworkCard { connection: connection.clone(), ..card.clone() });
        MachineSpec { name: name.into(), cards: cards.collect(), ..self.clone() }
    }
}

/// What a site has beside its machines.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SiteFacts {
    /// Networks that a card can be connected with, by the names they have there.
    pub networks: Vec<String>,
    /// Where disks can be made.
    pub pools: Vec<Pool>,
}

/// A storage pool: a *datastore*.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Pool {
    /// Its name there.
    pub name: String,
    /// The directory, where it is one: only in those can disks be made.
    pub folder: Option<String>,
    /// Its size in bytes.
    pub size: u64,
    /// What is free of it, in bytes.
    pub free: u64,
    /// Why nothing can be written there, if so.
    pub refuses: Option<String>,
}

/// Where disks are made for a machine that comes where nothing of it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NewDisks {
    /// The folder.
    pub folder: String,
    /// The machine's name there, which the files get.
    pub machine: String,
}

/// A network card of a machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct NetworkCard {
    /// Its address, the same for the machine's whole life and at every site (`52:54:00:12:34:56`).
    pub mac: String,
    /// What it is connected to.
    pub connection: Connection,
}

/// What a network card is connected to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Connection {
    /// A network of the site, by the name it has there.
    Network(String),
    /// Nothing: the guest finds the card, and nobody hears it.
    Nothing,
}

/// What a machine starts from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Boot {
    /// The firmware (a BIOS) finds a boot loader on the first disk.
    Firmware,
    /// A UEFI firmware finds the boot loader that its variables name.
    Uefi {
        /// Its variables; none where they are not known: those of a new machine then.
        #[serde(default)]
        variables: Option<Variables>,
    },
    /// A kernel given from outside (paths are the site's own and are looked up again at another site by file name).
    Kernel {
        /// Path of the kernel image.
        kernel: String,
        /// Path of the initial RAM disk.
        initrd: String,
        /// The kernel's command line.
        command_line: String,
    },
}

/// One disk of a machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct DiskSpec {
    /// Its name for the machine's whole life; also the serial number that the guest sees.
    pub key: DiskKey,
    /// Its size in bytes.
    pub size: u64,
    /// Where its bytes are.
    pub source: DiskSource,
}

/// Where the bytes of a disk are.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum DiskSource {
    /// A disk of the platform's own: a file, a volume; named as the platform names it.
    Own {
        /// Path or volume name.
        path: String,
        /// Image format.
        format: DiskFormat,
    },
    /// A view of a replica's recovery point, served over NBD, under an overlay that takes the machine's writes.
    OverlayOnView {
        /// The overlay's path or name; the platform creates it when it is absent.
        overlay: String,
        /// The view as an NBD URI.
        view: String,
    },
    /// A disk of the platform's own, which nobody else writes, under an overlay that takes the machine's writes: what a
    /// machine stands on while it is being folded.
    OverlayOnOwn {
        /// The overlay's path or name.
        overlay: String,
        /// Path or volume name of the disk beneath.
        path: String,
        /// Its image format.
        format: DiskFormat,
    },
}

impl DiskSource {
    /// The overlay that takes the machine's writes, if it has one.
    pub fn overlay(&self) -> Option<&str> {
        match self {
            DiskSource::Own { .. } => None,
            DiskSource::OverlayOnView { overlay, .. } | DiskSource::OverlayOnOwn { overlay, .. } => Some(overlay),
        }
    }
}

/// The format of a disk's image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum DiskFormat {
    /// The bytes themselves.
    Raw,
    /// QEMU's copy-on-write format, which can keep change maps.
    Qcow2,
}

/// What a machine does at the moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Power {
    /// It does not exist for the hypervisor beyond its definition.
    Off,
    /// It runs.
    Running,
    /// It exists and could go on, but its processors stand still.
    Paused,
    /// The guest is off, the hypervisor still holds its disks: the last changes can be read exactly.
    Held,
}

/// A machine as a platform finds it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Machine {
    /// Its description.
    pub spec: MachineSpec,
    /// What it does.
    pub power: Power,
    /// What of it does not come along, or not as well as one might think.
    #[serde(default)]
    pub remarks: Vec<Remark>,
}

/// What an operator should know of a machine before relying on its copy.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Remark {
    /// It is so only where the other site has another kind of hypervisor.
    pub elsewhere: bool,
    /// What it is, in an operator's words.
    pub words: String,
}

/// What the platform knows of a machine's disks once the machine is off and let go of: where the copy stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Settled {
    /// The cut that `changes` are counted from; none when nothing tells.
    pub since: Option<Attempt>,
    /// What changed since that cut, the union of every map that is still held.
    pub changes: Changes,
    /// What identifies each disk's present state (inode, size, times of change): equal stamps mean nobody wrote since.
    pub stamps: BTreeMap<DiskKey, String>,
}
