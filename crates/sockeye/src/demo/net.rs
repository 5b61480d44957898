//! Two hosts on one machine: a network namespace for each site and one link between them that can be cut.
//!
//! ```text
//!   ns home ── veth ═══ veth ── ns cloud        each site's processes also see the other site's directory as empty
//!   10.77.0.1                   10.77.0.2
//! ```
//! Home can stand behind a firewall: what comes in and was not asked for by home is dropped, without a word.
//! Where the kernel does not allow namespaces (no root), both sites are on loopback and the link cannot be cut.

use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, bail};

/// The two hosts' addresses inside their namespaces: nothing outside ever sees them.
const ADDRESS: [&str; 2] = ["10.77.0.1", "10.77.0.2"];

/// How the two sites are connected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hosts {
    /// Both are on the loopback.
    Loopback,
    /// Each is a host of its own, if the kernel allows it.
    Own,
    /// The same, and nobody can dial home: its components make outbound connections only.
    HomeBehindFirewall,
}

/// Drops what comes in and does not belong to a connection that was made from inside.
const FIREWALL: &str = "add table inet sockeye; \
    add chain inet sockeye in { type filter hook input priority 0; policy drop; }; \
    add rule inet sockeye in iif lo accept; \
    add rule inet sockeye in ct state established,related accept";

/// The network between home (0) and away (1).
pub struct Net {
    names: Option<[String; 2]>,
}

fn run(program: &str, arguments: &[&str]) -> anyhow::Result<()> {
    let output = Command::new(program).args(arguments).output().with_context(|| format!("{program} cannot be run"))?;
    if !output.status.success() {
        bail!("{program} {}: {}", arguments.join(" "), String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}

impl Net {
    /// Makes what is wanted, or says why everything stays on loopback.
    pub fn new(wanted: Hosts) -> (Net, Option<String>) {
        if wanted == Hosts::Loopback {
            return (Net { names: None }, None);
        }
        // One process may make several pairs.
        static MADE: AtomicU32 = AtomicU32::new(0);
        let id = format!("{}-{}", std::process::id(), MADE.fetch_add(1, Ordering::Relaxed));
        let names = [format!("skh{id}"), format!("skc{id}")];
        let net = Net { names: Some(names.clone()) };
        match net.build(&names, wanted) {
            Ok(()) => (net, None),
            Err(error) => {
                drop(net);
                (Net { names: None }, Some(format!("{error:#}")))
            }
        }
    }

    fn build(&self, names: &[String; 2], wanted: Hosts) -> anyhow::Result<()> {
        for name in names {
            run("ip", &["netns", "add", name])?;
        }
        run("ip", &["link", "add", &names[0], "type", "veth", "peer", "name", &names[1]])?;
        for (name, address) in names.iter().zip(ADDRESS) {
            run("ip", &["link", "set", name, "netns", name])?;
            run("ip", &["-n", name, "address", "add", &format!("{address}/24"), "dev", name])?;
            run("ip", &["-n", name, "link", "set", "lo", "up"])?;
            run("ip", &["-n", name, "link", "set", name, "up"])?;
        }
        if wanted == Hosts::HomeBehindFirewall {
            run("ip", &["netns", "exec", &names[0], "nft", FIREWALL])?;
        }
        // The sites' directories are hidden from each other by mounts of a process's own; probe that they work.
        run("ip", &["netns", "exec", &names[0], "sh", "-c", "mount -t tmpfs none /mnt"])
    }

    /// Whether the sites are hosts of their own.
    pub fn is_real(&self) -> bool {
        self.names.is_some()
    }

    /// The address of a host as the other one reaches it.
    pub fn address(&self, host: usize) -> &'static str {
        if self.is_real() { ADDRESS[host] } else { "127.0.0.1" }
    }

    /// `program` on a host. `hidden` is a directory that it sees as empty.
    pub fn command(&self, host: usize, program: &Path, hidden: Option<&Path>) -> Command {
        let Some(names) = &self.names else { return Command::new(program) };
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &names[host]]);
        if let Some(hidden) = hidden {
            // `ip netns exec` gives the process mounts of its own; `exec` keeps the process id.
            command.args(["sh", "-c", r#"mount -t tmpfs -o size=64k none "$0" && exec "$@""#]).arg(hidden);
        }
        command.arg(program);
        command
    }

    /// Cuts the link between the hosts, or mends it. Nothing is told to either end, as when a cable is dug up.
    ///
    /// # Errors
    /// When everything is on loopback.
    pub fn link(&self, up: bool) -> anyhow::Result<()> {
        let Some([home, _]) = &self.names else { bail!("the sites share the loopback, which cannot be cut") };
        run("ip", &["-n", home, "link", "set", home, if up { "up" } else { "down" }])
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        for name in self.names.iter().flatten() {
            let _ = run("ip", &["netns", "delete", name]);
        }
    }
}
