//! `init` and `join` in this process: for a host without systemd, a container, or to try it out.
//!
//! ```text
//!   D/host.toml  D/join.token     see kept.rs
//!   D/server/                     control server (init)
//!   D/process-server/  D/master-target/  D/site/     as below /var/lib/sockeye
//! ```
//! The roles are those that `up` runs; a signal ends them all, and the same command goes on with them.

use std::path::Path;
use std::sync::Arc;

use platforms::Platform;
use platforms::libvirt::Libvirt;
use platforms::qemu::Qemu;
use protocol::Fault;
use tokio::task::JoinSet;

use super::super::mover::{self, Movers, directory};
use super::super::server::{Door, Server};
use super::super::signal::Stop;
use super::kept::Kept;
use super::settings::Settings;
use super::{Further, client, connected, enroll, enroll_first, first, ports};
use crate::cli::{self, Global, HostRole, PlatformName};
use crate::client::Client;
use crate::ending::{Ending, Trouble};
use crate::show::Screen;

type Running = JoinSet<Result<(), Fault>>;

/// Runs control server and movers until a signal.
pub(super) async fn init(global: &Global, init: &cli::Init) -> Result<Ending, Trouble> {
    super::super::log();
    let stop = Stop::on_signals()?;
    let data_dir = directory(&init.host.data_dir)?;
    let kept = Kept::open(&data_dir)?;
    let settings = Settings::of_init(init, kept.settings()?.as_ref())?;
    kept.is_so(&settings)?;
    ports::are_free(&settings, &[HostRole::Control, HostRole::MasterTarget, HostRole::ProcessServer])?;
    let Some(listen) = settings.listens(HostRole::Control) else {
        return Err(Trouble::usage("the control server does not listen", "give --address"));
    };
    let mut server = Server::start(&data_dir.join("server"), listen).await?;
    let mut movers = Running::new();
    let door = server.door.clone();
    let ended = match begin(&settings, &kept, &data_dir, &door, &mut movers, &stop).await {
        Ok(operator) => tokio::select! {
            () = stop.wait() => Ok(()),
            ended = server.ended() => ended,
            ended = mover::first(&mut movers) => ended,
            ended = tell_first(global, init, &settings, &kept, &door, &operator) => ended,
        },
        Err(why) => Err(why),
    };
    stop.now();
    while movers.join_next().await.is_some() {}
    server.stop().await?;
    ended.map(|()| Ending::Done)
}

/// Runs movers until a signal.
pub(super) async fn join(global: &Global, join: &cli::Join) -> Result<Ending, Trouble> {
    super::super::log();
    let stop = Stop::on_signals()?;
    let settings = Settings::of_join(join)?;
    let token = mover::secret(join.token.as_ref(), join.token_file.as_deref())?;
    let data_dir = directory(&join.host.data_dir)?;
    let kept = Kept::open(&data_dir)?;
    let before = kept.is_so(&settings)?;
    ports::are_free(&settings, &[HostRole::MasterTarget, HostRole::ProcessServer])?;
    let control = client(&settings.server, &token)?;
    // Replication goes on without control: a host that was in before does not wait for it.
    let unless_gone = |answer: Result<_, Trouble>| match answer {
        Err(trouble) if before && trouble.ending == Ending::Unreached => Ok(None),
        answer => answer.map(Some),
    };
    unless_gone(enroll(&kept, &control, &settings).await)?;
    kept.remember(&settings)?;
    let mut movers = Running::new();
    let tell = async {
        let joined = unless_gone(connected(&kept, &control, &settings).await)?;
        Further::new(settings.clone(), joined).show(Screen::new(global.output));
        std::future::pending().await
    };
    let ended = match start(&mut movers, &settings, &settings.server, &kept, &data_dir, &stop).await {
        Ok(()) => tokio::select! {
            () = stop.wait() => Ok(()),
            ended = mover::first(&mut movers) => ended,
            ended = tell => ended,
        },
        Err(why) => Err(why),
    };
    stop.now();
    while movers.join_next().await.is_some() {}
    ended.map(|()| Ending::Done)
}

/// Joins this host to its own control server and starts its movers; gives an operator's way in.
async fn begin(
    settings: &Settings,
    kept: &Kept,
    data_dir: &Path,
    door: &Door,
    movers: &mut Running,
    stop: &Stop,
) -> Result<Client, Trouble> {
    let operator = client(&door.url, &mover::secret(None, Some(&door.admin_token_file))?)?;
    if !settings.components().is_empty() {
        enroll_first(kept, &operator, settings).await?;
    }
    kept.remember(settings)?;
    start(movers, settings, &door.url, kept, data_dir, stop).await?;
    Ok(operator)
}

/// Tells what was made once all of it is there, and goes on without an end.
async fn tell_first(
    global: &Global,
    init: &cli::Init,
    settings: &Settings,
    kept: &Kept,
    door: &Door,
    operator: &Client,
) -> Result<(), Trouble> {
    if !settings.components().is_empty() {
        connected(kept, operator, settings).await?;
    }
    let dialled = settings.dialled(door.port).map_or_else(|| door.url.clone(), |at| format!("http://{at}"));
    let told = first(global, init, operator, settings, (dialled, &door.admin_token_file)).await?;
    told.show(Screen::new(global.output));
    std::future::pending().await
}

async fn start(
    movers: &mut Running,
    settings: &Settings,
    server: &str,
    kept: &Kept,
    data_dir: &Path,
    stop: &Stop,
) -> Result<(), Trouble> {
    if settings.components().is_empty() {
        return Ok(());
    }
    let site_dir = directory(&data_dir.join("site"))?;
    let platform: Arc<dyn Platform> = match (settings.platform, &settings.libvirt_uri) {
        (PlatformName::Libvirt, Some(uri)) => Arc::new(Libvirt::open(uri, &site_dir).await?),
        _ => Arc::new(Qemu::open(&site_dir)?),
    };
    let join_token = kept.secret()?;
    let of_site = Movers { site: &settings.site, server, join_token: &join_token, dir: data_dir, platform };
    if settings.has(HostRole::MasterTarget) {
        let retention = data_dir.join("master-target/retention");
        let config = of_site.master_target(&retention, settings.listen(HostRole::MasterTarget))?;
        movers.spawn(master_target::run(config, stop.wait()));
    }
    if settings.has(HostRole::ProcessServer) {
        let config = of_site.process_server(settings.listen(HostRole::ProcessServer))?;
        movers.spawn(process_server::run(config, stop.wait()));
    }
    Ok(())
}
