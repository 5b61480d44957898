//! The rule of the rooms: a crate depends on the crates of this table and on no others of the workspace.
//!
//! Dev-dependencies are exempt: a test may bring in what the shipped code may not.

use super::Complaint;
use super::tree::Tree;

const ROOMS: [&str; 11] = [
    "protocol",
    "nbd",
    "replica",
    "platforms",
    "identity",
    "component",
    "transfer",
    "process-server",
    "master-target",
    "control",
    "api",
];

/// Who may depend on whom. ARCHITECTURE.md shows the same table with what each crate is for.
const ALLOWED: [(&str, &[&str]); 15] = [
    ("protocol", &[]),
    ("nbd", &[]),
    ("replica", &["protocol"]),
    ("platforms", &["protocol", "nbd"]),
    ("identity", &[]),
    ("component", &["protocol", "identity"]),
    ("transfer", &["protocol", "nbd", "replica", "component"]),
    ("process-server", &["protocol", "nbd", "platforms", "component", "transfer"]),
    ("master-target", &["protocol", "nbd", "platforms", "replica", "component", "transfer"]),
    ("control", &["protocol", "identity"]),
    ("api", &["protocol", "control"]),
    (
        "sockeye",
        &[
            "protocol",
            "nbd",
            "replica",
            "platforms",
            "identity",
            "component",
            "transfer",
            "process-server",
            "master-target",
            "control",
            "api",
            "guest",
        ],
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

/// The table in ARCHITECTURE.md, whose rows end in a list of crates or in "all", says what the one above says.
pub(crate) fn the_architecture_page_agrees(tree: &Tree) -> Vec<Complaint> {
    let page = tree.text("ARCHITECTURE.md").unwrap_or_default();
    let rows: Vec<Vec<&str>> =
        page.lines().map(|line| line.trim_matches('|').split('|').map(str::trim).collect()).collect();
    let mut complaints = Vec::new();
    for (name, allowed) in ALLOWED {
        let row = rows.iter().find(|cells| cells.len() == 3 && cells[0].trim_matches('`') == name);
        let Some(cell) = row.map(|cells| cells[2]) else {
            complaints.push(format!("ARCHITECTURE.md has no row for {name} in its table of crates"));
            continue;
        };
        let mut said: Vec<&str> = cell.split('`').skip(1).step_by(2).collect();
        let mut meant = allowed.to_vec();
        said.sort_unstable();
        meant.sort_unstable();
        if said != meant && !(cell.starts_with("all") && allowed.len() >= ROOMS.len()) {
            complaints.push(format!("ARCHITECTURE.md lets {name} link {said:?}, tidy lets it link {meant:?}"));
        }
    }
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
    fn a_page_that_says_something_else_than_the_rule_is_found() {
        let row = |name: &str, links: &str| format!("| `{name}` | What it is for. | {links} |\n");
        let links = |allowed: &[&str]| allowed.iter().map(|name| format!("`{name}` ")).collect::<String>();
        let page: String = ALLOWED.iter().map(|(name, allowed)| row(name, &links(allowed))).collect();
        assert_eq!(
            the_architecture_page_agrees(&Tree::from([("ARCHITECTURE.md", page.as_str())])),
            Vec::<String>::new()
        );
        let short = page.replace(&row("replica", "`protocol` "), "");
        let other = page.replace(&row("replica", "`protocol` "), &row("replica", "`protocol` `nbd`"));
        for wrong in [short, other] {
            assert_eq!(the_architecture_page_agrees(&Tree::from([("ARCHITECTURE.md", wrong.as_str())])).len(), 1);
        }
    }

    #[test]
    fn a_crate_that_nobody_gave_a_place_is_refused() {
        assert!(complaints_about("toolbox", "[dependencies]")[0].contains("not in the table"));
    }
}
