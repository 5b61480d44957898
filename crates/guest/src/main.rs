//! `ledger`: inside the test machine it writes the ledger (`run`); on the host it makes disks and verifies them.
//!
//! ```text
//! ledger run                                            in the guest, as the first process
//! ledger seed A B [--size-mib 8192] [--written-mib 1024] [--seed 1]
//! ledger verify A B [--whole] [--at-least N] [--acked N]     exit 0 only if consistent and record N is there
//! ```

mod machine;

use std::path::Path;
use std::process::ExitCode;

use guest::Scope;

const USAGE: &str = "usage: ledger seed A B [--size-mib N] [--written-mib N] [--seed N]
       ledger verify A B [--whole] [--at-least N] [--acked N]
       ledger run        (only inside the test machine)";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let outcome = match words.as_slice() {
        ["run"] => machine::run(),
        ["seed", a, b, options @ ..] => seed(a, b, options),
        ["verify", a, b, options @ ..] => verify(a, b, options),
        _ => Err(USAGE.to_owned()),
    };
    match outcome {
        Ok(code) => code,
        Err(message) => {
            eprintln!("{message}");
            ExitCode::from(2)
        }
    }
}

fn seed(a: &str, b: &str, options: &[&str]) -> Result<ExitCode, String> {
    let (mut size_mib, mut written_mib, mut seed) = (8192, 1024, 1);
    for option in options.chunks(2) {
        match option {
            ["--size-mib", value] => size_mib = number(value)?,
            ["--written-mib", value] => written_mib = number(value)?,
            ["--seed", value] => seed = number(value)?,
            _ => return Err(USAGE.to_owned()),
        }
    }
    guest::seed_pair(Path::new(a), Path::new(b), size_mib << 20, seed, written_mib << 20)
        .map_err(|fault| fault.to_string())?;
    Ok(ExitCode::SUCCESS)
}

fn verify(a: &str, b: &str, options: &[&str]) -> Result<ExitCode, String> {
    let (mut scope, mut at_least, mut acked) = (Scope::Ledger, 0, None);
    let mut options = options.iter();
    while let Some(option) = options.next() {
        let mut value = || options.next().ok_or(USAGE.to_owned()).and_then(|value| number(value));
        match *option {
            "--whole" => scope = Scope::WholeDisk,
            "--at-least" => at_least = value()?,
            "--acked" => acked = Some(value()?),
            _ => return Err(USAGE.to_owned()),
        }
    }
    let report = guest::verify(Path::new(a), Path::new(b), scope).map_err(|fault| fault.to_string())?;
    println!("{}", report.to_json());
    report.problems.iter().for_each(|problem| println!("{problem}"));
    if let Some(acked) = acked {
        println!("lost: {} of {acked} acknowledged records", report.lost(acked));
    }
    Ok(if report.holds(at_least) { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn number(text: &str) -> Result<u64, String> {
    text.parse().map_err(|_| format!("{text} is not a number\n{USAGE}"))
}
