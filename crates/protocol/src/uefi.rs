//! What a machine's UEFI firmware remembers: elsewhere the guest would not find its boot loader without it.

use base64::Engine;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// The longest variable store that is carried, in bytes (OVMF's have 540,672).
pub const LONGEST: usize = 4 << 20;
/// How long one may be once it is packed. It goes along with every description: an erased store takes some hundred bytes.
const LONGEST_PACKED: usize = 256 << 10;
const LEVEL: i32 = 3;

/// A variable store (the NVRAM file), compressed, in base64.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(transparent)]
pub struct Variables(String);

/// Why a variable store cannot be carried.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum VariablesError {
    /// It is longer than any that is known.
    #[error("the firmware's variable store has {0} bytes; at most {LONGEST} are carried")]
    TooLong(usize),
    /// It does not get small enough.
    #[error("the firmware's variable store takes {0} bytes when packed; at most {LONGEST_PACKED} are carried")]
    TooFull(usize),
    /// What was carried is none.
    #[error("what was carried of the firmware's variable store is damaged")]
    Damaged,
}

impl Variables {
    /// Packs a store.
    ///
    /// # Errors
    /// [`VariablesError::TooLong`], [`VariablesError::TooFull`].
    pub fn pack(store: &[u8]) -> Result<Variables, VariablesError> {
        if store.len() > LONGEST {
            return Err(VariablesError::TooLong(store.len()));
        }
        let packed = zstd::bulk::compress(store, LEVEL).map_err(|_| VariablesError::TooLong(store.len()))?;
        match packed.len() {
            0..=LONGEST_PACKED => Ok(Variables(STANDARD_NO_PAD.encode(packed))),
            length => Err(VariablesError::TooFull(length)),
        }
    }

    /// The store, bit by bit.
    ///
    /// # Errors
    /// [`VariablesError::Damaged`].
    pub fn store(&self) -> Result<Vec<u8>, VariablesError> {
        let packed = STANDARD_NO_PAD.decode(&self.0).map_err(|_| VariablesError::Damaged)?;
        if packed.is_empty() {
            return Err(VariablesError::Damaged);
        }
        zstd::bulk::decompress(&packed, LONGEST).map_err(|_| VariablesError::Damaged)
    }
}

impl std::fmt::Debug for Variables {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Variables({} bytes)", self.0.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_store_comes_back_as_it_was() {
        let mut store = vec![0xff; 540_672];
        store[100..1000].fill(7);
        let packed = Variables::pack(&store).unwrap();
        assert!(serde_json::to_string(&packed).unwrap().len() < 1000);
        assert_eq!(packed.store().unwrap(), store);
        assert_eq!(Variables::pack(&[]).unwrap().store().unwrap(), [0; 0]);
    }

    #[test]
    fn what_is_too_long_or_damaged_is_refused() {
        assert_eq!(Variables::pack(&vec![0; LONGEST + 1]), Err(VariablesError::TooLong(LONGEST + 1)));
        let mut noise = vec![0; 600 << 10];
        let mut state = 1u64;
        noise.iter_mut().for_each(|byte| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            *byte = (state >> 56) as u8;
        });
        assert!(matches!(Variables::pack(&noise), Err(VariablesError::TooFull(_))));
        let longer = STANDARD_NO_PAD.encode(zstd::bulk::compress(&vec![0; LONGEST + 1], 1).unwrap());
        for damaged in ["", "AAAA", "not base64!", &longer] {
            assert_eq!(Variables(damaged.into()).store(), Err(VariablesError::Damaged), "{damaged:.20}");
        }
    }
}
