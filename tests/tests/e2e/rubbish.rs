//! What nobody should send: malformed frames, floods, messages to the daemon, a corrupted image.

use std::collections::BTreeMap;
use std::time::Duration;

use bypass_tests::counters::wait_for_udp_port;
use bypass_tests::services::wait_for_filter;
use bypass_tests::testbed::Side;
use bypass_tests::{Result, daemon, paths};
use serde_json::Value;

use super::faults::{PORT, echo};
use super::harness::{Scene, script};
use super::programs::ping_pong;

/// A number for the scripts that draw their nonsense: `BYPASS_SEED`, or the process id.
fn seed() -> String {
    std::env::var("BYPASS_SEED").unwrap_or_else(|_| std::process::id().to_string())
}

/// Malformed frames of every kind: nothing breaks, the next good datagrams are served.
pub(crate) fn bad_frames(scene: &Scene) -> Result<()> {
    let (host, bed) = (scene.host(), &scene.bed);
    let server = echo(scene)?;
    ping_pong(scene, &host, PORT, 500)?;
    let links = bed.ip(
        Side::Server,
        &["-j", "link", "show", bed.interface(Side::Server)],
    )?;
    let links: Value = serde_json::from_str(&links)?;
    let mac = links[0]["address"].as_str().ok_or("no MAC")?;
    let seed = seed();
    let mut sender = bed.program(Side::Client, "/usr/bin/python3");
    sender.arg("-I").arg(script("bad_frames.py"));
    sender.args([bed.interface(Side::Client), mac, &scene.peer(), &host]);
    let before = drops(scene)?;
    sender.args([&PORT.to_string(), &seed]).run()?.check()?;
    ping_pong(scene, &host, PORT, 500).map_err(|error| format!("BYPASS_SEED={seed}: {error}"))?;
    let after = drops(scene)?;
    // Hand-made ones that the steering program lets through; it leaves the others to the kernel.
    let reasons = ["ip-checksum", "ip-length", "udp-length", "checksum-bad"];
    for reason in reasons.into_iter().filter(|_| scene.has_shim()) {
        if after.get(reason) <= before.get(reason) {
            let text = format!("BYPASS_SEED={seed}: no frame was dropped for {reason}: {after:?}");
            return Err(text.into());
        }
    }
    server.stop()?.check()?;
    Ok(())
}

/// What the stacks have thrown away so far, by reason.
fn drops(scene: &Scene) -> Result<BTreeMap<String, u64>> {
    if !scene.has_shim() {
        return Ok(BTreeMap::new());
    }
    let counters = daemon::list(&scene.bed, &["stats", "--zeros"])?;
    let drops = counters.iter().filter(|counter| counter["kind"] == "drop");
    let entry = |counter: &Value| {
        let name = counter["name"].as_str().unwrap_or_default();
        (
            name.to_owned(),
            counter["value"].as_u64().unwrap_or_default(),
        )
    };
    Ok(drops.map(entry).collect())
}

/// A flood to a socket that nobody reads costs another socket of the same stack nothing.
pub(crate) fn flood_to_unread_socket(scene: &Scene) -> Result<()> {
    let (host, bed) = (scene.host(), &scene.bed);
    let server = echo(scene)?;
    let mut unread = bed.program(Side::Server, "/usr/bin/python3");
    unread
        .column(scene.column)
        .arg("-I")
        .arg(script("unread.py"));
    let _unread = unread.args([&host, "4321"]).spawn()?;
    wait_for_udp_port(bed, Side::Server, 4321)?;
    if scene.has_shim() {
        wait_for_filter(bed, 4321)?;
    }
    let mut flood = bed.program(Side::Client, paths::example("udpsender")?);
    flood.args([
        "--json",
        "--seconds",
        "2",
        "--rate",
        "50000",
        "--batch",
        "16",
        "--size",
        "200",
        &host,
    ]);
    let before = drops(scene)?;
    let flood = flood.spawn()?;
    std::thread::sleep(Duration::from_millis(500));
    ping_pong(scene, &host, PORT, 2000)?;
    let sent = flood.wait(Duration::from_secs(20))?.check()?.json()?["packets"]
        .as_u64()
        .ok_or("no count")?;
    let after = drops(scene)?;
    let full = |drops: &BTreeMap<String, u64>| drops.get("buffer-full").copied().unwrap_or(0);
    let counted = full(&after).saturating_sub(full(&before));
    if scene.has_shim() && !(sent / 2..=sent).contains(&counted) {
        return Err(format!("{counted} of {sent} datagrams are counted as dropped").into());
    }
    server.stop()?.check()?;
    Ok(())
}

/// Malformed messages, wrong descriptors, silent and deaf clients: refused, others served.
pub(crate) fn daemon_messages(scene: &Scene) -> Result<()> {
    if !scene.has_shim() {
        return Ok(());
    }
    let server = echo(scene)?;
    ping_pong(scene, &scene.host(), PORT, 200)?;
    let mut client = scene.bed.program(Side::Server, "/usr/bin/python3");
    client
        .arg("-I")
        .arg(script("daemon_messages.py"))
        .arg(seed());
    client.timeout(Duration::from_secs(60)).run()?.check()?;
    ping_pong(scene, &scene.host(), PORT, 200)?;
    server.stop()?.check()?;
    Ok(())
}

/// Whether `dump --json` has problems of the one image that there is.
fn problems(images: &Value) -> bool {
    let list = images[0]["problems"].as_array();
    list.is_some_and(|list| !list.is_empty() && list.iter().all(Value::is_string))
}

/// A client corrupts its stack image on purpose: the daemon and `bypassctl` report it and survive.
pub(crate) fn image_corrupted(scene: &Scene) -> Result<()> {
    if !scene.has_shim() {
        return Ok(());
    }
    let (bed, seed) = (&scene.bed, seed());
    let server = echo(scene)?;
    ping_pong(scene, &scene.host(), PORT, 200)?;
    let before = daemon::running(bed);
    let mut corrupt = bed.program(Side::Server, "/usr/bin/python3");
    corrupt.arg("-I").arg(script("corrupt_image.py"));
    corrupt
        .args([&server.pid().to_string(), &seed])
        .run()?
        .check()?;
    for arguments in [
        &["dump"][..],
        &["dump", "--json"],
        &["stacks"],
        &["sockets"],
        &["filters", "list"],
        &["stats"],
    ] {
        let run = daemon::bypassctl(bed, arguments)?;
        let what = format!("BYPASS_SEED={seed}: bypassctl {}", arguments.join(" "));
        // What is left to list nobody knows.
        let is_fine = match (arguments[0], run.status.code()) {
            ("dump", code) => code == Some(1),
            (_, code) => code == Some(0) || code == Some(3),
        };
        if !is_fine {
            return Err(format!("{what}: {}: {}", run.status, run.stderr).into());
        }
        let names_it = match arguments {
            ["dump"] => run.stdout.contains("PROBLEM: "),
            ["dump", ..] => problems(&serde_json::from_str(&run.stdout)?),
            _ => true,
        };
        if !names_it {
            return Err(format!("{what} names no problem: {}", run.stdout).into());
        }
    }
    if daemon::running(bed) != before {
        return Err(format!("BYPASS_SEED={seed}: the daemon did not survive").into());
    }
    server.kill();
    Ok(())
}
