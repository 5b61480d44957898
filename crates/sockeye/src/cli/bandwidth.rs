//! The options that say how fast replication may go, and how their values are read.

use clap::Args;
use protocol::bandwidth::{Bandwidth, CapWindow, Day};

use super::history::Sure;

/// How fast, by the time of day.
#[derive(Debug, Clone, Args)]
pub struct BandwidthOptions {
    /// How much of the line may be taken: like 50mbit (kbit, mbit, gbit: bits per second), or none
    #[arg(long, value_name = "RATE", default_value = "none", value_parser = rate)]
    bandwidth: Rate,
    /// When another rate is in force, like mon-fri@08:00-18:00=10mbit; may be repeated. One that ends before it begins ends
    /// on the day after
    #[arg(long, value_name = "DAYS@FROM-TO=RATE", value_parser = window)]
    bandwidth_window: Vec<CapWindow>,
    /// How far the clock of --bandwidth-window is ahead of UTC (there is no summer time)
    #[arg(long, value_name = "+HH:MM", default_value = "+00:00", value_parser = offset, allow_hyphen_values = true)]
    bandwidth_offset: i32,
}

impl BandwidthOptions {
    /// What was typed.
    pub fn typed(&self) -> Bandwidth {
        Bandwidth {
            bits_per_second: self.bandwidth.0,
            windows: self.bandwidth_window.clone(),
            utc_offset_minutes: self.bandwidth_offset,
        }
    }
}

#[derive(Debug, Args)]
pub struct SetComponent {
    /// Its name: a process server of `sockeye component list`
    pub name: String,
    #[command(flatten)]
    pub bandwidth: BandwidthOptions,
    #[command(flatten)]
    pub sure: Sure,
}

/// Bits per second; none for as fast as it goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Rate(Option<u64>);

/// `64kbit`, `50mbit`, `10gbit`, `none`.
fn rate(text: &str) -> Result<Rate, String> {
    let wrong = || format!("{text:?} is no rate; write it like 500kbit, 50mbit or 10gbit (bits per second), or none");
    if text == "none" {
        return Ok(Rate(None));
    }
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let units = [("kbit", 1000), ("mbit", 1_000_000), ("gbit", 1_000_000_000)];
    let factor = units.iter().find(|(known, _)| unit.eq_ignore_ascii_case(known)).ok_or_else(wrong)?.1;
    let bits = number.parse::<u64>().ok().and_then(|number| number.checked_mul(factor));
    bits.filter(|bits| *bits > 0).map(|bits| Rate(Some(bits))).ok_or_else(wrong)
}

/// `mon-fri@08:00-18:00=10mbit`, `sat,sun@22:00-06:00=none`, `all@00:00-24:00=1gbit`.
fn window(text: &str) -> Result<CapWindow, String> {
    let wrong = || format!("{text:?} is no DAYS@FROM-TO=RATE; write it like mon-fri@08:00-18:00=10mbit");
    let (days, rest) = text.split_once('@').ok_or_else(wrong)?;
    let (times, cap) = rest.split_once('=').ok_or_else(wrong)?;
    let (from, to) = times.split_once('-').ok_or_else(wrong)?;
    let Rate(bits_per_second) = rate(cap)?;
    let mut all = Vec::new();
    for part in days.split(',') {
        all.extend(these(part).ok_or_else(wrong)?);
    }
    let (from_minute, to_minute) = (minute(from).ok_or_else(wrong)?, minute(to).ok_or_else(wrong)?);
    Ok(CapWindow { days: all, from_minute, to_minute, bits_per_second })
}

/// `mon`, `mon-fri`, `fri-mon`, `all`.
fn these(part: &str) -> Option<Vec<Day>> {
    if part == "all" {
        return Some(Day::ALL.to_vec());
    }
    let day = |word: &str| Day::ALL.iter().position(|day| day.word() == word);
    let (first, last) = part.split_once('-').unwrap_or((part, part));
    let (first, last) = (day(first)?, day(last)?);
    let many = (last + Day::ALL.len() - first) % Day::ALL.len();
    Some(Day::ALL.iter().cycle().skip(first).take(many + 1).copied().collect())
}

/// `08:30`, `24:00`.
fn minute(text: &str) -> Option<u32> {
    let (hours, minutes) = text.split_once(':')?;
    let two = |text: &str| (text.len() == 2 && text.bytes().all(|b| b.is_ascii_digit())).then(|| text.parse().ok())?;
    let (hours, minutes): (u32, u32) = (two(hours)?, two(minutes)?);
    (minutes < 60 && hours * 60 + minutes <= 24 * 60).then_some(hours * 60 + minutes)
}

/// `+01:00`, `-09:30`.
fn offset(text: &str) -> Result<i32, String> {
    let wrong = || format!("{text:?} is no distance from UTC; write it like +01:00 or -09:30");
    let (sign, rest) = match text.split_at_checked(1).ok_or_else(wrong)? {
        ("+", rest) => (1, rest),
        ("-", rest) => (-1, rest),
        _ => return Err(wrong()),
    };
    minute(rest).and_then(|minutes| i32::try_from(minutes).ok()).map(|minutes| sign * minutes).ok_or_else(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_read_and_nonsense_is_not() {
        for (text, bits) in [("64kbit", 64_000), ("50mbit", 50_000_000), ("10GBIT", 10_000_000_000)] {
            assert_eq!(rate(text), Ok(Rate(Some(bits))), "{text}");
        }
        assert_eq!(rate("none"), Ok(Rate(None)));
        for bad in ["", "0mbit", "50", "50mb", "mbit", "-1mbit", "1.5gbit", "99999999999gbit", "None"] {
            assert!(rate(bad).is_err(), "{bad:?} was taken");
        }
    }

    #[test]
    fn windows_are_read_as_they_are_shown() {
        for text in ["mon-fri@08:00-18:00=10mbit", "sat,mon@22:00-06:30=none", "wed@00:00-24:00=64kbit"] {
            assert_eq!(window(text).unwrap().to_string(), text);
        }
        assert_eq!(window("fri-mon@22:00-06:00=1gbit").unwrap().days, [Day::Fri, Day::Sat, Day::Sun, Day::Mon]);
        assert_eq!(window("all@22:00-06:00=1gbit").unwrap().days, Day::ALL);
        for bad in [
            "",
            "mon",
            "mon@8:00-18:00=1mbit",
            "mon@08:00-18:00",
            "mon@08:00=1mbit",
            "mond@08:00-18:00=1mbit",
            "mon@08:60-18:00=1mbit",
            "mon@08:00-24:01=1mbit",
            "@08:00-18:00=1mbit",
            "mon-@08:00-18:00=1mbit",
        ] {
            assert!(window(bad).is_err(), "{bad:?} was taken");
        }
        assert_eq!((offset("+01:00"), offset("-09:30")), (Ok(60), Ok(-570)));
        for bad in ["", "01:00", "+1", "+25:00", "\u{e4}01:00"] {
            assert!(offset(bad).is_err(), "{bad:?} was taken");
        }
    }
}
