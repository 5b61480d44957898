//! How much of a line replication may take, by the time of day (H4): a cap, and windows in which another one is in force.
//!
//! ```text
//!   100mbit ───────┐ mon-fri 08:00-18:00 ┌─────────────────── 100mbit ───
//!                  └────── 20mbit ───────┘
//! ```
//! A cap counts bits a second of what a sender sends, after compression. Times are those of a place whose distance from UTC
//! is stated with them; there is no summer time in it.
//!
//! # Always true
//! - At most one window is in force: those that overlap are refused.
//! - A window belongs to the days on which it begins. One that ends before it begins ends on the day after.

use std::fmt;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// The smallest cap (bits per second). Guessed: with less an epoch's last words would be waited for too long.
pub const SMALLEST_CAP: u64 = 64_000;
/// The most windows of a schedule.
const MOST_WINDOWS: usize = 100;
/// Places on earth are at most this far from UTC (minutes).
const FARTHEST: i32 = 14 * 60;
const DAY: u32 = 24 * 60;
const WEEK: u32 = 7 * DAY;
const MINUTE_MS: u64 = 60_000;

/// How fast a sender may send, by the time of day. The default is without any cap.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Bandwidth {
    /// The cap outside all windows (bits per second, at least 64,000); without it, as fast as it goes.
    pub bits_per_second: Option<u64>,
    /// When another cap is in force. Windows must not overlap.
    pub windows: Vec<CapWindow>,
    /// How far the clock of `windows` is ahead of UTC (minutes).
    pub utc_offset_minutes: i32,
}

/// A time of the week with a cap of its own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CapWindow {
    /// The days on which it begins.
    pub days: Vec<Day>,
    /// When it begins (minutes after midnight, below 1440).
    pub from_minute: u32,
    /// When it ends (minutes after midnight, at most 1440). When that is not after its beginning: on the day after.
    pub to_minute: u32,
    /// The cap (bits per second, at least 64,000); without it, as fast as it goes.
    pub bits_per_second: Option<u64>,
}

/// A day of the week.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs, reason = "the days of the week")]
pub enum Day {
    Mon,
    Tue,
    Wed,
    Thu,
    Fri,
    Sat,
    Sun,
}

impl Day {
    /// All of them.
    pub const ALL: [Day; 7] = [Day::Mon, Day::Tue, Day::Wed, Day::Thu, Day::Fri, Day::Sat, Day::Sun];

    /// As it is written.
    pub fn word(self) -> &'static str {
        ["mon", "tue", "wed", "thu", "fri", "sat", "sun"][self as usize]
    }
}

/// Why a schedule was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadBandwidth {
    /// So slow that nothing would ever arrive.
    #[error("a cap of {0} bits per second is too small; at least 64kbit is needed")]
    Cap(u64),
    /// Two caps at one time.
    #[error("the windows {0} and {1} overlap")]
    Overlap(String, String),
    /// No time at all, or more than a day.
    #[error("the window {0} is no time of a day: it begins from 00:00 to 23:59, and ends at another time up to 24:00")]
    Time(String),
    /// A window that never begins.
    #[error("a window is on no day")]
    NoDay,
    /// More than anybody means.
    #[error("{0} windows are too many; 100 are allowed")]
    TooMany(usize),
    /// Nowhere on earth.
    #[error("{0} minutes from UTC is nowhere on earth")]
    Offset(i32),
}

impl Bandwidth {
    /// Whether it makes sense; what comes from people is checked before it is used.
    ///
    /// # Errors
    /// [`BadBandwidth`].
    pub fn check(&self) -> Result<(), BadBandwidth> {
        let caps = [self.bits_per_second].into_iter().chain(self.windows.iter().map(|window| window.bits_per_second));
        if let Some(small) = caps.flatten().find(|cap| *cap < SMALLEST_CAP) {
            return Err(BadBandwidth::Cap(small));
        }
        if self.utc_offset_minutes.abs() > FARTHEST {
            return Err(BadBandwidth::Offset(self.utc_offset_minutes));
        }
        if self.windows.len() > MOST_WINDOWS {
            return Err(BadBandwidth::TooMany(self.windows.len()));
        }
        for window in &self.windows {
            if window.days.is_empty() {
                return Err(BadBandwidth::NoDay);
            }
            if window.from_minute >= DAY || window.to_minute > DAY || window.to_minute == window.from_minute {
                return Err(BadBandwidth::Time(window.to_string()));
            }
        }
        let mut times = self.times();
        times.sort_by_key(|(from, ..)| *from);
        // The week begins again after its end.
        let again = times.first().map(|(from, to, window)| (from + WEEK, to + WEEK, *window));
        let next = times.iter().skip(1).copied().chain(again);
        match times.iter().zip(next).find(|((_, to, _), (from, ..))| to > from) {
            Some(((.., one), (.., other))) => Err(BadBandwidth::Overlap(one.to_string(), other.to_string())),
            None => Ok(()),
        }
    }

    /// The cap that is in force at `now_ms` (ms since 1970), and after what time it may be another one.
    pub fn at(&self, now_ms: u64) -> (Option<u64>, Duration) {
        let week_ms = u64::from(WEEK) * MINUTE_MS;
        // 1970 began on a Thursday; a week more keeps it positive wherever it is.
        let ahead =
            i64::from(self.utc_offset_minutes) * MINUTE_MS as i64 + (week_ms + 3 * u64::from(DAY) * MINUTE_MS) as i64;
        let now = (now_ms % week_ms).wrapping_add_signed(ahead) % week_ms;
        let times = self.times();
        let mut cap = self.bits_per_second;
        let mut until = week_ms;
        for (from, to, window) in times {
            let (from, to) = (u64::from(from) * MINUTE_MS, u64::from(to) * MINUTE_MS);
            // The night from Sunday to Monday is also the end of the week before.
            if (from..to).contains(&now) || (from..to).contains(&(now + week_ms)) {
                cap = window.bits_per_second;
            }
            for end in [from, to] {
                let ahead = (end + week_ms - now) % week_ms;
                until = until.min(if ahead == 0 { week_ms } else { ahead });
            }
        }
        (cap, Duration::from_millis(until))
    }

    /// Whether nothing is ever capped.
    pub fn is_free(&self) -> bool {
        self.bits_per_second.is_none() && self.windows.iter().all(|window| window.bits_per_second.is_none())
    }

    /// From and to, in minutes of the week, of every day of every window.
    fn times(&self) -> Vec<(u32, u32, &CapWindow)> {
        let of = |window: &CapWindow, day: Day| {
            let midnight = day as u32 * DAY;
            let over = if window.to_minute <= window.from_minute { DAY } else { 0 };
            (midnight + window.from_minute, midnight + window.to_minute + over)
        };
        let times = self.windows.iter().flat_map(|window| window.days.iter().map(move |day| (window, *day)));
        times.map(|(window, day)| (of(window, day), window)).map(|((from, to), window)| (from, to, window)).collect()
    }
}

/// A rate as people write it: `50mbit`.
pub fn rate(bits_per_second: u64) -> String {
    let units = [(1_000_000_000, "gbit"), (1_000_000, "mbit"), (1000, "kbit")];
    match units.iter().find(|(unit, _)| bits_per_second >= *unit && bits_per_second.is_multiple_of(*unit)) {
        Some((unit, word)) => format!("{}{word}", bits_per_second / unit),
        None => format!("{bits_per_second}bit"),
    }
}

fn cap(bits_per_second: Option<u64>) -> String {
    bits_per_second.map_or_else(|| "none".into(), rate)
}

/// As it is typed: `mon-fri@08:00-18:00=20mbit`.
impl fmt::Display for CapWindow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let time = |minute: u32| format!("{:02}:{:02}", minute / 60, minute % 60);
        let days = match self.days.as_slice() {
            [first, .., last] if self.days.windows(2).all(|two| two[0] as u8 + 1 == two[1] as u8) => {
                format!("{}-{}", first.word(), last.word())
            }
            days => days.iter().map(|day| day.word()).collect::<Vec<_>>().join(","),
        };
        write!(f, "{days}@{}-{}={}", time(self.from_minute), time(self.to_minute), cap(self.bits_per_second))
    }
}

/// `100mbit; mon-fri@08:00-18:00=20mbit (UTC+01:00)`.
impl fmt::Display for Bandwidth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&cap(self.bits_per_second))?;
        for window in &self.windows {
            write!(f, "; {window}")?;
        }
        let (sign, off) = (if self.utc_offset_minutes < 0 { '-' } else { '+' }, self.utc_offset_minutes.abs());
        if self.windows.is_empty() { Ok(()) } else { write!(f, " (UTC{sign}{:02}:{:02})", off / 60, off % 60) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: u64 = 3_600_000;
    /// Monday, 2026-11-23, 00:00 UTC.
    const MONDAY: u64 = 1_795_392_000_000;

    fn window(days: &[Day], from: u32, to: u32, cap: u64) -> CapWindow {
        CapWindow { days: days.to_vec(), from_minute: from * 60, to_minute: to * 60, bits_per_second: Some(cap) }
    }

    fn with(windows: Vec<CapWindow>) -> Bandwidth {
        Bandwidth { bits_per_second: None, windows, utc_offset_minutes: 0 }
    }

    /// The cap at so many hours after Monday began, and for how many hours it lasts.
    fn at(bandwidth: &Bandwidth, hour: f64) -> (Option<u64>, f64) {
        let (cap, lasts) = bandwidth.at(MONDAY + (hour * HOUR as f64) as u64);
        (cap, lasts.as_secs_f64() / 3600.0)
    }

    #[test]
    fn office_hours_are_those_of_the_days_and_the_place_that_were_stated() {
        let office = with(vec![window(&Day::ALL[..5], 8, 18, 1_000_000)]);
        assert_eq!(office.check(), Ok(()));
        assert_eq!(at(&office, 7.5), (None, 0.5));
        assert_eq!(at(&office, 8.0), (Some(1_000_000), 10.0));
        assert_eq!(at(&office, 18.0), (None, 14.0), "the end is not within");
        assert_eq!(at(&office, 5.0 * 24.0 + 9.0), (None, 47.0), "Saturday");
        assert_eq!(at(&office, 7.0 * 24.0 + 9.0), (Some(1_000_000), 9.0), "the next Monday");
        let east = Bandwidth { utc_offset_minutes: 90, ..office.clone() };
        assert_eq!(at(&east, 6.5), (Some(1_000_000), 10.0));
        assert_eq!(at(&east, 5.0 * 24.0 - 24.0 + 16.5), (None, 62.0), "Friday evening until Monday");
        let west = Bandwidth { utc_offset_minutes: -600, ..office };
        assert_eq!(at(&west, 5.0 * 24.0 + 3.0), (Some(1_000_000), 1.0), "Saturday in UTC is Friday there");
        assert_eq!(Bandwidth::default().at(MONDAY).0, None);
        assert!(Bandwidth::default().at(MONDAY).1 > Duration::from_secs(3600));
    }

    #[test]
    fn a_night_belongs_to_the_day_on_which_it_begins_also_at_the_end_of_the_week() {
        let nights = with(vec![window(&[Day::Fri, Day::Sun], 22, 6, 5_000_000), window(&[Day::Mon], 6, 24, 1_000_000)]);
        assert_eq!(nights.check(), Ok(()));
        let friday = 4.0 * 24.0;
        assert_eq!(at(&nights, friday + 21.0), (None, 1.0));
        assert_eq!(at(&nights, friday + 23.0), (Some(5_000_000), 7.0));
        assert_eq!(at(&nights, friday + 24.0 + 5.0), (Some(5_000_000), 1.0));
        assert_eq!(at(&nights, friday + 24.0 + 6.0).0, None);
        assert_eq!(at(&nights, friday + 24.0 + 23.0).0, None, "Saturday is not named");
        assert_eq!(at(&nights, 7.0 * 24.0 - 1.0), (Some(5_000_000), 7.0), "until Monday morning");
        assert_eq!(at(&nights, 0.0).0, Some(5_000_000), "Monday's first hours are Sunday's night");
        assert_eq!(at(&nights, 6.0), (Some(1_000_000), 18.0));
        assert_eq!(at(&nights, 23.999).0, Some(1_000_000), "until midnight");
        assert_eq!(at(&nights, 24.0).0, None);
    }

    #[test]
    fn windows_that_overlap_and_other_nonsense_are_refused() {
        let refused = |windows| with(windows).check().unwrap_err();
        let overlap = |windows| assert!(matches!(refused(windows), BadBandwidth::Overlap(..)));
        overlap(vec![window(&[Day::Mon], 8, 12, 64_000), window(&[Day::Mon, Day::Tue], 11, 13, 64_000)]);
        overlap(vec![window(&[Day::Sun], 22, 6, 64_000), window(&[Day::Mon], 5, 7, 64_000)]);
        overlap(vec![window(&[Day::Mon, Day::Mon], 5, 7, 64_000)]);
        overlap(vec![window(&Day::ALL, 0, 24, 64_000), window(&[Day::Wed], 3, 4, 64_000)]);
        assert_eq!(with(vec![window(&Day::ALL, 0, 12, 64_000), window(&Day::ALL, 12, 24, 64_000)]).check(), Ok(()));
        assert_eq!(with(vec![window(&Day::ALL, 20, 8, 64_000), window(&Day::ALL, 8, 20, 64_000)]).check(), Ok(()));
        assert!(matches!(refused(vec![window(&[Day::Mon], 8, 8, 64_000)]), BadBandwidth::Time(_)));
        assert!(matches!(refused(vec![window(&[Day::Mon], 24, 8, 64_000)]), BadBandwidth::Time(_)));
        assert!(matches!(refused(vec![window(&[Day::Mon], 8, 25, 64_000)]), BadBandwidth::Time(_)));
        assert_eq!(refused(vec![window(&[], 8, 9, 64_000)]), BadBandwidth::NoDay);
        assert_eq!(refused(vec![window(&[Day::Mon], 8, 9, 63_999)]), BadBandwidth::Cap(63_999));
        assert!(matches!(refused(vec![window(&[Day::Mon], 8, 9, 64_000); 101]), BadBandwidth::TooMany(101)));
        let slow = Bandwidth { bits_per_second: Some(0), ..Bandwidth::default() };
        assert_eq!(slow.check(), Err(BadBandwidth::Cap(0)));
        let nowhere = Bandwidth { utc_offset_minutes: 841, ..Bandwidth::default() };
        assert_eq!(nowhere.check(), Err(BadBandwidth::Offset(841)));
    }

    #[test]
    fn it_says_what_was_typed() {
        let mut bandwidth =
            with(vec![window(&Day::ALL[..5], 8, 18, 20_000_000), window(&[Day::Sat, Day::Mon], 22, 24, 1_500_000)]);
        bandwidth.utc_offset_minutes = -570;
        bandwidth.bits_per_second = Some(2_000_000_000);
        let text = "2gbit; mon-fri@08:00-18:00=20mbit; sat,mon@22:00-24:00=1500kbit (UTC-09:30)";
        assert_eq!(bandwidth.to_string(), text);
        assert_eq!(Bandwidth::default().to_string(), "none");
        assert_eq!((rate(64_000), rate(64_001)), ("64kbit".into(), "64001bit".into()));
        assert!(Bandwidth::default().is_free() && !bandwidth.is_free());
    }
}
