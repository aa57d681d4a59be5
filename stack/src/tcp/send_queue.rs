//! The send queue: what the program writes, in segments that stay until they are acknowledged. How
//! much of it there may be says [`super::send_buffer`].

use super::connection::Connection;
use super::input::errno;
use super::output::PAYLOAD_AT;
use super::pool::mark;
use super::seq::distance;
use super::socket::TcpError;
use super::tcb::{TcpState, fast, flag, pending};
use crate::image::{NONE, chunk_state};
use crate::types::{ChunkId, Instant, Memory};

/// How long a write without room waits when no acknowledgement is due.
const ROOM_NS: u64 = 10_000_000;

impl Connection<'_> {
    /// Whether the program may write: the pending error first, then the state.
    pub(crate) fn may_send(&mut self) -> Result<(), TcpError> {
        let error = core::mem::take(&mut self.tcb.error);
        if error != 0 {
            return Err(TcpError::Errno(error));
        }
        if self.tcb.has(flag::SEND_SHUT) {
            return Err(TcpError::Errno(errno::EPIPE));
        }
        match self.tcb.state() {
            _ if self.tcb.may_carry_data() => Ok(()),
            TcpState::SynSent if self.tcb.is_fast(fast::DEFERRED) => {
                Err(TcpError::Errno(errno::EINPROGRESS))
            }
            TcpState::SynSent | TcpState::SynReceived => {
                self.tcb.set(flag::NO_SPACE);
                Err(TcpError::WouldBlock)
            }
            TcpState::Listen => Err(TcpError::Errno(errno::EPIPE)),
            _ => Err(TcpError::Errno(errno::EPIPE)),
        }
    }

    /// A write found no room. Acknowledgements make room; when none is due, because others hold the
    /// packet memory, the timer looks again.
    pub(crate) fn wait_for_room(&mut self, now: Instant) {
        self.tcb.set(flag::NO_SPACE);
        if self.tcb.state() == TcpState::SynSent {
            // Its end is told.
            return;
        }
        if self.tcb.packets_out == 0 && self.tcb.pending == pending::NONE {
            self.tcb.pending = pending::PROBE;
            self.tcb.retransmit_at = now.0.saturating_add(ROOM_NS);
        }
    }

    /// Somebody has seen that there is no room, and waits: as [`Connection::wait_for_room`], with
    /// the first look at the wheel's next tick.
    pub(crate) fn watch_room(&mut self) {
        self.wait_for_room(Instant(0));
    }

    /// Whether a poll would call it writable.
    pub(crate) fn is_writable(&self) -> bool {
        self.send_buffer().is_writable()
    }

    /// Puts bytes on the send queue, burst by burst, and sends what may leave before the last of
    /// them (net/ipv4/tcp.c:tcp_sendmsg_locked). Returns how many.
    pub(crate) fn write(
        &mut self,
        memory: &mut impl Memory,
        len: usize,
        fill: &mut dyn FnMut(&mut [u8]),
        now: Instant,
    ) -> usize {
        let mut done = 0usize;
        let mut pushed = self.tcb.write_seq;
        loop {
            let left = len.saturating_sub(done);
            let step = left.min(self.send_buffer().step() as usize);
            let taken = self.append(memory, step, fill);
            done = done.saturating_add(taken);
            if taken == 0 || taken < step || done >= len {
                if done > 0 {
                    self.mark_tail(mark::PUSH, true);
                }
                return done;
            }
            // More follows: it is pushed when half of the peer's largest window was not
            // (include/net/tcp.h:forced_push).
            if distance(pushed, self.tcb.write_seq) > self.tcb.max_window / 2 {
                pushed = self.tcb.write_seq;
            } else {
                self.mark_tail(mark::PUSH, false);
            }
            self.output(memory, now, false);
        }
    }

    /// Puts bytes on the send queue: behind the last unsent segment while it has room, then in
    /// fresh chunks. Returns how many.
    pub(crate) fn append(
        &mut self,
        memory: &mut impl Memory,
        len: usize,
        fill: &mut dyn FnMut(&mut [u8]),
    ) -> usize {
        let mut done = 0usize;
        let room = memory.chunk_size().saturating_sub(usize::from(PAYLOAD_AT));
        let goal = usize::from(self.new_segment().max(1)).min(room);
        let begun = self.send_buffer().open() as usize;
        while done < len {
            let left = len.saturating_sub(done);
            let (chunk, have) = match self.open_tail(goal) {
                Some(tail) => tail,
                // For the first there was room, or the caller would have none for bytes.
                None if done > 0 && self.pool.send_room(self.tcb.queued_chunks) == 0 => break,
                None => match self.push_segment() {
                    Some(chunk) => (chunk, 0),
                    None => break,
                },
            };
            let take = left.min(goal.saturating_sub(have));
            let at = usize::from(PAYLOAD_AT).saturating_add(have);
            let Some(piece) = memory
                .chunk_mut(ChunkId(chunk))
                .get_mut(at..at.saturating_add(take))
            else {
                break;
            };
            fill(piece);
            done = done.saturating_add(take);
            if let Some(slot) = self.segment_mut(chunk) {
                slot.len = slot.len.saturating_add(take as u16);
                slot.in_burst = begun.saturating_add(done).min(usize::from(u16::MAX)) as u16;
                // The end of an earlier write is no end any more.
                slot.marks &= !mark::PUSH;
                if done == len {
                    slot.marks |= mark::PUSH;
                }
            }
            self.tcb.write_seq = self.tcb.write_seq.wrapping_add(take as u32);
        }
        let tail = self.tcb.queue_tail;
        if done > 0
            && done < len
            && let Some(slot) = self.segment_mut(tail)
        {
            slot.marks |= mark::PUSH;
        }
        done
    }

    /// Marks the last segment of the queue, or takes the mark from it.
    pub(super) fn mark_tail(&mut self, mark: u8, on: bool) {
        let tail = self.tcb.queue_tail;
        if let Some(slot) = self.segment_mut(tail) {
            slot.marks = slot.marks & !mark | if on { mark } else { 0 };
        }
    }

    /// The last segment, if it is unsent and has room, with the bytes it has.
    #[inline]
    fn open_tail(&self, goal: usize) -> Option<(u32, usize)> {
        if self.tcb.unsent == NONE {
            return None;
        }
        let tail = self.tcb.queue_tail;
        let slot = self.segment(tail)?;
        let free = slot.offset == PAYLOAD_AT
            && usize::from(slot.len) < goal
            && !slot.has(mark::FIN | mark::END)
            && self
                .pool
                .chunks
                .get(tail as usize)
                .is_some_and(|chunk| chunk.state == chunk_state::RETAINED);
        free.then_some((tail, usize::from(slot.len)))
    }

    /// A fresh, empty segment at the end of the send queue.
    #[inline]
    pub(super) fn push_segment(&mut self) -> Option<u32> {
        let chunk = self.pool.retain()?.0;
        let fresh = Self::fresh_segment(self.index, self.tcb.write_seq, PAYLOAD_AT);
        if let Some(slot) = self.pool.segments.get_mut(chunk as usize) {
            *slot = fresh;
        }
        let tail = self.tcb.queue_tail;
        if self.tcb.queue_head == NONE {
            self.tcb.queue_head = chunk;
        } else if let Some(last) = self.segment_mut(tail) {
            last.next = chunk;
        }
        self.tcb.queue_tail = chunk;
        if self.tcb.unsent == NONE {
            self.tcb.unsent = chunk;
        }
        self.tcb.queued_chunks = self.tcb.queued_chunks.saturating_add(1);
        Some(chunk)
    }

    /// Ends our direction: the FIN goes behind the data. It may use the chunks that data may not;
    /// when there are none at all it waits for one.
    pub(crate) fn send_fin(&mut self, memory: &mut impl Memory, now: Instant) {
        if self.tcb.has(flag::FIN_QUEUED) {
            return;
        }
        self.tcb.clear(flag::FIN_DUE);
        let next = match self.tcb.state() {
            TcpState::Established => TcpState::FinWait1,
            // After close (net/ipv4/tcp.c:tcp_close_state).
            TcpState::SynReceived if self.tcb.is_early() && self.tcb.has(flag::ORPHAN) => {
                TcpState::FinWait1
            }
            TcpState::SynReceived => {
                // Once the handshake is over (RFC 9293 section 3.10.4).
                self.tcb.set(flag::SEND_SHUT);
                return;
            }
            TcpState::CloseWait => TcpState::LastAck,
            _ => return,
        };
        self.tcb.set(flag::SEND_SHUT);
        let tail = self.tcb.queue_tail;
        let unsent_tail = self.tcb.unsent != NONE
            && self
                .segment(tail)
                .is_some_and(|slot| !super::seq::before(slot.seq, self.tcb.snd_nxt));
        let chunk = if unsent_tail {
            Some(tail)
        } else {
            self.push_segment()
        };
        let Some(chunk) = chunk else {
            self.tcb.set(flag::FIN_DUE);
            self.wait_for_room(now);
            return;
        };
        if let Some(slot) = self.segment_mut(chunk) {
            slot.marks |= mark::FIN;
        }
        self.tcb.set(flag::FIN_QUEUED);
        self.tcb.state = next as u8;
        self.output(memory, now, false);
    }
}
