//! Requests and responses over TCP between two smoltcp stacks, over nothing but memory: what
//! `stack_tcp` does, with another engine, to have a figure beside ours.
//!
//! Arguments as `stack_tcp`: count of requests; bytes of request and response (default 32); count
//! of connections that take turns (default 1).

use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::socket::tcp::{Socket, SocketBuffer};
use smoltcp::time::{Duration, Instant};
use smoltcp::wire::{HardwareAddress, IpAddress, IpCidr};
use smoltcp_nic::Nic;

#[path = "../tests/smoltcp_nic/mod.rs"]
mod smoltcp_nic;

/// Bytes of a socket's buffers.
const BUFFER: usize = 4096;

/// A stack.
struct Side {
    nic: Nic,
    interface: Interface,
    sockets: SocketSet<'static>,
}

impl Side {
    fn new(address: IpAddress, now: Instant) -> Self {
        let mut nic = Nic::new(1500);
        let config = Config::new(HardwareAddress::Ip);
        let mut interface = Interface::new(config, &mut nic, now);
        interface.update_ip_addrs(|list| list.push(IpCidr::new(address, 24)).expect("room"));
        Self {
            nic,
            interface,
            sockets: SocketSet::new(Vec::new()),
        }
    }

    fn open(&mut self) -> SocketHandle {
        let buffer = || SocketBuffer::new(vec![0; BUFFER]);
        let mut socket = Socket::new(buffer(), buffer());
        socket.set_nagle_enabled(false);
        socket.set_ack_delay(Some(Duration::from_millis(40)));
        self.sockets.add(socket)
    }

    fn socket(&mut self, id: SocketHandle) -> &mut Socket<'static> {
        self.sockets.get_mut(id)
    }

    fn poll(&mut self, now: Instant) {
        self.interface.poll(now, &mut self.nic, &mut self.sockets);
    }
}

/// Carries what one side has to send to the other, which takes it in.
fn carry(from: &mut Side, to: &mut Side, now: Instant) -> usize {
    from.poll(now);
    let frames = from.nic.sent.len();
    to.nic.arrived.append(&mut from.nic.sent);
    to.poll(now);
    frames
}

fn main() {
    let number = |at: usize, otherwise: usize| {
        std::env::args()
            .nth(at)
            .and_then(|text| text.parse().ok())
            .unwrap_or(otherwise)
    };
    let (count, len, connections) = (number(1, 100_000), number(2, 32), number(3, 1));
    let mut now = Instant::from_micros(1_000_000);
    let (us, them) = (IpAddress::v4(198, 18, 0, 1), IpAddress::v4(198, 18, 0, 2));
    let (mut client, mut server) = (Side::new(us, now), Side::new(them, now));
    let mut pairs = Vec::new();
    for nth in 0..connections {
        let (id, peer) = (client.open(), server.open());
        server.socket(peer).listen(80).expect("listener");
        let context = client.interface.context();
        let socket = client.sockets.get_mut::<Socket<'_>>(id);
        socket
            .connect(context, (them, 80), 1024 + nth as u16)
            .expect("connect");
        while carry(&mut client, &mut server, now) + carry(&mut server, &mut client, now) > 0 {}
        pairs.push((id, peer));
    }
    let (request, mut into) = (vec![0x5a; len], vec![0; len]);
    let mut bytes = 0;
    for nth in 0..count {
        now += Duration::from_micros(20);
        let (id, peer) = pairs[nth % pairs.len()];
        client.socket(id).send_slice(&request).expect("open");
        carry(&mut client, &mut server, now);
        bytes += server.socket(peer).recv_slice(&mut into).expect("open");
        server.socket(peer).send_slice(&into).expect("open");
        carry(&mut server, &mut client, now);
        bytes += client.socket(id).recv_slice(&mut into).expect("open");
    }
    println!("{count} requests and responses of {len} bytes, {bytes} bytes received");
}
