//! What people and programs see: one screen, tables, and the words for numbers and times.
//!
//! ```text
//!                 --output table                    --output json
//!   stdout        plans, progress, tables           exactly one document
//!   stderr        errors, questions                 plans, progress, errors, questions
//! ```
//!
//! # Always true
//! - What came from a server or a guest cannot steer the terminal: control characters are not printed.
//! - A reader that goes away (`| head`) ends the output, not the command.

pub mod difference;
pub mod history;
pub mod item;
pub mod job;
pub mod list;
pub mod network;
pub mod plan;
pub mod progress;
pub mod quote;
#[cfg(test)]
pub mod sample;
pub mod table;
pub mod token;
pub mod words;

use std::io::{IsTerminal, Write};

use protocol::Fault;
use serde::Serialize;

use crate::cli::Output;

/// Where results go.
#[derive(Debug, Clone, Copy)]
pub struct Screen {
    output: Output,
}

impl Screen {
    /// A screen for this form of output.
    pub fn new(output: Output) -> Screen {
        Screen { output }
    }

    /// Whether one document is wanted.
    pub fn is_json(self) -> bool {
        self.output == Output::Json
    }

    /// Whether progress is seen by a person at a terminal.
    pub fn is_live(self) -> bool {
        if self.is_json() { std::io::stderr().is_terminal() } else { std::io::stdout().is_terminal() }
    }

    /// The document of a command, on stdout, when JSON is wanted.
    pub fn document<T: Serialize>(self, document: &T) {
        if self.is_json() {
            write(&mut std::io::stdout(), &serde_json::to_string_pretty(document).unwrap_or_default());
        }
    }

    /// One document of a stream, on a line of its own.
    pub fn line_of<T: Serialize>(self, document: &T) {
        write(&mut std::io::stdout(), &serde_json::to_string(document).unwrap_or_default());
    }

    /// Text for people: on stdout, or beside the document on stderr.
    pub fn say(self, text: &str) {
        if self.is_json() {
            write(&mut std::io::stderr(), &tame(text))
        } else {
            write(&mut std::io::stdout(), &tame(text))
        }
    }

    /// The result in both forms.
    pub fn result<T: Serialize>(self, document: &T, text: &str) {
        if self.is_json() { self.document(document) } else { self.say(text) }
    }

    /// Something that went wrong.
    pub fn error(self, fault: &Fault) {
        write(&mut std::io::stderr(), &tame(&error(fault)));
    }

    /// Empties a terminal before the next picture.
    pub fn clear(self) {
        if self.is_live() {
            write(&mut std::io::stdout(), "\x1b[H\x1b[2J");
        }
    }
}

/// An error as the contract wants it.
pub fn error(fault: &Fault) -> String {
    said("error", fault)
}

/// What went wrong without keeping anything from its end, in the same form.
pub fn warning(fault: &Fault) -> String {
    said("warning", fault)
}

fn said(how: &str, fault: &Fault) -> String {
    let mut text = format!("{how} {}: {}", fault.code, fault.message);
    for (title, part) in [("because", &fault.cause), ("next", &fault.remedy)] {
        if !part.is_empty() {
            text.push_str(&format!("\n  {:<8} {part}", format!("{title}:")));
        }
    }
    text.push_str(&format!("\n  {:<8} sockeye explain {}", "more:", fault.code));
    text
}

/// Nothing in it can steer a terminal.
pub fn tame(text: &str) -> String {
    text.chars().filter(|c| !c.is_control() || *c == '\n').collect()
}

fn write(out: &mut dyn Write, text: &str) {
    // A reader that has seen enough is no error of ours.
    let _ = writeln!(out, "{text}").and_then(|()| out.flush());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_says_which_one_why_and_now_what() {
        let fault = Fault::new(protocol::fault::code::UNKNOWN_ITEM, "there is no item web02", "3 items are known");
        let text = "error CTL-001: there is no item web02\n  because: 3 items are known\n  next:    list the items: sockeye \
                    item list\n  more:    sockeye explain CTL-001";
        assert_eq!(error(&fault), text);
    }

    #[test]
    fn a_name_cannot_steer_the_terminal() {
        assert_eq!(tame("a\x1b[2Jb\r\x07\nc\u{9b}1m"), "a[2Jb\nc1m");
    }
}
