//! What a copy takes of memory does not depend on what waits: a source that is as fast as it can be, a target that takes a
//! megabyte a second, two programs between them.

use super::*;

/// What waits for the target.
const GIBIBYTES: &str = "4G";
/// What each of the programs may take at most. (Measured: 20 to 40 MiB.)
const BOUND_MIB: u64 = 128;
/// How long it is watched: a source that is read at 100 MB/s is beyond the bound four times over.
const WATCHED: Duration = Duration::from_secs(5);

/// The most memory that a process had at once so far.
fn peak_mib(process: &Running) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", process.0.id())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() / 1024
}

/// A target that takes a second for each write of 256 KiB, of which four are under way.
fn slow(scene: &Scene) -> (Running, String, PathBuf) {
    let log = scene.path("log");
    let logged = format!("logfile={}", log.display());
    let arguments = ["--filter=log", "--filter=delay", "null", GIBIBYTES, "delay-write=1", "delay-zero=1", &logged];
    let (running, uri) = nbdkit(scene, "slow", &arguments);
    (running, uri, log)
}

#[test]
fn a_slow_target_makes_neither_end_of_a_copy_keep_what_waits_for_it() {
    for far in [false, true] {
        let scene = Scene::new();
        let (_from, source) = nbdkit(&scene, "fast", &["pattern", GIBIBYTES]);
        let (_to, target, log) = slow(&scene);
        let state = scene.text("state");
        let mut command = sockeye();
        command.args(["copy", &source, "--sync", "full", "--state", &state]);
        let receiving = far.then(|| receives(&scene, &target));
        match &receiving {
            None => command.arg(&target),
            Some((_, place)) => command.args([place, "--ticket", &scene.text("ticket.pem")]),
        };
        let mut copying = Running(command.stdout(Stdio::null()).spawn().unwrap());
        let deadline = Instant::now() + Duration::from_secs(60);
        let wrote = || std::fs::read_to_string(&log).is_ok_and(|log| log.contains("...Write "));
        while !wrote() {
            assert!(Instant::now() < deadline, "nothing is written");
            std::thread::sleep(Duration::from_millis(20));
        }
        std::thread::sleep(WATCHED);
        assert!(copying.0.try_wait().unwrap().is_none(), "far {far}: it is no longer at work");
        let ends = std::iter::once(&copying).chain(receiving.as_ref().map(|(receiving, _)| receiving));
        let peaks: Vec<u64> = ends.map(peak_mib).collect();
        eprintln!("far {far}: at most {peaks:?} MiB");
        assert!(peaks.iter().all(|peak| *peak < BOUND_MIB), "far {far}: {peaks:?} MiB");
    }
}
