//! Beside `relay`: instructions for each frame of a DPDK port's bursts, and testpmd's for the same.
//!
//! Both over net_null, 64 frames of 64 bytes at a time, by callgrind; the slope between two counts
//! leaves start-up out. Of ours what plugin and DPDK do counts: the loop around it is the relay's,
//! and counted there. testpmd cannot be told a count: it runs for two times of different length and
//! says how many frames it had. Without it there is no row.

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use bypass_tests::{Result, paths, plugin};

use super::Row;
use super::instructions::costs;
use crate::build::cargo;
use crate::progress::step;

/// Most times testpmd's figure.
const MOST: f64 = 1.3;
/// Frames of the two runs of the plugin.
const COUNTS: (u32, u32) = (500_000, 2_500_000);
/// Seconds of the two runs of testpmd.
const SECONDS: (u64, u64) = (3, 9);
const TESTPMD: &str = "dpdk-testpmd";
const EXAMPLE: &str = "port_burst";

/// The plugin's burst against testpmd's, and with the relay behind it, which takes so many
/// instructions itself: what the way from the port to the stack costs.
pub(super) fn run(relay: f64) -> Result<Vec<Row>> {
    let Some(testpmd) = find_testpmd() else {
        println!("no comparison with {TESTPMD}: it is neither installed nor in an unpacked guest");
        return Ok(Vec::new());
    };
    let plugin = plugin::build()?;
    let mut build = cargo();
    build.args(["build", "--quiet", "--release", "-p", "bypass-backends"]);
    if !build.args(["--example", EXAMPLE]).status()?.success() {
        return Err("the build failed".into());
    }
    let own = step("callgrind, the plugin's burst", || -> Result<f64> {
        let count = |frames: u32| -> Result<f64> {
            let mut run = callgrind();
            run.arg(paths::target().join("release/examples").join(EXAMPLE));
            run.arg(&plugin).arg(frames.to_string());
            let run = run.output()?;
            instructions(&run.stderr)?;
            let all = fs::read_to_string(costs_file())?;
            let is_counted = |object: &str| {
                let begins = ["libbypass_dpdk", "librte_"];
                begins.iter().any(|it| object.starts_with(it))
            };
            Ok(costs(&all, is_counted, |_| true))
        };
        let slope = count(COUNTS.1)? - count(COUNTS.0)?;
        Ok(slope / f64::from(COUNTS.1 - COUNTS.0))
    })?;
    let theirs = step("callgrind, testpmd's rxonly", || -> Result<f64> {
        let (few, many) = (rxonly(&testpmd, SECONDS.0)?, rxonly(&testpmd, SECONDS.1)?);
        Ok((many.0 - few.0) / (many.1 - few.1))
    })?;
    let row = |what: &str, ours: f64| Row {
        what: format!("instructions per frame of 64 bytes, {what}; reference: testpmd's rxonly"),
        medians: vec![("reference".into(), theirs), ("now".into(), ours)],
        figure: ours / theirs,
        target: format!("<= {MOST}"),
        met: Some(ours / theirs <= MOST),
    };
    Ok(vec![
        row("a port's burst", own),
        row("port to stack: burst and relay", own + relay),
    ])
}

/// The installed one, or that of a guest that was prepared.
fn find_testpmd() -> Option<PathBuf> {
    let folders = std::env::var_os("PATH").unwrap_or_default();
    let guest = paths::target().join("vm/debian/guest/usr/bin");
    let mut all = std::env::split_paths(&folders).chain([guest]);
    all.find_map(|folder| Some(folder.join(TESTPMD)).filter(|it| it.exists()))
}

fn costs_file() -> PathBuf {
    paths::target().join(format!("callgrind.{EXAMPLE}"))
}

fn callgrind() -> Command {
    // Lines are to come when they are written: testpmd says when it has begun.
    let mut run = Command::new("stdbuf");
    run.args([
        "-oL",
        "valgrind",
        "--tool=callgrind",
        "--compress-strings=no",
    ])
    .arg(format!("--callgrind-out-file={}", costs_file().display()));
    run
}

/// What callgrind has counted.
fn instructions(said: &[u8]) -> Result<f64> {
    let said = String::from_utf8_lossy(said);
    let count = said.lines().find_map(|line| {
        let count = line.split("Collected : ").nth(1)?;
        count.trim().parse().ok()
    });
    count.ok_or_else(|| format!("callgrind: {said}").into())
}

/// testpmd for so many seconds: instructions, start-up included, and frames.
fn rxonly(testpmd: &PathBuf, seconds: u64) -> Result<(f64, f64)> {
    let mut run = callgrind();
    run.arg(testpmd);
    run.args([
        "--no-huge",
        "--no-shconf",
        "-m",
        "64",
        "--no-pci",
        "--no-telemetry",
    ]);
    // One processor: valgrind runs one thread at a time, and the other one only waits.
    let prefix = format!("--file-prefix=testpmd-{}", std::process::id());
    run.args(["--lcores", "0@0,1@0", "--vdev=net_null0", &prefix, "--"]);
    run.args([
        "--forward-mode=rxonly",
        "--burst=64",
        "--total-num-mbufs=4096",
    ]);
    let pipes = run.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = pipes.stderr(Stdio::piped()).spawn()?;
    let mut output = BufReader::new(child.stdout.take().ok_or("no output")?);
    let mut said = String::new();
    while !said.contains("Press enter") && output.read_line(&mut said)? > 0 {}
    thread::sleep(Duration::from_secs(seconds));
    if let Some(mut input) = child.stdin.take() {
        // One that has ended says why.
        let _ = input.write_all(b"\n");
    }
    output.read_to_string(&mut said)?;
    let counted = instructions(&child.wait_with_output()?.stderr)?;
    let frames = said.rsplit("RX-packets: ").next().unwrap_or_default();
    let frames = frames.split_whitespace().next().unwrap_or_default();
    let frames = frames.parse().map_err(|_| format!("testpmd: {said}"))?;
    Ok((counted, frames))
}
