//! More connections that are begun than any queue has room for.

use std::fs;
use std::time::Duration;

use bypass_tests::program::{Program, wait_until};
use bypass_tests::testbed::Side;
use bypass_tests::{Result, daemon};
use serde_json::Value;

use super::harness::{Scene, script};
use super::streams::{client, start_redis};

const PORT: u16 = 6379;
const PATIENCE: Duration = Duration::from_secs(20);
/// tcp_max_syn_backlog of the server's namespace.
const MOST: u64 = 1024;

/// A program in the server's namespace sets these of `net.ipv4`.
fn set(scene: &Scene, settings: &[(&str, u64)]) -> Result<()> {
    let mut shell = scene.bed.program(Side::Server, "sh");
    let lines = settings
        .iter()
        .map(|(name, value)| format!("echo {value} > /proc/sys/net/ipv4/{name}\n"));
    shell.args(["-ec", &lines.collect::<String>()]);
    shell.run()?.check()?;
    Ok(())
}

/// Room for [`MOST`] half-open connections, given up after 3 s and not after 7, and a way back to
/// addresses that nobody has.
pub(crate) fn prepare(scene: &Scene) -> Result<()> {
    let settings = [("tcp_max_syn_backlog", MOST), ("tcp_synack_retries", 1)];
    set(scene, &settings)?;
    let interface = scene.bed.interface(Side::Server);
    let route = ["route", "add", "198.19.0.0/16", "via", &scene.peer(), "dev"];
    let route = [&route[..], &[interface]].concat();
    scene.bed.ip(Side::Server, &route).map(drop)
}

/// So many SYNs a second to a port, from addresses that nobody has, until the file `stop` is there.
pub(crate) fn flood<'s>(
    scene: &'s Scene,
    (port, rate): (u16, u32),
    stop: &str,
) -> Result<Program<'s>> {
    let bed = &scene.bed;
    let links = bed.ip(
        Side::Server,
        &["-j", "link", "show", bed.interface(Side::Server)],
    )?;
    let links: Value = serde_json::from_str(&links)?;
    let mac = links[0]["address"].as_str().ok_or("no MAC")?;
    let mut flood = bed.program(Side::Client, "/usr/bin/python3");
    flood.arg("-I").arg(script("syn_flood.py"));
    flood.args([bed.interface(Side::Client), mac, &scene.host()]);
    flood.args([&port.to_string(), &rate.to_string(), stop]);
    Ok(flood)
}

/// So many connections one after the other, each with an answer; the slowest one's seconds.
fn ask(scene: &Scene, times: u32) -> Result<f64> {
    let script = format!(
        "import socket, time\n\
         slowest = 0\n\
         for i in range({times}):\n\
         \x20   since = time.monotonic()\n\
         \x20   with socket.create_connection(('{}', {PORT}), 15) as s:\n\
         \x20       s.sendall(b'PING\\r\\n')\n\
         \x20       assert s.recv(7, socket.MSG_WAITALL) == b'+PONG\\r\\n'\n\
         \x20   slowest = max(slowest, time.monotonic() - since)\n\
         print(slowest)",
        scene.host()
    );
    let run = client(scene, "python3", &["-c", &script])?;
    Ok(run.stdout.trim().parse()?)
}

/// The SYNs of strangers who do not exist: everybody else gets in all the time, by the kernel's
/// listener; what is remembered is bounded; and soon after it the next connection is the stack's.
pub(crate) fn half_open(scene: &Scene) -> Result<()> {
    prepare(scene)?;
    let server = start_redis(scene, "0")?;
    ask(scene, 1)?;
    let stop = scene.bed.folder().join("stop");
    let flood = flood(scene, (PORT, 10_000), &stop.display().to_string())?.spawn()?;
    let counter = |name: &str| daemon::counter(&scene.bed, name);
    let pressed = || counter("pressed").unwrap_or(0);
    if scene.has_shim() {
        wait_until("the listener is pressed", PATIENCE, || pressed() > 0)?;
    }
    let slowest = ask(scene, 400)?;
    // A SYN that is lost is sent again after 1 s, and after 3.
    if slowest > 2.9 {
        return Err(format!("a connection took {slowest} s").into());
    }
    if scene.has_shim() {
        let image = daemon::list(&scene.bed, &["dump"])?
            .pop()
            .unwrap_or_default();
        let sound = image["problems"].as_array().is_some_and(Vec::is_empty);
        if !sound {
            return Err(format!("problems in the image: {}", image["problems"]).into());
        }
    }
    fs::write(&stop, "")?;
    let sent = flood.wait(PATIENCE)?.check()?.stdout;
    if scene.has_shim() {
        let opened = || counter("tcp-passive-opens");
        let (answered, left) = (opened()?, pressed());
        println!(
            "{} SYNs, {answered} answered, {left} passed, slowest {slowest}",
            sent.trim()
        );
        wait_until("connections are the stack's again", PATIENCE, || {
            let before = opened().ok();
            ask(scene, 1).is_ok() && opened().ok() == before.map(|count| count + 1)
        })?;
    }
    server.stop()?;
    Ok(())
}
