//! `cargo xtask bench NAME`: kernel and shim in turns within one run, medians and ratios.
//!
//! Every benchmark gives a [`Report`]: for each measured thing a row with one median per column and
//! the ratio that has a target. `--json` prints it for machines.

mod fallthrough;
mod idle;
mod instructions;
mod ping_pong;
mod port;
mod processes;
mod rate;
mod streams;
mod subjects;
mod tcp_path;

use clap::ValueEnum;
use serde::Serialize;

use bypass_tests::program::Column;
use bypass_tests::{Result, paths};

use crate::table::{Table, number};
use crate::{build, packages};

/// The benchmarks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Name {
    /// What a call on a kernel descriptor costs more under the shim
    Fallthrough,
    /// 64-byte receive from one AF_XDP sender, against a bare AF_XDP receiver
    UdpRx,
    /// Sender and receiver both accelerated, against both on the kernel
    UdpE2e,
    /// Ping-pong with a blocking kernel client
    UdpRr,
    /// Processor time of an accelerated program that waits
    Idle,
    /// 64-byte request and response over TCP, 1 and 64 connections
    TcpRr,
    /// GET with redis-benchmark: one client, 50, and 50 that pipeline
    Redis,
    /// 1 KiB from nginx to wrk: keepalive, and a connection for each request
    Nginx,
    /// The same from a master with two workers
    NginxWorkers,
    /// GET and SET of 64 bytes from memcached, over TCP and UDP
    Memcached,
    /// One stream of iperf3 in each direction
    TcpBulk,
    /// Instructions per datagram of the stack alone
    StackUdp,
    /// Instructions per TCP request and response of the stack alone
    StackTcp,
    /// Instructions per frame of ef_vi's event loop alone
    EfVi,
    /// Instructions per frame of the relay and its queue pair alone, and of a DPDK port's burst
    Relay,
    /// What iperf3 carries over links with delay and loss
    TcpPath,
    /// Forks with many connections, and the way from stack to kernel
    Processes,
}

/// One measured thing.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Row {
    /// What, with its unit.
    pub(crate) what: String,
    /// Column name and median, in the order of the table.
    pub(crate) medians: Vec<(String, f64)>,
    /// The figure that the target is about.
    pub(crate) figure: f64,
    /// The target in words; empty when there is none.
    pub(crate) target: String,
    /// Whether it is met; absent without a target or without a shim.
    pub(crate) met: Option<bool>,
}

/// What a benchmark found.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Report {
    /// Name of the benchmark.
    pub(crate) name: String,
    /// Kernel release.
    pub(crate) kernel: String,
    /// Processors.
    pub(crate) processors: usize,
    /// Rounds that the medians are of.
    pub(crate) rounds: u32,
    /// The rows.
    pub(crate) rows: Vec<Row>,
}

/// Runs one benchmark and prints what it found.
///
/// # Errors
/// When it cannot be run. A target that is not met is no error.
pub(crate) fn run(name: Name, json: bool, rounds: u32, record: bool) -> Result<()> {
    packages::install_missing()?;
    if !matches!(
        name,
        Name::StackUdp | Name::StackTcp | Name::EfVi | Name::Relay
    ) {
        build::release()?;
    }
    let rows = match name {
        Name::Fallthrough => fallthrough::run(rounds)?,
        Name::UdpRx => rate::receive(rounds)?,
        Name::UdpE2e => rate::end_to_end(rounds)?,
        Name::UdpRr => ping_pong::run(rounds)?,
        Name::Idle => idle::run()?,
        Name::TcpRr => streams::run(&subjects::ROUND_TRIP, rounds)?,
        Name::Redis => streams::run(&subjects::REDIS, rounds)?,
        Name::Nginx => streams::run(&subjects::NGINX, rounds)?,
        Name::NginxWorkers => streams::run(&subjects::NGINX_WORKERS, rounds)?,
        Name::Memcached => streams::run(&subjects::MEMCACHED, rounds)?,
        Name::TcpBulk => streams::run(&subjects::BULK, rounds)?,
        Name::StackUdp => instructions::run(&instructions::UDP, record)?,
        Name::StackTcp => {
            let mut rows = instructions::run(&instructions::TCP, record)?;
            rows.extend(instructions::run(&instructions::SMOLTCP, false)?);
            rows
        }
        Name::EfVi => instructions::run(&instructions::EF_VI, record)?,
        Name::Relay => {
            let mut rows = instructions::run(&instructions::RELAY, record)?;
            let inward = rows.iter().find(|row| row.what.ends_with(", in"));
            let inward = inward.and_then(|row| Some(row.medians.last()?.1));
            rows.extend(port::run(inward.unwrap_or_default())?);
            rows
        }
        Name::TcpPath => tcp_path::run(rounds)?,
        Name::Processes => processes::run(rounds)?,
    };
    let report = Report {
        name: name
            .to_possible_value()
            .map_or_else(String::new, |v| v.get_name().to_owned()),
        kernel: std::fs::read_to_string("/proc/sys/kernel/osrelease")?
            .trim()
            .to_owned(),
        processors: std::thread::available_parallelism()?.get(),
        rounds,
        rows,
    };
    if json {
        println!("{}", serde_json::to_string(&report)?);
    } else {
        print(&report);
    }
    Ok(())
}

/// Fails when the stack needs 5 % more instructions per datagram, or per request and response over
/// TCP, than the recorded references, or ef_vi's event loop or the relay per frame.
///
/// # Errors
/// When it does, or cannot be measured.
pub(crate) fn instructions_gate() -> Result<()> {
    let mut rows = instructions::run(&instructions::UDP, false)?;
    rows.extend(instructions::run(&instructions::TCP, false)?);
    rows.extend(instructions::run(&instructions::EF_VI, false)?);
    rows.extend(instructions::run(&instructions::RELAY, false)?);
    let worse: Vec<&str> = rows
        .iter()
        .filter(|row| row.met == Some(false))
        .map(|row| row.what.as_str())
        .collect();
    if worse.is_empty() {
        Ok(())
    } else {
        Err(format!("more than before: {worse:?}").into())
    }
}

/// The columns to take turns with: shim only when it is built.
fn columns() -> &'static [Column] {
    if !paths::shim_is_built() {
        eprintln!(
            ":: {} has no hooks: kernel column only",
            paths::shim().display()
        );
    }
    Column::available()
}

fn print(report: &Report) {
    println!(
        "{}: kernel {}, {} processors, median of {} rounds",
        report.name, report.kernel, report.processors, report.rounds
    );
    let mut table = Table::new(&["what"]);
    let headings: Vec<String> = report
        .rows
        .first()
        .map(|row| row.medians.iter().map(|(name, _)| name.clone()).collect())
        .unwrap_or_default();
    table.0[0].extend(headings);
    table.0[0].extend(["figure".to_owned(), "target".to_owned(), String::new()]);
    for row in &report.rows {
        let mut cells = vec![row.what.clone()];
        cells.extend(row.medians.iter().map(|(_, value)| number(*value)));
        let met = row.met.map_or("", |met| if met { "ok" } else { "MISSED" });
        cells.extend([number(row.figure), row.target.clone(), met.to_owned()]);
        table.row(cells);
    }
    print!("{}", table.render());
}
