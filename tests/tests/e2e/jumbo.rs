//! MTUs above 1500: what a chunk holds is accelerated. What is larger is the kernel's: the whole
//! interface when it is not open yet, else the frames.

use std::fs;
use std::time::{Duration, Instant};

use bypass_tests::counters::{wait_for_tcp_port, wait_for_udp_port};
use bypass_tests::program::Running;
use bypass_tests::testbed::{Options, Side, Testbed};
use bypass_tests::{Result, paths};

use super::faults::{explains, explains_within};
use super::harness::{Carried, Scene, proven};

/// The most that the larger chunks hold.
const LARGE: u32 = 3822;
const JUMBO: u32 = 9000;
/// How `bypassctl explain --json` calls who serves an accelerated socket.
const BYPASS: &str = "\"bypass\"";

fn with_mtu(scene: &Scene, mtu: u32) -> Result<Scene> {
    let options = Options {
        mtu,
        ..Options::default()
    };
    Ok(Scene {
        bed: Testbed::with(options)?,
        column: scene.column,
    })
}

/// An echo under the shim, once `bypassctl explain` says so of it: `bypass`, or the reason why not.
fn echo(scene: &Scene, name: &str, port: u16, served: &str) -> Result<Running> {
    let mut server = scene.bed.program(Side::Server, paths::example(name)?);
    server.column(scene.column);
    server.args(["--port", &port.to_string(), "--bind", &scene.host()]);
    let server = server.spawn()?;
    match name {
        "udpecho" => wait_for_udp_port(&scene.bed, Side::Server, port)?,
        _ => wait_for_tcp_port(&scene.bed, Side::Server, port)?,
    }
    explains(scene, server.pid(), served)?;
    Ok(server)
}

/// An accelerated UDP echo: the daemon hears some time after a change what programs may have.
fn once_accelerated(scene: &Scene, port: u16) -> Result<Running> {
    let end = Instant::now() + Duration::from_secs(20);
    loop {
        let server = echo(scene, "udpecho", port, "")?;
        // Whose a socket is it keeps.
        match explains_within(scene, server.pid(), BYPASS, Duration::from_secs(2)) {
            Ok(()) => return Ok(server),
            Err(error) if Instant::now() > end => return Err(error),
            Err(_) => server.stop()?.check()?,
        };
    }
}

/// Exchanges of this size with an echo, all of which must succeed.
fn exchanges(scene: &Scene, client: &str, port: u16, size: u32) -> Result<()> {
    let mut program = scene.bed.program(Side::Client, paths::example(client)?);
    program.args(["--count", "300", "--warmup", "5"]);
    program.args(["--size", &size.to_string(), "--port", &port.to_string()]);
    let run = program.args(["--json", &scene.host()]).run()?.check()?;
    match run.json()?["lost"].as_u64() {
        Some(1..) => Err(format!("{client}: answers of {size} bytes are lost").into()),
        _ => Ok(()),
    }
}

/// Sets the MTU of both ends. That the near one is served does not keep the far one small.
fn set_mtu(scene: &Scene, mtu: u32) -> Result<()> {
    for side in [Side::Server, Side::Client] {
        let interface = scene.bed.interface(side);
        let arguments = ["link", "set", interface, "mtu", &mtu.to_string()];
        scene.bed.ip(side, &arguments)?;
    }
    Ok(())
}

/// Frames that fill the larger chunks, of datagrams and of segments.
pub(crate) fn large_frames(scene: &Scene) -> Result<()> {
    let large = with_mtu(scene, LARGE)?;
    proven(&large, Carried::Bypass, |large| {
        let server = echo(large, "udpecho", 7007, BYPASS)?;
        for size in [LARGE - 28, 1600, 64] {
            exchanges(large, "udprr", 7007, size)?;
        }
        server.stop()?.check().map(drop)
    })?;
    proven(&large, Carried::Segments, |large| {
        let _server = echo(large, "tcpecho", 7008, BYPASS)?;
        exchanges(large, "tcprr", 7008, 60_000)
    })
}

/// An MTU beyond any chunk: all is the kernel's, until it shrinks.
pub(crate) fn jumbo_frames(scene: &Scene) -> Result<()> {
    let jumbo = with_mtu(scene, JUMBO)?;
    let _datagrams = echo(&jumbo, "udpecho", 7007, "no-interface")?;
    let _streams = echo(&jumbo, "tcpecho", 7008, "no-interface")?;
    exchanges(&jumbo, "udprr", 7007, JUMBO - 28)?;
    exchanges(&jumbo, "tcprr", 7008, 60_000)?;
    set_mtu(&jumbo, 1500)?;
    exchanges(&jumbo, "udprr", 7007, 1400)?;
    let _later = once_accelerated(&jumbo, 7009)?;
    proven(&jumbo, Carried::Bypass, |jumbo| {
        exchanges(jumbo, "udprr", 7009, 1400)
    })
}

/// The MTU rises above what chunks hold and shrinks again under running programs: what is larger
/// comes and goes by the kernel, the rest as before, connections of before and new ones too.
pub(crate) fn mtu_beyond_chunks(scene: &Scene) -> Result<()> {
    let datagrams = echo(scene, "udpecho", 7007, BYPASS)?;
    let streams = echo(scene, "tcpecho", 7008, BYPASS)?;
    let run = lasting(scene, 7008)?;
    for mtu in [JUMBO, 1500, LARGE, JUMBO, 1500] {
        set_mtu(scene, mtu)?;
        exchanges(scene, "udprr", 7007, mtu - 28)?;
        proven(scene, Carried::Bypass, |scene| {
            exchanges(scene, "udprr", 7007, 1400)
        })?;
        proven(scene, Carried::Segments, |scene| {
            exchanges(scene, "tcprr", 7008, 60_000)
        })?;
        explains(scene, datagrams.pid(), BYPASS)?;
        explains(scene, streams.pid(), BYPASS)?;
    }
    fs::write(scene.bed.folder().join("stop"), "")?;
    run.wait(Duration::from_secs(20))?.check()?;
    datagrams.stop()?.check().map(drop)
}

/// A connection to an echo that goes on until there is a file `stop`, and misses no byte.
fn lasting(scene: &Scene, port: u16) -> Result<Running> {
    let script = r#"
import os, socket, sys, time
peer = socket.create_connection((sys.argv[1], int(sys.argv[2])))
turns = 0
while turns < 100 or not os.path.exists(sys.argv[3]):
    sent = os.urandom(50000)
    peer.sendall(sent)
    got = peer.recv(len(sent), socket.MSG_WAITALL)
    assert got == sent, (len(got), turns)
    turns += 1
    time.sleep(0.002)
"#;
    let mut client = scene.bed.program(Side::Client, "python3");
    client.args(["-c", script, &scene.host(), &port.to_string()]);
    client.arg(scene.bed.folder().join("stop")).spawn()
}
