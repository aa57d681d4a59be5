//! What is expected of an established connection in good order.
//!
//! The expected segment (Jacobson's header prediction) is plain, the next of its stream, with data
//! or with an acknowledgement that goes forward. [`super::input`] would do the same with it, but
//! asks first what else it could be. Here it is one look at the segment and one at the connection;
//! whoever fails either takes the long way, from the beginning: until both have passed nothing is
//! changed.
//!
//! The expected write fits one segment, which leaves at once; [`Connection::output`] would find
//! that out step by step.

use super::ack::Told;
use super::congestion::BBR;
use super::connection::{Connection, millis};
use super::options::TcpOptions;
use super::output::PAYLOAD_AT;
use super::pool::mark;
use super::receive::Payload;
use super::seq::{after, before};
use super::tcb::{TcpState, ca, flag, pending, search};
use crate::counters::Counter;
use crate::image::NONE;
use crate::stack::{FrameOutcome, RxFrame, Stack};
use crate::types::{ChunkId, EndpointId, Instant, IpAddress, Memory, SocketAddress};
use crate::wire::tcp::{PLAIN, Plain, Timestamps};

/// What must have been negotiated, and nothing but that.
const NEEDED: u32 = flag::TIMESTAMPS | flag::SACK;
/// What says that more has to be looked at.
const UNUSUAL: u32 = flag::ECN
    | flag::SEND_SHUT
    | flag::RECEIVE_SHUT
    | flag::FIN_QUEUED
    | flag::FIN_RECEIVED
    | flag::FIN_DUE
    | flag::TLP_OUT
    | flag::STARVED
    | flag::NO_MEMORY;

/// A write looks at more: at what its segment would have to say besides the data, and at what waits
/// or was held back.
const UNUSUAL_TO_WRITE: u32 = UNUSUAL
    | flag::DSACK
    | flag::ECN_DEMAND_CWR
    | flag::ECN_SEND_CWR
    | flag::NO_SPACE
    | flag::OUTPUT_DUE
    | flag::CWND_LIMITED
    | flag::WINDOW_LIMITED;

/// What a plain segment says to its connection.
#[derive(Clone, Copy, Debug)]
struct News {
    seq: u32,
    ack: u32,
    window: u16,
    timestamps: Timestamps,
    payload_len: u16,
}

impl Stack<'_> {
    /// Takes a frame whose segment is expected; `None`, and nothing was changed, for any other.
    #[inline(always)]
    pub(super) fn receive_expected(
        &mut self,
        memory: &mut impl Memory,
        frame: RxFrame,
        now: Instant,
    ) -> Option<FrameOutcome> {
        let info = self.head.queue_pairs.get(usize::from(frame.queue_pair))?;
        let end = (frame.offset as usize).saturating_add(frame.len as usize);
        let bytes = memory.chunk(frame.chunk);
        let bytes = bytes.get(frame.offset as usize..end)?;
        let (plain, payload_len) = Plain::of(bytes, &info.mac, frame.checksum)?;
        let ip = IpAddress::mapped;
        let local = SocketAddress::new(ip(plain.destination), plain.destination_port.get());
        let remote = SocketAddress::new(ip(plain.source), plain.source_port.get());
        let news = News {
            seq: plain.seq.get(),
            ack: plain.ack.get(),
            window: plain.window.get(),
            timestamps: Timestamps {
                value: plain.value.get(),
                echo: plain.echo.get(),
            },
            payload_len,
        };
        let index = self.find_connection(&local, &remote)?;
        let mut connection = self.connection(index)?;
        if !connection.expects(&news) {
            return None;
        }
        connection.pool.count(Counter::TcpSegmentsReceived);
        connection.take_expected_ack(&news, now);
        if payload_len > 0 {
            let offset = (frame.offset as u16).wrapping_add(PLAIN as u16);
            connection.take_expected_data(&news, (frame.chunk.0, offset), now);
        }
        connection.send_what_waits(memory, now);
        memory.note_short_way();
        let generation = connection.endpoint.generation;
        if payload_len == 0 {
            connection.pool.free(frame.chunk.0);
        }
        self.settle_at(index, now);
        Some(if payload_len == 0 {
            FrameOutcome::Handled
        } else {
            FrameOutcome::Delivered(EndpointId { index, generation })
        })
    }
}

impl Connection<'_> {
    /// Whether the segment is what a connection in good order expects.
    #[inline(always)]
    fn expects(&self, news: &News) -> bool {
        let tcb = &*self.tcb;
        let in_order = tcb.state == TcpState::Established as u8
            && tcb.flags & (NEEDED | UNUSUAL) == NEEDED
            && tcb.ca_state == ca::OPEN
            && tcb.pending != pending::PROBE
            && tcb.mtu_search != search::PROBING
            && tcb.sacked_out | tcb.lost_out | tcb.retrans_out | u32::from(tcb.urgent) == 0
            && tcb.ooo_head == NONE
            && tcb.snd_wnd != 0;
        let acked = news.ack.wrapping_sub(tcb.snd_una);
        in_order
            && news.seq == tcb.rcv_nxt
            && acked <= tcb.snd_nxt.wrapping_sub(tcb.snd_una)
            && acked | u32::from(news.payload_len) != 0
            && news.window != 0
            && news.timestamps.value.wrapping_sub(tcb.ts_recent) as i32 >= 0
            && u32::from(news.payload_len) <= tcb.receive_window()
            && (news.payload_len == 0 || self.has_whole_chunk())
    }

    /// What an ACK that goes forward, or stands still beside data, says.
    #[inline(always)]
    fn take_expected_ack(&mut self, news: &News, now: Instant) {
        self.tcb.segs_in = self.tcb.segs_in.wrapping_add(1);
        if !after(self.tcb.rcv_nxt, self.tcb.rcv_wup) {
            self.tcb.ts_recent = news.timestamps.value;
            self.tcb.ts_recent_ms = millis(now);
            if news.payload_len > 0 {
                self.sample_sender(news.timestamps.echo, now);
            }
        }
        self.tcb.take_window(news.seq, news.ack, news.window);
        self.tcb.probes_out = 0;
        self.tcb.last_received_ms = millis(now);
        if news.ack == self.tcb.snd_una {
            return;
        }
        let in_flight = self.tcb.packets_out;
        let mut told = Told::default();
        self.take_cumulative(news.ack, &mut told, now);
        self.sample_round_trip(Some(news.timestamps), &mut told, now);
        if told.delivered > 0 {
            self.grow_window(&told, in_flight, now);
        }
        if told.acked > 0 {
            self.arm_retransmit(now, true);
        }
    }

    /// Puts the data, for which there is a chunk's room, on the receive queue.
    #[inline(always)]
    fn take_expected_data(&mut self, news: &News, (chunk, offset): (u32, u16), now: Instant) {
        self.tcb.data_segs_in = self.tcb.data_segs_in.wrapping_add(1);
        self.measure_peer(news.payload_len);
        self.append_chunk(Payload {
            chunk,
            offset,
            len: news.payload_len,
            seq: news.seq,
            fin: false,
        });
        self.received_in_order(news.payload_len, now);
        self.schedule_ack(now);
        self.readable_edge();
        self.tcb.last_data_ms = millis(now);
    }

    /// What the acknowledgement lets go; and a writer that waits hears of the room.
    #[inline]
    fn send_what_waits(&mut self, memory: &mut impl Memory, now: Instant) {
        if self.tcb.unsent == NONE {
            self.tcb.clear(flag::CWND_LIMITED | flag::WINDOW_LIMITED);
            self.note_limited_by_program();
        } else {
            self.output(memory, now, false);
        }
        if self.tcb.has(flag::NO_SPACE) {
            self.look_for_room(now);
        }
    }

    /// Whether a write of so many bytes leaves at once, in one plain segment.
    #[inline(always)]
    pub(super) fn expects_write(&self, len: usize) -> bool {
        let tcb = &*self.tcb;
        let options = &tcb.options;
        let in_order = tcb.state == TcpState::Established as u8
            && tcb.flags & (NEEDED | UNUSUAL_TO_WRITE) == NEEDED
            && tcb.error == 0
            && tcb.ca_state == ca::OPEN
            && tcb.mtu_search == search::OFF
            && tcb.sacked_out | tcb.lost_out | tcb.retrans_out == 0
            && tcb.sack_count == 0
            && tcb.unsent == NONE;
        let is_free = options.flags & TcpOptions::CORK == 0
            && (tcb.packets_out == 0 || options.flags & TcpOptions::NODELAY != 0)
            && options.notsent_lowat == u32::MAX
            && options.max_pacing_rate == TcpOptions::UNPACED
            && tcb.congestion.algorithm != BBR
            && tcb.pace_at == 0
            && !before(tcb.snd_nxt, tcb.snd_up);
        let window = tcb.send_window_end().wrapping_sub(tcb.snd_nxt) as i32;
        in_order
            && is_free
            && len.wrapping_sub(1) < usize::from(tcb.mss)
            && tcb.packets_out < tcb.congestion.cwnd
            && window >= len as i32
            && self.is_v4()
            && self.send_buffer().may_begin()
    }

    /// Puts the bytes of an expected write on the send queue and sends them; how many. `None`, and
    /// nothing was taken, when there was no chunk.
    #[inline(always)]
    pub(super) fn write_expected(
        &mut self,
        memory: &mut impl Memory,
        len: usize,
        fill: &mut dyn FnMut(&mut [u8]),
        now: Instant,
    ) -> Option<usize> {
        let place = usize::from(PAYLOAD_AT)..usize::from(PAYLOAD_AT).saturating_add(len);
        if place.end > memory.chunk_size() {
            return None;
        }
        let chunk = self.push_segment()?;
        if let Some(place) = memory.chunk_mut(ChunkId(chunk)).get_mut(place) {
            fill(place);
        }
        let mut segment = Self::fresh_segment(self.index, self.tcb.write_seq, PAYLOAD_AT);
        segment.len = len as u16;
        segment.in_burst = len as u16;
        segment.marks = mark::PUSH;
        if let Some(slot) = self.segment_mut(chunk) {
            slot.len = segment.len;
            slot.in_burst = segment.in_burst;
            slot.marks = segment.marks;
        }
        self.tcb.write_seq = segment.end();
        self.restart_after_idle(now);
        let full = self.new_segment();
        if !self.transmit_segment(memory, chunk, &segment, now) {
            // It waits, like every write that cannot leave.
            self.output(memory, now, false);
            return Some(len);
        }
        let was_idle = self.tcb.packets_out == 0;
        self.left(&segment, full, now);
        self.tcb.burst = self.tcb.burst.wrapping_add(1);
        self.note_window_use();
        self.arm_after_send(was_idle, now);
        self.note_limited_by_program();
        memory.note_short_way();
        Some(len)
    }
}
