//! What a call on a kernel descriptor costs more under the shim, and whether it makes system calls.
//!
//! The figures are the least of all rounds: what disturbs a call of 200 ns only ever adds, and some
//! placements of a process in memory cost it 15 ns with and without us.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::Value;

use bypass_tests::program::Column;
use bypass_tests::testbed::{Side, Testbed};
use bypass_tests::{Result, paths};

use super::{Row, columns};
use crate::measure::field;
use crate::progress::step;

const CALLS: [&str; 5] = ["recv", "write", "epoll_wait", "poll", "close"];
/// Most nanoseconds per call over no preload.
const MOST_NS: f64 = 5.0;

pub(super) fn run(rounds: u32) -> Result<Vec<Row>> {
    let bed = Testbed::new()?;
    let program = paths::test_program("bench", "fallthrough")?;
    let mut results: BTreeMap<(&str, &str), Vec<f64>> = BTreeMap::new();
    for round in 0..rounds {
        for column in columns() {
            let what = format!("round {} of {rounds}, {}", round + 1, column.name());
            let run = step(&what, || {
                let mut run = bed.program(Side::Server, &program);
                run.column(*column)
                    .cpu(0)
                    .timeout(Duration::from_secs(120))
                    .run()
            })?;
            let json: Value = run.check()?.json()?;
            for call in CALLS {
                results
                    .entry((call, column.name()))
                    .or_default()
                    .push(field(&json, call));
            }
        }
    }
    let of = |call, column: Column| {
        results
            .get(&(call, column.name()))
            .into_iter()
            .flatten()
            .copied()
            .reduce(f64::min)
            .unwrap_or_default()
    };
    let shim = columns().contains(&Column::Shim);
    let mut rows: Vec<Row> = CALLS
        .into_iter()
        .map(|call| {
            let (kernel, with) = (of(call, Column::Native), of(call, Column::Shim));
            Row {
                what: format!("{call} (ns per call, best)"),
                medians: vec![("kernel".into(), kernel), ("shim".into(), with)],
                figure: if shim { with - kernel } else { 0.0 },
                target: format!("<= {MOST_NS} ns more"),
                met: shim.then_some(with - kernel <= MOST_NS),
            }
        })
        .collect();
    rows.push(system_calls(&bed, shim)?);
    Ok(rows)
}

/// System calls per five calls: the slope between 1000 and 3000 rounds, as strace counts them.
fn system_calls(bed: &Testbed, shim: bool) -> Result<Row> {
    let slope = |column: Column| -> Result<f64> {
        Ok((count(bed, column, 3000)? - count(bed, column, 1000)?) / 2000.0 / 5.0)
    };
    let kernel = slope(Column::Native)?;
    let with = if shim { slope(Column::Shim)? } else { 0.0 };
    Ok(Row {
        what: "system calls per five calls".into(),
        medians: vec![("kernel".into(), kernel), ("shim".into(), with)],
        figure: if shim { with - kernel } else { 0.0 },
        target: "0 more".into(),
        met: shim.then_some((with - kernel).abs() < 0.001),
    })
}

/// All system calls of a run with `calls` calls each; strace runs the program, and only the
/// program is preloaded.
fn count(bed: &Testbed, column: Column, calls: u32) -> Result<f64> {
    let log = bed.folder().join("strace");
    let program = paths::test_program("bench", "fallthrough")?;
    let mut strace = bed.program(Side::Server, "strace");
    strace.args(["-c", "-U", "calls,name", "-o"]).arg(&log);
    if column == Column::Shim {
        strace
            .arg("-E")
            .arg(format!("LD_PRELOAD={}", paths::shim().display()));
    }
    strace.arg(program).arg(calls.to_string()).run()?.check()?;
    let text = std::fs::read_to_string(&log)?;
    let total = text
        .lines()
        .find_map(|line| line.trim().strip_suffix(" total")?.trim().parse().ok());
    total.ok_or_else(|| format!("strace: {text}").into())
}
