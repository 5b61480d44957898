//! The mark of a half-written target: a small file beside it, or in a directory for targets that have no beside.

use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// A mark that may be there.
#[derive(Debug, Clone)]
pub struct Mark {
    file: PathBuf,
}

impl Mark {
    /// The mark of the disk image at `path`.
    pub fn beside(path: &Path) -> Mark {
        let mut file = path.as_os_str().to_owned();
        file.push(".half-written");
        Mark { file: file.into() }
    }

    /// The mark of a target without a file name of its own, in `directory`; `name` tells it from others.
    pub fn within(directory: &Path, name: &str) -> Mark {
        let plain = |c: char| if c.is_ascii_alphanumeric() || "-.".contains(c) { c } else { '_' };
        // Names that look alike when they are made plain are told apart.
        let sum = name
            .bytes()
            .fold(0xcbf2_9ce4_8422_2325_u64, |sum, byte| (sum ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3));
        let name: String = name.chars().take(80).map(plain).collect();
        Mark { file: directory.join(format!("{name}-{sum:016x}.half-written")) }
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.file
    }

    /// Whether it is there.
    ///
    /// # Errors
    /// The file system cannot tell.
    pub fn is_set(&self) -> io::Result<bool> {
        self.file.try_exists()
    }

    /// Sets it, durably.
    ///
    /// # Errors
    /// What the file system says.
    pub fn set(&self) -> io::Result<()> {
        if let Some(directory) = self.file.parent().filter(|directory| !directory.as_os_str().is_empty()) {
            std::fs::create_dir_all(directory)?;
        }
        let mut file = File::create(&self.file)?;
        file.write_all(b"sockeye copy had not finished here: run it again, it goes on\n")?;
        file.sync_all()?;
        self.sync_directory()
    }

    /// Takes it away, durably.
    ///
    /// # Errors
    /// What the file system says.
    pub fn clear(&self) -> io::Result<()> {
        match std::fs::remove_file(&self.file) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error),
            Ok(()) => self.sync_directory(),
        }
    }

    fn sync_directory(&self) -> io::Result<()> {
        let directory = self.file.parent().filter(|directory| !directory.as_os_str().is_empty());
        File::open(directory.unwrap_or(Path::new(".")))?.sync_all()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_stays_until_it_is_cleared_and_belongs_to_one_target() {
        let directory = tempfile::tempdir().unwrap();
        let (one, other) = ("nbd://host/a_b", "nbd://host/a:b");
        let mark = Mark::within(&directory.path().join("made"), one);
        assert!(!mark.is_set().unwrap());
        mark.clear().unwrap();
        mark.set().unwrap();
        mark.set().unwrap();
        assert!(Mark::within(&directory.path().join("made"), one).is_set().unwrap());
        assert!(!Mark::within(&directory.path().join("made"), other).is_set().unwrap());
        mark.clear().unwrap();
        assert!(!mark.is_set().unwrap());
        assert!(Mark::beside(Path::new("/a/d.raw")).path().ends_with("d.raw.half-written"));
    }
}
