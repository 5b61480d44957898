//! Hosts: the tokens with which they join, once, and the credentials that they have from then on.
//!
//! ```text
//!   token add ─► join token ─── join(secret) ───► credential (the secret's hash) ─── register ─► component of that host
//!                   │ expires, is used up             │ removed: its components lose their tokens at once
//! ```
//!
//! # Always true
//! - Only hashes are kept.
//! - A join token lets one host in: it is used up in the transaction that makes the credential.
//! - A secret that has a credential is answered without looking at the token, so a host may ask again after a lost answer.
//! - A name belongs to the host that registered it as long as that host's credential is there.
//!
//! # If power fails
//! The host has joined or it has not; it asks again with the same secret.

use protocol::fault::{Fault, code};
use protocol::id::SiteName;
use protocol::token::{AddToken, AddedToken, Join, Joined, SECRET_CHARS, TokenKind, TokenView};
use sqlx::sqlite::SqliteRow;
use sqlx::{Row, SqliteConnection};

use crate::clock::now_ms;
use crate::database::{commit, failed};
use crate::{Control, audit, token, words};

/// A token is for a host that is being set up, not for a drawer.
const LONGEST_MS: u64 = 366 * 24 * 60 * 60 * 1000;
/// For how long a join token that can no longer be used is remembered, so that whoever tries it is told why it fails.
const REMEMBERED_MS: i64 = 30 * 24 * 60 * 60 * 1000;
/// The most components that a host may name.
const MOST_COMPONENTS: usize = 16;

/// A query of whole rows.
macro_rules! rows {
    ($where:literal) => {
        sqlx::query(concat!(
            "select id, kind, site, host, made_at_ms, expires_at_ms, used_at_ms, removed_at_ms from host_token where ",
            $where
        ))
    };
}

/// A row.
struct Kept {
    view: TokenView,
    removed_at_ms: Option<i64>,
}

impl Kept {
    fn of(row: &SqliteRow) -> Kept {
        let site: Option<String> = row.get(2);
        let view = TokenView {
            id: row.get(0),
            kind: if row.get::<String, _>(1) == "host" { TokenKind::Host } else { TokenKind::Join },
            site: site.and_then(|site| site.parse().ok()),
            host: row.get(3),
            made_at_ms: row.get(4),
            expires_at_ms: row.get(5),
            used_at_ms: row.get(6),
            components: vec![],
        };
        Kept { view, removed_at_ms: row.get(7) }
    }

    /// Why a host of `site` cannot join with it any more, or not with this one.
    fn unusable(&self, site: &SiteName) -> Option<String> {
        let view = &self.view;
        if let Some(at) = self.removed_at_ms {
            return Some(format!("it was taken back at {}", when(at)));
        }
        if let Some(at) = view.used_at_ms {
            let host = view.host.as_deref().unwrap_or("a host");
            return Some(format!("{host} joined with it at {}, and a token is good for one host", when(at)));
        }
        if let Some(at) = view.expires_at_ms.filter(|at| *at <= now_ms()) {
            return Some(format!("it was good until {}", when(at)));
        }
        let other = view.site.as_ref().filter(|other| *other != site)?;
        Some(format!("it is for a host of site {other}, and this one says that it is of site {site}"))
    }
}

fn when(at_ms: i64) -> String {
    words::instant(at_ms.unsigned_abs())
}

impl Control {
    /// Makes a token that lets one host join.
    pub async fn add_token(&self, wanted: AddToken) -> Result<AddedToken, Fault> {
        let AddToken { site, lasts_ms, reason } = wanted;
        if !(1..=LONGEST_MS).contains(&lasts_ms) {
            let cause = format!("{lasts_ms} ms were asked for; 1 ms to 366 days are possible");
            return Err(Fault::new(code::BAD_REQUEST, "a token cannot be good for that long", cause));
        }
        let (token, now) = (token::fresh(), now_ms());
        let expires_at_ms = now.saturating_add_unsigned(lasts_ms);
        let mut change = self.database().change().await?;
        sqlx::query("delete from host_token where kind = 'join' and expires_at_ms < $1")
            .bind(now - REMEMBERED_MS)
            .execute(&mut *change)
            .await
            .map_err(failed)?;
        let id: i64 = sqlx::query_scalar(
            "insert into host_token (hash, kind, site, made_at_ms, expires_at_ms) values ($1, 'join', $2, $3, $4)
             returning id",
        )
        .bind(token::hash(&token))
        .bind(site.as_ref().map(SiteName::as_str))
        .bind(now)
        .bind(expires_at_ms)
        .fetch_one(&mut *change)
        .await
        .map_err(failed)?;
        let place = site.as_ref().map_or_else(|| "any site".into(), |site| format!("site {site}"));
        let what = format!("token {id} made: lets one host join at {place} until {}", when(expires_at_ms));
        audit::note(&mut change, None, &what, reason.as_deref()).await?;
        commit(change).await?;
        Ok(AddedToken { id, token, site, expires_at_ms })
    }

    /// Join tokens and the credentials of hosts, oldest first.
    pub async fn tokens(&self) -> Result<Vec<TokenView>, Fault> {
        let rows =
            rows!("removed_at_ms is null order by id").fetch_all(self.database().readers()).await.map_err(failed)?;
        let fleet = self.fleet();
        let view = |row: &SqliteRow| {
            let mut view = Kept::of(row).view;
            view.components = fleet.of_host(view.id);
            view
        };
        Ok(rows.iter().map(view).collect())
    }

    /// Takes a token back. The components of a host whose credential it was can do nothing here any more.
    pub async fn remove_token(&self, id: i64, reason: Option<&str>) -> Result<(), Fault> {
        let mut change = self.database().change().await?;
        let Some(Kept { view, removed_at_ms }) = numbered(&mut change, id).await? else {
            let cause = "none of that number was made, or it has been forgotten";
            return Err(Fault::new(code::UNKNOWN_TOKEN, format!("there is no token {id}"), cause));
        };
        if removed_at_ms.is_some() {
            return Ok(());
        }
        let gone = sqlx::query("update host_token set removed_at_ms = $2 where id = $1").bind(id).bind(now_ms());
        gone.execute(&mut *change).await.map_err(failed)?;
        let theirs = sqlx::query("delete from token where component in (select name from component where host = $1)");
        theirs.bind(id).execute(&mut *change).await.map_err(failed)?;
        let what = match (view.kind, view.host) {
            (TokenKind::Host, Some(host)) => format!("credential {id} of host {host} removed: it may register nothing"),
            _ => format!("token {id} removed"),
        };
        audit::note(&mut change, None, &what, reason).await?;
        commit(change).await
    }

    /// Lets a host in that presented `token`, or says again that it is in.
    pub async fn join(&self, token: &str, join: Join) -> Result<Joined, Fault> {
        check(&join)?;
        let Join { secret, site, host, components } = join;
        let refused = |why: String| Fault::new(code::JOIN_REFUSED, format!("{host} cannot join"), why);
        let unknown = || refused("the control server knows no such token".into());
        // A stranger does not get as far as the only writer.
        let mut on = self.database().readers().acquire().await.map_err(failed)?;
        if find(&mut on, &secret).await?.is_none() && find(&mut on, token).await?.is_none() {
            return Err(unknown());
        }
        drop(on);
        let mut change = self.database().change().await?;
        let id = match find(&mut change, &secret).await? {
            Some(known) => is_the_same(&known, &site)?,
            None => {
                let found = find(&mut change, token).await?.filter(|found| found.view.kind == TokenKind::Join);
                let found = found.ok_or_else(unknown)?;
                if let Some(why) = found.unusable(&site) {
                    return Err(refused(why));
                }
                for name in &components {
                    self.is_free(&mut change, name, None).await?;
                }
                let (id, used) = (admit(&mut change, &secret, &site, &host).await?, found.view.id);
                use_up(&mut change, used, &host).await?;
                let what = format!("host {host} joined site {site} with token {used}; its credential is {id}");
                audit::note(&mut change, None, &what, None).await?;
                id
            }
        };
        commit(change).await?;
        let fleet = self.fleet();
        let connected = fleet.of_host(id).into_iter().filter(|name| fleet.connected(name)).collect();
        Ok(Joined { id, site, connected })
    }

    /// Whether a component of that name at `site` may be registered with the credential `host`, or by an operator.
    pub(crate) async fn may_register(
        &self,
        on: &mut SqliteConnection,
        name: &str,
        site: &SiteName,
        host: Option<i64>,
    ) -> Result<(), Fault> {
        if let Some(id) = host {
            match numbered(on, id).await? {
                Some(Kept { removed_at_ms: None, view }) if view.site.as_ref() == Some(site) => {}
                Some(Kept { removed_at_ms: None, view }) => {
                    let bound = view.site.map_or_else(String::new, |bound| bound.to_string());
                    let cause = format!("its host joined at site {bound}, and it says that it is of site {site}");
                    return Err(Fault::new(code::HOST_REFUSED, format!("{name} cannot be registered"), cause));
                }
                _ => return Err(removed()),
            }
        }
        self.is_free(on, name, host).await
    }

    /// Whether no other host has the name.
    async fn is_free(&self, on: &mut SqliteConnection, name: &str, host: Option<i64>) -> Result<(), Fault> {
        let owner = self.fleet().components.get(name).and_then(|component| component.host);
        let Some(owner) = owner.filter(|owner| Some(*owner) != host) else { return Ok(()) };
        match numbered(on, owner).await? {
            None | Some(Kept { removed_at_ms: Some(_), .. }) => Ok(()),
            Some(Kept { view, .. }) => {
                let whose = view.host.unwrap_or_default();
                let cause = format!("{name} belongs to host {whose}, whose credential is {owner}");
                Err(Fault::new(code::HOST_REFUSED, format!("there is another component {name}"), cause))
            }
        }
    }
}

fn removed() -> Fault {
    let cause = "an operator took it back; its secret is not taken again";
    Fault::new(code::HOST_REMOVED, "this host does not belong to the system any more", cause)
}

/// A host asks again: it is in, unless it was put out or is another one now.
fn is_the_same(known: &Kept, site: &SiteName) -> Result<i64, Fault> {
    let bad = |why: String| Fault::new(code::BAD_REQUEST, "the host's secret cannot be used", why);
    match &known.view {
        view if view.kind == TokenKind::Join => Err(bad("it is a join token; a host makes a secret of its own".into())),
        _ if known.removed_at_ms.is_some() => Err(removed()),
        view if view.site.as_ref() == Some(site) => Ok(view.id),
        view => {
            let bound = view.site.as_ref().map_or_else(String::new, SiteName::to_string);
            let cause = format!("it joined at site {bound}, and says now that it is of site {site}");
            Err(Fault::new(code::JOIN_REFUSED, "a host stays at the site where it joined", cause)
                .with_remedy(format!("remove its credential and join anew: sockeye token remove {}", view.id)))
        }
    }
}

/// Bounds what a host says of itself.
fn check(join: &Join) -> Result<(), Fault> {
    let bad = |what: &str, why: &str| Err(Fault::new(code::BAD_REQUEST, what, why));
    let hexadecimal = |text: &str| text.bytes().all(|byte| byte.is_ascii_hexdigit());
    if join.secret.len() != SECRET_CHARS || !hexadecimal(&join.secret) {
        return bad("the host's secret cannot be used", "it has to be 64 hexadecimal digits, made at random");
    }
    if !(1..=100).contains(&join.host.len()) || join.host.chars().any(char::is_control) {
        return bad("the host's name is not usable", "1 to 100 bytes without control characters are allowed");
    }
    if join.components.len() > MOST_COMPONENTS {
        return bad("a host has not so many components", "16 are allowed");
    }
    Ok(())
}

async fn find(on: &mut SqliteConnection, token: &str) -> Result<Option<Kept>, Fault> {
    let row = rows!("hash = $1").bind(token::hash(token.trim())).fetch_optional(on);
    Ok(row.await.map_err(failed)?.as_ref().map(Kept::of))
}

async fn numbered(on: &mut SqliteConnection, id: i64) -> Result<Option<Kept>, Fault> {
    let row = rows!("id = $1").bind(id).fetch_optional(on);
    Ok(row.await.map_err(failed)?.as_ref().map(Kept::of))
}

async fn admit(on: &mut SqliteConnection, secret: &str, site: &SiteName, host: &str) -> Result<i64, Fault> {
    sqlx::query_scalar(
        "insert into host_token (hash, kind, site, host, made_at_ms) values ($1, 'host', $2, $3, $4) returning id",
    )
    .bind(token::hash(secret))
    .bind(site.as_str())
    .bind(host)
    .bind(now_ms())
    .fetch_one(on)
    .await
    .map_err(failed)
}

async fn use_up(on: &mut SqliteConnection, id: i64, host: &str) -> Result<(), Fault> {
    let used = sqlx::query("update host_token set used_at_ms = $2, host = $3 where id = $1");
    used.bind(id).bind(now_ms()).bind(host).execute(on).await.map_err(failed).map(drop)
}
