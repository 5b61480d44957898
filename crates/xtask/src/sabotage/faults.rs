//! The faults that can be built in, and the tests that must catch each. `docs/sabotage.md` has the same list in words.

/// One fault: where the code asks for `name`, it does what `what` says.
pub(crate) struct Fault {
    pub name: &'static str,
    pub what: &'static str,
    /// Every one of them must fail.
    pub catchers: &'static [Catcher],
}

/// A test, and what it says when it catches the fault.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Catcher {
    pub package: &'static str,
    /// `lib` for the unit tests, or the name of a file or folder in `tests/`: a program of its own, or a module of `all`.
    pub binary: &'static str,
    pub test: &'static str,
    /// Part of the message with which it fails.
    pub says: &'static str,
}

const fn by(package: &'static str, binary: &'static str, test: &'static str, says: &'static str) -> Catcher {
    Catcher { package, binary, test, says }
}

const POWER_CUT: &str = "no_schedule_of_epochs_and_power_cuts_loses_or_changes_a_point";

pub(crate) const FAULTS: [Fault; 25] = [
    Fault {
        name: "disks-cut-separately",
        what: "the first disk is cut, the guest goes on for 300 ms, then the others are cut",
        catchers: &[by(
            "platforms",
            "guest_cut",
            "two_disks_of_a_writing_guest_are_cut_at_one_instant",
            "the disks were not cut at one instant",
        )],
    },
    Fault {
        name: "extent-dropped",
        what: "one extent of every change map is not sent",
        catchers: &[by(
            "process-server",
            "replication",
            "the_replica_becomes_the_machine_epoch_by_epoch",
            "the replica is not what the machine is",
        )],
    },
    Fault {
        name: "acknowledged-before-sync",
        what: "an epoch is sealed without its disks being flushed",
        catchers: &[by("replica", "power_cut", POWER_CUT, "is not at")],
    },
    Fault {
        name: "acknowledged-before-record",
        what: "an epoch is sealed before the record that makes it a point is durable",
        catchers: &[by("replica", "power_cut", POWER_CUT, "a sealed epoch was lost")],
    },
    Fault {
        name: "before-images-unsynced",
        what: "new blocks are written before what they replace is durable",
        catchers: &[by("replica", "power_cut", POWER_CUT, "refused to open")],
    },
    Fault {
        name: "resumed-frames-unsynced",
        what: "before-images that were found at an opening count as durable",
        catchers: &[by(
            "replica",
            "resume",
            "before_images_that_a_failed_sync_lost_are_written_again",
            "the point before was lost",
        )],
    },
    Fault {
        name: "resumed-blocks-unwritten",
        what: "blocks that an epoch inherited after a crash count as handed to the medium",
        catchers: &[by(
            "replica",
            "resume",
            "what_a_failed_flush_lost_is_written_again",
            "the point is not what was compared",
        )],
    },
    Fault {
        name: "merged-newest-wins",
        what: "when points are thinned away, the newest image of a block is kept, not the oldest",
        catchers: &[by("replica", "power_cut", POWER_CUT, "bytes differ")],
    },
    Fault {
        name: "merge-back-skipped",
        what: "when a cut fails, the newer map goes without being merged into the older",
        catchers: &[by(
            "platforms",
            "conformance",
            "qemu::a_failed_cut_leaves_its_changes_to_the_next",
            "left == right",
        )],
    },
    Fault {
        name: "inconsistent-bitmap-ignored",
        what: "a map that was in use when QEMU died, or is absent, counts as one that holds nothing",
        catchers: &[
            by("platforms", "conformance", "qemu::a_kill_leaves_the_platforms_own_disks_unknown", "left == right"),
            by(
                "platforms",
                "conformance",
                "traps::a_map_that_was_never_saved_is_absent_and_not_empty",
                "left == right",
            ),
        ],
    },
    Fault {
        name: "lost-map-begun-again",
        what: "a second start from the same mark gets an empty map, as if the first had written nothing",
        catchers: &[by(
            "platforms",
            "conformance",
            "qemu::a_lost_map_is_never_begun_again_from_the_same_mark",
            "would lack the first run's write",
        )],
    },
    Fault {
        name: "restarted-run-believed",
        what: "maps of a machine under libvirt count though somebody else started it",
        catchers: &[by(
            "platforms",
            "conformance",
            "others::a_machine_that_somebody_else_restarted_is_compared_once",
            "assertion `left == right` failed",
        )],
    },
    Fault {
        name: "overlays-not-flushed",
        what: "a machine under libvirt that runs on overlays is cut without having them written down",
        catchers: &[by("platforms", "conformance", "libvirt::an_overlay_survives_a_kill_with_a_superset", "Settled")],
    },
    Fault {
        name: "touched-disk-believed",
        what: "maps and marks count though something else had the disks in hand since QEMU let go of them",
        catchers: &[
            by(
                "platforms",
                "conformance",
                "trust::a_disk_that_a_program_wrote_past_its_map_is_not_believed",
                "left == right",
            ),
            by(
                "platforms",
                "conformance",
                "trust::a_mark_is_not_believed_on_disks_that_were_touched_since_it_was_given",
                "left == right",
            ),
            // The second witness finds it too, and says something else.
            by("process-server", "trust", "a_disk_restored_from_a_copy_is_compared", "left == right"),
            by("process-server", "trust", "disks_whose_images_were_exchanged_are_compared", "a wrong delta"),
        ],
    },
    Fault {
        name: "older-map-believed",
        what: "a map may count from an earlier cut than it did before",
        catchers: &[by(
            "process-server",
            "trust",
            "a_map_that_counts_from_an_earlier_cut_than_it_did_is_not_believed",
            "a wrong delta",
        )],
    },
    Fault {
        name: "changed-since-raised-ignored",
        what: "a raised machine's disks count as what its replica was, whatever it wrote since",
        catchers: &[by(
            "process-server",
            "beneath",
            "after_a_crash_of_the_host_only_the_old_primary_is_read_whole",
            "home is not what the machine is",
        )],
    },
    Fault {
        name: "stamp-not-looked-at",
        what: "nobody looks whether something else wrote a disk that a replica stands on",
        catchers: &[
            by(
                "process-server",
                "beneath",
                "a_disk_that_something_else_wrote_meanwhile_is_read_whole_again",
                "home is not what the machine is",
            ),
            by("master-target", "lib", "witness::tests::our_own_writes_break_nothing_and_another_ones_do", "a write"),
        ],
    },
    Fault {
        name: "overlay-map-ignored",
        what: "what a machine wrote onto its overlay since its failover is left out on the way home",
        catchers: &[
            by("platforms", "conformance", "qemu::an_overlay_survives_a_kill_with_a_superset", "Settled"),
            by(
                "process-server",
                "lib",
                "choice::tests::the_first_way_back_is_the_union_of_three_maps",
                "left == right",
            ),
        ],
    },
    Fault {
        name: "unknown-taken-for-nothing",
        what: "where one side cannot say what changed, nothing is sent instead of comparing",
        catchers: &[
            by("protocol", "lib", "position::tests::unknown_is_never_empty", "left == right"),
            by("process-server", "lib", "choice::tests::a_lost_map_makes_a_compare_and_says_so", "left == right"),
        ],
    },
    Fault {
        name: "given-up-epoch-forgotten",
        what: "the map of an epoch that was given up is forgotten as if it had been sealed",
        catchers: &[by(
            "process-server",
            "replication",
            "a_cut_that_is_lost_gives_its_changes_to_the_next_and_nothing_is_compared",
            "had to be compared",
        )],
    },
    Fault {
        name: "checksum-unverified",
        what: "a frame is believed whatever its checksum says",
        catchers: &[
            by("protocol", "lib", "frame::tests::a_flipped_bit_anywhere_is_noticed", "was not noticed"),
            by(
                "component",
                "lib",
                "link::tests::a_frame_that_was_changed_before_it_was_encrypted_is_refused",
                "a changed frame was believed",
            ),
        ],
    },
    Fault {
        name: "totals-unchecked",
        what: "an epoch is sealed though not all of it arrived",
        catchers: &[by(
            "process-server",
            "replication",
            "an_epoch_that_is_not_whole_never_becomes_a_point",
            "an incomplete epoch was sealed",
        )],
    },
    Fault {
        name: "token-unchecked",
        what: "anybody may send epochs",
        catchers: &[by(
            "process-server",
            "replication",
            "a_sender_without_the_secret_is_refused",
            "a stranger was admitted",
        )],
    },
    Fault {
        name: "stale-generation-admitted",
        what: "a sender of an older generation may still write",
        catchers: &[by(
            "process-server",
            "replication",
            "an_older_generation_is_refused_even_with_the_secret",
            "was admitted after",
        )],
    },
    Fault {
        name: "base-unchecked",
        what: "an epoch is applied to another state than the one it was made for",
        catchers: &[
            by(
                "process-server",
                "replication",
                "an_epoch_on_another_base_is_refused_and_leaves_no_trace",
                "was opened",
            ),
            by("replica", "rules", "an_epoch_that_does_not_continue_the_replica_is_refused", "assertion failed"),
        ],
    },
];
