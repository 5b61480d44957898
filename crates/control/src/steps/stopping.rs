//! Steps that stop a machine, send its last changes and let go of its disks.

use std::time::Duration;

use protocol::fault::{Fault, code};
use protocol::id::Attempt;
use protocol::order::{Order, Outcome, Role, untouched};
use protocol::position::Changes;
use protocol::rest::ShutDownFirst;
use protocol::stage::Side;

use super::ordering::{Patience, unexpected};
use super::{Context, Ending, Halt};
use crate::clock::now_ms;

/// How long a machine may take to let go of its disks after it was shut down, in ms.
const LET_GO_MS: u64 = 20_000;

impl Context<'_> {
    pub(super) async fn stop_first(&mut self, at: Side, how: ShutDownFirst) -> Result<Ending, Halt> {
        if how == ShutDownFirst::Skip {
            return Ok(Ending::Skipped("asked to leave it alone".into()));
        }
        let item = self.load().await?;
        if self.given("stop").await?.is_none() && !self.reachable(at, Role::ProcessServer).await? {
            let site = item.site(at).clone();
            if how == ShutDownFirst::Require {
                let fault = self.control.fleet().need(&site, Role::ProcessServer).err();
                return Err(Halt::Fault(fault.unwrap_or_else(|| {
                    Fault::new(
                        code::NO_COMPONENT,
                        format!("site {site} does not answer"),
                        "it was to be shut down first",
                    )
                })));
            }
            return Ok(Ending::Skipped(format!("site {site} does not answer")));
        }
        let most = self.control.settings().shut_down_first;
        let order = Order::ShutDown {
            machine: item.spec.name.clone(),
            timeout_ms: most.as_millis() as u64 * 2 / 3,
            then_power_off: true,
        };
        match self.order(at, "stop", order, Patience::BoundedIfPickedUp(most)).await {
            Ok(Outcome::Stopped { by_guest, .. }) => Ok(Ending::Done(Some(how_it_stopped(by_guest)))),
            Ok(other) => Err(unexpected("shut down", &other)),
            Err(Halt::Fault(fault)) if how == ShutDownFirst::Try => {
                Ok(Ending::Done(Some(format!("it could not be shut down: {fault}"))))
            }
            Err(halt) => Err(halt),
        }
    }

    pub(super) async fn shut_down(&mut self, at: Side, timeout_ms: u64, then_power_off: bool) -> Result<Ending, Halt> {
        let machine = self.load().await?.spec.name;
        let order = Order::ShutDown { machine, timeout_ms, then_power_off };
        let asked = now_ms().unsigned_abs();
        match self.order(at, "stop", order, Patience::UntilReported).await? {
            Outcome::Stopped { by_guest, at_ms } => {
                // Told by the other host's clock, which is believed as far as it can be right.
                let now = now_ms().unsigned_abs();
                let stopped = at_ms.clamp(self.started_at_ms.unsigned_abs().min(now), now);
                self.notes.stopped_at_ms = Some(stopped);
                // A step that is done again after a crash finds its order done, before it asked.
                self.notes.shut_down_ms = stopped.checked_sub(asked);
                Ok(Ending::Done(Some(how_it_stopped(by_guest))))
            }
            other => Err(unexpected("shut down", &other)),
        }
    }

    /// Starts the machine again where it was shut down. If no map is held there any more, what it writes is counted from
    /// the final delta, with which its disks are equal; where there was none, from a cut that never existed, so that the
    /// next epoch is a compare.
    pub(super) async fn undo_shut_down(&mut self, at: Side) -> Result<Option<String>, Halt> {
        if !self.may_have_acted("stop").await? {
            return Ok(None);
        }
        let item = self.load().await?;
        let mark = self.notes.last.unwrap_or(NO_CUT);
        let order = Order::StartMachine { machine: item.spec.name, lineage: item.lineage, mark };
        Ok(self.undo_order(at, "start", order).await?.words())
    }

    pub(super) async fn final_delta(&mut self, at: Side) -> Result<Ending, Halt> {
        self.change(|item| {
            if let Some(wish) = &mut item.wish {
                wish.quiesced = true;
            }
            Ok(())
        })
        .await?;
        let order = Order::FinalDelta { item: self.item.clone() };
        match self.order(at, "final", order, Patience::UntilReported).await? {
            Outcome::Final { point, moved, stamps, seal_ms } => {
                self.notes.last = Some(point.attempt);
                self.notes.sealed = Some((now_ms().unsigned_abs(), seal_ms));
                self.figures.last = Some(moved);
                self.figures.point = Some(point.clone());
                let settled = untouched(point.attempt, stamps);
                self.change(|item| {
                    item.copy_mut(at).settled = Some(settled);
                    Ok(())
                })
                .await?;
                Ok(Ending::Done(Some(format!("point {}, {} bytes sent", point.attempt, moved.sent))))
            }
            other => Err(unexpected("the final delta", &other)),
        }
    }

    pub(super) async fn undo_final_delta(&mut self, at: Side) -> Result<Option<String>, Halt> {
        self.change(|item| {
            if let Some(wish) = &mut item.wish {
                wish.quiesced = false;
            }
            // It will run again: what was known of it is no longer true.
            item.copy_mut(at).settled = None;
            Ok(())
        })
        .await?;
        Ok(None)
    }

    /// Lets the hypervisor at the old side go, and remembers how the disks were left. That the copy is equal to the final
    /// point is known already, and counts where the hypervisor cannot say it any more, as long as the disks are still, stamp
    /// for stamp, what they were at that point.
    pub(super) async fn let_go(&mut self, at: Side, required: bool) -> Result<Ending, Halt> {
        if !required && !self.reachable(at, Role::ProcessServer).await? {
            return Ok(Ending::Skipped("its site does not answer; it is done when it does".into()));
        }
        let item = self.load().await?;
        let order = Order::Settle { machine: item.spec.name.clone(), lineage: item.lineage, stop: Some(LET_GO_MS) };
        let patience = if required { Patience::UntilReported } else { Patience::Bounded(Duration::from_secs(40)) };
        match self.order(at, "let-go", order, patience).await {
            Ok(Outcome::Settled { settled: told, .. }) => {
                self.change(|item| {
                    let copy = item.copy_mut(at);
                    copy.settled = Some(match copy.settled.take() {
                        Some(known) if matches!(told.changes, Changes::Unknown(_)) && known.stamps == told.stamps => {
                            known
                        }
                        _ => told,
                    });
                    if let Some(last) = &mut item.last_move {
                        last.let_go = true;
                    }
                    Ok(())
                })
                .await?;
                Ok(Ending::Done(None))
            }
            Ok(other) => Err(unexpected("settle", &other)),
            Err(Halt::Fault(fault)) if !required => Ok(Ending::Skipped(fault.to_string())),
            Err(halt) => Err(halt),
        }
    }
}

/// A cut that never was: no copy is based on it, so nothing is ever sent as a delta from it.
pub(super) const NO_CUT: Attempt = Attempt { generation: 0, number: 0 };

fn how_it_stopped(by_guest: bool) -> String {
    if by_guest { "the guest shut down".into() } else { "its power was taken".into() }
}
