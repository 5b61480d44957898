//! Leaves: hashes of single blocks, by which two ends compare disks and a replica proves its own.
//!
//! Both ends of a compare must make them alike: keyed BLAKE3 with the secret of the receiving replica, which tells it in its
//! welcome. BLAKE3 resists chosen collisions; without the key a leaf does not even tell whether a known block is there.

/// A hash of one [`crate::BLOCK`] of a disk (the last may be shorter), or [`ZERO_LEAF`].
pub type Leaf = [u8; 32];

/// The leaf of a block that holds only zeroes, which is never hashed.
pub const ZERO_LEAF: Leaf = [0; 32];

/// In the place of a leaf that equals no block's: what should be there cannot be vouched for.
pub const SPOILT_LEAF: Leaf = [0xff; 32];

/// The secret that leaves are made with.
pub type LeafKey = [u8; 32];

/// The leaf of a block.
pub fn leaf(key: &LeafKey, block: &[u8]) -> Leaf {
    // Sixteen bytes at a time: one by one this took longer than reading them.
    let (words, rest) = block.as_chunks::<16>();
    let zero = words.iter().all(|word| *word == [0; 16]) && rest.iter().all(|byte| *byte == 0);
    if zero { ZERO_LEAF } else { *blake3::keyed_hash(key, block).as_bytes() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_leaf_depends_on_every_byte_and_on_the_key() {
        let (one, other) = ([1; 32], [2; 32]);
        let mut block = vec![0; 1000];
        assert_eq!(leaf(&one, &block), ZERO_LEAF);
        assert_eq!(leaf(&other, &block), ZERO_LEAF);
        for at in [0, 500, 999] {
            block[at] = 1;
            assert_ne!(leaf(&one, &block), ZERO_LEAF);
            assert_ne!(leaf(&one, &block), leaf(&other, &block));
            block[at] = 0;
        }
    }
}
