//! What two recovery points differ in.

use protocol::difference::Difference;

use super::table::table;
use super::words;

/// Extents of one disk that are shown; all that are known come with `--output json`.
const SHOWN: usize = 20;

/// The difference: a line for each disk, then its extents.
pub fn page(difference: &Difference) -> String {
    let Difference { from, to, piece_bytes, disks } = difference;
    let mut text = format!(
        "{} ({}) and {} ({}), compared in pieces of {}",
        from.attempt,
        words::kind(from.kind),
        to.attempt,
        words::kind(to.kind),
        words::bytes(*piece_bytes)
    );
    let rows = disks.iter().map(|disk| {
        vec![disk.disk.to_string(), disk.bytes.to_string(), words::bytes(disk.bytes), disk.extent_count.to_string()]
    });
    text.push('\n');
    text.push_str(&table(&["DISK", "BYTES", "DIFFER", "EXTENTS"], rows.collect(), "the item has no disks"));
    for disk in disks {
        for extent in disk.extents.iter().take(SHOWN) {
            text.push_str(&format!("\n  {} {:>14} + {}", disk.disk, extent.offset, extent.length));
        }
        let shown = disk.extents.len().min(SHOWN) as u64;
        if disk.extent_count > shown {
            text.push_str(&format!("\n  {} and {} more", disk.disk, disk.extent_count - shown));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use protocol::difference::DiskDifference;
    use protocol::epoch::{Point, PointKind};
    use protocol::extent::Extent;
    use protocol::id::Attempt;

    #[test]
    fn bytes_and_extents_of_each_disk_are_shown_and_what_is_left_out_is_counted() {
        let point = |number, kind| Point {
            attempt: Attempt { generation: 1, number },
            cut_at_ms: 0,
            sealed_at_ms: 0,
            kind,
            changed_bytes: 0,
            freeze: None,
        };
        let map = (0..23).map(|n| Extent::new(n * 8192, 4096)).collect();
        let difference = Difference {
            from: point(7, PointKind::CrashConsistent),
            to: point(8, PointKind::Unreplicated),
            piece_bytes: 4096,
            disks: vec![DiskDifference::of("disk0".parse().unwrap(), &map)],
        };
        let text = page(&difference);
        for part in ["1.7", "1.8", "94208", "23", "disk0              0 + 4096", "disk0 and 3 more"] {
            assert!(text.contains(part), "{part} in {text}");
        }
    }
}
