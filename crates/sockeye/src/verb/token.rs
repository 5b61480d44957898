//! `token …`: what lets hosts join, and the credentials of those that did. Done at once, without a job.

use protocol::Fault;
use protocol::fault::code;
use protocol::token::AddToken;

use super::Desk;
use super::history::agreed;
use crate::cli::{self, Sure, TokenVerb};
use crate::ending::{Ending, Trouble};
use crate::show::{token as show, words};

/// `token list | add | remove`.
///
/// # Errors
/// It is refused or not confirmed, or the server was not reached.
pub async fn run(desk: &Desk, verb: TokenVerb) -> Result<Ending, Trouble> {
    match verb {
        TokenVerb::List => {
            let tokens = desk.client.tokens().await?;
            desk.screen.result(&tokens.document, &show::list(&tokens.read, words::now_ms()));
        }
        TokenVerb::Add(add) => self::add(desk, add).await?,
        TokenVerb::Remove { id, sure } => remove(desk, id, &sure).await?,
    }
    Ok(Ending::Done)
}

async fn add(desk: &Desk, add: cli::AddToken) -> Result<(), Trouble> {
    let lasts_ms = u64::try_from(add.expires.as_millis()).unwrap_or(u64::MAX);
    let wanted = AddToken { site: add.site, lasts_ms, reason: add.sure.reason.clone() };
    desk.screen.say(&show::wanted(&wanted));
    let document = serde_json::json!({"site": wanted.site, "lasts_ms": wanted.lasts_ms});
    if agreed(desk, "Make it?", &add.sure, &document).await? {
        let made = desk.client.add_token(&wanted).await?;
        desk.screen.result(&made.document, &show::added(&made.read, desk.client.server()));
    }
    Ok(())
}

async fn remove(desk: &Desk, id: i64, sure: &Sure) -> Result<(), Trouble> {
    let tokens = desk.client.tokens().await?;
    let place = tokens.read.iter().position(|token| token.id == id);
    let Some((token, document)) = place.and_then(|n| Some((tokens.read.get(n)?, tokens.document.get(n)?))) else {
        let cause = format!("{} are there, and {id} is not one of them", tokens.read.len());
        let fault = Fault::new(code::UNKNOWN_TOKEN, format!("there is no token {id}"), cause);
        return Err(Trouble::new(Ending::Refused, fault));
    };
    desk.screen.say(&show::list(std::slice::from_ref(token), words::now_ms()));
    if agreed(desk, "Remove it?", sure, document).await? {
        desk.client.remove_token(id, sure.reason.as_deref()).await?;
        desk.screen.result(&serde_json::json!({"removed": id}), &format!("token {id} is removed"));
    }
    Ok(())
}
