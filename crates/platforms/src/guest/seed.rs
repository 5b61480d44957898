//! The seed: a small disk that cloud-init in a guest reads when it starts (NoCloud: a FAT file system with the label `cidata`).
//!
//! ```text
//!   meta-data        an instance of its own for each move: network data is applied to instances that are new
//!   network-config   version 2, each card by its address on the wire
//!   user-data        that nothing else is done for the new instance: no host keys, no users, no host name
//! ```
//! # Always true
//! - It is the same bytes for the same move, whenever and wherever it is made.

use std::io::{Cursor, Write};
use std::path::PathBuf;

use fatfs::{FileSystem, FormatVolumeOptions, FsOptions};
use protocol::Fault;
use protocol::guest::Seed;
use protocol::machine::MachineSpec;
use serde_json::{Map, Value, json};

use crate::host::folder::{Folder, write_new};

/// The serial number of the disk: no disk of an item can have it, which is what tells it from those.
pub(crate) const SERIAL: &str = "sockeye-seed";
/// Its file in the machine's folder.
const FILE: &str = "seed.img";
/// Its size: the least that every FAT driver takes for granted.
const BYTES: usize = 1 << 20;

/// No module runs for an instance that is new only because its machine has moved. (What cloud-init does on each start, such as
/// growing the root's partition, is left out in that start as well.)
const USER_DATA: &str = "#cloud-config
cloud_init_modules: []
cloud_config_modules: []
cloud_final_modules: []
preserve_hostname: true
ssh_deletekeys: false
users: []
";

/// Network data for the cards, as netplan and cloud-init have it (JSON is YAML).
pub fn network_config(seed: &Seed) -> Value {
    let mut ethernets = Map::new();
    for card in &seed.cards {
        let mut words = json!({
            "match": { "macaddress": card.mac }, "dhcp4": false, "dhcp6": false, "addresses": card.addresses,
        });
        // cloud-init 22.4 makes a wrong line of a route to ::/0 where ifupdown is; these it knows everywhere.
        for gateway in &card.gateways {
            words[if gateway.contains(':') { "gateway6" } else { "gateway4" }] = gateway.clone().into();
        }
        if !card.dns.is_empty() {
            words["nameservers"] = json!({ "addresses": card.dns });
        }
        ethernets.insert(format!("card{}", card.mac.replace(':', "")), words);
    }
    json!({ "version": 2, "ethernets": ethernets })
}

/// The disk.
///
/// # Errors
/// The file system cannot be made.
pub fn image(seed: &Seed) -> std::io::Result<Vec<u8>> {
    let mut bytes = vec![0; BYTES];
    // The label is part of the bytes that a file system has for it: eleven.
    let options = FormatVolumeOptions::new().volume_label(*b"CIDATA     ").volume_id(0x50c4_e7e0);
    fatfs::format_volume(Cursor::new(&mut bytes), options)?;
    {
        let system = FileSystem::new(Cursor::new(&mut bytes), FsOptions::new().update_accessed_date(false))?;
        let root = system.root_dir();
        let network = format!("{:#}\n", network_config(seed));
        let meta = format!("instance-id: {}\n", seed.instance);
        for (name, text) in [("meta-data", meta.as_str()), ("user-data", USER_DATA), ("network-config", &network)] {
            root.create_file(name)?.write_all(text.as_bytes())?;
        }
        drop(root);
        system.unmount()?;
    }
    Ok(bytes)
}

/// Writes or removes the disk's file, as the description says.
pub(crate) fn define(folder: &Folder, spec: &MachineSpec) -> Result<(), Fault> {
    let Some(seed) = &spec.seed else { return forget(folder) };
    let cannot = |why: std::io::Error| folder.fault("cannot be given its seed", why);
    write_new(&path(folder), &image(seed).map_err(cannot)?).map_err(cannot)
}

/// Removes the disk's file. A machine that runs has it open.
pub(crate) fn forget(folder: &Folder) -> Result<(), Fault> {
    folder.remove(FILE)
}

/// Where the disk's file is.
pub(crate) fn path(folder: &Folder) -> PathBuf {
    folder.file(FILE)
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn other_programs_read_what_the_seed_says() {
        let card =
            "away:52:54:00:aa:bb:cc=10.2.0.5/24,2001:db8::5/64,gateway=10.2.0.1,gateway=2001:db8::1,dns=10.2.0.53";
        let seed = Seed { instance: "sockeye-web01-2".into(), cards: vec![card.parse().unwrap()] };
        assert_eq!(image(&seed).unwrap(), image(&seed).unwrap(), "the same bytes for the same move");
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), image(&seed).unwrap()).unwrap();
        let path = file.path().to_string_lossy().into_owned();
        let told = |program: &str, arguments: &[&str]| {
            let ended = Command::new(program).args(arguments).output().unwrap();
            assert!(ended.status.success(), "{program}: {}", String::from_utf8_lossy(&ended.stderr));
            String::from_utf8_lossy(&ended.stdout).into_owned()
        };
        // As ds-identify of cloud-init looks for it.
        let probed = told("blkid", &["-o", "export", &path]);
        assert!(probed.contains("LABEL=CIDATA\n") && probed.contains("TYPE=vfat\n"), "{probed}");
        let content = |name: &str| told("mtype", &["-i", &path, &format!("::/{name}")]);
        assert_eq!(content("meta-data"), "instance-id: sockeye-web01-2\n");
        assert_eq!(content("user-data"), USER_DATA);
        assert_eq!(serde_json::from_str::<Value>(&content("network-config")).unwrap(), network_config(&seed));
        let card = &network_config(&seed)["ethernets"]["card525400aabbcc"];
        assert_eq!(card["match"]["macaddress"], "52:54:00:aa:bb:cc");
        assert_eq!((&card["gateway4"], &card["gateway6"]), (&json!("10.2.0.1"), &json!("2001:db8::1")));
    }
}
