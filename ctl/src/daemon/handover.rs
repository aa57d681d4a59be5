//! Datagrams of a socket that goes back to the kernel: exec, SCM_RIGHTS.
//!
//! What its endpoint has not read yet is sent to it once more, over the loopback interface, with
//! the sender's address, so that it lies in the kernel's socket. Only datagrams to the address of
//! the filter are: what an image says is not believed, and the filter's owner has proved that the
//! address is his.

use super::counters::Counter;
use super::filters::{TCP, Wish};
use super::outlet::Outlets;
use super::requests::Refused;
use super::server::Server;
use super::stacks::{Busy, StackEntry};
use bypass_proto::control::Refusal;
use bypass_stack::{EndpointId, IpAddress, Memory, SocketAddress, wire};

/// Datagrams copied under one lock.
const BATCH: usize = 64;

/// A datagram that leaves an endpoint: frame with headers, and where it goes.
struct Moved {
    frame: Vec<u8>,
    local: IpAddress,
}

impl Server {
    /// Ends a UDP filter and gives what its endpoint holds to the kernel's socket; how many.
    pub(super) fn hand_over(&mut self, uid: u32, filter: u32) -> Result<u32, Refused> {
        let found = self.filters.get(filter);
        let found = found.filter(|it| it.uid == uid && it.wish.protocol != TCP);
        let found = found.ok_or(Refusal::Malformed)?;
        let mut moved = 0_usize;
        // What is there now first, or datagrams that the kernel gets afterwards would overtake it.
        let result = self.move_unread(uid, found.endpoint, &found.wish, &mut moved);
        self.counters.add(Counter::FiltersRemoved);
        self.retire_filter(filter);
        let rest = self.move_unread(uid, found.endpoint, &found.wish, &mut moved);
        self.counters
            .add_many(Counter::DatagramsMoved, moved as u64);
        result.and(rest)?;
        Ok(moved as u32)
    }

    fn move_unread(
        &self,
        uid: u32,
        endpoint: EndpointId,
        wish: &Wish,
        moved: &mut usize,
    ) -> Result<(), Refused> {
        let Some(stack) = self.stacks.get(uid) else {
            return Ok(());
        };
        stack.pump()?;
        let mut outlets = Outlets::default();
        let is_own = |ip: &IpAddress| {
            let addresses = self.mirror.addresses();
            addresses.iter().any(|address| address.ip == *ip)
                && (wish.local.ip == *ip || wish.local.ip.is_unspecified())
        };
        for _ in 0..stack.capacities.chunks as usize / BATCH + 1 {
            let taken = stack.take_unread(endpoint, wish.local.port)?;
            for datagram in taken.iter().filter(|datagram| is_own(&datagram.local)) {
                outlets.send(datagram.local, &datagram.frame)?;
                *moved += 1;
            }
            if taken.len() < BATCH {
                break;
            }
        }
        Ok(())
    }
}

impl StackEntry {
    /// Takes up to [`BATCH`] datagrams off an endpoint's queue.
    fn take_unread(&self, endpoint: EndpointId, port: u16) -> Result<Vec<Moved>, Busy> {
        let mut locked = self.lock()?;
        let mut taken = Vec::new();
        while taken.len() < BATCH
            && let Ok(Some(datagram)) = locked.stack().udp_front(endpoint)
        {
            let start = datagram.offset as usize;
            let end = start + datagram.len as usize;
            let payload = locked.packets().chunk(datagram.chunk).get(start..end);
            let to = SocketAddress::new(datagram.local, port);
            let frame = payload
                .map(|payload| frame(datagram.remote, to, (datagram.tos, datagram.ttl), payload));
            let _ = locked.stack().udp_pop(endpoint);
            taken.push(Moved {
                frame: frame.unwrap_or_default(),
                local: datagram.local,
            });
        }
        Ok(taken)
    }
}

/// The frame of a datagram. Its Ethernet header is not used.
fn frame(from: SocketAddress, to: SocketAddress, marks: (u8, u8), payload: &[u8]) -> Vec<u8> {
    let headers = wire::Headers {
        source_mac: [0; 6],
        destination_mac: [0; 6],
        source: from.ip,
        destination: to.ip,
        source_port: from.port,
        destination_port: to.port,
        tos: marks.0,
        ttl: marks.1,
        ipv4_id: 0,
        dont_fragment: false,
        checksum: wire::TxChecksum::Whole,
    };
    let (before, emit): (usize, fn(&mut [u8], &wire::Headers)) = if to.ip.is_v4() {
        (wire::ipv4::ALL, wire::ipv4::emit)
    } else {
        (wire::ipv6::ALL, wire::ipv6::emit)
    };
    let mut frame = vec![0; before];
    frame.extend_from_slice(payload);
    emit(&mut frame, &headers);
    frame
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_says_who_sent_it() {
        for (from, to) in [
            ("198.18.0.9:53", "198.18.0.1:7001"),
            ("[2001:db8::9]:53", "[2001:db8::1]:7001"),
        ] {
            let address = |text: &str| {
                let address: std::net::SocketAddr = text.parse().expect("address");
                SocketAddress::new(address.ip().into(), address.port())
            };
            let bytes = frame(address(from), address(to), (4, 63), b"payload");
            let parsed = wire::parse(&bytes, &[0; 6], bypass_stack::RxChecksum::Unknown)
                .expect("a datagram");
            let source = SocketAddress::new(parsed.source, parsed.source_port);
            let destination = SocketAddress::new(parsed.destination, parsed.destination_port);
            assert_eq!((source, destination), (address(from), address(to)));
            assert_eq!((parsed.tos, parsed.ttl), (4, 63));
            assert!(bytes.ends_with(b"payload"));
        }
    }
}
