//! Processes are killed at moments that nobody chose, with a real guest at work: nothing acknowledged is lost, one copy
//! runs, and the circle can go on.
//!
//! The moments are thrown (`scene::Dice`): each run tries others, and a run that failed is repeated by its seed, as far as a
//! loaded machine repeats anything.

use std::time::Duration;

use crate::scene::dice::Dice;
use crate::scene::{Scene, now_ms, play};
use anyhow::ensure;
use demo::world::{At, MACHINE, Part};
use protocol::order::ReplicationPhase;
use protocol::rest::{Job, JobState};
use protocol::stage::{Side, Stage};

type Victim = (At, Part);

/// When a part is killed.
#[derive(Debug, Clone, Copy)]
enum Moment {
    /// So long after the move was begun.
    After(Duration),
    /// So long after a QEMU was launched at the site to which the machine moves.
    Launched(Duration),
}

/// Waits for the moment; `before` are the QEMUs that ran there before.
fn wait_for_it(scene: &Scene, to: At, before: &[u32], moment: Moment) -> anyhow::Result<()> {
    let after = match moment {
        Moment::After(after) => after,
        Moment::Launched(after) => {
            let launched = || scene.qemus(to).iter().any(|id| !before.contains(id)).then_some(());
            demo::world::wait_for("launch of a QEMU", Duration::from_secs(60), launched)?;
            after
        }
    };
    demo::pause(after);
    scene.say(&format!("now: {moment:?}"));
    Ok(())
}

const HOME_PS: Victim = (At::Home, Part::ProcessServer);
const HOME_MT: Victim = (At::Home, Part::MasterTarget);
const CLOUD_PS: Victim = (At::Cloud, Part::ProcessServer);
const CLOUD_MT: Victim = (At::Cloud, Part::MasterTarget);
const CONTROL: Victim = (At::Cloud, Part::Control);

/// Kills each of these twice while epochs flow, and waits each time until they flow again.
fn kill_while_epochs_flow(scene: &mut Scene, dice: &mut Dice, words: &str, victims: &[Victim]) -> anyhow::Result<()> {
    let mut all = [victims, victims].concat();
    dice.shuffle(&mut all);
    for victim in all {
        demo::pause(dice.within(2000));
        let before = scene.world.status()?;
        let dead =
            if victim == CONTROL { Duration::from_secs(3) } else { Duration::from_millis(200) + dice.within(1500) };
        let killed_ms = now_ms();
        scene.kill(victim, dead)?;
        let view = scene.newer_than(words, now_ms())?;
        ensure!(view.generation == before.generation, "the generation changed: {before:?} became {view:?}");
        let replication = view.replication.as_ref();
        ensure!(replication.is_some_and(|told| told.phase == ReplicationPhase::Epochs), "{view:?}");
        if victim == CONTROL {
            let cut: Vec<u64> = scene.points()?.iter().map(|point| point.cut_at_ms).collect();
            let alone = cut.iter().filter(|cut| (killed_ms..killed_ms + dead.as_millis() as u64).contains(cut)).count();
            ensure!(alone > 0, "no epoch was sealed while control was dead: {cut:?}");
        }
        scene.witness.one_history()?;
    }
    Ok(())
}

#[test]
fn nothing_is_lost_when_processes_are_killed_while_epochs_flow() {
    play(true, |scene| {
        let mut dice = Dice::thrown();
        scene.protect()?;
        let victims = [HOME_PS, CLOUD_MT, CONTROL];
        kill_while_epochs_flow(scene, &mut dice, "protected", &victims)?;
        let fresh = scene.world.console(At::Cloud);
        scene.done(&["failover", MACHINE, "--planned", "--max-downtime", "5m", "--yes"])?;
        scene.lost_nothing(At::Cloud, &fresh)?;
        scene.done(&["commit", MACHINE, "--yes"])?;
        scene.done(&["reprotect", MACHINE, "--yes"])?;
        // The other way about; and the cloud's master target serves the disks of the machine that runs there.
        let victims = [CLOUD_PS, HOME_MT, CLOUD_MT];
        kill_while_epochs_flow(scene, &mut dice, "protected (reverse)", &victims)?;
        the_cloud_burns(scene)
    });
}

/// What an unplanned failover finds is a prefix, and nothing is missing that was acknowledged before the cut of its point.
fn the_cloud_burns(scene: &mut Scene) -> anyhow::Result<()> {
    let clock = scene.witness.mark();
    fresh_records(scene, 50)?;
    scene.say("the cloud's guest and movers are killed");
    scene.world.kill_guest(At::Cloud)?;
    scene.world.kill(At::Cloud, Part::ProcessServer);
    scene.world.kill(At::Cloud, Part::MasterTarget);
    // The last line may still be on its way through the console's file.
    demo::pause(Duration::from_millis(100));
    let ahead_ms = scene.witness.ahead_ms(At::Cloud, clock)?;
    let fresh = scene.world.console(At::Home);
    let job = scene.done(&["failover", MACHINE, "--unplanned", "--shut-down", "skip", "--yes"])?;
    let point = job.figures.point.as_ref().map(|point| point.cut_at_ms as i64);
    let cut_ms = point.ok_or_else(|| anyhow::anyhow!("no point was told: {job:?}"))?;
    let found = fresh.found()?;
    ensure!(found.consistent && found.found >= 20 && found.scribbles_checked > 0, "no prefix: {found:?}");
    let acknowledged = scene.witness.acknowledged(0);
    let before_the_cut =
        acknowledged.iter().filter(|ack| ack.at == At::Cloud && ack.guest_ms as i64 + ahead_ms < cut_ms);
    let sealed = before_the_cut.map(|ack| ack.number).max();
    ensure!(sealed.is_some(), "nothing was acknowledged before the cut: that proves nothing");
    let lost = scene.highest().saturating_sub(found.highest);
    scene.say(&format!("sealed {sealed:?}, found {}, {lost} lost", found.highest));
    ensure!(Some(found.highest) >= sealed, "record {sealed:?} was in the newest point, {found:?} was found");
    fresh.writes(3)?;
    scene.runs_only(At::Home)
}

/// Waits until so many more records are acknowledged.
fn fresh_records(scene: &Scene, more: usize) -> anyhow::Result<()> {
    let mark = scene.witness.mark();
    demo::world::wait_for("fresh records", Duration::from_secs(60), || {
        (scene.witness.acknowledged(mark).len() >= more).then_some(())
    })
}

/// Kills a part while the machine is on its way from `from`, and brings it to the other side, if need be with a second try.
/// `go` is the command that moves it. Says whether the first try got there.
fn move_with_a_kill(
    scene: &mut Scene,
    from: At,
    go: &dyn Fn(&Scene) -> anyhow::Result<Job>,
    victim: Victim,
    moment: Moment,
    dead: Duration,
) -> anyhow::Result<bool> {
    fresh_records(scene, 20)?;
    let mut fresh = scene.world.console(from.other());
    let before = scene.qemus(from.other());
    let job = go(scene)?;
    wait_for_it(scene, from.other(), &before, moment)?;
    scene.kill(victim, dead)?;
    let job = scene.end_of(job.id)?;
    let arrived = job.state == JobState::Done;
    if !arrived {
        let fault = job.fault.as_ref();
        scene.say(&format!("it was undone: {:?}", fault.map(|fault| (&fault.code, &fault.message, &fault.cause))));
        ensure!(job.state == JobState::Failed, "{job:?}");
        still_protected(scene, from)?;
        fresh = scene.world.console(from.other());
        let job = scene.end_of(go(scene)?.id)?;
        ensure!(job.state == JobState::Done, "the second try failed: {job:?}");
    }
    let view = scene.world.status()?;
    let side = if from == At::Home { Side::Away } else { Side::Home };
    ensure!(view.stage == Stage::CommitPending { runs_at: side }, "{view:?}");
    scene.lost_nothing(from.other(), &fresh)?;
    Ok(arrived)
}

/// After a move that was undone: the machine runs where it was, and is replicated as before.
fn still_protected(scene: &Scene, at: At) -> anyhow::Result<()> {
    let words = if at == At::Home { "protected" } else { "protected (reverse)" };
    fresh_records(scene, 20)?;
    scene.runs_only(at)?;
    scene.witness.one_history()?;
    scene.flows(words)
}

/// Replicates to the side that the machine came from, and says how the first copy was chosen: a death in a bad moment may
/// cost the maps, never the truth.
fn turn_about(scene: &Scene, verb: &str) -> anyhow::Result<()> {
    let figures = scene.done(&[verb, MACHINE, "--yes"])?.figures;
    scene.say(&format!("first copy: {:?} {}", figures.sync, figures.distrust.unwrap_or_default()));
    Ok(())
}

/// How a moment is thrown.
#[derive(Clone, Copy)]
enum When {
    AnyTime,
    AtLaunch,
}

fn moment(dice: &mut Dice, when: When, most_ms: u64) -> (Moment, Duration) {
    match when {
        When::AnyTime => (Moment::After(dice.within(most_ms)), Duration::from_secs(1)),
        When::AtLaunch => (Moment::Launched(dice.within(300)), dice.within(1000)),
    }
}

/// Out and home again, with a kill on each way; `SOCKEYE_ROUNDS` times the whole list (1).
fn rounds(victims: &[(Victim, Victim, When)]) {
    let times = std::env::var("SOCKEYE_ROUNDS").ok().and_then(|times| times.parse().ok()).unwrap_or(1);
    play(false, |scene| {
        let mut dice = Dice::thrown();
        scene.protect()?;
        let mut undone = 0;
        for (out, home, when) in victims.repeat(times) {
            let go = |scene: &Scene| scene.begin(&["failover", MACHINE, "--planned", "--max-downtime", "5m", "--yes"]);
            let (at, dead) = moment(&mut dice, when, 3000);
            undone += u32::from(!move_with_a_kill(scene, At::Home, &go, out, at, dead)?);
            scene.done(&["commit", MACHINE, "--yes"])?;
            turn_about(scene, "reprotect")?;
            let go = |scene: &Scene| {
                let waiting = scene.follow(scene.begin(&["failback", MACHINE, "--yes"])?.id)?;
                ensure!(waiting.state == JobState::Waiting, "{waiting:?}");
                scene.begin(&["complete", MACHINE, "--yes"])
            };
            let (at, dead) = moment(&mut dice, when, 1500);
            undone += u32::from(!move_with_a_kill(scene, At::Cloud, &go, home, at, dead)?);
            scene.done(&["commit", MACHINE, "--yes"])?;
            turn_about(scene, "reverse")?;
            scene.flows("protected")?;
        }
        scene.say(&format!("{undone} of {} moves were undone and tried again", victims.len() * times * 2));
        Ok(())
    });
}

#[test]
fn a_move_survives_the_death_of_the_source_s_movers() {
    rounds(&[(HOME_PS, CLOUD_PS, When::AnyTime), (HOME_MT, CLOUD_MT, When::AnyTime)]);
}

#[test]
fn a_move_survives_the_death_of_the_target_s_movers_or_of_control() {
    rounds(&[
        (CLOUD_MT, HOME_MT, When::AtLaunch),
        (CONTROL, CONTROL, When::AnyTime),
        (CLOUD_MT, HOME_MT, When::AnyTime),
    ]);
}

#[test]
fn a_move_that_is_called_off_while_a_mover_is_dead_goes_back() {
    play(false, |scene| {
        let mut dice = Dice::thrown();
        scene.protect()?;
        for victim in [CLOUD_MT, HOME_PS] {
            fresh_records(scene, 20)?;
            let job = scene.begin(&["failover", MACHINE, "--planned", "--max-downtime", "5m", "--yes"])?;
            demo::pause(dice.within(300));
            scene.say(&format!("kill -9: {victim:?}"));
            scene.world.kill(victim.0, victim.1);
            scene.begin(&["cancel", MACHINE, "--yes"])?;
            demo::pause(Duration::from_secs(2));
            scene.world.start(victim.0, victim.1)?;
            let job = scene.end_of(job.id)?;
            ensure!(job.state == JobState::Cancelled, "{job:?}");
            still_protected(scene, At::Home)?;
        }
        let fresh = scene.world.console(At::Cloud);
        scene.done(&["failover", MACHINE, "--planned", "--max-downtime", "5m", "--yes"])?;
        scene.lost_nothing(At::Cloud, &fresh).map(drop)
    });
}
