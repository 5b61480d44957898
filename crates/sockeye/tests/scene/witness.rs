//! Hears both consoles all the time, and so knows who wrote what, when, and that there was only one.
//!
//! The guest's clock is not this host's: it starts with a whole second and stands still with its processors. What was
//! heard is therefore stamped with this host's clock too, and the guest's clock is set against it.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, ensure};
use demo::world::{At, World};
use guest::console::Line;

/// A line of a guest.
#[derive(Debug, Clone)]
pub struct Heard {
    /// Where.
    pub at: At,
    /// When, ms since 1970 by this host's clock.
    pub heard_ms: u64,
    /// What.
    pub line: Line,
}

/// An acknowledged record.
#[derive(Debug, Clone, Copy)]
pub struct Ack {
    /// Where it was written.
    pub at: At,
    /// Its number.
    pub number: u64,
    /// By the guest's clock.
    pub guest_ms: u64,
    /// By this host's.
    pub heard_ms: u64,
}

/// This host's clock.
pub fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis() as u64
}

type Minutes = Arc<Mutex<Vec<Heard>>>;

/// Listens until it is dropped.
pub struct Witness {
    minutes: Minutes,
    over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Witness {
    /// Begins to listen at both sites.
    pub fn of(world: &World) -> Witness {
        let minutes = Minutes::default();
        let over = Arc::new(AtomicBool::new(false));
        let mut ears: Vec<Ear> = [At::Home, At::Cloud]
            .map(|at| Ear { at, path: world.console_file(at), file: None, part: Vec::new() })
            .into();
        let thread = std::thread::spawn({
            let (minutes, over) = (minutes.clone(), over.clone());
            move || {
                while !over.load(Ordering::Relaxed) {
                    ears.iter_mut().for_each(|ear| ear.listen(&minutes));
                    demo::pause(Duration::from_millis(20));
                }
            }
        });
        Witness { minutes, over, thread: Some(thread) }
    }

    fn minutes(&self) -> MutexGuard<'_, Vec<Heard>> {
        self.minutes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How much was heard so far: a mark for [`Witness::since`].
    pub fn mark(&self) -> usize {
        self.minutes().len()
    }

    /// What was heard since a mark.
    pub fn since(&self, mark: usize) -> Vec<Heard> {
        self.minutes()[mark..].to_vec()
    }

    /// All records acknowledged since a mark.
    pub fn acknowledged(&self, mark: usize) -> Vec<Ack> {
        let acks = self.since(mark).into_iter().filter_map(|heard| match heard.line {
            Line::Ack { number, ms } => Some(Ack { at: heard.at, number, guest_ms: ms, heard_ms: heard.heard_ms }),
            _ => None,
        });
        acks.collect()
    }

    /// Each record was acknowledged once, and none out of order: a second copy that ran, or one that had forgotten
    /// something, would write a number again.
    pub fn one_history(&self) -> anyhow::Result<u64> {
        let acks = self.acknowledged(0);
        let mut last: Option<Ack> = None;
        for ack in &acks {
            if let Some(before) = last {
                ensure!(ack.number > before.number, "after {before:?} came {ack:?}: two histories");
            }
            last = Some(*ack);
        }
        last.map(|last| last.number).context("nothing was acknowledged")
    }

    /// The longest time in which a guest that should be writing at `at` acknowledged nothing, from `from_ms` until now.
    pub fn longest_gap(&self, at: At, from_ms: u64) -> Duration {
        let acks = self.acknowledged(0);
        let mut last = from_ms;
        let mut longest = 0;
        for heard_ms in acks.iter().filter(|ack| ack.at == at).map(|ack| ack.heard_ms).chain([now_ms()]) {
            longest = longest.max(heard_ms.saturating_sub(last.max(from_ms)));
            last = heard_ms;
        }
        Duration::from_millis(longest)
    }

    /// How far this host's clock is ahead of the guest's at most, by what it acknowledged at `at` since `mark`, in ms.
    pub fn ahead_ms(&self, at: At, mark: usize) -> anyhow::Result<i64> {
        let acks = self.acknowledged(mark);
        let ahead = acks.iter().filter(|ack| ack.at == at).map(|ack| ack.heard_ms as i64 - ack.guest_ms as i64).min();
        ahead.context("nothing was acknowledged")
    }
}

impl Drop for Witness {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// One console, followed through being removed and begun anew.
struct Ear {
    at: At,
    path: PathBuf,
    file: Option<File>,
    part: Vec<u8>,
}

impl Ear {
    fn listen(&mut self, minutes: &Minutes) {
        let there = std::fs::metadata(&self.path).ok();
        if let Some(file) = &self.file
            && file.metadata().ok().map(|old| old.ino()) != there.as_ref().map(|there| there.ino())
        {
            self.hear(minutes);
            self.file = None;
            self.part.clear();
        }
        if self.file.is_none() && there.is_some() {
            self.file = File::open(&self.path).ok();
        }
        self.hear(minutes);
    }

    fn hear(&mut self, minutes: &Minutes) {
        let Some(file) = &mut self.file else { return };
        let (length, here) = (file.metadata().map_or(0, |there| there.len()), file.stream_position().unwrap_or(0));
        if length < here {
            let _ = file.seek(SeekFrom::Start(0));
            self.part.clear();
        }
        let _ = file.read_to_end(&mut self.part);
        let Some(end) = self.part.iter().rposition(|byte| *byte == b'\n') else { return };
        let whole: Vec<u8> = self.part.drain(..=end).collect();
        let heard_ms = now_ms();
        let mut minutes = minutes.lock().unwrap_or_else(PoisonError::into_inner);
        for line in String::from_utf8_lossy(&whole).split('\n').filter_map(Line::parse) {
            minutes.push(Heard { at: self.at, heard_ms, line });
        }
    }
}
