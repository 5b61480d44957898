//! What a look at both disks found, in numbers, in sentences and as one line of JSON.

/// Sentences kept at most: a ledger that is all wrong shall not fill the memory or the console.
const SENTENCES_MOST: usize = 12;

/// The result of [`crate::verify`]. Counts are exact; the sentences name the first few problems.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    /// The highest record that stands on both disks: everything ever acknowledged is at most this. 0: none.
    pub highest: u64,
    /// The highest record on disk A; one more than `highest` if a record was in flight between the disks.
    pub highest_a: u64,
    /// The highest record on disk B.
    pub highest_b: u64,
    /// When the record `highest` was made, in milliseconds of the guest's wall clock.
    pub highest_made_ms: u64,
    /// Records that stand whole and equal on both disks. At most the ring's slots: older ones were overwritten.
    pub found: u64,
    /// Blocks of rings and scribbles that are neither whole nor empty, or stand in a wrong place.
    pub bad: u64,
    /// Records missing from a ring that must hold them: zeroed, or an older one in their place.
    pub gaps: u64,
    /// Records that do not continue the one before, or differ between the disks: two histories were mixed.
    pub forks: u64,
    /// Scribbles of another generation than the newest that the ring names for them.
    pub stale: u64,
    /// Disk B holds a record that disk A does not have: the disks were not cut at one instant.
    pub b_newer_than_a: bool,
    /// Disk A is ahead by more than the one record in flight: likewise.
    pub a_too_far_ahead: bool,
    /// The newest record was unfinished: on A only, or its last scribble was still to be written.
    pub in_flight: bool,
    /// Scribbles compared with what the ring says about them.
    pub scribbles_checked: u64,
    /// Seeded or empty data blocks compared; 0 if the data was not looked at.
    pub data_blocks_checked: u64,
    /// Those that differ from what was seeded.
    pub data_blocks_bad: u64,
    /// Boots that wrote to this ledger so far.
    pub boots: u32,
    /// The first problems, in words.
    pub problems: Vec<String>,
}

impl Report {
    /// Whether the disks are a prefix of what was written, cut at one instant. Says nothing about *how much* is
    /// there: ask [`Report::holds`] too.
    pub fn consistent(&self) -> bool {
        self.bad == 0
            && self.gaps == 0
            && self.forks == 0
            && self.stale == 0
            && self.data_blocks_bad == 0
            && !self.b_newer_than_a
            && !self.a_too_far_ahead
    }

    /// Whether the disks are consistent and hold record `at_least` (0: any number of records will do).
    pub fn holds(&self, at_least: u64) -> bool {
        self.consistent() && self.highest >= at_least
    }

    /// How many of the records up to `acknowledged` are lost.
    pub fn lost(&self, acknowledged: u64) -> u64 {
        acknowledged.saturating_sub(self.highest)
    }

    pub(crate) fn problem(&mut self, sentence: impl FnOnce() -> String) {
        if self.problems.len() < SENTENCES_MOST {
            self.problems.push(sentence());
        }
    }

    /// One line of JSON without the sentences: what the guest prints after `LEDGER `.
    pub fn to_json(&self) -> String {
        format!(
            concat!(
                "{{\"consistent\":{},\"highest\":{},\"highest_a\":{},\"highest_b\":{},\"highest_made_ms\":{},",
                "\"found\":{},\"bad\":{},\"gaps\":{},\"forks\":{},\"stale\":{},\"b_newer_than_a\":{},",
                "\"a_too_far_ahead\":{},\"in_flight\":{},\"scribbles_checked\":{},\"data_blocks_checked\":{},",
                "\"data_blocks_bad\":{},\"boots\":{}}}"
            ),
            self.consistent(),
            self.highest,
            self.highest_a,
            self.highest_b,
            self.highest_made_ms,
            self.found,
            self.bad,
            self.gaps,
            self.forks,
            self.stale,
            self.b_newer_than_a,
            self.a_too_far_ahead,
            self.in_flight,
            self.scribbles_checked,
            self.data_blocks_checked,
            self.data_blocks_bad,
            self.boots,
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_ledger_is_consistent_but_holds_no_record() {
        let report = Report::default();
        assert!(report.consistent() && report.holds(0) && !report.holds(1));
        assert_eq!(report.lost(7), 7);
    }

    #[test]
    fn every_count_of_damage_alone_makes_it_inconsistent() {
        let sound = Report { highest: 5, ..Report::default() };
        for damaged in [
            Report { bad: 1, ..sound.clone() },
            Report { gaps: 1, ..sound.clone() },
            Report { forks: 1, ..sound.clone() },
            Report { stale: 1, ..sound.clone() },
            Report { data_blocks_bad: 1, ..sound.clone() },
            Report { b_newer_than_a: true, ..sound.clone() },
            Report { a_too_far_ahead: true, ..sound.clone() },
        ] {
            assert!(!damaged.holds(5), "{damaged:?}");
        }
    }

    #[test]
    fn the_sentences_are_bounded() {
        let mut report = Report::default();
        (0..1000).for_each(|n| report.problem(|| n.to_string()));
        assert_eq!(report.problems.len(), SENTENCES_MOST);
    }
}
