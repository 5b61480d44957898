//! What a libvirt has beside machines: networks, and storage pools (*datastores*).

use std::path::Path;

use protocol::Fault;
use protocol::fault::code;
use protocol::machine::{Pool, SiteFacts};
use xmltree::Element;

use super::document::Document;
use super::domain::{BRIDGE, USER};
use super::virsh::{Virsh, VirshError};
use crate::host::places;

/// Asks libvirt. A pool or network that vanishes meanwhile is left out.
pub(crate) async fn ask(virsh: &Virsh) -> Result<SiteFacts, Fault> {
    let cannot = |why: VirshError| Fault::new(code::HYPERVISOR, "libvirt does not tell what it has", why.to_string());
    let names = |told: String| -> Vec<String> {
        told.lines().map(str::trim).filter(|line| !line.is_empty()).map(String::from).collect()
    };
    let mut networks = names(virsh.ask(&["net-list", "--name"]).await.map_err(cannot)?);
    networks.push(USER.into());
    networks.extend(places::bridges().into_iter().map(|name| format!("{BRIDGE}{name}")));
    networks.sort();
    let active = names(virsh.ask(&["pool-list", "--name"]).await.map_err(cannot)?);
    let mut pools = Vec::new();
    for name in names(virsh.ask(&["pool-list", "--all", "--name"]).await.map_err(cannot)?) {
        let Ok(told) = virsh.ask(&["pool-dumpxml", &name]).await else { continue };
        let Ok(pool) = Element::read(&told) else { continue };
        pools.push(described(name.clone(), &pool, active.contains(&name)));
    }
    Ok(SiteFacts { networks, pools })
}

fn described(name: String, pool: &Element, is_active: bool) -> Pool {
    let number = |what: &str| pool.text_at(&[what]).and_then(|text| text.parse().ok()).unwrap_or(0);
    let is_folder = matches!(pool.has("type"), Some("dir" | "fs" | "netfs"));
    let folder = pool.text_at(&["target", "path"]).filter(|_| is_folder);
    let refuses = match &folder {
        _ if !is_active => Some("it is not active".into()),
        None => Some(format!("its kind ({}) is not a folder", pool.has("type").unwrap_or("unknown"))),
        Some(path) => places::refuses(Path::new(path)),
    };
    Pool { name, folder, size: number("capacity"), free: number("available"), refuses }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pool_says_what_it_holds_and_why_it_cannot_be_written() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().display().to_string();
        let pool = |kind: &str, active: bool| {
            let xml = format!(
                "<pool type='{kind}'><name>p</name><capacity unit='bytes'>100</capacity><available unit='bytes'>40</available>\
                 <target><path>{path}</path></target></pool>"
            );
            described("p".into(), &Element::read(&xml).unwrap(), active)
        };
        let good = Pool { name: "p".into(), folder: Some(path.clone()), size: 100, free: 40, refuses: None };
        assert_eq!(pool("dir", true), good);
        assert_eq!(pool("dir", false).refuses.unwrap(), "it is not active");
        assert_eq!(pool("logical", true).refuses.unwrap(), "its kind (logical) is not a folder");
    }
}
