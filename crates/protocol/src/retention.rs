//! Which recovery points are kept, and for how long: the policy, and the pure function that applies it.
//!
//! ```text
//!   now ──────────── 1 h ─────────────────────────── 24 h ─────► older
//!    all points       one a minute                     none        (the default)
//!    app-consistent points: one an hour for 24 h · the newest of them: as long as anything · pinned points and the newest: always
//! ```
//! A point's age counts from when it became durable here up to now, but never beyond the newest point: a replica that
//! gets no epochs any more, because its source is lost, keeps the history that somebody may need just then; and a clock
//! that jumps ahead takes nothing by itself.
//!
//! # When space runs short
//! A budget bounds what the journal takes. Beyond it points go in this order: thinner first (each spacing doubled, then
//! doubled again), then the oldest, one by one, until only the newest and pinned ones are left: from then on no history
//! is kept. The before-images of the epoch that is open are no history and never go.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::epoch::{Point, PointKind};
use crate::id::Attempt;

/// How long recovery points are kept. The default keeps all points for an hour and one a minute for 24 hours (R12).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Retention {
    /// All points younger than this are kept (seconds).
    pub all_for_seconds: u64,
    /// What is kept of older ones, by age. Behind the last spacing nothing is.
    pub then: Vec<Spacing>,
    /// Application-consistent points are kept by this rule, whatever the others say; without it they are as all others.
    pub app_consistent: Option<Spacing>,
    /// How much the journal may take; without it, as much as the retention volume has.
    pub budget: Option<Budget>,
}

/// One point for every interval, up to an age. Intervals are counted from 1970; of each the newest point stays.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Spacing {
    /// The length of an interval (seconds, at least 1).
    pub one_every_seconds: u64,
    /// Points of this age (seconds) and older are not kept by it.
    pub until_seconds: u64,
}

/// The space that a replica's journal may take on the retention volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Budget {
    /// At most this much (bytes).
    pub bytes: u64,
    /// From this part of it on (percent, 1 to 100) people are told.
    pub alarm_percent: u8,
}

/// How a journal stands against its budget.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Space {
    /// Below the alarm threshold, or without a budget.
    Enough,
    /// Above the alarm threshold.
    Alarm,
    /// Above the budget: points go.
    Exceeded,
}

/// Why a policy was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadRetention {
    /// A spacing keeps one point in no time.
    #[error("an interval of retention must be at least one second")]
    Interval,
    /// Spacings that do not follow each other.
    #[error("each spacing of retention must reach further back than the one before it")]
    Order,
    /// Not a percentage.
    #[error("the alarm threshold must be 1 to 100 percent")]
    Threshold,
}

impl Default for Retention {
    fn default() -> Retention {
        Retention {
            all_for_seconds: 3600,
            then: vec![Spacing { one_every_seconds: 60, until_seconds: 24 * 3600 }],
            app_consistent: Some(Spacing { one_every_seconds: 3600, until_seconds: 24 * 3600 }),
            budget: None,
        }
    }
}

impl Retention {
    /// Whether the policy makes sense; what comes from people is checked before it is used.
    ///
    /// # Errors
    /// [`BadRetention`].
    pub fn check(&self) -> Result<(), BadRetention> {
        if self.then.iter().chain(&self.app_consistent).any(|spacing| spacing.one_every_seconds == 0) {
            return Err(BadRetention::Interval);
        }
        let ends = || [self.all_for_seconds].into_iter().chain(self.then.iter().map(|spacing| spacing.until_seconds));
        if ends().zip(ends().skip(1)).any(|(end, next)| next <= end) {
            return Err(BadRetention::Order);
        }
        match self.budget {
            Some(budget) if !(1..=100).contains(&budget.alarm_percent) => Err(BadRetention::Threshold),
            _ => Ok(()),
        }
    }

    /// How a journal of so many bytes stands.
    pub fn space(&self, journal_bytes: u64) -> Space {
        match self.budget {
            Some(budget) if journal_bytes > budget.bytes => Space::Exceeded,
            Some(b) if u128::from(journal_bytes) * 100 >= u128::from(b.bytes) * u128::from(b.alarm_percent) => {
                Space::Alarm
            }
            _ => Space::Enough,
        }
    }

    /// The same up to the same age, with every interval doubled `times` times, and of the points that were all kept only
    /// the younger ones: of the others one in so many seconds.
    fn coarser(&self, times: u32) -> Retention {
        let wider = |spacing: &Spacing| Spacing {
            one_every_seconds: spacing.one_every_seconds.max(1).saturating_mul(1 << times),
            ..*spacing
        };
        let young = Spacing { one_every_seconds: 1 << times, until_seconds: self.all_for_seconds };
        Retention {
            all_for_seconds: self.all_for_seconds >> times,
            then: [young].into_iter().chain(self.then.iter().map(wider)).collect(),
            app_consistent: self.app_consistent.as_ref().map(wider),
            budget: self.budget,
        }
    }
}

/// The points that go, oldest first. `points` are in the order in which they were sealed; `pins` always stay, and so does
/// the newest. `now_ms` is this host's clock, ms since 1970.
///
/// Points of a kind that does not come again by itself (final, unreplicated, rolled back) are never thinned: they go when
/// they are older than everything that the policy keeps. So does the newest application-consistent one: crash-consistent points
/// come every second, the next of its kind in an hour, or never, if the guest's agent is gone.
pub fn choose(points: &[Point], pins: &BTreeSet<Attempt>, policy: &Retention, now_ms: u64) -> Vec<Attempt> {
    let Some(newest) = points.last() else { return Vec::new() };
    let now = now_ms.min(newest.sealed_at_ms);
    let end = policy.then.last().map_or(policy.all_for_seconds, |spacing| spacing.until_seconds);
    let age = |point: &Point| now.saturating_sub(point.sealed_at_ms);
    // The newest point of each interval, by the rule that has a say.
    let rules: Vec<Option<Rule>> = points.iter().map(|point| rule(point, policy, now)).collect();
    let app = |point: &Point| -> Option<u64> {
        let spacing = policy.app_consistent.filter(|_| point.kind == PointKind::AppConsistent)?;
        let young = age(point) < milliseconds(spacing.until_seconds);
        young.then(|| point.sealed_at_ms / milliseconds(spacing.one_every_seconds).max(1))
    };
    let mut newest_of: BTreeMap<Rule, usize> = BTreeMap::new();
    let mut newest_app: BTreeMap<u64, usize> = BTreeMap::new();
    for (at, point) in points.iter().enumerate() {
        newest_of.extend(rules[at].map(|rule| (rule, at)));
        newest_app.extend(app(point).map(|interval| (interval, at)));
    }
    let reach = policy.app_consistent.map_or(end, |spacing| spacing.until_seconds.max(end));
    let latest_app = points.iter().rposition(|point| point.kind == PointKind::AppConsistent);
    let stays = |at: usize, point: &Point| {
        let by_age = match point.kind {
            PointKind::CrashConsistent | PointKind::AppConsistent => match &rules[at] {
                None => true,
                Some(Rule::Over) => false,
                Some(rule) => newest_of.get(rule) == Some(&at),
            },
            _ => age(point) < milliseconds(end),
        };
        let latest = latest_app == Some(at) && age(point) < milliseconds(reach);
        by_age || latest || app(point).is_some_and(|interval| newest_app.get(&interval) == Some(&at))
    };
    let older = &points[..points.len() - 1];
    let gone = older.iter().enumerate().filter(|(at, point)| !pins.contains(&point.attempt) && !stays(*at, point));
    gone.map(|(_, point)| point.attempt).collect()
}

/// What has a say on a point that is not young any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Rule {
    /// One of the points in this interval of this spacing stays.
    Interval { spacing: usize, number: u64 },
    /// It is older than all that is kept.
    Over,
}

/// The rule for a point; none while it is kept like all young ones. A spacing has its say once a whole interval is old
/// enough: what is thinned away of it then goes at one time.
fn rule(point: &Point, policy: &Retention, now: u64) -> Option<Rule> {
    let mut found = None;
    let mut from = policy.all_for_seconds;
    for (number, spacing) in policy.then.iter().enumerate() {
        let width = milliseconds(spacing.one_every_seconds).max(1);
        let interval = point.sealed_at_ms / width;
        if (interval + 1).saturating_mul(width).saturating_add(milliseconds(from)) <= now {
            found = Some(Rule::Interval { spacing: number, number: interval });
        }
        from = spacing.until_seconds;
    }
    if now.saturating_sub(point.sealed_at_ms) >= milliseconds(from) { Some(Rule::Over) } else { found }
}

fn milliseconds(seconds: u64) -> u64 {
    seconds.saturating_mul(1000)
}

/// The points that go next when the journal is over its budget: what a coarser spacing takes, else the oldest. Empty when
/// only the newest and pinned ones are left.
pub fn press(points: &[Point], pins: &BTreeSet<Attempt>, policy: &Retention, now_ms: u64) -> Vec<Attempt> {
    /// A minute doubled so often is longer than a month.
    const TIMES: u32 = 16;
    let mut coarser = (1..=TIMES).map(|times| choose(points, pins, &policy.coarser(times), now_ms));
    coarser.find(|gone| !gone.is_empty()).unwrap_or_else(|| {
        let older = points.split_last().map_or(&[][..], |(_, older)| older);
        older.iter().map(|point| point.attempt).find(|attempt| !pins.contains(attempt)).into_iter().collect()
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn at(number: u64) -> Attempt {
        Attempt { generation: 1, number }
    }

    fn point(number: u64, sealed_at_ms: u64, kind: PointKind) -> Point {
        Point { attempt: at(number), cut_at_ms: sealed_at_ms, sealed_at_ms, kind, changed_bytes: 1, freeze: None }
    }

    fn ages(points: &[Point], gone: &[Attempt], now: u64) -> Vec<u64> {
        let gone: BTreeSet<&Attempt> = gone.iter().collect();
        points.iter().filter(|p| !gone.contains(&p.attempt)).map(|p| (now - p.sealed_at_ms) / 1000).collect()
    }

    #[test]
    fn by_default_all_are_kept_for_an_hour_and_one_a_minute_for_a_day() {
        let start = 1_700_000_040_000;
        let points: Vec<Point> = (0..100_000).map(|n| point(n, start + n * 1000, PointKind::CrashConsistent)).collect();
        let now = points.last().unwrap().sealed_at_ms;
        let gone = choose(&points, &BTreeSet::new(), &Retention::default(), now);
        let kept = ages(&points, &gone, now);
        let young = kept.iter().filter(|age| **age < 3600).count();
        let old: Vec<u64> = kept.iter().copied().filter(|age| *age >= 3660).collect();
        assert_eq!(young, 3600);
        assert!((1378..=1382).contains(&old.len()), "{}", old.len());
        assert!(old.windows(2).all(|two| two[0] - two[1] == 60), "a minute apart");
        assert!(old[0] < 24 * 3600);
    }

    #[test]
    fn app_consistent_unreplicated_and_pinned_points_are_kept_by_their_own_rules() {
        let hour = 3_600_000;
        let kinds = [PointKind::AppConsistent, PointKind::CrashConsistent, PointKind::Unreplicated];
        let points: Vec<Point> = (0..3000u64).map(|n| point(n, n * 20_000, kinds[(n % 3) as usize])).collect();
        let now = 2999 * 20_000;
        let policy = Retention {
            all_for_seconds: 60,
            then: vec![],
            app_consistent: Some(Spacing { one_every_seconds: 3600, until_seconds: 12 * 3600 }),
            budget: None,
        };
        let gone = choose(&points, &[at(7)].into(), &policy, now);
        let kept: Vec<&Point> = points.iter().filter(|point| !gone.contains(&point.attempt)).collect();
        assert_eq!(kept[0].attempt, at(7));
        let apps: Vec<u64> = kept.iter().filter(|p| p.kind == kinds[0]).map(|p| p.sealed_at_ms).collect();
        assert!(apps.windows(2).all(|two| two[1] / hour == two[0] / hour + 1 || two[1] + 60_000 > now), "{apps:?}");
        assert!(apps.len() >= 12);
        let longer = Retention { then: vec![Spacing { one_every_seconds: 600, until_seconds: 7200 }], ..policy };
        let gone = choose(&points, &BTreeSet::new(), &longer, now);
        let unreplicated = |p: &&Point| p.kind == PointKind::Unreplicated && !gone.contains(&p.attempt);
        assert_eq!(points.iter().filter(unreplicated).count(), 120, "all of two hours");
    }

    #[test]
    fn a_replica_without_new_points_keeps_what_it_has_whatever_the_clock_says() {
        let points: Vec<Point> = (0..50).map(|n| point(n, n * 1000, PointKind::CrashConsistent)).collect();
        assert!(choose(&points, &BTreeSet::new(), &Retention::default(), u64::MAX).is_empty());
    }

    #[test]
    fn under_pressure_points_are_thinned_first_then_the_oldest_go_until_only_the_newest_and_pins_are_left() {
        let mut points: Vec<Point> = (0..7000).map(|n| point(n, n * 1000, PointKind::CrashConsistent)).collect();
        let pins: BTreeSet<Attempt> = [at(100)].into();
        let mut thinned = 0;
        while let gone = press(&points, &pins, &Retention::default(), u64::MAX)
            && !gone.is_empty()
        {
            assert!(!gone.contains(&at(100)) && !gone.contains(&at(6999)));
            let oldest_went = gone.len() == 1 && gone[0] == points[usize::from(points[0].attempt == at(100))].attempt;
            thinned += u64::from(!oldest_went);
            let gone: BTreeSet<Attempt> = gone.into_iter().collect();
            points.retain(|point| !gone.contains(&point.attempt));
        }
        assert_eq!(points.iter().map(|point| point.attempt.number).collect::<Vec<_>>(), [100, 6999]);
        assert!(thinned >= 6, "thinned {thinned} times before");
    }

    #[test]
    fn the_latest_app_consistent_point_is_not_thinned_by_newer_points_of_another_kind() {
        let kind = |n| if n == 100 || n == 200 { PointKind::AppConsistent } else { PointKind::CrashConsistent };
        let points: Vec<Point> = (0..9000).map(|n| point(n, n * 1000, kind(n))).collect();
        let policy = Retention { app_consistent: None, all_for_seconds: 60, ..Retention::default() };
        let now = points[8999].sealed_at_ms;
        let mut gone = choose(&points, &BTreeSet::new(), &policy, now);
        assert!(gone.contains(&at(100)) && !gone.contains(&at(200)), "an older one goes as all others do");
        let rest: Vec<Point> = points.iter().filter(|p| !gone.contains(&p.attempt)).cloned().collect();
        gone = press(&rest, &BTreeSet::new(), &policy, now);
        assert!(!gone.is_empty() && !gone.contains(&at(200)), "nor by a budget, as long as something else can go");
        let short = Retention { then: vec![], ..policy };
        assert!(choose(&points, &BTreeSet::new(), &short, now).contains(&at(200)), "it is older than all that is kept");
    }

    #[test]
    fn a_policy_without_sense_is_refused_and_a_budget_tells_how_it_stands() {
        let policy = Retention::default();
        policy.check().unwrap();
        let spacing = |every, until| Spacing { one_every_seconds: every, until_seconds: until };
        let with = |then: Vec<Spacing>| Retention { then, ..Retention::default() }.check();
        assert_eq!(with(vec![spacing(0, 9999)]), Err(BadRetention::Interval));
        assert_eq!(with(vec![spacing(1, 3600)]), Err(BadRetention::Order));
        assert_eq!(with(vec![spacing(1, 4000), spacing(9, 4000)]), Err(BadRetention::Order));
        let budget =
            |alarm_percent| Retention { budget: Some(Budget { bytes: 1000, alarm_percent }), ..policy.clone() };
        assert_eq!(budget(0).check(), Err(BadRetention::Threshold));
        let stands = [799, 800, 1000, 1001].map(|bytes| budget(80).space(bytes));
        assert_eq!(stands, [Space::Enough, Space::Alarm, Space::Alarm, Space::Exceeded]);
        assert_eq!(policy.space(u64::MAX), Space::Enough);
        let text = serde_json::to_string(&policy).unwrap();
        assert_eq!(serde_json::from_str::<Retention>(&text).unwrap(), policy);
    }

    /// The ten lines: a point stays if any rule, looked at alone and for this point, keeps it.
    fn model(points: &[Point], n: usize, pins: &BTreeSet<Attempt>, policy: &Retention, now: u64) -> bool {
        let (p, now) = (&points[n], now.min(points.last().unwrap().sealed_at_ms) as i64);
        let age = now - p.sealed_at_ms as i64;
        let last_in = |every: u64, same: &dyn Fn(&Point) -> bool| {
            let interval = |p: &Point| p.sealed_at_ms / (every * 1000);
            !points[n + 1..].iter().any(|later| interval(later) == interval(p) && same(later))
        };
        let froms = [policy.all_for_seconds].into_iter().chain(policy.then.iter().map(|s| s.until_seconds));
        let over = |s: &Spacing, from: u64| {
            (p.sealed_at_ms / (s.one_every_seconds * 1000) + 1) * s.one_every_seconds * 1000 + from * 1000 <= now as u64
        };
        let end = froms.clone().last().unwrap() as i64 * 1000;
        let special = !matches!(p.kind, PointKind::CrashConsistent | PointKind::AppConsistent);
        let spaced = policy.then.iter().zip(froms).filter(|(s, from)| over(s, *from)).last();
        let by_age = age < end && (special || spaced.is_none_or(|(s, _)| last_in(s.one_every_seconds, &|_| true)));
        let app = policy.app_consistent.filter(|_| p.kind == PointKind::AppConsistent).is_some_and(|s| {
            age < s.until_seconds as i64 * 1000
                && last_in(s.one_every_seconds, &|later| later.kind == PointKind::AppConsistent)
        });
        let is_app = |p: &Point| p.kind == PointKind::AppConsistent;
        let reach = end.max(policy.app_consistent.map_or(0, |s| s.until_seconds as i64 * 1000));
        let latest_app = is_app(p) && !points[n + 1..].iter().any(is_app) && age < reach;
        n + 1 == points.len() || pins.contains(&p.attempt) || by_age || app || latest_app
    }

    proptest! {
        #[test]
        fn what_goes_is_what_no_rule_keeps(
            gaps in prop::collection::vec((0u64..40_000, 0u8..12), 1..60),
            pinned in prop::collection::btree_set(0u64..60, 0..4),
            (all, first, second) in (0u64..200, (1u64..60, 1u64..400), prop::option::of((1u64..200, 1u64..900))),
            app in prop::option::of((1u64..100, 0u64..1000)),
            late in 0u64..100_000,
        ) {
            let mut now = 1_000_000;
            let points: Vec<Point> = gaps.iter().enumerate().map(|(n, (gap, kind))| {
                now += gap;
                let kinds = [PointKind::AppConsistent, PointKind::AppConsistent, PointKind::Unreplicated];
                point(n as u64, now, kinds.get(usize::from(*kind)).copied().unwrap_or(PointKind::CrashConsistent))
            }).collect();
            let spacing = |every, until| Spacing { one_every_seconds: every, until_seconds: until };
            let mut then = vec![spacing(first.0, all + first.1)];
            then.extend(second.map(|(every, more)| spacing(every, all + first.1 + more)));
            let app_consistent = app.map(|(every, until)| spacing(every, until));
            let policy = Retention { all_for_seconds: all, then, app_consistent, budget: None };
            policy.check().unwrap();
            let pins: BTreeSet<Attempt> = pinned.into_iter().map(at).collect();
            let gone = choose(&points, &pins, &policy, now + late);
            for (n, p) in points.iter().enumerate() {
                let stays = model(&points, n, &pins, &policy, now + late);
                prop_assert_eq!(!gone.contains(&p.attempt), stays, "point {} of {:?}", n, points);
            }
            let rest: Vec<Point> = points.iter().filter(|p| !gone.contains(&p.attempt)).cloned().collect();
            prop_assert!(choose(&rest, &pins, &policy, now + late).is_empty(), "all that goes goes at once");
        }
    }
}
