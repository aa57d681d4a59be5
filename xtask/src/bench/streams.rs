//! `tcp-rr`, `redis`, `nginx`, `memcached` and `tcp-bulk`: a server on the kernel, and under the
//! shim with and without spinning; the client is the kernel's, on the other processor.
//!
//! Where the client's processor is full, the rate says how fast the client is: the row says so in
//! place of a verdict, and the server's processor time counts.

use std::collections::BTreeMap;
use std::time::Duration;

use bypass_tests::Result;
use bypass_tests::program::{Column, Program, Running};
use bypass_tests::services::{server_processor_time, wait_for_listener};
use bypass_tests::testbed::{Side, Testbed};

use super::{Row, columns};
use crate::measure::{Busy, median, ratio};
use crate::progress::step;

pub(super) const PORT: u16 = 7008;
/// Processors of the server and of its client.
const SERVER_CPU: u32 = 0;
pub(super) const CLIENT_CPU: u32 = 1;
/// From this share of its time on, a processor is full.
const FULL: f64 = 0.95;

/// The ways to serve, each with its column of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Way {
    Kernel,
    /// With what a veth pair cannot do for us either: no segmentation by the device.
    Plain,
    Spins,
    Sleeps,
}

impl Way {
    const ALL: [Self; 4] = [Self::Kernel, Self::Plain, Self::Spins, Self::Sleeps];

    fn name(self) -> &'static str {
        match self {
            Self::Kernel => "kernel",
            Self::Plain => "kernel, no offloads",
            Self::Spins => "shim spins",
            Self::Sleeps => "shim sleeps",
        }
    }

    fn needs_shim(self) -> bool {
        matches!(self, Self::Spins | Self::Sleeps)
    }

    /// Runs a server in this way on the first processor until it listens.
    fn start(self, bed: &Testbed, server: &mut Program<'_>) -> Result<Running> {
        server.cpu(SERVER_CPU);
        if self == Self::Plain {
            no_offloads(bed)?;
        }
        if self.needs_shim() {
            let spin_us = if self == Self::Spins { "1000" } else { "0" };
            server.column(Column::Shim);
            server.env("BYPASS_SPIN_US", spin_us);
        }
        let running = server.spawn()?;
        wait_for_listener(bed, PORT, self.needs_shim())
            .map_err(|error| format!("{error}\n{}{}", running.stdout(), running.stderr()))?;
        Ok(running)
    }
}

fn no_offloads(bed: &Testbed) -> Result<()> {
    for side in [Side::Server, Side::Client] {
        let mut ethtool = bed.program(side, "ethtool");
        ethtool.args(["-K", bed.interface(side), "tso", "off", "gso", "off"]);
        ethtool.args(["gro", "off"]).run()?.check()?;
    }
    Ok(())
}

/// Which of the figures of a load.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Figure {
    /// Requests, or bits, per second.
    Rate,
    /// Microseconds.
    P50,
    P99,
    /// Server's processor time per request, or per MiB, in nanoseconds. What arrives at the
    /// kernel's server is taken in by the client's processor, what the server sends by its own.
    Processor,
    /// The time that both processors were not idle per request, or per MiB, in nanoseconds.
    Both,
    /// The share of its time that the client's processor was not idle.
    Client,
}

/// What one run of a load gave.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Sample {
    pub(super) rate: f64,
    pub(super) p50: f64,
    pub(super) p99: f64,
    /// Requests, or MiB, that were served.
    pub(super) done: f64,
}

/// Smallest or largest share of the kernel's figure: (figure, spinning, sleeping).
pub(super) type Targets = &'static [(Figure, Option<f64>, Option<f64>)];

/// A load: what it is called, its client, and what the shim is held to.
pub(super) struct Load {
    pub(super) name: &'static str,
    pub(super) unit: &'static str,
    pub(super) client: fn(&Testbed) -> Result<Sample>,
    pub(super) targets: Targets,
}

/// A server and its loads.
pub(super) struct Subject {
    pub(super) server: fn(&Testbed) -> Result<Program<'_>>,
    pub(super) loads: &'static [Load],
    /// What the shim is compared with.
    pub(super) against: Way,
}

/// The figures of a load in one way.
fn measure(subject: &Subject, load: &Load, way: Way) -> Result<[(Figure, f64); 6]> {
    let bed = Testbed::new()?;
    let mut server = (subject.server)(&bed)?;
    let _running = way.start(&bed, &mut server)?;
    let before = server_processor_time(&bed);
    let (server, client) = (Busy::start(SERVER_CPU)?, Busy::start(CLIENT_CPU)?);
    let sample = (load.client)(&bed)?;
    // What spins goes on for a while after the last request.
    let used: Duration = server_processor_time(&bed).saturating_sub(before);
    let (server, client) = (server.stop()?, client.stop()?);
    let lasted = ratio(sample.done, sample.rate);
    let each = |time: Duration| ratio(time.as_nanos() as f64, sample.done);
    Ok([
        (Figure::Rate, sample.rate),
        (Figure::P50, sample.p50),
        (Figure::P99, sample.p99),
        (Figure::Processor, each(used)),
        (Figure::Both, each(server + client)),
        (Figure::Client, ratio(client.as_secs_f64(), lasted)),
    ])
}

type Results = BTreeMap<(usize, Way, Figure), Vec<f64>>;

pub(super) fn run(subject: &Subject, rounds: u32) -> Result<Vec<Row>> {
    let shim = columns().contains(&Column::Shim);
    let ways: Vec<Way> = Way::ALL
        .into_iter()
        .filter(|way| shim || !way.needs_shim())
        .filter(|way| *way != Way::Plain || subject.against == Way::Plain)
        .collect();
    let mut results = Results::new();
    for round in 0..rounds {
        for (nth, load) in subject.loads.iter().enumerate() {
            for way in &ways {
                let (name, how) = (load.name, way.name());
                let what = format!("round {} of {rounds}, {name}, {how}", round + 1);
                for (figure, value) in step(&what, || measure(subject, load, *way))? {
                    results.entry((nth, *way, figure)).or_default().push(value);
                }
            }
        }
    }
    let mut rows = Vec::new();
    for (nth, load) in subject.loads.iter().enumerate() {
        for (figure, spins, sleeps) in load.targets {
            let of = |way: Way| {
                let values = results.get(&(nth, way, *figure)).cloned();
                (way, median(values.unwrap_or_default()))
            };
            let medians: Vec<(Way, f64)> = ways.iter().map(|way| of(*way)).collect();
            let base = of(subject.against);
            for (way, bound) in [(Way::Spins, *spins), (Way::Sleeps, *sleeps)] {
                let mut row = row(load, *figure, &medians, (of(way), base), bound);
                let client = results.get(&(nth, way, Figure::Client)).cloned();
                if *figure == Figure::Rate
                    && row.met == Some(false)
                    && median(client.unwrap_or_default()) >= FULL
                {
                    row.met = None;
                    row.target.push_str(": the client's processor is full");
                }
                rows.push(row);
            }
        }
    }
    Ok(rows)
}

/// A row of the table: one of the shim's ways beside what it is compared with.
fn row(
    load: &Load,
    figure: Figure,
    medians: &[(Way, f64)],
    ((way, value), (against, base)): ((Way, f64), (Way, f64)),
    bound: Option<f64>,
) -> Row {
    let share = ratio(value, base);
    let more = figure == Figure::Rate;
    let holds = |bound| {
        if more { share >= bound } else { share <= bound }
    };
    Row {
        what: format!(
            "{}: {}, {} / {}",
            load.name,
            figure.title(load),
            way.name(),
            against.name()
        ),
        medians: medians
            .iter()
            .map(|(way, value)| (way.name().to_owned(), *value))
            .collect(),
        figure: share,
        target: bound.map_or_else(String::new, |bound| {
            format!("{} {bound}", if more { ">=" } else { "<=" })
        }),
        met: bound.filter(|_| value > 0.0).map(holds),
    }
}

impl Figure {
    fn title(self, load: &Load) -> String {
        let each = if load.unit == "Gbit/s" {
            "MiB"
        } else {
            "request"
        };
        match self {
            Self::Rate => load.unit.to_owned(),
            Self::P50 => "p50 (us)".to_owned(),
            Self::P99 => "p99 (us)".to_owned(),
            Self::Processor => format!("server's ns per {each}"),
            Self::Both => format!("both processors' ns per {each}"),
            Self::Client => "client's processor, busy".to_owned(),
        }
    }
}
