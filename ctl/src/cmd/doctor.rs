//! `bypassctl doctor`: tests this machine and says what to do.

use std::fs;

use bypass_backends::af_xdp::{Interface, interfaces};
use bypass_proto::control::QueryKind;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};
use serde_json::{Value, json};

use super::Json;
use crate::{Failure, render, source};

/// Largest MTU that the larger chunks hold, with headers and the kernel's headroom.
const LARGEST_MTU: u32 = 3498;

#[derive(Default)]
struct Findings(Vec<Value>);

impl Findings {
    fn add(&mut self, state: &str, what: impl Into<String>, todo: &str) {
        self.0.push(json!({ "state": state, "what": what.into(), "do": todo }));
    }

    fn test(&mut self, good: bool, what: impl Into<String>, todo: &str) {
        if good { self.add("ok", what, "") } else { self.add("fail", what, todo) }
    }
}

/// Runs every test. Exit code 1 when one fails.
pub fn execute(json: &Json) -> Result<(), Failure> {
    let mut findings = Findings::default();
    kernel(&mut findings);
    for interface in interfaces().iter().filter(|interface| !interface.loopback) {
        network(&mut findings, interface);
    }
    firewall(&mut findings);
    programs(&mut findings);
    let failed = findings.0.iter().any(|finding| finding["state"] == "fail");
    let list = findings.0;
    if json.json {
        render::json(&Value::Array(list));
    } else {
        render::objects(&[("", "state"), ("WHAT", "what"), ("WHAT TO DO", "do")], &list);
    }
    if failed { Err(Failure::new("at least one test failed")) } else { Ok(()) }
}

fn kernel(findings: &mut Findings) {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let release = release.trim();
    let mut numbers = release.split(['.', '-']).filter_map(|part| part.parse::<u32>().ok());
    let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    findings.test(version >= (6, 1), format!("kernel {release}"), "use Linux 6.1 or newer");
    let root = rustix::process::geteuid().is_root();
    if root {
        findings.add("ok", "running as root: a daemon can be started", "");
    } else {
        findings.add("warn", "not root: only a running daemon can serve you", "start bypassctl daemon as root");
    }
    match socket_with(AddressFamily::XDP, SocketType::RAW, SocketFlags::CLOEXEC, None) {
        Ok(_) => findings.add("ok", "AF_XDP sockets can be made", ""),
        Err(rustix::io::Errno::PERM) if !root => {
            findings.add("warn", "AF_XDP: not permitted for this user", "the daemon makes them for you");
        }
        Err(error) => findings.add(
            "fail",
            format!("AF_XDP sockets: {error}"),
            "use a kernel with CONFIG_XDP_SOCKETS and run as root",
        ),
    }
}

fn network(findings: &mut Findings, interface: &Interface) {
    let name = &interface.name;
    let facts = format!(
        "{name}: driver {}, MTU {}, {} queues",
        if interface.driver.is_empty() { "unknown" } else { &interface.driver },
        interface.mtu,
        interface.queues
    );
    if !interface.up {
        findings.add("warn", format!("{facts}, down"), "ip link set up");
    } else if interface.mtu > LARGEST_MTU {
        findings.add("fail", facts, "set the MTU to 3498 or less: frames must fit one chunk");
    } else {
        findings.add("ok", facts, "");
    }
}

fn firewall(findings: &mut Findings) {
    let tables = fs::read_to_string("/proc/net/ip_tables_names").unwrap_or_default();
    if tables.trim().is_empty() {
        findings.add("ok", "no iptables tables in use", "");
    } else {
        findings.add(
            "warn",
            "iptables tables are in use",
            "their rules do not see accelerated packets: keep such ports in the kernel by a rule",
        );
    }
}

fn programs(findings: &mut Findings) {
    match super::run::library() {
        Some(path) => findings.add("ok", format!("library {}", path.display()), ""),
        None => findings.add("fail", "libbypass.so not found", "put it beside bypassctl or in ../lib"),
    }
    match source::query(QueryKind::Daemon) {
        Ok(daemon) => {
            findings.add("ok", format!("daemon {} answers", render::cell(&daemon["pid"])), "");
            if !daemon["config_error"].is_null() {
                let error = render::cell(&daemon["config_error"]);
                findings.add("fail", format!("configuration: {error}"), "correct the file");
            }
        }
        Err(_) => findings.add("ok", "no daemon: the first program of root starts one", ""),
    }
    if let Ok(Value::Array(list)) = source::query(QueryKind::Interfaces) {
        for interface in list.iter().filter(|interface| !interface["reason"].is_null()) {
            let text = format!(
                "{} has no backend: {}",
                render::cell(&interface["name"]),
                render::cell(&interface["reason"])
            );
            findings.add("warn", text, "");
        }
    }
}
