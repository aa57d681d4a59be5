//! `bypassctl rollback` and `adopt`: sockets of running programs to the kernel, and back.

use std::time::{Duration, Instant};

use bypass_proto::control::{Request, RequestKind};
use serde_json::Value;

use crate::{Failure, render, source};

/// How long connections whose handshake is not over are waited for.
const PATIENCE: Duration = Duration::from_secs(3);
/// Pause between two requests that have moved nothing.
const PAUSE: Duration = Duration::from_millis(20);

/// Hand the sockets of running programs to the kernel: connections go on, nobody is told.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  bypassctl rollback 1234         the process and what it has forked
  bypassctl rollback --port 443   connections and sockets of a local port, whoever has them
  bypassctl rollback --all

New sockets of these programs (or of the port) stay with the kernel until bypassctl adopt.")]
pub struct Rollback {
    #[command(flatten)]
    whom: Whom,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// Take rolled back sockets and programs back.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  bypassctl adopt 1234
  bypassctl adopt --port 443
  bypassctl adopt --all
  bypassctl adopt 1234 --connections

Listeners and UDP sockets are accelerated again at once, and so is what the programs open from now
on. TCP connections that the kernel has stay with it to their end. With --connections they come
back with all that they have, and so do those that the kernel has accepted at a rolled back
listener. THIS IS NEW: a connection that is busy at that moment may be cut (see docs/adr/0011). The
kernel keeps what it alone can serve: connections by the loopback interface or another that is not
accelerated, connections that another descriptor or process has too (dup), those of a program that
has forked since the rollback, and those that one end has closed. How many, and why, is told.")]
pub struct Adopt {
    #[command(flatten)]
    whom: Whom,
    /// Take TCP connections out of the kernel too (experimental).
    #[arg(long)]
    connections: bool,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, clap::Args)]
#[group(required = true, multiple = false)]
struct Whom {
    /// Process id: the process and what it has forked.
    pid: Option<u32>,
    /// Local port.
    #[arg(long)]
    port: Option<u16>,
    /// Every program that runs under the bypass now.
    #[arg(long)]
    all: bool,
}

impl Rollback {
    /// Asks until nothing is left to move.
    ///
    /// # Errors
    /// Exit code 3 when there is nothing to do, 1 when connections stay.
    pub fn execute(&self) -> Result<(), Failure> {
        let request = self.whom.request(RequestKind::RollBack)?;
        let total = ask_until_done(&request)?;
        self.whom.finish(&total, "moved to the kernel", self.json)?;
        if total.left == 0 {
            return Ok(());
        }
        Err(Failure::new(format!(
            "{} connections stay: their handshakes are not over, their programs have more sockets \
             than bypassctl explain can tell of, or the daemon lacks a capability (see \
             bypass.service; CAP_NET_BIND_SERVICE for ports below 1024)",
            total.left
        )))
    }
}

impl Adopt {
    /// Asks until all connections were looked at.
    ///
    /// # Errors
    /// Exit code 3 when there is nothing to do, 1 when some were not looked at.
    pub fn execute(&self) -> Result<(), Failure> {
        let request = Request {
            listen: self.connections.into(),
            ..self.whom.request(RequestKind::TakeBack)?
        };
        let total = ask_until_done(&request)?;
        self.whom.finish(&total, "taken back", self.json)?;
        if total.left == 0 {
            return Ok(());
        }
        Err(Failure::new(format!(
            "{} connections were not looked at: ask again",
            total.left
        )))
    }
}

/// Asks until nothing is left to do, or for as long as is worth it; what was done in all.
fn ask_until_done(request: &Request) -> Result<Counts, Failure> {
    let end = Instant::now() + PATIENCE;
    let mut total = Counts::default();
    loop {
        let now = Counts::of(&source::ask(request)?);
        total.add(&now);
        if now.left == 0 || Instant::now() > end {
            break;
        }
        if now.connections == 0 {
            std::thread::sleep(PAUSE);
        }
    }
    Ok(total)
}

impl Whom {
    fn request(&self, kind: RequestKind) -> Result<Request, Failure> {
        if self.pid == Some(0) || self.port == Some(0) {
            return Err(Failure::usage("0 is no process and no port"));
        }
        Ok(Request {
            pid: self.pid.unwrap_or(0),
            local_port: self.port.unwrap_or(0),
            ..Request::new(kind)
        })
    }

    fn finish(&self, counts: &Counts, verb: &str, json: bool) -> Result<(), Failure> {
        let Counts {
            processes,
            connections,
            listeners,
            udp,
            left,
            stay,
        } = counts;
        if json {
            render::json(&serde_json::json!({
                "processes": processes, "connections": connections, "listeners": listeners,
                "udp": udp, "left": left, "stay": stay,
            }));
            return Ok(());
        }
        if self.port.is_none() && *processes == 0 {
            return Err(Failure::nothing(match self.pid {
                Some(pid) => {
                    format!("process {pid} has no accelerated socket: see bypassctl explain {pid}")
                }
                None => "no program runs under the bypass here".to_owned(),
            }));
        }
        render::line(&format!(
            "{verb}: {connections} connections, {listeners} listeners, {udp} UDP sockets"
        ));
        for (why, count) in stay.as_object().into_iter().flatten() {
            render::line(&format!("stay with the kernel: {count} connections: {why}"));
        }
        Ok(())
    }
}

/// What the daemon has done.
#[derive(Clone, Debug, Default)]
struct Counts {
    processes: u64,
    connections: u64,
    listeners: u64,
    udp: u64,
    left: u64,
    /// Of adopt: connections by the reason for which they stay.
    stay: Value,
}

impl Counts {
    fn of(answer: &Value) -> Self {
        let count = |name: &str| answer[name].as_u64().unwrap_or(0);
        Self {
            processes: count("processes"),
            connections: count("connections"),
            listeners: count("listeners"),
            udp: count("udp"),
            left: count("left"),
            stay: answer["stay"].clone(),
        }
    }

    /// Another round of the same.
    fn add(&mut self, other: &Self) {
        self.processes = self.processes.max(other.processes);
        self.connections += other.connections;
        self.listeners += other.listeners;
        self.udp += other.udp;
        self.left = other.left;
        self.stay = other.stay.clone();
    }
}
