//! What a host has beside machines: bridges, and folders in which disks can be made.

use std::path::Path;

use protocol::machine::Pool;

/// The host's bridges, by name.
pub(crate) fn bridges() -> Vec<String> {
    let all = std::fs::read_dir("/sys/class/net").into_iter().flatten().flatten();
    let bridges = all.filter(|entry| entry.path().join("bridge").is_dir());
    let mut names: Vec<String> = bridges.filter_map(|entry| entry.file_name().into_string().ok()).collect();
    names.sort();
    names
}

/// Why no disk can be made in a folder, if so.
pub(crate) fn refuses(folder: &Path) -> Option<String> {
    let may = rustix::fs::access(folder, rustix::fs::Access::WRITE_OK | rustix::fs::Access::EXEC_OK);
    may.err().map(|why| format!("{}: {why}", folder.display()))
}

/// A folder as a pool.
pub(crate) fn pool(name: &str, folder: &Path) -> std::io::Result<Pool> {
    let room = rustix::fs::statvfs(folder)?;
    Ok(Pool {
        name: name.into(),
        folder: Some(folder.to_string_lossy().into_owned()),
        size: room.f_blocks.saturating_mul(room.f_frsize),
        free: room.f_bavail.saturating_mul(room.f_frsize),
        refuses: refuses(folder),
    })
}
