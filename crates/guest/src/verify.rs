//! Judges two disks: are they a prefix of the one order in which everything was written?
//!
//! The order, for record n with a scribble (each write durable before the next begins):
//! ```text
//!   1 ring A ─► 2 scribble A ─► 3 ring B ─► 4 scribble B ─► ACK n ─► 1 of record n+1 ...
//! ```
//! So of two disks cut at one instant: B never holds a record that A lacks; A is at most one ahead; when A is one ahead
//! only A's newest scribble may be unwritten, when both are equal only B's. Every other scribble must be of exactly the
//! generation and checksum that the newest record naming it says. A ring must hold all of its last numbers, chained.
//!
//! What each kind of fault looks like here: a missing extent is a gap, a bad or a stale block; a stale block is a gap
//! (an older record in the slot) or stale (an older scribble); disks cut apart show B newer, A too far ahead, or a
//! scribble of A missing while B went on; blocks of two histories break the chain (forks); a lost tail alone is a
//! prefix, therefore consistent: compare `highest` with the last acknowledged number.

use std::collections::HashMap;
use std::fs::File;
use std::path::Path;

use crate::disk::{DiskFault, ReadAt};
use crate::layout::Role;
use crate::record::{Scribble, Scribbled};
use crate::report::Report;
use crate::scan::{Found, Scan};
use crate::seed;

/// How much of the disks is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// Headers, rings, scribbles: some 80 MiB.
    Ledger,
    /// All of both disks: the seeded data too must be bit for bit what was seeded, and the rest empty.
    WholeDisk,
}

/// Verifies two raw disk files (or block devices), read through the page cache.
pub fn verify(path_a: &Path, path_b: &Path, scope: Scope) -> Result<Report, DiskFault> {
    let open = |path: &Path| File::open(path).map_err(DiskFault::io(format!("opening {}", path.display())));
    verify_readers(&open(path_a)?, &open(path_b)?, scope)
}

/// Verifies two disks read in any other way.
pub fn verify_readers(a: &impl ReadAt, b: &impl ReadAt, scope: Scope) -> Result<Report, DiskFault> {
    let (scan_a, scan_b) = (Scan::read(a, Role::A)?, Scan::read(b, Role::B)?);
    if scan_a.layout.ring_slots != scan_b.layout.ring_slots || scan_a.layout.seed != scan_b.layout.seed {
        return Err(DiskFault::not_a_ledger("the two disks do not belong together (other seed or ring)"));
    }
    let mut report = judge(&scan_a, &scan_b);
    if scope == Scope::WholeDisk {
        seed::check_data(a, &scan_a.layout, &mut report)?;
        seed::check_data(b, &scan_b.layout, &mut report)?;
    }
    Ok(report)
}

pub(crate) fn judge(a: &Scan, b: &Scan) -> Report {
    let mut report = Report {
        highest: a.highest.min(b.highest),
        highest_a: a.highest,
        highest_b: b.highest,
        b_newer_than_a: b.highest > a.highest,
        a_too_far_ahead: a.highest > b.highest + 1,
        in_flight: a.highest != b.highest,
        boots: a.record(a.highest).map_or(0, |newest| newest.boot),
        highest_made_ms: a.record(a.highest.min(b.highest)).map_or(0, |record| record.made_ms),
        ..Report::default()
    };
    if report.b_newer_than_a || report.a_too_far_ahead {
        report.problem(|| format!("disk A ends at record {}, disk B at {}", a.highest, b.highest));
    }
    judge_ring(a, &mut report);
    judge_ring(b, &mut report);
    let both = a.oldest().max(b.oldest())..=report.highest;
    for number in both {
        match (a.record(number), b.record(number)) {
            (Some(on_a), Some(on_b)) if on_a == on_b => report.found += 1,
            (Some(_), Some(_)) => {
                report.forks += 1;
                report.problem(|| format!("record {number} differs between the disks"));
            }
            _ => {} // counted as a gap already
        }
    }
    judge_scribbles(a, b, &mut report);
    report
}

/// Every number that the ring must hold, in its slot, chained to the one before; nothing else anywhere.
fn judge_ring(disk: &Scan, report: &mut Report) {
    let role = disk.layout.role;
    let mut before = None;
    for number in disk.oldest()..=disk.highest {
        match disk.slot(number) {
            Found::Good(record) if record.number == number => {
                let expected = if number == 1 { Some(0) } else { before };
                if expected.is_some_and(|expected| expected != record.previous_checksum) {
                    report.forks += 1;
                    report.problem(|| format!("record {number} on disk {role:?} does not continue the one before"));
                }
                before = Some(record.checksum);
            }
            found => {
                before = None;
                report.gaps += 1;
                let instead = match found {
                    Found::Good(record) => format!("record {}", record.number),
                    Found::Empty => "nothing".to_owned(),
                    Found::Bad => "damage".to_owned(),
                };
                report.problem(|| format!("record {number} on disk {role:?} is missing, there is {instead}"));
            }
        }
    }
    let bad = disk.ring.iter().filter(|found| **found == Found::Bad).count() as u64;
    report.bad += bad;
    if bad > 0 {
        report.problem(|| format!("{bad} slots of disk {role:?} are damaged"));
    }
}

/// Every scribble is the newest that a record names; only the very last write may be missing.
fn judge_scribbles(a: &Scan, b: &Scan, report: &mut Report) {
    for disk in [a, b] {
        let role = disk.layout.role;
        let last_write_is_here = match role {
            Role::A => a.highest == b.highest + 1,
            Role::B => a.highest == b.highest,
        };
        let mut newest: HashMap<u64, (u64, Scribbled)> = HashMap::new();
        let mut before_newest: Option<(u64, Option<(u64, Scribbled)>)> = None;
        // A's ring names all that B's does, as A is written first; B has done nothing beyond its own newest record.
        for number in a.oldest()..=disk.highest.min(a.highest) {
            let Some(entries) = a.record(number).and_then(|record| record.scribble) else { continue };
            let entry = entries[role.index() as usize];
            let replaced = newest.insert(entry.block, (number, entry));
            before_newest = (number == disk.highest).then_some((entry.block, replaced));
        }
        let unfinished = before_newest.filter(|_| last_write_is_here);
        // A block that the ring no longer names was written before the oldest record, or never.
        let forgotten_before = a.oldest();
        for (index, found) in disk.scribbles.iter().enumerate() {
            let index = index as u64;
            report.scribbles_checked += 1;
            if as_named(newest.get(&index).copied(), found, forgotten_before) {
                continue;
            }
            match unfinished {
                Some((block, replaced)) if block == index && as_named(replaced, found, forgotten_before) => {
                    report.in_flight = true;
                    continue;
                }
                _ => {}
            }
            let named = newest.get(&index).map_or(0, |(number, _)| *number);
            match found {
                Found::Bad => report.bad += 1,
                Found::Empty | Found::Good(_) => report.stale += 1,
            }
            report.problem(|| format!("scribble {index} of disk {role:?} should be of record {named}, is {found:?}"));
        }
    }
}

/// Whether a scribble block is what the record says that names it; or, named by none, older than all the ring holds.
fn as_named(named: Option<(u64, Scribbled)>, found: &Found<Scribble>, forgotten_before: u64) -> bool {
    match (named, found) {
        (Some((number, entry)), Found::Good(scribble)) => {
            scribble.generation == number && scribble.checksum == entry.checksum
        }
        (None, Found::Good(scribble)) => scribble.generation < forgotten_before,
        (None, Found::Empty) => true,
        (Some(_), Found::Empty) | (_, Found::Bad) => false,
    }
}
