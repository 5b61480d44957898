//! The content of the package, every file in its place.
//!
//! ```text
//!   packaging/   units, settings, users, maintainer scripts: as they are
//!   the binary   stripped; its own man pages and completions, written by itself
//!   the clone    docs/install.md, changelog/unreleased, the crates' notices
//! ```

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::notices;
use crate::command::output;

/// What is copied as it is: from the clone, to the package.
const FILES: [(&str, &str); 14] = [
    ("packaging/systemd/sockeye-server.service", "usr/lib/systemd/system/sockeye-server.service"),
    ("packaging/systemd/sockeye-process-server.service", "usr/lib/systemd/system/sockeye-process-server.service"),
    ("packaging/systemd/sockeye-master-target.service", "usr/lib/systemd/system/sockeye-master-target.service"),
    ("packaging/systemd/sysusers.conf", "usr/lib/sysusers.d/sockeye.conf"),
    ("packaging/systemd/tmpfiles.conf", "usr/lib/tmpfiles.d/sockeye.conf"),
    ("packaging/systemd/libvirt.conf", "usr/share/sockeye/libvirt.conf"),
    ("packaging/etc/server.env", "etc/sockeye/server.env"),
    ("packaging/etc/process-server.env", "etc/sockeye/process-server.env"),
    ("packaging/etc/master-target.env", "etc/sockeye/master-target.env"),
    ("packaging/deb/copyright", "usr/share/doc/sockeye/copyright"),
    ("packaging/deb/postinst", "DEBIAN/postinst"),
    ("packaging/deb/prerm", "DEBIAN/prerm"),
    ("packaging/deb/postrm", "DEBIAN/postrm"),
    ("docs/install.md", "usr/share/doc/sockeye/install.md"),
];

/// A package that has only to be packed.
pub(super) struct Staged {
    /// Where it is.
    pub(super) folder: PathBuf,
    /// Its version.
    pub(super) version: String,
    /// When the commit it is of was made, in seconds since 1970.
    pub(super) committed: u64,
}

/// Makes `folder` anew, from the clone and the release build `binary`.
pub(super) fn stage(root: &Path, binary: &Path, folder: &Path) -> Result<Staged> {
    if folder.exists() {
        fs::remove_dir_all(folder)?;
    }
    for (from, to) in FILES {
        copy(&root.join(from), &folder.join(to))?;
    }
    let program = folder.join("usr/bin/sockeye");
    copy(binary, &program)?;
    said(root, &["strip", "--strip-unneeded", &program.to_string_lossy()])?;
    let mut zipped = pages(root, &program, folder)?;

    let metadata = output(root, &["cargo", "metadata", "--format-version", "1", "--locked"])?;
    let metadata = serde_json::from_slice(&metadata).context("cargo metadata")?;
    let version = notices::package(&metadata, "sockeye")?["version"].as_str().context("no version")?.to_string();
    let committed: u64 = said(root, &["git", "log", "-1", "--format=%ct"])?.parse()?;
    let documents = folder.join("usr/share/doc/sockeye");
    fs::write(documents.join("notices"), notices::notices(&metadata)?)?;
    fs::write(documents.join("changelog"), changelog(root, &version, committed)?)?;
    zipped.extend(["notices", "changelog", "install.md"].map(|name| documents.join(name)));
    let zipped: Vec<String> = zipped.iter().map(|file| file.to_string_lossy().into_owned()).collect();
    let mut line = vec!["gzip", "-9n"];
    line.extend(zipped.iter().map(String::as_str));
    output(root, &line)?;

    for script in ["postinst", "prerm", "postrm"] {
        fs::set_permissions(folder.join("DEBIAN").join(script), fs::Permissions::from_mode(0o755))?;
    }
    // Whatever umask this clone was made under.
    output(root, &["chmod", "-R", "u=rwX,go=rX", &folder.to_string_lossy()])?;
    describe(root, folder, &version)?;
    Ok(Staged { folder: folder.to_path_buf(), version, committed })
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    if let Some(parent) = to.parent() {
        fs::create_dir_all(parent)?;
    }
    fs::copy(from, to).with_context(|| format!("copying {} to {}", from.display(), to.display()))?;
    Ok(())
}

/// What a program prints, without its last line break.
fn said(root: &Path, line: &[&str]) -> Result<String> {
    Ok(String::from_utf8(output(root, line)?)?.trim_end().to_string())
}

/// Man pages and completions, written by the program that is packed. Gives the man pages, which are still to be compressed.
fn pages(root: &Path, program: &Path, folder: &Path) -> Result<Vec<PathBuf>> {
    let fresh = folder.with_extension("pages");
    if fresh.exists() {
        fs::remove_dir_all(&fresh)?;
    }
    output(root, &[&program.to_string_lossy(), "pages", &fresh.to_string_lossy()])?;
    let mut pages = Vec::new();
    for entry in fs::read_dir(fresh.join("man"))? {
        let entry = entry?;
        let page = folder.join("usr/share/man/man1").join(entry.file_name());
        copy(&entry.path(), &page)?;
        pages.push(page);
    }
    for (name, place) in [
        ("sockeye", "usr/share/bash-completion/completions"),
        ("_sockeye", "usr/share/zsh/vendor-completions"),
        ("sockeye.fish", "usr/share/fish/vendor_completions.d"),
    ] {
        copy(&fresh.join("completions").join(name), &folder.join(place).join(name))?;
    }
    fs::remove_dir_all(&fresh)?;
    Ok(pages)
}

/// The changelog as Debian writes it, of the fragments that are not released yet.
fn changelog(root: &Path, version: &str, committed: u64) -> Result<String> {
    let folder = root.join("changelog/unreleased");
    let mut fragments: Vec<PathBuf> =
        fs::read_dir(folder)?.map(|entry| Ok(entry?.path())).collect::<Result<_, std::io::Error>>()?;
    fragments.sort();
    let mut text = format!("sockeye ({version}) unstable; urgency=medium\n\n");
    for fragment in fragments {
        for entry in fs::read_to_string(&fragment)?.split("\n- ") {
            text.push_str(&wrapped(entry.trim_start_matches("- ")));
        }
    }
    let date = said(root, &["date", "--utc", "--rfc-email", &format!("--date=@{committed}")])?;
    text.push_str(&format!("\n -- {}  {date}\n", maintainer(root)?));
    Ok(text)
}

/// One entry as Debian writes it: lines of at most 80 characters.
fn wrapped(entry: &str) -> String {
    let mut lines = vec![String::from("  *")];
    for word in entry.split_whitespace() {
        match lines.last_mut() {
            Some(line) if line.chars().count() + 1 + word.chars().count() <= 80 => line.push_str(&format!(" {word}")),
            _ => lines.push(format!("    {word}")),
        }
    }
    lines.join("\n") + "\n"
}

fn maintainer(root: &Path) -> Result<String> {
    let control = fs::read_to_string(root.join("packaging/deb/control"))?;
    let line = control.lines().find_map(|line| line.strip_prefix("Maintainer: "));
    Ok(line.context("packaging/deb/control names no maintainer")?.to_string())
}

/// The files that only dpkg reads: what the package is, what it needs, and the sums of its files.
fn describe(root: &Path, folder: &Path, version: &str) -> Result<()> {
    let debian = folder.join("DEBIAN");
    let settings = FILES.iter().filter(|(_, to)| to.starts_with("etc/"));
    fs::write(debian.join("conffiles"), settings.map(|(_, to)| format!("/{to}\n")).collect::<String>())?;
    let sums = "find usr -type f -print0 | LC_ALL=C sort -z | xargs -0 md5sum";
    fs::write(debian.join("md5sums"), output(folder, &["sh", "-c", sums])?)?;
    let kib = said(folder, &["du", "--summarize", "--apparent-size", "--block-size=1K", "--exclude=DEBIAN", "."])?;
    let control = fs::read_to_string(root.join("packaging/deb/control"))?
        .replace("@VERSION@", version)
        .replace("@KIB@", kib.split_whitespace().next().context("du says nothing")?)
        .replace("@DEPENDS@", &libraries(folder)?);
    fs::write(debian.join("control"), control)?;
    Ok(())
}

/// The packages of the libraries that the program is linked with, in the versions that it needs.
fn libraries(folder: &Path) -> Result<String> {
    // It only works beside a source package's description.
    let source = folder.with_extension("source");
    fs::create_dir_all(source.join("debian"))?;
    fs::write(source.join("debian/control"), "Source: sockeye\n\nPackage: sockeye\nArchitecture: amd64\n")?;
    let told = said(&source, &["dpkg-shlibdeps", "-O", &folder.join("usr/bin/sockeye").to_string_lossy()])?;
    fs::remove_dir_all(&source)?;
    let libraries = told.lines().find_map(|line| line.strip_prefix("shlibs:Depends="));
    Ok(libraries.context("dpkg-shlibdeps names no libraries")?.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_is_wrapped_between_words_and_loses_none() {
        let entry = "a word after\n  another ".repeat(20);
        let text = wrapped(&entry);
        assert!(text.starts_with("  * a word after another a ") && text.lines().count() > 4, "{text}");
        assert!(text.lines().skip(1).all(|line| line.starts_with("    ") && line.chars().count() <= 80), "{text}");
        assert_eq!(text.split_whitespace().skip(1).collect::<Vec<_>>(), entry.split_whitespace().collect::<Vec<_>>());
    }
}
