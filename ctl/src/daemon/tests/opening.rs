//! A queue that is somebody else's, for a while or for good, and everybody else meanwhile.

use std::net::UdpSocket;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use bypass_proto::control::{QueryKind, Refusal};
use bypass_runtime::control::ControlError;
use bypass_runtime::packets::Packets;
use rustix::net::xdp::{SocketAddrXdp, SocketAddrXdpFlags, XdpUmemReg, XdpUmemRegFlags};
use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, socket_with, sockopt};

use super::bed::{Bed, until};
use super::program::{Program, query};

/// How many answers others get while one request waits, for a second: of a daemon that waited they
/// would get one.
const ANSWERS: usize = 5;

/// An XSK on the first queue of the server's interface, with no program behind it.
fn take_the_queue(bed: &Bed) -> OwnedFd {
    const ENTRIES: u32 = 64;
    let links = bed.show("-o link show dmns");
    let ifindex = links.split(':').next().and_then(|word| word.parse().ok());
    bed.inside(|| {
        let flags = SocketFlags::CLOEXEC;
        let xsk =
            socket_with(AddressFamily::XDP, SocketType::RAW, flags, None).expect("AF_XDP socket");
        let (memory, _) = Packets::create(ENTRIES, 2048).expect("memory");
        let memory = Packets::map(&memory, 2048).expect("mapping");
        let (address, bytes) = memory.range();
        let registration = XdpUmemReg {
            addr: address as u64,
            len: bytes as u64,
            chunk_size: 2048,
            headroom: 0,
            flags: XdpUmemRegFlags::empty(),
            tx_metadata_len: 0,
        };
        sockopt::set_xdp_umem_reg(&xsk, registration).expect("registration");
        sockopt::set_xdp_umem_fill_ring_size(&xsk, ENTRIES).expect("fill ring");
        sockopt::set_xdp_umem_completion_ring_size(&xsk, ENTRIES).expect("completion ring");
        sockopt::set_xdp_rx_ring_size(&xsk, ENTRIES).expect("RX ring");
        let flags = SocketAddrXdpFlags::XDP_COPY;
        let address = SocketAddrXdp::new(flags, ifindex.expect("ifindex"), 0);
        bind(&xsk, &address).expect("bind");
        xsk
    })
}

/// Joins and asks for a filter; how that ended, and how long it took.
fn ask() -> (Result<u32, ControlError>, Duration) {
    let mut program = Program::join().expect("join");
    let socket = UdpSocket::bind("198.18.9.1:7001").expect("bind");
    let endpoint = program.open(&socket);
    let begun = Instant::now();
    (program.filter(&socket, endpoint), begun.elapsed())
}

#[test]
fn a_queue_that_becomes_free_is_waited_for() {
    let bed = Bed::with_daemon();
    let xsk = take_the_queue(&bed);
    let (answer, others) = std::thread::scope(|scope| {
        let asking = scope.spawn(|| bed.inside(ask));
        let others = bed.inside(|| {
            until("the request waits", || {
                let daemon = query(QueryKind::Daemon);
                daemon["clients"].as_u64() == Some(2)
            });
            let answers = std::iter::repeat_with(|| {
                assert!(query(QueryKind::Interfaces).is_array());
            });
            answers
                .take_while(|()| !asking.is_finished())
                .take(ANSWERS)
                .count()
        });
        assert!(!asking.is_finished(), "it waits");
        drop(xsk);
        (asking.join().expect("thread"), others)
    });
    assert_eq!(others, ANSWERS, "the others are served meanwhile");
    assert!(answer.0.is_ok(), "{answer:?}");
}

#[test]
fn a_queue_that_stays_taken_is_told_of() {
    let bed = Bed::with_daemon();
    let _xsk = take_the_queue(&bed);
    let (answer, took) = bed.inside(ask);
    assert!(
        matches!(
            answer,
            Err(ControlError::Refused {
                refusal: Refusal::QueueBusy,
                ..
            })
        ),
        "{answer:?}"
    );
    assert!(took > Duration::from_millis(500), "{took:?}");
    until("nothing is attached", || {
        !bed.show("link show dmns").contains("xdp")
    });
}

#[test]
fn a_request_whose_client_is_gone_is_forgotten() {
    let bed = Bed::with_daemon();
    let _xsk = take_the_queue(&bed);
    bed.inside(|| {
        let mut program = Program::join().expect("join");
        let socket = UdpSocket::bind("198.18.9.1:7001").expect("bind");
        let endpoint = program.open(&socket);
        let request = super::program::filter_request(&socket, endpoint);
        let raw = super::program::Raw::connect();
        let attach =
            bypass_proto::control::Request::new(bypass_proto::control::RequestKind::Attach);
        raw.send(zerocopy::IntoBytes::as_bytes(&attach), &[]);
        assert!(!raw.receive().is_empty());
        raw.send(
            zerocopy::IntoBytes::as_bytes(&request),
            &[std::os::fd::AsFd::as_fd(&socket)],
        );
        drop(raw);
        until("it is gone", || {
            query(QueryKind::Daemon)["clients"].as_u64() == Some(2)
        });
    });
    until("nothing is attached", || {
        !bed.show("link show dmns").contains("xdp")
    });
}
