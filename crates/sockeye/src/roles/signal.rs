//! When a role is told to stop: SIGTERM or Ctrl-C, heard once by everything that runs.

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

use crate::ending::Trouble;

/// Tells everything in this process to stop. Cloning gives the same one.
#[derive(Debug, Clone)]
pub struct Stop(watch::Sender<bool>);

impl Stop {
    /// Listens for signals from now on.
    ///
    /// # Errors
    /// This process cannot hear signals.
    pub fn on_signals() -> Result<Stop, Trouble> {
        let cannot = |why: std::io::Error| Trouble::local("signals cannot be heard", why);
        let mut term = signal(SignalKind::terminate()).map_err(cannot)?;
        let mut interrupt = signal(SignalKind::interrupt()).map_err(cannot)?;
        let stop = Stop(watch::Sender::new(false));
        let heard = stop.clone();
        tokio::spawn(async move {
            let mut next = async || tokio::select! { _ = term.recv() => {}, _ = interrupt.recv() => {} };
            next().await;
            tracing::info!("stopping; again to stop at once");
            heard.now();
            next().await;
            std::process::exit(130);
        });
        Ok(stop)
    }

    /// Stops.
    pub fn now(&self) {
        self.0.send_replace(true);
    }

    /// Ends when it is time to stop.
    pub fn wait(&self) -> impl Future<Output = ()> + Send + 'static {
        let mut told = self.0.subscribe();
        async move {
            // The sender's end counts as a word.
            let _ = told.wait_for(|told| *told).await;
        }
    }
}
