//! After a step: owed ACKs, tables, timers, time wait and the end of an endpoint.

use super::mini;
use super::options::TcpOptions;
use super::tcb::{NEVER, TcpState, fast, flag};
use super::wheel::MINI;
use crate::counters::Counter;
use crate::image::{NONE, kind};
use crate::stack::Stack;
use crate::types::{EndpointId, Instant, Memory, SocketAddress};

/// How often a connection whose window is closed for want of packet memory looks whether there is
/// some.
const STARVED_NS: u64 = 50_000_000;

impl Stack<'_> {
    /// Sends what the frames and calls since the last flush owe, data before ACKs, which ride on
    /// it, and closes what dead processes have left.
    #[inline]
    pub fn flush(&mut self, memory: &mut impl Memory, now: Instant) {
        if self.has_flush() {
            self.flush_all(memory, now);
        }
    }

    fn flush_all(&mut self, memory: &mut impl Memory, now: Instant) {
        let now = self.forward(now);
        for _ in 0..self.tcbs.len() {
            let index = self.head.flush_head;
            let Some(tcb) = self.tcbs.get_mut(index as usize) else {
                self.head.flush_head = NONE;
                return;
            };
            self.head.flush_head = core::mem::replace(&mut tcb.flush_next, NONE);
            tcb.on_flush = 0;
            if tcb.has(flag::CLOSE_DUE) {
                self.close_now(memory, index, now);
            }
            if let Some(mut connection) = self.connection(index)
                && connection.tcb.has(flag::ACK_NOW | flag::OUTPUT_DUE)
            {
                connection.output_due(memory, now);
                if connection.tcb.has(flag::ACK_NOW) {
                    if connection.tcb.state().is_synchronised() {
                        connection.send_ack(memory, now);
                    } else {
                        connection.tcb.clear(flag::ACK_NOW);
                    }
                }
                self.settle_at(index, now);
            }
        }
    }

    /// Whether [`Stack::flush`] has something to do.
    #[must_use]
    pub fn has_flush(&self) -> bool {
        self.head.flush_head != NONE
    }

    /// Puts a connection on the list of [`Stack::flush`].
    pub(crate) fn push_flush(&mut self, index: u32) {
        if let Some(tcb) = self.tcbs.get_mut(index as usize)
            && tcb.on_flush == 0
        {
            tcb.on_flush = 1;
            tcb.flush_next = self.head.flush_head;
            self.head.flush_head = index;
        }
    }

    /// Draws the consequences of a step: time wait, owed ACKs, timers, the end.
    #[inline(never)]
    pub(crate) fn settle(&mut self, index: u32, now: Instant) {
        let now = self.forward(now);
        self.settle_at(index, now);
    }

    /// The same at a time that is not before the last one.
    #[inline(always)]
    pub(crate) fn settle_at(&mut self, index: u32, now: Instant) {
        let Some(tcb) = self.tcbs.get(index as usize) else {
            return;
        };
        if tcb.options.has(TcpOptions::AWAITS) {
            self.settle_notices(index, now);
        }
        let Some(tcb) = self.tcbs.get(index as usize) else {
            return;
        };
        if tcb.state() == TcpState::TimeWait && !tcb.has(flag::ACK_NOW) {
            self.enter_time_wait(index, now);
        }
        let Some(tcb) = self.tcbs.get_mut(index as usize) else {
            return;
        };
        if tcb.has(flag::STARVED) && tcb.delayed_ack_at == NEVER && tcb.may_receive() {
            tcb.delayed_ack_at = now.0.saturating_add(STARVED_NS);
        }
        let deadline = tcb.deadline();
        let is_filed = tcb.is_filed_for(deadline);
        tcb.note_busy(now);
        let closed = tcb.state() == TcpState::Closed;
        let orphan = tcb.has(flag::ORPHAN);
        let tcb_is_counted = closed && tcb.is_fast(fast::COUNTED);
        if tcb.has(flag::ACK_NOW | flag::OUTPUT_DUE) && !closed {
            self.push_flush(index);
        }
        if !is_filed {
            self.arm(index, deadline, now);
        }
        if closed {
            if tcb_is_counted {
                self.fast_open_ended(index, now);
            }
            self.leave_tables(index);
            if orphan {
                self.end_tcp(index);
            }
        }
    }

    /// A closed connection is in no table; its flow has ended unless a time wait goes on with it.
    #[cold]
    fn leave_tables(&mut self, index: u32) {
        let Some(endpoint) = self.endpoints.get(index as usize) else {
            return;
        };
        if endpoint.kind != kind::TCP || endpoint.table == crate::image::table::NONE {
            return;
        }
        let local = SocketAddress::new(endpoint.local_ip, endpoint.local_port);
        let remote = SocketAddress::new(endpoint.remote_ip, endpoint.remote_port);
        let connected = endpoint.connected != 0;
        self.unlink_endpoint(index);
        if connected && self.find_mini(&local, &remote).is_none() {
            self.flow_ended(local, remote);
        }
    }

    /// The rest of the connection goes on as a minisocket (RFC 9293 section 3.6.1).
    #[cold]
    fn enter_time_wait(&mut self, index: u32, now: Instant) {
        let Some(connection) = self.connection(index) else {
            return;
        };
        let local =
            SocketAddress::new(connection.endpoint.local_ip, connection.endpoint.local_port);
        let remote = SocketAddress::new(
            connection.endpoint.remote_ip,
            connection.endpoint.remote_port,
        );
        let tcb = *connection.tcb;
        if let Some(mini) = self.add_mini(mini::kind::TIME_WAIT, local, remote, now) {
            let deadline = now.0.saturating_add(super::listen::TIME_WAIT_NS);
            if let Some(entry) = self.minis.get_mut(mini as usize) {
                entry.negotiated = tcb.flags as u8 & 0xf;
                entry.rcv_wscale = tcb.rcv_wscale;
                entry.snd_wscale = tcb.snd_wscale;
                entry.hop = tcb.hop;
                entry.rcv_nxt = tcb.rcv_nxt;
                entry.snd_nxt = tcb.snd_nxt;
                entry.rcv_wnd = tcb.receive_window();
                entry.ts_recent = tcb.ts_recent;
                entry.ts_offset = tcb.ts_offset;
                entry.deadline = deadline;
                entry.tos = tcb.options.tos;
            }
            self.arm(mini | MINI, deadline, now);
        } else {
            self.count(Counter::TcpTimeWaitFull);
        }
        if let Some(mut connection) = self.connection(index) {
            connection.finish(0);
        }
    }

    /// The end of a closed orphan.
    #[cold]
    fn end_tcp(&mut self, index: u32) {
        let Some(mut connection) = self.connection(index) else {
            return;
        };
        connection.drop_receive_queue();
        connection.drop_out_of_order();
        connection.drop_send_queue();
        let id = EndpointId {
            index,
            generation: connection.endpoint.generation,
        };
        let filter = connection.endpoint.filter;
        self.disarm(index);
        match super::ports::place_of(filter) {
            Some(place) => self.port_rests(place),
            None if filter != 0 => self.note_ended(filter),
            None => {}
        }
        self.destroy(id);
    }
}
