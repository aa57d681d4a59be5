//! A card by ef_vi in the place of an AF_XDP interface. No card: libciul is a stand-in, which takes
//! from the kernel what filters match.
//!
//! The scenes of other modules run on it as they are (`ef_vi_card::*`); those here are of the card
//! itself.

use std::fs;
use std::time::Duration;

use bypass_tests::counters::wait_for_udp_port;
use bypass_tests::program::{Finished, wait_until};
use bypass_tests::testbed::Side;
use bypass_tests::{Result, ciul, daemon, paths};
use serde_json::Value;

use super::dpdk::{echo, kill, the_only};
use super::harness::{Scene, compiled, script};
use super::programs::{ping_pong, start_example};
use super::streams::{client, started, subject};

const PORT: u16 = 7007;
const PATIENCE: Duration = Duration::from_secs(30);

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

/// A child for each of ten connections, and no listener then.
const FORKING: &str = r"
import os, signal, socket, sys
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
listener = socket.create_server((sys.argv[1], int(sys.argv[2])))
for n in range(10):
    c, _ = listener.accept()
    if os.fork() == 0:
        listener.close()
        while data := c.recv(100): c.sendall(data)
        os._exit(0)
    c.close()
listener.close()
while True: signal.pause()
";
/// Ten connections, each with an answer, and with another one when there is a file.
const TEN: &str = r"
import os, socket, sys, time
all = [socket.create_connection((sys.argv[1], int(sys.argv[2])), 20) for n in range(10)]
def exchange():
    for n, s in enumerate(all): s.sendall(b'%03d' % n)
    for n, s in enumerate(all): assert s.recv(3, socket.MSG_WAITALL) == b'%03d' % n, n
exchange()
print('all', flush=True)
while not os.path.exists(sys.argv[3]): time.sleep(0.01)
exchange()
";

/// The daemon is killed, and the next one's configuration names no card: AF_XDP has the interface
/// then, with the sockets that there are, and connections whose listener is another process's.
pub(crate) fn left_to_af_xdp(scene: &Scene) -> Result<()> {
    let (bed, host, port) = (&scene.bed, scene.host(), (PORT + 1).to_string());
    let go = bed.folder().join("go").display().to_string();
    let datagrams = echo(scene)?;
    let mut forking = subject(scene, Side::Server, "python3");
    let forking = forking.args(["-c", FORKING, &host, &port]);
    let forking = started(scene, forking, PORT + 1)?;
    let mut peers = bed.program(Side::Client, "python3");
    let peers = peers.args(["-c", TEN, &host, &port, &go]).spawn()?;
    let limit = Duration::from_secs(20);
    wait_until("an answer on every connection", limit, || {
        peers.stdout().contains("all")
    })?;
    ping_pong(scene, &host, PORT, 100)?;
    if scene.has_shim() {
        kill(&the_only(scene, "daemon")?)?;
        wait_until("the daemon is gone", limit, || {
            daemon::running(bed).is_empty()
        })?;
        let file = bed.folder().join("nothing.toml");
        fs::write(&file, "")?;
        let mut next = bed.program(Side::Server, paths::bypassctl());
        next.args(["daemon", "--config"])
            .arg(&file)
            .run()?
            .check()?;
        wait_until("AF_XDP has the sockets", limit, || {
            let filters = daemon::list(bed, &["filters", "list"]).unwrap_or_default();
            filters.len() > 1 && filters.iter().all(|it| it["backend"] == "af_xdp")
        })?;
    }
    fs::write(&go, "")?;
    let run = peers.wait(limit).and_then(Finished::check);
    run.map_err(|error| format!("{error}\n{}", forking.stderr()))?;
    ping_pong(scene, &host, PORT, 500)?;
    forking.stop()?;
    datagrams.stop()?.check()?;
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

/// The ring code that the card's VIs have: the vendor's where `BYPASS_TEST_LIBCIUL` names a
/// library, which the relay must have then.
fn check_library(scene: &Scene) -> Result<()> {
    let Some(vendors) = ciul::vendors()? else {
        println!("BYPASS_TEST_LIBCIUL is not set: no genuine library, the stand-in only");
        return Ok(());
    };
    let maps = fs::read_to_string(format!("/proc/{}/maps", the_only(scene, "relay")?))?;
    let name = vendors.display().to_string();
    if maps.lines().any(|line| line.ends_with(&name)) {
        Ok(())
    } else {
        Err(format!("{name} is not the relay's:\n{maps}").into())
    }
}

/// Datagrams of every size, more at once than the rings hold, come back as they were: asked for by
/// the kernel's side, then by ours. By one queue and by several.
pub(crate) fn flights(scene: &Scene) -> Result<()> {
    const FLIGHT: [&str; 3] = ["8", "1000", "3"];
    let script = script("flights.py").display().to_string();
    if scene.has_shim() {
        check_library(scene)?;
    }
    for (asked, host, port) in [
        (Side::Server, scene.host(), PORT),
        (Side::Client, scene.peer(), PORT + 1),
    ] {
        let number = port.to_string();
        let to = [&*script, "echo", &host, &number];
        let mut echo = match asked {
            Side::Server => subject(scene, asked, "python3"),
            Side::Client => scene.bed.program(asked, "python3"),
        };
        let echo = echo.args(to).spawn()?;
        wait_for_udp_port(&scene.bed, asked, port)
            .map_err(|error| format!("{error}\n{}{}", echo.stdout(), echo.stderr()))?;
        let mut ask = match asked {
            Side::Server => scene.bed.program(Side::Client, "python3"),
            Side::Client => subject(scene, Side::Server, "python3"),
        };
        ask.args([&*script, "ask", &host, &number]).args(FLIGHT);
        let told = ask.run()?.check()?;
        println!("{}", told.stdout);
        echo.kill();
    }
    if scene.has_shim() {
        check_counts(scene, 6000)?;
    }
    Ok(())
}

/// The card has received and sent as much, and nothing has gone wrong in its rings.
fn check_counts(scene: &Scene, least: u64) -> Result<()> {
    const BAD: [&str; 7] = [
        "discarded",
        "too-long",
        "other-vlan",
        "resets",
        "overflows",
        "tx-errors",
        "filters-lost",
    ];
    let mut told = [None; 2];
    let counted = wait_until("the port has counted", PATIENCE, || {
        told = ["received", "sent"].map(|name| of_card(scene, name));
        told.iter().all(|count| *count >= Some(least))
    });
    counted.map_err(|error| format!("{error}: {told:?}"))?;
    let mut wrong = daemon::list(&scene.bed, &["stats"])?;
    wrong.retain(|counter| {
        let name = counter["name"].as_str().unwrap_or_default();
        let is_bad = BAD.iter().any(|bad| name.starts_with(bad));
        counter["kind"] == "ef_vi" && is_bad && counter["value"] != 0
    });
    if wrong.is_empty() {
        Ok(())
    } else {
        Err(format!("something is wrong: {wrong:?}").into())
    }
}

/// The card takes one filter and no other: whose it is not, the kernel serves, and the reason is
/// known.
pub(crate) fn full(scene: &Scene) -> Result<()> {
    let host = scene.host();
    let led = echo(scene)?;
    let left = start_example(scene, "udpecho", PORT + 1, &["--bind", &host])?;
    for port in [PORT, PORT + 1] {
        ping_pong(scene, &host, port, 200)?;
    }
    if scene.has_shim() {
        let sockets = daemon::list(&scene.bed, &["explain", "--all"])?;
        let reason = |port: u16| {
            let local = Value::from(format!("{host}:{port}"));
            let mut found = sockets.iter().filter(|it| it["local"] == local);
            found.next().map(|it| it["reason"].clone())
        };
        let reasons = [PORT, PORT + 1].map(reason);
        if reasons != [Some(Value::Null), Some("limit".into())] {
            return Err(format!("{reasons:?}: {sockets:?}").into());
        }
    }
    led.stop()?.check()?;
    left.stop()?.check()?;
    Ok(())
}

/// A number of the card's own that `bypassctl stats` shows.
fn of_card(scene: &Scene, name: &str) -> Option<u64> {
    let stats = daemon::list(&scene.bed, &["stats"]).ok()?;
    let mut of_card = stats.iter().filter(|counter| counter["kind"] == "ef_vi");
    of_card.find(|counter| counter["name"] == name)?["value"].as_u64()
}

/// A card spreads flows over several queues: datagrams of 64 sockets and segments of 32
/// connections all come, also behind the death of one queue. (Each socket sends again what is not
/// answered within a second, so that what is lost with the queue is no failure; what a queue had
/// that nobody looks at would never be answered.)
pub(crate) fn spread(scene: &Scene) -> Result<()> {
    let host = scene.host();
    let datagrams = echo(scene)?;
    let mut streams = scene.bed.program(Side::Server, paths::example("tcpecho")?);
    streams.column(scene.column);
    streams.args(["--port", "7008", "--bind", &host]);
    let streams = started(scene, &streams, 7008)?;
    let ask = format!(
        "import socket\n\
         def ask(s, word):\n \
          for _ in range(20):\n  \
           s.send(word)\n  \
           try:\n   \
            while s.recv(100) != word: pass\n   \
            return True\n  \
           except socket.timeout: pass\n \
          return False\n\
         all = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(64)]\n\
         for s in all: s.connect(('{host}', {PORT})); s.settimeout(1)\n\
         print([[n, i] for i in range(30) for n, s in enumerate(all)\n \
                if not ask(s, b'%d %d' % (n, i))][:5])"
    );
    let unanswered = client(scene, "python3", &["-c", &ask])?.json()?;
    if unanswered != Value::Array(Vec::new()) {
        return Err(format!("sockets and rounds that nobody answers: {unanswered}").into());
    }
    let exchange = paths::example("tcprr")?.display().to_string();
    let how = ["--connections", "32", "--count", "100", "--size", "1000"];
    let to = ["--port", "7008", &host];
    client(scene, &exchange, &[&how[..], &to].concat())?;
    if scene.has_shim() {
        let mut told = [None; 3];
        let counted = wait_until("the port has counted", Duration::from_secs(20), || {
            told = ["queues", "resets", "filters-lost"].map(|name| of_card(scene, name));
            told[0] == Some(4) && told[1] > Some(0) && told[2] == Some(0)
        });
        counted.map_err(|error| format!("{error}: {told:?}"))?;
        let doctor = daemon::bypassctl(&scene.bed, &["doctor", scene.bed.interface(Side::Server)]);
        let doctor = doctor?.stdout;
        if !doctor.contains(", 4 queues") {
            return Err(format!("doctor does not tell of the queues: {doctor}").into());
        }
    }
    streams.kill();
    datagrams.stop()?.check()?;
    Ok(())
}

/// The card is reset, loses events and stops sending while one connection is at work: its VI is
/// made again each time, and the connection lives on.
pub(crate) fn outlived(scene: &Scene) -> Result<()> {
    let host = scene.host();
    let mut server = scene.bed.program(Side::Server, paths::example("tcpecho")?);
    server.column(scene.column);
    server.args(["--port", "7008", "--bind", &host]);
    let server = started(scene, &server, 7008)?;
    let exchange = paths::example("tcprr")?.display().to_string();
    let how = ["--connections", "1", "--count", "3000", "--size", "3000"];
    client(
        scene,
        &exchange,
        &[&how[..], &["--port", "7008", &host]].concat(),
    )?;
    if scene.has_shim() {
        let mut stats = Vec::new();
        let deaths = wait_until("the port has counted", Duration::from_secs(20), || {
            stats = daemon::list(&scene.bed, &["stats"]).unwrap_or_default();
            let is = |name: &str, wanted: u64| {
                let mut of_card = stats.iter().filter(|counter| counter["kind"] == "ef_vi");
                of_card.any(|it| it["name"] == name && it["value"] == wanted)
            };
            let died = ["resets", "overflows", "tx-errors"].map(|name| is(name, 1));
            died == [true; 3] && is("filters-lost", 0)
        });
        deaths.map_err(|error| format!("{error}: {stats:?}"))?;
    }
    server.kill();
    Ok(())
}

/// What answers of `stamps.py` must be: the card's time where SO_TIMESTAMPING has it, and the
/// host's in its own place. (The kernel's column has a veth, which has no clock; the stand-in's is
/// a million seconds ahead.)
fn check_times(scene: &Scene, answers: &Value) -> Result<()> {
    let answers = answers.as_array().ok_or("no list")?;
    let near = |value: &Value, wanted: f64| {
        let off = value.as_f64().map(|value| value - wanted);
        off.is_some_and(|off| (-10.0..0.5).contains(&off))
    };
    let is_right = |answer: &Value| {
        let of_card = match scene.has_shim() {
            true => near(&answer[1], 1e6),
            false => answer[1].is_null(),
        };
        near(&answer[0], 0.0) && of_card
    };
    if answers.len() == 200 && answers.iter().all(is_right) {
        Ok(())
    } else {
        Err(format!("other times: {answers:?}").into())
    }
}

/// Received datagrams have the times of both clocks.
pub(crate) fn stamps(scene: &Scene) -> Result<()> {
    let (script, host) = (script("stamps.py").display().to_string(), scene.host());
    let mut server = subject(scene, Side::Server, "python3");
    let server = server.args([&script, &host, &PORT.to_string()]).spawn()?;
    wait_for_udp_port(&scene.bed, Side::Server, PORT)
        .map_err(|error| format!("{error}\n{}{}", server.stdout(), server.stderr()))?;
    let ask = format!(
        "import json, socket\n\
         s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n\
         s.connect(('{host}', {PORT})); s.settimeout(10)\n\
         def ask(): s.send(b'?'); return json.loads(s.recv(100))\n\
         print(json.dumps([ask() for _ in range(200)]))"
    );
    check_times(scene, &client(scene, "python3", &["-c", &ask])?.json()?)?;
    server.kill();
    Ok(())
}

/// What is read of a connection has the times of its last segment.
pub(crate) fn stream_stamps(scene: &Scene) -> Result<()> {
    let (script, host) = (script("stamps.py").display().to_string(), scene.host());
    let mut server = subject(scene, Side::Server, "python3");
    server.args([&script, &host, "7008", "stream"]);
    let server = started(scene, &server, 7008)?;
    let ask = format!(
        "import json, socket\n\
         s = socket.create_connection(('{host}', 7008), 10)\n\
         def ask(): s.send(b'?'); return json.loads(s.recv(100))\n\
         print(json.dumps([ask() for _ in range(200)]))"
    );
    check_times(scene, &client(scene, "python3", &["-c", &ask])?.json()?)?;
    server.kill();
    Ok(())
}

/// What `sent_times` has told must be all that a kernel would tell over such a card: its time of
/// each send by the number of the last byte, beside the host's where that is asked for. (The
/// kernel's column has a veth, which has no clock.)
fn check_sent_times(scene: &Scene, is_beside: bool, told: &Value) -> Result<()> {
    let is_near = |value: &Value, wanted: f64| {
        let off = value.as_f64().map(|value| value - wanted);
        off.is_some_and(|off| (-10.0..0.5).contains(&off))
    };
    let mut behind = 0;
    let sizes = (1..=20).map(|nth| nth * 300).chain([100; 20]);
    let mut wanted: Vec<(u64, bool)> = Vec::new();
    for size in sizes {
        behind += size;
        let of_host = !scene.has_shim() || is_beside;
        let kinds = [(of_host, false), (scene.has_shim(), true)];
        let kinds = kinds.iter().filter(|(is_told, _)| *is_told);
        wanted.extend(kinds.map(|(_, of_card)| (behind - 1, *of_card)));
    }
    let told = told.as_array().ok_or("no list")?;
    let mut got = Vec::new();
    for notice in told {
        let (of_host, of_card) = (&notice[1], &notice[2]);
        let is_card = is_near(of_card, 1e6) && of_host.is_null();
        let is_host = is_near(of_host, 0.0) && of_card.is_null();
        if !is_card && !is_host {
            return Err(format!("another time: {notice}").into());
        }
        got.push((notice[0].as_u64().ok_or("no number")?, is_card));
    }
    // The card's come when they come, each kind in its order.
    let of = |all: &[(u64, bool)], kind| -> Vec<u64> {
        let all = all.iter().filter(|(_, is_card)| *is_card == kind);
        all.map(|(number, _)| *number).collect()
    };
    for kind in [false, true] {
        if of(&got, kind) != of(&wanted, kind) {
            return Err(format!("other notices: {got:?}, not {wanted:?}").into());
        }
    }
    Ok(())
}

/// Sends of a connection have the card's time in its error queue.
pub(crate) fn sent_times(scene: &Scene) -> Result<()> {
    let (program, host) = (compiled(scene, "sent_times", &[])?, scene.host());
    let read = format!(
        "import socket\n\
         s = socket.create_connection(('{host}', 7008), 10)\n\
         while s.recv(65536): pass"
    );
    for is_beside in [false, true] {
        let mut server = subject(scene, Side::Server, &program);
        server.args([&*host, "7008"]);
        if is_beside {
            server.arg(if scene.has_shim() { "2" } else { "1" });
        }
        let server = started(scene, &server, 7008)?;
        client(scene, "python3", &["-c", &read])?;
        let told = server.wait(PATIENCE)?.check()?;
        check_sent_times(scene, is_beside, &told.json()?)
            .map_err(|error| format!("beside: {is_beside}: {error}"))?;
    }
    Ok(())
}

/// Two workers with a listener each on one port (SO_REUSEPORT): one queue of the card has the flows
/// of both, the stack spreads them. One worker is killed: connections of the other one go on, and
/// the next worker gets its share.
pub(crate) fn reuseport_workers(scene: &Scene) -> Result<()> {
    let (config, host) = (scene.bed.folder().join("nginx.conf"), scene.host());
    fs::write(
        &config,
        format!(
            "daemon off; worker_processes 2; pid {0}/pid; error_log stderr; user root;\n\
             events {{ worker_connections 1024; }}\n\
             http {{ access_log off; keepalive_requests 1000000;\n\
             client_body_temp_path {0}/b; proxy_temp_path {0}/p;\n\
             fastcgi_temp_path {0}/f; uwsgi_temp_path {0}/u; scgi_temp_path {0}/s;\n\
             server {{ listen {host}:8080 reuseport; location / {{ return 200 $pid; }} }} }}\n",
            scene.bed.folder().display()
        ),
    )?;
    let mut nginx = subject(scene, Side::Server, "/usr/sbin/nginx");
    nginx.arg("-c").arg(&config);
    let server = started(scene, &nginx, 8080)?;
    let script = script("worker_shares.py").display().to_string();
    let mut clients = scene.bed.program(Side::Client, "python3");
    let mut clients = clients.args([&script, &host, "8080"]).spawn()?;
    let told = wait_until("the shares", PATIENCE, || {
        !clients.is_running() || clients.stdout().lines().count() > 0
    });
    told.map_err(|error| format!("{error}: {}", clients.stderr()))?;
    let worker = clients.stdout().lines().next().map(ToOwned::to_owned);
    let worker = worker.ok_or_else(|| format!("no shares: {}", clients.stderr()))?;
    kill(&worker)?;
    let answer = clients.wait(PATIENCE)?.check()?;
    if scene.has_shim() && !is_of_card(scene) {
        return Err(format!("not the card: {}", answer.stdout).into());
    }
    server.stop()?;
    Ok(())
}

/// Whether the kernel has VLAN interfaces at all (CONFIG_VLAN_8021Q).
fn has_vlans(scene: &Scene) -> bool {
    let (card, side) = (scene.bed.interface(Side::Client), Side::Client);
    let add = [
        "link", "add", "link", card, "name", "probe.9", "type", "vlan", "id", "9",
    ];
    let made = scene.bed.ip(side, &add);
    made.is_ok() && scene.bed.ip(side, &["link", "del", "probe.9"]).is_ok()
}

/// Gives each side an interface of this VLAN with an address of its own; the server's is a card's.
/// No NIC leaves checksums to its peer: the other end must make them.
fn make_vlan(scene: &Scene, id: &str) -> Result<String> {
    let bed = &scene.bed;
    for (side, address) in [
        (Side::Server, "198.18.9.1/24"),
        (Side::Client, "198.18.9.2/24"),
    ] {
        let card = bed.interface(side);
        let name = format!("{card}.{id}");
        let add = ["link", "add", "link", card, "name", &name];
        bed.ip(side, &[&add[..], &["type", "vlan", "id", id]].concat())?;
        bed.ip(side, &["addr", "add", address, "dev", &name])?;
        bed.ip(side, &["link", "set", &name, "up"])?;
    }
    let card = bed.interface(Side::Client);
    for name in [card, &format!("{card}.{id}")] {
        let mut offloads = bed.program(Side::Client, "ethtool");
        offloads.args(["-K", name, "tx", "off"]).run()?.check()?;
    }
    Ok(format!("{}.{id}", bed.interface(Side::Server)))
}

/// Starts a daemon that drives an interface as a card, and waits until it does.
fn serve_card(scene: &Scene, name: &str) -> Result<()> {
    let bed = &scene.bed;
    let library = ciul::library(bed.folder())?.display().to_string();
    let device = format!("name = {name:?}\nbackend = \"ef_vi\"\nlibrary = {library:?}\n");
    fs::write(bed.device_file(), format!("[[device]]\n{device}"))?;
    let mut started = bed.program(Side::Server, paths::bypassctl());
    started.env("FAKE_CIUL_WIRE", "packet");
    started.args(["daemon", "--config"]).arg(bed.device_file());
    started.run()?.check()?;
    wait_until("the card is open", Duration::from_secs(20), || {
        let run = daemon::bypassctl(bed, &["doctor", name]);
        run.is_ok_and(|run| run.stdout.contains("a card that ef_vi serves"))
    })
}

/// A VLAN interface on a card: the card's filters know the VLAN, frames have its tag on the wire,
/// and nothing of the interface below is led away.
pub(crate) fn vlan(scene: &Scene) -> Result<()> {
    let (bed, host) = (&scene.bed, "198.18.9.1");
    if !has_vlans(scene) {
        println!("skipped: this kernel has no VLAN interfaces (CONFIG_VLAN_8021Q)");
        return Ok(());
    }
    let name = make_vlan(scene, "7")?;
    if scene.has_shim() {
        serve_card(scene, &name)?;
    }
    let datagrams = start_example(scene, "udpecho", PORT, &["--bind", host])?;
    let mut streams = subject(
        scene,
        Side::Server,
        &paths::example("tcpecho")?.to_string_lossy(),
    );
    streams.args(["--port", "7008", "--bind", host]);
    let streams = started(scene, &streams, 7008)?;
    ping_pong(scene, host, PORT, 2000)?;
    let exchanges = ["--port", "7008", "--count", "500", "--size", "5000", host];
    client(
        scene,
        &paths::example("tcprr")?.to_string_lossy(),
        &exchanges,
    )?;
    if scene.has_shim() {
        let filters = daemon::list(bed, &["filters", "list"])?;
        for (protocol, least) in [("udp", 2000), ("tcp", 500)] {
            let mut mine = filters.iter().filter(|it| it["protocol"] == protocol);
            let is_led = |it: &Value| {
                let is_ours = it["interface"] == *name && it["backend"] == "ef_vi";
                is_ours && it["packets"].as_u64() >= Some(least)
            };
            if !mine.any(is_led) {
                return Err(format!("{protocol} is not led by the VLAN: {filters:?}").into());
            }
        }
    }
    streams.kill();
    datagrams.stop()?.check()?;
    if scene.has_shim() {
        daemon::bypassctl(bed, &["shutdown"])?.check()?;
    }
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

/// In namespaces of its own: shows the daemon a card in the place of an interface (`$1`) by what
/// it looks at, the PCI vendor. The rest of the arguments is the daemon's.
const AS_CARD: &str = r#"
card=$1; shift
places=$(for name in $(ls /sys/class/net); do echo "$name $(readlink -f /sys/class/net/$name)"; done)
mount -t tmpfs cards /sys/class/net
while read -r name place; do
  if [ "$name" = "$card" ]; then
    mkdir -p "/sys/class/net/$name/device"
    for file in "$place"/*; do ln -s "$file" "/sys/class/net/$name/"; done
    echo 0x1924 > "/sys/class/net/$name/device/vendor"
  else ln -s "$place" "/sys/class/net/$name"; fi
done <<< "$places"
exec "$@"
"#;

/// A card that no configuration names is ef_vi's, where its library is; one that a configuration
/// leaves to AF_XDP is AF_XDP's.
pub(crate) fn by_itself(scene: &Scene) -> Result<()> {
    let (bed, host) = (&scene.bed, scene.host());
    let name = bed.interface(Side::Server);
    let file = bed.folder().join("cards.toml");
    fs::write(&file, "")?;
    if scene.has_shim() {
        let library = bed.folder().join("libciul.so.1");
        std::os::unix::fs::symlink(ciul::stand_in()?, library)?;
        let mut daemon = bed.program(Side::Server, "unshare");
        daemon.args(["--mount", "bash", "-c", AS_CARD, "as-card", name]);
        daemon.arg(paths::bypassctl()).args(["daemon", "--config"]);
        daemon.arg(&file).env("FAKE_CIUL_WIRE", "packet");
        daemon.env("LD_LIBRARY_PATH", bed.folder());
        // What comes over a card has whole checksums.
        let mut offloads = bed.program(Side::Client, "ethtool");
        offloads.args(["-K", bed.interface(Side::Client), "tx", "off"]);
        offloads.run()?.check()?;
        daemon.run()?.check()?;
        wait_until("the card is open", Duration::from_secs(20), || {
            let run = daemon::bypassctl(bed, &["doctor", name]);
            run.is_ok_and(|run| run.stdout.contains("a card that ef_vi serves"))
        })?;
    }
    let server = start_example(scene, "udpecho", PORT, &["--bind", &host])?;
    ping_pong(scene, &host, PORT, 500)?;
    if scene.has_shim() {
        let by = |backend: &str| {
            let filters = daemon::list(bed, &["filters", "list"]).unwrap_or_default();
            filters.first().is_some_and(|it| it["backend"] == backend)
        };
        if !by("ef_vi") {
            return Err("the card is not ef_vi's".into());
        }
        fs::write(
            &file,
            format!("[[device]]\nname = {name:?}\nbackend = \"af_xdp\"\n"),
        )?;
        daemon::bypassctl(bed, &["reload"])?.check()?;
        wait_until("AF_XDP has it", Duration::from_secs(20), || by("af_xdp"))?;
        ping_pong(scene, &host, PORT, 500)?;
    }
    server.stop()?.check()?;
    Ok(())
}
