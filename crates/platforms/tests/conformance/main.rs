//! What every platform promises, claimed once and run against each.
//!
//! ```text
//!   claims ── Rig: a machine, and a model of its disks ── Bench ─┬─ simulated
//!                                                                ├─ qemu (its guests sit in the firmware; writes are made
//!                                                                │  through their devices, where a filter sees them)
//!                                                                └─ libvirt (the same under a libvirtd of the test's own)
//! ```
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod agents;
mod bench;
mod changes;
mod claims;
mod folds;
mod jobs;
mod networks;
mod others;
mod overlays;
mod rig;
mod traps;
mod trust;

macro_rules! claims {
    (everywhere: $($claim:ident),*; but not under libvirt: $($other:ident),* $(,)?) => {
        mod simulated {
            $(#[tokio::test] async fn $claim() { super::claims::$claim(&super::bench::simulated().await).await; })*
            $(#[tokio::test] async fn $other() { super::claims::$other(&super::bench::simulated().await).await; })*
        }
        mod qemu {
            $(#[tokio::test] async fn $claim() { super::claims::$claim(&super::bench::qemu().await).await; })*
            $(#[tokio::test] async fn $other() { super::claims::$other(&super::bench::qemu().await).await; })*
        }
        mod libvirt {
            $(#[tokio::test] async fn $claim() { super::claims::$claim(&super::bench::libvirt().await).await; })*
        }
    };
}

claims! {
    everywhere:
    a_machine_is_defined_found_and_deleted_and_its_own_disks_stay,
    a_cut_reads_as_the_disks_were_and_names_exactly_what_changed,
    a_failed_cut_leaves_its_changes_to_the_next,
    only_an_acknowledgement_forgets,
    a_successor_sweeps_up_and_loses_nothing,
    a_cut_given_up_at_any_instant_loses_nothing,
    a_guest_whose_power_was_taken_is_held_and_never_wakes,
    the_last_changes_are_exact_whatever_the_format,
    a_guest_that_does_not_listen_is_said_to_run_on,
    a_tracked_start_counts_from_the_first_write,
    a_lost_map_is_never_begun_again_from_the_same_mark,
    an_overlay_takes_the_writes_and_is_tracked,
    a_start_given_up_at_any_instant_is_finished_by_the_next,
    an_overlay_survives_a_kill_with_a_superset,
    a_kill_leaves_the_platforms_own_disks_unknown,
    a_paused_machine_is_cut_and_stays_paused,
    a_generation_without_disks_of_the_old_one_starts_anew,
    a_machine_keeps_its_network_cards_and_starts_with_them_connected_to_nothing,
    overlays_go_with_the_description_that_named_them,
    a_folded_machine_runs_on_its_own_disks_and_knows_every_change,
    a_machine_killed_before_its_fold_starts_from_what_it_stood_on,
    a_fold_given_up_at_any_instant_is_finished_by_the_next;
    // It sets scratch aside for whole disks.
    but not under libvirt:
    a_full_scratch_costs_the_cut_and_nothing_else,
}
