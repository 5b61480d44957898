//! The part that runs inside the test machine: find the disks, report, write, and stop when the power button is pressed.
//!
//! ```text
//!   boot ─► LEDGER {...} ─► WRITING n ─► ACK n, ACK n+1, ... ─► BUTTON ─► some more ACKs ─► BYE n ─► power off
//! ```
//! One thread: between two records it waits on the button's event device, so no record is ever half-way when it stops.
//!
//! # If power fails
//! See the writer: at most one record is unfinished, and the next boot finishes it.

use std::fs::{File, OpenOptions};
use std::io::Read;
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant, SystemTime};

use guest::console::Orders;
use guest::{DiskFault, WriteAt, Writer};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::OFlags;
use rustix::system::{RebootCommand, reboot};

/// Serial numbers of the two disks, as given to QEMU with `serial=`.
const SERIALS: [&str; 2] = ["disk0", "disk1"];
const DISK_PATIENCE: Duration = Duration::from_secs(10);
/// `struct input_event` on 64 bits: time (16 bytes), type, code, value.
const EVENT_BYTES: usize = 24;
const EV_KEY: u16 = 1;
const KEY_POWER: u16 = 116;

/// Runs until the power button; never returns in the machine, as PID 1 must not.
pub(crate) fn run() -> Result<ExitCode, String> {
    if std::process::id() != 1 {
        return Err("`ledger run` is for the first process of the test machine; it would switch this one off".into());
    }
    // The button comes first: a press that nobody listens to is lost.
    let last = Button::find().and_then(|mut button| {
        work(&mut button).or_else(|message| {
            println!("LEDGER-ERROR {message}");
            // The disks stay as they are, for whoever comes to look; the button still works.
            button.wait();
            Ok(0)
        })
    });
    let last = last.unwrap_or_else(|message| {
        println!("LEDGER-ERROR {message}");
        0
    });
    println!("BYE {last} {}", now_ms());
    rustix::fs::sync();
    drain_console();
    reboot(RebootCommand::PowerOff).map_err(|error| format!("LEDGER-ERROR power off: {error}"))?;
    Ok(ExitCode::SUCCESS)
}

fn work(button: &mut Button) -> Result<u64, String> {
    let told = std::fs::read_to_string("/proc/cmdline").map_err(|error| format!("/proc/cmdline: {error}"))?;
    let orders = Orders::parse(&told)?;
    let [a, b] = [open_disk(SERIALS[0])?, open_disk(SERIALS[1])?];
    let (report, writer) = Writer::resume(a, b, orders.pattern, boot_id()).map_err(spoken)?;
    println!("LEDGER {}", report.to_json());
    report.problems.iter().for_each(|problem| println!("LEDGER-PROBLEM {problem}"));
    let Some(mut writer) = writer else { return Err("the ledger is not consistent; not writing to it".into()) };
    if orders.idle {
        button.wait();
        println!("BUTTON {}", now_ms());
        return Ok(report.highest);
    }
    writer.finish_newest().map_err(spoken)?;
    println!("WRITING {}", writer.next_number());
    write_until_button(&mut writer, orders, button)
}

fn write_until_button<D: WriteAt>(writer: &mut Writer<D>, orders: Orders, button: &mut Button) -> Result<u64, String> {
    let period = Duration::from_secs(1).checked_div(orders.rate).unwrap_or(Duration::ZERO);
    let mut due = Instant::now();
    let mut stop_at: Option<Instant> = None;
    loop {
        let wait = due.saturating_duration_since(Instant::now());
        if button.pressed_within(wait) && stop_at.is_none() {
            println!("BUTTON {}", now_ms());
            stop_at = Some(Instant::now() + Duration::from_millis(orders.linger_ms));
        }
        let now = Instant::now();
        if stop_at.is_some_and(|stop_at| now >= stop_at) {
            return Ok(writer.next_number() - 1);
        }
        if now < due {
            continue;
        }
        // A disk that was slow for a while is not flooded afterwards: the rate is kept, the lost time is not made up.
        due = (due + period).max(now);
        let number = writer.append(now_ms()).map_err(spoken)?;
        println!("ACK {number} {}", now_ms());
    }
}

fn spoken(fault: DiskFault) -> String {
    fault.to_string()
}

/// Opens the disk with that serial number, past every cache: what was written is durable when the call returns.
fn open_disk(serial: &str) -> Result<File, String> {
    let name = find_disk(serial)?;
    OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags((OFlags::DIRECT | OFlags::DSYNC).bits() as i32)
        .open(&name)
        .map_err(|error| format!("opening {} ({serial}): {error}", name.display()))
}

fn find_disk(serial: &str) -> Result<PathBuf, String> {
    let deadline = Instant::now() + DISK_PATIENCE;
    loop {
        for entry in std::fs::read_dir("/sys/block").map_err(|error| format!("/sys/block: {error}"))?.flatten() {
            let told = std::fs::read_to_string(entry.path().join("serial")).unwrap_or_default();
            let device = PathBuf::from("/dev").join(entry.file_name());
            if told.trim() == serial && device.exists() {
                return Ok(device);
            }
        }
        if Instant::now() > deadline {
            return Err(format!("no disk has the serial number {serial}"));
        }
        pause(Duration::from_millis(20));
    }
}

/// Differs from boot to boot, so that two machines going on from the same record write different ones.
fn boot_id() -> u64 {
    let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let digits: String = text.chars().filter(char::is_ascii_hexdigit).take(16).collect();
    u64::from_str_radix(&digits, 16).unwrap_or_else(|_| now_ms())
}

fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    since.as_millis() as u64
}

fn pause(duration: Duration) {
    let _ = poll(&mut [], Timespec::try_from(duration).ok().as_ref());
}

/// The last words must leave the serial port before the power goes off.
fn drain_console() {
    let _ = rustix::termios::tcdrain(std::io::stdout());
}

/// The ACPI power button, as an input device.
struct Button(File);

impl Button {
    fn find() -> Result<Self, String> {
        let deadline = Instant::now() + DISK_PATIENCE;
        loop {
            for entry in std::fs::read_dir("/sys/class/input").into_iter().flatten().flatten() {
                let name = std::fs::read_to_string(entry.path().join("device/name")).unwrap_or_default();
                let device = PathBuf::from("/dev/input").join(entry.file_name());
                let is_it = name.trim() == "Power Button" && entry.file_name().as_encoded_bytes().starts_with(b"event");
                if let (true, Ok(file)) = (is_it, File::open(&device)) {
                    return Ok(Self(file));
                }
            }
            if Instant::now() > deadline {
                return Err("no power button (modules button and evdev)".into());
            }
            pause(Duration::from_millis(20));
        }
    }

    /// Waits until the button is pressed.
    fn wait(&mut self) {
        while !self.pressed_within(Duration::from_secs(3600)) {}
    }

    /// Waits up to `patience` and tells whether the button was pressed.
    fn pressed_within(&mut self, patience: Duration) -> bool {
        let mut waiting = [PollFd::from_borrowed_fd(self.0.as_fd(), PollFlags::IN)];
        let ready = poll(&mut waiting, Timespec::try_from(patience).ok().as_ref()).unwrap_or(0);
        let mut event = [0u8; EVENT_BYTES];
        if ready == 0 || self.0.read_exact(&mut event).is_err() {
            return false;
        }
        let half = |at: usize| u16::from_le_bytes([event[at], event[at + 1]]);
        half(16) == EV_KEY && half(18) == KEY_POWER && event[20] == 1
    }
}
