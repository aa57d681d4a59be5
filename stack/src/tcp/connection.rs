//! One connection being worked on: its endpoint, its control block, and the pool.

use super::pool::{Pool, SegmentSlot};
use super::tcb::{NEVER, Tcb, TcpState, fast, flag};
use crate::image::{Endpoint, NONE};
use crate::stack::Stack;
use crate::types::Instant;
use crate::watcher::list_ready;
use crate::wire::tcp::Timestamps;
use crate::wire::tcp::{Segment, flags};

/// Bits of the time that segments and rate samples keep: microseconds, wrapping after 71 minutes.
pub(crate) fn micros(now: Instant) -> u64 {
    now.0 / 1000
}

/// Time from one moment to another, both in one unit and wrapped; none when the clock of whoever
/// holds the stack now is behind the last one's.
pub(crate) fn elapsed(now: u32, then: u32) -> u32 {
    let elapsed = now.wrapping_sub(then);
    if (elapsed as i32) < 0 { 0 } else { elapsed }
}

/// Our timestamp clock (RFC 7323 section 5.4): milliseconds.
pub(crate) fn millis(now: Instant) -> u32 {
    (now.0 / 1_000_000) as u32
}

/// Whether a segment from outside the window may be answered now, with the time of the last such
/// answer and the least time between two (`TcpDefaults::invalid_ratelimit_ms`).
pub(crate) fn may_answer(
    answered_ms: &mut u32,
    least_ms: u16,
    segment: &Segment,
    now: Instant,
) -> bool {
    if segment.payload_len > 0 && segment.flags & flags::SYN == 0 {
        return true;
    }
    let now = millis(now).max(1);
    if *answered_ms != 0 && now.wrapping_sub(*answered_ms) < u32::from(least_ms) {
        return false;
    }
    *answered_ms = now;
    true
}

/// The timestamps option (RFC 7323 section 3), if it was negotiated: our clock with the
/// connection's offset, and the peer's latest.
pub(crate) fn timestamps(on: bool, offset: u32, echo: u32, now: Instant) -> Option<Timestamps> {
    on.then(|| Timestamps {
        value: millis(now).wrapping_add(offset),
        echo,
    })
}

/// One connection. Every protocol step is a method of this.
#[derive(Debug)]
pub(crate) struct Connection<'a> {
    /// Index of endpoint and control block.
    pub(crate) index: u32,
    pub(crate) endpoint: &'a mut Endpoint,
    pub(crate) tcb: &'a mut Tcb,
    pub(crate) pool: Pool<'a>,
}

impl Stack<'_> {
    /// The connection of this index, if there is one.
    #[inline]
    pub(crate) fn connection(&mut self, index: u32) -> Option<Connection<'_>> {
        let endpoint = self.endpoints.get_mut(index as usize)?;
        let tcb = self.tcbs.get_mut(index as usize)?;
        if endpoint.kind != crate::image::kind::TCP {
            return None;
        }
        Some(Connection {
            index,
            endpoint,
            tcb,
            pool: Pool {
                head: self.head,
                chunks: self.chunks,
                segments: self.segments,
                ready: self.ready,
            },
        })
    }
}

impl Connection<'_> {
    /// The segment of one of our queues.
    pub(crate) fn segment(&self, chunk: u32) -> Option<&SegmentSlot> {
        self.pool.segment(self.index, chunk)
    }

    /// The same, to change.
    pub(crate) fn segment_mut(&mut self, chunk: u32) -> Option<&mut SegmentSlot> {
        self.pool.segment_mut(self.index, chunk)
    }

    /// Something to receive, an end or an error: wakes who waits.
    pub(crate) fn readable_edge(&mut self) {
        self.tcb.in_edge = self.tcb.in_edge.wrapping_add(1);
        self.wake();
    }

    /// Room to send, a finished connect or an error: wakes who waits.
    pub(crate) fn writable_edge(&mut self) {
        self.tcb.out_edge = self.tcb.out_edge.wrapping_add(1);
        self.wake();
    }

    pub(crate) fn wake(&mut self) {
        let [low, high] = self.endpoint.waiters;
        self.pool.head.wakeups[0] |= low;
        self.pool.head.wakeups[1] |= high;
        if self.endpoint.watcher != 0 {
            let watcher = self.endpoint.watcher;
            list_ready(self.pool.head, self.pool.ready, watcher, self.index);
        }
    }

    /// Turns every timer off.
    pub(crate) fn stop_timers(&mut self) {
        self.tcb.retransmit_at = NEVER;
        self.tcb.delayed_ack_at = NEVER;
        self.tcb.keepalive_at = NEVER;
        self.tcb.pending = super::tcb::pending::NONE;
    }

    /// Ends the connection with an error for the program (0 = none).
    pub(crate) fn finish(&mut self, error: i32) {
        if self.tcb.state() == TcpState::Closed {
            return;
        }
        if error != 0 {
            self.tcb.error = error;
        }
        if self.tcb.is_fast(fast::ASKED) {
            self.judge_path();
        }
        self.tcb.state = TcpState::Closed as u8;
        self.tcb.set(flag::SEND_SHUT | flag::RECEIVE_SHUT);
        self.stop_timers();
        self.drop_send_queue();
        self.drop_out_of_order();
        self.readable_edge();
        self.writable_edge();
    }

    /// Frees everything that waits to be sent or acknowledged.
    pub(crate) fn drop_send_queue(&mut self) {
        let mut chunk = self.tcb.queue_head;
        for _ in 0..self.pool.chunks.len() {
            let Some(slot) = self.segment_mut(chunk) else {
                break;
            };
            let next = slot.next;
            slot.owner = NONE;
            self.pool.drop_retained(chunk);
            chunk = next;
        }
        self.tcb.queue_head = NONE;
        self.tcb.unsent = NONE;
        self.tcb.queue_tail = NONE;
        self.tcb.queued_chunks = 0;
        self.tcb.packets_out = 0;
        self.tcb.sacked_out = 0;
        self.tcb.lost_out = 0;
        self.tcb.retrans_out = 0;
    }

    /// Frees a receive-side queue that starts here.
    fn drop_received(&mut self, head: u32) {
        let mut chunk = head;
        for _ in 0..self.pool.chunks.len() {
            let Some(slot) = self.segment_mut(chunk) else {
                break;
            };
            let next = slot.next;
            slot.owner = NONE;
            self.pool.free(chunk);
            self.tcb.rx_chunks = self.tcb.rx_chunks.saturating_sub(1);
            self.pool.head.received_chunks = self.pool.head.received_chunks.saturating_sub(1);
            chunk = next;
        }
    }

    /// Frees what came out of order.
    pub(crate) fn drop_out_of_order(&mut self) {
        self.drop_received(self.tcb.ooo_head);
        self.tcb.ooo_head = NONE;
        self.tcb.ooo_tail = NONE;
        self.tcb.ooo_count = 0;
        self.tcb.ooo_bytes = 0;
    }

    /// Frees what the program has not read.
    pub(crate) fn drop_receive_queue(&mut self) {
        self.drop_received(self.tcb.rx_head);
        self.tcb.rx_head = NONE;
        self.tcb.rx_tail = NONE;
        self.tcb.rx_bytes = 0;
        self.tcb.copied_seq = self.tcb.rcv_nxt;
    }
}
