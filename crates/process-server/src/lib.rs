//! The process server: near the source, it captures epochs, chooses what must travel, and sends it.
//!
//! ```text
//!   control ─orders─► duty ── machines: shut down · start · settle
//!                      │
//!                      └── one replication per item
//!                            capture ─ cut ─► choice ─► epoch ─► session ═══► master target
//!                            (platforms)     (trust)   (read, compare: transfer)
//! ```
//!
//! # Always true
//! - What changed is forgotten only after the target said *sealed*.
//! - A delta is sent only where `protocol::position::delta` proves the base; otherwise both sides are compared.
//! - The guest never waits for a mover: a slow link or target costs epochs, not writes.
//! - It sends no faster than the caps of its policies and its own allow, but for last epochs (decision 0018).
//! # If the process dies
//! - the change maps stay with the hypervisor; the next start finds them, asks the target for its newest sealed attempt
//!   and either drops the older map or merges both.
//! - replications go on from the list on its own disk, whether control can be reached or not.

mod app;
mod beneath;
mod choice;
mod cut;
mod duty;
mod epoch;
mod keep;
mod pace;
mod reach;
mod replication;
mod session;
mod status;

use std::path::PathBuf;
use std::sync::Arc;

use component::cap::Cap;
use component::{Dialler, Door, Listen, Membership};
use platforms::Platform;
use protocol::order::{Registration, Role};
use protocol::{Fault, SiteName};
use tokio::sync::Notify;

/// How a process server is set up.
pub struct Config {
    /// Its name, unique in the system.
    pub name: String,
    /// The site it stands at.
    pub site: SiteName,
    /// Base URL of the control server.
    pub server: String,
    /// Lets it register.
    pub join_token: String,
    /// Where it keeps its list of replications and the attempts it used.
    pub data_dir: PathBuf,
    /// Connections of each link that it dials (H4), from 1 to 32.
    pub connections: u8,
    /// Where master targets dial it that cannot be dialled themselves; none where there are none.
    pub listen: Option<Listen>,
    /// The hypervisor of its site.
    pub platform: Arc<dyn Platform>,
}

/// Runs a process server until `shutdown` ends. Machines and change maps stay as they are then.
///
/// # Errors
/// `RPL-005` when the data directory or the port cannot be used.
pub async fn run(config: Config, shutdown: impl Future<Output = ()>) -> Result<(), Fault> {
    let listening = match &config.listen {
        Some(listen) => Some(listen.bind().await?),
        None => None,
    };
    let registration = Registration {
        name: config.name,
        site: config.site,
        role: Role::ProcessServer,
        address: listening.as_ref().map(|(_, address)| address.clone()),
        version: env!("CARGO_PKG_VERSION").into(),
        platform: config.platform.name().into(),
    };
    let keep = Arc::new(keep::Keep::open(&config.data_dir)?);
    let credentials = component::line::credentials(&config.data_dir.join("process-server.pem"))?;
    let membership = Membership {
        server: config.server,
        join_token: config.join_token,
        registration,
        credentials: credentials.clone(),
    };
    let news = Arc::new(Notify::new());
    let door = listening.map(|(listener, _)| Door::open(listener, credentials.clone()));
    let offers = Arc::new(reach::Offers::default());
    let dialler = Dialler { credentials, connections: config.connections };
    let reach = reach::Reach { dialler, offers: offers.clone() };
    let cap = Arc::new(Cap::new(keep.bandwidth()));
    let means = replication::Means { platform: config.platform, keep, reach, cap, news: news.clone() };
    let duty = Arc::new(duty::ProcessServer::start(means).await);
    tokio::select! {
        () = component::line::serve(membership, duty.clone(), news) => {}
        () = offers.accept(door) => {}
        () = shutdown => {}
    }
    duty.stop().await;
    Ok(())
}
