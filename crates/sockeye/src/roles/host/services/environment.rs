//! A service's file of settings (`NAME=value` lines for systemd), changed line by line: comments stay.

use std::io::{ErrorKind, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use protocol::Fault;

use crate::ending::{Ending, Trouble};
use crate::fault;

/// One file, as it is to become.
#[derive(Debug)]
pub(super) struct Change {
    file: PathBuf,
    before: String,
    after: String,
}

impl Change {
    /// None yet. A file that is not there is one with nothing in it.
    ///
    /// # Errors
    /// It cannot be read.
    pub(super) fn of(file: &Path) -> Result<Change, Trouble> {
        let text = match std::fs::read_to_string(file) {
            Err(why) if why.kind() == ErrorKind::NotFound => Ok(String::new()),
            text => text,
        };
        let before = text.map_err(|why| Trouble::local(format!("{} cannot be read", file.display()), why))?;
        Ok(Change { file: file.into(), after: before.clone(), before })
    }

    /// Gives a name its value. `shipped` is what the package says, which nobody chose.
    ///
    /// # Errors
    /// It has another value: exit code 3.
    pub(super) fn set(&mut self, name: &str, value: &str, shipped: Option<&str>) -> Result<(), Trouble> {
        let line = format!("{name}={value}");
        let is_it = |line: &&str| line.trim_start().starts_with(&format!("{name}="));
        let there =
            self.after.lines().rfind(is_it).and_then(|line| line.split_once('=')).map(|(_, value)| value.trim());
        match there {
            Some(there) if there == value => {}
            Some(there) if Some(there) != shipped => {
                let message = format!("{} says otherwise, and is not overwritten", self.file.display());
                let fault = Fault::new(fault::HOST_DIFFERS, message, format!("{name} is {there:?} and not {value:?}"));
                return Err(Trouble::new(Ending::Refused, fault));
            }
            Some(_) => {
                let lines = self.after.lines().map(|old| if is_it(&old) { line.as_str() } else { old });
                self.after = lines.collect::<Vec<_>>().join("\n") + "\n";
            }
            None => {
                if !self.after.is_empty() && !self.after.ends_with('\n') {
                    self.after.push('\n');
                }
                self.after.push_str(&line);
                self.after.push('\n');
            }
        }
        Ok(())
    }

    /// Whether it changes the file of a service.
    pub(super) fn is_of(&self, service: &str) -> bool {
        self.before != self.after && self.file.file_stem().is_some_and(|stem| stem == service)
    }

    /// Writes all of them.
    ///
    /// # Errors
    /// One cannot be written; the same command goes on from there.
    pub(super) fn all(changes: &[Change]) -> Result<(), Trouble> {
        for change in changes.iter().filter(|change| change.before != change.after) {
            let next = change.file.with_extension("env.new");
            let write = || {
                let _ = std::fs::remove_file(&next);
                let mut out = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o644).open(&next)?;
                out.write_all(change.after.as_bytes())?;
                out.sync_all()?;
                std::fs::rename(&next, &change.file)
            };
            write().map_err(|why| Trouble::local(format!("{} cannot be written", change.file.display()), why))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_package_says_is_replaced_and_what_somebody_wrote_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("process-server.env");
        let shipped = "# which\nSOCKEYE_SERVER=http://127.0.0.1:7410\n#OPTIONS=--site home\n";
        std::fs::write(&file, shipped).unwrap();
        let set = |server: &str, options: &str| {
            let mut change = Change::of(&file)?;
            change.set("SOCKEYE_SERVER", server, Some("http://127.0.0.1:7410"))?;
            change.set("OPTIONS", options, None)?;
            let changed = change.is_of("process-server");
            Change::all(&[change]).map(|()| changed)
        };
        assert!(set("http://a:1", "--site home").unwrap());
        let text = std::fs::read_to_string(&file).unwrap();
        assert_eq!(text, "# which\nSOCKEYE_SERVER=http://a:1\n#OPTIONS=--site home\nOPTIONS=--site home\n");
        assert!(!set("http://a:1", "--site home").unwrap(), "it is so already");
        for (server, options) in [("http://b:1", "--site home"), ("http://a:1", "--site paris")] {
            let refused = set(server, options).unwrap_err();
            assert_eq!(refused.ending, Ending::Refused);
            assert!(refused.fault.message.contains("not overwritten"), "{refused:?}");
        }
        assert_eq!(std::fs::read_to_string(&file).unwrap(), text);
    }
}
