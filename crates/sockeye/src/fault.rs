//! The faults that only the command line can have, in the form of all others, so that `explain` knows them too.

use protocol::fault::Entry;

/// The control server was not reached.
pub const UNREACHED: &Entry = &Entry {
    code: "CLI-001",
    title: "the control server was not reached",
    remedy: "check that it runs and that the address is right (--server, SOCKEYE_SERVER, sockeye login URL); repeating is safe",
};
/// What answered is no control server of this version.
pub const NOT_UNDERSTOOD: &Entry = &Entry {
    code: "CLI-002",
    title: "the server's answer was not understood",
    remedy: "check that the address is that of a Sockeye control server, and that both have the same version",
};
/// There was nobody to ask.
pub const NOT_CONFIRMED: &Entry = &Entry {
    code: "CLI-003",
    title: "the operation was not confirmed",
    remedy: "look at what would be done (--dry-run), then repeat with --yes",
};
/// The profiles cannot be used.
pub const PROFILE: &Entry =
    &Entry { code: "CLI-004", title: "the profile cannot be used", remedy: "sign in again: sockeye login URL" };
/// Something on this host failed.
pub const LOCAL: &Entry = &Entry {
    code: "CLI-005",
    title: "something on this host failed",
    remedy: "correct what the message names, then repeat",
};
/// The command line asked for something that does not exist.
pub const USAGE: &Entry =
    &Entry { code: "CLI-006", title: "the command cannot be understood", remedy: "see: sockeye --help" };

/// This host cannot be made what is wanted.
pub const HOST_UNFIT: &Entry = &Entry {
    code: "CLI-007",
    title: "this host cannot be set up as wanted; nothing was changed",
    remedy: "correct what the message names, then repeat",
};
/// This host is something else already.
pub const HOST_DIFFERS: &Entry = &Entry {
    code: "CLI-008",
    title: "this host is set up differently already; nothing was changed",
    remedy: "repeat the command as it was given then; to change the host, stop its roles, change or remove the file that the message names, and repeat",
};

/// Every code of this room.
pub const CATALOGUE: &[&Entry] =
    &[UNREACHED, NOT_UNDERSTOOD, NOT_CONFIRMED, PROFILE, LOCAL, USAGE, HOST_UNFIT, HOST_DIFFERS];

/// Explains a code, whichever room gives it (upper or lower case).
pub fn explain(code: &str) -> Option<&'static Entry> {
    protocol::fault::explain(code)
        .or_else(|| CATALOGUE.iter().copied().find(|entry| entry.code.eq_ignore_ascii_case(code)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_code_is_given_twice() {
        for entry in CATALOGUE {
            assert!(protocol::fault::explain(entry.code).is_none());
            assert_eq!(CATALOGUE.iter().filter(|other| other.code == entry.code).count(), 1);
            assert_eq!(explain(&entry.code.to_lowercase()).unwrap().title, entry.title);
        }
    }
}
