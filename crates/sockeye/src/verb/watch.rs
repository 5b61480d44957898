//! The verbs that look again and again until Ctrl-C: `status --watch` and `events`.
//!
//! On a terminal `status --watch` paints one picture over the other. Elsewhere it writes a line when something other than
//! the RPO changes, and with `--output json` a document per line.

use std::collections::BTreeMap;
use std::time::Duration;

use protocol::id::ItemId;
use protocol::rest::{ItemView, Job, JobState};
use serde::Deserialize;
use serde_json::Value;

use super::Desk;
use crate::client::Event;
use crate::ending::{Ending, Trouble};
use crate::show::{item as show, job, plan, words};

/// How often status is asked for.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// `status --watch`.
///
/// # Errors
/// The first answer is already a refusal. Later on, a server that is away is waited for.
pub async fn status(desk: &Desk, item: Option<&ItemId>) -> Result<Ending, Trouble> {
    if let Some(item) = item {
        desk.client.item(item).await?;
    }
    let (mut seen, mut lost) = (BTreeMap::new(), false);
    let mut answer = desk.client.status(item).await;
    if let Err(trouble) = answer {
        return Err(trouble);
    }
    loop {
        match answer {
            Ok(items) => {
                lost = false;
                picture(desk, &items.read, &items.document, &mut seen);
            }
            Err(trouble) if trouble.ending != Ending::Unreached => return Err(trouble),
            Err(trouble) => {
                if !lost {
                    desk.screen.error(&trouble.fault);
                }
                lost = true;
            }
        }
        tokio::select! {
            () = tokio::time::sleep(LOOK_EVERY) => {}
            _ = tokio::signal::ctrl_c() => return Ok(Ending::Done),
        }
        answer = desk.client.status(item).await;
    }
}

type Digest = (String, protocol::rest::Health, Option<String>, String, Option<i64>);

fn picture(desk: &Desk, items: &[ItemView], document: &Value, seen: &mut BTreeMap<ItemId, Digest>) {
    let now: BTreeMap<_, _> = items.iter().map(|item| (item.item.clone(), show::digest(item))).collect();
    let news = changed(seen, &now);
    *seen = now;
    if desk.screen.is_json() {
        if !news.is_empty() {
            desk.screen.line_of(document);
        }
    } else if desk.screen.is_live() {
        desk.screen.clear();
        desk.screen.say(&format!("{}   {}   (Ctrl-C ends)\n", desk.client.server(), words::instant(words::now_ms())));
        desk.screen.say(&show::status(items, words::now_ms()));
    } else {
        for item in items.iter().filter(|item| news.contains(&item.item)) {
            desk.screen.say(&line(item));
        }
        for gone in news.iter().filter(|gone| items.iter().all(|item| &item.item != *gone)) {
            desk.screen.say(&format!("{}  {gone}  is no item any more", words::instant(words::now_ms())));
        }
    }
}

/// The items that are new, different or gone.
fn changed(before: &BTreeMap<ItemId, Digest>, now: &BTreeMap<ItemId, Digest>) -> Vec<ItemId> {
    let different = now.iter().filter(|(item, digest)| before.get(*item) != Some(*digest)).map(|(item, _)| item);
    different.chain(before.keys().filter(|item| !now.contains_key(*item))).cloned().collect()
}

fn line(item: &ItemView) -> String {
    let at = words::instant(words::now_ms());
    let why = item.health_reason.as_ref().map(|why| format!(" ({why})")).unwrap_or_default();
    let (name, stage, health, runs_at) = (&item.item, &item.stage_words, words::health(item.health), &item.runs_at);
    format!("{at}  {name}  {stage}  {health}{why}  runs at {runs_at}")
}

/// `events`: what changes, as the server tells it.
///
/// # Errors
/// The first connection fails. Later on it is made again until the desk's patience ends.
pub async fn events(desk: &Desk) -> Result<Ending, Trouble> {
    let mut stream = desk.client.events().await?;
    loop {
        let broken = loop {
            tokio::select! {
                event = stream.next() => match event {
                    Ok(Some(event)) => tell(desk, &event),
                    Ok(None) => break None,
                    Err(why) => break Some(why),
                },
                _ = tokio::signal::ctrl_c() => return Ok(Ending::Done),
            }
        };
        let since = std::time::Instant::now();
        if let Some(why) = broken {
            desk.screen.error(&desk.client.unreached(&why).fault);
        }
        stream = loop {
            tokio::select! {
                () = tokio::time::sleep(LOOK_EVERY) => {}
                _ = tokio::signal::ctrl_c() => return Ok(Ending::Done),
            }
            match desk.client.events().await {
                Ok(stream) => break stream,
                Err(trouble) if trouble.ending == Ending::Unreached && since.elapsed() < desk.patience => {}
                Err(trouble) => return Err(trouble),
            }
        };
    }
}

fn tell(desk: &Desk, event: &Event) {
    if desk.screen.is_json() {
        desk.screen.line_of(&serde_json::json!({"event": event.name, "data": event.data}));
    } else if let Some(text) = describe(event) {
        desk.screen.say(&format!("{}  {text}", words::instant(words::now_ms())));
    }
}

/// An event in a line; none for kinds that this version does not know.
fn describe(event: &Event) -> Option<String> {
    match event.name.as_str() {
        "job" => {
            let job = Job::deserialize(&event.data).ok()?;
            let step = job.steps.iter().find(|step| step.state == protocol::rest::StepState::Running);
            let step =
                step.filter(|_| job.state == JobState::Running).map(|step| format!(": {}", job::step_line(step, 0)));
            let (id, doing, state) = (job.id, plan::doing(&job.operation), job::state(job.state));
            Some(format!("job {id} ({doing} {}) {state}{}", job.item, step.unwrap_or_default()))
        }
        "item" => {
            let item = ItemView::deserialize(&event.data).ok()?;
            let health = words::health(item.health);
            Some(format!("{}  {}  {health}  runs at {}", item.item, item.stage_words, item.runs_at))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::show::sample;
    use protocol::stage::{Side, Stage};

    #[test]
    fn only_what_changed_is_news() {
        let digest = |stage| show::digest(&sample::item("web01", stage));
        let name: ItemId = "web01".parse().unwrap();
        let before = [(name.clone(), digest(Stage::Seeding))].into();
        let after = [(name.clone(), digest(Stage::Protected { runs_at: Side::Home }))].into();
        assert!(changed(&before, &before).is_empty());
        assert_eq!(changed(&before, &after), std::slice::from_ref(&name));
        assert_eq!(changed(&before, &BTreeMap::new()), [name]);
    }

    #[test]
    fn events_are_told_in_words_and_strange_ones_are_skipped() {
        let event = |name: &str, data| Event { name: name.into(), data };
        let text = describe(&event("job", serde_json::to_value(sample::job()).unwrap())).unwrap();
        assert_eq!(text, "job 7 (unplanned failover of web01) running: running    start it at cloud, 40%");
        assert!(describe(&event("weather", serde_json::json!({}))).is_none());
        assert!(describe(&event("job", serde_json::json!({}))).is_none());
    }
}
