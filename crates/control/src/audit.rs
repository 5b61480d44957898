//! The audit log: who asked for what, and why.

use protocol::fault::Fault;
use protocol::id::ItemId;
use protocol::rest::AuditEntry;
use sqlx::{Row, SqliteConnection};

use crate::clock::now_ms;
use crate::database::{Database, failed};

/// Adds an entry.
pub async fn note(
    on: &mut SqliteConnection,
    item: Option<&ItemId>,
    what: &str,
    reason: Option<&str>,
) -> Result<(), Fault> {
    sqlx::query("insert into audit (at_ms, item, what, reason) values ($1, $2, $3, $4)")
        .bind(now_ms())
        .bind(item.map(ItemId::as_str))
        .bind(what)
        .bind(reason)
        .execute(on)
        .await
        .map_err(failed)?;
    Ok(())
}

/// The newest entries, oldest first.
pub async fn newest(database: &Database, most: i64) -> Result<Vec<AuditEntry>, Fault> {
    let rows = sqlx::query("select at_ms, item, what, reason from audit order by id desc limit $1")
        .bind(most)
        .fetch_all(database.readers())
        .await
        .map_err(failed)?;
    let entry = |row: &sqlx::sqlite::SqliteRow| AuditEntry {
        at_ms: row.get(0),
        item: row.get::<Option<String>, _>(1).and_then(|name| name.parse().ok()),
        what: row.get(2),
        reason: row.get(3),
    };
    Ok(rows.iter().rev().map(entry).collect())
}
