//! What an administrator says: static filters, and the configuration read again.

use std::net::UdpSocket;
use std::path::PathBuf;

use bypass_proto::control::{QueryKind, Request, RequestKind};
use bypass_runtime::control::Control;
use serde_json::Value;

use super::bed::{Bed, until};
use super::child::Lines;
use super::life::{ready, send, wait_for, with_daemon_apart};
use super::program::{Program, ask_text};
use crate::daemon::DaemonOptions;

const FOREGROUND: DaemonOptions = DaemonOptions {
    foreground: true,
    exit_when_idle: false,
    config: None,
};

/// Adds a static filter for a port of any address; its id.
fn add(bed: &Bed, port: u16, change: impl Fn(&mut Request) + Sync) -> u32 {
    let mut request = Request {
        local_port: port,
        protocol: 17,
        family: 1,
        ..Request::new(RequestKind::AddStatic)
    };
    change(&mut request);
    bed.inside(move || {
        let mut control = Control::connect().expect("connect");
        control.ask(request, None).expect("added").reply.filter
    })
}

fn remove(bed: &Bed, id: u32) {
    bed.inside(|| {
        let mut control = Control::connect().expect("connect");
        let request = Request {
            filter: id,
            ..Request::new(RequestKind::RemoveStatic)
        };
        control.ask(request, None).expect("removed");
    });
}

fn statics(bed: &Bed) -> Vec<Value> {
    let list = bed.list(QueryKind::Filters);
    let all = list.as_array().expect("list").iter();
    all.filter(|filter| filter["state"] == "static")
        .cloned()
        .collect()
}

/// First word of a program's answer to its request for a filter.
fn filter_for(bed: &Bed, address: &str, uid: u32) -> String {
    Lines::program(bed, address, uid).read()
}

#[test]
fn a_reserved_address_is_for_those_it_names() {
    let bed = Bed::with_daemon();
    let by_user = add(&bed, 7001, |request| {
        (request.user, request.has_user) = (65533, 1);
    });
    let by_name = add(&bed, 7002, |request| {
        request.program[..5].copy_from_slice(b"knotd");
    });
    let list = statics(&bed);
    assert_eq!(list[0]["id"], by_user);
    assert_eq!(list[0]["action"], "reserve");
    assert_eq!(list[0]["owner"]["uid"], 65533);
    assert_eq!(list[1]["owner"]["program"], "knotd");
    for (address, uid, answer) in [
        ("198.18.9.1:7001", 65534, "Conflict"),
        ("198.18.9.1:7001", 65533, "ready"),
        ("198.18.9.1:7002", 65533, "Conflict"),
        ("198.18.9.1:7003", 65533, "ready"),
    ] {
        let got = filter_for(&bed, address, uid);
        assert!(got.contains(answer), "{address} {uid}: {got}");
        until("the interface is free", || {
            bed.list(QueryKind::Stacks) == Value::Array(Vec::new())
        });
    }
    remove(&bed, by_name);
    assert_eq!(filter_for(&bed, "198.18.9.1:7002", 65534), "ready");
}

#[test]
fn static_filters_outlive_the_daemon_with_a_program() {
    let (mut bed, mut first) = with_daemon_apart();
    let before = add(&bed, 7002, |request| request.keep_in_kernel = 1);
    let mut program = ready(&bed, "[::]:7001", 65534);
    add(&bed, 7003, |request| {
        (request.user, request.has_user) = (65533, 1);
    });
    let list = statics(&bed);
    assert_eq!(list.len(), 2);
    first.kill();
    bed.start_daemon();
    assert_eq!(statics(&bed), list);
    for address in ["198.18.9.1:7002", "198.18.9.1:7003"] {
        let got = filter_for(&bed, address, 65534);
        assert!(got.contains("Conflict"), "{address}: {got}");
    }
    send(&bed, "198.18.9.1:7001", 1);
    wait_for(&mut program, "1");
    remove(&bed, before);
    assert_eq!(filter_for(&bed, "198.18.9.1:7002", 65534), "ready");
    let id = add(&bed, 7004, |request| request.keep_in_kernel = 1);
    assert!(list.iter().all(|known| known["id"] != id), "a new id");
}

#[test]
fn what_is_said_twice_is_one_filter() {
    let bed = Bed::with_daemon();
    let keep = |request: &mut Request| request.keep_in_kernel = 1;
    let reserve = |request: &mut Request| (request.user, request.has_user) = (65533, 1);
    let (kept, reserved) = (add(&bed, 7001, keep), add(&bed, 7001, reserve));
    assert_ne!(kept, reserved);
    assert_eq!(add(&bed, 7001, keep), kept);
    assert_eq!(add(&bed, 7001, reserve), reserved);
    assert_ne!(add(&bed, 7002, keep), kept);
    assert_eq!(statics(&bed).len(), 3);
    remove(&bed, kept);
    assert_eq!(statics(&bed).len(), 2);
    assert_ne!(add(&bed, 7001, keep), kept, "a new one");
}

#[test]
fn one_peers_flow_can_stay_in_the_kernel() {
    let bed = Bed::with_daemon();
    bed.inside(|| {
        let (program, socket, endpoint) = Program::serving("198.18.9.1:7001");
        let from = |port: u16| {
            bed.outside(|| {
                let sender = UdpSocket::bind(("198.18.9.2", port)).expect("bind");
                sender
                    .send_to(b"datagram", "198.18.9.1:7001")
                    .expect("send");
            });
        };
        let id = add(&bed, 7001, |request| {
            request.keep_in_kernel = 1;
            request.remote = bypass_stack::IpAddress::from_v4([198, 18, 9, 2]).0;
            request.remote_port = 999;
        });
        from(999);
        assert_eq!(socket.recv(&mut [0; 32]).expect("by the kernel"), 8);
        from(998);
        until("others come by the bypass", || {
            program.queued(endpoint) == 1
        });
        remove(&bed, id);
        from(999);
        until("it does again", || program.queued(endpoint) == 2);
    });
}

/// A configuration file of a test's own, removed when dropped.
struct File(PathBuf);

impl File {
    fn new(name: &str, text: &str) -> Self {
        let name = format!("bypass-{}-{name}.toml", std::process::id());
        let file = Self(std::env::temp_dir().join(name));
        file.write(text);
        file
    }

    fn write(&self, text: &str) {
        std::fs::write(&self.0, text).expect("write");
    }
}

impl Drop for File {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

const NOBODY: &str = "[daemon]\nallow = []\n";
const EVERYBODY: &str = "[daemon]\nclients = 100\n";

#[test]
fn the_configuration_is_read_again() {
    let file = File::new("reload", NOBODY);
    let mut bed = Bed::new();
    bed.start(DaemonOptions {
        config: Some(file.0.clone()),
        ..FOREGROUND
    });
    let reload = || {
        let text = bed.inside(|| ask_text(Request::new(RequestKind::Reload)));
        text["error"].as_str().map(str::to_owned)
    };
    let allowed = || filter_for(&bed, "198.18.9.1:7001", 65534) == "ready";
    assert!(!allowed());
    file.write(EVERYBODY);
    assert!(!allowed(), "not before it is told");
    assert_eq!(reload(), None);
    assert!(allowed());
    file.write("[daemon]\nallow = []\nclient = 1\n");
    let error = reload().expect("an error");
    assert!(error.contains("line 3, column 1"), "{error}");
    assert!(allowed(), "the policy before stays");
    assert_eq!(bed.list(QueryKind::Daemon)["reload_error"], error);
    std::fs::remove_file(&file.0).expect("remove");
    assert!(reload().is_some_and(|error| error.contains("No such file")));
    assert!(allowed());
    file.write(NOBODY);
    assert_eq!(reload(), None);
    assert!(!allowed());
}

#[test]
fn a_hangup_has_it_read_again() {
    let file = File::new("hangup", NOBODY);
    let bed = Bed::new();
    let daemon = Lines::daemon_with(&bed, file.0.to_str().expect("path"));
    bed.inside(|| until("the daemon answers", || Control::connect().is_ok()));
    assert!(filter_for(&bed, "198.18.9.1:7001", 65534).contains("NotAllowed"));
    file.write(EVERYBODY);
    let pid = rustix::process::Pid::from_raw(daemon.id() as i32).expect("pid");
    rustix::process::kill_process(pid, rustix::process::Signal::HUP).expect("kill");
    until("it is read", || {
        filter_for(&bed, "198.18.9.1:7001", 65534) == "ready"
    });
}
