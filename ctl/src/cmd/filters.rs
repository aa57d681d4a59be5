//! `bypassctl filters` and `bypassctl shutdown`.

use std::net::SocketAddr;

use bypass_proto::control::{QueryKind, Request, RequestKind};
use bypass_proto::policy::Address;
use serde_json::Value;

use super::Json;
use crate::{Failure, render, source};

/// Filters: what is led past the kernel.
#[derive(Debug, clap::Subcommand)]
pub enum Filters {
    /// Every filter with its owner, backend, packets and bytes.
    List(Json),
    /// Keep an address in the kernel whatever programs ask for.
    #[command(after_help = "Example:\n  bypassctl filters add udp 198.18.0.1:53")]
    Add {
        /// tcp or udp.
        #[arg(value_parser = ["tcp", "udp"])]
        protocol: String,
        /// Local address and port; 0.0.0.0 or [::] = any.
        local: SocketAddr,
    },
    /// Remove a static filter.
    Del {
        /// Its number in `filters list`.
        id: u32,
    },
}

impl Filters {
    /// Runs the command.
    pub fn execute(&self) -> Result<(), Failure> {
        match self {
            Self::List(json) => list(json),
            Self::Add { protocol, local } => {
                let address = Address::new(local.ip(), local.port());
                let request = Request {
                    local: address.ip,
                    local_port: address.port,
                    protocol: if protocol == "tcp" { 6 } else { 17 },
                    family: if local.is_ipv4() { 0 } else { 2 },
                    keep_in_kernel: 1,
                    ..Request::new(RequestKind::AddStatic)
                };
                let answer = source::ask(&request)?;
                render::line(&format!("static filter {}", answer["filter"]));
                Ok(())
            }
            Self::Del { id } => {
                let request = Request { filter: *id, ..Request::new(RequestKind::RemoveStatic) };
                source::ask(&request).map(drop)
            }
        }
    }
}

fn list(json: &Json) -> Result<(), Failure> {
    let answer = match source::query(QueryKind::Filters) {
        // Without a daemon nothing is steered: an empty list is the truth.
        Err(failure) if failure.code == 3 && json.json => Value::Array(Vec::new()),
        answer => answer?,
    };
    if json.json {
        render::json(&answer);
        return Ok(());
    }
    let list = answer.as_array().map_or(&[][..], Vec::as_slice);
    if list.is_empty() {
        return Err(Failure::nothing("no filters: no accelerated socket has been used yet"));
    }
    let columns = [
        ("ID", "id"),
        ("PROTO", "protocol"),
        ("LOCAL", "local"),
        ("REMOTE", "remote"),
        ("INTERFACE", "interface"),
        ("BACKEND", "backend"),
        ("ACTION", "action"),
        ("PID", "owner.pid"),
        ("PROGRAM", "owner.program"),
        ("PACKETS", "packets"),
        ("BYTES", "bytes"),
        ("STATE", "state"),
    ];
    render::objects(&columns, list);
    Ok(())
}

/// Stops the daemon.
pub fn shutdown() -> Result<(), Failure> {
    source::ask(&Request::new(RequestKind::Shutdown)).map(drop)
}
