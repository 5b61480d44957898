//! The database: SQLite, one writer, what is written is on stable storage before anybody is told.
//!
//! ```text
//!   writer (one connection, BEGIN IMMEDIATE, WAL, synchronous=FULL) ──► control.db ◄── readers (four)
//! ```
//!
//! # Always true
//! - Every change is one transaction; a row that two could change is changed by compare-and-swap.
//! - One server at a time: the data folder is locked.
//!
//! # If power fails
//! A transaction is there or it is not; jobs go on from their log.

use std::path::Path;
use std::time::Duration;

use protocol::fault::{Fault, code};
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePool, SqlitePoolOptions, SqliteSynchronous};
use sqlx::{Row, Sqlite, Transaction};

/// An older bundled SQLite has a bug that can corrupt a WAL database when it is checkpointed while being written.
const OLDEST_SQLITE: (u32, u32, u32) = (3, 51, 3);

/// The two pools.
#[derive(Debug, Clone)]
pub struct Database {
    writer: SqlitePool,
    readers: SqlitePool,
}

/// A change under way.
pub type Change = Transaction<'static, Sqlite>;

/// Turns what the database says into a fault.
pub fn failed(error: sqlx::Error) -> Fault {
    Fault::new(code::INTERNAL, "the database failed", error.to_string())
}

/// Turns an unreadable document of our own into a fault.
pub fn unreadable(error: serde_json::Error) -> Fault {
    Fault::new(code::INTERNAL, "a record in the database cannot be read", error.to_string())
}

/// Writes a document.
pub fn to_text<T: serde::Serialize>(value: &T) -> Result<String, Fault> {
    serde_json::to_string(value).map_err(unreadable)
}

/// Reads a document.
pub fn from_text<T: serde::de::DeserializeOwned>(text: &str) -> Result<T, Fault> {
    serde_json::from_str(text).map_err(unreadable)
}

impl Database {
    /// Opens or makes the database in `data_dir` and brings its schema up to date.
    pub async fn open(data_dir: &Path) -> Result<Database, Fault> {
        let options = SqliteConnectOptions::new()
            .filename(data_dir.join("control.db"))
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full)
            .foreign_keys(true)
            .busy_timeout(Duration::from_secs(10));
        let writer = SqlitePoolOptions::new().max_connections(1).connect_with(options.clone()).await.map_err(failed)?;
        let version: String = sqlx::query("select sqlite_version()").fetch_one(&writer).await.map_err(failed)?.get(0);
        if parse_version(&version) < Some(OLDEST_SQLITE) {
            return Err(Fault::new(
                code::INTERNAL,
                format!("SQLite {version} is too old"),
                "versions before 3.51.3 can corrupt a database in WAL mode",
            ));
        }
        sqlx::migrate!("src/sql").run(&writer).await.map_err(|error| {
            Fault::new(code::INTERNAL, "the database could not be brought up to date", error.to_string())
        })?;
        let readers = SqlitePoolOptions::new().max_connections(4).connect_with(options).await.map_err(failed)?;
        Ok(Database { writer, readers })
    }

    /// Begins a change; it holds the only writing connection until it is committed or dropped.
    pub async fn change(&self) -> Result<Change, Fault> {
        self.writer.begin_with("BEGIN IMMEDIATE").await.map_err(failed)
    }

    /// For reading.
    pub fn readers(&self) -> &SqlitePool {
        &self.readers
    }

    /// Closes both pools; what was committed stays.
    pub async fn close(&self) {
        self.readers.close().await;
        self.writer.close().await;
    }
}

/// Commits a change.
pub async fn commit(change: Change) -> Result<(), Fault> {
    change.commit().await.map_err(failed)
}

fn parse_version(text: &str) -> Option<(u32, u32, u32)> {
    let mut parts = text.split('.').map(|part| part.parse().ok());
    Some((parts.next()??, parts.next()??, parts.next()??))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_compare_as_numbers_and_nonsense_counts_as_too_old() {
        assert!(parse_version("3.51.3") >= Some(OLDEST_SQLITE));
        assert!(parse_version("3.100.0") > Some(OLDEST_SQLITE));
        assert!(parse_version("3.9.9") < Some(OLDEST_SQLITE));
        assert!(parse_version("new") < Some(OLDEST_SQLITE));
    }

    #[tokio::test]
    async fn what_is_dropped_before_commit_never_happened() {
        let folder = tempfile::tempdir().unwrap();
        let database = Database::open(folder.path()).await.unwrap();
        let mut change = database.change().await.unwrap();
        sqlx::query("insert into setting (name, value) values ('a', '1')").execute(&mut *change).await.unwrap();
        drop(change);
        let mut change = database.change().await.unwrap();
        sqlx::query("insert into setting (name, value) values ('b', '2')").execute(&mut *change).await.unwrap();
        commit(change).await.unwrap();
        database.close().await;
        let database = Database::open(folder.path()).await.unwrap();
        let names: Vec<String> =
            sqlx::query_scalar("select name from setting").fetch_all(database.readers()).await.unwrap();
        assert_eq!(names, ["b"]);
    }
}
