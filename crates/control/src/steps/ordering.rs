//! Giving an order and waiting for what becomes of it.

use std::time::{Duration, Instant};

use protocol::fault::{Fault, code};
use protocol::order::{Order, Outcome, Role};
use protocol::stage::Side;

use super::{Context, Halt};
use crate::job;
use crate::order_book::{self, Standing};

/// How long a component that is connected may take to answer a cancelled order before nobody waits any more.
const CANCEL_PATIENCE: Duration = Duration::from_secs(60);

/// How soon a component that lives picks an order up: its exchange is held open for that, or comes again at once.
const PICK_UP: Duration = Duration::from_secs(3);

/// How long a step waits for an order.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Patience {
    /// Until it is reported, or the job is cancelled.
    UntilReported,
    /// At most so long, and only while the component is connected.
    Bounded(Duration),
    /// The same, and not even that long if the component does not pick the order up: one that lives does so at once.
    BoundedIfPickedUp(Duration),
}

/// What became of an order that undoes something.
#[derive(Debug)]
pub(crate) enum Undoing {
    /// It was carried out, or failed.
    Ended(Result<Outcome, Fault>),
    /// Its component is gone; the order waits in the book.
    Left(String),
}

impl Undoing {
    /// What the step's detail says.
    pub(crate) fn words(self) -> Option<String> {
        match self {
            Undoing::Ended(Ok(_)) => None,
            Undoing::Ended(Err(fault)) => Some(format!("could not be undone: {fault}")),
            Undoing::Left(component) => Some(format!("{component} is gone; it is done when it is back")),
        }
    }
}

impl Context<'_> {
    fn order_id(&self, tag: &str) -> String {
        let again = if self.attempt == 0 { String::new() } else { format!("-{}", self.attempt) };
        format!("{}-{}-{}-{tag}{again}", self.control.installation(), self.id, self.index)
    }

    /// A secret that is the same whenever this step asks for it.
    pub(crate) fn secret(&self) -> String {
        self.control.secret(&format!("grant {} {}", self.id, self.index))
    }

    /// How the order with `tag` of this step stands, if it was given.
    pub(crate) async fn given(&self, tag: &str) -> Result<Option<Standing>, Halt> {
        Ok(order_book::standing(self.control.database(), &self.order_id(tag)).await?)
    }

    /// The component that plays `role` at `side`: the one that keeps the replica, or the best that is there.
    pub(crate) async fn component(&self, side: Side, role: Role) -> Result<String, Halt> {
        let item = self.load().await?;
        let fleet = self.control.fleet();
        if let Some(bound) = item.bound(side, role)
            && fleet.components.contains_key(bound)
        {
            return Ok(bound.to_string());
        }
        match fleet.at(item.site(side), role) {
            Some(name) => Ok(name),
            None => Err(Halt::Fault(fleet.need(item.site(side), role).err().unwrap_or_else(|| {
                Fault::new(code::NO_COMPONENT, format!("site {} has no {role}", item.site(side)), "none registered")
            }))),
        }
    }

    /// Gives an order to the component that plays its role at `side` and waits for its outcome.
    pub(crate) async fn order(&self, side: Side, tag: &str, order: Order, patience: Patience) -> Result<Outcome, Halt> {
        let id = self.order_id(tag);
        let component = self.give(side, &id, &order).await?;
        let begun = Instant::now();
        let mut cancelled_since: Option<Instant> = None;
        loop {
            let mut news = self.control.news();
            match order_book::standing(self.control.database(), &id).await? {
                // What was done although it was cancelled is undone like the rest.
                Some(_) if cancelled_since.is_some() && !self.is_open(&id).await? => return Err(Halt::Cancelled),
                Some(Standing::Done(outcome)) => return Ok(outcome),
                Some(Standing::Failed(fault)) => return Err(Halt::Fault(fault)),
                Some(Standing::Withdrawn) => return Err(Halt::Fault(timed_out(&component))),
                Some(Standing::Open) | None => {}
            }
            self.tell_about(&component, &id);
            let gone = self.control.gone(&component);
            let row = job::load(self.control.database(), self.id).await?;
            if self.check_cancelled(&row).is_err() {
                match cancelled_since {
                    None => {
                        order_book::cancel(self.control.database(), &id).await?;
                        self.control.wake_exchanges();
                        cancelled_since = Some(Instant::now());
                    }
                    Some(since) if !gone && since.elapsed() < CANCEL_PATIENCE => {}
                    Some(_) => order_book::withdraw(self.control.database(), &id).await?,
                }
                if gone {
                    order_book::withdraw(self.control.database(), &id).await?;
                    continue;
                }
            }
            let over = match patience {
                Patience::UntilReported => false,
                Patience::Bounded(most) => gone || begun.elapsed() >= most,
                Patience::BoundedIfPickedUp(most) => {
                    let ignored = begun.elapsed() >= PICK_UP && !self.control.fleet().was_handed(&component, &id);
                    gone || ignored || begun.elapsed() >= most
                }
            };
            if over {
                order_book::withdraw(self.control.database(), &id).await?;
                self.control.wake_exchanges();
                continue;
            }
            self.control.pause(&mut news).await?;
        }
    }

    async fn is_open(&self, id: &str) -> Result<bool, Halt> {
        Ok(matches!(order_book::standing(self.control.database(), id).await?, Some(Standing::Open)))
    }

    /// Gives an order that undoes something. A component that is gone is not waited for: the order stays in the book.
    pub(crate) async fn undo_order(&self, side: Side, tag: &str, order: Order) -> Result<Undoing, Halt> {
        let id = self.order_id(tag);
        let component = self.give(side, &id, &order).await?;
        let mut gone_since: Option<Instant> = None;
        loop {
            let mut news = self.control.news();
            match order_book::standing(self.control.database(), &id).await? {
                Some(Standing::Done(outcome)) => return Ok(Undoing::Ended(Ok(outcome))),
                Some(Standing::Failed(fault)) => return Ok(Undoing::Ended(Err(fault))),
                Some(Standing::Withdrawn) => return Ok(Undoing::Ended(Err(timed_out(&component)))),
                Some(Standing::Open) | None => {}
            }
            self.tell_about(&component, &id);
            if !self.control.gone(&component) {
                gone_since = None;
            } else if gone_since.get_or_insert_with(Instant::now).elapsed() >= self.control.settings().undo_patience {
                return Ok(Undoing::Left(component));
            }
            self.control.pause(&mut news).await?;
        }
    }

    async fn give(&self, side: Side, id: &str, order: &Order) -> Result<String, Halt> {
        self.control.tick()?;
        let chosen = self.component(side, order.role()).await?;
        let component = order_book::issue(self.control.database(), id, &chosen, &self.line, order).await?;
        self.control.tick()?;
        self.control.wake_exchanges();
        Ok(component)
    }

    /// Shows how the order goes.
    fn tell_about(&self, component: &str, id: &str) {
        let (connected, working) = {
            let fleet = self.control.fleet();
            let working = fleet.components.get(component).and_then(|known| known.working.get(id).cloned());
            (fleet.connected(component), working)
        };
        match (connected, working) {
            (false, _) => self.control.tell(self.id, Some(format!("waiting for component {component}")), None),
            (true, Some((step, percent))) => self.control.tell(self.id, Some(step), percent),
            (true, None) => {}
        }
    }

    /// Whether the component that plays `role` at `side` is connected; a server that has just started gives it time.
    pub(crate) async fn reachable(&self, side: Side, role: Role) -> Result<bool, Halt> {
        let name = match self.component(side, role).await {
            Ok(name) => name,
            Err(Halt::Fault(fault)) if fault.is(code::NO_COMPONENT) => return Ok(false),
            Err(other) => return Err(other),
        };
        loop {
            let mut news = self.control.news();
            if self.control.fleet().connected(&name) {
                return Ok(true);
            }
            if self.control.gone(&name) {
                return Ok(false);
            }
            self.control.pause(&mut news).await?;
        }
    }

    /// Whether the order with `tag` may have had an effect: it was given, and did not say that it failed and undid it.
    pub(crate) async fn may_have_acted(&self, tag: &str) -> Result<bool, Halt> {
        Ok(!matches!(self.given(tag).await?, None | Some(Standing::Failed(_))))
    }
}

fn timed_out(component: &str) -> Fault {
    Fault::new(code::ORDER_TIMED_OUT, format!("{component} did not answer in time"), "the order was taken back")
}

/// The fault of an outcome of the wrong kind.
pub(crate) fn unexpected(order: &str, outcome: &Outcome) -> Halt {
    Halt::Fault(Fault::new(
        code::INTERNAL,
        format!("a component answered {order} with something else"),
        format!("{outcome:?}").chars().take(300).collect::<String>(),
    ))
}
