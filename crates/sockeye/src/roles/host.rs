//! `init` and `join`: a host becomes part of a system.
//!
//! ```text
//!   init ─► control server ─► join token of its own ─┐                            ┌─► services (systemd): services.rs
//!                                                    ├─► enrolled: a credential ─►┤
//!   join ─► the control server's URL and a token ────┘   (kept.rs)                └─► --foreground: in this process
//! ```
//! The credential is made here and written down before control is asked to know it. So a crash or a lost answer at any
//! moment is mended by the same command, and a token is used up once.
//!
//! # Always true
//! - A host that was set up otherwise is left as it is, and told how it differs.
//! - Where nothing else is said, a host that joins is never dialled: its movers dial, and the first host listens.

mod foreground;
mod kept;
mod ports;
mod services;
mod settings;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use protocol::fault::{Fault, code};
use protocol::token::{AddToken, AddedToken, Join, Joined};
use serde::Serialize;

use crate::cli::{self, Global};
use crate::client::Client;
use crate::ending::{Ending, Trouble};
use crate::fault;
use crate::profile::{self, Access, Environment};
use crate::show::{Screen, token as show};

use kept::Kept;
use settings::Settings;

/// For how long the token is good with which the first host joins itself: it is used at once.
const OWN_TOKEN_MS: u64 = 10 * 60 * 1000;
/// How long a role may take until it answers, or is connected.
const PATIENCE: Duration = Duration::from_secs(60);
/// How often that is asked.
const AGAIN: Duration = Duration::from_millis(200);

/// What `init` tells.
#[derive(Debug, Serialize)]
struct First {
    /// Where others reach the control server.
    url: String,
    /// The file that holds the token of operators.
    admin_token_file: PathBuf,
    /// The file of the profile with which whoever ran this is signed in, unless another server's is there.
    profile_file: Option<PathBuf>,
    /// What this host is.
    host: Settings,
    /// Lets another host join.
    token: AddedToken,
    /// What is typed there.
    join: String,
}

/// What `join` tells.
#[derive(Debug, Serialize)]
struct Further {
    /// What this host is.
    host: Settings,
    /// The number of its credential; none while control was not reached, by a host that joined before.
    credential: Option<i64>,
    /// Those of its components that are connected by now.
    connected: Vec<String>,
    /// Whether it is never dialled.
    outbound_only: bool,
}

/// Makes this host the first of a system.
///
/// # Errors
/// It cannot be, with exit code 3 and nothing changed; or something on this host fails.
pub async fn init(global: &Global, init: &cli::Init) -> Result<Ending, Trouble> {
    if init.host.foreground { foreground::init(global, init).await } else { services::init(global, init).await }
}

/// Makes this host part of a system.
///
/// # Errors
/// It is refused (3), control is not reached (5), or something on this host fails.
pub async fn join(global: &Global, join: &cli::Join) -> Result<Ending, Trouble> {
    if join.host.foreground { foreground::join(global, join).await } else { services::join(global, join).await }
}

/// This host cannot be what is wanted; nothing was changed.
fn unfit(message: impl Into<String>, cause: impl ToString, remedy: impl Into<String>) -> Trouble {
    let fault = Fault::new(fault::HOST_UNFIT, message, cause.to_string()).with_remedy(remedy);
    Trouble::new(Ending::Refused, fault)
}

/// Signs in with a token at the control server.
fn client(server: &str, token: &str) -> Result<Client, Trouble> {
    Client::new(Access { server: server.into(), token: Some(token.trim().into()) })
}

/// Has control know the credential of this host, or know it again.
async fn enroll(kept: &Kept, client: &Client, settings: &Settings) -> Result<Joined, Trouble> {
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let ask = async |secret| {
        let wanted =
            Join { secret, site: settings.site.clone(), host: host.clone(), components: settings.components() };
        client.join(&wanted).await.map(|answer| answer.read)
    };
    match ask(kept.secret()?).await {
        // A secret that was taken back is never taken again; with a new token the host may come again with another one.
        Err(trouble) if trouble.fault.is(code::HOST_REMOVED) => {
            let fresh = kept::fresh_secret();
            kept.keep_secret(&fresh)?;
            let refused = |again: Trouble| if again.fault.is(code::JOIN_REFUSED) { trouble } else { again };
            ask(fresh).await.map_err(refused)
        }
        answer => answer,
    }
}

/// The first host joins like any other, with a token that it makes itself when it needs one.
async fn enroll_first(kept: &Kept, operator: &Client, settings: &Settings) -> Result<Joined, Trouble> {
    match enroll(kept, operator, settings).await {
        Err(trouble) if trouble.fault.is(code::JOIN_REFUSED) || trouble.fault.is(code::HOST_REMOVED) => {
            let reason = Some("sockeye init on the host of the control server".to_string());
            let wanted = AddToken { site: Some(settings.site.clone()), lasts_ms: OWN_TOKEN_MS, reason };
            let made = operator.add_token(&wanted).await?.read;
            enroll(kept, &client(operator.server(), &made.token)?, settings).await
        }
        answer => answer,
    }
}

/// Waits until control has heard of every component of this host, but not for ever: who is missing then is missing in the
/// answer.
async fn connected(kept: &Kept, control: &Client, settings: &Settings) -> Result<Joined, Trouble> {
    let since = Instant::now();
    loop {
        let joined = enroll(kept, control, settings).await?;
        if missing(settings, &joined.connected).is_empty() || since.elapsed() > PATIENCE {
            return Ok(joined);
        }
        tokio::time::sleep(AGAIN).await;
    }
}

/// The components of this host that control has not heard of.
fn missing(settings: &Settings, connected: &[String]) -> Vec<String> {
    settings.components().into_iter().filter(|name| !connected.contains(name)).collect()
}

/// Everything is up: makes a token for the next host and signs in whoever asked.
async fn first(
    global: &Global,
    init: &cli::Init,
    operator: &Client,
    settings: &Settings,
    (url, admin_token_file): (String, &Path),
) -> Result<First, Trouble> {
    let lasts_ms = u64::try_from(init.token_expires.as_millis()).unwrap_or(u64::MAX);
    let wanted = AddToken { site: None, lasts_ms, reason: Some("sockeye init".into()) };
    let token = operator.add_token(&wanted).await?.read;
    let join = show::line(&token, &url);
    let admin_token_file = admin_token_file.to_path_buf();
    let profile_file = sign_in(global, operator, &admin_token_file);
    Ok(First { url, admin_token_file, profile_file, host: settings.clone(), token, join })
}

/// Signs in whoever ran this, on this host; not over the profile of another server.
fn sign_in(global: &Global, operator: &Client, admin_token_file: &Path) -> Option<PathBuf> {
    let environment = Environment { file: Environment::read().file, ..Environment::default() };
    let nothing_said = Global { server: None, profile: None, ..global.clone() };
    let another = profile::find(&nothing_said, &environment).is_ok_and(|known| known.server != operator.server());
    if another {
        return None;
    }
    let token = std::fs::read_to_string(admin_token_file).ok()?.trim().to_string();
    let access = Access { server: operator.server().into(), token: Some(token) };
    profile::store(&environment, "default", &access).ok()
}

impl First {
    fn show(&self, screen: Screen) {
        let file = self.admin_token_file.display();
        let signed_in = match &self.profile_file {
            Some(profile) => format!("you are signed in here ({}); elsewhere: ", profile.display()),
            None => String::new(),
        };
        let text = format!(
            "control server at {url}, site {site}: {what}\n  it speaks plain HTTP: let only a network that you trust reach it\n  \
             operators: {signed_in}sockeye login {url} < {file}\n  another host joins, once, until {until}:\n    {join}",
            url = self.url,
            site = self.host.site,
            what = self.host.components().join(", "),
            until = crate::show::words::instant(self.token.expires_at_ms),
            join = self.join,
        );
        screen.result(self, &text);
    }
}

impl Further {
    fn new(host: Settings, joined: Option<Joined>) -> Further {
        let outbound_only = host.address.is_none();
        let (credential, connected) = joined.map(|joined| (joined.id, joined.connected)).unzip();
        Further { host, credential, connected: connected.unwrap_or_default(), outbound_only }
    }

    fn show(&self, screen: Screen) {
        let dialled = if self.outbound_only { "connections: outbound only" } else { "other movers may dial it" };
        let known = match self.credential {
            Some(id) => format!("joined {}; this host's credential is {id}", self.host.server),
            None => format!("joined {} before; it was not reached now and is asked again", self.host.server),
        };
        let missing = match missing(&self.host, &self.connected) {
            missing if missing.is_empty() || self.credential.is_none() => String::new(),
            missing => format!("\n  NOT CONNECTED yet: {}", missing.join(", ")),
        };
        let what = self.host.components().join(", ");
        screen.result(self, &format!("site {}: {what}\n  {known}\n  {dialled}{missing}", self.host.site));
    }
}
