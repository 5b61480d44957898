//! The text files of the workspace by path, read once; rules look at nothing else, so their tests need no disk.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

const KINDS: [&str; 9] = ["rs", "toml", "md", "py", "sh", "sql", "yml", "yaml", "json"];

/// Paths relative to the root, with slashes, to contents.
#[derive(Default)]
pub(crate) struct Tree(BTreeMap<String, String>);

impl Tree {
    /// Reads the workspace at `root`, without what is built and without git's own folder.
    pub(crate) fn read(root: &Path) -> Result<Self> {
        let mut tree = Self::default();
        tree.add_folder(root, "")?;
        Ok(tree)
    }

    /// Files whose path ends with `end`, in order of path.
    pub(crate) fn ending<'tree>(&'tree self, end: &'tree str) -> impl Iterator<Item = (&'tree str, &'tree str)> {
        self.files().filter(move |(path, _)| path.ends_with(end))
    }

    /// All files, in order of path.
    pub(crate) fn files(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(path, text)| (path.as_str(), text.as_str()))
    }

    /// The content of the file at `path`.
    pub(crate) fn text(&self, path: &str) -> Option<&str> {
        self.0.get(path).map(String::as_str)
    }

    /// How many files there are.
    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    fn add_folder(&mut self, folder: &Path, prefix: &str) -> Result<()> {
        for entry in fs::read_dir(folder).with_context(|| format!("reading {}", folder.display()))? {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            let path = if prefix.is_empty() { name.clone() } else { format!("{prefix}/{name}") };
            let kind = entry.file_type()?;
            if kind.is_dir() && !matches!(path.as_str(), "target" | ".git") {
                self.add_folder(&entry.path(), &path)?;
            } else if kind.is_file()
                && (KINDS.iter().any(|kind| name.ends_with(&format!(".{kind}"))) || path == ".ci/run")
            {
                let text = fs::read(entry.path()).with_context(|| format!("reading {path}"))?;
                self.0.insert(path, String::from_utf8_lossy(&text).into_owned());
            }
        }
        Ok(())
    }
}

#[cfg(test)]
impl<const N: usize> From<[(&str, &str); N]> for Tree {
    fn from(files: [(&str, &str); N]) -> Self {
        Self(files.into_iter().map(|(path, text)| (path.to_owned(), text.to_owned())).collect())
    }
}
