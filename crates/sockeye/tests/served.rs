//! The command line against the real control server, and the whole circle by hand against `sockeye up`.

#![allow(clippy::unwrap_used)]

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use crate::typed;
use crate::typed::Ran;
use serde_json::{Value, json};
use tokio::process::Child;

fn attempt(point: &Value) -> String {
    point["attempt"].as_str().unwrap().to_string()
}

/// A role that runs until the test ends, and the QEMUs that it leaves behind.
struct Role {
    child: Child,
    dir: tempfile::TempDir,
    told: Value,
    token: String,
}

impl Role {
    /// Starts `sockeye VERB --data-dir …` on a free port and waits for what it tells.
    async fn start(verb: &str) -> Role {
        let dir = tempfile::tempdir().unwrap();
        let line = format!("{verb} --data-dir {} --listen 127.0.0.1:0 --output json", dir.path().display());
        let mut command = typed::command(&line, &[("SOCKEYE_LOG", "warn")]);
        let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
        let told = typed::told(verb, &mut child).await;
        let token = std::fs::read_to_string(told["admin_token_file"].as_str().unwrap()).unwrap().trim().to_string();
        Role { child, dir, told, token }
    }

    fn url(&self) -> &str {
        self.told["url"].as_str().unwrap()
    }

    /// Runs a command, signed in.
    async fn run(&self, line: &str) -> Ran {
        typed::run(line, &[("SOCKEYE_SERVER", self.url()), ("SOCKEYE_TOKEN", &self.token)], "").await
    }

    /// Runs a command that must end so.
    async fn ends(&self, code: i32, line: &str) -> Ran {
        let ran = self.run(line).await;
        assert_eq!(ran.code, code, "sockeye {line}\n{}{}", ran.stdout, ran.stderr);
        ran
    }

    /// Pins `first`, takes another point, and gives the item a policy that lets all others go.
    async fn keeps_what_it_is_told_to(&self, first: &str) {
        let points = async || self.ends(0, "points web01 --output json").await.json().as_array().unwrap().clone();
        self.ends(0, &format!("point pin web01 --point {first} --yes --reason audit")).await;
        self.ends(3, "point pin web01 --point 99.1 --yes").await;
        let added = self.ends(0, "point add web01 --yes --output json").await.json();
        let added = added["attempt"].as_str().unwrap().to_string();
        let kept: Vec<String> = points().await.iter().filter(|point| point["pinned"] == true).map(attempt).collect();
        assert_eq!(kept, [first, &added]);

        let short = "policy add short --rpo-limit 1h --all-for 2s --then-none --app-none --budget 50MiB";
        self.ends(2, short).await;
        self.ends(0, &format!("{short} --yes")).await;
        self.ends(3, "policy add short --yes").await;
        let told = self.ends(0, "policy apply short web01 --dry-run --output json").await.json();
        assert!(told["items"][0]["go"].is_u64(), "{told}");
        self.ends(0, "policy apply short web01 --yes").await;
        self.ends(3, "policy remove short --yes").await;
        let since = std::time::Instant::now();
        // At most those of the last two seconds, the pinned ones, and what came while this was asked.
        while points().await.len() > 8 {
            assert!(since.elapsed() < Duration::from_secs(60), "{:?}", points().await);
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
        let left: Vec<String> = points().await.iter().map(attempt).collect();
        assert!(left.contains(&first.to_string()), "{left:?}");
        let page = self.ends(0, "item show web01").await.stdout;
        assert!(page.contains("short") && page.contains("of 50.0 MiB"), "{page}");
        self.ends(0, "policy apply standard web01 --yes").await;
        self.ends(0, "policy remove short --yes").await;
    }

    /// Copies what a point shows of `disk0` to a file.
    async fn copies(&self, point: &str, to: &Path) {
        let job = self.ends(0, &format!("view web01 --point {point} --yes --output json")).await.json();
        let view = &job["figures"]["served"];
        let uri = view["disks"][0]["uri"].as_str().unwrap_or_else(|| panic!("{job}"));
        let mut copy = std::process::Command::new("qemu-img");
        assert!(copy.args(["convert", "-f", "raw", "-O", "raw", uri]).arg(to).status().unwrap().success());
        self.ends(0, &format!("view web01 --end {} --yes", view["number"])).await;
    }

    /// Makes `web01` run at home: 16 MiB of content, and no system on it, so QEMU's firmware looks for one for ever.
    async fn has_a_machine(&self) {
        let site = self.dir.path().join("home");
        let disk = site.join("web01.img");
        let content: Vec<u8> = (0..4u32 << 20).flat_map(u32::to_le_bytes).collect();
        std::fs::write(&disk, content).unwrap();
        let (site, disk) = (site.display(), disk.display());
        self.ends(0, &format!("vm define --site-dir {site} --name web01 --memory 64 --disk disk0={disk} --start"))
            .await;
        self.knows("running").await;
    }

    /// Waits until control has heard that the machine at home does this.
    async fn knows(&self, power: &str) {
        for _ in 0..300 {
            let machines = self.ends(0, "vm list --site home --output json").await.json();
            if machines[0]["machine"]["power"] == power {
                return;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        panic!("web01 at home is never {power}");
    }

    async fn metrics(&self) -> String {
        let asked = reqwest::Client::new().get(format!("{}/metrics", self.url())).bearer_auth(&self.token);
        asked.send().await.unwrap().text().await.unwrap()
    }

    async fn stage(&self) -> String {
        self.ends(0, "item show web01 --output json").await.json()["stage_words"].as_str().unwrap().to_string()
    }
}

impl Drop for Role {
    fn drop(&mut self) {
        let _ = self.child.start_kill();
        for pid in ["home", "cloud"].iter().flat_map(|site| qemus(&self.dir.path().join(site))) {
            if let Some(pid) = rustix::process::Pid::from_raw(pid) {
                let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
            }
        }
    }
}

/// The QEMUs of a site, by their pid files; a number that is another program's by now does not count.
fn qemus(site: &Path) -> Vec<i32> {
    let machines = std::fs::read_dir(site.join("machines")).into_iter().flatten().flatten();
    let files = machines.map(|machine| machine.path().join("pid"));
    let running = |file: PathBuf| {
        let pid: i32 = std::fs::read_to_string(&file).ok()?.trim().parse().ok()?;
        let command_line = std::fs::read_to_string(format!("/proc/{pid}/cmdline")).ok()?;
        command_line.contains(file.to_str()?).then_some(pid)
    };
    files.filter_map(running).collect()
}

#[tokio::test]
async fn the_real_server_answers_with_the_exit_codes_of_the_contract() {
    let server = Role::start("server").await;
    assert_eq!(server.ends(0, "status --output json").await.json(), json!([]));
    server.ends(0, "status --check").await;
    for line in [
        "item show web01",
        "points web01",
        "explain web01",
        "job show 7",
        "status web01",
        "failover web01 --planned --yes",
    ] {
        let ran = server.ends(3, line).await;
        assert!(ran.stderr.starts_with("error CTL-00") && ran.stderr.contains("\n  next:"), "{line}: {ran:?}");
    }
    // No site is there to protect from: refused by checks, and nothing is begun.
    for line in ["protect web01 --from home --to cloud --yes", "protect web01 --from home --to cloud --dry-run"] {
        let ran = server.ends(3, line).await;
        assert!(ran.stdout.contains("REFUSED"), "{ran:?}");
    }
    assert_eq!(server.ends(0, "job list --output json").await.json(), json!([]));
    assert_eq!(server.ends(0, "item list --output json").await.json(), json!([]));
    for line in ["component list", "vm list", "audit", "job list"] {
        server.ends(0, line).await;
    }
    let wrong = [("SOCKEYE_SERVER", server.url()), ("SOCKEYE_TOKEN", "wrong")];
    assert_eq!(typed::run("status", &wrong, "").await.code, 5);
    let profiles = server.dir.path().join("profiles.toml");
    let environment = [("SOCKEYE_CONFIG", profiles.to_str().unwrap())];
    let ran = typed::run(&format!("login {}", server.url()), &environment, &server.token).await;
    assert_eq!(ran.code, 0, "{ran:?}");
    assert_eq!(typed::run("status", &environment, "").await.code, 0);
}

#[tokio::test]
async fn events_of_the_real_server_begin_with_what_is() {
    let server = Role::start("server").await;
    let environment = [("SOCKEYE_SERVER", server.url()), ("SOCKEYE_TOKEN", server.token.as_str())];
    let mut command = typed::command("events", &environment);
    let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    // A stream that is refused ends at once; one that is served goes on until Ctrl-C.
    tokio::time::sleep(Duration::from_millis(700)).await;
    let pid = rustix::process::Pid::from_raw(child.id().unwrap() as i32).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    let ran = typed::ended("events", child).await;
    assert_eq!((ran.code, ran.stderr.as_str()), (0, ""), "{ran:?}");
}

/// The walkthrough.
#[tokio::test]
async fn a_machine_goes_out_to_sea_and_comes_home_by_hand() {
    let up = Role::start("up").await;
    let site = up.dir.path().join("home").display().to_string();
    up.ends(1, &format!("vm define --site-dir {site} --name web01 --disk disk0={site}/none.img")).await;
    up.has_a_machine().await;
    let components = up.ends(0, "component list --output json").await.json();
    assert_eq!(components.as_array().unwrap().len(), 4);

    let protect = "protect web01 --from home --to cloud";
    up.ends(2, protect).await;
    up.ends(0, &format!("{protect} --dry-run")).await;
    assert_eq!(
        up.ends(0, "job list --output json").await.json(),
        json!([]),
        "a dry run or a missing yes began something"
    );
    let job = up.ends(0, &format!("{protect} --yes --output json")).await.json();
    assert_eq!(job["state"], "done");
    assert!(job["figures"]["first"]["changed"].as_u64().unwrap() >= 15 << 20, "{job}");
    assert_eq!(up.stage().await, "protected");
    up.ends(0, &format!("{protect} --yes")).await;
    let points = up.ends(0, "points web01 --output json").await.json();
    let first = points[0]["attempt"].as_str().unwrap().to_string();
    let ran = up.ends(0, &format!("points web01 --diff {first} {first}")).await;
    assert!(ran.stdout.contains("DISK") && ran.stdout.contains("disk0  0"), "a point differs from itself: {ran:?}");
    assert!(up.ends(3, &format!("points web01 --diff {first} 99.1")).await.stderr.contains("RPL-007"));
    up.ends(3, "points web01 --at nowhere").await;
    let job = up.ends(0, "verify web01 --output json").await.json();
    let verified = &job["figures"]["verified"];
    assert!(verified["damage_count"] == 0 && verified["disk_bytes"].as_u64() > Some(0), "{job}");
    up.ends(3, "verify web01 --at nowhere").await;
    up.keeps_what_it_is_told_to(&first).await;
    up.ends(0, "status --check").await;

    up.ends(0, "failback web01").await; // it is at home already
    up.ends(3, "commit web01 --yes").await;
    up.ends(0, "failover web01 --unplanned --shut-down skip --yes --reason drill").await;
    assert_eq!(up.stage().await, "commit pending");
    let ran = up.ends(1, "status --check").await;
    assert!(ran.stdout.starts_with("NOT PROTECTED: 1 of 1\n  web01 (commit pending)"), "{ran:?}");
    let ran = up.ends(0, "commit web01 --yes").await;
    assert!(ran.stdout.contains("web01 is NOT PROTECTED") || ran.stderr.contains("web01 is NOT PROTECTED"), "{ran:?}");
    assert_eq!(up.stage().await, "failed over, NOT PROTECTED");
    let ran = up.ends(0, "status").await;
    let above = "NOT PROTECTED: 1 of 1\n  web01 (failed over, NOT PROTECTED): what it writes is nowhere else; next: sockeye reprotect web01 --shut-down\n\nITEM";
    assert!(ran.stdout.starts_with(above), "{ran:?}");
    let metrics = up.metrics().await;
    assert!(metrics.contains("sockeye_item_protected{item=\"web01\"} 0"), "{metrics}");
    // Its old self still runs at home (R26).
    let ran = up.ends(3, "reprotect web01 --yes").await;
    assert!(ran.stderr.contains("--shut-down"), "{ran:?}");
    up.ends(0, &format!("vm stop --site-dir {site} web01 --shut-down-timeout 1s --then power-off")).await;
    up.knows("off").await;
    up.ends(0, "reprotect web01 --yes").await;
    assert_eq!(up.stage().await, "protected (reverse)");
    // What home had not sent when it was left is kept there as a point of its own, and can be compared with the new line.
    let points = up.ends(0, "points web01 --output json").await.json();
    let points = points.as_array().unwrap();
    assert_eq!(points[0]["kind"], "unreplicated", "{points:?}");
    let [kept, newest] = [&points[0], &points[points.len() - 1]].map(|point| point["attempt"].as_str().unwrap());
    let told = up.ends(0, &format!("points web01 --diff {kept} {newest} --at home --output json")).await.json();
    assert_eq!(told["disks"][0]["disk"], "disk0", "{told}");
    assert!(told["disks"][0]["bytes"].as_u64().unwrap() <= told["to"]["changed_bytes"].as_u64().unwrap(), "{told}");
    // It is pinned, and copied as it is seen now: the fold after the commit at home ends its history.
    up.ends(0, &format!("point pin web01 --point {kept} --yes")).await;
    let seen = up.dir.path().join("seen.raw");
    up.copies(kept, &seen).await;

    let waiting = up.ends(4, "failback web01 --shut-down-timeout 1s --then power-off --yes --output json").await.json();
    assert_eq!((&waiting["state"], &waiting["next"]), (&json!("waiting"), &json!("sockeye complete web01")));
    let ran = up.ends(4, &format!("job watch {}", waiting["id"])).await;
    assert!(ran.stdout.contains("next: sockeye complete web01"), "{ran:?}");
    let job = up.ends(0, "complete web01 --yes --output json").await.json();
    assert!(job["figures"]["downtime_ms"].as_u64().is_some(), "{job}");
    let job = up.ends(0, "commit web01 --yes --output json").await.json();
    assert_eq!(up.stage().await, "home, NOT PROTECTED");
    let details = job["steps"].as_array().unwrap().iter().filter_map(|step| step["detail"].as_str());
    let folder =
        details.filter_map(|detail| detail.split_once("written to ")).next().unwrap_or_else(|| panic!("{job}")).1;
    let exported = Path::new(folder).join("disk0.qcow2");
    let mut same = std::process::Command::new("qemu-img");
    same.args(["compare", "-f", "qcow2", "-F", "raw"]).arg(&exported).arg(&seen);
    assert!(same.status().unwrap().success(), "{}", exported.display());
    up.ends(0, "reverse web01 --yes").await;
    assert_eq!(up.stage().await, "protected");
    assert!(up.ends(0, "audit").await.stdout.contains("drill"));
    up.ends(0, "unprotect web01 --delete --yes").await;
}

#[tokio::test]
async fn a_failover_that_is_cancelled_goes_back_and_is_protected_again() {
    let up = Role::start("up").await;
    up.has_a_machine().await;
    up.ends(0, "protect web01 --from home --to cloud --interval 500ms --yes").await;
    // This guest hears nothing: without leave to take its power the move is undone.
    let ran = up.ends(1, "failover web01 --planned --shut-down-timeout 1s --yes").await;
    assert!(ran.stderr.contains("error PLT-004") && ran.stderr.contains("--then power-off"), "{ran:?}");
    assert_eq!(up.stage().await, "protected");
    up.ends(0, "failover web01 --planned --shut-down-timeout 1s --then power-off --yes").await;
    assert_eq!(up.stage().await, "commit pending");
    let ran = up.ends(0, "cancel web01 --dry-run").await;
    assert!(ran.stdout.contains("cancel web01: cloud → home"), "{ran:?}");
    // Its firmware would have a minute to hear that it shall shut down.
    let cloud = up.dir.path().join("cloud").display().to_string();
    up.ends(0, &format!("vm stop --site-dir {cloud} web01 --shut-down-timeout 1s --then power-off")).await;
    up.ends(0, "cancel web01 --yes").await;
    assert_eq!(up.stage().await, "protected");
    up.knows("running").await;
}
