//! A real guest's addresses over the circle: its agent is Debian's own, its network manager is ifupdown, its files lie on its disk.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use demo::net::Hosts;
use demo::world::{At, FORMATS, MACHINE, Settings, World, wait_for};
use guest::Libvirtd;
use platforms::guest::Ran;
use platforms::libvirt::Libvirt;
use platforms::qemu::Qemu;
use platforms::{Platform, Start};
use protocol::Fault;
use protocol::epoch::Point;
use protocol::fault::code;
use protocol::machine::{Boot, Connection, DiskFormat, DiskSource, DiskSpec, MachineSpec, NetworkCard};
use protocol::rest::{Job, JobState};

/// Two boots under emulation on a machine that does other things too.
const PATIENCE: Duration = Duration::from_secs(180);
const MAC: &str = "52:54:00:aa:bb:cc";
const OTHER: &str = "52:54:00:aa:bb:cd";
const AWAY: &str = "away:52:54:00:aa:bb:cc=10.2.0.5/24,gateway=10.2.0.1,dns=10.2.0.53";
const TEST: &str = "test:52:54:00:aa:bb:cc=10.9.0.5/24";
const HOME: &str = "home:52:54:00:aa:bb:cc=10.1.0.5/24";
const PROTECT: [&str; 6] = ["protect", MACHINE, "--from", "home", "--to", "cloud"];

/// Two sites and a guest at home with two cards, the first of which has 10.1.0.5; everything is gone afterwards.
struct Sites {
    world: World,
    runtime: tokio::runtime::Runtime,
    daemons: BTreeMap<At, Libvirtd>,
    root: PathBuf,
}

impl Sites {
    fn start(libvirt: bool, words: &str) -> Sites {
        let root = tempfile::Builder::new().prefix("skn").tempdir_in("/tmp").unwrap().keep();
        let cache = Path::new(env!("CARGO_TARGET_TMPDIR")).join("libvirt-cache");
        let sites: &[At] = if libvirt { &[At::Home, At::Cloud] } else { &[] };
        let start = |at: &At| {
            let daemon = Libvirtd::start(&root.join(format!("lv-{}", at.name())), &root.join(at.name()), &cache);
            (*at, daemon.unwrap())
        };
        let daemons: BTreeMap<At, Libvirtd> = sites.iter().map(start).collect();
        let world = World::without_guest(Settings {
            root: root.clone(),
            sockeye: env!("CARGO_BIN_EXE_sockeye").into(),
            guest: Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/guest"),
            disk_bytes: 64 << 20,
            written_bytes: 1 << 20,
            rate: 1,
            hosts: Hosts::Loopback,
            libvirt: daemons.iter().map(|(at, daemon)| (*at, daemon.uri())).collect(),
            formats: FORMATS,
        });
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let sites = Sites { world: world.unwrap(), runtime, daemons, root };
        sites.define(words);
        sites
    }

    fn define(&self, words: &str) {
        let dir = self.world.site_dir(At::Home);
        let (plain, image) = (dir.join("files.raw"), dir.join("files.qcow2"));
        let size = 64 << 20;
        std::fs::File::create(&plain).unwrap().set_len(size).unwrap();
        ran("mkfs.ext4", &["-q", &plain.to_string_lossy()]);
        ran("qemu-img", &["convert", "-O", "qcow2", &plain.to_string_lossy(), &image.to_string_lossy()]);
        let built = |name: &str| self.world.settings.guest.join(name).to_string_lossy().into_owned();
        let (kernel, initrd) = (built("vmlinuz"), built("initrd-agent.img"));
        let command_line =
            format!("{} address=10.1.0.5/24 {words}", guest::kernel_command_line(0, guest::Pattern::Mixed));
        let source = DiskSource::Own { path: image.to_string_lossy().into_owned(), format: DiskFormat::Qcow2 };
        let card = |mac: &str| NetworkCard { mac: mac.into(), connection: Connection::Network("user".into()) };
        let spec = MachineSpec {
            name: MACHINE.into(),
            memory_mib: 192,
            vcpus: 1,
            boot: Boot::Kernel { kernel, initrd, command_line },
            disks: vec![DiskSpec { key: "files".parse().unwrap(), size, source }],
            cards: vec![card(MAC), card(OTHER)],
            seed: None,
            native: Default::default(),
        };
        self.runtime.block_on(async {
            let platform = self.platform(At::Home).await;
            platform.define(&spec).await.unwrap();
            platform.start(MACHINE, Start::default()).await.unwrap();
        });
    }

    async fn platform(&self, at: At) -> Box<dyn Platform> {
        let dir = self.world.site_dir(at);
        match self.daemons.get(&at) {
            Some(daemon) => Box::new(Libvirt::open(&daemon.uri(), &dir).await.unwrap()),
            None => Box::new(Qemu::open(&dir).unwrap()),
        }
    }

    fn said(&self, at: At, machine: &str) -> String {
        let file = self.world.machine_dir(at, machine).join("console.log");
        String::from_utf8_lossy(&std::fs::read(file).unwrap_or_default()).into_owned()
    }

    fn machine(&self, at: At) -> Option<MachineSpec> {
        let found = self.runtime.block_on(async { self.platform(at).await.machine(MACHINE).await.unwrap() });
        found.map(|machine| machine.spec)
    }

    /// The addresses of the guest's first card, as its agent tells them to us and to nobody of Sockeye's.
    fn has(&self, at: At, machine: &str) -> Vec<String> {
        let told = || {
            let network = self.runtime.block_on(async { self.platform(at).await.guest_network(machine).await });
            let network = network.ok()?;
            Some(network.of(MAC).into_iter().filter(|one| !one.contains(':')).map(String::from).collect())
        };
        wait_for("the guest's agent", PATIENCE, told).unwrap()
    }

    fn runs(&self, at: At, line: &str) -> Result<Ran, Fault> {
        let words = ["-c".to_string(), line.to_string()];
        let program = "/bin/sh";
        self.runtime.block_on(async { self.platform(at).await.run_in_guest(MACHINE, program, &words, PATIENCE).await })
    }

    /// What the guest has of its configuration: names, rights and bytes.
    fn files(&self, at: At) -> String {
        let line = "cd /etc/network && find . -type f | sort | while read f; do stat -c '%n %a %u %g' $f; sha256sum < $f; done";
        let found = self.runs(at, line).unwrap();
        assert!(found.code == Some(0) && found.said.contains("./interfaces"), "{found:?}");
        found.said
    }

    /// The guest's cards in the order in which it found them, with the places that they have on its bus.
    fn cards(&self, at: At) -> Vec<String> {
        let said = self.said(at, MACHINE);
        let lines = said.lines().filter_map(|line| line.trim().strip_prefix("CARD ").map(String::from));
        let mut lines: Vec<String> = lines.collect();
        lines.split_off(lines.len() - 2)
    }

    fn done(&self, words: &[&str]) -> Job {
        let job: Job = self.world.ask(&[words, &["--yes"]].concat(), 0).unwrap();
        assert_eq!(job.state, JobState::Done, "{words:?}: {job:?}");
        job
    }

    fn flows(&self, words: &str) {
        let flows = self.world.wait_status(words, PATIENCE, |view| {
            view.stage_words == words && view.job.is_none() && view.newest.is_some()
        });
        flows.unwrap();
    }
}

impl Drop for Sites {
    fn drop(&mut self) {
        self.world.stop();
        self.daemons.clear();
        let _ = std::fs::remove_dir_all(&self.root);
    }
}

/// Runs a program, which must end well. What it printed.
fn ran(program: &str, arguments: &[&str]) -> String {
    let ended = Command::new(program).args(arguments).output().unwrap();
    assert!(ended.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&ended.stderr));
    String::from_utf8_lossy(&ended.stdout).into_owned()
}

fn goes_round(libvirt: bool) {
    let sites = Sites::start(libvirt, "");
    assert_eq!(sites.has(At::Home, MACHINE), ["10.1.0.5/24"]);
    let (files, cards) = (sites.files(At::Home), sites.cards(At::Home));
    assert!(cards[0].contains(MAC) && cards[1].contains(OTHER), "{cards:?}");
    sites.done(&[&PROTECT[..], &["--address", AWAY, "--address", TEST]].concat());
    sites.flows("protected");

    // A test has its own, on cards that nobody hears; and none of production's networks is one for tests.
    let test = sites.done(&["failover", MACHINE, "--test"]);
    assert!(test.figures.warnings.is_empty(), "{:?}", test.figures);
    let name = format!("{MACHINE}-test");
    assert_eq!(sites.has(At::Cloud, &name), ["10.9.0.5/24"]);
    assert_eq!(sites.has(At::Home, MACHINE), ["10.1.0.5/24"], "the machine itself feels nothing of it");
    sites.done(&["cleanup", MACHINE]);
    let refused = sites.world.sockeye(&["failover", MACHINE, "--test", "--network", "user", "--yes"]).unwrap();
    assert!(refused.code == 3 && refused.stderr.contains("CTL-036"), "{refused:?}");

    let moved = sites.done(&["failover", MACHINE, "--planned"]);
    assert!(moved.figures.warnings.is_empty(), "{:?}", moved.figures);
    assert_eq!(sites.has(At::Cloud, MACHINE), ["10.2.0.5/24"]);
    let route = sites.runs(At::Cloud, "ip route").unwrap().said;
    assert!(route.contains("default via 10.2.0.1 dev eth0"), "{route}");
    assert_eq!(sites.cards(At::Cloud), cards, "the same cards, in the same order and places");
    assert_ne!(sites.files(At::Cloud), files, "it is configured so");
    sites.done(&["commit", MACHINE]);
    sites.done(&["reprotect", MACHINE]);
    sites.flows("protected (reverse)");

    let back = sites.done(&["failback", MACHINE, "--complete"]);
    assert!(back.figures.warnings.is_empty(), "{:?}", back.figures);
    assert_eq!(sites.has(At::Home, MACHINE), ["10.1.0.5/24"]);
    assert_eq!(sites.files(At::Home), files, "its own, byte for byte");
    assert_eq!(sites.cards(At::Home), cards);
    sites.done(&["commit", MACHINE]);
    sites.done(&["reverse", MACHINE]);
    sites.flows("protected");

    // As if home were gone.
    let newest: Vec<Point> = sites.world.ask(&["points", MACHINE], 0).unwrap();
    assert!(!newest.is_empty());
    let moved = sites.done(&["failover", MACHINE, "--unplanned", "--shut-down", "skip"]);
    assert!(moved.figures.warnings.is_empty(), "{:?}", moved.figures);
    assert_eq!(sites.has(At::Cloud, MACHINE), ["10.2.0.5/24"]);
}

#[test]
fn under_qemu_a_guest_has_other_addresses_away_and_its_own_files_again_at_home() {
    goes_round(false);
}

#[test]
fn under_libvirt_a_guest_has_other_addresses_away_and_its_own_files_again_at_home() {
    goes_round(true);
}

fn runs_nothing(libvirt: bool) {
    let sites = Sites::start(libvirt, "blocked");
    assert_eq!(sites.has(At::Home, MACHINE), ["10.1.0.5/24"]);
    assert!(sites.runs(At::Home, "true").unwrap_err().is(code::GUEST_RUNS_NOTHING));
    sites.done(&[&PROTECT[..], &["--address", AWAY]].concat());
    sites.flows("protected");
    let moved = sites.done(&["failover", MACHINE, "--planned"]);
    let [warning] = &moved.figures.warnings[..] else { panic!("{:?}", moved.figures) };
    assert!(warning.is(code::GUEST_RUNS_NOTHING), "{warning:?}");
    assert!(warning.cause.contains("guest-exec") && warning.remedy.contains("sockeye network apply"), "{warning:?}");
    assert_eq!(sites.has(At::Cloud, MACHINE), ["10.1.0.5/24"], "it runs, as it is");
    let again = sites.world.sockeye(&["network", "apply", MACHINE]).unwrap();
    assert!(again.stderr.contains("PLT-018"), "{again:?}");
}

#[test]
fn under_qemu_an_agent_that_runs_no_programs_is_a_warning_of_a_failover_that_is_done() {
    runs_nothing(false);
}

#[test]
fn under_libvirt_an_agent_that_runs_no_programs_is_a_warning_of_a_failover_that_is_done() {
    runs_nothing(true);
}

fn reads_a_seed(libvirt: bool) {
    let sites = Sites::start(libvirt, "noagent");
    let boots = |at| sites.said(at, MACHINE).matches("CARD eth0").count();
    wait_for("the guest", PATIENCE, || (boots(At::Home) > 0).then_some(())).unwrap();
    let refused = sites.world.sockeye(&[&PROTECT[..], &["--address", AWAY, "--yes"]].concat()).unwrap();
    assert!(refused.code == 3 && refused.stderr.contains("CTL-034"), "{refused:?}");
    sites.done(&[&PROTECT[..], &["--address", AWAY, "--address", HOME]].concat());
    sites.flows("protected");
    sites.done(&["failover", MACHINE, "--planned", "--shut-down-timeout", "60s"]);
    let reads = |at| {
        let line =
            || sites.said(at, MACHINE).lines().find_map(|line| line.trim().strip_prefix("SEED ").map(String::from));
        wait_for("the guest to find its seed", PATIENCE, line).unwrap()
    };
    let away = reads(At::Cloud);
    assert!(away.starts_with("vdb instance-id: sockeye-") && away.contains("-away-"), "behind its own disk: {away}");
    // What another program reads there.
    let image = sites.world.machine_dir(At::Cloud, MACHINE).join("seed.img").to_string_lossy().into_owned();
    let network = ran("mtype", &["-i", &image, "::/network-config"]);
    assert!(network.contains(MAC) && network.contains("10.2.0.5/24"), "{network}");
    let keys = |spec: MachineSpec| spec.disks.iter().map(|disk| disk.key.to_string()).collect::<Vec<_>>();
    assert_eq!(keys(sites.machine(At::Cloud).unwrap()), ["files"], "it is no disk of the item");
    sites.done(&["commit", MACHINE]);
    sites.done(&["reprotect", MACHINE]);
    sites.flows("protected (reverse)");

    sites.done(&["failback", MACHINE, "--complete", "--shut-down-timeout", "60s"]);
    assert!(reads(At::Home).contains("-home-"));
    sites.done(&["commit", MACHINE]);
    let home = sites.machine(At::Home).unwrap();
    assert!(home.seed.is_none() && keys(home) == ["files"], "its owner's machine is as it was");
    assert!(!sites.world.machine_dir(At::Home, MACHINE).join("seed.img").exists());
    if let Some(daemon) = sites.daemons.get(&At::Home) {
        let described = ran("virsh", &["-c", &daemon.uri(), "dumpxml", "--inactive", MACHINE]);
        assert!(!described.contains("sockeye-seed"), "{described}");
    }
    sites.done(&["reverse", MACHINE]);
    sites.flows("protected");
}

#[test]
fn under_qemu_a_guest_without_an_agent_finds_a_seed_away_and_its_machine_has_none_at_home() {
    reads_a_seed(false);
}

#[test]
fn under_libvirt_a_guest_without_an_agent_finds_a_seed_away_and_its_machine_has_none_at_home() {
    reads_a_seed(true);
}
