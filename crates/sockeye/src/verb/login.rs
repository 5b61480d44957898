//! `login URL`: proves the token against the server, then remembers both.

use std::io::{BufRead, IsTerminal, Read, Write};

use rustix::termios::{LocalModes, OptionalActions, tcgetattr, tcsetattr};

use crate::cli::{Global, Login};
use crate::client::Client;
use crate::ending::{Ending, Trouble};
use crate::profile::{self, Access, Environment};
use crate::show::Screen;

/// A token is short; whatever is longer is none.
const MOST_BYTES: u64 = 64 * 1024;

/// Does it.
///
/// # Errors
/// The server was not reached or refuses the token (5), or the profile cannot be stored.
pub async fn run(global: &Global, login: Login) -> Result<Ending, Trouble> {
    let (screen, environment) = (Screen::new(global.output), Environment::read());
    let server = profile::tidy(&login.url)?;
    let token = match login.token {
        Some(token) => token,
        None => tokio::task::spawn_blocking(read_token)
            .await
            .unwrap_or_else(|why| Err(Trouble::local("no token was read", why)))?,
    };
    // A token is sent as a header, which holds visible characters only.
    let token = token.trim().to_string();
    if token.is_empty() || !token.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(Trouble::usage("that is no token", "a token is one word of visible characters"));
    }
    let access = Access { server, token: Some(token) };
    let client = Client::new(access.clone())?;
    client.healthz().await?;
    client.status(None).await?;
    let name = global.profile.as_deref().unwrap_or("default");
    let file = profile::store(&environment, name, &access)?;
    let document = serde_json::json!({"server": access.server, "profile": name, "file": file});
    let text = format!("signed in to {} (profile {name} in {})\nnext: sockeye status", access.server, file.display());
    screen.result(&document, &text);
    Ok(Ending::Done)
}

/// One line from stdin; not shown while it is typed.
fn read_token() -> Result<String, Trouble> {
    let stdin = std::io::stdin();
    let mut line = String::new();
    let wrong = |why: std::io::Error| Trouble::local("no token was read", why);
    if !stdin.is_terminal() {
        stdin.lock().take(MOST_BYTES).read_line(&mut line).map_err(wrong)?;
        return Ok(line);
    }
    let mut out = std::io::stderr();
    write!(out, "Token: ").and_then(|()| out.flush()).map_err(wrong)?;
    let shown = tcgetattr(&stdin).map_err(|why| wrong(why.into()))?;
    let mut hidden = shown.clone();
    hidden.local_modes.remove(LocalModes::ECHO);
    tcsetattr(&stdin, OptionalActions::Now, &hidden).map_err(|why| wrong(why.into()))?;
    let read = stdin.lock().take(MOST_BYTES).read_line(&mut line);
    let restored = tcsetattr(&stdin, OptionalActions::Now, &shown);
    let _ = writeln!(out);
    read.map_err(wrong)?;
    restored.map_err(|why| wrong(why.into()))?;
    Ok(line)
}
