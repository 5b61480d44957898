//! Sizes and times in the sentences that control says.

use protocol::quote::Moving;

/// `0 B`, `512 KiB`, `1.5 GiB`.
pub fn bytes(count: u64) -> String {
    let (mut value, mut rest) = (count as f64, ["KiB", "MiB", "GiB", "TiB", "PiB"].iter());
    let mut unit = "B";
    while value >= 1023.95
        && let Some(next) = rest.next()
    {
        value /= 1024.0;
        unit = next;
    }
    if unit == "B" { format!("{count} B") } else { format!("{value:.1} {unit}") }
}

/// `80 ms`, `2.5 s`, `90 s`, `12 min`, `5.0 h`.
pub fn span(ms: u64) -> String {
    match ms {
        0..1000 => format!("{ms} ms"),
        1000..10_000 => format!("{:.1} s", ms as f64 / 1000.0),
        10_000..120_000 => format!("{} s", ms / 1000),
        120_000..7_200_000 => format!("{} min", ms / 60_000),
        _ => format!("{:.1} h", ms as f64 / 3_600_000.0),
    }
}

/// `12.0 MiB of 100.0 MiB, 45.0 MiB/s, 2.0 s left`.
pub fn moving(moving: &Moving) -> String {
    let mut text = format!("{} of {}", bytes(moving.done), bytes(moving.expected));
    if let (Some(rate), Some(left)) = (moving.rate, moving.left_ms) {
        text.push_str(&format!(", {}/s, {} left", bytes(rate), span(left)));
    }
    text
}

/// An instant: `2026-11-23 22:00:00 UTC`.
pub fn instant(at_ms: u64) -> String {
    let at = i64::try_from(at_ms).ok().and_then(|ms| jiff::Timestamp::from_millisecond(ms).ok());
    at.map_or_else(|| "?".into(), |at| at.strftime("%Y-%m-%d %H:%M:%S UTC").to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_read_like_speech() {
        assert_eq!(
            [0, 1023, 1536, 1 << 30, u64::MAX].map(bytes),
            ["0 B", "1023 B", "1.5 KiB", "1.0 GiB", "16384.0 PiB"]
        );
        assert_eq!([999, 2500, 59_999, 200_000].map(span), ["999 ms", "2.5 s", "59 s", "3 min"]);
        let half = Moving { done: 1 << 20, expected: 2 << 20, rate: Some(1 << 20), left_ms: Some(1000) };
        assert_eq!(instant(1_795_354_192_000), "2026-11-22 13:29:52 UTC");
        assert_eq!(moving(&half), "1.0 MiB of 2.0 MiB, 1.0 MiB/s, 1.0 s left");
    }
}
