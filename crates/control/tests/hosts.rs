//! Hosts join once, are known again, stay what they are, and are put out.

#![allow(clippy::unwrap_used)]

use control::{Control, Principal};
use protocol::fault::{Entry, Fault, code};
use protocol::order::{Registration, Role};
use protocol::rest::Register;
use protocol::token::{AddToken, Join, TokenKind};

const DAY_MS: u64 = 86_400_000;

fn secret(of: char) -> String {
    of.to_string().repeat(protocol::token::SECRET_CHARS)
}

fn host(name: &str, of: char) -> Join {
    Join {
        secret: secret(of),
        site: "home".parse().unwrap(),
        host: name.into(),
        components: vec!["home-process-server".into()],
    }
}

async fn open() -> (tempfile::TempDir, Control) {
    let folder = tempfile::tempdir().unwrap();
    let control = Control::open(folder.path()).await.unwrap();
    (folder, control)
}

async fn token(control: &Control, site: Option<&str>, lasts_ms: u64) -> String {
    let site = site.map(|site| site.parse().unwrap());
    control.add_token(AddToken { site, lasts_ms, reason: Some("a test".into()) }).await.unwrap().token
}

fn component(name: &str, site: &str) -> Register {
    let registration = Registration {
        name: name.into(),
        site: site.parse().unwrap(),
        role: Role::ProcessServer,
        address: None,
        version: "0".into(),
        platform: "model".into(),
    };
    Register { registration, certificate_request: identity::Request::make().unwrap().pem }
}

fn refused<T: std::fmt::Debug>(answer: Result<T, Fault>, entry: &Entry, because: &str) {
    let fault = answer.unwrap_err();
    assert!(fault.is(entry) && fault.cause.contains(because), "{because:?} in {fault:?}");
}

#[tokio::test]
async fn a_token_lets_one_host_in_and_that_host_may_ask_again() {
    let (folder, control) = open().await;
    let token = token(&control, None, DAY_MS).await;
    let first = control.join(&token, host("h1", '1')).await.unwrap();
    // Its answer was lost: the same question, and even without the token.
    assert_eq!(control.join(&token, host("h1", '1')).await.unwrap(), first);
    assert_eq!(control.join("nonsense", host("h1", '1')).await.unwrap(), first);
    refused(control.join(&token, host("h2", '2')).await, code::JOIN_REFUSED, "h1 joined with it");
    assert_eq!(control.principal(&secret('1')).await.unwrap(), Some(Principal::Host(first.id)));
    for nobody in [&token, &secret('2')] {
        assert_eq!(control.principal(nobody).await.unwrap(), None);
    }
    // So it is after a restart, and nothing that is kept is a secret.
    control.stop().await;
    let control = Control::open(folder.path()).await.unwrap();
    assert_eq!(control.join(&token, host("h1", '1')).await.unwrap(), first);
    refused(control.join(&token, host("h2", '2')).await, code::JOIN_REFUSED, "h1 joined with it");
    let hosts = control.tokens().await.unwrap().into_iter().filter(|token| token.kind == TokenKind::Host);
    assert_eq!(hosts.count(), 1);
    control.stop().await;
    for file in std::fs::read_dir(folder.path()).unwrap() {
        let content = std::fs::read(file.unwrap().path()).unwrap();
        for secret in [token.as_bytes(), secret('1').as_bytes()] {
            assert!(!content.windows(secret.len()).any(|window| window == secret));
        }
    }
}

#[tokio::test]
async fn two_hosts_that_come_at_once_with_one_token_are_one_host_and_a_refusal() {
    let (_folder, control) = open().await;
    let token = token(&control, None, DAY_MS).await;
    let hosts = ['1', '2', '3', '4'].map(|of| control.join(&token, host("h", of)));
    let joined = futures::future::join_all(hosts).await;
    assert_eq!(joined.iter().filter(|joined| joined.is_ok()).count(), 1, "{joined:?}");
}

#[tokio::test]
async fn what_is_no_good_is_refused_and_says_why() {
    let (_folder, control) = open().await;
    refused(control.join("nonsense", host("h", '1')).await, code::JOIN_REFUSED, "no such token");
    let elsewhere = token(&control, Some("paris"), DAY_MS).await;
    refused(control.join(&elsewhere, host("h", '1')).await, code::JOIN_REFUSED, "site paris");
    let short = token(&control, Some("home"), 1).await;
    let began = std::time::Instant::now();
    while began.elapsed().as_millis() < 3 {
        tokio::task::yield_now().await;
    }
    refused(control.join(&short, host("h", '1')).await, code::JOIN_REFUSED, "good until");
    let back = control.add_token(AddToken { site: None, lasts_ms: DAY_MS, reason: None }).await.unwrap();
    control.remove_token(back.id, Some("typo")).await.unwrap();
    refused(control.join(&back.token, host("h", '1')).await, code::JOIN_REFUSED, "taken back");
    refused(control.remove_token(99, None).await, code::UNKNOWN_TOKEN, "");
    for lasts_ms in [0, 400 * DAY_MS] {
        refused(control.add_token(AddToken { site: None, lasts_ms, reason: None }).await, code::BAD_REQUEST, "");
    }
    let good = token(&control, None, DAY_MS).await;
    let weak = |secret: &str| Join { secret: secret.into(), ..host("h", '1') };
    for bad in ["", "1234", &good.replace(|_| true, "z"), &good] {
        refused(control.join(&good, weak(bad)).await, code::BAD_REQUEST, "");
    }
    control.join(&good, host("h", '1')).await.unwrap();
    // A host does not move.
    let moved = Join { site: "paris".parse().unwrap(), ..host("h", '1') };
    refused(control.join(&good, moved).await, code::JOIN_REFUSED, "joined at site home");
    let audit = format!("{:?}", control.audit().await.unwrap());
    for word in ["token 1 made", "a test", "token 3 removed", "typo", "host h joined site home with token 4"] {
        assert!(audit.contains(word), "{word} in {audit}");
    }
}

#[tokio::test]
async fn a_credential_registers_components_of_its_own_and_no_others() {
    let (_folder, control) = open().await;
    let one = control.join(&token(&control, None, DAY_MS).await, host("h1", '1')).await.unwrap().id;
    let free = Join { components: vec![], ..host("h2", '2') };
    let other = control.join(&token(&control, None, DAY_MS).await, free).await.unwrap().id;

    refused(control.register_of(one, component("p", "paris")).await, code::HOST_REFUSED, "joined at site home");
    control.register_of(one, component("home-process-server", "home")).await.unwrap();
    control.register_of(one, component("home-process-server", "home")).await.unwrap();
    for taken in [
        control.register_of(other, component("home-process-server", "home")).await,
        control.register(component("home-process-server", "home")).await,
    ] {
        refused(taken, code::HOST_REFUSED, "belongs to host h1");
    }
    // A host that comes later is told when it joins, and its token stays good.
    let late = token(&control, None, DAY_MS).await;
    refused(control.join(&late, host("h3", '3')).await, code::HOST_REFUSED, "belongs to host h1");

    control.remove_token(one, Some("sold")).await.unwrap();
    control.remove_token(one, None).await.unwrap();
    control.join(&late, host("h3", '3')).await.unwrap();
    control.register_of(other, component("home-process-server", "home")).await.unwrap();
}

#[tokio::test]
async fn a_host_that_is_put_out_can_do_nothing_more_and_comes_again_only_with_another_secret() {
    let (folder, control) = open().await;
    let id = control.join(&token(&control, None, DAY_MS).await, host("h1", '1')).await.unwrap().id;
    let registered = control.register_of(id, component("home-process-server", "home")).await.unwrap();
    let owner = Some(Principal::Component("home-process-server".into()));
    assert_eq!(control.principal(&registered.token).await.unwrap(), owner);
    let listed = control.tokens().await.unwrap();
    assert_eq!(listed.last().unwrap().components, ["home-process-server"]);

    control.remove_token(id, None).await.unwrap();
    for nobody in [&registered.token, &secret('1')] {
        assert_eq!(control.principal(nobody).await.unwrap(), None);
    }
    refused(control.register_of(id, component("home-process-server", "home")).await, code::HOST_REMOVED, "");
    assert!(control.tokens().await.unwrap().iter().all(|token| token.id != id));
    control.stop().await;

    let control = Control::open(folder.path()).await.unwrap();
    let again = token(&control, None, DAY_MS).await;
    refused(control.join(&again, host("h1", '1')).await, code::HOST_REMOVED, "not taken again");
    let back = control.join(&again, host("h1", '2')).await.unwrap().id;
    control.register_of(back, component("home-process-server", "home")).await.unwrap();
}
