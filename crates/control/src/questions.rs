//! Questions, and other small things that a person waits for: orders that are not durable. What is not answered in time
//! is asked again.
//!
//! Such an order changes no machine and no disk; at most a point is pinned, which can be repeated.

use std::collections::BTreeSet;
use std::time::Duration;

use protocol::difference::{Difference, Pair};
use protocol::epoch::Point;
use protocol::fault::{Fault, code};
use protocol::id::{Attempt, ItemId, SiteName};
use protocol::keeping::{AddPoint, KeptPoint, PinPoint};
use protocol::order::{Order, Outcome, Role};
use protocol::stage::Side;

use crate::database::commit;
use crate::item::Item;
use crate::order_book::{self, Standing};
use crate::{Control, audit, item, token};

/// How long a person waits for an answer from a site.
const PATIENCE: Duration = Duration::from_secs(10);
/// The same for one that waits for the next epochs: at least so long, and for three of them.
const LEAST_POINT_PATIENCE: Duration = Duration::from_secs(60);
/// The same for a question that is answered by reading disks.
const LONG_PATIENCE: Duration = Duration::from_secs(600);

impl Control {
    /// The recovery points that are kept for an item at a site (where none is given: the one of [`Item::keeper`]), oldest
    /// first, as its master target tells now.
    pub async fn points(&self, name: &ItemId, site: Option<&SiteName>) -> Result<Vec<KeptPoint>, Fault> {
        let item = item::load(self.database(), name).await?;
        let (points, pins) = self.kept_points(&item, site).await?;
        let pins: BTreeSet<Attempt> = pins.into_iter().collect();
        let kept = points.into_iter().map(|point| KeptPoint { pinned: pins.contains(&point.attempt), point });
        Ok(kept.collect())
    }

    /// The same in two lists: the points, and which of them are pinned.
    pub(crate) async fn kept_points(
        &self,
        item: &Item,
        site: Option<&SiteName>,
    ) -> Result<(Vec<Point>, Vec<Attempt>), Fault> {
        self.ask_points(item, item.keeper_at(site)?, PATIENCE).await
    }

    /// Pins a point, or takes its pin away. For `site` see [`Control::points`].
    pub async fn pin(
        &self,
        name: &ItemId,
        point: Attempt,
        wanted: PinPoint,
        site: Option<&SiteName>,
    ) -> Result<(), Fault> {
        let PinPoint { pinned, reason } = wanted;
        let item = item::load(self.database(), name).await?;
        let order = Order::PinPoint { item: item.name.clone(), point, pinned };
        let side = item.keeper_at(site)?;
        self.ask_keeper(&item, side, order, PATIENCE).await?;
        let what = if pinned { "pinned" } else { "unpinned" };
        let what = format!("point {point} {what} at {}", item.site(side));
        self.audited(&item.name, &what, reason.as_deref()).await
    }

    /// Has a recovery point taken now, where the item is replicated to, and pins it.
    pub async fn add_point(&self, name: &ItemId, wanted: AddPoint) -> Result<Point, Fault> {
        let item = item::load(self.database(), name).await?;
        if item.active_wish().is_none_or(|wish| wish.quiesced) {
            let message = format!("no point of {name} can be taken now");
            let cause = format!("its machine is not being replicated: {}", item.stage.words(None));
            return Err(Fault::new(code::STAGE_REFUSES, message, cause)
                .with_remedy(format!("look at it: sockeye status {name}")));
        }
        let within_ms = item.interval_ms.saturating_mul(3).max(LEAST_POINT_PATIENCE.as_millis() as u64);
        // The master target gives up first: what it does when nobody listens any more would be a pin that nobody knows of.
        let patience = Duration::from_millis(within_ms) + PATIENCE;
        let side = item.stage.runs_at().other();
        let added = match wanted.app {
            true => self.add_app_point(&item, patience).await?,
            false => {
                let order = Order::AddPoint { item: item.name.clone(), within_ms };
                self.ask_keeper(&item, side, order, patience).await?
            }
        };
        match added {
            Outcome::Added { point } => {
                let what = format!("point {} added at {}", point.attempt, item.site(side));
                self.audited(&item.name, &what, wanted.reason.as_deref()).await?;
                Ok(point)
            }
            other => Err(unasked(&other)),
        }
    }

    /// Has the process server make an application-consistent point, and the master target pin it.
    async fn add_app_point(&self, item: &Item, patience: Duration) -> Result<Outcome, Fault> {
        let from = item.stage.runs_at();
        let sender = self.fleet().need(item.site(from), Role::ProcessServer)?;
        let added = self.ask(&sender, item, Order::AppPoint { item: item.name.clone() }, patience).await?;
        if let Outcome::Added { point } = &added {
            let order = Order::PinPoint { item: item.name.clone(), point: point.attempt, pinned: true };
            self.ask_keeper(item, from.other(), order, PATIENCE).await?;
        }
        Ok(added)
    }

    async fn audited(&self, item: &ItemId, what: &str, reason: Option<&str>) -> Result<(), Fault> {
        let mut change = self.database().change().await?;
        audit::note(&mut change, Some(item), what, reason).await?;
        commit(change).await
    }

    /// What two points differ in, as their master target reads them now. For `site` see [`Control::points`].
    pub async fn difference(&self, name: &ItemId, points: Pair, site: Option<&SiteName>) -> Result<Difference, Fault> {
        let item = item::load(self.database(), name).await?;
        let order = Order::DiffPoints { item: item.name.clone(), points };
        match self.ask_keeper(&item, item.keeper_at(site)?, order, LONG_PATIENCE).await? {
            Outcome::Differ { difference } => Ok(difference),
            other => Err(unasked(&other)),
        }
    }

    pub(crate) async fn points_at(&self, item: &Item, side: Side, patience: Duration) -> Result<Vec<Point>, Fault> {
        Ok(self.ask_points(item, side, patience).await?.0)
    }

    async fn ask_points(
        &self,
        item: &Item,
        side: Side,
        patience: Duration,
    ) -> Result<(Vec<Point>, Vec<Attempt>), Fault> {
        match self.ask_keeper(item, side, Order::ListPoints { item: item.name.clone() }, patience).await? {
            Outcome::Points { points, pins } => Ok((points, pins)),
            other => Err(unasked(&other)),
        }
    }

    /// Asks the master target that keeps the item's replica at `side`.
    pub(crate) async fn ask_keeper(
        &self,
        item: &Item,
        side: Side,
        order: Order,
        patience: Duration,
    ) -> Result<Outcome, Fault> {
        let component = {
            let fleet = self.fleet();
            match item.bound(side, Role::MasterTarget) {
                Some(bound) if fleet.connected(bound) => bound.to_string(),
                _ => fleet.need(item.site(side), Role::MasterTarget)?,
            }
        };
        self.ask(&component, item, order, patience).await
    }

    /// Asks one component.
    pub(crate) async fn ask(
        &self,
        component: &str,
        item: &Item,
        order: Order,
        patience: Duration,
    ) -> Result<Outcome, Fault> {
        self.ask_about(component, item.name.as_str(), order, patience).await
    }

    /// The same about what is no item yet.
    pub(crate) async fn ask_about(
        &self,
        component: &str,
        about: &str,
        order: Order,
        patience: Duration,
    ) -> Result<Outcome, Fault> {
        let id = format!("{}-ask-{}", self.installation(), &token::fresh()[..16]);
        // Under a name of its own: a question never waits behind the work that is under way on the item.
        order_book::issue(self.database(), &id, component, &format!("{about} {id}"), &order).await?;
        self.wake_exchanges();
        let until = tokio::time::Instant::now() + patience;
        let answer = loop {
            let mut news = self.news();
            match order_book::standing(self.database(), &id).await? {
                Some(Standing::Done(outcome)) => break Ok(outcome),
                Some(Standing::Failed(fault)) => break Err(fault),
                _ if tokio::time::Instant::now() >= until || self.pause(&mut news).await.is_err() => {
                    break Err(Fault::new(
                        code::ORDER_TIMED_OUT,
                        format!("{component} did not answer in time"),
                        "it was only asked, nothing is changed",
                    ));
                }
                _ => {}
            }
        };
        order_book::forget(self.database(), &id).await?;
        answer
    }
}

pub(crate) fn unasked(answer: &Outcome) -> Fault {
    let cause = format!("{answer:?}").chars().take(300).collect::<String>();
    Fault::new(code::INTERNAL, "a component answered another question than the one it was asked", cause)
}
