//! `sockeye copy`, `sockeye receive` and `sockeye send` as an operator types them: the real program, real files, real TLS, real exports.

#![allow(
    clippy::unwrap_used,
    clippy::disallowed_methods,
    reason = "a test that cannot go on fails, and waits for other programs"
)]

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

mod ending;
mod exports;
mod fetched;
mod memory;

const SIZE: usize = (20 << 20) + 4096;

fn sockeye() -> Command {
    Command::new(env!("CARGO_BIN_EXE_sockeye"))
}

/// Runs `sockeye --output json copy` with these arguments.
fn copy(arguments: &[&str]) -> Output {
    sockeye().args(["--output", "json", "copy"]).args(arguments).output().unwrap()
}

fn report(output: &Output) -> serde_json::Value {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// What a refusal says, and the exit code.
fn refusal(output: &Output) -> (String, Option<i32>) {
    (String::from_utf8_lossy(&output.stderr).into_owned(), output.status.code())
}

struct Scene {
    directory: tempfile::TempDir,
}

impl Scene {
    /// A folder with `source.raw`, half of which is data.
    fn new() -> Scene {
        let scene = Scene { directory: tempfile::tempdir().unwrap() };
        let (mut bytes, mut dice) = (vec![0; SIZE], 88u64);
        for block in bytes.chunks_mut(65536).step_by(2) {
            // Nothing that could be compressed.
            block.fill_with(|| {
                dice ^= dice << 13;
                dice ^= dice >> 7;
                dice ^= dice << 17;
                (dice >> 24) as u8 | 1
            });
        }
        std::fs::write(scene.path("source.raw"), bytes).unwrap();
        scene
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn text(&self, name: &str) -> String {
        self.path(name).display().to_string()
    }

    fn are_equal(&self) -> bool {
        std::fs::read(self.path("source.raw")).unwrap() == std::fs::read(self.path("target.raw")).unwrap()
    }
}

/// A process that ends with the test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Starts a receiver of `target.raw`; gives it and where it waits.
fn receiver(scene: &Scene) -> (Running, String) {
    receives(scene, &scene.text("target.raw"))
}

fn receives(scene: &Scene, target: &str) -> (Running, String) {
    waits(scene, &["receive", target, "--state", &scene.text("state")])
}

/// Starts a program that waits for its other end.
fn waits(scene: &Scene, arguments: &[&str]) -> (Running, String) {
    let mut command = sockeye();
    command.args(arguments).args(["--name", "web01", "--listen", "127.0.0.1:0"]);
    let ticket = scene.path("ticket.pem");
    let mut receiver = Running(command.arg("--ticket").arg(ticket).stdout(Stdio::piped()).spawn().unwrap());
    let mut lines = BufReader::new(receiver.0.stdout.take().unwrap()).lines();
    let first = lines.next().unwrap().unwrap();
    let place = first.split(' ').find(|word| word.starts_with("sockeye+tls://")).unwrap().to_string();
    // What it says later must find a reader.
    std::thread::spawn(move || lines.for_each(drop));
    (receiver, place)
}

fn export(scene: &Scene, image: &str, options: &[&str]) -> (Running, String) {
    let socket = scene.path(&format!("{image}.sock"));
    let mut command = Command::new("qemu-nbd");
    command.args(["--format=raw", "--persistent", "--shared=8", "--socket"]).arg(&socket).args(options);
    serving(command.arg(scene.path(image)), &socket)
}

/// An export that nbdkit makes up.
fn nbdkit(scene: &Scene, name: &str, arguments: &[&str]) -> (Running, String) {
    let socket = scene.path(&format!("{name}.sock"));
    serving(Command::new("nbdkit").args(["--foreground", "--unix"]).arg(&socket).args(arguments), &socket)
}

fn serving(command: &mut Command, socket: &Path) -> (Running, String) {
    let server = Running(command.spawn().unwrap());
    let deadline = Instant::now() + Duration::from_secs(30);
    while !socket.exists() {
        assert!(Instant::now() < deadline, "{command:?} does not begin");
        std::thread::sleep(Duration::from_millis(20));
    }
    (server, format!("nbd+unix:///?socket={}", socket.display()))
}

/// Marks of targets that have no beside.
fn marks(scene: &Scene) -> usize {
    std::fs::read_dir(scene.path("state")).map_or(0, Iterator::count)
}

fn change(path: &Path, offset: usize) {
    let mut bytes = std::fs::read(path).unwrap();
    bytes[offset] ^= 1;
    std::fs::write(path, bytes).unwrap();
}

#[test]
fn a_disk_becomes_a_copy_and_the_second_copy_moves_one_block() {
    let scene = Scene::new();
    let (source, target) = (scene.text("source.raw"), scene.text("target.raw"));
    let dry = report(&copy(&[&source, &target, "--dry-run"]));
    assert!(dry["changed_bytes"].as_u64().unwrap() > 0 && !scene.path("target.raw").exists(), "{dry}");
    let first = report(&copy(&[&source, &target, "--verify"]));
    assert_eq!(
        (&first["sync"], &first["verified"], &first["size_bytes"]),
        (&"full".into(), &true.into(), &SIZE.into())
    );
    assert!(scene.are_equal());
    change(&scene.path("source.raw"), SIZE - 1);
    let second = report(&copy(&[&source, &target, "--verify"]));
    assert_eq!((&second["sync"], &second["changed_bytes"]), (&"compare".into(), &4096.into()));
    assert!(scene.are_equal() && !scene.path("target.raw.half-written").exists());
}

#[test]
fn with_larger_leaves_more_travels_around_a_change_here_and_to_another_host() {
    let scene = Scene::new();
    let (source, target) = (scene.text("source.raw"), scene.text("target.raw"));
    std::fs::copy(&source, &target).unwrap();
    let changed = |offset: usize, arguments: &[&str]| {
        change(&scene.path("source.raw"), offset);
        let report = report(&copy(&[&[&*source], arguments, &["--sync", "compare", "--verify"]].concat()));
        assert!(scene.are_equal(), "{report}");
        report["changed_bytes"].as_u64().unwrap()
    };
    assert_eq!(changed(5 << 20, &[&target]), 64 << 10);
    let large = 64 << 10..=1 << 20;
    let local = changed(6 << 20, &[&target, "--leaf-size", "1M"]);
    let (mut receiving, place) = receiver(&scene);
    let ticket = scene.text("ticket.pem");
    let far = changed(7 << 20, &[&place, "--ticket", &ticket, "--leaf-size", "1M"]);
    assert!(receiving.0.wait().unwrap().success());
    assert!(large.contains(&local) && local > 64 << 10 && far == local, "{local}, {far}");
}

#[test]
fn another_host_is_copied_to_with_its_ticket_and_not_without() {
    let scene = Scene::new();
    let source = scene.text("source.raw");
    let (_other, _) = {
        let other = Scene::new();
        std::fs::rename(other.path("source.raw"), other.path("target.raw")).unwrap();
        let started = receiver(&other);
        std::fs::copy(other.path("ticket.pem"), scene.path("other.pem")).unwrap();
        started
    };
    let (mut receiving, place) = receiver(&scene);
    let (said, exit) = refusal(&copy(&[&source, &place]));
    assert!(said.contains("--ticket") && exit == Some(2), "{said}");
    // A ticket for another receiver proves nothing here.
    let (said, exit) = refusal(&copy(&[&source, &place, "--ticket", &scene.text("other.pem")]));
    assert!(said.contains("MOV-007") && exit == Some(3), "{said}");
    let wrong = place.replace("web01", "web02");
    let (said, exit) = refusal(&copy(&[&source, &wrong, "--ticket", &scene.text("ticket.pem")]));
    assert!(said.contains("MOV-007") && exit == Some(3), "{said}");
    assert!(!scene.path("target.raw").exists(), "somebody who was not let in made the target");

    let ticket = scene.text("ticket.pem");
    let dry = report(&copy(&[&source, &place, "--ticket", &ticket, "--dry-run"]));
    assert!(dry["changed_bytes"].as_u64().unwrap() > 0 && !scene.path("target.raw").exists(), "{dry}");
    let report = report(&copy(&[&source, &place, "--ticket", &ticket, "--connections", "3", "--verify"]));
    assert!(receiving.0.wait().unwrap().success() && scene.are_equal());
    // Half of it is data; the rest travels as ranges.
    let (sent, data) = (report["sent_bytes"].as_u64().unwrap(), SIZE as u64 / 2);
    assert!(sent > data && sent < data + data / 10, "{report}");
}

#[test]
fn exports_are_copied_from_and_to() {
    let scene = Scene::new();
    std::fs::write(scene.path("target.raw"), vec![9; SIZE + 65536]).unwrap();
    let state = scene.text("state");
    let (_from, source) = export(&scene, "source.raw", &["--read-only"]);
    let (_to, target) = export(&scene, "target.raw", &[]);
    let report = report(&copy(&[&source, &target, "--verify", "--state", &state]));
    assert_eq!(report["verified"], true);
    let (source, target) = (std::fs::read(scene.path("source.raw")), std::fs::read(scene.path("target.raw")));
    let (source, target) = (source.unwrap(), target.unwrap());
    assert!(source == target[..SIZE] && target[SIZE..] == [9; 65536], "what lies behind the copy stays as it is");
    assert_eq!(std::fs::read_dir(state).unwrap().count(), 0, "a mark was left");
}

#[test]
fn what_cannot_be_copied_is_refused_and_nothing_is_written() {
    let scene = Scene::new();
    let (source, target) = (scene.text("source.raw"), scene.text("target.raw"));
    let (said, exit) = refusal(&copy(&[&scene.text("absent.raw"), &target]));
    assert!(said.contains("CPY-001") && exit == Some(3), "{said}");
    std::fs::write(&target, [7; 4096]).unwrap();
    let (said, exit) = refusal(&copy(&[&source, &target]));
    assert!(said.contains("CPY-002") && said.contains("4096 bytes") && exit == Some(3), "{said}");
    assert_eq!(std::fs::read(&target).unwrap(), [7; 4096]);
    std::fs::remove_file(&target).unwrap();
    // Somebody writes the source; somebody has the target open.
    let (_running, _) = export(&scene, "source.raw", &[]);
    let (said, exit) = refusal(&copy(&[&source, &target]));
    assert!(said.contains("CPY-001") && said.contains("writes the disk") && exit == Some(3), "{said}");
    assert!(!Path::new(&target).exists());
    // A copy that had not finished is no source.
    std::fs::write(scene.path("half.raw"), [1; 65536]).unwrap();
    std::fs::write(scene.path("half.raw.half-written"), "").unwrap();
    let (said, exit) = refusal(&copy(&[&scene.text("half.raw"), &target]));
    assert!(said.contains("had not finished") && exit == Some(3), "{said}");
    let (said, exit) = refusal(&copy(&["http://cloud/disk", &target]));
    assert!(said.contains("http:// is not known") && exit == Some(2), "{said}");
}
