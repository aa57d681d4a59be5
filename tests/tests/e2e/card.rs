//! A card by ef_vi in the place of an AF_XDP interface. No card: libciul is a stand-in, which takes
//! from the kernel what filters match.
//!
//! The scenes of other modules run on it as they are (`ef_vi_card::*`); those here are of the card
//! itself.

use std::fs;
use std::time::Duration;

use bypass_tests::counters::wait_for_udp_port;
use bypass_tests::program::wait_until;
use bypass_tests::testbed::Side;
use bypass_tests::{Result, ciul, daemon, paths};
use serde_json::Value;

use super::dpdk::{echo, kill, the_only};
use super::harness::{Scene, script};
use super::programs::ping_pong;
use super::streams::{client, subject};

const PORT: u16 = 7007;

fn is_of_card(scene: &Scene) -> bool {
    let filters = daemon::list(&scene.bed, &["filters", "list"]).unwrap_or_default();
    filters
        .first()
        .is_some_and(|filter| filter["backend"] == "ef_vi")
}

/// Every list says whose the socket is.
pub(crate) fn shown(scene: &Scene) -> Result<()> {
    let server = echo(scene)?;
    ping_pong(scene, &scene.host(), PORT, 500)?;
    if scene.has_shim() {
        for list in [["filters", "list"], ["explain", "--all"]] {
            let found = daemon::list(&scene.bed, &list)?;
            if !found.iter().any(|item| item["backend"] == "ef_vi") {
                return Err(format!("{list:?}: {found:?}").into());
            }
        }
        // The stand-in numbers its queues from 16 on, and the filters of each from 1 on.
        let filters = daemon::list(&scene.bed, &["filters", "list"])?;
        let listed = &filters.first().ok_or("no filter")?;
        let own = &listed["hardware"][0];
        let is_said = own["queue"] == 16 && own["cookie"] == 1 && own["cookie_type"] == 1;
        if !is_said || own["local"] != listed["local"] || listed["packets"].as_u64() < Some(500) {
            return Err(format!("not the card's words: {listed}").into());
        }
        wait_until("the port has counted", Duration::from_secs(20), || {
            let stats = daemon::list(&scene.bed, &["stats"]).unwrap_or_default();
            let value = |name: &str| {
                let mut of_card = stats.iter().filter(|counter| counter["kind"] == "ef_vi");
                of_card.find(|counter| counter["name"] == name)?["value"].as_u64()
            };
            value("received") >= Some(500) && value("filters") == Some(1)
        })?;
    }
    server.stop()?.check()?;
    Ok(())
}

/// The relay is killed, and the card's filters go with it: the kernel serves until there is another
/// one, and the program goes on.
pub(crate) fn relay_killed(scene: &Scene) -> Result<()> {
    let server = echo(scene)?;
    ping_pong(scene, &scene.host(), PORT, 500)?;
    if scene.has_shim() {
        let relay = the_only(scene, "relay")?;
        kill(&relay)?;
        wait_until("another relay", Duration::from_secs(20), || {
            the_only(scene, "relay").is_ok_and(|pid| pid != relay)
        })?;
        wait_until("the filter is there again", Duration::from_secs(20), || {
            is_of_card(scene)
        })?;
    }
    ping_pong(scene, &scene.host(), PORT, 2000)?;
    server.stop()?.check()?;
    Ok(())
}

/// Frames that the veth between the sides has dropped.
fn wire_drops(scene: &Scene) -> Result<u64> {
    let mut dropped = 0;
    for side in [Side::Server, Side::Client] {
        let name = scene.bed.interface(side);
        let text = scene
            .bed
            .ip(side, &["-s", "-j", "link", "show", "dev", name])?;
        let json: Value = serde_json::from_str(&text)?;
        let count = json[0]["stats64"]["tx"]["dropped"].as_u64();
        dropped += count.ok_or("no count of drops")?;
    }
    Ok(dropped)
}

/// A program sends more at once than the card has room for: each datagram leaves once, in its
/// order, and every chunk comes back.
pub(crate) fn bursts(scene: &Scene) -> Result<()> {
    let (script, host) = (script("bursts.py").display().to_string(), scene.host());
    let port = PORT.to_string();
    let mut server = subject(scene, Side::Server, "python3");
    let server = server.args([&script, &host, &port]).spawn()?;
    wait_for_udp_port(&scene.bed, Side::Server, PORT)
        .map_err(|error| format!("{error}\n{}{}", server.stdout(), server.stderr()))?;
    let ask = |rounds, count| client(scene, "python3", &[&script, &host, &port, rounds, count]);
    // The kernel's queue behind the veth, which all namespaces share, may be full.
    let before = wire_drops(scene)?;
    let missing = ask("40", "900")?.json()?["missing"].as_u64();
    let dropped = wire_drops(scene)? - before;
    if missing.is_none_or(|missing| missing > dropped) {
        return Err(format!("{missing:?} are missing, of which the wire has {dropped}").into());
    }
    if scene.has_shim() {
        let mut last = Value::Null;
        let quiet = wait_until("every chunk is back", Duration::from_secs(20), || {
            // Chunks that were sent from come back with the next datagram.
            let asked = ask("1", "1").and_then(|run| run.json());
            let is_answered = asked.is_ok_and(|answer| answer["missing"] == 0);
            let mut images = daemon::list(&scene.bed, &["dump"]).unwrap_or_default();
            last = images.pop().unwrap_or_default();
            let number = |name: &str| last[name].as_u64().unwrap_or(u64::MAX);
            let idle = number("chunks_free").saturating_add(number("chunks_posted"));
            let is_sound = last["problems"].as_array().is_some_and(Vec::is_empty);
            is_answered && is_sound && idle.saturating_add(1) >= number("chunks")
        });
        quiet.map_err(|error| format!("{error}: {last}"))?;
    }
    server.kill();
    Ok(())
}

/// A configuration with a card, where there is none: doctor says why, and AF_XDP serves.
fn falls_back(scene: &Scene, library: &str, environment: (&str, &str), why: &str) -> Result<()> {
    if !scene.has_shim() {
        return Ok(());
    }
    let name = scene.bed.interface(Side::Server);
    let device = format!("name = {name:?}\nbackend = \"ef_vi\"\nlibrary = {library:?}\n");
    let rule = "[[rule]]\nbackend = \"ef_vi\"\naction = \"accelerate\"\n";
    let config = scene.bed.folder().join("card.toml");
    fs::write(&config, format!("[[device]]\n{device}{rule}"))?;
    let mut started = scene.bed.program(Side::Server, paths::bypassctl());
    started.env(environment.0, environment.1);
    started
        .args(["daemon", "--config"])
        .arg(&config)
        .run()?
        .check()?;
    let mut told = String::new();
    wait_until("doctor says why", Duration::from_secs(20), || {
        let run = daemon::bypassctl(&scene.bed, &["doctor", name]);
        told = run.map_or_else(|error| error.to_string(), |run| run.stdout);
        told.contains(why)
    })
    .map_err(|error| format!("{error}: {why}\n{told}"))?;
    let server = echo(scene)?;
    ping_pong(scene, &scene.host(), PORT, 500)?;
    let filters = daemon::list(&scene.bed, &["filters", "list"])?;
    if filters
        .first()
        .is_none_or(|filter| filter["backend"] != "af_xdp")
    {
        return Err(format!("AF_XDP does not serve: {filters:?}").into());
    }
    server.stop()?.check()?;
    daemon::bypassctl(&scene.bed, &["shutdown"])?.check()?;
    Ok(())
}

/// There is no library.
pub(crate) fn without_library(scene: &Scene) -> Result<()> {
    falls_back(
        scene,
        "/nowhere/libciul.so.1",
        ("BYPASS_X", ""),
        "is not installed",
    )
}

/// The library has a layout that nobody has released.
pub(crate) fn unknown_layout(scene: &Scene) -> Result<()> {
    let library = ciul::stand_in()?.display().to_string();
    let layout = ("FAKE_CIUL_LAYOUT", "torn");
    falls_back(
        scene,
        &library,
        layout,
        "libciul layout unknown: 9.1.0.1 ef_vi, sizeof 1312",
    )
}
