//! The smaller tables: components, machines, the audit log.

use protocol::machine::{Power, SiteFacts};
use protocol::order::Role;
use protocol::rest::{AuditEntry, BandwidthEffect, ComponentView, MachineView, SiteView};

use super::table::{facts, table};
use super::words;

/// The table of components.
pub fn components(components: &[ComponentView], now_ms: i64) -> String {
    let rows = components.iter().map(|component| {
        vec![
            component.name.clone(),
            component.role.to_string(),
            component.site.to_string(),
            connected(component).into(),
            words::ago(now_ms, component.seen_at_ms),
            component.address.clone().unwrap_or_default(),
            component.platform.clone(),
            component.version.clone(),
            capped(component),
        ]
    });
    let headings = ["COMPONENT", "ROLE", "SITE", "CONNECTED", "SEEN", "ADDRESS", "PLATFORM", "VERSION", "BANDWIDTH"];
    table(&headings, rows.collect(), "no component has joined yet; see: sockeye join --help")
}

/// One component's page.
pub fn component(component: &ComponentView, now_ms: i64) -> String {
    let rows = [
        ("role", component.role.to_string()),
        ("site", component.site.to_string()),
        ("connected", connected(component).into()),
        (
            "last seen",
            format!("{} ({})", words::instant(component.seen_at_ms), words::ago(now_ms, component.seen_at_ms)),
        ),
        ("address", component.address.clone().unwrap_or_default()),
        ("platform", component.platform.clone()),
        ("version", component.version.clone()),
        ("bandwidth", capped(component)),
    ];
    format!("{}\n{}", component.name, facts(&rows))
}

/// What another bandwidth of a process server means.
pub fn bandwidth(effect: &BandwidthEffect) -> String {
    let mut text = format!("{}: bandwidth {}; before: {}", effect.component, effect.bandwidth, effect.before);
    match effect.items.as_slice() {
        [] => text.push_str("\n  it sends no item now"),
        items => {
            let items: Vec<_> = items.iter().map(ToString::to_string).collect();
            text.push_str(&format!("\n  shared by what it sends now: {}", items.join(", ")));
        }
    }
    text
}

/// The cap of a process server; nothing else sends.
fn capped(component: &ComponentView) -> String {
    if component.role == Role::ProcessServer { component.bandwidth.to_string() } else { String::new() }
}

/// The table of sites.
pub fn sites(sites: &[SiteView]) -> String {
    let rows = sites.iter().map(|site| {
        let told =
            |count: fn(&SiteFacts) -> usize| site.facts.as_ref().map_or("?".into(), |facts| count(facts).to_string());
        vec![
            site.name.to_string(),
            site.platform.clone().unwrap_or_default(),
            site.components.join(", "),
            site.machines.to_string(),
            told(|facts| facts.networks.len()),
            told(|facts| facts.pools.len()),
        ]
    });
    let headings = ["SITE", "PLATFORM", "COMPONENTS", "MACHINES", "NETWORKS", "DATASTORES"];
    table(&headings, rows.collect(), "no component has registered yet; see: sockeye component list")
}

/// One site.
pub fn site(site: &SiteView) -> String {
    let mut lines = vec![
        ("site", site.name.to_string()),
        ("platform", site.platform.clone().unwrap_or_else(|| "has no process server".into())),
        ("components", site.components.join(", ")),
        ("machines", site.machines.to_string()),
    ];
    lines.extend(site.fault.as_ref().map(|fault| ("fault", format!("{fault}: {}", fault.cause))));
    let Some(told) = &site.facts else {
        lines.push(("networks", "not told since the server started".into()));
        return facts(&lines);
    };
    lines.push(("networks", told.networks.join(", ")));
    let rows = told.pools.iter().map(|pool| {
        vec![
            pool.name.clone(),
            pool.folder.clone().unwrap_or_default(),
            words::bytes(pool.size),
            words::bytes(pool.free),
            pool.refuses.clone().unwrap_or_else(|| "yes".into()),
        ]
    });
    let headings = ["DATASTORE", "FOLDER", "SIZE", "FREE", "TAKES DISKS"];
    format!("{}\n{}", facts(&lines), table(&headings, rows.collect(), "no datastores"))
}

/// The table of machines.
pub fn machines(machines: &[MachineView]) -> String {
    let rows = machines.iter().map(|view| {
        let spec = &view.machine.spec;
        let bytes = spec.disks.iter().fold(0u64, |sum, disk| sum.saturating_add(disk.size));
        vec![
            view.site.to_string(),
            spec.name.clone(),
            power(view.machine.power).into(),
            format!("{} MiB", spec.memory_mib),
            spec.vcpus.to_string(),
            format!("{} ({})", spec.disks.len(), words::bytes(bytes)),
            match (&view.item, &view.test_of) {
                (_, Some(item)) => format!("a test of {item}"),
                (item, None) => item.as_ref().map(|item| item.to_string()).unwrap_or_default(),
            },
        ]
    });
    let headings = ["SITE", "MACHINE", "POWER", "MEMORY", "VCPUS", "DISKS", "ITEM"];
    table(&headings, rows.collect(), "no site has told of a machine; see: sockeye component list")
}

/// The audit log, oldest first, so that the newest entry stands above the prompt.
pub fn audit(entries: &[AuditEntry]) -> String {
    let mut entries: Vec<_> = entries.iter().collect();
    entries.sort_by_key(|entry| entry.at_ms);
    let rows = entries.iter().map(|entry| {
        vec![
            words::instant(entry.at_ms),
            entry.item.as_ref().map(|item| item.to_string()).unwrap_or_default(),
            entry.what.clone(),
            entry.reason.clone().unwrap_or_default(),
        ]
    });
    table(&["AT", "ITEM", "WHAT", "REASON"], rows.collect(), "nothing was done yet")
}

fn connected(component: &ComponentView) -> &'static str {
    if component.connected { "yes" } else { "NO" }
}

fn power(power: Power) -> &'static str {
    match power {
        Power::Off => "off",
        Power::Running => "running",
        Power::Paused => "paused",
        Power::Held => "off, disks held",
    }
}
