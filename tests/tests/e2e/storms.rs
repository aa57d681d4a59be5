//! Processes killed at random moments under load, again and again.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use bypass_tests::program::{Running, wait_until};
use bypass_tests::testbed::Side;
use bypass_tests::{Result, daemon, paths};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use super::harness::Scene;
use super::streams::{started, subject};

const PORT: u16 = 9100;
const WORKERS: usize = 4;
const CLIENTS: u32 = 12;
const PATIENCE: Duration = Duration::from_secs(20);

/// A draw that the same `BYPASS_SEED` repeats, as far as the processes do.
struct Draw(u64);

impl Draw {
    fn new() -> Self {
        let given = std::env::var("BYPASS_SEED");
        let seed = given.ok().and_then(|text| text.parse().ok());
        Self(seed.unwrap_or_else(|| std::process::id().into()))
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005);
        self.0 = self.0.wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % bound
    }

    fn time(&mut self, bound: Duration) -> Duration {
        Duration::from_micros(self.below(bound.as_micros() as u64))
    }
}

/// How many kills: `BYPASS_ROUNDS`, or what there is time for in the suite.
fn rounds(usual: u32) -> u32 {
    let given = std::env::var("BYPASS_ROUNDS");
    let given = given.ok().and_then(|text| text.parse().ok());
    given.unwrap_or(usual)
}

fn kill(pid: u32) {
    if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
        // It may have been replaced just now.
        let _ = kill_process(pid, Signal::KILL);
    }
}

/// Process ids of a process's children.
fn children(pid: u32) -> Vec<u32> {
    let text = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"));
    let text = text.unwrap_or_default();
    let pids = text.split_whitespace().filter_map(|pid| pid.parse().ok());
    pids.collect()
}

/// The server with its workers, and clients that check what they get.
struct Storm<'s> {
    scene: &'s Scene,
    server: Running,
    clients: Running,
    stop: PathBuf,
    cut: bool,
}

impl<'s> Storm<'s> {
    /// With `cut` a connection may end before its time. `how`: what a worker does with one.
    fn begin(scene: &'s Scene, seed: u64, (cut, how): (bool, &str)) -> Result<Self> {
        let script = |name: &str| paths::repository().join("tests/e2e").join(name);
        let (host, port) = (scene.host(), PORT.to_string());
        let mut server = subject(scene, Side::Server, "/usr/bin/python3");
        server.arg(script("prefork_server.py"));
        if scene.bed.has_card() {
            // One that they start has the machine's configuration, which knows of no card.
            server.env("BYPASS_DAEMON", "never");
        }
        server.args([host.as_str(), &port, how]);
        let server = started(scene, &server, PORT)?;
        let stop = scene.bed.folder().join("stop");
        let mut clients = scene.bed.program(Side::Client, "python3");
        clients.arg(script("checking_clients.py"));
        clients.args([&host, &port, &CLIENTS.to_string(), &seed.to_string()]);
        clients.arg(&stop).args(cut.then_some("cut"));
        Ok(Self {
            scene,
            server,
            clients: clients.spawn()?,
            stop,
            cut,
        })
    }

    fn workers(&self) -> Vec<u32> {
        children(self.server.pid())
    }

    /// Starts a daemon, unless a program has by now, and waits until it has the stack. On a bed
    /// with a card it has the card.
    fn next_daemon(&self) -> Result<()> {
        let bed = &self.scene.bed;
        let mut next = bed.program(Side::Server, paths::bypassctl());
        next.args(["daemon", "--exit-when-idle"]);
        if bed.has_card() {
            let file = bed.device_file();
            bed.add_card(&mut next, &file)?;
            next.arg("--config").arg(file);
        }
        let started = next.run()?;
        wait_until("the next daemon", PATIENCE, || {
            daemon::list(bed, &["stacks"]).is_ok_and(|stacks| stacks.len() == 1)
        })
        .map_err(|error| {
            let left = daemon::running(bed);
            format!("{error}: {started:?} {left:?}").into()
        })
    }

    /// The clients end, and nothing is left of what they and the killed have had.
    fn end(self) -> Result<()> {
        fs::write(&self.stop, "")?;
        let run = self.clients.wait(PATIENCE)?;
        // Whoever dies with the lock costs connections.
        let may_be_cut = !self.cut
            && self.scene.has_shim()
            && daemon::counter(&self.scene.bed, "recoveries")? > 0
            && run.stderr.contains("a connection was cut");
        if !may_be_cut {
            let run = run.check();
            let run = run.map_err(|error| format!("{error}\n{}", self.server.stderr()))?;
            if !run.stdout.contains("answers") {
                return Err(
                    format!("the clients did not say what they got: {}", run.stdout).into(),
                );
            }
        }
        if self.scene.has_shim() {
            let mut last = Value::Null;
            let all_back = wait_until("everything is back", PATIENCE, || {
                last = daemon::list(&self.scene.bed, &["dump"])
                    .ok()
                    .and_then(|mut images| images.pop())
                    .unwrap_or_default();
                is_quiet(&last)
            });
            all_back.map_err(|error| format!("{error}: {last}"))?;
        }
        self.server.stop()?;
        Ok(())
    }
}

/// Whether an image has nothing but the listener and its holders, and all chunks are free or
/// posted.
fn is_quiet(image: &Value) -> bool {
    let number = |name: &str| image[name].as_u64().unwrap_or(u64::MAX);
    let holders = image["processes"].as_array().map_or(0, Vec::len);
    let idle = number("chunks_free").saturating_add(number("chunks_posted"));
    let sound = image["problems"].as_array().is_some_and(Vec::is_empty);
    sound && number("endpoints") == 1 && holders == WORKERS + 1 && idle == number("chunks")
}

/// Strikes `count` times, at moments drawn from `within`, while the clients ask.
fn in_a_storm(
    scene: &Scene,
    (cut, how): (bool, &str),
    (count, within): (u32, Duration),
    mut strike: impl FnMut(&Storm<'_>, &mut Draw) -> Result<()>,
) -> Result<()> {
    let mut draw = Draw::new();
    let seed = draw.0;
    let mut outcome = || -> Result<()> {
        let mut storm = Storm::begin(scene, seed, (cut, how))?;
        for _ in 0..rounds(count) {
            std::thread::sleep(draw.time(within));
            if !storm.clients.is_running() {
                break;
            }
            strike(&storm, &mut draw)?;
        }
        storm.end()
    };
    outcome().map_err(|error| format!("BYPASS_SEED={seed}: {error}").into())
}

/// `kill -9` of a worker after the other. A client sees an end or a reset, right bytes until then,
/// and never waits in vain; the next connection is served.
pub(crate) fn workers_killed(scene: &Scene) -> Result<()> {
    let count = if scene.has_shim() { 40 } else { 10 };
    let often = (count, Duration::from_millis(400));
    in_a_storm(scene, (true, "threads"), often, |storm, draw| {
        wait_until("all workers", PATIENCE, || storm.workers().len() == WORKERS)?;
        if let Some(&pid) = storm.workers().get(draw.below(WORKERS as u64) as usize) {
            kill(pid);
        }
        Ok(())
    })
}

/// `kill -9` of the daemon, and the next one takes over: no connection ends before its time,
/// unless the daemon had the stack's lock just then, which resets all of them.
pub(crate) fn daemons_killed(scene: &Scene) -> Result<()> {
    let often = (10, Duration::from_millis(500));
    in_a_storm(scene, (false, "threads"), often, |storm, draw| {
        if !scene.has_shim() {
            return Ok(());
        }
        for pid in daemon::running(&scene.bed) {
            kill(pid);
        }
        std::thread::sleep(draw.time(Duration::from_millis(300)));
        storm.next_daemon()
    })
}

/// Each connection in a forked child, which executes another program half of the time; killed are,
/// as the draw has it, workers, children, and the daemon. A client never waits in vain.
pub(crate) fn anything_killed(scene: &Scene) -> Result<()> {
    let count = if scene.has_shim() { 40 } else { 10 };
    let often = (count, Duration::from_millis(300));
    in_a_storm(scene, (true, "forks"), often, |storm, draw| {
        wait_until("all workers", PATIENCE, || storm.workers().len() == WORKERS)?;
        let workers = storm.workers();
        let worker = workers.get(draw.below(WORKERS as u64) as usize).copied();
        let worker = worker.unwrap_or(0);
        match draw.below(8) {
            0 if scene.has_shim() => {
                daemon::running(&scene.bed).into_iter().for_each(kill);
                std::thread::sleep(draw.time(Duration::from_millis(100)));
                storm.next_daemon()?;
            }
            0..3 => kill(worker),
            _ => {
                let children = children(worker);
                let drawn = draw.below(children.len().max(1) as u64) as usize;
                children.get(drawn).copied().into_iter().for_each(kill);
            }
        }
        Ok(())
    })
}
