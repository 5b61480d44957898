//! A machine under libvirt is not ours alone: backup tools, people with virsh, a daemon that is restarted.

use nbd::{Client, Options, Uri, status};
use platforms::Start;
use platforms::libvirt::Libvirt;
use protocol::Changes;
use protocol::extent::{BLOCK, BlockMap, Extent};
use protocol::fault::code;
use protocol::machine::DiskFormat::{Qcow2, Raw};
use protocol::machine::{DiskSource, Power};
use protocol::position::Distrust;

use crate::bench::{self, Bench, LibvirtBench, run};
use crate::rig::{Maps, NAME, Rig, assert_reads, at, covers, held, known, read};

const MIB: u64 = 1 << 20;

/// What another program's backup calls itself, and where it serves.
struct Tool {
    socket: std::path::PathBuf,
    file: std::path::PathBuf,
}

impl Tool {
    fn new(bench: &LibvirtBench) -> Tool {
        Tool { socket: bench.dir().join("tool.sock"), file: bench.dir().join("tool.xml") }
    }

    /// Begins a pull backup since its checkpoint, as the usual tools do, with a new checkpoint.
    async fn begins(&self, bench: &LibvirtBench, since: Option<&str>, checkpoint: &str) {
        let since = since.map(|since| format!("<incremental>{since}</incremental>")).unwrap_or_default();
        let scratch = bench.dir().join("tool.scratch");
        let backup = format!(
            "<domainbackup mode='pull'>{since}<server transport='unix' socket='{}'/><disks><disk name='vda' backup='yes' \
             type='file' exportname='vda' exportbitmap='tool'><scratch file='{}'/></disk></disks></domainbackup>",
            self.socket.display(),
            scratch.display()
        );
        let _ = std::fs::remove_file(&scratch);
        std::fs::write(&self.file, backup).unwrap();
        let checkpoint = format!("<domaincheckpoint><name>{checkpoint}</name></domaincheckpoint>");
        let beside = self.file.with_extension("checkpoint");
        std::fs::write(&beside, checkpoint).unwrap();
        let (file, beside) = (self.file.display().to_string(), beside.display().to_string());
        bench.virsh(&["backup-begin", NAME, "--backupxml", &file, "--checkpointxml", &beside]).await;
    }

    /// What it would back up.
    async fn changes(&self) -> BlockMap {
        let context = status::dirty_bitmap("tool");
        let client = Client::connect(&Uri::unix(&self.socket, "vda"), &Options::with_contexts([context.clone()])).await;
        let client = client.unwrap();
        let told = client.block_status(&context, 0, client.size()).await.unwrap();
        let dirty = told.iter().filter(|extent| extent.flags & status::DIRTY != 0);
        dirty.map(|extent| Extent::new(extent.offset, extent.length)).collect()
    }

    async fn ends(&self, bench: &LibvirtBench) {
        bench.virsh(&["domjobabort", NAME]).await;
    }
}

async fn checkpoints(bench: &LibvirtBench) -> Vec<String> {
    bench.virsh(&["checkpoint-list", "--name", NAME]).await.split_whitespace().map(String::from).collect()
}

#[tokio::test]
async fn a_backup_tool_and_we_each_find_every_change_and_leave_nothing_behind() {
    let bench = bench::libvirt().await;
    let tool = Tool::new(&bench);
    let mut rig = Rig::own(&bench, &[Qcow2]).await;
    rig.start_tracked(1).await;
    let mut all = BlockMap::new();
    tool.begins(&bench, None, "tool-1").await;
    tool.ends(&bench).await;
    let mut capture = rig.capture().await;
    for number in 1..6 {
        rig.write(0, number * MIB, BLOCK, number as u8).await;
        all.insert(Extent::new(number * MIB, BLOCK));
        if number == 3 {
            // It begins between two cuts of ours, and its checkpoint stands between ours.
            tool.begins(&bench, Some("tool-1"), "tool-2").await;
            assert!(tool.changes().await.covers(&all));
            all = BlockMap::new();
            let refused = capture.cut(at(10 + number)).await.unwrap_err();
            assert!(refused.is(code::HYPERVISOR) && refused.cause.contains("a backup is under way"), "{refused:?}");
            rig.write(0, number * MIB + BLOCK, BLOCK, 9).await;
            all.insert(Extent::new(number * MIB + BLOCK, BLOCK));
            tool.ends(&bench).await;
        }
        let cut = capture.cut(at(10 + number)).await.unwrap();
        assert_eq!(known(&cut.changes), rig.take_written(), "cut {number}");
        assert_reads(&cut, &rig.model).await;
        match number {
            4 => {
                capture.failed().await.unwrap();
                rig.written.entry(rig.spec.disks[0].key.clone()).or_default().insert(Extent::new(number * MIB, BLOCK));
            }
            _ => capture.acknowledged(at(10 + number)).await.unwrap(),
        }
    }
    tool.begins(&bench, Some("tool-2"), "tool-3").await;
    assert_eq!(tool.changes().await, all, "what the tool finds is exact whatever we deleted");
    tool.ends(&bench).await;
    let left = checkpoints(&bench).await;
    assert_eq!(left.iter().filter(|name| name.starts_with("tool-")).count(), 3, "{left:?}");
    assert_eq!(left.len(), 4, "ours do not pile up: {left:?}");
}

#[tokio::test]
async fn a_machine_that_somebody_else_restarted_is_compared_once() {
    let bench = bench::libvirt().await;
    let mut rig = Rig::own(&bench, &[Qcow2]).await;
    rig.start_tracked(1).await;
    let mut capture = rig.capture().await;
    capture.cut(at(1)).await.unwrap();
    capture.acknowledged(at(1)).await.unwrap();
    drop(capture);
    rig.write(0, 0, BLOCK, 1).await;
    bench.virsh(&["destroy", NAME, "--graceful"]).await;
    // The map in the image is consistent, and cannot know of this.
    let image = bench.path("home0.img").display().to_string();
    run("qemu-io", &["-f", "qcow2", "-c", &format!("write -P 7 {MIB} {BLOCK}"), &image]).await;
    rig.wrote(0, MIB, BLOCK, 7);
    bench.virsh(&["start", NAME]).await;
    let mut capture = rig.capture().await;
    let cut = capture.cut(at(2)).await.unwrap();
    assert_eq!((cut.since, &cut.changes), (None, &Changes::Unknown(Distrust::DiskTouched)));
    assert_reads(&cut, &rig.model).await;
    capture.acknowledged(at(2)).await.unwrap();
    rig.take_written();
    rig.write(0, 2 * MIB, BLOCK, 3).await;
    let cut = capture.cut(at(3)).await.unwrap();
    assert_eq!((cut.since, known(&cut.changes)), (Some(at(2)), rig.take_written()));
}

#[tokio::test]
async fn a_checkpoint_that_somebody_deleted_makes_no_wrong_delta() {
    for whole in [false, true] {
        let bench = bench::libvirt().await;
        let mut rig = Rig::own(&bench, &[Qcow2, Qcow2]).await;
        rig.start_tracked(1).await;
        let mut capture = rig.capture().await;
        capture.cut(at(1)).await.unwrap();
        capture.acknowledged(at(1)).await.unwrap();
        rig.take_written();
        rig.write(1, 0, BLOCK, 1).await;
        let [ours] = &checkpoints(&bench).await[..] else { panic!("one is ours") };
        // With its map, or only what libvirt knows of it.
        let how: &[&str] = if whole { &[] } else { &["--metadata"] };
        bench.virsh(&[&["checkpoint-delete", NAME, ours], how].concat()).await;
        let cut = capture.cut(at(2)).await.unwrap();
        assert_eq!((cut.since, &cut.changes), (None, &Changes::Unknown(Distrust::MapAbsent)), "whole: {whole}");
        assert_reads(&cut, &rig.model).await;
        capture.acknowledged(at(2)).await.unwrap();
        rig.take_written();
        rig.write(0, MIB, BLOCK, 1).await;
        let cut = capture.cut(at(3)).await.unwrap();
        assert_eq!((cut.since, known(&cut.changes)), (Some(at(2)), rig.take_written()));
    }
}

#[tokio::test]
async fn a_machine_with_a_raw_disk_is_cut_and_says_each_time_that_anything_may_differ() {
    let bench = bench::libvirt().await;
    let mut sources = vec![
        bench.own("a.img", Raw, crate::rig::SIZE).await,
        bench.own("b.img", Qcow2, crate::rig::SIZE).await,
        bench.own("c.img", Raw, crate::rig::SIZE).await,
    ];
    // A block device of the host, as a logical volume is one.
    let told = run("losetup", &["--find", "--show", &bench.path("c.img").display().to_string()]).await;
    let device = Device(String::from_utf8(told).unwrap().trim().into());
    sources[2] = DiskSource::Own { path: device.0.clone(), format: Raw };
    let mut rig = Rig::of(&bench, sources, vec![0; crate::rig::SIZE as usize]).await;
    rig.start_tracked(1).await;
    let mut capture = rig.capture().await;
    let unknown = Changes::Unknown(Distrust::MapAbsent);
    for number in 1..3 {
        rig.write(0, number * MIB, BLOCK, 1).await;
        rig.write(1, number * MIB, BLOCK, 1).await;
        rig.write(2, number * MIB, BLOCK, 1).await;
        let then = rig.model.clone();
        let cut = capture.cut(at(number)).await.unwrap();
        rig.write(0, 0, MIB, number as u8).await;
        assert_eq!((cut.since, &cut.changes), (None, &unknown));
        assert_reads(&cut, &then).await;
        capture.acknowledged(at(number)).await.unwrap();
        assert_eq!(capture.held().await.unwrap(), []);
    }
    bench.platform().power_off(NAME).await.unwrap();
    assert_eq!(rig.power().await, Power::Held);
    let cut = capture.cut(at(3)).await.unwrap();
    assert_reads(&cut, &rig.model).await;
    capture.acknowledged(at(3)).await.unwrap();
    drop(capture);
    let settled = bench.platform().settle(NAME, rig.lineage).await.unwrap();
    assert_eq!((settled.since, settled.changes), (None, unknown));
    assert_eq!(bench.platform().machine(NAME).await.unwrap().unwrap().spec.disks, rig.spec.disks);
}

/// A block device made of a file.
struct Device(String);

impl Drop for Device {
    fn drop(&mut self) {
        let _ = std::process::Command::new("losetup").args(["--detach", &self.0]).status();
    }
}

/// A small file system in the place of a machine's scratch, as this process sees it.
struct Small(String);

impl Drop for Small {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount").arg(&self.0).status();
    }
}

#[tokio::test]
async fn a_cut_for_which_no_scratch_can_be_set_aside_is_refused_and_the_guest_writes_on() {
    let bench = bench::libvirt().await;
    let mut rig = Rig::own(&bench, &[Qcow2]).await;
    rig.start_tracked(1).await;
    let mut capture = rig.capture().await;
    capture.cut(at(1)).await.unwrap();
    capture.acknowledged(at(1)).await.unwrap();
    rig.take_written();
    let scratch = bench.dir().join("machines").join(NAME).join("scratch").display().to_string();
    run("mount", &["-t", "tmpfs", "-o", "size=4m", "none", &scratch]).await;
    let small = Small(scratch);
    let refused = capture.cut(at(2)).await.unwrap_err();
    assert!(refused.is(code::HYPERVISOR) && refused.cause.contains("cannot be set aside"), "{refused}");
    drop(small);
    rig.write(0, 0, MIB, 5).await;
    assert_eq!(capture.held().await.unwrap(), held(&[(at(1), true)]));
    let cut = capture.cut(at(3)).await.unwrap();
    let then = rig.model.clone();
    // All of the disk is overwritten while the cut is open: it is read all the same.
    rig.write(0, 0, crate::rig::SIZE, 6).await;
    assert_eq!((cut.since, known(&cut.changes)).0, Some(at(1)));
    assert_reads(&cut, &then).await;
    assert_eq!(rig.power().await, Power::Running);
}

#[tokio::test]
async fn a_libvirtd_that_is_restarted_in_the_middle_of_a_cut_costs_nothing() {
    let mut bench = bench::libvirt().await;
    let mut rig = Rig::own(&bench, &[Qcow2, Qcow2]).await;
    let (lineage, mut written) = (rig.lineage, Maps::new());
    rig.start_tracked(1).await;
    let mut capture = rig.capture().await;
    capture.cut(at(1)).await.unwrap();
    capture.acknowledged(at(1)).await.unwrap();
    rig.take_written();
    rig.write(0, 0, BLOCK, 1).await;
    rig.write(1, MIB, BLOCK, 1).await;
    let cut = capture.cut(at(2)).await.unwrap();
    let (model, keys): (_, Vec<_>) = (rig.model.clone(), rig.spec.disks.iter().map(|disk| disk.key.clone()).collect());
    written.insert(keys[0].clone(), [Extent::new(0, BLOCK)].into_iter().collect());
    written.insert(keys[1].clone(), [Extent::new(MIB, BLOCK)].into_iter().collect());
    drop(rig);
    bench.restart();
    // QEMU serves on; it is libvirt that was away.
    assert_reads(&cut, &model).await;
    capture.failed().await.unwrap();
    assert!(read(&cut.disks[0]).await.is_err());
    let cut = capture.cut(at(3)).await.unwrap();
    assert_eq!((cut.since, known(&cut.changes)), (Some(at(1)), written.clone()));
    drop(capture);
    let mut capture = bench.platform().capture(NAME, lineage).await.unwrap();
    assert_eq!(capture.held().await.unwrap(), held(&[(at(1), false), (at(3), true)]));
    capture.failed().await.unwrap();
    let cut = capture.cut(at(4)).await.unwrap();
    assert!(covers(&known(&cut.changes), &written));
    assert_reads(&cut, &model).await;
}

#[tokio::test]
async fn what_a_machines_owner_set_stays_when_it_is_defined_anew_or_elsewhere() {
    let bench = bench::libvirt().await;
    let rig = Rig::own(&bench, &[Qcow2]).await;
    let platform = bench.platform();
    let file = bench.dir().join("edited.xml");
    let edited = bench
        .virsh(&["dumpxml", "--inactive", NAME])
        .await
        .replace("<on_crash>", "<metadata><mine:note xmlns:mine='urn:mine'>keep</mine:note></metadata><on_crash>");
    let edited = edited.replace("</devices>", "<watchdog model='i6300esb' action='pause'/></devices>");
    std::fs::write(&file, edited).unwrap();
    bench.virsh(&["define", &file.display().to_string()]).await;
    let mut spec = platform.machine(NAME).await.unwrap().unwrap().spec;
    assert_eq!((&spec.disks, spec.memory_mib), (&rig.spec.disks, rig.spec.memory_mib));
    spec.memory_mib = 96;
    platform.define(&spec).await.unwrap();
    let uuid = bench.virsh(&["domuuid", NAME]).await;
    let isolated = spec.isolated("web01-test", None);
    platform.define(&isolated).await.unwrap();
    for name in [NAME, "web01-test"] {
        let now = bench.virsh(&["dumpxml", "--inactive", name]).await;
        for kept in ["urn:mine", ">keep<", "i6300esb", "<memory unit='KiB'>98304<"] {
            assert!(now.contains(kept), "{kept} is not in {now}");
        }
    }
    assert_eq!(bench.virsh(&["domuuid", NAME]).await, uuid, "it is the same machine");
    platform.start("web01-test", Start::default()).await.unwrap();
    assert_eq!(rig.power().await, Power::Off);
}

#[tokio::test]
async fn a_guest_waits_for_a_view_whose_server_goes_away_and_comes_again() {
    let bench = bench::libvirt().await;
    let content = vec![9; crate::rig::SIZE as usize];
    let view = bench::view(bench.dir(), content.clone()).await;
    let source = DiskSource::OverlayOnView { overlay: "a.qcow2".into(), view: view.uri.to_string() };
    let rig = Rig::of(&bench, vec![source], content.clone()).await;
    rig.start_tracked(2).await;
    bench.io(NAME, 0, &format!("read -P 9 0 {BLOCK}")).await;
    drop(view);
    let request = format!("read -P 9 {MIB} {BLOCK}");
    let reads = bench.io(NAME, 0, &request);
    let back = async {
        tokio::time::sleep(std::time::Duration::from_secs(2)).await;
        bench::view(bench.dir(), content.clone()).await
    };
    // An error or a wrong byte is said by qemu-io.
    let ((), view) = tokio::join!(reads, back);
    bench.platform().power_off(NAME).await.unwrap();
    bench.platform().settle(NAME, rig.lineage).await.unwrap();
    drop(view);
    let until = std::time::Instant::now() + std::time::Duration::from_secs(10);
    while guest::processes_with("qemu-storage-daemon", &bench.dir()).next().is_some() {
        assert!(std::time::Instant::now() < until, "what stood between is still there");
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn a_guest_that_was_left_stopped_in_the_middle_of_a_cut_goes_on() {
    let bench = bench::libvirt().await;
    let rig = Rig::own(&bench, &[Qcow2]).await;
    rig.start_tracked(1).await;
    // What a virsh leaves that is killed between its two commands, with us.
    let note = bench.dir().join("machines").join(NAME).join("flushing.json");
    std::fs::write(&note, "true").unwrap();
    bench.virsh(&["suspend", NAME]).await;
    drop(rig.capture().await);
    assert_eq!(rig.power().await, Power::Running);
    assert!(!note.exists());
    // One that somebody paused stays so.
    bench.virsh(&["suspend", NAME]).await;
    drop(rig.capture().await);
    assert_eq!(rig.power().await, Power::Paused);
}

#[tokio::test]
async fn a_snapshot_that_somebody_takes_makes_no_wrong_delta() {
    let bench = bench::libvirt().await;
    let mut rig = Rig::own(&bench, &[Qcow2]).await;
    rig.start_tracked(1).await;
    let mut capture = rig.capture().await;
    capture.cut(at(1)).await.unwrap();
    capture.acknowledged(at(1)).await.unwrap();
    rig.take_written();
    rig.write(0, 0, BLOCK, 1).await;
    let snapshot = bench.dir().join("snapshot.qcow2").display().to_string();
    let disk = format!("vda,file={snapshot}");
    bench.virsh(&["snapshot-create-as", NAME, "s", "--disk-only", "--diskspec", &disk]).await;
    rig.write(0, MIB, BLOCK, 2).await;
    let cut = capture.cut(at(2)).await.unwrap();
    assert_reads(&cut, &rig.model).await;
    let written = rig.take_written();
    assert_eq!((cut.since, known(&cut.changes)), (Some(at(1)), written.clone()));
    capture.failed().await.unwrap();
    drop(capture);
    let platform = bench.platform();
    platform.power_off(NAME).await.unwrap();
    let settled = platform.settle(NAME, rig.lineage).await.unwrap();
    assert_eq!((settled.since, known(&settled.changes)), (Some(at(1)), written));
    // Part of the map is in the image beneath now, which nobody reads who asks the machine's own.
    let again = platform.settle(NAME, rig.lineage).await.unwrap();
    assert_eq!((again.since, again.changes), (None, Changes::Unknown(Distrust::MapAbsent)));
}

#[tokio::test]
async fn an_account_that_may_only_look_is_told_so() {
    let bench = bench::libvirt().await;
    let refused = Libvirt::open(&bench.read_only_uri(), &bench.dir()).await.unwrap_err();
    assert!(refused.is(code::HYPERVISOR) && refused.message.contains("may only be looked at"), "{refused:?}");
    assert!(refused.remedy.contains("--libvirt-uri"), "{refused:?}");
    let nowhere = Libvirt::open("qemu+unix:///system?socket=/nowhere", &bench.dir()).await.unwrap_err();
    assert!(nowhere.message.contains("cannot be asked") && nowhere.cause.contains("/nowhere"), "{nowhere:?}");
}

#[tokio::test]
async fn a_machine_without_its_disk_hides_no_other_and_a_password_stays_at_its_site() {
    let bench = bench::libvirt().await;
    let (platform, rig) = (bench.platform(), Rig::own(&bench, &[Qcow2]).await);
    let edited = bench.virsh(&["dumpxml", "--inactive", NAME]).await;
    let edited = edited.replace("</devices>", "<graphics type='vnc' autoport='yes' passwd='letmein'/></devices>");
    let file = bench.dir().join("edited.xml").display().to_string();
    std::fs::write(&file, edited).unwrap();
    bench.virsh(&["define", &file]).await;
    let spec = platform.machine(NAME).await.unwrap().unwrap().spec;
    assert!(!format!("{spec:?}").contains("letmein"), "it would travel");
    platform.define(&spec).await.unwrap();
    assert!(bench.virsh(&["dumpxml", "--inactive", "--security-info", NAME]).await.contains("letmein"));

    let mut other = rig.spec.clone();
    other.name = "db01".into();
    other.disks[0].source = bench.own("db.img", Qcow2, crate::rig::SIZE).await;
    platform.define(&other).await.unwrap();
    std::fs::remove_file(bench.path("db.img")).unwrap();
    let names: Vec<String> = platform.inventory().await.unwrap().into_iter().map(|found| found.spec.name).collect();
    assert_eq!(names, [NAME]);
    assert!(platform.machine("db01").await.unwrap_err().is(code::HYPERVISOR));
    platform.delete("db01").await.unwrap();
    assert!(platform.machine("db01").await.unwrap().is_none());
}
