//! What reaches the queue, and what reaches the kernel, with a kernel as peer.

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

use super::bed::{Bed, FAR, FAR6, NEAR, NEAR6, Queue, run};
use super::frame::{self, TCP, UDP, datagram};
use crate::af_xdp::{COUNTERS, FilterKey, Flow, Listener, Mode, Nic};

const SLOT: u32 = 3;
const PORT: u16 = 7000;

fn mapped(ip: IpAddr) -> [u8; 16] {
    match ip {
        IpAddr::V4(ip) => ip.to_ipv6_mapped().octets(),
        IpAddr::V6(ip) => ip.octets(),
    }
}

fn listener(ip: impl Into<IpAddr>, protocol: u8) -> FilterKey {
    FilterKey::Listener(Listener::at(mapped(ip.into()), PORT, protocol))
}

fn flow(remote_port: u16, protocol: u8) -> FilterKey {
    FilterKey::Flow(Flow {
        local: mapped(NEAR.into()),
        remote: mapped(FAR.into()),
        local_port: PORT,
        remote_port,
        protocol: protocol.into(),
    })
}

fn socket(ip: impl Into<IpAddr>, port: u16) -> UdpSocket {
    let socket = UdpSocket::bind(SocketAddr::new(ip.into(), port)).unwrap();
    socket
        .set_read_timeout(Some(Duration::from_secs(2)))
        .unwrap();
    socket
}

/// What a kernel socket has received; `None` when nothing comes.
fn received(socket: &UdpSocket, wait: Duration) -> Option<Vec<u8>> {
    let mut bytes = vec![0; 1 << 16];
    socket.set_read_timeout(Some(wait)).unwrap();
    let count = socket.recv(&mut bytes).ok()?;
    bytes.truncate(count);
    Some(bytes)
}

const SOON: Duration = Duration::from_secs(2);
const BRIEFLY: Duration = Duration::from_millis(100);

fn counter(nic: &Nic, name: &str) -> u64 {
    let index = COUNTERS.iter().position(|(known, _)| *known == name);
    nic.counters()[index.unwrap()]
}

#[test]
fn matched_datagrams_come_to_the_queue_and_all_else_to_the_kernel() {
    let bed = Bed::new();
    let nic = bed.nic(Mode::Native);
    let mut queue = Queue::open(&nic, 0, SLOT);
    nic.add_filter(listener(NEAR, UDP), SLOT).unwrap();
    let shadow = socket(NEAR, PORT);
    let other = socket(NEAR, PORT + 1);
    let six = socket(NEAR6, PORT);
    let sender = bed.far(|| socket(FAR, 0));

    sender.send_to(b"matched", (NEAR, PORT)).unwrap();
    let frame = queue.frame();
    assert_eq!(datagram(&frame), (PORT, &b"matched"[..]));
    assert_eq!(received(&shadow, BRIEFLY), None);

    sender.send_to(b"other port", (NEAR, PORT + 1)).unwrap();
    assert_eq!(received(&other, SOON).as_deref(), Some(&b"other port"[..]));
    // Fragments are put together by the kernel, for its own socket.
    sender.send_to(&[7; 3000], (NEAR, PORT)).unwrap();
    assert_eq!(received(&shadow, SOON), Some(vec![7; 3000]));
    let sender6 = bed.far(|| socket(FAR6, 0));
    sender6.send_to(b"six", (NEAR6, PORT)).unwrap();
    assert_eq!(received(&six, SOON).as_deref(), Some(&b"six"[..]));
    bed.far(|| run(&format!("ping -c 1 -W 2 {NEAR}")));
    bed.far(|| run(&format!("ping -c 1 -W 2 {NEAR6}")));
    // TCP to the same port number.
    let tcp = TcpListener::bind((NEAR, PORT)).unwrap();
    bed.far(|| TcpStream::connect((NEAR, PORT))).unwrap();
    tcp.accept().unwrap();

    queue.assert_silent();
    let counted = nic.filter_counters(listener(NEAR, UDP));
    assert_eq!((counted.packets, counted.bytes), (1, frame.len() as u64));
    assert_eq!(counter(&nic, "redirected"), 1);
    assert_eq!(counter(&nic, "fragment"), 3);
    for name in ["unmatched", "group", "icmp"] {
        assert!(counter(&nic, name) > 0, "{name}");
    }
}

#[test]
fn generic_mode_steers_too() {
    let bed = Bed::new();
    let nic = bed.nic(Mode::Generic);
    assert_eq!(nic.mode, Mode::Generic);
    assert!(nic.condition().unwrap().contains("tso off"));
    let mut queue = Queue::open(&nic, 0, SLOT);
    nic.add_filter(listener(NEAR, UDP), SLOT).unwrap();
    let other = socket(NEAR, PORT + 1);
    let sender = bed.far(|| socket(FAR, 0));
    sender.send_to(b"generic", (NEAR, PORT)).unwrap();
    assert_eq!(datagram(&queue.frame()), (PORT, &b"generic"[..]));
    sender.send_to(b"kernel", (NEAR, PORT + 1)).unwrap();
    assert_eq!(received(&other, SOON).as_deref(), Some(&b"kernel"[..]));
}

#[test]
fn a_veth_peer_leaves_the_checksum_partial() {
    let bed = Bed::new();
    let nic = bed.nic(Mode::Native);
    assert!(nic.has_partial_checksums());
    let mut queue = Queue::open(&nic, 0, SLOT);
    nic.add_filter(listener(NEAR, UDP), SLOT).unwrap();
    let sender = bed.far(|| socket(FAR, 0));
    sender.send_to(b"partial", (NEAR, PORT)).unwrap();
    let frame = queue.frame();
    let field = u16::from_be_bytes([frame[40], frame[41]]);
    let pseudo = frame::pseudo_header(FAR.into(), NEAR.into(), UDP, 8 + 7);
    assert_eq!(field, frame::fold(pseudo));
    bed.far(|| run("ethtool -K bktf tx off"));
    sender.send_to(b"partial", (NEAR, PORT)).unwrap();
    let frame = queue.frame();
    assert_eq!(frame::checksum(pseudo, &frame[34..34 + 8 + 7]), 0);
}

#[test]
fn any_v4_takes_no_v6_and_any_v6_no_v4() {
    let bed = Bed::new();
    let nic = bed.nic(Mode::Native);
    let mut queue = Queue::open(&nic, 0, SLOT);
    let (four, six) = (socket(NEAR, PORT), socket(NEAR6, PORT));
    let (sender4, sender6) = bed.far(|| (socket(FAR, 0), socket(FAR6, 0)));
    let send = |text: &[u8]| {
        sender4.send_to(text, (NEAR, PORT)).unwrap();
        sender6.send_to(text, (NEAR6, PORT)).unwrap();
    };

    let any_v4 = FilterKey::Listener(Listener::any_v4(PORT, UDP));
    nic.add_filter(any_v4, SLOT).unwrap();
    send(b"one");
    assert_eq!(queue.frame()[12..14], [0x08, 0x00]);
    assert_eq!(received(&six, SOON).as_deref(), Some(&b"one"[..]));
    queue.assert_silent();

    nic.remove_filter(any_v4);
    nic.add_filter(FilterKey::Listener(Listener::any_v6(PORT, UDP)), SLOT)
        .unwrap();
    send(b"two");
    assert_eq!(queue.frame()[12..14], [0x86, 0xdd]);
    assert_eq!(received(&four, SOON).as_deref(), Some(&b"two"[..]));
    queue.assert_silent();

    nic.add_filter(any_v4, SLOT).unwrap();
    send(b"dual");
    assert_eq!(queue.frames(2, SOON).len(), 2);
    assert_eq!(received(&four, BRIEFLY), None);
}

#[test]
fn a_flow_beats_an_address_and_an_address_beats_any() {
    let bed = Bed::new();
    let nic = bed.nic(Mode::Native);
    let mut queue = Queue::open(&nic, 0, SLOT);
    let shadow = socket(NEAR, PORT);
    let (one, two) = bed.far(|| (socket(FAR, 5001), socket(FAR, 5002)));

    // Any address to the queue, this address to the kernel, one flow to the queue again.
    nic.add_filter(FilterKey::Listener(Listener::any_v4(PORT, UDP)), SLOT)
        .unwrap();
    nic.keep_in_kernel(listener(NEAR, UDP)).unwrap();
    one.send_to(b"kept", (NEAR, PORT)).unwrap();
    assert_eq!(received(&shadow, SOON).as_deref(), Some(&b"kept"[..]));
    assert_eq!(counter(&nic, "kept"), 1);
    nic.add_filter(flow(5001, UDP), SLOT).unwrap();
    one.send_to(b"flow", (NEAR, PORT)).unwrap();
    assert_eq!(datagram(&queue.frame()), (PORT, &b"flow"[..]));
    two.send_to(b"other flow", (NEAR, PORT)).unwrap();
    assert_eq!(received(&shadow, SOON).as_deref(), Some(&b"other flow"[..]));

    let mut filters = nic.filters();
    assert_eq!(filters.len(), 3);
    filters.retain(|filter| nic.target(*filter).unwrap().packets == 1);
    assert_eq!(filters, [flow(5001, UDP)]);
    nic.remove_filter(flow(5001, UDP));
    assert_eq!(nic.target(flow(5001, UDP)), None);
}

#[test]
fn a_tcp_listener_takes_connections_that_begin_and_leaves_the_others() {
    let bed = Bed::new();
    let nic = bed.nic(Mode::Native);
    let mut queue = Queue::open(&nic, 0, SLOT);
    let server = TcpListener::bind((NEAR, PORT)).unwrap();
    let mut before = bed.far(|| TcpStream::connect((NEAR, PORT))).unwrap();
    let (mut accepted, _) = server.accept().unwrap();

    nic.add_filter(listener(NEAR, TCP), SLOT).unwrap();
    // The kernel's connection on the same port goes on.
    before.write_all(b"still here").unwrap();
    let mut text = [0; 10];
    accepted.read_exact(&mut text).unwrap();
    assert_eq!(&text, b"still here");
    // A new one begins at the queue.
    let address = SocketAddr::new(NEAR.into(), PORT);
    let refused = bed.far(|| TcpStream::connect_timeout(&address, BRIEFLY));
    assert!(refused.is_err());
    let frame = queue.frame();
    assert_eq!(frame[23], TCP);
    assert_eq!(frame[47] & 0x12, 0x02, "SYN without ACK");
    // There is one place for TCP flows, and it is not this map.
    assert!(nic.add_filter(flow(5001, TCP), SLOT).is_err());
}

#[test]
fn what_no_chunk_holds_passes() {
    const JUMBO: u32 = 9000;
    let bed = Bed::new();
    for mode in [Mode::Native, Mode::Generic] {
        let nic = bed.nic(mode);
        let mut queue = Queue::open(&nic, 0, SLOT);
        let filter = listener(NEAR, UDP);
        nic.add_filter(filter, SLOT).unwrap();
        let shadow = socket(NEAR, PORT);
        let sender = bed.far(|| socket(FAR, 0));
        // While the program is attached.
        run(&format!("ip link set bktn mtu {JUMBO}"));
        bed.far(|| run(&format!("ip link set bktf mtu {JUMBO}")));
        for bytes in [2000, 3500, 4000, JUMBO - 28] {
            let sent: Vec<u8> = (0..bytes).map(|byte| byte as u8).collect();
            sender.send_to(&sent, (NEAR, PORT)).unwrap();
            assert!(received(&shadow, SOON) == Some(sent), "{bytes} {mode:?}");
        }
        assert_eq!(counter(&nic, "too-long"), 4);
        assert_eq!(nic.filter_counters(filter).packets, 0);
        sender.send_to(b"short", (NEAR, PORT)).unwrap();
        assert_eq!(datagram(&queue.frame()).1, b"short");
        assert_eq!(received(&shadow, BRIEFLY), None);
    }
}

#[test]
fn an_empty_slot_passes() {
    let bed = Bed::new();
    let nic = bed.nic(Mode::Native);
    let filter = listener(NEAR, UDP);
    nic.add_filter(filter, SLOT).unwrap();
    let shadow = socket(NEAR, PORT);
    let sender = bed.far(|| socket(FAR, 0));
    sender.send_to(b"no queue", (NEAR, PORT)).unwrap();
    assert_eq!(received(&shadow, SOON).as_deref(), Some(&b"no queue"[..]));
    assert_eq!(counter(&nic, "empty-slot"), 1);
    assert_eq!(nic.filter_counters(filter).packets, 0);

    let mut queue = Queue::open(&nic, 0, SLOT);
    sender.send_to(b"queue", (NEAR, PORT)).unwrap();
    assert_eq!(datagram(&queue.frame()).1, b"queue");
    nic.close_queue(0, SLOT);
    sender.send_to(b"closed", (NEAR, PORT)).unwrap();
    assert_eq!(received(&shadow, SOON).as_deref(), Some(&b"closed"[..]));
    queue.assert_silent();
}

#[test]
fn every_queue_of_several_is_served() {
    let bed = Bed::with_queues(2);
    let nic = bed.nic(Mode::Native);
    assert_eq!(nic.queue_count, 2);
    let mut queues = [Queue::open(&nic, 0, SLOT), Queue::open(&nic, 1, SLOT)];
    nic.add_filter(listener(NEAR, UDP), SLOT).unwrap();
    const FLOWS: usize = 32;
    for _ in 0..FLOWS {
        let sender = bed.far(|| socket(FAR, 0));
        sender.send_to(b"some flow", (NEAR, PORT)).unwrap();
    }
    let first = queues[0].frames(FLOWS, BRIEFLY).len();
    let second = queues[1].frames(FLOWS, BRIEFLY).len();
    assert_eq!(first + second, FLOWS, "{first} and {second}");
    assert_eq!(nic.filter_counters(listener(NEAR, UDP)).packets, 32);
}
