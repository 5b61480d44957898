//! What QEMU must reach of ours, where libvirt runs it as a user of its own (Debian: `libvirt-qemu`).
//!
//! ```text
//!   <site>, machines, <machine>, overlays, scratch    may be passed through, and not listed
//!   <machine>/run                                     QEMU's: it makes its socket of a cut there, and finds what its overlays stand on
//! ```
//! Images, variables and logs libvirt hands over itself when a machine starts, and takes back when it ends: what lies between
//! is root's or QEMU's by turns. So a mover of such a site has to be root.

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use protocol::Fault;
use protocol::fault::code;
use protocol::machine::MachineSpec;
use rustix::fs::{AtFlags, CWD, Gid, Uid, chownat};
use xmltree::Element;

use super::document::Document;
use super::virsh::Virsh;
use crate::host::folder::Folder;

/// A user that is not the one of this process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct User {
    user: u32,
    group: u32,
}

/// Whom libvirt runs QEMU as, if not as who we are.
///
/// # Errors
/// `PLT-001`: it is another, and we are not root.
pub(crate) async fn user(virsh: &Virsh) -> Result<Option<User>, Fault> {
    let what = "it cannot be told whom libvirt runs QEMU as";
    let told = virsh.ask(&["capabilities"]).await;
    let told = told.map_err(|why| Fault::new(code::HYPERVISOR, what, why.to_string()))?;
    let us = rustix::process::geteuid();
    match named(&told).map_err(|why| Fault::new(code::HYPERVISOR, what, why))? {
        Some(user) if user.user != us.as_raw() => {
            if !us.is_root() {
                let why = format!("QEMU runs as user {}, this process as user {us}", user.user);
                let remedy = "run the movers of this site as root: sockeye init or join with --platform libvirt has their services do it";
                let what = "libvirt's QEMU would not reach what it is given here";
                return Err(Fault::new(code::HYPERVISOR, what, why).with_remedy(remedy));
            }
            Ok(Some(user))
        }
        _ => Ok(None),
    }
}

/// Who is named in libvirt's capabilities; none where it changes no owners.
fn named(capabilities: &str) -> Result<Option<User>, String> {
    let all = Element::read(capabilities)?;
    let models = all.at(&["host"]).into_iter().flat_map(|host| host.all("secmodel"));
    let dac = models.into_iter().find(|model| model.text_at(&["model"]).as_deref() == Some("dac"));
    let Some(dac) = dac else { return Ok(None) };
    let label = dac.all("baselabel").find(|label| matches!(label.has("type"), Some("qemu" | "kvm")));
    let Some(label) = label.and_then(|label| label.get_text()) else { return Ok(None) };
    let number = |text: &str| text.strip_prefix('+')?.parse::<u32>().ok();
    let pair = label.trim().split_once(':').and_then(|(user, group)| Some((number(user)?, number(group)?)));
    let (user, group) = pair.ok_or_else(|| format!("its user is {label:?}"))?;
    Ok(Some(User { user, group }))
}

/// Lets the user pass through a folder.
pub(crate) fn pass(through: &Path) -> io::Result<()> {
    let mode = fs::metadata(through)?.permissions().mode();
    if mode & 0o011 == 0o011 { Ok(()) } else { fs::set_permissions(through, Permissions::from_mode(mode | 0o011)) }
}

/// Makes a machine's folders, and lets the user in where it has to be.
pub(crate) fn make_room(folder: &Folder, user: Option<User>) -> Result<(), Fault> {
    let make = || -> io::Result<()> {
        let below = ["overlays", "scratch", RUN].map(|name| folder.file(name));
        below.iter().try_for_each(fs::create_dir_all)?;
        let Some(user) = user else { return Ok(()) };
        for through in [folder.path(), &below[0], &below[1]] {
            pass(through)?;
        }
        give(&below[2], user.user, user.group)
    };
    make().map_err(|why| folder.fault("cannot be given a folder", why))
}

/// Lets the user pass to the machine's overlays, which lie where their maker keeps them.
pub(crate) fn to_overlays(folder: &Folder, spec: &MachineSpec) -> Result<(), Fault> {
    let overlays = spec.disks.iter().filter_map(|disk| Some(folder.overlay_path(disk.source.overlay()?)));
    for overlay in overlays {
        if let Some(parent) = overlay.parent() {
            pass(parent).map_err(|why| folder.fault(&format!("cannot be let to {}", overlay.display()), why))?;
        }
    }
    Ok(())
}

/// Where the machine's QEMU makes a socket, or finds one that is served to it.
pub(crate) const RUN: &str = "run";

/// Gives a socket in [`RUN`] to whom that folder belongs to.
pub(crate) fn share(folder: &Folder, socket: &Path) -> io::Result<()> {
    let owner = fs::symlink_metadata(folder.file(RUN))?;
    give(socket, owner.uid(), owner.gid())
}

/// Gives what is at a path. A link is given itself, never what it names: QEMU may put one into its folder.
fn give(path: &Path, user: u32, group: u32) -> io::Result<()> {
    let is = fs::symlink_metadata(path)?;
    if (is.uid(), is.gid()) == (user, group) {
        return Ok(());
    }
    // Made from what the kernel itself told, or libvirt.
    let (user, group) = (Uid::from_raw(user), Gid::from_raw(group));
    Ok(chownat(CWD, path, Some(user), Some(group), AtFlags::SYMLINK_NOFOLLOW)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn capabilities(models: &str) -> String {
        format!("<capabilities><host>{models}</host></capabilities>")
    }

    #[test]
    fn the_user_is_the_one_of_the_model_that_changes_owners() {
        let selinux = "<secmodel><model>selinux</model><baselabel type='qemu'>system_u:svirt_t</baselabel></secmodel>";
        let dac = "<secmodel><model>dac</model><doi>0</doi><baselabel type='kvm'>+64055:+106</baselabel></secmodel>";
        assert_eq!(named(&capabilities(&[selinux, dac].concat())), Ok(Some(User { user: 64055, group: 106 })));
        assert_eq!(named(&capabilities(selinux)), Ok(None));
        assert!(named(&capabilities(&dac.replace("+64055:", ""))).is_err());
        assert!(named("<capabilities>").is_err());
    }

    /// Only root gives anything away; elsewhere the user is given what it has already.
    #[test]
    fn a_link_in_the_folder_of_qemu_gives_away_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let (secret, link) = (dir.path().join("secret"), dir.path().join("socket"));
        fs::write(&secret, b"root's").unwrap();
        std::os::unix::fs::symlink(&secret, &link).unwrap();
        let was = fs::metadata(&secret).unwrap();
        let root = rustix::process::geteuid().is_root();
        let (user, group) = if root { (64055, 64055) } else { (was.uid(), was.gid()) };
        give(&link, user, group).unwrap();
        let is = |file: fs::Metadata| (file.uid(), file.gid());
        assert_eq!(is(fs::metadata(&secret).unwrap()), is(was));
        assert_eq!(is(fs::symlink_metadata(&link).unwrap()), (user, group));
    }

    #[test]
    fn a_folder_that_may_be_passed_through_is_not_listed_for_that() {
        let dir = tempfile::tempdir().unwrap();
        fs::set_permissions(dir.path(), Permissions::from_mode(0o700)).unwrap();
        pass(dir.path()).unwrap();
        assert_eq!(fs::metadata(dir.path()).unwrap().permissions().mode() & 0o777, 0o711);
    }
}
