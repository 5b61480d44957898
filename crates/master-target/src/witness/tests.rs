//! What a witness takes for nobody's writing, and what not.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::time::Instant;

use super::*;

struct Disk {
    dir: tempfile::TempDir,
}

impl Disk {
    fn new() -> Disk {
        let disk = Disk { dir: tempfile::tempdir().unwrap() };
        std::fs::write(disk.image(), vec![1; 1 << 20]).unwrap();
        disk
    }

    fn image(&self) -> PathBuf {
        self.dir.path().join("disk0.img")
    }

    fn open(&self) -> Witness {
        let witness = Witness::before_opening(&self.image(), &self.dir.path().join("disk0.rest"));
        witness.opened();
        witness
    }

    fn write(&self, value: u8) -> io::Result<()> {
        File::options().write(true).open(self.image())?.write_all_at(&[value; 512], 4096)
    }
}

/// Waits until the name was written down, and gives it.
fn noted(disk: &Disk, witness: &Witness) -> String {
    let begun = Instant::now();
    loop {
        let name = witness.unbroken().unwrap();
        if witness.state().noted.is_some() {
            assert!(disk.dir.path().join("disk0.rest").exists());
            return name;
        }
        assert!(begun.elapsed() < Duration::from_secs(20), "it never rested");
        std::thread::yield_now();
    }
}

#[test]
fn our_own_writes_break_nothing_and_another_ones_do() {
    let disk = Disk::new();
    let witness = disk.open();
    let name = witness.unbroken().unwrap();
    witness.write(|| disk.write(2)).unwrap();
    assert_eq!(witness.unbroken().as_ref(), Some(&name), "while we write");
    witness.flush(|| Ok(())).unwrap();
    assert_eq!(witness.unbroken(), Some(name.clone()));
    let other = |what: &str, before: &mut String| {
        let now = witness.unbroken().unwrap();
        assert_ne!(now, *before, "{what}");
        *before = now;
    };
    let mut before = name;
    disk.write(3).unwrap();
    other("a write", &mut before);
    // Its times are set back.
    let past = SystemTime::UNIX_EPOCH + Duration::new(1_000_000_000, 5);
    File::options().write(true).open(disk.image()).unwrap().set_modified(past).unwrap();
    other("the time of change", &mut before);
    let copy = disk.dir.path().join("copy");
    std::fs::copy(disk.image(), &copy).unwrap();
    std::fs::rename(copy, disk.image()).unwrap();
    other("another file in its place", &mut before);
    File::options().write(true).open(disk.image()).unwrap().set_len(1 << 19).unwrap();
    other("its length", &mut before);
    // Before our own write, which would hide it.
    disk.write(4).unwrap();
    witness.write(|| disk.write(5)).unwrap();
    witness.flush(|| Ok(())).unwrap();
    other("a write before ours", &mut before);
    assert_eq!(witness.unbroken(), Some(before));
}

#[test]
fn a_write_that_a_flush_does_not_cover_is_still_ours() {
    let disk = Disk::new();
    let witness = disk.open();
    let name = witness.unbroken();
    witness.write(|| disk.write(2)).unwrap();
    let during = || witness.write(|| disk.write(3));
    witness.flush(during).unwrap();
    assert_eq!(witness.unbroken(), name);
    disk.write(4).unwrap();
    witness.flush(|| Ok(())).unwrap();
    assert_eq!(witness.unbroken(), name, "what QEMU's lock has to keep off");
    disk.write(5).unwrap();
    assert_ne!(witness.unbroken(), name);
}

#[test]
fn the_name_outlives_who_gave_it_while_the_disk_rests_and_nothing_else() {
    let disk = Disk::new();
    let witness = disk.open();
    let name = witness.unbroken().unwrap();
    drop(witness);
    let witness = disk.open();
    assert_ne!(witness.unbroken().unwrap(), name, "it had not rested");
    let name = noted(&disk, &witness);
    drop(witness);
    let witness = disk.open();
    assert_eq!(witness.unbroken(), Some(name.clone()));
    // Written by us, and closed before it rested.
    witness.write(|| disk.write(7)).unwrap();
    witness.flush(|| Ok(())).unwrap();
    drop(witness);
    let witness = disk.open();
    assert_ne!(witness.unbroken(), Some(name));
    let name = noted(&disk, &witness);
    drop(witness);
    disk.write(8).unwrap();
    assert_ne!(disk.open().unbroken(), Some(name.clone()));
}

#[test]
fn a_note_of_another_start_of_the_host_or_a_torn_one_is_none() {
    let disk = Disk::new();
    let name = noted(&disk, &disk.open());
    let note = disk.dir.path().join("disk0.rest");
    let text = std::fs::read_to_string(&note).unwrap();
    std::fs::write(&note, text.replace(boot().unwrap().trim(), "another")).unwrap();
    assert_ne!(disk.open().unbroken(), Some(name.clone()));
    std::fs::write(&note, &text[..text.len() - 1]).unwrap();
    assert_ne!(disk.open().unbroken(), Some(name.clone()));
    std::fs::write(&note, &text).unwrap();
    assert_eq!(disk.open().unbroken(), Some(name));
}

#[test]
fn a_clock_that_went_back_leaves_nothing_noted() {
    let disk = Disk::new();
    let witness = disk.open();
    witness.unbroken().unwrap();
    let mut state = witness.state();
    if let Some(last) = &mut state.last {
        last.changed = SystemTime::now() + Duration::from_secs(3600);
    }
    witness.keep(&mut state);
    assert!(state.noted.is_none());
}

#[test]
fn what_is_no_file_has_no_name() {
    let dir = tempfile::tempdir().unwrap();
    let witness = |path: &Path| Witness::before_opening(path, &dir.path().join("note"));
    for path in [Path::new("/dev/null"), Path::new("/proc/version"), dir.path(), &dir.path().join("absent")] {
        let witness = witness(path);
        witness.opened();
        assert_eq!(witness.unbroken(), None, "{}", path.display());
    }
}
