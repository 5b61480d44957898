//! Join tokens and hosts' credentials, as people see them.

use protocol::token::{AddToken, AddedToken, TokenKind, TokenView};

use super::table::table;
use super::words;

/// The table of tokens.
pub fn list(tokens: &[TokenView], now_ms: i64) -> String {
    let rows = tokens.iter().map(|token| {
        vec![
            token.id.to_string(),
            match token.kind {
                TokenKind::Join => "join token".into(),
                TokenKind::Host => "host".into(),
            },
            token.site.as_ref().map_or_else(|| "any".into(), ToString::to_string),
            token.host.clone().unwrap_or_default(),
            words::ago(now_ms, token.made_at_ms),
            state(token, now_ms),
            token.components.join(", "),
        ]
    });
    let headings = ["ID", "KIND", "SITE", "HOST", "MADE", "STATE", "COMPONENTS"];
    table(&headings, rows.collect(), "no host has joined and none may; see: sockeye token add --help")
}

fn state(token: &TokenView, now_ms: i64) -> String {
    match (token.kind, token.used_at_ms, token.expires_at_ms) {
        (TokenKind::Host, _, _) => "joined".into(),
        (_, Some(at), _) => format!("used {}", words::ago(now_ms, at)),
        (_, _, Some(at)) if at <= now_ms => format!("EXPIRED {}", words::instant(at)),
        (_, _, Some(at)) => format!("good until {}", words::instant(at)),
        (_, _, None) => String::new(),
    }
}

/// A token before it is made.
pub fn wanted(token: &AddToken) -> String {
    let site = token.site.as_ref().map_or_else(|| "any site".into(), |site| format!("site {site}"));
    format!("a token that lets one host join at {site}, once, within {}", words::span(token.lasts_ms))
}

/// A token that was made, and what to do with it.
pub fn added(token: &AddedToken, server: &str) -> String {
    format!(
        "token {} is good until {}; on the host that shall join:\n  {}",
        token.id,
        words::instant(token.expires_at_ms),
        line(token, server)
    )
}

/// What is typed on the host that shall join.
pub fn line(token: &AddedToken, server: &str) -> String {
    let site = token.site.as_ref().map_or("SITE", |site| site.as_str());
    format!("sockeye join {server} --token {} --site {site}", token.token)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_says_what_it_is_still_good_for() {
        let mut token = TokenView {
            id: 3,
            kind: TokenKind::Join,
            site: None,
            host: None,
            made_at_ms: 1_000,
            expires_at_ms: Some(5_000),
            used_at_ms: None,
            components: vec![],
        };
        assert!(state(&token, 4_999).starts_with("good until") && state(&token, 5_000).starts_with("EXPIRED"));
        token.used_at_ms = Some(4_000);
        assert_eq!(state(&token, 6_000), "used 2.0 s ago");
        assert!(list(&[token], 6_000).contains("join token  any"));
        let added = AddedToken { id: 3, token: "t0".into(), site: None, expires_at_ms: 5_000 };
        assert_eq!(line(&added, "http://a:1"), "sockeye join http://a:1 --token t0 --site SITE");
    }
}
