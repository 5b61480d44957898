//! What stands beside an item without being part of its protected life: a test of its failover, and recovery points that
//! are served to people. Neither changes what is replicated, who may run, or what may be done with the item.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::id::{Attempt, DiskKey, SiteName};

/// A machine that runs from a recovery point to see whether it would, connected to nothing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct TestMachine {
    /// Its name at its site.
    pub machine: String,
    /// Its site.
    pub site: SiteName,
    /// The point that it was started from.
    pub point: Attempt,
    /// When that point was cut, ms since 1970.
    pub cut_at_ms: u64,
}

/// A recovery point that is served over NBD until somebody ends it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ServedView {
    /// The number of the job that began it, by which it is ended.
    pub number: i64,
    /// The site whose master target serves it.
    pub site: SiteName,
    /// The point.
    pub point: Attempt,
    /// Whether it can be written; what is written is thrown away with it.
    pub writable: bool,
    /// Where each disk is found.
    pub disks: Vec<ServedDisk>,
}

/// One disk of a served recovery point.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ServedDisk {
    /// The disk.
    pub disk: DiskKey,
    /// Its NBD URI, as the host of the master target reaches it.
    pub uri: String,
}

/// The longest name of a machine.
const LONGEST_NAME: usize = 64;
/// What a test machine's name ends with.
const SUFFIX: &str = "-test";

/// The name of a machine's test.
pub fn test_name(machine: &str) -> String {
    let room = LONGEST_NAME - SUFFIX.len();
    let kept: String = machine.chars().take(room).collect();
    format!("{kept}{SUFFIX}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_of_a_test_is_a_name_that_a_machine_can_have() {
        assert_eq!(test_name("web01"), "web01-test");
        let longest = test_name(&"x".repeat(64));
        assert!(longest.parse::<crate::ItemId>().is_ok() && longest.ends_with("x-test"), "{longest}");
    }
}
