//! The things that a schedule does, one at a time.

use std::sync::Arc;

use protocol::PointKind;
use replica::{Content, Replica, ReplicaError};

use crate::power_cut::schedule::{Disks, Else, Model, Run};

impl Run {
    /// One thing. On an error also what the model would be if it did happen.
    pub fn act(&mut self, replica: &Replica) -> Result<(), (ReplicaError, Else)> {
        let attempt = self.attempt();
        let plain = |error| (error, Else::Nothing);
        let count = self.model.points.len() as u64;
        match self.dice.below(18) {
            // An epoch: sealed, rolled back, or left.
            0..=6 => {
                let mut give_up = count > 0 && self.views.is_empty() && self.dice.chance(4);
                let half_written = Model { half_written: true, ..Model::default() };
                let again = if self.dice.chance(10) { 2 } else { 1 };
                for round in 0..again {
                    let (epoch, content) = match self.write(replica, attempt, give_up) {
                        Ok(begun) => begun,
                        Err(error) if give_up => return Err((error, Else::Or(half_written))),
                        Err(error) => return Err(plain(error)),
                    };
                    give_up = false;
                    if round + 1 < again {
                        // The sender comes back with the same attempt.
                        drop(epoch);
                        continue;
                    }
                    match self.dice.below(10) {
                        0 => {
                            epoch.roll_back().map_err(plain)?;
                            self.counts.rolled_back += 1;
                            self.check_disks();
                        }
                        1 => drop(epoch),
                        _ => {
                            let mut model = self.model.clone();
                            model.points.push((attempt, Arc::new(content)));
                            model.half_written = false;
                            match epoch.seal(self.used * 1000) {
                                Ok(point) => assert_eq!(point.attempt, attempt),
                                Err(error) => return Err((error, Else::Or(model))),
                            }
                            self.counts.sealed += 1;
                            self.model = model;
                            self.check_disks();
                        }
                    }
                }
            }
            7 if count > 0 => {
                let mut model = self.model.clone();
                let content = model.points.last().unwrap().1.clone();
                model.points.push((attempt, content));
                match replica.keep(attempt, 0, self.used * 1000, PointKind::Unreplicated) {
                    Ok(_) => self.model = model,
                    Err(error) => return Err((error, Else::Or(model))),
                }
            }
            8 if count > 0 => {
                let to = self.dice.below(count) as usize;
                let (to, content) = self.model.points[to].clone();
                let mut model = self.model.clone();
                model.points.push((attempt, content));
                match replica.roll_back_to(to, attempt, self.used * 1000) {
                    Ok(_) => self.model = model,
                    Err(error) => return Err((error, Else::Or(model))),
                }
                self.check_disks();
            }
            9 | 12 | 13 if count > 1 => return self.keep_fewer(replica),
            14 | 15 if count > 0 => return self.tend(replica),
            16 if count > 0 => return self.pin(replica),
            17 => self.spoil_a_run(),
            10 if count > 0 => {
                let (attempt, content) = self.model.points[self.dice.below(count) as usize].clone();
                let view = replica.view(attempt).map_err(plain)?;
                assert_eq!(view.point().attempt, attempt);
                self.views.push((view, content));
            }
            _ if count > 0 => {
                // Refused whatever happened before.
                let sealed = self.model.points[self.dice.below(count) as usize].0;
                let refused = replica.begin(&self.header(sealed)).err();
                if !self.machine.power().off {
                    assert!(
                        matches!(
                            refused,
                            Some(ReplicaError::AttemptUsed { .. } | ReplicaError::Failed(_) | ReplicaError::Io { .. })
                        ),
                        "{refused:?}"
                    );
                }
                if let Some(error @ (ReplicaError::Failed(_) | ReplicaError::Io { .. })) = refused {
                    return Err((error, Else::Nothing));
                }
            }
            _ => {
                let kept = replica.keep(attempt, 0, self.used * 1000, PointKind::CrashConsistent);
                let content: Arc<Disks> = Arc::new(self.disks.iter().map(|disk| disk.bytes()).collect());
                match kept {
                    Ok(_) => self.model.points.push((attempt, content)),
                    Err(ReplicaError::Inconsistent) => {
                        assert!(self.content == Content::Empty || self.model.half_written);
                    }
                    Err(error) => {
                        let points = vec![(attempt, content)];
                        return Err((error, Else::Or(Model { points, ..Model::default() })));
                    }
                }
            }
        }
        Ok(())
    }
}
