//! Starting a machine: what its maps will count from is settled before the guest runs.
//!
//! ```text
//!   disks were touched since QEMU let go (see `rest`) ─► no map: the next cut says that anything may differ
//!   else they hold believable maps of the lineage ─────► they go on
//!   else all disks are overlays with one mark ─────────► a new map since that mark, completed by what the overlays hold now
//!   else no start was ever tracked from this mark ─────► a new map since this mark: the caller says that the disks are there
//!   else ──────────────────────────────────────────────► no map: the first was lost
//! ```
//! # If power fails
//! The note that a start is under way is there until it is tracked: whoever starts the machine next finishes that first.

use std::fs::File;

use protocol::machine::{MachineSpec, Power};
use protocol::{Fault, Lineage};

use super::{Site, backup, chain, life, run};
use crate::Start;
use crate::host::folder::Folder;
use crate::host::image::{self, Kept};
use crate::host::marks::{self, Carry, Mark, Marks};
use crate::host::{maps, rest};

/// The note that a start is under way.
const STARTING: &str = "starting.json";

/// Starts the machine. The caller holds its lock.
pub(crate) async fn start(site: &Site, folder: &Folder, lock: &File, how: Start) -> Result<(), Fault> {
    let (spec, _) = site.known(folder).await?;
    let launched = match life::power(site, folder).await? {
        Power::Running => return Ok(()),
        Power::Held => {
            let why = "its guest is off but its disks are still held; settle it first";
            return Err(folder.fault("cannot be started", why));
        }
        Power::Paused => true,
        Power::Off => false,
    };
    let mark = how.track.map(|(lineage, attempt)| Mark { lineage, attempt });
    let mut marks = Marks::read(folder)?;
    if !launched {
        life::let_go(folder)?;
        rest::leave(folder, &spec, &mut marks)?;
        marks.started(folder, mark)?;
        rid_of_broken(site, folder, lock, &spec).await?;
        folder.write(STARTING, &true)?;
        life::launch(site, folder, lock).await?;
    }
    if folder.read::<bool>(STARTING)?.is_some() {
        if let Err(why) = track(site, folder, lock, &spec, &marks, mark).await {
            // The guest has not run. A machine left waiting would be resumed, untracked, by whoever starts it again.
            let _ = life::destroy(site, folder, lock).await;
            return Err(why);
        }
        folder.remove(STARTING)?;
    }
    if !how.paused {
        life::go(site, folder, lock).await?;
    }
    Ok(())
}

/// Takes maps of ours out of images that no QEMU has open, which libvirt cannot: those that were in use when QEMU died, and
/// those of which it knows nothing any more, because the machine was deleted and defined anew.
async fn rid_of_broken(site: &Site, folder: &Folder, lock: &File, spec: &MachineSpec) -> Result<(), Fault> {
    let cannot = |why: String| folder.fault("has an image that cannot be rid of a lost map", why);
    let chain = chain::Chain::ask(site, folder, Lineage::fresh()).await?;
    for disk in &spec.disks {
        let Some(path) = image::keeper(folder, &disk.source) else { continue };
        let kept = image::bitmaps(&path).await.map_err(cannot)?;
        let is_useless = |map: &&Kept| map.inconsistent || !chain.names.contains(&map.name);
        for map in kept.iter().filter(|map| map.name.starts_with(maps::PREFIX)).filter(is_useless) {
            image::forget(&path, &map.name).await.map_err(cannot)?;
            chain::delete_name(site, folder, lock, &map.name).await?;
        }
    }
    Ok(())
}

/// Sees to it that the guest's first write is tracked, or that nobody believes it is.
async fn track(
    site: &Site,
    folder: &Folder,
    lock: &File,
    spec: &MachineSpec,
    marks: &Marks,
    mark: Option<Mark>,
) -> Result<(), Fault> {
    let touched = rest::doubt(folder, async || chain::forget_all(site, folder, lock).await).await?;
    run::claim(site, folder, lock).await?;
    let Some(mark) = mark.filter(|_| backup::is_tracked(spec)) else { return Ok(()) };
    let overlays_since = marks.common(folder, spec, mark.lineage);
    let (held, _) = chain::held(site, folder, mark.lineage).await?;
    // Whoever gives the mark says what the disks held when he last saw them.
    let honest = marks::claim(folder, mark)? && !touched;
    if !held.is_empty() {
        return Ok(());
    }
    for (_, name) in chain::Chain::ask(site, folder, mark.lineage).await?.ours() {
        chain::delete(site, folder, lock, name).await?;
    }
    if let Some(since) = overlays_since {
        let maps = marks::allocation(folder, spec).await?;
        folder.write("carry.json", &Carry { since: Mark { lineage: mark.lineage, attempt: since }, maps })?;
        chain::begin(site, folder, lock, &maps::name(mark.lineage, since)).await?;
    } else if honest {
        chain::begin(site, folder, lock, &maps::name(mark.lineage, mark.attempt)).await?;
    }
    Ok(())
}
