//! Network cards: every platform keeps them, and what is connected to nothing is.

use platforms::Start;
use protocol::machine::DiskFormat::Raw;
use protocol::machine::{Connection, NetworkCard, Power};
use serde_json::json;

use crate::bench::{self, Bench, qmp};
use crate::rig::{NAME, Rig};

fn card(mac: &str, connection: Connection) -> NetworkCard {
    NetworkCard { mac: mac.into(), connection }
}

pub async fn a_machine_keeps_its_network_cards_and_starts_with_them_connected_to_nothing(bench: &dyn Bench) {
    let platform = bench.platform();
    let mut rig = Rig::own(bench, &[Raw]).await;
    rig.spec.cards = vec![
        card("52:54:00:00:00:01", Connection::Network("user".into())),
        card("52:54:00:00:00:02", Connection::Network("user".into())),
    ];
    platform.define(&rig.spec).await.unwrap();
    assert_eq!(platform.machine(NAME).await.unwrap().unwrap().spec.cards, rig.spec.cards);
    let test = rig.spec.isolated(NAME, None);
    assert_eq!(test.cards.iter().map(|card| &card.mac).collect::<Vec<_>>(), ["52:54:00:00:00:01", "52:54:00:00:00:02"]);
    assert!(test.cards.iter().all(|card| card.connection == Connection::Nothing));
    platform.define(&test).await.unwrap();
    platform.start(NAME, Start::default()).await.unwrap();
    assert_eq!(rig.power().await, Power::Running);
    assert_eq!(platform.machine(NAME).await.unwrap().unwrap().spec.cards, test.cards);
}

#[tokio::test]
async fn qemu_itself_says_that_a_test_machines_cards_reach_nobody() {
    let bench = bench::qemu().await;
    let mut rig = Rig::own(&bench, &[Raw]).await;
    rig.spec.cards = vec![card("52:54:00:00:00:01", Connection::Network("user".into()))];
    for isolated in [false, true] {
        let spec = if isolated { rig.spec.isolated(NAME, None) } else { rig.spec.clone() };
        bench.platform().define(&spec).await.unwrap();
        rig.start().await;
        let command = json!({ "command-line": "info network" });
        let folder = bench.dir().join("machines").join(NAME);
        let told = qmp(folder.join("life-0.sock"), "human-monitor-command", command).await;
        let told = told.as_str().unwrap();
        assert!(told.contains("macaddr=52:54:00:00:00:01"), "{told}");
        assert_eq!(told.contains("type=user"), !isolated, "{told}");
        let alone_on_a_hub = told.starts_with("hub 0") && told.matches(" \\ ").count() == 1;
        assert_eq!(alone_on_a_hub, isolated, "{told}");
        bench.platform().power_off(NAME).await.unwrap();
        bench.platform().settle(NAME, rig.lineage).await.unwrap();
    }
}
