//! Checks: what must be so before anything irreversible begins, each with a code when it is not.
//!
//! What would prevent the way home is checked on the way out (R24): `protect` and `failover` look at the components
//! that a reprotect will need.

use protocol::fault::{Fault, code};
use protocol::id::SiteName;
use protocol::machine::{MachineSpec, Power};
use protocol::order::Role;
use protocol::rest::{Check, FailoverKind, Operation, ShutDownFirst};
use protocol::stage::Side;

use crate::beside::View;
use crate::component::Fleet;
use crate::item::Item;
use crate::view::{power_words, test_of, unknown_site};
use crate::{complete, guest_network, landing, sequence};

pub(crate) struct Checks<'a> {
    pub(crate) fleet: &'a Fleet,
    done: Vec<Check>,
}

impl Checks<'_> {
    pub(crate) fn note(&mut self, what: impl Into<String>, result: Result<(), Fault>) {
        self.done.push(Check { what: what.into(), fault: result.err() });
    }

    pub(crate) fn movers(&mut self, from: &SiteName, to: &SiteName) {
        self.note(format!("movers from {from} to {to} can come together"), self.fleet.meet(from, to));
    }

    /// The networks that the machine's cards are to be connected with there are there.
    pub(crate) fn networks(&mut self, spec: &MachineSpec, site: &SiteName) {
        let Some(facts) = self.fleet.facts(site) else { return };
        let missing = spec.missing_networks(&facts.networks);
        if missing.is_empty() {
            return self.note(format!("{site} has the networks of {}", spec.name), Ok(()));
        }
        for name in missing {
            let cause =
                format!("a card of {} is connected with it; {site} has: {}", spec.name, facts.networks.join(", "));
            let fault = Fault::new(code::NO_NETWORK, format!("{site} has no network {name}"), cause);
            self.note(format!("{site} has the network {name}"), Err(fault));
        }
    }

    /// The same for an item that is to be brought up at a side. Where it has to be, whatever is missing, that is only said.
    fn networks_at(&mut self, item: &Item, side: Side, needed: bool) {
        let told = self.fleet.machine(item.site(side.other()), &item.spec.name).map(|(machine, _)| &machine.spec);
        let (spec, site) = (item.description(side, told), item.site(side));
        if needed {
            return self.networks(&spec, site);
        }
        for name in self.fleet.facts(site).iter().flat_map(|facts| spec.missing_networks(&facts.networks)) {
            self.note(
                format!("{site} has no network {name}: a card of {} will be CONNECTED TO NOTHING", spec.name),
                Ok(()),
            );
        }
    }

    pub(crate) fn component(&mut self, site: &SiteName, role: Role) {
        self.note(format!("{role} at {site} is connected"), self.fleet.need(site, role).map(|_| ()));
    }
}

/// The checks of `protect` for a machine at `from`.
pub(crate) fn protect(fleet: &Fleet, items: &[Item], name: &str, operation: &Operation) -> Vec<Check> {
    let Operation::Protect { machine, from, to, interval_ms, networks, .. } = operation else { return vec![] };
    let mut checks = Checks { fleet, done: vec![] };
    let sites = fleet.sites();
    for site in [from, to] {
        let known = if sites.contains(site) { Ok(()) } else { Err(unknown_site(fleet, site)) };
        checks.note(format!("site {site} is known"), known);
    }
    let differ = Fault::new(code::BAD_REQUEST, "source and target are the same site", format!("both are {from}"));
    checks.note("source and target differ", if from == to { Err(differ) } else { Ok(()) });
    checks.component(from, Role::ProcessServer);
    checks.component(to, Role::MasterTarget);
    let found = fleet.machine(from, machine).map(|(machine, _)| machine);
    let listed: Vec<String> = fleet
        .at(from, Role::ProcessServer)
        .and_then(|name| fleet.components.get(&name))
        .map(|component| component.machines.iter().map(|machine| machine.spec.name.clone()).collect())
        .unwrap_or_default();
    let absent = || {
        Fault::new(
            code::UNKNOWN_VM,
            format!("{from} knows no machine {machine}"),
            format!("it has: {}", listed.join(", ")),
        )
    };
    checks.note(format!("{from} knows {machine}"), found.map(|_| ()).ok_or_else(absent));
    if let Some(found) = found {
        let result = if found.spec.disks.is_empty() {
            Err(Fault::new(code::BAD_REQUEST, format!("{machine} has no disks"), "there is nothing to replicate"))
        } else {
            Ok(())
        };
        checks.note(format!("{machine} has disks"), result);
        checks.networks(&found.spec.clone().connected(networks), to);
        let unlike = fleet.platform(from) != fleet.platform(to);
        for remark in found.remarks.iter().filter(|remark| unlike || !remark.elsewhere) {
            checks.note(format!("{machine}: {}", remark.words), Ok(()));
        }
        let result = if matches!(found.power, Power::Running | Power::Paused) {
            Ok(())
        } else {
            let cause = format!("it is: {}", power_words(found.power));
            Err(Fault::new(code::BAD_REQUEST, format!("{machine} does not run"), cause)
                .with_remedy("start it, then repeat"))
        };
        checks.note(format!("{machine} runs"), result);
    }
    let test_of = test_of(items, from, machine).map(|item| {
        let message = format!("{machine} is not protected by itself");
        Fault::new(code::TEST_MACHINE, message, format!("it is a test of {item}, and goes when that is ended"))
    });
    checks.note(format!("{machine} is no test of another item"), test_of.map_or(Ok(()), Err));
    let taken =
        items.iter().find(|item| item.name.as_str() != name && item.spec.name == *machine && item.home == *from);
    let result = match taken {
        Some(item) => Err(crate::item::for_item(
            Fault::new(
                code::ALREADY_PROTECTED,
                format!("{machine} is protected already"),
                format!("as item {}", item.name),
            ),
            &item.name,
        )),
        None => Ok(()),
    };
    checks.note(format!("{machine} is not protected yet"), result);
    let sane = (100..=86_400_000).contains(interval_ms);
    let insane = || {
        Fault::new(code::BAD_REQUEST, "the interval is not usable", format!("{interval_ms} ms; 100 ms to a day are"))
    };
    checks.note("the interval is usable", if sane { Ok(()) } else { Err(insane()) });
    checks.movers(from, to);
    // R24: the way home needs these two, and that they come together.
    checks.component(to, Role::ProcessServer);
    checks.component(from, Role::MasterTarget);
    checks.movers(to, from);
    checks.done
}

/// The checks of every other operation.
pub(crate) fn of(fleet: &Fleet, item: &Item, operation: &Operation) -> Vec<Check> {
    let mut checks = Checks { fleet, done: vec![] };
    let here = item.stage.runs_at();
    let (source, target) = (item.site(here), item.site(here.other()));
    match operation {
        Operation::Failover { kind: FailoverKind::Planned { .. }, .. } => {
            checks.component(source, Role::ProcessServer);
            checks.component(target, Role::MasterTarget);
            checks.networks_at(item, here.other(), true);
            not_running_at_target(&mut checks, item, false);
        }
        Operation::Failover { kind: FailoverKind::Unplanned { shut_down }, .. } => {
            if *shut_down == ShutDownFirst::Require {
                checks.component(source, Role::ProcessServer);
            }
            checks.component(target, Role::MasterTarget);
            checks.networks_at(item, here.other(), false);
            not_running_at_target(&mut checks, item, false);
        }
        Operation::ChangePoint { .. } => {
            checks.component(source, Role::MasterTarget);
            let unplanned = item.copy(here).raised && item.last_move.as_ref().is_some_and(|last| !last.planned);
            let refusal = || {
                let message = format!("{}: the recovery point cannot be changed", item.name);
                let fault = Fault::new(code::STAGE_REFUSES, message, "it was moved as planned, with its last change");
                let remedy = "first: sockeye cancel ITEM, then: sockeye failover ITEM --unplanned --point POINT";
                crate::item::for_item(fault.with_remedy(remedy), &item.name)
            };
            checks.note("the failover was an unplanned one", if unplanned { Ok(()) } else { Err(refusal()) });
        }
        Operation::Reprotect { landing: Some(landing), .. } => landing::check(&mut checks, item, landing),
        Operation::Reprotect { shut_down, .. } => both_ways(&mut checks, item, here, *shut_down),
        Operation::Failback { shut_down, offline, complete, complete_at, landing, .. } => {
            match landing {
                Some(landing) => landing::check(&mut checks, item, landing),
                None => both_ways(&mut checks, item, here, *shut_down),
            }
            if let Some(window) = complete_at {
                checks.done.push(complete::is_to_come(*window));
                checks.done.push(complete::is_waited_for(*offline, *complete));
            }
        }
        Operation::Cancel {} => {
            checks.component(source, Role::ProcessServer);
            checks.component(source, Role::MasterTarget);
            checks.component(target, Role::ProcessServer);
            if item.copy(here.other()).raised {
                checks.component(target, Role::MasterTarget);
            }
        }
        Operation::Fold {} => {
            checks.component(source, Role::MasterTarget);
            let machine = &item.spec.name;
            let fault = Fault::new(
                code::NOT_FOLDED,
                format!("{machine} cannot be folded at {source}"),
                "its own disks are at the site where it was protected",
            );
            let what = format!("the own disks of {machine} are at {source}");
            checks.note(what, if here == Side::Home { Ok(()) } else { Err(fault) });
            let test = item.test.iter().filter(|test| test.side == here).map(|_| "sockeye cleanup ITEM".to_string());
            let views = item.views.iter().filter(|view| view.side == here);
            let first = test.chain(views.map(|view| format!("sockeye view ITEM --end {}", view.number))).next();
            let stands = first.map(|first| {
                let message = format!("the replica of {machine} at {source} is in use");
                let fault = Fault::new(code::NOT_FOLDED, message, "a test or a view stands on it, and it would go");
                crate::item::for_item(fault.with_remedy(format!("first: {first}")), &item.name)
            });
            checks.note(format!("nothing stands on the history at {source}"), stands.map_or(Ok(()), Err));
        }
        _ => {}
    }
    checks.done
}

/// The checks of what is to stand beside the item.
pub(crate) fn beside(fleet: &Fleet, items: &[Item], item: &Item, operation: &Operation) -> Vec<Check> {
    let Some(side) = sequence::beside(item, operation) else { return vec![] };
    let (mut checks, site) = (Checks { fleet, done: vec![] }, item.site(side));
    checks.component(site, Role::MasterTarget);
    if let Operation::View { site: Some(site), .. } | Operation::Verify { site: Some(site) } = operation {
        checks.note(format!("{site} is a site of {}", item.name), item.keeper_at(Some(site)).map(|_| ()));
    }
    if let Operation::TestFailover { network, .. } = operation {
        let test = item.test_name();
        let pending = item.test.as_ref().map(|test| {
            let cause = format!("{} runs from point {}", test.machine, test.point);
            let fault = Fault::new(code::TEST_PENDING, format!("{} is being tested already", item.name), cause);
            crate::item::for_item(fault, &item.name)
        });
        let taken = fleet.machine(site, &test).filter(|_| pending.is_none()).map(|_| {
            let message = format!("{} cannot be tested under the name {test}", item.name);
            Fault::new(code::MACHINE_EXISTS, message, format!("{site} has another machine of that name"))
        });
        checks.note(format!("no test of {} is under way", item.name), pending.map_or(Ok(()), Err));
        checks.note(format!("{site} has no machine {test} yet"), taken.map_or(Ok(()), Err));
        if let Some(network) = network {
            checks.done.extend(guest_network::isolated(fleet, items, site, network));
        }
        let reach = match item.spec.cards.len() {
            0 => "it has no network card".to_string(),
            1 => "its network card is connected to nothing".to_string(),
            cards => format!("its {cards} network cards are connected to nothing"),
        };
        if network.is_none() {
            checks.note(format!("{test} reaches nobody: {reach}"), Ok(()));
        }
    }
    checks.done
}

/// The refusal of a point for a move that starts from the last change.
pub(crate) fn no_point_named() -> Check {
    let fault = Fault::new(
        code::BAD_REQUEST,
        "a planned failover starts from the last change",
        "a point can be chosen for an unplanned one only",
    );
    Check { what: "no point is named".into(), fault: Some(fault) }
}

fn both_ways(checks: &mut Checks<'_>, item: &Item, here: Side, shut_down: bool) {
    for side in [here, here.other()] {
        checks.component(item.site(side), Role::ProcessServer);
        checks.component(item.site(side), Role::MasterTarget);
        checks.movers(item.site(side), item.site(side.other()));
    }
    if here == Side::Away {
        landing::original(checks, item);
    }
    not_running_at_target(checks, item, shut_down);
}

/// R26: a machine that still runs where data is to be written.
fn not_running_at_target(checks: &mut Checks<'_>, item: &Item, shut_down: bool) {
    let target = item.site(item.stage.runs_at().other());
    let machine = &item.spec.name;
    let what = format!("{machine} does not run at {target}");
    if !checks.fleet.runs(target, machine) {
        return checks.note(what, Ok(()));
    }
    if shut_down {
        return checks.note(format!("{machine} runs at {target}: it is shut down, its writes are kept"), Ok(()));
    }
    let fault = Fault::new(
        code::MACHINE_RUNS_AT_HOME,
        format!("{machine} still runs at {target}"),
        "its disks would be written under it (R26)",
    );
    checks.note(what, Err(crate::item::for_item(fault, &item.name)));
}

/// What an operation deletes, one line each (H5, H11).
pub(crate) fn deletes(item: &Item, operation: &Operation) -> Vec<String> {
    let here = item.stage.runs_at();
    let old = item.site(here.other());
    let machine = &item.spec.name;
    match operation {
        Operation::Commit { keep_history } => {
            let absorbed = sequence::absorbs(item).then(|| {
                format!("machine {machine} at {old}: its definition and its overlays (their content goes into the replica there)")
            });
            let folded = (!keep_history && sequence::folds(item)).then(|| history(item));
            absorbed.into_iter().chain(folded).collect()
        }
        Operation::Fold {} if sequence::folds(item) => vec![history(item)],
        Operation::Unprotect { delete } => {
            let mut lines: Vec<String> = ends_test(item).into_iter().chain(item.views.iter().map(ends_view)).collect();
            if *delete && item.copy(here.other()).raised {
                lines.push(format!("machine {machine} at {old}: its definition and its overlays"));
            }
            if *delete {
                lines.push(format!("the replica of {machine} at {old}, with all its recovery points"));
            }
            lines
        }
        Operation::ChangePoint { .. } => {
            vec![format!("machine {machine} at {}: everything it wrote since the failover", item.site(here))]
        }
        Operation::Cleanup {} => ends_test(item).into_iter().collect(),
        Operation::EndView { view } => {
            item.view(*view).filter(|view| view.writable).map(ends_view).into_iter().collect()
        }
        Operation::Cancel {} => {
            vec![format!("machine {machine} at {}: its overlays (kept there as a recovery point)", item.site(here))]
        }
        _ => vec![],
    }
}

/// What folding deletes.
fn history(item: &Item) -> String {
    let (machine, site) = (&item.spec.name, item.site(item.stage.runs_at()));
    format!(
        "the recovery points kept beside the disks of {machine} at {site} (pinned ones are written to files first; \
             those at the other site stay)"
    )
}

fn ends_test(item: &Item) -> Option<String> {
    let test = item.test_machine()?;
    Some(format!("test machine {} at {}: its definition and its overlays", test.machine, test.site))
}

fn ends_view(view: &View) -> String {
    let scratch = if view.writable { ", with everything written to it" } else { "" };
    format!("view {} of point {}{scratch}", view.number, view.point)
}
