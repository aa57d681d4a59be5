//! `bypassctl sockets`: accelerated sockets, read from the stack images; with `--all` also those
//! that the kernel serves, from the process reports.

use bypass_proto::policy::{Address, Protocol};
use bypass_proto::report::{Record, ReportView, State};
use bypass_runtime::image;
use bypass_stack::inspect::{EndpointView, Image, MiniView};
use bypass_stack::{SocketAddress, TcpState};
use serde_json::{Value, json};

use crate::{Failure, render, source};

/// Accelerated sockets, like ss -uant.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  bypassctl sockets
  bypassctl sockets --all --json

RECV-Q and SEND-Q are bytes of a connection (unread; not acknowledged), connections and backlog of a
listener, datagrams of a UDP socket; RX and TX are segments or datagrams. A socket that several
processes hold has a line for each. One without a program waits to be accepted, is being opened, or
was closed and goes on (orphans, time waits). Connections that became the kernel's are with --all.")]
pub struct Sockets {
    /// Also the sockets of accelerated programs that the kernel serves.
    #[arg(long)]
    all: bool,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

impl Sockets {
    /// Prints the list.
    ///
    /// # Errors
    /// Exit code 3 when there are none.
    pub fn execute(&self) -> Result<(), Failure> {
        let pids = source::in_this_namespace();
        let reports = source::reports(&pids);
        let mut sockets = accelerated(&pids, &reports);
        if self.all {
            sockets.extend(in_the_kernel(&reports));
        }
        if self.json {
            render::json(&Value::Array(sockets));
            return Ok(());
        }
        if sockets.is_empty() {
            return Err(Failure::nothing(
                "no accelerated sockets: see bypassctl explain --all for the reasons",
            ));
        }
        let columns = [
            ("PROTO", "protocol"),
            ("STATE", "state"),
            ("RECV-Q", "recv_queued"),
            ("SEND-Q", "send_queued"),
            ("LOCAL", "local"),
            ("REMOTE", "remote"),
            ("BACKEND", "backend"),
            ("RX", "rx_packets"),
            ("TX", "tx_packets"),
            ("DROPS", "drops"),
            ("PID", "pid"),
            ("FD", "fd"),
            ("PROGRAM", "program"),
        ];
        render::objects(&columns, &sockets);
        Ok(())
    }
}

/// Every accelerated socket of every image, once for each process that holds it.
fn accelerated(pids: &[u32], reports: &[(u32, ReportView)]) -> Vec<Value> {
    let interfaces = source::interfaces().unwrap_or_default();
    let mut sockets = Vec::new();
    for held in source::memfds(image::NAME, pids) {
        let Some(copy) = held.read_image() else {
            continue;
        };
        let Ok(image) = Image::attach(copy.stack()) else {
            continue;
        };
        for endpoint in image.endpoints() {
            let mut holders = image
                .processes()
                .filter(|process| endpoint.is_held_by(process.id))
                .peekable();
            if holders.peek().is_none() {
                sockets.push(socket(&endpoint, None, reports, &interfaces));
            }
            sockets.extend(
                holders.map(|holder| socket(&endpoint, Some(holder.pid), reports, &interfaces)),
            );
        }
        sockets.extend(
            image
                .minisockets()
                .map(|mini| minisocket(mini, &interfaces)),
        );
    }
    sockets
}

/// `pid` is `None` for one that no program has: it waits to be accepted, or was closed and goes on.
fn socket(
    endpoint: &EndpointView,
    pid: Option<u32>,
    reports: &[(u32, ReportView)],
    interfaces: &[source::Interface],
) -> Value {
    let id = (endpoint.id.index, endpoint.id.generation);
    let record = reports
        .iter()
        .filter(|(owner, _)| Some(*owner) == pid)
        .flat_map(|(_, report)| &report.records)
        .find(|record| (record.endpoint_index, record.endpoint_generation) == id);
    let mut socket = json!({
        "pid": pid,
        "program": pid.map(source::program),
        "fd": record.map(|record| record.fd),
        "protocol": Protocol::Udp.word(),
        "local": text(endpoint.local),
        "remote": endpoint.remote.map(text),
        "backend": source::backend_of(endpoint.local, interfaces),
        "state": if endpoint.remote.is_some() { "connected" } else { "bound" },
        "recv_queued": endpoint.queued,
        "send_queued": 0,
        "recv_queued_bytes": endpoint.queued_bytes,
        "drops": endpoint.drops,
        "rx_packets": endpoint.rx_datagrams,
        "tx_packets": endpoint.tx_datagrams,
    });
    if let (Some(state), Some(stream)) = (endpoint.tcp, endpoint.stream) {
        socket["protocol"] = Protocol::Tcp.word().into();
        socket["state"] = state_word(state).into();
        socket["recv_queued"] = stream.recv_queued.into();
        socket["send_queued"] = stream.send_queued.into();
        socket["rx_packets"] = stream.segments_in.into();
        socket["tx_packets"] = stream.segments_out.into();
    }
    socket
}

/// A handshake of a listener's, or a time wait. Their segments are not counted.
fn minisocket(mini: MiniView, interfaces: &[source::Interface]) -> Value {
    json!({
        "pid": null, "program": null, "fd": null, "protocol": Protocol::Tcp.word(),
        "local": text(mini.local), "remote": text(mini.remote),
        "backend": source::backend_of(mini.local, interfaces),
        "state": state_word(mini.state), "recv_queued": 0, "send_queued": 0,
        "recv_queued_bytes": 0, "drops": 0, "rx_packets": null, "tx_packets": null,
    })
}

/// A state as ss names it in its filters.
fn state_word(state: TcpState) -> &'static str {
    match state {
        TcpState::Established => "established",
        TcpState::SynSent => "syn-sent",
        TcpState::SynReceived => "syn-recv",
        TcpState::FinWait1 => "fin-wait-1",
        TcpState::FinWait2 => "fin-wait-2",
        TcpState::TimeWait => "time-wait",
        TcpState::Closed => "closed",
        TcpState::CloseWait => "close-wait",
        TcpState::LastAck => "last-ack",
        TcpState::Listen => "listening",
        TcpState::Closing => "closing",
    }
}

/// What the reports say of sockets that the kernel serves. Their traffic is not known here.
fn in_the_kernel(reports: &[(u32, ReportView)]) -> impl Iterator<Item = Value> {
    reports.iter().flat_map(|(pid, report)| {
        let kernel = |record: &&Record| record.state() == Some(State::Kernel);
        report.records.iter().filter(kernel).map(move |record| {
            let remote = record.remote();
            let state = match (record.role, remote) {
                // The report follows the addresses of sockets that may be accelerated only.
                (0, _) => None,
                (_, Some(_)) => Some("connected"),
                (_, None) => Some("bound"),
            };
            json!({
                "pid": pid, "program": source::program(*pid), "fd": record.fd,
                "protocol": record.protocol().map(Protocol::word),
                "local": (record.role != 0).then(|| record.local().to_string()),
                "remote": remote.map(|remote| remote.to_string()),
                "backend": "kernel", "state": state,
                "recv_queued": null, "send_queued": null, "recv_queued_bytes": null, "drops": null,
                "rx_packets": null, "tx_packets": null,
            })
        })
    })
}

fn text(address: SocketAddress) -> String {
    Address {
        ip: address.ip.0,
        port: address.port,
    }
    .to_string()
}
