//! What the guest says on its serial console, and what it is told on the kernel command line: both ends of the contract.
//!
//! ```text
//!   LEDGER {...}          what the disks held at boot (one line of JSON, see Report::to_json)
//!   WRITING n             records from n on follow
//!   ACK n ms              record n is durable on both disks; ms is the guest's wall clock (since 1970)
//!   BUTTON ms             somebody pressed the power button; the writer goes on for a moment
//!   BYE n ms              the writer has stopped, n was the last record; power goes off
//!   LEDGER-ERROR text     an I/O error, or an inconsistent ledger: nothing is written any more
//! ```
//! Lines end in CR LF. Anything else on the console is the firmware's or the kernel's.

use crate::writer::Pattern;

/// A line of the guest's console.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Line {
    /// The report at boot, as JSON.
    Ledger(String),
    /// Writing begins with this number.
    Writing(u64),
    /// A record is durable.
    Ack {
        /// The record's number.
        number: u64,
        /// When, in milliseconds of the guest's wall clock.
        ms: u64,
    },
    /// Shutdown begins.
    Button {
        /// When, in milliseconds of the guest's wall clock.
        ms: u64,
    },
    /// The writer has stopped.
    Bye {
        /// The last record's number.
        number: u64,
        /// When, in milliseconds of the guest's wall clock.
        ms: u64,
    },
    /// Something is wrong.
    Error(String),
}

impl Line {
    /// Reads one line; `None` for anything that is not the guest's, or was cut off.
    pub fn parse(line: &str) -> Option<Self> {
        let line = line.trim_end_matches(['\r', '\n']);
        let (word, rest) = line.split_once(' ')?;
        let pair = || {
            let (number, ms) = rest.split_once(' ')?;
            Some((number.parse().ok()?, ms.parse().ok()?))
        };
        Some(match word {
            "LEDGER" if rest.ends_with('}') => Self::Ledger(rest.to_owned()),
            "WRITING" => Self::Writing(rest.parse().ok()?),
            "ACK" => pair().map(|(number, ms)| Self::Ack { number, ms })?,
            "BUTTON" => Self::Button { ms: rest.parse().ok()? },
            "BYE" => pair().map(|(number, ms)| Self::Bye { number, ms })?,
            "LEDGER-ERROR" => Self::Error(rest.to_owned()),
            _ => return None,
        })
    }
}

/// The kernel command line for a guest that writes `rate` records a second (0: as fast as it can) in `pattern`.
pub fn kernel_command_line(rate: u32, pattern: Pattern) -> String {
    format!("{QUIET_KERNEL} ledger.rate={rate} ledger.pattern={}", pattern.name())
}

/// What every boot needs: the console, a reboot instead of a hang on panic (with `-no-reboot` QEMU ends), and nothing
/// that costs time under TCG. Without `no_timer_check` a host that is busy for a moment makes it panic at boot ("IO-APIC +
/// timer doesn't work").
const QUIET_KERNEL: &str = "console=ttyS0 panic=-1 quiet loglevel=3 mitigations=off random.trust_cpu=on no_timer_check";

/// What the guest was told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Orders {
    /// Records a second; 0 for as many as the disks take.
    pub rate: u32,
    /// What each record overwrites.
    pub pattern: Pattern,
    /// Only report, write nothing.
    pub idle: bool,
    /// How long the writer goes on after the power button, in milliseconds: services take a moment to stop.
    pub linger_ms: u64,
}

impl Default for Orders {
    fn default() -> Self {
        Self { rate: 100, pattern: Pattern::Mixed, idle: false, linger_ms: 300 }
    }
}

impl Orders {
    /// Reads `/proc/cmdline`. An unknown or malformed `ledger.` word is an error: a test that asked for something else
    /// than it gets proves nothing.
    pub fn parse(command_line: &str) -> Result<Self, String> {
        let mut orders = Self::default();
        for word in command_line.split_whitespace() {
            let Some(order) = word.strip_prefix("ledger.") else { continue };
            let (name, value) = order.split_once('=').unwrap_or((order, ""));
            let wrong = || format!("cannot obey {word}");
            match name {
                "rate" => orders.rate = value.parse().map_err(|_| wrong())?,
                "pattern" => orders.pattern = Pattern::named(value).ok_or_else(wrong)?,
                "linger_ms" => orders.linger_ms = value.parse().map_err(|_| wrong())?,
                "idle" if value.is_empty() => orders.idle = true,
                _ => return Err(wrong()),
            }
        }
        Ok(orders)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_read_with_and_without_carriage_return() {
        assert_eq!(Line::parse("ACK 12 1700000000123\r\n"), Some(Line::Ack { number: 12, ms: 1_700_000_000_123 }));
        assert_eq!(Line::parse("LEDGER {\"highest\":3}"), Some(Line::Ledger("{\"highest\":3}".to_owned())));
        assert_eq!(Line::parse("BYE 9 5"), Some(Line::Bye { number: 9, ms: 5 }));
    }

    #[test]
    fn a_line_cut_off_by_a_crash_is_nothing() {
        for cut in ["ACK 12", "ACK 12 ", "LEDGER {\"highest\":3", "BY", "", "[    1.0] virtio_blk virtio0"] {
            assert_eq!(Line::parse(cut), None, "{cut}");
        }
    }

    #[test]
    fn what_is_written_on_the_command_line_is_what_the_guest_obeys() {
        let line = kernel_command_line(0, Pattern::Overwrite);
        let expected = Orders { rate: 0, pattern: Pattern::Overwrite, ..Orders::default() };
        assert_eq!(Orders::parse(&line), Ok(expected));
        assert!(Orders::parse("ledger.idle").unwrap().idle);
        assert!(Orders::parse("ledger.rat=5").is_err());
        assert!(Orders::parse("ledger.rate=many").is_err());
    }
}
