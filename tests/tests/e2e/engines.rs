//! Engines of other people as peers, on a TAP device that is bridged to the client's end of the
//! veth.

use std::time::Duration;

use bypass_tests::program::{Running, wait_until};
use bypass_tests::testbed::Side;
use bypass_tests::{Result, paths};

use super::harness::{Scene, script};
use super::streams::subject;

/// lwIP's addresses on the bed's networks.
const LWIP: [&str; 2] = ["198.18.7.3", "fd98:7::3"];

/// Starts lwIP beside the kernel of the client's side.
fn start_lwip(scene: &Scene) -> Result<Running> {
    let bed = &scene.bed;
    for step in [
        "tuntap add dev lwip mode tap",
        "link add between type bridge",
        "link set byp-c master between",
        "link set lwip master between up",
        "link set between up",
    ] {
        bed.ip(Side::Client, &step.split(' ').collect::<Vec<_>>())?;
    }
    let mut peer = bed.program(Side::Client, paths::test_program("lwip", "peer")?);
    peer.arg("lwip").args(LWIP);
    peer.args([bed.ipv4(Side::Server), bed.ipv6(Side::Server)]);
    let peer = peer.timeout(Duration::from_secs(60)).spawn()?;
    let listens = || peer.stdout().contains("listens");
    wait_until("lwIP listens", Duration::from_secs(20), listens)
        .map_err(|error| format!("{error}: {}", peer.stderr()))?;
    // A neighbour whose MAC address is not known yet is the kernel's.
    for address in LWIP {
        let mut ping = bed.program(Side::Server, "ping");
        ping.args(["-c1", "-w20", "-i0.1", address])
            .run()?
            .check()?;
    }
    Ok(peer)
}

/// Streams both ways at once, a reader so slow that its window closes, and resets from each side,
/// over connections from and to lwIP; over IPv6 with a receive buffer of 4 KiB.
pub(crate) fn lwip(scene: &Scene) -> Result<()> {
    let peer = start_lwip(scene)?;
    let mut program = subject(scene, Side::Server, "/usr/bin/python3");
    program.arg("-I").arg(script("lwip_counterpart.py"));
    program.args([scene.bed.ipv4(Side::Server), scene.bed.ipv6(Side::Server)]);
    let run = program.args(LWIP).run()?;
    if run.stdout != "done\n" {
        let told = [run.stdout, run.stderr, peer.stdout(), peer.stderr()];
        return Err(told.concat().into());
    }
    peer.wait(Duration::from_secs(20))?.check()?;
    Ok(())
}
