//! The options of `token …`: what lets hosts join, and what they are known by afterwards.

use std::time::Duration;

use clap::{Args, Subcommand};
use protocol::id::SiteName;

use super::history::Sure;
use super::value::duration;

#[derive(Debug, Subcommand)]
pub enum TokenVerb {
    /// Join tokens, and the credentials of the hosts that joined
    List,
    /// Make a token that lets one host join, once
    #[command(after_help = "\
The token is shown this once. On the host that shall join:
  sockeye join URL --token TOKEN --site SITE")]
    Add(AddToken),
    /// Take a join token back, or put a host out: its components can register and report nothing any more
    #[command(after_help = "\
What a host's movers have under way with other movers goes on until they part: their certificates are good for some weeks. End
them on the host, too, or close its way to the other sites.")]
    Remove {
        /// Its number in `sockeye token list`
        id: i64,
        #[command(flatten)]
        sure: Sure,
    },
}

#[derive(Debug, Args)]
pub struct AddToken {
    /// Good for a host of this site only
    #[arg(long, value_name = "S")]
    pub site: Option<SiteName>,
    /// For how long it can be used
    #[arg(long, value_name = "TIME", default_value = "24h", value_parser = duration)]
    pub expires: Duration,
    #[command(flatten)]
    pub sure: Sure,
}
