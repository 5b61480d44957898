//! What the journals in the museum tell of, in an order that may not change: what was written, and so what every point holds.
//!
//! The bytes in `format-*` were written by `cargo run -p replica --example museum -- DIRECTORY` when that format was new.
//! They stay as they are: every later version must read them, or say that it does not know the format. A new format gets
//! a folder of its own.

use std::collections::BTreeMap;

/// The sizes of the two disks: the second ends inside a unit of 4,096 bytes.
pub const SIZES: [usize; 2] = [32_768, 8_704];

/// What is put somewhere.
#[derive(Clone, Copy)]
pub enum Fill {
    Zeroes,
    /// A line of text over and over: it is stored compressed.
    Text(u8),
    /// Bytes that cannot be compressed.
    Noise(u64),
}

impl Fill {
    pub fn bytes(self, length: usize) -> Vec<u8> {
        match self {
            Fill::Zeroes => vec![0; length],
            Fill::Text(letter) => (0..length).map(|n| if n % 16 == 15 { b'\n' } else { letter }).collect(),
            Fill::Noise(seed) => {
                let mut state = seed;
                let next = |_| {
                    state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                    (state >> 56) as u8
                };
                (0..length).map(next).collect()
            }
        }
    }
}

/// Disk, offset, length, and what comes there.
pub type Put = (u16, usize, usize, Fill);

/// One thing that was done. Epochs are named by their number, in generation 1.
pub enum Deed {
    /// Batches, and a seal.
    Epoch(u64, &'static [&'static [Put]]),
    /// Batches that were undone.
    #[allow(dead_code)]
    RolledBack(u64, &'static [&'static [Put]]),
    /// Batches without a seal: the power goes when the before-images of the last one are durable, and nothing of it has
    /// reached the disks.
    #[allow(dead_code)]
    Unfinished(u64, &'static [&'static [Put]]),
    /// A point without an epoch.
    Keep(u64),
    #[allow(dead_code)]
    Pin(u64),
    /// A point between others goes.
    Thin(u64),
    PruneBefore(u64),
    /// Indexes over many epochs are made.
    Index,
}

use Deed::{Epoch, Index, Keep, Pin, PruneBefore, RolledBack, Thin, Unfinished};
use Fill::{Noise, Text, Zeroes};

/// A journal at rest, with all kinds of records.
pub const KEPT: &[Deed] = &[
    Epoch(1, &[&[(0, 0, 20_480, Noise(1)), (1, 0, 8_704, Text(b'a'))]]),
    Epoch(2, &[&[(0, 8_192, 4_096, Text(b'b'))]]),
    Epoch(3, &[&[(0, 0, 8_192, Zeroes)], &[(1, 4_096, 4_096, Noise(3))]]),
    Epoch(4, &[&[(0, 8_192, 4_096, Noise(4)), (0, 18_000, 5_000, Text(b'd'))]]),
    Epoch(5, &[&[(1, 8_192, 512, Text(b'e'))]]),
    RolledBack(6, &[&[(0, 4_096, 12_288, Noise(6)), (1, 0, 512, Zeroes)]]),
    Epoch(7, &[&[(0, 0, 4_096, Text(b'g'))]]),
    Pin(4),
    Epoch(8, &[&[(0, 24_576, 4_096, Noise(8))]]),
    Epoch(9, &[&[(0, 8_192, 8_192, Text(b'i'))], &[(0, 12_288, 4_096, Noise(9)), (1, 0, 4_096, Noise(9))]]),
    Epoch(10, &[&[(0, 8_192, 4_096, Text(b'j'))]]),
    Epoch(11, &[&[]]),
    Epoch(12, &[&[(0, 0, 32_768, Text(b'l'))]]),
    Epoch(13, &[&[(1, 4_096, 4_096, Text(b'm'))]]),
    Epoch(14, &[&[(0, 8_192, 4_096, Noise(14))]]),
    Epoch(15, &[&[(0, 8_704, 512, Zeroes)]]),
    Thin(3),
    PruneBefore(2),
    Keep(16),
    Epoch(17, &[&[(0, 16_384, 4_096, Noise(17)), (1, 0, 8_704, Zeroes)]]),
    Index,
];

/// A journal with an epoch that was open when the power went.
pub const UNFINISHED: &[Deed] = &[
    Epoch(1, &[&[(0, 0, 32_768, Noise(101)), (1, 0, 8_704, Noise(102))]]),
    Epoch(2, &[&[(0, 4_096, 4_096, Text(b'B'))]]),
    Unfinished(
        3,
        &[
            &[(0, 0, 8_192, Noise(103)), (1, 0, 4_096, Noise(104))],
            &[(0, 8_192, 8_192, Text(b'C')), (0, 20_480, 8_192, Noise(105)), (1, 4_096, 4_096, Zeroes)],
        ],
    ),
];

/// All journals, by the names of their folders.
pub const EXHIBITS: [(&str, &[Deed]); 2] = [("kept", KEPT), ("unfinished", UNFINISHED)];

/// What both disks held at every point that is kept in the end.
#[allow(dead_code)]
pub fn contents(deeds: &[Deed]) -> BTreeMap<u64, [Vec<u8>; 2]> {
    let mut now = SIZES.map(|size| vec![0; size]);
    let mut points = BTreeMap::new();
    for deed in deeds {
        match deed {
            Epoch(number, batches) => {
                for (disk, offset, length, fill) in batches.iter().flat_map(|batch| batch.iter()) {
                    now[usize::from(*disk)][*offset..offset + length].copy_from_slice(&fill.bytes(*length));
                }
                points.insert(*number, now.clone());
            }
            Keep(number) => drop(points.insert(*number, now.clone())),
            Thin(number) => drop(points.remove(number)),
            PruneBefore(number) => points = points.split_off(number),
            RolledBack(..) | Unfinished(..) | Pin(_) | Index => {}
        }
    }
    points
}
