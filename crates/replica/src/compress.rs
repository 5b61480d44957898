//! Compresses before-images where it pays: less to write, and more history on the same volume.
//!
//! ```text
//!   block ─► shrinks by an eighth? ─yes─► stored compressed; the next block is tried as well
//!                    └─no─► stored as it is; the next 1, 2, 4 … 32 blocks are not tried
//! ```
//! What does not shrink (media, encrypted disks) thus costs one try in 33. LZ4 blocks: a try costs a tenth of what the
//! device needs for the block, and a record is expanded faster than it is read (figures: docs/decisions/0009).

use lz4_flex::block::{compress_into, decompress_into, get_maximum_output_size};

/// The most blocks that are skipped after one that did not shrink.
const MOST_SKIPPED: u32 = 32;
/// Less is not worth a try (bytes): what it saves is lost in the frame's padding.
const SMALLEST: usize = 512;

/// Decides what is compressed, by what came of the last tries.
#[derive(Default)]
pub(crate) struct Compressor {
    output: Vec<u8>,
    /// Blocks that are still to be skipped.
    skip: u32,
    /// How many will be skipped after the next failure.
    patience: u32,
}

impl Compressor {
    /// `bytes` compressed; none when it does not pay, or probably would not.
    pub fn shrink(&mut self, bytes: &[u8]) -> Option<&[u8]> {
        if bytes.len() < SMALLEST {
            return None;
        }
        if self.skip > 0 {
            self.skip -= 1;
            return None;
        }
        self.output.resize(get_maximum_output_size(bytes.len()).max(self.output.len()), 0);
        match compress_into(bytes, &mut self.output) {
            Ok(length) if length <= bytes.len() - bytes.len() / 8 => {
                self.patience = 0;
                self.output.get(..length)
            }
            _ => {
                self.patience = (self.patience * 2).clamp(1, MOST_SKIPPED);
                self.skip = self.patience;
                None
            }
        }
    }
}

/// Fills `data` with what `packed` was made from; none when that is something else, or of another length.
pub(crate) fn expand(packed: &[u8], data: &mut [u8]) -> Option<()> {
    (decompress_into(packed, data).ok()? == data.len()).then_some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn noise(length: usize, mut seed: u64) -> Vec<u8> {
        let mut step = || {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (seed >> 56) as u8
        };
        (0..length).map(|_| step()).collect()
    }

    #[test]
    fn what_shrinks_comes_back_and_what_does_not_is_hardly_tried() {
        let mut compressor = Compressor::default();
        let text: Vec<u8> = (0..65536u32).map(|n| (n / 100) as u8).collect();
        let packed = compressor.shrink(&text).unwrap().to_vec();
        assert!(packed.len() < 4000);
        let mut data = vec![0; text.len()];
        expand(&packed, &mut data).unwrap();
        assert!(data == text);
        let mut tried = 0;
        for seed in 0..330 {
            tried += u32::from(compressor.skip == 0);
            assert!(compressor.shrink(&noise(65536, seed)).is_none());
        }
        assert!((10..20).contains(&tried), "{tried}");
        // The data changes its nature: it is noticed.
        assert!((0..=MOST_SKIPPED).any(|_| compressor.shrink(&text).is_some()));
        assert!(compressor.shrink(&text).is_some(), "every block is tried again");
    }

    #[test]
    fn arbitrary_bytes_expand_to_nothing_or_to_the_length_asked_for() {
        let mut compressor = Compressor::default();
        let text = vec![7; 4096];
        let packed = compressor.shrink(&text).unwrap().to_vec();
        assert!(expand(&packed, &mut [0; 4095]).is_none() && expand(&packed, &mut [0; 4097]).is_none());
        for seed in 0..3000 {
            let bytes = noise(1 + seed as usize % 300, seed);
            let _ = expand(&bytes, &mut [0; 4096]);
            let mut bad = packed.clone();
            let at = seed as usize % bad.len();
            bad[at] ^= 1 << (seed % 8);
            let _ = expand(&bad, &mut [0; 4096]);
        }
    }
}
