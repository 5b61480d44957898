//! The log, folded: which points there are, which epoch is open, and which attempts were used.
//!
//! One door: [`Ledger::record`] appends to the log and folds the same record, so what is believed in memory is what an
//! opening after a power cut would believe.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use protocol::{Attempt, ItemId, Lineage};

use crate::error::ReplicaError;
use crate::log::{Begun, Highest, LOG, Log, Record, Sealed};
use crate::manifest::FORMAT;
use crate::volume::Volume;

pub(crate) struct Ledger {
    log: Log,
    facts: Facts,
    /// What was recorded since a shorter log began to be written beside this one.
    since: Option<Vec<Record>>,
    volume: Arc<dyn Volume>,
}

/// What the records of a log come to. Points go by their numbers, which rise.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Facts {
    pub item: ItemId,
    pub lineage: Lineage,
    pub points: BTreeMap<u64, Sealed>,
    pub pins: BTreeSet<u64>,
    pub open: Option<Begun>,
    /// Whether an epoch was ever begun: the disks may hold anything but what the replica was made with.
    pub has_content: bool,
    /// Whether an epoch that kept no before-images has written and was not sealed: the disks hold nothing that can be used.
    pub half_written: bool,
    highest: BTreeMap<u64, (u64, Option<u64>)>,
}

impl Facts {
    fn new(item: ItemId, lineage: Lineage) -> Facts {
        let (points, pins, highest) = (BTreeMap::new(), BTreeSet::new(), BTreeMap::new());
        Facts { item, lineage, points, pins, open: None, has_content: false, half_written: false, highest }
    }

    fn fold(&mut self, record: &Record) -> Result<(), &'static str> {
        match record {
            Record::Start { .. } => return Err("it starts twice"),
            Record::Begun(begun) => {
                self.open = Some(*begun);
                self.has_content = true;
                if !begun.journalled {
                    self.half_written = true;
                    self.points.clear();
                    self.pins.clear();
                }
                self.use_up(begun.attempt, false);
            }
            Record::Sealed(sealed) => {
                // Without an open epoch: a point that was kept, or one in a log that was written anew.
                if self.open.take().is_some_and(|open| open.opened != sealed.opened) {
                    return Err("it seals an epoch that was not open");
                }
                if self.points.last_key_value().is_some_and(|(last, _)| *last >= sealed.opened) {
                    return Err("its points are not in their order");
                }
                self.half_written = false;
                self.use_up(sealed.point.attempt, true);
                self.points.insert(sealed.opened, sealed.clone());
            }
            Record::RolledBack { opened } => {
                if self.open.take().is_none_or(|open| open.opened != *opened) {
                    return Err("it rolls back an epoch that was not open");
                }
            }
            Record::PrunedBefore { point } => {
                if !self.points.contains_key(point) || self.pins.range(..point).next().is_some() {
                    return Err("it prunes before a point that does not exist, or a pinned one");
                }
                self.points = self.points.split_off(point);
            }
            Record::Merging { .. } => {}
            Record::Thinned { after, to, segments } => {
                if after >= to || !self.points.contains_key(after) || self.pins.range(after + 1..*to).next().is_some() {
                    return Err("it thins away points that do not exist, or a pinned one");
                }
                let kept = self.points.get_mut(to).ok_or("it thins up to a point that does not exist")?;
                kept.segments.clone_from(segments);
                let gone: Vec<u64> = self.points.range(after + 1..*to).map(|(number, _)| *number).collect();
                gone.iter().for_each(|number| drop(self.points.remove(number)));
            }
            Record::Pinned { point } => {
                if !self.points.contains_key(point) {
                    return Err("it pins a point that does not exist");
                }
                self.pins.insert(*point);
            }
            Record::Unpinned { point } => {
                self.pins.remove(point);
            }
        }
        Ok(())
    }

    /// The number of the point of `attempt`.
    pub fn number(&self, attempt: Attempt) -> Result<u64, ReplicaError> {
        let found = self.points.iter().rev().find(|(_, sealed)| sealed.point.attempt == attempt);
        found.map(|(number, _)| *number).ok_or(ReplicaError::PointGone(attempt))
    }

    fn use_up(&mut self, attempt: Attempt, sealed: bool) {
        let (begun, newest) = self.highest.entry(attempt.generation).or_default();
        *begun = attempt.number.max(*begun);
        if sealed {
            *newest = (*newest).max(Some(attempt.number));
        }
    }

    /// Whether `attempt` may become a point: newer than every sealed one of its generation, and not older than any that
    /// was begun. An attempt that was begun and not sealed may be begun again as long as no newer one was.
    pub fn unused(&self, attempt: Attempt) -> Result<(), ReplicaError> {
        match self.highest.get(&attempt.generation) {
            Some((begun, sealed)) if attempt.number < *begun || sealed.is_some_and(|s| attempt.number <= s) => {
                let newest = Attempt { generation: attempt.generation, number: *begun };
                Err(ReplicaError::AttemptUsed { attempt, newest })
            }
            _ => Ok(()),
        }
    }

    /// The fewest records that come to the same facts.
    fn records(&self) -> Vec<Record> {
        let highest = self.highest.iter();
        let highest = highest.map(|(generation, (begun, sealed))| Highest {
            generation: *generation,
            begun: *begun,
            sealed: *sealed,
        });
        let start = Record::Start {
            format: FORMAT,
            item: self.item.clone(),
            lineage: self.lineage,
            highest: highest.collect(),
            has_content: self.has_content,
            half_written: self.half_written,
        };
        let points = self.points.values().cloned().map(Record::Sealed);
        let pins = self.pins.iter().map(|point| Record::Pinned { point: *point });
        [start].into_iter().chain(points).chain(pins).chain(self.open.map(Record::Begun)).collect()
    }
}

impl Ledger {
    pub fn create(volume: Arc<dyn Volume>, item: ItemId, lineage: Lineage) -> Result<Ledger, ReplicaError> {
        let facts = Facts::new(item, lineage);
        let log = Log::prepare(&volume, 1, &facts.records())?.put_in_place()?;
        Ok(Ledger { log, facts, since: None, volume })
    }

    pub fn open(volume: Arc<dyn Volume>) -> Result<Ledger, ReplicaError> {
        let name = volume.describe(LOG);
        let (log, records) = Log::open(volume.clone())?;
        let mut records = records.into_iter();
        let Some(Record::Start { format: FORMAT, item, lineage, highest, has_content, half_written }) = records.next()
        else {
            return Err(ReplicaError::damaged(name, "its first record is not one that this version knows"));
        };
        let highest = highest.into_iter().map(|h| (h.generation, (h.begun, h.sealed))).collect();
        let mut facts = Facts { has_content, half_written, highest, ..Facts::new(item, lineage) };
        for record in records {
            facts.fold(&record).map_err(|why| ReplicaError::damaged(&name, why))?;
        }
        Ok(Ledger { log, facts, since: None, volume })
    }

    pub fn facts(&self) -> &Facts {
        &self.facts
    }

    /// The number of the next record, unique in the replica's life.
    pub fn next(&self) -> u64 {
        self.log.next
    }

    /// How long the log is (bytes).
    pub fn length(&self) -> u64 {
        self.log.length()
    }

    /// Makes sure that the records which end an epoch will find space. Comes before every record that does not end one.
    pub fn reserve(&mut self) -> Result<(), ReplicaError> {
        self.log.reserve()
    }

    /// Makes `record` true, durably. After an error nobody knows whether it is, and the replica must be opened anew.
    pub fn record(&mut self, record: &Record) -> Result<(), ReplicaError> {
        self.log.append(record)?;
        self.facts.fold(record).expect("only what follows from the facts is recorded");
        if let Some(since) = &mut self.since {
            since.push(record.clone());
        }
        Ok(())
    }

    /// When most records say nothing any more: those that are enough, to be written beside the log while it goes on.
    pub fn begin_shortening(&mut self) -> Option<Shortening> {
        if self.log.records <= 4 * self.facts.points.len() + self.facts.pins.len() + 64 {
            return None;
        }
        self.since = Some(Vec::new());
        Some(Shortening { first: self.log.next, facts: self.facts.clone(), volume: self.volume.clone() })
    }

    /// Makes the shorter log the log, with what was recorded meanwhile. After an error in the last step (`Err`) the
    /// replica must be opened anew; when there is no shorter log, the old one says the same at greater length.
    pub fn finish_shortening(&mut self, shorter: Result<Log, ReplicaError>) -> Result<(), ReplicaError> {
        let since = self.since.take().unwrap_or_default();
        let caught_up = shorter.and_then(|mut log| {
            log.append_all(&since)?;
            log.reserve()?;
            Ok(log)
        });
        match caught_up {
            Ok(log) => self.log = log.put_in_place()?,
            Err(error) => tracing::warn!(item = %self.facts.item, %error, "the log could not be written shorter"),
        }
        Ok(())
    }
}

/// A shorter log about to be written.
pub(crate) struct Shortening {
    first: u64,
    facts: Facts,
    volume: Arc<dyn Volume>,
}

impl Shortening {
    /// Writes it, however long that takes: nobody waits.
    pub fn write(self) -> Result<Log, ReplicaError> {
        Log::prepare(&self.volume, self.first, &self.facts.records())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::volume::Folder;
    use protocol::{Point, PointKind};

    fn at(number: u64) -> Attempt {
        Attempt { generation: 1 + number / 100, number: number % 100 }
    }

    #[test]
    fn what_an_opening_believes_is_what_was_believed_before_also_after_old_records_were_dropped() {
        let directory = tempfile::tempdir().unwrap();
        let volume: Arc<dyn Volume> = Arc::new(Folder::open(directory.path()).unwrap());
        let mut ledger = Ledger::create(volume.clone(), "web01".parse().unwrap(), Lineage::fresh()).unwrap();
        let mut rewritten = 0;
        for number in 1..250u64 {
            let opened = ledger.next();
            ledger.reserve().unwrap();
            ledger.record(&Record::Begun(Begun { opened, attempt: at(number), journalled: true })).unwrap();
            if number % 7 == 0 {
                ledger.record(&Record::RolledBack { opened }).unwrap();
            } else {
                let (attempt, kind) = (at(number), PointKind::CrashConsistent);
                let point = Point { attempt, cut_at_ms: 0, sealed_at_ms: 0, kind, changed_bytes: 0, freeze: None };
                // Now and then the log is rewritten while an epoch is open.
                if number > 10 && number % 2 == 0 {
                    let points: Vec<u64> = ledger.facts().points.keys().copied().collect();
                    let shorter = ledger.begin_shortening().map(Shortening::write);
                    // Recorded while the shorter log is written.
                    let old = points.len().saturating_sub(5);
                    if number % 4 == 0 && points.len() > 5 {
                        let (after, to) = (points[old], points[old + 2]);
                        ledger.record(&Record::Thinned { after, to, segments: vec![] }).unwrap();
                        ledger.record(&Record::Pinned { point: to }).unwrap();
                        ledger.record(&Record::Unpinned { point: to }).unwrap();
                    }
                    ledger.record(&Record::PrunedBefore { point: points[old] }).unwrap();
                    rewritten += u64::from(shorter.is_some());
                    if let Some(shorter) = shorter {
                        ledger.finish_shortening(shorter).unwrap();
                    }
                }
                ledger.record(&Record::Sealed(Sealed { point, opened, segments: vec![] })).unwrap();
            }
            if number % 10 < 3 {
                let again = Ledger::open(volume.clone()).unwrap();
                assert_eq!(again.facts(), ledger.facts(), "after {number}");
                assert_eq!(again.next(), ledger.next());
                ledger = again;
            }
        }
        assert!(rewritten >= 2, "rewritten {rewritten} times");
        for used in [1, 99, 100, 150, 248, 245] {
            assert!(matches!(ledger.facts().unused(at(used)), Err(ReplicaError::AttemptUsed { .. })), "{used}");
        }
        ledger.facts().unused(at(250)).unwrap();
    }
}
