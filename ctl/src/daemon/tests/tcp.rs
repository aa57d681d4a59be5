//! TCP: listeners, grants and the flows that programs enter themselves.
//!
//! Endpoints stand for connections here: the daemon asks only whether they live and who holds
//! them.

use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

use bypass_proto::control::{QueryKind, Refusal};
use bypass_runtime::control::{Control, ControlError};
use rustix::net::{AddressFamily, SocketType, bind, socket, sockopt};
use serde_json::Value;

use super::bed::{Bed, until};
use super::child::Lines;
use super::program::{Program, query};
use crate::daemon::DaemonOptions;

const SERVER: &str = "198.18.9.1:7001";
const CLIENT: &str = "198.18.9.2:5001";

fn filters() -> Vec<Value> {
    query(QueryKind::Filters)
        .as_array()
        .cloned()
        .unwrap_or_default()
}

pub(super) fn roles() -> Vec<String> {
    let words = |filter: &Value| format!("{}", filter["role"]).trim_matches('"').to_owned();
    filters().iter().map(words).collect()
}

/// A socket that is bound, no more.
pub(super) fn bound(address: &str) -> Result<std::os::fd::OwnedFd, rustix::io::Errno> {
    let fd = socket(AddressFamily::INET, SocketType::STREAM, None)?;
    bind(&fd, &address.parse::<SocketAddr>().expect("address"))?;
    Ok(fd)
}

fn connect(bed: &Bed) -> std::io::Result<TcpStream> {
    let to = SERVER.parse().expect("address");
    bed.outside(|| TcpStream::connect_timeout(&to, Duration::from_secs(3)))
}

#[test]
fn a_listener_takes_what_begins_and_its_grant_lasts_as_long_as_its_flows() {
    let bed = Bed::with_daemon();
    bed.inside(|| {
        let mut program = Program::join().expect("join");
        let endpoint = program.open(&UdpSocket::bind(SERVER).expect("bind"));
        let listener = TcpListener::bind(SERVER).expect("bind");
        listener.set_nonblocking(true).expect("nonblocking");
        let filter = program
            .grant(&listener, SERVER, endpoint, 1)
            .expect("filter");
        assert_eq!(roles(), ["listen"]);
        assert_eq!(program.map_queues(), 1);

        // A SYN goes to the queue, not to the kernel's listener, which then accepts nothing.
        let to = SERVER.parse().expect("address");
        bed.outside(|| TcpStream::connect_timeout(&to, Duration::from_millis(300)).is_err());
        assert!(listener.accept().is_err());
        let list = filters();
        assert!(list[0]["packets"].as_u64() > Some(0), "{list:?}");
        assert_eq!(list[0]["protocol"], "tcp");

        // A flow of it outlives the listener's socket.
        let slot = program.enter(SERVER, CLIENT, endpoint);
        program.enter("198.18.9.1:9", CLIENT, endpoint);
        let list = filters();
        assert_eq!(roles(), ["listen", "flow"]);
        assert_eq!(
            (&list[1]["id"], &list[1]["local"]),
            (&filter.into(), &SERVER.into())
        );
        assert_eq!(
            (&list[1]["remote"], &list[1]["interface"]),
            (&CLIENT.into(), &"dmns".into())
        );
        program.release(filter);
        until("it closes", || roles() == ["closing", "flow"]);
        // A sweep may have come first: then it is let go of twice, and goes on all the same.
        program.release(filter);
        assert_eq!(roles(), ["closing", "flow"]);
        connect(&bed).expect("by the kernel's listener again");
        let locked = program.attachment.lock().expect("lock");
        assert!(program.flows.remove_slot(slot, endpoint));
        drop(locked);
        until("the grant is swept", || roles().is_empty());
    });
}

#[test]
fn a_grant_takes_nothing_that_begins_and_keeps_the_port() {
    let bed = Bed::with_daemon();
    bed.inside(|| {
        let mut program = Program::join().expect("join");
        let endpoint = program.open(&UdpSocket::bind(SERVER).expect("bind"));
        let shadow = bound(SERVER).expect("bind");
        let filter = program.grant(&shadow, SERVER, endpoint, 0).expect("filter");
        assert_eq!(roles(), ["connect"]);
        let refused = connect(&bed).expect_err("nobody listens").kind();
        assert_eq!(refused, std::io::ErrorKind::ConnectionRefused);
        program.enter(SERVER, CLIENT, endpoint);
        drop(shadow);
        assert_eq!(bound(SERVER).err(), Some(rustix::io::Errno::ADDRINUSE));
        // The end of a connection: the flow first, then the grant. The other order leaves no grant.
        program.release(filter);
        until("the grant is gone", || roles().is_empty());
        // A child that another test has just forked has copies of our descriptors until it execs.
        until("the port is free", || bound(SERVER).is_ok());
    });
}

#[test]
fn the_socket_must_be_what_is_asked_for() {
    let bed = Bed::with_daemon();
    bed.inside(|| {
        let mut program = Program::join().expect("join");
        let datagrams = UdpSocket::bind(SERVER).expect("bind");
        let endpoint = program.open(&datagrams);
        let mut refusal = |socket: std::os::fd::BorrowedFd<'_>, local, listen| match program
            .grant(socket, local, endpoint, listen)
        {
            Err(ControlError::Refused { refusal, .. }) => Some(refusal),
            other => panic!("{other:?}"),
        };
        use std::os::fd::AsFd as _;
        let shadow = bound(SERVER).expect("bind");
        let malformed = Some(Refusal::Malformed);
        assert_eq!(refusal(datagrams.as_fd(), SERVER, 1), malformed);
        assert_eq!(refusal(shadow.as_fd(), SERVER, 2), malformed);
        let other = Some(Refusal::NotOwner);
        assert_eq!(refusal(shadow.as_fd(), "198.18.9.1:7002", 0), other);
        let loopback = bound("127.0.0.1:7003").expect("bind");
        let nowhere = Some(Refusal::NoInterface);
        assert_eq!(refusal(loopback.as_fd(), "127.0.0.1:7003", 1), nowhere);
        assert!(roles().is_empty());
        sockopt::set_socket_reuseaddr(&shadow, true).expect("option");
        program
            .grant(&shadow, SERVER, endpoint, 0)
            .expect("root may");
    });
}

#[test]
fn a_killed_programs_flows_are_gone_and_others_stay() {
    let bed = Bed::with_daemon();
    let mut victim = Lines::program(&bed, "198.18.9.1:7009", 0);
    assert_eq!(victim.read(), "ready");
    bed.inside(|| {
        let mut program = Program::join().expect("join");
        let endpoint = program.open(&UdpSocket::bind(SERVER).expect("bind"));
        let listener = TcpListener::bind(SERVER).expect("bind");
        program
            .grant(&listener, SERVER, endpoint, 1)
            .expect("filter");
        let kept = program.enter(SERVER, CLIENT, endpoint);
        assert_eq!(
            victim.ask(&format!("connection 198.18.9.1:7002 {CLIENT}")),
            "true"
        );
        assert_eq!(program.flows.iter().count(), 2);
        assert_eq!(roles(), ["null", "listen", "listen", "flow", "flow"]);
        victim.kill();
        until("its filters are gone", || roles() == ["listen", "flow"]);
        let left: Vec<u32> = program.flows.iter().map(|flow| flow.slot).collect();
        assert_eq!(left, [kept]);
        // And an endpoint that is gone takes its flows along.
        let mut locked = program.attachment.lock().expect("lock");
        locked.stack().unhold(endpoint, program.process);
        drop(locked);
        until("all is swept", || roles().is_empty());
        assert_eq!(program.flows.iter().count(), 0);
    });
}

#[test]
fn connections_outlive_a_daemon() {
    let mut bed = Bed::new();
    let mut first = Lines::daemon(&bed);
    bed.inside(|| until("the daemon answers", || Control::connect().is_ok()));
    let mut program = Lines::program(&bed, "198.18.9.1:7009", 65534);
    assert_eq!(program.read(), "ready");
    assert_eq!(
        program.ask(&format!("connection {SERVER} {CLIENT}")),
        "true"
    );
    first.kill();
    bed.start(DaemonOptions {
        foreground: true,
        ..DaemonOptions::default()
    });
    bed.inside(|| {
        assert_eq!(roles(), ["null", "closing", "flow"]);
        assert_eq!(filters()[2]["remote"], CLIENT);
        // The flow's endpoint is the datagram socket's here, so it ends with that.
        assert_eq!(program.ask("close"), "closed");
        until("all is swept", || roles().is_empty());
    });
}

#[test]
fn only_granted_addresses_become_the_kernels_connections() {
    let bed = Bed::with_daemon();
    bed.inside(|| {
        let mut program = Program::join().expect("join");
        let endpoint = program.open(&UdpSocket::bind(SERVER).expect("bind"));
        let listener = TcpListener::bind(SERVER).expect("bind");
        program
            .grant(&listener, SERVER, endpoint, 1)
            .expect("filter");
        let fresh = || socket(AddressFamily::INET, SocketType::STREAM, None).expect("socket");
        let refusal = |answer| match answer {
            Err(ControlError::Refused { refusal, .. }) => Some(refusal),
            _ => None,
        };
        // Another port than the granted one, whatever the image says.
        let foreign = program.forge("198.18.9.1:22", CLIENT);
        let answer = program.hand_over(fresh(), foreign);
        assert_eq!(refusal(answer), Some(Refusal::NotOwner));
        // Nobody is there who could say that he knows nothing of it.
        let nobody = "198.18.9.77:5001";
        let own = program.forge(SERVER, nobody);
        // Sockets that are no closed TCP socket.
        let datagrams = UdpSocket::bind("198.18.9.1:0").expect("bind");
        let answer = program.hand_over(&datagrams, own);
        assert_eq!(refusal(answer), Some(Refusal::Malformed));
        let answer = program.hand_over(&listener, own);
        assert_eq!(refusal(answer), Some(Refusal::System));
        let shadow = fresh();
        assert_eq!(program.hand_over(&shadow, own), Ok(1));
        let stream = TcpStream::from(shadow);
        let name = |address: std::io::Result<SocketAddr>| address.expect("connected").to_string();
        assert_eq!(name(stream.local_addr()), SERVER);
        assert_eq!(name(stream.peer_addr()), nobody);
        // The endpoint has gone with it.
        let answer = program.hand_over(fresh(), own);
        assert_eq!(refusal(answer), Some(Refusal::System));
    });
}
