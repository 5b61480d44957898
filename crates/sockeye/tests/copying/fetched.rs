//! `sockeye send`: the source is on another host, and the target's side dials, asks and reports.

use super::*;

/// Starts a sender of `source.raw`; gives it and where it waits.
fn sender(scene: &Scene) -> (Running, String) {
    waits(scene, &["send", &scene.text("source.raw")])
}

fn fetch(scene: &Scene, place: &str, target: &str, more: &[&str]) -> Output {
    let (ticket, state) = (scene.text("ticket.pem"), scene.text("state"));
    copy(&[&[place, target, "--ticket", &ticket, "--state", &state], more].concat())
}

fn ends_well(mut running: Running) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while running.0.try_wait().unwrap().is_none() {
        assert!(Instant::now() < deadline, "it does not end");
        std::thread::sleep(Duration::from_millis(10));
    }
    assert_eq!(running.0.wait().unwrap().code(), Some(0));
}

#[test]
fn a_disk_of_another_host_is_fetched_and_then_only_what_differs() {
    let scene = Scene::new();
    let target = scene.text("target.raw");
    {
        let (sending, place) = sender(&scene);
        let dry = report(&fetch(&scene, &place, &target, &["--dry-run"]));
        assert!(!scene.path("target.raw").exists() || std::fs::metadata(&target).unwrap().len() == 0, "{dry}");
        let first = report(&fetch(&scene, &place, &target, &["--verify"]));
        assert_eq!((&first["sync"], &first["verified"]), (&"full".into(), &true.into()), "{first}");
        assert_eq!(first["size_bytes"], SIZE, "{first}");
        assert_eq!(first["changed_bytes"], dry["changed_bytes"]);
        assert!(first["sent_bytes"].as_u64().unwrap() > SIZE as u64 / 2, "{first}");
        ends_well(sending);
    }
    assert!(scene.are_equal());
    let mut bytes = std::fs::read(&target).unwrap();
    bytes[SIZE - 1] ^= 1;
    std::fs::write(&target, bytes).unwrap();
    let (sending, place) = sender(&scene);
    let second = report(&fetch(&scene, &place, &target, &[]));
    assert_eq!((&second["sync"], &second["changed_bytes"]), (&"compare".into(), &4096.into()), "{second}");
    assert!(second["read_source_bytes"].as_u64().unwrap() > 0 && second["read_target_bytes"].as_u64().unwrap() > 0);
    ends_well(sending);
    assert!(scene.are_equal());
}

#[test]
fn one_that_is_killed_in_the_middle_goes_on_with_the_same_sender() {
    let scene = Scene::new();
    std::fs::write(scene.path("target.raw"), vec![7; SIZE]).unwrap();
    let file = format!("file={}", scene.text("target.raw"));
    let (_serving, target) = nbdkit(&scene, "slow", &["--filter=delay", "file", &file, "delay-write=100ms"]);
    let (sending, place) = sender(&scene);
    let (ticket, state) = (scene.text("ticket.pem"), scene.text("state"));
    let mut fetching = sockeye();
    fetching.args(["copy", &place, &target, "--ticket", &ticket, "--state", &state, "--sync", "full"]);
    let fetching = Running(fetching.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap());
    let deadline = Instant::now() + Duration::from_secs(30);
    let is_changed = || std::fs::read(scene.path("target.raw")).unwrap()[0] != 7;
    while !is_changed() {
        assert!(Instant::now() < deadline, "nothing is written");
        std::thread::sleep(Duration::from_millis(10));
    }
    drop(fetching);
    assert!(!scene.are_equal());
    let again = report(&fetch(&scene, &place, &target, &[]));
    assert_eq!((&again["sync"], &again["resumed"]), (&"compare".into(), &true.into()), "{again}");
    ends_well(sending);
    assert!(scene.are_equal());
}

#[test]
fn what_cannot_be_fetched_is_refused_and_changes_nothing() {
    let scene = Scene::new();
    let (source, target) = (scene.text("source.raw"), scene.text("target.raw"));
    let (_sending, place) = sender(&scene);
    // Too small a target, which its own side refuses; the sender goes on waiting.
    std::fs::write(&target, [7; 4096]).unwrap();
    let (said, exit) = refusal(&fetch(&scene, &place, &target, &[]));
    assert!(said.contains("CPY-002") && said.contains("4096 bytes") && exit == Some(3), "{exit:?} {said}");
    // It gives, and takes nothing.
    let (said, exit) = refusal(&copy(&[&source, &place, "--ticket", &scene.text("ticket.pem")]));
    assert!(said.contains("MOV-005") && said.contains("takes none") && exit == Some(3), "{exit:?} {said}");
    let (said, exit) = refusal(&copy(&[&place, &target]));
    assert!(said.contains("ticket") && exit == Some(2), "{exit:?} {said}");
    let (said, exit) = refusal(&fetch(&scene, &place, &place, &[]));
    assert!(said.contains("both disks") && exit == Some(2), "{exit:?} {said}");
    assert_eq!(std::fs::read(&target).unwrap(), [7; 4096]);
    std::fs::remove_file(&target).unwrap();
    assert_eq!(report(&fetch(&scene, &place, &target, &[]))["sync"], "full");
    assert!(scene.are_equal());
    // Nobody waits any more.
    let (said, exit) = refusal(&fetch(&scene, &place, &target, &[]));
    assert!(said.contains("MOV-001") && exit == Some(5), "{exit:?} {said}");
    // Who takes copies gives none.
    let (_receiving, place) = receiver(&scene);
    let (said, exit) = refusal(&fetch(&scene, &place, &scene.text("other.raw"), &[]));
    assert!(said.contains("MOV-005") && exit == Some(3), "{exit:?} {said}");
}
