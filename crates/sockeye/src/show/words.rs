//! Numbers and times in the words of people.

use jiff::Timestamp;
use jiff::tz::TimeZone;
use protocol::beside::{ServedView, TestMachine};
use protocol::epoch::{Point, PointKind};
use protocol::freeze::Freeze;
use protocol::order::Moved;
use protocol::pace::Pace;
use protocol::rest::Health;

/// `0 B`, `512 B`, `1.5 GiB`.
pub fn bytes(count: u64) -> String {
    const UNITS: [&str; 6] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
    let (mut value, mut unit) = (count as f64, 0);
    // From 1023.95 on it would read "1024.0".
    while value >= 1023.95 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    let name = UNITS.get(unit).unwrap_or(&"B");
    if unit == 0 { format!("{count} {name}") } else { format!("{value:.1} {name}") }
}

/// What travelled: `2.0 MiB sent`, and what compression spared, if it did.
pub fn sent(moved: &Moved) -> String {
    let sent = format!("{} sent", bytes(moved.sent));
    match (moved.blocks_compressed, moved.blocks_plain) {
        (0, _) => sent,
        (compressed, plain) => format!(
            "{sent} ({} spared: {compressed} of {} blocks were compressed)",
            bytes(moved.saved),
            compressed.saturating_add(plain)
        ),
    }
}

/// A span of time: `850 ms`, `1.2 s`, `3 min 20 s`, `5 h 10 min`, `2 d 3 h`.
pub fn span(millis: u64) -> String {
    let seconds = millis / 1000;
    match seconds {
        0 => format!("{millis} ms"),
        1..10 => format!("{seconds}.{} s", millis % 1000 / 100),
        10..60 => format!("{seconds} s"),
        60..3600 => two(seconds, 60, "min", 1, "s"),
        3600..86_400 => two(seconds, 3600, "h", 60, "min"),
        _ => two(seconds, 86_400, "d", 3600, "h"),
    }
}

fn two(seconds: u64, big: u64, big_name: &str, small: u64, small_name: &str) -> String {
    match seconds % big / small {
        0 => format!("{} {big_name}", seconds / big),
        rest => format!("{} {big_name} {rest} {small_name}", seconds / big),
    }
}

/// An instant on this host's clock face: `2026-11-22 13:29:52`.
pub fn instant(at_ms: i64) -> String {
    instant_in(at_ms, TimeZone::system())
}

/// The same for an instant that cannot be before 1970.
pub fn instant_u(at_ms: u64) -> String {
    i64::try_from(at_ms).map_or_else(|_| "?".into(), instant)
}

fn instant_in(at_ms: i64, zone: TimeZone) -> String {
    match Timestamp::from_millisecond(at_ms) {
        Ok(at) => at.to_zoned(zone).strftime("%Y-%m-%d %H:%M:%S").to_string(),
        Err(_) => "?".into(),
    }
}

/// ms since 1970 by this host's clock.
pub fn now_ms() -> i64 {
    Timestamp::now().as_millisecond()
}

/// How long ago: `3.0 s ago`. An instant in the future (clocks differ) is `now`.
pub fn ago(now_ms: i64, at_ms: i64) -> String {
    match u64::try_from(now_ms.saturating_sub(at_ms)) {
        Ok(0) | Err(_) => "now".into(),
        Ok(age) => format!("{} ago", span(age)),
    }
}

/// [`ago`] for an instant that cannot be before 1970.
pub fn ago_u(now_ms: i64, at_ms: u64) -> String {
    i64::try_from(at_ms).map_or_else(|_| "?".into(), |at| ago(now_ms, at))
}

/// How a point came about.
pub fn kind(kind: PointKind) -> &'static str {
    match kind {
        PointKind::CrashConsistent => "crash-consistent",
        PointKind::AppConsistent => "app-consistent",
        PointKind::Final => "final",
        PointKind::Unreplicated => "unreplicated writes",
        PointKind::RolledBack => "rolled back",
    }
}

/// What the guest's agent did for a point, where it was wanted application-consistent.
pub fn freeze(freeze: &Freeze) -> String {
    match freeze {
        Freeze::Done { file_systems, freeze_ms, frozen_ms } => {
            format!("{file_systems} frozen in {}, for {}", span(*freeze_ms), span(*frozen_ms))
        }
        Freeze::Failed { code, cause } => format!("not frozen, {code}: {cause}"),
    }
}

/// A point in one phrase; its age as the server gave it, or by this host's clock.
pub fn point(point: &Point, age_ms: Option<u64>, now_ms: i64) -> String {
    let age = age_ms.map_or_else(|| ago_u(now_ms, point.cut_at_ms), |age| format!("{} ago", span(age)));
    format!("{}, {}, cut {} ({age})", point.attempt, kind(point.kind), instant_u(point.cut_at_ms))
}

/// A test machine.
pub fn test(test: &TestMachine) -> String {
    format!("{} runs at {} from point {}, cut {}", test.machine, test.site, test.point, instant_u(test.cut_at_ms))
}

/// A recovery point that is served: a line for it, and one for each disk.
pub fn view(view: &ServedView) -> String {
    let how = if view.writable { "writable" } else { "read only" };
    let mut text = format!("{}: point {} at {}, {how}", view.number, view.point, view.site);
    for disk in &view.disks {
        text.push_str(&format!("\n  {}  {}", disk.disk, disk.uri));
    }
    text
}

/// Health: what is not well stands out.
pub fn health(health: Health) -> &'static str {
    match health {
        Health::Ok => "ok",
        Health::Warning => "WARNING",
        Health::Critical => "CRITICAL",
    }
}

/// How fast epochs go: what was measured of it.
pub fn pace(pace: &Pace) -> String {
    let rate = |what: &str, rate: Option<u64>| rate.map(|rate| format!("{}/s {what}", bytes(rate)));
    let limit = pace.limit().map(|limit| format!("limited by {limit}"));
    let parts = [rate("change", pace.change_rate()), rate("can be carried", pace.rate()), limit];
    parts.into_iter().flatten().collect::<Vec<_>>().join(", ")
}

/// The text, or a dash.
pub fn or_dash(text: Option<String>) -> String {
    text.filter(|text| !text.is_empty()).unwrap_or_else(|| "-".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_spans_read_like_speech() {
        for (count, text) in
            [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (1 << 30, "1.0 GiB"), (u64::MAX, "16384.0 PiB")]
        {
            assert_eq!(bytes(count), text);
        }
        assert_eq!(bytes(1024 * 1024 - 1), "1.0 MiB");
        for (millis, text) in [
            (0, "0 ms"),
            (999, "999 ms"),
            (1250, "1.2 s"),
            (59_999, "59 s"),
            (200_000, "3 min 20 s"),
            (3_600_000, "1 h"),
            (18_600_000, "5 h 10 min"),
            (2 * 86_400_000, "2 d"),
        ] {
            assert_eq!(span(millis), text);
        }
    }

    #[test]
    fn impossible_instants_are_a_question_mark_not_a_panic() {
        assert_eq!(instant_in(0, TimeZone::UTC), "1970-01-01 00:00:00");
        assert_eq!((instant(i64::MAX), instant_u(u64::MAX), ago_u(0, u64::MAX)), ("?".into(), "?".into(), "?".into()));
        assert_eq!(ago(1000, 5000), "now");
        assert_eq!(ago(i64::MAX, i64::MIN), format!("{} ago", span(i64::MAX as u64)));
    }
}
