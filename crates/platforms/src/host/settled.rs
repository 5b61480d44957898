//! What a platform tells of a machine once it let go of the disks: what is known, or what a crash leaves, or why nothing is.

use std::collections::BTreeMap;

use protocol::extent::BlockMap;
use protocol::machine::{MachineSpec, Settled};
use protocol::position::{Distrust, union};
use protocol::{Attempt, Changes, DiskKey, Fault, Lineage};

use super::folder::Folder;
use super::marks::{self, Carry, Marks};
use super::rest::{self, Rest};

/// Changes by disk.
pub(crate) type Maps = BTreeMap<DiskKey, BlockMap>;

/// What `known` maps come to, of a machine whose images were found as `rest` says.
pub(crate) async fn settled(
    folder: &Folder,
    spec: &MachineSpec,
    lineage: Lineage,
    rest: Rest,
    known: Result<(Attempt, Maps), Distrust>,
) -> Result<Settled, Fault> {
    let known = match known {
        Err(why) if rest != Rest::Touched => after_a_crash(folder, spec, lineage).await?.ok_or(why),
        known => known,
    };
    #[cfg(feature = "sabotage")]
    let known = match known {
        Err(_) if protocol::sabotage::is("inconsistent-bitmap-ignored") => Ok((Attempt::start_of(1), Maps::new())),
        known => known,
    };
    let stamps = rest::own_stamps(folder, spec)?;
    Ok(match known {
        Ok((since, maps)) => {
            let changes = Changes::Known(union(&maps, &Carry::read(folder, lineage, since)?));
            Settled { since: Some(since), changes, stamps }
        }
        Err(why) => Settled { since: None, changes: Changes::Unknown(why), stamps },
    })
}

/// What a machine of overlays still tells when its maps are lost.
async fn after_a_crash(
    folder: &Folder,
    spec: &MachineSpec,
    lineage: Lineage,
) -> Result<Option<(Attempt, Maps)>, Fault> {
    let Some(mark) = Marks::read(folder)?.common(folder, spec, lineage) else { return Ok(None) };
    Ok(Some((mark, marks::allocation(folder, spec).await?)))
}
