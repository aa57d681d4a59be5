//! `bypassctl sockets`: accelerated sockets, read from the stack images.

use bypass_proto::policy::Address;
use bypass_proto::report::{NAME as REPORT, ReportView};
use bypass_stack::SocketAddress;
use bypass_stack::inspect::{EndpointView, Image};
use serde_json::{Value, json};

use super::Json;
use crate::{Failure, render, source};

/// An address as text.
pub fn text(address: SocketAddress) -> String {
    Address { ip: address.ip.0, port: address.port }.to_string()
}

/// Every accelerated socket of every image.
pub fn all() -> Vec<Value> {
    let pids = source::pids();
    let reports: Vec<ReportView> = source::memfds(REPORT, &pids)
        .iter()
        .filter_map(|held| ReportView::read(&held.read()?).ok())
        .collect();
    let mut sockets = Vec::new();
    for held in source::memfds(bypass_runtime::image::NAME, &pids) {
        let Some(bytes) = held.read_stack() else { continue };
        let Ok(image) = Image::attach(bytes.bytes()) else { continue };
        for endpoint in image.endpoints() {
            for process in image.processes().filter(|process| endpoint.is_held_by(process.id)) {
                sockets.push(socket(&endpoint, process.pid, &reports));
            }
        }
    }
    sockets
}

fn socket(endpoint: &EndpointView, pid: u32, reports: &[ReportView]) -> Value {
    let fd = reports
        .iter()
        .filter(|report| report.header.pid == pid)
        .flat_map(|report| &report.records)
        .find(|record| {
            (record.endpoint_index, record.endpoint_generation)
                == (endpoint.id.index, endpoint.id.generation)
        })
        .map(|record| record.fd);
    json!({
        "pid": pid,
        "program": source::program(pid),
        "fd": fd,
        "protocol": "udp",
        "local": text(endpoint.local),
        "remote": endpoint.remote.map(text),
        "backend": "af_xdp",
        "state": if endpoint.remote.is_some() { "connected" } else { "bound" },
        "recv_queued": endpoint.queued,
        "recv_queued_bytes": endpoint.queued_bytes,
        "drops": endpoint.drops,
        "rx_packets": endpoint.rx_datagrams,
        "tx_packets": endpoint.tx_datagrams,
    })
}

/// Prints the list.
pub fn execute(json: &Json) -> Result<(), Failure> {
    let sockets = all();
    if json.json {
        render::json(&Value::Array(sockets));
        return Ok(());
    }
    if sockets.is_empty() {
        return Err(Failure::nothing("no accelerated sockets"));
    }
    let columns = [
        ("PROTO", "protocol"),
        ("STATE", "state"),
        ("RECV-Q", "recv_queued"),
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
