//! Letting go of a machine that stands still, and saying what its disks hold.
//!
//! ```text
//!   QEMU lives   all maps merged into one, read ─► quit ─► stamps        exact, for every format
//!   QEMU gone    qcow2: consistent maps of every disk, read from the images, if nobody touched those since (see `rest`)
//!                overlays: what they hold, since their mark (survives every crash)
//!                else: unknown, and why
//! ```
//! # If power fails
//! Before `quit`: the next call does it all again. After: the images are asked, as for a QEMU that was killed.

use std::time::Duration;

use nbd::Uri;
use protocol::fault::code;
use protocol::machine::{MachineSpec, Power, Settled};
use protocol::position::Distrust;
use protocol::{Attempt, Fault, Lineage};
use serde_json::{Value, json};

use super::bitmap::{self, Bitmaps};
use super::qmp::{Qmp, QmpError};
use super::{changes, fleece, launch, power, process};
use crate::host::folder::Folder;
use crate::host::rest::{self, Rest};
use crate::host::settled::{self, Maps};
use crate::host::{image, maps};

/// How long QEMU may take to write its maps down and end.
const QUIT_PATIENCE: Duration = Duration::from_secs(60);
/// The map that everything is merged into.
const MERGED: &str = "sockeye-settle";

/// Settles the machine. The caller holds its lock.
pub(crate) async fn settle(folder: &Folder, lineage: Lineage) -> Result<Settled, Fault> {
    let spec = folder.known_spec()?;
    let now = power::power(folder).await?;
    let rest = if now == Power::Off { rest::look(folder, &spec)? } else { Rest::Unnoted };
    let known = match now {
        Power::Running => {
            return Err(Fault::new(
                code::MACHINE_RUNNING,
                format!("machine {} cannot be settled", folder.name()),
                "its guest runs",
            ));
        }
        Power::Paused | Power::Held => {
            let mut qmp = power::converse(folder).await?;
            let known = alive(folder, &spec, lineage, &mut qmp).await?;
            quit(folder, qmp).await?;
            rest::note(folder, &spec)?;
            known
        }
        Power::Off if rest == Rest::Touched => Err(Distrust::DiskTouched),
        Power::Off => offline(folder, &spec, lineage, rest == Rest::Untouched).await?,
    };
    settled::settled(folder, &spec, lineage, rest, known).await
}

/// The union of all maps that a QEMU whose guest stands still holds.
async fn alive(
    folder: &Folder,
    spec: &MachineSpec,
    lineage: Lineage,
    qmp: &mut Qmp,
) -> Result<Result<(Attempt, Maps), Distrust>, Fault> {
    let cannot = |why: QmpError| folder.fault("does not tell what changed", why);
    let nodes: Vec<String> = launch::nodes(spec).into_iter().map(|(node, _)| node).collect();
    fleece::sweep(folder, qmp, &nodes).await.map_err(cannot)?;
    if rest::is_in_doubt(folder)? {
        return Ok(Err(Distrust::DiskTouched));
    }
    let found = Bitmaps::ask(qmp, lineage, &nodes).await.map_err(cannot)?;
    let held = found.held();
    let Some(oldest) = held.first() else { return Ok(Err(rest::why_lost(folder, found.inconsistent())?)) };
    // Growing maps cannot be exported read-only, and making one stand still would be written into the image: so a copy.
    let names: Vec<String> = held.iter().map(|held| maps::name(lineage, held.since)).collect();
    let mut actions = Vec::new();
    for node in &nodes {
        let old = json!({ "node": node, "name": MERGED });
        let _ = qmp.execute("block-dirty-bitmap-remove", old).await; // left by a call that died
        let copy = json!({ "node": node, "name": MERGED, "granularity": bitmap::GRANULARITY, "persistent": false, "disabled": true });
        actions.push(json!({ "type": "block-dirty-bitmap-add", "data": copy }));
        let merge = json!({ "node": node, "target": MERGED, "bitmaps": names });
        actions.push(json!({ "type": "block-dirty-bitmap-merge", "data": merge }));
    }
    bitmap::transact(qmp, actions).await.map_err(cannot)?;
    changes::serve(folder, qmp).await.map_err(cannot)?;
    let mut maps = Maps::new();
    for (place, disk) in spec.disks.iter().enumerate() {
        let name = format!("settle-{}", disk.key);
        let export = json!({ "type": "nbd", "id": fleece::export(place), "node-name": nodes[place], "name": name, "bitmaps": [MERGED] });
        qmp.execute("block-export-add", export).await.map_err(cannot)?;
        let read = maps::read(&Uri::unix(changes::socket(folder), name), MERGED).await;
        let (map, _) = read.map_err(|why| folder.fault("does not tell what changed", why))?;
        maps.insert(disk.key.clone(), map);
    }
    fleece::sweep(folder, qmp, &nodes).await.map_err(cannot)?;
    Ok(Ok((oldest.since, maps)))
}

/// Ends QEMU, which writes everything down first.
async fn quit(folder: &Folder, mut qmp: Qmp) -> Result<(), Fault> {
    // It may end before it answers.
    let _ = qmp.execute("quit", Value::Null).await;
    if process::gone(folder, QUIT_PATIENCE).await {
        return Ok(());
    }
    Err(folder.fault("does not end", format!("its QEMU lives {} s after it was told to quit", QUIT_PATIENCE.as_secs())))
}

/// What the images keep, now that no QEMU has them open.
async fn offline(
    folder: &Folder,
    spec: &MachineSpec,
    lineage: Lineage,
    untouched: bool,
) -> Result<Result<(Attempt, Maps), Distrust>, Fault> {
    let unreadable = |why: String| folder.fault("has an image that cannot be read", why);
    let mut found = Vec::new();
    for disk in &spec.disks {
        let Some(path) = image::keeper(folder, &disk.source) else { return Ok(Err(Distrust::MapAbsent)) };
        found.push(bitmap::kept(&path, lineage).await.map_err(unreadable)?);
    }
    let found = Bitmaps::new(found);
    let held = found.held();
    let Some(oldest) = held.first() else { return Ok(Err(rest::why_lost(folder, found.inconsistent())?)) };
    if !untouched {
        return Ok(Err(Distrust::DiskTouched));
    }
    let names: Vec<String> = held.iter().map(|held| maps::name(lineage, held.since)).collect();
    let mut found = Maps::new();
    for disk in &spec.disks {
        let Some(path) = image::keeper(folder, &disk.source) else { return Ok(Err(Distrust::MapAbsent)) };
        let map = maps::read_image(&path, &names, &folder.file("nbd.sock")).await;
        found.insert(disk.key.clone(), map.map_err(unreadable)?);
    }
    Ok(Ok((oldest.since, found)))
}
