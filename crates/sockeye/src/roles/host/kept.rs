//! What a host keeps of `init` or `join`: its settings, and the secret that is its credential.
//!
//! ```text
//!   <dir>/join.token   the secret: made and durable before control hears of it (mode 0600)
//!   <dir>/host.toml    what the host is: written when it has joined
//! ```
//! The directory is locked while a command (or a role in the foreground) works with it.
//!
//! # If power fails
//! - before `host.toml` is there: the same command asks again with the same secret, and another one may be given instead;
//! - afterwards the host has joined.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use protocol::Fault;

use super::settings::Settings;
use super::unfit;
use crate::ending::{Ending, Trouble};
use crate::fault;

/// The place, held.
pub(super) struct Kept {
    dir: PathBuf,
    _lock: File,
}

impl Kept {
    /// Takes the directory, which exists.
    ///
    /// # Errors
    /// Another command has it: exit code 3.
    pub(super) fn open(dir: &Path) -> Result<Kept, Trouble> {
        let unusable = |why| Trouble::local(format!("the directory {} cannot be used", dir.display()), why);
        let lock = File::open(dir).map_err(unusable)?;
        match lock.try_lock() {
            Ok(()) => Ok(Kept { dir: dir.into(), _lock: lock }),
            Err(TryLockError::WouldBlock) => Err(unfit(
                format!("{} is in use", dir.display()),
                "another sockeye init or join is at work there",
                "let it end, or choose another place with --foreground --data-dir",
            )),
            Err(TryLockError::Error(why)) => Err(unusable(why)),
        }
    }

    /// What the host is, if it joined.
    ///
    /// # Errors
    /// It cannot be read.
    pub(super) fn settings(&self) -> Result<Option<Settings>, Trouble> {
        let file = self.file("host.toml");
        let unreadable = |why: String| Trouble::local(format!("{} cannot be read", file.display()), why);
        match std::fs::read_to_string(&file) {
            Ok(text) => toml::from_str(&text).map(Some).map_err(|why| unreadable(why.to_string())),
            Err(why) if why.kind() == ErrorKind::NotFound => Ok(None),
            Err(why) => Err(unreadable(why.to_string())),
        }
    }

    /// Whether it is what is wanted already; false if it is nothing yet.
    ///
    /// # Errors
    /// It is something else: exit code 3.
    pub(super) fn is_so(&self, wanted: &Settings) -> Result<bool, Trouble> {
        let Some(there) = self.settings()? else { return Ok(false) };
        match wanted.differences(&there).as_slice() {
            [] => Ok(true),
            differing => {
                let file = self.file("host.toml");
                let fault = Fault::new(
                    fault::HOST_DIFFERS,
                    format!("this host is set up differently ({})", file.display()),
                    differing.join("; "),
                );
                Err(Trouble::new(Ending::Refused, fault))
            }
        }
    }

    /// Writes down what the host is.
    ///
    /// # Errors
    /// It cannot be written.
    pub(super) fn remember(&self, settings: &Settings) -> Result<(), Trouble> {
        let text = toml::to_string(settings).map_err(|why| Trouble::local("the settings cannot be written", why))?;
        self.write("host.toml", text.as_bytes(), 0o644)
    }

    /// The host's secret, made if there is none yet.
    ///
    /// # Errors
    /// It cannot be read or written.
    pub(super) fn secret(&self) -> Result<String, Trouble> {
        let file = self.file("join.token");
        match std::fs::read_to_string(&file) {
            Ok(text) if !text.trim().is_empty() => Ok(text.trim().to_string()),
            Err(why) if why.kind() != ErrorKind::NotFound => {
                Err(Trouble::local(format!("{} cannot be read", file.display()), why))
            }
            _ => {
                let fresh = fresh_secret();
                self.keep_secret(&fresh)?;
                Ok(fresh)
            }
        }
    }

    /// Has another secret from now on.
    ///
    /// # Errors
    /// It cannot be written.
    pub(super) fn keep_secret(&self, secret: &str) -> Result<(), Trouble> {
        self.write("join.token", format!("{secret}\n").as_bytes(), 0o600)
    }

    fn file(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// Replaces a file as a whole, and gives back when it is durable.
    fn write(&self, name: &str, content: &[u8], mode: u32) -> Result<(), Trouble> {
        let (file, next) = (self.file(name), self.file(&format!("{name}.new")));
        let write = || {
            // One that was left behind may be open to others: it is made anew.
            let _ = std::fs::remove_file(&next);
            let mut out = OpenOptions::new().write(true).create_new(true).mode(mode).open(&next)?;
            out.write_all(content)?;
            out.sync_all()?;
            std::fs::rename(&next, &file)?;
            File::open(&self.dir)?.sync_all()
        };
        write().map_err(|why| Trouble::local(format!("{} cannot be written", file.display()), why))
    }
}

/// 256 bits in hexadecimal, of which 244 are random.
pub(super) fn fresh_secret() -> String {
    let [a, b] = [uuid::Uuid::new_v4(), uuid::Uuid::new_v4()];
    format!("{}{}", a.simple(), b.simple())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_secret_is_made_once_and_is_its_owners_alone() {
        let dir = tempfile::tempdir().unwrap();
        let kept = Kept::open(dir.path()).unwrap();
        let secret = kept.secret().unwrap();
        assert_eq!(secret.len(), protocol::token::SECRET_CHARS);
        assert_eq!(kept.secret().unwrap(), secret);
        let mode = std::fs::metadata(dir.path().join("join.token")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let taken = Kept::open(dir.path()).err().unwrap();
        assert_eq!(taken.ending, Ending::Refused);
        drop(kept);
        assert!(Kept::open(dir.path()).is_ok());
    }
}
