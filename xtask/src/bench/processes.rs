//! `processes`: what forks and the way from stack to kernel cost.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use bypass_tests::program::{Column, Running, wait_until};
use bypass_tests::services::wait_for_listener;
use bypass_tests::testbed::{Side, Testbed};
use bypass_tests::{Result, daemon};

use super::{Row, columns};
use crate::measure::{example, field, median, ratio};
use crate::progress::step;

const PORT: u16 = 7007;
/// Connections of the program that forks.
const INHERITED: u32 = 10_000;
/// Connections that move, and those of them that are busy.
const MOVED: u32 = 1000;
const BUSY: u32 = 64;
const PATIENCE: Duration = Duration::from_secs(60);
/// Snapshots that redis makes in a round.
const SNAPSHOTS: usize = 9;

/// Opens connections and keeps them; the first ones ask a hundred times in a second each, so that
/// the processors have time left, and each notes the longest that it has waited since the file
/// `begin` is there. Prints the 99th percentile of these in milliseconds when the file `until` is.
const CLIENTS: &str = r"
import collections, gc, os, resource, select, socket, sys, time
host, port, count, busy, begin, until = sys.argv[1], *map(int, sys.argv[2:5]), *sys.argv[5:]
hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
gc.disable()
clock, there = time.monotonic, os.path.exists
all = []
for turn in range(count):
    all.append(socket.create_connection((host, port)))
    # What servers allocate for those that come at once stays, and is part of what a fork copies.
    if turn % 20 == 0: time.sleep(0.01)
print('open', flush=True)
numbers = [one.fileno() for one in all[:busy]]
start, longest = dict.fromkeys(numbers, 0), dict.fromkeys(numbers, 0)
ready, due = select.epoll(), collections.deque()
for turn, number in enumerate(numbers):
    ready.register(number, select.EPOLLIN)
    due.append((clock() + turn * 0.01 / busy, number))
notes, look = False, 0
while True:
    while due and due[0][0] <= clock():
        number = due.popleft()[1]
        start[number] = clock()
        os.write(number, b'x' * 64)
    for number, _ in ready.poll(0.001):
        os.read(number, 64)
        now = clock()
        waited = now - start[number]
        if notes and waited > longest[number]: longest[number] = waited
        due.append((now + 0.01, number))
    if clock() > look:
        look = clock() + 0.005
        notes = there(begin)
        if there(until): break
print(sorted(longest.values())[busy * 99 // 100] * 1e3 if busy else 0)
";

type Samples = BTreeMap<(&'static str, &'static str), Vec<f64>>;

pub(super) fn run(rounds: u32) -> Result<Vec<Row>> {
    let mut samples = Samples::new();
    for round in 1..=rounds {
        for column in columns() {
            take(&mut samples, round, *column)?;
        }
    }
    Ok(rows(&samples))
}

/// One round of everything in a column.
fn take(samples: &mut Samples, round: u32, column: Column) -> Result<()> {
    let name = column.name();
    let mut keep = |what, value| samples.entry((what, name)).or_default().push(value);
    let title = |what: &str| format!("{what}, round {round}, {name}");
    let (fork, answer) = step(&title("forks"), || forks(column))?;
    keep("fork", fork);
    keep("answer", answer);
    keep("snapshot", step(&title("snapshots"), || snapshots(column))?);
    let (each, pause) = step(&title("moves"), || moves(column))?;
    keep("move", each);
    keep("pause", pause);
    Ok(())
}

fn rows(samples: &Samples) -> Vec<Row> {
    let of = |what, column: Column| {
        median(
            samples
                .get(&(what, column.name()))
                .cloned()
                .unwrap_or_default(),
        )
    };
    let both = |what| [of(what, Column::Native), of(what, Column::Shim)];
    let row = |what: String, [kernel, shim]: [f64; 2], figure: f64, most: f64, unit: &str| Row {
        what,
        medians: vec![("kernel".to_owned(), kernel), ("shim".to_owned(), shim)],
        figure,
        target: format!("<= {most} {unit}"),
        met: (shim > 0.0).then_some(figure <= most),
    };
    let [fork, snapshot, answer, each, pause] =
        ["fork", "snapshot", "answer", "move", "pause"].map(both);
    let of_nothing_else = row(
        format!("fork of a program that has {INHERITED} connections and nothing else (us)"),
        fork,
        ratio(fork[1], fork[0]),
        1.2,
        "x kernel",
    );
    vec![
        // For comparison: nothing is that bare, and each child ends while its sibling is made.
        Row {
            target: String::new(),
            met: None,
            ..of_nothing_else
        },
        row(
            format!("fork of redis with {INHERITED} clients, latest_fork_usec (us)"),
            snapshot,
            ratio(snapshot[1], snapshot[0]),
            1.2,
            "x kernel",
        ),
        row(
            "a forked worker's first answer (ms)".to_owned(),
            answer,
            answer[1],
            20.0,
            "ms",
        ),
        row(
            format!("{MOVED} connections to the kernel, each (us)"),
            each,
            each[1],
            100.0,
            "us",
        ),
        row(
            "longest wait of a peer meanwhile, p99 (ms)".to_owned(),
            pause,
            pause[1],
            5.0,
            "ms",
        ),
    ]
}

/// A daemon with room for all the connections.
fn roomy_daemon(bed: &Testbed) -> Result<Running> {
    let rules = bed.folder().join("bypass.toml");
    std::fs::write(&rules, "[daemon]\nendpoints = 16384\n")?;
    daemon::start_with(bed, &["--config", &rules.display().to_string()], &[])
}

fn clients(bed: &Testbed, count: u32, busy: u32) -> Result<Running> {
    let mut clients = bed.program(Side::Client, "python3");
    clients.args(["-c", CLIENTS, &bed.ipv4(Side::Server)]);
    clients.args([u32::from(PORT), count, busy].map(|number| number.to_string()));
    clients.arg(bed.folder().join("begin"));
    clients.arg(bed.folder().join("until")).spawn()
}

/// Microseconds of a fork, and milliseconds until the child has answered.
fn forks(column: Column) -> Result<(f64, f64)> {
    let bed = Testbed::new()?;
    let _daemon = roomy_daemon(&bed)?;
    let mut forks = example(&bed, Side::Server, column, "forks")?;
    forks.args(["--json", "--bind", &bed.ipv4(Side::Server)]);
    forks.args(["--connections", &INHERITED.to_string()]);
    let running = forks.spawn()?;
    wait_for_listener(&bed, PORT, column == Column::Shim)?;
    let _clients = clients(&bed, INHERITED, 0)?;
    let told = running.wait(PATIENCE)?.check()?.json()?;
    Ok((field(&told, "fork_us"), field(&told, "answer_us") * 1e-3))
}

/// Microseconds that redis's fork for a snapshot takes by its own count (INFO, latest_fork_usec).
fn snapshots(column: Column) -> Result<f64> {
    let bed = Testbed::new()?;
    let _daemon = roomy_daemon(&bed)?;
    let mut redis = (super::subjects::REDIS.server)(&bed)?;
    redis.column(column);
    redis.args(["--maxclients", &(INHERITED + 100).to_string()]);
    redis.args(["--port", &PORT.to_string()]);
    let _redis = redis.spawn()?;
    wait_for_listener(&bed, PORT, column == Column::Shim)?;
    let clients = clients(&bed, INHERITED, 0)?;
    wait_until("the connections", PATIENCE, || {
        clients.stdout().contains("open")
    })?;
    let info = |name: &str| -> Result<f64> {
        let told = ask(&bed, &["info", "persistence"])? + &ask(&bed, &["info", "stats"])?;
        let value = told.lines().find_map(|line| line.strip_prefix(name));
        let value = value.and_then(|rest| rest.trim_start_matches(':').trim().parse().ok());
        value.ok_or_else(|| format!("redis does not tell {name}").into())
    };
    let mut took = Vec::new();
    for _ in 0..SNAPSHOTS {
        ask(&bed, &["bgsave"])?;
        wait_until("the snapshot", PATIENCE, || {
            info("rdb_bgsave_in_progress").is_ok_and(|it| it == 0.0)
        })?;
        took.push(info("latest_fork_usec")?);
    }
    Ok(median(took))
}

/// What redis answers to a kernel client.
fn ask(bed: &Testbed, command: &[&str]) -> Result<String> {
    let mut client = bed.program(Side::Client, "redis-cli");
    client.args(["-h", &bed.ipv4(Side::Server), "-p", &PORT.to_string()]);
    Ok(client.args(command).run()?.check()?.stdout)
}

/// Microseconds that a connection takes to become the kernel's, and the longest that its peer
/// waits, in milliseconds. For the kernel's column nothing moves.
fn moves(column: Column) -> Result<(f64, f64)> {
    let bed = Testbed::new()?;
    let _daemon = roomy_daemon(&bed)?;
    let mut server = example(&bed, Side::Server, column, "tcpecho")?;
    server.args(["--bind", &bed.ipv4(Side::Server)]);
    let server = server.spawn()?;
    wait_for_listener(&bed, PORT, column == Column::Shim)?;
    let clients = clients(&bed, MOVED, BUSY)?;
    wait_until("the connections", PATIENCE, || {
        clients.stdout().contains("open")
    })?;
    std::fs::write(bed.folder().join("begin"), "")?;
    let start = Instant::now();
    let mut took = Duration::ZERO;
    if column == Column::Shim {
        daemon::bypassctl(&bed, &["rollback", &server.pid().to_string()])?.check()?;
        took = start.elapsed();
    }
    std::thread::sleep(Duration::from_millis(200).saturating_sub(start.elapsed()));
    std::fs::write(bed.folder().join("until"), "")?;
    let told = clients.wait(PATIENCE)?.check()?;
    let pause = told
        .stdout
        .lines()
        .last()
        .and_then(|line| line.parse().ok());
    Ok((
        took.as_secs_f64() * 1e6 / f64::from(MOVED),
        pause.unwrap_or(0.0),
    ))
}
