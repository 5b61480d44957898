//! `process-server` and `master-target`: the two movers of a site, as processes of their own, or together in one that has other
//! roles, too.

use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use component::Listen;
use platforms::Platform;
use platforms::libvirt::Libvirt;
use platforms::qemu::Qemu;
use protocol::Fault;
use protocol::id::SiteName;
use tokio::task::JoinSet;

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
        join_token: secret(mover.join_token.as_ref(), mover.join_token_file.as_deref())?,
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
        join_token: secret(mover.join_token.as_ref(), mover.join_token_file.as_deref())?,
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

/// A token that was given, or is in a file.
///
/// # Errors
/// The file cannot be read, or there is no token.
pub fn secret(given: Option<&String>, file: Option<&Path>) -> Result<String, Trouble> {
    let token = match (given, file) {
        (Some(token), _) => token.clone(),
        (None, Some(file)) => std::fs::read_to_string(file)
            .map_err(|why| Trouble::local(format!("the token in {} cannot be read", file.display()), why))?,
        (None, None) => String::new(),
    };
    // It is sent as a header, which holds visible characters only.
    match token.trim() {
        token if token.is_empty() || !token.bytes().all(|byte| byte.is_ascii_graphic()) => {
            Err(Trouble::usage("that is no token", "a token is one word of visible characters"))
        }
        token => Ok(token.to_string()),
    }
}

/// The movers of a site that run in this process, with what they have in common.
pub struct Movers<'a> {
    /// The site.
    pub site: &'a SiteName,
    /// The control server.
    pub server: &'a str,
    /// What they register with.
    pub join_token: &'a str,
    /// Each keeps what it must remember in a directory of its own below.
    pub dir: &'a Path,
    /// The site's hypervisor.
    pub platform: Arc<dyn Platform>,
}

impl Movers<'_> {
    /// The master target.
    ///
    /// # Errors
    /// A directory cannot be used.
    pub fn master_target(&self, retention: &Path, listen: Option<Listen>) -> Result<master_target::Config, Trouble> {
        Ok(master_target::Config {
            name: format!("{}-master-target", self.site),
            site: self.site.clone(),
            server: self.server.into(),
            join_token: self.join_token.into(),
            data_dir: directory(&self.dir.join("master-target"))?,
            retention: directory(retention)?,
            listen,
            connections: component::CONNECTIONS,
            platform: self.platform.clone(),
        })
    }

    /// The process server.
    ///
    /// # Errors
    /// A directory cannot be used.
    pub fn process_server(&self, listen: Option<Listen>) -> Result<process_server::Config, Trouble> {
        Ok(process_server::Config {
            name: format!("{}-process-server", self.site),
            site: self.site.clone(),
            server: self.server.into(),
            join_token: self.join_token.into(),
            data_dir: directory(&self.dir.join("process-server"))?,
            connections: component::CONNECTIONS,
            listen,
            platform: self.platform.clone(),
        })
    }
}

/// The first mover that ends, which none should before it is told to.
///
/// # Errors
/// Why it ended.
pub async fn first(movers: &mut JoinSet<Result<(), Fault>>) -> Result<(), Trouble> {
    match movers.join_next().await {
        Some(Ok(ended)) => Ok(ended?),
        Some(Err(why)) => Err(Trouble::local("a mover died", why)),
        None => std::future::pending().await,
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
