//! What is done inside a guest when its machine moves: its cards get other addresses, or it gets its own configuration back.
//!
//! ```text
//!   give ─► wait until the agent answers ─► sh -c network.sh set | restore        addresses are there: what it says
//!                                                 │                               else: a fault; the machine runs on
//!   no agent: seed ─► a small read-only disk that cloud-init reads when the guest starts
//! ```
//! # Always true
//! - What the guest's owner had configured is kept in the guest before anything is changed, and is put back byte for byte.
//! - What comes from a guest is bounded: its agent's answers in size and time, what is told of them in length.
//! - Only addresses that were read as addresses are ever part of what a guest is told to run.
//!
//! # If power fails
//! The guest starts with one configuration or the other, each file of it whole; giving it again finishes.

pub(crate) mod agent;
pub mod seed;

use std::time::Duration;

use protocol::Fault;
use protocol::fault::code;
use protocol::guest::{CardAddresses, GuestWish};
use protocol::machine::Power;
use tokio::time::Instant;

use crate::Platform;

/// What is run in a Linux guest.
const PROGRAM: &str = include_str!("guest/network.sh");
/// How long it may take: twenty seconds for addresses, the rest for what network managers do.
const PROGRAM_TAKES: Duration = Duration::from_secs(150);
/// How often an agent is looked for.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
/// How much of what a guest said is told, in letters.
const TOLD: usize = 2000;

/// What a program in a guest came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ran {
    /// Its exit code; none where a signal ended it.
    pub code: Option<i64>,
    /// What it said.
    pub said: String,
    /// What it complained about.
    pub complained: String,
}

/// Does with the guest what is wished. Gives what it told, a line each.
///
/// # Errors
/// `PLT-020` when its agent does not answer within `within`; `PLT-018` when that runs no programs; `PLT-019` when the guest did not
/// take it; `PLT-001`.
pub async fn give(
    platform: &dyn Platform,
    machine: &str,
    wish: &GuestWish,
    within: Duration,
    tell: &(dyn Fn(&str) + Sync),
) -> Result<Vec<String>, Fault> {
    let arguments = match wish {
        GuestWish::NoSeed => {
            platform.forget_seed(machine).await?;
            return Ok(vec![]);
        }
        GuestWish::Addresses(cards) => set(machine, cards)?,
        GuestWish::Restore => vec!["restore".into()],
    };
    tell("waiting for the guest's agent");
    answers(platform, machine, within).await?;
    tell("the guest sets its addresses");
    let arguments: Vec<String> = ["-c".into(), PROGRAM.into(), "sockeye".into()].into_iter().chain(arguments).collect();
    let ran = platform.run_in_guest(machine, "/bin/sh", &arguments, PROGRAM_TAKES).await?;
    if ran.code == Some(0) {
        return Ok(ran.said.lines().map(|line| line.trim().chars().take(TOLD).collect()).take(64).collect());
    }
    let ended = ran.code.map_or("it was ended by a signal".into(), |code| format!("it ended with {code}"));
    let why: String = ran.complained.trim().chars().take(TOLD).collect();
    Err(not_addressed(machine, format!("{ended}: {why}")))
}

/// The arguments of the program for these cards.
fn set(machine: &str, cards: &[CardAddresses]) -> Result<Vec<String>, Fault> {
    let mut words = vec!["set".to_string()];
    for card in cards {
        // Whoever sent them: what is run in a guest is made of addresses and nothing else.
        let card = card.clone().checked().map_err(|why| not_addressed(machine, why))?;
        words.extend([card.mac, card.addresses.join(","), card.gateways.join(","), card.dns.join(",")]);
    }
    Ok(words)
}

/// Waits until the guest's agent answers.
async fn answers(platform: &dyn Platform, machine: &str, within: Duration) -> Result<(), Fault> {
    let begun = Instant::now();
    loop {
        let why = match platform.guest_network(machine).await {
            Ok(_) => return Ok(()),
            Err(why) if !why.is(code::NO_GUEST_AGENT) => return Err(why),
            Err(why) => why,
        };
        let power = platform.machine(machine).await?.map(|machine| machine.power);
        let runs = matches!(power, Some(Power::Running | Power::Paused));
        if !runs || begun.elapsed() >= within {
            let cause = if runs { why.cause } else { "its machine does not run".into() };
            let message = format!("the guest of {machine} was not given its addresses");
            return Err(Fault::new(code::AGENT_LATE, message, cause));
        }
        tokio::time::sleep(LOOK_AGAIN).await;
    }
}

pub(crate) fn not_addressed(machine: &str, why: impl Into<String>) -> Fault {
    Fault::new(code::GUEST_NOT_ADDRESSED, format!("the guest of {machine} did not take its addresses"), why)
}
