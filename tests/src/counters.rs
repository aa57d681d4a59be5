//! What the kernel carried, and how much processor time a process used.

use std::collections::BTreeMap;
use std::fs;
use std::time::Duration;

use crate::Result;
use crate::program::wait_until;
use crate::testbed::{Side, Testbed};

/// UDP datagrams that the kernel of a namespace delivered to and took from sockets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct KernelUdp {
    /// Datagrams delivered to sockets, IPv4 and IPv6.
    pub received: u64,
    /// Datagrams sent by sockets, IPv4 and IPv6.
    pub sent: u64,
    /// Datagrams for ports that nobody had.
    pub no_port: u64,
    /// Datagrams dropped because a socket's buffer was full.
    pub full: u64,
}

impl KernelUdp {
    /// Counters of a namespace now.
    ///
    /// # Errors
    /// When `/proc/net` cannot be read there.
    pub fn read(bed: &Testbed, side: Side) -> Result<Self> {
        let mut cat = bed.program(side, "cat");
        let text = cat
            .args(["/proc/net/snmp", "/proc/net/snmp6"])
            .run()?
            .check()?
            .stdout;
        let all = parse_snmp(&text);
        let sum = |name: &str| {
            ["Udp", "Udp6"]
                .iter()
                .filter_map(|family| all.get(&format!("{family}{name}")))
                .sum()
        };
        Ok(Self {
            received: sum("InDatagrams"),
            sent: sum("OutDatagrams"),
            no_port: sum("NoPorts"),
            full: sum("RcvbufErrors"),
        })
    }

    /// What was added since `earlier`.
    #[must_use]
    pub fn since(self, earlier: Self) -> Self {
        Self {
            received: self.received.saturating_sub(earlier.received),
            sent: self.sent.saturating_sub(earlier.sent),
            no_port: self.no_port.saturating_sub(earlier.no_port),
            full: self.full.saturating_sub(earlier.full),
        }
    }

    /// Datagrams in both directions.
    #[must_use]
    pub fn total(self) -> u64 {
        self.received + self.sent
    }
}

/// TCP segments that the kernel of a namespace has received and sent.
///
/// # Errors
/// When `/proc/net` cannot be read there.
pub fn kernel_segments(bed: &Testbed, side: Side) -> Result<u64> {
    let mut cat = bed.program(side, "cat");
    let text = cat.args(["/proc/net/snmp"]).run()?.check()?.stdout;
    let all = parse_snmp(&text);
    let value = |name: &str| all.get(name).copied().unwrap_or(0);
    Ok(value("TcpInSegs") + value("TcpOutSegs"))
}

/// `Udp: InDatagrams …` line pairs and `Udp6InDatagrams  n` lines as one map.
fn parse_snmp(text: &str) -> BTreeMap<String, u64> {
    let mut all = BTreeMap::new();
    let mut names: Option<(&str, Vec<&str>)> = None;
    for line in text.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words.as_slice() {
            [family, rest @ ..] if family.ends_with(':') => match names.take() {
                Some((of, heads)) if of == *family => {
                    for (head, value) in heads.iter().zip(rest) {
                        let name = format!("{}{head}", family.trim_end_matches(':'));
                        all.insert(name, value.parse().unwrap_or(0));
                    }
                }
                _ => names = Some((family, rest.to_vec())),
            },
            [name, value] => {
                all.insert((*name).to_owned(), value.parse().unwrap_or(0));
            }
            _ => {}
        }
    }
    all
}

/// Frames through a side's veth end: (received, sent), by the bypass and by the kernel together.
///
/// # Errors
/// When `ip` fails.
pub fn interface_frames(bed: &Testbed, side: Side) -> Result<(u64, u64)> {
    let text = bed.ip(
        side,
        &["-s", "-j", "link", "show", "dev", bed.interface(side)],
    )?;
    let json: serde_json::Value = serde_json::from_str(&text)?;
    let count = |way: &str| json[0]["stats64"][way]["packets"].as_u64().unwrap_or(0);
    Ok((count("rx"), count("tx")))
}

/// Processor time of a process and its threads so far; zero when it is gone.
#[must_use]
pub fn processor_time(pid: u32) -> Duration {
    let Ok(tasks) = fs::read_dir(format!("/proc/{pid}/task")) else {
        return Duration::ZERO;
    };
    let nanoseconds = tasks
        .flatten()
        .filter_map(|task| fs::read_to_string(task.path().join("schedstat")).ok())
        .filter_map(|text| text.split_whitespace().next()?.parse::<u64>().ok())
        .sum();
    Duration::from_nanos(nanoseconds)
}

/// Waits until a UDP socket of the namespace is bound to `port`.
///
/// # Errors
/// After 20 s.
pub fn wait_for_udp_port(bed: &Testbed, side: Side, port: u16) -> Result<()> {
    wait_for_port(bed, side, port, ["/proc/net/udp", "/proc/net/udp6"], None)
}

/// Waits until a TCP socket of the namespace listens on `port`.
///
/// # Errors
/// After 20 s.
pub fn wait_for_tcp_port(bed: &Testbed, side: Side, port: u16) -> Result<()> {
    wait_for_port(
        bed,
        side,
        port,
        ["/proc/net/tcp", "/proc/net/tcp6"],
        Some("0A"),
    )
}

fn wait_for_port(
    bed: &Testbed,
    side: Side,
    port: u16,
    files: [&str; 2],
    state: Option<&str>,
) -> Result<()> {
    let wanted = format!(":{port:04X}");
    wait_until(
        &format!("port {port} is bound"),
        Duration::from_secs(20),
        || {
            let text = bed
                .program(side, "cat")
                .args(files)
                .run()
                .map(|run| run.stdout);
            text.unwrap_or_default().lines().any(|line| {
                let words: Vec<&str> = line.split_whitespace().collect();
                words.get(1).is_some_and(|local| local.ends_with(&wanted))
                    && state.is_none_or(|state| words.get(3) == Some(&state))
            })
        },
    )
}

#[cfg(test)]
mod tests {
    use super::parse_snmp;

    #[test]
    fn snmp_lines_become_names_with_their_family() {
        let text = "Udp: InDatagrams NoPorts\nUdp: 7 2\nUdpLite: InDatagrams\nUdpLite: 1\n\
                    Udp6InDatagrams   \t5\n";
        let all = parse_snmp(text);
        assert_eq!(all["UdpInDatagrams"], 7);
        assert_eq!(all["UdpNoPorts"], 2);
        assert_eq!(all["UdpLiteInDatagrams"], 1);
        assert_eq!(all["Udp6InDatagrams"], 5);
    }
}
