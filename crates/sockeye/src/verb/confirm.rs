//! Asks the person at the terminal before anything is started.
//!
//! ```text
//!   --yes               go on
//!   terminal            [y/N], or the item's name where there is no way back
//!   neither             exit code 2, nothing started
//! ```

use std::io::{BufRead, IsTerminal, Write};

use protocol::Fault;

use crate::ending::{Ending, Trouble};
use crate::fault;
use crate::show::tame;

/// What must be typed to go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wanted<'a> {
    /// `y` or `yes`.
    Yes,
    /// This name, because it cannot be taken back.
    Name(&'a str),
}

/// Asks, unless `yes` was given beforehand.
///
/// # Errors
/// Nobody is there, or the answer is not the one wanted: exit code 2.
pub async fn confirm(question: &str, wanted: Wanted<'_>, yes: bool) -> Result<(), Trouble> {
    if yes {
        return Ok(());
    }
    if !std::io::stdin().is_terminal() || !std::io::stderr().is_terminal() {
        let cause = "there is no terminal to ask at, and --yes was not given";
        return Err(refused(cause));
    }
    let prompt = match wanted {
        Wanted::Yes => format!("{question} [y/N] "),
        Wanted::Name(name) => format!("{question} This cannot be taken back. Type {name} to go on: "),
    };
    // On a thread of its own: reading a terminal cannot be given up, and Ctrl-C ends the process here anyway.
    let answer = tokio::task::spawn_blocking(move || ask(&prompt)).await.unwrap_or_default();
    if agrees(&answer, wanted) { Ok(()) } else { Err(refused("the answer was not the one that was asked for")) }
}

fn ask(prompt: &str) -> String {
    let mut answer = String::new();
    let mut out = std::io::stderr();
    let asked = write!(out, "{}", tame(prompt)).and_then(|()| out.flush());
    // An answer that cannot be read is no yes.
    if asked.and_then(|()| std::io::stdin().lock().read_line(&mut answer)).is_err() {
        answer.clear();
    }
    answer
}

fn agrees(answer: &str, wanted: Wanted<'_>) -> bool {
    match wanted {
        Wanted::Yes => ["y", "yes"].contains(&answer.trim().to_lowercase().as_str()),
        Wanted::Name(name) => answer.trim() == name,
    }
}

fn refused(cause: &str) -> Trouble {
    Trouble::new(Ending::Usage, Fault::new(fault::NOT_CONFIRMED, "nothing was started", cause))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_wanted_answer_agrees() {
        for yes in ["y\n", "YES\n", " y "] {
            assert!(agrees(yes, Wanted::Yes));
            assert!(!agrees(yes, Wanted::Name("web01")));
        }
        for no in ["", "\n", "n\n", "yeah\n"] {
            assert!(!agrees(no, Wanted::Yes), "{no:?}");
        }
        assert!(agrees("web01\n", Wanted::Name("web01")) && !agrees("web0\n", Wanted::Name("web01")));
    }
}
