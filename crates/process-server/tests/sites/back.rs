//! The way back: the machine runs at the other site, on what was replicated to it; a process server there and a master
//! target at home, which takes the old primary over.

use std::sync::Arc;

use platforms::Platform;
use protocol::machine::{Boot, DiskFormat, DiskSource, DiskSpec, MachineSpec, Settled};
use protocol::order::{Grant, Order, Outcome, Replication, ReplicationStatus, Sync};
use protocol::position::{Changes, Distrust};
use protocol::replication::{Peer, Target};
use protocol::{Attempt, Position};
use tokio::sync::oneshot;

use super::wire::Wire;
use super::{GENERATION, MASTER_TARGET, NAME, Part, SIZES, Sites, anywhere, key};

pub const TOKEN: &str = "the secret of the way back";
pub const RAISED: u64 = GENERATION + 1;
const SENDER: &str = "cloud-process-server";
const RECEIVER: &str = "home-master-target";

pub struct Back {
    pub sites: Sites,
    /// Between the process server at the other site and the master target at home.
    pub line: Wire,
    pub standpoint: Position,
    sender: Option<Part>,
    receiver: Part,
}

impl Back {
    /// Raises the machine at the other site, and takes the old primary over, of which nothing is known.
    pub async fn from(sites: Sites, home: Arc<dyn Platform>) -> Back {
        let item = || NAME.parse().unwrap();
        sites.order(Order::CloseReplica { item: item() }).await.unwrap();
        sites.order(Order::Raise { item: item(), spec: spec(), point: None, generation: RAISED }).await.unwrap();
        sites.order(Order::Release { item: item() }).await.unwrap();
        let (line, data_dir) = (Wire::stretch().await, sites.folder().join("back"));
        let config = master_target::Config {
            name: RECEIVER.into(),
            site: "home".parse().unwrap(),
            server: sites.control.url.clone(),
            join_token: "join".into(),
            retention: data_dir.join("retention"),
            data_dir,
            listen: Some(anywhere()),
            connections: 1,
            platform: home,
        };
        let (stop, stopped) = oneshot::channel();
        let task = tokio::spawn(master_target::run(config, async { drop(stopped.await) }));
        line.lead_to(sites.control.registered(RECEIVER).await.unwrap());
        take_over(&sites).await;
        let standpoint = Order::Standpoint { item: item(), reader: Some(TOKEN.into()) };
        let Outcome::Stands { position } = sites.order(standpoint).await.unwrap() else { panic!("it stands nowhere") };
        Back { sites, line, standpoint: position, sender: None, receiver: Part { stop, task } }
    }

    /// Where the master target is that the machine stands on.
    pub fn beneath(&self) -> Peer {
        Peer { name: MASTER_TARGET.into(), address: self.sites.address.clone() }
    }

    /// Lets epochs flow home.
    pub async fn replicate(&mut self, sync: Sync, beneath: Option<Peer>) {
        let wish = Replication {
            generation: RAISED,
            target: Target::Dial(self.receiver()),
            token: TOKEN.into(),
            standpoint: Some(self.standpoint.clone()),
            beneath,
            sync,
            ..self.sites.wish(30)
        };
        self.sites.control.replicate(SENDER, vec![wish]);
        let config = process_server::Config {
            name: SENDER.into(),
            site: "cloud".parse().unwrap(),
            server: self.sites.control.url.clone(),
            join_token: "join".into(),
            data_dir: self.sites.folder().join("cloud-sender"),
            connections: 1,
            listen: None,
            platform: Arc::new(self.sites.cloud.clone()),
        };
        let (stop, stopped) = oneshot::channel();
        let task = tokio::spawn(process_server::run(config, async { drop(stopped.await) }));
        self.sender = Some(Part { stop, task });
        self.sites.control.registered(SENDER).await;
    }

    /// The master target at home, at the other end of the line.
    pub fn receiver(&self) -> Peer {
        Peer { name: RECEIVER.into(), address: self.line.address.clone() }
    }

    /// The way back is given up, and begun again later: nothing flows meanwhile.
    pub async fn give_up_and_begin_again(&mut self) {
        self.sites.control.replicate(SENDER, vec![]);
        if let Some(sender) = self.sender.take() {
            sender.end().await;
        }
        self.sites.control.forget_status(SENDER);
        let give_back = Order::GiveBack { item: NAME.parse().unwrap() };
        self.sites.control.order(RECEIVER, give_back).await.unwrap();
        take_over(&self.sites).await;
    }

    /// The status once the first epoch is sealed.
    pub async fn sealed(&self) -> ReplicationStatus {
        let first = |status: &ReplicationStatus| status.first_moved.is_some();
        self.sites.control.status(SENDER, "sealed the first epoch home", first).await
    }

    /// What the machine sees at the other site.
    pub fn content(&self, place: usize) -> Vec<u8> {
        self.sites.cloud.content(NAME, &key(place)).unwrap()
    }

    /// The point that the copy at the other site ends with.
    pub fn point(&self) -> Attempt {
        self.standpoint.base
    }

    /// Ends everything in order.
    pub async fn end(mut self) {
        if let Some(sender) = self.sender.take() {
            sender.end().await;
        }
        self.receiver.end().await;
        self.sites.end().await;
    }
}

/// Takes the old primary over, of which nothing is known.
async fn take_over(sites: &Sites) {
    let changes = Changes::Unknown(Distrust::MapAbsent);
    let take_over = Order::TakeOver {
        item: NAME.parse().unwrap(),
        lineage: sites.lineage,
        machine: NAME.into(),
        settled: Settled { since: None, changes, stamps: Default::default() },
        authored: Some(GENERATION),
        grant: Grant { generation: RAISED, token: TOKEN.into() },
        no_way_back: false,
    };
    sites.control.order(RECEIVER, take_over).await.unwrap();
}

fn spec() -> MachineSpec {
    let disk = |(place, size): (usize, &u64)| DiskSpec {
        key: key(place),
        size: *size,
        source: DiskSource::Own { path: format!("disk{place}.img"), format: DiskFormat::Raw },
    };
    MachineSpec {
        name: NAME.into(),
        memory_mib: 64,
        vcpus: 1,
        boot: Boot::Firmware,
        disks: SIZES.iter().enumerate().map(disk).collect(),
        cards: vec![],
        seed: None,
        native: Default::default(),
    }
}
