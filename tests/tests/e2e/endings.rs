//! What the peers of a program see when it ends in the middle of something.

use std::fs;
use std::time::Duration;

use bypass_tests::program::{Running, wait_until};
use bypass_tests::testbed::Side;
use bypass_tests::{Result, daemon};

use serde_json::Value;

use super::harness::Scene;
use super::streams::{started, subject};

const PATIENCE: Duration = Duration::from_secs(20);

/// Accepts this many connections, says a little on each and ends.
const TALKER: &str = r"
import os, socket, sys
count, size, end = int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
s = socket.create_server((sys.argv[1], 5050), backlog=1024)
s.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 << 20)
kept = [s.accept()[0] for _ in range(count)]
for n, c in enumerate(kept):
    c.setblocking(False)
    text = bytes([n % 251]) * size
    assert c.send(text) == size
if end == 'kill': os.kill(os.getpid(), 9)
os._exit(0)
";

/// Connects, and goes on when a file is there. Functions `connected` and `wait` for the scripts.
const PEER: &str = r"
import os, socket, sys, time
host, count, size, go = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
def connected():
    s = socket.socket()
    s.settimeout(20)
    s.connect((host, 5050))
    return s
def state(s): return s.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0]
def wait(what):
    for _ in range(2000):
        if what(): return
        time.sleep(0.01)
    sys.exit('in vain')
all = [connected() for _ in range(count)]
print('connected', flush=True)
wait(lambda: os.path.exists(go))
";

/// A program that ends, its peers, and the file that they wait for.
fn ended(scene: &Scene, connections: u32, bytes: u32, end: &str, then: &str) -> Result<Running> {
    let (count, size) = (connections.to_string(), bytes.to_string());
    let go = scene.bed.folder().join(format!("go-{end}"));
    let mut talker = subject(scene, Side::Server, "/usr/bin/python3");
    talker.args(["-c", TALKER, &scene.host(), &count, &size, end]);
    let talker = started(scene, &talker, 5050)?;
    let mut peers = scene.bed.program(Side::Client, "python3");
    peers.args(["-c", &format!("{PEER}{then}"), &scene.host(), &count, &size]);
    let peers = peers.arg(&go).spawn()?;
    talker.wait(PATIENCE)?;
    if scene.has_shim() {
        wait_until("no stack", PATIENCE, || {
            daemon::list(&scene.bed, &["stacks"]).is_ok_and(|it| it.is_empty())
        })?;
    }
    fs::write(&go, "")?;
    Ok(peers)
}

/// Most of what was written has not left yet when the program ends: whoever reads late gets all of
/// it, and nobody serves the stack until then.
pub(crate) fn slow_readers(scene: &Scene) -> Result<()> {
    let read = r"
from concurrent.futures import ThreadPoolExecutor
def read(s): return b''.join(iter(lambda: s.recv(65536), b''))
with ThreadPoolExecutor(count) as pool:
    for n, got in enumerate(pool.map(read, all)):
        assert got == bytes([n]) * size, (n, len(got))
print('all', flush=True)
";
    all_is_heard(scene, (8, 600_000), read)
}

/// The peers of `count` connections with `size` bytes each are content, however the program ends.
fn all_is_heard(scene: &Scene, (count, size): (u32, u32), part: &str) -> Result<()> {
    for end in ["exit", "kill"] {
        let peers = ended(scene, count, size, end, part)?;
        let heard = peers.wait(PATIENCE)?.check()?.stdout;
        if !heard.contains("all") {
            return Err(format!("{end}: {heard}").into());
        }
    }
    Ok(())
}

/// The peer ends its direction long after the program has gone (FIN_WAIT_2): in order, unless it
/// has something to say still.
pub(crate) fn slow_enders(scene: &Scene) -> Result<()> {
    let part = r"
for s in all: assert len(s.recv(100, socket.MSG_WAITALL)) == size and s.recv(1) == b''
for n, s in enumerate(all):
    if n % 2: s.shutdown(socket.SHUT_WR)
    else: s.send(b'too late')
for n, s in enumerate(all):
    wait(lambda: state(s) == 7)
    error = s.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    assert (error == 0) == bool(n % 2), (n, error)
print('all', flush=True)
";
    all_is_heard(scene, (300, 10), part)
}

/// Sockets that no program has are listed, as by ss: to be accepted, closed and waited for, ended.
pub(crate) fn sockets_without_a_program(scene: &Scene) -> Result<()> {
    let server = r"
import socket, sys, time
s = socket.create_server((sys.argv[1], 5050))
s.accept()[0].close()
s.accept()[0].close()
time.sleep(60)
";
    let client = r"
import socket, sys, time
ended, waits, waiting = [socket.create_connection((sys.argv[1], 5050)) for _ in range(3)]
assert ended.recv(1) == waits.recv(1) == b''
ended.close()
print('all', flush=True)
time.sleep(60)
";
    let mut program = subject(scene, Side::Server, "/usr/bin/python3");
    let server = started(scene, program.args(["-c", server, &scene.host()]), 5050)?;
    let mut peer = scene.bed.program(Side::Client, "python3");
    let peer = peer.args(["-c", client, &scene.host()]).spawn()?;
    wait_until("all", PATIENCE, || peer.stdout().contains("all"))?;
    for (name, state) in [
        ("ESTAB", "established"),
        ("FIN-WAIT-2", "fin-wait-2"),
        ("TIME-WAIT", "time-wait"),
    ] {
        wait_until(state, PATIENCE, || match scene.has_shim() {
            true => daemon::list(&scene.bed, &["sockets"]).is_ok_and(|sockets| {
                let is_it = |it: &Value| it["pid"].is_null() && it["state"] == state;
                sockets.iter().filter(|it| is_it(it)).count() == 1
            }),
            false => {
                let mut ss = scene.bed.program(Side::Server, "ss");
                let run = ss.args(["-Htan"]).run();
                run.is_ok_and(|run| run.stdout.matches(name).count() == 1)
            }
        })?;
    }
    server.kill();
    peer.kill();
    Ok(())
}
