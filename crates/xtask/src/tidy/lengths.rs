//! The ratchet on long files: over 500 lines a file needs an entry here with its limit, and limits only go down.

use super::Complaint;
use super::tree::Tree;

/// A file of more lines usually holds two nouns.
const LINES_MOST: usize = 500;
/// Files that were longer when the rule came, or are one long table, with the lines they may have.
const LONGER: [(&str, usize); 0] = [];

/// The rule.
pub(crate) fn no_file_grows_long(tree: &Tree) -> Vec<Complaint> {
    judge(tree, &LONGER)
}

fn judge(tree: &Tree, longer: &[(&str, usize)]) -> Vec<Complaint> {
    let mut complaints = Vec::new();
    for (path, text) in tree.ending(".rs") {
        let lines = text.lines().count();
        let listed = longer.iter().find(|(listed, _)| *listed == path);
        let limit = listed.map_or(LINES_MOST, |(_, limit)| *limit);
        if lines > limit {
            complaints.push(format!("{path} has {lines} lines, {limit} are allowed; which second noun is in it?"));
        } else if listed.is_some() && lines <= LINES_MOST {
            complaints.push(format!("{path} is short enough now; take it out of the list in tidy/lengths.rs"));
        }
    }
    let gone = longer.iter().filter(|(path, _)| tree.text(path).is_none());
    complaints.extend(gone.map(|(path, _)| format!("{path} is gone; take it out of the list in tidy/lengths.rs")));
    complaints
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_file_needs_an_entry_and_an_entry_a_long_file() {
        let text = |lines: usize| "//\n".repeat(lines);
        let tree = |lines| Tree::from([("crates/a/src/lib.rs", text(lines).as_str())]);
        let listed = [("crates/a/src/lib.rs", 600)];
        assert!(judge(&tree(500), &[]).is_empty());
        assert_eq!(judge(&tree(501), &[]).len(), 1);
        assert!(judge(&tree(600), &listed).is_empty());
        assert_eq!(judge(&tree(601), &listed).len(), 1, "the ratchet holds");
        assert_eq!(judge(&tree(400), &listed).len(), 1, "the entry is stale");
        assert_eq!(judge(&Tree::from([]), &listed).len(), 1, "the file is gone");
    }
}
