//! `process-server` and `master-target`: the two movers of a site, as processes of their own.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use component::Listen;
use platforms::Platform;
use platforms::libvirt::Libvirt;
use platforms::qemu::Qemu;

use super::signal::Stop;
use crate::cli::{Global, MasterTarget, Mover, PlatformName, ProcessServer};
use crate::ending::{Ending, Trouble};
use crate::profile::{self, Environment};

/// Runs a process server until it is told to stop.
///
/// # Errors
/// Its directories, the site or the join token cannot be used.
pub async fn process_server(global: &Global, server: &ProcessServer) -> Result<Ending, Trouble> {
    super::log();
    let mover = &server.mover;
    let config = process_server::Config {
        name: name(mover, "process-server"),
        site: mover.site.clone(),
        server: control(global)?,
        join_token: join_token(mover)?,
        data_dir: directory(&mover.data_dir)?,
        connections: server.connections,
        listen: server.listen.map(|address| listen(address, server.advertise.as_ref())).transpose()?,
        platform: platform(mover).await?,
    };
    tracing::info!(name = config.name, server = config.server, "process server starts");
    process_server::run(config, Stop::on_signals()?.wait()).await?;
    Ok(Ending::Done)
}

/// Runs a master target until it is told to stop.
///
/// # Errors
/// Its directories, the site, the address or the join token cannot be used.
pub async fn master_target(global: &Global, target: &MasterTarget) -> Result<Ending, Trouble> {
    super::log();
    let mover = &target.mover;
    let data_dir = directory(&mover.data_dir)?;
    let retention = directory(&target.retention.clone().unwrap_or_else(|| data_dir.join("retention")))?;
    let config = master_target::Config {
        name: name(mover, "master-target"),
        site: mover.site.clone(),
        server: control(global)?,
        join_token: join_token(mover)?,
        data_dir,
        retention,
        connections: target.connections,
        listen: match target.outbound_only {
            true => None,
            false => Some(listen(target.listen, target.advertise.as_ref())?),
        },
        platform: platform(mover).await?,
    };
    tracing::info!(name = config.name, server = config.server, "master target starts");
    master_target::run(config, Stop::on_signals()?.wait()).await?;
    Ok(Ending::Done)
}

/// A directory that exists, by its path from the root.
///
/// # Errors
/// It cannot be made.
pub fn directory(path: &Path) -> Result<std::path::PathBuf, Trouble> {
    let made = std::fs::create_dir_all(path).and_then(|()| std::fs::canonicalize(path));
    made.map_err(|why| Trouble::local(format!("the directory {} cannot be used", path.display()), why))
}

fn name(mover: &Mover, role: &str) -> String {
    mover.name.clone().unwrap_or_else(|| format!("{}-{role}", mover.site))
}

fn control(global: &Global) -> Result<String, Trouble> {
    let given = global.server.clone().or_else(|| Environment::read().server);
    let given =
        given.ok_or_else(|| Trouble::usage("no control server is named", "give --server URL (or SOCKEYE_SERVER)"))?;
    profile::tidy(&given)
}

fn join_token(mover: &Mover) -> Result<String, Trouble> {
    let token = match (&mover.join_token, &mover.join_token_file) {
        (Some(token), _) => token.clone(),
        (None, Some(file)) => std::fs::read_to_string(file)
            .map_err(|why| Trouble::local(format!("the join token {} cannot be read", file.display()), why))?,
        (None, None) => String::new(),
    };
    match token.trim() {
        "" => Err(Trouble::usage("the join token is empty", "give --join-token T or --join-token-file F")),
        token => Ok(token.to_string()),
    }
}

async fn platform(mover: &Mover) -> Result<Arc<dyn Platform>, Trouble> {
    match mover.platform {
        PlatformName::Qemu => Ok(Arc::new(Qemu::open(&mover.site_dir)?)),
        PlatformName::Libvirt => Ok(Arc::new(Libvirt::open(&mover.libvirt_uri, &mover.site_dir).await?)),
    }
}

/// Where to listen, and what others are told: an address that listens on every interface names no host.
fn listen(address: SocketAddr, advertise: Option<&String>) -> Result<Listen, Trouble> {
    let advertise = match advertise {
        Some(advertise) => advertise.clone(),
        None if address.ip().is_unspecified() => {
            return Err(Trouble::usage(
                "it is not known where others reach this component",
                format!("{address} names no host: give --advertise HOST:PORT, or --listen an address of this host"),
            ));
        }
        None => address.to_string(),
    };
    Ok(Listen { address, advertise })
}
