//! The rights that a mover needs beside those of its unit: a drop-in of the package, linked where the hypervisor is libvirt.

use std::io::{self, ErrorKind};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use crate::ending::Trouble;

/// What the package brings for movers that steer libvirt.
const LIBVIRT: &str = "/usr/share/sockeye/libvirt.conf";

/// Gives a service what it needs for libvirt, and says whether that is new. What stands in the place is somebody's, and stays.
///
/// # Errors
/// It cannot be linked; the same command goes on from there.
pub(super) fn of_libvirt(service: &str) -> Result<bool, Trouble> {
    let folder = PathBuf::from(format!("/etc/systemd/system/{service}.service.d"));
    link(&folder).map_err(|why| Trouble::local(format!("{LIBVIRT} cannot be linked into {}", folder.display()), why))
}

fn link(folder: &Path) -> io::Result<bool> {
    std::fs::create_dir_all(folder)?;
    match symlink(LIBVIRT, folder.join("sockeye-libvirt.conf")) {
        Err(why) if why.kind() == ErrorKind::AlreadyExists => Ok(false),
        linked => linked.map(|()| true),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_linked_once_and_what_somebody_put_there_stays() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("sockeye-master-target.service.d");
        assert!(link(&folder).unwrap());
        assert!(!link(&folder).unwrap());
        let file = folder.join("sockeye-libvirt.conf");
        assert_eq!(std::fs::read_link(&file).unwrap(), Path::new(LIBVIRT));
        std::fs::remove_file(&file).unwrap();
        std::fs::write(&file, "[Service]\n").unwrap();
        assert!(!link(&folder).unwrap());
        assert_eq!(std::fs::read_to_string(&file).unwrap(), "[Service]\n");
    }
}
