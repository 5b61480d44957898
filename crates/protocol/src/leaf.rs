//! Leaves: hashes of single blocks, by which two ends compare disks and a replica proves its own; and the trees made of them.
//!
//! ```text
//!   level 2   root of a stretch                 16 MiB      asked for first
//!   level 1   node node node … (16)              1 MiB      only where the root differs
//!   level 0   leaf leaf leaf … (16 of a node)   64 KiB      only below nodes that differ
//! ```
//!
//! Both ends of a compare must make them alike: AEGIS-128X2 MACs keyed with the secret of the receiving replica, which tells
//! it in its welcome. Without the key nobody can make two blocks that collide, nor tell from a leaf whether a known block is
//! there; with it anybody can (decision 0029 says why it is this one).

use aegis::aegis128x2::Aegis128X2Mac;

use crate::extent::BLOCK;

/// A hash of one [`BLOCK`] of a disk (the last may be shorter) or of the nodes below it, or [`ZERO_LEAF`].
pub type Leaf = [u8; 32];

/// The leaf of a block that holds only zeroes, which is never hashed; and the node above such leaves only.
pub const ZERO_LEAF: Leaf = [0; 32];

/// In the place of a leaf that equals no block's: what should be there cannot be vouched for.
pub const SPOILT_LEAF: Leaf = [0xff; 32];

/// The secret that leaves are made with: the MAC's key, and what its nonces are made of.
pub type LeafKey = [u8; 32];

/// Which function leaves are made with, for those that are kept: others are made anew.
pub const LEAF_FUNCTION: &str = "aegis-128x2-mac-256";

/// The level of the root of a stretch.
pub const ROOT: u8 = 2;

/// So many nodes have one node above them.
const FANOUT: usize = 16;

/// How many bytes of a disk one node of `level` stands for; from [`ROOT`] on it does not grow any more.
pub const fn span(level: u8) -> u64 {
    match level {
        0 => BLOCK,
        1 => BLOCK * FANOUT as u64,
        _ => BLOCK * (FANOUT * FANOUT) as u64,
    }
}

/// Whether all bytes are zero.
pub fn is_zero(bytes: &[u8]) -> bool {
    // In pieces that the compiler takes at once: a test that may stop at every byte took longer than reading them.
    let (pieces, rest) = bytes.as_chunks::<64>();
    let any = |piece: &[u8]| piece.iter().fold(0, |all, byte| all | byte) != 0;
    !pieces.iter().any(|piece| any(piece)) && !any(rest)
}

/// The leaf of a block.
pub fn leaf(key: &LeafKey, block: &[u8]) -> Leaf {
    if is_zero(block) { ZERO_LEAF } else { hash(key, 0, block) }
}

/// The nodes of `level` over leaves of which the first begins at a multiple of that level's [`span`].
pub fn nodes(key: &LeafKey, leaves: &[Leaf], level: u8) -> Vec<Leaf> {
    let mut nodes = leaves.to_vec();
    for level in 1..=level.min(ROOT) {
        nodes = nodes.chunks(FANOUT).map(|below| node(key, level, below)).collect();
    }
    nodes
}

fn node(key: &LeafKey, level: u8, below: &[Leaf]) -> Leaf {
    let flat = below.as_flattened();
    if is_zero(flat) { ZERO_LEAF } else { hash(key, level, flat) }
}

fn hash(key: &LeafKey, level: u8, bytes: &[u8]) -> Leaf {
    let [secret, nonce] = *key.as_chunks::<16>().0 else { unreachable!("32 are twice 16") };
    let mut nonce = nonce;
    // A block that holds leaves is not the node above them.
    nonce[0] ^= level;
    let mut mac = Aegis128X2Mac::<32>::new_with_nonce(&secret, &nonce);
    mac.update(bytes);
    let leaf = mac.finalize();
    // One in 2^255; but then it would say something else.
    if leaf == ZERO_LEAF || leaf == SPOILT_LEAF { [0x5a; 32] } else { leaf }
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

    /// The vector for AEGISMAC-128X2 of the CFRG (RFC 10032): the other end may be another build on another processor.
    #[test]
    fn a_leaf_is_the_mac_that_everybody_else_makes() {
        let mut key = [0; 32];
        (key[0], key[1], key[16], key[18]) = (0x10, 0x01, 0x10, 0x02);
        let block: Vec<u8> = (0..=0x22).collect();
        let told = leaf(&key, &block).map(|byte| format!("{byte:02x}")).concat();
        assert_eq!(told, "afcba3fc2d63c8d6c7f2d63f3ec8fbbbaf022e15ac120e78ffa7755abccd959c");
    }

    #[test]
    fn a_single_bit_anywhere_is_not_zero() {
        for length in [0, 1, 63, 64, 65, 4096, 4099] {
            let mut bytes = vec![0; length];
            assert!(is_zero(&bytes));
            for at in 0..length {
                bytes[at] = 128;
                assert!(!is_zero(&bytes), "{at} of {length}");
                bytes[at] = 0;
            }
        }
    }

    #[test]
    fn a_node_changes_with_any_leaf_below_it_and_is_no_leaf() {
        let key = [3; 32];
        let mut leaves: Vec<Leaf> = vec![ZERO_LEAF; 300];
        assert_eq!(nodes(&key, &leaves, ROOT), [ZERO_LEAF; 2]);
        leaves[299] = leaf(&key, b"x");
        assert_eq!(nodes(&key, &leaves, 0), leaves);
        let (level1, level2) = (nodes(&key, &leaves, 1), nodes(&key, &leaves, ROOT));
        assert_eq!((level1.len(), level2.len()), (19, 2));
        assert_eq!((level1[17], level2[0]), (ZERO_LEAF, ZERO_LEAF));
        assert!(level1[18] != ZERO_LEAF && level2[1] != ZERO_LEAF);
        leaves[298] = SPOILT_LEAF;
        assert_ne!(nodes(&key, &leaves, ROOT)[1], level2[1]);
        // The bytes below a node, read as a block, have another hash.
        let below = leaves[..16].as_flattened();
        assert!(leaf(&key, &[1; 512]) != hash(&key, 1, &[1; 512]) && leaf(&key, below) == ZERO_LEAF);
    }
}
