//! Keeps what the recent epochs took, and makes a [`Pace`] of it.
//!
//! Only the last few of each kind count: a link that became slower is believed within seconds. Large and small epochs are
//! kept apart, because a quiet guest's small ones would push out all that says how fast bytes go.

use std::collections::VecDeque;
use std::time::Duration;

use protocol::pace::{Pace, TELLING};

/// Large epochs, and compares, that the rates are made of.
const LARGE: usize = 8;
/// Deltas that the rate of changes is made of.
const DELTAS: usize = 16;
/// Epochs that say what the next one may take.
const LAST: usize = 3;

/// How long an epoch waited for what.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Parts {
    /// For what is to be sent.
    pub(crate) reading: Duration,
    /// For the link to take it.
    pub(crate) sending: Duration,
    /// For the target to make it durable, once all was sent.
    pub(crate) sealing: Duration,
    /// Not waited for, but told by the target: its own work.
    pub(crate) taking: Duration,
}

/// One epoch as it went.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Lap {
    /// Bytes of the blocks that it carried.
    pub(crate) carried: u64,
    /// Bytes that were compared for it, if that is how they were found.
    pub(crate) compared: Option<u64>,
    /// Since the cut before, if it carried what changed since that and nothing else.
    pub(crate) since: Option<Duration>,
    /// All of it, from before its cut to the end.
    pub(crate) took: Duration,
    pub(crate) parts: Parts,
}

/// The recent epochs of one replication.
#[derive(Debug, Default)]
pub(crate) struct Laps {
    large: VecDeque<Lap>,
    compares: VecDeque<Lap>,
    deltas: VecDeque<Lap>,
    // The very last ones: all deltas, or all compares where nothing tells what changes.
    last: VecDeque<Lap>,
}

impl Laps {
    /// Takes one more in.
    pub(crate) fn note(&mut self, lap: Lap) {
        if lap.compared.is_some() {
            push(&mut self.compares, lap, LARGE);
        } else if lap.carried >= TELLING {
            push(&mut self.large, lap, LARGE);
        }
        if lap.since.is_some() {
            push(&mut self.deltas, lap, DELTAS);
        }
        if self.last.back().is_some_and(|before| before.since.is_some() != lap.since.is_some()) {
            self.last.clear();
        }
        if lap.since.is_some() || lap.compared.is_some() {
            push(&mut self.last, lap, LAST);
        }
    }

    /// What they amount to.
    pub(crate) fn pace(&self) -> Pace {
        let us = |time: Duration| u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        let mut pace = Pace::default();
        for lap in &self.large {
            pace.carried += lap.carried;
            pace.carrying_us += us(lap.took);
            pace.reading_us += us(lap.parts.reading);
            pace.sending_us += us(lap.parts.sending);
            pace.taking_us += us(lap.parts.taking);
        }
        for lap in &self.compares {
            pace.compared += lap.compared.unwrap_or(0);
            pace.comparing_us += us(lap.took);
        }
        for lap in &self.deltas {
            pace.changed += lap.carried;
            pace.changing_us += us(lap.since.unwrap_or_default());
        }
        if self.last.len() >= LAST {
            pace.last_bytes = self.last.iter().map(|lap| lap.carried).max();
            pace.last_us = self.last.iter().map(|lap| us(lap.took)).max();
        }
        pace
    }
}

fn push(list: &mut VecDeque<Lap>, lap: Lap, most: usize) {
    if list.len() >= most {
        list.pop_front();
    }
    list.push_back(lap);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn delta(carried: u64, took_ms: u64) -> Lap {
        Lap {
            carried,
            compared: None,
            since: Some(Duration::from_secs(1)),
            took: Duration::from_millis(took_ms),
            parts: Parts::default(),
        }
    }

    #[test]
    fn small_epochs_say_how_much_changes_and_not_how_fast_it_goes() {
        let mut laps = Laps::default();
        laps.note(Lap { since: None, ..delta(100 << 20, 2000) });
        assert_eq!((laps.pace().rate(), laps.pace().change_rate()), (Some(50 << 20), None));
        for _ in 0..40 {
            laps.note(delta(64 << 10, 20));
        }
        let pace = laps.pace();
        assert_eq!((pace.rate(), pace.change_rate()), (Some(50 << 20), Some(64 << 10)), "the first copy still tells");
        assert_eq!((pace.last_bytes, pace.last_delta_ms()), (Some(64 << 10), Some(40)));
    }

    #[test]
    fn a_link_that_became_slower_is_believed_soon() {
        let mut laps = Laps::default();
        (0..LARGE).for_each(|_| laps.note(delta(10 << 20, 100)));
        assert_eq!(laps.pace().rate(), Some(100 << 20));
        (0..LARGE).for_each(|_| laps.note(delta(10 << 20, 10_000)));
        assert_eq!(laps.pace().rate(), Some(1 << 20));
        assert!(laps.pace().is_outrun(), "10 MiB a second change");
    }

    #[test]
    fn what_is_compared_is_no_measure_of_what_is_carried() {
        let mut laps = Laps::default();
        laps.note(Lap { compared: Some(1 << 30), since: None, ..delta(2 << 20, 4000) });
        let pace = laps.pace();
        assert_eq!((pace.rate(), pace.compare_rate(), pace.last_us), (None, Some(256 << 20), None));
    }

    #[test]
    fn what_the_next_epoch_takes_is_told_by_the_last_ones_of_its_kind() {
        let compare = Lap { compared: Some(1 << 30), since: None, ..delta(2 << 20, 4000) };
        let mut laps = Laps::default();
        (0..2).for_each(|_| laps.note(compare));
        assert_eq!(laps.pace().last_us, None);
        laps.note(compare);
        assert_eq!(laps.pace().last_us, Some(4_000_000), "a machine whose changes nobody tells is compared each time");
        (0..2).for_each(|_| laps.note(delta(1 << 20, 30)));
        assert_eq!(laps.pace().last_us, None, "a compare says nothing of deltas");
        laps.note(delta(1 << 20, 20));
        assert_eq!(laps.pace().last_us, Some(30_000));
    }
}
