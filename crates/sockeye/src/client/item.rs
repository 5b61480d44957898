//! Reads an item's document.
//!
//! The stage's own members are accepted in both ways of writing them: as an object under `stage`, or beside the item's
//! members. In the second way the stage's `runs_at` (a side) collides with the item's `runs_at` (a site), so the side is
//! taken from `side`, which always says the same.

use protocol::epoch::Point;
use protocol::id::{ItemId, SiteName};
use protocol::order::ReplicationStatus;
use protocol::rest::{Health, ItemView};
use protocol::stage::{Side, Stage};
use serde::Deserialize;
use serde_json::{Value, json};

/// An item without its stage; see [`ItemView`].
#[derive(Deserialize)]
struct Beside {
    item: ItemId,
    stage: Value,
    #[serde(default)]
    from: Value,
    #[serde(default)]
    phase: Value,
    stage_words: String,
    health: Health,
    health_reason: Option<String>,
    runs_at: SiteName,
    side: Side,
    home: SiteName,
    away: SiteName,
    rpo_ms: Option<u64>,
    rpo_limit_ms: u64,
    newest: Option<Point>,
    failback: String,
    next: Option<String>,
    generation: u64,
    job: Option<i64>,
    replication: Option<ReplicationStatus>,
}

/// One item.
pub fn view(document: &Value) -> serde_json::Result<ItemView> {
    let read = Beside::deserialize(document)?;
    let stage = match &read.stage {
        Value::String(stage) => {
            Stage::deserialize(&json!({"stage": stage, "runs_at": read.side, "from": read.from, "phase": read.phase}))?
        }
        nested => Stage::deserialize(nested)?,
    };
    Ok(ItemView {
        item: read.item,
        stage,
        stage_words: read.stage_words,
        health: read.health,
        health_reason: read.health_reason,
        runs_at: read.runs_at,
        side: read.side,
        home: read.home,
        away: read.away,
        rpo_ms: read.rpo_ms,
        rpo_limit_ms: read.rpo_limit_ms,
        newest: read.newest,
        failback: read.failback,
        next: read.next,
        generation: read.generation,
        job: read.job,
        replication: read.replication,
    })
}

/// A list of items.
pub fn views(document: &Value) -> serde_json::Result<Vec<ItemView>> {
    Vec::<Value>::deserialize(document)?.iter().map(view).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use protocol::stage::MovePhase;

    #[test]
    fn an_item_is_read_whatever_its_stage_and_however_that_is_written() {
        let side = Side::Away;
        for stage in [
            Stage::Unprotected,
            Stage::Seeding,
            Stage::Protected { runs_at: side },
            Stage::Moving { from: side, phase: MovePhase::WaitingForComplete },
            Stage::CommitPending { runs_at: side },
            Stage::NotProtected { runs_at: side },
            Stage::Reprotecting { runs_at: side },
            Stage::Damaged { runs_at: side },
        ] {
            let item = crate::show::sample::item("web01", stage);
            // As the server's own serializer writes it (a repeated key: the last one counts), and nested.
            let beside: Value = serde_json::from_str(&serde_json::to_string(&item).unwrap()).unwrap();
            let mut nested = beside.clone();
            nested["stage"] = serde_json::to_value(stage).unwrap();
            assert_eq!(view(&beside).unwrap(), item, "{stage:?}");
            assert_eq!(view(&nested).unwrap(), item, "{stage:?}");
        }
    }

    #[test]
    fn what_is_no_item_is_an_error() {
        for bad in [json!(null), json!({}), json!({"item": "web01", "stage": "flying"})] {
            assert!(view(&bad).is_err());
        }
    }
}
