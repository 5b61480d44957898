//! Faults: what went wrong, why, and what to do now, with a code that stays the same for ever.
//!
//! Every refusal and failure that reaches a person is a [`Fault`]. Rooms keep small typed errors of their own and turn
//! them into a fault at their door. The [`CATALOGUE`] is the one list of codes: `sockeye explain CODE`, the generated
//! `docs/fault-codes.md` and the REST documentation come from it, and [`Fault::new`] takes its remedy from there, so a
//! code without an explanation cannot exist.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// A refusal or failure in the form in which people see it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema, thiserror::Error)]
#[error("{code}: {message}")]
pub struct Fault {
    /// Stable code, e.g. `RPL-014`.
    pub code: String,
    /// What happened, to what.
    pub message: String,
    /// Why, with the facts.
    pub cause: String,
    /// What to do now.
    pub remedy: String,
}

/// What is always true about a code.
#[derive(Debug)]
pub struct Entry {
    /// The code.
    pub code: &'static str,
    /// When it is given, in one sentence.
    pub title: &'static str,
    /// What to do about it.
    pub remedy: &'static str,
}

macro_rules! catalogue {
    ($($name:ident = $code:literal, $title:literal, $remedy:literal;)*) => {
        /// The codes by name, for the rooms that give them.
        pub mod code {
            $(#[doc = $title] pub const $name: &super::Entry = &super::Entry { code: $code, title: $title, remedy: $remedy };)*
        }
        /// Every code that exists, in order.
        pub const CATALOGUE: &[&Entry] = &[$(code::$name),*];
    };
}

catalogue! {
    // CTL: decisions
    UNKNOWN_ITEM = "CTL-001", "there is no item of that name", "list the items: sockeye item list";
    STAGE_REFUSES = "CTL-002", "the item's stage does not allow the operation", "see what is allowed: sockeye explain ITEM";
    BUSY = "CTL-003", "another job is at work on the item", "wait for it or cancel it: sockeye job list";
    UNKNOWN_JOB = "CTL-004", "there is no job of that number", "list the jobs: sockeye job list";
    BAD_REQUEST = "CTL-005", "the request cannot be understood", "correct it as the message says";
    NO_COMPONENT = "CTL-006", "a site has no component of the kind that is needed, or it is not connected", "start it, then look: sockeye component list";
    UNKNOWN_VM = "CTL-007", "the site knows no machine of that name", "list what the site has: sockeye vm list";
    ALREADY_PROTECTED = "CTL-008", "the machine is an item already", "look at it: sockeye status ITEM";
    UNKNOWN_POINT = "CTL-009", "there is no such recovery point", "list them: sockeye points ITEM";
    NOT_CANCELLABLE = "CTL-010", "there is nothing to be cancelled any more", "fail over again if the machine is at the wrong site";
    UNKNOWN_SITE = "CTL-011", "there is no site of that name", "list the sites: sockeye component list";
    ORDER_TIMED_OUT = "CTL-012", "a component did not finish its work in time, or was lost", "look at the component: sockeye component list; then: sockeye job retry JOB";
    INTERNAL = "CTL-013", "the control server failed", "look at its log; the operation can be repeated";
    SIGN_IN = "CTL-014", "no valid token came with the request", "sign in: sockeye login URL, or set SOCKEYE_TOKEN";
    MACHINE_RUNS_AT_HOME = "CTL-015", "the machine still runs at the site it is to be replicated to (R26)", "let Sockeye shut it down: sockeye reprotect ITEM --shut-down; its unreplicated writes are kept as a recovery point";
    CANCELLED = "CTL-016", "the job was cancelled", "nothing is to be done; repeat the operation when it is wanted";
    STALE_GENERATION = "CTL-017", "the sender belongs to a generation that is no longer authorised to run the item", "nothing is to be done: its machine is fenced as soon as its site is in contact";
    WORLD_CHANGED = "CTL-018", "what the operation was planned on has changed", "ask for the plan again and look at it";
    TEST_PENDING = "CTL-019", "a test of the item is under way", "end it: sockeye cleanup ITEM";
    TEST_MACHINE = "CTL-020", "the machine is a test of another item", "protect the machine itself, not a test of it";
    UNKNOWN_POLICY = "CTL-021", "there is no policy of that name", "list them: sockeye policy list";
    POLICY_IN_USE = "CTL-022", "the policy is in use, or is the one that is always there", "give its items another one first: sockeye policy apply NAME ITEM";
    POLICY_EXISTS = "CTL-023", "there is another policy of that name", "choose another name, or change it for all its items with --replace";
    JOIN_REFUSED = "CTL-024", "the join token does not let this host join", "have another one made where the control server is: sockeye token add, and join with that";
    HOST_REFUSED = "CTL-025", "a component does not belong to the host that wants to register it", "see whose it is: sockeye token list; when that host is gone, remove its credential: sockeye token remove ID";
    HOST_REMOVED = "CTL-026", "the host's credential was removed", "join again with a new token: sockeye token add";
    UNKNOWN_TOKEN = "CTL-027", "there is no token of that number", "list them: sockeye token list";
    // MOV: movement between sites
    LINK = "MOV-001", "the connection between the movers failed", "none needed: it is repeated by itself; if it stays, see whether both sides are connected (sockeye component list) and whether a firewall closes the master target's port";
    BASE_MISMATCH = "MOV-002", "an epoch does not build on the newest point of the replica", "none needed: the sender compares and repeats";
    NOT_AUTHORISED = "MOV-003", "a mover session came without the secret that control gave out", "none needed if it stops; otherwise look for an old process server that still runs";
    TOTALS = "MOV-004", "an epoch did not arrive as it was sent", "none needed: it is repeated by itself";
    PROTOCOL = "MOV-005", "the other mover broke the protocol", "bring both components to the same version";
    TRACKED_REFUSED = "MOV-006", "the changes since the common point are not known, so nothing can be sent as tracked", "use --sync compare (or leave --sync away: compare is then chosen by itself)";
    PEER = "MOV-007", "one of two movers did not believe the other to be who it says", "both belong to the same control server? See both in: sockeye component list, and that the clocks of the two hosts agree within a day; a restart of a component has it certified anew";
    NO_NETWORK = "CTL-030", "a network that the machine is to be connected with is not at the site", "make one of that name there, or say which takes its place: sockeye protect VM --network A=B";
    NO_DATASTORE = "CTL-031", "the site has no place for the machine's disks (R14)", "choose another with --datastore, or make room; see: sockeye site show SITE";
    NO_ORIGINAL = "CTL-032", "the original machine is not at home any more (H13)", "let it be created there: sockeye failback ITEM --create-vm; its disks are copied whole";
    BAD_ADDRESSES = "CTL-033", "addresses were given that the machine's guest cannot have", "give them as PLACE:MAC=ADDRESS/LENGTH[,gateway=ADDRESS][,dns=ADDRESS]; the machine's cards: sockeye vm list";
    NO_ADDRESSES_HOME = "CTL-034", "a guest would be given addresses away, and nobody could give it those of home back", "install qemu-guest-agent in the guest and start it, or give home's addresses as well: --address home:MAC=ADDRESS/LENGTH";
    ADDRESSES_DIFFER = "CTL-035", "the guest has not got the addresses that it is to have", "look at it: sockeye network show ITEM; when its network is in order: sockeye network apply ITEM";
    NETWORK_OF_PRODUCTION = "CTL-036", "the network of a test is one of production", "name a network that only tests use, or leave --network away: the test is then connected to nothing";
    NO_ADDRESS = "MOV-008", "two movers only dial out, so that neither can be dialled", "let one of the two be reached: start that site's master target without --outbound-only, or the other site's process server with --listen";
    // RPL: replicas
    REPLICA_ABSENT = "RPL-001", "the master target keeps no replica of the item", "protect the item again";
    REPLICA_EXISTS = "RPL-002", "the master target keeps a replica of that name already", "unprotect the old item first, or choose another name";
    NO_SPACE = "RPL-003", "the replica or its retention volume is full", "free space or enlarge the volume; replication goes on by itself. Where a failback cannot get the space: cancel it, then: sockeye failback ITEM --no-way-back";
    JOURNAL_DAMAGED = "RPL-004", "the journal of a replica is damaged", "check the retention volume's health, then copy afresh: sockeye unprotect ITEM --delete, and protect it again; its points are lost";
    REPLICA_IO = "RPL-005", "a replica disk or its journal could not be read or written", "check the health of the volume and of the hypervisor's disk, then: sockeye job retry JOB";
    REPLICA_CLOSED = "RPL-006", "the replica takes no epochs: its machine was failed over", "none needed; reprotect when the machine shall be replicated again";
    POINT_GONE = "RPL-007", "the recovery point is no longer kept", "choose one of: sockeye points ITEM";
    DISK_MISMATCH = "RPL-008", "the disks of source and replica are not the same", "look at both machines' disks; if the machine's were changed: sockeye unprotect ITEM --delete, and protect it again";
    REPLICA_BUSY = "RPL-009", "the replica is in use", "wait for the running operation, or end it";
    DAMAGED = "RPL-010", "the disks are damaged: half written, or overwritten without a way back; they must not be started", "run it again, it repairs them: sockeye failback ITEM, or sockeye reprotect ITEM";
    NOT_FOLDED = "RPL-011", "the machine cannot be folded into disks of its own", "let it run on its overlay; a failback to where its disks are makes it possible";
    REPLICA_DAMAGED = "RPL-012", "the replica does not hold what was written to it", "look at the medium of the replica and of its retention volume; then copy afresh while the machine's own side is whole: sockeye unprotect ITEM --delete, and protect it again";
    RETENTION_UNFIT = "RPL-014", "the retention volume is not fit to keep recovery points (R9)", "start the master target with --retention on another volume";
    // PLT: platforms
    HYPERVISOR = "PLT-001", "the hypervisor refused or failed", "look at the hypervisor's own log; then repeat";
    MACHINE_ABSENT = "PLT-002", "the hypervisor has no such machine", "list what it has: sockeye vm list";
    MACHINE_EXISTS = "PLT-003", "the hypervisor has another machine of that name", "rename or remove it, then repeat";
    GUEST_IGNORES_SHUTDOWN = "PLT-004", "the guest did not shut down in time", "shut it down by hand, or repeat with --then power-off";
    SCRATCH_FULL = "PLT-005", "the guest wrote more during an open cut than the scratch holds", "none needed: the cut was given up, nothing is lost; enlarge the scratch if it happens often";
    CAPTURE_LOST = "PLT-006", "an open cut can no longer be read", "none needed: its changes were kept and go with the next epoch";
    MACHINE_RUNNING = "PLT-007", "the machine is running", "shut it down first";
    MACHINE_FENCED = "PLT-008", "the machine may not start here: another site is authorised to run it", "fail over or fail back to this site";
    DISK_IN_USE = "PLT-009", "another program has the disk open", "end that program, then repeat";
    DISK_EXISTS = "PLT-017", "there is a file where a disk is to be made", "move it away, or choose another datastore";
    CAPTURED = "PLT-010", "the machine's disks are being captured", "end its replication first, then repeat";
    NO_GUEST_AGENT = "PLT-015", "no agent of the guest answers", "install qemu-guest-agent in the guest, give the machine its channel (org.qemu.guest_agent.0) and start it anew; without it: sockeye point add ITEM";
    GUEST_NOT_FROZEN = "PLT-016", "the guest's agent did not freeze its file systems", "look at the agent's log and at the freeze hook in the guest; then repeat";
    GUEST_RUNS_NOTHING = "PLT-018", "the guest's agent runs no programs, or lets us see none", "let it run them (guest-exec and guest-exec-status must not be among the blocked commands of /etc/qemu/qemu-ga.conf or of its service), restart it, then: sockeye network apply ITEM";
    GUEST_NOT_ADDRESSED = "PLT-019", "the guest did not take the addresses that it was to have", "look at the cause; its own configuration is in /var/lib/sockeye-guest/kept in the guest; then: sockeye network apply ITEM";
    AGENT_LATE = "PLT-020", "the guest's agent did not answer in time after the start", "see that the guest has started and runs its agent, then: sockeye network apply ITEM";
    // CPY: copying a disk that is no item's
    COPY_SOURCE = "CPY-001", "the source of a copy cannot be used", "look at its path or address; end the program that writes it, or copy from a snapshot or a view";
    COPY_TARGET = "CPY-002", "the target of a copy cannot be used", "look at its path or address, its size and its free space; end the program that uses it; then run the same command again";
    COPY_DIFFERS = "CPY-003", "a copy is not what its source is", "see that nobody writes either disk, and the medium's health; then run the same command again with --sync compare --verify";
    COPY_BROKEN_OFF = "CPY-004", "a copy broke off in the middle: its target is half written", "look at the target's free space and its medium; then run the same command again: it goes on, and what arrived does not travel again";
}

impl Fault {
    /// A fault of `entry`'s code: what happened to what, and why. The remedy is the catalogue's.
    pub fn new(entry: &Entry, message: impl Into<String>, cause: impl Into<String>) -> Fault {
        Fault { code: entry.code.into(), message: message.into(), cause: cause.into(), remedy: entry.remedy.into() }
    }

    /// The same fault with a remedy that fits this case better than the catalogue's.
    #[must_use]
    pub fn with_remedy(mut self, remedy: impl Into<String>) -> Fault {
        self.remedy = remedy.into();
        self
    }

    /// Whether the fault has this code.
    pub fn is(&self, entry: &Entry) -> bool {
        self.code == entry.code
    }
}

/// Explains a code, if it exists (upper or lower case).
pub fn explain(code: &str) -> Option<&'static Entry> {
    CATALOGUE.iter().copied().find(|entry| entry.code.eq_ignore_ascii_case(code))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_unique_well_formed_and_explained() {
        let mut seen = std::collections::BTreeSet::new();
        for entry in CATALOGUE {
            let (room, number) = entry.code.split_once('-').unwrap();
            assert!(["CTL", "MOV", "RPL", "PLT", "CPY"].contains(&room) && number.len() == 3, "{}", entry.code);
            assert!(seen.insert(entry.code), "{} is given twice", entry.code);
            assert!(!entry.title.is_empty() && !entry.remedy.is_empty());
            assert_eq!(explain(&entry.code.to_lowercase()).unwrap().code, entry.code);
        }
    }
}
