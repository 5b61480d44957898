//! The real guest under a real QEMU: boots, writes, is switched off or killed, and what it said is on its disks.
#![allow(clippy::unwrap_used)] // a test's helpers may, as the tests themselves may

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::Duration;

use guest::console::{Line, kernel_command_line};
use guest::{Layout, Pattern, Role, Scope, seed_pair, verify};

/// A boot under TCG takes four seconds on an idle machine.
const PATIENCE: Duration = Duration::from_secs(90);

struct Machine {
    qemu: Child,
    console: Receiver<Line>,
    qmp: PathBuf,
}

impl Machine {
    fn boot(dir: &Path, command_line: &str) -> Self {
        let built = built_guest();
        let qmp = dir.join("qmp.sock");
        let mut qemu = Command::new("qemu-system-x86_64");
        qemu.args(["-accel", "tcg", "-cpu", "max", "-m", "192", "-nodefaults", "-no-user-config", "-display", "none"]);
        qemu.args(["-no-reboot", "-serial", "stdio", "-append", command_line]);
        qemu.arg("-kernel").arg(built.join("vmlinuz")).arg("-initrd").arg(built.join("initrd.img"));
        qemu.arg("-qmp").arg(format!("unix:{},server=on,wait=off", qmp.display()));
        // Given in the wrong order on purpose: the guest goes by serial numbers.
        for (index, name) in [(1, "b.raw"), (0, "a.raw")] {
            let path = dir.join(name);
            qemu.arg("-blockdev")
                .arg(format!("driver=raw,node-name=d{index},file.driver=file,file.filename={}", path.display()));
            qemu.arg("-device").arg(format!("virtio-blk-pci,drive=d{index},serial=disk{index}"));
        }
        let mut qemu = qemu.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
        let stdout = BufReader::new(qemu.stdout.take().unwrap());
        let (sender, console) = channel();
        std::thread::spawn(move || {
            for line in stdout.split(b'\n').map_while(Result::ok) {
                if let Some(line) = Line::parse(&String::from_utf8_lossy(&line)) {
                    let _ = sender.send(line);
                }
            }
        });
        Self { qemu, console, qmp }
    }

    fn next(&self) -> Line {
        self.console.recv_timeout(PATIENCE).expect("the guest says something")
    }

    /// The number up to which the guest says its ledger goes, from its report at boot.
    fn ledger(&self) -> String {
        match self.next() {
            Line::Ledger(json) => json,
            other => panic!("{other:?} before the report"),
        }
    }

    fn press_power_button(&self) {
        let mut stream = UnixStream::connect(&self.qmp).unwrap();
        let mut answers = BufReader::new(stream.try_clone().unwrap()).lines();
        let mut next = || answers.next().unwrap().unwrap();
        assert!(next().contains("QMP"));
        for command in ["qmp_capabilities", "system_powerdown"] {
            stream.write_all(format!("{{\"execute\": \"{command}\"}}\n").as_bytes()).unwrap();
            while !next().contains("\"return\"") {}
        }
    }

    /// Everything the guest still says until QEMU ends.
    fn until_the_end(&mut self) -> Vec<Line> {
        let mut lines = Vec::new();
        loop {
            match self.console.recv_timeout(PATIENCE) {
                Ok(line) => lines.push(line),
                Err(RecvTimeoutError::Disconnected) => break,
                Err(RecvTimeoutError::Timeout) => panic!("the machine is still on after {lines:?}"),
            }
        }
        assert!(self.qemu.wait().unwrap().success());
        lines
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = self.qemu.kill();
        let _ = self.qemu.wait();
    }
}

/// The folder of kernel and initramfs, beside the folder this test was built in.
fn built_guest() -> PathBuf {
    let this = std::env::current_exe().unwrap();
    let target = this.ancestors().find(|folder| folder.join("CACHEDIR.TAG").is_file()).unwrap();
    let built = target.join("guest");
    assert!(built.join("initrd.img").is_file(), "the test guest is not built; run: cargo xtask setup");
    built
}

fn python_agrees(dir: &Path, at_least: u64) -> bool {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/verify_ledger.py");
    let disks = [dir.join("a.raw"), dir.join("b.raw")];
    Command::new("python3")
        .arg(script)
        .args(disks)
        .args(["--at-least", &at_least.to_string()])
        .status()
        .unwrap()
        .success()
}

#[test]
fn the_guest_writes_until_it_is_switched_off_and_goes_on_at_the_next_boot_until_it_is_killed() {
    let dir = tempfile::tempdir().unwrap();
    let (a, b) = (dir.path().join("a.raw"), dir.path().join("b.raw"));
    seed_pair(&a, &b, 8 << 30, 1, 64 << 20).unwrap();

    let mut machine = Machine::boot(dir.path(), &kernel_command_line(200, Pattern::Mixed));
    assert!(machine.ledger().contains("\"highest\":0,"));
    assert_eq!(machine.next(), Line::Writing(1));
    while !matches!(machine.next(), Line::Ack { number: 100, .. }) {}
    machine.press_power_button();
    let lines = machine.until_the_end();
    let Some(&Line::Bye { number: last, .. }) = lines.last() else { panic!("no farewell: {lines:?}") };
    let button = lines.iter().position(|line| matches!(line, Line::Button { .. })).unwrap();
    assert!(matches!(lines[button + 1], Line::Ack { .. }), "still writing when the shutdown begins");
    let acknowledged: Vec<u64> = lines
        .iter()
        .filter_map(|line| if let Line::Ack { number, .. } = line { Some(*number) } else { None })
        .collect();
    assert!(acknowledged.into_iter().eq(101..=last));
    let report = verify(&a, &b, Scope::WholeDisk).unwrap();
    assert!(report.holds(last) && report.found == last && report.data_blocks_checked > 0, "{report:?}");
    assert!(python_agrees(dir.path(), last));

    let machine = Machine::boot(dir.path(), &kernel_command_line(0, Pattern::Overwrite));
    let ledger = machine.ledger();
    assert!(ledger.contains(&format!("\"highest\":{last},")) && ledger.contains("\"consistent\":true"), "{ledger}");
    assert_eq!(machine.next(), Line::Writing(last + 1));
    while !matches!(machine.next(), Line::Ack { number, .. } if number > last + 300) {}
    drop(machine);
    let report = verify(&a, &b, Scope::WholeDisk).unwrap();
    assert!(report.holds(last + 301) && report.boots == 2, "{report:?}");
    assert!(python_agrees(dir.path(), last + 301));
}

#[test]
fn the_guest_says_so_and_writes_nothing_when_its_ledger_is_damaged() {
    let dir = tempfile::tempdir().unwrap();
    let (a, b) = (dir.path().join("a.raw"), dir.path().join("b.raw"));
    seed_pair(&a, &b, 16 << 20, 1, 1 << 20).unwrap();
    let file = std::fs::File::options().read(true).write(true).open(&b).unwrap();
    let at = Layout::read(&file, Role::B).unwrap().slot_offset(9);
    std::os::unix::fs::FileExt::write_all_at(&file, b"not a record", at).unwrap();
    let before = std::fs::read(&b).unwrap();

    let mut machine = Machine::boot(dir.path(), &kernel_command_line(0, Pattern::Mixed));
    let ledger = machine.ledger();
    assert!(ledger.contains("\"consistent\":false") && ledger.contains("\"bad\":1,"), "{ledger}");
    assert!(matches!(machine.next(), Line::Error(_)));
    machine.press_power_button();
    assert!(matches!(machine.until_the_end().as_slice(), [Line::Bye { number: 0, .. }]));
    assert!(std::fs::read(&b).unwrap() == before);
}
