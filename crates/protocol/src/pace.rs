//! Pace: how fast the epochs of one direction go, as the process server measured them.
//!
//! ```text
//!   cut ── choose ──┬── waits for reads ──┬── all is sent ── waits for the target ── sealed ── forget
//!                   └── waits for the link┘
//!   the whole of it is what an epoch takes; what each part took says what limits it
//! ```
//! An epoch that carries little tells what an epoch costs at the least, and nothing of how fast bytes go. So the rate is
//! that of epochs of [`TELLING`] bytes or more, and is none until there was one.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// An epoch that carries less says nothing of a rate (guessed: some tens of blocks, more than a socket's buffer).
pub const TELLING: u64 = 1 << 20;

/// What the recent epochs of one direction cost. A rate is a quotient of two sums, so that large epochs count for more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema, Default)]
#[serde(default)]
pub struct Pace {
    /// Bytes of blocks that the epochs carried from which the rate is.
    pub carried: u64,
    /// What these epochs took, from before their cut until the source had forgotten what they carried, in microseconds.
    pub carrying_us: u64,
    /// Of that: waiting for reads at the source.
    pub reading_us: u64,
    /// Of that: waiting until the link took more.
    pub sending_us: u64,
    /// Of that: what the target says that it worked on them. It does so while others are sent.
    pub taking_us: u64,
    /// Bytes of both sides that compares looked at.
    pub compared: u64,
    /// What those compares took, in microseconds.
    pub comparing_us: u64,
    /// Bytes that changed at the source between recent cuts.
    pub changed: u64,
    /// The time between those cuts, in microseconds.
    pub changing_us: u64,
    /// Bytes of the largest of the last three epochs, which were all deltas, or all compares; none before there were three.
    pub last_bytes: Option<u64>,
    /// What the longest of them took, in microseconds.
    pub last_us: Option<u64>,
}

/// What keeps a movement from being faster (H18).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Limit {
    /// Reading the disks at the source.
    SourceDisk,
    /// The wire between the two sides.
    Wire,
    /// The target: its disks and its journal.
    Target,
    /// Nothing but the number of changed blocks: there are few.
    ChangedBlocks,
    /// The guest: it changes blocks faster than they can be carried.
    Churn,
    /// A bandwidth cap.
    Cap,
}

impl std::fmt::Display for Limit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Limit::SourceDisk => "reading at the source",
            Limit::Wire => "the wire",
            Limit::Target => "the target's disks",
            Limit::ChangedBlocks => "the number of changed blocks",
            Limit::Churn => "the guest, which writes faster than it can be carried",
            Limit::Cap => "the bandwidth cap",
        })
    }
}

impl Pace {
    /// Bytes of changed blocks that can be carried in a second.
    pub fn rate(&self) -> Option<u64> {
        per_second(self.carried, self.carrying_us)
    }

    /// Bytes that a compare gets through in a second.
    pub fn compare_rate(&self) -> Option<u64> {
        per_second(self.compared, self.comparing_us)
    }

    /// Bytes that change in a second.
    pub fn change_rate(&self) -> Option<u64> {
        (self.changing_us > 0).then(|| quotient(self.changed, self.changing_us))
    }

    /// The same, and where it says nothing, what was known before it.
    #[must_use]
    pub fn or(self, before: Pace) -> Pace {
        let mut pace = self;
        if pace.carried == 0 {
            (pace.carried, pace.carrying_us) = (before.carried, before.carrying_us);
            (pace.reading_us, pace.sending_us, pace.taking_us) =
                (before.reading_us, before.sending_us, before.taking_us);
        }
        if pace.compared == 0 {
            (pace.compared, pace.comparing_us) = (before.compared, before.comparing_us);
        }
        if pace.changing_us == 0 {
            (pace.changed, pace.changing_us) = (before.changed, before.changing_us);
        }
        if pace.last_us.is_none() {
            (pace.last_bytes, pace.last_us) = (before.last_bytes, before.last_us);
        }
        pace
    }

    /// Whether the guest changes more than can be carried.
    pub fn is_outrun(&self) -> bool {
        matches!((self.change_rate(), self.rate()), (Some(changes), Some(rate)) if changes >= rate)
    }

    /// What a last delta takes after the machine is off, in ms: an epoch may be under way then, and the last one follows it.
    pub fn last_delta_ms(&self) -> Option<u64> {
        self.last_us.map(|us| us.saturating_mul(2).div_ceil(1000))
    }

    /// What limits it, as far as anything was measured.
    pub fn limit(&self) -> Option<Limit> {
        if self.is_outrun() {
            return Some(Limit::Churn);
        }
        if self.carried == 0 {
            return self.last_us.map(|_| Limit::ChangedBlocks);
        }
        // A target that works for most of the time is what the link waits for.
        if self.taking_us >= self.carrying_us / 10 * 7 {
            return Some(Limit::Target);
        }
        Some(if self.reading_us >= self.sending_us { Limit::SourceDisk } else { Limit::Wire })
    }

    /// Bytes of changed blocks that can be carried in a second under a bandwidth cap (bits per second), if there is one, and
    /// what limits that.
    pub fn under(&self, cap: Option<u64>) -> (Option<u64>, Option<Limit>) {
        match (self.rate(), cap.map(|bits| (bits / 8).max(1))) {
            // What was measured under a cap is a little below it: an epoch is not only sent.
            (Some(rate), Some(cap)) if rate.saturating_add(rate / 8) >= cap => (Some(rate.min(cap)), Some(Limit::Cap)),
            (rate, _) => (rate, self.limit()),
        }
    }
}

/// None where there is nothing to divide.
fn per_second(bytes: u64, us: u64) -> Option<u64> {
    (bytes > 0 && us > 0).then(|| quotient(bytes, us).max(1))
}

fn quotient(bytes: u64, us: u64) -> u64 {
    u64::try_from(u128::from(bytes) * 1_000_000 / u128::from(us)).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_not_measured_is_not_known() {
        let nothing = Pace::default();
        assert_eq!((nothing.rate(), nothing.change_rate(), nothing.compare_rate()), (None, None, None));
        assert_eq!((nothing.last_delta_ms(), nothing.limit(), nothing.is_outrun()), (None, None, false));
        let idle = Pace { changing_us: 3_000_000, last_bytes: Some(0), last_us: Some(20_000), ..nothing };
        assert_eq!((idle.change_rate(), idle.last_delta_ms()), (Some(0), Some(40)), "nothing changed, as was measured");
        assert_eq!((idle.rate(), idle.limit()), (None, Some(Limit::ChangedBlocks)));
    }

    #[test]
    fn the_part_that_takes_the_time_is_what_limits() {
        let pace = |reading_us, sending_us, taking_us| Pace {
            carried: 100 << 20,
            carrying_us: 1_000_000,
            reading_us,
            sending_us,
            taking_us,
            ..Pace::default()
        };
        assert_eq!(pace(0, 0, 0).rate(), Some(100 << 20));
        assert_eq!(pace(800_000, 100_000, 300_000).limit(), Some(Limit::SourceDisk));
        assert_eq!(pace(100_000, 800_000, 300_000).limit(), Some(Limit::Wire));
        assert_eq!(pace(100_000, 800_000, 900_000).limit(), Some(Limit::Target), "the link waits for it");
        let outrun = Pace { changed: 200 << 20, changing_us: 1_000_000, ..pace(0, 1, 0) };
        assert_eq!((outrun.is_outrun(), outrun.limit()), (true, Some(Limit::Churn)));
    }

    #[test]
    fn a_cap_limits_what_could_be_carried_faster_or_hardly_slower() {
        let pace = Pace { carried: 1_000_000, carrying_us: 1_000_000, sending_us: 900_000, ..Pace::default() };
        assert_eq!(pace.under(None), (Some(1_000_000), Some(Limit::Wire)));
        assert_eq!(pace.under(Some(80_000_000)), (Some(1_000_000), Some(Limit::Wire)), "it is far from that");
        assert_eq!(pace.under(Some(4_000_000)), (Some(500_000), Some(Limit::Cap)));
        assert_eq!(pace.under(Some(8_400_000)), (Some(1_000_000), Some(Limit::Cap)), "that is how it was measured");
        let outrun = Pace { changed: 2_000_000, changing_us: 1_000_000, ..pace };
        assert_eq!(outrun.under(Some(80_000_000)).1, Some(Limit::Churn));
        assert_eq!(outrun.under(Some(4_000_000)).1, Some(Limit::Cap));
        assert_eq!(Pace::default().under(Some(4_000_000)), (None, None), "a cap is no measurement");
    }
}
