//! Whether a directory is fit to keep recovery points in (R9).
//!
//! Refused: FAT (no file over 4 GiB), read-only, without capacity, or among the replicas that it is to protect. That it
//! shares its volume with the program is only said: an installation of one volume has no other.

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use protocol::Fault;
use protocol::fault::code;
use rustix::fs::StatVfsMountFlags;

/// How much space a volume has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Room {
    /// What may still be written by this process.
    pub(crate) free_bytes: u64,
    pub(crate) capacity_bytes: u64,
}

/// The room on the volume under `directory`.
pub(crate) fn room(directory: &Path) -> std::io::Result<Room> {
    let told = rustix::fs::statvfs(directory)?;
    let bytes = |blocks: u64| blocks.saturating_mul(told.f_frsize);
    Ok(Room { free_bytes: bytes(told.f_bavail), capacity_bytes: bytes(told.f_blocks) })
}

/// What the kernel tells of the volume under a directory.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Volume {
    /// The file system's name, as in the mount table; empty where the table does not tell.
    kind: String,
    read_only: bool,
    capacity_bytes: u64,
}

/// Refuses a retention volume that is not fit; `replicas` is where replicas keep their disks.
///
/// # Errors
/// `RPL-014`; `RPL-005` when the volume cannot be looked at.
pub(crate) fn check(retention: &Path, replicas: &Path) -> Result<(), Fault> {
    let unseen = |error: std::io::Error| {
        let message = format!("the retention volume {} cannot be looked at", retention.display());
        Fault::new(code::REPLICA_IO, message, error.to_string())
    };
    let place = std::fs::canonicalize(retention).map_err(unseen)?;
    let device = std::fs::metadata(&place).map_err(unseen)?.dev();
    let told = rustix::fs::statvfs(&place).map_err(|error| unseen(error.into()))?;
    let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let volume = Volume {
        kind: kind(&table, rustix::fs::major(device), rustix::fs::minor(device)).unwrap_or_default(),
        read_only: told.f_flag.contains(StatVfsMountFlags::RDONLY),
        capacity_bytes: told.f_blocks.saturating_mul(told.f_frsize),
    };
    judge(&place, &volume, &std::fs::canonicalize(replicas).unwrap_or_else(|_| replicas.to_path_buf()))?;
    let program = std::env::current_exe().and_then(std::fs::metadata).map(|meta| meta.dev());
    if program.is_ok_and(|program| program == device) {
        tracing::warn!(retention = %place.display(), "recovery points are kept on the volume that the program is installed on");
    }
    Ok(())
}

fn judge(place: &Path, volume: &Volume, replicas: &Path) -> Result<(), Fault> {
    let why = match volume {
        Volume { kind, .. } if ["vfat", "msdos", "fat"].contains(&kind.as_str()) => {
            format!("it is {kind}: files over 4 GiB cannot be stored there")
        }
        Volume { read_only: true, .. } => "it is mounted read-only".into(),
        Volume { capacity_bytes: 0, .. } => "it has no capacity".into(),
        _ if place.starts_with(replicas) => {
            format!("it lies among the replicas ({}), whose recovery points it is to keep", replicas.display())
        }
        _ => return Ok(()),
    };
    let message = format!("the retention volume {} is not fit to keep recovery points", place.display());
    Err(Fault::new(code::RETENTION_UNFIT, message, why))
}

/// The file system of a device in the kernel's mount table: fields before ` - ` are of the mount (the third is its device),
/// the first one after it is the file system's name.
fn kind(table: &str, major: u32, minor: u32) -> Option<String> {
    let device = format!("{major}:{minor}");
    let line = table.lines().find(|line| line.split(' ').nth(2) == Some(device.as_str()))?;
    Some(line.split_once(" - ")?.1.split(' ').next()?.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Lines as Linux writes them: a root, a FAT stick with a space in its path, a read-only bind of the root.
    const TABLE: &str = "\
22 1 254:1 / / rw,relatime shared:1 - ext4 /dev/vda1 rw
97 22 8:17 / /mnt/my\\040stick rw,nosuid shared:52 master:3 - vfat /dev/sdb1 rw,fmask=0022
98 22 254:1 /srv /mnt/ro ro,relatime - ext4 /dev/vda1 rw
garbage";

    fn judged(volume: Volume) -> Result<(), Fault> {
        judge(Path::new("/mnt/retention"), &volume, Path::new("/var/lib/replicas"))
    }

    fn fit() -> Volume {
        Volume { kind: "ext4".into(), read_only: false, capacity_bytes: 1 << 40 }
    }

    #[test]
    fn the_mount_table_tells_the_file_system_of_a_device() {
        assert_eq!(kind(TABLE, 254, 1).as_deref(), Some("ext4"));
        assert_eq!(kind(TABLE, 8, 17).as_deref(), Some("vfat"));
        assert_eq!(kind(TABLE, 8, 18), None);
        assert_eq!(kind("", 0, 0), None);
    }

    #[test]
    fn fat_read_only_and_no_capacity_are_refused_with_code_and_remedy() {
        judged(fit()).unwrap();
        judged(Volume { kind: String::new(), ..fit() }).unwrap();
        for (unfit, word) in [
            (Volume { kind: kind(TABLE, 8, 17).unwrap(), ..fit() }, "4 GiB"),
            (Volume { kind: "msdos".into(), ..fit() }, "msdos"),
            (Volume { read_only: true, ..fit() }, "read-only"),
            (Volume { capacity_bytes: 0, ..fit() }, "capacity"),
        ] {
            let fault = judged(unfit).unwrap_err();
            assert!(fault.is(code::RETENTION_UNFIT) && fault.cause.contains(word), "{fault:?}");
            assert!(fault.remedy.contains("--retention"), "{fault:?}");
        }
    }

    #[test]
    fn a_place_among_the_replicas_is_refused_and_one_beside_them_is_not() {
        let site = tempfile::tempdir().unwrap();
        let replicas = site.path().join("replicas");
        for (name, fits) in [("replicas", false), ("replicas/points", false), ("retention", true)] {
            let place = site.path().join(name);
            std::fs::create_dir_all(&place).unwrap();
            assert_eq!(check(&place, &replicas).is_ok(), fits, "{name}");
        }
        assert!(check(&site.path().join("absent"), &replicas).unwrap_err().is(code::REPLICA_IO));
    }

    #[test]
    fn what_the_kernel_really_mounts_read_only_is_refused() {
        // Every Linux has this one, and it has no capacity either.
        assert!(check(Path::new("/proc"), Path::new("/nowhere")).unwrap_err().is(code::RETENTION_UNFIT));
    }
}
