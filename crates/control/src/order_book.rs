//! The order book: what components were told to do, and what became of it.
//!
//! ```text
//!   issue ──► open ──report──► done | failed
//!               └── withdraw ──► withdrawn        (its component vanished and nobody waits any more)
//! ```
//!
//! # Always true
//! - An order has one id for ever. Ids are derived from job, step and purpose, so a step that is repeated after a crash
//!   finds the order that it gave before.
//! - A component is given one order of an item at a time, the oldest: it never has to guess their order.
//! - The first outcome that is reported counts; repeated reports change nothing.

use protocol::fault::Fault;
use protocol::id::ItemId;
use protocol::order::{NumberedOrder, Order, Outcome};
use sqlx::{Row, SqliteConnection};

use crate::database::{Database, commit, failed, from_text, to_text};

/// How an order stands.
#[derive(Debug, Clone, PartialEq)]
pub enum Standing {
    /// Not reported yet.
    Open,
    /// Done.
    Done(Outcome),
    /// Failed, and what it began is undone.
    Failed(Fault),
    /// Nobody waits for it; it may or may not have been carried out.
    Withdrawn,
}

/// Gives an order unless one of that id exists; either way tells which component has it. Orders of one line, which is the
/// item for what is done with the item itself, are carried out one after the other.
pub async fn issue(database: &Database, id: &str, component: &str, line: &str, order: &Order) -> Result<String, Fault> {
    let mut change = database.change().await?;
    sqlx::query(
        "insert into work_order (id, number, component, item, body, cancelled, state)
         values ($1, (select coalesce(max(number), 0) + 1 from work_order), $2, $3, $4, 0, 'open')
         on conflict (id) do nothing",
    )
    .bind(id)
    .bind(component)
    .bind(line)
    .bind(to_text(order)?)
    .execute(&mut *change)
    .await
    .map_err(failed)?;
    let holder = sqlx::query_scalar("select component from work_order where id = $1")
        .bind(id)
        .fetch_one(&mut *change)
        .await
        .map_err(failed)?;
    commit(change).await?;
    Ok(holder)
}

/// How the order of that id stands, if it was ever given.
pub async fn standing(database: &Database, id: &str) -> Result<Option<Standing>, Fault> {
    let row = sqlx::query("select state, result from work_order where id = $1")
        .bind(id)
        .fetch_optional(database.readers())
        .await
        .map_err(failed)?;
    let Some(row) = row else { return Ok(None) };
    let result: String = row.get::<Option<String>, _>(1).unwrap_or_default();
    Ok(Some(match row.get::<String, _>(0).as_str() {
        "done" => Standing::Done(from_text(&result)?),
        "failed" => Standing::Failed(from_text(&result)?),
        "withdrawn" => Standing::Withdrawn,
        _ => Standing::Open,
    }))
}

/// Takes a report. Tells whether it was news.
pub async fn report(
    database: &Database,
    component: &str,
    id: &str,
    end: Result<Outcome, Fault>,
) -> Result<bool, Fault> {
    let (state, result) = match &end {
        Ok(outcome) => ("done", to_text(outcome)?),
        Err(fault) => ("failed", to_text(fault)?),
    };
    let mut change = database.change().await?;
    let done = sqlx::query(
        "update work_order set state = $1, result = $2 where id = $3 and component = $4 and state = 'open'",
    )
    .bind(state)
    .bind(result)
    .bind(id)
    .bind(component)
    .execute(&mut *change)
    .await
    .map_err(failed)?;
    commit(change).await?;
    Ok(done.rows_affected() == 1)
}

/// Tells the component (on its next exchange) that the order is no longer wanted.
pub async fn cancel(database: &Database, id: &str) -> Result<(), Fault> {
    set(database, "update work_order set cancelled = 1 where id = $1 and state = 'open'", id).await
}

/// Takes an order back for good.
pub async fn withdraw(database: &Database, id: &str) -> Result<(), Fault> {
    set(database, "update work_order set state = 'withdrawn' where id = $1 and state = 'open'", id).await
}

/// Forgets an order altogether.
pub async fn forget(database: &Database, id: &str) -> Result<(), Fault> {
    set(database, "delete from work_order where id = $1", id).await
}

/// Forgets the questions of an earlier run of the server: nobody waits for their answers.
pub async fn forget_questions(database: &Database) -> Result<(), Fault> {
    set(database, "delete from work_order where id like '%' || $1 || '%'", "-ask-").await
}

async fn set(database: &Database, query: &'static str, id: &str) -> Result<(), Fault> {
    let mut change = database.change().await?;
    sqlx::query(query).bind(id).execute(&mut *change).await.map_err(failed)?;
    commit(change).await
}

/// Takes back every order of an item that waits for one of `components`: its side is no longer authorised, and an old
/// "start the machine" must not reach it when it returns.
pub async fn withdraw_all(on: &mut SqliteConnection, item: &ItemId, components: &[String]) -> Result<(), Fault> {
    for component in components {
        sqlx::query("update work_order set state = 'withdrawn' where item = $1 and component = $2 and state = 'open'")
            .bind(item.as_str())
            .bind(component)
            .execute(&mut *on)
            .await
            .map_err(failed)?;
    }
    Ok(())
}

/// What a component is to do now: of each item the oldest open order.
pub async fn open_for(database: &Database, component: &str) -> Result<Vec<NumberedOrder>, Fault> {
    let rows = sqlx::query(
        "select id, body, cancelled, item from work_order where component = $1 and state = 'open' order by number",
    )
    .bind(component)
    .fetch_all(database.readers())
    .await
    .map_err(failed)?;
    let mut items = std::collections::BTreeSet::new();
    let mut orders = Vec::new();
    for row in rows {
        if items.insert(row.get::<String, _>(3)) {
            let order = from_text(&row.get::<String, _>(1))?;
            orders.push(NumberedOrder { id: row.get(0), order, cancelled: row.get::<i64, _>(2) != 0 });
        }
    }
    Ok(orders)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn close(item: &ItemId) -> Order {
        Order::CloseReplica { item: item.clone() }
    }

    #[tokio::test]
    async fn an_order_is_handed_out_until_it_is_reported_and_the_first_report_counts() {
        let folder = tempfile::tempdir().unwrap();
        let database = Database::open(folder.path()).await.unwrap();
        let item: ItemId = "web01".parse().unwrap();
        issue(&database, "a", "mt", item.as_str(), &close(&item)).await.unwrap();
        assert_eq!(issue(&database, "a", "other", item.as_str(), &close(&item)).await.unwrap(), "mt", "given twice");
        issue(&database, "b", "mt", item.as_str(), &close(&item)).await.unwrap();
        for _ in 0..2 {
            let open = open_for(&database, "mt").await.unwrap();
            assert_eq!(open.iter().map(|order| order.id.as_str()).collect::<Vec<_>>(), ["a"]);
        }
        assert!(!report(&database, "stranger", "a", Ok(Outcome::Nothing)).await.unwrap());
        assert!(report(&database, "mt", "a", Ok(Outcome::Nothing)).await.unwrap());
        assert!(!report(&database, "mt", "a", Ok(Outcome::Closed { newest: None })).await.unwrap());
        assert_eq!(standing(&database, "a").await.unwrap(), Some(Standing::Done(Outcome::Nothing)));
        assert_eq!(open_for(&database, "mt").await.unwrap()[0].id, "b");
    }

    #[tokio::test]
    async fn a_side_that_lost_its_authority_finds_no_old_orders_when_it_returns() {
        let folder = tempfile::tempdir().unwrap();
        let database = Database::open(folder.path()).await.unwrap();
        let item: ItemId = "web01".parse().unwrap();
        issue(&database, "a", "home-ps", item.as_str(), &close(&item)).await.unwrap();
        let mut change = database.change().await.unwrap();
        withdraw_all(&mut change, &item, &["home-ps".into()]).await.unwrap();
        commit(change).await.unwrap();
        assert!(open_for(&database, "home-ps").await.unwrap().is_empty());
        assert!(!report(&database, "home-ps", "a", Ok(Outcome::Nothing)).await.unwrap());
    }
}
