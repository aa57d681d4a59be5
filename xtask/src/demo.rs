//! `cargo xtask demo`: the product on this machine, from nothing to nothing.
//!
//! Three programs, each first on the kernel and then under the shim, served to clients on the plain
//! kernel at the other end of a veth: knotd with dnsperf, the million-packets receiver with its
//! sender, sockperf's ping-pong (under the shim with the profile `latency`). Servers and clients do
//! not share processors: they would be on two machines. While knotd runs under the shim the demo
//! shows what `bypassctl` says about it. At the end everything is removed, and looked for.

use std::time::Duration;

use serde_json::{Value, json};

use bypass_tests::counters::wait_for_udp_port;
use bypass_tests::leftovers::Leftovers;
use bypass_tests::program::Column;
use bypass_tests::services::{DnsLoad, NameServer, dnsperf};
use bypass_tests::testbed::{Options, Side, Testbed};
use bypass_tests::{Result, daemon};

use crate::measure::{Meter, Sample, example, field, ratio, start};
use crate::progress::step;
use crate::table::{Table, number};
use crate::{build, packages};

/// Time that the daemon has to see that it is idle and to leave.
const IDLE_EXIT: Duration = Duration::from_secs(10);

/// How to read the table.
const NOTE: &str = "\
Servers and clients have different processors, as on two machines; the client's may be the limit.
On a veth the kernel receives on the sender's processor, the bypass on the receiver's own; a card
has no such gift for the kernel. A shim that waits spins before it sleeps (BYPASS_SPIN_US): that is
processor time too.";

/// What the demo has shown of `bypassctl`.
#[derive(Debug, Default)]
struct Views {
    filters: String,
    explain: String,
    filters_json: Value,
    explain_json: Value,
}

/// Runs one program in one column for so many seconds; fills the views when they are wanted.
type Measurement = fn(&Testbed, Column, u32, Option<&mut Views>) -> Result<Sample>;

/// Name for the table, name of the rate, how to measure.
const PROGRAMS: [(&str, &str, Measurement); 3] = [
    ("knotd, asked by dnsperf", "answers/s", name_server),
    ("udpreceiver, fed by udpsender", "datagrams/s", receiver),
    (
        "sockperf ping-pong, profile latency",
        "round trips/s",
        ping_pong,
    ),
];

/// Runs the demo.
///
/// # Errors
/// When a step fails or something is left at the end.
pub(crate) fn run(as_json: bool, seconds: u32) -> Result<()> {
    packages::install_missing()?;
    build::release()?;
    let columns = Column::available();
    let options = Options {
        apart: true,
        ..Options::default()
    };
    let bed = step("making two namespaces and a veth", || {
        Testbed::with(options)
    })?;
    let mut views = Views::default();
    let mut results: Vec<Vec<Sample>> = Vec::new();
    for (at, (name, _, measure)) in PROGRAMS.iter().enumerate() {
        let mut samples = Vec::new();
        for column in columns {
            let wanted = (at == 0 && *column == Column::Shim).then_some(&mut views);
            let what = format!("{name}: {}", column.name());
            let sample = step(&what, || measure(&bed, *column, seconds, wanted))?;
            samples.push(sample);
        }
        results.push(samples);
    }
    let left = step("waiting until the daemon leaves", || {
        Leftovers::after(&bed, IDLE_EXIT)
    });
    let namespaces = [bed.namespace(Side::Server), bed.namespace(Side::Client)];
    let folder = bed.folder().to_path_buf();
    drop(bed);
    let mut left = left;
    left.0.extend(Leftovers::of_removed(&namespaces, &folder).0);
    if as_json {
        println!("{}", as_object(columns, &results, &views, &left));
    } else {
        print(columns, &results, &views, &left);
    }
    if left.0.is_empty() {
        Ok(())
    } else {
        Err(format!("left behind: {left}").into())
    }
}

fn name_server(
    bed: &Testbed,
    column: Column,
    seconds: u32,
    views: Option<&mut Views>,
) -> Result<Sample> {
    const PORT: u16 = 5353;
    let server = NameServer::Knot.start(bed, Side::Server, column, PORT, 1)?;
    let load = DnsLoad {
        seconds,
        clients: 4,
        threads: 1,
        outstanding: 100,
        verbose: false,
    };
    let meter = Meter::start(bed)?;
    let fast = dnsperf(bed, PORT, load)?;
    let mut sample = Sample {
        rate: fast.rate,
        ..Sample::default()
    };
    meter.stop(bed, &mut sample)?;
    // One query at a time, for the time that an answer takes.
    let one = DnsLoad {
        seconds: 2,
        clients: 1,
        outstanding: 1,
        verbose: true,
        ..load
    };
    let slow = dnsperf(bed, PORT, one)?;
    (sample.p50_us, sample.p99_us) = (slow.p50_us, slow.p99_us);
    if let Some(views) = views {
        views.filters = daemon::bypassctl(bed, &["filters", "list"])?.stdout;
        let pid = server.pid().to_string();
        views.explain = daemon::bypassctl(bed, &["explain", &pid])?.stdout;
        views.filters_json = Value::Array(daemon::list(bed, &["filters", "list"])?);
        views.explain_json = Value::Array(daemon::list(bed, &["explain", &pid])?);
    }
    if fast.no_error != fast.completed || fast.completed == 0 {
        return Err(format!("dnsperf: {fast:?}").into());
    }
    server.stop()?;
    Ok(sample)
}

fn receiver(bed: &Testbed, column: Column, seconds: u32, _: Option<&mut Views>) -> Result<Sample> {
    const PORT: u16 = 4321;
    let host = bed.ipv4(Side::Server);
    let mut receiver = example(bed, Side::Server, column, "udpreceiver")?;
    receiver.args(["--bind", &host, "--json"]);
    let running = start(bed, Side::Server, &receiver, PORT)?;
    std::thread::sleep(Duration::from_millis(300));
    let meter = Meter::start(bed)?;
    let mut sender = example(bed, Side::Client, Column::Native, "udpsender")?;
    sender.args([
        "--json",
        "--size",
        "22",
        "--seconds",
        &seconds.to_string(),
        &host,
    ]);
    sender.run()?.check()?;
    let mut sample = Sample::default();
    meter.stop(bed, &mut sample)?;
    let result = running.stop()?.check()?.json()?;
    sample.rate = field(&result, "rate");
    Ok(sample)
}

fn ping_pong(bed: &Testbed, column: Column, seconds: u32, _: Option<&mut Views>) -> Result<Sample> {
    const PORT: u16 = 11111;
    let host = bed.ipv4(Side::Server);
    let mut server = bed.program(Side::Server, "sockperf");
    let running = server
        .column(column)
        .env("BYPASS_PROFILE", "latency")
        .args(["server", "-i", &host])
        .spawn()?;
    wait_for_udp_port(bed, Side::Server, PORT)?;
    std::thread::sleep(Duration::from_millis(300));
    let meter = Meter::start(bed)?;
    let mut client = bed.program(Side::Client, "sockperf");
    client.args([
        "ping-pong",
        "--full-rtt",
        "-m",
        "64",
        "-i",
        &host,
        "-t",
        &seconds.to_string(),
    ]);
    let text = client.run()?.check()?.stdout;
    let mut sample = Sample::default();
    meter.stop(bed, &mut sample)?;
    let after = |head: &str| -> f64 {
        let number = |rest: &str| rest.trim_start_matches([' ', '=']).trim().parse().ok();
        text.lines()
            .find_map(|line| number(line.split(head).nth(1)?))
            .unwrap_or(0.0)
    };
    sample.p50_us = after("percentile 50.000");
    sample.p99_us = after("percentile 99.000");
    let received = text
        .split("[Valid Duration]")
        .nth(1)
        .and_then(|rest| rest.split("ReceivedMessages=").nth(1))
        .and_then(|rest| rest.split_whitespace().next()?.parse::<f64>().ok());
    let time = text
        .split("[Valid Duration] RunTime=")
        .nth(1)
        .and_then(|rest| rest.split_whitespace().next()?.parse::<f64>().ok());
    sample.rate = ratio(received.unwrap_or(0.0), time.unwrap_or(0.0));
    drop(running);
    Ok(sample)
}

fn print(columns: &[Column], results: &[Vec<Sample>], views: &Views, left: &Leftovers) {
    if columns.contains(&Column::Shim) {
        println!(
            "bypassctl filters list, while knotd ran under the shim:\n\n{}",
            views.filters
        );
        println!("bypassctl explain PID of knotd:\n\n{}", views.explain);
    } else {
        println!("libbypass.so has no hooks: kernel column only");
    }
    let mut table = Table::new(&[
        "program",
        "",
        "rate",
        "unit",
        "ratio",
        "p50 us",
        "p99 us",
        "cpu ns/packet",
        "by the bypass",
        "by the kernel",
    ]);
    for ((name, unit, _), samples) in PROGRAMS.iter().zip(results) {
        let base = samples.first().copied().unwrap_or_default();
        for (column, sample) in columns.iter().zip(samples) {
            table.row(vec![
                if *column == Column::Native {
                    (*name).to_owned()
                } else {
                    String::new()
                },
                column.name().to_owned(),
                number(sample.rate),
                (*unit).to_owned(),
                number(ratio(sample.rate, base.rate)),
                number(sample.p50_us),
                number(sample.p99_us),
                number(sample.cpu_ns_per_packet),
                number(sample.by_bypass as f64),
                number(sample.by_kernel as f64),
            ]);
        }
    }
    print!("{}", table.render());
    println!("\n{NOTE}");
    println!("\nleft behind on this machine: {left}");
}

fn as_object(
    columns: &[Column],
    results: &[Vec<Sample>],
    views: &Views,
    left: &Leftovers,
) -> Value {
    let programs: Vec<Value> = PROGRAMS
        .iter()
        .zip(results)
        .map(|((name, unit, _), samples)| {
            let base = samples.first().copied().unwrap_or_default();
            let measured: Vec<Value> = columns
                .iter()
                .zip(samples)
                .map(|(column, sample)| {
                    json!({
                        "column": column.name(),
                        "sample": sample,
                        "ratio": ratio(sample.rate, base.rate),
                    })
                })
                .collect();
            json!({ "program": name, "unit": unit, "columns": measured })
        })
        .collect();
    json!({
        "programs": programs,
        "filters": views.filters_json,
        "explain": views.explain_json,
        "left_behind": left.0,
    })
}
