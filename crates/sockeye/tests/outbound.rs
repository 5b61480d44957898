//! A home that nobody can dial: a firewall drops what comes in, and the machine is protected, failed over and brought home
//! all the same. Its components dial out, for epochs in both directions.
#![allow(clippy::unwrap_used)]

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::Stdio;

use crate::scene::{now_ms, play_on};
use anyhow::ensure;
use demo::net::{Hosts, Net};
use demo::world::{At, MACHINE};
use protocol::rest::JobState;

const HOME: usize = 0;
const CLOUD: usize = 1;

/// Whether a connection from a host to one that listens at home comes about.
pub fn reaches_home(net: &Net, from: usize) -> anyhow::Result<bool> {
    let address = net.address(HOME);
    let listen =
        format!("import socket; s = socket.create_server(('{address}', 7999)); print('up', flush=True); s.accept()");
    let mut listener =
        net.command(HOME, Path::new("python3"), None).args(["-c", &listen]).stdout(Stdio::piped()).spawn()?;
    let mut said = String::new();
    if let Some(out) = listener.stdout.take() {
        BufReader::new(out).read_line(&mut said)?;
    }
    let dial = format!("import socket; socket.create_connection(('{address}', 7999), timeout=3)");
    let dialled = net.command(from, Path::new("python3"), None).args(["-c", &dial]).stderr(Stdio::piped()).output();
    listener.kill()?;
    listener.wait()?;
    let dialled = dialled?;
    ensure!(said == "up\n", "nobody listened at home");
    let why = String::from_utf8_lossy(&dialled.stderr);
    ensure!(dialled.status.success() || why.contains("timed out"), "it failed for another reason: {why}");
    Ok(dialled.status.success())
}

#[test]
fn a_home_that_nobody_can_dial_sends_and_receives() {
    play_on(Hosts::HomeBehindFirewall, |scene| {
        match scene.world.why_loopback.clone() {
            None => {
                ensure!(
                    reaches_home(&scene.world.net, HOME)?,
                    "home does not reach itself: that proves nothing of a firewall"
                );
                ensure!(!reaches_home(&scene.world.net, CLOUD)?, "the firewall lets the cloud in");
            }
            Some(why) => scene.say(&format!("no firewall: both sites share the loopback ({why})")),
        }
        scene.protect()?;
        let fresh = scene.world.console(At::Cloud);
        scene.done(&["failover", MACHINE, "--planned", "--yes"])?;
        scene.lost_nothing(At::Cloud, &fresh)?;
        scene.done(&["commit", MACHINE, "--yes"])?;

        scene.done(&["reprotect", MACHINE, "--yes"])?;
        scene.newer_than("protected (reverse)", now_ms())?;
        if scene.world.why_loopback.is_none() {
            // The link that home keeps up is gone for good: it dials again.
            scene.world.net.link(false)?;
            demo::pause(std::time::Duration::from_secs(5));
            scene.world.net.link(true)?;
            scene.newer_than("protected (reverse)", now_ms())?;
        }
        let waiting = scene.follow(scene.begin(&["failback", MACHINE, "--yes"])?.id)?;
        ensure!(waiting.state == JobState::Waiting, "{waiting:?}");
        let fresh = scene.world.console(At::Home);
        scene.done(&["complete", MACHINE, "--yes"])?;
        scene.lost_nothing(At::Home, &fresh)?;
        scene.done(&["commit", MACHINE, "--yes"])?;
        scene.done(&["reverse", MACHINE, "--yes"])?;
        scene.flows("protected")?;
        if scene.world.why_loopback.is_none() {
            ensure!(!reaches_home(&scene.world.net, CLOUD)?, "something opened the firewall meanwhile");
        }
        Ok(())
    });
}
