//! `server`: the control server, its database and its REST door.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use control::Control;
use serde::Serialize;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use super::signal::Stop;
use crate::cli;
use crate::ending::{Ending, Trouble};
use crate::show::Screen;

/// How long open requests may take to end once the server stops.
const LAST_REQUESTS: Duration = Duration::from_secs(5);

/// A control server that runs in this process.
pub struct Server {
    control: Control,
    api: JoinHandle<std::io::Result<()>>,
    /// Where it is and who may use it.
    pub door: Door,
}

/// Where a control server is, and where the tokens for it are.
#[derive(Debug, Clone, Serialize)]
pub struct Door {
    /// Base URL.
    pub url: String,
    /// The port at its end.
    #[serde(skip)]
    pub port: u16,
    /// The file that holds the token of operators.
    pub admin_token_file: PathBuf,
}

/// Runs it until it is told to stop.
///
/// # Errors
/// The data directory or the address cannot be used.
pub async fn run(screen: Screen, server: &cli::Server) -> Result<Ending, Trouble> {
    super::log();
    let stop = Stop::on_signals()?;
    let mut running = Server::start(&server.data_dir, server.listen).await?;
    let door = &running.door;
    let text = format!(
        "control server at {}\n  operators sign in:  sockeye login {} < {}\n  hosts join:         with a token (sockeye token add)",
        door.url,
        door.url,
        door.admin_token_file.display(),
    );
    screen.result(door, &text);
    tokio::select! {
        () = stop.wait() => {}
        ended = running.ended() => { ended?; }
    }
    running.stop().await?;
    Ok(Ending::Done)
}

impl Server {
    /// Opens the database and the door.
    ///
    /// # Errors
    /// The data directory or the address cannot be used.
    pub async fn start(data_dir: &Path, listen: SocketAddr) -> Result<Server, Trouble> {
        // The door first: a second server on the same address must not touch the database.
        let unusable = |why: std::io::Error| Trouble::local(format!("{listen} cannot be listened on"), why);
        let listener = TcpListener::bind(listen).await.map_err(unusable)?;
        let address = listener.local_addr().map_err(unusable)?;
        let control = Control::open(data_dir).await?;
        let api = tokio::spawn(api::serve(control.clone(), listener));
        let data_dir = std::fs::canonicalize(data_dir).unwrap_or_else(|_| data_dir.to_path_buf());
        let door = Door {
            url: format!("http://{}", reachable(address)),
            port: address.port(),
            admin_token_file: data_dir.join("admin.token"),
        };
        Ok(Server { control, api, door })
    }

    /// Waits until the door closes by itself, which it should not.
    ///
    /// # Errors
    /// Why it closed.
    pub async fn ended(&mut self) -> Result<(), Trouble> {
        let failed = |why: String| Trouble::local("the control server's door has closed", why);
        match (&mut self.api).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(why)) => Err(failed(why.to_string())),
            Err(why) => Err(failed(why.to_string())),
        }
    }

    /// Stops: jobs go on at the next start.
    ///
    /// # Errors
    /// The door closed with an error.
    pub async fn stop(mut self) -> Result<(), Trouble> {
        self.control.stop().await;
        if self.api.is_finished() {
            return Ok(());
        }
        match tokio::time::timeout(LAST_REQUESTS, self.ended()).await {
            Ok(ended) => ended,
            Err(_) => {
                self.api.abort();
                Ok(())
            }
        }
    }
}

/// An address that listens on every interface is reached on this host by loopback.
fn reachable(address: SocketAddr) -> SocketAddr {
    match address {
        SocketAddr::V4(v4) if v4.ip().is_unspecified() => (std::net::Ipv4Addr::LOCALHOST, v4.port()).into(),
        SocketAddr::V6(v6) if v6.ip().is_unspecified() => (std::net::Ipv6Addr::LOCALHOST, v6.port()).into(),
        other => other,
    }
}
