//! What a call on a kernel descriptor costs more under the shim, and whether it makes system calls.
//!
//! What disturbs a call of 200 ns only ever adds, and some placements of a process in memory cost
//! it 15 ns with and without us, some rare ones less than nothing. So a round is many short runs,
//! in turns, each of which tells its best; the figures are the bests that a tenth of them reach.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use serde_json::Value;

use bypass_tests::program::Column;
use bypass_tests::testbed::{Side, Testbed};
use bypass_tests::{Result, paths};

use super::{Row, columns};
use crate::measure::field;
use crate::progress::step;

const CALLS: [&str; 5] = ["recv", "write", "epoll_wait", "poll", "close"];
/// Runs of the program in one round, and calls of each kind in a fifth of one.
const RUNS: u32 = 25;
const CALLS_EACH: &str = "40000";
/// Most nanoseconds per call over no preload.
const MOST_NS: f64 = 5.0;

pub(super) fn run(rounds: u32) -> Result<Vec<Row>> {
    let bed = Testbed::new()?;
    let program = paths::test_program("bench", "fallthrough")?;
    let mut results: BTreeMap<(&str, &str), Vec<f64>> = BTreeMap::new();
    for round in 0..rounds {
        step(&format!("round {} of {rounds}", round + 1), || {
            (0..RUNS).try_for_each(|_| run_each(&bed, &program, &mut results))
        })?;
    }
    let of = |call, column: Column| {
        let times = results.get(&(call, column.name()));
        tenth(times.cloned().unwrap_or_default())
    };
    let shim = columns().contains(&Column::Shim);
    let mut rows: Vec<Row> = CALLS
        .into_iter()
        .map(|call| {
            let (kernel, with) = (of(call, Column::Native), of(call, Column::Shim));
            Row {
                what: format!("{call} (ns per call, best tenth)"),
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

/// What a tenth of the values do not exceed.
fn tenth(mut values: Vec<f64>) -> f64 {
    values.sort_unstable_by(f64::total_cmp);
    let index = values.len().div_ceil(10).saturating_sub(1);
    values.get(index).copied().unwrap_or_default()
}

/// One run in each column.
fn run_each(
    bed: &Testbed,
    program: &Path,
    results: &mut BTreeMap<(&'static str, &'static str), Vec<f64>>,
) -> Result<()> {
    for column in columns() {
        let mut run = bed.program(Side::Server, program);
        run.column(*column).cpu(0).arg(CALLS_EACH);
        let run = run.timeout(Duration::from_secs(120)).run();
        let json: Value = run?.check()?.json()?;
        for call in CALLS {
            let times = results.entry((call, column.name())).or_default();
            times.push(field(&json, call));
        }
    }
    Ok(())
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
