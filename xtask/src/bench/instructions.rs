//! `stack-udp` and `stack-tcp`: instructions of the stack alone, over memory, by callgrind.
//!
//! The slope between two counts leaves start-up out. The figures do not depend on the machine's
//! speed, so the references are committed: `tests/bench/stack_udp.json`, `stack_tcp.json`.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::process::Command;

use bypass_tests::{Result, paths};

use super::Row;
use crate::build::cargo;
use crate::progress::step;

/// Most times the recorded figure.
const MOST: f64 = 1.05;

/// A way to run an example: its name in the reference, and the arguments around the count.
struct Way {
    name: &'static str,
    before: &'static [&'static str],
    after: &'static [&'static str],
    counts: (u32, u32),
    /// What the figure is divided by: a request and its response take both sides' time.
    share: f64,
}

/// An example of `stack/` whose instructions are counted.
pub(super) struct Subject {
    example: &'static str,
    unit: &'static str,
    ways: &'static [Way],
}

const fn datagrams(name: &'static str, before: &'static [&'static str]) -> Way {
    Way {
        name,
        before,
        after: &[],
        counts: (20_000, 60_000),
        share: 1.0,
    }
}

const fn exchanges(name: &'static str, after: &'static [&'static str]) -> Way {
    Way {
        name,
        before: &[],
        after,
        counts: (10_000, 30_000),
        share: 2.0,
    }
}

/// Datagrams in, out, and in turns.
pub(super) const UDP: Subject = Subject {
    example: "stack_udp",
    unit: "datagram",
    ways: &[
        datagrams("in", &["in"]),
        datagrams("out", &["out"]),
        datagrams("both", &["both"]),
    ],
};

/// Requests and responses of 32 bytes: one connection, and a thousand that take turns.
pub(super) const TCP: Subject = Subject {
    example: "stack_tcp",
    unit: "request/response and side",
    ways: &[
        exchanges("1 connection", &["32", "1"]),
        exchanges("1000 connections", &["32", "1000"]),
    ],
};

pub(super) fn run(subject: &Subject, record: bool) -> Result<Vec<Row>> {
    step("building the stack's example", || build(subject.example))?;
    let mut now = BTreeMap::new();
    for way in subject.ways {
        let each = step(&format!("callgrind, {}", way.name), || subject.each(way))?;
        now.insert(way.name.to_owned(), each);
    }
    if record {
        fs::write(
            subject.reference_file(),
            serde_json::to_string_pretty(&now)? + "\n",
        )?;
    }
    let before: BTreeMap<String, f64> = fs::read_to_string(subject.reference_file())
        .ok()
        .and_then(|text| serde_json::from_str(&text).ok())
        .unwrap_or_default();
    Ok(now
        .iter()
        .map(|(way, each)| {
            let reference = before.get(way).copied();
            Row {
                what: format!("instructions per {}, {way}", subject.unit),
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

fn build(example: &str) -> Result<()> {
    let status = cargo()
        .args(["build", "--quiet", "--release", "-p", "bypass-stack"])
        .args(["--example", example])
        .status()?;
    if status.success() {
        Ok(())
    } else {
        Err("the build failed".into())
    }
}

impl Subject {
    fn reference_file(&self) -> PathBuf {
        paths::repository().join(format!("tests/bench/{}.json", self.example))
    }

    fn each(&self, way: &Way) -> Result<f64> {
        let (few, many) = way.counts;
        let slope = self.instructions(way, many)? - self.instructions(way, few)?;
        Ok(slope / f64::from(many - few) / way.share)
    }

    fn instructions(&self, way: &Way, count: u32) -> Result<f64> {
        let run = Command::new("valgrind")
            .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
            .arg(paths::target().join("release/examples").join(self.example))
            .args(way.before)
            .arg(count.to_string())
            .args(way.after)
            .output()?;
        let text = String::from_utf8_lossy(&run.stderr);
        text.lines()
            .find_map(|line| line.split("Collected : ").nth(1)?.trim().parse().ok())
            .ok_or_else(|| format!("callgrind: {text}").into())
    }
}
