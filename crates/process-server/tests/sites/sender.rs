//! A sender by hand: it speaks the session's words, and says in them whatever a test wants.

use bytes::Bytes;
use component::link::{Incoming, Link, LinkError, Outgoing};
use protocol::epoch::{Basis, DiskSize, EpochHeader, EpochTotals, Point, PointKind};
use protocol::frame::Frame;
use protocol::replication::Peer;
use protocol::session::Message;
use protocol::{Attempt, BLOCK, Fault, Lineage};

use super::{MASTER_TARGET, NAME, Sites};

/// A session with a master target.
pub struct Sender {
    incoming: Incoming,
    outgoing: Outgoing,
    sequence: u64,
    /// What was sent, as an honest sender counts it.
    pub totals: EpochTotals,
}

impl Sender {
    /// Says hello; the fault is the target's refusal.
    pub async fn dial(sites: &Sites, token: &str, generation: u64) -> Result<Sender, Fault> {
        let peer = Peer { name: MASTER_TARGET.into(), address: sites.address.clone() };
        let Link { incoming, outgoing, .. } = sites.dialler("by-hand").dial(&peer).await.unwrap();
        let mut sender = Sender { incoming, outgoing, sequence: 0, totals: EpochTotals::default() };
        let item = NAME.parse().unwrap();
        let hello = Message::Hello { item, token: token.into(), generation };
        match sender.ask(hello).await? {
            Message::Welcome { .. } => Ok(sender),
            other => panic!("{other:?} instead of a welcome"),
        }
    }

    /// Opens an epoch.
    pub async fn open(
        &mut self,
        lineage: Lineage,
        attempt: Attempt,
        base: Option<Attempt>,
        disks: Vec<DiskSize>,
    ) -> Result<(), Fault> {
        (self.sequence, self.totals) = (0, EpochTotals::default());
        let header = EpochHeader {
            lineage,
            attempt,
            base,
            basis: Basis::Tracked,
            cut_at_ms: attempt.number,
            disks,
            kind: PointKind::CrashConsistent,
            freeze: None,
            expected_bytes: 0,
        };
        match self.ask(Message::OpenEpoch { header }).await? {
            Message::EpochOpened { resume_after: 0, .. } => Ok(()),
            other => panic!("{other:?} instead of an opened epoch"),
        }
    }

    /// Sends one block full of `value`, under the next number.
    pub async fn block(&mut self, disk: u16, index: u64, value: u8) {
        self.sequence += 1;
        let bytes = Bytes::from(vec![value; BLOCK as usize]);
        let frame = Frame::Data { sequence: self.sequence, disk, offset: index * BLOCK, bytes };
        let checksum = self.outgoing.send(&frame).await.unwrap();
        self.totals.count(BLOCK, 0, checksum);
    }

    /// Leaves a number out, as if a frame had been lost on the way.
    pub fn lose_one(&mut self) {
        self.sequence += 1;
    }

    /// Asks for the point.
    pub async fn seal(&mut self, attempt: Attempt, totals: EpochTotals) -> Result<Point, Fault> {
        match self.ask(Message::Seal { attempt, totals }).await? {
            Message::Sealed { point, .. } => Ok(point),
            other => panic!("{other:?} instead of a point"),
        }
    }

    async fn ask(&mut self, message: Message) -> Result<Message, Fault> {
        self.outgoing.say(message).await.unwrap();
        loop {
            match self.incoming.message("an answer").await {
                Ok(Message::Received { .. }) => {}
                Ok(message) => return Ok(message),
                Err(LinkError::Refused(fault)) => return Err(fault),
                Err(error) => panic!("{error}: {:?}", std::error::Error::source(&error)),
            }
        }
    }
}
