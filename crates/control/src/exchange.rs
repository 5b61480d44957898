//! The exchange: a component tells how things are, and is held until there is something for it.
//!
//! ```text
//!   request ──► statuses, machines into the fleet ──► reports into the order book ──► engine is woken
//!                                                                                        │
//!   reply   ◄── oldest open order of each item + all that is wanted from now on   ◄───────┘ or wait_ms
//! ```
//!
//! # Always true
//! - The wishes are computed from the item rows each time; their number rises exactly when they differ from the last
//!   ones that were made for this component, also across restarts.
//! - An order that the component did not confirm is handed out again; one that it works on does not keep it busy.

use std::time::{Duration, Instant};

use identity::Certified;
use protocol::fault::{Fault, code};
use protocol::id::SiteName;
use protocol::keeping::{ItemManifest, Keeping};
use protocol::order::{ExchangeReply, ExchangeRequest, NumberedOrder, Replication, ReportState, Role, Wishes};
use protocol::replication::{Peer, Target};
use protocol::rest::{Register, Registered};
use protocol::stage::Side;

use crate::clock::now_ms;
use crate::component::{Fleet, Saved, save_text};
use crate::database::{commit, failed, to_text};
use crate::item::Item;
use crate::{Control, audit, item, order_book, token};

/// A request is held for at most this long, so that an open request never hides that a component is gone.
const LONGEST_WAIT: Duration = Duration::from_secs(5);
/// An order that was handed out is handed out again after this time, unless the component says that it works on it.
const HAND_OUT_AGAIN: Duration = Duration::from_secs(2);
/// Time between epochs when the machine is about to be stopped. Each cut costs the guest a pause of some 10 ms.
const HURRIED_MS: u64 = 200;
/// How often listeners are told how a component's replications stand.
const ANNOUNCE_EVERY: Duration = Duration::from_secs(1);
/// How often what a component tells is written to the database.
const SAVE_EVERY: Duration = Duration::from_secs(2);

impl Control {
    /// Registers a component for an operator (the caller has checked who it is) and gives it its own token.
    pub async fn register(&self, register: Register) -> Result<Registered, Fault> {
        self.enlist(register, None).await
    }

    /// The same for the host whose credential has that number.
    pub async fn register_of(&self, host: i64, register: Register) -> Result<Registered, Fault> {
        self.enlist(register, Some(host)).await
    }

    async fn enlist(&self, register: Register, host: Option<i64>) -> Result<Registered, Fault> {
        let Register { registration, certificate_request } = register;
        let name = registration.name.clone();
        let certified =
            self.inner.authority.certify(&name, &certificate_request).map_err(|error| {
                Fault::new(code::BAD_REQUEST, format!("{name} cannot be certified"), error.to_string())
            })?;
        let mut change = self.database().change().await?;
        self.may_register(&mut change, &name, &registration.site, host).await?;
        let saved = {
            let mut fleet = self.fleet();
            fleet.register(registration)?;
            fleet.components.get_mut(&name).map(|component| {
                component.host = host;
                Saved::of(component)
            })
        };
        if let Some(saved) = saved {
            save_text(&mut change, &saved?).await?;
        }
        sqlx::query("update component set host = $1 where name = $2")
            .bind(host)
            .bind(&name)
            .execute(&mut *change)
            .await
            .map_err(failed)?;
        let token = token::for_component(&mut change, &name).await?;
        audit::note(&mut change, None, &format!("component {name} registered"), None).await?;
        commit(change).await?;
        self.wake_exchanges();
        let Certified { certificate, authority, renew_after } = certified;
        Ok(Registered { token, certificate, authority, renew_after_ms: renew_after.as_millis() as u64 })
    }

    /// One exchange with the component `name` (the caller has checked its token).
    pub async fn exchange(&self, name: &str, request: ExchangeRequest) -> Result<ExchangeReply, Fault> {
        if self.stopped() {
            return Err(Fault::new(code::INTERNAL, "the control server stops", "it is asked again when it is back"));
        }
        let wait = Duration::from_millis(request.wait_ms).min(LONGEST_WAIT);
        let seen = request.seen;
        let saved = self.take_news(name, &request)?;
        if self.may_announce(name) {
            for status in &request.replications {
                self.announce_item(&status.item).await;
            }
        }
        if let Some(saved) = saved {
            let mut change = self.database().change().await?;
            save_text(&mut change, &saved).await?;
            commit(change).await?;
        }
        for report in request.reports {
            let end = match report.state {
                ReportState::Running { .. } => continue,
                ReportState::Done(outcome) => Ok(outcome),
                ReportState::Failed(fault) => Err(fault),
            };
            if order_book::report(self.database(), name, &report.id, end).await? {
                // The next order of the same item can be handed out now.
                self.wake_exchanges();
            }
        }
        self.wake_jobs();
        self.hold(name, seen, wait).await
    }

    /// Writes what was last heard of every component.
    pub(crate) async fn remember_fleet(&self) -> Result<(), Fault> {
        let all: Vec<Saved> = self.fleet().components.values().map(Saved::of).collect::<Result<_, _>>()?;
        let mut change = self.database().change().await?;
        for saved in &all {
            save_text(&mut change, saved).await?;
        }
        commit(change).await
    }

    /// Takes what the component tells into memory; what is to be saved is returned.
    fn take_news(&self, name: &str, request: &ExchangeRequest) -> Result<Option<Saved>, Fault> {
        let mut fleet = self.fleet();
        let Some(component) = fleet.components.get_mut(name) else {
            return Err(Fault::new(code::SIGN_IN, format!("{name} is not registered"), "the server does not know it"));
        };
        component.heard = Some(Instant::now());
        component.seen_at_ms = now_ms();
        component.seen_list = request.seen;
        component.fault.clone_from(&request.fault);
        if let Some(machines) = &request.machines {
            component.machines.clone_from(machines);
        }
        if let Some(site) = &request.site {
            component.site = Some(site.clone());
        }
        if component.registration.role == Role::ProcessServer {
            component.statuses.clone_from(&request.replications);
        }
        component.keepings.clone_from(&request.keepings);
        for report in &request.reports {
            match &report.state {
                ReportState::Running { step, percent } => {
                    component.working.insert(report.id.clone(), (step.clone(), *percent));
                }
                ReportState::Done(_) | ReportState::Failed(_) => {
                    component.working.remove(&report.id);
                    component.handed.retain(|(id, _), _| *id != report.id);
                }
            }
        }
        if component.saved.is_some_and(|saved| saved.elapsed() < SAVE_EVERY) {
            return Ok(None);
        }
        component.saved = Some(Instant::now());
        Saved::of(component).map(Some)
    }

    /// Whether listeners are to be told again how this component's replications stand.
    fn may_announce(&self, name: &str) -> bool {
        let mut fleet = self.fleet();
        let Some(component) = fleet.components.get_mut(name) else { return false };
        let due = component.announced.is_none_or(|when| when.elapsed() >= ANNOUNCE_EVERY);
        if due {
            component.announced = Some(Instant::now());
        }
        due
    }

    async fn hold(&self, name: &str, seen: u64, wait: Duration) -> Result<ExchangeReply, Fault> {
        let until = tokio::time::Instant::now() + wait;
        let mut work = self.work_to_do();
        loop {
            work.mark_unchanged();
            let orders = order_book::open_for(self.database(), name).await?;
            let (number, wishes) = self.wishes_for(name).await?;
            let fresh = self.has_fresh_order(name, &orders);
            if number != seen || fresh || tokio::time::Instant::now() >= until || self.stopped() {
                self.handed_out(name, &orders);
                return Ok(ExchangeReply { orders, wishes, number });
            }
            tokio::select! {
                _ = work.changed() => {}
                () = tokio::time::sleep_until(until) => {}
            }
        }
    }

    fn has_fresh_order(&self, name: &str, orders: &[NumberedOrder]) -> bool {
        let fleet = self.fleet();
        let Some(component) = fleet.components.get(name) else { return true };
        orders.iter().any(|order| match component.handed.get(&(order.id.clone(), order.cancelled)) {
            None => true,
            Some(when) => !component.working.contains_key(&order.id) && when.elapsed() >= HAND_OUT_AGAIN,
        })
    }

    fn handed_out(&self, name: &str, orders: &[NumberedOrder]) {
        if let Some(component) = self.fleet().components.get_mut(name) {
            component.handed.retain(|(id, _), _| orders.iter().any(|order| order.id == *id));
            for order in orders {
                component.handed.insert((order.id.clone(), order.cancelled), Instant::now());
            }
        }
    }

    /// What is wanted of the component now, with the number of these wishes.
    pub(crate) async fn wishes_for(&self, name: &str) -> Result<(u64, Wishes), Fault> {
        let items = item::all(self.database()).await?;
        let (number, wishes, saved) = {
            let mut fleet = self.fleet();
            let Some(component) = fleet.components.get(name) else { return Ok((0, Wishes::default())) };
            let wishes = match component.registration.role {
                Role::ProcessServer => {
                    let replications = items.iter().filter_map(|item| replication(&fleet, item, name)).collect();
                    Wishes { replications, keepings: vec![], bandwidth: component.bandwidth.clone() }
                }
                Role::MasterTarget => {
                    let site = &component.registration.site;
                    let keepings = items.iter().filter_map(|item| keeping(&fleet, item, site, name)).collect();
                    Wishes { replications: vec![], keepings, ..Wishes::default() }
                }
            };
            let digest = blake3::hash(to_text(&wishes)?.as_bytes()).to_hex().to_string();
            let Some(component) = fleet.components.get_mut(name) else { return Ok((0, Wishes::default())) };
            let mut saved = None;
            if component.list_digest != digest {
                component.list_digest = digest;
                component.list_number += 1;
                saved = Some(Saved::of(component)?);
            }
            (component.list_number, wishes, saved)
        };
        if let Some(saved) = saved {
            let mut change = self.database().change().await?;
            save_text(&mut change, &saved).await?;
            commit(change).await?;
        }
        Ok((number, wishes))
    }
}

/// What the master target `component` at `site` is to keep of `item`.
fn keeping(fleet: &Fleet, item: &Item, site: &SiteName, component: &str) -> Option<Keeping> {
    let manifest = || ItemManifest {
        home: item.home.clone(),
        away: item.away.clone(),
        machine: item.spec.clone(),
        generation: item.generation,
        stage: item.stage,
        policy: item.policy.clone(),
        rpo_limit_ms: item.rpo_limit_ms,
        interval_ms: item.interval_ms,
        bandwidth: item.bandwidth.clone(),
        app_interval_ms: item.app_interval_ms,
        leaf_bytes: item.leaf_bytes,
    };
    (item.home == *site || item.away == *site).then(|| Keeping {
        item: item.name.clone(),
        lineage: item.lineage,
        retention: item.retention.clone(),
        leaf_bytes: item.leaf_bytes,
        sender: sender(fleet, item, component),
        manifest: manifest(),
    })
}

/// The master target that the item is replicated to now.
fn keeper(fleet: &Fleet, item: &Item) -> Option<String> {
    let to = item.stage.runs_at().other();
    match item.bound(to, Role::MasterTarget) {
        Some(bound) if fleet.components.contains_key(bound) => Some(bound.to_string()),
        _ => fleet.at(item.site(to), Role::MasterTarget),
    }
}

/// The master target that keeps what the machine was raised from.
fn beneath(fleet: &Fleet, item: &Item, runs_at: Side) -> Option<Peer> {
    let copy = item.copy(runs_at);
    let name = copy.master_target.clone().filter(|_| copy.raised)?;
    Some(Peer { address: fleet.address(&name)?, name })
}

/// Whom the master target `component` is to dial for `item`: the process server that sends its epochs and cannot dial it.
fn sender(fleet: &Fleet, item: &Item, component: &str) -> Option<Peer> {
    item.active_wish()?;
    if keeper(fleet, item)? != component || fleet.address(component).is_some() {
        return None;
    }
    let name = fleet.at(item.site(item.stage.runs_at()), Role::ProcessServer)?;
    Some(Peer { address: fleet.address(&name)?, name })
}

/// What `component` has to do with `item` in the way of replication.
pub(crate) fn replication(fleet: &Fleet, item: &Item, component: &str) -> Option<Replication> {
    let wish = item.active_wish()?;
    let from = item.stage.runs_at();
    if fleet.at(item.site(from), Role::ProcessServer)? != component {
        return None;
    }
    let keeper = keeper(fleet, item)?;
    let target = match fleet.address(&keeper) {
        Some(address) => Target::Dial(Peer { name: keeper, address }),
        None => Target::Await(keeper),
    };
    Some(Replication {
        item: item.name.clone(),
        machine: item.spec.name.clone(),
        lineage: item.lineage,
        generation: wish.generation,
        target,
        token: wish.token.clone(),
        standpoint: wish.standpoint.clone(),
        beneath: beneath(fleet, item, from),
        sync: wish.sync,
        interval_ms: if wish.hurried { item.interval_ms.min(HURRIED_MS) } else { item.interval_ms },
        offline: wish.offline,
        quiesced: wish.quiesced,
        bandwidth: item.bandwidth.clone(),
        app_interval_ms: item.app_interval_ms,
    })
}
