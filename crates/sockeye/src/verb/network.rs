//! `network …`: the addresses of a protected machine's guest. Done at once, without a job.

use protocol::guest::{CardAddresses, SetItemNetwork};
use protocol::id::ItemId;

use super::Desk;
use super::history::agreed;
use crate::cli::{NetworkVerb, Sure};
use crate::ending::{Ending, Trouble};
use crate::show::network as show;

/// `network show | add | remove | apply`.
///
/// # Errors
/// It is refused or not confirmed, or the server was not reached.
pub async fn run(desk: &Desk, verb: NetworkVerb) -> Result<Ending, Trouble> {
    match verb {
        NetworkVerb::Show { item } => {
            let network = desk.client.network(&item).await?;
            desk.screen.result(&network.document, &show::page(&item, &network.read));
        }
        NetworkVerb::Add { item, addresses, sure } => {
            let mut given = desk.client.network(&item).await?.read.given;
            given.retain(|old| !addresses.iter().any(|new| (new.place, &new.mac) == (old.place, &old.mac)));
            given.extend(addresses);
            set(desk, &item, given, &sure).await?;
        }
        NetworkVerb::Remove { item, cards, sure } => {
            let mut given = desk.client.network(&item).await?.read.given;
            given.retain(|old| !cards.iter().any(|(place, mac)| (*place, mac) == (old.place, &old.mac)));
            set(desk, &item, given, &sure).await?;
        }
        NetworkVerb::Apply { item } => {
            let told = desk.client.apply_network(&item).await?;
            desk.screen.result(&told.document, &show::told(&item, &told.read));
        }
    }
    Ok(Ending::Done)
}

async fn set(desk: &Desk, item: &ItemId, given: Vec<CardAddresses>, sure: &Sure) -> Result<(), Trouble> {
    let wanted = |preview| SetItemNetwork { given: given.clone(), preview, reason: sure.reason.clone() };
    let shown = desk.client.set_network(item, &wanted(true)).await?;
    desk.screen.say(&show::page(item, &shown.read));
    if agreed(desk, "From the next move on?", sure, &shown.document).await? {
        let done = desk.client.set_network(item, &wanted(false)).await?;
        desk.screen.result(&done.document, &format!("{item}'s guest has these from the next move on"));
    }
    Ok(())
}
