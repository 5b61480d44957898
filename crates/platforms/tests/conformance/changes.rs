//! A machine that its owner changes: its description, its disks, what its firmware remembers.

use protocol::fault::code;
use protocol::machine::DiskFormat::{Qcow2, Raw};
use protocol::machine::{Boot, DiskSource, Power};
use protocol::uefi::Variables;
use protocol::{Attempt, Changes};

use crate::bench::{self, Bench, run, view};
use crate::rig::{NAME, Rig, SIZE, at, spec};

pub async fn overlays_go_with_the_description_that_named_them(bench: &dyn Bench) {
    let own = Rig::own(bench, &[Qcow2]).await;
    let view = view(bench.dir(), vec![0; SIZE as usize]).await;
    let path = bench.dir().join("elsewhere").join("over.qcow2");
    let overlay = path.display().to_string();
    let on_view = spec(vec![DiskSource::OverlayOnView { overlay, view: view.uri.to_string() }]);
    let platform = bench.platform();
    for now in [&on_view, &own.spec, &on_view, &own.spec] {
        for _ in 0..2 {
            platform.define(now).await.unwrap();
        }
        assert_eq!(platform.machine(NAME).await.unwrap().unwrap().spec.disks, now.disks);
        let stays_in_memory = platform.name() == "simulated";
        assert!(stays_in_memory || path.exists() == (now == &on_view), "the overlay");
    }
    platform.define(&on_view).await.unwrap();
    platform.delete(NAME).await.unwrap();
    assert!(!path.exists());
}

/// A real OVMF starts, and writes what it found into its variables; a machine defined from what was told has them.
async fn uefi_variables_go_along(bench: &dyn Bench) {
    let platform = bench.platform();
    let mut rig = Rig::own(bench, &[Qcow2]).await;
    let template = Variables::pack(&std::fs::read("/usr/share/OVMF/OVMF_VARS_4M.fd").unwrap()).unwrap();
    // Where libvirt puts them by itself is not to be seen from here: its folders are in a namespace of their own.
    let variables = (platform.name() == "libvirt").then(|| template.clone());
    rig.spec.boot = Boot::Uefi { variables };
    platform.define(&rig.spec).await.unwrap();
    rig.start().await;
    let variables = async || match platform.machine(NAME).await.unwrap().unwrap().spec.boot {
        Boot::Uefi { variables } => variables,
        other => panic!("{other:?}"),
    };
    let deadline = tokio::time::Instant::now() + std::time::Duration::from_secs(60);
    while variables().await.is_none_or(|now| now == template) {
        assert!(tokio::time::Instant::now() < deadline, "the firmware wrote nothing");
        tokio::time::sleep(std::time::Duration::from_millis(300)).await;
    }
    platform.power_off(NAME).await.unwrap();
    platform.settle(NAME, rig.lineage).await.unwrap();
    let mut told = platform.machine(NAME).await.unwrap().unwrap().spec;
    let kept = match &told.boot {
        Boot::Uefi { variables: Some(kept) } => kept.clone(),
        _ => panic!("they are not told any more of a machine that is off"),
    };
    assert_ne!(kept, template);
    // Elsewhere: under another name, with the same disks.
    told.name = "web02".into();
    platform.define(&told).await.unwrap();
    assert_eq!(platform.machine("web02").await.unwrap().unwrap().spec.boot, told.boot);
    platform.start("web02", platforms::Start { paused: true, track: None }).await.unwrap();
    assert_eq!(platform.machine("web02").await.unwrap().unwrap().spec.boot, told.boot);
    platform.power_off("web02").await.unwrap();
    platform.settle("web02", rig.lineage).await.unwrap();
}

#[tokio::test]
async fn qemu_uefi_variables_go_along() {
    uefi_variables_go_along(&bench::qemu().await).await;
}

#[tokio::test]
async fn libvirt_uefi_variables_go_along() {
    uefi_variables_go_along(&bench::libvirt().await).await;
}

#[tokio::test]
async fn disks_that_are_added_resized_or_taken_out_end_the_cuts_until_they_are_as_they_were() {
    let bench = bench::libvirt().await;
    let mut rig = Rig::own(&bench, &[Qcow2, Qcow2]).await;
    rig.start_tracked(1).await;
    let more = bench.path("more.img").display().to_string();
    run("qemu-img", &["create", "-q", "-f", "qcow2", &more, "1M"]).await;
    let mut capture = rig.capture().await;
    capture.cut(at(1)).await.unwrap();
    capture.acknowledged(at(1)).await.unwrap();
    rig.write(0, 0, 512, 1).await;
    let mut expect = async |what: &str| {
        let refused = capture.cut(at(2)).await.unwrap_err();
        assert!(refused.is(code::DISK_MISMATCH) && refused.cause == what, "{refused} {}", refused.cause);
    };
    let words = ["attach-disk", NAME, &more, "vdx", "--live", "--subdriver", "qcow2"];
    bench.virsh(&words).await;
    expect("vdx was added").await;
    drop(capture);
    // As it was described, without the disk that was added to the running one only.
    let platform = bench.platform();
    platform.power_off(NAME).await.unwrap();
    platform.settle(NAME, rig.lineage).await.unwrap();
    rig.start_tracked(1).await;
    let mut capture = rig.capture().await;
    capture.cut(at(2)).await.unwrap();
    capture.acknowledged(at(2)).await.unwrap();
    let mut expect = async |what: &str| {
        let refused = capture.cut(at(3)).await.unwrap_err();
        assert!(refused.is(code::DISK_MISMATCH) && refused.cause == what, "{refused} {}", refused.cause);
    };
    bench.virsh(&["blockresize", NAME, "vdb", "16MiB"]).await;
    expect("disk1 had 8388608 bytes and has 16777216").await;
}

#[tokio::test]
async fn a_machine_folded_into_raw_disks_says_that_anything_may_differ() {
    let bench = bench::libvirt().await;
    let platform = bench.platform();
    let view = view(bench.dir(), vec![7; SIZE as usize]).await;
    let source = DiskSource::OverlayOnView { overlay: "a.qcow2".into(), view: view.uri.to_string() };
    let mut rig = Rig::of(&bench, vec![source], vec![7; SIZE as usize]).await;
    let path = bench.path("home.raw").display().to_string();
    std::fs::write(&path, vec![7; SIZE as usize]).unwrap();
    let mut own = rig.spec.disks.clone();
    own[0].source = DiskSource::Own { path: path.clone(), format: Raw };
    rig.start_tracked(2).await;
    rig.write(0, 4096, 512, 1).await;
    platform.stand_on(NAME, &own).await.unwrap();
    drop(view);
    platform.fold(NAME, rig.lineage).await.unwrap();
    let machine = platform.machine(NAME).await.unwrap().unwrap();
    assert_eq!((machine.power, &machine.spec.disks), (Power::Running, &own));
    assert!(machine.remarks.iter().any(|remark| remark.words.contains("disk0 is raw")), "{:?}", machine.remarks);
    rig.write(0, 8192, 512, 2).await;
    let mut capture = rig.capture().await;
    assert_eq!(capture.held().await.unwrap(), []);
    let cut = capture.cut(Attempt { generation: 2, number: 1 }).await.unwrap();
    assert!(matches!(cut.changes, Changes::Unknown(_)));
    crate::rig::assert_reads(&cut, &rig.model).await;
    capture.acknowledged(Attempt { generation: 2, number: 1 }).await.unwrap();
    drop(capture);
    platform.power_off(NAME).await.unwrap();
    platform.settle(NAME, rig.lineage).await.unwrap();
    assert!(std::fs::read(&path).unwrap() == rig.model[&own[0].key]);
}
