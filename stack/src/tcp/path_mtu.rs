//! A smaller path MTU: segments shrink, and what is in flight and too long is sent again (RFC 1191,
//! RFC 8201, net/ipv4/tcp_ipv4.c:tcp_v4_mtu_reduced).

use super::connection::Connection;
use super::input::errno;
use super::pool::mark;
use super::tcb::{TcpState, ca, fast};
use crate::counters::Counter;
use crate::stack::Stack;
use crate::types::{EndpointId, Instant, Memory, Stale};

/// Smallest MTU that is believed, for IPv4 (net.ipv4.route.min_pmtu) and IPv6 (RFC 8200 section 5).
const LEAST_V4: u16 = 552;
const LEAST_V6: u16 = 1280;

impl Stack<'_> {
    /// The path of a connection carries packets of `mtu` bytes only. `quoted`: the sequence number
    /// in the packet that an ICMP message quotes; one that is not in flight is not believed (RFC
    /// 5927 section 7). Returns whether anything changed.
    ///
    /// # Errors
    /// [`Stale`].
    pub fn tcp_path_mtu(
        &mut self,
        memory: &mut impl Memory,
        id: EndpointId,
        mtu: u16,
        quoted: Option<u32>,
        now: Instant,
    ) -> Result<bool, Stale> {
        self.tcp_status(id)?;
        let mut connection = self.connection(id.index).ok_or(Stale)?;
        let changed = connection.reduce_mtu(memory, mtu, quoted, now);
        self.settle(id.index, now);
        Ok(changed)
    }
}

impl Connection<'_> {
    pub(super) fn reduce_mtu(
        &mut self,
        memory: &mut impl Memory,
        mtu: u16,
        quoted: Option<u32>,
        now: Instant,
    ) -> bool {
        let least = if self.endpoint.remote_ip.is_v4() {
            LEAST_V4
        } else {
            LEAST_V6
        };
        let state = self.tcb.state();
        let dead = matches!(state, TcpState::Closed | TcpState::Listen);
        if dead || quoted.is_some() && !self.believes(quoted) {
            return false;
        }
        if mtu < least {
            self.note_soft_error(errno::EMSGSIZE, now);
        }
        let mtu = mtu.max(least);
        if mtu >= self.tcb.hop.mtu {
            return false;
        }
        self.pool.count(Counter::TcpPathMtu);
        self.tcb.hop.mtu = mtu;
        if state == TcpState::SynSent {
            if self.tcb.is_fast(fast::DATA_SENT) {
                self.repeat_syn(memory, now);
            }
            return true;
        }
        self.tcb.mss = self.current_mss();
        self.lose_too_long();
        if self.tcb.lost_out > 0 {
            self.repair_without_blame();
            self.retransmit_lost(memory, now);
        }
        self.output(memory, now, false);
        true
    }

    /// What is lost goes out again, and is no sign of congestion: the window stays
    /// (net/ipv4/tcp_input.c:tcp_simple_retransmit).
    pub(super) fn repair_without_blame(&mut self) {
        if self.tcb.ca_state != ca::LOSS {
            self.tcb.ca_state = ca::LOSS;
            self.tcb.high_seq = self.tcb.snd_nxt;
            self.tcb.undo_marker = 0;
        }
    }

    /// Marks what is in flight and longer than a segment may be now as lost.
    fn lose_too_long(&mut self) {
        let mut chunk = self.tcb.queue_head;
        for _ in 0..self.pool.chunks.len() {
            if chunk == self.tcb.unsent {
                return;
            }
            let Some(&slot) = self.segment(chunk) else {
                return;
            };
            if slot.len > self.tcb.mss && !slot.has(mark::SACKED) {
                self.lose(chunk, slot);
            }
            chunk = slot.next;
        }
    }
}
