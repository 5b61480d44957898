//! Letting go of a machine that stands still, and saying what its disks hold.
//!
//! ```text
//!   libvirt runs it   changes since the oldest map, read from a backup ─► QEMU ends ─► stamps
//!   it is off         the maps that the images keep, if nobody touched those since (see `rest`)
//!                     overlays: what they hold, since their mark (survives every crash)
//!                     else: unknown, and why
//! ```
//! # If power fails
//! Before QEMU ends: the next call does it all again. After: the images are asked.

use std::fs::File;

use protocol::fault::code;
use protocol::machine::{MachineSpec, Settled};
use protocol::position::Distrust;
use protocol::{Attempt, Fault, Lineage};

use super::chain::{self, Chain};
use super::domain::Target;
use super::life::{self, State};
use super::{Site, backup, relay, run};
use crate::host::folder::Folder;
use crate::host::rest::{self, Rest};
use crate::host::settled::{self, Maps};
use crate::host::{image, maps};

/// Settles the machine. The caller holds its lock.
pub(crate) async fn settle(site: &Site, folder: &Folder, lock: &File, lineage: Lineage) -> Result<Settled, Fault> {
    let (spec, targets) = site.known(folder).await?;
    let now = life::state(site, folder).await?;
    let rest = if now == State::Off { rest::look(folder, &spec)? } else { Rest::Unnoted };
    let known = match now {
        State::Running => {
            let what = format!("machine {} cannot be settled", folder.name());
            return Err(Fault::new(code::MACHINE_RUNNING, what, "its guest runs"));
        }
        State::Paused => {
            let known = alive(site, folder, lock, (&spec, targets), lineage).await?;
            life::destroy(site, folder, lock).await?;
            rest::note(folder, &spec)?;
            known
        }
        State::Off if rest == Rest::Touched => Err(Distrust::DiskTouched),
        State::Off => offline(site, folder, &spec, lineage, rest == Rest::Untouched).await?,
    };
    life::let_go(folder)?;
    relay::end(folder)?;
    settled::settled(folder, &spec, lineage, rest, known).await
}

/// The union of all maps of a machine whose guest stands still.
async fn alive(
    site: &Site,
    folder: &Folder,
    lock: &File,
    (spec, targets): (&MachineSpec, Vec<Target>),
    lineage: Lineage,
) -> Result<Result<(Attempt, Maps), Distrust>, Fault> {
    backup::end(site, folder, lock).await?;
    if rest::is_in_doubt(folder)? {
        return Ok(Err(Distrust::DiskTouched));
    }
    run::believed(site, folder, lock).await?;
    let (held, broken) = chain::held(site, folder, lineage).await?;
    let Some(oldest) = held.first() else { return Ok(Err(rest::why_lost(folder, broken)?)) };
    let disks: Vec<(Target, u64)> = targets.into_iter().zip(spec.disks.iter().map(|disk| disk.size)).collect();
    let changes = backup::read_changes(site, folder, lock, &disks, lineage, oldest.since).await?;
    let keys = disks.into_iter().map(|(target, _)| target.key);
    Ok(Ok((oldest.since, keys.zip(changes).collect())))
}

/// What the images keep, now that no QEMU has them open.
async fn offline(
    site: &Site,
    folder: &Folder,
    spec: &MachineSpec,
    lineage: Lineage,
    untouched: bool,
) -> Result<Result<(Attempt, Maps), Distrust>, Fault> {
    let unreadable = |why: String| folder.fault("has an image that cannot be read", why);
    let chain = Chain::ask(site, folder, lineage).await?;
    let ours = chain.ours();
    let mut images = Vec::new();
    let mut broken = false;
    // As many of the newest as all images keep: a map that is lost hides what is before it.
    let mut whole = chain.names.len();
    for disk in &spec.disks {
        let Some(path) = image::keeper(folder, &disk.source) else { return Ok(Err(Distrust::MapAbsent)) };
        // Somebody took a snapshot: part of the maps is in what is beneath it.
        if disk.source.overlay().is_none() && !image::stands_alone(&path).await.map_err(unreadable)? {
            return Ok(Err(Distrust::MapAbsent));
        }
        let kept = image::bitmaps(&path).await.map_err(unreadable)?;
        broken |= kept.iter().any(|map| map.inconsistent && maps::since(lineage, &map.name).is_some());
        let is_kept = |name: &&String| kept.iter().any(|map| map.name == **name && !map.inconsistent);
        whole = whole.min(chain.names.iter().rev().take_while(is_kept).count());
        images.push((disk, path));
    }
    let names = &chain.names[chain.names.len() - whole..];
    let oldest = ours.iter().find(|(_, name)| names.iter().any(|other| other == name));
    let Some((since, name)) = oldest else { return Ok(Err(rest::why_lost(folder, broken)?)) };
    if !untouched {
        return Ok(Err(Distrust::DiskTouched));
    }
    let mut found = Maps::new();
    for (disk, path) in images {
        let map = maps::read_image(&path, chain.from(name), &folder.file("nbd.sock")).await;
        found.insert(disk.key.clone(), map.map_err(unreadable)?);
    }
    Ok(Ok((*since, found)))
}
