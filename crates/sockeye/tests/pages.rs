//! The man pages and completions of a package: there is one for every verb, and their readers take them.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

use crate::typed;

/// The verbs that the help of `line` lists, by their first words.
async fn verbs(line: &str) -> Vec<String> {
    let help = typed::run(&format!("{line} --help"), &[], "").await.stdout;
    let list = help.lines().skip_while(|line| *line != "Commands:").skip(1).take_while(|line| !line.is_empty());
    // What continues a description is further in.
    let list = list.filter(|line| line.starts_with("  ") && !line.starts_with("   "));
    list.filter_map(|line| line.split_whitespace().next()).filter(|verb| *verb != "help").map(String::from).collect()
}

fn names(folder: &Path) -> BTreeSet<String> {
    let entries = std::fs::read_dir(folder).unwrap();
    entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

async fn written() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let ran = typed::run(&format!("pages {}", dir.path().display()), &[], "").await;
    assert_eq!(ran.code, 0, "{ran:?}");
    dir
}

#[tokio::test]
async fn every_verb_has_a_man_page_and_every_man_page_a_verb() {
    let dir = written().await;
    let mut expected = BTreeSet::from(["sockeye.1".to_string()]);
    let first = verbs("").await;
    assert!(first.len() > 30, "{first:?}");
    for verb in first {
        for second in verbs(&verb).await {
            expected.insert(format!("sockeye-{verb}-{second}.1"));
        }
        expected.insert(format!("sockeye-{verb}.1"));
    }
    assert!(expected.contains("sockeye-policy-apply.1"), "{expected:?}");
    let man = dir.path().join("man");
    assert_eq!(names(&man), expected);
    for page in expected {
        let text = std::fs::read_to_string(man.join(&page)).unwrap();
        assert!(text.contains(".TH sockeye") && text.contains(".SH SYNOPSIS"), "{page}: {text}");
    }
}

#[tokio::test]
async fn bash_takes_its_completion_and_offers_what_can_be_typed() {
    let dir = written().await;
    let script = dir.path().join("completions/sockeye");
    let checked = Command::new("bash").arg("-n").arg(&script).output().unwrap();
    assert!(checked.status.success() && checked.stderr.is_empty(), "{checked:?}");
    // As bash does it when TAB is pressed after `line`.
    let offered = |line: &str| {
        let complete = r#"source "$1"; COMP_WORDS=($2 ""); COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
            _sockeye sockeye "" "${COMP_WORDS[COMP_CWORD - 1]}"; echo "${COMPREPLY[*]}""#;
        let output = Command::new("bash").args(["-c", complete, "bash"]).arg(&script).arg(line).output().unwrap();
        let words = String::from_utf8(output.stdout).unwrap();
        words.split_whitespace().map(String::from).collect::<BTreeSet<_>>()
    };
    for (line, words) in [
        ("sockeye", ["failback", "master-target", "--output"]),
        ("sockeye component", ["list", "show", "set"]),
        ("sockeye failback", ["--max-downtime", "--sync", "--dry-run"]),
    ] {
        let offered = offered(line);
        assert!(words.iter().all(|word| offered.contains(*word)), "{line}: {offered:?}");
    }
    assert!(!offered("sockeye").contains("pages"), "a hidden verb is offered");
}

#[tokio::test]
async fn the_other_shells_have_theirs_under_the_names_they_look_for() {
    let dir = written().await;
    let completions = dir.path().join("completions");
    assert_eq!(names(&completions), ["_sockeye", "sockeye", "sockeye.fish"].map(String::from).into());
    let text = |name: &str| std::fs::read_to_string(completions.join(name)).unwrap();
    assert!(text("_sockeye").starts_with("#compdef sockeye\n"));
    assert!(text("sockeye.fish").contains("complete -c sockeye"));
    for name in ["_sockeye", "sockeye.fish"] {
        assert!(text(name).contains("max-downtime") && !text(name).contains("man pages"), "{name}");
    }
}
