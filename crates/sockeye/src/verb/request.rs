//! From what was typed to what the server is asked for.

use std::time::Duration;

use protocol::epoch::PointKind;
use protocol::fault::{Fault, code};
use protocol::id::{Attempt, ItemId, SiteName};
use protocol::rest::{FailoverKind, Operation, Request};

use crate::cli::{Change, Then, Verb, Which};
use crate::client::Client;
use crate::ending::{Ending, Trouble};
use crate::show::words;

/// The request of a verb that changes an item, and how it is to be carried out.
///
/// # Errors
/// No point was cut by the time that was given, or the server was not reached to ask for that; the verb is none of those (a
/// mistake of ours, said as one).
pub async fn of(client: &Client, verb: Verb) -> Result<(Request, Change), Trouble> {
    let (item, operation, change): (ItemId, Operation, Change) = match verb {
        Verb::Protect(protect) => {
            let machine = protect.vm.to_string();
            let interval_ms = millis(protect.interval);
            let (from, to, policy) = (protect.from, protect.to, protect.policy);
            let networks = protect.networks.into_iter().collect();
            let addresses = protect.addresses;
            let operation = Operation::Protect { machine, from, to, interval_ms, policy, networks, addresses };
            (protect.vm, operation, protect.change)
        }
        Verb::Unprotect(unprotect) => {
            (unprotect.item, Operation::Unprotect { delete: unprotect.delete }, unprotect.change)
        }
        Verb::Failover(failover) => {
            let (shut_down_timeout_ms, then_power_off) =
                (millis(failover.stopping.shut_down_timeout), failover.stopping.then == Some(Then::PowerOff));
            let point = which(client, &failover.item, failover.point, None).await?;
            let operation = if failover.test {
                Operation::TestFailover { point, network: failover.network }
            } else if failover.planned {
                let max_downtime_ms = millis(failover.max_downtime);
                let kind = FailoverKind::Planned { shut_down_timeout_ms, then_power_off, max_downtime_ms };
                Operation::Failover { kind, point }
            } else {
                Operation::Failover { kind: FailoverKind::Unplanned { shut_down: failover.shut_down.into() }, point }
            };
            (failover.item, operation, failover.change)
        }
        Verb::ChangePoint(to) => {
            // It is the side where the machine runs whose points are meant.
            let site = match to.point {
                Which::By(_) | Which::LatestApp => Some(client.item(&to.item).await?.read.runs_at),
                Which::Latest | Which::This(_) => None,
            };
            let point = which(client, &to.item, to.point, site.as_ref()).await?;
            (to.item, Operation::ChangePoint { point }, to.change)
        }
        Verb::Cleanup(on) => (on.item, Operation::Cleanup {}, on.change),
        Verb::View(view) => {
            let operation = match view.end {
                Some(view) => Operation::EndView { view },
                None => {
                    let wanted = view.point.unwrap_or(Which::Latest);
                    let point = which(client, &view.item, wanted, view.at.as_ref()).await?;
                    Operation::View { point, site: view.at, writable: view.writable }
                }
            };
            (view.item, operation, view.change)
        }
        // It changes nothing: nobody is asked.
        Verb::Verify(verify) => {
            (verify.item, Operation::Verify { site: verify.at }, Change { yes: true, ..verify.change })
        }
        Verb::Reprotect(reprotect) | Verb::Reverse(reprotect) => {
            let operation = Operation::Reprotect {
                sync: reprotect.sync.into(),
                shut_down: reprotect.shut_down,
                no_way_back: reprotect.no_way_back,
                landing: reprotect.create.into(),
            };
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
                no_way_back: failback.no_way_back,
                max_downtime_ms: millis(failback.max_downtime),
                complete_at: failback.complete_at,
                landing: failback.create.into(),
            };
            (failback.item, operation, failback.change)
        }
        Verb::Commit(commit) => (commit.item, Operation::Commit { keep_history: commit.keep_history }, commit.change),
        Verb::Fold(on) => (on.item, Operation::Fold {}, on.change),
        Verb::Complete(complete) => (complete.item, Operation::Complete { at: complete.at }, complete.change),
        Verb::Cancel(on) => (on.item, Operation::Cancel {}, on.change),
        other => return Err(Trouble::usage("this verb changes no item", format!("{other:?}"))),
    };
    Ok((Request { item, operation }, change))
}

/// The point that is meant; none for the newest. A time is looked up in the list of points, and so is `latest-app`.
async fn which(
    client: &Client,
    item: &ItemId,
    wanted: Which,
    site: Option<&SiteName>,
) -> Result<Option<Attempt>, Trouble> {
    let by = match wanted {
        Which::Latest => return Ok(None),
        Which::This(point) => return Ok(Some(point)),
        Which::LatestApp => return latest_app(client, item, site).await.map(Some),
        Which::By(ms) => ms,
    };
    let points = client.points(item, site).await?.read;
    let found =
        points.iter().map(|kept| &kept.point).filter(|point| point.cut_at_ms <= by).max_by_key(|point| point.cut_at_ms);
    found.map(|point| Some(point.attempt)).ok_or_else(|| {
        let oldest = points.iter().map(|kept| &kept.point).map(|point| point.cut_at_ms).min();
        let cause = oldest.map_or_else(
            || "there is no recovery point".into(),
            |oldest| format!("the oldest was cut {}", words::instant_u(oldest)),
        );
        Trouble::usage(format!("no recovery point of {item} was cut by then"), cause)
    })
}

async fn latest_app(client: &Client, item: &ItemId, site: Option<&SiteName>) -> Result<Attempt, Trouble> {
    let points = client.points(item, site).await?.read;
    let found = points.iter().rfind(|kept| kept.point.kind == PointKind::AppConsistent);
    found.map(|kept| kept.point.attempt).ok_or_else(|| {
        let cause = format!("{} points of it are kept, and none of them is app-consistent", points.len());
        let remedy =
            format!("choose another one of: sockeye points {item}; or take one: sockeye point add {item} --app");
        let fault = Fault::new(code::UNKNOWN_POINT, format!("{item} has no app-consistent recovery point"), cause);
        Trouble::new(Ending::Refused, fault.with_remedy(remedy))
    })
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::Cli;
    use crate::profile::Access;
    use clap::Parser;
    use protocol::order::Sync;
    use protocol::quote::Window;
    use protocol::rest::ShutDownFirst;

    /// No server answers: nothing of this needs one.
    fn operation(line: &str) -> Operation {
        let client = Client::new(Access { server: "http://127.0.0.1:9".into(), token: None }).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(of(&client, Cli::parse_from(line.split(' ')).verb)).unwrap().0.operation
    }

    #[test]
    fn what_is_typed_is_what_is_asked_for() {
        let point = Some("1.42".parse().unwrap());
        let kind = FailoverKind::Unplanned { shut_down: ShutDownFirst::Skip };
        assert_eq!(
            operation("sockeye failover web01 --unplanned --shut-down skip --point 1.42"),
            Operation::Failover { kind, point }
        );
        let kind = FailoverKind::Planned { shut_down_timeout_ms: 10_000, then_power_off: true, max_downtime_ms: 5000 };
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
                then_power_off: false,
                no_way_back: false,
                max_downtime_ms: 5000,
                complete_at: None,
                landing: None,
            }
        );
        assert_eq!(operation("sockeye complete web01"), Operation::Complete { at: None });
        let at = Some(Window { from_ms: 4_102_444_800_000, until_ms: 4_102_448_400_000 });
        assert_eq!(operation("sockeye complete web01 --at 2100-01-01T00:00:00Z"), Operation::Complete { at });
        let failback = operation("sockeye failback web01 --max-downtime 500ms --complete-at 2100-01-01T00:00:00Z");
        assert!(
            matches!(failback, Operation::Failback { max_downtime_ms: 500, complete_at, .. } if complete_at == at),
            "{failback:?}"
        );
        let reprotect =
            Operation::Reprotect { sync: Sync::Tracked, shut_down: true, no_way_back: false, landing: None };
        assert_eq!(operation("sockeye reverse web01 --shut-down"), reprotect);
        assert_eq!(operation("sockeye reprotect web01 --shut-down"), reprotect);
        assert_eq!(
            operation("sockeye failover web01 --test --point 1.42"),
            Operation::TestFailover { point, network: None }
        );
        let lab = Some("lab".into());
        assert_eq!(
            operation("sockeye failover web01 --test --network lab"),
            Operation::TestFailover { point: None, network: lab }
        );
        assert_eq!(operation("sockeye change-point web01 --point 1.42"), Operation::ChangePoint { point });
        assert_eq!(operation("sockeye cleanup web01"), Operation::Cleanup {});
        assert_eq!(
            operation("sockeye view web01 --point 1.42 --writable --at home"),
            Operation::View { point, site: Some("home".parse().unwrap()), writable: true }
        );
        assert_eq!(operation("sockeye view web01 --end 7"), Operation::EndView { view: 7 });
        let site = Some("home".parse().unwrap());
        assert_eq!(operation("sockeye verify web01 --at home"), Operation::Verify { site });
        let reprotect =
            Operation::Reprotect { sync: Sync::Tracked, shut_down: false, no_way_back: true, landing: None };
        assert_eq!(operation("sockeye reprotect web01 --no-way-back"), reprotect);
        assert_eq!(operation("sockeye unprotect web01"), Operation::Unprotect { delete: false });
    }
}
