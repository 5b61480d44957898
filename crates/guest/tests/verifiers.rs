//! Two verifiers, ours and the Python one that shares no code with it, say the same about sound and damaged disks.
#![allow(clippy::unwrap_used)] // a test's helpers may, as the tests themselves may

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use guest::{Layout, Pattern, Role, Scope, Writer, seed_pair, verify};

const MIB: u64 = 1 << 20;
const RECORDS: u64 = 700;

struct Pair {
    _dir: tempfile::TempDir,
    a: PathBuf,
    b: PathBuf,
}

impl Pair {
    /// Two small disks with data and a ledger that has been round its ring of 512 slots.
    fn written() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (a, b) = (dir.path().join("a.raw"), dir.path().join("b.raw"));
        seed_pair(&a, &b, 16 * MIB, 11, 6 * MIB).unwrap();
        let pair = Self { _dir: dir, a, b };
        let (_, writer) = Writer::resume(pair.open(Role::A), pair.open(Role::B), Pattern::Mixed, 5).unwrap();
        let mut writer = writer.unwrap();
        (0..RECORDS).for_each(|n| assert_eq!(writer.append(1000 + n).unwrap(), n + 1));
        pair
    }

    fn path(&self, role: Role) -> &Path {
        match role {
            Role::A => &self.a,
            Role::B => &self.b,
        }
    }

    fn open(&self, role: Role) -> File {
        File::options().read(true).write(true).open(self.path(role)).unwrap()
    }

    fn layout(&self, role: Role) -> Layout {
        Layout::read(&self.open(role), role).unwrap()
    }

    fn block(&self, role: Role, offset: u64) -> Vec<u8> {
        let mut block = vec![0; 4096];
        self.open(role).read_exact_at(&mut block, offset).unwrap();
        block
    }

    fn put(&self, role: Role, offset: u64, block: &[u8]) {
        self.open(role).write_all_at(block, offset).unwrap();
    }

    /// What both verifiers say: consistent or not. They must agree on every count.
    fn judged(&self, options: &[&str]) -> bool {
        let scope = if options.contains(&"--data") { Scope::WholeDisk } else { Scope::Ledger };
        let ours = verify(&self.a, &self.b, scope).unwrap();
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/verify_ledger.py");
        let theirs = Command::new("python3").arg(script).args([&self.a, &self.b]).arg("--json").args(options).output();
        let theirs = theirs.unwrap();
        let said = String::from_utf8_lossy(&theirs.stdout).into_owned() + &String::from_utf8_lossy(&theirs.stderr);
        for (name, value) in [
            ("highest", ours.highest),
            ("highest_a", ours.highest_a),
            ("highest_b", ours.highest_b),
            ("found", ours.found),
            ("bad", ours.bad),
            ("gaps", ours.gaps),
            ("forks", ours.forks),
            ("stale", ours.stale),
            ("data_bad", ours.data_blocks_bad),
        ] {
            assert!(said.contains(&format!("\"{name}\": {value},")), "{name} {value}: {said}\n{:?}", ours.problems);
        }
        assert_eq!(theirs.status.success(), ours.consistent(), "{said}");
        ours.consistent()
    }
}

#[test]
fn sound_disks_are_sound_to_both_down_to_the_seeded_data() {
    let pair = Pair::written();
    assert!(pair.judged(&["--data"]));
}

#[test]
fn too_few_records_fail_and_lost_ones_are_counted() {
    let pair = Pair::written();
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/verify_ledger.py");
    let run = |options: &[&str]| {
        let output = Command::new("python3").arg(&script).args([&pair.a, &pair.b]).args(options).output().unwrap();
        (output.status.code(), String::from_utf8(output.stdout).unwrap())
    };
    assert_eq!(run(&["--at-least", "700"]).0, Some(0));
    assert_eq!(run(&["--at-least", "701"]).0, Some(1));
    assert!(run(&["--acked", "705", "--json"]).1.contains("\"lost\": 5"));
    let empty = tempfile::tempdir().unwrap();
    let (a, b) = (empty.path().join("a"), empty.path().join("b"));
    seed_pair(&a, &b, 16 * MIB, 1, 0).unwrap();
    assert_eq!(Command::new("python3").arg(&script).args([&a, &b]).output().unwrap().status.code(), Some(1), "empty");
}

#[test]
fn a_zeroed_slot_is_found() {
    let pair = Pair::written();
    pair.put(Role::B, pair.layout(Role::B).slot_offset(400), &[0; 4096]);
    assert!(!pair.judged(&[]));
}

#[test]
fn a_torn_slot_is_found() {
    let pair = Pair::written();
    let at = pair.layout(Role::A).slot_offset(650);
    let (new, old) = (pair.block(Role::A, at), pair.block(Role::A, pair.layout(Role::A).slot_offset(640)));
    pair.put(Role::A, at, &[&new[..512], &old[512..]].concat());
    assert!(!pair.judged(&[]));
}

#[test]
fn a_stale_scribble_put_back_is_found_on_either_disk() {
    let pair = Pair::written();
    for role in [Role::A, Role::B] {
        let layout = pair.layout(role);
        let before: Vec<Vec<u8>> =
            (0..layout.scribble_blocks).map(|index| pair.block(role, layout.scribble_block_offset(index))).collect();
        let again = |pattern| Writer::resume(pair.open(Role::A), pair.open(Role::B), pattern, 6).unwrap().1.unwrap();
        let mut writer = again(Pattern::Overwrite);
        (0..300).for_each(|n| assert!(writer.append(n).is_ok()));
        assert!(pair.judged(&[]));
        let at = layout.scribble_block_offset(17);
        let present = pair.block(role, at);
        assert_ne!(present, before[17]);
        pair.put(role, at, &before[17]);
        assert!(!pair.judged(&[]), "{role:?}");
        pair.put(role, at, &present);
    }
}

#[test]
fn a_disk_b_that_is_newer_than_a_is_found_and_an_a_that_is_far_ahead_too() {
    for old in [Role::A, Role::B] {
        let pair = Pair::written();
        let kept = std::fs::read(pair.path(old)).unwrap();
        let (_, writer) = Writer::resume(pair.open(Role::A), pair.open(Role::B), Pattern::Append, 6).unwrap();
        let mut writer = writer.unwrap();
        (0..2).for_each(|n| assert!(writer.append(n).is_ok()));
        assert!(pair.judged(&[]));
        std::fs::write(pair.path(old), kept).unwrap();
        assert!(!pair.judged(&[]), "{old:?} is two records behind");
    }
}

#[test]
fn both_disks_as_they_were_earlier_are_a_prefix() {
    let pair = Pair::written();
    let kept = [std::fs::read(&pair.a).unwrap(), std::fs::read(&pair.b).unwrap()];
    let (_, writer) = Writer::resume(pair.open(Role::A), pair.open(Role::B), Pattern::Mixed, 6).unwrap();
    let mut writer = writer.unwrap();
    (0..50).for_each(|n| assert!(writer.append(n).is_ok()));
    std::fs::write(&pair.a, &kept[0]).unwrap();
    std::fs::write(&pair.b, &kept[1]).unwrap();
    assert!(pair.judged(&[]));
    assert_eq!(verify(&pair.a, &pair.b, Scope::Ledger).unwrap().lost(RECORDS + 50), 50);
}

#[test]
fn a_record_in_flight_between_the_disks_is_no_fault_to_either() {
    let pair = Pair::written();
    let kept = std::fs::read(&pair.b).unwrap();
    let (_, writer) = Writer::resume(pair.open(Role::A), pair.open(Role::B), Pattern::Overwrite, 6).unwrap();
    writer.unwrap().append(1).unwrap();
    std::fs::write(&pair.b, kept).unwrap();
    assert!(pair.judged(&[]));
    assert!(verify(&pair.a, &pair.b, Scope::Ledger).unwrap().in_flight);
}

#[test]
fn changed_data_is_found_by_both_outside_the_ledger() {
    let pair = Pair::written();
    let at = (0..16 * MIB / 4096)
        .map(|block| block * 4096)
        .filter(|at| *at >= 5 * MIB && !(8 * MIB..9 * MIB).contains(at))
        .find(|at| pair.block(Role::B, *at).iter().any(|byte| *byte != 0))
        .unwrap();
    let mut block = pair.block(Role::B, at);
    block[1234] ^= 4;
    pair.put(Role::B, at, &block);
    assert!(!pair.judged(&["--data"]));
    assert!(pair.judged(&[]));
}

#[test]
fn disks_that_are_swapped_or_no_ledger_are_refused() {
    let pair = Pair::written();
    assert!(verify(&pair.b, &pair.a, Scope::Ledger).is_err());
    pair.put(Role::A, MIB, &[7; 4096]);
    let fault = verify(&pair.a, &pair.b, Scope::Ledger).unwrap_err().to_string();
    assert!(fault.contains("no header"), "{fault}");
}
