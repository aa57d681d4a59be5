//! A DPDK port on virtual devices: one scene on each, with the kernel at the far end.

use std::fs;
use std::time::Duration;

use bypass_tests::program::wait_until;
use bypass_tests::testbed::Side;
use bypass_tests::{Result, daemon, paths, plugin};
use serde_json::Value;

use super::dpdk::{echo, is_of_dpdk};
use super::harness::Scene;
use super::programs::ping_pong;
use super::streams::{client, python_http_server};

const PORT: u16 = 7007;

/// Datagrams, a file by TCP, and what is the kernel's; every list says whose the sockets are.
pub(crate) fn served(scene: &Scene) -> Result<()> {
    let server = echo(scene)?;
    let (host, host_v6) = (scene.host(), scene.bed.ipv6(Side::Server));
    for address in [&host, &host_v6] {
        client(scene, "ping", &["-c", "3", "-i", "0.1", "-W", "5", address])?;
    }
    ping_pong(scene, &host, PORT, 200)?;
    python_http_server(scene)?;
    if scene.has_shim() {
        is_of_dpdk(scene, &["filters", "list"])?;
        is_of_dpdk(scene, &["sockets"])?;
        is_of_dpdk(scene, &["explain", "--all"])?;
        let driver = scene.bed.vdev().map_or("", |vdev| vdev.driver());
        let stacks = daemon::list(&scene.bed, &["stacks"])?;
        let pair = &stacks[0]["queue_pairs"][0];
        if pair["backend"] != "dpdk" || !driver.starts_with(pair["mode"].as_str().unwrap_or("?")) {
            return Err(format!("the queue pair is {pair}, of {driver}").into());
        }
        let filters = daemon::list(&scene.bed, &["filters", "list"])?;
        if filters[0]["packets"].as_u64() < Some(200) {
            return Err(format!("the filter has not counted: {filters:?}").into());
        }
    }
    server.stop()?.check()?;
    Ok(())
}

/// The same without copies, as far as the stack gives chunks: lists and counters say so.
pub(crate) fn in_place(scene: &Scene) -> Result<()> {
    let server = echo(scene)?;
    let host = scene.host();
    ping_pong(scene, &host, PORT, 2000)?;
    client(scene, "ping", &["-c", "3", "-i", "0.1", "-W", "5", &host])?;
    python_http_server(scene)?;
    if scene.has_shim() {
        let some = |name: &str| counted(scene, name) > Some(1000);
        let what = "frames that stay in chunks are counted";
        // The relay writes its counters down once a second.
        wait_until(what, Duration::from_secs(20), || {
            some("rx_in_place") && some("tx_in_place")
        })?;
        let name = scene.bed.interface(Side::Server);
        let doctor = scene.bed.program(Side::Server, paths::bypassctl());
        let said = { doctor }.args(["doctor", name]).run()?.stdout;
        if !said.contains("mode, without copies") {
            return Err(format!("doctor says: {said}").into());
        }
    }
    server.stop()?.check()?;
    Ok(())
}

/// A counter of the port.
fn counted(scene: &Scene, name: &str) -> Option<u64> {
    let stats = daemon::list(&scene.bed, &["stats"]).unwrap_or_default();
    let is_it = |counter: &&Value| counter["kind"] == "dpdk" && counter["name"] == name;
    stats.iter().find(is_it)?["value"].as_u64()
}

/// net_ring: what the port sends it receives. An unmodified program's datagrams to a neighbour that
/// is not there go out by the bypass and come back to the port, where no filter is for them.
pub(crate) fn ring(scene: &Scene) -> Result<()> {
    if !scene.has_shim() {
        return Ok(());
    }
    if let Err(why) = plugin::path() {
        println!("skipped: {why}");
        return Ok(());
    }
    let (bed, side) = (&scene.bed, Side::Server);
    let config = bed.device_file();
    let device = "[[device]]\nname = \"ring0\"\nbackend = \"dpdk\"\ndevargs = \"net_ring0\"\n";
    fs::write(&config, device)?;
    let mut starts = bed.program(side, paths::bypassctl());
    let starts = starts.args(["daemon", "--config"]).arg(&config);
    starts.run()?.check()?;
    wait_until("the port is open", Duration::from_secs(60), || {
        let doctor = daemon::bypassctl(bed, &["doctor", "ring0"]);
        doctor.is_ok_and(|run| run.stdout.contains("side of a DPDK port"))
    })?;
    bed.ip(side, &["link", "set", "ring0", "up"])?;
    bed.ip(side, &["addr", "add", "198.18.9.1/24", "dev", "ring0"])?;
    let nobody = ["198.18.9.2", "lladdr", "02:18:00:00:00:09", "dev", "ring0"];
    bed.ip(side, &[&["neigh", "add"][..], &nobody].concat())?;
    let script = "import socket\nu = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n\
                  u.bind(('198.18.9.1', 7007))\n\
                  for n in range(200): u.sendto(b'%d' % n, ('198.18.9.2', 7007))\n\
                  print('sent', flush=True)\nu.recv(1)";
    let mut program = bed.program(side, "python3");
    program.column(scene.column).args(["-c", script]);
    let program = program.spawn()?;
    wait_until("datagrams are sent", Duration::from_secs(60), || {
        program.stdout().contains("sent")
    })?;
    let all_back = wait_until("they are back", Duration::from_secs(60), || {
        let names = ["tx_good_packets", "rx_good_packets"];
        names.iter().all(|name| counted(scene, name) >= Some(200))
    });
    let told = daemon::bypassctl(bed, &["stats"])?.stdout;
    all_back.map_err(|error| format!("{error}: {told}{}", program.stderr()))?;
    is_of_dpdk(scene, &["sockets"])?;
    is_of_dpdk(scene, &["filters", "list"])?;
    program.kill();
    daemon::bypassctl(bed, &["shutdown"])?.check()?;
    Ok(())
}
