//! The send buffer: how much of what the program writes there may be, as the kernel counts it.
//!
//! The kernel puts what is written into buffers that a device which segments would take as one
//! packet each: *bursts*. Against SO_SNDBUF count their bytes and what each burst costs besides.
//! A burst may be begun while the buffer is not full, and what is begun is filled up, so a write
//! takes more than the buffer by up to a burst. What left by one [`Connection::output`] has been a
//! burst, whatever it was on the queue (net/ipv4/tcp.c:tcp_sendmsg_locked, tcp_stream_alloc_skb;
//! include/net/sock.h:sk_stream_is_writeable, include/net/tcp.h:__tcp_stream_memory_free).

use super::congestion::BBR;
use super::connection::Connection;
use super::options::TcpOptions;
use super::pool::{SegmentSlot, mark};
use super::seq::distance;
use super::tcb::{Tcb, flag};
use crate::image::NONE;

/// Most bytes of headers in front of a segment (MAX_TCP_HEADER of most configurations).
const HEADERS: u32 = 320;
/// What describes a buffer's pages, behind the headers (struct skb_shared_info, x86-64).
const PAGES: u32 = 320;
/// What describes a buffer (struct sk_buff, x86-64).
const DESCRIPTOR: u32 = 256;
/// What a burst costs besides its bytes.
const BURST_COST: u32 = HEADERS + PAGES + DESCRIPTOR;
/// Most bytes of a burst (GSO_LEGACY_MAX_SIZE without room for headers).
const LONGEST: u32 = 65_535 - HEADERS;
/// A window up to this is not halved (Linux: TCP_MSS_DEFAULT).
const SMALL_WINDOW: u32 = 536;
/// Most bytes of SACK blocks, which new segments leave room for.
const SACK_BLOCKS: u32 = 36;
/// Segments that there is room for at the least (Linux: TCP_INIT_CWND).
const LEAST_SEGMENTS: u32 = 10;

/// The send buffer of a connection, to look at.
#[derive(Debug)]
pub(crate) struct SendBuffer<'a> {
    tcb: &'a Tcb,
    segments: &'a [SegmentSlot],
    index: u32,
    /// Chunks that the send queue may take now.
    room: u32,
}

impl<'a> SendBuffer<'a> {
    pub(crate) fn new(tcb: &'a Tcb, segments: &'a [SegmentSlot], index: u32, room: u32) -> Self {
        Self {
            tcb,
            segments,
            index,
            room,
        }
    }

    fn segment(&self, chunk: u32) -> Option<&SegmentSlot> {
        let slot = self.segments.get(chunk as usize);
        slot.filter(|slot| slot.owner == self.index)
    }

    /// Bytes of a full burst: whole segments, at most half of the peer's largest window
    /// (net/ipv4/tcp.c:tcp_xmit_size_goal).
    fn full(&self) -> u32 {
        let mss = u32::from(self.tcb.mss).max(1);
        let window = self.tcb.max_window;
        let most = match window {
            0 => LONGEST,
            1..=SMALL_WINDOW => window,
            _ => (window / 2).min(LONGEST),
        };
        most.checked_div(mss)
            .unwrap_or(1)
            .saturating_mul(mss)
            .max(mss)
    }

    /// Bytes of a burst that more may be put behind; 0: the next begins one.
    pub(super) fn open(&self) -> u32 {
        match self.left() {
            0 => 0,
            _ => self.begun(),
        }
    }

    /// Bytes of the last burst, as far as none of it was sent.
    fn begun(&self) -> u32 {
        if self.tcb.unsent == NONE {
            return 0;
        }
        match self.segment(self.tcb.queue_tail) {
            Some(tail) if !tail.has(mark::FIN | mark::END) => {
                u32::from(tail.in_burst).min(distance(self.tcb.snd_nxt, self.tcb.write_seq))
            }
            _ => 0,
        }
    }

    /// Bytes that the last burst may still take.
    fn left(&self) -> u32 {
        match self.begun() {
            0 => 0,
            begun => self.full().saturating_sub(begun),
        }
    }

    /// What counts against the buffer, bytes.
    #[inline]
    fn charge(&self) -> u32 {
        let tcb = self.tcb;
        let sent = match self.segment(tcb.queue_head) {
            Some(head) if tcb.queue_head != tcb.unsent => tcb.burst.wrapping_sub(head.burst),
            _ => 0,
        };
        let mut bursts = u32::from(sent);
        let unsent = distance(tcb.snd_nxt, tcb.write_seq);
        if tcb.unsent != NONE && unsent > 0 {
            let before = unsent.saturating_sub(self.begun());
            bursts = bursts.saturating_add(1);
            if before > 0 {
                bursts = bursts.saturating_add(before.div_ceil(self.full().max(1)));
            }
        }
        distance(tcb.snd_una, tcb.write_seq).saturating_add(bursts.saturating_mul(BURST_COST))
    }

    /// Whether a burst may be begun.
    #[inline(always)]
    pub(super) fn may_begin(&self) -> bool {
        let tcb = self.tcb;
        let is_free = tcb.queue_head == NONE || self.charge() < tcb.options.sndbuf_bytes;
        let lowat = tcb.options.notsent_lowat;
        self.room > 0 && is_free && (lowat == u32::MAX || tcb.unsent_bytes() < lowat)
    }

    /// Bytes that a write takes before what may leave should leave: up to the end of a burst.
    pub(super) fn step(&self) -> u32 {
        match self.left() {
            _ if self.room == 0 => 0,
            0 if self.may_begin() => self.full(),
            left => left,
        }
    }

    /// Bytes that a write surely takes now: what of it leaves at once may cost more than it did in
    /// the queue, so no more than up to the end of a burst.
    pub(crate) fn space(&self) -> u32 {
        let least = u32::from(self.tcb.mss).saturating_sub(SACK_BLOCKS).max(1);
        self.step().min(self.room.saturating_mul(least))
    }

    /// Whether a poll would call it writable: a third of the buffer is free and the unsent part is
    /// below half of TCP_NOTSENT_LOWAT.
    pub(crate) fn is_writable(&self) -> bool {
        let tcb = self.tcb;
        let charge = self.charge();
        let room = self.room.saturating_mul(u32::from(tcb.mss));
        let free = tcb.options.sndbuf_bytes.saturating_sub(charge).min(room);
        let unsent = tcb.unsent_bytes().saturating_mul(2);
        // That a connection is made is told as room to write: not even full memory may hide it,
        // before a write has met it.
        let is_new = tcb.write_seq == tcb.iss.wrapping_add(1) && !tcb.has(flag::NO_SPACE);
        (free >= (charge / 2).max(1) || is_new) && unsent < tcb.options.notsent_lowat
    }
}

impl Connection<'_> {
    #[inline(always)]
    pub(crate) fn send_buffer(&self) -> SendBuffer<'_> {
        let room = self.pool.send_room(self.tcb.queued_chunks);
        SendBuffer::new(self.tcb, self.pool.segments, self.index, room)
    }

    /// A buffer that the program has not set grows with the congestion window
    /// (net/ipv4/tcp_input.c:tcp_sndbuf_expand).
    pub(super) fn grow_send_buffer(&mut self) {
        let most = self.pool.head.tcp_defaults.wmem[2];
        let tcb = &mut *self.tcb;
        if tcb.options.has(TcpOptions::SNDBUF_LOCKED) {
            return;
        }
        let payload = u32::from(tcb.mss_clamp.max(tcb.mss));
        let buffer = payload.saturating_add(HEADERS + PAGES).next_power_of_two();
        let cost = buffer.saturating_add(DESCRIPTOR);
        let segments = tcb.congestion.cwnd.max(LEAST_SEGMENTS);
        let segments = segments.max(u32::from(tcb.reordering).saturating_add(1));
        let times = if tcb.congestion.algorithm == BBR {
            3
        } else {
            2
        };
        let wanted = segments.saturating_mul(cost).saturating_mul(times);
        tcb.options.sndbuf_bytes = tcb.options.sndbuf_bytes.max(wanted.min(most));
    }
}
