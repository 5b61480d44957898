//! The seam below the journal and the manifest: a folder of files with the few operations that crash safety rests on.
//!
//! ```text
//!   journal, manifest ──► Volume ──► Folder (a directory, here)
//!                                └─► a simulated one in tests: loses, reorders and tears what was not synced
//! ```
//!
//! # What is promised after a crash
//! - bytes written to a file are there once `sync` of that file has returned;
//! - a file created, renamed or removed is so once `sync_directory` has returned;
//! - everything else may be there, or not, or in part (by sectors of 512 bytes), in any order; what was never written
//!   within a file's length reads as zeroes.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

/// A folder of files. Names are plain file names without a separator.
pub trait Volume: Send + Sync {
    /// An empty file of that name; what had the name before is gone.
    fn create(&self, name: &str) -> io::Result<()>;
    /// Writes all `bytes` at `offset`, growing the file.
    fn write_at(&self, name: &str, offset: u64, bytes: &[u8]) -> io::Result<()>;
    /// Fills `buffer` from `offset`; `UnexpectedEof` when the file is shorter.
    fn read_at(&self, name: &str, offset: u64, buffer: &mut [u8]) -> io::Result<()>;
    /// The file's length in bytes; `NotFound` when there is none.
    fn length(&self, name: &str) -> io::Result<u64>;
    /// Cuts the file off.
    fn truncate(&self, name: &str, length: u64) -> io::Result<()>;
    /// Returns when the file's bytes and length are on stable storage.
    fn sync(&self, name: &str) -> io::Result<()>;
    /// Gives a file another name; what had that name before is gone, in one step.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;
    /// Removes a file; `NotFound` when there is none.
    fn remove(&self, name: &str) -> io::Result<()>;
    /// Every file's name and length.
    fn list(&self) -> io::Result<Vec<(String, u64)>>;
    /// Returns when all creations, renames and removals so far are on stable storage.
    fn sync_directory(&self) -> io::Result<()>;
    /// Keeps everybody else from taking the same lock until the value is dropped; `WouldBlock` when somebody has it.
    fn lock(&self) -> io::Result<Box<dyn Send + Sync>>;
    /// How people find the file.
    fn describe(&self, name: &str) -> String;
}

/// The name of the file that is locked.
const LOCK: &str = "lock";

/// How many files a folder keeps open: far below any limit of open files, enough for the open epoch of an item's disks.
const OPEN_FILES: usize = 48;

/// A directory of the file system.
pub struct Folder {
    path: PathBuf,
    /// Most recently used last.
    open: Mutex<Vec<(String, Arc<File>)>>,
}

impl Folder {
    /// The directory `path`, created if it is absent (and its parents, durably).
    ///
    /// # Errors
    /// What the file system says.
    pub fn create(path: &Path) -> io::Result<Folder> {
        let mut absent: Vec<&Path> =
            path.ancestors().take_while(|p| !p.as_os_str().is_empty() && !p.exists()).collect();
        std::fs::create_dir_all(path)?;
        while let Some(made) = absent.pop() {
            if let Some(parent) = made.parent() {
                let parent = if parent.as_os_str().is_empty() { Path::new(".") } else { parent };
                File::open(parent)?.sync_all()?;
            }
        }
        Folder::open(path)
    }

    /// The existing directory `path`.
    ///
    /// # Errors
    /// `NotFound` when it is absent, `NotADirectory` when it is something else.
    pub fn open(path: &Path) -> io::Result<Folder> {
        if !std::fs::metadata(path)?.is_dir() {
            return Err(io::ErrorKind::NotADirectory.into());
        }
        Ok(Folder { path: path.to_path_buf(), open: Mutex::default() })
    }

    fn forget(&self, name: &str) {
        self.open.lock().expect("nobody panics here").retain(|(open, _)| open != name);
    }

    fn remember(&self, name: &str, file: File) -> Arc<File> {
        let file = Arc::new(file);
        let mut open = self.open.lock().expect("nobody panics here");
        open.retain(|(other, _)| other != name);
        if open.len() >= OPEN_FILES {
            open.remove(0);
        }
        open.push((name.to_string(), file.clone()));
        file
    }

    fn file(&self, name: &str) -> io::Result<Arc<File>> {
        {
            let mut open = self.open.lock().expect("nobody panics here");
            if let Some(at) = open.iter().position(|(other, _)| other == name) {
                let found = open.remove(at);
                let file = found.1.clone();
                open.push(found);
                return Ok(file);
            }
        }
        let file = File::options().read(true).write(true).open(self.path.join(name))?;
        Ok(self.remember(name, file))
    }
}

impl Volume for Folder {
    fn create(&self, name: &str) -> io::Result<()> {
        let path = self.path.join(name);
        let file = File::options().read(true).write(true).create(true).truncate(true).open(path)?;
        self.remember(name, file);
        Ok(())
    }
    fn write_at(&self, name: &str, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.file(name)?.write_all_at(bytes, offset)
    }
    fn read_at(&self, name: &str, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.file(name)?.read_exact_at(buffer, offset)
    }
    fn length(&self, name: &str) -> io::Result<u64> {
        Ok(self.file(name)?.metadata()?.len())
    }
    fn truncate(&self, name: &str, length: u64) -> io::Result<()> {
        self.file(name)?.set_len(length)
    }
    fn sync(&self, name: &str) -> io::Result<()> {
        self.file(name)?.sync_data()
    }
    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.forget(from);
        self.forget(to);
        std::fs::rename(self.path.join(from), self.path.join(to))
    }
    fn remove(&self, name: &str) -> io::Result<()> {
        self.forget(name);
        std::fs::remove_file(self.path.join(name))
    }
    fn list(&self) -> io::Result<Vec<(String, u64)>> {
        let mut files = Vec::new();
        for entry in std::fs::read_dir(&self.path)? {
            let entry = entry?;
            let kind = entry.metadata()?;
            if let (true, Ok(name)) = (kind.is_file(), entry.file_name().into_string()) {
                files.push((name, kind.len()));
            }
        }
        files.sort();
        Ok(files)
    }
    fn sync_directory(&self) -> io::Result<()> {
        File::open(&self.path)?.sync_all()
    }
    fn lock(&self) -> io::Result<Box<dyn Send + Sync>> {
        let file = File::options().read(true).write(true).create(true).truncate(false).open(self.path.join(LOCK))?;
        match file.try_lock() {
            Ok(()) => Ok(Box::new(file)),
            Err(std::fs::TryLockError::WouldBlock) => Err(io::ErrorKind::WouldBlock.into()),
            Err(std::fs::TryLockError::Error(error)) => Err(error),
        }
    }
    fn describe(&self, name: &str) -> String {
        self.path.join(name).display().to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_files_than_are_kept_open_can_be_used_in_turn() {
        let directory = tempfile::tempdir().unwrap();
        let folder = Folder::create(&directory.path().join("a/b")).unwrap();
        for round in 0..2u8 {
            for n in 0..OPEN_FILES * 2 {
                let name = format!("{n}");
                if round == 0 {
                    folder.create(&name).unwrap();
                }
                folder.write_at(&name, u64::from(round), &[n as u8]).unwrap();
                folder.sync(&name).unwrap();
            }
        }
        let mut both = [0; 2];
        folder.read_at("7", 0, &mut both).unwrap();
        assert_eq!(both, [7, 7]);
        assert!(folder.open.lock().unwrap().len() <= OPEN_FILES);
        assert_eq!(folder.list().unwrap().len(), OPEN_FILES * 2);
    }

    #[test]
    fn a_removed_file_is_gone_though_it_was_open() {
        let directory = tempfile::tempdir().unwrap();
        let folder = Folder::open(directory.path()).unwrap();
        folder.create("a").unwrap();
        folder.create("b").unwrap();
        folder.write_at("b", 0, b"b").unwrap();
        folder.rename("b", "a").unwrap();
        assert_eq!(folder.length("a").unwrap(), 1);
        folder.remove("a").unwrap();
        assert_eq!(folder.length("a").unwrap_err().kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn two_holders_of_one_lock_do_not_exist() {
        let directory = tempfile::tempdir().unwrap();
        let (one, two) = (Folder::open(directory.path()).unwrap(), Folder::open(directory.path()).unwrap());
        let held = one.lock().unwrap();
        assert_eq!(two.lock().err().unwrap().kind(), io::ErrorKind::WouldBlock);
        drop(held);
        two.lock().unwrap();
    }
}
