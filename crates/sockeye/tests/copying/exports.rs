//! Exports that take several connections are read and written over several, the others over one.

use std::collections::BTreeSet;

use super::*;

/// What nbdkit's log tells: the connections on which a request was made that begins with that word, and how many there were.
fn told(log: &Path, word: &str) -> (usize, usize) {
    let text = std::fs::read_to_string(log).unwrap();
    let lines = text.lines().filter(|line| line.contains(word));
    let of: Vec<&str> = lines.filter_map(|line| line.split("connection=").nth(1)?.split(' ').next()).collect();
    (of.iter().collect::<BTreeSet<_>>().len(), of.len())
}

/// A file behind nbdkit, and its log.
fn logged(scene: &Scene, image: &str, filters: &[&str], settings: &[&str]) -> (Running, String, PathBuf) {
    let log = scene.path(&format!("{image}.log"));
    let (file, log_file) = (format!("file={}", scene.text(image)), format!("logfile={}", log.display()));
    let arguments = [filters, &["--filter=log", "file", &file, &log_file], settings].concat();
    let (running, uri) = nbdkit(scene, image, &arguments);
    (running, uri, log)
}

#[test]
fn exports_that_take_several_connections_are_copied_over_several() {
    for far in [false, true] {
        let scene = Scene::new();
        std::fs::write(scene.path("target.raw"), vec![9; SIZE]).unwrap();
        let (_from, source, read) = logged(&scene, "source.raw", &[], &[]);
        let (_to, target, written) = logged(&scene, "target.raw", &[], &[]);
        let state = scene.text("state");
        let options = ["--connections", "3", "--sync", "full", "--state", &state];
        let ran = match far {
            false => copy(&[&[&*source, &target], &options[..]].concat()),
            true => {
                let (_receiving, place) = receives(&scene, &target);
                copy(&[&[&*source, &place, "--ticket", &scene.text("ticket.pem")], &options[..]].concat())
            }
        };
        report(&ran);
        assert!(scene.are_equal() && marks(&scene) == 0, "far {far}");
        assert_eq!(told(&read, " Read ").0, 3, "far {far}");
        let wanted = if far { usize::from(component::CONNECTIONS) } else { 3 };
        assert_eq!(told(&written, " Write ").0, wanted, "far {far}");
        assert_eq!(told(&written, " Flush ").1, 1, "far {far}: one flush covers all");
        // Nothing is written behind its back.
        let log = std::fs::read_to_string(written).unwrap();
        let (flush, last) = (log.find(" Flush ").unwrap(), log.rfind("...Write ").unwrap());
        assert!(last < flush, "far {far}: a write was under way when it was flushed");
    }
}

#[test]
fn an_export_that_does_not_is_copied_over_one() {
    let scene = Scene::new();
    std::fs::write(scene.path("target.raw"), vec![9; SIZE]).unwrap();
    let (filter, mode) = (["--filter=multi-conn"], ["multi-conn-mode=disable"]);
    let (_from, source, read) = logged(&scene, "source.raw", &filter, &mode);
    let (_to, target, written) = logged(&scene, "target.raw", &filter, &mode);
    let state = scene.text("state");
    report(&copy(&[&source, &target, "--connections", "8", "--verify", "--sync", "full", "--state", &state]));
    assert!(scene.are_equal() && marks(&scene) == 0);
    assert_eq!((told(&read, " Connect ").0, told(&written, " Connect ").0), (1, 1));
    assert!(told(&written, " Write ").1 > 10);
}
