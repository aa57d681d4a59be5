//! Name servers: knot, nsd, unbound, and programs that ask them.

use std::fs;

use bypass_tests::Result;
use bypass_tests::counters::{KernelUdp, wait_for_tcp_port};
use bypass_tests::program::Column;
use bypass_tests::services::{DnsLoad, NameServer, dnsperf, start_forwarder};
use bypass_tests::testbed::Side;

use super::harness::Scene;

const LOAD: DnsLoad = DnsLoad {
    seconds: 2,
    clients: 4,
    threads: 2,
    outstanding: 40,
    verbose: false,
};

fn serves(scene: &Scene, server: NameServer) -> Result<()> {
    let running = server.start(&scene.bed, Side::Server, scene.column, 5353, 2)?;
    let result = dnsperf(&scene.bed, 5353, LOAD)?;
    // A server that has its port may fork for a while before it answers.
    let fine = result.no_error == result.completed
        && result.completed * 1000 >= result.sent * 999
        && result.completed > 400;
    if !fine {
        return Err(format!("{result:?}\n{}{}", running.stdout(), running.stderr()).into());
    }
    running.stop()?;
    Ok(())
}

pub(crate) fn dnsperf_knot(scene: &Scene) -> Result<()> {
    serves(scene, NameServer::Knot)
}

pub(crate) fn dnsperf_nsd(scene: &Scene) -> Result<()> {
    serves(scene, NameServer::Nsd)
}

pub(crate) fn dnsperf_unbound(scene: &Scene) -> Result<()> {
    serves(scene, NameServer::Unbound)
}

/// dnsperf under test: two threads share each of its sockets, a pipe is in its poll set.
pub(crate) fn dnsperf_client(scene: &Scene) -> Result<()> {
    let _server = NameServer::Nsd.start(&scene.bed, Side::Client, Column::Native, 5353, 1)?;
    let mut program = scene.bed.program(Side::Server, "dnsperf");
    program
        .column(scene.column)
        .args(["-s", &scene.peer(), "-p", "5353", "-l", "1", "-c", "2"]);
    program.arg("-d").arg(scene.bed.folder().join("queries"));
    let text = program.run()?.check()?.stdout;
    if text.contains("Queries lost:         0 (0.00%)") {
        Ok(())
    } else {
        Err(text.into())
    }
}

/// curl asks an unbound under test, which asks a name server of the client side with a socket for
/// each query; then it fetches a page over TCP.
pub(crate) fn curl_through_unbound(scene: &Scene) -> Result<()> {
    let bed = &scene.bed;
    let _upstream = NameServer::Nsd.start(bed, Side::Client, Column::Native, 5300, 1)?;
    let before = KernelUdp::read(bed, Side::Server)?;
    let _unbound = start_forwarder(bed, scene.column, 53, (&scene.peer(), 5300))?;
    let page = bed.folder().join("page");
    fs::create_dir_all(&page)?;
    fs::write(page.join("index.html"), "a page over TCP\n")?;
    let mut web = bed.program(Side::Client, "/usr/bin/python3");
    web.args(["-I", "-m", "http.server", "8080", "--directory"])
        .arg(&page);
    let _web = web.spawn()?;
    wait_for_tcp_port(bed, Side::Client, 8080)?;
    let resolver = bed.folder().join("resolv.conf");
    fs::write(
        &resolver,
        format!(
            "nameserver {}\noptions timeout:2 attempts:2\n",
            scene.host()
        ),
    )?;
    // `ip netns exec` gives every program its own mounts.
    let fetch = format!(
        "mount --bind {} /etc/resolv.conf && exec curl -sS --max-time 15 http://web.bypass.test:8080/",
        resolver.display()
    );
    for side in [Side::Client, Side::Server] {
        let mut curl = bed.program(side, "sh");
        let run = curl.args(["-c", &fetch]).run()?.check()?;
        if run.stdout != "a page over TCP\n" {
            return Err(format!("{side:?}: {}{}", run.stdout, run.stderr).into());
        }
    }
    // The queries of the client side and those to the upstream came and went by the bypass; what
    // the server side's own curl asked is local and the kernel's: two questions, two answers.
    let kernel = KernelUdp::read(bed, Side::Server)?.since(before).total();
    if scene.has_shim() && kernel > 16 {
        return Err(format!("the kernel carried {kernel} datagrams").into());
    }
    Ok(())
}
