//! How a copy ends that does not come to its end: refused before the first byte (3), not reached (5), broken off in the middle
//! (1), and then the target is marked.

use super::*;

/// Has a copy refused, and looks whether anything was written.
fn is_refused(scene: &Scene, arguments: &[&str], code: &str, why: &str) {
    let (said, exit) = refusal(&copy(arguments));
    assert!(said.contains(code) && said.contains(why) && exit == Some(3), "{arguments:?}: {exit:?} {said}");
    assert!(!said.contains("half written"), "{said}");
    assert!(!scene.path("target.raw.half-written").exists());
}

#[test]
fn a_target_that_is_refused_ends_with_three_wherever_it_is_and_is_left_as_it_was() {
    let scene = Scene::new();
    let (source, target) = (scene.text("source.raw"), scene.text("target.raw"));
    std::fs::write(&target, [7; 4096]).unwrap();
    is_refused(&scene, &[&source, &target], "CPY-002", "4096 bytes");
    {
        let (_receiving, place) = receiver(&scene);
        let ticket = scene.text("ticket.pem");
        is_refused(&scene, &[&source, &place, "--ticket", &ticket], "CPY-002", "4096 bytes");
        is_refused(&scene, &[&source, &place, "--ticket", &ticket, "--dry-run"], "CPY-002", "4096 bytes");
    }
    let (_running, small) = export(&scene, "target.raw", &[]);
    is_refused(&scene, &[&source, &small], "CPY-002", "4096 bytes");
    assert_eq!(std::fs::read(&target).unwrap(), [7; 4096]);
    let nowhere = format!("nbd+unix:///?socket={}", scene.text("absent.sock"));
    is_refused(&scene, &[&source, &nowhere], "CPY-002", "absent.sock");
    let elsewhere = scene.text("absent/target.raw");
    is_refused(&scene, &[&source, &elsewhere], "CPY-002", "No such file");
    is_refused(&scene, &[&nowhere, &target], "CPY-001", "absent.sock");
}

/// Blocks are on their way already when it turns out that the target cannot be marked.
#[test]
fn a_target_that_cannot_be_marked_is_not_written() {
    let scene = Scene::new();
    let source = scene.text("source.raw");
    std::fs::write(scene.path("target.raw"), vec![7; SIZE]).unwrap();
    // Nothing can be made below a file.
    std::fs::write(scene.path("state"), "").unwrap();
    let state = scene.text("state/here");
    let (_running, target) = export(&scene, "target.raw", &[]);
    is_refused(&scene, &[&source, &target, "--state", &state], "CPY-002", "cannot be marked");
    assert!(std::fs::read(scene.path("target.raw")).unwrap() == vec![7; SIZE], "something was written");
}

#[test]
fn a_host_that_is_not_there_is_not_reached() {
    let scene = Scene::new();
    let place = {
        let (_receiving, place) = receiver(&scene);
        place
    };
    let (said, exit) = refusal(&copy(&[&scene.text("source.raw"), &place, "--ticket", &scene.text("ticket.pem")]));
    assert!(said.contains("MOV-001") && !said.contains("half written") && exit == Some(5), "{exit:?} {said}");
}

#[test]
fn a_target_that_fails_while_it_is_written_is_marked_and_said_to_be_half_written() {
    for far in [false, true] {
        let scene = Scene::new();
        let (source, state) = (scene.text("source.raw"), scene.text("state"));
        let size = (SIZE + 4096).to_string();
        let (_running, full) = nbdkit(&scene, "nbdkit", &["full", &size]);
        let ran = match far {
            false => copy(&[&source, &full, "--state", &state]),
            true => {
                let (_receiving, place) = receives(&scene, &full);
                copy(&[&source, &place, "--ticket", &scene.text("ticket.pem")])
            }
        };
        let (said, exit) = refusal(&ran);
        let told = said.contains("CPY-004") && said.contains("half written, and marked so");
        assert!(told && said.contains("cannot be written") && exit == Some(1), "far {far}: {exit:?} {said}");
        assert_eq!(marks(&scene), 1, "far {far}: no mark");
    }
}

#[test]
fn a_source_that_fails_in_the_middle_leaves_a_marked_target() {
    for far in [false, true] {
        let scene = Scene::new();
        // From the tenth MiB on it cannot be read.
        let pread = "pread=if [ $4 -ge 10485760 ]; then echo EIO worn out >&2; exit 1; fi; head -c $3 /dev/urandom";
        let (_running, source) = nbdkit(&scene, "nbdkit", &["eval", "get_size=echo 33554432", pread]);
        let target = scene.text("target.raw");
        let ran = match far {
            false => copy(&[&source, &target]),
            true => {
                let (_receiving, place) = receiver(&scene);
                copy(&[&source, &place, "--ticket", &scene.text("ticket.pem")])
            }
        };
        let (said, exit) = refusal(&ran);
        let told = said.contains("PLT-006") && said.contains("half written, and marked so");
        assert!(told && said.contains("run the same command again") && exit == Some(1), "far {far}: {exit:?} {said}");
        assert!(scene.path("target.raw.half-written").exists(), "far {far}: no mark");
    }
}

#[test]
fn an_export_that_is_half_written_is_no_source_until_its_copy_is_finished() {
    let scene = Scene::new();
    let pread = "pread=if [ $4 -ge 10485760 ]; then echo EIO worn out >&2; exit 1; fi; head -c $3 /dev/urandom";
    let (_breaks, broken) = nbdkit(&scene, "nbdkit", &["eval", "get_size=echo 16777216", pread]);
    std::fs::write(scene.path("middle.raw"), vec![9; SIZE]).unwrap();
    let (_middle, middle) = export(&scene, "middle.raw", &[]);
    let (state, target, source) = (scene.text("state"), scene.text("target.raw"), scene.text("source.raw"));
    // A compare finds a stretch that cannot be read before it sends anything.
    let (said, exit) = refusal(&copy(&[&broken, &middle, "--state", &state]));
    let told = said.contains("PLT-006") && said.contains("run the same command again when it can");
    assert!(told && exit == Some(3) && marks(&scene) == 0, "{exit:?} {said}");
    let (said, exit) = refusal(&copy(&[&broken, &middle, "--state", &state, "--sync", "full"]));
    assert!(said.contains("half written") && exit == Some(1) && marks(&scene) == 1, "{exit:?} {said}");

    let (said, exit) = refusal(&copy(&[&middle, &target, "--state", &state]));
    let told = said.contains("CPY-001") && said.contains("had not finished") && said.contains("finish that copy first");
    assert!(told && exit == Some(3) && !scene.path("target.raw").exists(), "{exit:?} {said}");
    let mut sends = sockeye();
    sends.args(["send", &middle, "--state", &state, "--listen", "127.0.0.1:0", "--ticket"]);
    let (said, exit) = refusal(&sends.arg(scene.path("ticket.pem")).output().unwrap());
    assert!(said.contains("CPY-001") && said.contains("had not finished") && exit == Some(3), "{exit:?} {said}");

    report(&copy(&[&source, &middle, "--state", &state]));
    report(&copy(&[&middle, &target, "--state", &state]));
    assert!(scene.are_equal() && marks(&scene) == 0);
}
