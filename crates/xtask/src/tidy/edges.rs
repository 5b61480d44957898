//! The rule of the rooms: a crate depends on the crates of this table and on no others of the workspace.
//!
//! Dev-dependencies are exempt: a test may bring in what the shipped code may not.

use super::Complaint;
use super::tree::Tree;

const ROOMS: [&str; 8] =
    ["protocol", "nbd", "replica", "platforms", "process-server", "master-target", "control", "api"];

/// Who may depend on whom. The same table stands in ARCHITECTURE.md, with the reasons.
const ALLOWED: [(&str, &[&str]); 12] = [
    ("protocol", &[]),
    ("nbd", &[]),
    ("replica", &["protocol"]),
    ("platforms", &["protocol", "nbd"]),
    ("process-server", &["protocol", "nbd", "platforms"]),
    ("master-target", &["protocol", "nbd", "platforms", "replica"]),
    ("control", &["protocol"]),
    ("api", &["protocol", "control"]),
    (
        "sockeye",
        &["protocol", "nbd", "replica", "platforms", "process-server", "master-target", "control", "api", "guest"],
    ),
    ("simulator", &ROOMS),
    ("guest", &[]),
    ("xtask", &[]),
];

/// The rule.
pub(crate) fn only_allowed_edges(tree: &Tree) -> Vec<Complaint> {
    let mut complaints = Vec::new();
    let mut seen = Vec::new();
    for (path, manifest) in tree.ending("/Cargo.toml") {
        let Some(member) = path.strip_prefix("crates/").and_then(|path| path.strip_suffix("/Cargo.toml")) else {
            continue;
        };
        seen.push(member);
        let Some((_, allowed)) = ALLOWED.iter().find(|(name, _)| *name == member) else {
            complaints
                .push(format!("{member} is not in the table of allowed edges; ask which noun it is, then add it"));
            continue;
        };
        for dependency in dependencies(manifest) {
            let ours = ALLOWED.iter().any(|(name, _)| *name == dependency);
            if ours && !allowed.contains(&dependency) {
                complaints.push(format!("{member} -> {dependency} is not an allowed edge"));
            }
        }
    }
    let gone = ALLOWED.iter().filter(|(name, _)| !seen.contains(name));
    complaints.extend(gone.map(|(name, _)| format!("{name} is in the table of allowed edges but not in crates/")));
    complaints
}

/// Names after `[dependencies]` and its like, under the names the packages really have.
fn dependencies(manifest: &str) -> Vec<&str> {
    let mut names = Vec::new();
    let mut inside = false;
    for line in manifest.lines().map(str::trim) {
        if let Some(section) = line.strip_prefix('[').and_then(|line| line.strip_suffix(']')) {
            let (table, name) = match section.rsplit_once("dependencies") {
                Some((before, after)) => (Some(before), after.strip_prefix('.')),
                None => (None, None),
            };
            let counts = table.is_some_and(|before| !before.ends_with("dev-"));
            inside = counts && name.is_none();
            names.extend(name.filter(|_| counts));
        } else if inside && !line.starts_with('#') {
            let Some((key, value)) = line.split_once('=') else { continue };
            let renamed = value.split_once("package").and_then(|(_, rest)| rest.split('"').nth(1));
            names.push(renamed.unwrap_or_else(|| key.split('.').next().unwrap_or(key).trim().trim_matches('"')));
        }
    }
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    fn complaints_about(member: &str, manifest: &str) -> Vec<Complaint> {
        let path = format!("crates/{member}/Cargo.toml");
        let tree = Tree::from([(path.as_str(), manifest)]);
        only_allowed_edges(&tree).into_iter().filter(|complaint| !complaint.contains("not in crates/")).collect()
    }

    #[test]
    fn an_edge_of_the_table_is_allowed_and_another_is_not() {
        assert!(
            complaints_about("replica", "[dependencies]\nprotocol = { workspace = true }\nserde = \"1\"").is_empty()
        );
        let complaints = complaints_about("replica", "[dependencies]\nnbd = { workspace = true }");
        assert_eq!(complaints, ["replica -> nbd is not an allowed edge"]);
    }

    #[test]
    fn no_way_of_writing_a_dependency_hides_the_edge() {
        for manifest in [
            "[dependencies]\nnbd.workspace = true",
            "[dependencies.nbd]\nworkspace = true",
            "[target.'cfg(unix)'.dependencies]\nnbd = { path = \"../nbd\" }",
            "[build-dependencies]\nnbd = { workspace = true }",
            "[dependencies]\ndisks = { path = \"../nbd\", package = \"nbd\" }",
        ] {
            assert_eq!(complaints_about("control", manifest).len(), 1, "{manifest}");
        }
    }

    #[test]
    fn tests_may_bring_in_what_they_like() {
        assert!(complaints_about("control", "[dev-dependencies]\nnbd = { workspace = true }").is_empty());
    }

    #[test]
    fn a_crate_that_nobody_gave_a_place_is_refused() {
        assert!(complaints_about("toolbox", "[dependencies]")[0].contains("not in the table"));
    }
}
