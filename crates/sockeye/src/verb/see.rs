//! The verbs that only look: ask once, print, done.

use protocol::Fault;
use protocol::fault::code;
use protocol::id::ItemId;
use protocol::rest::{Health, SetBandwidth};

use super::Desk;
use super::history::agreed;
use crate::cli::{ComponentVerb, Global, ItemVerb, Points, SetComponent, SiteVerb, Status, VmVerb};
use crate::ending::{Ending, Trouble};
use crate::fault;
use crate::show::table::facts;
use crate::show::{Screen, difference, item as show, list, quote as show_quote, words};

/// `status`: with `--check`, fails if any item is not healthy.
///
/// # Errors
/// The item is unknown, or the server was not reached.
pub async fn status(desk: &Desk, status: &Status) -> Result<Ending, Trouble> {
    let items = match &status.item {
        // Asked for by name: an item that does not exist is refused, not an empty table.
        Some(item) => {
            desk.client.item(item).await?;
            desk.client.status(Some(item)).await?
        }
        None => desk.client.status(None).await?,
    };
    desk.screen.result(&items.document, &show::status(&items.read, words::now_ms()));
    let well = items.read.iter().all(|item| item.health == Health::Ok);
    Ok(if status.check && !well { Ending::Failed } else { Ending::Done })
}

/// `item list | show`.
///
/// # Errors
/// The item is unknown, or the server was not reached.
pub async fn item(desk: &Desk, verb: ItemVerb) -> Result<Ending, Trouble> {
    match verb {
        ItemVerb::List => {
            let items = desk.client.status(None).await?;
            desk.screen.result(&items.document, &show::status(&items.read, words::now_ms()));
        }
        ItemVerb::Show { item } => {
            let item = desk.client.item(&item).await?;
            desk.screen.result(&item.document, &show::page(&item.read, words::now_ms()));
        }
    }
    Ok(Ending::Done)
}

/// `points ITEM [--diff A B]`.
///
/// # Errors
/// The item or a point is unknown, or the server was not reached.
pub async fn points(desk: &Desk, wanted: Points) -> Result<Ending, Trouble> {
    let Points { item, diff, at } = wanted;
    if let Some(&[from, to]) = diff.as_deref() {
        let told = desk.client.difference(&item, from, to, at.as_ref()).await?;
        desk.screen.result(&told.document, &difference::page(&told.read));
        return Ok(Ending::Done);
    }
    let points = desk.client.points(&item, at.as_ref()).await?;
    desk.screen.result(&points.document, &show::points(&points.read, words::now_ms()));
    Ok(Ending::Done)
}

/// `component list | show | set`.
///
/// # Errors
/// The component is unknown, or the server was not reached.
pub async fn component(desk: &Desk, verb: ComponentVerb) -> Result<Ending, Trouble> {
    let components = desk.client.components().await?;
    match verb {
        ComponentVerb::Set(set) => return cap(desk, set).await,
        ComponentVerb::List => {
            desk.screen.result(&components.document, &list::components(&components.read, words::now_ms()));
        }
        ComponentVerb::Show { name } => {
            let known: Vec<_> = components.read.iter().map(|component| component.name.as_str()).collect();
            let place = known.iter().position(|known| *known == name);
            let found = place.and_then(|n| Some((components.read.get(n)?, components.document.get(n)?)));
            let Some((component, document)) = found else {
                let cause = format!("known are: {}", known.join(", "));
                let trouble = Trouble::usage(format!("there is no component {name:?}"), cause);
                return Err(Trouble {
                    ending: Ending::Refused,
                    fault: trouble.fault.with_remedy("list them: sockeye component list"),
                });
            };
            desk.screen.result(document, &list::component(component, words::now_ms()));
        }
    }
    Ok(Ending::Done)
}

async fn cap(desk: &Desk, SetComponent { name, bandwidth, sure }: SetComponent) -> Result<Ending, Trouble> {
    let bandwidth = bandwidth.typed();
    let wanted = |preview| SetBandwidth { bandwidth: bandwidth.clone(), preview, reason: sure.reason.clone() };
    let effect = desk.client.set_bandwidth(&name, &wanted(true)).await?;
    desk.screen.say(&list::bandwidth(&effect.read));
    if effect.read.already {
        desk.screen.document(&effect.document);
        desk.screen.say("it is so already: nothing to do");
    } else if agreed(desk, "Do this?", &sure, &effect.document).await? {
        let done = desk.client.set_bandwidth(&name, &wanted(false)).await?;
        desk.screen.result(&done.document, &format!("{name} sends at most: {bandwidth}"));
    }
    Ok(Ending::Done)
}

/// `site list | show`.
///
/// # Errors
/// The site is unknown, or the server was not reached.
pub async fn site(desk: &Desk, verb: SiteVerb) -> Result<Ending, Trouble> {
    let sites = desk.client.sites().await?;
    match verb {
        SiteVerb::List => desk.screen.result(&sites.document, &list::sites(&sites.read)),
        SiteVerb::Show { name } => {
            let place = sites.read.iter().position(|site| site.name == name);
            let found = place.and_then(|n| Some((sites.read.get(n)?, sites.document.get(n)?)));
            let Some((site, document)) = found else {
                let known: Vec<_> = sites.read.iter().map(|site| site.name.to_string()).collect();
                let what = format!("there is no site {name}");
                let fault = Fault::new(code::UNKNOWN_SITE, what, format!("known sites: {}", known.join(", ")));
                return Err(Trouble { ending: Ending::Refused, fault });
            };
            desk.screen.result(document, &list::site(site));
        }
    }
    Ok(Ending::Done)
}

/// `vm list`, and the local verbs of a qemu site.
///
/// # Errors
/// The site is unknown, or the server was not reached; or the hypervisor refuses.
pub async fn vm(global: &Global, verb: VmVerb) -> Result<Ending, Trouble> {
    match verb {
        VmVerb::List { site } => {
            let desk = Desk::new(global)?;
            let machines = desk.client.machines(site.as_ref()).await?;
            desk.screen.result(&machines.document, &list::machines(&machines.read));
            Ok(Ending::Done)
        }
        local => super::machine::run(Screen::new(global.output), local).await,
    }
}

/// `quote ITEM`.
///
/// # Errors
/// The item is unknown, or the server was not reached.
pub async fn quote(desk: &Desk, item: &ItemId) -> Result<Ending, Trouble> {
    let quotes = desk.client.quotes(item).await?;
    desk.screen.result(&quotes.document, &show_quote::page(&quotes.read));
    Ok(Ending::Done)
}

/// `explain CODE` (answered here, without a server) or `explain ITEM`.
///
/// # Errors
/// It is neither; or the server was not reached.
pub async fn explain(global: &Global, what: &str) -> Result<Ending, Trouble> {
    if let Some(entry) = fault::explain(what) {
        let document = serde_json::json!({"code": entry.code, "title": entry.title, "remedy": entry.remedy});
        let text = facts(&[("what", entry.title.into()), ("next", entry.remedy.into())]);
        Screen::new(global.output).result(&document, &format!("{}\n{text}", entry.code));
        return Ok(Ending::Done);
    }
    let item: ItemId = what.parse().map_err(|why: protocol::id::BadName| {
        Trouble::usage(format!("{what:?} is neither a fault code nor an item"), why.to_string())
    })?;
    let desk = Desk::new(global)?;
    let explanation = desk.client.explain(&item).await?;
    desk.screen.result(&explanation.document, &show::explanation(&explanation.read));
    Ok(Ending::Done)
}

/// `audit`.
///
/// # Errors
/// The server was not reached.
pub async fn audit(desk: &Desk) -> Result<Ending, Trouble> {
    let entries = desk.client.audit().await?;
    desk.screen.result(&entries.document, &list::audit(&entries.read));
    Ok(Ending::Done)
}
