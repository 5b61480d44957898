//! A machine's network cards.
//!
//! ```text
//!   card-n   virtio-net-pci, its address ── net-n ─┬─ `user`: behind the host's own address (QEMU's user networking)
//!                                                  ├─ any other name: that bridge of the host
//!                                                  └─ nothing: a hub with nobody else on it
//! ```
//! A card that is connected to nothing is there all the same: a guest that counts its cards, or names them by their place,
//! finds what it always found.

use protocol::machine::{Connection, MachineSpec, NetworkCard};

/// The network that every host has.
pub(crate) const USER: &str = "user";
/// The longest name of a bridge (`IFNAMSIZ` less its end).
const LONGEST_BRIDGE: usize = 15;

/// Why a machine cannot have its cards, if it cannot.
pub(crate) fn check(spec: &MachineSpec) -> Result<(), String> {
    for (place, card) in spec.cards.iter().enumerate() {
        if !is_address(&card.mac) {
            return Err(format!("{:?} is no address of a network card; one is 52:54:00:12:34:56", card.mac));
        }
        if spec.cards[..place].iter().any(|other| other.mac.eq_ignore_ascii_case(&card.mac)) {
            return Err(format!("there are two network cards {}", card.mac));
        }
        if let Connection::Network(name) = &card.connection
            && (name.is_empty() || name.len() > LONGEST_BRIDGE || !name.bytes().all(is_of_a_name))
        {
            return Err(format!("{name:?} is no network: {USER}, or the name of a bridge"));
        }
    }
    Ok(())
}

/// Six bytes that name one card, not a group of them.
fn is_address(mac: &str) -> bool {
    let bytes: Vec<&str> = mac.split(':').collect();
    let read = |byte: &&str| if byte.len() == 2 { u8::from_str_radix(byte, 16).ok() } else { None };
    bytes.len() == 6 && bytes.iter().all(|byte| read(byte).is_some()) && read(&bytes[0]).is_some_and(|it| it & 1 == 0)
}

fn is_of_a_name(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-')
}

/// What QEMU is told of the cards: flags and their values.
pub(crate) fn arguments(spec: &MachineSpec) -> Vec<(&'static str, String)> {
    spec.cards.iter().enumerate().flat_map(|(place, card)| [netdev(place, card), device(place, card)]).collect()
}

fn netdev(place: usize, card: &NetworkCard) -> (&'static str, String) {
    let words = match &card.connection {
        Connection::Nothing => format!("hubport,id=net-{place},hubid={place}"),
        Connection::Network(name) if name == USER => format!("user,id=net-{place}"),
        Connection::Network(name) => format!("bridge,id=net-{place},br={name}"),
    };
    ("-netdev", words)
}

fn device(place: usize, card: &NetworkCard) -> (&'static str, String) {
    // No boot from the network: its program may not be installed, and the disks say what is started.
    ("-device", format!("virtio-net-pci,id=card-{place},netdev=net-{place},mac={},romfile=", card.mac))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(cards: serde_json::Value) -> MachineSpec {
        let spec = serde_json::json!({
            "name": "m", "memory_mib": 96, "vcpus": 1, "boot": "firmware", "disks": [], "cards": cards
        });
        serde_json::from_value(spec).unwrap()
    }

    #[test]
    fn a_test_machine_has_every_card_and_no_way_out() {
        let cards = serde_json::json!([
            { "mac": "52:54:00:00:00:01", "connection": { "network": "user" } },
            { "mac": "52:54:00:00:00:02", "connection": { "network": "br-lan" } },
        ]);
        let words = |spec: &MachineSpec| {
            let words: Vec<String> = arguments(spec).into_iter().map(|(_, value)| value).collect();
            words.join(" ")
        };
        let real = spec(cards);
        check(&real).unwrap();
        assert!(words(&real).contains("user,id=net-0") && words(&real).contains("bridge,id=net-1,br=br-lan"));
        let test = words(&real.isolated("m-test", None));
        assert!(!test.contains("user") && !test.contains("bridge") && !test.contains("br-lan"), "{test}");
        assert!(test.contains("hubport,id=net-0,hubid=0") && test.contains("hubport,id=net-1,hubid=1"), "{test}");
        for mac in ["52:54:00:00:00:01", "52:54:00:00:00:02"] {
            assert!(test.contains(mac), "{mac} in {test}");
        }
    }

    #[test]
    fn what_would_mean_something_else_to_qemu_is_refused() {
        for mac in ["", "52:54:00:00:00", "52:54:00:00:00:zz", "53:54:00:00:00:01", "52:54:00:00:00:01,romfile=/x"] {
            assert!(check(&spec(serde_json::json!([{ "mac": mac, "connection": "nothing" }]))).is_err(), "{mac:?}");
        }
        let twice = serde_json::json!({ "mac": "52:54:00:00:00:0a", "connection": "nothing" });
        let other = serde_json::json!({ "mac": "52:54:00:00:00:0A", "connection": "nothing" });
        assert!(check(&spec(serde_json::json!([twice, other]))).is_err());
        for name in ["", "a,b", "lan/../x", "a-name-that-is-too-long"] {
            let card = serde_json::json!({ "mac": "52:54:00:00:00:01", "connection": { "network": name } });
            assert!(check(&spec(serde_json::json!([card]))).is_err(), "{name:?}");
        }
    }
}
