//! What idle connections cost, and the daemon beside busy ones.

use std::fs;
use std::time::{Duration, Instant};

use bypass_tests::counters::processor_time;
use bypass_tests::program::{Running, wait_until};
use bypass_tests::testbed::Side;
use bypass_tests::{Result, daemon, paths};

use super::harness::Scene;
use super::programs::nobody_works;
use super::streams::started;

const PORT: u16 = 7007;
const PATIENCE: Duration = Duration::from_secs(30);
/// Memory of its own that a daemon has at most in these scenes, KiB.
const MOST_MEMORY: u64 = 16 * 1024;
/// How much more of it may be there after a window of work, KiB: what the allocator takes at once.
const MOST_GROWTH: u64 = 256;
/// A window of work.
const WINDOW: Duration = Duration::from_secs(5);

/// An echo, and clients that keep so many connections, each of which has asked once; then they all
/// ask in turns until the file `until` is there, if they are to.
fn kept(scene: &Scene, count: u32, is_busy: bool) -> Result<(Running, Running)> {
    let script = r"
import os, socket, sys, time
host, port, count, busy, until = sys.argv[1], *map(int, sys.argv[2:5]), sys.argv[5]
def ask(s):
    s.sendall(b'x' * 64); assert len(s.recv(64, socket.MSG_WAITALL)) == 64
all = [socket.create_connection((host, port), 15) for _ in range(count)]
for s in all: ask(s)
print('open', flush=True)
while not os.path.exists(until):
    if busy:
        for s in all: ask(s)
    else: time.sleep(0.01)
for s in all: ask(s)
print('all', flush=True)
";
    let mut server = scene.bed.program(Side::Server, paths::example("tcpecho")?);
    server.column(scene.column).args(["--bind", &scene.host()]);
    let server = started(scene, &server, PORT)?;
    let mut clients = scene.bed.program(Side::Client, "python3");
    clients.args(["-c", script, &scene.host()]);
    clients.args([u32::from(PORT), count, is_busy.into()].map(|number| number.to_string()));
    let clients = clients.arg(scene.bed.folder().join("until")).spawn()?;
    wait_until("the connections", PATIENCE, || {
        clients.stdout().contains("open")
    })?;
    Ok((server, clients))
}

/// The clients ask once more, and all ends.
fn end(scene: &Scene, (server, clients): (Running, Running)) -> Result<()> {
    fs::write(scene.bed.folder().join("until"), "")?;
    let run = clients.wait(PATIENCE)?.check()?;
    server.stop()?;
    match run.stdout.contains("all") {
        true => Ok(()),
        false => Err("not all were served at the end".into()),
    }
}

/// A thousand connections on which nothing happens use no processor, nor does the daemon.
pub(crate) fn idle_connections(scene: &Scene) -> Result<()> {
    let both = kept(scene, 1000, false)?;
    nobody_works(scene)?;
    end(scene, both)
}

/// While 64 connections are busy the daemon uses a hundredth of a processor at most, and its memory
/// does not grow: in a window of a few.
pub(crate) fn daemon_beside_load(scene: &Scene) -> Result<()> {
    let both = kept(scene, 64, true)?;
    if scene.has_shim() {
        let [pid] = daemon::running(&scene.bed)[..] else {
            return Err("one daemon expected".into());
        };
        // What has to do with the start ends some time after it.
        let mut seen = Vec::new();
        let is_quiet = wait_until("a window with little work", PATIENCE, || {
            let (begun, time, memory) = (Instant::now(), processor_time(pid), own_memory(pid));
            std::thread::sleep(WINDOW);
            let used = processor_time(pid).saturating_sub(time);
            let (length, now) = (begun.elapsed(), own_memory(pid));
            seen.push((used, length, memory, now));
            let most = memory.map(|before| MOST_MEMORY.min(before + MOST_GROWTH));
            used <= length / 100 && now.is_some() && now <= most
        });
        is_quiet.map_err(|error| format!("{error}: (used, of, KiB before, after) {seen:?}"))?;
    }
    end(scene, both)
}

/// Memory that a process shares with nobody, in KiB.
fn own_memory(pid: u32) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|it| it.strip_prefix("RssAnon:"))?;
    line.split_whitespace().next()?.parse().ok()
}
