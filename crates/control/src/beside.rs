//! What stands beside an item: a test of its failover, and recovery points served to people.
//!
//! ```text
//!   item ─┬─ stage, wish, copies      one job at a time, by the table
//!         ├─ test    (at most one)    a job of its own to begin it, another to end it
//!         └─ views   (any number)     the same
//! ```
//! Both stand on a view of a replica, which moves, commits and roll backs leave as it is. So neither is a stage, and their
//! jobs keep no job of the item waiting: only an item that is forgotten takes them with it.

use protocol::beside::{ServedDisk, ServedView, TestMachine, test_name};
use protocol::fault::{Fault, code};
use protocol::id::{Attempt, SiteName};
use protocol::rest::Operation;
use protocol::stage::{Side, Stage};
use serde::{Deserialize, Serialize};

use crate::item::Item;

/// A test machine that runs, or is about to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Test {
    /// The side whose replica it stands on.
    pub side: Side,
    /// The machine's name.
    pub machine: String,
    /// The point.
    pub point: Attempt,
    /// When it was cut, ms since 1970.
    pub cut_at_ms: u64,
}

/// A point that is served.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct View {
    /// The job that began it.
    pub number: i64,
    /// The side whose replica is read.
    pub side: Side,
    /// The point.
    pub point: Attempt,
    /// Whether it can be written.
    pub writable: bool,
    /// Where its disks are found.
    pub disks: Vec<ServedDisk>,
}

impl Item {
    /// The side whose recovery points are meant where nobody says: the one that receives, or where nothing was ever received
    /// there, the one where the machine runs. Before a move is committed it is the latter too: the machine stands on one of
    /// the points that are kept there.
    pub fn keeper(&self) -> Side {
        let here = self.stage.runs_at();
        let kept_at = |side: Side| self.copy(side).master_target.is_some();
        let moved = matches!(self.stage, Stage::CommitPending { .. }) && kept_at(here);
        if kept_at(here.other()) && !moved { here.other() } else { here }
    }

    /// The side that `site` is for the item, or the keeper where none is given.
    pub fn keeper_at(&self, site: Option<&SiteName>) -> Result<Side, Fault> {
        let Some(site) = site else { return Ok(self.keeper()) };
        [Side::Home, Side::Away].into_iter().find(|side| self.site(*side) == site).ok_or_else(|| {
            let cause = format!("{} is replicated between {} and {}", self.name, self.home, self.away);
            Fault::new(code::UNKNOWN_SITE, format!("{site} is not a site of {}", self.name), cause)
        })
    }

    /// The item's test as people see it.
    pub fn test_machine(&self) -> Option<TestMachine> {
        self.test.as_ref().map(|test| TestMachine {
            machine: test.machine.clone(),
            site: self.site(test.side).clone(),
            point: test.point,
            cut_at_ms: test.cut_at_ms,
        })
    }

    /// The name of the item's test.
    pub fn test_name(&self) -> String {
        test_name(&self.spec.name)
    }

    /// A view as people see it.
    pub fn served(&self, view: &View) -> ServedView {
        ServedView {
            number: view.number,
            site: self.site(view.side).clone(),
            point: view.point,
            writable: view.writable,
            disks: view.disks.clone(),
        }
    }

    /// The view of that number.
    pub fn view(&self, number: i64) -> Option<&View> {
        self.views.iter().find(|view| view.number == number)
    }
}

/// Which of an item's jobs wait for each other: those of one lane.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lane {
    /// What changes the item's stage.
    Item,
    /// What begins and ends its test.
    Test,
    /// What begins and ends views.
    Views,
    /// What only reads.
    Verify,
}

impl Lane {
    /// The lane of an operation.
    pub fn of(operation: &Operation) -> Lane {
        match operation {
            Operation::TestFailover { .. } | Operation::Cleanup {} => Lane::Test,
            Operation::View { .. } | Operation::EndView { .. } => Lane::Views,
            Operation::Verify { .. } => Lane::Verify,
            _ => Lane::Item,
        }
    }

    /// As the database has it.
    pub fn text(self) -> &'static str {
        match self {
            Lane::Item => "item",
            Lane::Test => "test",
            Lane::Views => "views",
            Lane::Verify => "verify",
        }
    }
}

/// Whether two operations on one item cannot be at work at the same time.
pub fn exclude(one: &Operation, other: &Operation) -> bool {
    let forgets = |operation: &Operation| matches!(operation, Operation::Unprotect { .. });
    Lane::of(one) == Lane::of(other) || forgets(one) || forgets(other)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_test_keeps_nothing_waiting_but_what_would_forget_its_item() {
        let test = Operation::TestFailover { point: None, network: None };
        let view = Operation::EndView { view: 1 };
        assert!(exclude(&test, &Operation::Cleanup {}) && exclude(&view, &view));
        assert!(!exclude(&test, &Operation::Commit { keep_history: false }) && !exclude(&Operation::Cancel {}, &test));
        let verify = Operation::Verify { site: None };
        assert!(!exclude(&test, &view) && !exclude(&verify, &Operation::Cancel {}) && exclude(&verify, &verify));
        let forget = Operation::Unprotect { delete: false };
        assert!(
            exclude(&test, &forget)
                && exclude(&forget, &view)
                && exclude(&forget, &Operation::Commit { keep_history: false })
        );
    }
}
