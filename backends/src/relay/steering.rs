//! Steering in software: what the XDP program does for AF_XDP, the relay does for each frame.
//!
//! The filters are in three tables that the daemon writes and the relay reads while it runs, of
//! the kind in which stacks enter their TCP flows ([`FlowTable`]): a tag is published after what it
//! stands for, and the counters are in the entries.
//!
//! ```text
//!   udp      local, remote            datagrams of one flow; remote all zero: of a local address
//!   opening  local                    TCP segments that begin connections
//!   grants   local                    where the stack's own flow table counts
//! ```
//!
//! Whatever matches nothing is the kernel's, for the reasons of [`super::COUNTERS`].

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU32, Ordering};

use rustix::io::Errno;

use super::port::CardFilter;
use crate::af_xdp::{
    FilterKey, FlowEntry, FlowKey, FlowTable, Listener, Target, TcpFlow, halves, port_bit,
};

/// Filters of each table, at most.
const FILTERS: u32 = 16_384;
const TCP: u8 = 6;
const UDP: u8 = 17;

/// Why a frame went where it went, in the order of `COUNTERS`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(usize)]
pub(super) enum Verdict {
    Led = 0,
    Unmatched = 1,
    Kept = 2,
    EmptySlot = 3,
    NotIp = 4,
    Vlan = 5,
    Group = 6,
    Truncated = 7,
    Options = 8,
    Fragment = 9,
    Icmp = 10,
    OtherProtocol = 11,
    NoFlow = 12,
    TooLong = 13,
    Pressed = 14,
}

/// The daemon's filters of a port.
#[derive(Debug)]
pub struct Filters {
    udp: FlowTable,
    opening: FlowTable,
    grants: FlowTable,
    fds: [OwnedFd; 3],
    udp_flows: PortCounts,
}

/// How many flows of datagrams there are, by the bit of their port. Ports that have none are not
/// marked in the table: their datagrams are looked up once. Counted by the daemon alone.
#[derive(Debug)]
struct PortCounts([AtomicU32; 64]);

impl PortCounts {
    fn of(udp: &FlowTable) -> Self {
        let counts = Self([const { AtomicU32::new(0) }; 64]);
        let flows = udp.entries().filter(|entry| entry.flow.remote_port != 0);
        flows.for_each(|entry| counts.change(entry.flow.local_port, 1));
        counts
    }

    /// `by` may be negative.
    fn change(&self, port: u16, by: i32) {
        let count = &self.0[port_bit(port) as usize];
        count.fetch_add(by as u32, Ordering::Relaxed);
    }

    fn marks(&self) -> u64 {
        let bits = self.0.iter().enumerate();
        let bits = bits.map(|(bit, count)| u64::from(count.load(Ordering::Relaxed) != 0) << bit);
        bits.fold(0, |marks, bit| marks | bit)
    }
}

impl Filters {
    /// Makes the tables. `seed` is random.
    ///
    /// # Errors
    /// As [`FlowTable::create`].
    pub fn create(seed: u64) -> Result<Self, Errno> {
        let make = || FlowTable::create(FILTERS, seed);
        Self::map([make()?, make()?, make()?])
    }

    /// Maps the tables that another process has made.
    ///
    /// # Errors
    /// As [`FlowTable::map`].
    pub fn map(fds: [OwnedFd; 3]) -> Result<Self, Errno> {
        let [udp, opening, grants] = &fds;
        let udp = FlowTable::map(udp)?;
        let udp_flows = PortCounts::of(&udp);
        // A daemon of an older release marks none.
        udp.mark(udp_flows.marks());
        Ok(Self {
            udp_flows,
            udp,
            opening: FlowTable::map(opening)?,
            grants: FlowTable::map(grants)?,
            fds,
        })
    }

    /// What [`Self::map`] takes.
    pub fn fds(&self) -> [BorrowedFd<'_>; 3] {
        let [udp, opening, grants] = &self.fds;
        [udp.as_fd(), opening.as_fd(), grants.as_fd()]
    }

    /// Where a filter is; `None` when it can be in no table.
    fn place(&self, filter: &FilterKey) -> Option<(&FlowTable, TcpFlow)> {
        let at = |key: &Listener| (key.any == 0).then(|| local_only(key.ip, key.port));
        match filter {
            FilterKey::Listener(key) if key.protocol == UDP => Some((&self.udp, at(key)?)),
            FilterKey::Listener(key) if key.protocol == TCP => Some((&self.opening, at(key)?)),
            FilterKey::Grant(key) => Some((&self.grants, at(key)?)),
            FilterKey::Flow(key) if key.protocol == u32::from(UDP) => {
                let flow = TcpFlow {
                    local: key.local,
                    remote: key.remote,
                    local_port: key.local_port,
                    remote_port: key.remote_port,
                };
                Some((&self.udp, flow))
            }
            FilterKey::Listener(_) | FilterKey::Flow(_) => None,
        }
    }

    /// Leads matching frames of at most `most` bytes to the stack; 0 = keeps all in the kernel.
    ///
    /// # Errors
    /// `EINVAL` for a filter that no table takes, `E2BIG` when its table is full.
    pub fn add(&self, filter: &FilterKey, most: u32) -> Result<(), Errno> {
        let (table, flow) = self.place(filter).ok_or(Errno::INVAL)?;
        let is_new = matches!(filter, FilterKey::Flow(_)) && table.find(&flow).is_none();
        if is_new {
            // Before it is there: a frame that is looked up in vain is found by its listener.
            self.count_flow(flow.local_port, 1);
        }
        if table.insert(&flow, most.into()).is_ok() {
            return Ok(());
        }
        if is_new {
            self.count_flow(flow.local_port, -1);
        }
        Err(Errno::TOOBIG)
    }

    /// Removes a filter; one that is not there is no error.
    pub fn remove(&self, filter: &FilterKey) {
        let Some((table, flow)) = self.place(filter) else {
            return;
        };
        if table.remove(&flow) && matches!(filter, FilterKey::Flow(_)) {
            self.count_flow(flow.local_port, -1);
        }
    }

    fn count_flow(&self, port: u16, by: i32) {
        self.udp_flows.change(port, by);
        self.udp.mark(self.udp_flows.marks());
    }

    /// What a filter does and has counted.
    #[must_use]
    pub fn target(&self, filter: &FilterKey) -> Option<Target> {
        let (table, flow) = self.place(filter)?;
        let entry = table.entry(table.find(&flow)?)?;
        Some(Target {
            slot: 0,
            most: entry.owner as u32,
            packets: entry.packets,
            bytes: entry.bytes,
        })
    }

    /// Every filter.
    #[must_use]
    pub fn keys(&self) -> Vec<FilterKey> {
        let udp = self.udp.entries().map(|entry| {
            let flow = entry.flow;
            if flow.remote_port == 0 {
                return FilterKey::Listener(Listener::at(flow.local, flow.local_port, UDP));
            }
            FilterKey::Flow(crate::af_xdp::Flow {
                local: flow.local,
                remote: flow.remote,
                local_port: flow.local_port,
                remote_port: flow.remote_port,
                protocol: u32::from(UDP),
            })
        });
        let listener = |flow: TcpFlow| Listener::at(flow.local, flow.local_port, TCP);
        let opening = self.opening.entries();
        let opening = opening.map(|entry| FilterKey::Listener(listener(entry.flow)));
        let grants = self.grants.entries();
        let grants = grants.map(|entry| FilterKey::Grant(listener(entry.flow)));
        udp.chain(opening).chain(grants).collect()
    }

    /// What a card must bring here: at least what these tables lead to the stack. A segment that
    /// is not, the relay gives back.
    pub(super) fn of_card(&self) -> impl Iterator<Item = CardFilter> {
        let filter = |protocol, flow: TcpFlow| CardFilter {
            protocol,
            local: (flow.local, flow.local_port),
            remote: (flow.remote_port != 0).then_some((flow.remote, flow.remote_port)),
        };
        let led = |entry: &FlowEntry| entry.owner != 0;
        let udp = self.udp.entries().filter(led);
        let udp = udp.map(move |entry| filter(UDP, entry.flow));
        let tcp = self.opening.entries().chain(self.grants.entries());
        let tcp = tcp.filter(led).map(move |entry| filter(TCP, entry.flow));
        udp.chain(tcp)
    }

    /// Where a frame goes. `flows` is the table of the stack that has the port; without one
    /// everything is the kernel's.
    #[inline]
    pub(super) fn steer(&self, frame: &[u8], flows: Option<&FlowTable>) -> Verdict {
        self.steer_head(frame, frame.len() as u64, flows)
    }

    /// The same for a frame of so many bytes, of which the first [`HEAD`] are enough.
    pub(super) fn steer_head(&self, head: &[u8], bytes: u64, flows: Option<&FlowTable>) -> Verdict {
        let packet = match Packet::parse(head) {
            Ok(packet) => packet,
            Err(verdict) => return verdict,
        };
        let Some(flows) = flows else {
            return Verdict::EmptySlot;
        };
        let Packet { protocol, flow, .. } = packet;
        let local = flow.of_local();
        let fits = |most| bytes <= most;
        let mut is_pressed = false;
        let most = if protocol == UDP {
            let has_flows = self.udp.is_marked(packet.local_port);
            let exact = has_flows.then(|| self.udp.count(&flow, bytes, fits));
            exact
                .flatten()
                .or_else(|| self.udp.count(&local, bytes, fits))
        } else {
            let is_granted = self.grants.holds(&local);
            if is_granted && flows.count(&flow, bytes, |_| true).is_some() {
                self.grants.count(&local, bytes, |_| true);
                return Verdict::Led;
            }
            if !packet.opens {
                return if is_granted {
                    Verdict::NoFlow
                } else {
                    Verdict::Unmatched
                };
            }
            is_pressed = is_granted && flows.is_marked(packet.local_port);
            let is_led = |most| fits(most) && !is_pressed;
            self.opening.count(&local, bytes, is_led)
        };
        match most {
            None => Verdict::Unmatched,
            Some(0) => Verdict::Kept,
            Some(_) if is_pressed => Verdict::Pressed,
            Some(most) if fits(most) => Verdict::Led,
            Some(_) => Verdict::TooLong,
        }
    }
}

fn local_only(local: [u8; 16], local_port: u16) -> TcpFlow {
    TcpFlow {
        local,
        remote: [0; 16],
        local_port,
        remote_port: 0,
    }
}

/// Bytes of a frame that steering looks at, at most: Ethernet, IPv6, TCP.
pub(super) const HEAD: usize = 14 + 40 + 20;

/// What steering looks at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Packet {
    protocol: u8,
    flow: FlowKey,
    local_port: u16,
    /// A SYN without ACK.
    opens: bool,
}

impl Packet {
    /// The packet of a frame, or why it is the kernel's: the steps of steer.bpf.c.
    #[inline(always)]
    fn parse(frame: &[u8]) -> Result<Self, Verdict> {
        let (ethernet, rest) = frame.split_first_chunk::<14>().ok_or(Verdict::Truncated)?;
        if ethernet[0] & 1 != 0 {
            return Err(Verdict::Group);
        }
        let Parts {
            protocol,
            local,
            remote,
            transport,
        } = match [ethernet[12], ethernet[13]] {
            [0x08, 0x00] => ipv4(rest)?,
            [0x86, 0xdd] => ipv6(rest)?,
            [0x81, 0x00] | [0x88, 0xa8] => return Err(Verdict::Vlan),
            _ => return Err(Verdict::NotIp),
        };
        const SYN: u8 = 0x02;
        const ACK: u8 = 0x10;
        let (ports, opens) = if protocol == UDP {
            let udp = transport.first_chunk::<8>().ok_or(Verdict::Truncated)?;
            ([udp[0], udp[1], udp[2], udp[3]], false)
        } else {
            let tcp = transport.first_chunk::<20>().ok_or(Verdict::Truncated)?;
            let opens = tcp[13] & (SYN | ACK) == SYN;
            ([tcp[0], tcp[1], tcp[2], tcp[3]], opens)
        };
        let remote_port = u16::from_be_bytes([ports[0], ports[1]]);
        let local_port = u16::from_be_bytes([ports[2], ports[3]]);
        Ok(Self {
            protocol,
            flow: FlowKey::new(local, remote, [local_port, remote_port]),
            local_port,
            opens,
        })
    }
}

/// What an IP header says, addresses as [`FlowKey`] has them, and what follows it.
struct Parts<'a> {
    protocol: u8,
    local: [u64; 2],
    remote: [u64; 2],
    transport: &'a [u8],
}

#[inline(always)]
fn ipv4(bytes: &[u8]) -> Result<Parts<'_>, Verdict> {
    let (header, transport) = bytes.split_first_chunk::<20>().ok_or(Verdict::Truncated)?;
    if header[0] >> 4 != 4 {
        return Err(Verdict::NotIp);
    }
    if header[0] & 15 != 5 {
        return Err(Verdict::Options);
    }
    if u16::from_be_bytes([header[6], header[7]]) & 0x3fff != 0 {
        return Err(Verdict::Fragment);
    }
    if header[16] >= 224 {
        return Err(Verdict::Group);
    }
    let protocol = match header[9] {
        protocol @ (UDP | TCP) => protocol,
        1 => return Err(Verdict::Icmp),
        _ => return Err(Verdict::OtherProtocol),
    };
    let mapped = |[a, b, c, d]: [u8; 4]| [0, u64::from_ne_bytes([0, 0, 0xff, 0xff, a, b, c, d])];
    Ok(Parts {
        protocol,
        local: mapped([header[16], header[17], header[18], header[19]]),
        remote: mapped([header[12], header[13], header[14], header[15]]),
        transport,
    })
}

fn ipv6(bytes: &[u8]) -> Result<Parts<'_>, Verdict> {
    let (header, transport) = bytes.split_first_chunk::<40>().ok_or(Verdict::Truncated)?;
    if header[24] == 0xff {
        return Err(Verdict::Group);
    }
    let protocol = match header[6] {
        protocol @ (UDP | TCP) => protocol,
        44 => return Err(Verdict::Fragment),
        0 | 43 | 60 => return Err(Verdict::Options),
        58 => return Err(Verdict::Icmp),
        _ => return Err(Verdict::OtherProtocol),
    };
    let address = |at: usize| header[at..].first_chunk().map_or([0; 2], halves);
    Ok(Parts {
        protocol,
        local: address(24),
        remote: address(8),
        transport,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOST: u32 = 100;

    /// A frame from 198.18.0.2:4000 to 198.18.0.1.
    fn frame(protocol: u8, port: u16, flags: u8) -> Vec<u8> {
        let mut bytes = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0];
        bytes.extend([0x45, 0, 0, 40, 0, 0, 0x40, 0, 64, protocol, 0, 0]);
        bytes.extend([198, 18, 0, 2, 198, 18, 0, 1]);
        bytes.extend(4000_u16.to_be_bytes());
        bytes.extend(port.to_be_bytes());
        bytes.extend([0, 0, 0, 0, 0, 0, 0, 0, 0x50, flags, 0, 0, 0, 0, 0, 0]);
        bytes
    }

    fn mapped(last: u8) -> [u8; 16] {
        [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 198, 18, 0, last]
    }

    fn tables() -> (Filters, FlowTable) {
        let filters = Filters::create(7).expect("these tests need CAP_BPF");
        let flows = FlowTable::create(64, 9).and_then(FlowTable::map);
        (filters, flows.unwrap())
    }

    #[test]
    fn datagrams_go_by_flow_before_address() {
        let (filters, flows) = tables();
        let datagram = frame(UDP, 53, 0);
        let steer = || filters.steer(&datagram, Some(&flows));
        assert_eq!(steer(), Verdict::Unmatched);
        assert_eq!(filters.steer(&datagram, None), Verdict::EmptySlot);
        let listener = FilterKey::Listener(Listener::at(mapped(1), 53, UDP));
        filters.add(&listener, MOST).unwrap();
        assert_eq!(steer(), Verdict::Led);
        let flow = FilterKey::Flow(crate::af_xdp::Flow {
            local: mapped(1),
            remote: mapped(2),
            local_port: 53,
            remote_port: 4000,
            protocol: UDP.into(),
        });
        filters.add(&flow, 0).unwrap();
        assert_eq!(steer(), Verdict::Kept);
        let mut keys = filters.keys();
        keys.sort_by_key(|key| matches!(key, FilterKey::Flow(_)));
        assert_eq!(keys, [listener, flow]);
        filters.remove(&flow);
        assert_eq!(steer(), Verdict::Led);
        let long = |bytes| {
            let mut datagram = datagram.clone();
            datagram.resize(bytes, 0);
            filters.steer(&datagram, Some(&flows))
        };
        assert_eq!(long(MOST as usize + 1), Verdict::TooLong);
        let counted = filters.target(&listener).unwrap();
        assert_eq!(
            (counted.packets, counted.bytes),
            (2, 2 * datagram.len() as u64)
        );
    }

    #[test]
    fn ports_are_marked_while_they_have_flows() {
        let (filters, _flows) = tables();
        let flow = |remote_port| {
            FilterKey::Flow(crate::af_xdp::Flow {
                local: mapped(1),
                remote: mapped(2),
                local_port: 53,
                remote_port,
                protocol: UDP.into(),
            })
        };
        let has_flows = || filters.udp.is_marked(53);
        let listener = FilterKey::Listener(Listener::at(mapped(1), 53, UDP));
        filters.add(&listener, MOST).unwrap();
        assert!(!has_flows());
        for remote_port in [4000, 4001, 4001] {
            filters.add(&flow(remote_port), MOST).unwrap();
        }
        filters.remove(&flow(4001));
        filters.remove(&flow(4001));
        assert!(has_flows());
        // A daemon that begins anew counts what there is.
        let fds = filters.fds().map(|fd| fd.try_clone_to_owned().unwrap());
        let next = Filters::map(fds).unwrap();
        next.remove(&flow(4000));
        assert!(!has_flows());
    }

    #[test]
    fn segments_go_by_grant_and_flow_and_those_that_open_by_listener() {
        const SYN: u8 = 2;
        const ACK: u8 = 16;
        let (filters, flows) = tables();
        let steer = |flags| filters.steer(&frame(TCP, 80, flags), Some(&flows));
        let at = Listener::at(mapped(1), 80, TCP);
        assert_eq!(steer(ACK), Verdict::Unmatched);
        filters.add(&FilterKey::Grant(at), MOST).unwrap();
        assert_eq!(
            (steer(ACK), steer(SYN)),
            (Verdict::NoFlow, Verdict::Unmatched)
        );
        filters.add(&FilterKey::Listener(at), MOST).unwrap();
        assert_eq!(steer(SYN), Verdict::Led);
        assert_eq!(steer(SYN | ACK), Verdict::NoFlow);
        let flow = TcpFlow {
            local: mapped(1),
            remote: mapped(2),
            local_port: 80,
            remote_port: 4000,
        };
        flows.mark(!0);
        assert_eq!(steer(SYN), Verdict::Pressed);
        flows.insert(&flow, 1).unwrap();
        assert_eq!((steer(ACK), steer(SYN)), (Verdict::Led, Verdict::Led));
        // What the stack was not granted it does not get.
        filters.remove(&FilterKey::Grant(at));
        assert_eq!(steer(ACK), Verdict::Unmatched);
    }

    #[test]
    fn everything_else_is_the_kernels() {
        let (filters, flows) = tables();
        let steer = |frame: &[u8]| filters.steer(frame, Some(&flows));
        let changed = |at: usize, to: u8| {
            let mut bytes = frame(UDP, 53, 0);
            bytes[at] = to;
            bytes
        };
        assert_eq!(steer(&changed(0, 1)), Verdict::Group);
        assert_eq!(steer(&changed(13, 6)), Verdict::NotIp);
        assert_eq!(steer(&changed(12, 0x81)), Verdict::Vlan);
        assert_eq!(steer(&changed(14, 0x46)), Verdict::Options);
        assert_eq!(steer(&changed(20, 0x20)), Verdict::Fragment);
        assert_eq!(steer(&changed(23, 1)), Verdict::Icmp);
        assert_eq!(steer(&changed(23, 47)), Verdict::OtherProtocol);
        assert_eq!(steer(&changed(30, 224)), Verdict::Group);
        for length in 0..42 {
            let whole = frame(UDP, 53, 0);
            assert_eq!(steer(&whole[..length]), Verdict::Truncated, "{length}");
        }
    }
}
