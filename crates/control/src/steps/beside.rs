//! Steps that begin and end what stands beside an item.

use protocol::fault::{Fault, code};
use protocol::guest::Place;
use protocol::id::{Attempt, ItemId};
use protocol::machine::MachineSpec;
use protocol::order::{Order, Outcome};
use protocol::stage::Side;
use protocol::verified::Verified;

use super::ordering::{Patience, Undoing, unexpected};
use super::{Context, Ending, Halt};
use crate::beside::{Test, View};
use crate::guest_network;

impl Context<'_> {
    pub(super) async fn raise_test(
        &mut self,
        at: Side,
        point: Option<Attempt>,
        network: Option<&str>,
    ) -> Result<Ending, Halt> {
        let item = self.load().await?;
        let machine = item.test_name();
        // Those of its cards that stand on no network here stand on that of the test as well.
        let spec = MachineSpec {
            seed: guest_network::seed(&item, Place::Test, self.id.unsigned_abs()),
            ..self.description(&item, at).isolated(&machine, network)
        };
        let order = Order::RaiseTest { item: self.item.clone(), spec, point };
        match self.order(at, "raise-test", order, Patience::UntilReported).await? {
            Outcome::Raised { point } => {
                let test = Test { side: at, machine, point: point.attempt, cut_at_ms: point.cut_at_ms };
                self.change(|item| {
                    item.test = Some(test);
                    Ok(())
                })
                .await?;
                let detail = format!("point {}", point.attempt);
                self.figures.point = Some(point);
                Ok(Ending::Done(Some(detail)))
            }
            other => Err(unexpected("raise test", &other)),
        }
    }

    pub(super) async fn undo_raise_test(&mut self, at: Side) -> Result<Option<String>, Halt> {
        if !self.may_have_acted("raise-test").await? {
            return Ok(None);
        }
        let undone = self.undo_order(at, "lower-test", Order::LowerTest { item: self.item.clone() }).await?;
        self.forget_test().await?;
        Ok(undone.words())
    }

    pub(super) async fn lower_test(&mut self, at: Side, required: bool) -> Result<Ending, Halt> {
        let order = Order::LowerTest { item: self.item.clone() };
        let detail = self.end_beside(at, "lower-test", order, required).await?;
        self.forget_test().await?;
        Ok(Ending::Done(detail))
    }

    async fn forget_test(&mut self) -> Result<(), Halt> {
        self.change(|item| {
            item.test = None;
            Ok(())
        })
        .await
    }

    pub(super) async fn serve_view(
        &mut self,
        at: Side,
        point: Option<Attempt>,
        writable: bool,
    ) -> Result<Ending, Halt> {
        let number = self.id;
        let order = Order::ServeView { item: self.item.clone(), view: number, point, writable };
        match self.order(at, "serve", order, Patience::UntilReported).await? {
            Outcome::Serves { point, disks } => {
                let view = View { number, side: at, point: point.attempt, writable, disks };
                let served = self
                    .change(|item| {
                        let served = item.served(&view);
                        item.views.retain(|other| other.number != number);
                        item.views.push(view);
                        Ok(served)
                    })
                    .await?;
                let detail = format!("point {}", point.attempt);
                (self.figures.point, self.figures.served) = (Some(point), Some(served));
                Ok(Ending::Done(Some(detail)))
            }
            other => Err(unexpected("serve view", &other)),
        }
    }

    pub(super) async fn undo_serve_view(&mut self, at: Side) -> Result<Option<String>, Halt> {
        if !self.may_have_acted("serve").await? {
            return Ok(None);
        }
        let order = Order::EndView { item: self.item.clone(), view: self.id };
        let undone = self.undo_order(at, "end-view", order).await?;
        self.forget_view(self.id).await?;
        self.figures.served = None;
        Ok(undone.words())
    }

    pub(super) async fn end_view(&mut self, at: Side, view: i64, required: bool) -> Result<Ending, Halt> {
        let order = Order::EndView { item: self.item.clone(), view };
        let detail = self.end_beside(at, "end-view", order, required).await?;
        self.forget_view(view).await?;
        Ok(Ending::Done(detail))
    }

    async fn forget_view(&mut self, number: i64) -> Result<(), Halt> {
        self.change(|item| {
            item.views.retain(|view| view.number != number);
            Ok(())
        })
        .await
    }

    /// What is damaged is this step's fault; what was read is told either way.
    pub(super) async fn verify(&mut self, at: Side) -> Result<Ending, Halt> {
        let order = Order::Verify { item: self.item.clone() };
        match self.order(at, "verify", order, Patience::UntilReported).await? {
            Outcome::Verified { verified } => {
                let fault = damaged(&self.item, &verified);
                self.figures.verified = Some(verified);
                fault.map_or(Ok(Ending::Done(None)), |fault| Err(Halt::Fault(fault)))
            }
            other => Err(unexpected("verify", &other)),
        }
    }

    /// Has something ended. Where that is not required, a master target that is gone does it when it is back.
    async fn end_beside(&mut self, at: Side, tag: &str, order: Order, required: bool) -> Result<Option<String>, Halt> {
        if required {
            return match self.order(at, tag, order, Patience::UntilReported).await? {
                Outcome::Nothing => Ok(None),
                other => Err(unexpected("end", &other)),
            };
        }
        match self.undo_order(at, tag, order).await? {
            Undoing::Ended(Err(fault)) => Err(Halt::Fault(fault)),
            left => Ok(left.words()),
        }
    }
}

/// The fault that a scrub's answer is, if something is damaged.
fn damaged(item: &ItemId, verified: &Verified) -> Option<Fault> {
    let first = verified.damage.first()?;
    let more = match verified.damage_count {
        0 | 1 => String::new(),
        count => format!("; and {} more", count - 1),
    };
    let cause = format!("{}: {}{more}", first.disk, first.why);
    let fault = Fault::new(code::REPLICA_DAMAGED, format!("the replica of {item} is damaged"), cause);
    Some(match verified.damage.iter().any(|damage| damage.newest) {
        true => crate::item::for_item(fault, item),
        // What a failover needs is whole.
        false => fault.with_remedy(
            "the newest state is whole; look at the medium of the retention volume: older points that need what is damaged are refused when they are asked for",
        ),
    })
}
