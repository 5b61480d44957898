//! Chance that can be repeated: the seed is printed, and `SOCKEYE_SEED` throws the same again.

use std::time::Duration;

/// Throws numbers (splitmix64).
pub struct Dice(u64);

impl Dice {
    /// A seed from the environment, or from the clock.
    pub fn thrown() -> Dice {
        let given = std::env::var("SOCKEYE_SEED").ok().and_then(|seed| seed.parse().ok());
        let seed = given.unwrap_or_else(|| super::now_ms() % 1_000_000);
        eprintln!("SOCKEYE_SEED={seed}");
        Dice(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    /// A time below `most_ms`.
    pub fn within(&mut self, most_ms: u64) -> Duration {
        Duration::from_millis(self.next() % most_ms.max(1))
    }

    /// Puts things into another order.
    pub fn shuffle<T>(&mut self, things: &mut [T]) {
        for end in (1..things.len()).rev() {
            things.swap(end, (self.next() % (end as u64 + 1)) as usize);
        }
    }
}
