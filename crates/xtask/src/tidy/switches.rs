//! The rule that the list of faults, the places that can be sabotaged and the page about them agree.

use std::collections::BTreeSet;

use super::Complaint;
use super::tree::Tree;
use crate::sabotage::FAULTS;

/// The rule.
pub(crate) fn faults_and_switches_agree(tree: &Tree) -> Vec<Complaint> {
    let names: Vec<&str> = FAULTS.iter().map(|fault| fault.name).collect();
    judge(tree, &names)
}

/// The rule that a test which is to catch a fault exists.
pub(crate) fn catchers_exist(tree: &Tree) -> Vec<Complaint> {
    let mut complaints = Vec::new();
    for test in FAULTS.iter().flat_map(|fault| fault.catchers) {
        let folder = format!("crates/{}/", test.package);
        let function = format!("fn {}(", test.test.rsplit("::").next().unwrap_or_default());
        if !tree.ending(".rs").any(|(path, text)| path.starts_with(&folder) && text.contains(&function)) {
            complaints.push(format!("{folder} has no test {}, which is to catch a fault", test.test));
        }
    }
    complaints
}

fn judge(tree: &Tree, names: &[&str]) -> Vec<Complaint> {
    // Put together here, so that this file holds no switch itself.
    let asks = format!("sabotage::{}(\"", "is");
    let mut asked = BTreeSet::new();
    for (_, text) in tree.ending(".rs") {
        asked.extend(text.split(&asks).skip(1).filter_map(|rest| rest.split('"').next()));
    }
    let page = tree.text("docs/sabotage.md").unwrap_or_default();
    let mut complaints = Vec::new();
    for name in asked.iter().filter(|name| !names.contains(name)) {
        complaints.push(format!("the code asks for the fault {name}, which xtask's list does not have"));
    }
    for name in names {
        if !asked.contains(name) {
            complaints.push(format!("no place in the code asks for the fault {name} of xtask's list"));
        }
        if !page.contains(&format!("| `{name}` |")) {
            complaints.push(format!("docs/sabotage.md has no row for {name}"));
        }
    }
    complaints
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_switch_without_a_fault_and_a_fault_without_a_switch_or_row_are_named() {
        let code = format!("if protocol::sabotage::{}(\"a\") {{ }} else if sabotage::{}(\"b\") {{ }}", "is", "is");
        let tree = |page| Tree::from([("crates/x/src/lib.rs", code.as_str()), ("docs/sabotage.md", page)]);
        assert_eq!(judge(&tree("| `a` | x |\n| `b` | y |"), &["a", "b"]), Vec::<String>::new());
        assert_eq!(judge(&tree("| `a` | x |"), &["a", "b"]).len(), 1, "no row");
        assert_eq!(judge(&tree("| `a` | x |"), &["a"]).len(), 1, "b is asked for");
        assert_eq!(judge(&tree("| `a` |\n| `b` |\n| `c` |"), &["a", "b", "c"]).len(), 1, "nobody asks for c");
    }
}
