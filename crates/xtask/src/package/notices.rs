//! Who wrote what is linked into the program, and under which licence: the texts their licences want to go with it.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use serde_json::Value;

/// What files of that kind are called.
const BEGINNINGS: [&str; 4] = ["LICENSE", "LICENCE", "COPYING", "NOTICE"];

/// The package `name` of the workspace, out of what `cargo metadata` tells.
pub(super) fn package<'metadata>(metadata: &'metadata Value, name: &str) -> Result<&'metadata Value> {
    let mut packages = metadata["packages"].as_array().into_iter().flatten();
    let found = packages.find(|package| package["name"] == name && package["source"].is_null());
    found.with_context(|| format!("cargo knows no package {name}"))
}

/// Every crate that is linked into sockeye with its licence, then each text once, with the crates it came with.
pub(super) fn notices(metadata: &Value) -> Result<String> {
    let mut crates = String::from("The program sockeye contains Rust's standard library (MIT OR Apache-2.0), and:\n\n");
    let mut texts: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for package in linked(metadata)?.into_iter().filter(|package| !package["source"].is_null()) {
        let word = |key: &str| package[key].as_str().unwrap_or("-").to_string();
        let name = format!("{} {}", word("name"), word("version"));
        crates.push_str(&format!("  {name}: {}, {}\n", word("license"), word("repository")));
        let manifest = word("manifest_path");
        let folder = Path::new(&manifest).parent().context("a manifest stands in a folder")?;
        for text in texts_in(folder)? {
            texts.entry(text).or_default().push(name.clone());
        }
    }
    for (text, crates_of_it) in texts {
        crates.push_str(&format!("\n{}\n{}\n\n{text}\n", "-".repeat(72), crates_of_it.join(", ")));
    }
    Ok(crates)
}

/// The packages that end up in the binary, by name: not what only builds or tests it.
fn linked(metadata: &Value) -> Result<Vec<&Value>> {
    let nodes = metadata["resolve"]["nodes"].as_array().context("cargo resolved nothing")?;
    let nodes: BTreeMap<&str, &Value> = nodes.iter().filter_map(|node| Some((node["id"].as_str()?, node))).collect();
    let mut reached = BTreeSet::new();
    let mut open = vec![package(metadata, "sockeye")?["id"].as_str().context("a package has an id")?];
    while let Some(id) = open.pop() {
        if reached.insert(id) {
            let edges = nodes.get(id).and_then(|node| node["deps"].as_array()).into_iter().flatten();
            open.extend(edges.filter(|edge| is_linked(edge)).filter_map(|edge| edge["pkg"].as_str()));
        }
    }
    let packages = metadata["packages"].as_array().into_iter().flatten();
    Ok(packages.filter(|package| package["id"].as_str().is_some_and(|id| reached.contains(id))).collect())
}

/// Whether the edge is a dependency of the program itself, on a platform that a Debian machine may be.
fn is_linked(edge: &Value) -> bool {
    let kinds = edge["dep_kinds"].as_array().into_iter().flatten();
    let foreign = |target: &str| target.contains("windows") || target.contains("wasm") || target.contains("apple");
    kinds.into_iter().any(|kind| kind["kind"].is_null() && !kind["target"].as_str().is_some_and(foreign))
}

fn texts_in(folder: &Path) -> Result<Vec<String>> {
    let mut texts = Vec::new();
    for entry in fs::read_dir(folder).with_context(|| format!("reading {}", folder.display()))? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().to_uppercase();
        if BEGINNINGS.iter().any(|beginning| name.starts_with(beginning)) && entry.file_type()?.is_file() {
            texts.push(String::from_utf8_lossy(&fs::read(entry.path())?).trim_end().to_string());
        }
    }
    texts.sort();
    Ok(texts)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_is_linked_is_named_and_what_only_builds_tests_or_runs_elsewhere_is_not() {
        let edge =
            |to: &str, kind: Value, target: Value| json!({"pkg": to, "dep_kinds": [{"kind": kind, "target": target}]});
        let node = |id: &str, deps: Vec<Value>| json!({"id": id, "deps": deps});
        let package = |name: &str, source: Value| json!({"name": name, "id": name, "source": source});
        let metadata = json!({
            "packages": [
                package("sockeye", Value::Null), package("room", Value::Null), package("used", json!("r")),
                package("builds", json!("r")), package("tests", json!("r")), package("windows", json!("r")),
            ],
            "resolve": {"nodes": [
                node("sockeye", vec![edge("room", Value::Null, Value::Null), edge("tests", json!("dev"), Value::Null)]),
                node("room", vec![
                    edge("used", Value::Null, json!("cfg(unix)")),
                    edge("builds", json!("build"), Value::Null),
                    edge("windows", Value::Null, json!("cfg(windows)")),
                ]),
                node("used", vec![]),
            ]},
        });
        let names: Vec<&Value> = linked(&metadata).unwrap().iter().map(|package| &package["name"]).collect();
        assert_eq!(names, ["sockeye", "room", "used"]);
    }
}
