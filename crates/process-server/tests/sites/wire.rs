//! The line between two sites, in a test's hand: it can be cut, held, made long and made to lie.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

/// A byte is changed only in the middle of so many: there it hits the data of a block, not the words around it.
const WORTH_A_LIE: usize = 32 << 10;

struct Hand {
    target: Mutex<String>,
    flips: AtomicU64,
    /// Bytes that went from sender to receiver, and how many may before the line is held.
    passed: AtomicU64,
    hold_at: AtomicU64,
    /// What was said into the line and is held in it.
    caught: AtomicU64,
    /// How many connections were made through it, and whether none is let through any more.
    dialled: AtomicU64,
    down: AtomicBool,
    /// How long bytes take from one end to the other, in ms. More of them may be on the way than ever fit into a test.
    delay_ms: AtomicU64,
    /// How many bytes go from sender to receiver in a second, if that is bounded.
    pace: AtomicU64,
    cuts: watch::Sender<u64>,
    held: watch::Sender<bool>,
}

/// A TCP proxy. Ends when it is dropped.
pub struct Wire {
    pub address: String,
    hand: Arc<Hand>,
    listens: tokio::task::JoinHandle<()>,
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.listens.abort();
        self.cut();
    }
}

impl Wire {
    pub async fn stretch() -> Wire {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let hand = Arc::new(Hand {
            target: Mutex::default(),
            flips: AtomicU64::new(0),
            passed: AtomicU64::new(0),
            hold_at: AtomicU64::new(u64::MAX),
            caught: AtomicU64::new(0),
            dialled: AtomicU64::new(0),
            down: AtomicBool::new(false),
            delay_ms: AtomicU64::new(0),
            pace: AtomicU64::new(u64::MAX),
            cuts: watch::Sender::new(0),
            held: watch::Sender::new(false),
        });
        let listens = tokio::spawn(listen(listener, hand.clone()));
        Wire { address, hand, listens }
    }

    /// Where it ends from now on.
    pub fn lead_to(&self, target: String) {
        *self.hand.target.lock().unwrap() = target;
    }

    /// Cuts every connection; new ones are let through.
    pub fn cut(&self) {
        self.hand.cuts.send_modify(|cuts| *cuts += 1);
    }

    /// While it is down nobody gets through: what there is is cut, and who dials is dropped.
    pub fn down(&self, down: bool) {
        self.hand.down.store(down, Ordering::SeqCst);
        if down {
            self.cut();
        }
    }

    /// Connections that are made from now on take so long for every byte, each way, and carry as many as are sent. Such a
    /// line cannot be held, nor lie.
    pub fn lengthen(&self, delay: Duration) {
        self.hand.delay_ms.store(delay.as_millis() as u64, Ordering::SeqCst);
    }

    /// Lets each connection carry so many bytes a second from sender to receiver, until that is said anew.
    pub fn pace(&self, bytes_per_second: u64) {
        self.hand.pace.store(bytes_per_second, Ordering::SeqCst);
    }

    /// How many connections were made through it so far.
    pub fn dialled(&self) -> u64 {
        self.hand.dialled.load(Ordering::SeqCst)
    }

    /// While held, nothing goes from sender to receiver.
    pub fn hold(&self, held: bool) {
        self.hand.caught.store(0, Ordering::SeqCst);
        self.hand.held.send_replace(held);
    }

    /// Waits until the sender has said something that the held line has not passed on.
    pub async fn has_caught_something(&self) {
        let deadline = tokio::time::Instant::now() + super::PATIENCE;
        while self.hand.caught.load(Ordering::SeqCst) == 0 {
            assert!(tokio::time::Instant::now() < deadline, "nobody said anything into the held line");
            tokio::time::sleep(std::time::Duration::from_millis(2)).await;
        }
    }

    /// Holds the line once so many bytes have gone from sender to receiver.
    pub fn hold_at(&self, bytes: u64) {
        self.hand.hold_at.store(bytes, Ordering::SeqCst);
    }

    /// Whether it is held.
    pub fn is_held(&self) -> bool {
        *self.hand.held.borrow()
    }

    /// Bytes that went from sender to receiver.
    pub fn passed(&self) -> u64 {
        self.hand.passed.load(Ordering::SeqCst)
    }

    /// Changes one bit of what the sender says next.
    pub fn lie_once(&self) {
        self.hand.flips.store(1, Ordering::SeqCst);
    }

    /// Whether a change is still to be made.
    pub fn is_about_to_lie(&self) -> bool {
        self.hand.flips.load(Ordering::SeqCst) > 0
    }
}

async fn listen(listener: TcpListener, hand: Arc<Hand>) {
    loop {
        let Ok((near, _)) = listener.accept().await else { continue };
        if hand.down.load(Ordering::SeqCst) {
            continue;
        }
        hand.dialled.fetch_add(1, Ordering::SeqCst);
        let target = hand.target.lock().unwrap().clone();
        let delay = Duration::from_millis(hand.delay_ms.load(Ordering::SeqCst));
        let hand = hand.clone();
        tokio::spawn(async move {
            let mut cuts = hand.cuts.subscribe();
            let Ok(far) = TcpStream::connect(target).await else { return };
            let _ = (near.set_nodelay(true), far.set_nodelay(true));
            let ((near_in, near_out), (far_in, far_out)) = (near.into_split(), far.into_split());
            tokio::select! {
                biased;
                // What a line holds does not come through when it is cut and let go of at once.
                _ = cuts.changed() => {}
                _ = carry(near_in, far_out, delay, Some(&hand)) => {}
                _ = carry(far_in, near_out, delay, None) => {}
            }
        });
    }
}

async fn carry(
    from: tokio::net::tcp::OwnedReadHalf,
    to: tokio::net::tcp::OwnedWriteHalf,
    delay: Duration,
    hand: Option<&Hand>,
) -> std::io::Result<()> {
    if delay.is_zero() { pump(from, to, hand).await } else { delayed(from, to, delay, hand).await }
}

async fn pump(
    mut from: tokio::net::tcp::OwnedReadHalf,
    mut to: tokio::net::tcp::OwnedWriteHalf,
    hand: Option<&Hand>,
) -> std::io::Result<()> {
    let mut buffer = vec![0; 64 << 10];
    loop {
        let length = from.read(&mut buffer).await?;
        if length == 0 {
            return to.shutdown().await;
        }
        if let Some(hand) = hand {
            let mut held = hand.held.subscribe();
            if *held.borrow() {
                hand.caught.fetch_add(length as u64, Ordering::SeqCst);
            }
            let _ = held.wait_for(|held| !held).await;
            let pace = hand.pace.load(Ordering::SeqCst);
            if pace < u64::MAX {
                tokio::time::sleep(Duration::from_secs_f64(length as f64 / pace as f64)).await;
            }
            let lies =
                length >= WORTH_A_LIE && hand.flips.compare_exchange(1, 0, Ordering::SeqCst, Ordering::SeqCst).is_ok();
            if lies {
                buffer[length / 2] ^= 0x10;
            }
        }
        to.write_all(&buffer[..length]).await?;
        if let Some(hand) = hand {
            let passed = hand.passed.fetch_add(length as u64, Ordering::SeqCst) + length as u64;
            if hand
                .hold_at
                .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |at| (passed >= at).then_some(u64::MAX))
                .is_ok()
            {
                hand.held.send_replace(true);
            }
        }
    }
}

/// Passes everything on, each byte so long after it came, without making anything wait for anything else.
async fn delayed(
    mut from: tokio::net::tcp::OwnedReadHalf,
    mut to: tokio::net::tcp::OwnedWriteHalf,
    delay: Duration,
    hand: Option<&Hand>,
) -> std::io::Result<()> {
    let (enter, mut leave) = mpsc::unbounded_channel::<(Instant, Vec<u8>)>();
    let take = async move {
        loop {
            let mut buffer = vec![0; 64 << 10];
            let length = from.read(&mut buffer).await?;
            buffer.truncate(length);
            if length == 0 || enter.send((Instant::now() + delay, buffer)).is_err() {
                return std::io::Result::Ok(());
            }
        }
    };
    let give = async move {
        while let Some((due, bytes)) = leave.recv().await {
            tokio::time::sleep_until(due).await;
            to.write_all(&bytes).await?;
            if let Some(hand) = hand {
                hand.passed.fetch_add(bytes.len() as u64, Ordering::SeqCst);
            }
        }
        to.shutdown().await
    };
    tokio::try_join!(take, give).map(drop)
}
