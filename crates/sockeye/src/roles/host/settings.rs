//! What a host is: what `init` or `join` was told, in the form in which it is kept and compared.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use component::Listen;
use protocol::id::SiteName;
use serde::{Deserialize, Serialize};

use super::ports;
use crate::cli::{self, HostRole, PlatformName};
use crate::ending::Trouble;
use crate::profile;

/// What a host is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Settings {
    /// The control server, as it is reached from this host.
    pub server: String,
    /// Its site.
    pub site: SiteName,
    /// What it does.
    pub roles: BTreeSet<HostRole>,
    /// The site's hypervisor.
    pub platform: PlatformName,
    /// Where libvirt is reached, on such a site.
    pub libvirt_uri: Option<String>,
    /// Where it listens; none for a host that is never dialled.
    pub address: Option<IpAddr>,
    /// By what others reach it, where that is not the address.
    pub advertise: Option<String>,
    /// The first of its three ports.
    pub port: u16,
}

impl Settings {
    /// Those of the first host. `before` are those that it has.
    pub(super) fn of_init(init: &cli::Init, before: Option<&Settings>) -> Result<Settings, Trouble> {
        let roles: BTreeSet<_> = init.roles.iter().copied().collect();
        if !roles.contains(&HostRole::Control) {
            return Err(Trouble::usage(
                "the first host of a system has the control server",
                "--roles has to name control; a host without it joins: sockeye join",
            ));
        }
        let address = match init.address.or_else(|| before.and_then(|before| before.address)) {
            Some(address) => address,
            None => ports::outward()?,
        };
        let mut settings = Settings::of(&init.host, init.site.clone(), roles, Some(address))?;
        let local = if address.is_unspecified() { ports::loopback(address) } else { address };
        settings.server = format!("http://{}", SocketAddr::new(local, init.host.port));
        Ok(settings)
    }

    /// Those of a host that joins.
    pub(super) fn of_join(join: &cli::Join) -> Result<Settings, Trouble> {
        let roles: BTreeSet<_> = join.roles.iter().copied().collect();
        if roles.contains(&HostRole::Control) {
            return Err(Trouble::usage(
                "a host that joins has no control server of its own",
                "--roles may name process-server and master-target; the first host is made by: sockeye init",
            ));
        }
        let mut settings = Settings::of(&join.host, join.site.clone(), roles, join.address)?;
        settings.server = profile::tidy(&join.url)?;
        Ok(settings)
    }

    fn of(
        host: &cli::Host,
        site: SiteName,
        roles: BTreeSet<HostRole>,
        address: Option<IpAddr>,
    ) -> Result<Settings, Trouble> {
        let advertise = host.advertise.clone();
        let cause = match (address, &advertise) {
            (None, Some(_)) => "--advertise names a host that is never dialled: give --address, too",
            (Some(address), None) if address.is_unspecified() => "--address names no host: give --advertise, too",
            (_, Some(name)) if name.contains(['/', ' ', ':', '@']) || name.is_empty() => {
                "--advertise takes a name or an address, without a port"
            }
            _ => "",
        };
        if !cause.is_empty() {
            return Err(Trouble::usage("it is not known where others reach this host", cause));
        }
        if host.port == 0 && !host.foreground {
            return Err(Trouble::usage(
                "services need ports that stay",
                "--port 0 (any that are free) is for --foreground",
            ));
        }
        let libvirt_uri = (host.platform == PlatformName::Libvirt).then(|| host.libvirt_uri.clone());
        if libvirt_uri.as_ref().is_some_and(|uri| uri.contains(char::is_whitespace)) {
            return Err(Trouble::usage("that is no place of libvirt's", "--libvirt-uri has no spaces in it"));
        }
        let (platform, port) = (host.platform, host.port);
        Ok(Settings { server: String::new(), site, roles, platform, libvirt_uri, address, advertise, port })
    }

    /// Whether it has that role.
    pub(super) fn has(&self, role: HostRole) -> bool {
        self.roles.contains(&role)
    }

    /// The names of its components.
    pub(super) fn components(&self) -> Vec<String> {
        let named = [(HostRole::ProcessServer, "process-server"), (HostRole::MasterTarget, "master-target")];
        let named = named.iter().filter(|(role, _)| self.has(*role));
        named.map(|(_, name)| format!("{}-{name}", self.site)).collect()
    }

    /// Where a role listens, if it does.
    pub(super) fn listens(&self, role: HostRole) -> Option<SocketAddr> {
        let place = match role {
            HostRole::Control => 0,
            HostRole::MasterTarget => 1,
            HostRole::ProcessServer => 2,
        };
        // With port 0 each gets one that is free.
        let port = if self.port == 0 { 0 } else { self.port.saturating_add(place) };
        self.address.filter(|_| self.has(role)).map(|address| SocketAddr::new(address, port))
    }

    /// What others dial to reach a port of this host.
    pub(super) fn dialled(&self, port: u16) -> Option<String> {
        let address = self.address?;
        let named = self.advertise.as_ref().map(|name| format!("{name}:{port}"));
        Some(named.unwrap_or_else(|| SocketAddr::new(address, port).to_string()))
    }

    /// The same for a role that is a mover.
    pub(super) fn listen(&self, role: HostRole) -> Option<Listen> {
        let address = self.listens(role)?;
        Some(Listen { address, advertise: self.dialled(address.port())? })
    }

    /// How these differ from others, one line each.
    pub(super) fn differences(&self, there: &Settings) -> Vec<String> {
        let fields = |settings| match serde_json::to_value(settings) {
            Ok(serde_json::Value::Object(fields)) => fields,
            _ => serde_json::Map::new(),
        };
        let (wanted, there) = (fields(self), fields(there));
        let differing = wanted.iter().filter(|(name, value)| there.get(*name) != Some(value));
        differing
            .map(|(name, value)| {
                let is = there.get(name).map_or_else(|| "none".into(), ToString::to_string);
                format!("{name} is {is} and not {value}")
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::{Cli, Verb};
    use clap::Parser;

    fn typed(line: &str) -> Result<Settings, Trouble> {
        match Cli::parse_from(line.split(' ')).verb {
            Verb::Init(init) => Settings::of_init(&init, None),
            Verb::Join(join) => Settings::of_join(&join),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_first_host_listens_and_one_that_joins_does_not() {
        let first = typed("sockeye init --site cloud --address 192.0.2.7").unwrap();
        assert_eq!(first.server, "http://192.0.2.7:7410");
        let at = |role| first.listen(role).map(|listen| listen.advertise);
        assert_eq!(at(HostRole::MasterTarget).as_deref(), Some("192.0.2.7:7411"));
        assert_eq!(at(HostRole::ProcessServer).as_deref(), Some("192.0.2.7:7412"));
        let joined = typed("sockeye join http://192.0.2.7:7410/ --token t --site home").unwrap();
        assert_eq!(joined.server, "http://192.0.2.7:7410");
        assert!(joined.listen(HostRole::MasterTarget).is_none() && joined.listen(HostRole::ProcessServer).is_none());
        assert_eq!(joined.components(), ["home-process-server", "home-master-target"]);
        let named = typed("sockeye join http://a:1 --token t --site home --address 0.0.0.0 --advertise h.example");
        let named = named.unwrap().listen(HostRole::MasterTarget).unwrap();
        assert_eq!((named.address.to_string().as_str(), named.advertise.as_str()), ("0.0.0.0:7411", "h.example:7411"));
    }

    #[test]
    fn what_cannot_be_is_said_before_anything_is_done() {
        for line in [
            "sockeye init --site cloud --address 192.0.2.7 --roles process-server",
            "sockeye init --site cloud --address 0.0.0.0",
            "sockeye init --site cloud --address 192.0.2.7 --advertise a:1",
            "sockeye join http://a:1 --token t --site home --roles control",
            "sockeye join https://a:1 --token t --site home",
            "sockeye join http://a:1 --token t --site home --advertise h.example",
            "sockeye join http://a:1 --token t --site home --address 192.0.2.7 --port 0",
        ] {
            assert_eq!(typed(line).unwrap_err().ending, crate::ending::Ending::Usage, "{line}");
        }
    }

    #[test]
    fn settings_are_kept_as_text_and_say_how_they_differ() {
        let first = typed("sockeye init --site cloud --address 192.0.2.7 --platform libvirt").unwrap();
        let kept: Settings = toml::from_str(&toml::to_string(&first).unwrap()).unwrap();
        assert_eq!(kept, first);
        assert!(first.differences(&kept).is_empty());
        let other = typed("sockeye init --site paris --address 192.0.2.7 --platform libvirt").unwrap();
        assert_eq!(other.differences(&first), [r#"site is "cloud" and not "paris""#]);
    }
}
