//! How fast a process server may send in all, whatever the policies of its items say (H4).
//!
//! ```text
//!   set ──► component row ──► memory ──► Wishes ──► process server: felt by what is under way
//! ```

use protocol::bandwidth::Bandwidth;
use protocol::fault::{Fault, code};
use protocol::id::SiteName;
use protocol::order::Role;
use protocol::rest::{BandwidthEffect, SetBandwidth};

use crate::clock::now_ms;
use crate::component::Fleet;
use crate::database::{commit, failed, to_text};
use crate::{Control, audit, exchange, item};

impl Control {
    /// Says how fast a process server may send in all; or only tells what that would mean.
    pub async fn set_bandwidth(&self, name: &str, wanted: SetBandwidth) -> Result<BandwidthEffect, Fault> {
        let SetBandwidth { bandwidth, preview, reason } = wanted;
        bandwidth.check().map_err(|why| {
            Fault::new(code::BAD_REQUEST, format!("the bandwidth of {name} makes no sense"), why.to_string())
        })?;
        let items = item::all(self.database()).await?;
        let effect = {
            let fleet = self.fleet();
            let before = present(&fleet, name)?;
            let sent = items.iter().filter(|item| exchange::replication(&fleet, item, name).is_some());
            let items = sent.map(|item| item.name.clone()).collect();
            BandwidthEffect { component: name.into(), already: before == bandwidth, before, bandwidth, items }
        };
        if preview || effect.already {
            return Ok(effect);
        }
        let mut change = self.database().change().await?;
        sqlx::query("update component set bandwidth = $1 where name = $2")
            .bind(to_text(&effect.bandwidth)?)
            .bind(name)
            .execute(&mut *change)
            .await
            .map_err(failed)?;
        let what = format!("bandwidth of {name} set to {}", effect.bandwidth);
        audit::note(&mut change, None, &what, reason.as_deref()).await?;
        commit(change).await?;
        if let Some(component) = self.fleet().components.get_mut(name) {
            component.bandwidth = effect.bandwidth.clone();
        }
        self.wake_exchanges();
        Ok(effect)
    }
}

impl Fleet {
    /// The least of the caps (bits per second) that are in force now for what is sent from `site` with a cap of its own.
    pub(crate) fn cap(&self, own: &Bandwidth, site: &SiteName) -> Option<u64> {
        let component = self.at(site, Role::ProcessServer).and_then(|name| self.components.get(&name));
        let caps = [Some(own), component.map(|component| &component.bandwidth)];
        caps.into_iter().flatten().filter_map(|bandwidth| bandwidth.at(now_ms().unsigned_abs()).0).min()
    }
}

/// What is in force for a process server.
fn present(fleet: &Fleet, name: &str) -> Result<Bandwidth, Fault> {
    let known: Vec<&str> = fleet
        .components
        .iter()
        .filter(|(_, component)| component.registration.role == Role::ProcessServer)
        .map(|(name, _)| name.as_str())
        .collect();
    match fleet.components.get(name) {
        Some(component) if component.registration.role == Role::ProcessServer => Ok(component.bandwidth.clone()),
        other => {
            let message = match other {
                Some(component) => {
                    format!("{name} is a {}: only process servers are capped", component.registration.role)
                }
                None => format!("there is no component {name}"),
            };
            Err(Fault::new(code::BAD_REQUEST, message, format!("known process servers: {}", known.join(", ")))
                .with_remedy("list them: sockeye component list"))
        }
    }
}
