//! Clients that do not behave.

use std::net::{TcpListener, UdpSocket};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use bypass_proto::control::{QueryKind, Refusal, Reply, Request, RequestKind};
use bypass_runtime::control::{Control, ControlError};
use bypass_stack::EndpointId;
use zerocopy::{FromBytes, IntoBytes};

use super::bed::{Bed, promptly, until};
use super::child::Lines;
use super::program::{Program, Raw, filter_request, query};

#[test]
fn malformed_messages_are_refused_and_others_served() {
    let bed = Bed::with_daemon();
    bed.inside(|| {
        let raw = Raw::connect();
        let attach = Request::new(RequestKind::Attach);
        let with = |change: fn(&mut Request)| {
            let mut request = attach;
            change(&mut request);
            request.as_bytes().to_vec()
        };
        let malformed = [
            b"x".to_vec(),
            attach.as_bytes()[..79].to_vec(),
            [attach.as_bytes(), &[0]].concat(),
            vec![0xff; 4096],
            with(|request| request.magic = 0),
            with(|request| request.kind = 0),
            with(|request| request.kind = 99),
            with(|request| (request.kind, request.query) = (RequestKind::Query as u16, 77)),
            // Nothing of these makes sense before Attach.
            with(|request| request.kind = RequestKind::QueuePairs as u16),
            with(|request| request.kind = RequestKind::RemoveFilter as u16),
            with(|request| request.kind = RequestKind::AddFilter as u16),
        ];
        for message in &malformed {
            assert_eq!(
                raw.refusal(message, &[]),
                Some(Refusal::Malformed),
                "{message:?}"
            );
        }
        let version = with(|request| request.version = 7);
        assert_eq!(raw.refusal(&version, &[]), Some(Refusal::Version));
        // Descriptors where none belong, and too many of them.
        let fds = [raw.0.as_fd(); 16];
        assert_eq!(
            raw.refusal(attach.as_bytes(), &fds[..1]),
            Some(Refusal::Malformed)
        );
        assert_eq!(
            raw.refusal(attach.as_bytes(), &fds),
            Some(Refusal::Malformed)
        );
        Program::join().expect("others are served");
        let daemon = query(QueryKind::Daemon);
        let counters = daemon["counters"].as_array().expect("counters");
        let malformed = counters
            .iter()
            .find(|one| one["name"] == "refused_malformed");
        assert_eq!(malformed.expect("counter")["value"], 13);
    });
}

#[test]
fn who_keeps_sending_rubbish_is_dropped() {
    let bed = Bed::with_daemon();
    bed.inside(|| {
        let raw = Raw::connect();
        for _ in 0..64 {
            assert_eq!(raw.refusal(b"rubbish", &[]), Some(Refusal::Malformed));
        }
        raw.send(b"rubbish", &[]);
        assert!(raw.receive().is_empty(), "closed");
    });
}

#[test]
#[expect(clippy::too_many_lines, reason = "one story")]
fn a_filter_needs_the_socket_that_is_bound_there() {
    let bed = Bed::with_daemon();
    bed.inside(|| {
        let mut program = Program::join().expect("join");
        let socket = UdpSocket::bind("198.18.9.1:7001").expect("bind");
        let endpoint = program.open(&socket);
        let good = filter_request(&socket, endpoint);
        let mut ask = |change: &dyn Fn(&mut Request), proof| {
            let mut request = good;
            change(&mut request);
            match program.control.ask(request, proof) {
                Err(ControlError::Refused { refusal, .. }) => Some(refusal),
                _ => None,
            }
        };
        let fd = Some(socket.as_fd());
        let same = |_: &mut Request| ();
        let other = UdpSocket::bind("198.18.9.1:7002").expect("bind");
        let unbound = UdpSocket::bind("0.0.0.0:0").expect("bind");
        let v6 = UdpSocket::bind("[::]:7003").expect("bind");
        let tcp = TcpListener::bind("198.18.9.1:7001").expect("bind");
        let file = std::fs::File::open("/dev/null").expect("file");
        assert_eq!(ask(&same, None), Some(Refusal::Malformed), "missing");
        assert_eq!(
            ask(&same, Some(file.as_fd())),
            Some(Refusal::Malformed),
            "no socket"
        );
        assert_eq!(
            ask(&same, Some(tcp.as_fd())),
            Some(Refusal::Malformed),
            "TCP"
        );
        assert_eq!(
            ask(&same, Some(v6.as_fd())),
            Some(Refusal::Malformed),
            "IPv6"
        );
        assert_eq!(
            ask(&same, Some(other.as_fd())),
            Some(Refusal::NotOwner),
            "another port"
        );
        assert_eq!(
            ask(&same, Some(unbound.as_fd())),
            Some(Refusal::NotOwner),
            "any"
        );
        assert_eq!(ask(&|r| r.local_port = 0, fd), Some(Refusal::Malformed));
        assert_eq!(ask(&|r| r.protocol = 6, fd), Some(Refusal::Malformed));
        assert_eq!(ask(&|r| r.family = 3, fd), Some(Refusal::Malformed));
        assert_eq!(ask(&|r| r.remote_port = 9, fd), Some(Refusal::Malformed));
        assert_eq!(ask(&|r| r.local = [0; 16], fd), Some(Refusal::NotOwner));
        assert_eq!(
            ask(&|r| r.endpoint_generation += 1, fd),
            Some(Refusal::Malformed)
        );
        assert_eq!(
            ask(&|r| r.endpoint_index = u32::MAX, fd),
            Some(Refusal::Malformed)
        );
        // The same address in a namespace of one's own is not this address.
        let foreign = bed.outside(|| {
            super::bed::ip(&format!("-n {} addr add 198.18.9.1/32 dev lo", bed.peer()));
            UdpSocket::bind("198.18.9.1:7001").expect("bind")
        });
        assert_eq!(
            ask(&same, Some(foreign.as_fd())),
            Some(Refusal::NotOwner),
            "namespace"
        );
        // Loopback is the kernel's.
        let local = UdpSocket::bind("127.0.0.1:7001").expect("bind");
        let loopback = filter_request(&local, endpoint);
        assert_eq!(
            ask(&|request| *request = loopback, Some(local.as_fd())),
            Some(Refusal::NoInterface)
        );
        assert_eq!(ask(&same, fd), None, "the right one");
        let _ = EndpointId::NONE;
    });
}

#[test]
fn an_interface_belongs_to_one_users_stack() {
    let bed = Bed::with_daemon();
    let mut first = Lines::program(&bed, "198.18.9.1:7001", 65534);
    assert_eq!(first.read(), "ready");
    let mut second = Lines::program(&bed, "198.18.9.1:7002", 65533);
    assert!(second.read().contains("QueueBusy"));
    first.kill();
    until("the interface is free", || {
        bed.list(QueryKind::Interfaces)
            .as_array()
            .is_some_and(|list| list.iter().all(|one| one["owner"].is_null()))
    });
    let mut third = Lines::program(&bed, "198.18.9.1:7003", 65533);
    assert_eq!(third.read(), "ready");
}

#[test]
fn a_thousand_clients_are_served() {
    let bed = Bed::with_daemon();
    bed.inside(|| {
        let mut clients: Vec<Control> = (0..1000)
            .map(|_| Control::connect().expect("connect"))
            .collect();
        for client in &mut clients {
            client
                .ask(Request::new(RequestKind::Attach), None)
                .expect("attach");
        }
        promptly(|| {
            let begun = Instant::now();
            let daemon = query(QueryKind::Daemon);
            assert!(daemon["clients"].as_u64() >= Some(1000));
            begun.elapsed()
        });
        // Those above the limit are told so.
        let mut more: Vec<Control> = (0..40)
            .map(|_| Control::connect().expect("connect"))
            .collect();
        let refused = more
            .iter_mut()
            .filter_map(|client| client.ask(Request::new(RequestKind::Attach), None).err())
            .filter(|error| {
                matches!(
                    error,
                    ControlError::Refused {
                        refusal: Refusal::Limit,
                        ..
                    }
                )
            })
            .count();
        assert!(refused >= 15, "{refused}");
    });
}

#[test]
fn a_client_that_never_reads_is_dropped() {
    let bed = Bed::with_daemon();
    bed.inside(|| {
        let deaf = Raw::connect();
        let request = Request {
            query: QueryKind::Daemon as u32,
            ..Request::new(RequestKind::Query)
        };
        rustix::net::sockopt::set_socket_timeout(
            &deaf.0,
            rustix::net::sockopt::Timeout::Send,
            Some(Duration::from_secs(1)),
        )
        .expect("timeout");
        // Until nothing goes in either direction any more.
        let flags = rustix::net::SendFlags::NOSIGNAL;
        while rustix::net::send(&deaf.0, request.as_bytes(), flags).is_ok() {}
        let begun = Instant::now();
        let clients = || query(QueryKind::Daemon)["clients"].as_u64();
        assert_eq!(clients(), Some(2), "others are served");
        while clients() != Some(1) {
            assert!(begun.elapsed() < Duration::from_secs(30));
            std::thread::sleep(Duration::from_millis(100));
        }
    });
}

#[test]
fn static_filters_keep_traffic_in_the_kernel() {
    let bed = Bed::with_daemon();
    bed.inside(|| {
        let (mut program, socket, endpoint) = Program::serving("198.18.9.1:7001");
        let send = || {
            bed.outside(|| {
                let sender = UdpSocket::bind("198.18.9.2:0").expect("bind");
                sender
                    .send_to(b"datagram", "198.18.9.1:7001")
                    .expect("send");
            });
        };
        let request = Request {
            local_port: 7001,
            protocol: 17,
            family: 1,
            keep_in_kernel: 1,
            ..Request::new(RequestKind::AddStatic)
        };
        let answer = program.control.ask(request, None).expect("static filter");
        send();
        assert_eq!(socket.recv(&mut [0; 32]).expect("by the kernel"), 8);
        let second = UdpSocket::bind("198.18.9.1:7002").expect("bind");
        let free = program.open(&second);
        program.filter(&second, free).expect("another port");
        let other = program.open(&socket);
        let refused = program.filter(&socket, other);
        assert!(
            matches!(
                refused,
                Err(ControlError::Refused {
                    refusal: Refusal::Conflict,
                    ..
                })
            ),
            "{refused:?}"
        );
        let mut locked = program.attachment.lock().expect("lock");
        locked.stack().unhold(other, program.process);
        drop(locked);
        let remove = Request {
            filter: answer.reply.filter,
            ..Request::new(RequestKind::RemoveStatic)
        };
        program.control.ask(remove, None).expect("removed");
        send();
        until("it comes by the bypass again", || {
            program.queued(endpoint) == 1
        });
    });
}

#[test]
fn only_root_may_shut_down() {
    let bed = Bed::with_daemon();
    bed.inside(|| {
        let raw = Raw::connect();
        raw.send(Request::new(RequestKind::RemoveStatic).as_bytes(), &[]);
        let reply = Reply::read_from_bytes(&raw.receive()).expect("reply");
        assert_eq!(
            Refusal::from_wire(reply.refusal),
            Some(Refusal::Malformed),
            "no such filter"
        );
    });
    let mut program = Lines::program(&bed, "198.18.9.1:7001", 65534);
    assert_eq!(program.read(), "ready");
    assert!(program.ask("shutdown").contains("NotAllowed"));
    assert_eq!(
        bed.list(QueryKind::Filters).as_array().map(Vec::len),
        Some(1)
    );
}
