//! What people do with disks and machines under libvirt while we follow them: copies of a disk, moves to another host.

use platforms::Capture;
use protocol::extent::BLOCK;
use protocol::fault::code;
use protocol::machine::DiskFormat::Qcow2;
use protocol::machine::Power;

use crate::bench::{self, Bench, LibvirtBench};
use crate::rig::{NAME, Rig, assert_reads, at, known};

const MIB: u64 = 1 << 20;

/// A machine that is followed, and has written since the last cut.
async fn followed(bench: &LibvirtBench) -> (Rig<'_>, Box<dyn Capture>) {
    let mut rig = Rig::own(bench, &[Qcow2]).await;
    rig.start_tracked(1).await;
    let mut capture = rig.capture().await;
    capture.cut(at(1)).await.unwrap();
    capture.acknowledged(at(1)).await.unwrap();
    rig.take_written();
    rig.write(0, 0, BLOCK, 1).await;
    (rig, capture)
}

#[tokio::test]
async fn a_copy_of_a_disk_that_somebody_makes_holds_cuts_up_and_costs_no_change() {
    let bench = bench::libvirt().await;
    let (mut rig, mut capture) = followed(&bench).await;
    let copy = bench.path("copy.qcow2").display().to_string();
    // It stays ready to be pivoted to, and what the guest writes goes to both.
    bench.virsh(&["blockcopy", NAME, "vda", "--dest", &copy, "--transient-job", "--wait"]).await;
    rig.write(0, MIB, BLOCK, 2).await;
    let refused = capture.cut(at(2)).await.unwrap_err();
    assert!(refused.is(code::HYPERVISOR) && refused.cause.contains("block"), "{refused}: {}", refused.cause);
    bench.virsh(&["blockjob", NAME, "vda", "--abort"]).await;
    rig.write(0, 2 * MIB, BLOCK, 3).await;
    let cut = capture.cut(at(2)).await.unwrap();
    assert_eq!((cut.since, known(&cut.changes)), (Some(at(1)), rig.take_written()));
    assert_reads(&cut, &rig.model).await;
}

#[tokio::test]
async fn a_machine_that_somebody_puts_on_a_copy_of_its_disk_is_followed_on() {
    let bench = bench::libvirt().await;
    let (mut rig, mut capture) = followed(&bench).await;
    let copy = bench.path("copy.qcow2").display().to_string();
    bench.virsh(&["blockcopy", NAME, "vda", "--dest", &copy, "--transient-job", "--wait", "--pivot"]).await;
    rig.write(0, MIB, BLOCK, 2).await;
    let cut = capture.cut(at(2)).await.unwrap();
    assert_eq!((cut.since, known(&cut.changes)), (Some(at(1)), rig.take_written()));
    assert_reads(&cut, &rig.model).await;
}

/// libvirt takes the checkpoints along, in the image and by their names. What we do not steer there we do not follow; after the way
/// back it goes on where it was.
#[tokio::test]
async fn a_machine_that_somebody_migrates_away_and_back_is_followed_on() {
    let (here, there) = (bench::libvirt().await, bench::libvirt().await);
    let (mut rig, mut capture) = followed(&here).await;
    let migrate = ["migrate", "--live", "--unsafe", "--persistent", NAME];
    here.virsh(&[&migrate[..], &[&there.uri(), "--migrateuri", "tcp://127.0.0.1"]].concat()).await;
    assert_eq!(here.platform().machine(NAME).await.unwrap().unwrap().power, Power::Off);
    assert!(capture.cut(at(2)).await.is_err(), "it runs elsewhere");
    there.io(NAME, 0, &format!("write -P 2 {MIB} {BLOCK}")).await;
    rig.wrote(0, MIB, BLOCK, 2);
    there.virsh(&[&migrate[..], &[&here.uri(), "--migrateuri", "tcp://127.0.0.1"]].concat()).await;
    rig.write(0, 2 * MIB, BLOCK, 3).await;
    let cut = capture.cut(at(2)).await.unwrap();
    assert_eq!((cut.since, known(&cut.changes)), (Some(at(1)), rig.take_written()));
    assert_reads(&cut, &rig.model).await;
}
