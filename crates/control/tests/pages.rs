//! The generated pages are current.

#![allow(clippy::unwrap_used)]

use std::path::PathBuf;

fn compare(name: &str, page: &str) {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../docs").join(name);
    if std::env::var_os("SOCKEYE_REWRITE").is_some() {
        std::fs::write(&path, page).unwrap();
    }
    let kept = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(kept == page, "docs/{name} is not current: run SOCKEYE_REWRITE=1 cargo nextest run -p control");
}

#[test]
fn the_page_of_protection_states_is_what_the_table_says() {
    compare("protection-states.md", &control::stage_page::protection_states_page());
}

#[test]
fn the_page_of_fault_codes_is_what_the_catalogue_says() {
    compare("fault-codes.md", &control::fault_codes_page());
}
