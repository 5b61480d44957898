//! The museum: journals as older versions wrote them, whole and damaged. Each opens to what `docs/journal-format.md` says:
//! cut, refused with a code, or repaired; where a point can be read it holds what was written, byte for byte.
//!
//! `museum/format-N/` has the committed files, `museum/exhibit.rs` tells what was written to them. `SOCKEYE_EVERY_BYTE=1`
//! damages every single byte, which takes some minutes.

#![allow(clippy::unwrap_used)]

mod exhibit;
mod visit;

use self::visit::{Exhibit, Files, Seen};
use crate::simulated::Dice;
use protocol::fault::code;

const FORMAT: &str = "format-2";
/// About every so many bytes are damaged.
const STRIDE: u64 = 200;

fn kept() -> Exhibit {
    Exhibit::load(FORMAT, "kept")
}

fn unfinished() -> Exhibit {
    Exhibit::load(FORMAT, "unfinished")
}

/// All points are right.
fn right() -> Seen {
    refused(&[])
}

/// It opens, but these points cannot be read.
fn refused(points: &[u64]) -> Seen {
    Seen::Opened { refused: points.to_vec() }
}

/// It does not open: the journal is damaged, and the message tells where and what to do.
fn damaged() -> Seen {
    Seen::Refused(code::JOURNAL_DAMAGED.code)
}

/// One line of what was done to an exhibit, the deed, and what must be seen then.
type Harm = (&'static str, fn(&mut Exhibit), Seen);

fn show(exhibit: &Exhibit, harms: Vec<Harm>) {
    for (what, harm, expected) in harms {
        let mut harmed = exhibit.clone();
        harm(&mut harmed);
        println!("{what}");
        assert_eq!(harmed.visit(), expected, "{what}");
    }
}

fn blank(bytes: &mut [u8], sectors: std::ops::Range<usize>) {
    bytes[sectors.start * 512..sectors.end * 512].fill(0);
}

fn flip(bytes: &mut [u8], at: usize) {
    bytes[at] ^= 4;
}

fn flip_back(bytes: &mut [u8], from_the_end: usize) {
    let at = bytes.len() - from_the_end;
    flip(bytes, at);
}

fn swap(exhibit: &mut Exhibit, a: &str, b: &str) {
    let (a, b) = (exhibit.file(a), exhibit.file(b));
    let (one, other) = (exhibit.journal[&a].clone(), exhibit.journal[&b].clone());
    exhibit.journal.extend([(a, other), (b, one)]);
}

/// Another file that says it is of this epoch.
fn claim(exhibit: &mut Exhibit, part: &str, opened: &str) {
    let name = exhibit.file(part);
    let bytes = exhibit.journal[&name].clone();
    exhibit.journal.insert(format!("{opened}{}", &name[12..]), bytes);
}

#[test]
fn every_journal_opens_and_its_points_hold_what_was_written() {
    assert_eq!(kept().visit(), right());
    assert_eq!(unfinished().visit(), right());
}

#[test]
fn a_damaged_segment_costs_the_points_that_read_it_and_no_other() {
    let older_than_9 = || refused(&[2, 4, 5, 7, 8]);
    show(
        &kept(),
        vec![
            ("segment: a bit of the header", |e| flip(e.bytes("-1.9-0."), 9), older_than_9()),
            ("segment: a bit of a frame's table, which the index repeats", |e| flip(e.bytes("-1.9-0."), 530), right()),
            ("segment: a bit of the data", |e| flip(e.bytes("-1.9-0."), 1_200), older_than_9()),
            ("segment: a bit of the index", |e| flip_back(e.bytes("-1.9-0."), 4_000), older_than_9()),
            ("segment: a bit of the footer", |e| flip_back(e.bytes("-1.9-0."), 300), older_than_9()),
            ("segment: missing", |e| drop(e.journal.remove(&e.file("-1.9-0."))), older_than_9()),
            ("segment: truncated", |e| e.bytes("-1.9-0.").truncate(7_000), older_than_9()),
            ("segment: empty", |e| e.bytes("-1.9-0.").clear(), older_than_9()),
            ("segment: a sector too long", |e| e.bytes("-1.9-0.").extend([0; 512]), older_than_9()),
            ("segments of two epochs swapped, equally long", |e| swap(e, "-1.8-0.", "-1.7-0."), refused(&[2, 4, 5, 7])),
            ("segments of two disks swapped", |e| swap(e, "-1.9-0.", "-1.9-1."), older_than_9()),
            (
                "two segments claim one epoch: the one that no record tells of goes",
                |e| claim(e, "-1.9-0.", "000000000020"),
                right(),
            ),
            ("a merged segment: missing", |e| drop(e.journal.remove(&e.file("-1.4-0."))), refused(&[2])),
            ("run: a bit", |e| flip(e.bytes(".run"), 700), right()),
            ("run: truncated", |e| e.bytes(".run").truncate(1_000), right()),
            ("run: missing", |e| drop(e.journal.remove(&e.file(".run"))), right()),
        ],
    );
}

#[test]
fn a_damaged_log_or_manifest_is_refused() {
    show(
        &kept(),
        vec![
            ("log: a bit of a record", |e| flip(e.bytes("points.log"), 5_000), damaged()),
            ("log: a bit of the last record", |e| flip(e.bytes("points.log"), 37 * 512 + 100), damaged()),
            ("log: a bit of what is reserved", |e| flip(e.bytes("points.log"), 60_000), damaged()),
            ("log: a record blank", |e| blank(e.bytes("points.log"), 8..9), damaged()),
            ("log: cut off between records", |e| e.bytes("points.log").truncate(20 * 512), damaged()),
            ("log: cut off in a record", |e| e.bytes("points.log").truncate(20 * 512 + 100), damaged()),
            ("log: cut off in what is reserved", |e| e.bytes("points.log").truncate(60_000), right()),
            ("log: missing", |e| drop(e.journal.remove("points.log")), damaged()),
            ("manifest: a bit", |e| flip(e.replica.get_mut("manifest.json").unwrap(), 60), damaged()),
            ("manifest: truncated", |e| e.replica.get_mut("manifest.json").unwrap().truncate(200), damaged()),
            (
                "manifest: missing",
                |e| drop(e.replica.remove("manifest.json")),
                Seen::Refused(code::REPLICA_ABSENT.code),
            ),
            (
                "disk: truncated",
                |e| e.replica.get_mut("disk0.raw").unwrap().truncate(30_000),
                Seen::Refused(code::DISK_MISMATCH.code),
            ),
        ],
    );
}

#[test]
fn an_epoch_that_was_open_is_undone_with_its_torn_tail_cut_and_is_refused_when_damaged() {
    show(
        &unfinished(),
        vec![
            (
                "tail: the last sector blank",
                |e| {
                    let end = e.bytes("-1.3-0.").len() / 512;
                    blank(e.bytes("-1.3-0."), end - 1..end)
                },
                right(),
            ),
            (
                "tail: all but its first sector blank",
                |e| {
                    let end = e.bytes("-1.3-0.").len() / 512;
                    blank(e.bytes("-1.3-0."), end - 8..end)
                },
                right(),
            ),
            (
                "tail: cut off in the last frame",
                |e| {
                    let end = e.bytes("-1.3-0.").len();
                    e.bytes("-1.3-0.").truncate(end - 3_000)
                },
                right(),
            ),
            ("header: a bit", |e| flip(e.bytes("-1.3-0."), 9), damaged()),
            ("table: a bit", |e| flip(e.bytes("-1.3-0."), 530), damaged()),
            ("data: a bit", |e| flip(e.bytes("-1.3-0."), 2_000), damaged()),
            ("data of the last frame: a bit", |e| flip_back(e.bytes("-1.3-0."), 1_000), damaged()),
            ("a sector of the first frame blank", |e| blank(e.bytes("-1.3-0."), 2..3), damaged()),
            ("cut off in the first frame", |e| e.bytes("-1.3-0.").truncate(3_000), damaged()),
            ("segment: missing", |e| drop(e.journal.remove(&e.file("-1.3-1."))), damaged()),
            ("segments of two disks swapped", |e| swap(e, "-1.3-0.", "-1.3-1."), damaged()),
            (
                "the segment of another epoch in its place",
                |e| {
                    let other = e.bytes("-1.2-0.").clone();
                    *e.bytes("-1.3-0.") = other
                },
                damaged(),
            ),
            (
                "two segments claim one epoch: the one that no record tells of goes",
                |e| claim(e, "-1.3-0.", "000000000007"),
                right(),
            ),
        ],
    );
}

/// Flips a bit, and cuts the file off, at one position after the other. Gives how often it was refused, and how often not.
fn damage_everywhere(
    exhibit: &Exhibit,
    files: fn(&mut Exhibit) -> &mut Files,
    name: &str,
    dice: &mut Dice,
) -> [u64; 2] {
    let every = std::env::var_os("SOCKEYE_EVERY_BYTE").is_some();
    let good = files(&mut exhibit.clone())[name].clone();
    // What is reserved behind a log's records is alike everywhere.
    let dense = good.iter().rposition(|byte| *byte != 0).map_or(0, |last| good.len().min(last + 1_024));
    let mut seen = [0, 0];
    let mut at = dice.below(STRIDE) as usize;
    while at < good.len() {
        let flipped = |bytes: &mut Vec<u8>| bytes[at] ^= 1 << (at % 8);
        let cut = |bytes: &mut Vec<u8>| bytes.truncate(at);
        for harm in [&flipped as &dyn Fn(&mut Vec<u8>), &cut] {
            let mut harmed = exhibit.clone();
            harm(files(&mut harmed).get_mut(name).unwrap());
            let visited = std::panic::catch_unwind(|| harmed.visit());
            let visited = visited.unwrap_or_else(|_| panic!("{name} damaged at byte {at}"));
            seen[usize::from(visited == right())] += 1;
        }
        at += match (every, at < dense) {
            (true, true) => 1,
            (_, true) => 1 + dice.below(2 * STRIDE) as usize,
            (_, false) => 8_191,
        };
    }
    seen
}

#[test]
fn whatever_byte_of_a_journal_is_damaged_no_point_holds_anything_else() {
    let mut dice = Dice(2);
    for exhibit in [kept(), unfinished()] {
        let names: Vec<String> = exhibit.journal.keys().cloned().collect();
        for name in names {
            let [noticed, harmless] = damage_everywhere(&exhibit, |e| &mut e.journal, &name, &mut dice);
            println!("{name:36} noticed {noticed:6}, without consequence {harmless:6}");
            assert!(noticed > 0 || name.ends_with(".run"), "{name}");
        }
        let [noticed, harmless] = damage_everywhere(&exhibit, |e| &mut e.replica, "manifest.json", &mut dice);
        println!("{:36} noticed {noticed:6}, without consequence {harmless:6}", "manifest.json");
        assert!(noticed > harmless);
    }
}
