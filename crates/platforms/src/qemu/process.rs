//! Whether a machine's QEMU lives: its process id is in a file, and the process says whose it is.
//!
//! A killed QEMU leaves its file behind, and the number may be another program's by now. So the process counts only if
//! its command line names this very file. A zombie (nobody waits for a daemon in a container) has no command line left.

use crate::host::folder::Folder;
use std::path::Path;
use std::time::Duration;

/// The id of the QEMU that runs for this machine, if one does.
pub(crate) fn running(folder: &Folder) -> Option<i32> {
    let file = folder.file("pid");
    let pid: i32 = std::fs::read_to_string(&file).ok()?.trim().parse().ok().filter(|pid| *pid > 1)?;
    belongs(pid, &file).then_some(pid)
}

fn belongs(pid: i32, pid_file: &Path) -> bool {
    let command_line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let file = pid_file.as_os_str().as_encoded_bytes();
    command_line.split(|byte| *byte == 0).any(|word| word == file)
}

/// Waits until no QEMU runs for this machine; false if one still does after `patience`.
pub(crate) async fn gone(folder: &Folder, patience: Duration) -> bool {
    let deadline = tokio::time::Instant::now() + patience;
    while running(folder).is_some() {
        if tokio::time::Instant::now() > deadline {
            return false;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stale_id_that_is_now_another_program_does_not_count() {
        let site = tempfile::tempdir().unwrap();
        let folder = Folder::new(site.path(), "m").unwrap();
        std::fs::create_dir_all(folder.path()).unwrap();
        assert_eq!(running(&folder), None, "no file");
        for text in [std::process::id().to_string(), "1".into(), "-1".into(), "99999999".into(), "x".into()] {
            std::fs::write(folder.file("pid"), text).unwrap();
            assert_eq!(running(&folder), None);
        }
    }
}
