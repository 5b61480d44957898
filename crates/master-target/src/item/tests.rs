//! What is taken of an epoch, and what is not.

use bytes::Bytes;
use protocol::fault::code;
use protocol::{BLOCK, EpochTotals};
use replica::{Payload, Write};

use super::{Item, Numbered, Opened};
use crate::tending::tests::{Bench, at};

/// One block, which is filled with its number.
fn block(sequence: u64) -> Numbered {
    let payload = Payload::Data(Bytes::from(vec![sequence as u8; BLOCK as usize]));
    let write = Write { disk: 0, offset: sequence * BLOCK, payload };
    Numbered { sequence, checksum: sequence, data_bytes: BLOCK, zero_bytes: 0, write }
}

fn take(item: &Item, sequences: &[u64]) -> Result<u64, protocol::Fault> {
    item.apply(item.prepare(sequences.iter().map(|sequence| block(*sequence)).collect())?)
}

#[test]
fn of_a_batch_with_a_gap_nothing_counts_as_taken() {
    let directory = tempfile::tempdir().unwrap();
    let bench = Bench::new(directory.path(), directory.path(), 1 << 20);
    let header = bench.header(1, 0);
    bench.item.open_epoch(&header).unwrap();
    assert_eq!(take(&bench.item, &[1]).unwrap(), 1);
    let fault = take(&bench.item, &[2, 4]).unwrap_err();
    assert!(fault.is(code::PROTOCOL), "{fault:?}");
    // A sender that comes again sends what is missing, and all that it counted is there.
    let Opened { known, resume_after, .. } = bench.item.open_epoch(&header).unwrap();
    assert_eq!((known, resume_after), (true, 1));
    assert_eq!(take(&bench.item, &[1, 2, 3, 4]).unwrap(), 4, "the first is there already");
    let mut totals = EpochTotals::default();
    (1..=4).for_each(|sequence| totals.count(BLOCK, 0, sequence));
    bench.item.seal(at(1), totals).unwrap();
    for sequence in 1..=4 {
        let mut byte = [0];
        bench.item.replica.view(at(1)).unwrap().read(0, sequence * BLOCK, &mut byte).unwrap();
        assert_eq!(u64::from(byte[0]), sequence);
    }
}
