//! What of a machine does not come along to another site, or not as well as its owner might think.

use std::collections::BTreeSet;

use protocol::machine::{Boot, DiskFormat, DiskSource, MachineSpec, Remark};
use xmltree::Element;

use super::document::Document;

/// Parts of a machine that every platform is told of.
const NEUTRAL: [&str; 4] = ["disk", "interface", "emulator", "controller"];
/// Parts that no guest looks for.
const UNMISSED: [&str; 5] = ["input", "memballoon", "console", "serial", "channel"];

/// What is to be said of a machine, given its XML and how many snapshots were taken of it.
pub(crate) fn of(domain: &Element, spec: &MachineSpec, snapshots: usize) -> Vec<Remark> {
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
    if snapshots > 0 {
        let words = "they stay at its host, where what comes home is written above them";
        say(false, format!("it has {snapshots} snapshots: {words}"));
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_stays_behind_is_said_and_what_only_another_hypervisor_lacks_is_marked() {
        let xml = "<domain><devices><disk/><interface/><tpm/><hostdev/><hostdev/><graphics/></devices><cpu/></domain>";
        let disks =
            serde_json::json!([{ "key": "vda", "size": 1, "source": { "own": { "path": "a", "format": "raw" } } }]);
        let spec = serde_json::json!({
            "name": "m", "memory_mib": 64, "vcpus": 1, "boot": { "uefi": { "variables": null } }, "disks": disks,
        });
        let spec: MachineSpec = serde_json::from_value(spec).unwrap();
        let remarks = of(&Element::read(xml).unwrap(), &spec, 2);
        let said = |words: &str| remarks.iter().filter(|remark| remark.words.contains(words)).collect::<Vec<_>>();
        for words in ["vda is raw", "2 snapshots", "a TPM", "2 devices of its host", "UEFI variables cannot be read"] {
            assert!(said(words).len() == 1 && !said(words)[0].elsewhere, "{words}: {remarks:?}");
        }
        assert!(said("cpu, graphics")[0].elsewhere);
        assert_eq!(remarks.len(), 6);
        let plain = "<domain><devices><disk/><serial/></devices></domain>";
        let spec = MachineSpec { boot: Boot::Firmware, disks: vec![], ..spec };
        assert_eq!(of(&Element::read(plain).unwrap(), &spec, 0), []);
    }
}
