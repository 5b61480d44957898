//! What apt put on the machine, before anything of it runs.

use std::path::Path;

use anyhow::{Context, Result, ensure};

use super::super::clean::inside;
use super::{claim, same};

/// Who owns what, and who may do what with it.
const PLACES: [(&str, &str); 9] = [
    ("/usr/bin/sockeye", "755 root root"),
    ("/etc/sockeye", "755 root root"),
    ("/etc/sockeye/server.env", "644 root root"),
    ("/usr/lib/systemd/system/sockeye-server.service", "644 root root"),
    ("/var/lib/sockeye", "755 root root"),
    ("/var/lib/sockeye/server", "700 sockeye sockeye"),
    ("/var/lib/sockeye/site", "700 sockeye-site sockeye-site"),
    ("/var/lib/sockeye/process-server", "700 sockeye-site sockeye-site"),
    ("/var/lib/sockeye/master-target", "700 sockeye-site sockeye-site"),
];
/// What shells look for.
const COMPLETIONS: [&str; 3] = [
    "/usr/share/bash-completion/completions/sockeye",
    "/usr/share/zsh/vendor-completions/_sockeye",
    "/usr/share/fish/vendor_completions.d/sockeye.fish",
];
/// The services, each with the most that `systemd-analyze security` may have against it (0 is best, 10 worst).
const UNITS: [(&str, f32); 3] =
    [("sockeye-server", 1.5), ("sockeye-process-server", 2.5), ("sockeye-master-target", 2.5)];

/// With what it says that it depends on, and nothing else.
pub(super) fn alone(machine: &Path) -> Result<()> {
    claim("apt installs it with what it depends on, and it runs without QEMU", || {
        inside(machine, "apt-get install --yes --quiet --no-install-recommends /sockeye.deb")?;
        let version = inside(machine, "sockeye --version")?;
        same(&version, &format!("sockeye {}", env!("CARGO_PKG_VERSION")))?;
        ensure!(inside(machine, "command -v qemu-system-x86_64").is_err(), "QEMU was there or came with it");
        Ok(())
    })
}

/// With what it recommends, and an init to boot.
pub(super) fn complete(machine: &Path) -> Result<()> {
    let more = "apt-get install --yes --quiet --no-install-recommends systemd-sysv qemu-system-x86 qemu-utils man-db bash-completion";
    inside(machine, more)?;
    claim("man finds its pages, bash its completion, and those of zsh and fish are in place", || {
        for page in ["sockeye", "sockeye-failback", "sockeye-component-list"] {
            same(&inside(machine, &format!("man --where {page}"))?, &format!("/usr/share/man/man1/{page}.1.gz"))?;
        }
        let text = inside(machine, "man sockeye-failback | cat")?;
        ensure!(text.contains("--max-downtime"), "the page of failback says {text}");
        for place in COMPLETIONS {
            inside(machine, &format!("test -s {place}"))?;
        }
        let bash = ". /usr/share/bash-completion/bash_completion; _completion_loader sockeye; complete -p sockeye";
        ensure!(inside(machine, &format!("bash -c '{bash}'"))?.contains("_sockeye"), "bash does not find it");
        Ok(())
    })?;
    claim("every place has its owner and its mode", || {
        for (place, rights) in PLACES {
            let is = inside(machine, &format!("stat --format '%a %U %G' {place}"))?;
            same(&is, rights).with_context(|| place.to_string())?;
        }
        ensure!(inside(machine, "id sockeye-site")?.contains("(kvm)"), "machines cannot use KVM");
        ensure!(!inside(machine, "id sockeye")?.contains("(kvm)"), "the control server can use KVM");
        Ok(())
    })?;
    claim("no service is enabled", || {
        for (unit, _) in UNITS {
            same(&inside(machine, &format!("systemctl is-enabled {unit} || true"))?, "disabled")?;
        }
        Ok(())
    })?;
    claim("systemd finds nothing wrong with the units", || {
        let units = UNITS.map(|(unit, _)| format!("/usr/lib/systemd/system/{unit}.service")).join(" ");
        same(&inside(machine, &format!("systemd-analyze verify --man=no {units} 2>&1"))?, "")
    })?;
    for (unit, most) in UNITS {
        let lines = format!("systemd-analyze security --offline=true --no-pager {unit}.service");
        let lines = inside(machine, &lines)?;
        let words = lines.lines().last().and_then(|line| line.split(": ").nth(1)).unwrap_or_default();
        let exposure: f32 = words.split(' ').next().unwrap_or_default().parse().context("no figure")?;
        claim(&format!("{unit} is exposed {exposure} of 10, at most {most}"), || {
            ensure!(exposure <= most, "{lines}");
            Ok(())
        })?;
    }
    Ok(())
}
