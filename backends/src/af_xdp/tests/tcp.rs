//! TCP: flows that a stack enters in its own table, with a kernel as peer.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::os::fd::{AsFd as _, OwnedFd};
use std::time::Duration;

use super::bed::{Bed, FAR, FAR6, NEAR, NEAR6, Queue};
use super::frame::{self, TCP, ethernet, ipv4, ipv6, tcp};
use super::reasons::{CHAT, Wire, v4, v6};
use crate::af_xdp::{FilterKey, FlowTable, Listener, Mode, Nic, TcpFlow};
use crate::api::{QueuePair as _, Transmit};

const SLOT: u32 = 3;
const PORT: u16 = 7000;
const SYN: u8 = 2;
const ACK: u8 = 16;

fn mapped(ip: impl Into<IpAddr>) -> [u8; 16] {
    match ip.into() {
        IpAddr::V4(ip) => ip.to_ipv6_mapped().octets(),
        IpAddr::V6(ip) => ip.octets(),
    }
}

fn at(ip: impl Into<IpAddr>, port: u16) -> Listener {
    Listener::at(mapped(ip), port, TCP)
}

fn flow(local_port: u16, remote_port: u16) -> TcpFlow {
    TcpFlow {
        local: mapped(NEAR),
        remote: mapped(FAR),
        local_port,
        remote_port,
    }
}

fn table(nic: &mut Nic, slot: u32) -> (OwnedFd, FlowTable) {
    let fd = FlowTable::create(1000, 0x9e37_79b9_7f4a_7c15).unwrap();
    nic.set_flow_table(slot, fd.as_fd()).unwrap();
    let table = FlowTable::map(&fd).unwrap();
    (fd, table)
}

fn word(frame: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(frame[at..at + 4].try_into().unwrap())
}

/// Answers a TCP frame: its sequence number and one (SYN) or its data are acknowledged.
fn answer(frame: &[u8], flags: u8, sequence: u32, taken: u32) -> Vec<u8> {
    let port = |at: usize| u16::from_be_bytes([frame[at], frame[at + 1]]);
    let mut segment = tcp(port(36), port(34), flags);
    segment[4..8].copy_from_slice(&sequence.to_be_bytes());
    let acknowledged = word(frame, 38).wrapping_add(taken);
    segment[8..12].copy_from_slice(&acknowledged.to_be_bytes());
    segment[14..16].copy_from_slice(&4096_u16.to_be_bytes());
    let pseudo = frame::pseudo_header(NEAR.into(), FAR.into(), TCP, segment.len() as u16);
    let sum = frame::checksum(pseudo, &segment);
    segment[16..18].copy_from_slice(&sum.to_be_bytes());
    let packet = ipv4(NEAR, FAR, TCP, 0, &[], &segment);
    let mac = |at: usize| frame[at..at + 6].try_into().unwrap();
    ethernet(mac(6), mac(0), 0x0800, &packet)
}

fn send(queue: &mut Queue, bytes: &[u8]) {
    queue.packets.write(900, bytes);
    let frame = Transmit {
        chunk: 900,
        offset: 0,
        len: bytes.len() as u32,
        stamp: 0,
    };
    assert_eq!(queue.pair.submit(&[frame]), 1);
    queue.pair.ring_doorbell().unwrap();
    let mut done = [0; 4];
    while queue.pair.complete(&mut done) == 0 {}
}

/// What a flow and the grant of its address have counted.
fn counted(nic: &Nic, table: &FlowTable, flow: &TcpFlow) -> (u64, u64) {
    let entry = table.find(flow).and_then(|slot| table.entry(slot)).unwrap();
    let key = Listener::at(flow.local, flow.local_port, TCP);
    let all = nic.filter_counters(FilterKey::Grant(key));
    assert!(all.packets >= entry.packets && all.bytes >= entry.bytes);
    (entry.packets, entry.bytes)
}

#[test]
fn a_connection_comes_by_its_flow_and_goes_with_it() {
    let bed = Bed::new();
    let mut nic = bed.nic(Mode::Native);
    let mut queue = Queue::open(&nic, 0, SLOT);
    let (_fd, table) = table(&mut nic, SLOT);
    nic.add_filter(FilterKey::Listener(at(NEAR, PORT)), SLOT)
        .unwrap();
    nic.add_filter(FilterKey::Grant(at(NEAR, PORT)), SLOT)
        .unwrap();

    let socket = bed.far(|| {
        let domain = rustix::net::AddressFamily::INET;
        rustix::net::socket(domain, rustix::net::SocketType::STREAM, None).unwrap()
    });
    let client = std::thread::spawn(move || {
        rustix::net::connect(&socket, &SocketAddr::new(NEAR.into(), PORT)).unwrap();
        TcpStream::from(socket)
    });
    let syn = queue.frame();
    assert_eq!(syn[47] & (SYN | ACK), SYN);
    let remote_port = u16::from_be_bytes([syn[34], syn[35]]);
    let flow = flow(PORT, remote_port);
    let slot = table.insert(&flow, 1).unwrap();
    send(&mut queue, &answer(&syn, SYN | ACK, 1000, 1));
    let acknowledgement = queue.frame();
    assert_eq!(acknowledgement[47] & (SYN | ACK), ACK);
    assert_eq!(word(&acknowledgement, 42), 1001);
    let mut client = client.join().unwrap();
    client.write_all(b"by the flow").unwrap();
    let data = queue.frame();
    assert!(data.ends_with(b"by the flow"), "{data:02x?}");
    send(&mut queue, &answer(&data, ACK, 1001, 11));
    let bytes = acknowledgement.len() + data.len();
    assert_eq!(counted(&nic, &table, &flow), (2, bytes as u64));
    assert_eq!(
        nic.filter_counters(FilterKey::Listener(at(NEAR, PORT)))
            .packets,
        1
    );

    // Without its flow it is nobody's connection, and the kernel says so.
    assert!(table.remove_slot(slot, 1));
    client.write_all(b"to the kernel").unwrap();
    client
        .set_read_timeout(Some(Duration::from_secs(5)))
        .unwrap();
    let error = client.read(&mut [0; 8]).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
    queue.assert_silent();
}

#[test]
#[expect(clippy::too_many_lines, reason = "a table of segments")]
fn each_segment_goes_where_table_and_grants_say() {
    let bed = Bed::new();
    let mut wire = Wire::new(&bed);
    let (_fd, mine) = table(&mut wire.near, 0);
    let (_fd, empty) = table(&mut wire.near, 1);
    let grant = |wire: &Wire, ip: IpAddr, port, slot| {
        let key = FilterKey::Grant(at(ip, port));
        wire.near.add_filter(key, slot).unwrap();
    };
    let listener = FilterKey::Listener(at(NEAR, PORT));
    wire.near.add_filter(listener, 0).unwrap();
    grant(&wire, NEAR.into(), PORT, 0);
    grant(&wire, NEAR6.into(), PORT, 0);
    grant(&wire, NEAR.into(), PORT + 1, 0);
    grant(&wire, NEAR.into(), PORT + 2, 1);
    for flow in [flow(PORT, 5000), flow(PORT + 1, 5000), flow(PORT + 9, 5000)] {
        mine.insert(&flow, 0).unwrap();
    }
    empty.insert(&flow(PORT + 2, 5000), 0).unwrap();
    // Another stack's table does not count, whatever it claims.
    empty.insert(&flow(PORT, 5003), 0).unwrap();
    let six = TcpFlow {
        local: mapped(NEAR6),
        remote: mapped(FAR6),
        ..flow(PORT, 5000)
    };
    mine.insert(&six, 0).unwrap();

    let segment = |from, to, flags| v4(&ipv4(FAR, NEAR, TCP, 0, &[], &tcp(from, to, flags)));
    let from = |ip: Ipv4Addr| v4(&ipv4(ip, NEAR, TCP, 0, &[], &tcp(5000, PORT, ACK)));
    let over6 = |from| v6(&ipv6(FAR6, NEAR6, TCP, &tcp(from, PORT, ACK)));
    let fragment = ipv4(FAR, NEAR, TCP, 0x2000, &[], &tcp(5000, PORT, ACK));
    let options = ipv4(FAR, NEAR, TCP, 0, &[1; 4], &tcp(5000, PORT, ACK));
    let hop_by_hop = [&[TCP, 0, 1, 4, 0, 0, 0, 0][..], &tcp(5000, PORT, ACK)].concat();
    let cases = [
        ("redirected", "a flow", segment(5000, PORT, ACK)),
        ("redirected", "its SYN-ACK", segment(5000, PORT, SYN | ACK)),
        ("redirected", "its RST", segment(5000, PORT, 4)),
        (
            "redirected",
            "a SYN in a flow",
            segment(5000, PORT + 1, SYN),
        ),
        (
            "redirected",
            "a SYN to the listener",
            segment(5001, PORT, SYN),
        ),
        ("redirected", "a flow over IPv6", over6(5000)),
        ("no-flow", "another remote port", segment(5001, PORT, ACK)),
        (
            "no-flow",
            "another remote address",
            from(Ipv4Addr::new(198, 18, 40, 3)),
        ),
        ("no-flow", "another flow over IPv6", over6(5001)),
        (
            "no-flow",
            "a SYN-ACK out of nowhere",
            segment(5001, PORT, SYN | ACK),
        ),
        ("no-flow", "another stack's claim", segment(5003, PORT, ACK)),
        (
            "unmatched",
            "a SYN where none listens",
            segment(5001, PORT + 1, SYN),
        ),
        (
            "unmatched",
            "a flow that was not granted",
            segment(5000, PORT + 9, ACK),
        ),
        (
            "empty-slot",
            "a stack without a queue",
            segment(5000, PORT + 2, ACK),
        ),
        ("fragment", "a fragment", v4(&fragment)),
        ("options", "IPv4 options", v4(&options)),
        (
            "options",
            "an extension header",
            v6(&ipv6(FAR6, NEAR6, 0, &hop_by_hop)),
        ),
    ];
    for (counter, name, bytes) in &cases {
        let (mut moved, frame) = wire.send(bytes);
        moved.retain(|moved| !CHAT.contains(moved));
        // The kernel's answer to what passes may bring one more.
        assert!(moved.contains(counter), "{name}: {moved:?}");
        assert_eq!(frame.is_some(), *counter == "redirected", "{name}");
    }
    // At a pressed port only flows are led, and segments of the kernel's connections still pass.
    let ports = |port: u16| 1 << ((port ^ port >> 6) & 63);
    for (pressed, counter) in [(ports(PORT), "pressed"), (!ports(PORT), "redirected")] {
        mine.mark(pressed);
        let (moved, frame) = wire.send(&segment(5001, PORT, SYN));
        assert!(moved.contains(&counter), "{pressed:x}: {moved:?}");
        assert_eq!(frame.is_some(), counter == "redirected");
        let (_, frame) = wire.send(&segment(5000, PORT, SYN));
        assert!(frame.is_some());
    }
    // A grant that is taken back takes the flows along.
    wire.near.remove_filter(FilterKey::Grant(at(NEAR, PORT)));
    let (_, frame) = wire.send(&segment(5000, PORT, ACK));
    assert_eq!(frame, None);
}

#[test]
fn a_grant_needs_a_table_and_a_table_a_slot() {
    let bed = Bed::new();
    let mut nic = bed.nic(Mode::Native);
    let grant = FilterKey::Grant(at(NEAR, PORT));
    assert!(nic.add_filter(grant, SLOT).is_err());
    let (fd, _) = table(&mut nic, SLOT);
    assert!(
        nic.set_flow_table(crate::af_xdp::SLOTS, fd.as_fd())
            .is_err()
    );
    nic.add_filter(grant, SLOT).unwrap();
    assert!(nic.keep_in_kernel(grant).is_err());
    assert_eq!(nic.filters(), [grant]);
    // Tables of different sizes go into one map.
    let larger = FlowTable::create(100_000, 1).unwrap();
    nic.set_flow_table(SLOT, larger.as_fd()).unwrap();
}

/// Prints what one frame costs in the program, by `bpftool prog run`, in ns. docs/adr/0005 has the
/// results.
#[test]
#[ignore = "a measurement; needs bpftool and a quiet machine"]
fn what_a_frame_costs() {
    let bed = Bed::new();
    let mut nic = bed.nic(Mode::Native);
    let _queue = Queue::open(&nic, 0, 0);
    let (_fd, table) = table(&mut nic, 0);
    let listen = |ip, protocol| FilterKey::Listener(Listener::at(mapped(ip), PORT, protocol));
    nic.add_filter(listen(NEAR, frame::UDP), 0).unwrap();
    nic.add_filter(listen(NEAR, TCP), 0).unwrap();
    nic.add_filter(FilterKey::Grant(at(NEAR, PORT)), 0).unwrap();
    for remote_port in 0..1000 {
        table.insert(&flow(PORT, remote_port), 0).unwrap();
    }
    let datagram = frame::udp((FAR.into(), 500), (NEAR.into(), PORT), b"");
    let ethernet = |protocol, bytes: &[u8]| v4(&ipv4(FAR, NEAR, protocol, 0, &[], bytes));
    let segment = |from, to, flags| ethernet(TCP, &tcp(from, to, flags));
    let cases = [
        ("UDP listener", ethernet(frame::UDP, &datagram)),
        ("TCP flow", segment(500, PORT, ACK)),
        ("TCP SYN to a listener", segment(5000, PORT, SYN)),
        ("TCP segment of no flow", segment(5000, PORT, ACK)),
        ("TCP of the kernel", segment(500, PORT + 1, ACK)),
    ];
    let (program, _) = crate::af_xdp::bpf::link_target(nic.link()).unwrap();
    let file = std::env::temp_dir().join(format!("bkt-frame-{}", std::process::id()));
    for (name, frame) in cases {
        std::fs::write(&file, frame).unwrap();
        let output = std::process::Command::new("bpftool")
            .args([
                "prog",
                "run",
                "id",
                &program.to_string(),
                "repeat",
                "2000000",
                "data_in",
            ])
            .arg(&file)
            .output()
            .unwrap();
        println!("{name}: {}", String::from_utf8_lossy(&output.stdout).trim());
    }
    std::fs::remove_file(&file).unwrap();
    let begun = std::time::Instant::now();
    for remote_port in 0..1000 {
        table.remove(&flow(PORT, remote_port));
        table.insert(&flow(PORT, remote_port), 0).unwrap();
    }
    println!("removing and entering a flow: {:?}", begun.elapsed() / 1000);
}
