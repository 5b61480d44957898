//! Application-consistent cuts: what a platform promises whatever the guest's agent does, and Debian's own agent in a real guest.
//!
//! ```text
//!   guest: numbered files on ext4, never synced ── hook: a marker ── qemu-ga        cut, frozen ─► e2fsck: clean · debugfs: all there
//!                                                                                   cut, as it is ─► the journal wants recovery
//! ```

use std::path::{Path, PathBuf};
use std::time::Duration;

use platforms::simulated::SimulatedAgent;
use platforms::{Capture, Cut, Platform, Start};
use protocol::fault::code;
use protocol::machine::{Boot, DiskFormat, DiskSource, DiskSpec, MachineSpec, Power};
use protocol::{Attempt, Freeze, Lineage, PointKind, Quiesce};
use tokio::time::Instant;

use crate::bench::{self, Bench, LibvirtBench, QemuBench, run};
use crate::rig::{NAME, Rig, at, read};

/// A boot under emulation takes six seconds on an idle machine.
const PATIENCE: Duration = Duration::from_secs(120);
/// What the agent of a guest that answers may take.
const ENOUGH: Quiesce = Quiesce { within: Duration::from_secs(30) };
/// Less than a slow hook takes.
const LITTLE: Quiesce = Quiesce { within: Duration::from_secs(1) };

fn failed_with(freeze: &Option<Freeze>, entry: &protocol::fault::Entry, words: &str) {
    match freeze {
        Some(Freeze::Failed { code, cause }) => {
            assert!(*code == entry.code && cause.contains(words), "{code}: {cause}")
        }
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn an_agent_of_every_kind_is_dealt_with_and_nothing_stays_frozen() {
    let bench = bench::simulated().await;
    let platform = bench.simulated();
    let rig = Rig::own(&bench, &[DiskFormat::Qcow2]).await;
    rig.start().await;
    let mut capture = rig.capture().await;
    let kinds = [
        (SimulatedAgent::Absent, Some((code::NO_GUEST_AGENT, "none"))),
        (SimulatedAgent::Hung, Some((code::GUEST_NOT_FROZEN, "did not answer"))),
        (SimulatedAgent::HookFails, Some((code::GUEST_NOT_FROZEN, "hook"))),
        (SimulatedAgent::Ready, None),
    ];
    for (number, (agent, fails)) in kinds.into_iter().enumerate() {
        platform.set_agent(NAME, agent).unwrap();
        let attempt = at(number as u64 + 1);
        let cut = capture.cut_as(attempt, Some(ENOUGH)).await.unwrap();
        match fails {
            Some((entry, words)) => failed_with(&cut.freeze, entry, words),
            None => assert_eq!(cut.freeze.as_ref().map(Freeze::kind), Some(PointKind::AppConsistent)),
        }
        assert!(!platform.is_frozen(NAME).unwrap());
        capture.acknowledged(attempt).await.unwrap();
    }
    assert_eq!(capture.cut(at(5)).await.unwrap().freeze, None, "nobody asked");
    capture.acknowledged(at(5)).await.unwrap();

    platform.fail_next_cut(NAME).unwrap();
    assert!(capture.cut_as(at(6), Some(ENOUGH)).await.is_err());
    assert!(!platform.is_frozen(NAME).unwrap(), "a failed cut thaws too");
    drop(capture);
    platform.leave_frozen(NAME).unwrap();
    rig.capture().await;
    assert!(!platform.is_frozen(NAME).unwrap(), "whoever opens it next thaws it");
}

#[tokio::test]
async fn qemu_freezes_a_guest_by_its_agent_and_never_leaves_it_frozen() {
    let bench = bench::qemu().await;
    claims(&bench, async |bench: &QemuBench| {
        // The cut's filter cannot have its name.
        let node = serde_json::json!({ "driver": "null-co", "node-name": "cbw-0" });
        let socket = bench.machine_dir(NAME).join("life-2.sock");
        bench::qmp(socket, "blockdev-add", node).await;
    })
    .await;
}

#[tokio::test]
async fn libvirt_freezes_a_guest_by_its_agent_and_never_leaves_it_frozen() {
    let bench = bench::libvirt().await;
    claims(&bench, async |bench: &LibvirtBench| {
        // The backup cannot have its socket.
        std::fs::create_dir(bench.dir().join("machines").join(NAME).join("run/nbd.sock")).unwrap();
    })
    .await;
}

/// The folder of kernel and initramfs, beside the folder this test was built in.
fn built_guest() -> PathBuf {
    let this = std::env::current_exe().unwrap();
    let target = this.ancestors().find(|folder| folder.join("CACHEDIR.TAG").is_file()).map(Path::to_path_buf);
    let built = target.unwrap().join("guest");
    assert!(built.join("initrd-agent.img").is_file(), "the test guest is not built; run: cargo xtask setup");
    built
}

/// A guest that writes files which nobody syncs, and what it says.
struct Guest<'a> {
    platform: &'a dyn Platform,
    dir: PathBuf,
    next: u64,
}

impl Guest<'_> {
    async fn start(bench: &dyn Bench) -> Guest<'_> {
        let (dir, built) = (bench.dir(), built_guest());
        let (plain, image) =
            (dir.join("files.raw").display().to_string(), dir.join("files.qcow2").display().to_string());
        let size = 32 << 20;
        std::fs::File::create(&plain).unwrap().set_len(size).unwrap();
        run("mkfs.ext4", &["-q", &plain]).await;
        run("qemu-img", &["convert", "-O", "qcow2", &plain, &image]).await;
        let file = |name: &str| built.join(name).to_string_lossy().into_owned();
        let mut command_line = guest::kernel_command_line(0, guest::Pattern::Mixed);
        command_line.push_str(" hooks=ok,fail,slow,slow,ok");
        let source = DiskSource::Own { path: image, format: DiskFormat::Qcow2 };
        let spec = MachineSpec {
            name: NAME.into(),
            memory_mib: 192,
            vcpus: 1,
            boot: Boot::Kernel { kernel: file("vmlinuz"), initrd: file("initrd-agent.img"), command_line },
            disks: vec![DiskSpec { key: "files".parse().unwrap(), size, source }],
            cards: vec![],
            seed: None,
            native: Default::default(),
        };
        bench.platform().define(&spec).await.unwrap();
        bench.platform().start(NAME, Start::default()).await.unwrap();
        Guest { platform: bench.platform(), dir, next: 0 }
    }

    fn said(&self) -> String {
        let file = self.dir.join("machines").join(NAME).join("console.log");
        String::from_utf8_lossy(&std::fs::read(file).unwrap_or_default()).into_owned()
    }

    fn count(&self, words: &str) -> usize {
        self.said().matches(words).count()
    }

    /// The number of the newest file.
    fn newest(&self) -> u64 {
        let said = self.said();
        let numbers = said.lines().filter_map(|line| line.trim().strip_prefix("FILE ")?.parse().ok());
        numbers.max().unwrap_or(0)
    }

    async fn until(&self, what: &str, look: impl Fn(&Self) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !look(self) {
            assert!(Instant::now() < deadline, "{what}: {}", self.said());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Its file systems are not frozen, and the platform knows: it goes on writing.
    async fn writes_on(&self) {
        let note = self.dir.join("machines").join(NAME).join("frozen.json");
        self.until("it is taken for frozen", |_| !note.exists()).await;
        let before = self.newest();
        self.until("it does not write on", |guest| guest.newest() > before + 3).await;
    }

    fn attempt(&mut self) -> Attempt {
        self.next += 1;
        at(self.next)
    }

    /// The disk as a cut has it, in a file.
    async fn image(&self, cut: &Cut) -> String {
        let file = self.dir.join("cut.raw");
        std::fs::write(&file, read(&cut.disks[0]).await.unwrap()).unwrap();
        file.display().to_string()
    }
}

/// What a file in an image holds, read without mounting or repairing it.
async fn content(image: &str, file: &str) -> String {
    String::from_utf8(run("debugfs", &["-R", &format!("cat {file}"), image]).await).unwrap()
}

async fn wants_recovery(image: &str) -> bool {
    String::from_utf8(run("dumpe2fs", &["-h", image]).await).unwrap().contains("needs_recovery")
}

async fn claims<B: Bench>(bench: &B, spoil: impl AsyncFnOnce(&B)) {
    let mut guest = Guest::start(bench).await;
    let mut capture = guest.platform.capture(NAME, Lineage::fresh()).await.unwrap();

    // Its agent does not run yet.
    let attempt = guest.attempt();
    let cut = capture.cut_as(attempt, Some(ENOUGH)).await.unwrap();
    failed_with(&cut.freeze, code::NO_GUEST_AGENT, "no program in the guest");
    capture.acknowledged(attempt).await.unwrap();
    guest.until("it does not boot", |guest| guest.said().contains("AGENT ") && guest.newest() > 10).await;

    let attempt = guest.attempt();
    let before = guest.newest();
    let cut = capture.cut(attempt).await.unwrap();
    let image = guest.image(&cut).await;
    assert!(wants_recovery(&image).await, "without the agent the file system is as a power cut leaves it");
    assert_eq!(content(&image, &format!("/{before}")).await, "", "and what was never synced is not there");
    capture.acknowledged(attempt).await.unwrap();

    let (attempt, before) = (guest.attempt(), guest.newest());
    let begun = std::time::Instant::now();
    let cut = frozen(&guest, capture.as_mut(), attempt).await;
    let Some(Freeze::Done { file_systems: 1, freeze_ms, frozen_ms }) = cut.freeze else { panic!("{:?}", cut.freeze) };
    eprintln!("frozen in {freeze_ms} ms, for {frozen_ms} ms; all of it took {} ms", begun.elapsed().as_millis());
    let image = guest.image(&cut).await;
    assert!(!wants_recovery(&image).await, "the agent left a journal to be recovered");
    run("e2fsck", &["-f", "-n", &image]).await;
    for number in 1..=before {
        assert_eq!(content(&image, &format!("/{number}")).await, format!("file {number}\n"));
    }
    assert_eq!(content(&image, "/marker").await, "quiesced 1\n", "the hook ran before");
    capture.acknowledged(attempt).await.unwrap();
    guest.writes_on().await;
    assert_eq!(guest.count("HOOK thaw"), 1);

    let attempt = guest.attempt();
    let cut = capture.cut_as(attempt, Some(ENOUGH)).await.unwrap();
    failed_with(&cut.freeze, code::GUEST_NOT_FROZEN, "hook");
    capture.acknowledged(attempt).await.unwrap();
    guest.writes_on().await;

    // An agent that is late: the cut does not wait for it, and what it freezes then is thawed.
    let (attempt, thaws) = (guest.attempt(), guest.count("HOOK thaw"));
    let cut = capture.cut_as(attempt, Some(LITTLE)).await.unwrap();
    failed_with(&cut.freeze, code::GUEST_NOT_FROZEN, "");
    assert!(guest.count("HOOK thaw") == thaws, "the hook is at work yet");
    capture.acknowledged(attempt).await.unwrap();
    guest.until("it is not thawed", |guest| guest.count("HOOK thaw") > thaws).await;
    guest.writes_on().await;

    // Whoever cuts is gone in the middle.
    let (attempt, freezes, thaws) = (guest.attempt(), guest.count("HOOK freeze"), guest.count("HOOK thaw"));
    let gone = async {
        tokio::select! {
            cut = capture.cut_as(attempt, Some(ENOUGH)) => panic!("{cut:?}"),
            () = guest.until("it is not asked to freeze", |guest| guest.count("HOOK freeze") > freezes) => {}
        }
    };
    gone.await;
    drop(capture);
    guest.until("it is left frozen", |guest| guest.count("HOOK thaw") > thaws).await;
    let mut capture = guest.platform.capture(NAME, Lineage::fresh()).await.unwrap();
    guest.writes_on().await;

    // The cut itself fails.
    spoil(bench).await;
    let (attempt, freezes) = (guest.attempt(), guest.count("HOOK freeze"));
    assert!(capture.cut_as(attempt, Some(ENOUGH)).await.is_err());
    assert!(guest.count("HOOK freeze") > freezes, "it failed before it could matter");
    guest.writes_on().await;
    assert_eq!(guest.platform.machine(NAME).await.unwrap().unwrap().power, Power::Running);
    drop(capture);
    guest.platform.power_off(NAME).await.unwrap();
}

/// Cuts with the guest frozen; its agent may have to come back from what was before.
async fn frozen(guest: &Guest<'_>, capture: &mut dyn Capture, attempt: Attempt) -> Cut {
    let cut = capture.cut_as(attempt, Some(ENOUGH)).await.unwrap();
    assert!(matches!(cut.freeze, Some(Freeze::Done { .. })), "{:?}: {}", cut.freeze, guest.said());
    cut
}
