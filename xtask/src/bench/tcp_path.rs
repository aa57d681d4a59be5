//! `tcp-path`: what iperf3 carries out of its server over links with delay and loss.
//!
//! The links are emulated (see `bypass_tests::emulated_link`); both ends are real, and the client's
//! is always the plain kernel. Only the sender's side differs between the columns. What is lost
//! comes from a seed, one for each round: the n-th frame of a direction in both columns.
//!
//! `BYPASS_ROWS=TEXT` takes the rows only whose name contains TEXT, such as `cubic, RTT 100 ms`.

use std::collections::BTreeMap;

use bypass_backends::sim::Faults;
use bypass_tests::Result;
use bypass_tests::program::Column;
use bypass_tests::services::wait_for_listener;
use bypass_tests::testbed::{Options, Side, Testbed};

use super::{Row, columns};
use crate::measure::{median, ratio};
use crate::progress::step;

const PORT: u16 = 5201;
/// Rate of the link.
const BITS_PER_SECOND: u64 = 200_000_000;
/// Round-trip times in microseconds.
const ROUND_TRIPS: [u64; 3] = [100, 10_000, 100_000];
/// Frames lost, in 1/1024: none, 0.1 %, 1 %, 5 %.
const LOSSES: [u16; 4] = [0, 1, 10, 51];
/// Frames that wait before the link, besides those on the way.
const QUEUE: u64 = 250;
/// Smallest share of the kernel's goodput.
const SHARE: f64 = 1.0;

fn link(loss: u16, round_trip_us: u64) -> Faults {
    let delay_ns = round_trip_us * 500;
    let on_the_way = BITS_PER_SECOND / 8 * delay_ns / 1_000_000_000 / 1514;
    Faults {
        loss,
        delay_ns,
        bits_per_second: BITS_PER_SECOND,
        in_flight: (on_the_way + QUEUE) as u32,
        ..Faults::default()
    }
}

/// Megabits a second that arrive.
fn measure(column: Column, congestion: &str, faults: Faults, seed: u64) -> Result<f64> {
    let bed = Testbed::with(Options {
        emulated: Some((faults, seed)),
        ..Options::default()
    })?;
    let host = bed.ipv4(Side::Server);
    let mut server = bed.program(Side::Server, "iperf3");
    server.column(column);
    // It ends with the test bed.
    let _server = server.args(["-s", "-B", &host]).spawn()?;
    wait_for_listener(&bed, PORT, column == Column::Shim)?;
    let mut client = bed.program(Side::Client, "iperf3");
    // Named, for the host's default need not be the stack's.
    client.args([
        "-c", &host, "-R", "-C", congestion, "-t", "4", "-O", "1", "-J",
    ]);
    let run = client.run()?;
    let report: serde_json::Value = serde_json::from_str(&run.check()?.stdout)?;
    let bits = report["end"]["sum_received"]["bits_per_second"].as_f64();
    Ok(bits.ok_or("iperf3 gave no rate")? / 1e6)
}

pub(super) fn run(rounds: u32) -> Result<Vec<Row>> {
    let wanted = std::env::var("BYPASS_ROWS").unwrap_or_default();
    let mut table = Vec::new();
    for congestion in ["cubic", "bbr"] {
        for round_trip_us in ROUND_TRIPS {
            for loss in LOSSES {
                if name(congestion, loss, round_trip_us).contains(&wanted) {
                    table.push(row(rounds, congestion, loss, round_trip_us)?);
                }
            }
        }
    }
    Ok(table)
}

/// What a row measures, with its unit.
fn name(congestion: &str, loss: u16, round_trip_us: u64) -> String {
    let per_cent = f64::from(loss) / 10.24;
    let ms = round_trip_us as f64 / 1e3;
    format!("Mbit/s, {congestion}, RTT {ms} ms, {per_cent:.1} % lost")
}

fn row(rounds: u32, congestion: &str, loss: u16, round_trip_us: u64) -> Result<Row> {
    let what = name(congestion, loss, round_trip_us);
    let mut rates: BTreeMap<&str, Vec<f64>> = BTreeMap::new();
    for round in 0..rounds {
        for column in columns() {
            let name = column.name();
            let rate = step(&format!("{what}, round {}, {name}", round + 1), || {
                measure(
                    *column,
                    congestion,
                    link(loss, round_trip_us),
                    u64::from(round),
                )
            })?;
            rates.entry(name).or_default().push(rate);
        }
    }
    let of = |column: Column| median(rates.get(column.name()).cloned().unwrap_or_default());
    let (kernel, shim) = (of(Column::Native), of(Column::Shim));
    let figure = ratio(shim, kernel);
    Ok(Row {
        what,
        medians: vec![("kernel".to_owned(), kernel), ("shim".to_owned(), shim)],
        figure,
        target: format!(">= {SHARE}"),
        met: rates.contains_key("shim").then_some(figure >= SHARE),
    })
}
