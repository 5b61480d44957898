//! Explanations: what an item allows now, and for the rest what stands against it and the shortest way on.
//!
//! Nothing is known here that `plan` does not know: every operation is planned as it is where nothing more is said.

use futures::future::join_all;
use protocol::fault::Fault;
use protocol::id::ItemId;
use protocol::order::Sync;
use protocol::rest::{Answer, Explained, Explanation, FailoverKind, Operation, Request};

use crate::item::Item;
use crate::{Control, item};

impl Control {
    /// What is allowed on an item, and why not the rest.
    pub async fn explain(&self, name: &ItemId) -> Result<Explanation, Fault> {
        let item = item::load(self.database(), name).await?;
        let view = self.item(name).await?;
        let operations = join_all(asked(&item).into_iter().map(|operation| self.explained(name, operation))).await;
        Ok(Explanation { item: name.clone(), stage_words: view.stage_words, operations, next: view.next })
    }

    async fn explained(&self, name: &ItemId, operation: Operation) -> Explained {
        let verb = words(&operation).to_string();
        let asked = self.meant(Request { item: name.clone(), operation }).await;
        let answer = match &asked {
            Ok(request) => self.answer(request).await,
            Err(fault) => Err(fault.clone()),
        };
        let (answer, guards) = match answer {
            Ok((true, _)) => (Answer::Already, vec![]),
            Ok((false, guards)) if guards.is_empty() => (Answer::Allowed, guards),
            Ok((false, guards)) => (Answer::Refused, guards),
            Err(fault) => (Answer::Refused, vec![fault]),
        };
        Explained { verb, answer, guards }
    }
}

/// The operations that are spoken of, in the order of an item's life.
fn asked(item: &Item) -> Vec<Operation> {
    let protect = Operation::Protect {
        machine: item.spec.name.clone(),
        from: item.home.clone(),
        to: item.away.clone(),
        interval_ms: item.interval_ms,
        policy: item.policy.clone(),
        networks: item.networks.clone(),
        addresses: vec![],
    };
    let views = item.views.iter().map(|view| Operation::EndView { view: view.number });
    let before = [
        protect,
        Operation::planned(),
        Operation::unplanned(),
        Operation::TestFailover { point: None, network: None },
        Operation::Cleanup {},
        Operation::failback(Sync::Tracked),
        Operation::Complete { at: None },
        Operation::ChangePoint { point: None },
        Operation::Commit { keep_history: false },
        Operation::Fold {},
        Operation::reprotect(Sync::Tracked),
        Operation::Cancel {},
        Operation::View { point: None, site: None, writable: false },
    ];
    let after = [Operation::Verify { site: None }, Operation::Unprotect { delete: false }];
    before.into_iter().chain(views).chain(after).collect()
}

/// As it is typed.
fn words(operation: &Operation) -> &'static str {
    match operation {
        Operation::Failover { kind: FailoverKind::Planned { .. }, .. } => "failover --planned",
        Operation::Failover { kind: FailoverKind::Unplanned { .. }, .. } => "failover --unplanned",
        Operation::TestFailover { .. } => "failover --test",
        Operation::EndView { .. } => "view --end",
        other => other.verb(),
    }
}
