//! How a command ends: the exit codes of the contract, and the troubles that lead to them.
//!
//! ```text
//!   0 done, or already so · 1 failed · 2 usage · 3 refused, nothing changed · 4 waiting for a person · 5 not reached
//! ```

use std::process::ExitCode;

use protocol::Fault;
use protocol::fault::code;

use crate::fault;

/// How a command ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// Done, or already so.
    Done,
    /// A job failed, or `--check` found an item that is not healthy.
    Failed,
    /// The command line was not understood, or nobody was there to confirm.
    Usage,
    /// A check or the item's stage refused it; nothing changed.
    Refused,
    /// A person must act.
    Waiting,
    /// The server was not reached, or the user is not signed in.
    Unreached,
    /// Ctrl-C while a job was followed; the job goes on. The shell's own number for it.
    Interrupted,
}

impl Ending {
    /// The number that the contract gives it.
    pub fn code(self) -> ExitCode {
        ExitCode::from(match self {
            Ending::Done => 0,
            Ending::Failed => 1,
            Ending::Usage => 2,
            Ending::Refused => 3,
            Ending::Waiting => 4,
            Ending::Unreached => 5,
            Ending::Interrupted => 130,
        })
    }
}

/// Why a command did not get to its end.
#[derive(Debug, Clone)]
pub struct Trouble {
    /// The exit code.
    pub ending: Ending,
    /// What is printed.
    pub fault: Fault,
}

impl Trouble {
    /// Ends the command in this way.
    pub fn new(ending: Ending, fault: Fault) -> Trouble {
        Trouble { ending, fault }
    }

    /// What the command line asked for cannot be.
    pub fn usage(message: impl Into<String>, cause: impl Into<String>) -> Trouble {
        Trouble::new(Ending::Usage, Fault::new(fault::USAGE, message, cause))
    }

    /// Something on this host failed.
    pub fn local(message: impl Into<String>, cause: impl ToString) -> Trouble {
        Trouble::new(Ending::Failed, Fault::new(fault::LOCAL, message, cause.to_string()))
    }

    /// A refusal or failure that the server gave with this HTTP status.
    pub fn from_server(status: u16, fault: Fault) -> Trouble {
        let ending = match status {
            401 | 403 => Ending::Unreached,
            _ if fault.is(code::SIGN_IN) => Ending::Unreached,
            _ if fault.is(code::BAD_REQUEST) => Ending::Usage,
            400..=499 => Ending::Refused,
            _ => Ending::Failed,
        };
        Trouble::new(ending, fault)
    }
}

/// A fault that does not come from the server ends the command as failed.
impl From<Fault> for Trouble {
    fn from(fault: Fault) -> Trouble {
        Trouble::new(Ending::Failed, fault)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_server_says_leads_to_the_exit_code_of_the_contract() {
        let ending = |status, entry| Trouble::from_server(status, Fault::new(entry, "", "")).ending;
        assert_eq!(ending(409, code::STAGE_REFUSES), Ending::Refused);
        assert_eq!(ending(404, code::UNKNOWN_ITEM), Ending::Refused);
        assert_eq!(ending(401, code::SIGN_IN), Ending::Unreached);
        assert_eq!(ending(400, code::BAD_REQUEST), Ending::Usage);
        assert_eq!(ending(500, code::INTERNAL), Ending::Failed);
    }
}
