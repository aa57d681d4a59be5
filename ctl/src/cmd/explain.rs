//! `bypassctl explain`: each socket of a program, accelerated or why not.

use bypass_proto::policy::{Protocol, Role};
use bypass_proto::reason::FallThrough;
use bypass_proto::report::{Record, ReportView, State};
use bypass_stack::{IpAddress, SocketAddress};
use serde_json::{Value, json};

use super::dry_run::DryRun;
use crate::source::Interface;
use crate::{Failure, render, source};

/// Each socket of a program: accelerated, or why not.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  bypassctl explain 1234
  bypassctl explain --all --json
  bypassctl explain --dry-run -- knotd
  bypassctl explain --dry-run --config new.toml --user www-data \\
      --bind udp:198.18.0.1:53 --connect udp:198.18.0.2:4000 -- /usr/sbin/knotd

A rule's number is its place in the file, from 1; \"-\" is the built-in policy.")]
pub struct Explain {
    /// Process id.
    #[arg(conflicts_with_all = ["all", "dry_run"])]
    pid: Option<u32>,
    /// Every process of this network namespace that has the library.
    #[arg(long, conflicts_with = "dry_run")]
    all: bool,
    /// Ask the policy only: what would happen to sockets of this program.
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    asked: DryRun,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

impl Explain {
    /// Prints what is known.
    ///
    /// # Errors
    /// Exit code 3 when there are no sockets, 1 when a process is not to be seen, 2 when nothing
    /// is asked.
    pub fn execute(&self) -> Result<(), Failure> {
        if self.dry_run {
            return self.asked.execute(self.json);
        }
        if self.asked.is_given() {
            return Err(Failure::usage("these options need --dry-run"));
        }
        let pids = match (self.pid, self.all) {
            (Some(pid), _) => vec![pid],
            (None, true) => source::in_this_namespace(),
            (None, false) => {
                return Err(Failure::usage(
                    "name a process id, or --all, or --dry-run -- PROGRAM",
                ));
            }
        };
        let reports = source::reports(&pids);
        let interfaces = source::interfaces().unwrap_or_default();
        if self.json {
            let sockets = reports
                .iter()
                .flat_map(|(pid, report)| sockets(*pid, report, &interfaces));
            let sockets: Vec<Value> = sockets.collect();
            if let (Some(pid), true) = (self.pid, reports.is_empty()) {
                return Err(no_report(pid));
            }
            render::json(&Value::Array(sockets));
            return Ok(());
        }
        if reports.is_empty() {
            return Err(self.pid.map_or_else(
                || Failure::nothing("no process here has made a socket under libbypass.so"),
                no_report,
            ));
        }
        for (index, (pid, report)) in reports.iter().enumerate() {
            if index > 0 {
                render::line("");
            }
            print(*pid, report, &interfaces);
        }
        Ok(())
    }
}

/// Why a process has no report.
fn no_report(pid: u32) -> Failure {
    if !source::exists(pid) {
        return Failure::new(format!("there is no process {pid}"));
    }
    match source::has_library(pid) {
        None => Failure::new(format!(
            "process {pid} is not yours to look into: become its user or root"
        )),
        Some(true) => Failure::nothing(format!(
            "process {pid} has libbypass.so, but has made no socket yet"
        )),
        Some(false) => Failure::nothing(format!(
            "process {pid} runs without libbypass.so: all its sockets are the kernel's. Start it \
             with bypassctl run (static and setuid programs cannot be preloaded)"
        )),
    }
}

fn print(pid: u32, report: &ReportView, interfaces: &[Interface]) {
    let header = &report.header;
    render::line(&format!("{} (process {pid})", source::program(pid)));
    let config = header.config_text();
    if !config.is_empty() {
        render::line(&format!("  configuration: {config}"));
    }
    let kernel = report
        .records
        .iter()
        .filter(|record| record.state() == Some(State::Kernel));
    render::line(&format!(
        "  sockets now: {} accelerated, {} in the kernel; accelerated since the start: {}",
        report.records.len() - kernel.clone().count(),
        kernel.count(),
        header.accelerated
    ));
    if header.overflow > 0 {
        render::line(&format!(
            "  {} more sockets found no room in the report",
            header.overflow
        ));
    }
    let counts: Vec<String> = FallThrough::ALL
        .iter()
        .map(|reason| (reason, header.count_of(*reason)))
        // Every socket begins undecided: that says nothing.
        .filter(|(reason, count)| **reason != FallThrough::Undecided && *count > 0)
        .map(|(reason, count)| format!("{} {count}", reason.name()))
        .collect();
    if !counts.is_empty() {
        render::line(&format!(
            "  answers \"kernel\" since the start: {}",
            counts.join(", ")
        ));
    }
    let list: Vec<Value> = sockets(pid, report, interfaces).map(with_why).collect();
    if list.is_empty() {
        return;
    }
    let columns = [
        ("FD", "fd"),
        ("PROTO", "protocol"),
        ("IP", "family"),
        ("LOCAL", "local"),
        ("REMOTE", "remote"),
        ("BY", "role"),
        ("SERVED BY", "served_by"),
        ("RULE", "rule"),
        ("WHY, AND WHAT TO DO", "why"),
    ];
    render::objects(&columns, &list);
}

/// Adds the one cell that a person reads: sentence, error, advice.
pub(super) fn with_why(mut socket: Value) -> Value {
    let part = |field: &str| socket[field].as_str().unwrap_or_default();
    let mut why = part("sentence").to_owned();
    if let Some(errno) = socket["errno"].as_i64().filter(|errno| *errno != 0) {
        let errno = i32::try_from(errno).unwrap_or(0);
        why = format!("{why} ({})", std::io::Error::from_raw_os_error(errno));
    }
    if !part("advice").is_empty() {
        why = format!("{why} -> {}", part("advice"));
    }
    socket["why"] = if why.is_empty() {
        Value::Null
    } else {
        why.into()
    };
    socket
}

/// Who serves a socket and why, as the fields that all of `explain` share.
pub(super) fn verdict(reason: Option<FallThrough>, rule: Option<usize>) -> Value {
    let advice = reason
        .map(FallThrough::advice)
        .filter(|advice| !advice.is_empty());
    json!({
        "served_by": if reason.is_none() { "bypass" } else { "kernel" },
        "reason": reason.map(FallThrough::name),
        "sentence": reason.map(FallThrough::sentence),
        "advice": advice,
        "rule": rule.map(|index| index + 1),
    })
}

fn sockets(pid: u32, report: &ReportView, interfaces: &[Interface]) -> impl Iterator<Item = Value> {
    let config = report.header.config_text();
    report.records.iter().map(move |record| {
        let mut socket = socket(record, interfaces);
        socket["pid"] = pid.into();
        socket["program"] = source::program(pid).into();
        socket["start_time"] = report.header.start_time.into();
        socket["config"] = if config.is_empty() {
            Value::Null
        } else {
            config.as_str().into()
        };
        socket
    })
}

fn socket(record: &Record, interfaces: &[Interface]) -> Value {
    let accelerated = record.state() == Some(State::Accelerated);
    // A kernel socket of a reason that this version does not know is still a kernel socket.
    let mut socket = verdict(record.reason().filter(|_| !accelerated), record.rule());
    socket["served_by"] = if accelerated { "bypass" } else { "kernel" }.into();
    let local = record.local();
    let local = SocketAddress::new(IpAddress(local.ip), local.port);
    let facts = json!({
        "fd": record.fd,
        "protocol": record.protocol().map(Protocol::word),
        "family": (record.family != 0).then_some(record.family),
        "local": (record.role != 0).then(|| record.local().to_string()),
        "remote": record.remote().map(|remote| remote.to_string()),
        "role": record.role().map(Role::word),
        "backend": accelerated.then(|| source::backend_of(local, interfaces)),
        "errno": record.errno,
    });
    if let (Value::Object(socket), Value::Object(facts)) = (&mut socket, facts) {
        socket.extend(facts);
    }
    socket
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_says_who_serves_it_and_why() {
        let mut record = Record {
            state: State::Accelerated as u8,
            rule: 0,
            ..Record::default()
        };
        assert_eq!(socket(&record, &[])["served_by"], "bypass");
        assert_eq!(socket(&record, &[])["rule"], 1);
        record.state = State::Kernel as u8;
        record.rule = -1;
        record.reason = FallThrough::System as u8;
        record.errno = 2;
        let told = with_why(socket(&record, &[]));
        assert_eq!(
            (told["reason"].as_str(), told["rule"].as_u64()),
            (Some("system"), None)
        );
        let why = told["why"].as_str().expect("a sentence");
        assert!(why.contains("No such file") && why.contains("-> "), "{why}");
        (record.reason, record.errno) = (200, 0);
        assert_eq!(socket(&record, &[])["served_by"], "kernel");
        assert!(with_why(socket(&record, &[]))["why"].is_null());
    }
}
