//! Our stack and smoltcp, another engine by other people, over a bad wire. One seed decides
//! everything: `BYPASS_SEED=n` repeats one, `BYPASS_SEEDS=n` runs so many.

mod common;
mod smoltcp_nic;
mod tcp_sim;

use bypass_stack::{IpAddress, SocketAddress};
use common::Random;
use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::socket::tcp::{RecvError, Socket, SocketBuffer, State};
use smoltcp::time::Instant;
use smoltcp::wire::{HardwareAddress, IpAddress as TheirAddress, IpCidr};
use smoltcp_nic::Nic;
use tcp_sim::host::address;
use tcp_sim::peer::{self, CLIENT, Peer};
use tcp_sim::plan::Plan;

fn their_address(address: IpAddress) -> TheirAddress {
    match address.to_v4() {
        Some(v4) => TheirAddress::from(std::net::Ipv4Addr::from(v4)),
        None => TheirAddress::from(std::net::Ipv6Addr::from(address.0)),
    }
}

/// Its clock has microseconds.
fn their_time(now: u64) -> Instant {
    Instant::from_micros((now / 1000) as i64)
}

/// smoltcp with one socket.
struct Smoltcp {
    nic: Nic,
    interface: Interface,
    sockets: SocketSet<'static>,
    handle: SocketHandle,
}

impl Smoltcp {
    fn socket(&mut self) -> &mut Socket<'static> {
        self.sockets.get_mut(self.handle)
    }
}

impl Peer for Smoltcp {
    fn new(plan: &Plan, random: &mut Random) -> Self {
        let mut nic = Nic::new(usize::from(plan.mtu[1]));
        let mut config = Config::new(HardwareAddress::Ip);
        config.random_seed = random.next();
        let now = their_time(plan.start_ns);
        let mut interface = Interface::new(config, &mut nic, now);
        let address = their_address(address(1, plan.ipv6));
        interface.update_ip_addrs(|list| list.push(IpCidr::new(address, 24)).unwrap());
        let mut buffer = || {
            let size = [2_000, 20_000, 65_535, 200_000][random.below(4) as usize];
            SocketBuffer::new(vec![0; size])
        };
        let socket = Socket::new(buffer(), buffer());
        let mut sockets = SocketSet::new(Vec::new());
        let handle = sockets.add(socket);
        Self {
            nic,
            interface,
            sockets,
            handle,
        }
    }

    /// A window that is taken back, for want of chunks, makes it wait for ever: it probes a window
    /// that is open again, and does not repeat what was lost (RFC 9293 section 3.8.6 forbids that).
    fn suit(plan: &mut Plan) {
        plan.chunks = plan.chunks.max(1024);
    }

    fn listen(&mut self, port: u16) {
        self.socket().listen(port).unwrap();
    }

    fn connect(&mut self, to: SocketAddress) {
        let socket = self.sockets.get_mut::<Socket<'_>>(self.handle);
        let remote = (their_address(to.ip), to.port);
        let context = self.interface.context();
        socket.connect(context, remote, CLIENT).unwrap();
    }

    fn receive(&mut self, packet: Vec<u8>, _: u64) {
        self.nic.arrived.push_back(packet);
    }

    fn poll(&mut self, now: u64) {
        let now = their_time(now);
        self.interface.poll(now, &mut self.nic, &mut self.sockets);
    }

    fn next_at(&mut self, now: u64) -> Option<u64> {
        let delay = self.interface.poll_delay(their_time(now), &self.sockets)?;
        // Not earlier than its clock can say, or time would stand still.
        Some(now + delay.total_micros().max(1) * 1000)
    }

    fn sent(&mut self) -> Option<Vec<u8>> {
        self.nic.sent.pop_front()
    }

    fn write(&mut self, bytes: &[u8]) -> usize {
        let socket = self.socket();
        if socket.can_send() {
            socket.send_slice(bytes).unwrap()
        } else {
            0
        }
    }

    fn read(&mut self, into: &mut [u8]) -> Option<usize> {
        match self.socket().recv_slice(into) {
            Ok(count) => Some(count),
            Err(RecvError::InvalidState) => Some(0),
            Err(RecvError::Finished) => None,
        }
    }

    fn shut_down(&mut self) -> bool {
        let socket = self.socket();
        let may = socket.may_send();
        if may {
            socket.close();
        }
        may
    }

    fn is_over(&mut self) -> bool {
        matches!(self.socket().state(), State::Closed | State::TimeWait)
    }
}

#[test]
fn seeds() {
    peer::run_seeds::<Smoltcp>(60);
}
