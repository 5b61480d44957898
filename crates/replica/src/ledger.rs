//! The log, folded: which points there are, which epoch is open, and which attempts were used.
//!
//! One door: [`Ledger::record`] appends to the log and folds the same record, so what is believed in memory is what an
//! opening after a power cut would believe.

use std::collections::BTreeMap;
use std::sync::Arc;

use protocol::{Attempt, ItemId, Lineage};

use crate::error::ReplicaError;
use crate::log::{Begun, Highest, LOG, Log, Record, Sealed};
use crate::manifest::FORMAT;
use crate::volume::Volume;

pub(crate) struct Ledger {
    log: Log,
    facts: Facts,
    name: String,
    volume: Arc<dyn Volume>,
}

/// What the records of a log come to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Facts {
    pub item: ItemId,
    pub lineage: Lineage,
    pub points: Vec<Sealed>,
    pub open: Option<Begun>,
    /// Whether an epoch was ever begun: the disks may hold anything but what the replica was made with.
    pub has_content: bool,
    highest: BTreeMap<u64, (u64, Option<u64>)>,
}

impl Facts {
    fn fold(&mut self, record: &Record) -> Result<(), &'static str> {
        match record {
            Record::Start { .. } => return Err("it starts twice"),
            Record::Begun(begun) => {
                self.open = Some(*begun);
                self.has_content = true;
                self.use_up(begun.attempt, false);
            }
            Record::Sealed(sealed) => {
                if sealed.opened != 0 && self.open.take().is_none_or(|open| open.opened != sealed.opened) {
                    return Err("it seals an epoch that was not open");
                }
                self.use_up(sealed.point.attempt, true);
                self.points.push(sealed.clone());
            }
            Record::RolledBack { opened } => {
                if self.open.take().is_none_or(|open| open.opened != *opened) {
                    return Err("it rolls back an epoch that was not open");
                }
            }
            Record::PrunedBefore { attempt } => {
                let first = self.points.iter().position(|sealed| sealed.point.attempt == *attempt);
                self.points.drain(..first.ok_or("it prunes before a point that does not exist")?);
            }
        }
        Ok(())
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
        };
        let points = self.points.iter().cloned().map(Record::Sealed);
        [start].into_iter().chain(points).chain(self.open.map(Record::Begun)).collect()
    }
}

impl Ledger {
    pub fn create(volume: Arc<dyn Volume>, item: ItemId, lineage: Lineage) -> Result<Ledger, ReplicaError> {
        let facts = Facts { item, lineage, points: vec![], open: None, has_content: false, highest: BTreeMap::new() };
        let log = Log::prepare(&volume, 1, &facts.records())?.put_in_place()?;
        Ok(Ledger { log, facts, name: volume.describe(LOG), volume })
    }

    pub fn open(volume: Arc<dyn Volume>) -> Result<Ledger, ReplicaError> {
        let name = volume.describe(LOG);
        let (log, records) = Log::open(volume.clone())?;
        let mut records = records.into_iter();
        let Some(Record::Start { format: FORMAT, item, lineage, highest, has_content }) = records.next() else {
            return Err(ReplicaError::damaged(name, "its first record is not one that this version knows"));
        };
        let highest = highest.into_iter().map(|h| (h.generation, (h.begun, h.sealed))).collect();
        let mut facts = Facts { item, lineage, points: vec![], open: None, has_content, highest };
        for record in records {
            // In a rewritten log the points come without their `Begun`.
            if let Record::Sealed(sealed) = &record
                && facts.open.is_none()
                && sealed.opened != 0
            {
                facts.use_up(sealed.point.attempt, true);
                facts.points.push(sealed.clone());
                continue;
            }
            facts.fold(&record).map_err(|why| ReplicaError::damaged(&name, why))?;
        }
        Ok(Ledger { log, facts, name, volume })
    }

    pub fn facts(&self) -> &Facts {
        &self.facts
    }

    /// The number of the next record, unique in the replica's life.
    pub fn next(&self) -> u64 {
        self.log.next
    }

    /// Makes sure that the records which end an epoch will find space.
    pub fn reserve(&mut self) -> Result<(), ReplicaError> {
        self.log.reserve()
    }

    /// Makes `record` true, durably. After an error nobody knows whether it is, and the replica must be opened anew.
    pub fn record(&mut self, record: &Record) -> Result<(), ReplicaError> {
        self.log.append(record)?;
        self.facts.fold(record).expect("only what follows from the facts is recorded");
        Ok(())
    }

    /// Drops records that say nothing any more, when they are most of the log. After an error the replica must be opened
    /// anew.
    pub fn tidy(&mut self) -> Result<(), ReplicaError> {
        if self.log.records > 4 * self.facts.points.len() + 64 {
            let records = self.facts.records();
            tracing::debug!(file = self.name, from = self.log.records, to = records.len(), "rewriting the log");
            match Log::prepare(&self.volume, self.log.next, &records) {
                Ok(prepared) => self.log = prepared.put_in_place()?,
                // The old log still says the same, at greater length.
                Err(error) => tracing::warn!(file = self.name, %error, "the log could not be rewritten shorter"),
            }
        }
        Ok(())
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
                let point = Point { attempt, cut_at_ms: 0, sealed_at_ms: 0, kind, changed_bytes: 0 };
                // Now and then the log is rewritten while an epoch is open.
                if number > 10 && number % 2 == 0 {
                    let points = &ledger.facts().points;
                    let attempt = points[points.len().saturating_sub(3)].point.attempt;
                    ledger.record(&Record::PrunedBefore { attempt }).unwrap();
                    let before = ledger.log.records;
                    ledger.tidy().unwrap();
                    rewritten += u64::from(ledger.log.records < before);
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
