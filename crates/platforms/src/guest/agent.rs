//! What is asked of QEMU's guest agent beyond freezing, whichever way its answers come.

use std::net::IpAddr;
use std::time::Duration;

use async_trait::async_trait;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use protocol::Fault;
use protocol::fault::code;
use protocol::guest::{GuestCard, GuestNetwork};
use serde_json::{Value, json};
use tokio::time::Instant;

use super::{Ran, not_addressed};

/// How long the agent may take for what it does at once.
const PATIENCE: Duration = Duration::from_secs(10);
/// How often it is asked whether a program has ended.
const LOOK_AGAIN: Duration = Duration::from_millis(300);
/// How many cards, and addresses of a card, are told.
const MOST: usize = 64;

/// Somebody through whom an agent can be asked.
#[async_trait]
pub(crate) trait Ask: Send + Sync {
    /// The machine's name.
    fn machine(&self) -> &str;

    /// One command and its answer; or the words with which the agent refuses it.
    ///
    /// # Errors
    /// `PLT-015` when no agent answers; `PLT-001`.
    async fn ask(&self, command: Value, patience: Duration) -> Result<Result<Value, String>, Fault>;
}

/// Which addresses the guest has.
pub(crate) async fn network(agent: &dyn Ask) -> Result<GuestNetwork, Fault> {
    let told = agent.ask(json!({ "execute": "guest-network-get-interfaces" }), PATIENCE).await?;
    let told = told.map_err(|why| {
        let message = format!("the guest of {} does not tell its addresses", agent.machine());
        Fault::new(code::NO_GUEST_AGENT, message, format!("its agent says: {why}"))
    })?;
    Ok(read(&told))
}

fn read(told: &Value) -> GuestNetwork {
    let cards = told.as_array().into_iter().flatten().filter_map(card).take(MOST).collect();
    GuestNetwork { at_ms: 0, cards }
}

fn card(told: &Value) -> Option<GuestCard> {
    let mac = told["hardware-address"].as_str()?.to_ascii_lowercase();
    let name: String = told["name"].as_str()?.chars().filter(|letter| !letter.is_control()).take(MOST).collect();
    let (_, mac) = protocol::guest::card_at(&format!("home:{mac}")).filter(|(_, mac)| mac != "00:00:00:00:00:00")?;
    let addresses = told["ip-addresses"].as_array().into_iter().flatten().filter_map(address).take(MOST);
    Some(GuestCard { name, mac, addresses: addresses.collect() })
}

fn address(told: &Value) -> Option<String> {
    let address: IpAddr = told["ip-address"].as_str()?.parse().ok()?;
    let by_itself = match address {
        IpAddr::V4(four) => four.is_link_local(),
        IpAddr::V6(six) => six.is_unicast_link_local(),
    };
    (!by_itself).then_some(format!("{address}/{}", told["prefix"].as_u64()?))
}

/// Runs a program in the guest and waits for its end.
pub(crate) async fn run(
    agent: &dyn Ask,
    program: &str,
    arguments: &[String],
    patience: Duration,
) -> Result<Ran, Fault> {
    let machine = agent.machine();
    let system = agent.ask(json!({ "execute": "guest-get-osinfo" }), PATIENCE).await?;
    if system.is_ok_and(|system| system["id"] == "mswindows") {
        let remedy = "Windows keeps the addresses that it has; set others in it by hand, or with a script of its own";
        return Err(not_addressed(machine, "it is Windows, whose addresses are left alone").with_remedy(remedy));
    }
    let command =
        json!({ "execute": "guest-exec", "arguments": { "path": program, "arg": arguments, "capture-output": true } });
    let begun = agent.ask(command, PATIENCE).await?.map_err(|why| refused(machine, why))?;
    let pid =
        begun["pid"].as_i64().ok_or_else(|| not_addressed(machine, "its agent tells no number of the program"))?;
    let until = Instant::now() + patience;
    loop {
        let command = json!({ "execute": "guest-exec-status", "arguments": { "pid": pid } });
        let told = agent.ask(command, PATIENCE).await?.map_err(|why| refused(machine, why))?;
        if told["exited"] == true {
            let said = |name: &str| {
                let bytes = told[name].as_str().and_then(|data| STANDARD.decode(data).ok()).unwrap_or_default();
                String::from_utf8_lossy(&bytes).into_owned()
            };
            return Ok(Ran { code: told["exitcode"].as_i64(), said: said("out-data"), complained: said("err-data") });
        }
        if Instant::now() >= until {
            let why = format!("{program} did not end within {} s; it may be at work yet", patience.as_secs());
            return Err(not_addressed(machine, why));
        }
        tokio::time::sleep(LOOK_AGAIN).await;
    }
}

fn refused(machine: &str, why: String) -> Fault {
    if ["disabled", "not allowed", "has not been found"].iter().any(|words| why.contains(words)) {
        let message = format!("the guest of {machine} runs no program for us");
        return Fault::new(code::GUEST_RUNS_NOTHING, message, format!("its agent says: {why}"));
    }
    not_addressed(machine, format!("its agent says: {why}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_an_agent_tells_of_its_cards_is_read_and_nothing_else_of_it() {
        // As Debian 12's agent answers; the last two are what none would.
        let told = json!([
            { "name": "lo", "hardware-address": "00:00:00:00:00:00",
              "ip-addresses": [{ "ip-address-type": "ipv4", "ip-address": "127.0.0.1", "prefix": 8 }] },
            { "name": "eth0", "hardware-address": "52:54:00:AA:bb:cc", "statistics": {}, "ip-addresses": [
                { "ip-address-type": "ipv4", "ip-address": "10.1.0.5", "prefix": 24 },
                { "ip-address-type": "ipv6", "ip-address": "fe80::5054:ff:feaa:bbcc", "prefix": 64 }] },
            { "name": "eth1", "hardware-address": "$(reboot)", "ip-addresses": 7 },
            { "name": "eth2", "hardware-address": "52:54:00:aa:bb:cd", "ip-addresses": [{ "ip-address": "x", "prefix": 1 }] },
        ]);
        let cards = read(&told).cards;
        let card = |name: &str, mac: &str, addresses: &[&str]| GuestCard {
            name: name.into(),
            mac: mac.into(),
            addresses: addresses.iter().map(|address| (*address).into()).collect(),
        };
        assert_eq!(
            cards,
            [card("eth0", "52:54:00:aa:bb:cc", &["10.1.0.5/24"]), card("eth2", "52:54:00:aa:bb:cd", &[])]
        );
        assert!(read(&json!("none")).cards.is_empty());
    }

    #[test]
    fn an_agent_that_may_not_run_programs_is_told_from_one_that_cannot() {
        for words in [
            "The command guest-exec has been disabled for this instance",
            "Command guest-exec has been disabled: the command is not allowed",
            "The command guest-exec has not been found",
        ] {
            assert!(refused("m", words.into()).is(code::GUEST_RUNS_NOTHING), "{words}");
        }
        assert!(refused("m", "Failed to execute child process (No such file)".into()).is(code::GUEST_NOT_ADDRESSED));
    }
}
