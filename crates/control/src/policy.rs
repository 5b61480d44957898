//! Policies: limits with a name, and the items that are kept to them.
//!
//! ```text
//!   set / apply ──► policy row + the rows of all items that have it, in one transaction ──► Keeping ──► master targets
//!                                                                            └─► Replication (bandwidth) ──► process servers
//! ```
//! The same policy holds for both directions: what the reference calls the failback policy, made by itself and bound to
//! the forward one (R12), is this one.
//!
//! # Always true
//! - An item's limits are those of its policy. The policy `standard` is always there.

use protocol::epoch::Point;
use protocol::fault::{Fault, code};
use protocol::id::{Attempt, ItemId, PolicyName};
use protocol::keeping::{ApplyPolicy, ItemEffect, LEAST_APP_INTERVAL_MS, Policy, PolicyEffect, SetPolicy};
use protocol::retention::choose;
use sqlx::{Row, SqliteConnection};

use crate::clock::now_ms;
use crate::database::{commit, failed, from_text, to_text};
use crate::item::Item;
use crate::{Control, audit, item};

/// The policy of that name.
pub(crate) async fn find(on: &mut SqliteConnection, name: &PolicyName) -> Result<Option<Policy>, Fault> {
    let row = sqlx::query("select body from policy where name = $1")
        .bind(name.as_str())
        .fetch_optional(on)
        .await
        .map_err(failed)?;
    let found = row.map(|row| from_text(&row.get::<String, _>(0))).transpose()?;
    Ok(found.or_else(|| (*name == PolicyName::standard()).then(Policy::standard)))
}

/// The policy of that name, which must be there.
pub(crate) async fn need(on: &mut SqliteConnection, name: &PolicyName) -> Result<Policy, Fault> {
    let unknown =
        || Fault::new(code::UNKNOWN_POLICY, format!("there is no policy {name}"), "none of that name was made");
    find(on, name).await?.ok_or_else(unknown)
}

impl Control {
    /// The policy of that name.
    pub(crate) async fn policy(&self, name: &PolicyName) -> Result<Policy, Fault> {
        let mut on = self.database().readers().acquire().await.map_err(failed)?;
        need(&mut on, name).await
    }

    /// All policies by name.
    pub async fn policies(&self) -> Result<Vec<Policy>, Fault> {
        let bodies: Vec<String> =
            sqlx::query_scalar("select body from policy").fetch_all(self.database().readers()).await.map_err(failed)?;
        let mut all: Vec<Policy> = bodies.iter().map(|body| from_text(body)).collect::<Result<_, _>>()?;
        if all.iter().all(|policy| policy.name != PolicyName::standard()) {
            all.push(Policy::standard());
        }
        all.sort_by(|one, other| one.name.cmp(&other.name));
        Ok(all)
    }

    /// Makes a policy, or changes it for all items that have it; or only tells what that would do.
    pub async fn set_policy(&self, wanted: SetPolicy) -> Result<PolicyEffect, Fault> {
        let SetPolicy { policy, preview, reason } = wanted;
        let senseless =
            |why: String| Fault::new(code::BAD_REQUEST, format!("the policy {} makes no sense", policy.name), why);
        policy.retention.check().map_err(|why| senseless(why.to_string()))?;
        policy.bandwidth.check().map_err(|why| senseless(why.to_string()))?;
        if policy.rpo_limit_ms == 0 {
            return Err(senseless("no recovery point can be younger than 0 ms".into()));
        }
        if (1..LEAST_APP_INTERVAL_MS).contains(&policy.app_interval_ms) {
            let why =
                format!("an app-consistent point every {} ms; every 10 s or less often, or 0", policy.app_interval_ms);
            return Err(senseless(why));
        }
        let before = {
            let mut on = self.database().readers().acquire().await.map_err(failed)?;
            find(&mut on, &policy.name).await?
        };
        let mut having = item::all(self.database()).await?;
        having.retain(|item| item.policy == policy.name);
        let already = before.as_ref() == Some(&policy);
        let effect = self.effect(policy, already, having).await;
        if preview || already {
            return Ok(effect);
        }
        let policy = &effect.policy;
        let mut change = self.database().change().await?;
        sqlx::query("insert into policy (name, body) values ($1, $2) on conflict (name) do update set body = $2")
            .bind(policy.name.as_str())
            .bind(to_text(policy)?)
            .execute(&mut *change)
            .await
            .map_err(failed)?;
        // Whoever got the policy since it was looked at has it too.
        for mut item in item::all_on(&mut change).await? {
            if item.0.policy == policy.name {
                limit(&mut item.0, policy);
                item::store(&mut change, &item.0, item.1).await?;
            }
        }
        audit::note(&mut change, None, &format!("policy {} set", policy.name), reason.as_deref()).await?;
        commit(change).await?;
        self.wake_exchanges();
        Ok(effect)
    }

    /// Gives an item another policy; or only tells what that would do.
    pub async fn apply_policy(&self, name: &ItemId, wanted: ApplyPolicy) -> Result<PolicyEffect, Fault> {
        let ApplyPolicy { policy, preview, reason } = wanted;
        let item = item::load(self.database(), name).await?;
        let policy = self.policy(&policy).await?;
        let already = item.policy == policy.name;
        let effect = self.effect(policy, already, vec![item]).await;
        if preview || already {
            return Ok(effect);
        }
        let mut change = self.database().change().await?;
        // Looked at again: it may have been changed or removed meanwhile.
        let policy = need(&mut change, &effect.policy.name).await?;
        let (mut item, version) = item::find(&mut change, name).await?.ok_or_else(|| item::unknown(name))?;
        limit(&mut item, &policy);
        item::store(&mut change, &item, version).await?;
        audit::note(&mut change, Some(name), &format!("policy {} applied", policy.name), reason.as_deref()).await?;
        commit(change).await?;
        self.wake_exchanges();
        self.announce_item(name).await;
        Ok(effect)
    }

    /// Removes a policy that no item has.
    pub async fn remove_policy(&self, name: &PolicyName, reason: Option<&str>) -> Result<(), Fault> {
        let mut change = self.database().change().await?;
        need(&mut change, name).await?;
        let having = item::all_on(&mut change).await?.into_iter().filter(|(item, _)| item.policy == *name);
        let having: Vec<String> = having.map(|(item, _)| item.name.to_string()).collect();
        let cause = match having.as_slice() {
            _ if *name == PolicyName::standard() => "items have it for which no other was chosen".into(),
            [] => {
                sqlx::query("delete from policy where name = $1")
                    .bind(name.as_str())
                    .execute(&mut *change)
                    .await
                    .map_err(failed)?;
                audit::note(&mut change, None, &format!("policy {name} removed"), reason).await?;
                return commit(change).await;
            }
            having => format!("it is the policy of {}", having.join(", ")),
        };
        Err(Fault::new(code::POLICY_IN_USE, format!("the policy {name} cannot be removed"), cause))
    }

    /// What `policy` means for these items, as far as their sites answer.
    async fn effect(&self, policy: Policy, already: bool, items: Vec<Item>) -> PolicyEffect {
        let asked = items.iter().map(|item| async {
            let told = self.kept_points(item, None).await.ok();
            let go = told.as_ref().map(|(points, pins)| going(points, pins, &policy));
            ItemEffect { item: item.name.clone(), points: told.map(|(points, _)| points.len() as u64), go }
        });
        let items = futures::future::join_all(asked).await;
        PolicyEffect { policy, already, items }
    }
}

/// How many points the policy takes at once.
fn going(points: &[Point], pins: &[Attempt], policy: &Policy) -> u64 {
    let pins = pins.iter().copied().collect();
    choose(points, &pins, &policy.retention, now_ms().unsigned_abs()).len() as u64
}

/// Keeps an item to the limits of a policy.
pub(crate) fn limit(item: &mut Item, policy: &Policy) {
    item.policy = policy.name.clone();
    item.rpo_limit_ms = policy.rpo_limit_ms;
    item.retention = policy.retention.clone();
    item.bandwidth = policy.bandwidth.clone();
    item.app_interval_ms = policy.app_interval_ms;
    item.leaf_bytes = policy.leaf_bytes;
}
