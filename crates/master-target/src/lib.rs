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
mod difference;
mod duty;
mod export;
mod feed;
mod fold;
mod hashing;
mod item;
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

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use component::{Door, Membership};
use platforms::Platform;
use protocol::fault::code;
use protocol::order::{Registration, Role};
use protocol::{Fault, SiteName};
use tokio::net::TcpListener;
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
    /// Where movers are listened for.
    pub listen: SocketAddr,
    /// Where movers of other sites reach it (`host:port`); with port 0 the port that the system chose is put in.
    pub advertise: String,
    /// The hypervisor of its site.
    pub platform: Arc<dyn Platform>,
}

/// Runs a master target until `shutdown` ends. Replicas are closed then; raised machines wait for the next start.
///
/// # Errors
/// `RPL-014` when the retention volume is not fit (R9); `RPL-005` when directories or the port cannot be used, or a replica
/// cannot be opened.
pub async fn run(config: Config, shutdown: impl Future<Output = ()>) -> Result<(), Fault> {
    let unusable = |what: String| move |error: std::io::Error| Fault::new(code::REPLICA_IO, what, error.to_string());
    let listener =
        TcpListener::bind(config.listen).await.map_err(unusable(format!("{} cannot be listened on", config.listen)))?;
    let port = listener.local_addr().map_err(unusable("the listening port is unknown".into()))?.port();
    let address = config.advertise.strip_suffix(":0").map_or(config.advertise.clone(), |host| format!("{host}:{port}"));
    let shelf = shelf::Shelf::open(&config.data_dir, &config.retention, config.platform.clone()).await?;
    let shelf = Arc::new(shelf);
    let registration = Registration {
        name: config.name,
        site: config.site,
        role: Role::MasterTarget,
        address: Some(address),
        version: env!("CARGO_PKG_VERSION").into(),
        platform: config.platform.name().into(),
    };
    let credentials = component::line::credentials(&config.data_dir.join("master-target.pem"))?;
    let door = Door::open(listener, credentials.clone());
    let membership = Membership { server: config.server, join_token: config.join_token, registration, credentials };
    let duty = Arc::new(duty::MasterTarget { shelf: shelf.clone() });
    tokio::select! {
        () = component::line::serve(membership, duty, Arc::new(Notify::new())) => {}
        () = session::accept(door, shelf.clone()) => {}
        () = shutdown => {}
    }
    shelf.close().await;
    Ok(())
}
