//! What of a machine does not come along to another site, or not as well as its owner might think.

use std::collections::BTreeSet;

use protocol::machine::{Boot, DiskFormat, DiskSource, MachineSpec, Remark};
use xmltree::Element;

use super::document::Document;

/// Parts of a machine that every platform is told of.
const NEUTRAL: [&str; 4] = ["disk", "interface", "emulator", "controller"];
/// Parts that no guest looks for.
const UNMISSED: [&str; 5] = ["input", "memballoon", "console", "serial", "channel"];

/// What is to be said of a machine, given its XML.
pub(crate) fn of(domain: &Element, spec: &MachineSpec) -> Vec<Remark> {
    let devices: Vec<&Element> = domain
        .at(&["devices"])
        .into_iter()
        .flat_map(|devices| devices.children.iter())
        .filter_map(|node| node.as_element())
        .collect();
    let count = |name: &str| devices.iter().filter(|device| device.name == name).count();
    let mut remarks = Vec::new();
    let mut say = |elsewhere, words: String| remarks.push(Remark { elsewhere, words });
    for disk in &spec.disks {
        if matches!(disk.source, DiskSource::Own { format: DiskFormat::Raw, .. }) {
            let words = "libvirt keeps change maps in qcow2 only, so each epoch compares all of it";
            say(false, format!("disk {} is raw: {words}", disk.key));
        }
    }
    if count("tpm") > 0 {
        let words = "what it keeps stays at its host; disks sealed with it ask for their recovery key elsewhere";
        say(false, format!("it has a TPM: {words}"));
    }
    if matches!(spec.boot, Boot::Uefi { variables: None }) {
        let words =
            "elsewhere its firmware starts with new ones, and finds a boot loader in the usual place only (EFI/BOOT)";
        say(false, format!("its UEFI variables cannot be read here: {words}"));
    }
    for (name, what) in [("hostdev", "devices of its host"), ("filesystem", "folders of its host")] {
        match count(name) {
            0 => {}
            count => say(false, format!("{count} {what} are passed through to it ({name}): they stay behind")),
        }
    }
    let others: BTreeSet<&str> = devices
        .iter()
        .map(|device| device.name.as_str())
        .filter(|name| {
            !NEUTRAL.contains(name) && !UNMISSED.contains(name) && !["tpm", "hostdev", "filesystem"].contains(name)
        })
        .chain(["cpu", "cputune", "numatune", "sysinfo"].into_iter().filter(|name| domain.at(&[name]).is_some()))
        .collect();
    if !others.is_empty() {
        let list = others.into_iter().collect::<Vec<_>>().join(", ");
        let words = "it gets processors, memory, disks (virtio) and network cards (virtio) there";
        say(true, format!("{words}; kept for the way home: {list}"));
    }
    remarks
}
