//! Receive side: the in-order queue that the program reads, the out-of-order queue, the window,
//! and when to acknowledge (RFC 9293 section 3.10.7.4, RFC 5681 section 4.2, RFC 2018, RFC 2883).

use super::connection::{Connection, micros, millis};
use super::options::TcpOptions;
use super::output::copy_between;
use super::pool::{SegmentSlot, mark};
use super::seq::{after, before, distance, earlier};
use super::socket::Span;
use super::tcb::{Range, TcpState, flag};
use crate::counters::{Counter, DropReason};
use crate::image::{NONE, chunk_state};
use crate::types::{ChunkId, Instant, Memory};
use zerocopy::FromZeros;

/// Chunks on a receive queue above which small payloads are copied together.
const COMPACT_ABOVE: u32 = 16;
/// Least delay of an acknowledgement (Linux: TCP_DELACK_MIN).
const DELAYED_ACK_NS: u64 = 40_000_000;
/// ACKs sent at once at the start of a connection and after trouble (Linux: TCP_MAX_QUICKACKS).
const MOST_QUICK_ACKS: u8 = 16;
/// Out-of-order segments that are passed on the way to a new one's place at most.
const LONGEST_WALK: u32 = 512;
/// What a peer's segment is taken to hold until one has come (Linux: TCP_MSS_DEFAULT).
const DEFAULT_MSS: u32 = 536;

/// A payload that came with a frame.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Payload {
    pub(crate) chunk: u32,
    pub(crate) offset: u16,
    pub(crate) len: u16,
    pub(crate) seq: u32,
    pub(crate) fin: bool,
}

impl Payload {
    fn end(&self) -> u32 {
        self.seq.wrapping_add(u32::from(self.len))
    }

    /// The same with the FIN.
    fn last(&self) -> u32 {
        self.end().wrapping_add(u32::from(self.fin))
    }
}

impl Connection<'_> {
    /// Bytes that the receive side may hold (Linux's tcp_win_from_space with a scale of one half).
    pub(crate) fn receive_capacity(&self) -> u32 {
        let options = &self.tcb.options;
        let by_buffer = options.rcvbuf_bytes / 2;
        if options.window_clamp == 0 {
            by_buffer
        } else {
            by_buffer.min(options.window_clamp)
        }
    }

    /// Bytes that it can ever hold: its capacity, or what its share of the chunks takes.
    pub(crate) fn receive_limit(&self) -> u32 {
        let chunks = super::pool::share(self.pool.chunks.len());
        let most = chunks.saturating_mul(self.segment_size());
        self.receive_capacity().min(most)
    }

    /// Bytes that a chunk of the peer's holds, as far as is known.
    fn segment_size(&self) -> u32 {
        u32::from(self.tcb.rcv_mss).max(DEFAULT_MSS)
    }

    /// Chunks that data in order may still take.
    fn receive_room(&self) -> u32 {
        let in_order = self.tcb.rx_chunks.saturating_sub(self.tcb.ooo_count);
        self.pool.receive_room(self.tcb.rx_chunks, in_order)
    }

    /// Bytes that may still come.
    pub(crate) fn receive_space(&self) -> u32 {
        let held = self.tcb.rx_bytes.saturating_add(self.tcb.ooo_bytes);
        let bytes = self.receive_capacity().saturating_sub(held);
        let least = self.pool.least_receive_room(self.tcb.rx_chunks);
        if least.saturating_mul(self.segment_size()) >= bytes {
            return bytes;
        }
        let chunks = self.receive_room();
        bytes.min(chunks.saturating_mul(self.segment_size()))
    }

    /// Takes the data and the FIN of an acceptable segment. `true` when the chunk is kept.
    pub(crate) fn take_data(
        &mut self,
        memory: &mut impl Memory,
        mut payload: Payload,
        now: Instant,
    ) -> Result<bool, DropReason> {
        let end = payload.last();
        if !after(end, self.tcb.rcv_nxt) {
            // All of it is known: tell so (RFC 2883 section 4).
            self.tell_duplicate(payload.seq, end);
            self.quick_ack_mode();
            self.tcb.set(flag::ACK_NOW);
            return Err(DropReason::TcpDuplicate);
        }
        self.measure_peer(payload.len);
        if before(payload.seq, self.tcb.rcv_nxt) {
            let known = distance(payload.seq, self.tcb.rcv_nxt);
            self.tell_duplicate(payload.seq, self.tcb.rcv_nxt);
            payload.offset = payload.offset.wrapping_add(known as u16);
            payload.len = payload.len.saturating_sub(known.min(0xffff) as u16);
            payload.seq = self.tcb.rcv_nxt;
        }
        let limit = self.tcb.rcv_nxt.wrapping_add(self.tcb.acceptable_window());
        if after(payload.end(), limit) {
            payload.len = distance(payload.seq, limit).min(0xffff) as u16;
            payload.fin = false;
            self.tcb.set(flag::ACK_NOW);
            if payload.len == 0 {
                return Err(DropReason::TcpWindow);
            }
        }
        let fits = self.has_room(&payload, memory)
            || self.collapse(memory) && self.has_room(&payload, memory);
        if !fits {
            self.no_memory_for(&payload);
            return Err(DropReason::ChunkShare);
        }
        if payload.seq == self.tcb.rcv_nxt {
            Ok(self.take_in_order(memory, payload, now))
        } else {
            Ok(self.take_out_of_order(payload))
        }
    }

    /// The size of the peer's segments, for ACK frequency and window steps.
    pub(super) fn measure_peer(&mut self, len: u16) {
        if len > self.tcb.rcv_mss {
            self.tcb.rcv_mss = len.min(self.tcb.advertised_mss);
        }
    }

    pub(crate) fn take_in_order(
        &mut self,
        memory: &mut impl Memory,
        payload: Payload,
        now: Instant,
    ) -> bool {
        let kept = payload.len > 0 && self.append_received(memory, payload);
        self.received_in_order(payload.len, now);
        let mut fin = payload.fin;
        if self.tcb.ooo_head != NONE {
            // A gap was filled: the sender waits to hear of it (RFC 5681 section 4.2).
            self.tcb.set(flag::ACK_NOW);
            // What a peer that lies has sent from behind its FIN goes with the FIN.
            fin = fin || self.merge_out_of_order();
        }
        if fin {
            self.take_fin(now);
        }
        if payload.len > 0 {
            self.schedule_ack(now);
            self.readable_edge();
        }
        self.tcb.last_data_ms = millis(now);
        kept
    }

    /// Books of so many bytes that were put on the receive queue.
    #[inline]
    pub(super) fn received_in_order(&mut self, len: u16, now: Instant) {
        let len = u32::from(len);
        let tcb = &mut *self.tcb;
        tcb.rcv_nxt = tcb.rcv_nxt.wrapping_add(len);
        tcb.unacked_bytes = tcb.unacked_bytes.saturating_add(len);
        tcb.bytes_received = tcb.bytes_received.wrapping_add(u64::from(len));
        if tcb.drs_time_us == 0 && len > 0 {
            tcb.drs_time_us = micros(now) as u32;
        }
    }

    /// Data was dropped although the window had room for it: other connections hold the packet
    /// memory. The sender hears of it at once, and of what is missing when this came too early.
    #[cold]
    fn no_memory_for(&mut self, payload: &Payload) {
        self.tcb.set(flag::ACK_NOW);
        if payload.seq == self.tcb.rcv_nxt {
            self.tcb.set(flag::NO_MEMORY);
        }
    }

    /// What of so much free space out of `full` is worth telling (RFC 9293 section 3.8.6.2.2).
    fn worth_telling(&self, free: u32, full: u32) -> u32 {
        let step = u32::from(self.tcb.rcv_mss.max(1)).min(full / 2);
        if free < step || free < full >> 4 {
            0
        } else {
            free
        }
    }

    /// The window to tell if none had been told before.
    #[inline]
    pub(crate) fn fresh_window(&self) -> u32 {
        let free = self.receive_space();
        let mut full = self.receive_limit();
        if free < full >> 4 && self.pool.is_crowded(self.tcb.rx_chunks) {
            // It has what every connection may have: little, and worth telling.
            full = full.min(super::pool::ALWAYS.saturating_mul(self.segment_size()));
        }
        self.worth_telling(free, full)
    }

    /// There is nothing to tell: notes whether that is for want of packet memory, which others give
    /// back without a word to this connection.
    pub(crate) fn note_starved(&mut self) {
        let held = self.tcb.rx_bytes.saturating_add(self.tcb.ooo_bytes);
        let capacity = self.receive_capacity();
        let bytes = capacity.saturating_sub(held);
        if self.worth_telling(bytes, capacity) > 0 && self.pool.is_crowded(self.tcb.rx_chunks) {
            self.tcb.set(flag::STARVED);
        } else {
            self.tcb.clear(flag::STARVED);
        }
    }

    /// Whether there is more room than the peer knows of, so much that it is worth a segment
    /// (Linux: __tcp_cleanup_rbuf).
    pub(crate) fn window_has_opened(&self) -> bool {
        let told = self.tcb.receive_window();
        let twice = told.saturating_mul(2);
        // There is never more space than capacity, and that is quick to know. Nor can more be told
        // than the header's field takes.
        let most = u32::from(u16::MAX) << self.tcb.rcv_wscale.min(14);
        if self.receive_capacity().min(most) < twice {
            return false;
        }
        let fresh = self.fresh_window().min(most);
        fresh >= twice.max(1)
            && fresh.saturating_sub(told)
                >= u32::from(self.tcb.rcv_mss).min(self.receive_capacity() / 2)
    }

    /// Whether there is a chunk for the payload, or a place behind the last one.
    fn has_room(&self, payload: &Payload, memory: &impl Memory) -> bool {
        let room = if payload.seq == self.tcb.rcv_nxt {
            self.receive_room()
        } else {
            self.pool.out_of_order_room(self.tcb.rx_chunks)
        };
        room > 0 || self.fits_tail(payload, memory)
    }

    /// Whether the payload may be copied behind the last chunk of the receive queue.
    fn fits_tail(&self, payload: &Payload, memory: &impl Memory) -> bool {
        payload.seq == self.tcb.rcv_nxt
            && self.segment(self.tcb.rx_tail).is_some_and(|tail| {
                usize::from(tail.offset)
                    .saturating_add(usize::from(tail.len))
                    .saturating_add(usize::from(payload.len))
                    <= memory.chunk_size()
            })
    }

    /// Puts in-order data on the receive queue; `true` when its chunk is kept. Small data goes
    /// behind the last chunk when the queue is long, so that a slow reader cannot hold the packet
    /// memory.
    fn append_received(&mut self, memory: &mut impl Memory, payload: Payload) -> bool {
        let len = u32::from(payload.len);
        self.tcb.rx_bytes = self.tcb.rx_bytes.saturating_add(len);
        let many = self.tcb.rx_chunks >= COMPACT_ABOVE || self.receive_room() == 0;
        if many && self.fits_tail(&payload, memory) {
            let tail = self.tcb.rx_tail;
            if let Some(slot) = self.segment_mut(tail) {
                let at = usize::from(slot.offset).saturating_add(usize::from(slot.len));
                slot.len = slot.len.saturating_add(payload.len);
                copy_between(
                    memory,
                    (payload.chunk, usize::from(payload.offset)),
                    (tail, at),
                    usize::from(payload.len),
                );
                self.pool.count(Counter::TcpCompacted);
                return false;
            }
        }
        self.link_received(payload);
        true
    }

    /// Whether in-order data goes into the queue in its own chunk.
    #[inline]
    pub(super) fn has_whole_chunk(&self) -> bool {
        self.tcb.rx_chunks < COMPACT_ABOVE
            && (self.pool.least_receive_room(self.tcb.rx_chunks) > 0 || self.receive_room() > 0)
    }

    /// Puts in-order data on the receive queue in its own chunk.
    #[inline]
    pub(super) fn append_chunk(&mut self, payload: Payload) {
        self.tcb.rx_bytes = self.tcb.rx_bytes.saturating_add(u32::from(payload.len));
        self.link_received(payload);
    }

    #[inline]
    fn link_received(&mut self, payload: Payload) {
        self.adopt(payload);
        let tail = self.tcb.rx_tail;
        if self.tcb.rx_head == NONE {
            self.tcb.rx_head = payload.chunk;
        } else if let Some(slot) = self.segment_mut(tail) {
            slot.next = payload.chunk;
        }
        self.tcb.rx_tail = payload.chunk;
    }

    /// Makes a frame's chunk ours.
    fn adopt(&mut self, payload: Payload) {
        let owner = self.index;
        if let Some(slot) = self.pool.chunks.get_mut(payload.chunk as usize) {
            slot.state = chunk_state::RECEIVED;
            slot.owner = owner;
            slot.next = NONE;
        }
        if let Some(slot) = self.pool.segments.get_mut(payload.chunk as usize) {
            slot.zero();
            slot.next = NONE;
            slot.owner = owner;
            slot.seq = payload.seq;
            slot.offset = payload.offset;
            slot.len = payload.len;
            slot.marks = if payload.fin { mark::FIN } else { 0 };
        }
        self.tcb.rx_chunks = self.tcb.rx_chunks.saturating_add(1);
        self.pool.head.received_chunks = self.pool.head.received_chunks.saturating_add(1);
    }

    /// Moves what has become in order from the out-of-order queue to the receive queue; whether
    /// the FIN came with it.
    fn merge_out_of_order(&mut self) -> bool {
        for _ in 0..self.pool.chunks.len() {
            let chunk = self.tcb.ooo_head;
            let Some(&slot) = self.segment(chunk) else {
                break;
            };
            if after(slot.seq, self.tcb.rcv_nxt) {
                break;
            }
            self.tcb.ooo_head = slot.next;
            if slot.next == NONE {
                self.tcb.ooo_tail = NONE;
            }
            self.tcb.ooo_count = self.tcb.ooo_count.saturating_sub(1);
            self.tcb.ooo_bytes = self.tcb.ooo_bytes.saturating_sub(u32::from(slot.len));
            let known = distance(slot.seq, self.tcb.rcv_nxt).min(u32::from(slot.len)) as u16;
            let fresh = slot.len.saturating_sub(known);
            self.note_duplicate(slot.seq, earlier(slot.end(), self.tcb.rcv_nxt));
            // Who has sent data behind it has not meant it.
            let is_fin = slot.has(mark::FIN) && after(slot.end(), self.tcb.rcv_nxt);
            if fresh == 0 {
                self.release_received(chunk);
            } else {
                self.chain_received(chunk, known, fresh);
            }
            self.tcb.rcv_nxt = self.tcb.rcv_nxt.wrapping_add(u32::from(fresh));
            self.tcb.bytes_received = self.tcb.bytes_received.wrapping_add(u64::from(fresh));
            if is_fin {
                self.drop_out_of_order();
                return true;
            }
        }
        false
    }

    /// Puts a chunk that is already ours at the end of the receive queue, without its first bytes.
    fn chain_received(&mut self, chunk: u32, known: u16, fresh: u16) {
        let tail = self.tcb.rx_tail;
        if self.tcb.rx_head == NONE {
            self.tcb.rx_head = chunk;
        } else if let Some(last) = self.segment_mut(tail) {
            last.next = chunk;
        }
        self.tcb.rx_tail = chunk;
        self.tcb.rx_bytes = self.tcb.rx_bytes.saturating_add(u32::from(fresh));
        if let Some(slot) = self.segment_mut(chunk) {
            slot.next = NONE;
            slot.offset = slot.offset.saturating_add(known);
            slot.seq = slot.seq.wrapping_add(u32::from(known));
            slot.len = fresh;
            slot.marks = 0;
        }
    }

    pub(crate) fn release_received(&mut self, chunk: u32) {
        if let Some(slot) = self.segment_mut(chunk) {
            slot.owner = NONE;
        }
        self.pool.free(chunk);
        self.tcb.rx_chunks = self.tcb.rx_chunks.saturating_sub(1);
        self.pool.head.received_chunks = self.pool.head.received_chunks.saturating_sub(1);
    }

    /// Keeps a segment that came too early, in order of sequence numbers and without overlaps.
    fn take_out_of_order(&mut self, mut payload: Payload) -> bool {
        self.tcb.set(flag::ACK_NOW);
        self.quick_ack_mode();
        self.tcb.rcv_ooopack = self.tcb.rcv_ooopack.wrapping_add(1);
        self.pool.count(Counter::TcpOutOfOrder);
        let Some((before_it, mut behind)) = self.place_of(payload.seq) else {
            self.pool.count(Counter::TcpGapFloods);
            return false;
        };
        if !self.cut_known(before_it, &mut payload) {
            return false;
        }
        for _ in 0..self.pool.chunks.len() {
            let Some(&next) = self.segment(behind) else {
                break;
            };
            let end = payload.last();
            if !after(end, next.seq) {
                break;
            }
            if before(end, next.end()) {
                self.note_duplicate(next.seq, end);
                let rest = distance(payload.seq, next.seq).min(u32::from(payload.len));
                payload.len = rest as u16;
                payload.fin = false;
                break;
            }
            // The new one covers the old one.
            self.note_duplicate(next.seq, next.end());
            payload.fin |=
                next.has(mark::FIN) && payload.end() == next.seq.wrapping_add(u32::from(next.len));
            self.tcb.ooo_count = self.tcb.ooo_count.saturating_sub(1);
            self.tcb.ooo_bytes = self.tcb.ooo_bytes.saturating_sub(u32::from(next.len));
            self.release_received(behind);
            behind = next.next;
        }
        if payload.len == 0 && !payload.fin {
            self.link_out_of_order(before_it, behind);
            return false;
        }
        self.adopt(payload);
        if let Some(slot) = self.segment_mut(payload.chunk) {
            slot.next = behind;
        }
        self.link_out_of_order(before_it, payload.chunk);
        self.tcb.ooo_count = self.tcb.ooo_count.saturating_add(1);
        self.tcb.ooo_bytes = self.tcb.ooo_bytes.saturating_add(u32::from(payload.len));
        self.tcb.note_range(Range {
            left: payload.seq,
            right: payload.last(),
        });
        true
    }

    /// Cuts off what the segment before it has already; `false`: that is all of it.
    fn cut_known(&mut self, before_it: u32, payload: &mut Payload) -> bool {
        let Some(&previous) = self.segment(before_it) else {
            return true;
        };
        if !before(payload.seq, previous.end()) {
            return true;
        }
        let known = distance(payload.seq, previous.end());
        let end = payload.last();
        self.note_duplicate(payload.seq, earlier(end, previous.end()));
        if !after(end, previous.end()) {
            self.tcb.note_range(Range {
                left: payload.seq,
                right: end,
            });
        }
        if known >= u32::from(payload.len) {
            return false;
        }
        payload.offset = payload.offset.saturating_add(known as u16);
        payload.len = payload.len.saturating_sub(known as u16);
        payload.seq = payload.seq.wrapping_add(known);
        true
    }

    fn link_out_of_order(&mut self, before_it: u32, chunk: u32) {
        match self.segment_mut(before_it) {
            Some(slot) => slot.next = chunk,
            None => self.tcb.ooo_head = chunk,
        }
        match self.segment(chunk) {
            Some(slot) if slot.next == NONE => self.tcb.ooo_tail = chunk,
            Some(_) => {}
            None => self.tcb.ooo_tail = before_it,
        }
    }

    /// The out-of-order segments between which a sequence number belongs. `None` when that is too
    /// far from either end: a peer that makes gaps without end must not cost a long walk a segment.
    fn place_of(&self, seq: u32) -> Option<(u32, u32)> {
        let tail = self.tcb.ooo_tail;
        if self
            .segment(tail)
            .is_some_and(|last| !after(last.seq, seq) && last.next == NONE)
        {
            return Some((tail, NONE));
        }
        let (mut before_it, mut behind) = (NONE, self.tcb.ooo_head);
        for _ in 0..LONGEST_WALK {
            match self.segment(behind) {
                Some(slot) if !after(slot.seq, seq) => {
                    before_it = behind;
                    behind = slot.next;
                }
                _ => return Some((before_it, behind)),
            }
        }
        None
    }

    /// Notes data that came twice, to tell it in the next ACK (RFC 2883).
    pub(super) fn note_duplicate(&mut self, left: u32, right: u32) {
        if !self.tcb.has(flag::SACK) || !before(left, right) {
            return;
        }
        let range = Range { left, right };
        if !self.tcb.has(flag::DSACK) {
            self.tcb.dsack = range;
            self.tcb.set(flag::DSACK);
        } else if self.tcb.dsack.touches(range) {
            self.tcb.dsack = self.tcb.dsack.joined(range);
        }
    }

    /// The same for a segment that begins before what is next: it is the latest news, and takes the
    /// place of what was to be told (net/ipv4/tcp_input.c:tcp_dsack_set).
    pub(super) fn tell_duplicate(&mut self, left: u32, right: u32) {
        if before(left, right) {
            self.tcb.clear(flag::DSACK);
        }
        self.note_duplicate(left, right);
    }

    /// Takes the peer's FIN, which is next in order.
    pub(crate) fn take_fin(&mut self, now: Instant) {
        if self.tcb.has(flag::FIN_RECEIVED) {
            return;
        }
        self.tcb.rcv_nxt = self.tcb.rcv_nxt.wrapping_add(1);
        self.tcb
            .set(flag::FIN_RECEIVED | flag::RECEIVE_SHUT | flag::ACK_NOW);
        self.drop_out_of_order();
        match self.tcb.state() {
            TcpState::Established | TcpState::SynReceived => {
                self.tcb.state = TcpState::CloseWait as u8;
                // No duplicate is told any more (net/ipv4/tcp_input.c:tcp_fin).
                self.tcb.clear(flag::DSACK);
            }
            TcpState::FinWait1 => self.tcb.state = TcpState::Closing as u8,
            TcpState::FinWait2 => {
                self.tcb.state = TcpState::TimeWait as u8;
                self.stop_timers();
            }
            _ => {}
        }
        self.tcb.last_received_ms = millis(now);
        self.readable_edge();
        self.writable_edge();
    }

    /// ACKs leave at once for a while (RFC 5681 section 4.2: trouble, or a start).
    pub(crate) fn quick_ack_mode(&mut self) {
        let half = (self.receive_capacity() / 2)
            .checked_div(u32::from(self.tcb.rcv_mss))
            .unwrap_or(0);
        self.tcb.quick_acks = half.clamp(2, u32::from(MOST_QUICK_ACKS)) as u8;
        self.tcb.clear(flag::PINGPONG);
    }

    /// Decides when the data that has come is acknowledged: at once for every second full segment,
    /// in quick mode, or after a gap; else with the next data or after the delay.
    pub(super) fn schedule_ack(&mut self, now: Instant) {
        let two = self.tcb.unacked_bytes > u32::from(self.tcb.rcv_mss);
        let quick = self.tcb.quick_acks > 0 && !self.tcb.has(flag::PINGPONG);
        if two || quick || self.tcb.ooo_head != NONE {
            self.tcb.set(flag::ACK_NOW);
        } else {
            self.tcb.set(flag::ACK_OWED);
            let at = now.0.saturating_add(DELAYED_ACK_NS);
            self.tcb.delayed_ack_at = self.tcb.delayed_ack_at.min(at);
        }
    }

    /// The contiguous bytes behind the first `skip` unread ones.
    pub(crate) fn front(&self, skip: usize) -> Option<Span> {
        let most = self.before_mark(skip)?;
        let skip = skip.saturating_add(usize::from(self.tcb.skips_urgent()));
        self.span(self.tcb.rx_head, skip, most)
    }

    /// The same, when the bytes before them end with this chunk: no walk from the front.
    pub(crate) fn behind(&self, last: u32, skip: usize) -> Option<Span> {
        let most = self.before_mark(skip)?;
        self.span(self.segment(last)?.next, 0, most)
    }

    /// Bytes behind the first `skip` ones that one read may give: it stops at the urgent mark, and
    /// goes on behind its byte. `None`: it stops here.
    fn before_mark(&self, skip: usize) -> Option<usize> {
        let mark = self.tcb.mark_distance().filter(|&mark| mark > 0);
        let most = mark.map_or(usize::MAX, |mark| (mark as usize).saturating_sub(skip));
        (most > 0).then_some(most)
    }

    /// At most `most` contiguous bytes, `left` bytes behind the start of this chunk.
    fn span(&self, mut chunk: u32, mut left: usize, most: usize) -> Option<Span> {
        for _ in 0..self.pool.chunks.len() {
            let slot = self.segment(chunk)?;
            let len = usize::from(slot.len);
            if left < len {
                return Some(Span {
                    chunk: ChunkId(chunk),
                    offset: usize::from(slot.offset).saturating_add(left) as u32,
                    len: len.saturating_sub(left).min(most) as u32,
                });
            }
            left = left.saturating_sub(len);
            chunk = slot.next;
        }
        None
    }

    /// The program has read bytes: frees their chunks and opens the window when that is worth a
    /// segment (Linux: tcp_cleanup_rbuf).
    pub(crate) fn consume(&mut self, bytes: usize, now: Instant) {
        let mut left = bytes;
        if bytes > 0 && self.tcb.skips_urgent() {
            left = left.saturating_add(1);
        }
        for _ in 0..self.pool.chunks.len() {
            let chunk = self.tcb.rx_head;
            let Some(slot) = self.segment_mut(chunk) else {
                break;
            };
            let take = left.min(usize::from(slot.len));
            slot.offset = slot.offset.saturating_add(take as u16);
            slot.len = slot.len.saturating_sub(take as u16);
            slot.seq = slot.seq.wrapping_add(take as u32);
            let (empty, next) = (slot.len == 0, slot.next);
            left = left.saturating_sub(take);
            self.tcb.rx_bytes = self.tcb.rx_bytes.saturating_sub(take as u32);
            self.tcb.copied_seq = self.tcb.copied_seq.wrapping_add(take as u32);
            if empty {
                self.tcb.rx_head = next;
                if next == NONE {
                    self.tcb.rx_tail = NONE;
                }
                self.release_received(chunk);
            }
            if left == 0 {
                break;
            }
        }
        if self.tcb.mark_distance().is_none() {
            self.tcb.urgent = 0;
        }
        self.tune_receive_buffer(now);
        if !self.tcb.state().is_synchronised() || self.tcb.has(flag::FIN_RECEIVED) {
            return;
        }
        let quick = self.tcb.quick_acks > 0
            && !self.tcb.has(flag::PINGPONG)
            && self.tcb.has(flag::ACK_OWED);
        let many = self.tcb.unacked_bytes > u32::from(self.tcb.rcv_mss);
        let opened = self.window_has_opened();
        if !opened && self.tcb.rcv_wnd == 0 {
            self.note_starved();
        }
        if opened || (self.tcb.has(flag::ACK_OWED) && (quick || many)) {
            self.tcb.set(flag::ACK_NOW);
        }
    }

    /// Dynamic right-sizing: the buffer follows what the program reads in a round trip (Linux:
    /// tcp_rcv_space_adjust).
    fn tune_receive_buffer(&mut self, now: Instant) {
        let defaults = &self.pool.head.tcp_defaults;
        let (moderate, most) = (defaults.moderate_rcvbuf != 0, defaults.rmem[2]);
        if !moderate || self.tcb.options.has(TcpOptions::RCVBUF_LOCKED) {
            return;
        }
        let now_us = micros(now) as u32;
        let rtt = match (self.tcb.rcv_rtt_us, self.tcb.srtt_us()) {
            (0, 0) => return,
            (0, srtt) => srtt,
            (rtt, _) => rtt,
        };
        if now_us.wrapping_sub(self.tcb.drs_time_us) < rtt {
            return;
        }
        let copied = distance(self.tcb.drs_seq, self.tcb.copied_seq);
        if copied > self.tcb.drs_space {
            let window = copied
                .saturating_mul(2)
                .saturating_add(u32::from(self.tcb.advertised_mss).saturating_mul(16));
            let buffer = window.saturating_mul(2).min(most);
            if buffer > self.tcb.options.rcvbuf_bytes {
                self.tcb.options.rcvbuf_bytes = buffer;
            }
            self.tcb.drs_space = copied;
        }
        self.tcb.drs_seq = self.tcb.copied_seq;
        self.tcb.drs_time_us = now_us;
    }

    /// A fresh segment slot for the send queue.
    pub(crate) fn fresh_segment(owner: u32, seq: u32, offset: u16) -> SegmentSlot {
        let mut slot = SegmentSlot::new_zeroed();
        slot.next = NONE;
        slot.owner = owner;
        slot.seq = seq;
        slot.offset = offset;
        slot
    }
}
