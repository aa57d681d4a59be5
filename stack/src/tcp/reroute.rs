//! The way changes under a connection: a gateway with another MAC address, another route, another
//! MTU of the link (Linux: the dst of a socket becomes obsolete, net/core/sock.c:__sk_dst_check).

use super::tcb::{Hop, TcpState};
use crate::cplane::{self, Lookup, Table};
use crate::stack::Stack;
use crate::types::{Instant, Memory, QUEUE_PAIR_HAIRPIN, SocketAddress};

impl Stack<'_> {
    /// Leads the frames of connections the way that `table` says now: of those in `count` endpoints
    /// from index `first`, so that a caller need not hold the stack for all at once. A connection
    /// for which the table knows no way by a queue pair of this stack keeps the one it has.
    /// Requests and time waits, which live a minute, keep theirs. Returns how many have changed;
    /// `None` when there are no endpoints from `first` on.
    pub fn tcp_reroute(
        &mut self,
        memory: &mut impl Memory,
        table: &Table,
        (first, count): (u32, u32),
        now: Instant,
    ) -> Option<usize> {
        self.tcbs.get(first as usize)?;
        let mut changed = 0usize;
        for index in first..first.saturating_add(count) {
            let Some(hop) = self.new_hop(index, table) else {
                continue;
            };
            let Some(mut connection) = self.connection(index) else {
                continue;
            };
            let mtu = hop.mtu;
            // A path's MTU that is smaller than the link's stays.
            connection.tcb.hop = Hop {
                mtu: connection.tcb.hop.mtu,
                ..hop
            };
            if mtu < connection.tcb.hop.mtu {
                connection.reduce_mtu(memory, mtu, None, now);
                self.settle(index, now);
            }
            changed = changed.saturating_add(1);
        }
        Some(changed)
    }

    /// The way of a connection that has another one than before.
    fn new_hop(&self, index: u32, table: &Table) -> Option<Hop> {
        let (endpoint, tcb) = (
            self.endpoints.get(index as usize)?,
            self.tcbs.get(index as usize)?,
        );
        let is_idle = matches!(tcb.state(), TcpState::Closed | TcpState::Listen);
        if endpoint.connected == 0 || is_idle || tcb.hop.queue_pair == QUEUE_PAIR_HAIRPIN {
            return None;
        }
        let local = SocketAddress::new(endpoint.local_ip, endpoint.local_port);
        let remote = SocketAddress::new(endpoint.remote_ip, endpoint.remote_port);
        let hash = cplane::flow_hash(&local, &remote);
        let Lookup::Via(via) = cplane::lookup(table, remote.ip, local.ip, endpoint.ifindex, hash)
        else {
            return None;
        };
        let mut hop = Hop::of(&via);
        if hop.ifindex == tcb.hop.ifindex {
            // Where its frames come in, they go out.
            hop.queue_pair = tcb.hop.queue_pair;
        }
        let same = (hop.ifindex, hop.source_mac, hop.mac)
            == (tcb.hop.ifindex, tcb.hop.source_mac, tcb.hop.mac)
            && hop.mtu >= tcb.hop.mtu;
        (!same).then_some(hop)
    }
}
