//! `vm define | start | stop`: the hypervisor's own little tool for a qemu site on this host.
//!
//! A real hypervisor brings its own (virsh, a web page); a qemu site is only a directory, so something has to write a machine
//! into it. These verbs speak with the platform directly and know nothing of items, stages and the control server.

use std::path::Path;
use std::process::Stdio;

use platforms::qemu::Qemu;
use platforms::{Platform, Start, Stopped};
use protocol::fault::code;
use protocol::id::Lineage;
use protocol::machine::{Boot, Connection, DiskFormat, DiskSource, DiskSpec, MachineSpec, NetworkCard, Power};

use crate::cli::{Disk, Then, VmDefine, VmLocal, VmStop, VmVerb};
use crate::ending::{Ending, Trouble};
use crate::show::{Screen, words};

/// Does it.
///
/// # Errors
/// A file does not exist, or the hypervisor refuses.
pub async fn run(screen: Screen, verb: VmVerb) -> Result<Ending, Trouble> {
    match verb {
        VmVerb::Define(define) => self::define(screen, define).await,
        VmVerb::Start(vm) => start(screen, &vm).await,
        VmVerb::Stop(stop) => self::stop(screen, &stop).await,
        VmVerb::List { .. } => Err(Trouble::usage("this verb does not act locally", "it asks the control server")),
    }
}

async fn define(screen: Screen, define: VmDefine) -> Result<Ending, Trouble> {
    let boot = match (&define.kernel, &define.initrd) {
        (Some(kernel), Some(initrd)) => {
            Boot::Kernel { kernel: full(kernel)?, initrd: full(initrd)?, command_line: define.append }
        }
        _ if define.uefi => Boot::Uefi { variables: None },
        _ => Boot::Firmware,
    };
    let mut disks = Vec::new();
    for disk in &define.disks {
        let source = DiskSource::Own { path: full(&disk.path)?, format: disk.format };
        disks.push(DiskSpec { key: disk.key.clone(), size: size(disk).await?, source });
    }
    let (memory_mib, vcpus) = (define.memory, define.vcpus);
    let name = define.name.to_string();
    let cards = define.networks.iter().map(|network| card(network)).collect();
    let spec = MachineSpec { name, memory_mib, vcpus, boot, disks, cards, seed: None, native: Default::default() };
    let qemu = Qemu::open(&define.site_dir)?;
    qemu.define(&spec).await?;
    if define.start {
        qemu.start(&spec.name, Start::default()).await?;
    }
    let disks: Vec<_> = spec.disks.iter().map(|disk| format!("{} {}", disk.key, words::bytes(disk.size))).collect();
    let what = if define.start { "defined and started" } else { "defined" };
    screen.result(&spec, &format!("{} is {what}: {}", spec.name, disks.join(", ")));
    Ok(Ending::Done)
}

/// A card with an address that nobody else has: locally administered, under QEMU's own prefix.
fn card(network: &str) -> NetworkCard {
    let [a, b, c, ..] = uuid::Uuid::new_v4().into_bytes();
    let mac = format!("52:54:00:{a:02x}:{b:02x}:{c:02x}");
    NetworkCard { mac, connection: Connection::Network(network.into()) }
}

async fn start(screen: Screen, vm: &VmLocal) -> Result<Ending, Trouble> {
    let qemu = Qemu::open(&vm.site_dir)?;
    if known(&qemu, &vm.name).await? == Power::Held {
        let fault = protocol::Fault::new(
            code::HYPERVISOR,
            format!("machine {} was not started", vm.name),
            "its guest is off, but its disks are still held, perhaps by a failover that is under way",
        );
        let remedy =
            format!("if none is (sockeye status): sockeye vm stop --site-dir {} {}", vm.site_dir.display(), vm.name);
        return Err(Trouble::new(Ending::Refused, fault.with_remedy(remedy)));
    }
    qemu.start(&vm.name, Start::default()).await?;
    tell(screen, &qemu, &vm.name, "runs").await
}

async fn stop(screen: Screen, stop: &VmStop) -> Result<Ending, Trouble> {
    let (qemu, name) = (Qemu::open(&stop.vm.site_dir)?, &stop.vm.name);
    let before = known(&qemu, name).await?;
    let stopped = match qemu.shut_down(name, stop.shut_down_timeout).await {
        Err(fault) if fault.is(code::GUEST_IGNORES_SHUTDOWN) && stop.then == Some(Then::PowerOff) => {
            qemu.power_off(name).await?
        }
        stopped => stopped?,
    };
    if before != Power::Off {
        // No lineage is meant: what the disks themselves keep stays, and QEMU lets go of them.
        qemu.settle(name, Lineage(uuid::Uuid::nil())).await?;
    }
    let how = match stopped {
        Stopped::ByGuest => "has shut down",
        Stopped::PoweredOff => "was powered off",
        Stopped::WasOff => "was off already",
    };
    tell(screen, &qemu, name, how).await
}

async fn known(qemu: &Qemu, name: &str) -> Result<Power, Trouble> {
    match qemu.machine(name).await? {
        Some(machine) => Ok(machine.power),
        None => {
            let fault = protocol::Fault::new(
                code::MACHINE_ABSENT,
                format!("there is no machine {name}"),
                "the site has none of that name",
            );
            Err(Trouble::new(Ending::Refused, fault))
        }
    }
}

async fn tell(screen: Screen, qemu: &Qemu, name: &str, how: &str) -> Result<Ending, Trouble> {
    screen.result(&qemu.machine(name).await?, &format!("{name} {how}"));
    Ok(Ending::Done)
}

/// The path from the root, since the site's processes run elsewhere.
fn full(path: &Path) -> Result<String, Trouble> {
    let found = std::fs::canonicalize(path);
    let found = found.map_err(|why| Trouble::local(format!("{} cannot be used", path.display()), why))?;
    found
        .into_os_string()
        .into_string()
        .map_err(|path| Trouble::usage(format!("{path:?} cannot be used"), "the path is no UTF-8"))
}

/// The size that the guest will see, as `qemu-img` tells it.
async fn size(disk: &Disk) -> Result<u64, Trouble> {
    let format = match disk.format {
        DiskFormat::Raw => "raw",
        DiskFormat::Qcow2 => "qcow2",
    };
    let wrong = |why: String| Trouble::local(format!("{} is no usable {format} image", disk.path.display()), why);
    let mut command = tokio::process::Command::new("qemu-img");
    command.args(["info", "-U", "--output=json", "-f", format]).arg(&disk.path).stdin(Stdio::null()).kill_on_drop(true);
    let output = command.output().await.map_err(|why| wrong(format!("qemu-img cannot be run: {why}")))?;
    if !output.status.success() {
        return Err(wrong(String::from_utf8_lossy(&output.stderr).trim().to_string()));
    }
    let info: serde_json::Value = serde_json::from_slice(&output.stdout).map_err(|why| wrong(why.to_string()))?;
    info["virtual-size"].as_u64().filter(|size| *size > 0).ok_or_else(|| wrong("it has no size".into()))
}
