//! Twenty thousand connections of one program, and all that disturbs them at once.

use std::fs;
use std::time::Duration;

use bypass_tests::program::wait_until;
use bypass_tests::testbed::Side;
use bypass_tests::{Result, daemon};
use serde_json::Value;

use super::floods;
use super::harness::{Scene, script};
use super::streams::{started, subject};

const PORT: u16 = 7009;
/// Connections that stay open.
const HELD: u32 = 20_000;
/// Addresses that they come from, besides the peer's own.
const SOURCES: [&str; 3] = ["198.18.7.3", "198.18.7.4", "198.18.7.5"];
const PATIENCE: Duration = Duration::from_secs(60);

/// How long the disturbances last: `BYPASS_SOAK_SECONDS`, or what there is time for in the suite.
fn seconds() -> u64 {
    let given = std::env::var("BYPASS_SOAK_SECONDS");
    given.ok().and_then(|text| text.parse().ok()).unwrap_or(60)
}

/// Connects, closes, resets, slow readers and a SYN flood beside [`HELD`] connections that ask:
/// all get their right bytes in time, and in the end nothing is left of any of it.
pub(crate) fn everything_at_once(scene: &Scene) -> Result<()> {
    if !scene.has_shim() {
        return Ok(());
    }
    let bed = &scene.bed;
    let rules = bed.folder().join("large.toml");
    fs::write(&rules, "[daemon]\nendpoints = 32768\n")?;
    let rules = rules.display().to_string();
    let _daemon = daemon::start_with(bed, &["--config", &rules], &[])?;
    for source in SOURCES {
        let address = format!("{source}/24");
        let device = bed.interface(Side::Client);
        bed.ip(Side::Client, &["addr", "add", &address, "dev", device])?;
    }
    floods::prepare(scene)?;
    let mut server = subject(scene, Side::Server, "/usr/bin/python3");
    server.arg("-I").arg(script("soak_server.py"));
    server.args([&scene.host(), &PORT.to_string()]);
    let server = started(scene, &server, PORT)?;
    let before = filters(scene)?;
    let lasts = seconds();
    let mut clients = bed.program(Side::Client, "/usr/bin/python3");
    clients.arg("-I").arg(script("soak_clients.py"));
    clients.args([&scene.host(), &PORT.to_string()]);
    clients.args([&lasts.to_string(), &HELD.to_string(), &scene.peer()]);
    let mut clients = clients.args(SOURCES).spawn()?;
    wait_until("all connections", PATIENCE, || {
        !clients.is_running() || clients.stdout().matches("open").count() == 2
    })?;
    let held = daemon::counter(bed, "tcp-passive-opens")?;
    if held < u64::from(HELD) {
        return Err(format!("only {held} connections are accelerated").into());
    }
    let stop = bed.folder().join("stop");
    let flood = floods::flood(scene, (PORT, 2000), &stop.display().to_string())?.spawn()?;
    let fewest = fewest_chunks(scene, || {
        clients.is_running() && clients.stdout().matches("slowest").count() < 2
    });
    fs::write(&stop, "")?;
    let sent = flood.wait(PATIENCE)?.check()?.stdout;
    let run = clients.wait(PATIENCE)?.check();
    let run = run.map_err(|error| format!("{error}\n{}", server.stderr()))?;
    let opened = daemon::counter(bed, "tcp-passive-opens")?;
    println!(
        "{}{} SYNs without a sender, {opened} connections accelerated, at least {fewest} chunks free",
        run.stdout,
        sent.trim()
    );
    nothing_left(scene)?;
    wait_until("the filters of connections are gone", PATIENCE, || {
        filters(scene).is_ok_and(|left| left == before)
    })?;
    println!("filters left: {before}");
    server.stop()?;
    Ok(())
}

/// The image as `bypassctl dump` has it.
fn image(scene: &Scene) -> Value {
    let images = daemon::list(&scene.bed, &["dump"]);
    images
        .ok()
        .and_then(|mut images| images.pop())
        .unwrap_or_default()
}

/// How many filters there are, those of connections among them.
fn filters(scene: &Scene) -> Result<usize> {
    Ok(daemon::list(&scene.bed, &["filters", "list"])?.len())
}

/// The fewest free chunks while `going`.
fn fewest_chunks(scene: &Scene, mut going: impl FnMut() -> bool) -> u64 {
    let mut fewest = u64::MAX;
    while going() {
        let stacks = daemon::list(&scene.bed, &["stacks"]).unwrap_or_default();
        let free = stacks
            .iter()
            .filter_map(|stack| stack["chunks_free"].as_u64());
        fewest = free.fold(fewest, u64::min);
        std::thread::sleep(Duration::from_millis(500));
    }
    fewest
}

/// Only the listener is left, and every chunk is free or waits for a frame.
fn nothing_left(scene: &Scene) -> Result<()> {
    let mut last = Value::Null;
    let quiet = wait_until("everything is back", PATIENCE, || {
        last = image(scene);
        let number = |name: &str| last[name].as_u64().unwrap_or(u64::MAX);
        let idle = number("chunks_free").saturating_add(number("chunks_posted"));
        let sound = last["problems"].as_array().is_some_and(Vec::is_empty);
        sound && number("endpoints") == 1 && idle == number("chunks")
    });
    println!("left: {last}");
    quiet.map_err(|error| format!("{error}: {last}").into())
}
