//! The options of `copy`, `receive` and `send`: one disk onto another, without a control server.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;

use clap::{Args, ValueEnum};
use protocol::leaf::LeafSize;
use protocol::replication::Peer;

/// Where a disk is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// A file or a block device of this host.
    Path(PathBuf),
    /// An NBD export.
    Export(nbd::Uri),
    /// A disk that `sockeye receive` or `sockeye send` offers on another host, under that name.
    Remote(Peer),
}

impl FromStr for Place {
    type Err = String;

    fn from_str(text: &str) -> Result<Place, String> {
        if text.is_empty() {
            return Err("a disk is a path, nbd://…, nbd+unix://… or sockeye+tls://HOST:PORT/NAME".into());
        }
        if let Some(rest) = text.strip_prefix("sockeye+tls://") {
            let found = rest.split_once('/').filter(|(address, name)| address.contains(':') && !name.is_empty());
            let (address, name) = found.ok_or_else(|| format!("{text:?} is not sockeye+tls://HOST:PORT/NAME"))?;
            return Ok(Place::Remote(Peer { address: address.into(), name: name.into() }));
        }
        if text.starts_with("nbd://") || text.starts_with("nbd+unix://") {
            return text.parse().map(Place::Export).map_err(|error: nbd::Error| error.to_string());
        }
        match text.split_once("://") {
            Some((scheme, _)) => Err(format!("{scheme}:// is not known: nbd, nbd+unix and sockeye+tls are")),
            None => Ok(Place::Path(text.into())),
        }
    }
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Place::Path(path) => path.display().fmt(f),
            Place::Export(uri) => uri.fmt(f),
            Place::Remote(peer) => peer.fmt(f),
        }
    }
}

/// How the blocks that travel are found.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum CopySync {
    /// Hash both disks, send what differs
    Compare,
    /// Send all that holds data, without reading the target
    Full,
}

#[derive(Debug, Args)]
pub struct Copy {
    /// The disk to be copied: a raw image, a block device, nbd://HOST/EXPORT or nbd+unix:///EXPORT?socket=PATH. On another
    /// host: sockeye+tls://HOST:PORT/NAME, where `sockeye send` waits
    #[arg(value_name = "SRC")]
    pub source: Place,
    /// The disk that becomes the same; a file that is not there is made. On another host: sockeye+tls://HOST:PORT/NAME, where
    /// `sockeye receive` waits
    #[arg(value_name = "DST")]
    pub target: Place,
    /// How the blocks that travel are found; an empty target needs no compare
    #[arg(long, value_enum, default_value_t = CopySync::Compare)]
    pub sync: CopySync,
    /// How much of the disks one hash stands for, 64K to 4M: larger ones are fewer to be told, but where one byte differs all
    /// that its hash stands for travels
    #[arg(long, value_name = "SIZE", default_value_t = LeafSize::default())]
    pub leaf_size: LeafSize,
    /// Connections to another host, and to each NBD export that takes several; 1 to 32
    #[arg(long, value_name = "N", default_value_t = component::CONNECTIONS, value_parser = clap::value_parser!(u8).range(1..=32))]
    pub connections: u8,
    /// When it is done, read both disks again and compare them
    #[arg(long)]
    pub verify: bool,
    /// Say what would travel, write nothing
    #[arg(long)]
    pub dry_run: bool,
    /// What `sockeye receive` or `sockeye send` on the other host wrote: it lets this host in, and proves the other
    #[arg(long, value_name = "FILE")]
    pub ticket: Option<PathBuf>,
    #[command(flatten)]
    pub marks: Marks,
}

#[derive(Debug, Args)]
pub struct Receive {
    /// The disk that becomes a copy: a raw image (made if it is not there), a block device or an NBD export
    #[arg(value_name = "DST")]
    pub target: Place,
    #[command(flatten)]
    pub waiting: Waiting,
    /// Connections to an NBD export that takes several, 1 to 32
    #[arg(long, value_name = "N", default_value_t = component::CONNECTIONS, value_parser = clap::value_parser!(u8).range(1..=32))]
    pub connections: u8,
    #[command(flatten)]
    pub marks: Marks,
}

#[derive(Debug, Args)]
pub struct Send {
    /// The disk that is copied: a raw image, a block device or an NBD export
    #[arg(value_name = "SRC")]
    pub source: Place,
    #[command(flatten)]
    pub waiting: Waiting,
    /// Connections to an NBD export that takes several, 1 to 32
    #[arg(long, value_name = "N", default_value_t = component::CONNECTIONS, value_parser = clap::value_parser!(u8).range(1..=32))]
    pub connections: u8,
    #[command(flatten)]
    pub marks: Marks,
}

/// How the other host comes here.
#[derive(Debug, Args)]
pub struct Waiting {
    /// The name that the other host calls the disk by
    #[arg(long, value_name = "NAME", default_value = "disk")]
    pub name: String,
    /// Where to listen
    #[arg(long, value_name = "A", default_value = "0.0.0.0:7412")]
    pub listen: SocketAddr,
    /// Where the other host reaches it, as host:port (default: the listening address, when it names one host)
    #[arg(long, value_name = "H:P")]
    pub advertise: Option<String>,
    /// Where the ticket is written that lets the other host in (mode 0600): carry it there over a way you trust
    #[arg(long, value_name = "FILE")]
    pub ticket: PathBuf,
}

#[derive(Debug, Args)]
pub struct Marks {
    /// Where it is noted that a block device or an export is half written (an image has its mark beside it)
    #[arg(long, value_name = "D", default_value = "/var/lib/sockeye/copies")]
    pub state: PathBuf,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_is_what_it_looks_like_or_is_refused_in_words() {
        let place = |text: &str| text.parse::<Place>();
        assert_eq!(place("/dev/vg/disk"), Ok(Place::Path("/dev/vg/disk".into())));
        assert!(matches!(place("nbd+unix:///e?socket=/s"), Ok(Place::Export(_))));
        let remote = Place::Remote(Peer { address: "cloud:7412".into(), name: "web01/disk0".into() });
        assert_eq!(place("sockeye+tls://cloud:7412/web01/disk0"), Ok(remote));
        for wrong in
            ["", "sockeye+tls://cloud/web01", "sockeye+tls://cloud:7412/", "http://cloud/disk", "nbd://cloud:x/"]
        {
            assert!(place(wrong).is_err(), "{wrong}");
        }
    }
}
