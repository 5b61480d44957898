//! Sites of libvirt as Debian installs it: QEMU runs as a user of its own, the movers under the units' restrictions.
//!
//! ```text
//!   barn: libvirtd, sockeye init ═══ epochs ═══► loft: libvirtd, sockeye join        and home again
//! ```
//! The guest is the tests' own: it says what it finds on its disks, and what it writes.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use super::super::booted::{Booted, Network};
use super::super::clean::{self, inside};
use super::{claim, same};
use crate::target_dir;

const MOVERS: [&str; 2] = ["sockeye-process-server", "sockeye-master-target"];
/// Where the guest's disks, kernel and console are: a place that libvirt's QEMU reaches.
const PLACE: &str = "/var/lib/libvirt/images";

/// Installs libvirt on two machines like `first`, and takes a real guest there and back.
pub(super) fn circle(root: &Path, first: &Path, network: &Network) -> Result<()> {
    let folder = first.parent().context("the machine stands in a folder")?;
    let barn = folder.join("barn");
    clean::twin(first, &barn)?;
    inside(
        &barn,
        "apt-get install --yes --quiet --no-install-recommends libvirt-daemon-system libvirt-clients libvirt-daemon-driver-qemu",
    )?;
    // No device nodes can be made in a container, which libvirt would do for each machine.
    inside(
        &barn,
        "echo 'namespaces = []' >> /etc/libvirt/qemu.conf; echo 'cgroup_controllers = []' >> /etc/libvirt/qemu.conf; systemctl mask libvirt-guests",
    )?;
    let loft = folder.join("loft");
    clean::twin(&barn, &loft)?;
    put_guest(root, &barn)?;
    let (barn, loft) = (Booted::boot(barn, network)?, Booted::boot(loft, network)?);
    services(&barn, &loft)?;
    there_and_back(&barn, &loft)?;
    for machine in [barn, loft] {
        clean::throw_away(&machine.power_off())?;
    }
    Ok(())
}

/// Its kernel, and disks that are written.
fn put_guest(root: &Path, machine: &Path) -> Result<()> {
    let place = machine.join(PLACE.trim_start_matches('/'));
    let built = target_dir(root).join("guest");
    for file in ["vmlinuz", "initrd.img"] {
        std::fs::copy(built.join(file), place.join(file)).with_context(|| format!("{file}: run cargo xtask setup"))?;
    }
    let ledger = target_dir(root).join("debug/ledger");
    let [a, b] = ["a.raw", "b.raw"].map(|name| place.join(name).to_string_lossy().into_owned());
    crate::command::output(
        root,
        &[&ledger.to_string_lossy(), "seed", &a, &b, "--size-mib", "256", "--written-mib", "16"],
    )?;
    for (raw, image) in [(&a, "a.qcow2"), (&b, "b.qcow2")] {
        let image = place.join(image).to_string_lossy().into_owned();
        crate::command::output(root, &["qemu-img", "convert", "-f", "raw", "-O", "qcow2", raw, &image])?;
        std::fs::remove_file(PathBuf::from(raw))?;
    }
    Ok(())
}

fn services(barn: &Booted, loft: &Booted) -> Result<()> {
    claim("init and join with --platform libvirt give the movers the rights that libvirt's QEMU asks for", || {
        for machine in [barn, loft] {
            machine.run("systemctl start libvirtd")?;
            machine.until("virsh list")?;
        }
        let told = barn.run("sockeye init --site barn --address 127.0.0.1 --platform libvirt --output json")?;
        let told: serde_json::Value = serde_json::from_str(&told).with_context(|| told.clone())?;
        let token = told["token"]["token"].as_str().context("it prints no token")?;
        loft.run(&format!("sockeye join http://127.0.0.1:7410 --token {token} --site loft --platform libvirt"))?;
        for machine in [barn, loft] {
            for mover in MOVERS {
                let line = format!(
                    "pid=$(systemctl show -P MainPID {mover}); stat --format %U /proc/$pid; grep CapEff /proc/$pid/status"
                );
                let told = machine.run(&line)?;
                // dac_override, dac_read_search, chown, fowner; nothing else.
                same(&told.split_whitespace().collect::<Vec<_>>().join(" "), "root CapEff: 000000000000000f")?;
            }
        }
        Ok(())
    })
}

fn there_and_back(barn: &Booted, loft: &Booted) -> Result<()> {
    let console = format!("{PLACE}/console.log");
    claim("a machine of libvirt's is protected", || {
        let disk = |name: &str, dev: &str, serial: &str| {
            format!(
                "<disk type=\"file\"><driver name=\"qemu\" type=\"qcow2\"/><source file=\"{PLACE}/{name}\"/>\
                 <target dev=\"{dev}\" bus=\"virtio\"/><serial>{serial}</serial></disk>"
            )
        };
        let xml = format!(
            "<domain type=\"qemu\"><name>web01</name><memory unit=\"MiB\">192</memory><vcpu>1</vcpu><os><type machine=\"pc\">hvm</type>\
             <kernel>{PLACE}/vmlinuz</kernel><initrd>{PLACE}/initrd.img</initrd>\
             <cmdline>console=ttyS0 panic=-1 quiet no_timer_check ledger.rate=50</cmdline></os><features><acpi/></features><devices>{}{}\
             <serial type=\"file\"><source path=\"{console}\" append=\"on\"/></serial></devices></domain>",
            disk("a.qcow2", "vda", "disk0"),
            disk("b.qcow2", "vdb", "disk1")
        );
        barn.run(&format!("echo '{xml}' > /var/tmp/web01.xml; virsh define /var/tmp/web01.xml; virsh start web01"))?;
        barn.until(&format!("grep -q ACK {console}"))?;
        let user = barn.run("stat --format %U /proc/$(cat /run/libvirt/qemu/web01.pid)")?;
        ensure!(user.trim().starts_with("libvirt"), "QEMU runs as {user}, which proves nothing");
        loft.run("mkdir -p /var/lib/sockeye/site/boot")?;
        for file in ["vmlinuz", "initrd.img"] {
            let from = barn.folder.join(PLACE.trim_start_matches('/')).join(file);
            std::fs::copy(from, loft.folder.join("var/lib/sockeye/site/boot").join(file))?;
        }
        barn.run("timeout 120 sockeye protect web01 --from barn --to loft --yes").map(drop)
    })?;
    let raised = "/var/lib/sockeye/site/machines/web01/console.log";
    claim("it fails over as planned, with every record, and movers may be restarted under it", || {
        barn.run("timeout 180 sockeye failover web01 --planned --yes")?;
        let last = barn.run(&format!("grep -a ^BYE {console} | tail -1 | cut -d ' ' -f 2"))?;
        loft.until(&format!("grep -aq ^ACK {raised}"))?;
        found(loft, raised, last.trim())?;
        for machine in [barn, loft] {
            machine.run(&format!("systemctl restart {}", MOVERS.join(" ")))?;
        }
        let line = format!("grep -ac ^ACK {raised}");
        let before: u64 = loft.run(&line)?.trim().parse()?;
        loft.until(&format!("test $({line}) -gt {}", before + 20))?;
        barn.until(r#"test 4 = $(sockeye component list --output json | grep -c "connected.: true")"#)?;
        barn.run("timeout 120 sockeye commit web01 --yes").map(drop)
    })?;
    claim("it comes home tracked, with every record, and gets its own disks back", || {
        barn.run("timeout 180 sockeye reprotect web01 --yes")?;
        let told = barn.run("timeout 180 sockeye failback web01 --complete --yes")?;
        let job = barn.run("sockeye job list --output json")?;
        ensure!(job.contains("\"tracked\""), "{told}\n{job}");
        let last = loft.run(&format!("grep -a ^BYE {raised} | tail -1 | cut -d ' ' -f 2"))?;
        barn.until(&format!("test 1 -lt $(grep -ac ^LEDGER {console})"))?;
        found(barn, &console, last.trim())?;
        barn.run("timeout 120 sockeye commit web01 --yes")?;
        let disks = barn.run("virsh domblklist web01")?;
        ensure!(disks.contains(&format!("{PLACE}/a.qcow2")) && !disks.contains("/var/lib/sockeye"), "{disks}");
        ensure!(loft.run("virsh list --all --name")?.trim().is_empty(), "it is still at loft");
        barn.run("timeout 120 sockeye reverse web01 --yes")?;
        barn.until("sockeye status web01 | grep -q protected").map(drop)
    })
}

/// What the guest found at its last start: all of it, up to that record.
fn found(machine: &Booted, console: &str, highest: &str) -> Result<()> {
    let report = machine.run(&format!("grep -a ^LEDGER {console} | tail -1"))?;
    let is_whole = report.contains("\"consistent\":true") && report.contains(&format!("\"highest\":{highest},"));
    ensure!(!highest.is_empty() && is_whole, "record {highest} was the last, and {report}");
    Ok(())
}
