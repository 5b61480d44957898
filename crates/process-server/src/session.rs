//! A session with a master target: it is found, told who sends what, and tells where its copy stands.

use std::ops::{Deref, DerefMut};
use std::sync::Arc;

use component::cap::Throttle;
use component::link::LinkError;
use protocol::Fault;
use protocol::epoch::DiskSize;
use protocol::leaf::Recipe;
use protocol::order::Replication;
use protocol::session::Message;

use crate::choice::Target;
use crate::reach::Reach;

/// A session that was welcomed.
pub(crate) struct Session {
    session: transfer::Session,
    pub(crate) target: Target,
    pub(crate) disks: Vec<DiskSize>,
    pub(crate) leaves: Recipe,
}

impl Deref for Session {
    type Target = transfer::Session;
    fn deref(&self) -> &transfer::Session {
        &self.session
    }
}

impl DerefMut for Session {
    fn deref_mut(&mut self) -> &mut transfer::Session {
        &mut self.session
    }
}

impl Session {
    /// Comes by a link to the target and introduces itself; what it sends keeps to `throttle`.
    pub(crate) async fn open(reach: &Reach, wish: &Replication, throttle: Arc<Throttle>) -> Result<Session, LinkError> {
        let link = reach.link(&wish.item, &wish.target).await?;
        link.outgoing.keep_to(throttle);
        let mut session = transfer::Session::over(link);
        let hello = Message::Hello { item: wish.item.clone(), token: wish.token.clone(), generation: wish.generation };
        match session.ask(hello, "welcome").await? {
            Message::Welcome { position, newest, disks, has_content, leaves } => {
                Ok(Session { session, target: Target { position, newest, has_content }, disks, leaves })
            }
            other => Err(session.other_than(&other, "welcome")),
        }
    }

    /// Asks the target to hash by `recipe`; `leaves` then is how it does.
    pub(crate) async fn rekey(&mut self, recipe: Recipe) -> Result<(), LinkError> {
        if self.leaves != recipe {
            match self.session.ask(Message::Rekey { leaves: recipe }, "rekeyed").await? {
                Message::Rekeyed { leaves } => self.leaves = leaves,
                other => return Err(self.session.other_than(&other, "rekeyed")),
            }
        }
        Ok(())
    }
}

/// A refusal or failure of a session as people see it, and whether the target itself said it.
pub(crate) fn said_by_target(error: &LinkError) -> Option<&Fault> {
    match error {
        LinkError::Refused(fault) => Some(fault),
        _ => None,
    }
}
