//! What a schedule does to the history: pin, thin, prune, tend, and spoil what can be made anew.

use protocol::Retention;
use protocol::retention::{Budget, Spacing, choose};
use replica::{Did, Replica, ReplicaError};

use crate::power_cut::schedule::{Else, Run};

type Done = Result<(), (ReplicaError, Else)>;

impl Run {
    pub fn pin(&mut self, replica: &Replica) -> Done {
        let mut model = self.model.clone();
        let (attempt, _) = model.points[self.dice.below(model.points.len() as u64) as usize];
        let done = if self.dice.chance(40) {
            model.pins.insert(attempt);
            self.counts.pins += 1;
            replica.pin(attempt)
        } else {
            model.pins.remove(&attempt);
            replica.unpin(attempt)
        };
        match done {
            Ok(()) => self.model = model,
            Err(error) => return Err((error, Else::Or(model))),
        }
        assert!(self.is_found(&self.model, replica));
        Ok(())
    }

    /// Prunes before a point, or thins one away.
    pub fn keep_fewer(&mut self, replica: &Replica) -> Done {
        let before = self.model.points.len();
        let chosen = self.dice.below(before as u64) as usize;
        let (attempt, _) = self.model.points[chosen];
        if self.dice.chance(40) {
            let done = replica.prune_before(attempt).map_err(|error| (error, Else::Fewer));
            let gone: Vec<_> = self.model.points[..chosen].iter().map(|(attempt, _)| *attempt).collect();
            done?;
            let held: Vec<_> = self.views.iter().map(|(view, _)| view.point().attempt).collect();
            self.adopt_fewer(replica);
            for attempt in gone {
                let stays = self.model.pins.contains(&attempt) || held.contains(&attempt);
                let found = replica.view(attempt);
                assert!(stays || matches!(found, Err(ReplicaError::PointGone(_) | ReplicaError::Io { .. })));
            }
            self.counts.pruned += (before - self.model.points.len()) as u64;
        } else if chosen > 0 && chosen + 1 < before {
            let pinned = self.model.pins.contains(&attempt);
            let held = self.views.iter().any(|(view, _)| view.point().attempt == attempt);
            let thinned = replica.thin(attempt).map_err(|error| (error, Else::Fewer))?;
            assert!(thinned != (pinned || held), "a point is thinned away unless it is pinned or held");
            self.adopt_fewer(replica);
            assert_eq!(before - self.model.points.len(), usize::from(thinned));
            self.counts.thinned += u64::from(thinned);
        }
        self.check_points(replica);
        Ok(())
    }

    /// Applies a policy until it leaves nothing to do, and makes runs.
    pub fn tend(&mut self, replica: &Replica) -> Done {
        let spacing = |every, until| Spacing { one_every_seconds: every, until_seconds: until };
        let all = self.dice.below(30);
        let reach = all + 1 + self.dice.below(60);
        let policy = Retention {
            all_for_seconds: all,
            then: vec![spacing(1 + self.dice.below(8), reach)],
            app_consistent: self.dice.chance(50).then_some(spacing(7, 50)),
            budget: self.dice.chance(20).then_some(Budget { bytes: 200_000, alarm_percent: 80 }),
        };
        let now = self.used * 1000;
        loop {
            let before = self.model.points.len();
            let tended = replica.tend(&policy, now, &[]).map_err(|error| (error, Else::Fewer))?;
            self.adopt_fewer(replica);
            let gone = before - self.model.points.len();
            match tended.did {
                Did::Nothing => break,
                Did::Pruned { points } => {
                    assert_eq!(points, gone);
                    self.counts.pruned += gone as u64;
                }
                Did::Thinned { points } => {
                    assert_eq!(points, gone);
                    self.counts.thinned += gone as u64;
                }
                Did::Indexed => self.counts.indexed += 1,
                Did::Shortened => self.counts.rewrites += 1,
            }
            if self.dice.chance(30) {
                self.check_points(replica);
            }
        }
        let held: Vec<_> = self.views.iter().map(|(view, _)| view.point().attempt).collect();
        let left = choose(&replica.points(), &self.model.pins, &policy, now);
        assert!(left.iter().all(|attempt| held.contains(attempt)), "{left:?} should be gone");
        self.check_points(replica);
        Ok(())
    }

    /// Flips a bit in a run, or cuts it off: nobody may notice.
    pub fn spoil_a_run(&mut self) {
        let runs = self.retention.ending(".run");
        if !runs.is_empty() {
            let run = &runs[self.dice.below(runs.len() as u64) as usize];
            self.retention.spoil(run, self.dice.roll());
            self.counts.spoilt += 1;
        }
    }
}
