//! Two sites with a line between them: a simulated machine and a process server here, a master target there.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]
#![allow(dead_code, reason = "no test needs all of it")]

pub mod back;
pub mod control;
pub mod qemu;
pub mod sender;
pub mod wire;

use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use component::{Dialler, Listen};
use identity::Credentials;
use platforms::simulated::Simulated;
use platforms::{Platform, Start};
use protocol::epoch::{DiskSize, Point};
use protocol::keeping::{ItemManifest, Keeping};
use protocol::leaf::LeafSize;
use protocol::machine::{Boot, DiskFormat, DiskSource, DiskSpec, MachineSpec};
use protocol::order::{Grant, Order, Outcome, Replication, ReplicationStatus, Sync};
use protocol::replication::{Peer, Target};
use protocol::retention::Retention;
use protocol::stage::{Side, Stage};
use protocol::verified::Verified;
use protocol::{Attempt, Bandwidth, DiskKey, Fault, Lineage, PolicyName};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use self::control::Control;
use self::wire::Wire;

pub const NAME: &str = "web01";
pub const TOKEN: &str = "the secret of this direction";
pub const GENERATION: u64 = 3;
/// Two disks; the second ends inside a block.
pub const SIZES: [u64; 2] = [4 << 20, (2 << 20) + 12288];
pub const PATIENCE: Duration = Duration::from_secs(60);
pub const PROCESS_SERVER: &str = "home-process-server";
pub const MASTER_TARGET: &str = "cloud-master-target";

/// Numbers that are the same in every run.
pub struct Dice(pub u64);

impl Dice {
    pub fn roll(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    pub fn below(&mut self, bound: u64) -> u64 {
        self.roll() % bound
    }

    /// Bytes that do not shrink, for a whole number of sectors.
    pub fn noise(&mut self, bytes: u64) -> Vec<u8> {
        let sector = |dice: &mut Dice| {
            // From somewhere else in the same sequence: otherwise sectors repeat each other.
            let mut inner = Dice(dice.roll().wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
            [(); 64].map(|()| inner.roll().to_le_bytes())
        };
        (0..bytes / 512).flat_map(|_| sector(self)).flatten().collect()
    }
}

struct Part {
    stop: oneshot::Sender<()>,
    task: JoinHandle<Result<(), Fault>>,
}

impl Part {
    async fn end(self) {
        let _ = self.stop.send(());
        self.task.await.unwrap().unwrap();
    }
}

pub struct Sites {
    dir: tempfile::TempDir,
    pub control: Control,
    pub wire: Wire,
    pub home: Simulated,
    /// What the process server steers: `home`, unless a test puts something else in its place.
    pub platform: Arc<dyn Platform>,
    /// The other site's hypervisor, which outlives its master target.
    pub cloud: Simulated,
    pub lineage: Lineage,
    pub dice: Dice,
    /// What the master target steers: `cloud`, unless a test puts something else in its place.
    pub target_platform: Arc<dyn Platform>,
    process_server: Option<Part>,
    master_target: Option<Part>,
    /// Where the master target listens.
    pub address: String,
    /// Connections of each link that the process server makes.
    pub connections: u8,
    /// Whether the master target dials the process server.
    pub outbound_only: bool,
    /// How fast the item may be replicated.
    pub bandwidth: Bandwidth,
}

pub fn key(place: usize) -> DiskKey {
    format!("disk{place}").parse().unwrap()
}

pub fn disks() -> Vec<DiskSize> {
    SIZES.iter().enumerate().map(|(place, size)| DiskSize { disk: key(place), size: *size }).collect()
}

fn anywhere() -> Listen {
    Listen { address: "127.0.0.1:0".parse().unwrap(), advertise: "127.0.0.1:0".into() }
}

/// What the master target is to keep of the item, by default.
pub fn keeping(lineage: Lineage) -> Keeping {
    let manifest = ItemManifest {
        home: "home".parse().unwrap(),
        away: "cloud".parse().unwrap(),
        machine: MachineSpec {
            name: NAME.into(),
            memory_mib: 64,
            vcpus: 1,
            boot: Boot::Firmware,
            disks: vec![],
            cards: vec![],
            seed: None,
            native: std::collections::BTreeMap::new(),
        },
        generation: GENERATION,
        stage: Stage::Protected { runs_at: Side::Home },
        policy: PolicyName::standard(),
        rpo_limit_ms: 900_000,
        interval_ms: 1000,
        bandwidth: Bandwidth::default(),
        app_interval_ms: 0,
        leaf_bytes: LeafSize::default(),
    };
    let retention = Retention::default();
    let leaf_bytes = LeafSize::default();
    Keeping { item: NAME.parse().unwrap(), lineage, retention, leaf_bytes, sender: None, manifest }
}

impl Sites {
    /// A running machine at home, and a replica at the other site that waits for its first epoch.
    pub async fn prepared(seed: u64) -> Sites {
        Sites::with(seed, false, disks()).await
    }

    /// The same with a replica of other disks: of a machine that a test puts in the place of the simulated one.
    pub async fn prepared_for(seed: u64, replica: Vec<DiskSize>) -> Sites {
        Sites::with(seed, false, replica).await
    }

    /// The same with a master target that nobody can dial.
    pub async fn outbound_only(seed: u64) -> Sites {
        Sites::with(seed, true, disks()).await
    }

    async fn with(seed: u64, outbound_only: bool, replica: Vec<DiskSize>) -> Sites {
        let dir = tempfile::tempdir().unwrap();
        for site in ["home", "cloud", "cloud/site"] {
            std::fs::create_dir(dir.path().join(site)).unwrap();
        }
        let cloud = Simulated::open(&dir.path().join("cloud/site")).await.unwrap();
        let mut dice = Dice(seed);
        let home = Simulated::open(&dir.path().join("home")).await.unwrap();
        let mut specs = Vec::new();
        for disk in disks() {
            let path = format!("{}.img", disk.disk);
            home.put_disk(&path, dice.noise(disk.size));
            let source = DiskSource::Own { path, format: DiskFormat::Raw };
            specs.push(DiskSpec { key: disk.disk, size: disk.size, source });
        }
        let native = std::collections::BTreeMap::new();
        let spec = MachineSpec {
            name: NAME.into(),
            memory_mib: 64,
            vcpus: 1,
            boot: Boot::Firmware,
            disks: specs,
            cards: vec![],
            seed: None,
            native,
        };
        home.define(&spec).await.unwrap();
        home.start(NAME, Start::default()).await.unwrap();
        let (control, wire) = (Control::start().await, Wire::stretch().await);
        let mut sites = Sites {
            dir,
            control,
            wire,
            platform: Arc::new(home.clone()),
            home,
            target_platform: Arc::new(cloud.clone()),
            cloud,
            lineage: Lineage::fresh(),
            dice,
            process_server: None,
            master_target: None,
            address: String::new(),
            connections: 2,
            outbound_only,
            bandwidth: Bandwidth::default(),
        };
        sites.start_master_target().await;
        let grant = Grant { generation: GENERATION, token: TOKEN.into() };
        let item = NAME.parse().unwrap();
        let prepare = Order::PrepareReplica { item, lineage: sites.lineage, disks: replica, grant, own: None };
        sites.control.order(MASTER_TARGET, prepare).await.unwrap();
        sites
    }

    /// As [`Sites::prepared`], and epochs flow.
    pub async fn replicating(seed: u64) -> Sites {
        let mut sites = Sites::prepared(seed).await;
        sites.replicate().await;
        sites
    }

    /// Lets epochs flow.
    pub async fn replicate(&mut self) {
        self.tell();
        self.start_process_server().await;
    }

    /// Tells the process server what is wanted now.
    pub fn tell(&self) {
        self.control.replicate(PROCESS_SERVER, vec![self.wish(30)]);
    }

    /// What is to be replicated, an epoch every `interval_ms`.
    pub fn wish(&self, interval_ms: u64) -> Replication {
        let target = match self.outbound_only {
            true => Target::Await(MASTER_TARGET.into()),
            false => Target::Dial(Peer { name: MASTER_TARGET.into(), address: self.wire.address.clone() }),
        };
        Replication {
            item: NAME.parse().unwrap(),
            machine: NAME.into(),
            lineage: self.lineage,
            generation: GENERATION,
            target,
            token: TOKEN.into(),
            standpoint: None,
            beneath: None,
            sync: Sync::Tracked,
            interval_ms,
            offline: false,
            quiesced: false,
            bandwidth: self.bandwidth.clone(),
            app_interval_ms: 0,
        }
    }

    /// How fast the process server may send in all.
    pub fn cap_all(&self, bandwidth: Bandwidth) {
        self.control.cap(PROCESS_SERVER, bandwidth);
    }

    /// Waits until the process server goes by what it was told last.
    pub async fn is_told(&self) {
        self.control.is_told(PROCESS_SERVER).await;
    }

    /// Has the machine shut down and its last epoch sent.
    pub async fn last_epoch(&self) -> Outcome {
        let order = Order::ShutDown { machine: NAME.into(), timeout_ms: 10_000, then_power_off: true };
        self.control.order(PROCESS_SERVER, order).await.unwrap();
        let order = Order::FinalDelta { item: NAME.parse().unwrap() };
        self.control.order(PROCESS_SERVER, order).await.unwrap()
    }

    /// The replication's status, once `look` is content with it.
    pub async fn status(&self, what: &str, look: impl Fn(&ReplicationStatus) -> bool) -> ReplicationStatus {
        self.control.status(PROCESS_SERVER, what, look).await
    }

    pub async fn start_process_server(&mut self) {
        self.launch_process_server();
        if let Some(address) = self.control.registered(PROCESS_SERVER).await {
            self.wire.lead_to(address);
        }
    }

    /// Has the master target dial the process server.
    pub fn let_it_dial(&self) {
        let mut keeping = keeping(self.lineage);
        keeping.sender = Some(Peer { name: PROCESS_SERVER.into(), address: self.wire.address.clone() });
        self.control.keep(MASTER_TARGET, vec![keeping]);
    }

    /// Waits until the replication shows a fault of that code.
    pub async fn says(&self, entry: &protocol::fault::Entry) {
        let shows = |status: &ReplicationStatus| status.fault.as_ref().is_some_and(|fault| fault.is(entry));
        self.control.status(PROCESS_SERVER, entry.title, shows).await;
    }

    /// Starts it, whether control can be reached or not.
    pub fn launch_process_server(&mut self) {
        let config = process_server::Config {
            name: PROCESS_SERVER.into(),
            site: "home".parse().unwrap(),
            server: self.control.url.clone(),
            join_token: "join".into(),
            data_dir: self.dir.path().join("home"),
            connections: self.connections,
            listen: self.outbound_only.then(anywhere),
            platform: self.platform.clone(),
        };
        let (stop, stopped) = oneshot::channel();
        let task = tokio::spawn(process_server::run(config, async { drop(stopped.await) }));
        self.process_server = Some(Part { stop, task });
    }

    pub async fn stop_process_server(&mut self) {
        self.process_server.take().unwrap().end().await;
        self.control.forget_status(PROCESS_SERVER);
    }

    pub async fn start_master_target(&mut self) {
        let cloud = self.dir.path().join("cloud");
        let config = master_target::Config {
            name: MASTER_TARGET.into(),
            site: "cloud".parse().unwrap(),
            server: self.control.url.clone(),
            join_token: "join".into(),
            data_dir: cloud.clone(),
            retention: cloud.join("retention"),
            listen: (!self.outbound_only).then(anywhere),
            connections: self.connections,
            platform: self.target_platform.clone(),
        };
        let (stop, stopped) = oneshot::channel();
        let task = tokio::spawn(master_target::run(config, async { drop(stopped.await) }));
        self.master_target = Some(Part { stop, task });
        if let Some(address) = self.control.registered(MASTER_TARGET).await {
            self.wire.lead_to(address.clone());
            self.address = address;
        }
    }

    pub async fn stop_master_target(&mut self) {
        self.master_target.take().unwrap().end().await;
    }

    /// Dials as somebody of that name whom control has certified.
    pub fn dialler(&self, name: &str) -> Dialler {
        let credentials = Credentials::open(&self.dir.path().join(format!("{name}.pem"))).unwrap();
        credentials.replace(self.control.certified(name)).unwrap();
        Dialler { credentials: Arc::new(credentials), connections: 1 }
    }

    /// The guest writes: anything from some bytes to a few blocks, zeroes now and then.
    pub fn scribble(&mut self, writes: u64) {
        for _ in 0..writes {
            let place = self.dice.below(2) as usize;
            let offset = self.dice.below(SIZES[place]);
            let length = (1 + self.dice.below(200 << 10)).min(SIZES[place] - offset);
            let value = if self.dice.below(5) == 0 { 0 } else { self.dice.roll() as u8 };
            self.home.write(NAME, &key(place), offset, &vec![value; length as usize]).unwrap();
        }
    }

    /// Waits until a point is sealed that was cut after this call.
    pub async fn seals(&self) -> ReplicationStatus {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis() as u64;
        let newer = |status: &ReplicationStatus| status.newest.as_ref().is_some_and(|point| point.cut_at_ms > now);
        self.control.status(PROCESS_SERVER, "sealed what was written", newer).await
    }

    /// Waits until a point is sealed that was cut after this call, and checks that the replica is the machine.
    pub async fn must_become_equal(&self, when: &str) -> ReplicationStatus {
        let status = self.seals().await;
        for place in 0..SIZES.len() {
            let (here, there) = (self.home.content(NAME, &key(place)).unwrap(), self.replica(place));
            let differ = here.iter().zip(&there).filter(|(a, b)| a != b).count();
            assert!(
                here == there,
                "the replica is not what the machine is {when}: {differ} bytes of disk {place} differ"
            );
        }
        status
    }

    /// Waits until the replica is the machine, whether control can be reached or not.
    pub async fn becomes_equal(&self) {
        let deadline = tokio::time::Instant::now() + PATIENCE;
        let equal = |place| self.home.content(NAME, &key(place)).unwrap() == self.replica(place);
        while !(0..SIZES.len()).all(equal) {
            assert!(tokio::time::Instant::now() < deadline, "the replica never became what the machine is");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// The bytes of a replica's disk.
    pub fn replica(&self, place: usize) -> Vec<u8> {
        std::fs::read(self.replica_file(place)).unwrap()
    }

    /// Where they are.
    pub fn replica_file(&self, place: usize) -> PathBuf {
        self.dir.path().join("cloud/replicas").join(NAME).join(format!("{}.raw", key(place)))
    }

    /// Has the process server carry an order out.
    pub async fn order_source(&self, order: Order) -> Result<Outcome, Fault> {
        self.control.order(PROCESS_SERVER, order).await
    }

    /// Has the master target carry an order out.
    pub async fn order(&self, order: Order) -> Result<Outcome, Fault> {
        self.control.order(MASTER_TARGET, order).await
    }

    /// Whether the master target left something where overlays are kept.
    pub fn overlays(&self) -> Vec<String> {
        let found = std::fs::read_dir(self.dir.path().join("cloud/raised")).unwrap();
        found.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }

    /// A folder for what a test writes.
    pub fn folder(&self) -> PathBuf {
        self.dir.path().to_path_buf()
    }

    /// Every point that the replica keeps.
    pub async fn points(&self) -> Vec<Point> {
        self.kept().await.0
    }

    /// The pinned ones.
    pub async fn pins(&self) -> Vec<Attempt> {
        self.kept().await.1
    }

    async fn kept(&self) -> (Vec<Point>, Vec<Attempt>) {
        let order = Order::ListPoints { item: NAME.parse().unwrap() };
        match self.control.order(MASTER_TARGET, order).await.unwrap() {
            Outcome::Points { points, pins } => (points, pins),
            other => panic!("{other:?}"),
        }
    }

    /// Waits until the master target has written down what control knows of the item.
    pub async fn is_remembered(&self, manifest: &ItemManifest) {
        let file = self.dir.path().join("cloud/items").join(format!("{NAME}.json"));
        let deadline = tokio::time::Instant::now() + PATIENCE;
        loop {
            let record: serde_json::Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
            if record["manifest"] == serde_json::to_value(manifest).unwrap() {
                return;
            }
            assert!(tokio::time::Instant::now() < deadline, "{record}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// What a scrub of the replica finds.
    pub async fn verified(&self) -> Verified {
        let order = Order::Verify { item: NAME.parse().unwrap() };
        match self.control.order(MASTER_TARGET, order).await.unwrap() {
            Outcome::Verified { verified } => verified,
            other => panic!("{other:?}"),
        }
    }

    /// Changes a byte of a replica's disk behind everybody's back.
    pub fn decay(&self, place: usize, offset: u64) {
        let file = std::fs::File::options().read(true).write(true).open(self.replica_file(place)).unwrap();
        let mut byte = [0];
        file.read_exact_at(&mut byte, offset).unwrap();
        file.write_all_at(&[byte[0] ^ 1], offset).unwrap();
    }

    /// Waits until the process server has registered once more.
    pub async fn renewed(&self) {
        self.control.registered(PROCESS_SERVER).await;
    }

    /// The codes of all faults that the replication ever showed.
    pub fn faults(&self) -> std::collections::BTreeSet<String> {
        self.control.faults(PROCESS_SERVER)
    }

    /// Ends everything in order.
    pub async fn end(mut self) {
        if self.process_server.is_some() {
            self.stop_process_server().await;
        }
        self.stop_master_target().await;
    }
}
