//! Demux: from the addresses of a datagram to the endpoint that takes it.
//!
//! Connected endpoints are in `flows`, hashed by remote address, remote port and local port;
//! all others in `ports`, by local port. A bucket is a doubly linked chain through the endpoints,
//! so that link and unlink are O(1); a look-up walks one short chain of each.
//!
//! The rule is Linux's (`compute_score` in net/ipv4/udp.c and net/ipv6/udp.c): connected beats
//! bound to the address beats bound to any; then bound to the device; then an IPv4 endpoint before
//! a dual one. Among equals the youngest bind wins, unless it has SO_REUSEPORT: then the 4-tuple's
//! hash picks among the equals that have it too, by rendezvous ([`weight`]). Departure: when one of
//! N members comes or goes, 1/N of the flows move; Linux scales the hash to its array and moves up
//! to half of them.

use crate::counters::Counter;
use crate::image::{Endpoint, NONE, UdpOptions, kind, table};
use crate::stack::Stack;
use crate::types::{EndpointId, Family, IpAddress, SocketAddress};

/// What demux looks at in a datagram.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Addresses {
    pub(crate) local: SocketAddress,
    pub(crate) remote: SocketAddress,
    pub(crate) ifindex: u32,
    pub(crate) is_v4: bool,
}

const SCORE_CONNECTED: u32 = 32;
const SCORE_ADDRESS: u32 = 16;
const SCORE_DEVICE: u32 = 4;
const SCORE_FAMILY: u32 = 1;

impl Endpoint {
    /// How well the endpoint fits; `None` if it does not take the datagram at all.
    #[inline]
    fn score(&self, to: &Addresses) -> Option<u32> {
        if self.local_port != to.local.port || self.kind != kind::UDP {
            return None;
        }
        let mut score = match (Family::from_byte(self.family), to.is_v4) {
            (Family::V4, true) => SCORE_FAMILY,
            (Family::V6, false) | (Family::Dual, _) => 0,
            (Family::V4, false) | (Family::V6, true) => return None,
        };
        if self.connected != 0 {
            if self.remote_port != to.remote.port || self.remote_ip != to.remote.ip {
                return None;
            }
            score |= SCORE_CONNECTED;
        }
        if self.local_ip == to.local.ip {
            score |= SCORE_ADDRESS;
        } else if !self.local_ip.is_unspecified() {
            return None;
        }
        if self.ifindex != 0 {
            if self.ifindex != to.ifindex {
                return None;
            }
            score |= SCORE_DEVICE;
        }
        Some(score)
    }
}

/// Hash of a flow: two multiplications, keyed by the image's seed.
#[inline]
pub(crate) fn flow_hash(seed: u64, remote: &SocketAddress, local_port: u16) -> u64 {
    let (high, low) = remote.ip.words();
    let ports = u64::from(remote.port) << 16 | u64::from(local_port);
    let a = fold(low ^ seed, high ^ 0x9e37_79b9_7f4a_7c15);
    // A multiplier with bits everywhere, whatever the seed: else the ports would not reach the low
    // bits that choose the bucket.
    fold(a ^ ports, seed ^ 0xa076_1d64_78bd_642f)
}

/// Both halves of a 128-bit product, mixed.
#[inline]
pub(crate) fn fold(a: u64, b: u64) -> u64 {
    let product = u128::from(a).wrapping_mul(u128::from(b));
    (product as u64) ^ (product >> 64) as u64
}

impl Stack<'_> {
    /// The endpoint that takes a datagram from `remote` to `local`, by Linux's rule. Endpoints
    /// bound to a device take none of these: they are asked only for frames.
    #[must_use]
    pub fn udp_lookup(&self, local: SocketAddress, remote: SocketAddress) -> Option<EndpointId> {
        let to = Addresses {
            local,
            remote,
            ifindex: 0,
            is_v4: local.ip.is_v4(),
        };
        let index = self.find(&to)?;
        let endpoint = self.endpoints.get(index as usize)?;
        Some(EndpointId {
            index,
            generation: endpoint.generation,
        })
    }

    /// The slab index of the endpoint that takes a datagram.
    #[inline]
    pub(crate) fn find(&self, to: &Addresses) -> Option<u32> {
        if self.head.connected_endpoints != 0 {
            let hash = flow_hash(self.head.seed, &to.remote, to.local.port);
            let first = bucket(self.flows, hash as u32);
            if let Some((best, _)) = self.best_of(first, to) {
                return Some(best);
            }
        }
        let first = bucket(self.ports, u32::from(to.local.port));
        let (best, equals) = self.best_of(first, to)?;
        if equals == 1 {
            Some(best)
        } else {
            self.share(first, best, to)
        }
    }

    /// The TCP connection of a 4-tuple.
    #[inline]
    pub(crate) fn find_connection(
        &self,
        local: &SocketAddress,
        remote: &SocketAddress,
    ) -> Option<u32> {
        if self.head.connected_endpoints == 0 {
            return None;
        }
        let hash = flow_hash(self.head.seed, remote, local.port);
        let mut index = bucket(self.flows, hash as u32);
        for _ in 0..self.endpoints.len() {
            let endpoint = self.endpoints.get(index as usize)?;
            if endpoint.local_port == local.port
                && endpoint.remote_port == remote.port
                && endpoint.remote_ip == remote.ip
                && endpoint.local_ip == local.ip
                && endpoint.kind == kind::TCP
            {
                return Some(index);
            }
            index = endpoint.next;
        }
        None
    }

    /// First endpoint of the chain of a local port.
    pub(crate) fn port_chain(&self, port: u16) -> u32 {
        bucket(self.ports, u32::from(port))
    }

    /// The best endpoint of a chain, and how many have its score.
    #[inline]
    fn best_of(&self, first: u32, to: &Addresses) -> Option<(u32, u32)> {
        // Nearly every chain has one member.
        let only = self.endpoints.get(first as usize)?;
        if only.next == NONE {
            return only.score(to).map(|_| (first, 1));
        }
        self.best_of_many(first, to)
    }

    /// [`Stack::best_of`] for a chain of several.
    #[inline(never)]
    fn best_of_many(&self, first: u32, to: &Addresses) -> Option<(u32, u32)> {
        let (mut best, mut best_score, mut best_order, mut equals) = (NONE, 0, 0, 0u32);
        let mut index = first;
        let mut steps = self.endpoints.len();
        while let Some(endpoint) = self.endpoints.get(index as usize) {
            if steps == 0 {
                self.chain_broken.set(true);
                break;
            }
            steps = steps.wrapping_sub(1);
            if let Some(score) = endpoint.score(to) {
                if best == NONE || score > best_score {
                    (best, best_score, best_order, equals) = (index, score, endpoint.bind_order, 1);
                } else if score == best_score {
                    equals = equals.saturating_add(1);
                    if endpoint.bind_order > best_order {
                        (best, best_order) = (index, endpoint.bind_order);
                    }
                }
            }
            index = endpoint.next;
        }
        if best == NONE {
            None
        } else {
            Some((best, equals))
        }
    }

    /// SO_REUSEPORT: the member of `best`'s group that the flow's hash picks.
    #[cold]
    fn share(&self, first: u32, best: u32, to: &Addresses) -> Option<u32> {
        let winner = self.endpoints.get(best as usize)?;
        let shares = |index: u32| {
            let udp = self.udp.get(index as usize);
            udp.is_some_and(|udp| udp.options.has(UdpOptions::REUSE_PORT))
        };
        if winner.kind != kind::UDP || !shares(best) {
            return Some(best);
        }
        let score = winner.score(to)?;
        let members = || {
            let mut index = first;
            (0..self.endpoints.len()).map_while(move |_| {
                let endpoint = self.endpoints.get(index as usize)?;
                let here = index;
                index = endpoint.next;
                Some((here, endpoint))
            })
        };
        let in_group = |(index, endpoint): &(u32, &Endpoint)| {
            shares(*index)
                && endpoint.kind == kind::UDP
                && endpoint.family == winner.family
                && endpoint.score(to) == Some(score)
        };
        let hash = share_hash(self.head.seed, to);
        members()
            .filter(in_group)
            .map(|(index, _)| index)
            .max_by_key(|&index| weight(hash, index))
            .or(Some(best))
    }

    /// Puts a live endpoint into the table that its addresses ask for; without a port into none. A
    /// chain has the newest first, also when it is made anew: of equals that share nothing it wins.
    pub(crate) fn link_endpoint(&mut self, index: u32) {
        let Some(endpoint) = self.endpoints.get(index as usize) else {
            return;
        };
        if endpoint.local_port == 0 {
            return;
        }
        let order = endpoint.bind_order;
        let (number, which) = if endpoint.connected != 0 {
            let remote = SocketAddress::new(endpoint.remote_ip, endpoint.remote_port);
            let hash = flow_hash(self.head.seed, &remote, endpoint.local_port);
            (bucket_number(self.flows, hash as u32), table::FLOWS)
        } else {
            (
                bucket_number(self.ports, u32::from(endpoint.local_port)),
                table::PORTS,
            )
        };
        let buckets = if which == table::FLOWS {
            &mut *self.flows
        } else {
            &mut *self.ports
        };
        let Some(first) = buckets.get_mut(number as usize) else {
            return;
        };
        let (mut previous, mut next) = (NONE, *first);
        let mut steps = self.endpoints.len();
        while let Some(newer) = self.endpoints.get(next as usize)
            && newer.bind_order > order
            && steps > 0
        {
            (previous, next) = (next, newer.next);
            steps = steps.wrapping_sub(1);
        }
        match self.endpoints.get_mut(previous as usize) {
            Some(newer) => newer.next = index,
            None => *first = index,
        }
        if let Some(older) = self.endpoints.get_mut(next as usize) {
            older.previous = index;
        }
        if let Some(endpoint) = self.endpoints.get_mut(index as usize) {
            endpoint.next = next;
            endpoint.previous = previous;
            endpoint.bucket = number;
            endpoint.table = which;
        }
        if which == table::FLOWS {
            self.head.connected_endpoints = self.head.connected_endpoints.saturating_add(1);
        }
    }

    /// Takes an endpoint out of its table. Links that do not point back are counted and left.
    pub(crate) fn unlink_endpoint(&mut self, index: u32) {
        let Some(endpoint) = self.endpoints.get_mut(index as usize) else {
            return;
        };
        let (which, next, previous) = (endpoint.table, endpoint.next, endpoint.previous);
        let number = endpoint.bucket as usize;
        endpoint.table = table::NONE;
        endpoint.next = NONE;
        endpoint.previous = NONE;
        let first = match which {
            table::PORTS => self.ports.get_mut(number),
            table::FLOWS => self.flows.get_mut(number),
            _ => return,
        };
        if which == table::FLOWS {
            self.head.connected_endpoints = self.head.connected_endpoints.saturating_sub(1);
        }
        let mut broken = false;
        if previous == NONE {
            match first {
                Some(first) if *first == index => *first = next,
                _ => broken = true,
            }
        } else {
            match self.endpoints.get_mut(previous as usize) {
                Some(before) if before.next == index => before.next = next,
                _ => broken = true,
            }
        }
        if next != NONE {
            match self.endpoints.get_mut(next as usize) {
                Some(after) if after.previous == index => after.previous = previous,
                _ => broken = true,
            }
        }
        if broken {
            self.count(Counter::CorruptList);
        }
    }
}

/// Hash of the whole 4-tuple, for sharing among SO_REUSEPORT members.
fn share_hash(seed: u64, to: &Addresses) -> u64 {
    let (high, low) = to.local.ip.words();
    flow_hash(
        seed ^ fold(low ^ seed, high ^ 0xd6e8_feb8_6659_fd93),
        &to.remote,
        to.local.port,
    )
}

/// How much a member of a SO_REUSEPORT group wants a flow of this hash: who wants it most has it.
/// So a member that comes takes flows from all others alike, and one that goes leaves its own to
/// them, and no other flow moves (rendezvous hashing).
pub(crate) fn weight(hash: u64, member: u32) -> u64 {
    let member = fold(u64::from(member).wrapping_add(1), 0x9e37_79b9_7f4a_7c15);
    fold(hash ^ member, 0x9fb2_1c65_1e98_df25)
}

/// Bucket of a hash; the count of buckets is a power of two.
#[inline]
fn bucket_number(buckets: &[u32], hash: u32) -> u32 {
    hash & (buckets.len() as u32).wrapping_sub(1)
}

/// First endpoint of the hash's chain.
#[inline]
fn bucket(buckets: &[u32], hash: u32) -> u32 {
    buckets
        .get(bucket_number(buckets, hash) as usize)
        .copied()
        .unwrap_or(NONE)
}

/// The table and bucket that an endpoint must be in, for checks.
pub(crate) fn home(seed: u64, ports: &[u32], flows: &[u32], endpoint: &Endpoint) -> (u8, u32) {
    if endpoint.local_port == 0 {
        (table::NONE, 0)
    } else if endpoint.connected != 0 {
        let remote = SocketAddress::new(endpoint.remote_ip, endpoint.remote_port);
        let hash = flow_hash(seed, &remote, endpoint.local_port);
        (table::FLOWS, bucket_number(flows, hash as u32))
    } else {
        (
            table::PORTS,
            bucket_number(ports, u32::from(endpoint.local_port)),
        )
    }
}

/// "Any" in place of an address that is not specific.
pub(crate) fn specific(ip: IpAddress, otherwise: IpAddress) -> IpAddress {
    if ip.is_unspecified() { otherwise } else { ip }
}

#[cfg(test)]
mod tests {
    use super::flow_hash;
    use crate::types::{IpAddress, SocketAddress};

    #[test]
    fn ports_choose_buckets_whatever_the_seed() {
        let ip = IpAddress::from_v4([198, 18, 0, 1]);
        for seed in [0, 1, 0x5eed, u64::MAX, 0x0123_4567_89ab_cdef] {
            let mut longest = 0;
            let mut chains = [0_u32; 4096];
            for port in 0..4096 {
                let remote = SocketAddress::new(ip, port);
                let chain = &mut chains[flow_hash(seed, &remote, 80) as usize % 4096];
                *chain += 1;
                longest = longest.max(*chain);
            }
            assert!(longest <= 12, "seed {seed:#x}: a chain of {longest}");
        }
    }
}
