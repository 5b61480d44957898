//! The verbs: each asks the server, shows what it said, and ends with an exit code of the contract.
//!
//! ```text
//!   see    ── GET ──► show
//!   change ── POST plans ──► show ──► confirm ──► POST jobs ──► follow
//! ```

pub mod change;
pub mod confirm;
pub mod follow;
pub mod history;
pub mod job;
pub mod login;
pub mod machine;
pub mod network;
pub mod request;
pub mod see;
pub mod token;
pub mod watch;

use std::time::Duration;

use crate::cli::{Global, Verb};
use crate::client::Client;
use crate::ending::{Ending, Trouble};
use crate::profile::{self, Environment};
use crate::show::Screen;

/// What a verb works with.
#[derive(Debug, Clone)]
pub struct Desk {
    /// The server.
    pub client: Client,
    /// Where results go.
    pub screen: Screen,
    /// How long a server that stopped answering is asked again.
    pub patience: Duration,
}

impl Desk {
    /// Finds the server.
    ///
    /// # Errors
    /// None is known (exit code 5), or its address is none (2).
    pub fn new(global: &Global) -> Result<Desk, Trouble> {
        let access = profile::find(global, &Environment::read())?;
        Ok(Desk { client: Client::new(access)?, screen: Screen::new(global.output), patience: global.patience })
    }
}

/// Does what was typed.
///
/// # Errors
/// Whatever kept the verb from its end, with its exit code.
pub async fn run(global: &Global, verb: Verb) -> Result<Ending, Trouble> {
    let desk = || Desk::new(global);
    match verb {
        Verb::Login(login) => login::run(global, login).await,
        Verb::Status(status) if status.watch => watch::status(&desk()?, status.item.as_ref()).await,
        Verb::Status(status) => see::status(&desk()?, &status).await,
        Verb::Item(verb) => see::item(&desk()?, verb).await,
        Verb::Points(points) => see::points(&desk()?, points).await,
        Verb::Point(verb) => history::point(&desk()?, verb).await,
        Verb::Network(verb) => network::run(&desk()?, verb).await,
        Verb::Policy(verb) => history::policy(&desk()?, verb).await,
        Verb::Component(verb) => see::component(&desk()?, verb).await,
        Verb::Token(verb) => token::run(&desk()?, verb).await,
        Verb::Explain { what } => see::explain(global, &what).await,
        Verb::Quote { item } => see::quote(&desk()?, &item).await,
        Verb::Audit => see::audit(&desk()?).await,
        Verb::Events => watch::events(&desk()?).await,
        Verb::Job(verb) => job::run(&desk()?, verb).await,
        Verb::Site(verb) => see::site(&desk()?, verb).await,
        Verb::Vm(verb) => see::vm(global, verb).await,
        verb => {
            let desk = desk()?;
            let (request, options) = request::of(&desk.client, verb).await?;
            change::run(&desk, request, &options).await
        }
    }
}
