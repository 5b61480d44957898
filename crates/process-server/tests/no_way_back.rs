//! A copy that is taken over without retention space: what it held is overwritten and not kept (H14). Given up half-way it
//! is damaged, may not be started, and is repaired by being taken over again.

#![allow(clippy::unwrap_used)]

use crate::sites::sender::Sender;
use crate::sites::{GENERATION, MASTER_TARGET, NAME, SIZES, Sites, TOKEN, disks, key};
use protocol::fault::code;
use protocol::machine::{Boot, DiskFormat, DiskSource, DiskSpec, MachineSpec, Settled};
use protocol::order::{Grant, Order, Outcome};
use protocol::position::{Changes, Distrust};
use protocol::{Attempt, BLOCK, Fault};

fn at(generation: u64) -> Attempt {
    Attempt { generation, number: 1 }
}

async fn order(sites: &Sites, order: Order) -> Result<Outcome, Fault> {
    sites.control.order(MASTER_TARGET, order).await
}

async fn take_over(sites: &Sites, generation: u64, no_way_back: bool) -> Option<Attempt> {
    let order = self::order(
        sites,
        Order::TakeOver {
            item: NAME.parse().unwrap(),
            lineage: sites.lineage,
            machine: NAME.into(),
            settled: Settled {
                since: None,
                changes: Changes::Unknown(Distrust::MapAbsent),
                stamps: Default::default(),
            },
            authored: None,
            grant: Grant { generation, token: TOKEN.into() },
            no_way_back,
        },
    );
    match order.await.unwrap() {
        Outcome::Taken { kept, .. } => kept.map(|kept| kept.attempt),
        other => panic!("{other:?}"),
    }
}

async fn close(sites: &Sites) {
    order(sites, Order::CloseReplica { item: NAME.parse().unwrap() }).await.unwrap();
}

async fn give_back(sites: &Sites) -> Result<Outcome, Fault> {
    order(sites, Order::GiveBack { item: NAME.parse().unwrap() }).await
}

async fn raise(sites: &Sites, generation: u64) -> Result<Outcome, Fault> {
    let disk = |(place, size): (usize, &u64)| DiskSpec {
        key: key(place),
        size: *size,
        source: DiskSource::Own { path: format!("disk{place}.img"), format: DiskFormat::Raw },
    };
    let disks = SIZES.iter().enumerate().map(disk).collect();
    let spec = MachineSpec {
        name: NAME.into(),
        memory_mib: 64,
        vcpus: 1,
        boot: Boot::Firmware,
        disks,
        cards: vec![],
        seed: None,
        native: Default::default(),
    };
    order(sites, Order::Raise { item: NAME.parse().unwrap(), spec, point: None, generation }).await
}

/// Opens the first epoch of a generation and sends all of both disks.
async fn copy(sites: &Sites, generation: u64, base: Option<Attempt>, value: u8) -> Sender {
    let mut sender = Sender::dial(sites, TOKEN, generation).await.unwrap();
    sender.open(sites.lineage, at(generation), base, disks()).await.unwrap();
    for (disk, size) in SIZES.iter().enumerate() {
        for index in 0..size / BLOCK {
            sender.block(disk as u16, index, value).await;
        }
    }
    sender
}

async fn seal(mut sender: Sender, generation: u64) {
    let totals = sender.totals;
    sender.seal(at(generation), totals).await.unwrap();
}

/// A copy whose only point is the first of [`GENERATION`], at rest.
async fn at_rest() -> Sites {
    let sites = Sites::prepared(11).await;
    seal(copy(&sites, GENERATION, None, 3).await, GENERATION).await;
    close(&sites).await;
    sites
}

fn must_be_damaged<T: std::fmt::Debug>(refused: Result<T, Fault>) {
    let fault = refused.unwrap_err();
    assert!(fault.is(code::DAMAGED), "{fault:?}");
    assert!(fault.remedy.contains("sockeye failback"), "{fault:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn given_up_half_way_it_is_damaged_also_after_a_restart_and_the_next_copy_repairs_it() {
    let mut sites = at_rest().await;
    assert_eq!(take_over(&sites, 4, true).await, Some(at(GENERATION)));
    let half = copy(&sites, 4, Some(at(GENERATION)), 4).await;
    must_be_damaged(give_back(&sites).await);
    drop(half);
    assert_eq!(sites.points().await, vec![]);
    must_be_damaged(raise(&sites, 4).await);
    sites.stop_master_target().await;
    sites.start_master_target().await;
    must_be_damaged(raise(&sites, 4).await);
    must_be_damaged(give_back(&sites).await);
    // Run again.
    assert_eq!(take_over(&sites, 5, true).await, None);
    seal(copy(&sites, 5, None, 5).await, 5).await;
    close(&sites).await;
    assert!(sites.replica(0).iter().all(|byte| *byte == 5));
    assert_eq!(sites.points().await.len(), 1);
    raise(&sites, 6).await.unwrap();
    sites.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_copy_that_was_overwritten_whole_is_not_given_back_as_if_it_were_what_it_was() {
    let sites = at_rest().await;
    take_over(&sites, 4, true).await;
    seal(copy(&sites, 4, Some(at(GENERATION)), 4).await, 4).await;
    must_be_damaged(give_back(&sites).await);
    must_be_damaged(raise(&sites, 5).await);
    // Its point is a base that both sides know: the next direction begins there.
    assert_eq!(take_over(&sites, 5, false).await, Some(at(4)));
    must_be_damaged(give_back(&sites).await);
    take_over(&sites, 6, false).await;
    seal(copy(&sites, 6, Some(at(4)), 6).await, 6).await;
    close(&sites).await;
    raise(&sites, 7).await.unwrap();
    sites.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn before_the_first_data_it_is_given_back_as_it_was() {
    let sites = at_rest().await;
    take_over(&sites, 4, true).await;
    drop(Sender::dial(&sites, TOKEN, 4).await.unwrap());
    give_back(&sites).await.unwrap();
    assert!(sites.replica(0).iter().all(|byte| *byte == 3));
    assert_eq!(sites.points().await.len(), 1);
    raise(&sites, 5).await.unwrap();
    sites.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_a_way_back_the_same_copy_is_what_it_was() {
    let sites = at_rest().await;
    take_over(&sites, 4, false).await;
    let half = copy(&sites, 4, Some(at(GENERATION)), 4).await;
    give_back(&sites).await.unwrap();
    drop(half);
    assert!(sites.replica(0).iter().all(|byte| *byte == 3));
    sites.end().await;
}
