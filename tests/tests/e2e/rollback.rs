//! `bypassctl rollback` and `adopt` on programs at work.

use std::fs;
use std::time::Duration;

use bypass_tests::counters::{KernelUdp, kernel_segments, wait_for_udp_port};
use bypass_tests::program::{Finished, Program, Running, wait_until};
use bypass_tests::testbed::Side;
use bypass_tests::{Result, daemon};
use serde_json::Value;

use super::handover::{echo_clients, echoed};
use super::harness::Scene;
use super::streams::{client, started, subject};

/// One that only the privileged may bind.
pub(crate) const PORT: u16 = 900;

/// An echo on asyncio.
fn echo(scene: &Scene) -> Result<Running> {
    echo_at(scene, PORT)
}

fn echo_at(scene: &Scene, port: u16) -> Result<Running> {
    let script = r"
import asyncio, sys
async def serve(r, w):
    while data := await r.read(65536):
        w.write(data)
        await w.drain()
    w.close()
async def main():
    server = await asyncio.start_server(serve, sys.argv[1], int(sys.argv[2]), backlog=2000)
    async with server: await server.serve_forever()
asyncio.run(main())
";
    let mut server = subject(scene, Side::Server, "python3");
    server.args(["-c", script, &scene.host(), &port.to_string()]);
    started(scene, &server, port)
}

/// Runs `bypassctl COMMAND WHOM --json`; without the shim there is nothing to run it on.
pub(crate) fn control(scene: &Scene, command: &str, whom: &str) -> Result<Value> {
    if !scene.has_shim() {
        return Ok(Value::Null);
    }
    let mut arguments = vec![command];
    arguments.extend(whom.split(' '));
    arguments.push("--json");
    let run = daemon::bypassctl(&scene.bed, &arguments)?.check()?;
    let answer: Value = serde_json::from_str(&run.stdout)?;
    if answer["left"] == 0 {
        return Ok(answer);
    }
    Err(format!("{command} {whom}: {answer}").into())
}

/// The answer must have this count of something.
pub(crate) fn counted(scene: &Scene, answer: &Value, of: &str, wanted: u64) -> Result<()> {
    if !scene.has_shim() || answer[of] == wanted {
        return Ok(());
    }
    Err(format!("{of}: {wanted} expected in {answer}").into())
}

/// Whether `bypassctl explain` has sockets of this process and port, all of which the kernel serves
/// because of a rollback.
fn all_rolled_back(scene: &Scene, pid: u32) -> Result<()> {
    if !scene.has_shim() {
        return Ok(());
    }
    let sockets = daemon::list(&scene.bed, &["explain", &pid.to_string()])?;
    let is_back = |socket: &Value| socket["role"].is_null() || socket["reason"] == "rollback";
    if !sockets.is_empty() && sockets.iter().all(is_back) {
        return Ok(());
    }
    Err(format!("not all are rolled back: {sockets:?}").into())
}

/// One connection that sends and receives; whether the kernel of the server side has carried it.
fn one_exchange(scene: &Scene) -> Result<bool> {
    let before = kernel_segments(&scene.bed, Side::Server)?;
    let script = format!(
        "import socket\n\
         s = socket.create_connection(('{}', {PORT})); d = bytes(range(256)) * 400\n\
         s.sendall(d); s.shutdown(1)\n\
         got = b''.join(iter(lambda: s.recv(65536), b'')); assert got == d, len(got)",
        scene.host()
    );
    client(scene, "python3", &["-c", &script])?;
    Ok(kernel_segments(&scene.bed, Side::Server)? > before + 8)
}

/// A connection is carried by whom it should be.
fn carried_by_kernel(scene: &Scene, wanted: bool) -> Result<()> {
    let carried = one_exchange(scene)?;
    if carried == (wanted || !scene.has_shim()) {
        return Ok(());
    }
    Err(format!("carried by the kernel: {carried}").into())
}

/// Waits for the clients while `turn` is called again and again.
pub(crate) fn meanwhile(
    clients: &Program<'_>,
    mut turn: impl FnMut() -> Result<()>,
) -> Result<u32> {
    let mut running = clients.spawn()?;
    let mut turns = 0;
    while running.is_running() {
        turn()?;
        turns += 1;
    }
    running
        .wait(Duration::from_secs(5))
        .and_then(Finished::check)?;
    Ok(turns)
}

/// There and back as often as it goes, while data flows both ways and connections begin.
pub(crate) fn in_turns(scene: &Scene) -> Result<()> {
    let server = echo(scene)?;
    let pid = server.pid().to_string();
    let clients = echo_clients(scene, 20, 2_000_000);
    let turned = meanwhile(&clients, || {
        control(scene, "rollback", &pid)?;
        control(scene, "adopt", &pid)?;
        std::thread::sleep(Duration::from_millis(20));
        one_exchange(scene).map(drop)
    });
    turned.map_err(|error| format!("{error}\n{}", server.stderr()))?;
    server.stop()?;
    Ok(())
}

/// The same where the clients are on the same host, in the same stack: with the server's ends of
/// connections theirs go and are not asked for.
pub(crate) fn with_both_ends(scene: &Scene) -> Result<()> {
    let server = echo(scene)?;
    let mut clients = subject(scene, Side::Server, "python3");
    clients.env("BYPASS_ACCELERATE_LOCAL", "1");
    let clients = echoed(clients, scene, 20, 2_000_000);
    let port = format!("--port {PORT}");
    let mut moved = 0;
    let turned = meanwhile(&clients, || {
        if moved == 0 {
            begun(scene)?;
        }
        let done = control(scene, "rollback", &port)?;
        moved += done["connections"].as_u64().unwrap_or(0);
        control(scene, "adopt", &port).map(drop)
    });
    turned.map_err(|error| format!("{error}\n{}", server.stderr()))?;
    server.stop()?;
    if scene.has_shim() && moved == 0 {
        return Err("no connection has moved".into());
    }
    Ok(())
}

/// Waits for the first accelerated connection.
fn begun(scene: &Scene) -> Result<()> {
    if !scene.has_shim() {
        return Ok(());
    }
    wait_until("an accelerated connection", Duration::from_secs(20), || {
        let sockets = daemon::list(&scene.bed, &["sockets"]).unwrap_or_default();
        sockets.iter().any(|it| it["state"] == "established")
    })
}

/// New connections are the kernel's after a rollback, with the reason, and ours after an adoption.
pub(crate) fn new_connections(scene: &Scene) -> Result<()> {
    let server = echo(scene)?;
    let pid = server.pid();
    for _ in 0..3 {
        carried_by_kernel(scene, false)?;
        let done = control(scene, "rollback", &pid.to_string())?;
        counted(scene, &done, "listeners", 1)?;
        carried_by_kernel(scene, true)?;
        all_rolled_back(scene, pid)?;
        let done = control(scene, "adopt", "--all")?;
        counted(scene, &done, "listeners", 1)?;
    }
    carried_by_kernel(scene, false)?;
    server.stop()?;
    Ok(())
}

/// Connections that wait to be accepted, with data, are not lost, and neither is their order.
pub(crate) fn waiting_to_be_accepted(scene: &Scene) -> Result<()> {
    let script = r"
import socket, sys, os, time
listener = socket.create_server((sys.argv[1], 900), backlog=50)
while not os.path.exists(sys.argv[2]): time.sleep(0.01)
for n in range(12):
    c, _ = listener.accept()
    assert c.recv(100) == b'%02d' % n, n
    c.sendall(b'seen'); c.close()
print('all', flush=True)
";
    let go = scene.bed.folder().join("go");
    let mut server = subject(scene, Side::Server, "python3");
    server.args(["-c", script, &scene.host()]).arg(&go);
    let server = started(scene, &server, PORT)?;
    let half = scene.bed.folder().join("half");
    let connect = format!(
        "import socket, os, time\n\
         def one(n):\n\
         \x20   s = socket.create_connection(('{}', {PORT})); s.sendall(b'%02d' % n); return s\n\
         first = [one(n) for n in range(6)]\n\
         print('half', flush=True)\n\
         while not os.path.exists('{}'): time.sleep(0.01)\n\
         all = first + [one(n) for n in range(6, 12)]\n\
         print('all', flush=True)\n\
         for s in all: assert s.recv(100) == b'seen' and s.recv(100) == b''\n",
        scene.host(),
        half.display()
    );
    let mut clients = scene.bed.program(Side::Client, "python3");
    let clients = clients.args(["-c", &connect]).spawn()?;
    let limit = Duration::from_secs(20);
    wait_until("six connections", limit, || {
        clients.stdout().contains("half")
    })?;
    control(scene, "rollback", &server.pid().to_string())?;
    fs::write(&half, "")?;
    wait_until("all connections", limit, || {
        clients.stdout().contains("all")
    })?;
    fs::write(&go, "")?;
    let run = clients.wait(limit).and_then(Finished::check);
    run.map_err(|error| format!("{error}\n{}", server.stderr()))?;
    server.wait(limit)?.check()?;
    Ok(())
}

/// Whatever has a port.
pub(crate) fn of_a_port(scene: &Scene) -> Result<()> {
    let server = echo(scene)?;
    let clients = echo_clients(scene, 8, 1_000_000);
    let whom = format!("--port {PORT}");
    let turned = meanwhile(&clients, || {
        control(scene, "rollback", &whom)?;
        one_exchange(scene)?;
        control(scene, "adopt", &whom)?;
        one_exchange(scene).map(drop)
    });
    turned.map_err(|error| format!("{error}\n{}", server.stderr()))?;
    for _ in 0..2 {
        control(scene, "rollback", &whom)?;
        carried_by_kernel(scene, true)?;
        control(scene, "adopt", &whom)?;
        carried_by_kernel(scene, false)?;
    }
    server.stop()?;
    Ok(())
}

/// Connections that the program has made: curl's download goes on.
pub(crate) fn of_a_client(scene: &Scene) -> Result<()> {
    let serve = format!(
        "import socket, time\n\
         l = socket.create_server(('{}', 8081)); c, _ = l.accept(); c.recv(1000)\n\
         d = bytes(range(256)) * 256\n\
         c.sendall(b'HTTP/1.0 200 OK\\r\\nContent-Length: %d\\r\\n\\r\\n' % (len(d) * 200))\n\
         print('begun', flush=True)\n\
         for _ in range(200): c.sendall(d); time.sleep(0.005)\n",
        scene.peer()
    );
    let mut peer = scene.bed.program(Side::Client, "python3");
    let peer = peer.args(["-c", &serve]).spawn()?;
    bypass_tests::counters::wait_for_tcp_port(&scene.bed, Side::Client, 8081)?;
    let into = scene.bed.folder().join("got");
    let mut curl = subject(scene, Side::Server, "curl");
    curl.args(["-sS", "--fail", "-m", "50", "-o"]).arg(&into);
    let curl = curl.arg(format!("http://{}:8081/", scene.peer())).spawn()?;
    wait_until("the download", Duration::from_secs(10), || {
        peer.stdout().contains("begun")
    })?;
    let done = control(scene, "rollback", &curl.pid().to_string())?;
    counted(scene, &done, "connections", 1)?;
    curl.wait(Duration::from_secs(20))?.check()?;
    let wanted: Vec<u8> = (0..=255_u8).collect::<Vec<u8>>().repeat(256 * 200);
    if fs::read(&into)? == wanted {
        return Ok(());
    }
    Err("other bytes".into())
}

/// A thousand connections at once, none of which notices; the daemon has the capabilities of its
/// systemd unit.
pub(crate) fn of_a_thousand(scene: &Scene) -> Result<()> {
    let daemon = scene
        .has_shim()
        .then(|| daemon::start_as_unit(&scene.bed))
        .transpose()?;
    let server = echo(scene)?;
    let script = format!(
        "import asyncio, os\n\
         async def main():\n\
         \x20   all = []\n\
         \x20   for _ in range(1000): all.append(await asyncio.open_connection('{}', {PORT}))\n\
         \x20   for n in range(2):\n\
         \x20       for r, w in all: w.write(b'x' * 1000)\n\
         \x20       for r, w in all: assert len(await r.readexactly(1000)) == 1000\n\
         \x20       print('round', n, flush=True)\n\
         \x20       while n == 0 and not os.path.exists('{}'): await asyncio.sleep(0.01)\n\
         asyncio.run(main())",
        scene.host(),
        scene.bed.folder().join("go").display()
    );
    let mut clients = scene.bed.program(Side::Client, "python3");
    let clients = clients.args(["-c", &script]).spawn()?;
    wait_until("the first round", Duration::from_secs(20), || {
        clients.stdout().contains("round 0")
    })?;
    let done = control(scene, "rollback", &server.pid().to_string())?;
    counted(scene, &done, "connections", 1000)?;
    fs::write(scene.bed.folder().join("go"), "")?;
    let run = clients
        .wait(Duration::from_secs(20))
        .and_then(Finished::check);
    run.map_err(|error| format!("{error}\n{}", server.stderr()))?;
    server.stop()?;
    if let Some(daemon) = daemon {
        daemon.stop()?;
    }
    Ok(())
}

/// While the connections of one port move, those of another are served: some of their round trips
/// begin and end between two connections that one request moves. (A request moves 256 of them, and
/// could do so under one lock, which every round trip needs.) On a machine that is busy elsewhere a
/// round trip may take longer than a request: then once more.
pub(crate) fn between_two(scene: &Scene) -> Result<()> {
    let server = echo(scene)?;
    let other = echo_at(scene, PORT + 1)?;
    let port = format!("--port {PORT}");
    let mut told = String::new();
    for _ in 0..6 {
        told = trips_while(scene, &server, || {
            let done = control(scene, "rollback", &port)?;
            counted(scene, &done, "connections", 1000)
        })?;
        if !scene.has_shim() || !told.starts_with("0 ") {
            server.stop()?;
            other.stop()?;
            return Ok(());
        }
        control(scene, "adopt", &port)?;
    }
    Err(format!("round trips between two connections: {told}").into())
}

/// Connects a thousand times to `server`, runs `moves`, which makes these connections the kernel's,
/// and tells how many round trips of another port begin and end between two of them.
fn trips_while(
    scene: &Scene,
    server: &Running,
    moves: impl FnOnce() -> Result<()>,
) -> Result<String> {
    // How many connections the kernel's side has is its count of sockets, less those at first.
    let script = r"
import os, socket, sys
host, port, sockstat, done = sys.argv[1], int(sys.argv[2]), sys.argv[3], sys.argv[4]
all = [socket.create_connection((host, port)) for _ in range(1000)]
for one in all: one.sendall(b'x'); assert one.recv(1) == b'x'
other = socket.create_connection((host, port + 1))
def sockets():
    with open(sockstat) as file:
        return next(int(line.split()[2]) for line in file if line.startswith('TCP:'))
def trip():
    other.sendall(b'y' * 64); assert len(other.recv(64)) == 64
first, between, trips = sockets(), 0, 0
print('open', flush=True)
while not os.path.exists(done):
    before = sockets() - first
    trip()
    after = sockets() - first
    trips += 1
    between += before % 256 != 0 and before // 256 == after // 256 and after < len(all)
for one in all: one.sendall(b'z'); assert one.recv(1) == b'z'
print(between, 'of', trips)
";
    let done = scene.bed.folder().join("done");
    let mut clients = scene.bed.program(Side::Client, "python3");
    clients.args(["-c", script, &scene.host(), &PORT.to_string()]);
    clients.arg(format!("/proc/{}/net/sockstat", server.pid()));
    let clients = clients.arg(&done).spawn()?;
    wait_until("the connections", Duration::from_secs(20), || {
        clients.stdout().contains("open")
    })?;
    moves()?;
    fs::write(&done, "")?;
    let run = clients.wait(Duration::from_secs(20))?.check()?;
    fs::remove_file(&done)?;
    let last = run.stdout.lines().last().unwrap_or_default();
    Ok(last.to_owned())
}

/// UDP: what has come before is read first, then what the kernel has; what is sent goes by it.
pub(crate) fn datagrams(scene: &Scene) -> Result<()> {
    let script = r"
import socket, sys, os, time
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.bind((sys.argv[1], 7007))
while not os.path.exists(sys.argv[2]): time.sleep(0.01)
for n in range(18):
    data, peer = s.recvfrom(100)
    assert data == b'%02d' % n, (data, n)
    s.sendto(data, peer)
print('all', flush=True)
";
    let go = scene.bed.folder().join("go");
    let mut server = subject(scene, Side::Server, "python3");
    let server = server
        .args(["-c", script, &scene.host()])
        .arg(&go)
        .spawn()?;
    wait_for_udp_port(&scene.bed, Side::Server, 7007)?;
    let ask = format!(
        "import socket, sys\n\
         s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n\
         s.bind(('', 7008)); s.connect(('{}', 7007)); s.settimeout(5)\n\
         for n in eval(sys.argv[1]): s.send(b'%02d' % n)\n\
         for n in eval(sys.argv[2]): assert s.recv(100) == b'%02d' % n, n\n",
        scene.host()
    );
    let send = |sent: &str, received: &str| {
        client(scene, "python3", &["-c", &ask, sent, received]).map(drop)
    };
    let pid = server.pid().to_string();
    send("range(6)", "()")?;
    let done = control(scene, "rollback", &pid)?;
    counted(scene, &done, "udp", 1)?;
    send("range(6, 12)", "()")?;
    let before = KernelUdp::read(&scene.bed, Side::Server)?;
    fs::write(&go, "")?;
    let answered = wait_until("the answers by the kernel", Duration::from_secs(20), || {
        KernelUdp::read(&scene.bed, Side::Server).is_ok_and(|now| now.since(before).sent >= 12)
    });
    answered.map_err(|error| format!("{error}\n{}", server.stderr()))?;
    control(scene, "adopt", &pid)?;
    let before = KernelUdp::read(&scene.bed, Side::Server)?;
    send("range(12, 18)", "range(12, 18)")?;
    let by_kernel = KernelUdp::read(&scene.bed, Side::Server)?.since(before);
    server.wait(Duration::from_secs(20))?.check()?;
    if scene.has_shim() && by_kernel.total() > 2 {
        return Err(format!("the kernel carried {}", by_kernel.total()).into());
    }
    Ok(())
}

/// A server that forks for each connection and closes its own copy, so that every child's and every
/// next connection have one number: each connection goes to the kernel as itself.
pub(crate) fn of_forked(scene: &Scene) -> Result<()> {
    let script = r"
import os, signal, socket, sys
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
listener = socket.create_server((sys.argv[1], 900), backlog=100)
while True:
    c, _ = listener.accept()
    if os.fork() == 0:
        listener.close()
        while data := c.recv(100): c.sendall(data)
        os._exit(0)
    c.close()
";
    let go = scene.bed.folder().join("go");
    let clients = format!(
        "import socket, os, time\n\
         all = [socket.create_connection(('{}', {PORT})) for n in range(40)]\n\
         def exchange():\n\
         \x20   for n, s in enumerate(all): s.sendall(b'%03d' % n)\n\
         \x20   for n, s in enumerate(all): assert s.recv(3, 256) == b'%03d' % n, n\n\
         exchange()\n\
         print('all', flush=True)\n\
         while not os.path.exists('{}'): time.sleep(0.01)\n\
         exchange()\n",
        scene.host(),
        go.display()
    );
    let mut server = subject(scene, Side::Server, "python3");
    let server = started(scene, server.args(["-c", script, &scene.host()]), PORT)?;
    let mut peers = scene.bed.program(Side::Client, "python3");
    let peers = peers.args(["-c", &clients]).spawn()?;
    let limit = Duration::from_secs(20);
    wait_until("an answer on every connection", limit, || {
        peers.stdout().contains("all")
    })?;
    let done = control(scene, "rollback", "--all")?;
    counted(scene, &done, "connections", 40)?;
    fs::write(&go, "")?;
    let run = peers.wait(limit).and_then(Finished::check);
    run.map_err(|error| format!("{error}\n{}", server.stderr()))?;
    server.stop()?;
    Ok(())
}
