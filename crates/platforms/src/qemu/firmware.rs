//! UEFI for machines under QEMU: OVMF's code, and the machine's own variables beside it.
//!
//! ```text
//!   pflash 0   OVMF's code, read only, shared by all       pflash 1   nvram.fd in the machine's folder
//! ```
//! A variable store fits the code it was made with: both come from one build, which the store's length tells.

use std::path::{Path, PathBuf};

use protocol::Fault;
use protocol::machine::{Boot, MachineSpec};

use crate::host::folder::{self, Folder};
use crate::host::nvram;

/// Where distributions put OVMF: code, and the variables of a machine that was never started.
const BUILDS: [(&str, &str); 4] = [
    ("/usr/share/OVMF/OVMF_CODE_4M.fd", "/usr/share/OVMF/OVMF_VARS_4M.fd"),
    ("/usr/share/OVMF/OVMF_CODE.fd", "/usr/share/OVMF/OVMF_VARS.fd"),
    ("/usr/share/edk2/ovmf/OVMF_CODE.fd", "/usr/share/edk2/ovmf/OVMF_VARS.fd"),
    ("/usr/share/edk2/x64/OVMF_CODE.4m.fd", "/usr/share/edk2/x64/OVMF_VARS.4m.fd"),
];

fn file(folder: &Folder) -> PathBuf {
    folder.file("nvram.fd")
}

/// What boots the machine, with its variables as they are now.
pub(crate) fn described(folder: &Folder, spec: &mut MachineSpec) {
    if let Boot::Uefi { variables } = &mut spec.boot
        && file(folder).exists()
    {
        *variables = nvram::read(folder, &file(folder));
    }
}

/// Gives a machine the variables of its description.
pub(crate) fn define(folder: &Folder, spec: &MachineSpec) -> Result<(), Fault> {
    nvram::write(folder, spec, &file(folder))
}

/// QEMU's words for it.
pub(crate) fn arguments(folder: &Folder, spec: &MachineSpec) -> Result<Vec<(&'static str, String)>, Fault> {
    let Boot::Uefi { .. } = &spec.boot else { return Ok(vec![]) };
    let cannot = |why: String| folder.fault("has no UEFI firmware", why);
    let length = |path: &Path| std::fs::metadata(path).map(|meta| meta.len()).ok();
    let own = length(&file(folder));
    let fits = |(code, template): &(&str, &str)| {
        Path::new(code).exists() && length(Path::new(template)).is_some_and(|it| own.is_none_or(|own| own == it))
    };
    let Some((code, template)) = BUILDS.into_iter().find(fits) else {
        let which = own.map_or_else(String::new, |own| format!(" for a variable store of {own} bytes"));
        return Err(cannot(format!("no OVMF{which} is installed on this host (Debian: apt install ovmf)")));
    };
    if own.is_none() {
        let fresh = std::fs::read(template).and_then(|store| folder::write_new(&file(folder), &store));
        fresh.map_err(|why| cannot(why.to_string()))?;
    }
    let escaped = |path: &Path| path.display().to_string().replace(',', ",,");
    let flash =
        |unit: u8, path: &Path, more: &str| format!("if=pflash,unit={unit},format=raw,file={}{more}", escaped(path));
    Ok(vec![("-drive", flash(0, Path::new(code), ",readonly=on")), ("-drive", flash(1, &file(folder), ""))])
}
