//! Decides: protection stages, durable jobs, checks, fleet, and the database that remembers.
//!
//! ```text
//!   api ──► Control ── plan · start ──► job ── steps ──► order book ◄── exchange ── components at the sites
//!              │                         │                                │
//!              └── view, explain ◄── item rows ◄── stage table       statuses, machines
//! ```
//!
//! Control never calls into a site: components ask. Replication goes on from the lists that process servers keep while
//! control is away.
//!
//! # Always true
//! - The stage of an item changes only by [`stage_table::decide`].
//! - At most one side is authorised to run the current generation; that changes in one transaction.
//! - What was begun is in the database before it has an effect outside.
//!
//! # If power fails
//! Every job goes on or is undone when the server starts again; components get their orders again and answer the same.

pub mod stage_page;
pub mod stage_table;

mod audit;
mod bandwidth;
mod beside;
mod checks;
mod clock;
mod complete;
mod component;
mod database;
mod engine;
mod events;
mod exchange;
mod explain;
mod fault_page;
mod guest_network;
mod host;
mod item;
mod job;
mod landing;
mod order_book;
mod plan;
mod policy;
mod questions;
mod quote;
mod sequence;
mod settings;
mod steps;
mod token;
mod view;
mod words;
mod work;

use std::collections::HashMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use identity::Authority;
use protocol::fault::{Fault, code};
use tokio::sync::{broadcast, watch};
use tokio::task::JoinSet;

pub use events::Event;
pub use fault_page::fault_codes_page;
pub use settings::{Hooks, Settings};
pub use token::Principal;

use component::Fleet;
use database::Database;
use engine::Broken;
use job::Telling;

/// The control server's brain; cloning is cheap and gives the same one.
#[derive(Debug, Clone)]
pub struct Control {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    database: Database,
    settings: Settings,
    /// Makes order ids unique among installations.
    installation: String,
    /// Grants are derived from it.
    secret: String,
    /// Makes components known to each other.
    authority: Authority,
    fleet: Mutex<Fleet>,
    telling: Mutex<HashMap<i64, Telling>>,
    /// Components told something: jobs look again.
    news: watch::Sender<u64>,
    /// Orders or wishes changed: held exchanges look again.
    work: watch::Sender<u64>,
    events: broadcast::Sender<Event>,
    stopping: watch::Sender<bool>,
    started: std::time::Instant,
    dead: AtomicBool,
    ticks: AtomicU64,
    tasks: tokio::sync::Mutex<JoinSet<()>>,
    lock: Mutex<Option<std::fs::File>>,
}

impl Control {
    /// Opens the control server's memory in `data_dir` (made if absent) and goes on with every job that has not ended.
    /// At first start the file `admin.token` is written there.
    pub async fn open(data_dir: impl AsRef<Path>) -> Result<Control, Fault> {
        Control::open_with(data_dir, Settings::default()).await
    }

    /// The same with other settings than the default ones.
    pub async fn open_with(data_dir: impl AsRef<Path>, settings: Settings) -> Result<Control, Fault> {
        let data_dir = data_dir.as_ref();
        let lock = lock(data_dir)?;
        let database = Database::open(data_dir).await?;
        token::first_start(&database, data_dir).await?;
        let installation = settings::remembered(&database, "installation", || token::fresh()[..12].to_string()).await?;
        let secret = settings::remembered(&database, "secret", token::fresh).await?;
        let authority = authority(&database).await?;
        let fleet = Fleet::load(&database, settings.connected_within).await?;
        let control = Control {
            inner: Arc::new(Inner {
                database,
                settings,
                installation,
                secret,
                authority,
                fleet: Mutex::new(fleet),
                telling: Mutex::default(),
                news: watch::Sender::new(0),
                work: watch::Sender::new(0),
                events: broadcast::Sender::new(1024),
                stopping: watch::Sender::new(false),
                started: std::time::Instant::now(),
                dead: AtomicBool::new(false),
                ticks: AtomicU64::new(0),
                tasks: tokio::sync::Mutex::default(),
                lock: Mutex::new(Some(lock)),
            }),
        };
        order_book::forget_questions(control.database()).await?;
        for job in job::unfinished(control.database()).await? {
            control.carry(job.id).await;
        }
        Ok(control)
    }

    /// Stops the engine where it is and closes the database; everything goes on at the next [`Control::open`].
    pub async fn stop(&self) {
        self.inner.stopping.send_replace(true);
        self.wake_jobs();
        self.wake_exchanges();
        let mut tasks = self.inner.tasks.lock().await;
        // A step that is in the middle of something gets a moment; what does not stop is cut off: it is safe to repeat.
        let all = async { while tasks.join_next().await.is_some() {} };
        if tokio::time::timeout(Duration::from_secs(5), all).await.is_err() {
            tasks.shutdown().await;
        }
        drop(tasks);
        if let Err(fault) = self.remember_fleet().await {
            tracing::warn!(%fault, "what was last heard of components could not be kept");
        }
        self.inner.database.close().await;
        self.inner.lock.lock().unwrap_or_else(PoisonError::into_inner).take();
    }

    /// Waits until the server stops.
    pub async fn until_stopped(&self) {
        let mut stopping = self.inner.stopping.subscribe();
        // The sender lives as long as `self`; were it gone, the server would have stopped too.
        let _ = stopping.wait_for(|stopping| *stopping).await;
    }

    /// Who owns a token, if anybody does.
    pub async fn principal(&self, token: &str) -> Result<Option<Principal>, Fault> {
        token::principal(self.database(), token).await
    }

    /// Gives job `id` to the engine.
    async fn carry(&self, id: i64) {
        let mut tasks = self.inner.tasks.lock().await;
        while tasks.try_join_next().is_some() {}
        if !self.stopped() {
            tasks.spawn(engine::run(self.clone(), id));
        }
    }

    pub(crate) fn database(&self) -> &Database {
        &self.inner.database
    }

    pub(crate) fn settings(&self) -> &Settings {
        &self.inner.settings
    }

    pub(crate) fn hooks(&self) -> &Hooks {
        &self.inner.settings.hooks
    }

    pub(crate) fn installation(&self) -> &str {
        &self.inner.installation
    }

    /// A secret of this installation for one purpose; asking again gives the same.
    pub(crate) fn secret(&self, purpose: &str) -> String {
        let mut hasher = blake3::Hasher::new();
        hasher.update(self.inner.secret.as_bytes());
        hasher.update(purpose.as_bytes());
        hasher.finalize().to_hex().to_string()
    }

    pub(crate) fn fleet(&self) -> MutexGuard<'_, Fleet> {
        // Nothing that holds it can leave it half changed.
        self.inner.fleet.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a component is gone: not heard of for too long. A server that has just started knows of nobody yet.
    pub(crate) fn gone(&self, component: &str) -> bool {
        let fleet = self.fleet();
        !fleet.connected(component) && self.inner.started.elapsed() >= fleet.connected_within
    }

    pub(crate) fn stopped(&self) -> bool {
        *self.inner.stopping.borrow()
    }

    /// Called at every boundary where a crash can matter; a test says at which one the server dies.
    pub(crate) fn tick(&self) -> Result<(), Broken> {
        let tick = self.inner.ticks.fetch_add(1, Ordering::SeqCst);
        if self.hooks().crash_at == Some(tick) {
            self.inner.dead.store(true, Ordering::SeqCst);
            self.inner.stopping.send_replace(true);
            self.wake_exchanges();
        }
        if self.stopped() { Err(Broken::Stopped) } else { Ok(()) }
    }

    /// Whether a test hook let the server die.
    #[doc(hidden)]
    pub fn died(&self) -> bool {
        self.inner.dead.load(Ordering::SeqCst)
    }

    /// How many boundaries the engine has passed, for tests that crash at each.
    #[doc(hidden)]
    pub fn ticks(&self) -> u64 {
        self.inner.ticks.load(Ordering::SeqCst)
    }

    pub(crate) fn wake_jobs(&self) {
        self.inner.news.send_modify(|count| *count += 1);
    }

    pub(crate) fn wake_exchanges(&self) {
        self.inner.work.send_modify(|count| *count += 1);
        self.wake_jobs();
    }

    pub(crate) fn news(&self) -> watch::Receiver<u64> {
        self.inner.news.subscribe()
    }

    pub(crate) fn work_to_do(&self) -> watch::Receiver<u64> {
        self.inner.work.subscribe()
    }

    /// Waits for news, or until it is time to look whether a component is gone.
    pub(crate) async fn pause(&self, news: &mut watch::Receiver<u64>) -> Result<(), Broken> {
        if self.stopped() {
            return Err(Broken::Stopped);
        }
        let _ = tokio::time::timeout(Duration::from_millis(500), news.changed()).await;
        if self.stopped() { Err(Broken::Stopped) } else { Ok(()) }
    }

    /// Waits, unless the server stops.
    pub(crate) async fn rest(&self, time: Duration) {
        let mut stopping = self.inner.stopping.subscribe();
        let _ = tokio::time::timeout(time, stopping.wait_for(|stopping| *stopping)).await;
    }

    fn telling(&self) -> MutexGuard<'_, HashMap<i64, Telling>> {
        self.inner.telling.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The system's authority, made at first start.
async fn authority(database: &Database) -> Result<Authority, Fault> {
    let unusable = |error: identity::IdentityError| {
        Fault::new(code::INTERNAL, "the system's authority cannot be used", error.to_string())
    };
    let fresh = Authority::make().map_err(unusable)?.to_pem();
    let kept = settings::remembered(database, "authority", || fresh).await?;
    Authority::from_pem(&kept).map_err(unusable)
}

fn lock(data_dir: &Path) -> Result<std::fs::File, Fault> {
    let cannot = |error: std::io::Error| {
        Fault::new(code::INTERNAL, format!("the data folder {} cannot be used", data_dir.display()), error.to_string())
    };
    std::fs::create_dir_all(data_dir).map_err(cannot)?;
    let file = std::fs::File::create(data_dir.join("control.lock")).map_err(cannot)?;
    file.try_lock().map_err(|error| {
        Fault::new(
            code::INTERNAL,
            format!("the data folder {} is in use", data_dir.display()),
            format!("another control server has locked it ({error})"),
        )
        .with_remedy("stop the other server, or choose another folder with --data-dir")
    })?;
    Ok(file)
}
