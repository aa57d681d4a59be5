//! A DPDK port in the place of an AF_XDP interface. No card: the port is a virtual device (net_tap)
//! whose wire ends in the kernel of the client's side.
//!
//! The scenes of other modules run on it as they are (`dpdk_port::*`); those here are of the port
//! itself. In the kernel's column everything goes by the exception path.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use bypass_tests::Result;
use bypass_tests::counters::wait_for_udp_port;
use bypass_tests::program::{Running, wait_until};
use bypass_tests::testbed::Side;
use bypass_tests::{daemon, paths, plugin};
use serde_json::Value;

use super::harness::Scene;
use super::programs::{ping_pong, start_example};
use super::streams::{client, started, subject};

const PORT: u16 = 7007;

pub(super) fn echo(scene: &Scene) -> Result<Running> {
    start_example(scene, "udpecho", PORT, &["--bind", &scene.host()])
}

/// Runs a Python script on a side; `HOST` in it is the program under test.
fn python(scene: &Scene, side: Side, script: &str) -> Result<String> {
    let mut program = scene.bed.program(side, "python3");
    let script = script.replace("HOST", &scene.host());
    let run = program.args(["-c", &script]).run()?.check()?;
    Ok(run.stdout)
}

/// What no filter matches is the kernel's, both ways: echo requests, fragments, unknown ports,
/// programs without the shim.
pub(crate) fn exceptions(scene: &Scene) -> Result<()> {
    let server = echo(scene)?;
    let [host, peer] = [scene.host(), scene.peer()];
    client(scene, "ping", &["-c", "3", "-i", "0.1", "-W", "2", &host])?;
    let host_v6 = scene.bed.ipv6(Side::Server);
    client(
        scene,
        "ping",
        &["-c", "3", "-i", "0.1", "-W", "2", &host_v6],
    )?;
    let mut back = scene.bed.program(Side::Server, "ping");
    back.args(["-c", "3", "-i", "0.1", "-W", "2", &peer])
        .run()?
        .check()?;
    python(
        scene,
        Side::Client,
        r"
import socket
u = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
u.settimeout(5)
u.connect(('HOST', 7007))
for size in (1, 1472, 1473, 4000, 20000):
    u.send(b'x' * size)
    assert u.recv(65536) == b'x' * size, size
u.connect(('HOST', 9))
u.send(b'nobody')
try: u.recv(1); assert False
except ConnectionRefusedError: pass
try: socket.create_connection(('HOST', 9), 5); assert False
except ConnectionRefusedError: pass
",
    )?;
    let mut kernel = scene.bed.program(Side::Server, "python3");
    kernel.args(["-m", "http.server", "--bind", &host, "--directory"]);
    let kernel = kernel.arg(scene.bed.folder()).arg("8001").spawn()?;
    bypass_tests::counters::wait_for_tcp_port(&scene.bed, Side::Server, 8001)?;
    fs::write(scene.bed.folder().join("page"), vec![7; 1 << 20])?;
    let url = format!("http://{host}:8001/page");
    let got = scene.bed.folder().join("got");
    client(
        scene,
        "curl",
        &["-sf", "-o", &got.display().to_string(), &url],
    )?;
    if fs::read(got)? != vec![7; 1 << 20] {
        return Err("the page is another".into());
    }
    kernel.stop()?;
    ping_pong(scene, &host, PORT, 500)?;
    server.stop()?.check()?;
    Ok(())
}

fn backend<'v>(list: &'v [Value], of: &str) -> Result<&'v str> {
    let text = list.iter().find_map(|item| item["backend"].as_str());
    text.ok_or_else(|| format!("{of} tell no backend: {list:?}").into())
}

pub(super) fn is_of_dpdk(scene: &Scene, arguments: &[&str]) -> Result<()> {
    let list = daemon::list(&scene.bed, arguments)?;
    match backend(&list, &arguments.join(" "))? {
        "dpdk" => Ok(()),
        other => Err(format!("{arguments:?}: backend {other}: {list:?}").into()),
    }
}

/// Every list says whose the socket is.
pub(crate) fn shown(scene: &Scene) -> Result<()> {
    let server = echo(scene)?;
    ping_pong(scene, &scene.host(), PORT, 500)?;
    if scene.has_shim() {
        is_of_dpdk(scene, &["filters", "list"])?;
        is_of_dpdk(scene, &["sockets"])?;
        is_of_dpdk(scene, &["explain", "--all"])?;
        let stacks = daemon::list(&scene.bed, &["stacks"])?;
        let pair = &stacks[0]["queue_pairs"][0];
        if pair["backend"] != "dpdk" || pair["mode"] != "net_tap" {
            return Err(format!("the queue pair is {pair}").into());
        }
        let filters = daemon::list(&scene.bed, &["filters", "list"])?;
        if filters[0]["packets"].as_u64() < Some(500) {
            return Err(format!("the filter has not counted: {filters:?}").into());
        }
        wait_until("the port has counted", Duration::from_secs(20), || {
            let stats = daemon::list(&scene.bed, &["stats"]).unwrap_or_default();
            let value = |name: &str| {
                let is_it = |counter: &&Value| counter["kind"] == "dpdk" && counter["name"] == name;
                stats
                    .iter()
                    .find(is_it)
                    .and_then(|counter| counter["value"].as_u64())
            };
            // The driver has a look at checksums, and completes them.
            let names = [
                "redirected",
                "rx_good_packets",
                "rx_checksum_found_good",
                "tx_checksum_completed",
            ];
            names.iter().all(|name| value(name) >= Some(500))
        })?;
        let relay = the_only(scene, "relay")?;
        let status = fs::read_to_string(format!("/proc/{relay}/status"))?;
        if !status.contains("ShdPnd:\t0000000000000000") {
            return Err(format!("the driver's signals wait in the relay:\n{status}").into());
        }
        let doctor = daemon::bypassctl(&scene.bed, &["doctor", "byp-s"])?.stdout;
        if !doctor.contains("DPDK port") || !doctor.contains("in net_tap mode") {
            return Err(format!("doctor says: {doctor}").into());
        }
    }
    server.stop()?.check()?;
    Ok(())
}

/// Two workers on one port; one of them is killed.
pub(crate) fn nginx_workers(scene: &Scene) -> Result<()> {
    let folder = scene.bed.folder().join("nginx");
    fs::create_dir_all(folder.join("www"))?;
    fs::write(folder.join("www/small"), vec![b'x'; 612])?;
    let config = folder.join("nginx.conf");
    let (here, host) = (folder.display(), scene.host());
    fs::write(
        &config,
        format!(
            "daemon off; worker_processes 2; pid {here}/pid; error_log stderr; user root;\n\
             events {{ worker_connections 1024; }}\n\
             http {{ access_log off; keepalive_requests 1000000;\n\
             client_body_temp_path {here}/b; proxy_temp_path {here}/p;\n\
             fastcgi_temp_path {here}/f; uwsgi_temp_path {here}/u; scgi_temp_path {here}/s;\n\
             server {{ listen {host}:8080; root {here}/www; }} }}\n"
        ),
    )?;
    let mut nginx = subject(scene, Side::Server, "/usr/sbin/nginx");
    nginx.arg("-c").arg(&config);
    let server = started(scene, &nginx, 8080)?;
    let url = format!("http://{host}:8080/small");
    let load = || {
        let arguments = ["-q", "-k", "-r", "-n", "4000", "-c", "16", &url];
        let run = client(scene, "ab", &arguments)?;
        let complete = run.stdout.contains("Complete requests:      4000");
        complete
            .then_some(())
            .ok_or_else(|| format!("ab: {}", run.stdout).into())
    };
    let load: &dyn Fn() -> Result<()> = &load;
    load()?;
    let children = format!("/proc/{0}/task/{0}/children", server.pid());
    let workers = || fs::read_to_string(&children).unwrap_or_default();
    let before = workers();
    let worker = before
        .split_whitespace()
        .next()
        .ok_or("nginx has no workers")?;
    kill(worker)?;
    wait_until("another worker", Duration::from_secs(20), || {
        let now = workers();
        now.split_whitespace().count() == 2 && !now.split_whitespace().any(|it| it == worker)
    })?;
    load()?;
    server.stop()?;
    Ok(())
}

pub(super) fn kill(pid: &str) -> Result<()> {
    signal(pid, "-9")
}

fn signal(pid: &str, which: &str) -> Result<()> {
    let status = Command::new("kill").args([which, pid]).status()?;
    status
        .success()
        .then_some(())
        .ok_or_else(|| format!("kill {which} {pid}: {status}").into())
}

/// Processes of the server's side that run `bypassctl` with this command.
fn running(scene: &Scene, command: &str) -> Vec<String> {
    let has_command = |pid: &u32| {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        line.split(|byte| *byte == 0).nth(1) == Some(command.as_bytes())
    };
    let pids = daemon::all_running(&scene.bed)
        .into_iter()
        .filter(has_command);
    pids.map(|pid| pid.to_string()).collect()
}

pub(super) fn the_only(scene: &Scene, command: &str) -> Result<String> {
    match running(scene, command).as_slice() {
        [pid] => Ok(pid.clone()),
        pids => Err(format!("one bypassctl {command} expected: {pids:?}").into()),
    }
}

/// The relay is killed: another one takes its place, the interface keeps its addresses, and the
/// program goes on.
pub(crate) fn relay_killed(scene: &Scene) -> Result<()> {
    let server = echo(scene)?;
    ping_pong(scene, &scene.host(), PORT, 500)?;
    if scene.has_shim() {
        let relay = the_only(scene, "relay")?;
        kill(&relay)?;
        wait_until("another relay", Duration::from_secs(60), || {
            the_only(scene, "relay").is_ok_and(|pid| pid != relay)
        })?;
        // Its end of the wire is a new one.
        scene.bed.plug_in()?;
        let peer = format!("{}/24", scene.peer());
        let name = scene.bed.interface(Side::Client);
        scene.bed.ip(Side::Client, &["link", "set", name, "up"])?;
        scene
            .bed
            .ip(Side::Client, &["addr", "add", &peer, "dev", name])?;
        let again = wait_until("the filter is there again", Duration::from_secs(60), || {
            is_of_dpdk(scene, &["filters", "list"]).is_ok()
        });
        let told = |what: &[&str]| daemon::bypassctl(&scene.bed, what).map(|run| run.stdout);
        again.map_err(|error| {
            let facts = [
                told(&["filters", "list"]),
                told(&["doctor"]),
                told(&["stats"]),
            ];
            format!("{error}: {facts:?}")
        })?;
        client(scene, "ping", &["-c", "1", "-W", "5", &scene.host()])?;
    }
    ping_pong(scene, &scene.host(), PORT, 2000)?;
    server.stop()?.check()?;
    Ok(())
}

/// The daemon is killed: the relay and the programs go on, and the next daemon knows both.
/// Connections that lived before it live after it.
#[expect(clippy::too_many_lines, reason = "one story")]
pub(crate) fn daemon_killed(scene: &Scene) -> Result<()> {
    let server = echo(scene)?;
    let mut streams = subject(
        scene,
        Side::Server,
        paths::example("tcpecho")?.to_str().unwrap_or(""),
    );
    streams.args(["--bind", &scene.host(), "--port", "7008"]);
    let streams = started(scene, &streams, 7008)?;
    ping_pong(scene, &scene.host(), PORT, 500)?;
    let go = scene.bed.folder().join("go");
    let ready = scene.bed.folder().join("ready");
    let script = r"
import os, socket, time
s = socket.create_connection(('HOST', 7008), 10)
def works():
    for n in range(200):
        s.sendall(b'%05d' % n)
        got = b''
        while len(got) < 5: got += s.recv(5 - len(got))
        assert got == b'%05d' % n
works()
open('READY', 'w').close()
while not os.path.exists('GO'):
    works()
    time.sleep(0.01)
works()
";
    let script = script.replace("HOST", &scene.host());
    let script = script.replace("READY", &ready.display().to_string());
    let script = script.replace("GO", &go.display().to_string());
    let mut peer = scene.bed.program(Side::Client, "python3");
    let mut peer = peer.args(["-c", &script]).spawn()?;
    wait_until("a connection", Duration::from_secs(20), || ready.exists())?;
    if scene.has_shim() {
        let relay = the_only(scene, "relay")?;
        kill(&the_only(scene, "daemon")?)?;
        wait_until("the daemon is gone", Duration::from_secs(20), || {
            running(scene, "daemon").is_empty()
        })?;
        ping_pong(scene, &scene.host(), PORT, 500)?;
        let mut next = scene.bed.program(Side::Server, paths::bypassctl());
        next.args(["daemon", "--config"])
            .arg(scene.bed.device_file());
        next.run()?.check()?;
        is_of_dpdk(scene, &["filters", "list"])?;
        if the_only(scene, "relay")? != relay {
            return Err("the next daemon has started another relay".into());
        }
        let second = start_example(scene, "udpecho", 7010, &["--bind", &scene.host()])?;
        ping_pong(scene, &scene.host(), 7010, 500)?;
        second.stop()?.check()?;
    }
    fs::write(&go, "")?;
    wait_until("the end of the connection", Duration::from_secs(20), || {
        !peer.is_running()
    })?;
    peer.stop()?.check()?;
    ping_pong(scene, &scene.host(), PORT, 500)?;
    streams.stop()?;
    server.stop()?.check()?;
    Ok(())
}

/// A program is killed that has not read its bell, and the daemon with it: the relay ends too.
pub(crate) fn nobody_left(scene: &Scene) -> Result<()> {
    let server = echo(scene)?;
    ping_pong(scene, &scene.host(), PORT, 500)?;
    if !scene.has_shim() {
        server.stop()?.check()?;
        return Ok(());
    }
    // Nobody runs the stack in the place of a program that is stopped.
    kill(&the_only(scene, "daemon")?)?;
    signal(&server.pid().to_string(), "-STOP")?;
    python(
        scene,
        Side::Client,
        "import socket\nu = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n\
         u.connect(('HOST', 7007)); u.send(b'unread')",
    )?;
    // The relay takes frames in their order.
    client(scene, "ping", &["-c", "1", "-W", "5", &scene.host()])?;
    kill(&server.pid().to_string())?;
    wait_until("the relay ends", Duration::from_secs(30), || {
        let name = scene.bed.interface(Side::Server);
        let link = scene.bed.ip(Side::Server, &["link", "show", "dev", name]);
        running(scene, "relay").is_empty() && link.is_err()
    })
}

/// A daemon that is told to end leaves nothing: no relay, no interface.
pub(crate) fn nothing_left(scene: &Scene) -> Result<()> {
    let server = echo(scene)?;
    ping_pong(scene, &scene.host(), PORT, 500)?;
    server.stop()?.check()?;
    daemon::bypassctl(&scene.bed, &["shutdown"])?.check()?;
    wait_until("nothing is left", Duration::from_secs(20), || {
        let name = scene.bed.interface(Side::Server);
        let link = scene.bed.ip(Side::Server, &["link", "show", "dev", name]);
        scene.bed.processes(Side::Server).is_empty() && link.is_err()
    })
}

/// A device that cannot be opened, in a bed without one: whose interface a relay before has left,
/// with an address. The program runs on the kernel there, and everybody says why.
fn fails(scene: &Scene, device: &str, why: &str) -> Result<()> {
    const ADDRESS: &str = "198.18.9.1";
    let (bed, side) = (&scene.bed, Side::Server);
    bed.ip(side, &["tuntap", "add", "vf0", "mode", "tap"])?;
    bed.ip(
        side,
        &["addr", "add", &format!("{ADDRESS}/24"), "dev", "vf0"],
    )?;
    bed.ip(side, &["link", "set", "vf0", "up"])?;
    if scene.has_shim() {
        let config = bed.device_file();
        fs::write(
            &config,
            format!("[[device]]\nname = \"vf0\"\nbackend = \"dpdk\"\n{device}\n"),
        )?;
        let mut program = bed.program(side, paths::bypassctl());
        program
            .args(["daemon", "--config"])
            .arg(&config)
            .run()?
            .check()?;
        let mut last = String::new();
        let told = wait_until("doctor says why", Duration::from_secs(60), || {
            let Ok(run) = daemon::bypassctl(bed, &["doctor", "vf0"]) else {
                return false;
            };
            last = run.stdout;
            last.contains(why) && run.status.code() == Some(1)
        });
        told.map_err(|error| format!("{error}: {why}\n{last}"))?;
    }
    let mut server = bed.program(side, paths::example("udpecho")?);
    server
        .column(scene.column)
        .args(["--bind", ADDRESS, "--port", "7007"]);
    let server = server.spawn()?;
    wait_for_udp_port(bed, side, PORT)?;
    let script = format!(
        "import socket\nu = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\nu.settimeout(5)\n\
         u.connect(('{ADDRESS}', 7007)); u.send(b'x'); assert u.recv(9) == b'x'"
    );
    python(scene, side, &script)?;
    if scene.has_shim() {
        let sockets = daemon::list(bed, &["explain", "--all"])?;
        let socket = sockets.iter().find(|socket| socket["pid"] == server.pid());
        if socket.is_none_or(|it| it["served_by"] != "kernel" || it["reason"] != "no-interface") {
            return Err(format!("the echo is explained as {sockets:?}").into());
        }
    }
    server.stop()?.check()?;
    if scene.has_shim() {
        daemon::bypassctl(bed, &["shutdown"])?.check()?;
    }
    Ok(())
}

/// A library in the bed's folder that stands for the plugin, of this C source.
fn library(scene: &Scene, name: &str, source: &str, needs: Option<&Path>) -> Result<PathBuf> {
    let file = scene.bed.folder().join(format!("{name}.c"));
    fs::write(&file, source)?;
    let library = scene.bed.folder().join(format!("lib{name}.so"));
    let mut cc = Command::new("cc");
    cc.args(["-shared", "-fPIC", "-Wl,--no-as-needed", "-o"]);
    cc.args([&library, &file]).args(needs);
    let run = cc.output()?;
    let why = String::from_utf8_lossy(&run.stderr);
    run.status
        .success()
        .then_some(library)
        .ok_or_else(|| format!("cc: {why}").into())
}

fn with_plugin(path: &Path) -> String {
    format!(
        "devargs = \"net_null0\"\nplugin = {:?}",
        path.display().to_string()
    )
}

/// There is no plugin.
pub(crate) fn no_plugin(scene: &Scene) -> Result<()> {
    let path = Path::new("/nowhere/libbypass_dpdk.so");
    fails(
        scene,
        &with_plugin(path),
        "/nowhere/libbypass_dpdk.so: cannot open",
    )
}

/// There is a plugin, but no DPDK.
pub(crate) fn no_library(scene: &Scene) -> Result<()> {
    let dpdk = library(scene, "rte_absent", "", None)?;
    let plugin = library(scene, "plugin", "", Some(&dpdk))?;
    fs::remove_file(&dpdk)?;
    fails(
        scene,
        &with_plugin(&plugin),
        "librte_absent.so: cannot open",
    )
}

/// The plugin is of another version.
pub(crate) fn other_version(scene: &Scene) -> Result<()> {
    let source = "const unsigned bypass_dpdk[2] = { 99, 8 };";
    let plugin = library(scene, "plugin", source, None)?;
    fails(scene, &with_plugin(&plugin), "its table has version 99")
}

/// A device that DPDK itself refuses, where there is DPDK. `device` are lines of the configuration.
fn is_refused(scene: &Scene, device: &str, why: &str) -> Result<()> {
    if let Err(why) = plugin::path() {
        println!("skipped: {why}");
        return Ok(());
    }
    fails(scene, device, why)
}

/// A function of PCI that no VFIO stands for: the machine's first device, a bridge that no driver
/// of DPDK knows.
pub(crate) fn no_vfio(scene: &Scene) -> Result<()> {
    let devices = fs::read_dir("/sys/bus/pci/devices");
    let names = devices.into_iter().flatten().flatten();
    let mut names: Vec<String> = names
        .filter_map(|it| it.file_name().into_string().ok())
        .collect();
    names.sort_unstable();
    let Some(first) = names.first() else {
        println!("skipped: there is no device of PCI");
        return Ok(());
    };
    let why = format!("bypassctl devices bind {first}");
    is_refused(scene, &format!("devargs = \"{first}\""), &why)
}

/// Huge pages are asked for, and there are none where DPDK looks for them. (Unless they are asked
/// for they need not be there: all beds with a port do without.)
pub(crate) fn no_huge_pages(scene: &Scene) -> Result<()> {
    let device = "devargs = \"net_null0\"\neal = [\"--huge-dir=/nowhere\"]";
    is_refused(scene, device, "Cannot get hugepage information")
}

/// DPDK does not know the driver.
pub(crate) fn unknown_driver(scene: &Scene) -> Result<()> {
    is_refused(scene, "devargs = \"net_nonsense0\"", "net_nonsense0")
}

/// DPDK knows the driver, which does not know the device.
pub(crate) fn no_such_device(scene: &Scene) -> Result<()> {
    let device = "devargs = \"net_af_packet0,iface=absent\"";
    is_refused(scene, device, "No such device")
}
