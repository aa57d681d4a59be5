//! ICMP errors about segments of ours (RFC 1122 section 4.2.3.9, RFC 5927, RFC 6069;
//! net/ipv4/tcp_ipv4.c:tcp_v4_err): hard while a connection is made, only remembered once it is.
//!
//! Whoever hears them, which is not this stack, gives them here. One that quotes a sequence number
//! that is not in flight comes from somebody who has not seen the segment, and is not believed.

use super::connection::{Connection, millis};
use super::input::errno;
use super::mini;
use super::options::TcpOptions;
use super::seq::{after, before};
use super::tcb::{TcpState, flag, pending};
use crate::counters::Counter;
use crate::stack::Stack;
use crate::types::{EndpointId, Instant, Memory};
use crate::wire::icmp::{IcmpError, Trouble};

impl Stack<'_> {
    /// Takes an ICMP error that may be about a segment of this stack. Returns whether something of
    /// it has that flow.
    pub fn tcp_icmp(&mut self, memory: &mut impl Memory, error: &IcmpError, now: Instant) -> bool {
        let Some(index) = self.find_connection(&error.local, &error.remote) else {
            return self.request_icmp(error);
        };
        let Some(mut connection) = self.connection(index) else {
            return false;
        };
        match error.trouble {
            Trouble::TooBig(mtu) => {
                connection.reduce_mtu(memory, mtu, Some(error.seq), now);
            }
            Trouble::Unreachable {
                errno, no_route, ..
            } => {
                connection.unreachable(errno, Some(error.seq), no_route, now);
            }
        }
        self.settle(index, now);
        true
    }

    /// A request whose SYN-ACK cannot get through is forgotten, as one that nobody confirms
    /// (net/ipv4/tcp_ipv4.c:tcp_req_err). An error about a time wait is of no use to anybody.
    fn request_icmp(&mut self, error: &IcmpError) -> bool {
        let Some(index) = self.find_mini(&error.local, &error.remote) else {
            return false;
        };
        let Some(request) = self.minis.get(index as usize) else {
            return false;
        };
        let is_request = request.kind == mini::kind::REQUEST;
        let is_ours = error.seq == request.snd_nxt.wrapping_sub(1);
        match error.trouble {
            Trouble::Unreachable {
                ends_request: true, ..
            } if is_request && is_ours => {
                self.count(Counter::TcpIcmpErrors);
                self.remove_mini(index);
                self.flow_ended(error.local, error.remote);
            }
            _ => self.count(Counter::TcpIcmpIgnored),
        }
        true
    }

    /// SO_ERROR of a connection: the pending error, or what an ICMP error has said of late; neither
    /// is there any more.
    pub fn tcp_socket_error(&mut self, id: EndpointId) -> i32 {
        let Ok(connection) = self.tcp(id) else {
            return 0;
        };
        let soft = connection.soft_error();
        match core::mem::take(&mut connection.tcb.error) {
            0 => {
                connection.tcb.soft_error = 0;
                soft
            }
            error => error,
        }
    }

    /// A segment of a connection cannot be delivered. `quoted`: the sequence number in the packet
    /// that the ICMP message quotes; `no_route` as in [`Trouble::Unreachable`].
    pub fn tcp_unreachable(
        &mut self,
        id: EndpointId,
        (error, no_route): (i32, bool),
        quoted: Option<u32>,
        now: Instant,
    ) {
        if let Ok(mut connection) = self.tcp(id) {
            connection.unreachable(error, quoted, no_route, now);
            self.settle(id.index, now);
        }
    }
}

impl Connection<'_> {
    /// Whether a segment with this number may be in the network: else a message that quotes it is
    /// counted and not believed (RFC 5927 section 4.1).
    pub(super) fn believes(&mut self, quoted: Option<u32>) -> bool {
        let nxt = self.tcb.snd_nxt;
        let una = if self.tcb.is_early() {
            self.tcb.iss
        } else {
            self.tcb.snd_una
        };
        let believed = quoted.is_none_or(|seq| !before(seq, una) && !after(seq, nxt));
        self.pool.count(if believed {
            Counter::TcpIcmpErrors
        } else {
            Counter::TcpIcmpIgnored
        });
        believed
    }

    fn unreachable(&mut self, error: i32, quoted: Option<u32>, no_route: bool, now: Instant) {
        let state = self.tcb.state();
        if matches!(state, TcpState::Closed | TcpState::Listen) || !self.believes(quoted) {
            return;
        }
        if no_route && quoted == Some(self.tcb.snd_una) {
            self.revert_backoff(now);
        }
        // Fast Open: what the program has accepted is a connection.
        let is_accepted = self.tcb.is_early() && !self.tcb.has(flag::ACCEPTABLE);
        match state {
            TcpState::SynSent | TcpState::SynReceived if !is_accepted => self.finish(error),
            _ if self.tcb.options.has(TcpOptions::RECVERR) => {
                self.tcb.error = error;
                self.readable_edge();
            }
            _ => self.note_soft_error(error, now),
        }
    }

    /// A router has no way for what was sent again: the timeout was none of congestion, and is
    /// undoubled (RFC 6069 section 4, net/ipv4/tcp_ipv4.c:tcp_ld_RTO_revert).
    fn revert_backoff(&mut self, now: Instant) {
        let waits = self.tcb.pending == pending::RTO && self.tcb.packets_out > 0;
        if !waits || self.tcb.retransmits == 0 || self.tcb.backoff == 0 {
            return;
        }
        self.pool.count(Counter::TcpTimeoutsReverted);
        self.tcb.backoff = self.tcb.backoff.saturating_sub(1);
        self.arm_rest_of_rto(now);
    }

    /// What the network says is kept for the day on which the connection gives up.
    pub(super) fn note_soft_error(&mut self, error: i32, now: Instant) {
        self.tcb.soft_error = error;
        self.tcb.soft_error_ms = millis(now);
    }

    /// The connection has waited long enough: what the network has said since the peer was last
    /// heard, or just that (net/ipv4/tcp_timer.c:tcp_write_err).
    pub(super) fn time_out(&mut self) {
        let error = match self.soft_error() {
            0 => errno::ETIMEDOUT,
            told => told,
        };
        self.finish(error);
    }

    /// What the network has said since the peer was last heard; 0 = nothing.
    fn soft_error(&self) -> i32 {
        if after(self.tcb.last_received_ms, self.tcb.soft_error_ms) {
            0
        } else {
            self.tcb.soft_error
        }
    }
}
