//! Connections that become the kernel's while they are in use.

use std::fs;
use std::time::Duration;

use bypass_tests::program::{Finished, Program, wait_until};
use bypass_tests::testbed::Side;
use bypass_tests::{Result, daemon, paths};

use super::harness::Scene;
use super::streams::{started, subject};

/// Clients on the kernel: so many connections at once, each of which sends and reads so many bytes
/// at the same time and compares.
pub(crate) fn echo_clients(scene: &Scene, connections: u32, bytes: u32) -> Program<'_> {
    let clients = scene.bed.program(Side::Client, "python3");
    echoed(clients, scene, connections, bytes)
}

/// The same by this Python.
pub(crate) fn echoed<'a>(
    mut python: Program<'a>,
    scene: &Scene,
    connections: u32,
    bytes: u32,
) -> Program<'a> {
    let script = r"
import asyncio, random
async def one(n):
    r, w = await asyncio.open_connection('HOST', 900, limit=1<<17)
    data = random.Random(n).randbytes(BYTES + n)
    async def send():
        at = 0
        while at < len(data):
            step = random.randrange(1, 40000)
            w.write(data[at:at + step]); at += step
            await w.drain()
        w.write_eof()
    sending = asyncio.ensure_future(send())
    got = b''
    while piece := await r.read(65536): got += piece
    await sending
    assert got == data, (n, len(got), len(data))
    w.close()
async def main(): await asyncio.gather(*map(one, range(CONNECTIONS)))
asyncio.run(asyncio.wait_for(main(), 40))
";
    let script = script
        .replace("HOST", &scene.host())
        .replace("CONNECTIONS", &connections.to_string())
        .replace("BYTES", &bytes.to_string());
    python.args(["-c", &script]);
    python
}

/// Both ends of a connection in one stack: when one must be the kernel's, for an option or because
/// another program gets it, the other is too, with what is on its way.
#[expect(clippy::too_many_lines, reason = "one story")]
pub(crate) fn both_ends(scene: &Scene) -> Result<()> {
    let script = r"
import array, socket, subprocess, sys, threading
SO_MARK = 36
def pair():
    server = socket.create_server((sys.argv[1], 0))
    client = socket.create_connection(server.getsockname(), 10)
    accepted = server.accept()[0]
    accepted.settimeout(10)
    return client, accepted
def read(end, count):
    got = b''
    while len(got) < count:
        piece = end.recv(count - len(got))
        assert piece, len(got)
        got += piece
    return got
def talk(one, other, unread):
    data = bytes(range(256)) * 20
    assert read(other, len(unread[0])) == unread[0] and read(one, len(unread[1])) == unread[1]
    for _ in range(5):
        one.sendall(data); assert read(other, len(data)) == data
        other.sendall(data); assert read(one, len(data)) == data
    one.shutdown(socket.SHUT_WR); assert other.recv(1) == b''
    other.sendall(data); assert read(one, len(data)) == data
    other.close(); assert one.recv(1) == b''
    one.close()
def meets(how, unread, swap):
    one, other = pair()
    if swap: one, other = other, one
    one.sendall(unread[0]); other.sendall(unread[1])
    how(one, other)
    talk(one, other, unread)
def mark(one, other): one.setsockopt(socket.SOL_SOCKET, SO_MARK, 1)
def both(one, other): mark(one, other); mark(other, one)
def send(one, other):
    left, right = socket.socketpair()
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array('i', [one.fileno()]))]
    left.sendmsg([b'x'], rights)
def run(one, other):
    line = 'import os; assert os.read(0, 3) == b\'abc\'; os.write(0, b\'def\')'
    other.sendall(b'abc')
    subprocess.run([sys.executable, '-c', line], stdin=one, check=True)
    assert read(other, 3) == b'def'
def half_closed(first):
    one, other = pair()
    other.sendall(b'answer'); one.shutdown(socket.SHUT_WR); assert other.recv(1) == b''
    mark(*((one, other) if first else (other, one)))
    assert read(one, 6) == b'answer'
    other.sendall(b'more'); assert read(one, 4) == b'more'
    other.close(); assert one.recv(1) == b''
def not_accepted():
    server = socket.create_server((sys.argv[1], 0))
    client = socket.create_connection(server.getsockname(), 10)
    accepted = []
    later = threading.Timer(0.2, lambda: accepted.append(server.accept()[0]))
    later.start()
    send(client, None)
    later.join()
    talk(client, accepted[0], (b'', b''))
for first in False, True: half_closed(first)
not_accepted()
for how in mark, both, send:
    for unread in (b'', b''), (b'a' * 5000, b'b' * 70000):
        for swap in False, True: meets(how, unread, swap)
for swap in False, True: meets(run, (b'', b''), swap)
";
    let mut python = subject(scene, Side::Server, "/usr/bin/python3");
    python.env("BYPASS_ACCELERATE_LOCAL", "1");
    python.args(["-c", script, &scene.host()]).run()?.check()?;
    moved(scene, 34)
}

/// So many connections have become the kernel's at least.
fn moved(scene: &Scene, least: u64) -> Result<()> {
    if !scene.has_shim() {
        return Ok(());
    }
    let counters = daemon::list(&scene.bed, &["stats"])?;
    let counter = counters
        .iter()
        .find(|it| it["name"] == "connections_moved")
        .ok_or("no counter of moves")?;
    if counter["value"].as_u64() >= Some(least) {
        return Ok(());
    }
    Err(format!("{least} moves expected: {counter}").into())
}

/// Serves with a program of `tests/e2e` and lets clients compare.
fn served(scene: &Scene, program: &str, connections: u32, bytes: u32) -> Result<()> {
    let mut server = subject(scene, Side::Server, "/usr/bin/python3");
    server.arg(paths::repository().join("tests/e2e").join(program));
    server.args([&scene.host(), "900"]);
    let server = started(scene, &server, 900)?;
    let clients = echo_clients(scene, connections, bytes);
    clients
        .run()
        .and_then(Finished::check)
        .map_err(|error| format!("{error}\n{}{}", server.stdout(), server.stderr()))?;
    server.kill();
    Ok(())
}

/// SCM_RIGHTS at random moments of streams that are busy both ways.
pub(crate) fn passed_in_the_middle(scene: &Scene) -> Result<()> {
    served(scene, "pass_on.py", 20, 500_000)
}

/// Many connections that move at about the same time.
pub(crate) fn passed_in_a_burst(scene: &Scene) -> Result<()> {
    served(scene, "pass_on.py", 200, 40_000)
}

/// The connection is the standard input and output of another program.
pub(crate) fn executed(scene: &Scene) -> Result<()> {
    served(scene, "exec_echo.py", 12, 200_000)
}

/// Python's multiprocessing gives each connection to a process, in each of its ways.
pub(crate) fn python_multiprocessing(scene: &Scene) -> Result<()> {
    served(scene, "multiprocess.py", 9, 200_000)
}

/// Nobody can hand a connection over: the daemon is dead and none may be started. The program keeps
/// it; an option that only the kernel has is refused, and whoever gets the descriptor has a socket
/// that is not connected.
#[expect(clippy::too_many_lines, reason = "one story")]
pub(crate) fn refused(scene: &Scene) -> Result<()> {
    let script = r"
import os, socket, subprocess, sys, time
IP_MINTTL = 21
c, _ = socket.create_server((sys.argv[1], 900)).accept()
print('accepted', flush=True)
while not os.path.exists(sys.argv[2]): time.sleep(0.01)
def goes_on(word):
    c.sendall(word)
    assert c.recv(len(word), socket.MSG_WAITALL) == word
def tell(what, call):
    try: call(); print(what, 'done', flush=True)
    except OSError as error: print(what, error.strerror, flush=True)
goes_on(b'before')
tell('option:', lambda: c.setsockopt(socket.IPPROTO_IP, IP_MINTTL, 1))
goes_on(b'option')
here, there = socket.socketpair()
socket.send_fds(here, [b'x'], [c.fileno()])
received = socket.socket(fileno=socket.recv_fds(there, 1, 1)[1][0])
tell('passed:', received.getpeername)
received.close()
goes_on(b'passed')
look = 'import socket; socket.socket(fileno=0).getpeername()'
child = subprocess.run([sys.executable, '-c', look], stdin=c, capture_output=True)
print('executed:', 'done' if child.returncode == 0 else child.stderr.decode(), flush=True)
goes_on(b'executed')
";
    let echo = format!(
        "import socket\n\
         s = socket.create_connection(('{}', 900))\n\
         while data := s.recv(100): s.sendall(data)\n",
        scene.host()
    );
    let daemon = match scene.has_shim() {
        true => Some(daemon::start(&scene.bed, &[])?),
        false => None,
    };
    let go = scene.bed.folder().join("go");
    let mut server = subject(scene, Side::Server, "/usr/bin/python3");
    server.env("BYPASS_DAEMON", "never");
    server.args(["-c", script, &scene.host()]).arg(&go);
    let server = started(scene, &server, 900)?;
    let mut peer = scene.bed.program(Side::Client, "python3");
    let peer = peer.args(["-c", &echo]).spawn()?;
    let limit = Duration::from_secs(20);
    wait_until("a connection", limit, || {
        server.stdout().contains("accepted")
    })?;
    if let Some(daemon) = daemon {
        daemon.kill();
    }
    fs::write(&go, "")?;
    let told = server.wait(limit)?.check()?.stdout;
    peer.wait(limit)?.check()?;
    let (option, other) = match scene.has_shim() {
        true => ("not supported", "not connected"),
        false => ("done", "done"),
    };
    for (what, outcome) in [
        ("option:", option),
        ("passed:", other),
        ("executed:", other),
    ] {
        let said = told.split(what).nth(1).unwrap_or_default();
        if !said.contains(outcome) {
            return Err(format!("{what} {outcome} expected: {told}").into());
        }
    }
    Ok(())
}
