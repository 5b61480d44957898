//! Reads the values of options: times, points, disks, sites.

use std::path::PathBuf;
use std::time::Duration;

use protocol::id::SiteName;
use protocol::machine::DiskFormat;

use super::{Disk, Which};

/// `500ms`, `1s`, `5m`, `1h30m`.
pub(super) fn duration(text: &str) -> Result<Duration, String> {
    let wrong = || format!("{text:?} is no time above zero; write it like 500ms, 1s, 5m or 1h30m");
    let given: jiff::SignedDuration = text.parse().map_err(|_| wrong())?;
    let given = Duration::try_from(given).map_err(|_| wrong())?;
    // A year bounds what is added to clocks later on.
    if given < Duration::from_millis(1) || given > Duration::from_secs(366 * 86_400) { Err(wrong()) } else { Ok(given) }
}

pub(super) fn point(text: &str) -> Result<Which, String> {
    if text == "latest" {
        return Ok(Which::Latest);
    }
    text.parse().map(Which::This).map_err(|_| format!("{text:?} is no recovery point: `latest`, or a number like 1.42"))
}

pub(super) fn disk(text: &str) -> Result<Disk, String> {
    let (key, path) = text.split_once('=').ok_or("write it as KEY=PATH or KEY=PATH:qcow2")?;
    let (path, format) = match path.rsplit_once(':') {
        Some((path, "raw")) => (path, DiskFormat::Raw),
        Some((path, "qcow2")) => (path, DiskFormat::Qcow2),
        _ if path.ends_with(".qcow2") => (path, DiskFormat::Qcow2),
        _ => (path, DiskFormat::Raw),
    };
    let key = key.parse().map_err(|why: protocol::id::BadName| why.to_string())?;
    if path.is_empty() { Err("the path is empty".into()) } else { Ok(Disk { key, path: path.into(), format }) }
}

pub(super) fn site(text: &str) -> Result<(SiteName, PathBuf), String> {
    let (name, dir) = text.split_once('=').ok_or("write it as NAME=DIR")?;
    let name = name.parse().map_err(|why: protocol::id::BadName| why.to_string())?;
    if dir.is_empty() { Err("the directory is empty".into()) } else { Ok((name, dir.into())) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_as_people_write_them() {
        for (text, millis) in [("500ms", 500), ("1s", 1000), ("5m", 300_000), ("1h30m", 5_400_000)] {
            assert_eq!(duration(text).unwrap(), Duration::from_millis(millis), "{text}");
        }
        for bad in ["", "0s", "-1s", "5", "soon", "99999999h"] {
            assert!(duration(bad).is_err(), "{bad:?} was taken");
        }
    }

    #[test]
    fn a_disk_is_key_path_and_format() {
        let read = disk("disk0=/a:b/c.img:raw").unwrap();
        assert_eq!(
            (read.key.as_str(), read.path.to_str().unwrap(), read.format),
            ("disk0", "/a:b/c.img", DiskFormat::Raw)
        );
        assert_eq!(disk("d=/x.qcow2").unwrap().format, DiskFormat::Qcow2);
        assert_eq!(disk("d=/x:qcow2").unwrap().format, DiskFormat::Qcow2);
        for bad in ["", "disk0", "disk0=", "../x=/y"] {
            assert!(disk(bad).is_err(), "{bad:?} was taken");
        }
    }
}
