//! The master target: receives epochs, gives them to replicas, and brings machines up from their recovery points.
//!
//! ```text
//!   process server ═══ session ═══► open epoch ─► replica (disk + journal)
//!                                                    │
//!                         overlay ◄── NBD view ◄─────┘ any point
//!                            │
//!   control ─orders─► duty ──┴─ platform: define · start paused · release · delete
//! ```
//!
//! # Always true
//! - *Sealed* is said after the replica called the epoch durable, never before.
//! - Only the sender that control granted may write, and only in the generation it was granted for.
//! - A raised machine writes to its overlay; the replica beneath it is read only, through a view.
//! # If the process dies
//! - the record of each item says what is granted and raised; at the start every view that a machine stands on is served
//!   again under the same name (its guest waits meanwhile); an unfinished epoch is resumed, or rolled back where none can come.

mod absorb;
mod beneath;
mod dialling;
mod difference;
mod duty;
mod export;
mod feed;
mod fold;
mod hashing;
mod item;
mod leaves;
mod made;
mod outside;
mod raise;
mod record;
mod retention;
mod served;
mod session;
mod shelf;
mod standpoint;
mod take_over;
mod tending;
mod test_machine;
mod verify;
mod view;
mod witness;

use std::path::PathBuf;
use std::sync::Arc;

use component::{Dialler, Door, Listen, Membership};
use platforms::Platform;
use protocol::order::{Registration, Role};
use protocol::{Fault, SiteName};
use tokio::sync::Notify;

/// How a master target is set up.
pub struct Config {
    /// Its name, unique in the system.
    pub name: String,
    /// The site it stands at.
    pub site: SiteName,
    /// Base URL of the control server.
    pub server: String,
    /// Lets it register.
    pub join_token: String,
    /// Where replicas and records are kept. Its path must be short enough for a unix socket in it.
    pub data_dir: PathBuf,
    /// Where journals are kept: the retention volume (R9).
    pub retention: PathBuf,
    /// Where process servers of other sites dial it; none where they cannot: then it dials them.
    pub listen: Option<Listen>,
    /// Connections of each link that it dials (H4), from 1 to 32.
    pub connections: u8,
    /// The hypervisor of its site.
    pub platform: Arc<dyn Platform>,
}

/// Runs a master target until `shutdown` ends. Replicas are closed then; raised machines wait for the next start.
///
/// # Errors
/// `RPL-014` when the retention volume is not fit (R9); `RPL-005` when directories or the port cannot be used, or a replica
/// cannot be opened.
pub async fn run(config: Config, shutdown: impl Future<Output = ()>) -> Result<(), Fault> {
    let listening = match &config.listen {
        Some(listen) => Some(listen.bind().await?),
        None => None,
    };
    let shelf = shelf::Shelf::open(&config.data_dir, &config.retention, config.platform.clone()).await?;
    let shelf = Arc::new(shelf);
    let registration = Registration {
        name: config.name,
        site: config.site,
        role: Role::MasterTarget,
        address: listening.as_ref().map(|(_, address)| address.clone()),
        version: env!("CARGO_PKG_VERSION").into(),
        platform: config.platform.name().into(),
    };
    let credentials = component::line::credentials(&config.data_dir.join("master-target.pem"))?;
    let door = listening.map(|(listener, _)| Door::open(listener, credentials.clone()));
    let dialler = Dialler { credentials: credentials.clone(), connections: config.connections };
    let membership = Membership { server: config.server, join_token: config.join_token, registration, credentials };
    let duty = Arc::new(duty::MasterTarget {
        shelf: shelf.clone(),
        dialling: dialling::Dialling::new(dialler, shelf.clone()),
    });
    tokio::select! {
        () = component::line::serve(membership, duty, Arc::new(Notify::new())) => {}
        () = session::accept(door, shelf.clone()) => {}
        () = shutdown => {}
    }
    shelf.close().await;
    Ok(())
}
