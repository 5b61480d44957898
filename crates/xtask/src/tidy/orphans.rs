//! The rule that every Rust file is reached: from a crate's root by `mod`, or being a root itself.
//!
//! A file that no `mod` names is not compiled, not tested, and still read by people.

use std::collections::BTreeSet;

use super::Complaint;
use super::tree::Tree;

/// The rule.
pub(crate) fn every_file_is_reached(tree: &Tree) -> Vec<Complaint> {
    let mut reached: BTreeSet<String> = BTreeSet::new();
    let told: Vec<String> = tree.ending("/Cargo.toml").flat_map(|(path, manifest)| roots_of(path, manifest)).collect();
    let is_told = |path: &str| told.iter().any(|root| root == path);
    let untold: Vec<String> =
        tree.ending("/Cargo.toml").filter_map(|(path, manifest)| untold(path, manifest)).collect();
    let is_root = |path: &str| is_root(path) && !untold.iter().any(|folder| path.starts_with(folder)) || is_told(path);
    let mut waiting: Vec<String> =
        tree.ending(".rs").map(|(path, _)| path).filter(|path| is_root(path)).map(str::to_owned).collect();
    while let Some(path) = waiting.pop() {
        let Some(text) = tree.text(&path) else { continue };
        waiting.extend(named_by(&path, text, is_root(&path)));
        reached.insert(path);
    }
    let orphans = tree.ending(".rs").filter(|(path, _)| !reached.contains(*path));
    orphans.map(|(path, _)| format!("{path} is named by no `mod`: it is not even compiled")).collect()
}

/// Whether cargo compiles the file without being told.
fn is_root(path: &str) -> bool {
    let Some(inside) = path.strip_prefix("crates/").and_then(|path| path.split_once('/')).map(|(_, inside)| inside)
    else {
        return false;
    };
    let direct = |folder: &str| inside.strip_prefix(folder).is_some_and(|name| !name.contains('/'));
    matches!(inside, "src/lib.rs" | "src/main.rs" | "build.rs")
        || inside.ends_with("/main.rs")
        || ["tests/", "benches/", "examples/", "src/bin/"].into_iter().any(direct)
}

/// The roots that a manifest names itself, with `path = "src/..rs"` in a table of a library or a program.
fn roots_of<'tree>(path: &'tree str, manifest: &'tree str) -> impl Iterator<Item = String> + 'tree {
    let folder = path.trim_end_matches("Cargo.toml");
    let told = manifest.lines().filter_map(|line| line.trim().strip_prefix("path = \"")?.strip_suffix('"'));
    told.filter(|told| told.ends_with(".rs")).map(move |told| format!("{folder}{told}"))
}

/// The folder of tests in which cargo compiles only what the manifest names.
fn untold(path: &str, manifest: &str) -> Option<String> {
    let folder = path.trim_end_matches("Cargo.toml");
    manifest.lines().any(|line| line.trim() == "autotests = false").then(|| format!("{folder}tests/"))
}

/// Every place where the modules that `text` declares may stand.
fn named_by(path: &str, text: &str, is_root: bool) -> Vec<String> {
    let (folder, file) = path.rsplit_once('/').unwrap_or(("", path));
    let own = if is_root || file == "mod.rs" { folder.to_owned() } else { path.trim_end_matches(".rs").to_owned() };
    let mut places = Vec::new();
    let mut told_path = None;
    for line in text.lines().map(str::trim) {
        if let Some(told) = line.strip_prefix("#[path = \"").and_then(|rest| rest.strip_suffix("\"]")) {
            told_path = Some(told);
        } else if let Some(name) = declared(line) {
            match told_path.take() {
                Some(told) => places.push(joined(folder, told)),
                None => places.extend([format!("{own}/{name}.rs"), format!("{own}/{name}/mod.rs")]),
            }
        }
    }
    places
}

/// `name` for a line like `pub(crate) mod name;`.
fn declared(line: &str) -> Option<&str> {
    let (before, name) = line.split(';').next()?.rsplit_once("mod ")?;
    let before = before.trim();
    let plain = before.is_empty() || before.starts_with("pub") || before.ends_with(']');
    (plain && line.contains(';') && name.chars().all(|letter| letter.is_alphanumeric() || letter == '_'))
        .then_some(name)
}

/// `folder` and a relative path with its `..` resolved.
fn joined(folder: &str, relative: &str) -> String {
    let mut parts: Vec<&str> = folder.split('/').collect();
    for part in relative.split('/') {
        match part {
            ".." => drop(parts.pop()),
            "." => {}
            part => parts.push(part),
        }
    }
    parts.join("/")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_reached_in_every_way_a_module_can_be_named() {
        let tree = Tree::from([
            ("crates/a/src/lib.rs", "pub mod one;\nmod two;\n#[cfg(test)] mod three;\n"),
            ("crates/a/src/one.rs", "    pub(crate) mod deep;\n"),
            ("crates/a/src/one/deep.rs", ""),
            ("crates/a/src/two/mod.rs", "mod beside;\n"),
            ("crates/a/src/two/beside.rs", ""),
            ("crates/a/src/three.rs", ""),
            ("crates/a/tests/circle.rs", "mod stage;\n#[path = \"../src/shared.rs\"]\nmod shared;\n"),
            ("crates/a/tests/stage/mod.rs", ""),
            ("crates/a/src/shared.rs", ""),
        ]);
        assert_eq!(every_file_is_reached(&tree), Vec::<String>::new());
    }

    #[test]
    fn a_root_may_stand_where_the_manifest_says() {
        let mut files = [
            ("crates/a/Cargo.toml", "[lib]\npath = \"src/demo/lib.rs\"\n"),
            ("crates/a/src/demo/lib.rs", "mod world;\n"),
            ("crates/a/src/demo/world.rs", ""),
        ];
        assert_eq!(every_file_is_reached(&Tree::from(files)), Vec::<String>::new());
        files[0].1 = "[lib]\n";
        assert_eq!(every_file_is_reached(&Tree::from(files)).len(), 2);
    }

    #[test]
    fn a_test_that_neither_the_manifest_nor_a_module_names_is_an_orphan() {
        let mut files = [
            ("crates/a/Cargo.toml", "autotests = false\n[[test]]\npath = \"tests/all.rs\"\n"),
            ("crates/a/tests/all.rs", "mod one;\n"),
            ("crates/a/tests/one.rs", ""),
            ("crates/a/tests/two.rs", ""),
        ];
        assert_eq!(every_file_is_reached(&Tree::from(files)).len(), 1);
        files[1].1 = "mod one;\nmod two;\n";
        assert_eq!(every_file_is_reached(&Tree::from(files)), Vec::<String>::new());
    }

    #[test]
    fn a_file_that_only_a_comment_or_nobody_names_is_an_orphan() {
        let tree = Tree::from([
            ("crates/a/src/lib.rs", "// mod lost;\nmod two;\n"),
            ("crates/a/src/lost.rs", ""),
            ("crates/a/src/two.rs", "mod inner { }\n"),
            ("crates/a/src/two/inner.rs", ""),
        ]);
        assert_eq!(every_file_is_reached(&tree).len(), 2);
    }
}
