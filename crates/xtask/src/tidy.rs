//! `cargo xtask tidy`: the workspace's own rules, which neither the compiler nor clippy knows.
//!
//! ```text
//!   tree (all text files, read once) ─► edges · docs · orphans · drawers · lengths · machine paths · faults ─► complaints
//! ```
//! A rule is a function from the tree to complaints; all complaints are shown, and any of them fails the chore.

mod edges;
mod lengths;
mod orphans;
mod sources;
mod switches;
mod tree;

use std::path::Path;

use anyhow::{Result, bail};

use self::tree::Tree;

/// One broken rule: where, what, and what to do instead.
type Complaint = String;

/// A rule's name and the rule.
type Rule = (&'static str, fn(&Tree) -> Vec<Complaint>);

const RULES: [Rule; 9] = [
    ("edges", edges::only_allowed_edges),
    ("edges", edges::the_architecture_page_agrees),
    ("module docs", sources::every_file_tells_its_story),
    ("drawers", sources::no_drawers),
    ("machine paths", sources::no_machine_paths),
    ("orphans", orphans::every_file_is_reached),
    ("lengths", lengths::no_file_grows_long),
    ("sabotage", switches::faults_and_switches_agree),
    ("sabotage", switches::catchers_exist),
];

/// Checks all rules.
pub(crate) fn tidy(root: &Path) -> Result<()> {
    let tree = Tree::read(root)?;
    let mut complaints = 0;
    for (name, rule) in RULES {
        for complaint in rule(&tree) {
            println!("   {name}: {complaint}");
            complaints += 1;
        }
    }
    if complaints > 0 {
        bail!("{complaints} complaints");
    }
    println!("   {} files, nothing to complain about", tree.len());
    Ok(())
}

/// Whether any comment carries an example that rustdoc would compile.
pub(crate) fn has_doc_tests(root: &Path) -> Result<bool> {
    Ok(Tree::read(root)?.ending(".rs").any(|(_, text)| sources::has_example(text)))
}
