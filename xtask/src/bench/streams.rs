//! `tcp-rr`, `redis`, `nginx` and `tcp-bulk`: a TCP server on the kernel, and under the shim with
//! and without spinning; the client is the kernel's, on the other processor.

use std::collections::BTreeMap;
use std::fs;
use std::time::Duration;

use bypass_tests::Result;
use bypass_tests::program::{Column, Program, Running};
use bypass_tests::services::{server_processor_time, wait_for_listener};
use bypass_tests::testbed::{Side, Testbed};

use super::{Row, columns};
use crate::measure::{example, field, median, ratio};
use crate::progress::step;

const PORT: u16 = 7008;

/// The ways to serve, each with its column of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Way {
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
        server.cpu(0);
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
enum Figure {
    /// Requests, or bits, per second.
    Rate,
    /// Microseconds.
    P50,
    P99,
    /// Server's processor time per request, or per MiB, in nanoseconds.
    Processor,
}

/// What one run of a load gave.
#[derive(Clone, Copy, Debug, Default)]
struct Sample {
    rate: f64,
    p50: f64,
    p99: f64,
    /// Requests, or MiB, that were served.
    done: f64,
}

/// Smallest or largest share of the kernel's figure: (figure, spinning, sleeping).
type Targets = &'static [(Figure, Option<f64>, Option<f64>)];

/// A load: what it is called, its client, and what the shim is held to.
struct Load {
    name: &'static str,
    unit: &'static str,
    client: fn(&Testbed) -> Result<Sample>,
    targets: Targets,
}

/// A server and its loads.
pub(super) struct Subject {
    server: fn(&Testbed) -> Result<Program<'_>>,
    loads: &'static [Load],
    /// What the shim is compared with.
    against: Way,
}

const ROUND_TRIPS: Targets = &[
    (Figure::P50, Some(0.5), Some(1.05)),
    (Figure::P99, Some(0.6), Some(1.05)),
    (Figure::Processor, Some(0.6), Some(0.6)),
    (Figure::Rate, None, None),
];

/// 64-byte requests and responses.
pub(super) const ROUND_TRIP: Subject = Subject {
    server: |bed| {
        let mut echo = example(bed, Side::Server, Column::Native, "tcpecho")?;
        echo.args(["--bind", &bed.ipv4(Side::Server)]);
        echo.args(["--port", &PORT.to_string()]);
        Ok(echo)
    },
    loads: &[
        Load {
            name: "1 connection",
            unit: "requests/s",
            client: |bed| exchanges(bed, "1", "30000"),
            targets: ROUND_TRIPS,
        },
        Load {
            name: "64 connections",
            unit: "requests/s",
            client: |bed| exchanges(bed, "64", "150000"),
            targets: ROUND_TRIPS,
        },
    ],
    against: Way::Kernel,
};

/// GET of redis-benchmark.
pub(super) const REDIS: Subject = Subject {
    server: |bed| {
        let mut redis = bed.program(Side::Server, "redis-server");
        redis.args(["--bind", &bed.ipv4(Side::Server)]);
        redis.args(["--port", &PORT.to_string(), "--protected-mode", "no"]);
        redis.args(["--save", "", "--appendonly", "no", "--dir"]);
        redis.arg(bed.folder());
        Ok(redis)
    },
    loads: &[
        Load {
            name: "GET -c 1",
            unit: "requests/s",
            client: |bed| redis_benchmark(bed, 40_000, &["-c", "1"]),
            targets: &[
                (Figure::Rate, Some(2.5), None),
                (Figure::P99, Some(1.0), None),
                (Figure::Processor, Some(0.6), Some(0.6)),
            ],
        },
        Load {
            name: "GET -c 50",
            unit: "requests/s",
            client: |bed| redis_benchmark(bed, 200_000, &["-c", "50"]),
            targets: &[
                (Figure::Rate, Some(1.8), None),
                (Figure::P99, Some(1.0), None),
                (Figure::Processor, Some(0.6), Some(0.6)),
            ],
        },
        Load {
            name: "GET -c 50 -P 16",
            unit: "requests/s",
            client: |bed| redis_benchmark(bed, 1_000_000, &["-c", "50", "-P", "16"]),
            targets: &[
                (Figure::Rate, Some(1.2), None),
                (Figure::P99, Some(1.0), None),
                (Figure::Processor, Some(0.6), Some(0.6)),
            ],
        },
    ],
    against: Way::Kernel,
};

/// A file of 1 KiB from nginx as one process.
pub(super) const NGINX: Subject = Subject {
    server: nginx,
    loads: &[
        Load {
            name: "keepalive",
            unit: "requests/s",
            client: |bed| wrk(bed, &[]),
            targets: &[
                (Figure::Rate, Some(1.7), None),
                (Figure::P99, Some(1.0), None),
                (Figure::Processor, Some(0.6), Some(0.6)),
            ],
        },
        Load {
            name: "close",
            unit: "requests/s",
            client: |bed| wrk(bed, &["-H", "Connection: close"]),
            targets: &[
                (Figure::Rate, Some(2.2), None),
                (Figure::P99, Some(1.0), None),
                (Figure::Processor, Some(0.6), Some(0.6)),
            ],
        },
    ],
    against: Way::Kernel,
};

/// One stream of iperf3 in each direction.
pub(super) const BULK: Subject = Subject {
    server: |bed| {
        let mut iperf = bed.program(Side::Server, "iperf3");
        iperf.args(["-s", "-B", &bed.ipv4(Side::Server)]);
        iperf.args(["-p", &PORT.to_string()]);
        Ok(iperf)
    },
    loads: &[
        Load {
            name: "to the server",
            unit: "Gbit/s",
            client: |bed| iperf(bed, &[]),
            targets: &[
                (Figure::Rate, Some(1.0), Some(1.0)),
                (Figure::Processor, None, None),
            ],
        },
        Load {
            name: "from the server",
            unit: "Gbit/s",
            client: |bed| iperf(bed, &["-R"]),
            targets: &[
                (Figure::Rate, Some(1.0), Some(1.0)),
                (Figure::Processor, None, None),
            ],
        },
    ],
    against: Way::Plain,
};

fn exchanges(bed: &Testbed, connections: &str, count: &str) -> Result<Sample> {
    let mut client = example(bed, Side::Client, Column::Native, "tcprr")?;
    client.cpu(1).args(["--json", "--connections", connections]);
    client.args(["--count", count, "--port", &PORT.to_string()]);
    let json = client.arg(bed.ipv4(Side::Server)).run()?.check()?.json()?;
    Ok(Sample {
        rate: field(&json, "rate"),
        p50: field(&json, "p50_us"),
        p99: field(&json, "p99_us"),
        done: field(&json, "count"),
    })
}

/// `redis-benchmark --csv`: "test","rps","avg","min","p50","p95","p99","max", times in ms.
fn redis_benchmark(bed: &Testbed, count: u32, arguments: &[&str]) -> Result<Sample> {
    let mut client = bed.program(Side::Client, "redis-benchmark");
    client.cpu(1).args(["-h", &bed.ipv4(Side::Server)]);
    client.args(["-p", &PORT.to_string(), "-t", "get", "--csv"]);
    client.args(["-n", &count.to_string()]).args(arguments);
    let run = client.run()?.check()?;
    let line = run.stdout.lines().find(|line| line.starts_with("\"GET\""));
    let values: Vec<f64> = line
        .unwrap_or_default()
        .split(',')
        .filter_map(|value| value.trim_matches('"').parse().ok())
        .collect();
    let [rate, _, _, p50, _, p99, ..] = values.as_slice() else {
        return Err(format!("redis-benchmark: {}{}", run.stdout, run.stderr).into());
    };
    Ok(Sample {
        rate: *rate,
        p50: p50 * 1e3,
        p99: p99 * 1e3,
        done: f64::from(count),
    })
}

fn nginx(bed: &Testbed) -> Result<Program<'_>> {
    let folder = bed.folder().display();
    let config = bed.folder().join("nginx.conf");
    fs::write(bed.folder().join("1k"), vec![b'x'; 1024])?;
    let host = bed.ipv4(Side::Server);
    let paths: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .iter()
        .map(|name| format!("{name}_temp_path {folder}/{name};"))
        .collect();
    fs::write(
        &config,
        format!(
            "daemon off; master_process off; pid {folder}/pid; error_log stderr; user root;\n\
             events {{ worker_connections 1024; }}\n\
             http {{ access_log off; sendfile on; keepalive_requests 100000000; {paths}\n\
             server {{ listen {host}:{PORT} backlog=1024; root {folder}; }} }}\n"
        ),
    )?;
    let mut nginx = bed.program(Side::Server, "/usr/sbin/nginx");
    nginx.arg("-c").arg(&config);
    Ok(nginx)
}

fn wrk(bed: &Testbed, arguments: &[&str]) -> Result<Sample> {
    let mut client = bed.program(Side::Client, "wrk");
    client.cpu(1).args(["-t1", "-c64", "-d2s", "--latency"]);
    client.args(arguments);
    client.arg(format!("http://{}:{PORT}/1k", bed.ipv4(Side::Server)));
    let run = client.run()?.check()?;
    parse_wrk(&run.stdout).ok_or_else(|| format!("wrk: {}{}", run.stdout, run.stderr).into())
}

/// What wrk prints; `None` when a request failed or something is missing.
fn parse_wrk(text: &str) -> Option<Sample> {
    if text.contains("Non-2xx") || text.contains("Socket errors") {
        return None;
    }
    let words =
        |line: &str| -> Vec<String> { line.split_whitespace().map(str::to_owned).collect() };
    let after = |name: &str| {
        let line = text.lines().find(|line| line.trim().starts_with(name))?;
        words(line).get(1).cloned()
    };
    let microseconds = |time: String| -> Option<f64> {
        let units = [("us", 1.0), ("ms", 1e3), ("s", 1e6)];
        let (unit, factor) = units.iter().find(|(unit, _)| time.ends_with(unit))?;
        Some(time.strip_suffix(unit)?.parse::<f64>().ok()? * factor)
    };
    let total = text.lines().find(|line| line.contains(" requests in "))?;
    Some(Sample {
        rate: after("Requests/sec:")?.parse().ok()?,
        p50: microseconds(after("50%")?)?,
        p99: microseconds(after("99%")?)?,
        done: words(total).first()?.parse().ok()?,
    })
}

fn iperf(bed: &Testbed, arguments: &[&str]) -> Result<Sample> {
    let mut client = bed.program(Side::Client, "iperf3");
    client.cpu(1).args(["-c", &bed.ipv4(Side::Server), "-J"]);
    client
        .args(["-p", &PORT.to_string(), "-t", "2"])
        .args(arguments);
    let run = client.run()?.check()?;
    let json: serde_json::Value = serde_json::from_str(&run.stdout)?;
    let received = &json["end"]["sum_received"];
    Ok(Sample {
        rate: field(received, "bits_per_second") / 1e9,
        done: field(received, "bytes") / f64::from(1 << 20),
        ..Sample::default()
    })
}

/// The four figures of a load in one way.
fn measure(subject: &Subject, load: &Load, way: Way) -> Result<[(Figure, f64); 4]> {
    let bed = Testbed::new()?;
    let mut server = (subject.server)(&bed)?;
    let _running = way.start(&bed, &mut server)?;
    let before = server_processor_time(&bed);
    let sample = (load.client)(&bed)?;
    // What spins goes on for a while after the last request.
    let used: Duration = server_processor_time(&bed).saturating_sub(before);
    Ok([
        (Figure::Rate, sample.rate),
        (Figure::P50, sample.p50),
        (Figure::P99, sample.p99),
        (
            Figure::Processor,
            ratio(used.as_nanos() as f64, sample.done),
        ),
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
                rows.push(row(load, *figure, &medians, (of(way), base), bound));
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
        }
    }
}

#[cfg(test)]
mod tests {
    use super::parse_wrk;

    #[test]
    fn wrk_is_read_and_failures_are_none() {
        let text = "Running 2s test @ http://198.18.0.1:1/1k\n  1 threads and 64 connections\n\
                    \x20 Thread Stats   Avg      Stdev     Max   +/- Stdev\n\
                    \x20   Latency   645.23us  101.11us   4.12ms   90.1%\n\
                    \x20 Latency Distribution\n     50%  620.00us\n     75%  680.00us\n\
                    \x20    90%  740.00us\n     99%    1.10ms\n\
                    \x20 196608 requests in 2.00s, 240.00MB read\n\
                    Requests/sec:  98304.12\nTransfer/sec:    120.00MB\n";
        let sample = parse_wrk(text).expect("it is complete");
        assert_eq!((sample.p50, sample.p99), (620.0, 1100.0));
        assert_eq!((sample.rate, sample.done), (98304.12, 196_608.0));
        assert!(parse_wrk(&format!("{text}  Non-2xx or 3xx responses: 5\n")).is_none());
    }
}
