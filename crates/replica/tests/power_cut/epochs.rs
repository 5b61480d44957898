//! Epochs of a schedule: random batches, with what the disks hold after them.

use std::collections::VecDeque;

use bytes::Bytes;
use protocol::epoch::{Basis, DiskSize};
use protocol::{Attempt, BLOCK, EpochHeader, Freeze, PointKind};
use replica::{Content, Disk, Epoch, Payload, Replica, ReplicaError, Write};

use crate::power_cut::schedule::{Disks, Model, Run};

impl Run {
    pub fn header(&self, attempt: Attempt) -> EpochHeader {
        EpochHeader {
            lineage: self.lineage,
            attempt,
            base: self.model.points.last().map(|(attempt, _)| *attempt),
            basis: Basis::Tracked,
            cut_at_ms: 0,
            disks: self.records().into_iter().map(|r| DiskSize { disk: r.key, size: r.size }).collect(),
            kind: if attempt.number.is_multiple_of(5) { PointKind::AppConsistent } else { PointKind::CrashConsistent },
            freeze: attempt.number.is_multiple_of(5).then_some(Freeze::Done {
                file_systems: 1,
                freeze_ms: attempt.number,
                frozen_ms: 9,
            }),
            expected_bytes: 0,
        }
    }

    pub fn attempt(&mut self) -> Attempt {
        self.used += 1;
        Attempt { generation: 1, number: self.used }
    }

    fn batch(&mut self, content: &mut Disks) -> Vec<Write> {
        let mut batch = Vec::new();
        for _ in 0..1 + self.dice.below(5) {
            let disk = self.dice.below(self.disks.len() as u64) as usize;
            let size = self.disks[disk].size();
            let offset = self.dice.below(size);
            let most = if self.dice.chance(10) { size } else { 9000 };
            let mut length = (1 + self.dice.below(most)).min(size - offset);
            let mut offset = offset;
            if self.dice.chance(40) {
                offset = offset / 4096 * 4096;
                length = length.next_multiple_of(4096).min(size - offset);
            }
            let range = offset as usize..(offset + length) as usize;
            let payload = if self.dice.chance(25) {
                content[disk][range].fill(0);
                Payload::Zero(length)
            } else {
                // Data with blank sectors in it now and then.
                let mut bytes = vec![self.dice.roll() as u8; length as usize];
                if self.dice.chance(50) {
                    bytes.fill_with(|| self.dice.roll() as u8);
                }
                for sector in bytes.chunks_mut(512) {
                    if self.dice.chance(10) {
                        sector.fill(0);
                    }
                }
                content[disk][range].copy_from_slice(&bytes);
                Payload::Data(Bytes::from(bytes))
            };
            batch.push(Write { disk: disk as u16, offset, payload });
        }
        batch
    }

    /// An epoch with its batches; gives the epoch back if it is still open.
    /// If the way back is given up, no point is left when it has begun.
    pub fn write(
        &mut self,
        replica: &Replica,
        attempt: Attempt,
        give_up: bool,
    ) -> Result<(Epoch, Disks), ReplicaError> {
        let first = self.model.points.is_empty() && (self.content == Content::Empty || self.model.half_written);
        let header = self.header(attempt);
        let resume = self.dice.chance(60);
        let mut epoch = match () {
            () if give_up => replica.begin_without_way_back(&header),
            () if resume => replica.resume(&header),
            () => replica.begin(&header),
        }?;
        let mut inherited = epoch.is_resumed();
        self.counts.resumed += u64::from(inherited);
        let newest = self.model.points.last().map(|(newest, _)| *newest).filter(|_| inherited && self.dice.chance(10));
        if let Some(newest) = newest
            && replica.changed_since(newest)?.values().any(|changed| !changed.is_empty())
        {
            // Nothing of what it inherited is looked at.
            return match epoch.seal(self.used * 1000) {
                Err(ReplicaError::Unproven) => self.write(replica, attempt, false),
                Err(error) => Err(error),
                Ok(_) => panic!("an epoch was sealed with what another attempt had written"),
            };
        }
        let mut content: Disks = match self.model.points.last() {
            Some((_, content)) => content.as_ref().clone(),
            None => self.original.as_ref().clone(),
        };
        if give_up {
            self.model = Model { half_written: true, ..Model::default() };
            self.counts.given_up += 1;
        }
        if first {
            // A first copy onto disks of which nothing is known sends everything.
            for (disk, bytes) in content.iter_mut().enumerate() {
                bytes.chunks_mut(5000).for_each(|chunk| chunk.fill(self.dice.roll() as u8 & 3));
                let payload = Payload::Data(Bytes::from(bytes.clone()));
                epoch.apply(&[Write { disk: disk as u16, offset: 0, payload }])?;
            }
        }
        // Batches are prepared before their turn, as another thread does it.
        let (ahead, mut prepared) = (epoch.ahead(), VecDeque::new());
        let most = self.dice.below(3) as usize;
        for _ in 0..self.dice.below(5) {
            if inherited && prepared.is_empty() && self.dice.chance(30) {
                inherited = false;
                self.compare(&mut epoch, &mut content)?;
            }
            let batch = self.batch(&mut content);
            prepared.push_back(ahead.prepare(batch)?);
            if prepared.len() > most {
                epoch.apply_prepared(prepared.pop_front().unwrap())?;
            }
            if self.dice.chance(30) {
                self.check_points(replica);
            }
        }
        for batch in prepared {
            epoch.apply_prepared(batch)?;
        }
        if inherited {
            self.compare(&mut epoch, &mut content)?;
        }
        Ok((epoch, content))
    }

    /// Looks at all that the epoch inherited, and overwrites what is not what the disks are to hold. Some of it is what
    /// they are to hold: the source had not changed it since.
    fn compare(&mut self, epoch: &mut Epoch, content: &mut Disks) -> Result<(), ReplicaError> {
        for (disk, content) in content.iter_mut().enumerate() {
            for (block, wanted) in content.chunks_mut(BLOCK as usize).enumerate() {
                let offset = block as u64 * BLOCK;
                let mut found = vec![0x55; wanted.len()];
                if !epoch.look(disk, offset, &mut found)? || found == wanted {
                    continue;
                }
                if self.dice.chance(50) {
                    wanted.copy_from_slice(&found);
                    continue;
                }
                self.counts.corrected += 1;
                let payload = Payload::Data(Bytes::copy_from_slice(wanted));
                epoch.apply(&[Write { disk: disk as u16, offset, payload }])?;
            }
        }
        Ok(())
    }
}
