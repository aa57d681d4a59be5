//! The programs of `examples/c`, sockperf, iperf3, memcached, socat, Python.

use std::fs;
use std::time::Duration;

use bypass_tests::counters::{
    KernelUdp, interface_frames, kernel_segments, processor_time, wait_for_tcp_port,
    wait_for_udp_port,
};
use bypass_tests::program::{Program, Running, wait_until};
use bypass_tests::services::wait_for_filter;
use bypass_tests::testbed::Side;
use bypass_tests::{Result, daemon, paths};
use serde_json::Value;

use super::harness::Scene;

/// Starts a program of `examples/c` on the server side, in the scene's column, on a UDP port.
pub(crate) fn start_example(
    scene: &Scene,
    name: &str,
    port: u16,
    arguments: &[&str],
) -> Result<Running> {
    let mut program = scene.bed.program(Side::Server, paths::example(name)?);
    program
        .column(scene.column)
        .args(["--port", &port.to_string()])
        .args(arguments);
    let running = program.spawn()?;
    wait_for_udp_port(&scene.bed, Side::Server, port)
        .map_err(|error| format!("{error}\n{}{}", running.stdout(), running.stderr()))?;
    Ok(running)
}

/// Runs `udprr` on the client side; all but one in a hundred of its exchanges must succeed.
pub(crate) fn ping_pong(scene: &Scene, address: &str, port: u16, count: u32) -> Result<()> {
    let mut client = scene.bed.program(Side::Client, paths::example("udprr")?);
    client.args(["--json", "--warmup", "10", "--count", &count.to_string()]);
    let run = client
        .args(["--port", &port.to_string(), address])
        .run()?
        .check()?;
    let lost = run.json()?["lost"]
        .as_u64()
        .ok_or("no count of lost ones")?;
    if lost > u64::from(count) / 100 {
        return Err(format!("{lost} of {count} answers are lost").into());
    }
    Ok(())
}

fn echo_works(scene: &Scene, program: &str, arguments: &[&str], address: &str) -> Result<()> {
    let server = start_example(scene, program, 7007, arguments)?;
    ping_pong(scene, address, 7007, 2000)?;
    server.stop()?.check()?;
    Ok(())
}

pub(crate) fn udp_echo(scene: &Scene) -> Result<()> {
    echo_works(scene, "udpecho", &["--bind", &scene.host()], &scene.host())
}

/// Under valgrind, which finds no error in it or in us.
pub(crate) fn udp_echo_valgrind(scene: &Scene) -> Result<()> {
    let mut program = scene.bed.program(Side::Server, "valgrind");
    program
        .column(scene.column)
        .args(["--quiet", "--error-exitcode=9"])
        .arg(paths::example("udpecho")?)
        .args(["--port", "7007", "--bind", &scene.host()]);
    let server = program.spawn()?;
    wait_for_udp_port(&scene.bed, Side::Server, 7007)
        .map_err(|error| format!("{error}\n{}{}", server.stdout(), server.stderr()))?;
    ping_pong(scene, &scene.host(), 7007, 300)?;
    server.stop()?.check()?;
    Ok(())
}

pub(crate) fn udp_echo_epoll(scene: &Scene) -> Result<()> {
    echo_works(
        scene,
        "udpecho-epoll",
        &["--bind", &scene.host()],
        &scene.host(),
    )
}

pub(crate) fn udp_echo_ipv6(scene: &Scene) -> Result<()> {
    let address = scene.bed.ipv6(Side::Server);
    echo_works(scene, "udpecho", &["--bind", &address], &address)
}

pub(crate) fn udp_echo_any_address(scene: &Scene) -> Result<()> {
    echo_works(scene, "udpecho", &[], &scene.host())
}

/// One socket on any address hears two interfaces: by the bypass both, or one of them, which the
/// daemon leaves to the kernel.
pub(crate) fn udp_echo_two_interfaces(scene: &Scene) -> Result<()> {
    let (bed, second) = (&scene.bed, "198.19.7.1");
    let namespace = bed.namespace(Side::Client);
    let veth = "link add second type veth peer name second netns";
    let words: Vec<&str> = veth.split(' ').chain([&namespace[..]]).collect();
    bed.ip(Side::Server, &words)?;
    for (side, address) in [
        (Side::Server, "198.19.7.1/24"),
        (Side::Client, "198.19.7.2/24"),
    ] {
        bed.ip(side, &["link", "set", "second", "up"])?;
        bed.ip(side, &["addr", "add", address, "dev", "second"])?;
    }
    let config = bed.folder().join("interfaces.toml");
    for (excluded, left) in [("other", false), ("second", true)] {
        let daemon = if scene.has_shim() {
            fs::write(
                &config,
                format!("[daemon]\ninterfaces = {{ exclude = [\"{excluded}\"] }}\n"),
            )?;
            let arguments = ["--config", &config.display().to_string()];
            Some(daemon::start_with(bed, &arguments, &[])?)
        } else {
            None
        };
        let server = start_example(scene, "udpecho", 7007, &[])?;
        // Until both neighbours are known.
        ping_pong(scene, &scene.host(), 7007, 10)?;
        ping_pong(scene, second, 7007, 10)?;
        for (address, by_kernel) in [(&scene.host()[..], false), (second, left)] {
            let before = KernelUdp::read(bed, Side::Server)?;
            ping_pong(scene, address, 7007, 500)?;
            let kernel = KernelUdp::read(bed, Side::Server)?.since(before).total();
            let expected = if by_kernel { 990..1100 } else { 0..50 };
            if scene.has_shim() && !expected.contains(&kernel) {
                let what = format!("without {excluded}, to {address}");
                return Err(format!("{what}: the kernel carried {kernel}").into());
            }
        }
        server.stop()?.check()?;
        if let Some(daemon) = daemon {
            daemon.stop()?;
        }
    }
    Ok(())
}

/// A receiver that is told to end does not read what has come.
const UNREAD: Duration = Duration::from_millis(500);

/// What a receiver surely keeps up with: its buffer, as large as the kernel allows, holds more than
/// comes while it does not run for some tenths of a second.
const PACED: [&str; 8] = [
    "--threads",
    "2",
    "--batch",
    "32",
    "--rate",
    "6000",
    "--count",
    "8000",
];

/// The receiver gets what a paced kernel sender sends.
fn receives(scene: &Scene, arguments: &[&str]) -> Result<()> {
    receives_at(scene, arguments, &PACED).map(drop)
}

/// The receiver gets what a kernel sender sends at some pace; how many datagrams that were.
pub(crate) fn receives_at(scene: &Scene, arguments: &[&str], pace: &[&str]) -> Result<u64> {
    let host = scene.host();
    let mut all = vec!["--bind", &host, "--json", "--rcvbuf", "4000000"];
    all.extend(arguments);
    let server = start_example(scene, "udpreceiver", 4321, &all)?;
    if scene.has_shim() {
        wait_for_filter(&scene.bed, 4321)?;
    }
    let mut client = scene
        .bed
        .program(Side::Client, paths::example("udpsender")?);
    client
        .args(["--json", "--size", "22"])
        .args(pace)
        .arg(&host);
    let sent = client.run()?.check()?.json()?["packets"]
        .as_u64()
        .ok_or("no count")?;
    std::thread::sleep(UNREAD);
    let got = server.stop()?.check()?.json()?["packets"]
        .as_u64()
        .ok_or("no count")?;
    if got < sent * 98 / 100 {
        return Err(format!("{got} of {sent} datagrams arrived").into());
    }
    Ok(sent)
}

pub(crate) fn udp_receiver(scene: &Scene) -> Result<()> {
    receives(scene, &[])
}

pub(crate) fn udp_receiver_threads(scene: &Scene) -> Result<()> {
    receives(scene, &["--threads", "3", "--batch", "64"])
}

/// A receiver on the kernel, of the sender under test.
fn kernel_receiver(scene: &Scene, room: &str, arguments: &[&str]) -> Result<Running> {
    let mut server = scene
        .bed
        .program(Side::Client, paths::example("udpreceiver")?);
    server.args(["--json", "--rcvbuf", room]).args(arguments);
    let running = server.spawn()?;
    wait_for_udp_port(&scene.bed, Side::Client, 4321)?;
    Ok(running)
}

/// The sender under test reaches a receiver on the kernel with what it sends; how many that was.
fn sends(scene: &Scene, server: Running, arguments: &[&str]) -> Result<u64> {
    let mut client = scene
        .bed
        .program(Side::Server, paths::example("udpsender")?);
    client
        .column(scene.column)
        .args(["--json", "--size", "22"])
        .args(arguments);
    let sent = client.run()?.check()?.json()?["packets"]
        .as_u64()
        .ok_or("no count")?;
    std::thread::sleep(UNREAD);
    let got = server.stop()?.check()?.json()?["packets"]
        .as_u64()
        .ok_or("no count")?;
    if got < sent * 98 / 100 {
        return Err(format!("{got} of {sent} datagrams arrived").into());
    }
    Ok(sent)
}

/// [`sends`], by the bypass. A sender that is late has full batches, which the kernel cuts out of
/// large sends: it counts each as one, and so does the interface.
fn sends_by_itself(scene: &Scene, server: Running, arguments: &[&str]) -> Result<()> {
    let before = KernelUdp::read(&scene.bed, Side::Server)?;
    let sent = sends(scene, server, arguments)?;
    let kernel = KernelUdp::read(&scene.bed, Side::Server)?.since(before);
    if scene.has_shim() && kernel.sent > sent / 8 {
        return Err(format!("the kernel has sent {} of {sent}", kernel.sent).into());
    }
    Ok(())
}

/// The sender under test, a receiver on the kernel.
pub(crate) fn udp_sender(scene: &Scene) -> Result<()> {
    let peer = scene.peer();
    let server = kernel_receiver(scene, "4000000", &["--bind", &peer])?;
    let pace = ["--batch", "32", "--rate", "6000", "--count", "8000"];
    sends_by_itself(scene, server, &[&pace[..], &[&peer]].concat())
}

/// Three threads with batches as large as they can be, to two addresses in turn.
pub(crate) fn udp_sender_threads(scene: &Scene) -> Result<()> {
    let (peer, second) = (scene.peer(), "198.18.7.3");
    let interface = scene.bed.interface(Side::Client);
    let address = format!("{second}/24");
    scene
        .bed
        .ip(Side::Client, &["addr", "add", &address, "dev", interface])?;
    let server = kernel_receiver(scene, "8000000", &[])?;
    let pace = [
        "--threads",
        "3",
        "--batch",
        "1024",
        "--rate",
        "20000",
        "--count",
        "30720",
    ];
    sends_by_itself(scene, server, &[&pace[..], &[&peer, second]].concat())
}

/// Four thousand datagrams as fast as they go, in batches that the kernel cuts out of few sends.
pub(crate) fn udp_sender_in_batches(scene: &Scene) -> Result<()> {
    let peer = scene.peer();
    let server = kernel_receiver(scene, "8000000", &["--bind", &peer])?;
    let mut client = scene
        .bed
        .program(Side::Server, paths::example("udpsender")?);
    client.column(scene.column).args([
        "--json", "--batch", "200", "--size", "22", "--count", "4000", &peer,
    ]);
    let before = KernelUdp::read(&scene.bed, Side::Server)?;
    client.run()?.check()?;
    let sends = KernelUdp::read(&scene.bed, Side::Server)?
        .since(before)
        .sent;
    std::thread::sleep(UNREAD);
    let got = server.stop()?.check()?.json()?["packets"].as_u64();
    if got != Some(4000) {
        return Err(format!("{got:?} of 4000 datagrams arrived").into());
    }
    // The kernel counts what it cuts as one. Beside a relay nothing is the kernel's to cut.
    let is_cut = scene.has_shim() && !scene.bed.has_relay();
    if is_cut && !(60..400).contains(&sends) {
        return Err(format!("the kernel has sent {sends} times").into());
    }
    Ok(())
}

fn start_sockperf(scene: &Scene, arguments: &[&str]) -> Result<Running> {
    let mut program = scene.bed.program(Side::Server, "sockperf");
    program.column(scene.column).arg("server").args(arguments);
    let running = program.spawn()?;
    wait_for_udp_port(&scene.bed, Side::Server, 11111)
        .map_err(|error| format!("{error}\n{}{}", running.stdout(), running.stderr()))?;
    Ok(running)
}

/// A sockperf client ended well and lost, doubled or mixed up nothing.
fn sockperf_is_content(text: &str) -> Result<()> {
    let fine = text.contains("# dropped messages = 0; # duplicated messages = 0; # out-of-order");
    if fine {
        Ok(())
    } else {
        Err(format!("sockperf: {text}").into())
    }
}

fn sockperf_pings(scene: &Scene, arguments: &[&str]) -> Result<()> {
    let mut client = scene.bed.program(Side::Client, "sockperf");
    client
        .arg("ping-pong")
        .args(["-t", "1", "--mps", "2000", "-m", "48"])
        .args(arguments);
    let run = client.timeout(Duration::from_secs(20)).run()?.check()?;
    sockperf_is_content(&run.stdout)
}

pub(crate) fn sockperf_ping_pong(scene: &Scene) -> Result<()> {
    let _server = start_sockperf(scene, &["-i", &scene.host()])?;
    sockperf_pings(scene, &["-i", &scene.host()])
}

pub(crate) fn sockperf_throughput(scene: &Scene) -> Result<()> {
    let _server = start_sockperf(scene, &["-i", &scene.host()])?;
    let mut client = scene.bed.program(Side::Client, "sockperf");
    client.args(["throughput", "-t", "1", "-m", "64", "-i", &scene.host()]);
    client.timeout(Duration::from_secs(20)).run()?.check()?;
    sockperf_pings(scene, &["-i", &scene.host()])
}

/// Two UDP sockets and one TCP socket behind one way of waiting.
fn sockperf_mux(scene: &Scene, way: &str) -> Result<()> {
    let host = scene.host();
    let feed = scene.bed.folder().join("feed");
    // recvfrom can wait for one socket only.
    let tcp = if way == "r" {
        String::new()
    } else {
        format!("T:{host}:11113\n")
    };
    let second = if way == "r" {
        String::new()
    } else {
        format!("U:{host}:11112\n")
    };
    fs::write(&feed, format!("U:{host}:11111\n{second}{tcp}"))?;
    let feed = feed.display().to_string();
    let server = start_sockperf(scene, &["-f", &feed, "-F", way])?;
    if !tcp.is_empty() {
        wait_for_tcp_port(&scene.bed, Side::Server, 11113)?;
    }
    sockperf_pings(scene, &["-f", &feed, "-F", way])
        .map_err(|error| format!("{error}\nserver: {}{}", server.stdout(), server.stderr()).into())
}

pub(crate) fn sockperf_recvfrom(scene: &Scene) -> Result<()> {
    sockperf_mux(scene, "r")
}

pub(crate) fn sockperf_select(scene: &Scene) -> Result<()> {
    sockperf_mux(scene, "s")
}

pub(crate) fn sockperf_poll(scene: &Scene) -> Result<()> {
    sockperf_mux(scene, "p")
}

pub(crate) fn sockperf_epoll(scene: &Scene) -> Result<()> {
    sockperf_mux(scene, "e")
}

/// The client under test, its server on the kernel.
pub(crate) fn sockperf_client(scene: &Scene) -> Result<()> {
    let peer = scene.peer();
    let mut server = scene.bed.program(Side::Client, "sockperf");
    let _server = server.args(["server", "-i", &peer]).spawn()?;
    wait_for_udp_port(&scene.bed, Side::Client, 11111)?;
    let mut client = scene.bed.program(Side::Server, "sockperf");
    client
        .column(scene.column)
        .args(["ping-pong", "-t", "1", "--mps", "2000", "-i", &peer]);
    let run = client.timeout(Duration::from_secs(20)).run()?.check()?;
    sockperf_is_content(&run.stdout)
}

/// No server: a timer's signal must end the blocked recvfrom.
pub(crate) fn sockperf_without_server(scene: &Scene) -> Result<()> {
    let mut client = scene.bed.program(Side::Server, "sockperf");
    client
        .column(scene.column)
        .args(["ping-pong", "-t", "1", "-i", &scene.peer()]);
    client.timeout(Duration::from_secs(10)).run()?;
    Ok(())
}

fn iperf3(scene: &Scene, arguments: &[&str]) -> Result<()> {
    let host = scene.host();
    let mut server = scene.bed.program(Side::Server, "iperf3");
    let server = server
        .column(scene.column)
        .args(["-s", "-B", &host])
        .spawn()?;
    wait_for_tcp_port(&scene.bed, Side::Server, 5201)?;
    let mut client = scene.bed.program(Side::Client, "iperf3");
    client
        .args(["-c", &host, "-u", "-b", "6M", "-l", "1200", "-t", "2", "-J"])
        .args(arguments);
    let full = || -> Result<u64> {
        let of = |side| KernelUdp::read(&scene.bed, side).map(|counters| counters.full);
        Ok(of(Side::Client)? + of(Side::Server)?)
    };
    let before = full()?;
    let run = client.run()?;
    let report: Value = serde_json::from_str(&run.stdout)?;
    let sum = &report["end"]["sum"];
    let (packets, lost) = (sum["packets"].as_u64(), sum["lost_packets"].as_u64());
    // On a busy machine a program does not always come to empty its socket in time.
    let by_programs = full()? - before;
    match (packets, lost) {
        (Some(packets), Some(lost))
            if packets > 1_000 && lost.saturating_sub(by_programs) * 50 < packets =>
        {
            Ok(())
        }
        _ => Err(format!("iperf3: {}\n{}", sum, server.stderr()).into()),
    }
}

pub(crate) fn iperf3_to_server(scene: &Scene) -> Result<()> {
    iperf3(scene, &[])
}

pub(crate) fn iperf3_from_server(scene: &Scene) -> Result<()> {
    iperf3(scene, &["-R"])
}

/// Starts a script of `tests/e2e` on the server side.
fn start_script(scene: &Scene, name: &str, port: u16) -> Result<Running> {
    let script = paths::repository().join("tests/e2e").join(name);
    let mut python = scene.bed.program(Side::Server, "/usr/bin/python3");
    python.column(scene.column).arg("-I").arg(script);
    let running = python.args([&scene.host(), &port.to_string()]).spawn()?;
    wait_for_udp_port(&scene.bed, Side::Server, port)
        .map_err(|error| format!("{error}\n{}{}", running.stdout(), running.stderr()))?;
    Ok(running)
}

pub(crate) fn python_asyncio(scene: &Scene) -> Result<()> {
    let _server = start_script(scene, "asyncio_echo.py", 7007)?;
    ping_pong(scene, &scene.host(), 7007, 1000)
}

pub(crate) fn python_socketserver(scene: &Scene) -> Result<()> {
    let _server = start_script(scene, "socketserver_echo.py", 7007)?;
    ping_pong(scene, &scene.host(), 7007, 1000)
}

pub(crate) fn memcached(scene: &Scene) -> Result<()> {
    let (host, port) = (scene.host(), 11211);
    let mut server = scene.bed.program(Side::Server, "memcached");
    server.column(scene.column);
    server.args([
        "-u", "root", "-l", &host, "-p", "11211", "-U", "11211", "-t", "2",
    ]);
    let _server = server.spawn()?;
    wait_for_udp_port(&scene.bed, Side::Server, port)?;
    let script = paths::repository().join("tests/e2e/memcached_client.py");
    let mut client = scene.bed.program(Side::Client, "/usr/bin/python3");
    client
        .arg("-I")
        .arg(script)
        .args([&host, "11211"])
        .run()?
        .check()?;
    Ok(())
}

/// socat connects its listening UDP socket to the first peer.
pub(crate) fn socat_connected(scene: &Scene) -> Result<()> {
    let host = scene.host();
    let mut server = scene.bed.program(Side::Server, "socat");
    server
        .column(scene.column)
        .args([&format!("UDP4-LISTEN:5006,bind={host}"), "PIPE"]);
    let _server = server.spawn()?;
    wait_for_udp_port(&scene.bed, Side::Server, 5006)?;
    ping_pong(scene, &host, 5006, 500)
}

/// socat writes what it receives into a file.
pub(crate) fn socat_receiver(scene: &Scene) -> Result<()> {
    let host = scene.host();
    let file = scene.bed.folder().join("received");
    let mut server = scene.bed.program(Side::Server, "socat");
    server
        .column(scene.column)
        .args(["-u", &format!("UDP4-RECV:5005,bind={host}")]);
    server.arg(format!("OPEN:{},creat,append", file.display()));
    let _server = server.spawn()?;
    wait_for_udp_port(&scene.bed, Side::Server, 5005)?;
    if scene.has_shim() {
        wait_for_filter(&scene.bed, 5005)?;
    }
    let text = format!("for i in $(seq 100); do echo line $i > /dev/udp/{host}/5005; done");
    scene
        .bed
        .program(Side::Client, "bash")
        .args(["-c", &text])
        .run()?
        .check()?;
    wait_until("a hundred lines", Duration::from_secs(20), || {
        fs::read_to_string(&file).is_ok_and(|text| text.lines().count() == 100)
    })
}

/// An accelerated program that waits uses no processor time.
pub(crate) fn idle_uses_no_processor(scene: &Scene) -> Result<()> {
    let host = scene.host();
    let server = start_example(scene, "idle", 7007, &["--bind", &host, "--seconds", "60"])?;
    let poke = format!("echo > /dev/udp/{host}/7007");
    scene
        .bed
        .program(Side::Client, "bash")
        .args(["-c", &poke])
        .run()?
        .check()?;
    nobody_works(scene)?;
    server.stop()?.check()?;
    Ok(())
}

/// Waits for three seconds in which nobody on the server's side works, the daemon included.
pub(super) fn nobody_works(scene: &Scene) -> Result<()> {
    let all = || -> Duration {
        let processes = scene.bed.processes(Side::Server);
        processes.into_iter().map(processor_time).sum()
    };
    // What has to do with the start ends some time after it.
    let mut used = Vec::new();
    let is_idle = wait_until(
        "three seconds without work",
        Duration::from_secs(20),
        || {
            let before = all();
            std::thread::sleep(Duration::from_secs(3));
            used.push(all() - before);
            used.last() <= Some(&Duration::from_millis(15))
        },
    );
    is_idle.map_err(|error| format!("{error}: {used:?}").into())
}

/// Ping, ARP, TCP and other UDP ports on the interface of an accelerated program.
pub(crate) fn everything_else_is_unaffected(scene: &Scene) -> Result<()> {
    let host = scene.host();
    let _server = start_example(scene, "udpecho", 7007, &["--bind", &host])?;
    ping_pong(scene, &host, 7007, 200)?;
    let mut other = scene.bed.program(Side::Server, paths::example("udpecho")?);
    let _other = other.args(["--bind", &host, "--port", "7008"]).spawn()?;
    wait_for_udp_port(&scene.bed, Side::Server, 7008)?;
    ping_pong(scene, &host, 7008, 200)?;
    let mut tcp = scene.bed.program(Side::Server, "iperf3");
    let _tcp = tcp.args(["-s", "-B", &host]).spawn()?;
    wait_for_tcp_port(&scene.bed, Side::Server, 5201)?;
    let mut client = scene.bed.program(Side::Client, "iperf3");
    client.args(["-c", &host, "-t", "1"]).run()?.check()?;
    for address in [host.clone(), scene.bed.ipv6(Side::Server)] {
        let mut ping = scene.bed.program(Side::Client, "ping");
        ping.args(["-n", "-q", "-c", "5", "-i", "0.1", "-s", "3000", &address])
            .run()?
            .check()?;
    }
    // ARP starts from nothing, on both sides.
    for side in [Side::Client, Side::Server] {
        scene.bed.ip(side, &["neigh", "flush", "all"])?;
    }
    ping_pong(scene, &host, 7007, 200)?;
    ping_pong(scene, &host, 7008, 200)
}

/// CPython's own tests of UDP sockets and selectors, with 127.0.0.1 made the accelerated address.
pub(crate) fn cpython_socket_tests(scene: &Scene) -> Result<()> {
    let mut python = cpython(scene)?;
    python.args(["-i", "*VSOCK*"]);
    for class in ["*UDP*", "*BasicSelectorTest*", "*SelectorTestCase*"] {
        python.args(["-m", class]);
    }
    judged(python.args(["-j2", "test_socket", "test_selectors"]))
}

/// CPython's suites that use TCP. Left out of test_asyncio is what opens no socket.
const STREAM_SUITES: [&str; 6] = [
    "test_socket",
    "test_socketserver",
    "test_ftplib",
    "test_smtplib",
    "test_httplib",
    "test_httpservers",
];
/// More of them, which natively only take time.
const MORE_STREAM_SUITES: [&str; 12] = [
    "test_ssl",
    "test_asyncio.test_buffered_proto",
    "test_asyncio.test_events",
    "test_asyncio.test_selector_events",
    "test_asyncio.test_sendfile",
    "test_asyncio.test_server",
    "test_asyncio.test_sock_lowlevel",
    "test_asyncio.test_ssl",
    "test_asyncio.test_sslproto",
    "test_asyncio.test_streams",
    "test_asyncio.test_subprocess",
    "test_asyncio.test_unix_events",
];
/// Tests of them that are left out, and why.
const NOT_OF_STREAMS: [(&str, &str); 4] = [
    ("*VSOCK*", "the machine has none"),
    (
        "*GeneralModuleTests*",
        "asks for names, and there is no server",
    ),
    ("*UDP*", "cpython_socket_tests has them"),
    (
        "test_preauth_data_to_tls_server",
        "a reset that comes over a wire is not there in the same moment",
    ),
];

/// CPython's own tests of TCP, whose connections lead over the wire and back to the same program.
pub(crate) fn cpython_stream_tests(scene: &Scene) -> Result<()> {
    let reflector = reflector(scene)?;
    let mut python = cpython(scene)?;
    for (name, _why) in NOT_OF_STREAMS {
        python.args(["-i", name]);
    }
    // Some of them measure time: what fails beside three others runs once more alone.
    python
        .args(["-j4", "-w", "-u", "network"])
        .args(STREAM_SUITES);
    if scene.has_shim() {
        python.args(MORE_STREAM_SUITES);
    }
    let segments = kernel_segments(&scene.bed, Side::Server)?;
    let frames = interface_frames(&scene.bed, Side::Server)?;
    judged(&mut python)?;
    // Some of them insist on loopback, by name or over IPv6.
    let segments = kernel_segments(&scene.bed, Side::Server)? - segments;
    let after = interface_frames(&scene.bed, Side::Server)?;
    let frames = (after.0 - frames.0) + (after.1 - frames.1);
    if scene.has_shim() && segments > frames / 4 {
        return Err(format!("the kernel carried {segments} segments of {frames} frames").into());
    }
    // The daemon ends what the programs have left open, for which it needs their peer: an orphan
    // whose other end is gone without a word takes at most two minutes. A time wait of a minute is
    // not waited for.
    let is_over = |socket: &Value| socket["state"] == "time-wait";
    let mut left = Vec::new();
    let ended = wait_until(
        "the end of all connections",
        Duration::from_secs(180),
        || {
            let all = daemon::list(&scene.bed, &["sockets", "--all"]);
            all.is_ok_and(|all| {
                left = all;
                left.iter().all(is_over)
            })
        },
    );
    ended.map_err(|error| format!("{error}: {left:?}"))?;
    daemon::stop_all(&scene.bed);
    drop(reflector);
    Ok(())
}

/// Address that leads back to the server side, for TCP in the shim column.
const REFLECTED: &str = "198.18.7.3";

/// Makes the client side send TCP to [`REFLECTED`] back.
fn reflector(scene: &Scene) -> Result<Option<Running>> {
    if !scene.has_shim() {
        return Ok(None);
    }
    let bed = &scene.bed;
    let mut mac = bed.program(Side::Client, "cat");
    let mac = mac.arg("/sys/class/net/byp-c/address").run()?.check()?;
    let neighbour = format!(
        "neigh add {REFLECTED} lladdr {} dev byp-s nud permanent",
        mac.stdout.trim()
    );
    let neighbour: Vec<&str> = neighbour.split(' ').collect();
    bed.ip(Side::Server, &neighbour)?;
    // What the kernel sends needs its checksums, too: the reflector knows of no offload.
    let mut ethtool = bed.program(Side::Server, "ethtool");
    ethtool.args(["-K", "byp-s", "tx", "off"]).run()?.check()?;
    let mut reflect = bed.program(Side::Client, "/usr/bin/python3");
    let script = paths::repository().join("tests/e2e/reflect.py");
    let running = reflect
        .arg("-I")
        .arg(script)
        .args(["byp-c", REFLECTED])
        .spawn()?;
    wait_until("the reflector", Duration::from_secs(10), || {
        running.stdout().contains("ready")
    })?;
    Ok(Some(running))
}

/// `python3 -m test` on the server side.
fn cpython(scene: &Scene) -> Result<Program<'_>> {
    let mut preload = paths::test_program("remap", "libremap.so")?.into_os_string();
    let mut python = scene.bed.program(Side::Server, "/usr/bin/python3");
    if scene.has_shim() {
        preload.push(" ");
        preload.push(paths::shim());
        python.env("REMAP_STREAMS", REFLECTED);
    }
    python
        .env("LD_PRELOAD", &preload)
        .env("REMAP_TO", scene.host())
        .env("BYPASS_ACCELERATE_LOCAL", "1")
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .args(["-m", "test"])
        .timeout(Duration::from_secs(300));
    Ok(python)
}

fn judged(python: &mut Program<'_>) -> Result<()> {
    let run = python.run()?;
    if run.status.success() {
        return Ok(());
    }
    let text = format!("{}{}", run.stdout, run.stderr);
    let tail: Vec<&str> = text.lines().rev().take(60).collect();
    Err(tail.into_iter().rev().collect::<Vec<_>>().join("\n").into())
}
