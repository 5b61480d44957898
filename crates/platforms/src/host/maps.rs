//! Change maps as QEMU's dirty bitmaps, whoever made them: what they are called, and reading one.
//!
//! # Always true
//! - The name is true: a map holds every change since the cut that it is named after, or is not believed. So nothing else has
//!   to be written down about it. (An overlay's may be completed by a carry, see [`super::marks`].)

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use nbd::{Client, Options, Uri, status};
use protocol::extent::{BlockMap, Extent};
use protocol::{Attempt, Lineage};

use super::image;

/// What all our maps' names begin with.
pub(crate) const PREFIX: &str = "sockeye-";
/// How long a tool may take to serve an image.
const SERVE_PATIENCE: Duration = Duration::from_secs(10);

/// The name of the map that counts from a cut.
pub(crate) fn name(lineage: Lineage, since: Attempt) -> String {
    format!("{PREFIX}{lineage}-{}-{}", since.generation, since.number)
}

/// The cut that a map of this lineage counts from; none for anybody else's.
pub(crate) fn since(lineage: Lineage, name: &str) -> Option<Attempt> {
    let marks = name.strip_prefix(&format!("{PREFIX}{lineage}-"))?;
    let (generation, number) = marks.split_once('-')?;
    Some(Attempt { generation: generation.parse().ok()?, number: number.parse().ok()? })
}

/// The blocks in the bitmap `bitmap` of an export, and the size of its disk.
pub(crate) async fn read(export: &Uri, bitmap: &str) -> Result<(BlockMap, u64), nbd::Error> {
    let context = status::dirty_bitmap(bitmap);
    let client = Client::connect(export, &Options::with_contexts([context.clone()])).await?;
    let size = client.size();
    let extents = client.block_status(&context, 0, size).await?;
    let dirty = extents.iter().filter(|extent| extent.flags & status::DIRTY != 0);
    Ok((dirty.map(|extent| Extent::new(extent.offset, extent.length)).collect(), size))
}

/// The union of some maps in a qcow2 that no hypervisor has open; it is served on `socket` meanwhile.
pub(crate) async fn read_image(image: &Path, names: &[String], socket: &Path) -> Result<BlockMap, String> {
    let mut union = BlockMap::new();
    for name in names {
        let _ = std::fs::remove_file(socket);
        let mut server = tokio::process::Command::new("qemu-nbd")
            .args(["--read-only", "--persistent", "--export-name=", "--bitmap", name, "--socket"])
            .arg(socket)
            .arg(image::alone(image))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .map_err(|why| format!("qemu-nbd: {why}"))?;
        let deadline = tokio::time::Instant::now() + SERVE_PATIENCE;
        let map = loop {
            match read(&Uri::unix(socket, ""), name).await {
                Ok((map, _)) => break Ok(map),
                Err(why) if tokio::time::Instant::now() > deadline => break Err(why.to_string()),
                Err(_) if server.try_wait().is_ok_and(|ended| ended.is_some()) => {
                    break Err("qemu-nbd refused it".to_string());
                }
                Err(_) => tokio::time::sleep(Duration::from_millis(10)).await,
            }
        };
        let _ = server.kill().await;
        let _ = std::fs::remove_file(socket);
        union = union.union(&map?);
    }
    Ok(union)
}
