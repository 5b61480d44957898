//! The services as they run: who they are, what they may do, and that this is enough for a machine to go over.

use std::fs;

use anyhow::{Context, Result, ensure};

use super::super::booted::Booted;
use super::{claim, same};

const PROCESS_SERVER: &str = "sockeye-process-server";
const MASTER_TARGET: &str = "sockeye-master-target";
/// All four movers are known and live.
const ALL_CONNECTED: &str = r#"test 4 = $(sockeye component list --output json | grep -c "connected.: true")"#;
/// A machine's disk, in MiB; half of it is written.
const DISK_MIB: u32 = 64;

/// The control server and the movers of one machine, and those of the other, which joins it.
pub(super) fn services(home: &Booted, cloud: &Booted) -> Result<()> {
    claim(
        "a mover that has not joined does not start, and one without a site says so and is not started again",
        || {
            ensure!(home.run(&format!("systemctl start {PROCESS_SERVER}")).is_err(), "it starts without a token");
            home.run(&format!("systemctl is-failed {PROCESS_SERVER}"))?;
            home.run("echo nobodys > /etc/sockeye/join.token; chmod 600 /etc/sockeye/join.token")?;
            home.run(&format!("systemctl reset-failed {PROCESS_SERVER}; systemctl start {PROCESS_SERVER} || true"))?;
            home.until(&format!("systemctl is-failed {PROCESS_SERVER}"))?;
            same(&home.run(&format!("systemctl show -P ExecMainStatus {PROCESS_SERVER}"))?, "2")?;
            same(&home.run(&format!("systemctl show -P NRestarts {PROCESS_SERVER}"))?, "0")?;
            let said = home.run(&format!("journalctl --unit {PROCESS_SERVER}"))?;
            ensure!(said.contains("--site"), "it does not say what is missing");
            home.run("rm /etc/sockeye/join.token").map(drop)
        },
    )?;
    let mut token = String::new();
    claim("init makes the first machine: control server and movers, with no capability and under a filter", || {
        token = first(home)?;
        restricted(home, "$(systemctl show -P MainPID sockeye-server)", "sockeye")
    })?;
    claim("init can be repeated, and overwrites nothing that differs", || {
        first(home)?;
        let other = home.run("sockeye init --site paris --address 127.0.0.1 2>&1 || echo code $?")?;
        ensure!(other.contains("CLI-008") && other.ends_with("code 3"), "{other}");
        home.run("grep -q '^OPTIONS=--site home' /etc/sockeye/process-server.env").map(drop)
    })?;
    claim("join makes the other, and can be repeated; the token is good for no third", || {
        let join = format!("sockeye join http://127.0.0.1:7410 --token {token} --site cloud");
        cloud.run(&join)?;
        cloud.run(&join)?;
        same(&cloud.run("stat --format '%a %U' /etc/sockeye/join.token")?, "600 root")?;
        let third = format!("{join} --foreground --data-dir /tmp/third 2>&1 || echo code $?");
        let third = cloud.run(&third)?;
        ensure!(third.contains("CTL-024") && third.ends_with("code 3"), "{third}");
        home.run(ALL_CONNECTED).map(drop)
    })?;
    claim("a host that is put out is out, and comes again with a new token", || {
        let credential = r#"$(sockeye token list | awk '$2 == "host" && $3 == "cloud" { print $1 }')"#;
        home.run(&format!("sockeye token remove {credential} --yes --reason trial"))?;
        home.until(r#"test 2 = $(sockeye component list --output json | grep -c "connected.: true")"#)?;
        let join = "sockeye join http://127.0.0.1:7410 --site cloud --token";
        let put_out = cloud.run(&format!("{join} {token} 2>&1 || echo code $?"))?;
        ensure!(put_out.contains("CTL-026") && put_out.ends_with("code 3"), "{put_out}");
        let again = home.run("sockeye token add --site cloud --yes --output json")?;
        let again: serde_json::Value = serde_json::from_str(&again).with_context(|| again.clone())?;
        cloud.run(&format!("{join} {}", again["token"].as_str().unwrap_or_default()))?;
        home.run(ALL_CONNECTED).map(drop)
    })?;
    claim("movers have no capability either", || {
        for (machine, unit) in
            [(home, PROCESS_SERVER), (home, MASTER_TARGET), (cloud, PROCESS_SERVER), (cloud, MASTER_TARGET)]
        {
            restricted(machine, &format!("$(systemctl show -P MainPID {unit})"), "sockeye-site")?;
            machine.run(&format!("systemctl is-enabled {unit}"))?;
        }
        Ok(())
    })
}

/// The first machine; gives the token with which another joins.
fn first(home: &Booted) -> Result<String> {
    let told = home.run("sockeye init --site home --address 127.0.0.1 --output json")?;
    let told: serde_json::Value = serde_json::from_str(&told).with_context(|| told.clone())?;
    Ok(told["token"]["token"].as_str().context("it prints no token")?.to_string())
}

/// A machine is protected, tried, and moved; services come and go under it.
pub(super) fn circle(home: &Booted, cloud: &Booted) -> Result<()> {
    let image = "/var/lib/sockeye/site/web01.raw";
    claim("a machine at home is protected, and its replica is the same to the byte", || {
        let half = DISK_MIB / 2;
        home.run(&format!(
            "runuser -u sockeye-site -- sh -ec 'head -c {half}M /dev/urandom > {image}; truncate -s {DISK_MIB}M {image}
             sockeye vm define --site-dir /var/lib/sockeye/site --name web01 --disk disk0={image} --start'"
        ))?;
        home.until("sockeye vm list | grep -q web01")?;
        home.run("timeout 120 sockeye protect web01 --from home --to cloud --yes")?;
        let replica = cloud.folder.join("var/lib/sockeye/master-target/replicas/web01/disk0.raw");
        let (there, here) = (fs::read(replica)?, fs::read(home.folder.join(image.trim_start_matches('/')))?);
        ensure!(here.len() == DISK_MIB as usize * (1 << 20) && here.iter().any(|byte| *byte != 0), "there is no disk");
        ensure!(there == here, "the replica differs");
        Ok(())
    })?;
    let tested = running("web01-test");
    claim("a test failover starts a machine inside the master target's restrictions", || {
        home.run("timeout 120 sockeye failover web01 --test --yes")?;
        restricted(cloud, &format!("$({tested})"), "sockeye-site")
    })?;
    claim("movers are stopped and started, and the machines never notice", || {
        let (here, there) = (home.run(&running("web01"))?, cloud.run(&tested)?);
        for machine in [home, cloud] {
            machine.run(&format!("systemctl restart {PROCESS_SERVER} {MASTER_TARGET}"))?;
        }
        same(&home.run(&format!("{}; kill -0 {here}", running("web01")))?, &here)?;
        same(&cloud.run(&format!("{tested}; kill -0 {there}"))?, &there)?;
        home.until(ALL_CONNECTED)?;
        home.run("timeout 120 sockeye cleanup web01 --yes").map(drop)
    })?;
    claim("a planned failover moves the machine, and a commit makes it final", || {
        home.run("timeout 120 sockeye failover web01 --planned --shut-down-timeout 2s --then power-off --yes")?;
        restricted(cloud, &format!("$({})", running("web01")), "sockeye-site")?;
        ensure!(home.run(&format!("kill -0 $({})", running("web01"))).is_err(), "it runs at home, too");
        home.run("timeout 120 sockeye commit web01 --yes")?;
        let status = home.run("sockeye status web01")?;
        ensure!(status.contains("NOT PROTECTED"), "{status}");
        Ok(())
    })
}

/// A command that says the process id of a machine's QEMU.
pub(super) fn running(name: &str) -> String {
    format!("cat /var/lib/sockeye/site/machines/{name}/pid")
}

/// The process belongs to `user`, has no capability and gets none, and not every system call.
fn restricted(machine: &Booted, process: &str, user: &str) -> Result<()> {
    let status = machine.run(&format!("pid={process}; stat --format %U /proc/$pid; cat /proc/$pid/status"))?;
    same(status.lines().next().unwrap_or_default(), user)?;
    for (key, value) in
        [("CapEff", "0000000000000000"), ("CapBnd", "0000000000000000"), ("NoNewPrivs", "1"), ("Seccomp", "2")]
    {
        let told = status.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':')).unwrap_or_default();
        same(told, value).map_err(|why| why.context(key))?;
    }
    Ok(())
}
