//! `policy …` and `point …`: which recovery points are kept. Done at once, without a job.
//!
//! ```text
//!   policy add | apply ── preview ──► show what goes ──► confirm ──► the same without preview
//! ```

use protocol::Fault;
use protocol::fault::code;
use protocol::id::PolicyName;
use protocol::keeping::{AddPoint, ApplyPolicy, PinPoint, Policy, PolicyEffect, SetPolicy};
use protocol::retention::{Budget, Retention};

use super::Desk;
use super::confirm::{Wanted, confirm};
use crate::cli::{AddPolicy, OnPoint, PointVerb, PolicyVerb, Sure};
use crate::client::Answer;
use crate::ending::{Ending, Trouble};
use crate::show::{history as show, words};

/// `policy list | show | add | remove | apply`.
///
/// # Errors
/// It is refused or not confirmed, or the server was not reached.
pub async fn policy(desk: &Desk, verb: PolicyVerb) -> Result<Ending, Trouble> {
    match verb {
        PolicyVerb::List => {
            let policies = desk.client.policies().await?;
            desk.screen.result(&policies.document, &show::policies(&policies.read));
        }
        PolicyVerb::Show { name } => {
            let policies = desk.client.policies().await?;
            let place = policies.read.iter().position(|policy| policy.name == name);
            let found = place.and_then(|n| Some((policies.read.get(n)?, policies.document.get(n)?)));
            let (policy, document) = found.ok_or_else(|| unknown(&name))?;
            desk.screen.result(document, &show::policy(policy));
        }
        PolicyVerb::Add(add) => return set(desk, add).await,
        PolicyVerb::Remove { name, sure } => {
            let policies = desk.client.policies().await?;
            let policy = policies.read.iter().find(|policy| policy.name == name).ok_or_else(|| unknown(&name))?;
            desk.screen.say(&show::policy(policy));
            if agreed(desk, "Remove it?", &sure, &serde_json::json!({"policy": policy})).await? {
                desk.client.remove_policy(&name, sure.reason.as_deref()).await?;
                desk.screen.result(&serde_json::json!({"removed": name}), &format!("policy {name} is removed"));
            }
        }
        PolicyVerb::Apply { name, item, sure } => {
            let wanted = |preview| ApplyPolicy { policy: name.clone(), preview, reason: sure.reason.clone() };
            let effect = desk.client.apply_policy(&item, &wanted(true)).await?;
            if go_on(desk, &effect, &sure).await? {
                let done = desk.client.apply_policy(&item, &wanted(false)).await?;
                desk.screen.result(&done.document, &format!("{item} is kept to the policy {name} now"));
            }
        }
    }
    Ok(Ending::Done)
}

async fn set(desk: &Desk, add: AddPolicy) -> Result<Ending, Trouble> {
    let (replace, sure, policy) = (add.replace, &add.sure, of(&add));
    let there = desk.client.policies().await?.read.into_iter().find(|there| there.name == policy.name);
    if let Some(there) = there
        && there != policy
        && !replace
    {
        let cause = show::policy(&there);
        let fault = Fault::new(code::POLICY_EXISTS, format!("there is another policy {}", policy.name), cause);
        return Err(Trouble::new(Ending::Refused, fault));
    }
    let wanted = |preview| SetPolicy { policy: policy.clone(), preview, reason: sure.reason.clone() };
    let effect = desk.client.set_policy(&wanted(true)).await?;
    if go_on(desk, &effect, sure).await? {
        let done = desk.client.set_policy(&wanted(false)).await?;
        desk.screen.result(&done.document, &format!("policy {} is in force", policy.name));
    }
    Ok(Ending::Done)
}

/// The policy that was typed.
fn of(add: &AddPolicy) -> Policy {
    let retention = Retention {
        all_for_seconds: add.all_for.as_secs(),
        then: if add.then_none { vec![] } else { add.then.clone() },
        app_consistent: (!add.app_none).then_some(add.app),
        budget: add.budget.map(|bytes| Budget { bytes, alarm_percent: add.alarm }),
    };
    let rpo_limit_ms = u64::try_from(add.rpo_limit.as_millis()).unwrap_or(u64::MAX);
    let app_interval_ms = if add.app_never { 0 } else { u64::try_from(add.app_every.as_millis()).unwrap_or(u64::MAX) };
    let (name, leaf_bytes) = (add.name.clone(), add.leaf_size);
    Policy { name, rpo_limit_ms, retention, bandwidth: add.bandwidth.typed(), app_interval_ms, leaf_bytes }
}

/// Shows what a policy means and asks; false when nothing is to be done any more.
async fn go_on(desk: &Desk, effect: &Answer<PolicyEffect>, sure: &Sure) -> Result<bool, Trouble> {
    desk.screen.say(&show::effect(&effect.read));
    if effect.read.already {
        desk.screen.document(&effect.document);
        desk.screen.say("it is so already: nothing to do");
        return Ok(false);
    }
    agreed(desk, "Do this?", sure, &effect.document).await
}

/// Asks; false when it was only to be shown.
pub(super) async fn agreed(
    desk: &Desk,
    question: &str,
    sure: &Sure,
    document: &serde_json::Value,
) -> Result<bool, Trouble> {
    if sure.dry_run {
        desk.screen.document(document);
        return Ok(false);
    }
    confirm(question, Wanted::Yes, sure.yes).await?;
    Ok(true)
}

fn unknown(name: &PolicyName) -> Trouble {
    let fault = Fault::new(code::UNKNOWN_POLICY, format!("there is no policy {name}"), "none of that name was made");
    Trouble::new(Ending::Refused, fault)
}

/// `point pin | unpin | add`.
///
/// # Errors
/// It is refused or not confirmed, or the server was not reached.
pub async fn point(desk: &Desk, verb: PointVerb) -> Result<Ending, Trouble> {
    match verb {
        PointVerb::Pin(on) => pin(desk, on, true).await,
        PointVerb::Unpin(on) => pin(desk, on, false).await,
        PointVerb::Add { item, app, sure } => {
            let kind = if app { "an app-consistent" } else { "a" };
            desk.screen.say(&format!("{item}: take {kind} recovery point now and pin it"));
            if agreed(desk, "Do this?", &sure, &serde_json::json!({"item": item})).await? {
                let point = desk.client.add_point(&item, &AddPoint { app, reason: sure.reason }).await?;
                let words = words::point(&point.read, None, words::now_ms());
                desk.screen.result(&point.document, &format!("{item}: {words}, is pinned"));
            }
            Ok(Ending::Done)
        }
    }
}

async fn pin(desk: &Desk, on: OnPoint, pinned: bool) -> Result<Ending, Trouble> {
    let OnPoint { item, point, at, sure } = on;
    let points = desk.client.points(&item, at.as_ref()).await?;
    let place = points.read.iter().rposition(|kept| kept.point.attempt == point);
    let Some((kept, document)) = place.and_then(|n| Some((points.read.get(n)?, points.document.get(n)?))) else {
        let cause = format!("{} points of {item} are kept, and {point} is not one of them", points.read.len());
        let fault = Fault::new(code::POINT_GONE, format!("there is no point {point} of {item}"), cause);
        return Err(Trouble::new(Ending::Refused, fault));
    };
    let (does, is) = if pinned { ("pin", "pinned") } else { ("unpin", "not pinned") };
    desk.screen.say(&format!("{item}: {does} {}", words::point(&kept.point, None, words::now_ms())));
    if kept.pinned == pinned {
        desk.screen.document(document);
        desk.screen.say("it is so already: nothing to do");
    } else if agreed(desk, "Do this?", &sure, document).await? {
        desk.client.pin(&item, point, at.as_ref(), &PinPoint { pinned, reason: sure.reason }).await?;
        let done = serde_json::json!({"item": item, "point": point, "pinned": pinned});
        desk.screen.result(&done, &format!("{item}: {point} is {is}"));
    }
    Ok(Ending::Done)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::{Cli, Verb};
    use clap::Parser;
    use protocol::retention::Spacing;

    fn typed(line: &str) -> Policy {
        match Cli::parse_from(line.split(' ')).verb {
            Verb::Policy(PolicyVerb::Add(add)) => of(&add),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_policy_without_options_is_the_standard_one() {
        let name = "standard".parse().unwrap();
        assert_eq!(typed("sockeye policy add standard"), Policy { name, ..Policy::standard() });
    }

    #[test]
    fn what_is_typed_is_what_is_kept() {
        let policy = typed(
            "sockeye policy add month --app-never --rpo-limit 5m --all-for 2h --then 1m:24h --then 1h:30d --app-none --budget 2GiB --alarm 90",
        );
        let spacing = |one_every_seconds, until_seconds| Spacing { one_every_seconds, until_seconds };
        assert_eq!(policy.rpo_limit_ms, 300_000);
        assert_eq!(policy.retention.all_for_seconds, 7200);
        assert_eq!(policy.retention.then, [spacing(60, 86_400), spacing(3600, 30 * 86_400)]);
        assert_eq!((policy.retention.app_consistent, policy.app_interval_ms), (None, 0));
        assert_eq!(typed("sockeye policy add often --app-every 15m").app_interval_ms, 900_000);
        assert_eq!(typed("sockeye policy add large --leaf-size 1M").leaf_bytes.bytes(), 1 << 20);
        assert_eq!(policy.retention.budget, Some(Budget { bytes: 2 << 30, alarm_percent: 90 }));
        assert!(typed("sockeye policy add hour --then-none").retention.then.is_empty());
        let polite = typed(
            "sockeye policy add polite --bandwidth 1gbit --bandwidth-window mon-fri@08:00-18:00=20mbit --bandwidth-offset -01:00",
        );
        assert_eq!(polite.bandwidth.to_string(), "1gbit; mon-fri@08:00-18:00=20mbit (UTC-01:00)");
        let parse = |line: &str| Cli::try_parse_from(line.split(' '));
        assert!(parse("sockeye policy add p --alarm 90").is_err(), "an alarm without a budget");
        assert!(parse("sockeye policy add p --then-none --then 1m:24h").is_err());
    }
}
