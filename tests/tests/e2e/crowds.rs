//! More of something than a stack has room for, and more programs than an interface has queues.

use std::fs;
use std::path::Path;
use std::time::Duration;

use bypass_tests::counters::{wait_for_tcp_port, wait_for_udp_port};
use bypass_tests::program::{Running, wait_until};
use bypass_tests::services::wait_for_filter;
use bypass_tests::testbed::Side;
use bypass_tests::{Result, daemon, paths};
use serde_json::Value;

use super::faults::readable_copies;
use super::harness::{Scene, script};
use super::streams::{started, subject};

const PORT: u16 = 7007;
const PATIENCE: Duration = Duration::from_secs(20);

/// 300 connections to a stack of 64: all are served, those beyond by the kernel, and when most have
/// ended new ones are accelerated again.
#[expect(clippy::too_many_lines, reason = "one story")]
pub(crate) fn too_many_connections(scene: &Scene) -> Result<()> {
    let rules = scene.bed.folder().join("small.toml");
    fs::write(&rules, "[daemon]\nendpoints = 64\n")?;
    let _daemon = scene
        .has_shim()
        .then(|| {
            let rules = rules.display().to_string();
            daemon::start_with(&scene.bed, &["--config", &rules], &[])
        })
        .transpose()?;
    let mut server = scene.bed.program(Side::Server, paths::example("tcpecho")?);
    server.column(scene.column).args(["--bind", &scene.host()]);
    let server = started(scene, &server, PORT)?;
    let script = format!(
        "import os, socket, sys, time\n\
         def ask(s):\n\
         \x20   s.sendall(b'x' * 1000); assert len(s.recv(1000, socket.MSG_WAITALL)) == 1000\n\
         def fresh():\n\
         \x20   s = socket.create_connection(('{}', {PORT}), 15); s.settimeout(15)\n\
         \x20   ask(s); return s\n\
         all = [fresh() for _ in range(300)]\n\
         for s in all: ask(s)\n\
         for s in all[10:]: s.close()\n\
         print('few', flush=True)\n\
         while not os.path.exists(sys.argv[1]): time.sleep(0.01)\n\
         for s in all[:10] + [fresh()]: ask(s)\n\
         print('all', flush=True)",
        scene.host()
    );
    let go = scene.bed.folder().join("go");
    let mut client = scene.bed.program(Side::Client, "python3");
    let client = client.args(["-c", &script]).arg(&go).spawn()?;
    let state = || -> Option<String> {
        let stacks = daemon::list(&scene.bed, &["stacks"]).ok()?;
        Some(stacks.first()?["state"].as_str()?.to_owned())
    };
    let opens = || daemon::counter(&scene.bed, "tcp-passive-opens");
    let said = |what: &str| client.stdout().contains(what);
    if scene.has_shim() {
        wait_until("a crowd", PATIENCE, || {
            state().as_deref() == Some("crowded")
        })?;
    }
    let served = wait_until("all connections", PATIENCE, || said("few"));
    served.map_err(|error| format!("{error}: {}", client.stderr()))?;
    let mut before = 0;
    if scene.has_shim() {
        wait_until("room", PATIENCE, || state().as_deref() == Some("live"))?;
        before = opens()?;
        if before > 64 {
            return Err(format!("{before} connections in a stack of 64").into());
        }
    }
    fs::write(&go, "")?;
    let run = client.wait(PATIENCE)?.check()?;
    if !run.stdout.contains("all") {
        return Err("not all were served".into());
    }
    if scene.has_shim() && opens()? != before + 1 {
        return Err("the new one is not accelerated".into());
    }
    server.stop()?;
    Ok(())
}

/// Serves connections by their first letter: takes or gives bytes at once, or takes them when a
/// file is there. What was taken is answered with its digest.
const KEEPER: &str = r"
import hashlib, os, socket, sys, threading, time
host, go = sys.argv[1:]
def serve(c):
    kind = c.recv(1)
    if kind in b'gG':
        c.sendall(bytes(range(250)) * 2000 * (1 if kind == b'g' else 10))
    else:
        while kind == b't' and not os.path.exists(go): time.sleep(0.01)
        got = hashlib.sha256()
        while more := c.recv(65536): got.update(more)
        c.sendall(got.hexdigest().encode())
    c.close()
s = socket.create_server((host, 7007), backlog=100)
while True: threading.Thread(target=serve, args=[s.accept()[0]], daemon=True).start()
";

/// Ten connections that the server does not read, ten that the client does not read, and then two
/// in a hurry.
const KEEPERS_PEERS: &str = r"
import hashlib, os, socket, sys, threading, time
host, go = sys.argv[1:]
data = bytes(range(250)) * 2000
def started(kind):
    s = socket.create_connection((host, 7007), 15)
    s.settimeout(60)
    s.sendall(kind)
    return s
def give(s, all):
    s.sendall(all)
    s.shutdown(socket.SHUT_WR)
    return s.recv(64, socket.MSG_WAITALL).decode() == hashlib.sha256(all).hexdigest()
def take(s, all): return b''.join(iter(lambda: s.recv(65536), b'')) == all
right = []
given, taken = [started(b't') for _ in range(10)], [started(b'g') for _ in range(10)]
threads = [threading.Thread(target=lambda s=s: right.append(give(s, data))) for s in given]
for it in threads: it.start()
print('started', flush=True)
while not os.path.exists(go + '.on'): time.sleep(0.01)
begun = time.monotonic()
assert give(started(b'T'), data * 10) and take(started(b'G'), data * 10)
print('seconds', time.monotonic() - begun, flush=True)
open(go, 'w').close()
assert all(take(s, data) for s in taken)
for it in threads: it.join()
assert right == [True] * 10, right
print('all', flush=True)
";

/// Programs and peers that do not read hold the packet memory: their connections go to the kernel,
/// with what they hold, and the others are served at once.
pub(crate) fn short_of_memory(scene: &Scene) -> Result<()> {
    let rules = scene.bed.folder().join("small.toml");
    fs::write(&rules, "[daemon]\nchunks = 512\n")?;
    let rules = rules.display().to_string();
    let start = || daemon::start_with(&scene.bed, &["--config", &rules], &[]);
    let _daemon = scene.has_shim().then(start).transpose()?;
    let go = scene.bed.folder().join("go");
    let mut server = subject(scene, Side::Server, "/usr/bin/python3");
    server.args(["-IS", "-c", KEEPER, &scene.host()]).arg(&go);
    let server = started(scene, &server, PORT)?;
    let mut peers = scene.bed.program(Side::Client, "python3");
    peers.args(["-c", KEEPERS_PEERS, &scene.host()]).arg(&go);
    let peers = peers.spawn()?;
    if scene.has_shim() {
        let relieved = || daemon::counter(&scene.bed, "connections_relieved").unwrap_or(0);
        let told = || reasons_of(scene, server.pid()).unwrap_or_default();
        wait_until("relief", PATIENCE, || relieved() > 0)?;
        wait_until("a reason", PATIENCE, || {
            told().contains(&"memory".to_owned())
        })?;
    }
    fs::write(go.with_extension("on"), "")?;
    let run = peers.wait(PATIENCE * 3)?.check()?;
    if !run.stdout.contains("all") {
        return Err(format!("not all: {}", run.stderr).into());
    }
    server.stop()?;
    Ok(())
}

/// Why sockets of a process are the kernel's.
fn reasons_of(scene: &Scene, pid: u32) -> Result<Vec<String>> {
    let all = daemon::list(&scene.bed, &["explain", &pid.to_string()])?;
    let reasons = all.iter().filter_map(|socket| socket["reason"].as_str());
    Ok(reasons.map(str::to_owned).collect())
}

/// A program has more children than its stack has places for. What those beyond do is the kernel's,
/// and nobody asks the daemon for each of them.
pub(crate) fn more_children_than_places(scene: &Scene) -> Result<()> {
    let script = format!(
        "import os, socket, sys, time\n\
         s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.bind(('{}', {PORT}))\n\
         r, w = os.pipe()\n\
         def child():\n\
         \x20   os.close(w); os.read(r, 1); os._exit(0)\n\
         def forks(count):\n\
         \x20   for _ in range(count): os.fork() or child()\n\
         while not os.path.exists(sys.argv[1]): time.sleep(0.01)\n\
         forks(140); print('full', flush=True)\n\
         while not os.path.exists(sys.argv[2]): time.sleep(0.01)\n\
         begun = time.monotonic(); forks(100)\n\
         print('seconds', int(time.monotonic() - begun), flush=True)",
        scene.host()
    );
    let [go, again] = ["go", "again"].map(|name| scene.bed.folder().join(name));
    let mut parent = scene.bed.program(Side::Server, "python3");
    parent.column(scene.column).args(["-IS", "-c", &script]);
    let parent = parent.args([&go, &again]).spawn()?;
    wait_for_udp_port(&scene.bed, Side::Server, PORT)?;
    if scene.has_shim() {
        wait_for_filter(&scene.bed, PORT)?;
    }
    fs::write(&go, "")?;
    let said = |what: &str| parent.stdout().contains(what);
    let full = wait_until("as many children as there are places", PATIENCE, || {
        said("full")
    });
    full.map_err(|error| format!("{error}: {}", parent.stderr()))?;
    let asked = |scene: &Scene| daemon::counter(&scene.bed, "requests");
    let before = if scene.has_shim() { asked(scene)? } else { 0 };
    fs::write(&again, "")?;
    let run = parent.wait(PATIENCE)?.check()?;
    if scene.has_shim() {
        let took = run.stdout.split_whitespace().last();
        let seconds: u64 = took.ok_or("no time")?.parse()?;
        // The tool asks too.
        let asked = asked(scene)?.saturating_sub(before);
        if asked > 20 + seconds {
            return Err(format!("{asked} requests in {seconds} s").into());
        }
    }
    Ok(())
}

/// A program of a user, and what it is asked.
struct Resident {
    user: u32,
    /// Its words; HERE is the folder of the test, HOST its address.
    command: &'static str,
    port: u16,
    /// What its client does in Python, with `s`, a connection to it that is read as `f`, or `u`, a
    /// datagram socket.
    exchange: &'static str,
}

const OWNER: u32 = 65534;
const STREAM: &str = "s.sendall(b'x' * 9000); assert len(f.read(9000)) == 9000";
const DATAGRAM: &str = "u.send(b'x' * 900); assert len(u.recv(2000)) == 900";

const fn resident(user: u32, port: u16, command: &'static str, exchange: &'static str) -> Resident {
    Resident {
        user,
        command,
        port,
        exchange,
    }
}

/// Five of the user who comes first, five of others, one of these root's.
const RESIDENTS: [Resident; 10] = [
    resident(
        OWNER,
        7001,
        "HERE/udpecho --bind HOST --port 7001",
        DATAGRAM,
    ),
    resident(OWNER, 7002, "HERE/tcpecho --bind HOST --port 7002", STREAM),
    resident(
        OWNER,
        7003,
        "redis-server --bind HOST --port 7003 --dir HERE --protected-mode no --save ",
        "s.sendall(b'PING\\r\\n'); assert f.readline() == b'+PONG\\r\\n'",
    ),
    resident(
        OWNER,
        7004,
        "memcached -l HOST -p 7004 -U 0",
        "s.sendall(b'version\\r\\n'); assert f.readline().startswith(b'VERSION')",
    ),
    resident(
        OWNER,
        7005,
        "/usr/bin/python3 -I HERE/asyncio_echo.py HOST 7005",
        DATAGRAM,
    ),
    resident(2001, 7006, "HERE/udpecho --bind HOST --port 7006", DATAGRAM),
    resident(2002, 7007, "HERE/tcpecho --bind HOST --port 7007", STREAM),
    resident(
        2003,
        7008,
        "/usr/bin/python3 -I -m http.server --bind HOST --directory HERE 7008",
        "s.sendall(b'HEAD / HTTP/1.0\\r\\n\\r\\n'); assert f.read(9) == b'HTTP/1.0 '",
    ),
    resident(
        2004,
        7009,
        "socat TCP4-LISTEN:7009,bind=HOST,fork,reuseaddr PIPE",
        STREAM,
    ),
    resident(
        0,
        7010,
        "/usr/bin/python3 -I HERE/socketserver_echo.py HOST 7010",
        DATAGRAM,
    ),
];

fn move_in(scene: &Scene, one: &Resident, folder: &Path) -> Result<Running> {
    let here = folder.display().to_string();
    let words = one.command.replace("HERE", &here);
    let words = words.replace("HOST", &scene.host());
    let mut words = words.split(' ');
    let mut program = scene.bed.program(Side::Server, words.next().unwrap_or(""));
    program.args(words);
    if one.user != 0 {
        program.user(one.user);
    }
    if scene.has_shim() {
        program.env("LD_PRELOAD", folder.join("libbypass.so"));
    }
    let running = program.spawn()?;
    let bound = if one.exchange == DATAGRAM {
        wait_for_udp_port(&scene.bed, Side::Server, one.port)
    } else {
        wait_for_tcp_port(&scene.bed, Side::Server, one.port)
    };
    bound.map_err(|error| format!("{}: {error}: {}", one.command, running.stderr()))?;
    if scene.has_shim() && one.user == OWNER {
        wait_for_filter(&scene.bed, one.port)?;
    }
    Ok(running)
}

/// Who serves the socket of a program's port, or why it is the kernel.
fn reason(scene: &Scene, pid: u32, port: u16) -> Result<String> {
    let all = daemon::list(&scene.bed, &["explain", &pid.to_string()])?;
    let end = format!(":{port}");
    let is_it = |socket: &&Value| {
        let local = socket["local"].as_str().unwrap_or_default();
        local.ends_with(&end)
    };
    let socket = all.iter().find(is_it);
    let socket = socket.ok_or_else(|| format!("nothing about port {port}: {all:?}"))?;
    let found = [&socket["reason"], &socket["served_by"]];
    let found = found.into_iter().find_map(Value::as_str);
    Ok(found.unwrap_or_default().to_owned())
}

/// Ten programs that know nothing of each other on an interface with one queue, of six users: those
/// of the user who was first share the queue, the others are told why they have the kernel, and all
/// are served at once.
pub(crate) fn ten_programs(scene: &Scene) -> Result<()> {
    let scripts = ["asyncio_echo.py", "socketserver_echo.py"].map(script);
    let mut files = scripts.to_vec();
    files.extend([paths::example("udpecho")?, paths::example("tcpecho")?]);
    let folder = readable_copies(scene, files)?;
    let start = || daemon::start(&scene.bed, &[]);
    let daemon = scene.has_shim().then(start).transpose()?;
    let mut residents = Vec::new();
    for one in &RESIDENTS {
        residents.push(move_in(scene, one, &folder)?);
    }
    everybody_is_served(scene)?;
    if scene.has_shim() {
        for (one, running) in RESIDENTS.iter().zip(&residents) {
            let expected = match one.user {
                OWNER => "bypass",
                _ => "queue-busy",
            };
            let found = reason(scene, running.pid(), one.port)?;
            if found != expected {
                let command = one.command;
                return Err(format!("{command}: {found} in the place of {expected}").into());
            }
        }
    }
    drop(residents);
    fs::remove_dir_all(folder)?;
    if let Some(daemon) = daemon {
        daemon.stop()?;
    }
    Ok(())
}

/// A client for each, all at once: 30 connections or exchanges.
fn everybody_is_served(scene: &Scene) -> Result<()> {
    let mut text = String::from("import socket, threading\nbad = []\n");
    for one in &RESIDENTS {
        let (host, port, exchange) = (scene.host(), one.port, one.exchange);
        // A datagram may be lost.
        let attempts = if exchange == DATAGRAM {
            "range(3)"
        } else {
            "range(1)"
        };
        let make = match exchange {
            DATAGRAM => format!(
                "u = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); u.connect(('{host}', {port})); \
                 u.settimeout(10)"
            ),
            _ => format!(
                "s = socket.create_connection(('{host}', {port}), 10); f = s.makefile('rb')"
            ),
        };
        text += &format!(
            "def client{port}():\n\
             \x20 for _ in range(30):\n\
             \x20  for again in {attempts}:\n\
             \x20   try:\n\
             \x20    {make}\n\
             \x20    {exchange}\n\
             \x20    break\n\
             \x20   except TimeoutError as error: last = error\n\
             \x20   except BaseException as error: bad.append(({port}, error)); break\n\
             \x20  else: bad.append(({port}, last))\n"
        );
    }
    text += "all = [threading.Thread(target=one) for name, one in list(globals().items()) \
             if name.startswith('client')]\n\
             for one in all: one.start()\n\
             for one in all: one.join()\n\
             assert not bad, bad";
    let mut clients = scene.bed.program(Side::Client, "python3");
    clients.args(["-c", &text]).run()?.check()?;
    Ok(())
}
