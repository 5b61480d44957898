//! The README's walk round the circle, typed as it stands there, with the program that the package installed.
//!
//! A person answers the questions of each command; here `--yes` does. The guest and its disks are the clone's.

use std::path::Path;

use anyhow::{Context, Result, ensure};

use super::super::booted::Booted;
use super::claim;
use crate::target_dir;

/// Where the clone is, on the machine.
const CLONE: &str = "/var/tmp/clone";
/// Commands that only show something, and so ask nothing.
const ASKING_NOTHING: [&str; 6] = ["login", "vm", "status", "quote", "points", "explain"];
/// What a walk without its lines would be shorter than.
const FEWEST: usize = 18;

pub(super) fn walk(root: &Path, machine: &Booted) -> Result<()> {
    let readme = std::fs::read_to_string(root.join("README.md"))?;
    let walk = readme.split("## A walk round the circle by hand").nth(1).context("the README has no walk")?;
    let mut blocks = walk.split("```").skip(1).step_by(2).map(lines);
    let (begin, typed) = (blocks.next().context("no first block")?, blocks.next().context("no second block")?);
    ensure!(typed.len() >= FEWEST, "the walk has only {} lines: {typed:?}", typed.len());
    let built = machine.folder.join(CLONE.trim_start_matches('/')).join("target");
    for (from, to) in
        [("debug/ledger", "debug/ledger"), ("guest/vmlinuz", "guest/vmlinuz"), ("guest/initrd.img", "guest/initrd.img")]
    {
        let to = built.join(to);
        std::fs::create_dir_all(to.parent().context("a file stands in a folder")?)?;
        std::fs::copy(target_dir(root).join(from), to)?;
    }
    claim("the README's walk begins: control server and two sites in one process", || {
        let (up, before) = begin.split_last().context("no lines")?;
        ensure!(up.starts_with("sockeye up"), "{up}");
        bash(machine, CLONE, &before.join("\n"))?;
        let service =
            format!("systemd-run --quiet --unit=walk --working-directory={CLONE}/walk --setenv=HOME=/var/tmp {up}");
        machine.run(&service)?;
        machine.until(&format!("test -s {CLONE}/walk/d/admin.token"))
    })?;
    for line in typed {
        claim(&format!("$ {line}"), || {
            if let Some(console) = line.strip_prefix("tail -f ") {
                // Who looks at that for a moment sees the guest write; by then the server knows the machine.
                machine.until(&format!("grep -aq ACK {CLONE}/walk/{console}"))?;
                return machine.until("sockeye vm list | grep -q web01");
            }
            let verb = line.split(' ').nth(1).unwrap_or_default();
            let asks = line.starts_with("sockeye ") && !ASKING_NOTHING.contains(&verb) && !line.contains("--yes");
            let line = if asks { format!("{line} --yes") } else { line.clone() };
            // A failback waits for a person: exit code 4.
            let line = if verb == "failback" { format!("{line} || test $? = 4") } else { line };
            bash(machine, &format!("{CLONE}/walk"), &line)?;
            // A person looks at points meanwhile, and chooses one of them later.
            if verb == "protect" { machine.until("sockeye points web01 | grep -qw 1.20") } else { Ok(()) }
        })?;
    }
    claim("after the walk the machine is protected, and nothing of it is left at the cloud", || {
        machine.until("sockeye status web01 | grep -q \" protected \"")?;
        machine.run(&format!("! test -e {CLONE}/walk/d/cloud/machines/web01"))?;
        machine.run("systemctl stop walk").map(drop)
    })
}

/// The lines of a block that are typed: without their remarks, those that go on in the next one joined.
fn lines(block: &str) -> Vec<String> {
    let joined = block.replace("\\\n", " ");
    let typed = joined.lines().map(|line| line.split("  #").next().unwrap_or_default());
    typed.map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).filter(|line| !line.is_empty()).collect()
}

fn bash(machine: &Booted, folder: &str, line: &str) -> Result<String> {
    let line = line.replace('\'', r"'\''");
    machine.run(&format!("cd {folder}; timeout 180 bash -ec '{line}'"))
}
