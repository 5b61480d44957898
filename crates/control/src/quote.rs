//! Quotes: what a movement is expected to cost, from what was measured and what the sites tell when they are asked.
//!
//! ```text
//!   already replicated    pace of the epochs that flow ─► last delta ─┐
//!   first copy            sync: tracked ─ maps of both sides ─► bytes │   past moves ─► bring up, shut down
//!                               compare, full ─ the disks' size ──────┴──► Quote
//! ```
//! # Always true
//! - What was not measured and not told is absent, with a note that says so and what bounds it.
//! - Asking changes nothing, and takes at most [`PATIENCE`] for each side.

use std::time::Duration;

use protocol::bandwidth::Bandwidth;
use protocol::fault::Fault;
use protocol::id::{ItemId, PolicyName, SiteName};
use protocol::order::{Order, Outcome, ReplicationStatus, Role, Sync};
use protocol::pace::{Limit, Pace};
use protocol::position::Changes;
use protocol::quote::{ExpectedDowntime, Quote, Quoted};
use protocol::rest::{FailoverKind, Operation, Request};
use protocol::stage::{Side, Stage};

use crate::database::failed;
use crate::item::Item;
use crate::words::{bytes, span};
use crate::{Control, item, job};

/// How long a site is waited for.
const PATIENCE: Duration = Duration::from_secs(3);

/// What bounds the downtime of a move.
#[derive(Debug, Clone, Copy)]
struct Bounds {
    shut_down_at_most_ms: u64,
    max_downtime_ms: Option<u64>,
}

impl Control {
    /// What the movements are expected to cost that can be begun with the item now, or the one that is under way.
    pub async fn quotes(&self, name: &ItemId) -> Result<Vec<Quoted>, Fault> {
        let item = item::load(self.database(), name).await?;
        let running = {
            let mut on = self.database().readers().acquire().await.map_err(failed)?;
            job::at_work_on(&mut on, name).await?
        };
        let how = |verb: &str, sync: Sync| format!("sockeye {verb} {name} --sync {sync}");
        let asked: Vec<(String, Operation)> = match (item.stage, running) {
            (_, Some(job)) => vec![(format!("{} (job {})", job.operation.verb(), job.id), job.operation)],
            (Stage::Protected { runs_at: Side::Home }, None) => {
                vec![(format!("sockeye failover {name} --planned"), Operation::planned())]
            }
            (Stage::Protected { runs_at: Side::Away }, None) => {
                vec![(format!("sockeye failback {name}"), Operation::failback(Sync::Tracked))]
            }
            (Stage::NotProtected { runs_at } | Stage::Damaged { runs_at }, None) => {
                let verb = if runs_at == Side::Home { "reverse" } else { "failback" };
                let one = if runs_at == Side::Home { Operation::reprotect } else { Operation::failback };
                [Sync::Tracked, Sync::Compare, Sync::Full].map(|sync| (how(verb, sync), one(sync))).into()
            }
            _ => vec![],
        };
        let mut quoted = Vec::new();
        for (command, operation) in asked {
            let request = Request { item: name.clone(), operation };
            if let Some(quote) = self.quote_of(&request, Some(&item)).await? {
                quoted.push(Quoted { command, quote });
            }
        }
        Ok(quoted)
    }

    /// What an operation is expected to cost; none where no data moves and no machine is stopped.
    pub(crate) async fn quote_of(&self, request: &Request, item: Option<&Item>) -> Result<Option<Quote>, Fault> {
        let Some(item) = item else {
            let Operation::Protect { machine, from, to, policy, .. } = &request.operation else { return Ok(None) };
            return self.first_of_all(machine, from, to, policy).await.map(Some);
        };
        let bounds = |shut_down_at_most_ms, max_downtime_ms| Bounds { shut_down_at_most_ms, max_downtime_ms };
        let protected = matches!(item.stage, Stage::Protected { .. } | Stage::Moving { .. });
        Ok(match &request.operation {
            Operation::Failover {
                kind: FailoverKind::Planned { shut_down_timeout_ms, max_downtime_ms, .. }, ..
            } => Some(self.last_delta(item, bounds(*shut_down_timeout_ms, Some(*max_downtime_ms)))),
            Operation::Failover { .. } | Operation::ChangePoint { .. } => Some(start_of_a_point(item)),
            Operation::Failback { shut_down_timeout_ms, max_downtime_ms, offline: false, .. } if protected => {
                Some(self.last_delta(item, bounds(*shut_down_timeout_ms, Some(*max_downtime_ms))))
            }
            Operation::Failback { sync, offline, shut_down_timeout_ms, max_downtime_ms, landing, .. } => {
                let mut quote = self.first_copy(item, landing.as_ref().map_or(*sync, |_| Sync::Full)).await?;
                let most = (!offline).then_some(*max_downtime_ms);
                let last_delta = if *offline { quote.moving_ms } else { None };
                add_downtime(item, &mut quote, last_delta, bounds(*shut_down_timeout_ms, most));
                Some(quote)
            }
            Operation::Reprotect { sync, landing, .. } => {
                Some(self.first_copy(item, landing.as_ref().map_or(*sync, |_| Sync::Full)).await?)
            }
            Operation::Complete { .. } => {
                let running = {
                    let mut on = self.database().readers().acquire().await.map_err(failed)?;
                    job::at_work_on(&mut on, &item.name).await?
                };
                let most = running.map(|job| job.operation).and_then(|operation| match operation {
                    Operation::Failback { shut_down_timeout_ms, max_downtime_ms, .. }
                    | Operation::Failover {
                        kind: FailoverKind::Planned { shut_down_timeout_ms, max_downtime_ms, .. },
                        ..
                    } => Some(bounds(shut_down_timeout_ms, Some(max_downtime_ms))),
                    _ => None,
                });
                most.map(|bounds| self.last_delta(item, bounds))
            }
            Operation::Cancel {} if matches!(item.stage, Stage::CommitPending { .. }) => {
                Some(self.first_copy(item, Sync::Compare).await?)
            }
            _ => None,
        })
    }

    /// Of a move of an item whose epochs flow.
    fn last_delta(&self, item: &Item, bounds: Bounds) -> Quote {
        let (status, pace) = self.pace(item);
        let cap = self.fleet().cap(&item.bandwidth, item.site(item.stage.runs_at()));
        let (rate, limit) = pace.under(cap);
        let mut quote =
            Quote { bytes: pace.last_bytes, rate, moving_ms: pace.last_delta_ms(), limit, ..Quote::default() };
        if limit == Some(Limit::Cap) {
            quote.notes.push("the last delta itself is sent under no cap".into());
        }
        if pace.last_us.is_none() {
            quote.notes.push("what the last delta takes is not known: too few epochs were measured yet".into());
        }
        if let (Some(changes), Some(rate)) = (pace.change_rate(), rate)
            && changes >= rate
        {
            quote.notes.push(format!(
                "it does not converge as it is: {}/s change, {}/s can be carried; a person is asked then",
                bytes(changes),
                bytes(rate)
            ));
        }
        if let Some(fault) = status.as_ref().and_then(|status| status.fault.as_ref()) {
            quote.notes.push(format!("replication waits, and a move with it: {fault}"));
        }
        let delta = quote.moving_ms;
        add_downtime(item, &mut quote, delta, bounds);
        quote
    }

    /// Of the first copy of a direction, from the side where the machine runs.
    async fn first_copy(&self, item: &Item, sync: Sync) -> Result<Quote, Fault> {
        let from = item.stage.runs_at();
        let (_, own) = self.pace(item);
        let size: u64 = item.spec.disks.iter().map(|disk| disk.size).sum();
        let mut quote = Quote::default();
        let pace = self.with_neighbours(own, item.site(from), item.site(from.other()), &mut quote).await?;
        let cap = self.fleet().cap(&item.bandwidth, item.site(from));
        (quote.rate, quote.limit) = first_rate(&pace, cap);
        let known = match sync {
            _ if matches!(item.stage, Stage::Damaged { .. }) => {
                quote.read_at_most = Some(size);
                let what = "the disks there are damaged: all that the machine's disks hold travels";
                quote.notes.push(format!("{what}, at most {}", bytes(size)));
                return Ok(quote);
            }
            Sync::Tracked => self.known_changes(item).await,
            Sync::Full => {
                quote.read_at_most = Some(size);
                quote.notes.push(format!("all that the machine's disks hold travels, at most {}", bytes(size)));
                let rate = quote.rate;
                at_most(&mut quote, size, rate);
                return Ok(quote);
            }
            Sync::Compare => Err("what differs is known when both sides are compared".into()),
        };
        match known {
            Ok(changed) => {
                quote.bytes = Some(changed.min(size));
                quote.moving_ms = quote.rate.map(|rate| changed.saturating_mul(1000) / rate);
                if changed == 0 {
                    quote.moving_ms = Some(0);
                }
                quote.notes.push("no more than this travels: what changed at both sides may be the same blocks".into());
                if quote.moving_ms.is_none() {
                    quote.notes.push(format!(
                        "how long it takes is not known: nothing large was sent from {} yet",
                        item.site(from)
                    ));
                }
            }
            Err(why) => {
                quote.read_at_most = Some(size);
                quote.notes.push(why);
                let compared = "where it has to be compared, each side reads what its disks hold";
                quote.notes.push(format!("{compared}, at most {}", bytes(size)));
                let slowest = slowest(&pace, quote.rate);
                at_most(&mut quote, size, slowest);
                if let Some(changes) = pace.change_rate() {
                    quote.notes.push(format!("a hint: {}/s changed when that was last measured", bytes(changes)));
                }
            }
        }
        Ok(quote)
    }

    /// Of the first copy onto nothing.
    async fn first_of_all(
        &self,
        machine: &str,
        from: &SiteName,
        to: &SiteName,
        policy: &PolicyName,
    ) -> Result<Quote, Fault> {
        let size = self
            .fleet()
            .machine(from, machine)
            .map(|(machine, _)| machine.spec.disks.iter().map(|disk| disk.size).sum::<u64>());
        let mut quote = Quote { read_at_most: size, ..Quote::default() };
        let pace = self.with_neighbours(Pace::default(), from, to, &mut quote).await?;
        // A policy that is not there is refused by the plan.
        let own = self.policy(policy).await.map_or_else(|_| Bandwidth::default(), |policy| policy.bandwidth);
        (quote.rate, quote.limit) = first_rate(&pace, self.fleet().cap(&own, from));
        if let Some(size) = size {
            quote.notes.push(format!("all that the machine's disks hold travels, at most {}", bytes(size)));
            let rate = quote.rate;
            at_most(&mut quote, size, rate);
        }
        Ok(quote)
    }

    /// How the item's epochs go now, and how they went when that was last told.
    fn pace(&self, item: &Item) -> (Option<ReplicationStatus>, Pace) {
        let from = item.stage.runs_at();
        let status = self.fleet().status(item.site(from), &item.name).map(|(status, _)| status.clone());
        let status = status.filter(|_| item.active_wish().is_some());
        let remembered = item.copy(from).pace;
        let pace = status.as_ref().map_or(remembered, |status| status.pace.or(remembered));
        (status, pace)
    }

    /// Where the item itself sent nothing that tells of a rate: that of another one between the same sites.
    async fn with_neighbours(
        &self,
        own: Pace,
        from: &SiteName,
        to: &SiteName,
        quote: &mut Quote,
    ) -> Result<Pace, Fault> {
        if own.rate().is_some() {
            return Ok(own);
        }
        let mut best: Option<(ItemId, Pace)> = None;
        for other in item::all(self.database()).await? {
            for side in [Side::Home, Side::Away] {
                if other.site(side) != from || other.site(side.other()) != to {
                    continue;
                }
                let runs = other.stage.runs_at() == side;
                let pace = if runs { self.pace(&other).1 } else { other.copy(side).pace };
                if pace.carried > best.as_ref().map_or(0, |(_, best)| best.carried) {
                    best = Some((other.name.clone(), pace));
                }
            }
        }
        let Some((name, pace)) = best else { return Ok(own) };
        quote.notes.push(format!("the rate is that of {name}, between the same sites"));
        // Only how fast bytes go: what another guest writes says nothing of this one.
        let rates = Pace { changed: 0, changing_us: 0, last_bytes: None, last_us: None, ..pace };
        Ok(own.or(rates))
    }

    /// What has to travel at most, if both sides' maps are known; else why not.
    async fn known_changes(&self, item: &Item) -> Result<u64, String> {
        let from = item.stage.runs_at();
        let (here, there) = (item.site(from), item.site(from.other()));
        let left = match &item.copy(from.other()).settled {
            Some(settled) => match &settled.changes {
                Changes::Known(_) => settled.changes.bytes().unwrap_or(0),
                Changes::Unknown(why) => return Err(format!("what {there} wrote on its own is not known: {why}")),
            },
            None => return Err(format!("what {there} wrote on its own is not known before its disks are looked at")),
        };
        // A machine that was moved as planned stands on the newest point: nothing of its history is in front of it.
        let planned = item.last_move.as_ref().is_none_or(|last| last.planned);
        let history = if planned || !item.copy(from).raised {
            0
        } else {
            let order = Order::Standpoint { item: item.name.clone(), reader: None };
            match self.ask_keeper(item, from, order, PATIENCE).await {
                Ok(Outcome::Stands { position }) => match position.changes.bytes() {
                    Some(bytes) => bytes,
                    None => {
                        return Err(format!("the history at {here} does not reach back to where the machine began"));
                    }
                },
                _ => return Err(format!("{here} does not tell what lies between the machine and its newest point")),
            }
        };
        let order = Order::TellChanged { machine: item.spec.name.clone(), lineage: item.lineage };
        let component = self.fleet().need(here, Role::ProcessServer).map_err(|fault| fault.message)?;
        match self.ask(&component, item, order, PATIENCE).await {
            Ok(Outcome::Changed { bytes: Some(own) }) => Ok(left + history + own),
            Ok(_) => Err(format!("{here} holds no map of what the machine wrote that can be believed")),
            Err(fault) => Err(format!("{here} does not tell what the machine wrote: {fault}")),
        }
    }
}

/// Of a start from a point that is there already.
fn start_of_a_point(item: &Item) -> Quote {
    let mut quote = Quote { bytes: Some(0), moving_ms: Some(0), ..Quote::default() };
    let to = match item.stage {
        Stage::CommitPending { runs_at } => runs_at,
        stage => stage.runs_at().other(),
    };
    let bring_up_ms = item.copy(to).bring_up_ms;
    never_measured(item, to, bring_up_ms, &mut quote);
    quote.downtime = Some(ExpectedDowntime { expected_ms: bring_up_ms, bring_up_ms, ..ExpectedDowntime::default() });
    quote
}

fn add_downtime(item: &Item, quote: &mut Quote, last_delta_ms: Option<u64>, bounds: Bounds) {
    let from = item.stage.runs_at();
    let bring_up_ms = item.copy(from.other()).bring_up_ms;
    never_measured(item, from.other(), bring_up_ms, quote);
    let expected_ms = last_delta_ms.zip(bring_up_ms).map(|(delta, start)| delta + start);
    if let (Some(expected), Some(most)) = (expected_ms, bounds.max_downtime_ms)
        && expected > most
    {
        quote.notes.push(format!(
            "{} of downtime are expected, {} are allowed: unless it becomes less, a person is asked before the machine \
             is stopped",
            span(expected),
            span(most)
        ));
    }
    quote.downtime = Some(ExpectedDowntime {
        expected_ms,
        last_delta_ms,
        bring_up_ms,
        shut_down_ms: item.copy(from).shut_down_ms,
        shut_down_at_most_ms: Some(bounds.shut_down_at_most_ms),
        budget_ms: bounds.max_downtime_ms,
    });
}

fn never_measured(item: &Item, to: Side, bring_up_ms: Option<u64>, quote: &mut Quote) {
    if bring_up_ms.is_none() {
        let site = item.site(to);
        quote.notes.push(format!("bringing it up at {site} was never measured: no planned move of it ended there yet"));
    }
}

/// How fast a first copy goes under a cap, and what limits it: what the guest writes meanwhile does not.
fn first_rate(pace: &Pace, cap: Option<u64>) -> (Option<u64>, Option<Limit>) {
    let (rate, limit) = pace.under(cap);
    (rate, limit.filter(|limit| *limit != Limit::Churn))
}

/// How fast a compare goes at the worst: all of it may differ, and travels then, under a cap too.
fn slowest(pace: &Pace, rate: Option<u64>) -> Option<u64> {
    pace.compare_rate().zip(rate).map(|(compare, rate)| compare.min(rate))
}

/// Says how long `bytes` take at most, or that it is not known.
fn at_most(quote: &mut Quote, bytes: u64, rate: Option<u64>) {
    quote.notes.push(match rate {
        Some(rate) => {
            let capped = quote.limit == Some(Limit::Cap) && quote.rate == Some(rate);
            let how = if capped { "under the bandwidth cap" } else { "at the rate that was measured" };
            format!("that takes {} at most, {how}", span(bytes.saturating_mul(1000) / rate))
        }
        None => "how long that takes is not known: nothing of the kind was measured yet".into(),
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_compare_takes_as_long_as_what_may_differ_travels() {
        let compared = Pace { compared: 900_000, comparing_us: 1_000_000, ..Pace::default() };
        let pace = Pace { carried: 2 << 20, carrying_us: 1_000_000, ..compared };
        let said = |pace: &Pace, cap| {
            let mut quote = Quote::default();
            (quote.rate, quote.limit) = first_rate(pace, cap);
            let slowest = slowest(pace, quote.rate);
            at_most(&mut quote, 9_000_000, slowest);
            quote.notes.remove(0)
        };
        assert_eq!(said(&pace, None), "that takes 10 s at most, at the rate that was measured");
        assert_eq!(said(&pace, Some(800_000)), "that takes 90 s at most, under the bandwidth cap");
        assert!(said(&compared, None).contains("is not known"), "what differs may travel at any rate");
    }
}
