//! Tells whether anybody but us wrote a disk of the platform's own while a replica stood on it.
//!
//! ```text
//!   quiet:    stamp now = stamp then ── same name        ≠ ── another name: whatever was known of the disk is in doubt
//!   writing:  stamp looked at ─► our writes … ─► flushed ─► another stamp, same name
//!   closed:   stamp noted at rest, read again by who opens the disk next
//! ```
//! A stamp is device, inode, size, time of change and time of the inode's change, which `cp -p` and `touch` cannot set back.
//!
//! # Always true
//! - Between two equal names nobody wrote but we: outside our own epochs for certain; within one, QEMU's lock on the image
//!   keeps everybody off who knows of it.
//! - A note counts only if the inode had rested for two seconds when it was looked at: a second write within one tick of the file
//!   system's clock leaves the same stamp.
//! - Where times prove nothing (devices, network file systems, such without fractions of a second, images that stand on
//!   others) there is no name.
//!
//! # If power fails
//! No note counts: what was written may be there without the time at which it was.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use protocol::Lineage;
use rustix::fs::statfs;
use serde::{Deserialize, Serialize};

/// So long an inode has rested whose times cannot be met again. The coarsest clock of the file systems below ticks each 10 ms.
const RESTED: Duration = Duration::from_secs(2);

/// Local file systems whose times tell of every write: ext, XFS, btrfs, tmpfs, ZFS, overlayfs, bcachefs, F2FS (statfs(2)).
const TELLING: [u64; 8] =
    [0xef53, 0x5846_5342, 0x9123_683e, 0x0102_1994, 0x2fc1_2fc1, 0x794c_7630, 0xca45_1a4e, 0xf2f5_2010];

/// The witness of one disk that is open.
pub(crate) struct Witness {
    path: PathBuf,
    note: PathBuf,
    state: Mutex<State>,
}

struct State {
    name: String,
    /// How it looked when our last write was done, or none was yet.
    last: Option<Look>,
    /// Writes of ours that are not flushed, and such that are being carried out.
    unflushed: u64,
    running: u64,
    noted: Option<String>,
}

/// How an image looks.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Look {
    stamp: String,
    changed: SystemTime,
}

/// What is kept of a disk at rest.
#[derive(Serialize, Deserialize)]
struct Note {
    name: String,
    stamp: String,
    /// The host's running since it was started.
    boot: String,
}

impl Witness {
    /// Of the image at `path`, which nobody has opened yet; `note` is kept with its replica.
    pub(crate) fn before_opening(path: &Path, note: &Path) -> Witness {
        let noted: Option<Note> = std::fs::read(note).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok());
        let now = look(path).map(|now| now.stamp);
        let same = noted.filter(|noted| Some(&noted.stamp) == now.as_ref() && Some(&noted.boot) == boot().as_ref());
        let name = same.map_or_else(fresh, |noted| noted.name);
        let state = State { name, last: None, unflushed: 0, running: 0, noted: None };
        Witness { path: path.to_path_buf(), note: note.to_path_buf(), state: Mutex::new(state) }
    }

    /// QEMU has opened the image, and perhaps written its own tables.
    pub(crate) fn opened(&self) {
        self.state().last = look(&self.path);
    }

    /// Carries out a write of ours.
    pub(crate) fn write<T>(&self, write: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        {
            let mut state = self.state();
            if state.unflushed == 0 {
                self.check(&mut state);
            }
            state.unflushed += 1;
            state.running += 1;
        }
        let done = write();
        self.state().running -= 1;
        done
    }

    /// Carries out a flush.
    pub(crate) fn flush(&self, flush: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
        let before = self.state().unflushed;
        flush()?;
        let mut state = self.state();
        if state.unflushed == before && before > 0 && state.running == 0 {
            state.last = look(&self.path);
            state.unflushed = 0;
        }
        Ok(())
    }

    /// The name of the time in which nobody else wrote; none where nobody can tell.
    pub(crate) fn unbroken(&self) -> Option<String> {
        let mut state = self.state();
        if state.unflushed == 0 {
            self.check(&mut state);
            self.keep(&mut state);
        }
        state.last.as_ref().map(|_| state.name.clone())
    }

    /// Looks whether somebody else wrote since our last write.
    fn check(&self, state: &mut State) {
        #[cfg(feature = "sabotage")]
        if protocol::sabotage::is("stamp-not-looked-at") {
            return;
        }
        let now = look(&self.path);
        if now != state.last {
            tracing::warn!(disk = %self.path.display(), "something else wrote to a disk that a replica stands on, or replaced it");
            (state.name, state.last) = (fresh(), now);
        }
    }

    /// Notes how it looks at rest, for who opens it next.
    fn keep(&self, state: &mut State) {
        let Some(last) = &state.last else { return };
        let rested = last.changed.elapsed().is_ok_and(|since| since >= RESTED);
        if !rested || state.noted.as_ref() == Some(&last.stamp) {
            return;
        }
        let Some(boot) = boot() else { return };
        let note = Note { name: state.name.clone(), stamp: last.stamp.clone(), boot };
        let new = self.note.with_extension("rest.new");
        let written = serde_json::to_vec(&note).map_err(io::Error::other);
        let written =
            written.and_then(|bytes| std::fs::write(&new, bytes)).and_then(|()| std::fs::rename(&new, &self.note));
        match written {
            Ok(()) => state.noted = Some(last.stamp.clone()),
            // The disk is read whole once more.
            Err(error) => tracing::warn!(note = %self.note.display(), %error, "how a disk looks cannot be noted"),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Two random identities are never the same.
fn fresh() -> String {
    Lineage::fresh().0.to_string()
}

fn boot() -> Option<String> {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()
}

/// How the image at `path` looks; none where that proves nothing.
fn look(path: &Path) -> Option<Look> {
    let meta = std::fs::metadata(path).ok().filter(std::fs::Metadata::is_file)?;
    let kind = statfs(path).ok()?.f_type.cast_unsigned() & 0xffff_ffff;
    let (modified, changed) = ((meta.mtime(), meta.mtime_nsec()), (meta.ctime(), meta.ctime_nsec()));
    if !TELLING.contains(&kind) || (modified.1 == 0 && changed.1 == 0) {
        return None;
    }
    let stamp = format!("{}:{}:{}:{modified:?}:{changed:?}", meta.dev(), meta.ino(), meta.size());
    let changed = Duration::new(u64::try_from(changed.0).ok()?, u32::try_from(changed.1).ok()?);
    Some(Look { stamp, changed: SystemTime::UNIX_EPOCH + changed })
}

#[cfg(test)]
mod tests;
