//! The file in which a UEFI firmware keeps its variables.

use std::path::Path;

use protocol::Fault;
use protocol::machine::{Boot, MachineSpec};
use protocol::uefi::{LONGEST, Variables};

use super::folder::{self, Folder};

/// Reads the variables of a machine from its file. What cannot be read is not known: the machine is described without it.
pub(crate) fn read(folder: &Folder, path: &Path) -> Option<Variables> {
    let unknown = |why: &dyn std::fmt::Display| {
        tracing::debug!(machine = folder.name(), path = %path.display(), %why, "its UEFI variables are not carried");
    };
    let length = std::fs::metadata(path).inspect_err(|why| unknown(why)).ok()?.len();
    if length > LONGEST as u64 {
        unknown(&format!("it has {length} bytes"));
        return None;
    }
    let store = std::fs::read(path).inspect_err(|why| unknown(why)).ok()?;
    Variables::pack(&store).inspect_err(|why| unknown(why)).ok()
}

/// Gives a machine that is off the variables that its description carries, if it does.
pub(crate) fn write(folder: &Folder, spec: &MachineSpec, path: &Path) -> Result<(), Fault> {
    let Boot::Uefi { variables: Some(variables) } = &spec.boot else { return Ok(()) };
    let cannot = |why: &dyn std::fmt::Display| folder.fault("cannot be given its UEFI variables", why);
    let store = variables.store().map_err(|why| cannot(&why))?;
    if std::fs::read(path).is_ok_and(|now| now == store) {
        return Ok(());
    }
    // In the same file where there is one: it has an owner and a label that we do not know to give.
    let written = match path.exists() {
        true => std::fs::write(path, &store),
        false => folder::write_new(path, &store),
    };
    written.map_err(|why| cannot(&why))
}
