//! Questions: orders that only ask, for a person who waits. They are not durable.

use std::time::Duration;

use protocol::difference::{Difference, Pair};
use protocol::epoch::Point;
use protocol::fault::{Fault, code};
use protocol::id::{ItemId, SiteName};
use protocol::order::{Order, Outcome, Role};
use protocol::stage::Side;

use crate::item::Item;
use crate::order_book::{self, Standing};
use crate::{Control, item, token};

/// How long a person waits for an answer from a site.
const PATIENCE: Duration = Duration::from_secs(10);
/// The same for a question that is answered by reading disks.
const LONG_PATIENCE: Duration = Duration::from_secs(600);

impl Control {
    /// The recovery points that are kept for an item at a site (where none is given: the one of [`Item::keeper`]), oldest
    /// first, as its master target tells now.
    pub async fn points(&self, name: &ItemId, site: Option<&SiteName>) -> Result<Vec<Point>, Fault> {
        let item = item::load(self.database(), name).await?;
        self.points_at(&item, item.keeper_at(site)?, PATIENCE).await
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
        match self.ask_keeper(item, side, Order::ListPoints { item: item.name.clone() }, patience).await? {
            Outcome::Points { points } => Ok(points),
            other => Err(unasked(&other)),
        }
    }

    /// Asks the master target that keeps the item's replica at `side`.
    async fn ask_keeper(&self, item: &Item, side: Side, order: Order, patience: Duration) -> Result<Outcome, Fault> {
        let component = {
            let fleet = self.fleet();
            match item.bound(side, Role::MasterTarget) {
                Some(bound) if fleet.connected(bound) => bound.to_string(),
                _ => fleet.need(item.site(side), Role::MasterTarget)?,
            }
        };
        self.ask(&component, item, order, patience).await
    }

    async fn ask(&self, component: &str, item: &Item, order: Order, patience: Duration) -> Result<Outcome, Fault> {
        let id = format!("{}-ask-{}", self.installation(), &token::fresh()[..16]);
        // Under a name of its own: a question never waits behind the work that is under way on the item.
        order_book::issue(self.database(), &id, component, &format!("{} {id}", item.name), &order).await?;
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

fn unasked(answer: &Outcome) -> Fault {
    let cause = format!("{answer:?}").chars().take(300).collect::<String>();
    Fault::new(code::INTERNAL, "a master target answered another question than the one it was asked", cause)
}
