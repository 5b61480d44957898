//! The end of a copy with the target, where it is that end that dials: the source is on another host.

use component::link::{Link, LinkError};
use protocol::Fault;
use protocol::fault::code;
use protocol::session::Message;
use tokio::time::Instant;

use super::receive::{Receiving, Taken};
use super::send::{Copied, Failure, PATIENCE, PAUSE, Wish, half_written};

/// Takes a copy from whoever sends it at the other end of the links that `dial` makes: again, when one breaks.
///
/// # Errors
/// The target cannot be used, the sender refuses, or nobody is reached: for a minute, once the copy has begun.
pub async fn fetch(
    receiving: &mut Receiving,
    dial: impl AsyncFn() -> Result<Link, LinkError>,
    wish: Wish,
) -> Result<Copied, Failure> {
    let (mut broken_since, mut taken) = (None, 0);
    receiving.is_only_asked(wish.dry_run);
    loop {
        let fault = match open(&dial, wish).await {
            Ok(link) => match receiving.take(link).await {
                Ok(how) => match (receiving.fetched(), how) {
                    (Some(copied), _) => return Ok(copied),
                    (None, Taken::Whole) => {
                        let cause = "it left before it said so, or before both were compared";
                        return Err(Failure::Failed(gone(
                            "the copy is whole, but not its sender's word for it",
                            cause,
                        )));
                    }
                    (None, Taken::Left) => gone("the sender left", "the connection ended in the middle"),
                },
                Err(fault) if fault.is(code::LINK) => fault,
                Err(fault) => return Err(failed(receiving, fault)),
            },
            Err(error @ LinkError::Refused(_)) => return Err(failed(receiving, error.fault())),
            Err(error) if receiving.taken().is_none() => return Err(Failure::Unreached(error.fault())),
            Err(error) => error.fault(),
        };
        if receiving.taken() > Some(taken) {
            (broken_since, taken) = (None, receiving.taken().unwrap_or_default());
        }
        let since = *broken_since.get_or_insert_with(Instant::now);
        if since.elapsed() >= PATIENCE {
            return Err(failed(receiving, fault));
        }
        tokio::time::sleep(PAUSE).await;
    }
}

async fn open(dial: &impl AsyncFn() -> Result<Link, LinkError>, wish: Wish) -> Result<Link, LinkError> {
    let Wish { sync, verify, dry_run, leaf_bytes } = wish;
    let mut link = dial().await?;
    link.outgoing.say(Message::Fetch { sync, verify, dry_run, leaf_bytes }).await?;
    Ok(link)
}

fn failed(receiving: &Receiving, fault: Fault) -> Failure {
    match receiving.is_half_written() {
        true => Failure::Failed(half_written(fault)),
        false if fault.is(code::COPY_DIFFERS) => Failure::Failed(fault),
        false => Failure::Refused(fault),
    }
}

fn gone(message: &str, cause: &str) -> Fault {
    Fault::new(code::LINK, message, cause)
}
