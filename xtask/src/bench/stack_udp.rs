//! `stack-udp`: instructions per datagram of the stack alone, over memory, by callgrind.
//!
//! The slope between two counts of datagrams leaves start-up out. The figures do not depend on the
//! machine's speed, so the reference is committed: `tests/bench/stack_udp.json`.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::process::Command;

use bypass_tests::{Result, paths};

use super::Row;
use crate::build::cargo;
use crate::progress::step;

const WAYS: [&str; 3] = ["in", "out", "both"];
/// Most times the recorded figure.
const MOST: f64 = 1.05;

pub(super) fn run(record: bool) -> Result<Vec<Row>> {
    step("building the stack's example", || -> Result<()> {
        let status = cargo()
            .args([
                "build",
                "--quiet",
                "--release",
                "-p",
                "bypass-stack",
                "--example",
                "stack_udp",
            ])
            .status()?;
        if status.success() {
            Ok(())
        } else {
            Err("the build failed".into())
        }
    })?;
    let mut now = BTreeMap::new();
    for way in WAYS {
        let each = step(&format!("callgrind, {way}"), || per_datagram(way))?;
        now.insert(way.to_owned(), each);
    }
    if record {
        fs::write(reference_file(), serde_json::to_string_pretty(&now)? + "\n")?;
    }
    let before: BTreeMap<String, f64> = fs::read_to_string(reference_file())
        .ok()
        .and_then(|text| serde_json::from_str(&text).ok())
        .unwrap_or_default();
    Ok(now
        .iter()
        .map(|(way, each)| {
            let reference = before.get(way).copied();
            Row {
                what: format!("instructions per datagram, {way}"),
                medians: vec![
                    ("reference".into(), reference.unwrap_or(0.0)),
                    ("now".into(), *each),
                ],
                figure: reference.map_or(0.0, |reference| each / reference),
                target: format!("<= {MOST}"),
                met: reference.map(|reference| each / reference <= MOST),
            }
        })
        .collect())
}

fn reference_file() -> PathBuf {
    paths::repository().join("tests/bench/stack_udp.json")
}

fn per_datagram(way: &str) -> Result<f64> {
    let (few, many) = (20_000_u32, 60_000_u32);
    Ok((instructions(way, many)? - instructions(way, few)?) / f64::from(many - few))
}

fn instructions(way: &str, datagrams: u32) -> Result<f64> {
    let run = Command::new("valgrind")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
        .arg(paths::target().join("release/examples/stack_udp"))
        .args([way, &datagrams.to_string()])
        .output()?;
    let text = String::from_utf8_lossy(&run.stderr);
    text.lines()
        .find_map(|line| line.split("Collected : ").nth(1)?.trim().parse().ok())
        .ok_or_else(|| format!("callgrind: {text}").into())
}
