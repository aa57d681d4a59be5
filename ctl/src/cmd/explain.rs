//! `bypassctl explain`: each socket of a program, accelerated or why not.

use std::path::PathBuf;

use bypass_proto::policy::{Address, DEFAULT_PATH, Policy, Protocol, Query, Role, User};
use bypass_proto::report::{NAME, Record, ReportView, State};
use serde_json::{Value, json};

use crate::{Failure, render, source};

/// Each socket of a program: accelerated, or why not.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  bypassctl explain 1234\n  bypassctl explain --all --json\n  bypassctl explain --dry-run --bind 198.18.0.1:53 -- knotd"
)]
pub struct Explain {
    /// Process id.
    pid: Option<u32>,
    /// Every process that has the library.
    #[arg(long)]
    all: bool,
    /// Ask the policy only: what would happen to a UDP socket of this program.
    #[arg(long)]
    dry_run: bool,
    /// Address that the socket would bind (dry run).
    #[arg(long, default_value = "*:53")]
    bind: String,
    /// Configuration to ask (dry run).
    #[arg(long)]
    config: Option<PathBuf>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
    /// Program and arguments (dry run).
    #[arg(last = true)]
    command: Vec<String>,
}

impl Explain {
    /// Prints what is known.
    pub fn execute(&self) -> Result<(), Failure> {
        if self.dry_run {
            return self.ask_policy();
        }
        let pids = match (self.pid, self.all) {
            (Some(pid), _) => vec![pid],
            (None, true) => source::pids(),
            (None, false) => {
                return Err(Failure {
                    code: 2,
                    message: "name a process id, or --all, or --dry-run -- PROGRAM".to_owned(),
                });
            }
        };
        let reports: Vec<ReportView> = source::memfds(NAME, &pids)
            .iter()
            .filter_map(|held| ReportView::read(&held.read()?).ok())
            .filter(|report| pids.contains(&report.header.pid))
            .collect();
        let sockets: Vec<Value> = reports
            .iter()
            .flat_map(|report| report.records.iter().map(|record| socket(report, record)))
            .collect();
        if self.json {
            render::json(&Value::Array(sockets));
            return Ok(());
        }
        for report in &reports {
            let text = report.header.config_text();
            if !text.is_empty() {
                render::line(&format!("configuration of {}: {text}", report.header.pid));
            }
        }
        if sockets.is_empty() {
            return Err(Failure::nothing(
                "no sockets: the program has none, or runs without libbypass.so",
            ));
        }
        let columns = [
            ("PID", "pid"),
            ("PROGRAM", "program"),
            ("FD", "fd"),
            ("PROTO", "protocol"),
            ("LOCAL", "local"),
            ("REMOTE", "remote"),
            ("SERVED BY", "served_by"),
            ("RULE", "rule"),
            ("REASON", "sentence"),
            ("WHAT TO DO", "advice"),
        ];
        render::objects(&columns, &sockets);
        Ok(())
    }

    fn ask_policy(&self) -> Result<(), Failure> {
        let path = self.config.clone().unwrap_or_else(|| PathBuf::from(DEFAULT_PATH));
        let policy = match std::fs::read_to_string(&path) {
            Ok(text) => Policy::parse(&text)
                .map_err(|error| Failure::new(format!("{}: {error}", path.display())))?,
            Err(_) if self.config.is_none() => Policy::default(),
            Err(error) => return Err(Failure::new(format!("{}: {error}", path.display()))),
        };
        let program = self.command.first().map_or("-", String::as_str);
        let local: Address = self
            .bind
            .parse()
            .map_err(|_| Failure { code: 2, message: format!("{} is no address", self.bind) })?;
        let query = Query {
            program,
            user: User { uid: rustix::process::geteuid().as_raw(), name: None },
            protocol: Protocol::Udp,
            role: Role::Bind,
            local: Some(local),
            remote: None,
            interface: None,
        };
        let decision = policy.decide(&query);
        let reason = decision.reason();
        let answer = json!({
            "program": program, "protocol": "udp", "local": self.bind,
            "served_by": if reason.is_none() { "bypass" } else { "kernel" },
            "reason": reason.map(|reason| reason.name()),
            "sentence": reason.map(|reason| reason.sentence()),
            "rule": decision.rule(),
        });
        if self.json {
            render::json(&answer);
        } else {
            let columns = [
                ("PROGRAM", "program"),
                ("LOCAL", "local"),
                ("SERVED BY", "served_by"),
                ("RULE", "rule"),
                ("REASON", "sentence"),
            ];
            render::objects(&columns, &[answer]);
        }
        Ok(())
    }
}

fn socket(report: &ReportView, record: &Record) -> Value {
    let accelerated = record.state() == Some(State::Accelerated);
    let reason = record.reason().filter(|_| !accelerated);
    json!({
        "pid": report.header.pid,
        "program": source::program(report.header.pid),
        "fd": record.fd,
        "protocol": record.protocol().map(|protocol| protocol.word()),
        "local": (record.role != 0).then(|| record.local().to_string()),
        "remote": record.remote().map(|remote| remote.to_string()),
        "served_by": if accelerated { "bypass" } else { "kernel" },
        "backend": accelerated.then_some("af_xdp"),
        "reason": reason.map(|reason| reason.name()),
        "sentence": reason.map(|reason| reason.sentence()),
        "advice": reason.map(|reason| reason.advice()).filter(|advice| !advice.is_empty()),
        "rule": record.rule(),
    })
}
