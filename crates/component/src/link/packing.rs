//! Which blocks travel compressed: those that shrink, while the line is what limits.
//!
//! ```text
//!   frame ─► do frames wait for the line? ─no─► as it is: the line waits for us
//!                  │ yes
//!                  └─► is it worth a try? ─no─► as it is; after a try that did not pay 1, 2, 4 … 32 are not tried
//!                            └─yes─► compressed on a thread of its own ─► queue ─► line
//! ```
//! A try pays when the block shrank by an eighth, and the line would have taken longer for the bytes that are saved than
//! compressing took. So what does not shrink costs one try in 33, and so does a line that is faster than this host's
//! processors. Lanes compress side by side, as many as there are processors but one.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, LazyLock, Mutex, PoisonError};
use std::time::{Duration, Instant};

use protocol::packed;
use tokio::sync::{Semaphore, mpsc};

use super::Traffic;
use super::lane::Queued;

/// The most frames that are not tried after a try that did not pay.
const MOST_SKIPPED: u32 = 32;
/// So much of a lane's history counts for its speed: the last eight frames or so.
const FADES: f64 = 7.0 / 8.0;

/// One processor is left to whoever does everything else.
static PROCESSORS: LazyLock<Semaphore> = LazyLock::new(|| {
    let all = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    Semaphore::new((all - 1).max(1))
});

/// How fast a lane's line takes what is written.
#[derive(Default)]
pub(super) struct Speed(Mutex<(f64, f64)>);

impl Speed {
    /// So many bytes were taken in that time.
    pub(super) fn wrote(&self, bytes: usize, took: Duration) {
        let mut history = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *history = (history.0 * FADES + bytes as f64, history.1 * FADES + took.as_secs_f64());
    }

    /// How long the line takes for so many bytes, as far as that is known.
    fn time_for(&self, bytes: usize) -> Option<Duration> {
        let (wrote, took) = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        Duration::try_from_secs_f64(bytes as f64 * took / wrote).ok()
    }
}

/// What became of the blocks of a link.
#[derive(Default)]
pub(super) struct Tally {
    compressed: AtomicU64,
    plain: AtomicU64,
    saved: AtomicU64,
}

impl Tally {
    /// Together with the bytes that went over the link.
    pub(super) fn with(&self, bytes: u64) -> Traffic {
        Traffic {
            bytes,
            blocks_compressed: self.compressed.load(Ordering::Relaxed),
            blocks_plain: self.plain.load(Ordering::Relaxed),
            saved: self.saved.load(Ordering::Relaxed),
        }
    }
}

/// Decides by what became of the last tries.
#[derive(Default)]
struct Packing {
    /// Frames that are still not to be tried.
    skip: u32,
    /// How many will be after the next failure.
    patience: u32,
}

/// What came of a try.
struct Tried {
    /// Bytes that it saved; none when the block did not shrink by an eighth.
    saved: Option<usize>,
    /// How long it took, from the wish to the result.
    took: Duration,
    /// How long the line would have taken for what was saved.
    line: Option<Duration>,
}

impl Packing {
    /// Whether the next block is tried, when so many of at most `room` frames wait for the line.
    fn tries(&mut self, waiting: usize, room: usize) -> bool {
        // Half of the queue is what the line has to do meanwhile.
        if waiting * 2 < room {
            return false;
        }
        let tries = self.skip == 0;
        self.skip = self.skip.saturating_sub(1);
        tries
    }

    fn tried(&mut self, Tried { saved, took, line }: &Tried) {
        if saved.is_some() && line.is_none_or(|line| *took <= line) {
            self.patience = 0;
        } else {
            self.patience = (self.patience * 2).clamp(1, MOST_SKIPPED);
            self.skip = self.patience;
        }
    }
}

/// Hands a lane's frames on, compressed where that pays.
pub(super) async fn pack(
    mut coming: mpsc::Receiver<Queued>,
    goes: mpsc::Sender<Queued>,
    speed: Arc<Speed>,
    tally: Arc<Tally>,
) {
    let mut packing = Packing::default();
    while let Some(Queued { mut bytes, is_word }) = coming.recv().await {
        if let Some(length) = packed::packable(&bytes) {
            let room = goes.max_capacity();
            let mut saved = None;
            if packing.tries(room - goes.capacity(), room) {
                let begun = Instant::now();
                let Ok(processor) = PROCESSORS.acquire().await else { return };
                let block = bytes.clone();
                let packed = tokio::task::spawn_blocking(move || packed::pack(&block)).await;
                drop(processor);
                // One that panicked is a block that does not shrink.
                if let Ok(Some(packed)) = packed {
                    saved = Some(bytes.len() - packed.len());
                    bytes = packed;
                }
                let line = saved.and_then(|saved| speed.time_for(saved));
                packing.tried(&Tried { saved, took: begun.elapsed(), line });
            }
            let kind = if saved.is_some() { &tally.compressed } else { &tally.plain };
            kind.fetch_add((length as u64).div_ceil(protocol::BLOCK), Ordering::Relaxed);
            tally.saved.fetch_add(saved.unwrap_or(0) as u64, Ordering::Relaxed);
        }
        if goes.send(Queued { bytes, is_word }).await.is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FAST: Duration = Duration::from_micros(100);
    const SLOW: Duration = Duration::from_millis(6);

    fn shrank(took: Duration, line: Duration) -> Tried {
        Tried { saved: Some(40_000), took, line: Some(line) }
    }

    fn did_not() -> Tried {
        Tried { saved: None, took: FAST, line: None }
    }

    /// How many of so many blocks are tried, each with that result, while frames wait.
    fn tries(packing: &mut Packing, blocks: u32, result: &Tried) -> u32 {
        (0..blocks)
            .map(|_| {
                u32::from(
                    packing.tries(4, 4) && {
                        packing.tried(result);
                        true
                    },
                )
            })
            .sum()
    }

    #[test]
    fn a_line_that_waits_for_us_gets_blocks_as_they_are() {
        let mut packing = Packing::default();
        for waiting in 0..2 {
            assert!(!packing.tries(waiting, 4), "{waiting} frames wait");
        }
        for waiting in 2..=4 {
            assert!(packing.tries(waiting, 4), "{waiting} frames wait");
        }
    }

    #[test]
    fn a_slow_line_gets_every_block_compressed() {
        assert_eq!(tries(&mut Packing::default(), 1000, &shrank(FAST, SLOW)), 1000);
        let unknown = Tried { line: None, ..shrank(SLOW, FAST) };
        assert_eq!(tries(&mut Packing::default(), 1000, &unknown), 1000);
    }

    #[test]
    fn a_line_that_is_faster_than_the_compressor_and_what_does_not_shrink_are_hardly_tried() {
        for result in [shrank(SLOW, FAST), did_not()] {
            let mut packing = Packing::default();
            let tried = tries(&mut packing, 33 * 100, &result);
            assert!((100..=106).contains(&tried), "{tried}");
            // It changes: that is noticed, and every block is tried again.
            let again = tries(&mut packing, 33 + 100, &shrank(FAST, SLOW));
            assert!(again >= 100, "{again}");
        }
    }

    #[test]
    fn a_block_is_not_forgotten_to_be_skipped_while_the_line_is_idle() {
        let mut packing = Packing::default();
        assert!(packing.tries(4, 4));
        packing.tried(&did_not());
        for _ in 0..100 {
            assert!(!packing.tries(0, 4));
        }
        assert!(!packing.tries(4, 4), "one is skipped");
        assert!(packing.tries(4, 4));
    }

    #[test]
    fn the_speed_of_a_line_is_that_of_the_last_frames() {
        let speed = Speed::default();
        assert_eq!(speed.time_for(1000), None);
        // 1 MB/s, then 100 MB/s.
        (0..50).for_each(|_| speed.wrote(10_000, Duration::from_millis(10)));
        assert_eq!(speed.time_for(1_000_000).unwrap().as_millis(), 1000);
        (0..100).for_each(|_| speed.wrote(10_000, Duration::from_micros(100)));
        assert_eq!(speed.time_for(1_000_000).unwrap().as_millis(), 10);
    }
}
