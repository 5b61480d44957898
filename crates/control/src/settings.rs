//! Settings: how patient the server is, and the hooks with which tests make it fail.

use std::time::Duration;

use protocol::fault::{Fault, code};

use crate::database::{Database, commit, failed};

/// How patient the server is.
#[derive(Debug, Clone)]
pub struct Settings {
    /// For how long after an exchange a component counts as connected.
    pub connected_within: Duration,
    /// How long an unplanned failover waits for the old machine to be shut down first.
    pub shut_down_first: Duration,
    /// How long an undo waits for a component that is gone before its order is left in the book.
    pub undo_patience: Duration,
    /// How long the agent of a guest that has moved may take until it answers.
    pub agent_patience: Duration,
    /// For tests.
    #[doc(hidden)]
    pub hooks: Hooks,
}

impl Default for Settings {
    fn default() -> Settings {
        Settings {
            connected_within: Duration::from_secs(10),
            shut_down_first: Duration::from_secs(30),
            undo_patience: Duration::from_secs(15),
            agent_patience: Duration::from_secs(300),
            hooks: Hooks::default(),
        }
    }
}

/// Where a test makes the engine fail, die or repeat itself.
#[derive(Debug, Clone, Default)]
#[doc(hidden)]
pub struct Hooks {
    /// This step fails before it does anything.
    pub fail_before: Option<usize>,
    /// This step does all it does, and fails then.
    pub fail_after: Option<usize>,
    /// The server dies at this boundary: before or after something is written or ordered.
    pub crash_at: Option<u64>,
    /// Every step is done twice, and so is every undo.
    pub twice: bool,
}

impl Hooks {
    pub(crate) fn fault(&self) -> Fault {
        Fault::new(code::ORDER_TIMED_OUT, "a test wants this step to fail", "a test hook")
    }
}

/// The setting of that name, made at first start.
pub(crate) async fn remembered(
    database: &Database,
    name: &str,
    fresh: impl FnOnce() -> String,
) -> Result<String, Fault> {
    let mut change = database.change().await?;
    sqlx::query("insert into setting (name, value) values ($1, $2) on conflict (name) do nothing")
        .bind(name)
        .bind(fresh())
        .execute(&mut *change)
        .await
        .map_err(failed)?;
    let value = sqlx::query_scalar("select value from setting where name = $1")
        .bind(name)
        .fetch_one(&mut *change)
        .await
        .map_err(failed)?;
    commit(change).await?;
    Ok(value)
}
