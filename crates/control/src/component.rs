//! Components: who they are, when they were last heard of and what they told.
//!
//! ```text
//!   register (host's credential) ──► component token ──► exchange, exchange, exchange …
//!                                                  │ machines, statuses, reports
//!                                                  ▼
//!                                    memory now, database every few seconds
//! ```
//!
//! A component counts as connected for a while after each exchange began. What it told is kept across a restart of the
//! server as *last seen*, but only a new exchange makes it connected.

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

use protocol::bandwidth::Bandwidth;
use protocol::fault::{Fault, code};
use protocol::id::{ItemId, SiteName};
use protocol::keeping::KeepingStatus;
use protocol::machine::{Machine, Power, SiteFacts};
use protocol::order::{Registration, ReplicationStatus, Role};
use protocol::rest::ComponentView;
use sqlx::{Row, SqliteConnection};

use crate::database::{Database, failed, from_text, to_text};

/// One component.
#[derive(Debug)]
pub struct Component {
    /// What it told about itself.
    pub registration: Registration,
    /// The number of the credential with which it registered; none for an operator's token.
    pub host: Option<i64>,
    /// When its last exchange began, in this server's life.
    pub heard: Option<Instant>,
    /// The same as a time of day.
    pub seen_at_ms: i64,
    /// The machines at its site, as last told.
    pub machines: Vec<Machine>,
    /// What else its site has, as last told in this server's life.
    pub site: Option<SiteFacts>,
    /// Why they could not be told.
    pub fault: Option<Fault>,
    /// Its replications, as last told.
    pub statuses: Vec<ReplicationStatus>,
    /// How fast it may send in all.
    pub bandwidth: Bandwidth,
    /// The histories that it keeps, as last told.
    pub keepings: Vec<KeepingStatus>,
    /// The number of the wishes that it said it has taken over.
    pub seen_list: u64,
    /// The number of the last wishes that were made for it.
    pub list_number: u64,
    /// What identifies them.
    pub list_digest: String,
    /// Orders that it was given, and when last.
    pub handed: HashMap<(String, bool), Instant>,
    /// Orders that it said it is working on.
    pub working: HashMap<String, (String, Option<u8>)>,
    /// When what it tells was last written to the database.
    pub saved: Option<Instant>,
    /// When listeners were last told of it.
    pub announced: Option<Instant>,
}

/// All components by name.
#[derive(Debug, Default)]
pub struct Fleet {
    /// By name.
    pub components: BTreeMap<String, Component>,
    /// For how long after an exchange a component counts as connected.
    pub connected_within: Duration,
}

impl Component {
    fn new(registration: Registration) -> Component {
        Component {
            registration,
            host: None,
            heard: None,
            seen_at_ms: 0,
            machines: vec![],
            site: None,
            fault: None,
            statuses: vec![],
            bandwidth: Bandwidth::default(),
            keepings: vec![],
            seen_list: 0,
            list_number: 0,
            list_digest: String::new(),
            handed: HashMap::new(),
            working: HashMap::new(),
            saved: None,
            announced: None,
        }
    }
}

impl Fleet {
    /// What the database remembers.
    pub async fn load(database: &Database, connected_within: Duration) -> Result<Fleet, Fault> {
        let rows = sqlx::query(
            "select name, registration, seen_at_ms, list_number, list_digest, statuses, machines, bandwidth, host
             from component",
        )
        .fetch_all(database.readers())
        .await
        .map_err(failed)?;
        let mut components = BTreeMap::new();
        for row in rows {
            let mut component = Component::new(from_text(&row.get::<String, _>(1))?);
            component.seen_at_ms = row.get(2);
            component.list_number = row.get::<i64, _>(3).unsigned_abs();
            component.list_digest = row.get(4);
            component.statuses = from_text(&row.get::<String, _>(5))?;
            component.machines = from_text(&row.get::<String, _>(6))?;
            component.bandwidth = from_text(&row.get::<String, _>(7))?;
            component.host = row.get(8);
            components.insert(row.get(0), component);
        }
        Ok(Fleet { components, connected_within })
    }

    /// Whether the component was heard of recently.
    pub fn connected(&self, name: &str) -> bool {
        self.components
            .get(name)
            .and_then(|component| component.heard)
            .is_some_and(|heard| heard.elapsed() < self.connected_within)
    }

    /// Where others dial a component, if they can.
    pub fn address(&self, name: &str) -> Option<String> {
        self.components.get(name)?.registration.address.clone()
    }

    /// Checks that the process server at one site and the master target at the other can come together: one must be
    /// dialled by the other. Nothing is said while one of them is not there at all.
    pub fn meet(&self, from: &SiteName, to: &SiteName) -> Result<(), Fault> {
        let (Some(source), Some(target)) = (self.at(from, Role::ProcessServer), self.at(to, Role::MasterTarget)) else {
            return Ok(());
        };
        if self.address(&source).is_some() || self.address(&target).is_some() {
            return Ok(());
        }
        let message = format!("{source} and {target} cannot come together");
        Err(Fault::new(code::NO_ADDRESS, message, "neither says where it can be dialled"))
    }

    /// Whether an order was handed out to a component.
    pub fn was_handed(&self, name: &str, order: &str) -> bool {
        self.components.get(name).is_some_and(|component| component.handed.keys().any(|(id, _)| id == order))
    }

    /// The component that plays `role` at `site`: a connected one before one that is not.
    pub fn at(&self, site: &SiteName, role: Role) -> Option<String> {
        let mut fitting: Vec<(&String, &Component)> = self
            .components
            .iter()
            .filter(|(_, component)| component.registration.site == *site && component.registration.role == role)
            .collect();
        fitting.sort_by_key(|(name, component)| (!self.connected(name), std::cmp::Reverse(component.seen_at_ms)));
        fitting.first().map(|(name, _)| (*name).clone())
    }

    /// The names of all components that play `role` at `site`.
    pub fn all_at(&self, site: &SiteName, role: Role) -> Vec<String> {
        let fits = |component: &Component| component.registration.site == *site && component.registration.role == role;
        self.components.iter().filter(|(_, component)| fits(component)).map(|(name, _)| name.clone()).collect()
    }

    /// Checks that `role` can be had at `site`, connected.
    pub fn need(&self, site: &SiteName, role: Role) -> Result<String, Fault> {
        match self.at(site, role) {
            Some(name) if self.connected(&name) => Ok(name),
            Some(name) => Err(Fault::new(
                code::NO_COMPONENT,
                format!("{name} is not connected"),
                format!("the {role} of site {site} was last heard of too long ago"),
            )),
            None => Err(Fault::new(
                code::NO_COMPONENT,
                format!("site {site} has no {role}"),
                "none has ever registered there",
            )),
        }
    }

    /// The machine of that name at a site, as its process server last told, and whether that is fresh.
    pub fn machine(&self, site: &SiteName, name: &str) -> Option<(&Machine, bool)> {
        let component = self.at(site, Role::ProcessServer)?;
        let fresh = self.connected(&component);
        let machines = &self.components.get(&component)?.machines;
        machines.iter().find(|machine| machine.spec.name == name).map(|machine| (machine, fresh))
    }

    /// Whether a machine is known to run at a site now.
    pub fn runs(&self, site: &SiteName, name: &str) -> bool {
        self.machine(site, name).is_some_and(|(machine, fresh)| fresh && machine.power == Power::Running)
    }

    /// How an item's replication stands, as the process server at `site` last told, and whether that is fresh.
    pub fn status(&self, site: &SiteName, item: &ItemId) -> Option<(&ReplicationStatus, bool)> {
        let component = self.at(site, Role::ProcessServer)?;
        let fresh = self.connected(&component);
        let statuses = &self.components.get(&component)?.statuses;
        statuses.iter().find(|status| status.item == *item).map(|status| (status, fresh))
    }

    /// How an item's history stands at `site`, as a master target there that is connected last told.
    pub fn keeping(&self, site: &SiteName, item: &ItemId) -> Option<&KeepingStatus> {
        let names = self.all_at(site, Role::MasterTarget).into_iter().filter(|name| self.connected(name));
        let told = names.filter_map(|name| self.components.get(&name)).flat_map(|component| &component.keepings);
        let mut told = told.filter(|keeping| keeping.item == *item);
        told.next()
    }

    /// What a site has beside machines, if its process server told.
    pub fn facts(&self, site: &SiteName) -> Option<&SiteFacts> {
        self.components.get(&self.at(site, Role::ProcessServer)?)?.site.as_ref()
    }

    /// The kind of hypervisor at a site, as its process server said.
    pub fn platform(&self, site: &SiteName) -> Option<&str> {
        let component = self.components.get(&self.at(site, Role::ProcessServer)?)?;
        Some(&component.registration.platform)
    }

    /// The components that registered with the credential of that number, in order.
    pub fn of_host(&self, host: i64) -> Vec<String> {
        let of_it = self.components.iter().filter(|(_, component)| component.host == Some(host));
        of_it.map(|(name, _)| name.clone()).collect()
    }

    /// Every site that has a component, in order.
    pub fn sites(&self) -> Vec<SiteName> {
        let all: std::collections::BTreeSet<&SiteName> =
            self.components.values().map(|component| &component.registration.site).collect();
        all.into_iter().cloned().collect()
    }

    /// All components as people see them.
    pub fn views(&self) -> Vec<ComponentView> {
        self.components
            .iter()
            .map(|(name, component)| ComponentView {
                name: name.clone(),
                site: component.registration.site.clone(),
                role: component.registration.role,
                address: component.registration.address.clone(),
                version: component.registration.version.clone(),
                platform: component.registration.platform.clone(),
                seen_at_ms: component.seen_at_ms,
                connected: self.connected(name),
                bandwidth: component.bandwidth.clone(),
            })
            .collect()
    }

    /// Takes a registration over. A name stays with its site and role.
    pub fn register(&mut self, registration: Registration) -> Result<(), Fault> {
        let name = registration.name.clone();
        if name.is_empty() || name.len() > 100 {
            return Err(Fault::new(
                code::BAD_REQUEST,
                "the component's name is not usable",
                "1 to 100 bytes are allowed",
            ));
        }
        match self.components.get_mut(&name) {
            Some(known)
                if known.registration.site != registration.site || known.registration.role != registration.role =>
            {
                Err(Fault::new(
                    code::BAD_REQUEST,
                    format!("{name} is the name of another component"),
                    format!("it is the {} of site {}", known.registration.role, known.registration.site),
                ))
            }
            Some(known) => {
                known.registration = registration;
                known.handed.clear();
                known.working.clear();
                Ok(())
            }
            None => {
                self.components.insert(name, Component::new(registration));
                Ok(())
            }
        }
    }
}

/// A component's row, taken from memory while it was locked, to be written afterwards.
#[derive(Debug)]
pub struct Saved {
    name: String,
    registration: String,
    seen_at_ms: i64,
    list_number: i64,
    list_digest: String,
    statuses: String,
    machines: String,
}

impl Saved {
    /// What is to be written of `component`.
    pub fn of(component: &Component) -> Result<Saved, Fault> {
        Ok(Saved {
            name: component.registration.name.clone(),
            registration: to_text(&component.registration)?,
            seen_at_ms: component.seen_at_ms,
            list_number: i64::try_from(component.list_number).unwrap_or(i64::MAX),
            list_digest: component.list_digest.clone(),
            statuses: to_text(&component.statuses)?,
            machines: to_text(&component.machines)?,
        })
    }
}

/// Writes a component's row, unless newer wishes were made for it meanwhile.
pub async fn save_text(on: &mut SqliteConnection, saved: &Saved) -> Result<(), Fault> {
    sqlx::query(
        "insert into component (name, registration, seen_at_ms, list_number, list_digest, statuses, machines)
         values ($1, $2, $3, $4, $5, $6, $7)
         on conflict (name) do update set registration = $2, seen_at_ms = $3, list_number = $4, list_digest = $5,
                                          statuses = $6, machines = $7
         where component.list_number <= $4",
    )
    .bind(&saved.name)
    .bind(&saved.registration)
    .bind(saved.seen_at_ms)
    .bind(saved.list_number)
    .bind(&saved.list_digest)
    .bind(&saved.statuses)
    .bind(&saved.machines)
    .execute(on)
    .await
    .map_err(failed)?;
    Ok(())
}
