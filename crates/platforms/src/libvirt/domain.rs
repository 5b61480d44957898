//! A machine's description and libvirt's XML for it, in both directions.
//!
//! ```text
//!   XML ─► description    disks by serial number, else by target; the XML itself goes along, verbatim
//!   description ─► XML    on top of the XML that went along, or of what stands at the site, else of a plain machine
//! ```
//! # Always true
//! - What the description does not speak of stays as it was in the XML it is written on.

use std::path::Path;

use nbd::Uri;
use protocol::DiskKey;
use protocol::machine::{Boot, Connection, DiskFormat, DiskSource, DiskSpec, MachineSpec, NetworkCard};
use xmltree::Element;

use super::document::Document;
use super::relay;
use crate::guest::seed;
use crate::host::folder::Folder;
use crate::host::image;

/// The platform's name, under which a description carries its XML.
pub(crate) const NAME: &str = "libvirt";
/// The network that every libvirt has: behind the host's own address.
pub(crate) const USER: &str = "user";
/// What a bridge of the host is called as a network.
pub(crate) const BRIDGE: &str = "bridge:";

/// One disk as the XML names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Target {
    pub key: DiskKey,
    /// `vda`: what libvirt calls it.
    pub dev: String,
}

/// The disks of a machine, in the order of the XML, without CD-ROMs and floppies.
pub(crate) fn targets(domain: &Element) -> Result<Vec<Target>, String> {
    disks(domain).map(target).collect()
}

fn disks(domain: &Element) -> impl Iterator<Item = &Element> {
    let devices = domain.at(&["devices"]).into_iter();
    devices.flat_map(|devices| devices.all("disk")).filter(|disk| is_disk(disk))
}

fn is_disk(disk: &Element) -> bool {
    matches!(disk.has("device"), None | Some("disk" | "lun")) && !is_seed(disk)
}

/// Whether it is what a guest reads about its network: no disk of its own.
fn is_seed(disk: &Element) -> bool {
    disk.text_at(&["serial"]).as_deref() == Some(seed::SERIAL)
}

/// Takes the seed out of a machine's devices; whether there was one.
pub(crate) fn without_seed(devices: &mut Element) -> bool {
    let disks: Vec<Element> = devices.all("disk").cloned().collect();
    if !disks.iter().any(is_seed) {
        return false;
    }
    devices.rid("disk");
    disks.into_iter().filter(|disk| !is_seed(disk)).for_each(|disk| devices.add(disk));
    true
}

/// Gives a machine its seed: on the bus of its first disk, for which its guest has a driver, behind all others.
fn add_seed(folder: &Folder, devices: &mut Element) -> Result<(), String> {
    let disks: Vec<&Element> = devices.all("disk").collect();
    let first = disks.iter().find(|disk| is_disk(disk));
    let bus = first.and_then(|disk| disk.has_at(&["target"], "bus")).unwrap_or("virtio").to_string();
    let names = match bus.as_str() {
        "virtio" => "vd",
        "ide" => "hd",
        _ => "sd",
    };
    let taken: Vec<&str> = disks.iter().filter_map(|disk| disk.has_at(&["target"], "dev")).collect();
    let mut free = ('a'..='z').map(|letter| format!("{names}{letter}")).filter(|dev| !taken.contains(&dev.as_str()));
    let dev = free.next().ok_or("there is no place for its seed behind its disks")?;
    let mut disk = Element::new("disk");
    disk.set("type", "file").set("device", "disk");
    disk.child("driver").set("name", "qemu").set("type", "raw");
    disk.child("source").set("file", seed::path(folder).display());
    disk.child("target").set("dev", dev).set("bus", bus);
    disk.child("serial").say(seed::SERIAL);
    disk.child("readonly");
    devices.add(disk);
    Ok(())
}

fn target(disk: &Element) -> Result<Target, String> {
    let dev = disk.has_at(&["target"], "dev").ok_or("a disk has no target")?;
    let key = disk.text_at(&["serial"]).and_then(|serial| serial.parse().ok());
    let key = key.map_or_else(|| dev.parse().map_err(|_| format!("a disk cannot be called {dev:?}")), Ok)?;
    Ok(Target { key, dev: dev.into() })
}

/// What the machine's XML says, with the size of each disk as `size` tells it.
pub(crate) fn described(
    folder: &Folder,
    domain: &Element,
    size: impl Fn(&Target) -> Result<u64, String>,
) -> Result<MachineSpec, String> {
    let disk = |element: &Element| {
        let target = target(element)?;
        Ok(DiskSpec { size: size(&target)?, source: source(folder, element)?, key: target.key })
    };
    let number = |name: &str| domain.text_at(&[name]).and_then(|text| text.parse::<u64>().ok());
    let memory_mib = number("memory").zip(domain.at(&["memory"])).map(|(count, memory)| mib(count, memory.has("unit")));
    let boot = match domain.text_at(&["os", "kernel"]) {
        Some(kernel) => Boot::Kernel {
            kernel,
            initrd: domain.text_at(&["os", "initrd"]).unwrap_or_default(),
            command_line: domain.text_at(&["os", "cmdline"]).unwrap_or_default(),
        },
        None if is_uefi(domain) => Boot::Uefi { variables: None },
        None => Boot::Firmware,
    };
    let devices = domain.at(&["devices"]).into_iter();
    Ok(MachineSpec {
        name: folder.name().into(),
        memory_mib: memory_mib.ok_or("its memory is not told")?,
        vcpus: number("vcpu").and_then(|count| count.try_into().ok()).unwrap_or(1),
        boot,
        disks: disks(domain).map(disk).collect::<Result<_, String>>()?,
        cards: devices.flat_map(|devices| devices.all("interface")).filter_map(card).collect(),
        seed: None,
        native: [(NAME.to_string(), domain.written().into())].into(),
    })
}

fn is_uefi(domain: &Element) -> bool {
    domain.has_at(&["os"], "firmware") == Some("efi") || domain.has_at(&["os", "loader"], "type") == Some("pflash")
}

/// Where the machine's firmware keeps its variables. An XML that leaves the file to libvirt names it only while it runs.
pub(crate) fn nvram(domain: &Element) -> Option<String> {
    domain.text_at(&["os", "nvram"]).filter(|path| !path.is_empty())
}

/// An amount of memory in MiB.
fn mib(count: u64, unit: Option<&str>) -> u64 {
    let bytes = match unit.unwrap_or("KiB") {
        "b" | "bytes" => 1,
        "KB" => 1000,
        "MB" => 1_000_000,
        "GB" => 1_000_000_000,
        "M" | "MiB" => 1 << 20,
        "G" | "GiB" => 1 << 30,
        "T" | "TiB" => 1 << 40,
        _ => 1 << 10,
    };
    count.saturating_mul(bytes) >> 20
}

fn source(folder: &Folder, disk: &Element) -> Result<DiskSource, String> {
    let from = disk.at(&["source"]).ok_or("a disk has no source")?;
    let path = from.has("file").or(from.has("dev")).map(String::from);
    let path = path.or_else(|| Some(format!("{}:{}", from.has("protocol")?, from.has("name")?)));
    let path = path.or_else(|| Some(format!("{}/{}", from.has("pool")?, from.has("volume")?)));
    let path = path.ok_or("a disk's source is of a kind that is not known")?;
    // Ours is what stands on a server of ours.
    let key = target(disk)?.key;
    let server = disk.has_at(&["backingStore", "source", "host"], "socket").map(Path::new);
    if server != Some(&relay::socket(folder, &key)) {
        return Ok(DiskSource::Own { path, format: format(disk.has_at(&["driver"], "type")) });
    }
    let overlay = Path::new(&path)
        .strip_prefix(folder.overlay_path(""))
        .map_or(path.clone(), |name| name.to_string_lossy().into());
    let noted = relay::noted(folder).map_err(|fault| fault.cause)?.remove(&key);
    let beneath = noted.ok_or_else(|| format!("nobody noted what disk {key} stands on"))?;
    Ok(beneath.under(overlay))
}

fn format(word: Option<&str>) -> DiskFormat {
    if word == Some("qcow2") { DiskFormat::Qcow2 } else { DiskFormat::Raw }
}

fn card(interface: &Element) -> Option<NetworkCard> {
    let mac = interface.has_at(&["mac"], "address")?.to_string();
    let is_down = interface.has_at(&["link"], "state") == Some("down");
    let connection = match interface.has("type") {
        _ if is_down => Connection::Nothing,
        Some("network") => Connection::Network(interface.has_at(&["source"], "network")?.into()),
        Some("bridge") => Connection::Network(format!("{BRIDGE}{}", interface.has_at(&["source"], "bridge")?)),
        Some(other) => Connection::Network(other.into()),
        None => Connection::Nothing,
    };
    Some(NetworkCard { mac, connection })
}

/// What a machine's XML is written on.
pub(crate) enum Base {
    /// The machine as it stands at this site: a disk that the description leaves out stays as it is.
    Here(Element),
    /// The machine as it was at another site: a disk that the description leaves out is not here.
    Elsewhere(Element),
    /// Nothing is known; it will run under this accelerator.
    Nothing(&'static str),
}

/// The XML of a machine: `base` changed to what the description says.
pub(crate) fn written(folder: &Folder, spec: &MachineSpec, base: Base) -> Result<Element, String> {
    let (mut domain, keeps) = match base {
        Base::Here(domain) => (domain, true),
        Base::Elsewhere(mut domain) => {
            leave_behind(folder, &mut domain);
            (domain, false)
        }
        Base::Nothing(accelerator) => (plain(folder, accelerator), false),
    };
    domain.child("name").say(&spec.name);
    domain.fresh("memory").set("unit", "MiB").say(spec.memory_mib);
    domain.rid("currentMemory");
    if domain.text_at(&["vcpu"]).as_deref() != Some(&spec.vcpus.to_string()) {
        // Numbers of processors by socket, core and thread would contradict it.
        domain.fresh("vcpu").say(spec.vcpus);
        domain.child("cpu").rid("topology");
    }
    let os = domain.child("os");
    ["kernel", "initrd", "cmdline"].into_iter().for_each(|name| os.rid(name));
    if let Boot::Kernel { kernel, initrd, command_line } = &spec.boot {
        os.child("kernel").say(folder.boot_path(kernel).display());
        if !initrd.is_empty() {
            os.child("initrd").say(folder.boot_path(initrd).display());
        }
        os.child("cmdline").say(command_line);
    }
    if let Boot::Uefi { variables } = &spec.boot {
        if !is_uefi(&domain) {
            domain.child("os").set("firmware", "efi");
        }
        if variables.is_some() && nvram(&domain).is_none() {
            domain.child("os").child("nvram").say(folder.file("nvram.fd").display());
        }
    }
    let devices = domain.child("devices");
    without_seed(devices);
    set_disks(folder, spec, devices, keeps)?;
    if spec.seed.is_some() {
        add_seed(folder, devices)?;
    }
    set_cards(spec, devices);
    Ok(domain)
}

/// Takes out of a machine's XML what only the host had from which it comes: its files, its devices, its id.
fn leave_behind(folder: &Folder, domain: &mut Element) {
    // Another machine here may be the one with that id: the original, when this is a test of it.
    domain.rid("uuid");
    domain.child("os").rid("nvram");
    let devices = domain.child("devices");
    ["emulator", "hostdev", "filesystem"].into_iter().for_each(|name| devices.rid(name));
    for device in devices.children.iter_mut().filter_map(|node| node.as_mut_element()) {
        match (device.name.as_str(), device.has("type")) {
            ("disk", _) if !is_disk(device) => device.rid("source"),
            ("channel", _) => device.rid("source"),
            ("serial" | "console" | "parallel", Some("file")) => {
                let path = device.has_at(&["source"], "path").map(Path::new).and_then(Path::file_name);
                let path = folder.file(&path.unwrap_or("console.log".as_ref()).to_string_lossy());
                device.child("source").set("path", path.display());
            }
            _ => {}
        }
    }
}

/// A machine about which nobody has said more than the description does.
fn plain(folder: &Folder, accelerator: &str) -> Element {
    let mut domain = Element::new("domain");
    domain.set("type", if accelerator == "kvm" { "kvm" } else { "qemu" });
    domain.child("os").child("type").set("arch", "x86_64").set("machine", "pc").say("hvm");
    domain.child("os").child("boot").set("dev", "hd");
    domain.child("features").child("acpi");
    domain.child("features").child("apic");
    if accelerator == "kvm" {
        domain.child("cpu").set("mode", "host-model");
    }
    domain.child("clock").set("offset", "utc");
    let devices = domain.child("devices");
    for end in ["serial", "console"] {
        let console = devices.child(end);
        console.set("type", "file");
        console.child("source").set("path", folder.file("console.log").display()).set("append", "on");
        console.child("target").set("port", 0);
    }
    devices.child("console").child("target").set("type", "serial");
    let agent = devices.child("channel");
    agent.set("type", "unix");
    agent.child("target").set("type", "virtio").set("name", "org.qemu.guest_agent.0");
    devices.child("rng").set("model", "virtio").child("backend").set("model", "random").say("/dev/urandom");
    domain
}

fn set_disks(folder: &Folder, spec: &MachineSpec, devices: &mut Element, keeps: bool) -> Result<(), String> {
    let before: Vec<Element> = devices.all("disk").cloned().collect();
    devices.rid("disk");
    let taken: Vec<String> =
        before.iter().filter_map(|disk| disk.has_at(&["target"], "dev")).map(String::from).collect();
    let mut free = ('a'..='z').map(|letter| format!("vd{letter}")).filter(|dev| !taken.contains(dev));
    let (mut kept, others): (Vec<Element>, Vec<Element>) = before.into_iter().partition(is_disk);
    for wanted in &spec.disks {
        let place = kept.iter().position(|disk| target(disk).is_ok_and(|target| target.key == wanted.key));
        let mut disk = match place {
            Some(place) => kept.swap_remove(place),
            None => {
                let mut disk = Element::new("disk");
                disk.set("device", "disk");
                let dev = free.next().ok_or("it has more disks than there are names for them (vda to vdz)")?;
                disk.child("target").set("dev", dev).set("bus", "virtio");
                disk.child("serial").say(&wanted.key);
                disk
            }
        };
        set_source(folder, wanted, &mut disk)?;
        devices.add(disk);
    }
    let left_out = if keeps { kept } else { vec![] };
    left_out.into_iter().chain(others).for_each(|other| devices.add(other));
    Ok(())
}

/// Lets a disk have its bytes where the description says.
fn set_source(folder: &Folder, wanted: &DiskSpec, disk: &mut Element) -> Result<(), String> {
    if source(folder, disk).is_ok_and(|now| now == wanted.source) {
        return Ok(());
    }
    let (path, format) = match &wanted.source {
        DiskSource::Own { path, format } => (folder.disk_path(path), *format),
        DiskSource::OverlayOnView { overlay, .. } | DiskSource::OverlayOnOwn { overlay, .. } => {
            (folder.overlay_path(overlay), DiskFormat::Qcow2)
        }
    };
    file(disk, &path);
    disk.child("driver").set("name", "qemu").set("type", word(format)).set("discard", "unmap");
    disk.child("driver").set("cache", if image::takes_direct(&path) { "none" } else { "writeback" });
    disk.rid("backingStore");
    if let DiskSource::OverlayOnView { view, .. } = &wanted.source {
        let _: Uri = view.parse().map_err(|why: nbd::Error| why.to_string())?;
    }
    if wanted.source.overlay().is_some() {
        let beneath = disk.child("backingStore").set("type", "network");
        beneath.child("format").set("type", "raw");
        let from = beneath.child("source").set("protocol", "nbd").set("name", "");
        from.child("host").set("transport", "unix").set("socket", relay::socket(folder, &wanted.key).display());
        beneath.child("backingStore");
    }
    Ok(())
}

/// Lets a disk be that file or block device.
fn file(disk: &mut Element, path: &Path) {
    let is_device = image::driver(path) == "host_device";
    let (kind, attribute) = if is_device { ("block", "dev") } else { ("file", "file") };
    disk.set("type", kind);
    disk.fresh("source").set(attribute, path.display());
}

/// A disk of the platform's own as a block copy is told to write it: what is beneath it is nothing.
pub(crate) fn destination(path: &Path, format: DiskFormat) -> Element {
    let mut disk = Element::new("disk");
    file(&mut disk, path);
    disk.child("driver").set("name", "qemu").set("type", word(format));
    disk.child("backingStore");
    disk
}

fn word(format: DiskFormat) -> &'static str {
    match format {
        DiskFormat::Raw => "raw",
        DiskFormat::Qcow2 => "qcow2",
    }
}

fn set_cards(spec: &MachineSpec, devices: &mut Element) {
    let before: Vec<Element> = devices.all("interface").cloned().collect();
    devices.rid("interface");
    for wanted in &spec.cards {
        let known = before.iter().find(|interface| {
            interface.has_at(&["mac"], "address").is_some_and(|mac| mac.eq_ignore_ascii_case(&wanted.mac))
        });
        let mut interface = known.cloned().unwrap_or_else(|| {
            let mut interface = Element::new("interface");
            interface.child("mac").set("address", &wanted.mac);
            interface.child("model").set("type", "virtio");
            interface
        });
        if card(&interface).as_ref() != Some(wanted) {
            connect(&mut interface, &wanted.connection);
        }
        devices.add(interface);
    }
}

fn connect(interface: &mut Element, connection: &Connection) {
    ["source", "link", "target", "virtualport", "vlan"].into_iter().for_each(|name| interface.rid(name));
    match connection {
        // Nobody is at the other end of a cable that is pulled, whatever it leads to.
        Connection::Nothing => {
            interface.set("type", USER);
            interface.child("link").set("state", "down");
        }
        Connection::Network(name) if name == USER => {
            interface.set("type", USER);
        }
        Connection::Network(name) => match name.strip_prefix(BRIDGE) {
            Some(bridge) => {
                interface.set("type", "bridge").child("source").set("bridge", bridge);
            }
            None => {
                interface.set("type", "network").child("source").set("network", name);
            }
        },
    }
}
