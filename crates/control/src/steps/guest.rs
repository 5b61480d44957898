//! Steps about the guest's addresses. None of them fails its job: what goes wrong is a warning of it.

use std::time::Duration;

use protocol::fault::{Fault, code};
use protocol::guest::{GuestNetwork, GuestWish, Place};
use protocol::order::{Order, Outcome, Role};
use protocol::stage::Side;

use super::ordering::{Patience, unexpected};
use super::{Context, Ending, Halt};
use crate::audit;
use crate::database::commit;
use crate::guest_network::{GUEST_TAKES, wish};
use crate::item::{Item, for_item};

/// How long an agent may take to tell what it knows.
const TELLS: Patience = Patience::BoundedIfPickedUp(Duration::from_secs(30));

/// For how long its own addresses may be on the way to a guest that has its own configuration back.
const COMES: Duration = Duration::from_secs(60);
const LOOK_AGAIN: Duration = Duration::from_secs(1);

impl Context<'_> {
    /// Remembers which addresses the guest has at home.
    pub(super) async fn learn_guest(&mut self) -> Result<Ending, Halt> {
        if self.load().await?.readdressed {
            return Ok(Ending::Skipped("it has addresses of ours".into()));
        }
        match self.guest_at(Side::Home, 0).await {
            Ok(network) => {
                let words = network.words();
                self.change(|item| {
                    item.guest = Some(network);
                    Ok(())
                })
                .await?;
                Ok(Ending::Done(Some(words)))
            }
            Err(Halt::Fault(fault)) => Ok(Ending::Skipped(format!("{fault}: {}", fault.cause))),
            Err(halt) => Err(halt),
        }
    }

    /// Gives the guest what it is to have, once it answers.
    pub(super) async fn set_guest(&mut self, place: Place) -> Result<Ending, Halt> {
        let item = self.load().await?;
        let (machine, side) = match (place, &item.test) {
            (Place::Test, Some(test)) => (test.machine.clone(), test.side),
            (Place::Test, None) => return Ok(Ending::Skipped("the test is over".into())),
            (Place::Home, _) => (item.spec.name.clone(), Side::Home),
            (Place::Away, _) => (item.spec.name.clone(), Side::Away),
        };
        let Some(what) = wish(&item, place) else { return Ok(Ending::Skipped("none are given".into())) };
        if item.guest.is_none() {
            return self.seeded(&item, place, side, machine).await;
        }
        let changed = matches!(what, GuestWish::Addresses(_));
        if place != Place::Test {
            // Before: a guest that may have ours is given its own again.
            self.change(|item| {
                item.readdressed |= changed;
                Ok(())
            })
            .await?;
        }
        let within = self.control.settings().agent_patience;
        let within_ms = u64::try_from(within.as_millis()).unwrap_or(u64::MAX);
        let order = Order::SetGuest { machine, what, within_ms };
        let told = match self.order(side, "guest", order, Patience::Bounded(within + GUEST_TAKES)).await {
            Ok(Outcome::GuestSet { told }) => told,
            Ok(other) => return Err(unexpected("set guest", &other)),
            Err(Halt::Fault(fault)) => return self.warn(fault).await,
            Err(halt) => return Err(halt),
        };
        self.figures.guest.clone_from(&told);
        if place != Place::Test {
            self.change(|item| {
                item.readdressed = changed;
                Ok(())
            })
            .await?;
        }
        if let (Place::Home, false, Some(learnt)) = (place, changed, &item.guest) {
            match self.has_again(&item, side, learnt).await {
                Ok(now) => self.figures.guest.push(format!("it has what it had at home before: {}", now.words())),
                Err(Halt::Fault(fault)) => return self.warn(fault).await,
                Err(halt) => return Err(halt),
            }
        }
        Ok(Ending::Done(Some(self.figures.guest.join("; "))))
    }

    /// Waits until the guest has what it had at home: its own managers bring it up in their own time.
    async fn has_again(&self, item: &Item, side: Side, learnt: &GuestNetwork) -> Result<GuestNetwork, Halt> {
        let begun = tokio::time::Instant::now();
        let within = COMES.min(self.control.settings().agent_patience);
        let mut time = 0;
        loop {
            let now = self.guest_at(side, time).await?;
            match differs(item, learnt, &now) {
                None => return Ok(now),
                Some(fault) if begun.elapsed() >= within => return Err(Halt::Fault(fault)),
                Some(_) => self.control.rest(LOOK_AGAIN).await,
            }
            time += 1;
        }
    }

    /// Nobody answers in the guest: it was given a seed, or nothing. At home that is taken away again.
    async fn seeded(&mut self, item: &Item, place: Place, side: Side, machine: String) -> Result<Ending, Halt> {
        if !item.addresses.iter().any(|card| card.place == place) {
            return Ok(Ending::Skipped(
                "no agent of the guest ever answered, and nothing is given for this place".into(),
            ));
        }
        if place == Place::Home {
            let order = Order::SetGuest { machine, what: GuestWish::NoSeed, within_ms: 0 };
            match self.order(side, "guest", order, Patience::Bounded(GUEST_TAKES)).await {
                Ok(_) => {}
                Err(Halt::Fault(fault)) => return self.warn(fault).await,
                Err(halt) => return Err(halt),
            }
        }
        Ok(Ending::Done(Some("no agent of the guest ever answered: cloud-init in it reads them from its seed".into())))
    }

    /// What the guest has at a side, by its agent; asked for the `time`th time.
    async fn guest_at(&self, side: Side, time: u64) -> Result<GuestNetwork, Halt> {
        let item = self.load().await?;
        if !self.reachable(side, Role::ProcessServer).await? {
            let site = item.site(side);
            let fault =
                Fault::new(code::NO_COMPONENT, format!("the guest at {site} cannot be asked"), "no process server");
            return Err(Halt::Fault(fault));
        }
        match self
            .order(side, &format!("tell-guest{time}"), Order::TellGuest { machine: item.spec.name }, TELLS)
            .await?
        {
            Outcome::Guest { network } => Ok(network),
            other => Err(unexpected("tell guest", &other)),
        }
    }

    /// The job goes on; whoever looks at it, at its events or at the audit log sees this.
    async fn warn(&mut self, fault: Fault) -> Result<Ending, Halt> {
        let fault = for_item(fault, &self.item);
        let mut change = self.control.database().change().await?;
        let what = format!("warning (job {}): {fault}: {}", self.id, fault.cause);
        audit::note(&mut change, Some(&self.item), &what, None).await?;
        commit(change).await?;
        let words = format!("{fault}: {}; next: {}", fault.cause, fault.remedy);
        // A step that is done again after a crash warns once.
        if !self.figures.warnings.contains(&fault) {
            self.figures.warnings.push(fault);
        }
        Ok(Ending::Skipped(words))
    }
}

/// Whether an address was made of what a router said and of the card's own (EUI-64): it comes when the router speaks next.
fn by_router(address: &str) -> bool {
    let plain = address.split('/').next().and_then(|address| address.parse::<std::net::Ipv6Addr>().ok());
    plain.is_some_and(|address| address.octets()[11..13] == [0xff, 0xfe])
}

/// What the guest had at home and has not now, if anything.
fn differs(item: &Item, learnt: &GuestNetwork, now: &GuestNetwork) -> Option<Fault> {
    let missing: Vec<String> = learnt
        .cards
        .iter()
        .filter(|card| item.addresses.iter().any(|given| given.mac == card.mac))
        .flat_map(|card| {
            let now = now.of(&card.mac);
            let theirs = card.addresses.iter().filter(|address| !by_router(address));
            let gone = theirs.filter(move |address| !now.contains(address.as_str()));
            gone.map(|address| format!("{address} of {} ({})", card.name, card.mac))
        })
        .collect();
    (!missing.is_empty()).then(|| {
        let message = format!("the guest of {} has not got the addresses that it had at home", item.spec.name);
        let cause = format!("missing: {}; it has: {}", missing.join(", "), now.words());
        Fault::new(code::ADDRESSES_DIFFER, message, cause)
    })
}
