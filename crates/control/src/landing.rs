//! Alternate location: a machine comes home where nothing of it is, because it was deleted there or to another site (H13, R14).
//!
//! ```text
//!   relocate (to another site) ─► make disks on a datastore, and a replica around them ─► as any way home, with a full copy
//! ```

use protocol::fault::{Fault, code};
use protocol::id::SiteName;
use protocol::machine::Pool;
use protocol::operation::{Landing, Operation};
use protocol::order::Role;
use protocol::stage::{Side, Stage};

use crate::checks::Checks;
use crate::component::Fleet;
use crate::item::Item;
use crate::words::bytes;

/// Where an operation is to land, if nothing is expected there.
pub(crate) fn of(operation: &Operation) -> Option<&Landing> {
    match operation {
        Operation::Reprotect { landing, .. } | Operation::Failback { landing, .. } => landing.as_ref(),
        _ => None,
    }
}

/// The site where an operation lands.
pub(crate) fn site<'a>(item: &'a Item, landing: &'a Landing) -> &'a SiteName {
    landing.site.as_ref().unwrap_or(&item.home)
}

/// The datastore where disks are made: the one of that name, else the first that takes them.
pub(crate) fn pool<'a>(fleet: &'a Fleet, site: &SiteName, named: Option<&str>, size: u64) -> Result<&'a Pool, Fault> {
    let unknown =
        |why: String| Fault::new(code::NO_DATASTORE, format!("{site} has no place for the machine's disks"), why);
    let facts = fleet.facts(site).ok_or_else(|| unknown("its process server has not told what it has".into()))?;
    let why_not = |pool: &Pool| match &pool.refuses {
        Some(why) => Some(why.clone()),
        None if pool.free < size => Some(format!("{} are free, {} may be needed", bytes(pool.free), bytes(size))),
        None => None,
    };
    let has = || match facts.pools.as_slice() {
        [] => "none".to_string(),
        pools => {
            let told = pools.iter().map(|pool| match why_not(pool) {
                Some(why) => format!("{} ({why})", pool.name),
                None => pool.name.clone(),
            });
            told.collect::<Vec<_>>().join(", ")
        }
    };
    match named {
        Some(name) => {
            let pool = facts.pools.iter().find(|pool| pool.name == name);
            let pool = pool.ok_or_else(|| unknown(format!("none is called {name}; it has: {}", has())))?;
            why_not(pool).map_or(Ok(pool), |why| Err(unknown(format!("{name}: {why}"))))
        }
        None => {
            facts.pools.iter().find(|pool| why_not(pool).is_none()).ok_or_else(|| unknown(format!("it has: {}", has())))
        }
    }
}

/// The checks of a landing.
pub(crate) fn check(checks: &mut Checks<'_>, item: &Item, landing: &Landing) {
    let (fleet, machine, home) = (checks.fleet, &item.spec.name, site(item, landing));
    let away = &item.away;
    let refuse = |message: String, cause: &str| Err(Fault::new(code::BAD_REQUEST, message, cause));
    let side = match item.stage {
        _ if item.stage.runs_at() == Side::Home => {
            refuse(format!("{machine} is at home"), "a machine is created at home when it comes home")
        }
        Stage::Protected { .. } => refuse(
            format!("{machine} is replicated to {} already", item.home),
            "a place for it is chosen when that begins",
        ),
        _ if home == away => refuse(format!("{machine} runs at {home}"), "it cannot come home to where it is"),
        _ => Ok(()),
    };
    checks.note(format!("{machine} has nothing at {home} yet"), side);
    for role in [Role::ProcessServer, Role::MasterTarget] {
        checks.component(away, role);
        checks.component(home, role);
    }
    checks.movers(away, home);
    checks.movers(home, away);
    let there = fleet.machine(home, machine).map(|_| {
        let fault = Fault::new(
            code::MACHINE_EXISTS,
            format!("{home} has a machine {machine}"),
            "another one cannot be made there",
        );
        fault.with_remedy("if it is the original, leave --create-vm out; else rename or remove it")
    });
    checks.note(format!("{home} has no machine {machine} yet"), there.map_or(Ok(()), Err));
    let size = item.spec.disks.iter().map(|disk| disk.size).sum();
    let place = pool(fleet, home, landing.datastore.as_deref(), size);
    let what = match &place {
        Ok(pool) => format!("disks are made on {} of {home} ({} are free)", pool.name, bytes(pool.free)),
        Err(_) => format!("{home} has a place for the disks"),
    };
    checks.note(what, place.map(drop));
    checks.networks(&item.description(Side::Home, None), home);
    if *home != item.home && fleet.runs(&item.home, machine) {
        let fault = Fault::new(
            code::MACHINE_RUNS_AT_HOME,
            format!("{machine} still runs at {}", item.home),
            "there would be two of it",
        );
        let fault = fault.with_remedy(format!("shut it down at {}, then repeat", item.home));
        checks.note(format!("{machine} does not run at {}", item.home), Err(fault));
    }
}

/// Refuses a way home to a place where nothing of the machine is, unless it is to be created there.
pub(crate) fn original(checks: &mut Checks<'_>, item: &Item) {
    let (machine, home) = (&item.spec.name, &item.home);
    let copy = item.copy(Side::Home);
    // Only who is there can say that it has no such machine.
    let is_known = checks.fleet.at(home, Role::ProcessServer).is_some_and(|name| checks.fleet.connected(&name));
    let has_replica = copy.at_rest || copy.raised || copy.master_target.is_some();
    if has_replica || !is_known || checks.fleet.machine(home, machine).is_some() {
        return;
    }
    let fault = Fault::new(
        code::NO_ORIGINAL,
        format!("{machine} is not at {home} any more"),
        "it was deleted there, or the host is a new one",
    );
    checks.note(format!("{home} has the original {machine}"), Err(crate::item::for_item(fault, &item.name)));
}
