//! `stack-udp`, `stack-tcp`, `ef-vi`, `relay`: instructions of the stack alone, over memory, and of
//! a backend's event loop and of the relay alone, by callgrind.
//!
//! The slope between two counts leaves start-up out. The figures do not depend on the machine's
//! speed, so the references are committed: `tests/bench/stack_udp.json` and so on.

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

/// An example whose instructions are counted.
pub(super) struct Subject {
    package: &'static str,
    example: &'static str,
    /// A stand-in that it loads, and what is said to it. Then only what the package itself does
    /// counts: neither the stand-in's instructions, nor the C library's, nor the example's.
    stand_in: Option<StandIn>,
    unit: &'static str,
    ways: &'static [Way],
}

/// A package of the tests, and a variable of the environment.
struct StandIn {
    package: &'static str,
    setting: (&'static str, &'static str),
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

const fn frames(name: &'static str, before: &'static [&'static str]) -> Way {
    Way {
        counts: (1_600, 8_000),
        ..datagrams(name, before)
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
    package: "bypass-stack",
    stand_in: None,
    example: "stack_udp",
    unit: "datagram",
    ways: &[
        datagrams("in", &["in"]),
        datagrams("out", &["out"]),
        datagrams("both", &["both"]),
    ],
};

/// Frames through the relay to the stack's side of a queue pair, and back; no port, no stack.
pub(super) const RELAY: Subject = Subject {
    package: "bypass-backends",
    stand_in: None,
    example: "relay_path",
    unit: "frame",
    ways: &[
        datagrams("in", &["in"]),
        datagrams("out", &["out"]),
        datagrams("in without a copy", &["in-place"]),
        datagrams("out without a copy", &["out-in-place"]),
    ],
};

/// Requests and responses of 32 bytes: one connection, and a thousand or a hundred thousand that
/// take turns.
pub(super) const TCP: Subject = Subject {
    package: "bypass-stack",
    stand_in: None,
    example: "stack_tcp",
    unit: "request/response and side",
    ways: &[
        exchanges("1 connection", &["32", "1"]),
        exchanges("1000 connections", &["32", "1000"]),
        // The first turn of a connection is not like those after it.
        Way {
            counts: (100_000, 300_000),
            ..exchanges("100000 connections", &["32", "100000"])
        },
    ],
};

/// The same by smoltcp, to have a figure beside ours: it has no reference. Its sockets are a list
/// that each packet goes along, so a thousand are asked little.
pub(super) const SMOLTCP: Subject = Subject {
    package: "bypass-stack",
    stand_in: None,
    example: "stack_tcp_smoltcp",
    unit: "request/response and side of smoltcp",
    ways: &[
        exchanges("1 connection", &["32", "1"]),
        Way {
            counts: (500, 1_000),
            ..exchanges("1000 connections", &["32", "1000"])
        },
    ],
};

/// Frames in and out of a card's queue, sixteen at a time; libciul is the tests' stand-in, here
/// without a wire.
pub(super) const EF_VI: Subject = Subject {
    package: "bypass-backends",
    example: "ef_vi_events",
    stand_in: Some(StandIn {
        package: "bypass-fake-ciul",
        setting: ("FAKE_CIUL_WIRE", "null"),
    }),
    unit: "frame",
    ways: &[frames("in", &["in"]), frames("out", &["out"])],
};

pub(super) fn run(subject: &Subject, record: bool) -> Result<Vec<Row>> {
    step("building the example", || subject.build())?;
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
                target: reference.map_or_else(String::new, |_| format!("<= {MOST}")),
                met: reference.map(|reference| each / reference <= MOST),
            }
        })
        .collect())
}

impl Subject {
    fn build(&self) -> Result<()> {
        let example = [self.package, "--example", self.example];
        let stand_in = self.stand_in.as_ref().map(|it| [it.package]);
        let builds = [stand_in.as_ref().map(|it| &it[..]), Some(&example[..])];
        for what in builds.into_iter().flatten() {
            let mut build = cargo();
            build.args(["build", "--quiet", "--release", "-p"]);
            if !build.args(what).status()?.success() {
                return Err("the build failed".into());
            }
        }
        Ok(())
    }

    fn reference_file(&self) -> PathBuf {
        paths::repository().join(format!("tests/bench/{}.json", self.example))
    }

    fn each(&self, way: &Way) -> Result<f64> {
        let (few, many) = way.counts;
        let slope = self.instructions(way, many)? - self.instructions(way, few)?;
        Ok(slope / f64::from(many - few) / way.share)
    }

    fn instructions(&self, way: &Way, count: u32) -> Result<f64> {
        let costs = paths::target().join(format!("callgrind.{}", self.example));
        let mut run = Command::new("valgrind");
        run.args(["--tool=callgrind", "--compress-strings=no"])
            .arg(format!("--callgrind-out-file={}", costs.display()))
            .arg(paths::target().join("release/examples").join(self.example))
            .args(way.before)
            .arg(count.to_string())
            .args(way.after);
        if let Some(StandIn { setting, .. }) = &self.stand_in {
            run.env(setting.0, setting.1);
        }
        let run = run.output()?;
        let text = String::from_utf8_lossy(&run.stderr);
        let collected = text.lines().find_map(|line| {
            let count = line.split("Collected : ").nth(1)?;
            count.trim().parse().ok()
        });
        let all = collected.ok_or_else(|| format!("callgrind: {text}"))?;
        if self.stand_in.is_none() {
            return Ok(all);
        }
        Ok(own_costs(&fs::read_to_string(costs)?, self.example))
    }
}

/// Instructions of the program `example` itself in callgrind's output, without functions of the
/// example: what the package under test does.
fn own_costs(output: &str, example: &str) -> f64 {
    let is_own = |object: &str| object == example;
    costs(output, is_own, |function| !function.starts_with(example))
}

/// Instructions of these functions in these objects (by file name) in callgrind's output, which has
/// whole names.
pub(super) fn costs(
    output: &str,
    is_object: impl Fn(&str) -> bool,
    is_function: impl Fn(&str) -> bool,
) -> f64 {
    let (mut is_own, mut is_tested, mut is_call) = (false, false, false);
    let mut sum = 0.0;
    for line in output.lines() {
        if let Some(object) = line.strip_prefix("ob=") {
            is_own = is_object(object.rsplit('/').next().unwrap_or_default());
        } else if let Some(function) = line.strip_prefix("fn=") {
            is_tested = is_function(function);
        } else if line.starts_with("calls=") {
            is_call = true;
        } else if line.starts_with(|first: char| first.is_ascii_digit() || "+-*".contains(first)) {
            // Position and cost; after a call, the callee's.
            let cost = line.split(' ').nth(1).and_then(|cost| cost.parse().ok());
            if is_own && is_tested && !is_call {
                sum += cost.unwrap_or(0.0);
            }
            is_call = false;
        }
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::own_costs;

    #[test]
    fn only_the_packages_own_instructions_count() {
        let output = "\
events: Ir
ob=/lib/libc.so.6
fn=memcpy
10 1000
ob=/target/release/examples/ef_vi_events
fn=ef_vi_events::look
30 7
fn=<EfViPort as Port>::receive
40 5
+2 3
calls=1 10
* 1000
-1 2
summary: 2017
";
        assert_eq!(own_costs(output, "ef_vi_events"), 10.0);
    }
}
