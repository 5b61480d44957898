//! Reads the values of options: times, points, disks, sites.

use std::path::PathBuf;
use std::time::Duration;

use protocol::guest::Place;
use protocol::id::SiteName;
use protocol::machine::DiskFormat;
use protocol::quote::Window;
use protocol::retention::Spacing;

use super::{Disk, Which};

/// `500ms`, `1s`, `5m`, `1h30m`.
pub(super) fn duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("{text:?} is no time above zero; write it like 500ms, 1s, 5m or 1h30m");
    let given: jiff::Span = text.parse().map_err(|_| wrong())?;
    let given = given.to_duration(jiff::SpanRelativeTo::days_are_24_hours()).map_err(|_| wrong())?;
    let given = Duration::try_from(given).map_err(|_| wrong())?;
    // A year bounds what is added to clocks later on.
    if given < Duration::from_millis(1) || given > Duration::from_secs(366 * 86_400) { Err(wrong()) } else { Ok(given) }
}

/// `A=B`: two names of networks.
pub(super) fn networks(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((here, there)) if !here.is_empty() && !there.is_empty() => Ok((here.into(), there.into())),
        _ => Err(format!("{text:?} is not A=B: the network where the machine is, and the one there")),
    }
}

/// `away:52:54:00:12:34:56`: a card at a place.
pub(super) fn card_at(text: &str) -> Result<(Place, String), String> {
    protocol::guest::card_at(text).ok_or_else(|| format!("{text:?} is no card at a place, like away:52:54:00:12:34:56"))
}

/// `1m:24h`: one every minute until they are a day old. Whole seconds.
pub(super) fn spacing(text: &str) -> Result<Spacing, String> {
    let wrong =
        || format!("{text:?} is no EVERY:UNTIL; write it like 1m:24h (one every minute until they are a day old)");
    let (every, until) = text.split_once(':').ok_or_else(wrong)?;
    let seconds = |text| duration(text).map(|time| time.as_secs());
    let spacing = Spacing { one_every_seconds: seconds(every)?, until_seconds: seconds(until)? };
    if spacing.one_every_seconds == 0 { Err(wrong()) } else { Ok(spacing) }
}

/// `500MiB`, `50GiB`, `2TiB`; a plain number is bytes.
pub(super) fn size(text: &str) -> Result<u64, String> {
    let wrong = || format!("{text:?} is no size above zero; write it like 500MiB, 50GiB or 2TiB");
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let shift = ["", "KiB", "MiB", "GiB", "TiB", "PiB"].iter().position(|known| unit.eq_ignore_ascii_case(known));
    let factor = 1u64 << (10 * shift.ok_or_else(wrong)?);
    let bytes = number.parse::<u64>().ok().and_then(|number| number.checked_mul(factor));
    bytes.filter(|bytes| *bytes > 0).ok_or_else(wrong)
}

pub(super) fn point(text: &str) -> Result<Which, String> {
    if text == "latest" {
        return Ok(Which::Latest);
    }
    if text == "latest-app" {
        return Ok(Which::LatestApp);
    }
    let by = || instant(text).and_then(|at| u64::try_from(at.as_millisecond()).ok()).map(Which::By);
    text.parse().map(Which::This).ok().or_else(by).ok_or_else(|| {
        format!("{text:?} is no recovery point: `latest`, `latest-app`, a number like 1.42, or a time like '2026-11-22 13:29:52'")
    })
}

/// An instant: with its zone (`2026-11-22T13:29:52Z`), or by this host's clock face. Written without a fraction it means the
/// whole second, as `sockeye points` shows it.
fn instant(text: &str) -> Option<jiff::Timestamp> {
    let zoned = |text: &str| {
        let face: jiff::civil::DateTime = text.parse().ok()?;
        face.to_zoned(jiff::tz::TimeZone::system()).ok().map(|zoned| zoned.timestamp())
    };
    // A day alone is no instant.
    let text = text.contains(':').then_some(text)?;
    let at: jiff::Timestamp = text.parse().ok().or_else(|| zoned(text))?;
    if text.contains('.') { Some(at) } else { at.checked_add(jiff::SignedDuration::from_millis(999)).ok() }
}

/// How long after its time something may still begin, where nobody said: guessed, long enough for a burst to pass, short
/// enough to be still the time that was meant.
const GRACE: jiff::SignedDuration = jiff::SignedDuration::from_hours(1);

/// `2026-11-23T22:00:00Z`, `22:00`, `22:00/04:00`.
pub(super) fn window(text: &str) -> Result<Window, String> {
    window_after(text, jiff::Timestamp::now())
}

fn window_after(text: &str, now: jiff::Timestamp) -> Result<Window, String> {
    let wrong = || {
        format!(
            "{text:?} is no time: write 2026-11-23T22:00:00Z, 22:00 (the next one, in UTC), or from one to another with a / \
             between them"
        )
    };
    let (from, until) = text.split_once('/').map_or((text, None), |(from, until)| (from, Some(until)));
    let from = time(from, now).ok_or_else(wrong)?;
    let until = until.map_or_else(|| from.checked_add(GRACE).ok(), |until| time(until, from)).ok_or_else(wrong)?;
    let ms = |at: jiff::Timestamp| u64::try_from(at.as_millisecond()).map_err(|_| wrong());
    Ok(Window { from_ms: ms(from)?, until_ms: ms(until)? })
}

/// An instant with its zone, or the next time of day in UTC after `after`.
fn time(text: &str, after: jiff::Timestamp) -> Option<jiff::Timestamp> {
    if let Ok(at) = text.parse() {
        return Some(at);
    }
    let face = jiff::civil::Time::strptime("%H:%M", text).ok()?;
    let day = after.to_zoned(jiff::tz::TimeZone::UTC).date();
    let of = |day: jiff::civil::Date| Some(day.to_datetime(face).to_zoned(jiff::tz::TimeZone::UTC).ok()?.timestamp());
    of(day).filter(|at| *at > after).or_else(|| of(day.tomorrow().ok()?))
}

pub(super) fn disk(text: &str) -> Result<Disk, String> {
    let (key, path) = text.split_once('=').ok_or("write it as KEY=PATH or KEY=PATH:qcow2")?;
    let (path, format) = match path.rsplit_once(':') {
        Some((path, "raw")) => (path, DiskFormat::Raw),
        Some((path, "qcow2")) => (path, DiskFormat::Qcow2),
        _ if path.ends_with(".qcow2") => (path, DiskFormat::Qcow2),
        _ => (path, DiskFormat::Raw),
    };
    let key = key.parse().map_err(|why: protocol::id::BadName| why.to_string())?;
    if path.is_empty() { Err("the path is empty".into()) } else { Ok(Disk { key, path: path.into(), format }) }
}

pub(super) fn site(text: &str) -> Result<(SiteName, PathBuf), String> {
    let (name, dir) = text.split_once('=').ok_or("write it as NAME=DIR")?;
    let name = name.parse().map_err(|why: protocol::id::BadName| why.to_string())?;
    if dir.is_empty() { Err("the directory is empty".into()) } else { Ok((name, dir.into())) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_as_people_write_them() {
        for (text, millis) in
            [("500ms", 500), ("1s", 1000), ("30d", 30 * 86_400_000), ("5m", 300_000), ("1h30m", 5_400_000)]
        {
            assert_eq!(duration(text).unwrap(), Duration::from_millis(millis), "{text}");
        }
        for bad in ["", "0s", "-1s", "5", "soon", "99999999h"] {
            assert!(duration(bad).is_err(), "{bad:?} was taken");
        }
    }

    #[test]
    fn a_point_is_the_latest_a_number_or_a_time() {
        assert_eq!(point("latest"), Ok(Which::Latest));
        assert_eq!(point("1.42"), Ok(Which::This("1.42".parse().unwrap())));
        assert_eq!(point("2026-11-22T13:29:52Z"), Ok(Which::By(1_795_354_192_999)));
        assert_eq!(point("2026-11-22T13:29:52.5Z"), Ok(Which::By(1_795_354_192_500)));
        assert_eq!(point("2026-11-22T14:29:52+01:00"), Ok(Which::By(1_795_354_192_999)));
        assert!(matches!(point("2026-11-22 13:29:52"), Ok(Which::By(_))));
        for bad in ["", "1", "1.x", "yesterday", "2026-11-22", "2026-13-22T13:29:52Z", "1960-01-01T00:00:00Z"] {
            assert!(point(bad).is_err(), "{bad:?} was taken as {:?}", point(bad));
        }
    }

    #[test]
    fn a_time_of_day_is_the_next_one_in_utc_and_stands_for_the_hour_after_it() {
        let now: jiff::Timestamp = "2026-11-23T20:00:00Z".parse().unwrap();
        let read = |text| window_after(text, now).map(|window| (window.from_ms, window.until_ms));
        let at = |text: &str| text.parse::<jiff::Timestamp>().unwrap().as_millisecond() as u64;
        let (ten, eleven) = (at("2026-11-23T22:00:00Z"), at("2026-11-23T23:00:00Z"));
        for text in ["22:00", "2026-11-23T22:00:00Z", "2026-11-23T23:00:00+01:00"] {
            assert_eq!(read(text), Ok((ten, eleven)), "{text}");
        }
        assert_eq!(read("20:00").unwrap().0, at("2026-11-24T20:00:00Z"), "what is now has passed");
        assert_eq!(read("22:00/04:00"), Ok((ten, at("2026-11-24T04:00:00Z"))));
        assert_eq!(read("2026-11-23T22:00:00Z/23:00"), Ok((ten, eleven)));
        // That one has passed is for the server to say, by its own clock.
        assert_eq!(read("2020-01-01T00:00:00Z").unwrap().0, at("2020-01-01T00:00:00Z"));
        for bad in
            ["", "soon", "22", "25:00", "22:00/", "/22:00", "2026-11-23", "2026-11-23T22:00:00", "1960-01-01T00:00:00Z"]
        {
            assert!(read(bad).is_err(), "{bad:?} was taken as {:?}", read(bad));
        }
    }

    #[test]
    fn spacings_and_sizes_are_read_and_nonsense_is_not() {
        assert_eq!(spacing("1m:24h").unwrap(), Spacing { one_every_seconds: 60, until_seconds: 86_400 });
        assert_eq!(spacing("1h:30d").unwrap().until_seconds, 30 * 86_400);
        for bad in ["", "1m", "1m:", ":24h", "0s:1h", "500ms:1h", "1m:24h:3"] {
            assert!(spacing(bad).is_err(), "{bad:?} was taken");
        }
        for (text, bytes) in [("1", 1), ("500MiB", 500 << 20), ("50gib", 50 << 30), ("2TiB", 2 << 40)] {
            assert_eq!(size(text).unwrap(), bytes, "{text}");
        }
        for bad in ["", "0", "GiB", "-1GiB", "1.5GiB", "5GB", "99999999999PiB"] {
            assert!(size(bad).is_err(), "{bad:?} was taken");
        }
    }

    #[test]
    fn a_disk_is_key_path_and_format() {
        let read = disk("disk0=/a:b/c.img:raw").unwrap();
        assert_eq!(
            (read.key.as_str(), read.path.to_str().unwrap(), read.format),
            ("disk0", "/a:b/c.img", DiskFormat::Raw)
        );
        assert_eq!(disk("d=/x.qcow2").unwrap().format, DiskFormat::Qcow2);
        assert_eq!(disk("d=/x:qcow2").unwrap().format, DiskFormat::Qcow2);
        for bad in ["", "disk0", "disk0=", "../x=/y"] {
            assert!(disk(bad).is_err(), "{bad:?} was taken");
        }
    }
}
