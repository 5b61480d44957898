//! The addresses of an item's guest: what was given for each place, who gives it to the guest, and what is said of it beforehand.
//!
//! ```text
//!   an agent answered at home    it gives them, once the machine runs at the other side      SetGuest
//!   none did                     the guest reads them from a seed when it starts             the seed, in the machine's description
//! ```
//! # Always true
//! - Nothing that concerns a guest's addresses keeps a machine from moving, or takes a move back.

use std::collections::BTreeSet;
use std::time::Duration;

use protocol::fault::{Fault, code};
use protocol::guest::{CardAddresses, GuestNetwork, GuestTold, GuestWish, ItemNetwork, Place, Seed, SetItemNetwork};
use protocol::id::{ItemId, SiteName};
use protocol::machine::MachineSpec;
use protocol::order::{Order, Outcome, Role};
use protocol::rest::{Check, FailoverKind, Operation};
use protocol::stage::{Side, Stage};

use crate::component::Fleet;
use crate::database::commit;
use crate::item::{Item, for_item};
use crate::questions::unasked;
use crate::work::Work;
use crate::{Control, audit, item};

/// How long a plan waits for a guest's agent.
const PLAN_PATIENCE: Duration = Duration::from_secs(5);
/// How long a person waits for it to do something, who knows that it is there.
const PATIENCE: Duration = Duration::from_secs(20);
/// What the guest itself may take, beyond waiting for its agent.
pub(crate) const GUEST_TAKES: Duration = Duration::from_secs(200);

/// The place that a side is.
pub(crate) fn place(side: Side) -> Place {
    match side {
        Side::Home => Place::Home,
        Side::Away => Place::Away,
    }
}

fn given(item: &Item, place: Place) -> Vec<CardAddresses> {
    item.addresses.iter().filter(|card| card.place == place).cloned().collect()
}

/// What the guest is to be given at a place: the addresses for it, or its own configuration where it may have ours.
pub(crate) fn wish(item: &Item, place: Place) -> Option<GuestWish> {
    let cards = given(item, place);
    match (cards.is_empty(), place) {
        (false, _) => Some(GuestWish::Addresses(cards)),
        // A test of a machine that is away, with no addresses of its own, keeps those of away: it is connected to nobody they fit.
        (true, Place::Test) => None,
        (true, _) => (!item.addresses.is_empty() || item.readdressed).then_some(GuestWish::Restore),
    }
}

/// What its guest reads when it starts, where no agent ever answered.
pub(crate) fn seed(item: &Item, place: Place, number: u64) -> Option<Seed> {
    let cards = given(item, place);
    let instance = format!("sockeye-{}-{place}-{number}", item.name);
    (item.guest.is_none() && !cards.is_empty()).then_some(Seed { instance, cards })
}

/// The steps at the end of a move to a place, or of the beginning of a test.
pub(crate) fn steps(item: &Item, place: Place) -> Option<Work> {
    wish(item, place).map(|_| Work::SetGuest { place })
}

/// The step before the machine is shut down at home.
pub(crate) fn learnt_first(item: &Item) -> Option<Work> {
    (item.stage.runs_at() == Side::Home && !item.addresses.is_empty()).then_some(Work::LearnGuest)
}

/// Whether addresses fit the machine: each for a card that it has, each card once at a place.
fn fit(spec: &MachineSpec, addresses: &[CardAddresses]) -> Result<Vec<CardAddresses>, Fault> {
    let bad = |why: String| {
        let message = format!("the guest of {} cannot have these addresses", spec.name);
        Fault::new(code::BAD_ADDRESSES, message, why)
    };
    let mut seen = BTreeSet::new();
    let mut read = Vec::new();
    for card in addresses {
        let card = card.clone().checked().map_err(bad)?;
        let macs: Vec<String> = spec.cards.iter().map(|card| card.mac.to_ascii_lowercase()).collect();
        if !macs.contains(&card.mac) {
            let has = if macs.is_empty() { "none".to_string() } else { macs.join(", ") };
            return Err(bad(format!("it has no card {}; it has: {has}", card.mac)));
        }
        if !seen.insert((card.place, card.mac.clone())) {
            return Err(bad(format!("{}:{} is named twice", card.place, card.mac)));
        }
        read.push(card);
    }
    Ok(read)
}

/// What is given, in words, and what would not come home again.
fn checks(
    name: &str,
    spec: &MachineSpec,
    addresses: &[CardAddresses],
    told: &Result<GuestNetwork, Fault>,
) -> Vec<Check> {
    let fits = fit(spec, addresses);
    let mut done =
        vec![Check { what: format!("{name}'s cards can have the addresses that are given"), fault: fits.err() }];
    done.push(match told {
        Ok(network) => {
            Check { what: format!("the guest has at home: {}; it gets that back there", network.words()), fault: None }
        }
        Err(fault) => Check {
            what: format!(
                "no agent of the guest answers ({}): cloud-init in it is told by a seed, if it has that",
                fault.cause
            ),
            fault: None,
        },
    });
    let line = |card: &CardAddresses| Check { what: format!("the guest gets {card}"), fault: None };
    done.extend(addresses.iter().map(line));
    if told.is_err() {
        let at = |place| addresses.iter().filter(move |card| card.place == place).map(|card| card.mac.as_str());
        let home: BTreeSet<&str> = at(Place::Home).collect();
        let lost: Vec<&str> = at(Place::Away).filter(|mac| !home.contains(mac)).collect();
        let fault = (!lost.is_empty()).then(|| {
            let message = format!("the guest of {name} would keep its addresses of away at home");
            let cause = format!(
                "no agent answers that could put its own back, and none are given for home: {}",
                lost.join(", ")
            );
            Fault::new(code::NO_ADDRESSES_HOME, message, cause)
        });
        done.push(Check { what: format!("{name}'s guest has its addresses again at home"), fault });
    }
    done
}

/// Whether no machine of an item stands on the network of a test at a site.
pub(crate) fn isolated(fleet: &Fleet, items: &[Item], site: &SiteName, network: &str) -> Vec<Check> {
    let mut done = Vec::new();
    if let Some(facts) = fleet.facts(site) {
        let there = facts.networks.iter().any(|known| known == network);
        let fault = (!there).then(|| {
            let remedy = "make one of that name there that leads nowhere, or leave --network away";
            Fault::new(code::NO_NETWORK, format!("{site} has no network {network}"), facts.networks.join(", "))
                .with_remedy(remedy)
        });
        done.push(Check { what: format!("{site} has the network {network}"), fault });
    }
    let stands_on = |item: &&Item| {
        [Side::Home, Side::Away]
            .into_iter()
            .any(|side| item.site(side) == site && item.description(side, None).networks().contains(network))
    };
    let fault = items.iter().find(stands_on).map(|item| {
        let cause = format!("{} is connected with it at {site}, or would be after a failover", item.spec.name);
        Fault::new(code::NETWORK_OF_PRODUCTION, format!("{network} is no network for tests"), cause)
    });
    done.push(Check { what: format!("no protected machine stands on the network {network}"), fault });
    done
}

impl Control {
    /// What the guest of a machine at a site has, by its agent.
    async fn guest_of(
        &self,
        about: &str,
        machine: &str,
        site: &SiteName,
        patience: Duration,
    ) -> Result<GuestNetwork, Fault> {
        let component = self.fleet().need(site, Role::ProcessServer)?;
        let order = Order::TellGuest { machine: machine.into() };
        match self.ask_about(&component, about, order, patience).await? {
            Outcome::Guest { network } => Ok(network),
            other => Err(unasked(&other)),
        }
    }

    /// The checks of `protect` that are about addresses; none where no addresses are given.
    pub(crate) async fn guest_at_protect(&self, operation: &Operation) -> Result<Vec<Check>, Fault> {
        let Operation::Protect { machine, from, addresses, .. } = operation else { return Ok(vec![]) };
        let spec = self.fleet().machine(from, machine).map(|(machine, _)| machine.spec.clone());
        let (Some(spec), false) = (spec, addresses.is_empty()) else { return Ok(vec![]) };
        let told = self.guest_of(machine, machine, from, PLAN_PATIENCE).await;
        Ok(checks(machine, &spec, addresses, &told))
    }

    /// What a move does with the guest's addresses. What was learnt is enough where the machine cannot be asked any more.
    pub(crate) async fn guest_at_move(&self, item: &Item, operation: &Operation) -> Result<Vec<Check>, Fault> {
        let to = match operation {
            Operation::Failover { .. } | Operation::Failback { .. } => place(item.stage.runs_at().other()),
            Operation::ChangePoint { .. } => place(item.stage.runs_at()),
            Operation::TestFailover { .. } => Place::Test,
            _ => return Ok(vec![]),
        };
        let note = |what: String| Check { what, fault: None };
        let planned = matches!(operation, Operation::Failover { kind: FailoverKind::Planned { .. }, .. });
        if planned && to == Place::Away && !item.addresses.is_empty() {
            let told = self.guest_of(item.name.as_str(), &item.spec.name, &item.home, PLAN_PATIENCE).await;
            return Ok(checks(item.name.as_str(), &item.spec, &item.addresses, &told));
        }
        let Some(wish) = wish(item, to) else { return Ok(vec![]) };
        Ok(match (wish, &item.guest) {
            (GuestWish::Addresses(cards), learnt) => {
                let by = if learnt.is_some() { "its agent" } else { "a seed for cloud-init" };
                cards.iter().map(|card| note(format!("the guest gets {card}, by {by}"))).collect()
            }
            (_, Some(network)) => vec![note(format!("the guest gets its own configuration back: {}", network.words()))],
            (_, None) => vec![note("the guest's addresses stay as they are: no agent of it ever answered".into())],
        })
    }

    /// The addresses of an item's guest: what is given, what was learnt, and what it has now.
    pub async fn item_network(&self, name: &ItemId) -> Result<ItemNetwork, Fault> {
        let item = item::load(self.database(), name).await?;
        let site = item.site(item.stage.runs_at());
        let now = self.guest_of(name.as_str(), &item.spec.name, site, PLAN_PATIENCE).await.ok();
        Ok(ItemNetwork { given: item.addresses, at_home: item.guest, now, changed: item.readdressed })
    }

    /// Says which addresses an item's guest shall have from the next move on.
    pub async fn set_item_network(&self, name: &ItemId, wanted: SetItemNetwork) -> Result<ItemNetwork, Fault> {
        let item = item::load(self.database(), name).await?;
        let given = fit(&item.spec, &wanted.given)?;
        let at_home = item.stage.runs_at() == Side::Home && !matches!(item.stage, Stage::Moving { .. });
        let mut guest = item.guest.clone();
        if at_home && !item.readdressed && !given.is_empty() {
            let told = self.guest_of(name.as_str(), &item.spec.name, &item.home, PLAN_PATIENCE).await;
            if let Some(fault) =
                checks(name.as_str(), &item.spec, &given, &told).into_iter().find_map(|check| check.fault)
            {
                return Err(for_item(fault, name));
            }
            guest = told.ok().or(guest);
        }
        if wanted.preview {
            return Ok(ItemNetwork { given, at_home: guest, now: None, changed: item.readdressed });
        }
        let words: Vec<String> = given.iter().map(ToString::to_string).collect();
        item::update(self.database(), name, |item| {
            (item.addresses, item.guest) = (given, guest);
            Ok(())
        })
        .await?;
        let mut change = self.database().change().await?;
        let what = if words.is_empty() { "no addresses".into() } else { format!("addresses {}", words.join(" ")) };
        audit::note(&mut change, Some(name), &what, wanted.reason.as_deref()).await?;
        commit(change).await?;
        self.announce_item(name).await;
        self.item_network(name).await
    }

    /// Gives the guest what it is to have where its machine runs, now.
    pub async fn apply_item_network(&self, name: &ItemId) -> Result<GuestTold, Fault> {
        let item = item::load(self.database(), name).await?;
        let side = item.stage.runs_at();
        let Some(what) = wish(&item, place(side)) else { return Ok(GuestTold { told: vec![] }) };
        let changed = matches!(what, GuestWish::Addresses(_));
        let order = Order::SetGuest { machine: item.spec.name.clone(), what, within_ms: PATIENCE.as_millis() as u64 };
        item::update(self.database(), name, |item| {
            item.readdressed |= changed;
            Ok(())
        })
        .await?;
        let component = self.fleet().need(item.site(side), Role::MasterTarget)?;
        let told = self.ask(&component, &item, order, PATIENCE + GUEST_TAKES).await;
        match told.map_err(|fault| for_item(fault, name))? {
            Outcome::GuestSet { told } => {
                item::update(self.database(), name, |item| {
                    item.readdressed = changed;
                    Ok(())
                })
                .await?;
                Ok(GuestTold { told })
            }
            other => Err(unasked(&other)),
        }
    }
}
