//! What a program gets, and what is left when it is gone.

use std::net::UdpSocket;
use std::time::Duration;

use bypass_proto::control::{QueryKind, Request, RequestKind};
use bypass_stack::cplane::{Lookup, lookup};
use bypass_stack::{EndpointId, IpAddress};

use super::bed::{Bed, SERVER, until};
use super::program::Program;

#[test]
fn a_program_gets_its_packets_and_nobody_elses() {
    let bed = Bed::with_daemon();
    bed.inside(|| {
        let mut program = Program::join().expect("join");
        let socket = UdpSocket::bind("198.18.9.1:7001").expect("bind");
        let endpoint = program.open(&socket);
        let filter = program.filter(&socket, endpoint).expect("filter");
        assert_eq!(program.map_queues(), 1);
        assert_eq!(program.links(), 1);
        let other = UdpSocket::bind("198.18.9.1:7002").expect("bind");
        other
            .set_read_timeout(Some(Duration::from_secs(2)))
            .expect("timeout");
        bed.outside(|| {
            let sender = UdpSocket::bind("198.18.9.2:0").expect("bind");
            for _ in 0..3 {
                sender.send_to(b"ours", "198.18.9.1:7001").expect("send");
            }
            sender
                .send_to(b"the kernel's", "198.18.9.1:7002")
                .expect("send");
        });
        until("three datagrams by the bypass", || {
            program.queued(endpoint) == 3
        });
        let mut bytes = [0; 32];
        assert_eq!(other.recv(&mut bytes).expect("by the kernel"), 12);

        let list = super::program::query(QueryKind::Filters);
        assert_eq!(list[0]["id"], filter);
        assert_eq!(list[0]["local"], "198.18.9.1:7001");
        assert_eq!(list[0]["interface"], "dmns");
        assert_eq!(list[0]["packets"], 3);
        assert_eq!(list[0]["state"], "live");
        assert_eq!(list[0]["owner"]["pid"], std::process::id());

        program
            .control
            .tell(Request {
                filter,
                ..Request::new(RequestKind::RemoveFilter)
            })
            .expect("tell");
        until("the filter is gone", || {
            super::program::query(QueryKind::Filters)
                .as_array()
                .is_some_and(Vec::is_empty)
        });
    });
}

#[test]
fn an_address_is_free_when_its_socket_is_closed() {
    let bed = Bed::with_daemon();
    bed.inside(|| {
        let mut program = Program::join().expect("join");
        let mut strays = 0;
        for round in 0..2000 {
            // The daemon has no copy of the one before any more.
            let mut socket = UdpSocket::bind("198.18.9.1:7001");
            if socket.is_err() && strays < 5 {
                // A child that another test has forked, and that has not called exec yet.
                strays += 1;
                std::thread::sleep(Duration::from_millis(500));
                socket = UdpSocket::bind("198.18.9.1:7001");
            }
            let socket = socket.unwrap_or_else(|error| panic!("round {round}: {error}"));
            let endpoint = program.open(&socket);
            let filter = program.filter(&socket, endpoint).expect("filter");
            let remove = Request {
                filter,
                ..Request::new(RequestKind::RemoveFilter)
            };
            program.control.tell(remove).expect("tell");
            let mut locked = program.attachment.lock().expect("lock");
            locked.stack().unhold(endpoint, program.process);
        }
    });
}

#[test]
fn the_control_plane_leads_to_the_queue() {
    let bed = Bed::with_daemon();
    bed.inside(|| {
        let mut program = Program::join().expect("join");
        let socket = UdpSocket::bind("[::]:7001").expect("bind");
        let endpoint = program.open(&socket);
        program.filter(&socket, endpoint).expect("filter");
        let peers = [
            (
                IpAddress::from_v4([198, 18, 9, 2]),
                "198.18.9.2:9",
                IpAddress::from_v4(SERVER),
            ),
            (
                IpAddress([0xfd, 0x98, 0, 9, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2]),
                "[fd98:9::2]:9",
                IpAddress([0xfd, 0x98, 0, 9, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]),
            ),
        ];
        for (peer, address, source) in peers {
            // The kernel resolves the neighbour, the mirror follows.
            socket.send_to(b"hello", address).expect("send");
            until("the neighbour is known", || {
                let found = program
                    .cplane
                    .read(|table| lookup(table, peer, IpAddress::UNSPECIFIED, 0, 0));
                matches!(found, Some(Lookup::Via(hop))
                    if hop.source == source && hop.queue_pair == 0)
            });
        }
        let _ = EndpointId::NONE;
    });
}
