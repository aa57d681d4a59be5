//! Servers of the tests: Debian's name servers with a configuration, `dnsperf` as their client, and
//! when a TCP server is ready.

use std::fs;
use std::time::Duration;

use crate::counters::{processor_time, wait_for_tcp_port, wait_for_udp_port};
use crate::program::{Column, Running, wait_until};
use crate::testbed::{Side, Testbed};
use crate::{Result, daemon, paths};

/// Names in the zone `bypass.test`: `h0` to `h99`.
const NAMES: u32 = 100;

/// A name server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NameServer {
    /// knotd: threads, recvmmsg and sendmmsg.
    Knot,
    /// nsd: forked processes, recvmmsg or recvfrom.
    Nsd,
    /// unbound: threads, recvfrom; answers from local data.
    Unbound,
}

impl NameServer {
    /// Name of its program.
    #[must_use]
    pub fn program(self) -> &'static str {
        match self {
            Self::Knot => "knotd",
            Self::Nsd => "nsd",
            Self::Unbound => "unbound",
        }
    }

    /// Starts it on the IPv4 address of a side, with this many threads or processes.
    ///
    /// # Errors
    /// When it does not bind its port in time; the text has what it printed.
    pub fn start(
        self,
        bed: &Testbed,
        side: Side,
        column: Column,
        port: u16,
        workers: u32,
    ) -> Result<Running> {
        write_zone(bed)?;
        let config = bed.folder().join(format!("{}-{port}.conf", self.program()));
        let folder = bed.folder().join(format!("{}-{port}", self.program()));
        fs::create_dir_all(&folder)?;
        let values = Values {
            bed,
            address: bed.ipv4(side),
            port,
            workers,
            folder,
        };
        fs::write(&config, self.configuration(&values))?;
        let mut program = bed.program(side, self.program());
        program.column(column);
        match self {
            Self::Knot => program.arg("-c").arg(&config),
            Self::Nsd => program.args(["-d", "-c"]).arg(&config),
            Self::Unbound => program.args(["-d", "-c"]).arg(&config),
        };
        let mut running = program.spawn()?;
        if let Err(error) = wait_for_udp_port(bed, side, port) {
            let state = if running.is_running() {
                "runs"
            } else {
                "has ended"
            };
            let text = format!("{}{}", running.stdout(), running.stderr());
            return Err(format!("{} {state}: {error}\n{text}", self.program()).into());
        }
        Ok(running)
    }

    fn configuration(self, values: &Values<'_>) -> String {
        match self {
            Self::Knot => values.knot(),
            Self::Nsd => values.nsd(),
            Self::Unbound => values.unbound(None),
        }
    }
}

/// Starts unbound as a forwarder for `bypass.test` to `upstream`: a socket for each query.
///
/// # Errors
/// When it does not bind its port in time.
pub fn start_forwarder(
    bed: &Testbed,
    column: Column,
    port: u16,
    upstream: (&str, u16),
) -> Result<Running> {
    let config = bed.folder().join(format!("forwarder-{port}.conf"));
    let folder = bed.folder().join(format!("forwarder-{port}"));
    fs::create_dir_all(&folder)?;
    let address = bed.ipv4(Side::Server);
    let values = Values {
        bed,
        address,
        port,
        workers: 1,
        folder,
    };
    fs::write(&config, values.unbound(Some(upstream)))?;
    let mut program = bed.program(Side::Server, "unbound");
    let running = program
        .column(column)
        .args(["-d", "-c"])
        .arg(&config)
        .spawn()?;
    wait_for_udp_port(bed, Side::Server, port)?;
    Ok(running)
}

/// What the templates fill in.
struct Values<'a> {
    bed: &'a Testbed,
    address: String,
    port: u16,
    workers: u32,
    folder: std::path::PathBuf,
}

impl Values<'_> {
    fn knot(&self) -> String {
        let Self {
            address,
            port,
            workers,
            ..
        } = self;
        let (folder, zone) = (self.folder.display(), self.bed.folder().display());
        format!(
            "server:\n  rundir: \"{folder}\"\n  listen: {address}@{port}\n\
             \x20 udp-workers: {workers}\n  tcp-workers: 1\n  background-workers: 1\n\
             log:\n  - target: stderr\n    any: warning\n\
             database:\n  storage: \"{folder}\"\n\
             zone:\n  - domain: bypass.test\n    storage: \"{zone}\"\n    file: \"bypass.zone\"\n\
             \x20   journal-content: none\n    zonefile-sync: -1\n"
        )
    }

    fn nsd(&self) -> String {
        let Self {
            address,
            port,
            workers,
            ..
        } = self;
        let (folder, zone) = (self.folder.display(), self.bed.folder().display());
        format!(
            "server:\n  ip-address: {address}@{port}\n  server-count: {workers}\n\
             \x20 reuseport: yes\n  username: \"\"\n  zonesdir: \"{zone}\"\n  pidfile: \"\"\n\
             \x20 database: \"\"\n  xfrdfile: \"{folder}/xfrd\"\n  zonelistfile: \"{folder}/zones\"\n\
             \x20 xfrdir: \"{folder}\"\n  rrl-ratelimit: 0\n  rrl-whitelist-ratelimit: 0\n\
             remote-control:\n  control-enable: no\n\
             zone:\n  name: bypass.test\n  zonefile: bypass.zone\n"
        )
    }

    fn unbound(&self, upstream: Option<(&str, u16)>) -> String {
        let Self {
            address,
            port,
            workers,
            ..
        } = self;
        let folder = self.folder.display();
        let mut text = format!(
            "server:\n  interface: {address}\n  port: {port}\n  num-threads: {workers}\n\
             \x20 so-reuseport: yes\n  username: \"\"\n  chroot: \"\"\n  directory: \"{folder}\"\n\
             \x20 pidfile: \"\"\n  use-syslog: no\n  logfile: \"\"\n  do-daemonize: no\n\
             \x20 module-config: \"iterator\"\n  access-control: 198.18.0.0/15 allow\n\
             \x20 access-control: 127.0.0.0/8 allow\n  do-not-query-localhost: no\n\
             \x20 local-zone: \"test.\" nodefault\n"
        );
        if let Some((host, at)) = upstream {
            text += "remote-control:\n  control-enable: no\n";
            text += &format!(
                "stub-zone:\n  name: \"bypass.test\"\n  stub-addr: {host}@{at}\n  stub-prime: no\n"
            );
            return text;
        }
        text += "  local-zone: \"bypass.test.\" static\n";
        for name in 0..NAMES {
            text += &format!("  local-data: \"h{name}.bypass.test. A 192.0.2.{name}\"\n");
        }
        text + "remote-control:\n  control-enable: no\n"
    }
}

/// `bypass.zone` with the names, `web` as the client side, and `queries` for dnsperf.
fn write_zone(bed: &Testbed) -> Result<()> {
    let client = bed.ipv4(Side::Client);
    let mut zone = format!(
        "$ORIGIN bypass.test.\n$TTL 3600\n@ SOA ns hostmaster 1 3600 600 86400 300\n@ NS ns\n\
         ns A {client}\nweb A {client}\n"
    );
    let mut queries = String::new();
    for name in 0..NAMES {
        zone += &format!("h{name} A 192.0.2.{name}\n");
        queries += &format!("h{name}.bypass.test A\n");
    }
    fs::write(bed.folder().join("bypass.zone"), zone)?;
    fs::write(bed.folder().join("queries"), queries)?;
    Ok(())
}

/// What dnsperf measured.
#[derive(Clone, Copy, Debug, Default)]
pub struct DnsResult {
    /// Queries sent.
    pub sent: u64,
    /// Queries answered.
    pub completed: u64,
    /// Answers with NOERROR.
    pub no_error: u64,
    /// Queries answered per second.
    pub rate: f64,
    /// Median time of an answer in microseconds; zero without `verbose`.
    pub p50_us: f64,
    /// 99th percentile of the time of an answer in microseconds; zero without `verbose`.
    pub p99_us: f64,
}

/// How dnsperf asks.
#[derive(Clone, Copy, Debug)]
pub struct DnsLoad {
    /// Seconds.
    pub seconds: u32,
    /// Client sockets.
    pub clients: u32,
    /// Threads.
    pub threads: u32,
    /// Queries in flight.
    pub outstanding: u32,
    /// Note the time of each answer, for the percentiles; slower.
    pub verbose: bool,
}

/// Runs dnsperf on the client side, on the plain kernel, against a server of the server side.
///
/// # Errors
/// When it fails or prints something else.
pub fn dnsperf(bed: &Testbed, port: u16, load: DnsLoad) -> Result<DnsResult> {
    let mut program = bed.program(Side::Client, "dnsperf");
    program.args(["-s", &bed.ipv4(Side::Server), "-p", &port.to_string()]);
    program.arg("-d").arg(bed.folder().join("queries"));
    program.args([
        "-l",
        &load.seconds.to_string(),
        "-c",
        &load.clients.to_string(),
    ]);
    program.args([
        "-T",
        &load.threads.to_string(),
        "-q",
        &load.outstanding.to_string(),
    ]);
    if load.verbose {
        program.arg("-v");
    }
    program.timeout(Duration::from_secs(u64::from(load.seconds) + 20));
    let run = program.run()?.check()?;
    parse_dnsperf(&run.stdout)
        .ok_or_else(|| format!("dnsperf: {}\n{}", run.stdout, run.stderr).into())
}

fn parse_dnsperf(text: &str) -> Option<DnsResult> {
    let after = |head: &str| {
        text.lines().find_map(|line| {
            line.trim()
                .strip_prefix(head)?
                .split_whitespace()
                .next()
                .map(str::to_owned)
        })
    };
    let codes = after("Response codes:").map_or(0, |_| {
        let line = text
            .lines()
            .find(|line| line.contains("Response codes:"))
            .unwrap_or("");
        let words: Vec<&str> = line.split_whitespace().collect();
        let at = words.iter().position(|word| *word == "NOERROR");
        at.and_then(|at| words.get(at + 1)?.parse().ok())
            .unwrap_or(0)
    });
    let mut times: Vec<f64> = text
        .lines()
        .filter_map(|line| {
            line.strip_prefix("> NOERROR ")?
                .rsplit(' ')
                .next()?
                .parse()
                .ok()
        })
        .collect();
    times.sort_by(f64::total_cmp);
    let percentile = |share: f64| {
        let at = (share * times.len() as f64) as usize;
        times
            .get(at.min(times.len().saturating_sub(1)))
            .map_or(0.0, |seconds| seconds * 1e6)
    };
    Some(DnsResult {
        sent: after("Queries sent:")?.parse().ok()?,
        completed: after("Queries completed:")?.parse().ok()?,
        no_error: codes,
        rate: after("Queries per second:")?.parse().ok()?,
        p50_us: percentile(0.5),
        p99_us: percentile(0.99),
    })
}

/// Waits until a TCP server of the server side listens on `port`, and, when it runs under the shim,
/// until connections to the port come to its stack: the kernel's listener is there first, and a
/// connection that the kernel accepts stays with it.
///
/// # Errors
/// After 20 s.
pub fn wait_for_listener(bed: &Testbed, port: u16, shim: bool) -> Result<()> {
    wait_for_tcp_port(bed, Side::Server, port)?;
    if shim {
        wait_for_filter(bed, port)?;
    }
    Ok(())
}

/// Waits until what comes to `port` of the server side comes to a stack. A program that starts the
/// daemon has the port before.
///
/// # Errors
/// After 20 s.
pub fn wait_for_filter(bed: &Testbed, port: u16) -> Result<()> {
    let end = format!(":{port}");
    let is_there = |filter: &serde_json::Value| {
        let local = filter["local"].as_str().unwrap_or_default();
        local.ends_with(&end)
    };
    wait_until("the filter of the port", Duration::from_secs(20), || {
        daemon::list(bed, &["filters", "list"]).is_ok_and(|filters| filters.iter().any(is_there))
    })
}

/// Processor time of everything on the server side so far, the daemon excepted.
#[must_use]
pub fn server_processor_time(bed: &Testbed) -> Duration {
    let program = paths::bypassctl();
    bed.processes(Side::Server)
        .into_iter()
        .filter(|pid| !daemon::runs(*pid, &program))
        .map(processor_time)
        .sum()
}

#[cfg(test)]
mod tests {
    use super::parse_dnsperf;

    #[test]
    fn dnsperf_statistics_are_read() {
        let text = "> NOERROR h1.bypass.test A 0.000050\n> NOERROR h2.bypass.test A 0.000150\n\
                    Statistics:\n\n  Queries sent:         1000\n\
                    \x20 Queries completed:    998 (99.80%)\n\
                    \x20 Response codes:       NOERROR 998 (100.00%)\n\
                    \x20 Queries per second:   4990.000000\n";
        let result = parse_dnsperf(text).expect("it is complete");
        assert_eq!(
            (result.sent, result.completed, result.no_error),
            (1000, 998, 998)
        );
        assert!((result.rate - 4990.0).abs() < 0.1);
        assert!((result.p99_us - 150.0).abs() < 0.1);
    }
}
