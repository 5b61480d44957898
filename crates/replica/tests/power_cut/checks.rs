//! What must be true after every step of a schedule, whatever happened in it.

use std::collections::BTreeSet;

use protocol::Attempt;
use replica::{Content, Replica, View};

use crate::power_cut::schedule::{Disks, Model, Run};

impl Run {
    /// Whether the replica has the points and pins of `model`.
    pub fn is_found(&self, model: &Model, replica: &Replica) -> bool {
        let points = model.points.iter().map(|(attempt, _)| *attempt);
        // Of a first copy that was never sealed the model does not know.
        let half = model.half_written || (model.points.is_empty() && self.content == Content::Empty);
        replica.points().iter().map(|point| point.attempt).eq(points)
            && (replica.is_half_written() == model.half_written || half)
            && replica.pins() == model.pins.iter().copied().collect::<Vec<_>>()
    }

    /// Points may be gone from the model: not the newest, no pinned one, none that a view holds.
    pub fn adopt_fewer(&mut self, replica: &Replica) {
        let found: BTreeSet<Attempt> = replica.points().iter().map(|point| point.attempt).collect();
        let newest = self.model.points.last().map(|(attempt, _)| *attempt);
        let held = self.views.iter().map(|(view, _)| view.point().attempt).collect::<BTreeSet<_>>();
        let first = self.model.points.iter().position(|(attempt, _)| found.contains(attempt));
        let mut at = 0;
        self.model.points.retain(|(attempt, _)| {
            let stays = found.contains(attempt);
            at += 1;
            assert!(stays || !self.model.pins.contains(attempt), "the pinned point {attempt} was lost");
            assert!(stays || Some(*attempt) != newest, "the newest point {attempt} was lost");
            let thinned = first.is_some_and(|first| at > first);
            assert!(stays || !held.contains(attempt) || !thinned, "a view of {attempt} lost its point");
            stays
        });
        assert!(self.is_found(&self.model, replica), "points that were never sealed, or in another order");
    }

    /// The disks hold the newest point.
    pub fn check_disks(&mut self) {
        let original = (Attempt::start_of(0), self.original.clone());
        let existing = (self.content == Content::Existing && !self.model.half_written).then_some(&original);
        if let Some((attempt, content)) = self.model.points.last().or(existing) {
            self.counts.presents += 1;
            for (disk, (found, wanted)) in self.disks.iter().zip(content.iter()).enumerate() {
                assert!(
                    found.bytes() == *wanted,
                    "disk {disk} is not at {attempt}: {}",
                    differ(&found.bytes(), wanted)
                );
            }
        }
    }

    pub fn check_points(&mut self, replica: &Replica) {
        for (attempt, content) in self.model.points.clone() {
            if self.machine.power().off {
                return;
            }
            let view = replica.view(attempt).unwrap();
            self.check_view(&view, &content);
        }
    }

    pub fn check_view(&mut self, view: &View, content: &Disks) {
        if self.machine.power().off {
            // It went while a file was removed, which nobody waits for.
            return;
        }
        self.counts.views += 1;
        for (disk, wanted) in content.iter().enumerate() {
            let from = if self.dice.chance(50) { 0 } else { self.dice.below(wanted.len() as u64) as usize };
            let mut found = vec![0x55; 1 + self.dice.below((wanted.len() - from) as u64) as usize];
            view.read(disk, from as u64, &mut found).unwrap();
            let wanted = &wanted[from..from + found.len()];
            assert!(found == wanted, "{} disk {disk}: {}", view.point().attempt, differ(&found, wanted));
            let data = view.data(disk, from as u64, found.len() as u64).unwrap();
            let mut hollow = found.clone();
            for extent in data.extents() {
                hollow[extent.offset as usize - from..extent.end() as usize - from].fill(0);
            }
            assert!(hollow.iter().all(|byte| *byte == 0), "{} disk {disk}: data outside the map", view.point().attempt);
        }
    }
}

fn differ(found: &[u8], wanted: &[u8]) -> String {
    let first = found.iter().zip(wanted).position(|(a, b)| a != b);
    let count = found.iter().zip(wanted).filter(|(a, b)| a != b).count();
    format!("{count} of {} bytes differ, the first at {first:?}", wanted.len())
}
