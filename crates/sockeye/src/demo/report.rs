//! What the demo measured: one object for programs, one table for people.

use serde::Serialize;

/// The whole result, printed by `--output json`.
#[derive(Debug, Default, Serialize)]
pub struct Report {
    /// What was done, in order.
    pub phases: Vec<Phase>,
    /// Each time the machine changed sides.
    pub failovers: Vec<Failover>,
    /// Age of the newest durable point just before the next one, while epochs flowed, in ms.
    pub rpo_ms: Percentiles,
    /// Whether every check held.
    pub verified: bool,
    /// The checks that did not hold.
    pub problems: Vec<String>,
}

/// One phase.
#[derive(Debug, Serialize)]
pub struct Phase {
    /// Its name.
    pub name: String,
    /// How long it took.
    pub seconds: f64,
    /// Bytes of the blocks that were made equal.
    pub bytes_changed: Option<u64>,
    /// Bytes read from disks to find and send them, both sides.
    pub bytes_read: Option<u64>,
    /// Bytes on the link, both ways.
    pub bytes_sent: Option<u64>,
    /// For people's table: how long the machine was down in it, in ms; programs find it in `failovers`.
    #[serde(skip)]
    pub down_ms: Option<u64>,
}

/// One move of the machine.
#[derive(Debug, Serialize)]
pub struct Failover {
    /// `unplanned failover`, `planned failover` or `failback`.
    pub kind: String,
    /// How the first copy of the direction was chosen.
    pub sync: String,
    /// From the source standing still (unplanned: from the order) to the target going on.
    pub downtime_ms: u64,
    /// The highest record that the guest had acknowledged.
    pub records_acknowledged: u64,
    /// The highest record found on the disks after the move.
    pub records_found: u64,
    /// Acknowledged and not found.
    pub records_lost: u64,
    /// The same as time: from the newest record found to the newest acknowledged, by the guest's clock.
    pub lost_ms: u64,
}

/// Two percentiles.
#[derive(Debug, Default, Clone, Copy, Serialize)]
pub struct Percentiles {
    /// The median.
    pub p50: u64,
    /// 99 of 100 are at most this.
    pub p99: u64,
}

impl Percentiles {
    /// Of these values (0 when there are none).
    pub fn of(values: &[u64]) -> Percentiles {
        let mut sorted = values.to_vec();
        sorted.sort_unstable();
        let at =
            |percent: usize| sorted.get((sorted.len() * percent / 100).min(sorted.len().saturating_sub(1))).copied();
        Percentiles { p50: at(50).unwrap_or(0), p99: at(99).unwrap_or(0) }
    }
}

/// Bytes in an operator's words.
pub fn bytes(count: u64) -> String {
    match count {
        0..=9_999 => format!("{count} B"),
        10_000..=9_999_999 => format!("{:.1} kB", count as f64 / 1e3),
        10_000_000..=9_999_999_999 => format!("{:.1} MB", count as f64 / 1e6),
        _ => format!("{:.1} GB", count as f64 / 1e9),
    }
}

impl Report {
    /// The tables for people.
    pub fn tables(&self) -> String {
        let mut copies = comfy_table::Table::new();
        copies.load_style(comfy_table::presets::UTF8_HORIZONTAL_ONLY);
        copies.set_header(["phase", "seconds", "changed", "read", "sent", "down"]);
        let cell = |count: Option<u64>| count.map_or_else(String::new, bytes);
        for phase in &self.phases {
            let down = phase.down_ms.map_or_else(String::new, |ms| format!("{ms} ms"));
            let row = [
                phase.name.clone(),
                format!("{:.1}", phase.seconds),
                cell(phase.bytes_changed),
                cell(phase.bytes_read),
                cell(phase.bytes_sent),
                down,
            ];
            copies.add_row(row);
        }
        let mut moves = comfy_table::Table::new();
        moves.load_style(comfy_table::presets::UTF8_HORIZONTAL_ONLY);
        moves.set_header(["move", "sync", "down", "acknowledged", "found", "lost"]);
        for one in &self.failovers {
            let lost =
                if one.records_lost == 0 { "0".into() } else { format!("{} ({} ms)", one.records_lost, one.lost_ms) };
            moves.add_row([
                one.kind.clone(),
                one.sync.clone(),
                format!("{} ms", one.downtime_ms),
                one.records_acknowledged.to_string(),
                one.records_found.to_string(),
                lost,
            ]);
        }
        let rpo = self.rpo_ms;
        format!(
            "{copies}\n\n{moves}\n\nrecovery points while epochs flowed: RPO p50 {} ms, p99 {} ms",
            rpo.p50, rpo.p99
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_values_that_occurred() {
        assert_eq!(Percentiles::of(&[]).p99, 0);
        let of = Percentiles::of(&(1..=100).collect::<Vec<_>>());
        assert_eq!((of.p50, of.p99), (51, 100));
    }
}
