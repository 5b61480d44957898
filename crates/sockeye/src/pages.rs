//! What a package ships of the command line besides the binary: man pages and completions, made from its own definition.
//!
//! ```text
//!   Cli::command ─┬─► DIR/man/sockeye.1, sockeye-VERB.1, sockeye-NOUN-VERB.1
//!                 └─► DIR/completions/sockeye (bash) · _sockeye (zsh) · sockeye.fish
//! ```
//! The verb for it is hidden: it is for packagers. Being the binary's own, what it writes cannot differ from what the
//! binary takes.

use std::path::Path;

use clap::{Command, CommandFactory};
use clap_complete::Shell;

use crate::cli::Cli;
use crate::ending::{Ending, Trouble};

/// Each shell, and the name under which it looks for the completion of a program called sockeye.
const SHELLS: [(Shell, &str); 3] = [(Shell::Bash, "sockeye"), (Shell::Zsh, "_sockeye"), (Shell::Fish, "sockeye.fish")];

/// Writes all of it below `dir`.
///
/// # Errors
/// A file or a directory cannot be written.
pub fn write(dir: &Path) -> Result<Ending, Trouble> {
    let unwritten = |why: std::io::Error| Trouble::local(format!("{} cannot be written", dir.display()), why);
    let (man, completions) = (dir.join("man"), dir.join("completions"));
    for folder in [&man, &completions] {
        std::fs::create_dir_all(folder).map_err(unwritten)?;
    }
    clap_mangen::generate_to(Cli::command(), man).map_err(unwritten)?;
    for (shell, name) in SHELLS {
        let mut script = Vec::new();
        clap_complete::generate(shell, &mut shown(Cli::command()), "sockeye", &mut script);
        std::fs::write(completions.join(name), script).map_err(unwritten)?;
    }
    Ok(Ending::Done)
}

/// The command without its hidden verbs: clap offers them in completions, unlike in help and man pages.
fn shown(whole: Command) -> Command {
    let verbs = whole.get_subcommands().filter(|verb| !verb.is_hide_set()).cloned();
    Command::new("sockeye").version(env!("CARGO_PKG_VERSION")).args(whole.get_arguments().cloned()).subcommands(verbs)
}
