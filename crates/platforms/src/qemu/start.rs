//! Starting a machine: what its maps will count from is settled before the guest runs.
//!
//! ```text
//!   disks were touched since QEMU let go (see `rest`) ─► no map: the next cut says that anything may differ
//!   else they hold believable maps of the lineage ─────► they go on
//!   else all disks are overlays with one mark ─────────► new maps since that mark, completed by what the overlays hold now
//!   else no start was ever tracked from this mark ─────► new maps since this mark: the caller says that the disks are there
//!   else ──────────────────────────────────────────────► no map: the first was lost, and the next cut says that anything may differ
//! ```
//! # If power fails
//! The mark is claimed before the map is made: what is lost in between is a map, never the truth.

use std::time::Duration;

use protocol::Fault;
use protocol::machine::{MachineSpec, Power};
use serde_json::Value;

use super::bitmap::{self, Bitmaps};
use super::qmp::{Qmp, QmpError};
use super::{launch, power, process};
use crate::Start;
use crate::host::folder::Folder;
use crate::host::marks::{self, Carry, Mark, Marks};
use crate::host::rest;

/// How long QEMU may take to end again when its guest cannot be tracked.
const QUIT_PATIENCE: Duration = Duration::from_secs(10);

/// Starts the machine. The caller holds its lock.
pub(crate) async fn start(folder: &Folder, how: Start) -> Result<(), Fault> {
    let spec = folder.known_spec()?;
    let launched = match power::power(folder).await? {
        Power::Running => return Ok(()),
        Power::Held => {
            return Err(
                folder.fault("cannot be started", "its guest is off but its disks are still held; settle it first")
            );
        }
        Power::Paused => true,
        Power::Off => false,
    };
    let mark = how.track.map(|(lineage, attempt)| Mark { lineage, attempt });
    let mut marks = Marks::read(folder)?;
    if !launched {
        rest::leave(folder, &spec, &mut marks)?;
        marks.started(folder, mark)?;
        launch::launch(folder, &spec).await?;
    }
    let mut qmp = power::converse(folder).await?;
    // A guest that waits for its first start may have been left by somebody who died before it was tracked.
    let tracked = match !launched || power::waits(folder, &mut qmp).await? {
        true => track(folder, &spec, &marks, mark, &mut qmp).await,
        false => Ok(()),
    };
    if let Err(why) = tracked {
        // The guest has not run. A machine left waiting would be resumed, untracked, by whoever starts it again.
        let _ = qmp.execute("quit", Value::Null).await;
        process::gone(folder, QUIT_PATIENCE).await;
        return Err(why);
    }
    if !how.paused {
        power::go(folder, &mut qmp).await?;
    }
    Ok(())
}

/// Sees to it that the guest's first write is tracked, or that nobody believes it is.
async fn track(
    folder: &Folder,
    spec: &MachineSpec,
    marks: &Marks,
    mark: Option<Mark>,
    qmp: &mut Qmp,
) -> Result<(), Fault> {
    let nodes = launch::nodes(spec);
    let names: Vec<String> = nodes.iter().map(|(node, _)| node.clone()).collect();
    let touched = rest::doubt(folder, async || bitmap::forget_all(qmp, &names).await).await?;
    let Some(mark) = mark else { return Ok(()) };
    let overlays_since = marks.common(folder, spec, mark.lineage);
    let cannot = |why: QmpError| folder.fault("cannot be tracked", why);
    let found = Bitmaps::ask(qmp, mark.lineage, &names).await.map_err(cannot)?;
    // Whoever gives the mark says what the disks held when he last saw them.
    let honest = marks::claim(folder, mark)? && !touched;
    #[cfg(feature = "sabotage")]
    let honest = honest || protocol::sabotage::is("lost-map-begun-again");
    if found.held().is_empty() {
        // The maps of the lineage are of no use any more: in use when QEMU died, or not on every disk.
        let mut actions = found.removals(mark.lineage, &names, |_| true);
        if let Some(since) = overlays_since {
            let since = Mark { lineage: mark.lineage, attempt: since };
            let maps = marks::allocation(folder, spec).await?;
            folder.write("carry.json", &Carry { since, maps })?;
            actions.extend(bitmap::begin(mark.lineage, since.attempt, &nodes));
        } else if honest {
            actions.extend(bitmap::begin(mark.lineage, mark.attempt, &nodes));
        }
        // Removing and adding one name in one transaction is refused, so the useless ones go first.
        let (removals, additions): (Vec<Value>, Vec<Value>) =
            actions.into_iter().partition(|action| action["type"] == "block-dirty-bitmap-remove");
        bitmap::transact(qmp, removals).await.map_err(cannot)?;
        bitmap::transact(qmp, additions).await.map_err(cannot)?;
    }
    Ok(())
}
