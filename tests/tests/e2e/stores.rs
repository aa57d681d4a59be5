//! Stores of data as they are used: redis with subscribers, replicas and snapshots, PostgreSQL.

use std::time::Duration;

use bypass_tests::Result;
use bypass_tests::counters::wait_for_tcp_port;
use bypass_tests::program::{Program, Running, wait_until};
use bypass_tests::testbed::Side;

use super::harness::Scene;
use super::streams::{client, noise, started, subject};

/// Longest time for half of a replication without anything in its way.
const USUAL: Duration = Duration::from_secs(20);

/// Arguments of a redis server in a folder of its own.
fn redis_arguments(scene: &Scene, program: &mut Program<'_>, side: Side) -> Result<()> {
    let folder = scene.bed.folder().join(format!("redis-{side:?}"));
    std::fs::create_dir_all(&folder)?;
    program.args(["--port", "6379", "--bind", &scene.bed.ipv4(side)]);
    program.args(["--save", "", "--appendonly", "no", "--protected-mode", "no"]);
    program.args(["--enable-debug-command", "yes"]);
    program.args(["--repl-diskless-sync-delay", "0", "--dir"]);
    program.arg(folder);
    Ok(())
}

/// redis as the program under test.
fn redis(scene: &Scene) -> Result<Running> {
    let mut server = subject(scene, Side::Server, "redis-server");
    redis_arguments(scene, &mut server, Side::Server)?;
    started(scene, &server, 6379)
}

/// redis on the kernel of the other side.
fn kernel_redis(scene: &Scene) -> Result<Running> {
    let mut server = scene.bed.program(Side::Client, "redis-server");
    redis_arguments(scene, &mut server, Side::Client)?;
    let running = server.spawn()?;
    wait_for_tcp_port(&scene.bed, Side::Client, 6379)?;
    Ok(running)
}

/// What redis-cli on the kernel's side prints.
fn ask(scene: &Scene, server: &str, words: &[&str]) -> Result<String> {
    let mut all = vec!["-h", server];
    all.extend(words);
    Ok(client(scene, "redis-cli", &all)?.stdout.trim().to_owned())
}

/// Runs a Python script on the kernel's side; `HOST` in it is the program under test.
fn python(scene: &Scene, script: &str) -> Result<()> {
    let script = script.replace("HOST", &scene.host());
    client(scene, "python3", &["-c", &script])?;
    Ok(())
}

/// Twenty subscribers get each of 2,000 messages, in order.
pub(crate) fn redis_publish(scene: &Scene) -> Result<()> {
    let server = redis(scene)?;
    python(
        scene,
        r"
import socket
subscribers = [socket.create_connection(('HOST', 6379)) for _ in range(20)]
readers = [s.makefile('rb') for s in subscribers]
for s, r in zip(subscribers, readers):
    s.sendall(b'SUBSCRIBE news\r\n')
    for _ in range(6): r.readline()
publisher = socket.create_connection(('HOST', 6379))
answers = publisher.makefile('rb')
for first in range(0, 2000, 100):
    publisher.sendall(b''.join(b'PUBLISH news n%06d\r\n' % n for n in range(first, first + 100)))
    for _ in range(100): assert answers.readline() == b':20\r\n'
    for r in readers:
        for n in range(first, first + 100):
            got = r.read(len(b'*3\r\n$7\r\nmessage\r\n$4\r\nnews\r\n$7\r\nn000000\r\n'))
            assert got.endswith(b'\r\nn%06d\r\n' % n), (n, got)
",
    )?;
    server.stop()?;
    Ok(())
}

/// A thousand commands on their way at once, with answers of a megabyte: both ways full.
pub(crate) fn redis_big_pipeline(scene: &Scene) -> Result<()> {
    let server = redis(scene)?;
    python(
        scene,
        r"
import socket, threading
s = socket.create_connection(('HOST', 6379))
value = bytes(range(256)) * 64
commands = []
for n in range(1000):
    commands.append(b'*3\r\n$3\r\nSET\r\n$4\r\n%04d\r\n$16384\r\n' % (n % 50) + value + b'\r\n')
    commands.append(b'*2\r\n$3\r\nGET\r\n$4\r\n%04d\r\n' % (n % 50))
writer = threading.Thread(target=lambda: s.sendall(b''.join(commands)))
writer.start()
answers = s.makefile('rb')
for n in range(1000):
    assert answers.readline() == b'+OK\r\n', n
    assert answers.readline() == b'$16384\r\n', n
    assert answers.read(16386) == value + b'\r\n', n
writer.join()
",
    )?;
    server.stop()?;
    Ok(())
}

/// Clients before, during and after BGSAVE: the child that writes holds their connections too.
pub(crate) fn redis_snapshot(scene: &Scene) -> Result<()> {
    let server = redis(scene)?;
    python(
        scene,
        r"
import socket, threading
clients = [socket.create_connection(('HOST', 6379)) for _ in range(30)]
readers = [c.makefile('rb') for c in clients]
def command(i, text):
    clients[i].sendall(text + b'\r\n')
    return readers[i].readline()
def bulk(i, text):
    head = command(i, text)
    return readers[i].read(int(head[1:]) + 2)
assert command(0, b'DEBUG POPULATE 30000 key 100').startswith(b'+OK')
for round in range(3):
    assert command(0, b'BGSAVE').startswith(b'+Background')
    # Some go while the child lives.
    for i in range(round * 3 + 20, round * 3 + 23):
        clients[i].shutdown(socket.SHUT_WR)
        assert readers[i].read() == b''
        readers[i].close(); clients[i].close()
        clients[i] = socket.create_connection(('HOST', 6379))
        readers[i] = clients[i].makefile('rb')
    while True:
        for i in range(30):
            assert command(i, b'SET s%d %d' % (i, round)) == b'+OK\r\n'
            assert bulk(i, b'GET s%d' % i) == b'%d\r\n' % round
        if b'rdb_bgsave_in_progress:0' in bulk(0, b'INFO persistence'): break
    assert b'rdb_last_bgsave_status:ok' in bulk(0, b'INFO persistence')
",
    )?;
    server.stop()?;
    Ok(())
}

/// Fills one server with some megabytes, lets the other follow it, and compares what both have in
/// the end. Either half takes `patience` at most.
fn replicate(
    scene: &Scene,
    (master, replica): (&str, &str),
    megabytes: usize,
    patience: Duration,
) -> Result<()> {
    let value = noise(scene, "value", megabytes << 20)?;
    let mut set = scene.bed.program(Side::Client, "redis-cli");
    set.args(["-h", master, "-x", "set", "large"]).input(value);
    set.run()?.check()?;
    ask(scene, master, &["debug", "populate", "20000", "a", "50"])?;
    ask(scene, replica, &["replicaof", master, "6379"])?;
    wait_until("the replica's link", patience, || {
        ask(scene, replica, &["info", "replication"])
            .is_ok_and(|text| text.contains("master_link_status:up"))
    })?;
    // Commands follow the snapshot.
    let many = ["-h", master, "-q", "-t", "set,incr,lpush", "-n", "10000"];
    let mut all = many.to_vec();
    all.extend(["-r", "1000", "-P", "20", "-d", "100"]);
    client(scene, "redis-benchmark", &all)?;
    // WAIT is about the writes of its own connection only.
    let wanted = ask(scene, master, &["debug", "digest"])?;
    if wanted.len() != 40 || wanted.starts_with("0000") {
        return Err(format!("the master's digest is {wanted}").into());
    }
    wait_until("the same data", patience, || {
        ask(scene, replica, &["debug", "digest"]).is_ok_and(|got| got == wanted)
    })
}

/// Either side is the other's replica in turn, with a snapshot of 16 MiB.
pub(crate) fn both_replicate(scene: &Scene) -> Result<()> {
    const MEGABYTES: usize = 16;
    const PATIENCE: Duration = Duration::from_secs(50);
    let (host, peer) = (scene.host(), scene.peer());
    let (ours, other) = (redis(scene)?, kernel_redis(scene)?);
    replicate(scene, (&host, &peer), MEGABYTES, PATIENCE)?;
    ask(scene, &peer, &["replicaof", "no", "one"])?;
    ask(scene, &peer, &["flushall"])?;
    ask(scene, &host, &["flushall"])?;
    replicate(scene, (&peer, &host), MEGABYTES, PATIENCE)?;
    other.stop()?;
    ours.stop()?;
    Ok(())
}

/// The program under test is the master.
pub(crate) fn redis_master(scene: &Scene) -> Result<()> {
    let master = redis(scene)?;
    let replica = kernel_redis(scene)?;
    replicate(scene, (&scene.host(), &scene.peer()), 2, USUAL)?;
    replica.stop()?;
    master.stop()?;
    Ok(())
}

/// The program under test is the replica.
pub(crate) fn redis_replica(scene: &Scene) -> Result<()> {
    let replica = redis(scene)?;
    let master = kernel_redis(scene)?;
    replicate(scene, (&scene.peer(), &scene.host()), 2, USUAL)?;
    replica.stop()?;
    master.stop()?;
    Ok(())
}
