//! A guest's addresses: what its cards have, and what they shall have at each place (R19).
//!
//! ```text
//!   at home       its own configuration, which nobody touches        learnt from its agent, to be compared with afterwards
//!   away          the addresses that its owner gave for away         none given: it keeps what it has
//!   in a test     those for a test
//!   home again    its own configuration, put back byte for byte      or those for home, where some were given
//! ```

use std::collections::BTreeSet;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Where a guest can be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Place {
    /// Where it was protected.
    Home,
    /// At the other site.
    Away,
    /// In a test failover, whatever the site.
    Test,
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Place::Home => "home",
            Place::Away => "away",
            Place::Test => "test",
        })
    }
}

/// What one card of a guest shall have at a place.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct CardAddresses {
    /// The place.
    pub place: Place,
    /// The card, by its address on the wire, in small letters (`52:54:00:12:34:56`).
    pub mac: String,
    /// Its addresses with the length of their networks (`10.2.0.5/24`).
    pub addresses: Vec<String>,
    /// The gateways for everything else, at most one of each family.
    #[serde(default)]
    pub gateways: Vec<String>,
    /// The name servers.
    #[serde(default)]
    pub dns: Vec<String>,
}

impl std::fmt::Display for CardAddresses {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}={}", self.place, self.mac, self.addresses.join(","))?;
        self.gateways.iter().try_for_each(|gateway| write!(f, ",gateway={gateway}"))?;
        self.dns.iter().try_for_each(|server| write!(f, ",dns={server}"))
    }
}

impl std::str::FromStr for CardAddresses {
    type Err = String;

    /// `PLACE:MAC=ADDRESS/LENGTH[,ADDRESS/LENGTH..][,gateway=ADDRESS][,dns=ADDRESS..]`
    fn from_str(text: &str) -> Result<CardAddresses, String> {
        let form = "write it like away:52:54:00:12:34:56=10.2.0.5/24,gateway=10.2.0.1,dns=10.2.0.53";
        let wrong = || format!("{text:?} are no addresses of a card at a place; {form}");
        let (card, words) = text.split_once('=').ok_or_else(wrong)?;
        let (place, mac) = card_at(card).ok_or_else(wrong)?;
        let mut given = CardAddresses { place, mac, addresses: vec![], gateways: vec![], dns: vec![] };
        for word in words.split(',') {
            match word.split_once('=') {
                Some(("gateway", gateway)) => given.gateways.push(gateway.into()),
                Some(("dns", server)) => given.dns.push(server.into()),
                Some(_) => return Err(wrong()),
                None => given.addresses.push(word.into()),
            }
        }
        given.checked()
    }
}

/// `away:52:54:00:12:34:56`: a place and a card.
pub fn card_at(text: &str) -> Option<(Place, String)> {
    let (place, mac) = text.split_once(':')?;
    let place = [Place::Home, Place::Away, Place::Test].into_iter().find(|known| known.to_string() == place)?;
    let mac = mac.to_ascii_lowercase();
    let byte = |byte: &str| byte.len() == 2 && byte.bytes().all(|digit| digit.is_ascii_hexdigit());
    (mac.split(':').count() == 6 && mac.split(':').all(byte)).then_some((place, mac))
}

/// How many of a kind a card can have: what is told to a guest is bounded.
const MOST: usize = 16;

impl CardAddresses {
    /// The same with every address as its family writes it, if each is one.
    ///
    /// # Errors
    /// What is none, in words.
    pub fn checked(self) -> Result<CardAddresses, String> {
        let plain = |text: &String| {
            let read: Result<IpAddr, _> = text.parse();
            read.map(|address| address.to_string()).map_err(|_| format!("{text:?} is no address"))
        };
        let prefixed = |text: &String| {
            let wrong = || format!("{text:?} is no address with the length of its network, like 10.2.0.5/24");
            let (address, length) = text.split_once('/').ok_or_else(wrong)?;
            let address: IpAddr = address.parse().map_err(|_| wrong())?;
            let most = if address.is_ipv4() { 32 } else { 128 };
            let length: u8 = length.parse().ok().filter(|length| (1..=most).contains(length)).ok_or_else(wrong)?;
            Ok::<_, String>(format!("{address}/{length}"))
        };
        let all = |texts: &[String]| texts.iter().map(plain).collect::<Result<Vec<_>, _>>();
        let addresses = self.addresses.iter().map(prefixed).collect::<Result<Vec<_>, _>>()?;
        let (gateways, dns) = (all(&self.gateways)?, all(&self.dns)?);
        let mac = card_at(&format!("{}:{}", self.place, self.mac));
        let (_, mac) = mac.ok_or_else(|| format!("{:?} is no address of a network card", self.mac))?;
        if addresses.is_empty() {
            return Err(format!("no address is given for {}:{mac}", self.place));
        }
        let families: BTreeSet<bool> = gateways.iter().map(|gateway| gateway.contains(':')).collect();
        if families.len() != gateways.len() {
            return Err(format!("{}:{mac} can have one gateway of each family", self.place));
        }
        let family = |text: &String| text.contains(':');
        if gateways.iter().any(|gateway| !addresses.iter().any(|address| family(address) == family(gateway))) {
            return Err(format!("{}:{mac} has a gateway of a family of which it has no address", self.place));
        }
        if [&addresses, &gateways, &dns].iter().any(|list| list.len() > MOST) {
            return Err(format!("{}:{mac} has more than {MOST} of a kind", self.place));
        }
        Ok(CardAddresses { place: self.place, mac, addresses, gateways, dns })
    }
}

/// What a guest is to be given.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GuestWish {
    /// These addresses, whatever its own configuration says, which is kept beside.
    Addresses(Vec<CardAddresses>),
    /// Its own configuration.
    Restore,
    /// Its description has no seed any more: it has read it.
    NoSeed,
}

/// What a guest reads when it starts, where no agent of it answers: network data for cloud-init.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Seed {
    /// Another one for each move: cloud-init goes by what it has not seen yet.
    pub instance: String,
    /// What its cards shall have.
    pub cards: Vec<CardAddresses>,
}

/// Which addresses a guest has, as its agent told.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct GuestNetwork {
    /// When, ms since 1970.
    pub at_ms: u64,
    /// Its cards, without those that are none (loopback).
    pub cards: Vec<GuestCard>,
}

/// A card as the guest has it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct GuestCard {
    /// What the guest calls it.
    pub name: String,
    /// Its address on the wire, in small letters.
    pub mac: String,
    /// Its addresses with the length of their networks; without those that every card has by itself (link-local).
    pub addresses: Vec<String>,
}

impl GuestNetwork {
    /// In an operator's words.
    pub fn words(&self) -> String {
        let card = |card: &GuestCard| format!("{} ({}): {}", card.name, card.mac, card.addresses.join(", "));
        let with: Vec<_> = self.cards.iter().filter(|card| !card.addresses.is_empty()).map(card).collect();
        if with.is_empty() { "no address".into() } else { with.join("; ") }
    }

    /// The addresses of one card.
    pub fn of(&self, mac: &str) -> BTreeSet<&str> {
        let mut cards = self.cards.iter().filter(|card| card.mac == mac);
        cards.next().map(|card| card.addresses.iter().map(String::as_str).collect()).unwrap_or_default()
    }
}

/// The addresses of an item's guest, as people see them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ItemNetwork {
    /// What was given for each place.
    pub given: Vec<CardAddresses>,
    /// What it had at home when it was last asked there; none where no agent answered.
    pub at_home: Option<GuestNetwork>,
    /// What it has now, where its agent answers.
    pub now: Option<GuestNetwork>,
    /// Whether its configuration is ours at the moment, and its own is kept beside.
    pub changed: bool,
}

/// Says which addresses an item's guest shall have: all of them, for all places.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct SetItemNetwork {
    /// From the next move on.
    pub given: Vec<CardAddresses>,
    /// Only tells what it would do.
    #[serde(default)]
    pub preview: bool,
    /// For the audit log.
    pub reason: Option<String>,
}

/// What a guest told when it was given its addresses.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct GuestTold {
    /// A line each.
    pub told: Vec<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_typed_for_a_card_is_read_and_written_the_same_way() {
        let read = |text: &str| text.parse::<CardAddresses>();
        let text = "away:52:54:00:aa:bb:cc=10.2.0.5/24,2001:db8::5/64,gateway=10.2.0.1,dns=10.2.0.53,dns=10.2.0.54";
        assert_eq!(read(text).unwrap().to_string(), text);
        assert_eq!(
            read("test:52:54:00:AA:BB:CC=2001:0db8::0005/64").unwrap().to_string(),
            "test:52:54:00:aa:bb:cc=2001:db8::5/64"
        );
        for wrong in [
            "away:52:54:00:aa:bb:cc",
            "away:52:54:00:aa:bb=10.2.0.5/24",
            "there:52:54:00:aa:bb:cc=10.2.0.5/24",
            "away:52:54:00:aa:bb:cc=10.2.0.5",
            "away:52:54:00:aa:bb:cc=10.2.0.5/33",
            "away:52:54:00:aa:bb:cc=10.2.0.5/24;reboot",
            "away:52:54:00:aa:bb:cc=10.2.0.5/24,gateway=$(reboot)",
            "away:52:54:00:aa:bb:cc=10.2.0.5/24,gateway=2001:db8::1",
            "away:52:54:00:aa:bb:cc=10.2.0.5/24,gateway=10.2.0.1,gateway=10.2.0.2",
            "away:52:54:00:aa:bb:cc=gateway=10.2.0.1",
        ] {
            assert!(read(wrong).is_err(), "{wrong}");
        }
    }
}
