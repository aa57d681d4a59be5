//! Ports that a stack keeps for the connections that its programs begin.

use std::fs;
use std::net::UdpSocket;

use bypass_proto::control::{Request, RequestKind};
use bypass_runtime::control::Control;
use bypass_stack::tcp::ports::PLACES;

use super::bed::{Bed, until};
use super::child::Lines;
use super::life::with_daemon_apart;
use super::program::Program;
use super::tcp::{bound, roles};

fn is_taken(port: u16) -> bool {
    bound(&format!("198.18.9.1:{port}")).err() == Some(rustix::io::Errno::ADDRINUSE)
}

#[test]
fn ports_for_connections_are_nobody_elses() {
    let bed = Bed::with_daemon();
    bed.inside(|| {
        let mut program = Program::join().expect("join");
        assert!(program.ports("127.0.0.1").is_empty(), "not by a queue");
        let four = program.ports("198.18.9.1");
        assert_eq!(four.len(), 4);
        assert_eq!(program.ports("198.18.9.1").len(), 8, "twice as many");
        assert!(four.iter().all(|port| is_taken(*port)));
        assert!(roles().is_empty(), "not listed while nobody uses them");
        // A flow of such a port is the stack's, and listed with it.
        let endpoint = program.open(&UdpSocket::bind("198.18.9.1:7001").expect("bind"));
        let local = format!("198.18.9.1:{}", four[0]);
        program.enter(&local, "198.18.9.2:5001", endpoint);
        assert_eq!(roles(), ["flow"]);
        // The stack is asked what it keeps, and one that forgets keeps nothing.
        let forgotten = {
            let mut locked = program.attachment.lock().expect("lock");
            locked.stack().port_forget(four[1])
        };
        assert!(forgotten.is_some());
        until("the port is free", || !is_taken(four[1]));
        assert!(is_taken(four[2]));
        while program.ports("198.18.9.1").len() < PLACES {}
        assert_eq!(program.ports("198.18.9.1").len(), PLACES);
    });
}

#[test]
fn the_next_daemon_reserves_the_ports_again() {
    let (mut bed, mut first) = with_daemon_apart();
    let mut program = Lines::program(&bed, "198.18.9.1:7001", 0);
    assert_eq!(program.read(), "ready");
    let ports: Vec<u16> = program
        .ask("ports")
        .split(' ')
        .map(|port| port.parse().expect("port"))
        .collect();
    assert_eq!(ports.len(), 4);
    first.kill();
    let lost = bed.inside(|| {
        until("the ports are free", || !is_taken(ports[0]));
        bound(&format!("198.18.9.1:{}", ports[3])).expect("bind")
    });
    bed.start_daemon();
    // What somebody else has bound meanwhile is his; three are left, and four come.
    let again = program.ask("ports");
    let again: Vec<&str> = again.split(' ').collect();
    assert_eq!(again.len(), 7, "{again:?}");
    bed.inside(|| {
        assert!(ports.iter().all(|port| is_taken(*port)));
        assert!(!again.contains(&ports[3].to_string().as_str()));
        drop(lost);
        until("it is free", || !is_taken(ports[3]));
    });
    program.kill();
    bed.inside(|| until("all are free", || !ports.iter().any(|port| is_taken(*port))));
}

/// Sets what the kernel chooses ports from.
fn set(name: &str, value: &str) {
    fs::write(format!("/proc/sys/net/ipv4/{name}"), value).expect("sysctl");
}

#[test]
fn of_few_ports_most_are_left_to_the_kernel() {
    let bed = Bed::with_daemon();
    bed.inside(|| {
        set("ip_local_port_range", "40000 40063");
        set("ip_local_reserved_ports", "40000-40031");
        let mut program = Program::join().expect("join");
        program.ports("198.18.9.1");
        let most = program.ports("198.18.9.1");
        assert_eq!(most.len(), 8);
        assert!(most.iter().all(|port| (40032..40064).contains(port)));
        assert_eq!(program.ports("198.18.9.1"), most);
    });
}

#[test]
fn a_port_with_a_static_filter_is_not_kept() {
    let bed = Bed::with_daemon();
    bed.inside(|| {
        let mut program = Program::join().expect("join");
        let four = program.ports("198.18.9.1");
        let mut request = Request {
            local: bypass_stack::IpAddress::from_v4([198, 18, 9, 1]).0,
            local_port: four[0],
            protocol: 6,
            ..Request::new(RequestKind::AddStatic)
        };
        request.program[..5].copy_from_slice(b"knotd");
        let mut control = Control::connect().expect("connect");
        control.ask(request, None).expect("added");
        until("it is the kernel's", || !is_taken(four[0]));
        assert!(four[1..].iter().all(|port| is_taken(*port)));
        assert!(!program.ports("198.18.9.1").contains(&four[0]));
    });
}
