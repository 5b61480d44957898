//! What a site's guest prints, read while it grows.

use std::io::{Read, Seek, SeekFrom};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::bail;
use guest::console::Line;

/// A guest's console at one site.
#[derive(Debug, Clone)]
pub struct Console {
    path: PathBuf,
    from: u64,
}

/// What a guest found on its disks when it started.
#[derive(Debug, Clone, serde::Deserialize)]
pub struct Found {
    /// Whether the disks are a prefix of what was written, cut at one instant.
    pub consistent: bool,
    /// The highest record on both disks.
    pub highest: u64,
    /// When it was made, by the guest's wall clock.
    pub highest_made_ms: u64,
    /// Records that stand whole on both disks (older ones were overwritten).
    pub found: u64,
    /// Overwritten blocks that were compared with what the records say of them.
    pub scribbles_checked: u64,
}

impl Console {
    /// What is printed from now on into `path`.
    pub fn from_now(path: PathBuf) -> Console {
        let from = std::fs::metadata(&path).map_or(0, |metadata| metadata.len());
        Console { path, from }
    }

    /// Everything that is printed into `path`.
    pub fn whole(path: PathBuf) -> Console {
        Console { path, from: 0 }
    }

    /// The guest's lines so far.
    pub fn lines(&self) -> Vec<Line> {
        self.text().split('\n').filter_map(Line::parse).collect()
    }

    /// All that came so far.
    pub fn text(&self) -> String {
        let mut bytes = Vec::new();
        if let Ok(mut file) = std::fs::File::open(&self.path) {
            // A machine that was removed and raised again begins a new, shorter console.
            let length = file.metadata().map_or(0, |metadata| metadata.len());
            let from = if length < self.from { 0 } else { self.from };
            if file.seek(SeekFrom::Start(from)).is_ok() && file.read_to_end(&mut bytes).is_err() {
                bytes.clear();
            }
        }
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Waits until `wanted` finds something in the lines.
    ///
    /// # Errors
    /// When the time is over or the guest reports an error.
    pub fn wait<T>(&self, what: &str, within: Duration, wanted: impl Fn(&[Line]) -> Option<T>) -> anyhow::Result<T> {
        let deadline = Instant::now() + within;
        loop {
            let lines = self.lines();
            if let Some(found) = wanted(&lines) {
                return Ok(found);
            }
            if let Some(Line::Error(text)) = lines.iter().find(|line| matches!(line, Line::Error(_))) {
                bail!("the guest reports: {text} (waiting for {what}; console: {})", self.path.display());
            }
            if Instant::now() > deadline {
                bail!("no {what} within {} s (console: {})", within.as_secs(), self.path.display());
            }
            crate::pause(Duration::from_millis(20));
        }
    }

    /// What the guest found at its start.
    ///
    /// # Errors
    /// Those of [`Console::wait`].
    pub fn found(&self) -> anyhow::Result<Found> {
        self.wait("report of the guest's disks", Duration::from_secs(120), |lines| {
            lines.iter().find_map(|line| match line {
                Line::Ledger(json) => serde_json::from_str(json).ok(),
                _ => None,
            })
        })
    }

    /// Acknowledged records: number and the guest's wall clock in ms.
    pub fn acknowledged(&self) -> Vec<(u64, u64)> {
        let lines = self.lines();
        lines
            .iter()
            .filter_map(|line| if let Line::Ack { number, ms } = line { Some((*number, *ms)) } else { None })
            .collect()
    }

    /// Waits until `more` records were acknowledged, and gives the first of them.
    ///
    /// # Errors
    /// Those of [`Console::wait`].
    pub fn writes(&self, more: usize) -> anyhow::Result<(u64, u64)> {
        self.wait("acknowledged records", Duration::from_secs(120), |_| {
            let acknowledged = self.acknowledged();
            (acknowledged.len() >= more).then(|| acknowledged[0])
        })
    }

    /// The record after which the guest said goodbye, if it did.
    pub fn bye(&self) -> Option<(u64, u64)> {
        self.lines()
            .iter()
            .find_map(|line| if let Line::Bye { number, ms } = line { Some((*number, *ms)) } else { None })
    }
}
