//! `init`, `join` and `token` as they are typed, on the loopback: tokens that are good once, answers that are lost, hosts
//! that are put out. (Two hosts of their own, with machines: `install.rs`.)

#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::process::Child;

use crate::typed::{self, Ran, run};

/// A system whose first host runs in a process of its own.
struct System {
    dir: tempfile::TempDir,
    profiles: String,
    told: Value,
    _first: Child,
}

/// Starts what goes on until it is ended, and reads what it tells.
async fn goes_on(line: &str, profiles: &str) -> (Child, Value) {
    let environment = [("SOCKEYE_CONFIG", profiles), ("SOCKEYE_LOG", "warn")];
    let mut command = typed::command(&format!("{line} --output json"), &environment);
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
    let told = typed::told(line, &mut child).await;
    (child, told)
}

impl System {
    async fn new() -> System {
        let dir = tempfile::tempdir().unwrap();
        let profiles = dir.path().join("profiles.toml").display().to_string();
        let line = System::init(&dir.path().join("cloud"));
        let (first, told) = goes_on(&line, &profiles).await;
        System { dir, profiles, told, _first: first }
    }

    fn init(data_dir: &Path) -> String {
        format!("init --site cloud --address 127.0.0.1 --port 0 --foreground --data-dir {}", data_dir.display())
    }

    fn url(&self) -> &str {
        self.told["url"].as_str().unwrap()
    }

    fn at(&self, host: &str) -> PathBuf {
        self.dir.path().join(host)
    }

    /// What a host types that joins.
    fn join(&self, token: &str, host: &str, url: &str) -> String {
        let data_dir = self.at(host);
        format!("join {url} --token {token} --site home --port 0 --foreground --data-dir {}", data_dir.display())
    }

    /// Runs a command as whoever ran `init`: that is all that it takes to be signed in.
    async fn run(&self, line: &str) -> Ran {
        run(line, &[("SOCKEYE_CONFIG", &self.profiles)], "").await
    }

    async fn ends(&self, code: i32, line: &str, says: &[&str]) -> Ran {
        let ran = self.run(line).await;
        assert_eq!(ran.code, code, "sockeye {line}\n{}{}", ran.stdout, ran.stderr);
        let all = format!("{}{}", ran.stdout, ran.stderr);
        says.iter().for_each(|word| assert!(all.contains(word), "{word:?} in {line}: {all}"));
        ran
    }

    async fn token(&self, options: &str) -> String {
        let made = self.ends(0, &format!("token add {options} --yes --output json"), &[]).await.json();
        made["token"].as_str().unwrap().to_string()
    }

    /// Waits until so many components are connected.
    async fn connected(&self, wanted: usize) {
        let since = Instant::now();
        loop {
            let list = self.ends(0, "component list --output json", &[]).await.json();
            let connected = list.as_array().unwrap().iter().filter(|component| component["connected"] == true).count();
            if connected == wanted {
                return;
            }
            assert!(since.elapsed() < Duration::from_secs(30), "{connected} and not {wanted} are connected: {list}");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
}

#[tokio::test]
async fn a_host_joins_with_a_token_that_is_good_once_and_goes_on_without_it() {
    let system = System::new().await;
    let token = system.told["token"]["token"].as_str().unwrap();
    let line = format!("sockeye join {} --token {token} --site SITE", system.url());
    assert_eq!(system.told["join"], line.as_str());
    assert!(system.at("cloud").join("server/admin.token").exists() && !system.at("cloud/server/join.token").exists());
    system.connected(2).await;

    let (mut home, told) = goes_on(&system.join(token, "home", system.url()), &system.profiles).await;
    assert_eq!((&told["outbound_only"], &told["host"]["site"]), (&true.into(), &"home".into()), "{told}");
    system.connected(4).await;
    let listed = system.ends(0, "token list --output json", &[]).await;
    assert!(!listed.stdout.contains(token));
    let hosts = listed.json();
    let of_home = hosts.as_array().unwrap().iter().find(|row| row["kind"] == "host" && row["site"] == "home").unwrap();
    assert_eq!(of_home["components"], serde_json::json!(["home-master-target", "home-process-server"]));
    system.ends(0, "token list", &["join token", "used", "joined", "home-process-server"]).await;

    // Nobody else joins with it, nothing else uses the directory, and the same host is started again without asking twice.
    system.ends(3, &system.join(token, "other", system.url()), &["error CTL-024", "joined with it", "token add"]).await;
    system.ends(3, &system.join(token, "home", system.url()), &["error CLI-007", "in use"]).await;
    home.kill().await.unwrap();
    system.ends(3, &system.join(token, "home", "http://127.0.0.1:1"), &["error CLI-008", "server is"]).await;
    let paris = system.join(token, "home", system.url()).replace("--site home", "--site paris");
    system.ends(3, &paris, &["error CLI-008", r#"site is "home" and not "paris""#]).await;
    let (_home, again) = goes_on(&system.join(token, "home", system.url()), &system.profiles).await;
    assert_eq!(again["credential"], told["credential"]);
    system.connected(4).await;
}

#[tokio::test]
async fn what_cannot_be_is_refused_and_leaves_nothing() {
    let system = System::new().await;
    let join = |token: &str| system.join(token, "home", system.url());
    system.ends(3, &join("nonsense"), &["error CTL-024", "no such token"]).await;
    let paris = system.token("--site paris").await;
    system.ends(3, &join(&paris), &["error CTL-024", "site paris"]).await;
    let expired = system.token("--expires 1ms").await;
    system.ends(3, &join(&expired), &["error CTL-024", "good until"]).await;
    assert!(!system.at("home").join("host.toml").exists(), "it has joined nothing");
    // A port of the loopback that was just given back.
    let port = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port();
    let token = system.token("").await;
    let nowhere = system.join(&token, "home", &format!("http://127.0.0.1:{port}"));
    system.ends(5, &nowhere, &["error CLI-001"]).await;

    let taken = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let listener = TcpListener::bind(taken).await.unwrap();
    let second = System::init(&system.at("second"));
    let busy = second.replace("--port 0", &format!("--port {}", taken.port()));
    system.ends(3, &busy, &["error CLI-007", "--port"]).await;
    drop(listener);
    let foreign = second.replace("--address 127.0.0.1", "--address 192.0.2.7");
    system.ends(3, &foreign, &["error CLI-007", "--address"]).await;
    assert!(!system.at("second/server").exists(), "nothing was begun");
    system.ends(3, &System::init(&system.at("cloud")), &["error CLI-007", "in use"]).await;
    // With systemd and the package it would do it, to this very host: cargo xtask package --check has hosts for that.
    if !Path::new("/run/systemd/system").is_dir() {
        let services = ["init --site cloud --address 127.0.0.1", "join http://127.0.0.1:1 --token t --site home"];
        for line in services {
            system.ends(3, line, &["error CLI-007", "systemd does not run here", "--foreground"]).await;
        }
    }
    system.ends(2, "join http://127.0.0.1:1 --site home", &["--token"]).await;
    system.ends(2, "token add", &["error CLI-003"]).await;
    system.ends(0, "token add --dry-run --site home", &["lets one host join at site home"]).await;
    system.ends(3, "token remove 99 --yes", &["error CTL-027"]).await;
}

/// Passes one request on and keeps the answer to itself; gives the address where it does that.
async fn loses_the_answer(server: &str) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let (address, server) = (listener.local_addr().unwrap(), server.trim_start_matches("http://").to_string());
    tokio::spawn(async move {
        let (mut client, _) = listener.accept().await.unwrap();
        let mut control = TcpStream::connect(server).await.unwrap();
        let mut buffer = vec![0; 64 << 10];
        // Until control has answered: by then the host is in.
        loop {
            let (mut heard, mut said) = (vec![0; 64 << 10], 0);
            tokio::select! {
                read = client.read(&mut buffer) => control.write_all(&buffer[..read.unwrap()]).await.unwrap(),
                read = control.read(&mut heard) => said = read.unwrap(),
            }
            if said > 0 {
                return;
            }
        }
    });
    format!("http://{address}")
}

#[tokio::test]
async fn a_lost_answer_strands_no_host() {
    let system = System::new().await;
    let token = system.token("--site home").await;
    let lossy = loses_the_answer(system.url()).await;
    system.ends(5, &system.join(&token, "home", &lossy), &["error CLI-001"]).await;
    system.ends(3, &system.join(&token, "other", system.url()), &["error CTL-024", "joined with it"]).await;
    let (_home, told) = goes_on(&system.join(&token, "home", system.url()), &system.profiles).await;
    assert!(told["credential"].is_i64(), "{told}");
    system.connected(4).await;
}

#[tokio::test]
async fn a_host_that_is_put_out_is_out_at_once_and_comes_again_with_a_new_token() {
    let system = System::new().await;
    let token = system.token("").await;
    let (mut home, told) = goes_on(&system.join(&token, "home", system.url()), &system.profiles).await;
    system.connected(4).await;
    let remove = format!("token remove {} --yes --reason sold", told["credential"]);
    system.ends(0, &remove, &["home-process-server", "is removed"]).await;
    system.connected(2).await;
    home.kill().await.unwrap();
    system.ends(3, &system.join(&token, "home", system.url()), &["error CTL-026", "token add"]).await;
    let fresh = system.token("--site home").await;
    let (_home, again) = goes_on(&system.join(&fresh, "home", system.url()), &system.profiles).await;
    assert_ne!(again["credential"], told["credential"]);
    system.connected(4).await;
    system.ends(0, "audit", &["credential", "removed", "sold"]).await;
}
