//! `up`: every role in one process, for one machine or for trying it out.
//!
//! ```text
//!   D/               control server: database, admin.token
//!   D/home, D/cloud  a qemu site each (--site NAME=DIR): machines/, and beside them
//!                    process-server/   master-target/   retention/
//! ```
//! The roles talk over loopback exactly as they would between hosts, so nothing works here that would not there. Each site is
//! one directory: moved away, it is a site that is lost.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use component::Listen;
use platforms::qemu::Qemu;
use protocol::{Fault, SiteName};
use serde::Serialize;
use tokio::task::JoinSet;

use super::mover::{self, Movers, directory};
use super::server::{Door, Server};
use super::signal::Stop;
use crate::cli;
use crate::ending::{Ending, Trouble};
use crate::show::Screen;

/// What `up` tells.
#[derive(Debug, Serialize)]
struct Told<'a> {
    #[serde(flatten)]
    door: &'a Door,
    sites: &'a [(SiteName, PathBuf)],
}

/// Runs it until it is told to stop.
///
/// # Errors
/// A directory or an address cannot be used, or a role ends with a fault: the others are stopped then.
pub async fn run(screen: Screen, up: &cli::Up) -> Result<Ending, Trouble> {
    super::log();
    let stop = Stop::on_signals()?;
    let data_dir = directory(&up.data_dir)?;
    let sites = sites(up, &data_dir)?;
    let mut server = Server::start(&data_dir, up.listen).await?;
    let mut movers = JoinSet::new();
    let started = start(&mut movers, &server.door, &sites, up.listen.port(), &stop);
    let ended = match started {
        Ok(()) => {
            let told = Told { door: &server.door, sites: &sites };
            screen.result(&told, &words(&told));
            tokio::select! {
                () = stop.wait() => Ok(()),
                ended = server.ended() => ended,
                ended = mover::first(&mut movers) => ended,
            }
        }
        Err(why) => Err(why),
    };
    stop.now();
    while movers.join_next().await.is_some() {}
    server.stop().await?;
    ended.map(|()| Ending::Done)
}

fn sites(up: &cli::Up, data_dir: &Path) -> Result<Vec<(SiteName, PathBuf)>, Trouble> {
    let mut sites = up.sites.clone();
    if sites.is_empty() {
        for name in ["home", "cloud"] {
            let site =
                name.parse().map_err(|why: protocol::id::BadName| Trouble::usage("a site's name", why.to_string()))?;
            sites.push((site, data_dir.join(name)));
        }
    }
    for (_, dir) in &mut sites {
        *dir = directory(dir)?;
    }
    for (place, (name, dir)) in sites.iter().enumerate() {
        if sites.iter().take(place).any(|(other, taken)| other == name || taken == dir) {
            return Err(Trouble::usage(
                format!("site {name} is given twice"),
                "each site has a name and a directory of its own",
            ));
        }
    }
    Ok(sites)
}

fn start(
    movers: &mut JoinSet<Result<(), Fault>>,
    door: &Door,
    sites: &[(SiteName, PathBuf)],
    port: u16,
    stop: &Stop,
) -> Result<(), Trouble> {
    // They share the process with the control server, which knows everything: an operator's token is none too many.
    let join_token = mover::secret(None, Some(&door.admin_token_file))?;
    for ((site, dir), number) in sites.iter().zip(1u16..) {
        let platform = Arc::new(Qemu::open(dir)?);
        let of_site = Movers { site, server: &door.url, join_token: &join_token, dir, platform };
        let address = mover_address(port, number);
        let listen = Listen { address, advertise: address.to_string() };
        let target = of_site.master_target(&dir.join("retention"), Some(listen))?;
        movers.spawn(master_target::run(target, stop.wait()));
        movers.spawn(process_server::run(of_site.process_server(None)?, stop.wait()));
    }
    Ok(())
}

/// The ports after the server's, the same at each start; any free one where they are taken.
fn mover_address(port: u16, number: u16) -> SocketAddr {
    let wanted = if port == 0 { 0 } else { port.saturating_add(number) };
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, wanted));
    match TcpListener::bind(address) {
        Ok(_) => address,
        Err(_) => SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
    }
}

fn words(told: &Told<'_>) -> String {
    let door = told.door;
    let mut text = format!("sockeye is up at {}\n", door.url);
    for (site, dir) in told.sites {
        text.push_str(&format!("  site {site}: {}\n", dir.display()));
    }
    let first = told.sites.first().map_or(("S", PathBuf::new()), |(site, dir)| (site.as_str(), dir.clone()));
    let second = told.sites.get(1).map_or("T", |(site, _)| site.as_str());
    text.push_str(&format!(
        "in another terminal:\n  sockeye login {} < {}\n  sockeye vm define --site-dir {} --name VM --disk disk0=PATH --start\n  \
         sockeye protect VM --from {} --to {second}\n  sockeye status --watch\nCtrl-C ends it here; machines run on.",
        door.url,
        door.admin_token_file.display(),
        first.1.display(),
        first.0
    ));
    text
}
