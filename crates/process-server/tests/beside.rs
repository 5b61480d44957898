//! What stands beside an item at a real master target: test machines and views, while real epochs arrive.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::process::Command;

use nbd::{Client, Options, Uri};
use platforms::Platform;
use protocol::Attempt;
use protocol::beside::ServedDisk;
use protocol::fault::code;
use protocol::machine::{DiskSource, MachineSpec, Power};
use protocol::order::{Order, Outcome};

use crate::sites;
use crate::sites::{GENERATION, MASTER_TARGET, NAME, SIZES, Sites, key};

const TEST: &str = "web01-test";

/// What every disk of the machine holds now.
fn contents(sites: &Sites) -> Vec<Vec<u8>> {
    (0..SIZES.len()).map(|place| sites.home.content(NAME, &key(place)).unwrap()).collect()
}

/// A point, and what its disks hold.
async fn known_point(sites: &mut Sites) -> (Attempt, Vec<Vec<u8>>) {
    sites.scribble(40);
    sites.must_become_equal("before the point").await;
    (sites.points().await.pop().unwrap().attempt, contents(sites))
}

async fn spec(sites: &Sites) -> MachineSpec {
    sites.home.machine(NAME).await.unwrap().unwrap().spec.isolated(TEST, None)
}

async fn raise_test(sites: &Sites, point: Option<Attempt>) -> Result<Attempt, protocol::Fault> {
    let order = Order::RaiseTest { item: NAME.parse().unwrap(), spec: spec(sites).await, point };
    match sites.order(order).await? {
        Outcome::Raised { point } => Ok(point.attempt),
        other => panic!("{other:?}"),
    }
}

async fn serve(sites: &Sites, view: i64, point: Attempt, writable: bool) -> Vec<ServedDisk> {
    let order = Order::ServeView { item: NAME.parse().unwrap(), view, point: Some(point), writable };
    match sites.order(order).await.unwrap() {
        Outcome::Serves { point: served, disks } => {
            assert_eq!(served.attempt, point);
            disks
        }
        other => panic!("{other:?}"),
    }
}

/// Reads an export whole with libnbd's own program.
fn copied(sites: &Sites, uri: &str) -> Vec<u8> {
    let file = sites.folder().join("copied.img");
    let done = Command::new("nbdcopy").arg(uri).arg(&file).output().unwrap();
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    std::fs::read(file).unwrap()
}

/// Whether the views read as these contents, by nbdinfo, nbdcopy and qemu-img.
fn assert_serves(sites: &Sites, disks: &[ServedDisk], wanted: &[Vec<u8>], what: &str) {
    assert_eq!(disks.len(), wanted.len());
    for (disk, wanted) in disks.iter().zip(wanted) {
        let size = Command::new("nbdinfo").args(["--size", &disk.uri]).output().unwrap();
        assert_eq!(String::from_utf8_lossy(&size.stdout).trim(), wanted.len().to_string(), "{what}: {size:?}");
        assert!(copied(sites, &disk.uri) == *wanted, "{what}: {} is not what it was", disk.disk);
        let file = sites.folder().join("wanted.img");
        std::fs::write(&file, wanted).unwrap();
        let arguments = ["compare", "-f", "raw", "-F", "raw", &disk.uri, file.to_str().unwrap()];
        let same = Command::new("qemu-img").args(arguments).output().unwrap();
        assert!(same.status.success(), "{what}: {}", String::from_utf8_lossy(&same.stdout));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_test_machine_reads_its_point_while_epochs_arrive_and_leaves_nothing_behind() {
    let mut sites = Sites::replicating(11).await;
    let (known, then) = known_point(&mut sites).await;
    // Empty epochs may have followed.
    let point = raise_test(&sites, None).await.unwrap();
    assert!(point >= known, "{point} is not the newest");
    let reads_then = |sites: &Sites, what: &str| {
        for (place, then) in then.iter().enumerate() {
            assert!(sites.cloud.content(TEST, &key(place)).unwrap() == *then, "{what}: disk {place} is not the point");
        }
    };
    let found = sites.cloud.machine(TEST).await.unwrap().unwrap();
    assert_eq!(found.power, Power::Running, "it is not left waiting for a release");
    reads_then(&sites, "at its start");
    sites.scribble(60);
    sites.must_become_equal("beside a test").await;
    sites.cloud.write(TEST, &key(0), 4096, &[0xee; 8192]).unwrap();
    sites.must_become_equal("after the test wrote").await;

    assert_eq!(raise_test(&sites, None).await.unwrap(), point, "a repeated order: not the newest of now");
    let newest = sites.points().await.pop().unwrap().attempt;
    assert!(raise_test(&sites, Some(newest)).await.unwrap_err().is(code::REPLICA_BUSY));
    let item = || NAME.parse().unwrap();
    assert!(sites.order(Order::DropReplica { item: item() }).await.unwrap_err().is(code::REPLICA_BUSY));

    // The machine runs on while its master target is restarted, and finds its view under the same name.
    let DiskSource::OverlayOnView { view, .. } = &found.spec.disks[0].source else { panic!("{found:?}") };
    sites.stop_master_target().await;
    sites.start_master_target().await;
    assert!(copied(&sites, view) == then[0], "the view is not the same after a restart");
    assert_eq!(raise_test(&sites, None).await.unwrap(), point);
    sites.must_become_equal("after the restart").await;

    for _ in 0..2 {
        sites.order(Order::LowerTest { item: item() }).await.unwrap();
        assert!(sites.cloud.machine(TEST).await.unwrap().is_none());
        let uri: Uri = view.parse().unwrap();
        assert!(Client::connect(&uri, &Options::default()).await.is_err(), "its view is served on");
    }
    // One of that name that is somebody else's stays as it is.
    let theirs = MachineSpec { disks: vec![], ..spec(&sites).await };
    sites.cloud.define(&theirs).await.unwrap();
    assert!(raise_test(&sites, None).await.unwrap_err().is(code::MACHINE_EXISTS));
    sites.order(Order::LowerTest { item: item() }).await.unwrap();
    assert_eq!(sites.cloud.machine(TEST).await.unwrap().unwrap().spec, theirs);
    sites.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_point_on_demand_that_does_not_come_in_time_is_not_pinned_later() {
    let mut sites = Sites::prepared(33).await;
    let add = |within_ms| Order::AddPoint { item: NAME.parse().unwrap(), within_ms };
    assert!(sites.order(add(50)).await.unwrap_err().is(code::ORDER_TIMED_OUT));
    sites.replicate().await;
    for _ in 0..3 {
        sites.must_become_equal("after the order").await;
    }
    assert_eq!(sites.pins().await, []);
    let Outcome::Added { point } = sites.order(add(60_000)).await.unwrap() else { panic!("no point was added") };
    assert_eq!(sites.pins().await, [point.attempt]);
    sites.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn views_read_as_their_points_while_epochs_arrive_and_what_is_written_to_one_goes_with_it() {
    let mut sites = Sites::replicating(12).await;
    let (old, then) = known_point(&mut sites).await;
    let (new, later) = known_point(&mut sites).await;
    let first = serve(&sites, 1, old, false).await;
    let second = serve(&sites, 2, old, true).await;
    let third = serve(&sites, 3, new, false).await;
    sites.scribble(30);
    assert_serves(&sites, &first, &then, "read only");
    assert_serves(&sites, &second, &then, "writable");
    assert_serves(&sites, &third, &later, "another point");
    let read_only = Client::connect(&first[0].uri.parse().unwrap(), &Options::default()).await.unwrap();
    assert!(read_only.write(0, vec![1; 512].into()).await.is_err());
    drop(read_only);

    let writer = Client::connect(&second[0].uri.parse().unwrap(), &Options::default()).await.unwrap();
    writer.write(1 << 20, vec![0xab; 70_000].into()).await.unwrap();
    writer.flush().await.unwrap();
    drop(writer);
    let mut written = then.clone();
    written[0][1 << 20..(1 << 20) + 70_000].fill(0xab);
    sites.must_become_equal("beside views").await;

    sites.stop_master_target().await;
    sites.start_master_target().await;
    sites.must_become_equal("after the restart").await;
    assert_serves(&sites, &first, &then, "read only, after a restart");
    assert_serves(&sites, &second, &written, "written, after a restart");
    assert_eq!(serve(&sites, 2, old, true).await, second, "a repeated order");
    assert_serves(&sites, &second, &written, "after a repeated order");

    assert_eq!(sites.overlays().len(), SIZES.len());
    for _ in 0..2 {
        sites.order(Order::EndView { item: NAME.parse().unwrap(), view: 2 }).await.unwrap();
        assert_eq!(sites.overlays(), Vec::<String>::new());
        for disk in &second {
            let uri: Uri = disk.uri.parse().unwrap();
            assert!(Client::connect(&uri, &Options::default()).await.is_err(), "{} is served on", disk.uri);
        }
    }
    assert_serves(&sites, &first, &then, "when another view of the same point was ended");
    sites.end().await;
}

/// What control knows of an item lies beside its replica, for the day on which control is lost, and stays there when the
/// master target is started again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_control_knows_of_an_item_is_written_down_beside_its_replica() {
    let mut sites = Sites::replicating(34).await;
    sites.must_become_equal("after the first copy").await;
    let mut keeping = sites::keeping(sites.lineage);
    keeping.manifest.machine = sites.home.machine(NAME).await.unwrap().unwrap().spec;
    for generation in [GENERATION, GENERATION + 1] {
        keeping.manifest.generation = generation;
        sites.control.keep(MASTER_TARGET, vec![keeping.clone()]);
        sites.is_remembered(&keeping.manifest).await;
        sites.control.keep(MASTER_TARGET, vec![]);
        sites.stop_master_target().await;
        sites.start_master_target().await;
        sites.is_remembered(&keeping.manifest).await;
    }
    sites.end().await;
}
