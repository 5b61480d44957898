//! Leaves: hashes of single pieces of a disk, by which two ends compare disks and a replica proves its own; and the trees
//! made of them.
//!
//! ```text
//!   level 2   root of a stretch                 16 MiB      asked for first
//!   level 1   node node node … (16)              1 MiB      only where the root differs
//!   level 0   leaf leaf leaf … (16 of a node)   64 KiB      only below nodes that differ
//! ```
//! Leaves may be larger ([`LeafSize`]); the root is the highest level that stands for at most 64 MiB.
//!
//! Both ends of a compare must make them alike, by one [`Recipe`]: AEGIS-128X2 MACs keyed with the secret of the receiving
//! replica, which tells it in its welcome. Without the key nobody can make two blocks that collide, nor tell from a leaf
//! whether a known block is there; with it anybody can (decision 0029 says why it is this one).

use std::fmt;
use std::str::FromStr;

use aegis::aegis128x2::Aegis128X2Mac;
use serde::{Deserialize, Serialize};

use crate::extent::BLOCK;
use crate::session::MOST_HASHED;

/// A hash of one piece of a disk ([`LeafSize`]; the last may be shorter) or of the nodes below it, or [`ZERO_LEAF`].
pub type Leaf = [u8; 32];

/// The leaf of a block that holds only zeroes, which is never hashed; and the node above such leaves only.
pub const ZERO_LEAF: Leaf = [0; 32];

/// In the place of a leaf that equals no block's: what should be there cannot be vouched for.
pub const SPOILT_LEAF: Leaf = [0xff; 32];

/// The secret that leaves are made with: the MAC's key, and what its nonces are made of.
pub type LeafKey = [u8; 32];

/// Which function leaves are made with, for those that are kept: others are made anew.
pub const LEAF_FUNCTION: &str = "aegis-128x2-mac-256";

/// So many nodes have one node above them.
const FANOUT: usize = 16;

/// How much of a disk one leaf stands for: 64 KiB, the grain of change maps and journals, or up to six times twice that. The
/// 32 bytes of each leaf are kept, and told: 512 MiB for 1 TiB, or 8 MiB; but of a large leaf in which anything differs all
/// is read and travels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "u64", into = "u64")]
pub struct LeafSize(u32);

/// No leaf stands for more (bytes).
const LARGEST_LEAF: u64 = 4 << 20;

impl LeafSize {
    /// In bytes.
    pub fn bytes(self) -> u64 {
        u64::from(self.0)
    }
}

impl Default for LeafSize {
    fn default() -> LeafSize {
        LeafSize(BLOCK as u32)
    }
}

impl From<LeafSize> for u64 {
    fn from(size: LeafSize) -> u64 {
        size.bytes()
    }
}

impl TryFrom<u64> for LeafSize {
    type Error = String;

    fn try_from(bytes: u64) -> Result<LeafSize, String> {
        match bytes.is_power_of_two() && (BLOCK..=LARGEST_LEAF).contains(&bytes) {
            true => Ok(LeafSize(bytes as u32)),
            false => {
                Err(format!("{bytes} bytes are no size for leaves; these are: 64K, 128K, 256K, 512K, 1M, 2M and 4M"))
            }
        }
    }
}

impl FromStr for LeafSize {
    type Err = String;

    fn from_str(text: &str) -> Result<LeafSize, String> {
        let wrong = || format!("{text:?} is no size for leaves; these are: 64K, 128K, 256K, 512K, 1M, 2M and 4M");
        let number = text.trim_end_matches(|c: char| !c.is_ascii_digit());
        let unit: u64 = match &text[number.len()..] {
            "K" | "k" | "KiB" => 1 << 10,
            "M" | "m" | "MiB" => 1 << 20,
            _ => return Err(wrong()),
        };
        let bytes = number.parse::<u64>().ok().and_then(|number| number.checked_mul(unit));
        bytes.and_then(|bytes| LeafSize::try_from(bytes).ok()).ok_or_else(wrong)
    }
}

impl fmt::Display for LeafSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 >> 10 {
            small @ ..1024 => write!(f, "{small}K"),
            large => write!(f, "{}M", large >> 10),
        }
    }
}

/// How leaves are made: what both ends of a compare must have alike.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Recipe {
    /// The secret.
    pub key: LeafKey,
    /// What each stands for.
    pub bytes: LeafSize,
}

impl Recipe {
    /// The level of the root of a stretch: the highest that stands for no more than may be asked for at once.
    pub fn root(&self) -> u8 {
        let mut level = 0;
        while self.grows(level + 1) <= MOST_HASHED {
            level += 1;
        }
        level
    }

    /// How many bytes of a disk one node of `level` stands for; from the root on it does not grow any more.
    pub fn span(&self, level: u8) -> u64 {
        self.grows(level.min(self.root()))
    }

    fn grows(&self, level: u8) -> u64 {
        // Sixteen times each level; there are two at most.
        self.bytes.bytes() << (4 * level)
    }

    /// How many leaves stand for `length` bytes.
    pub fn count(&self, length: u64) -> usize {
        length.div_ceil(self.bytes.bytes()) as usize
    }

    /// The leaf of a piece of a disk.
    pub fn leaf(&self, piece: &[u8]) -> Leaf {
        if is_zero(piece) { ZERO_LEAF } else { hash(&self.key, 0, piece) }
    }

    /// The nodes of `level` over leaves of which the first begins at a multiple of that level's [`Recipe::span`].
    pub fn nodes(&self, leaves: &[Leaf], level: u8) -> Vec<Leaf> {
        let mut nodes = leaves.to_vec();
        for level in 1..=level.min(self.root()) {
            nodes = nodes.chunks(FANOUT).map(|below| node(&self.key, level, below)).collect();
        }
        nodes
    }
}

/// Whether all bytes are zero.
pub fn is_zero(bytes: &[u8]) -> bool {
    // In pieces that the compiler takes at once: a test that may stop at every byte took longer than reading them.
    let (pieces, rest) = bytes.as_chunks::<64>();
    let any = |piece: &[u8]| piece.iter().fold(0, |all, byte| all | byte) != 0;
    !pieces.iter().any(|piece| any(piece)) && !any(rest)
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
        let (one, other) = (recipe(1, "64K"), recipe(2, "64K"));
        let mut block = vec![0; 1000];
        assert_eq!(one.leaf(&block), ZERO_LEAF);
        assert_eq!(other.leaf(&block), ZERO_LEAF);
        for at in [0, 500, 999] {
            block[at] = 1;
            assert_ne!(one.leaf(&block), ZERO_LEAF);
            assert_ne!(one.leaf(&block), other.leaf(&block));
            block[at] = 0;
        }
    }

    /// The vector for AEGISMAC-128X2 of the CFRG (RFC 10032): the other end may be another build on another processor.
    #[test]
    fn a_leaf_is_the_mac_that_everybody_else_makes() {
        let mut key = [0; 32];
        (key[0], key[1], key[16], key[18]) = (0x10, 0x01, 0x10, 0x02);
        let block: Vec<u8> = (0..=0x22).collect();
        let told = Recipe { key, bytes: LeafSize::default() }.leaf(&block).map(|byte| format!("{byte:02x}")).concat();
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
        let recipe = recipe(3, "64K");
        let root = recipe.root();
        let mut leaves: Vec<Leaf> = vec![ZERO_LEAF; 300];
        assert_eq!(recipe.nodes(&leaves, root), [ZERO_LEAF; 2]);
        leaves[299] = recipe.leaf(b"x");
        assert_eq!(recipe.nodes(&leaves, 0), leaves);
        let (level1, level2) = (recipe.nodes(&leaves, 1), recipe.nodes(&leaves, root));
        assert_eq!((level1.len(), level2.len()), (19, 2));
        assert_eq!((level1[17], level2[0]), (ZERO_LEAF, ZERO_LEAF));
        assert!(level1[18] != ZERO_LEAF && level2[1] != ZERO_LEAF);
        leaves[298] = SPOILT_LEAF;
        assert_ne!(recipe.nodes(&leaves, root)[1], level2[1]);
        // The bytes below a node, read as a block, have another hash.
        let below = leaves[..16].as_flattened();
        assert!(recipe.leaf(&[1; 512]) != hash(&recipe.key, 1, &[1; 512]) && recipe.leaf(below) == ZERO_LEAF);
    }

    #[test]
    fn a_stretch_is_as_large_as_may_be_asked_for_at_once_and_no_larger() {
        const MIB: u64 = 1 << 20;
        for (size, root, span) in [("64K", 2, 16), ("128K", 2, 32), ("256K", 2, 64), ("512K", 1, 8), ("4M", 1, 64)] {
            let recipe = recipe(3, size);
            assert_eq!((recipe.root(), recipe.span(root), recipe.span(9)), (root, span * MIB, span * MIB), "{size}");
            assert_eq!(recipe.span(0), recipe.bytes.bytes());
            assert!(recipe.span(root) <= MOST_HASHED);
        }
    }

    #[test]
    fn a_leaf_is_a_power_of_two_of_at_least_the_grain_of_maps() {
        for text in ["64K", "128K", "256K", "512K", "1M", "2M", "4M"] {
            assert_eq!(text.parse::<LeafSize>().unwrap().to_string(), text);
        }
        assert_eq!("1024KiB".parse(), "1MiB".parse::<LeafSize>());
        for text in ["63K", "8M", "0", "0K", "96K", "32K", "65536", "", "K", "64", "99999999999999999999M", "1G"] {
            assert!(text.parse::<LeafSize>().unwrap_err().contains("64K"), "{text}");
        }
        for bytes in [0, 1, 65535, 65537, 32768, 8 << 20, u64::MAX] {
            assert!(serde_json::from_value::<LeafSize>(bytes.into()).is_err(), "{bytes}");
        }
        assert_eq!(serde_json::to_string(&LeafSize::default()).unwrap(), "65536");
    }

    fn recipe(key: u8, size: &str) -> Recipe {
        Recipe { key: [key; 32], bytes: size.parse().unwrap() }
    }
}
