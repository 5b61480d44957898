//! Rules about single files: they open with their story, are not called like a drawer, and know no machine.

use super::Complaint;
use super::tree::Tree;

/// Names under which anything can be put, so that everything is.
const DRAWERS: [&str; 8] = ["common", "util", "utils", "helper", "helpers", "misc", "types", "core"];
/// First folders of paths that exist on somebody's machine only.
const MACHINES: [&str; 4] = ["home", "root", "work", "Users"];

/// Every Rust file begins with `//!`.
pub(crate) fn every_file_tells_its_story(tree: &Tree) -> Vec<Complaint> {
    let silent = tree.ending(".rs").filter(|(_, text)| !text.trim_start().starts_with("//!"));
    silent.map(|(path, _)| format!("{path} does not begin with //! and what it is for")).collect()
}

/// No crate, folder or file below crates/ has a drawer's name.
pub(crate) fn no_drawers(tree: &Tree) -> Vec<Complaint> {
    let drawer = |path: &str| {
        let names = path.trim_end_matches(".rs").split('/');
        names.into_iter().find(|name| DRAWERS.contains(name)).map(str::to_owned)
    };
    let ours = tree.ending(".rs").filter(|(path, _)| path.starts_with("crates/"));
    ours.filter_map(|(path, _)| drawer(path).map(|name| format!("{path}: `{name}` is a drawer; ask which noun it is")))
        .collect()
}

/// No absolute path of a developer's or a builder's machine stands anywhere.
pub(crate) fn no_machine_paths(tree: &Tree) -> Vec<Complaint> {
    let mut complaints = Vec::new();
    for (path, text) in tree.files() {
        for (index, line) in text.lines().enumerate() {
            if let Some(machine) = MACHINES.into_iter().find(|machine| names_machine(line, machine)) {
                complaints.push(format!("{path}:{}: a path below /{machine} exists on one machine only", index + 1));
            }
        }
    }
    complaints
}

/// Whether an absolute path below `/machine` stands in `line`: not as the middle of a longer path, nor of a URL.
fn names_machine(line: &str, machine: &str) -> bool {
    let needle = format!("/{machine}/");
    line.match_indices(&needle).any(|(at, _)| {
        let before = line[..at].chars().next_back();
        before.is_none_or(|before| !before.is_alphanumeric() && !"./_-}>~$*".contains(before))
    })
}

/// Whether a documentation comment in `text` opens a fence that rustdoc takes for a test.
pub(crate) fn has_example(text: &str) -> bool {
    const TESTS: [&str; 6] = ["", "rust", "no_run", "should_panic", "compile_fail", "ignore"];
    let documentation = text
        .lines()
        .map(str::trim)
        .filter_map(|line| line.strip_prefix("///").or_else(|| line.strip_prefix("//!")).map(str::trim));
    let fences = documentation.filter_map(|line| line.strip_prefix("```"));
    fences.step_by(2).any(|language| TESTS.contains(&language.split(',').next().unwrap_or_default()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_example_is_told_from_a_picture() {
        assert!(has_example("/// ```text\n/// x\n/// ```\n/// ```\n/// assert!(true);\n/// ```\n"));
        assert!(has_example("//! ```rust\n//! x();\n//! ```\n"));
        assert!(!has_example("//! ```text\n//! a -> b\n//! ```\n/// ```sh\n/// ls\n/// ```\n"));
    }

    #[test]
    fn a_file_without_its_story_is_named() {
        let tree = Tree::from([("crates/a/src/lib.rs", "//! Story.\n"), ("crates/a/src/b.rs", "// no\nfn b() {}\n")]);
        let complaints = every_file_tells_its_story(&tree);
        assert!(complaints.len() == 1 && complaints[0].starts_with("crates/a/src/b.rs"), "{complaints:?}");
    }

    #[test]
    fn drawers_are_found_as_files_as_folders_and_in_tests() {
        for path in ["crates/a/src/utils.rs", "crates/common/src/lib.rs", "crates/a/tests/helpers/mod.rs"] {
            assert_eq!(no_drawers(&Tree::from([(path, "")])).len(), 1, "{path}");
        }
        assert!(no_drawers(&Tree::from([("crates/a/src/encore.rs", ""), ("docs/common.md", "")])).is_empty());
    }

    #[test]
    fn machine_paths_are_found_and_what_only_looks_like_one_is_not() {
        // Put together here, so that this file does not complain about itself.
        let bad = [format!("let p = \"/{}/me/x\";", "home"), format!("cd /{}/main", "work")];
        for line in &bad {
            assert_eq!(no_machine_paths(&Tree::from([("docs/a.md", line.as_str())])).len(), 1, "{line}");
        }
        for line in ["sites/home/disk.raw", "https://example.org/work/1", "{dir}/root/x", "a home/away game"] {
            assert!(no_machine_paths(&Tree::from([("docs/a.md", line)])).is_empty(), "{line}");
        }
    }
}
