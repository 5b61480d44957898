//! Tokens: 256 random bits, given to people and components once, kept here only as hashes.
//!
//! The admin token is written to a file that only its owner can read, when the server first starts. Those of hosts are in
//! [`crate::host`].
//! A token is recognised by looking up the BLAKE3 hash of what was presented: what an attacker could time is the
//! comparison of hashes, which tells nothing about the token.

use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use protocol::fault::{Fault, code};
use sqlx::Row;

use crate::database::{Change, Database, failed};

/// Who presented a token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Principal {
    /// May do everything.
    Admin,
    /// A host that joined, by the number of its credential: may register components of its own.
    Host(i64),
    /// May exchange under this name.
    Component(String),
}

/// A fresh token in hexadecimal.
pub fn fresh() -> String {
    // Two random UUIDs carry 244 random bits; hashing their union with the kernel's own makes 256 evenly spread ones.
    let mut hasher = blake3::Hasher::new();
    for _ in 0..3 {
        hasher.update(uuid::Uuid::new_v4().as_bytes());
    }
    hasher.finalize().to_hex().to_string()
}

pub(crate) fn hash(token: &str) -> String {
    blake3::hash(token.as_bytes()).to_hex().to_string()
}

/// Makes the admin token if there is none yet.
pub async fn first_start(database: &Database, data_dir: &Path) -> Result<(), Fault> {
    let mut change = database.change().await?;
    let known: i64 = sqlx::query_scalar("select count(*) from token where kind = 'admin'")
        .fetch_one(&mut *change)
        .await
        .map_err(failed)?;
    if known > 0 {
        return Ok(());
    }
    // The file first: a token that is only in the database could never be used.
    let token = fresh();
    write_secret(&data_dir.join("admin.token"), &token)
        .map_err(|error| Fault::new(code::INTERNAL, "admin.token could not be written", error.to_string()))?;
    sqlx::query("insert into token (hash, kind) values ($1, 'admin')")
        .bind(hash(&token))
        .execute(&mut *change)
        .await
        .map_err(failed)?;
    crate::database::commit(change).await
}

fn write_secret(path: &Path, token: &str) -> std::io::Result<()> {
    let next = path.with_extension("token.new");
    let _ = std::fs::remove_file(&next);
    let mut file = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&next)?;
    file.write_all(token.as_bytes())?;
    file.write_all(b"\n")?;
    file.sync_all()?;
    std::fs::rename(&next, path)?;
    if let Some(folder) = path.parent() {
        std::fs::File::open(folder)?.sync_all()?;
    }
    Ok(())
}

/// Gives `component` a new token, in place of any older one.
pub async fn for_component(change: &mut Change, component: &str) -> Result<String, Fault> {
    let token = fresh();
    sqlx::query("delete from token where component = $1")
        .bind(component)
        .execute(&mut **change)
        .await
        .map_err(failed)?;
    sqlx::query("insert into token (hash, kind, component) values ($1, 'component', $2)")
        .bind(hash(&token))
        .bind(component)
        .execute(&mut **change)
        .await
        .map_err(failed)?;
    Ok(token)
}

/// Who owns `token`, if anybody does.
pub async fn principal(database: &Database, token: &str) -> Result<Option<Principal>, Fault> {
    let hash = hash(token.trim());
    let row = sqlx::query("select kind, component from token where hash = $1")
        .bind(&hash)
        .fetch_optional(database.readers())
        .await
        .map_err(failed)?;
    if let Some(row) = row {
        return Ok(match row.get::<String, _>(0).as_str() {
            "admin" => Some(Principal::Admin),
            "component" => row.get::<Option<String>, _>(1).map(Principal::Component),
            _ => None,
        });
    }
    let host = "select id from host_token where hash = $1 and kind = 'host' and removed_at_ms is null";
    let host = sqlx::query_scalar(host).bind(hash).fetch_optional(database.readers()).await.map_err(failed)?;
    Ok(host.map(Principal::Host))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[tokio::test]
    async fn tokens_are_made_once_readable_by_their_owner_only_and_kept_as_hashes() {
        let folder = tempfile::tempdir().unwrap();
        let database = Database::open(folder.path()).await.unwrap();
        first_start(&database, folder.path()).await.unwrap();
        let path = folder.path().join("admin.token");
        let token = std::fs::read_to_string(&path).unwrap();
        assert_eq!(token.trim().len(), 64);
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        first_start(&database, folder.path()).await.unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), token, "a second start made a new token");
        assert_eq!(principal(&database, token.trim()).await.unwrap(), Some(Principal::Admin));
        assert_eq!(principal(&database, "0000").await.unwrap(), None);
        let kept: Vec<String> =
            sqlx::query_scalar("select hash from token").fetch_all(database.readers()).await.unwrap();
        assert!(!kept.iter().any(|hash| hash == token.trim()));
    }

    #[tokio::test]
    async fn a_component_that_registers_again_loses_its_old_token() {
        let folder = tempfile::tempdir().unwrap();
        let database = Database::open(folder.path()).await.unwrap();
        let mut tokens = Vec::new();
        for _ in 0..2 {
            let mut change = database.change().await.unwrap();
            tokens.push(for_component(&mut change, "home-process-server").await.unwrap());
            crate::database::commit(change).await.unwrap();
        }
        assert_eq!(principal(&database, &tokens[0]).await.unwrap(), None);
        let owner = Some(Principal::Component("home-process-server".into()));
        assert_eq!(principal(&database, &tokens[1]).await.unwrap(), owner);
    }
}
