//! The addresses of a guest.

use protocol::guest::{GuestNetwork, GuestTold, ItemNetwork};
use protocol::id::ItemId;

use super::table::facts;
use super::words;

/// One item's page.
pub fn page(item: &ItemId, network: &ItemNetwork) -> String {
    let given: Vec<String> = network.given.iter().map(ToString::to_string).collect();
    let learnt = |known: &GuestNetwork| {
        format!("{} (told {})", known.words(), words::instant(i64::try_from(known.at_ms).unwrap_or(i64::MAX)))
    };
    let rows = [
        ("given", if given.is_empty() { "nothing: it keeps what it has".into() } else { given.join("\n") }),
        ("had at home", network.at_home.as_ref().map_or("not known: no agent of it answered there".into(), learnt)),
        ("has now", network.now.as_ref().map_or("not told".into(), GuestNetwork::words)),
        ("configuration", if network.changed { "ours; its own is kept in it" } else { "its own" }.into()),
    ];
    format!("guest of {item}\n{}", facts(&rows))
}

/// What the guest said when it was given its addresses.
pub fn told(item: &ItemId, told: &GuestTold) -> String {
    if told.told.is_empty() { format!("nothing is given to {item}'s guest here") } else { told.told.join("\n") }
}
