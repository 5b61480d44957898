//! Questions: orders that only ask, for a person who waits. They are not durable.

use std::time::Duration;

use protocol::epoch::Point;
use protocol::fault::{Fault, code};
use protocol::id::ItemId;
use protocol::order::{Order, Outcome, Role};
use protocol::stage::Side;

use crate::item::Item;
use crate::order_book::{self, Standing};
use crate::{Control, item, token};

/// How long a person waits for an answer from a site.
const PATIENCE: Duration = Duration::from_secs(10);

impl Control {
    /// The recovery points that are kept for an item, oldest first, as its master target tells now.
    pub async fn points(&self, name: &ItemId) -> Result<Vec<Point>, Fault> {
        let item = item::load(self.database(), name).await?;
        self.points_at(&item, item.stage.runs_at().other(), PATIENCE).await
    }

    pub(crate) async fn points_at(&self, item: &Item, side: Side, patience: Duration) -> Result<Vec<Point>, Fault> {
        let component = {
            let fleet = self.fleet();
            match item.bound(side, Role::MasterTarget) {
                Some(bound) if fleet.connected(bound) => bound.to_string(),
                _ => fleet.need(item.site(side), Role::MasterTarget)?,
            }
        };
        match self.ask(&component, item, Order::ListPoints { item: item.name.clone() }, patience).await? {
            Outcome::Points { points } => Ok(points),
            other => Err(Fault::new(
                code::INTERNAL,
                format!("{component} did not answer with its points"),
                format!("{other:?}").chars().take(300).collect::<String>(),
            )),
        }
    }

    async fn ask(&self, component: &str, item: &Item, order: Order, patience: Duration) -> Result<Outcome, Fault> {
        let id = format!("{}-ask-{}", self.installation(), &token::fresh()[..16]);
        // Under a name of its own: a question never waits behind the work that is under way on the item.
        order_book::issue_beside(self.database(), &id, component, &format!("{} {id}", item.name), &order).await?;
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
