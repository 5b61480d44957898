//! Wall-clock time as the wire writes it.

use std::time::{SystemTime, UNIX_EPOCH};

/// Milliseconds since 1970 by this host's clock (0 before 1970).
pub fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}
