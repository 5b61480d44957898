//! Where the disks of a raised machine stood when it was started: what its process server adds the machine's own writes to.

use std::sync::Arc;

use protocol::fault::code;
use protocol::position::Distrust;
use protocol::{Changes, Fault, Position};

use crate::item::Item;
use crate::shelf::blocking;

/// The position of the copy at the point that the machine was raised from.
pub(crate) async fn standpoint(item: &Arc<Item>) -> Result<Position, Fault> {
    let Some(raised) = item.record().raised else {
        let message = format!("{} was not raised here", item.id());
        return Err(Fault::new(code::REPLICA_CLOSED, message, "only a raised machine has a standpoint"));
    };
    let mut position = item.position().ok_or_else(|| {
        Fault::new(code::DAMAGED, format!("the replica of {} holds no point", item.id()), "it was never finished")
    })?;
    let (replica, of) = (item.replica.clone(), item.clone());
    let since = blocking(move || replica.changed_since(raised.point).map_err(|error| of.fault(&error))).await;
    let since = match since {
        Ok(maps) => Changes::Known(maps),
        Err(fault) if fault.is(code::POINT_GONE) => Changes::Unknown(Distrust::HistoryPruned),
        Err(fault) => return Err(fault),
    };
    position.changes = position.changes.union(&since);
    Ok(position)
}
