//! Which run of a machine is ours: whether the QEMU that has the disks open was started under our eyes.
//!
//! ```text
//!   start ─► a word of our own in the running machine's metadata (gone when it ends), the same in run.json
//!   capture ─► the same word? ─┬─ yes ─► its maps are believed
//!                              └─ no  ─► somebody else started it: nobody saw the images in between; its maps are deleted
//! ```
//! A map inside a qcow2 goes on by itself when libvirt starts the machine again, and cannot know of a program that wrote the
//! image meanwhile.

use std::fs::File;

use protocol::Fault;
use uuid::Uuid;
use xmltree::Element;

use super::document::Document;
use super::{Site, chain};
use crate::host::folder::Folder;
use crate::host::rest;

/// The namespace of our metadata.
const NAMESPACE: &str = "urn:sockeye:run";
/// The word of the run that is believed.
const NOTE: &str = "run.json";

/// Says of the run that began now that it is ours.
pub(crate) async fn claim(site: &Site, folder: &Folder, lock: &File) -> Result<(), Fault> {
    let word = Uuid::new_v4().to_string();
    let mut run = Element::new("run");
    run.set("word", &word);
    let run = run.written();
    let words = ["metadata", folder.name(), "--uri", NAMESPACE, "--key", "sockeye", "--set", &run, "--live"];
    let set = site.virsh.run(lock, &words).await;
    set.map_err(|why| folder.fault("cannot be told from another run of it", why))?;
    folder.write(NOTE, &word)
}

/// Whether the QEMU that runs the machine now was started under our eyes.
pub(crate) async fn is_ours(site: &Site, folder: &Folder) -> Result<bool, Fault> {
    let Some(noted) = folder.read::<String>(NOTE)? else { return Ok(false) };
    let told = site.virsh.ask(&["metadata", folder.name(), "--uri", NAMESPACE, "--live"]).await;
    #[cfg(feature = "sabotage")]
    if protocol::sabotage::is("restarted-run-believed") {
        return Ok(true);
    }
    let word = told.ok().and_then(|told| Element::read(&told).ok()?.has("word").map(String::from));
    Ok(word == Some(noted))
}

/// Sees to it that what the machine's maps say can be believed: those of a run that is not ours go.
pub(crate) async fn believed(site: &Site, folder: &Folder, lock: &File) -> Result<(), Fault> {
    if is_ours(site, folder).await? {
        return Ok(());
    }
    rest::unseen(folder)?;
    rest::doubt(folder, async || chain::forget_all(site, folder, lock).await).await?;
    claim(site, folder, lock).await
}
