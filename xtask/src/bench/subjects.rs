//! The servers of `tcp-rr`, `redis`, `nginx`, `memcached` and `tcp-bulk`, and the programs that
//! load them.

use std::fs;

use bypass_tests::Result;
use bypass_tests::program::{Column, Program};
use bypass_tests::testbed::{Side, Testbed};

use super::streams::{CLIENT_CPU, Figure, Load, PORT, Sample, Subject, Targets, Way};
use crate::measure::{example, field};

const ROUND_TRIPS: Targets = &[
    (Figure::P50, Some(0.5), Some(1.05)),
    (Figure::P99, Some(0.6), Some(1.05)),
    (Figure::Processor, Some(0.6), Some(0.6)),
    (Figure::Both, None, None),
    (Figure::Client, None, None),
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
                (Figure::Both, None, None),
                (Figure::Client, None, None),
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
                (Figure::Both, None, None),
                (Figure::Client, None, None),
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
                (Figure::Both, None, None),
                (Figure::Client, None, None),
            ],
        },
    ],
    against: Way::Kernel,
};

/// A file of 1 KiB from nginx as one process.
pub(super) const NGINX: Subject = Subject {
    server: |bed| nginx(bed, "master_process off;"),
    loads: FILES,
    against: Way::Kernel,
};

/// The same from a master's two workers, on the server's one processor.
pub(super) const NGINX_WORKERS: Subject = Subject {
    server: |bed| nginx(bed, "worker_processes 2;"),
    loads: FILES,
    against: Way::Kernel,
};

const FILES: &[Load] = &[
    Load {
        name: "keepalive",
        unit: "requests/s",
        client: |bed| wrk(bed, &[]),
        targets: &[
            (Figure::Rate, Some(1.7), None),
            (Figure::P99, Some(1.0), None),
            (Figure::Processor, Some(0.6), Some(0.6)),
            (Figure::Both, None, None),
            (Figure::Client, None, None),
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
            (Figure::Both, None, None),
            (Figure::Client, None, None),
        ],
    },
];

/// GET and, one in ten, SET of 64 bytes over TCP and over UDP.
pub(super) const MEMCACHED: Subject = Subject {
    server: |bed| {
        let port = PORT.to_string();
        let mut memcached = bed.program(Side::Server, "memcached");
        memcached.args(["-u", "root", "-t", "1", "-l", &bed.ipv4(Side::Server)]);
        memcached.args(["-p", &port, "-U", &port]);
        Ok(memcached)
    },
    loads: &[
        Load {
            name: "TCP",
            unit: "requests/s",
            client: |bed| memaslap(bed, &[]),
            targets: KEYS,
        },
        Load {
            name: "UDP",
            unit: "requests/s",
            client: |bed| memaslap(bed, &["--udp"]),
            targets: KEYS,
        },
    ],
    against: Way::Kernel,
};

/// memaslap tells no times.
const KEYS: Targets = &[
    (Figure::Rate, Some(1.7), None),
    (Figure::Processor, Some(0.6), Some(0.6)),
    (Figure::Both, None, None),
    (Figure::Client, None, None),
];

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
    client
        .cpu(CLIENT_CPU)
        .args(["--json", "--connections", connections]);
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
    client.cpu(CLIENT_CPU).args(["-h", &bed.ipv4(Side::Server)]);
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

/// nginx, as this many processes.
fn nginx<'b>(bed: &'b Testbed, processes: &str) -> Result<Program<'b>> {
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
            "daemon off; {processes} pid {folder}/pid; error_log stderr; user root;\n\
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
    client
        .cpu(CLIENT_CPU)
        .args(["-t1", "-c64", "-d2s", "--latency"]);
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

/// `memcaslap` (memaslap before Debian 12): "Run time: 2.0s Ops: 135486 TPS: 67715 Net_rate: 75.7M/s".
fn memaslap(bed: &Testbed, arguments: &[&str]) -> Result<Sample> {
    let mut client = bed.program(Side::Client, "memcaslap");
    client.cpu(CLIENT_CPU).arg("-s");
    client.arg(format!("{}:{PORT}", bed.ipv4(Side::Server)));
    client.args(["-T", "1", "-c", "50", "-t", "2s", "-X", "64"]);
    let run = client.args(arguments).run()?.check()?;
    let after = |name: &str| {
        let words = run.stdout.split_whitespace();
        words.skip_while(|word| *word != name).nth(1)?.parse().ok()
    };
    let (Some(done), Some(rate)) = (after("Ops:"), after("TPS:")) else {
        return Err(format!("memcaslap: {}{}", run.stdout, run.stderr).into());
    };
    Ok(Sample {
        rate,
        done,
        ..Sample::default()
    })
}

fn iperf(bed: &Testbed, arguments: &[&str]) -> Result<Sample> {
    let mut client = bed.program(Side::Client, "iperf3");
    client
        .cpu(CLIENT_CPU)
        .args(["-c", &bed.ipv4(Side::Server), "-J"]);
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
