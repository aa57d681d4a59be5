//! Two network namespaces joined by a veth, and a daemon in the first.
//!
//! ```text
//!   dmnPID-N-s                             dmnPID-N-c
//!   198.18.9.1/24  fd98:9::1/64            198.18.9.2/24  fd98:9::2/64
//!   daemon, programs   [dmns] === veth === [dmnc]   kernel
//! ```

use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use bypass_proto::control::{QueryKind, ReplyKind, Request, RequestKind};
use bypass_runtime::control::Control;
use rustix::thread::LinkNameSpaceType;
use serde_json::Value;

use super::program::query;
use crate::daemon::{DaemonError, DaemonOptions, run};

pub(super) const SERVER: [u8; 4] = [198, 18, 9, 1];

/// The namespaces; removed when dropped, after the daemon in them was told to stop.
pub(super) struct Bed {
    names: Names,
    daemon: Option<JoinHandle<Result<(), DaemonError>>>,
}

impl Bed {
    pub(super) fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let names = Names(format!("dmn{}-{number}", std::process::id()));
        let bed = Self {
            names,
            daemon: None,
        };
        let (server, client) = (bed.namespace(), bed.peer());
        ip(&format!("netns add {server}"));
        ip(&format!("netns add {client}"));
        for namespace in [server, client] {
            ip(&format!("-n {namespace} link set lo up"));
        }
        bed.add_veth();
        bed
    }

    /// Joins the namespaces.
    pub(super) fn add_veth(&self) {
        let (server, client) = (self.namespace(), self.peer());
        ip(&format!(
            "link add dmns netns {server} type veth peer name dmnc netns {client}"
        ));
        for (namespace, interface, host) in [(&server, "dmns", 1), (&client, "dmnc", 2)] {
            ip(&format!("-n {namespace} link set {interface} up"));
            ip(&format!(
                "-n {namespace} addr add 198.18.9.{host}/24 dev {interface}"
            ));
            ip(&format!(
                "-n {namespace} addr add fd98:9::{host}/64 dev {interface} nodad"
            ));
        }
    }

    /// With a daemon that answers.
    pub(super) fn with_daemon() -> Self {
        let mut bed = Self::new();
        bed.start_daemon();
        bed
    }

    /// Starts one with the default policy.
    pub(super) fn start_daemon(&mut self) {
        self.start(DaemonOptions {
            foreground: true,
            ..DaemonOptions::default()
        });
    }

    pub(super) fn start(&mut self, options: DaemonOptions) {
        let namespace = self.namespace();
        self.daemon = Some(std::thread::spawn(move || {
            enter(&namespace);
            run(&options)
        }));
        self.inside(|| {
            until("the daemon answers", || Control::connect().is_ok());
        });
    }

    /// Ends the daemon by request and gives its result.
    pub(super) fn stop(&mut self) -> Option<Result<(), DaemonError>> {
        let daemon = self.daemon.take()?;
        if !daemon.is_finished() {
            self.inside(|| {
                let mut control = Control::connect().expect("connect");
                let answer = control.ask(Request::new(RequestKind::Shutdown), None);
                assert_eq!(answer.expect("answer").reply.kind, ReplyKind::End as u16);
            });
        }
        Some(daemon.join().expect("daemon thread"))
    }

    /// Ends a daemon that ends by itself.
    pub(super) fn wait(&mut self) -> Option<Result<(), DaemonError>> {
        Some(self.daemon.take()?.join().expect("daemon thread"))
    }

    pub(super) fn namespace(&self) -> String {
        format!("{}-s", self.names.0)
    }

    pub(super) fn peer(&self) -> String {
        format!("{}-c", self.names.0)
    }

    /// Runs something in a thread in the daemon's namespace.
    pub(super) fn inside<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        within(&self.namespace(), work)
    }

    /// Runs something in a thread in the other namespace.
    pub(super) fn outside<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        within(&self.peer(), work)
    }

    pub(super) fn list(&self, kind: QueryKind) -> Value {
        self.inside(|| query(kind))
    }

    /// `ip` in the daemon's namespace.
    pub(super) fn ip(&self, arguments: &str) {
        ip(&format!("-n {} {arguments}", self.namespace()));
    }

    /// The same, for what it prints.
    pub(super) fn show(&self, arguments: &str) -> String {
        let all = format!("-n {} {arguments}", self.namespace());
        let run = Command::new("ip")
            .args(all.split_whitespace())
            .output()
            .expect("ip");
        String::from_utf8_lossy(&run.stdout).into_owned()
    }
}

impl Drop for Bed {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            self.stop();
        }
    }
}

/// Common part of the names of the two namespaces.
struct Names(String);

impl Drop for Names {
    fn drop(&mut self) {
        for side in ["s", "c"] {
            let name = format!("{}-{side}", self.0);
            let _ = Command::new("ip").args(["netns", "delete", &name]).status();
        }
    }
}

fn within<T: Send>(namespace: &str, work: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            enter(namespace);
            work()
        });
        thread.join().expect("thread")
    })
}

fn enter(namespace: &str) {
    let file = std::fs::File::open(format!("/run/netns/{namespace}")).expect("namespace");
    rustix::thread::move_into_link_name_space(
        std::os::fd::AsFd::as_fd(&file),
        Some(LinkNameSpaceType::Network),
    )
    .expect("setns");
}

pub(super) fn ip(arguments: &str) {
    let run = Command::new("ip")
        .args(arguments.split_whitespace())
        .output()
        .expect("ip");
    assert!(
        run.status.success(),
        "ip {arguments}: {}",
        String::from_utf8_lossy(&run.stderr)
    );
}

/// Waits at most twenty seconds.
pub(super) fn until(what: &str, is_true: impl Fn() -> bool) {
    let begun = Instant::now();
    while !is_true() {
        assert!(
            begun.elapsed() < Duration::from_secs(20),
            "not in time: {what}"
        );
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// How long the daemon may take for what cannot wait.
pub(super) const PROMPTLY: Duration = Duration::from_millis(100);

/// One of five attempts takes less than [`PROMPTLY`]: a single one says nothing of the daemon while
/// the processors are busy with other things.
pub(super) fn promptly(mut attempt: impl FnMut() -> Duration) {
    let mut times = Vec::new();
    while times.len() < 5 {
        let time = attempt();
        if time < PROMPTLY {
            return;
        }
        times.push(time);
    }
    panic!("too late each time: {times:?}");
}
