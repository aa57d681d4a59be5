//! `bypassctl adopt`: connections that the kernel has come (back) to the stack.

use std::fs;
use std::time::Duration;

use bypass_tests::Result;
use bypass_tests::counters::kernel_segments;
use bypass_tests::daemon;
use bypass_tests::program::{Running, wait_until};
use bypass_tests::testbed::Side;

use super::handover::echo_clients;
use super::harness::Scene;
use super::rollback::{PORT, control, counted, meanwhile};
use super::streams::{started, subject};

/// An echo that waits in one of several ways. In `recv` each connection has a thread, which is
/// asleep in the kernel while nothing comes.
const ECHO: &str = r"
import asyncio, select, socket, sys, threading
host, port, how = sys.argv[1], int(sys.argv[2]), sys.argv[3]
listener = socket.create_server((host, port), backlog=100)
def serve(c):
    while data := c.recv(65536): c.sendall(data)
    c.close()
def rest(c):
    try:
        while data := c.recv(65536, socket.MSG_DONTWAIT): c.sendall(data)
    except BlockingIOError: return True
    return False
def threads():
    while True: threading.Thread(target=serve, args=[listener.accept()[0]], daemon=True).start()
def selected(wait):
    all = {listener.fileno(): listener}
    while True:
        for fd in wait(list(all)):
            if fd == listener.fileno():
                c, _ = listener.accept(); all[c.fileno()] = c
            elif not rest(all[fd]): all.pop(fd).close()
def polled(fds):
    p = select.poll()
    for fd in fds: p.register(fd, select.POLLIN)
    told = p.poll()
    assert all(e == select.POLLIN for _, e in told), told
    return [fd for fd, _ in told]
def in_set(mode):
    e = select.epoll(); all = {}
    e.register(listener, select.EPOLLIN)
    while True:
        for fd, events in e.poll():
            if fd == listener.fileno():
                c, _ = listener.accept(); all[c.fileno()] = c
                e.register(c, select.EPOLLIN | mode)
            else:
                assert events == select.EPOLLIN, events
                if not rest(all[fd]): all.pop(fd).close()
async def aio(r, w):
    while data := await r.read(65536): w.write(data); await w.drain()
    w.close()
async def run():
    async with await asyncio.start_server(aio, sock=listener) as s: await s.serve_forever()
{'recv': threads, 'poll': lambda: selected(polled),
 'select': lambda: selected(lambda fds: select.select(fds, [], [])[0]),
 'epoll': lambda: in_set(0), 'edge': lambda: in_set(select.EPOLLET),
 'asyncio': lambda: asyncio.run(run())}[how]()
";

/// Connections that talk when they are told to, a round each time.
struct Talkers<'a> {
    scene: &'a Scene,
    name: String,
    running: Running,
    rounds: u32,
}

impl<'a> Talkers<'a> {
    fn start(scene: &'a Scene, name: &str, connections: u32) -> Result<Self> {
        let script = r"
import os, socket, sys, time
all = [socket.create_connection((sys.argv[1], int(sys.argv[2]))) for _ in range(int(sys.argv[3]))]
n = 0
while True:
    while not os.path.exists(f'{sys.argv[4]}{n}'): time.sleep(0.002)
    data = b'%09d' % n * 300
    for c in all: c.settimeout(10); c.sendall(data)
    for c in all:
        got = b''
        while len(got) < len(data): got += c.recv(4000) or exit('closed')
        assert got == data
    print('round', n, '.', flush=True); n += 1
";
        let mut clients = scene.bed.program(Side::Client, "python3");
        let (port, count) = (PORT.to_string(), connections.to_string());
        clients.args(["-c", script, &scene.host(), &port, &count]);
        let running = clients.arg(scene.bed.folder().join(name)).spawn()?;
        let mut talkers = Self {
            scene,
            name: name.to_owned(),
            running,
            rounds: 0,
        };
        talkers.talk()?;
        Ok(talkers)
    }

    /// One round of all; how many segments the server's kernel has seen meanwhile.
    fn talk(&mut self) -> Result<u64> {
        let before = kernel_segments(&self.scene.bed, Side::Server)?;
        let round = self.rounds;
        self.rounds += 1;
        let file = format!("{}{round}", self.name);
        fs::write(self.scene.bed.folder().join(file), "")?;
        let told = format!("round {round} .");
        let _ = wait_until("a round", Duration::from_secs(20), || {
            self.running.stdout().contains(&told) || !self.running.is_running()
        });
        if !self.running.stdout().contains(&told) {
            let (name, why) = (&self.name, self.running.stderr());
            return Err(format!("round {round} of {name}: {why}").into());
        }
        Ok(kernel_segments(&self.scene.bed, Side::Server)? - before)
    }
}

/// Connections come back to the stack, whatever their program sleeps in; those that the kernel has
/// accepted meanwhile come too.
pub(crate) fn from_every_wait(scene: &Scene) -> Result<()> {
    for wait in ["recv", "poll", "select", "epoll", "edge", "asyncio"] {
        let mut server = subject(scene, Side::Server, "python3");
        server.args(["-c", ECHO, &scene.host(), &PORT.to_string(), wait]);
        let server = started(scene, &server, PORT)?;
        let told = there_and_back(scene, &server, wait);
        told.map_err(|error| format!("{wait}: {error}\n{}", server.stderr()))?;
        server.stop()?;
    }
    Ok(())
}

fn there_and_back(scene: &Scene, server: &Running, name: &str) -> Result<()> {
    let pid = server.pid().to_string();
    let mut all = vec![Talkers::start(scene, &format!("{name}-a"), 5)?];
    for turn in 0..4_u32 {
        let mut connections = 0;
        for _ in 0..5 {
            // Who has come back a moment ago may not have been told of it.
            let done = control(scene, "rollback", &pid)?;
            connections += done["connections"].as_u64().unwrap_or(0);
            if !scene.has_shim() || connections == 5 * all.len() as u64 {
                break;
            }
        }
        let wanted = 5 * all.len() as u64;
        if scene.has_shim() && connections != wanted {
            return Err(format!("turn {turn}: {connections} rolled back, not {wanted}").into());
        }
        let mut kernels = 0;
        if turn % 2 == 0 {
            for talkers in &mut all {
                kernels += talkers.talk()?;
            }
            if kernels < 20 {
                return Err(format!("turn {turn}: {kernels} segments by the kernel").into());
            }
        }
        if turn < 2 {
            all.push(Talkers::start(scene, &format!("{name}-{turn}"), 5)?);
        }
        let done = control(scene, "adopt", &format!("{pid} --connections"))?;
        counted(scene, &done, "connections", 5 * all.len() as u64)?;
        let mut kernels = 0;
        for talkers in &mut all {
            kernels += talkers.talk()?;
        }
        if scene.has_shim() && kernels > 4 {
            return Err(format!("turn {turn}: {kernels} segments by the kernel then").into());
        }
    }
    is_served(scene, all.len() * 5)
}

/// `bypassctl sockets` shows so many connections.
fn is_served(scene: &Scene, connections: usize) -> Result<()> {
    if !scene.has_shim() {
        return Ok(());
    }
    let sockets = daemon::list(&scene.bed, &["sockets"])?;
    let ours = sockets.iter().filter(|it| it["state"] == "established");
    match ours.count() {
        count if count == connections => Ok(()),
        count => Err(format!("{count} connections of {connections}: {sockets:?}").into()),
    }
}

/// There and back as often as it goes, while data flows both ways and ends: by a server of which
/// the threads sleep in calls on these connections, and by one that waits for edges.
pub(crate) fn under_way(scene: &Scene) -> Result<()> {
    for wait in ["recv", "edge"] {
        let mut server = subject(scene, Side::Server, "python3");
        server.args(["-c", ECHO, &scene.host(), &PORT.to_string(), wait]);
        let server = started(scene, &server, PORT)?;
        let pid = server.pid().to_string();
        let clients = echo_clients(scene, 12, 2_000_000);
        let mut came = 0;
        let turned = meanwhile(&clients, || {
            control(scene, "rollback", &pid)?;
            let done = control(scene, "adopt", &format!("{pid} --connections"))?;
            came += done["connections"].as_u64().unwrap_or(0);
            std::thread::sleep(Duration::from_millis(20));
            Ok(())
        });
        turned.map_err(|error| format!("{wait}: {error}\n{}", server.stderr()))?;
        if scene.has_shim() && came == 0 {
            return Err(format!("{wait}: no connection has come back").into());
        }
        server.stop()?;
    }
    Ok(())
}
