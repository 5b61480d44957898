//! `init` and `join` by the services of the package: writes their settings, enables and starts them.
//!
//! ```text
//!   /etc/sockeye/{server,process-server,master-target}.env   SOCKEYE_SERVER=, OPTIONS=: set once, then their owner's
//!   /etc/sockeye/join.token, host.toml                       see kept.rs
//!   /etc/systemd/system/sockeye-*.service.d                  what movers may beside that, where the hypervisor is libvirt
//! ```
//!
//! # Always true
//! - A setting that somebody made is not overwritten: what differs is named, and nothing is changed.
//! - What has been set up is left alone by a repetition; only services that do not run are started.

mod environment;
mod rights;

use std::path::Path;
use std::time::Instant;

use tokio::process::Command;

use super::super::mover;
use super::kept::Kept;
use super::settings::Settings;
use super::{AGAIN, First, Further, PATIENCE, client, connected, enroll, enroll_first, first, missing, ports, unfit};
use crate::cli::{self, Global, HostRole, PlatformName};
use crate::client::Client;
use crate::ending::{Ending, Trouble};
use crate::show::Screen;

use environment::Change;

/// Where the package has its settings.
const ETC: &str = "/etc/sockeye";
/// Where its control server has the token of operators.
const ADMIN_TOKEN: &str = "/var/lib/sockeye/server/admin.token";

/// Has the control server and the movers of this host run as services.
pub(super) async fn init(global: &Global, init: &cli::Init) -> Result<Ending, Trouble> {
    are_there().await?;
    let screen = Screen::new(global.output);
    let kept = Kept::open(Path::new(ETC))?;
    let settings = Settings::of_init(init, kept.settings()?.as_ref())?;
    let before = kept.is_so(&settings)?;
    let changes = if before { vec![] } else { changes(&settings)? };
    ports::are_free(&settings, &idle(&settings).await)?;
    Change::all(&changes)?;
    entitle(&settings).await?;
    begin(&[HostRole::Control], &changes, false).await?;
    let admin = Client::new(crate::profile::Access { server: settings.server.clone(), token: None })?;
    let since = Instant::now();
    while admin.healthz().await.is_err() {
        if since.elapsed() > PATIENCE {
            return Err(silent("sockeye-server", &format!("nobody answers at {}", settings.server)));
        }
        tokio::time::sleep(AGAIN).await;
    }
    let operator = client(&settings.server, &mover::secret(None, Some(Path::new(ADMIN_TOKEN)))?)?;
    let movers = movers(&settings);
    let mut heard = vec![];
    if !movers.is_empty() {
        heard = enroll_first(&kept, &operator, &settings).await?.connected;
    }
    kept.remember(&settings)?;
    begin(&movers, &changes, !missing(&settings, &heard).is_empty()).await?;
    if !movers.is_empty() {
        are_connected(&settings, &connected(&kept, &operator, &settings).await?.connected)?;
    }
    let dialled = settings.dialled(settings.port).map_or_else(|| settings.server.clone(), |at| format!("http://{at}"));
    let told: First = first(global, init, &operator, &settings, (dialled, Path::new(ADMIN_TOKEN))).await?;
    told.show(screen);
    Ok(Ending::Done)
}

/// Has the movers of this host run as services.
pub(super) async fn join(global: &Global, join: &cli::Join) -> Result<Ending, Trouble> {
    let settings = Settings::of_join(join)?;
    let token = mover::secret(join.token.as_ref(), join.token_file.as_deref())?;
    are_there().await?;
    let screen = Screen::new(global.output);
    let kept = Kept::open(Path::new(ETC))?;
    let before = kept.is_so(&settings)?;
    let changes = if before { vec![] } else { changes(&settings)? };
    ports::are_free(&settings, &idle(&settings).await)?;
    let control = client(&settings.server, &token)?;
    let heard = enroll(&kept, &control, &settings).await?.connected;
    Change::all(&changes)?;
    entitle(&settings).await?;
    kept.remember(&settings)?;
    begin(&movers(&settings), &changes, !missing(&settings, &heard).is_empty()).await?;
    let joined = connected(&kept, &control, &settings).await?;
    are_connected(&settings, &joined.connected)?;
    Further::new(settings.clone(), Some(joined)).show(screen);
    Ok(Ending::Done)
}

/// Gives the movers the rights that their hypervisor asks for.
async fn entitle(settings: &Settings) -> Result<(), Trouble> {
    if settings.platform != PlatformName::Libvirt {
        return Ok(());
    }
    let mut fresh = false;
    for role in movers(settings) {
        fresh |= rights::of_libvirt(service(role))?;
    }
    if fresh && !systemctl(&["daemon-reload"]).await? {
        return Err(Trouble::local("systemd does not read its units again", "systemctl daemon-reload failed"));
    }
    Ok(())
}

/// Whether there are services to be set up, and whoever runs this may do it.
async fn are_there() -> Result<(), Trouble> {
    let foreground = "run the roles in this process instead: --foreground --data-dir D";
    if !Path::new("/run/systemd/system").is_dir() {
        return Err(unfit("this host has no services to be set up", "systemd does not run here", foreground));
    }
    if !systemctl(&["cat", "sockeye-process-server.service"]).await? {
        let cause = "the units of the package are not installed";
        return Err(unfit(
            "this host has no services to be set up",
            cause,
            format!("install the package, or {foreground}"),
        ));
    }
    if !rustix::process::geteuid().is_root() {
        let cause = "settings are written below /etc/sockeye, and services are enabled";
        return Err(unfit("only root may set services up", cause, format!("repeat it as root, or {foreground}")));
    }
    Ok(())
}

fn service(role: HostRole) -> &'static str {
    match role {
        HostRole::Control => "sockeye-server",
        HostRole::ProcessServer => "sockeye-process-server",
        HostRole::MasterTarget => "sockeye-master-target",
    }
}

fn movers(settings: &Settings) -> Vec<HostRole> {
    settings.roles.iter().copied().filter(|role| *role != HostRole::Control).collect()
}

/// The roles whose services do not run: their ports have to be free.
async fn idle(settings: &Settings) -> Vec<HostRole> {
    let mut idle = Vec::new();
    for role in &settings.roles {
        if !systemctl(&["is-active", "--quiet", service(*role)]).await.unwrap_or(false) {
            idle.push(*role);
        }
    }
    idle
}

/// What is to be written to the files of settings.
///
/// # Errors
/// Somebody wrote something else there: exit code 3.
fn changes(settings: &Settings) -> Result<Vec<Change>, Trouble> {
    let mut all = Vec::new();
    for role in &settings.roles {
        let file = Path::new(ETC).join(service(*role).replacen("sockeye-", "", 1)).with_extension("env");
        let mut change = Change::of(&file)?;
        match role {
            HostRole::Control => {
                let listen = settings.listens(*role).map_or_else(String::new, |address| format!("--listen {address}"));
                change.set("OPTIONS", &listen, Some("--listen 127.0.0.1:7410"))?;
            }
            HostRole::ProcessServer | HostRole::MasterTarget => {
                change.set("SOCKEYE_SERVER", &settings.server, Some("http://127.0.0.1:7410"))?;
                change.set("OPTIONS", &options(settings, *role), None)?;
            }
        }
        all.push(change);
    }
    Ok(all)
}

/// The options of a mover, as its role takes them.
fn options(settings: &Settings, role: HostRole) -> String {
    let mut options = format!("--site {}", settings.site);
    if let Some(uri) = &settings.libvirt_uri {
        options.push_str(&format!(" --platform libvirt --libvirt-uri {uri}"));
    }
    match settings.listen(role) {
        Some(listen) if listen.advertise == listen.address.to_string() => {
            options.push_str(&format!(" --listen {}", listen.address));
        }
        Some(listen) => options.push_str(&format!(" --listen {} --advertise {}", listen.address, listen.advertise)),
        None if role == HostRole::MasterTarget => options.push_str(" --outbound-only"),
        None => {}
    }
    options
}

/// Enables services and starts them; those that run with settings that were changed are started again, and so are those that
/// control does not hear (`unheard`): they may run with a credential that this host has no longer.
async fn begin(roles: &[HostRole], changes: &[Change], unheard: bool) -> Result<(), Trouble> {
    for role in roles {
        let service = service(*role);
        let changed = changes.iter().any(|change| change.is_of(&service.replacen("sockeye-", "", 1)));
        let way = if changed || unheard { "restart" } else { "start" };
        // A service that failed before its settings were there is given another chance.
        systemctl(&["reset-failed", service]).await?;
        for words in [["enable", "--quiet", service].as_slice(), &[way, service]] {
            if !systemctl(words).await? {
                return Err(silent(service, &format!("systemctl {} failed", words.join(" "))));
            }
        }
    }
    Ok(())
}

fn silent(service: &str, cause: &str) -> Trouble {
    let trouble = Trouble::local(format!("{service} does not run as it should"), cause);
    let remedy = format!("see why: journalctl --unit {service}; then repeat this command");
    Trouble { fault: trouble.fault.with_remedy(remedy), ..trouble }
}

/// A mover that does not come is a failure of this command, and not a surprise later.
fn are_connected(settings: &Settings, connected: &[String]) -> Result<(), Trouble> {
    match missing(settings, connected).as_slice() {
        [] => Ok(()),
        missing => {
            let cause = format!("the control server has not heard of {}", missing.join(", "));
            Err(silent("sockeye-process-server --unit sockeye-master-target", &cause))
        }
    }
}

/// Whether it succeeded.
async fn systemctl(words: &[&str]) -> Result<bool, Trouble> {
    let ran = Command::new("systemctl").args(words).output().await;
    let ran = ran.map_err(|why| Trouble::local("systemctl cannot be run", why))?;
    if !ran.status.success() {
        tracing::debug!(?words, said = %String::from_utf8_lossy(&ran.stderr), "systemctl");
    }
    Ok(ran.status.success())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::{Cli, Verb};
    use clap::Parser;

    #[test]
    fn the_options_of_services_are_those_that_their_roles_take() {
        for line in [
            "sockeye init --site cloud --address 192.0.2.7",
            "sockeye init --site cloud --address 0.0.0.0 --advertise cloud.example",
            "sockeye join http://192.0.2.7:7410 --token t --site home",
            "sockeye join http://192.0.2.7:7410 --token t --site home --platform libvirt --address 198.51.100.4",
        ] {
            let settings = match Cli::parse_from(line.split(' ')).verb {
                Verb::Init(init) => Settings::of_init(&init, None).unwrap(),
                Verb::Join(join) => Settings::of_join(&join).unwrap(),
                other => panic!("{other:?}"),
            };
            for role in movers(&settings) {
                let verb = service(role).replacen("sockeye-", "", 1);
                let line = format!(
                    "sockeye {verb} --join-token-file f --data-dir d --site-dir s {}",
                    options(&settings, role)
                );
                let parsed = Cli::try_parse_from(line.split(' ')).unwrap_or_else(|why| panic!("{line}: {why}"));
                match parsed.verb {
                    Verb::MasterTarget(target) => {
                        assert_eq!(target.outbound_only, settings.address.is_none(), "{line}");
                        assert_eq!(target.mover.platform, settings.platform);
                        assert_eq!(target.advertise, settings.advertise.as_ref().map(|name| format!("{name}:7411")));
                    }
                    Verb::ProcessServer(server) => assert_eq!(server.listen.is_some(), settings.address.is_some()),
                    other => panic!("{other:?}"),
                }
            }
        }
    }
}
