//! Runs the command line as its users do, as a program of its own, and holds what it did.
#![allow(clippy::unwrap_used, dead_code)]

use std::process::Stdio;

use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::process::{Child, Command};

/// What a command did.
#[derive(Debug)]
pub struct Ran {
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
}

impl Ran {
    /// The one document on stdout.
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|why| panic!("{why} in {self:?}"))
    }
}

/// Runs the command line with nothing of this process's environment but `PATH`.
pub async fn run(line: &str, environment: &[(&str, &str)], stdin: &str) -> Ran {
    let mut command = command(line, environment);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut input = child.stdin.take().unwrap();
    // A command that does not read ends without having taken it.
    let _ = input.write_all(stdin.as_bytes()).await;
    drop(input);
    ended(line, child).await
}

/// The program, about to be started; it dies with whoever holds it.
pub fn command(line: &str, environment: &[(&str, &str)]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sockeye"));
    command.args(line.split_whitespace()).env_clear().env("PATH", std::env::var("PATH").unwrap_or_default());
    // Nobody's own profiles are read or written.
    command.env("SOCKEYE_CONFIG", "/nonexistent/profiles.toml");
    command.envs(environment.iter().copied()).kill_on_drop(true);
    command
}

/// The document that a program tells which goes on afterwards.
pub async fn told(line: &str, child: &mut Child) -> Value {
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut text = String::new();
    loop {
        let next = tokio::time::timeout(std::time::Duration::from_secs(60), lines.next_line()).await.unwrap().unwrap();
        text.push_str(&next.unwrap_or_else(|| panic!("`{line}` ended: {text}")));
        if let Ok(told) = serde_json::from_str(&text) {
            return told;
        }
    }
}

/// Waits for a program that was started with pipes.
pub async fn ended(line: &str, child: Child) -> Ran {
    let done = tokio::time::timeout(std::time::Duration::from_secs(60), child.wait_with_output()).await;
    let output = done.unwrap_or_else(|_| panic!("`sockeye {line}` did not end")).unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    Ran { code: output.status.code().unwrap_or(-1), stdout: text(output.stdout), stderr: text(output.stderr) }
}
