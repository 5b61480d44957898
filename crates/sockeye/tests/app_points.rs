//! Application-consistent points on the command line: how one is asked for, how the latest is chosen, and how it is refused; and
//! with a real guest whose agent is Debian's own.
#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use demo::net::Hosts;
use demo::world::{At, FORMATS, MACHINE, Part, Settings, World, wait_for};
use platforms::qemu::Qemu;
use platforms::{Platform, Start};
use protocol::Freeze;
use protocol::epoch::{Point, PointKind};
use protocol::keeping::KeptPoint;
use protocol::machine::{Boot, DiskFormat, DiskSource, DiskSpec, MachineSpec};
use protocol::rest::{Job, Operation, Plan};
use serde_json::{Value, json};

use crate::canned::{Canned, problem};

fn point(number: u64, kind: &str, freeze: Value) -> Value {
    json!({
        "attempt": format!("1.{number}"), "cut_at_ms": 1000 * number, "sealed_at_ms": 1000 * number, "kind": kind,
        "changed_bytes": 4096, "freeze": freeze, "pinned": false
    })
}

#[tokio::test]
async fn one_is_asked_for_and_refused_where_the_guest_has_no_agent() {
    let server = Canned::start().await;
    let route = "POST /api/v1/items/web01/points";
    let done = json!({"done": {"file_systems": 2, "freeze_ms": 30, "frozen_ms": 12}});
    server.on(route, 409, problem("PLT-015")).on(route, 200, point(7, "app_consistent", done));
    let ran = server.run("point add web01 --app --yes").await;
    assert_eq!(ran.code, 3, "{ran:?}");
    for part in ["PLT-015", "it does not go", "the facts", "do this"] {
        assert!(ran.stderr.contains(part), "{part} in {ran:?}");
    }
    let ran = server.run("point add web01 --app --yes --reason release").await;
    assert!(ran.code == 0 && ran.stdout.contains("1.7, app-consistent"), "{ran:?}");
    let wanted = |reason: Value| json!({"app": true, "reason": reason});
    assert_eq!(server.posted(route), [wanted(Value::Null), wanted("release".into())]);
}

#[tokio::test]
async fn the_latest_one_is_looked_up_or_there_is_none() {
    let server = Canned::start().await;
    let failed = json!({"failed": {"code": "PLT-016", "cause": "the hook ended with 3"}});
    let done = json!({"done": {"file_systems": 1, "freeze_ms": 30, "frozen_ms": 12}});
    let none = json!([point(1, "crash_consistent", failed), point(2, "crash_consistent", Value::Null)]);
    let all = json!([
        point(3, "app_consistent", done.clone()),
        point(4, "app_consistent", done),
        point(5, "crash_consistent", Value::Null)
    ]);
    let (points, plans) = ("GET /api/v1/items/web01/points", "POST /api/v1/plans");
    server.on(points, 200, none.clone()).on(points, 200, none).on(points, 200, all).on(plans, 409, problem("CTL-002"));
    let shown = server.run("points web01").await;
    assert!(shown.stdout.contains("not frozen, PLT-016: the hook ended with 3"), "{shown:?}");
    let line = "failover web01 --unplanned --shut-down skip --point latest-app --yes";
    let ran = server.run(line).await;
    assert!(ran.code == 3 && ran.stderr.contains("CTL-009") && ran.stderr.contains("point add web01 --app"), "{ran:?}");
    assert!(server.posted(plans).is_empty(), "nothing was asked for");
    server.run(line).await;
    assert_eq!(server.posted(plans)[0]["operation"]["point"], json!("1.4"));
}

/// The machine whose files nobody syncs.
const FILES: &str = MACHINE;

/// Two sites, and a guest at home with Debian's own agent; everything is gone afterwards.
struct Sites {
    world: World,
    _root: tempfile::TempDir,
}

impl Sites {
    fn start() -> Sites {
        let root = tempfile::Builder::new().prefix("ska").tempdir_in("/tmp").unwrap();
        let world = World::without_guest(Settings {
            root: root.path().into(),
            sockeye: env!("CARGO_BIN_EXE_sockeye").into(),
            guest: Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/guest"),
            disk_bytes: 64 << 20,
            written_bytes: 1 << 20,
            rate: 1,
            hosts: Hosts::Loopback,
            libvirt: Default::default(),
            formats: FORMATS,
        })
        .unwrap();
        let sites = Sites { world, _root: root };
        sites.define();
        sites
    }

    fn define(&self) {
        let dir = self.world.site_dir(At::Home);
        let (plain, image) = (dir.join("files.raw"), dir.join("files.qcow2"));
        let size = 64 << 20;
        std::fs::File::create(&plain).unwrap().set_len(size).unwrap();
        ran("mkfs.ext4", &["-q", &plain.to_string_lossy()]);
        ran("qemu-img", &["convert", "-O", "qcow2", &plain.to_string_lossy(), &image.to_string_lossy()]);
        let built = |name: &str| self.world.settings.guest.join(name).to_string_lossy().into_owned();
        let (kernel, initrd) = (built("vmlinuz"), built("initrd-agent.img"));
        let command_line = guest::kernel_command_line(0, guest::Pattern::Mixed) + " hooks=ok,ok,slow";
        let source = DiskSource::Own { path: image.to_string_lossy().into_owned(), format: DiskFormat::Qcow2 };
        let spec = MachineSpec {
            name: FILES.into(),
            memory_mib: 192,
            vcpus: 1,
            boot: Boot::Kernel { kernel, initrd, command_line },
            disks: vec![DiskSpec { key: "files".parse().unwrap(), size, source }],
            cards: vec![],
            seed: None,
            native: Default::default(),
        };
        let runtime = tokio::runtime::Runtime::new().unwrap();
        runtime.block_on(async {
            let platform = Qemu::open(&dir).unwrap();
            platform.define(&spec).await.unwrap();
            platform.start(FILES, Start::default()).await.unwrap();
        });
    }

    fn said(&self) -> String {
        let file = self.world.machine_dir(At::Home, FILES).join("console.log");
        String::from_utf8_lossy(&std::fs::read(file).unwrap_or_default()).into_owned()
    }

    /// The number of the newest file that the guest wrote.
    fn newest(&self) -> u64 {
        let said = self.said();
        said.lines().filter_map(|line| line.trim().strip_prefix("FILE ")?.parse().ok()).max().unwrap_or(0)
    }

    /// A point's only disk, as people get at it: a view, read by libnbd's own program.
    fn image(&self, point: &Point) -> String {
        let job: Job = self.world.ask(&["view", FILES, "--point", &point.attempt.to_string(), "--yes"], 0).unwrap();
        let served = job.figures.served.unwrap();
        let file = self.world.settings.root.join("point.raw").to_string_lossy().into_owned();
        ran("nbdcopy", &[&served.disks[0].uri, &file]);
        file
    }
}

/// Runs a program, which must end well. What it printed.
fn ran(program: &str, arguments: &[&str]) -> String {
    let ended = Command::new(program).args(arguments).output().unwrap();
    assert!(ended.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&ended.stderr));
    String::from_utf8_lossy(&ended.stdout).into_owned()
}

#[test]
fn a_point_made_with_the_guests_agent_needs_no_repair_and_has_all_that_was_written() {
    let mut sites = Sites::start();
    let world = &sites.world;
    let patience = Duration::from_secs(120);
    wait_for("files of the guest", patience, || (sites.newest() > 10).then_some(())).unwrap();
    // The policy wants one an hour: it is the first epoch.
    let _: Job = world.ask(&["protect", FILES, "--from", "home", "--to", "cloud", "--yes"], 0).unwrap();
    let by_policy = wait_for("a point by the policy", patience, || {
        let kept: Vec<Point> = world.ask(&["points", FILES], 0).ok()?;
        kept.into_iter().find(|point| point.kind == PointKind::AppConsistent)
    });
    let by_policy = by_policy.unwrap();

    let plain: Point = world.ask(&["point", "add", FILES, "--yes"], 0).unwrap();
    assert_eq!((plain.kind, &plain.freeze), (PointKind::CrashConsistent, &None));
    let image = sites.image(&plain);
    assert!(ran("dumpe2fs", &["-h", &image]).contains("needs_recovery"));

    let before = sites.newest();
    let point: Point = world.ask(&["point", "add", FILES, "--app", "--yes"], 0).unwrap();
    assert!(point.kind == PointKind::AppConsistent && point.attempt > by_policy.attempt, "{point:?}");
    assert!(matches!(point.freeze, Some(Freeze::Done { file_systems: 1, .. })), "{point:?}");
    let kept: Vec<KeptPoint> = world.ask(&["points", FILES], 0).unwrap();
    assert!(kept.contains(&KeptPoint { point: point.clone(), pinned: true }), "{kept:?}");
    let image = sites.image(&point);
    assert!(!ran("dumpe2fs", &["-h", &image]).contains("needs_recovery"));
    ran("e2fsck", &["-f", "-n", &image]);
    for number in [1, before / 2, before] {
        assert_eq!(ran("debugfs", &["-R", &format!("cat /{number}"), &image]), format!("file {number}\n"));
    }
    assert!(ran("debugfs", &["-R", "cat /marker", &image]).starts_with("quiesced"), "the hook ran before");

    let plan: Plan = world.ask(&["failover", FILES, "--test", "--point", "latest-app", "--dry-run"], 0).unwrap();
    assert_eq!(plan.request.operation, Operation::TestFailover { point: Some(point.attempt), network: None });
    // A process server that is started again makes one at once. It is killed between freeze and thaw: the hook is slow, and the
    // guest freezes when nobody is left who asked for it.
    sites.world.kill(At::Home, Part::ProcessServer);
    sites.world.start(At::Home, Part::ProcessServer).unwrap();
    wait_for("the third freeze", patience, || sites.said().contains("HOOK freeze 3").then_some(())).unwrap();
    sites.world.kill(At::Home, Part::ProcessServer);
    let thaws = |sites: &Sites| sites.said().matches("HOOK thaw").count();
    assert_eq!(thaws(&sites), 2, "the hook ended before the kill");
    wait_for("the guest to be thawed", patience, || (thaws(&sites) > 2).then_some(())).unwrap();
    let after = sites.newest();
    wait_for("the guest to write on", patience, || (sites.newest() > after + 3).then_some(())).unwrap();
}
