//! The package replaced by itself, removed, and purged, while a machine runs.

use anyhow::{Result, ensure};

use super::super::booted::Booted;
use super::used::running;
use super::{claim, same};

/// On the machine where web01 runs by now.
pub(super) fn removed(machine: &Booted) -> Result<()> {
    let web01 = machine.run(&running("web01"))?;
    let main = |unit: &str| machine.run(&format!("systemctl show -P MainPID {unit}"));
    let target = "sockeye-master-target";
    claim("an upgrade restarts what runs, starts nothing else, keeps settings, and leaves machines alone", || {
        let before = main(target)?;
        machine.run("apt-get install --yes --quiet --reinstall /sockeye.deb")?;
        machine.run(&format!("systemctl is-active {target}"))?;
        ensure!(main(target)? != before, "the old program runs on");
        same(&main("sockeye-server")?, "0")?;
        machine.run("grep -q '^OPTIONS=--site cloud' /etc/sockeye/master-target.env")?;
        machine.run(&format!("kill -0 {web01}")).map(drop)
    })?;
    claim("removing stops the role and keeps its settings; the machine runs on", || {
        machine.run("apt-get remove --yes --quiet sockeye")?;
        ensure!(machine.run(&format!("systemctl is-active {target}")).is_err(), "it runs");
        machine.run("test ! -e /usr/bin/sockeye && test -s /etc/sockeye/master-target.env")?;
        same(&machine.run("find /etc/systemd -name 'sockeye*'")?, "")?;
        machine.run(&format!("kill -0 {web01}")).map(drop)
    })?;
    claim("purging takes the settings, says what it leaves, and leaves replicas and users", || {
        let said = machine.run("apt-get purge --yes --quiet sockeye")?;
        ensure!(said.contains("left as it is") && said.contains("master-target"), "it says {said}");
        machine.run("test ! -e /etc/sockeye && test -s /var/lib/sockeye/master-target/replicas/web01/disk0.raw")?;
        machine.run("test ! -e /var/lib/sockeye/server && id sockeye-site")?;
        machine.run(&format!("kill -0 {web01}"))?;
        let left = machine.run("find / -xdev -name '*sockeye*' -not -path '/var/lib/sockeye*' -not -path '/proc/*' -not -path '/var/cache/*'")?;
        same(&left, "/sockeye.deb")
    })
}
