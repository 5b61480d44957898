//! Faults that are built in on purpose, to see that a test catches them: `cargo xtask sabotage`, `docs/sabotage.md`.
//!
//! Exists only under the feature `sabotage`, which no build that is given to anybody has on. A place that can be
//! sabotaged asks [`is`] for its fault's name; the faults and what must catch each are listed in `xtask`.

use std::collections::BTreeSet;
use std::sync::{LazyLock, Mutex, PoisonError};

static WANTED: LazyLock<Option<String>> = LazyLock::new(|| std::env::var("SOCKEYE_SABOTAGE").ok());
static SAID: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());

/// Whether `fault` is the one that `SOCKEYE_SABOTAGE` names. The first time it is, that is said on standard error: a
/// test that failed without having come here has not caught it.
pub fn is(fault: &str) -> bool {
    let is = WANTED.as_deref() == Some(fault);
    if is && SAID.lock().unwrap_or_else(PoisonError::into_inner).insert(fault.to_string()) {
        eprintln!("SABOTAGE {fault}");
    }
    is
}
