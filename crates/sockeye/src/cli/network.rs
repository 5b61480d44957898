//! The options of `network …`: the addresses of a protected machine's guest.

use clap::Subcommand;
use protocol::guest::{CardAddresses, Place};
use protocol::id::ItemId;

use super::Sure;
use super::value::card_at;

#[derive(Debug, Subcommand)]
pub enum NetworkVerb {
    /// Which addresses an item's guest was given for each place, which it had at home, and which it has now
    Show {
        /// The item
        item: ItemId,
    },
    /// Give cards of the guest addresses at a place, from the next move on, in the place of those given before
    #[command(after_help = "\
PLACE is away (the other site), test (a test failover) or home. Where nothing is given for home, the guest has its own
configuration there: it is put back as it was. An example:
  sockeye network add web01 away:52:54:00:12:34:56=10.2.0.5/24,gateway=10.2.0.1,dns=10.2.0.53")]
    Add {
        /// The item
        item: ItemId,
        /// What a card shall have at a place
        #[arg(required = true, value_name = "PLACE:MAC=ADDRESS/LENGTH[,gateway=G][,dns=D]")]
        addresses: Vec<CardAddresses>,
        #[command(flatten)]
        sure: Sure,
    },
    /// Give them no longer
    Remove {
        /// The item
        item: ItemId,
        /// The cards, each at a place
        #[arg(required = true, value_name = "PLACE:MAC", value_parser = card_at)]
        cards: Vec<(Place, String)>,
        #[command(flatten)]
        sure: Sure,
    },
    /// Have the guest, where it runs, set the addresses that it is to have there, now
    Apply {
        /// The item
        item: ItemId,
    },
}
