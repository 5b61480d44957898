//! From what was typed to what the server is asked for.

use std::time::Duration;

use protocol::id::ItemId;
use protocol::rest::{FailoverKind, Operation, Request};

use crate::cli::{Change, Then, Verb, Which};
use crate::ending::Trouble;

/// The request of a verb that changes an item, and how it is to be carried out.
///
/// # Errors
/// The verb is none of those (a mistake of ours, said as one).
pub fn of(verb: Verb) -> Result<(Request, Change), Trouble> {
    let (item, operation, change): (ItemId, Operation, Change) = match verb {
        Verb::Protect(protect) => {
            let machine = protect.vm.to_string();
            let interval_ms = millis(protect.interval);
            let operation = Operation::Protect { machine, from: protect.from, to: protect.to, interval_ms };
            (protect.vm, operation, protect.change)
        }
        Verb::Unprotect(unprotect) => {
            (unprotect.item, Operation::Unprotect { delete: unprotect.delete }, unprotect.change)
        }
        Verb::Failover(failover) => {
            let (shut_down_timeout_ms, then_power_off) =
                (millis(failover.stopping.shut_down_timeout), failover.stopping.then == Some(Then::PowerOff));
            let kind = if failover.planned {
                FailoverKind::Planned { shut_down_timeout_ms, then_power_off }
            } else {
                FailoverKind::Unplanned { shut_down: failover.shut_down.into() }
            };
            let point = match failover.point {
                Which::Latest => None,
                Which::This(point) => Some(point),
            };
            (failover.item, Operation::Failover { kind, point }, failover.change)
        }
        Verb::Reprotect(reprotect) | Verb::Reverse(reprotect) => {
            let operation = Operation::Reprotect { sync: reprotect.sync.into(), shut_down: reprotect.shut_down };
            (reprotect.item, operation, reprotect.change)
        }
        Verb::Failback(failback) => {
            let operation = Operation::Failback {
                sync: failback.sync.into(),
                offline: failback.offline,
                complete: failback.complete,
                shut_down: failback.shut_down,
                shut_down_timeout_ms: millis(failback.stopping.shut_down_timeout),
                then_power_off: failback.stopping.then == Some(Then::PowerOff),
            };
            (failback.item, operation, failback.change)
        }
        Verb::Commit(commit) => (commit.item, Operation::Commit { keep_history: commit.keep_history }, commit.change),
        Verb::Fold(on) => (on.item, Operation::Fold {}, on.change),
        Verb::Complete(on) => (on.item, Operation::Complete {}, on.change),
        Verb::Cancel(on) => (on.item, Operation::Cancel {}, on.change),
        other => return Err(Trouble::usage("this verb changes no item", format!("{other:?}"))),
    };
    Ok((Request { item, operation }, change))
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::Cli;
    use clap::Parser;
    use protocol::order::Sync;
    use protocol::rest::ShutDownFirst;

    fn operation(line: &str) -> Operation {
        of(Cli::parse_from(line.split(' ')).verb).unwrap().0.operation
    }

    #[test]
    fn what_is_typed_is_what_is_asked_for() {
        let point = Some("1.42".parse().unwrap());
        let kind = FailoverKind::Unplanned { shut_down: ShutDownFirst::Skip };
        assert_eq!(
            operation("sockeye failover web01 --unplanned --shut-down skip --point 1.42"),
            Operation::Failover { kind, point }
        );
        let kind = FailoverKind::Planned { shut_down_timeout_ms: 10_000, then_power_off: true };
        assert_eq!(
            operation("sockeye failover web01 --planned --shut-down-timeout 10s --then power-off"),
            Operation::Failover { kind, point: None }
        );
        assert_eq!(
            operation("sockeye failback web01 --sync compare --offline"),
            Operation::Failback {
                sync: Sync::Compare,
                offline: true,
                complete: false,
                shut_down: false,
                shut_down_timeout_ms: 300_000,
                then_power_off: false
            }
        );
        let reprotect = Operation::Reprotect { sync: Sync::Tracked, shut_down: true };
        assert_eq!(operation("sockeye reverse web01 --shut-down"), reprotect);
        assert_eq!(operation("sockeye reprotect web01 --shut-down"), reprotect);
        assert_eq!(operation("sockeye unprotect web01"), Operation::Unprotect { delete: false });
    }
}
