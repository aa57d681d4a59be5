//! `idle`: processor time in five seconds of an accelerated program that waits, daemon included.

use std::time::Duration;

use bypass_tests::Result;
use bypass_tests::counters::processor_time;
use bypass_tests::program::Column;
use bypass_tests::testbed::{Side, Testbed};

use super::{Row, columns};
use crate::measure::{example, start};
use crate::progress::step;

const SECONDS: u64 = 5;
const PORT: u16 = 7007;
/// Most milliseconds of processor time that count as none: a few wake-ups of the daemon's timers.
const MOST_MS: f64 = 10.0;

pub(super) fn run() -> Result<Vec<Row>> {
    let mut medians = Vec::new();
    for column in columns() {
        let used = step(&format!("{SECONDS} s idle, {}", column.name()), || {
            measure(*column)
        })?;
        medians.push((column.name().to_owned(), used));
    }
    let shim = medians.get(1).map(|(_, used)| *used);
    Ok(vec![Row {
        what: format!("processor time in {SECONDS} s (ms)"),
        figure: shim.unwrap_or(0.0),
        target: format!("<= {MOST_MS} ms"),
        met: shim.map(|used| used <= MOST_MS),
        medians,
    }])
}

fn measure(column: Column) -> Result<f64> {
    let bed = Testbed::new()?;
    let host = bed.ipv4(Side::Server);
    let mut idle = example(&bed, Side::Server, column, "idle")?;
    idle.args([
        "--bind",
        &host,
        "--port",
        &PORT.to_string(),
        "--seconds",
        "60",
    ]);
    let _running = start(&bed, Side::Server, &idle, PORT)?;
    let poke = format!("echo > /dev/udp/{host}/{PORT}");
    bed.program(Side::Client, "bash")
        .args(["-c", &poke])
        .run()?
        .check()?;
    std::thread::sleep(Duration::from_secs(1));
    let all = || -> Duration {
        bed.processes(Side::Server)
            .into_iter()
            .map(processor_time)
            .sum()
    };
    let before = all();
    std::thread::sleep(Duration::from_secs(SECONDS));
    Ok((all() - before).as_secs_f64() * 1e3)
}
