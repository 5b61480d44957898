//! Prefixes and non-prefixes of what the writer does, on disks in memory: the verifier accepts the first, all of them,
//! and refuses the second.
#![allow(clippy::unwrap_used)] // a test's helpers may, as the tests themselves may

use std::cell::RefCell;
use std::collections::HashMap;
use std::io;
use std::rc::Rc;

use guest::{Layout, Pattern, ReadAt, Report, Role, Scope, WriteAt, Writer, seed_disk, verify_readers};

const DISK_BYTES: u64 = 16 << 20;
/// Slots of the ring on so small a disk.
const SLOTS: u64 = 512;

type Write = (Role, u64, Vec<u8>);

/// A disk in memory; blocks never written are zero. Notes its writes, in the order of both disks together.
#[derive(Clone)]
struct Memory {
    role: Role,
    blocks: Rc<RefCell<HashMap<u64, Vec<u8>>>>,
    log: Rc<RefCell<Vec<Write>>>,
}

impl ReadAt for Memory {
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let blocks = self.blocks.borrow();
        for (index, part) in buffer.chunks_mut(4096).enumerate() {
            match blocks.get(&(offset + index as u64 * 4096)) {
                Some(block) => part.copy_from_slice(&block[..part.len()]),
                None => part.fill(0),
            }
        }
        Ok(())
    }
}

impl WriteAt for Memory {
    fn write_at(&self, offset: u64, buffer: &[u8]) -> io::Result<()> {
        self.blocks.borrow_mut().insert(offset, buffer.to_vec());
        self.log.borrow_mut().push((self.role, offset, buffer.to_vec()));
        Ok(())
    }
}

#[derive(Clone)]
struct Pair {
    a: Memory,
    b: Memory,
}

impl Pair {
    /// Two formatted disks without data.
    fn formatted() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let log = Rc::default();
        let [a, b] = [Role::A, Role::B].map(|role| {
            let path = dir.path().join("disk");
            seed_disk(&path, role, DISK_BYTES, 3, 0).unwrap();
            let mut header = vec![0; 4096];
            std::fs::File::open(&path).unwrap().read_at(1 << 20, &mut header).unwrap();
            let blocks = Rc::new(RefCell::new(HashMap::from([(1 << 20, header)])));
            Memory { role, blocks, log: Rc::clone(&log) }
        });
        Self { a, b }
    }

    fn write(&self, records: u64, pattern: Pattern, boot_id: u64) {
        let (report, writer) = Writer::resume(self.a.clone(), self.b.clone(), pattern, boot_id).unwrap();
        let mut writer = writer.unwrap_or_else(|| panic!("{:?}", report.problems));
        writer.finish_newest().unwrap();
        for _ in 0..records {
            writer.append(1_700_000_000_000).unwrap();
        }
    }

    /// An independent copy of the present contents, with an empty log.
    fn copy(&self) -> Self {
        let log = Rc::default();
        let copy = |disk: &Memory| Memory {
            role: disk.role,
            blocks: Rc::new(RefCell::new(disk.blocks.borrow().clone())),
            log: Rc::clone(&log),
        };
        Self { a: copy(&self.a), b: copy(&self.b) }
    }

    fn disk(&self, role: Role) -> &Memory {
        match role {
            Role::A => &self.a,
            Role::B => &self.b,
        }
    }

    fn put(&self, write: &Write) {
        self.disk(write.0).blocks.borrow_mut().insert(write.1, write.2.clone());
    }

    fn take_log(&self) -> Vec<Write> {
        self.a.log.borrow_mut().drain(..).collect()
    }

    fn report(&self) -> Report {
        verify_readers(&self.a, &self.b, Scope::Ledger).unwrap()
    }
}

/// Disks that have been round the ring more than once in every pattern, and the writes of a few more records.
fn after_a_while(pattern: Pattern) -> (Pair, Vec<Write>) {
    let pair = Pair::formatted();
    pair.write(SLOTS + 70, pattern, 1);
    let base = pair.copy();
    pair.take_log();
    pair.write(24, pattern, 2);
    (base, pair.take_log())
}

#[test]
fn every_prefix_is_consistent_and_a_writer_goes_on_from_it() {
    for pattern in [Pattern::Append, Pattern::Overwrite, Pattern::Mixed] {
        for (base, writes) in [after_a_while(pattern), {
            let pair = Pair::formatted();
            let base = pair.copy();
            pair.write(12, pattern, 1);
            (base, pair.take_log())
        }] {
            assert!(writes.len() >= 24);
            let disks = base.copy();
            for (index, write) in writes.iter().enumerate() {
                disks.put(write);
                let report = disks.report();
                assert!(report.consistent(), "{pattern:?} after write {index}: {:?}", report.problems);
                if index % 5 == 0 {
                    let next = disks.copy();
                    next.write(3, pattern, 9);
                    let after = next.report();
                    assert!(after.consistent() && !after.in_flight, "{pattern:?} {index}: {:?}", after.problems);
                    assert_eq!(after.highest, report.highest_a + 3);
                }
            }
        }
    }
}

#[test]
fn one_write_lost_anywhere_is_found_as_soon_as_two_more_records_follow() {
    for pattern in [Pattern::Append, Pattern::Overwrite, Pattern::Mixed] {
        let (base, writes) = after_a_while(pattern);
        for lost in 0..writes.len() - 8 {
            let disks = base.copy();
            writes.iter().enumerate().filter(|(index, _)| *index != lost).for_each(|(_, write)| disks.put(write));
            // The first record of a new boot repeats the newest: losing a repetition changes nothing.
            let changes = base.disk(writes[lost].0).blocks.borrow().get(&writes[lost].1) != Some(&writes[lost].2);
            assert_eq!(disks.report().consistent(), !changes, "{pattern:?}: write {lost} lost");
        }
    }
}

#[test]
fn disks_cut_at_two_instants_are_accepted_only_if_one_instant_explains_them() {
    let (base, writes) = after_a_while(Pattern::Overwrite);
    let split = |role| writes.iter().filter(move |write| write.0 == role).collect::<Vec<_>>();
    let (on_a, on_b) = (split(Role::A), split(Role::B));
    let position = |write: &Write| writes.iter().position(|other| std::ptr::eq(other, write)).unwrap();
    let mut refused = 0;
    for cut_a in 10..on_a.len() {
        for cut_b in (10..on_b.len()).filter(|cut_b| cut_a.abs_diff(*cut_b) < 7) {
            let disks = base.copy();
            on_a[..cut_a].iter().chain(&on_b[..cut_b]).for_each(|write| disks.put(write));
            // One instant explains both if neither disk lacks a write that came before one that the other has.
            let explained =
                position(on_a[cut_a]) > position(on_b[cut_b - 1]) && position(on_b[cut_b]) > position(on_a[cut_a - 1]);
            assert_eq!(disks.report().consistent(), explained, "A after {cut_a}, B after {cut_b} writes");
            refused += u64::from(!explained);
        }
    }
    assert!(refused > 100, "{refused}");
}

#[test]
fn a_lost_tail_is_a_prefix_and_its_length_is_told() {
    let pair = Pair::formatted();
    pair.write(100, Pattern::Mixed, 1);
    let report = pair.report();
    assert_eq!((report.highest, report.found, report.lost(130)), (100, 100, 30));
    assert!(report.holds(100) && !report.holds(101));
}

#[test]
fn two_histories_that_went_on_from_one_record_cannot_be_mixed() {
    let pair = Pair::formatted();
    pair.write(50, Pattern::Append, 1);
    let other = pair.copy();
    pair.write(20, Pattern::Append, 2);
    other.write(12, Pattern::Append, 3);
    // Record 55 of the history that was given up, on both disks, in the middle of the one that goes on.
    let layout = Layout::read(&pair.a, Role::A).unwrap();
    for role in [Role::A, Role::B] {
        let block = other.disk(role).blocks.borrow()[&layout.slot_offset(55)].clone();
        pair.put(&(role, layout.slot_offset(55), block));
    }
    let report = pair.report();
    assert_eq!((report.gaps, report.bad), (0, 0));
    assert!(report.forks >= 2 && !report.consistent(), "{report:?}");
}

#[test]
fn an_inconsistent_ledger_gets_no_writer() {
    let pair = Pair::formatted();
    pair.write(20, Pattern::Mixed, 1);
    let layout = Layout::read(&pair.b, Role::B).unwrap();
    pair.put(&(Role::B, layout.slot_offset(7), vec![0; 4096]));
    let (report, writer) = Writer::resume(pair.a.clone(), pair.b.clone(), Pattern::Mixed, 2).unwrap();
    assert!(report.gaps == 1 && writer.is_none());
}
