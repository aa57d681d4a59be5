//! Output: building segments, and the decision what may leave now (RFC 9293 section 3.8.6,
//! RFC 896 in Minshall's form, net/ipv4/tcp_output.c:tcp_write_xmit).

use super::connection::{Connection, elapsed, micros, millis, timestamps};
use super::options::TcpOptions;
use super::pool::{SegmentSlot, mark};
use super::seq::{after, before, distance};
use super::tcb::{NEVER, Range, TcpState, flag, pending, search};
use crate::counters::Counter;
use crate::image::{ASKS_TIME, DEFAULT_TTL, NONE, chunk_state};
use crate::types::{ChunkId, Instant, Memory};
use crate::wire::tcp::{self, FastOpen, flags};
use crate::wire::{TxChecksum, ethernet, tcp::Headers};

/// Place of the payload in a chunk that we send: room for every header with every option.
pub(crate) const PAYLOAD_AT: u16 = 128;
/// How long a corked segment waits at most (Linux: TCP_RTO_MIN).
const CORK_NS: u64 = 200_000_000;
/// An answer within this time makes the exchange interactive (Linux: TCP_ATO_MIN).
const PINGPONG_MS: u32 = 40;
/// Not-ECN, and ECN-capable transport (0) (RFC 3168 section 5).
const ECT_0: u8 = 2;

impl Connection<'_> {
    pub(super) fn is_v4(&self) -> bool {
        self.endpoint.remote_ip.is_v4()
    }

    /// Bytes that the timestamps take in each segment, if they were negotiated.
    fn timestamps_len(&self) -> u16 {
        if self.tcb.has(flag::TIMESTAMPS) {
            12
        } else {
            0
        }
    }

    /// Largest payload of one segment with the options that every segment carries.
    pub(crate) fn current_mss(&self) -> u16 {
        self.path_mss().min(self.tcb.searched_mss()).max(48)
    }

    /// The same, as far as is told: by the peer, the interface and ICMP messages.
    pub(super) fn path_mss(&self) -> u16 {
        let ip = if self.is_v4() { 40_u16 } else { 60 };
        let by_path = self.tcb.hop.mtu.saturating_sub(ip);
        let room = self
            .pool
            .head
            .chunk_size
            .saturating_sub(u32::from(PAYLOAD_AT));
        by_path
            .min(self.tcb.mss_clamp)
            .saturating_sub(self.timestamps_len())
            .min(room.min(u32::from(u16::MAX)) as u16)
            .max(48)
    }

    /// Largest payload of a new segment now: ranges that came out of order ride on data, too
    /// (net/ipv4/tcp_output.c:tcp_current_mss).
    #[inline]
    pub(super) fn new_segment(&self) -> u16 {
        if self.tcb.ooo_head == NONE && !self.tcb.has(flag::DSACK) {
            self.tcb.mss
        } else {
            self.tcb.mss.saturating_sub(self.sack_len()).max(1)
        }
    }

    /// Bytes that SACK blocks take in a segment now.
    #[cold]
    fn sack_len(&self) -> u16 {
        let most = if self.tcb.has(flag::TIMESTAMPS) { 3 } else { 4 };
        let told = self.tcb.sacks.iter().take(self.tcb.sack_count as usize);
        let fresh = told.filter(|range| after(range.left, self.tcb.rcv_nxt));
        let count = fresh
            .count()
            .saturating_add(usize::from(self.tcb.has(flag::DSACK)));
        match count.min(most) {
            0 => 0,
            _ if !self.tcb.has(flag::SACK) => 0,
            count => (count as u16).saturating_mul(8).saturating_add(4),
        }
    }

    /// The options of a segment of an established connection.
    fn options_now(&mut self, now: Instant, with_sack: bool) -> tcp::Options {
        let on = self.tcb.has(flag::TIMESTAMPS);
        let mut options = tcp::Options {
            timestamps: timestamps(on, self.tcb.ts_offset, self.tcb.ts_recent, now),
            ..tcp::Options::default()
        };
        let news = self.tcb.sack_count > 0 || self.tcb.has(flag::DSACK);
        if with_sack && news && self.tcb.has(flag::SACK) {
            self.put_sack(&mut options);
        }
        options
    }

    /// Fills in the ranges that came out of order: a duplicate first (RFC 2883), then the newest,
    /// then the others.
    fn put_sack(&mut self, options: &mut tcp::Options) {
        let most = if options.timestamps.is_some() { 3 } else { 4 };
        let mut blocks = [tcp::SackBlock::default(); 4];
        let mut count = 0usize;
        let mut put = |range: Range| {
            if count < most
                && let Some(slot) = blocks.get_mut(count)
            {
                *slot = tcp::SackBlock {
                    left: range.left,
                    right: range.right,
                };
                count = count.wrapping_add(1);
            }
        };
        if self.tcb.has(flag::DSACK) {
            put(self.tcb.dsack);
        }
        self.tcb.drop_told();
        let told = self.tcb.sack_count as usize;
        self.tcb.sacks.iter().take(told).copied().for_each(put);
        self.tcb.clear(flag::DSACK);
        options.sack = blocks;
        options.sack_count = count as u8;
    }

    /// The window to tell (RFC 9293 section 3.8.6.2.2): never less than told before, and opened
    /// only by a worthwhile step.
    #[inline(always)]
    pub(crate) fn select_window(&mut self) -> u16 {
        if self.tcb.has(flag::NO_MEMORY) {
            return self.take_window_back();
        }
        let told = self.tcb.receive_window();
        let fresh = self.fresh_window();
        let mut window = fresh;
        let scale = u32::from(self.tcb.rcv_wscale.min(14));
        // Round down to what the field can say.
        window = (window >> scale) << scale;
        if window < told {
            // Never shrink: round up.
            let unit = 1_u32 << scale;
            window = told.saturating_add(unit.wrapping_sub(1)) >> scale << scale;
        }
        let most = if self.tcb.has(flag::SCALING) {
            u32::from(u16::MAX) << scale
        } else {
            u32::from(u16::MAX)
        };
        window = window.min(most);
        if window == 0 && self.tcb.rcv_wnd != 0 {
            self.pool.count(Counter::TcpZeroWindows);
        }
        self.tcb.tell_window(window);
        if fresh == 0 {
            self.note_starved();
        } else {
            self.tcb.clear(flag::STARVED);
        }
        (window >> scale).min(u32::from(u16::MAX)) as u16
    }

    /// Data inside the window had to be dropped because the packet memory is full: the sender is
    /// told to stop, or it would repeat it at ever longer intervals and give the connection up in
    /// the end (RFC 9293 section 3.8.6: a sender must be ready for it;
    /// net/ipv4/tcp_output.c:tcp_select_window).
    #[cold]
    fn take_window_back(&mut self) -> u16 {
        self.tcb.clear(flag::NO_MEMORY);
        self.tcb.set(flag::STARVED);
        self.tcb.tell_window(0);
        self.pool.count(Counter::TcpWindowsTakenBack);
        0
    }

    /// Headers of a segment of this connection.
    #[inline]
    pub(super) fn headers(
        &mut self,
        seq: u32,
        bits: u16,
        window: u16,
        with: tcp::Options,
    ) -> Headers {
        let is_v4 = self.is_v4();
        let options = &self.tcb.options;
        let (tos, ttl) = if is_v4 {
            (options.tos, options.ttl)
        } else {
            (options.traffic_class, options.hop_limit)
        };
        let ack = if bits & flags::ACK != 0 {
            self.tcb.rcv_nxt
        } else {
            0
        };
        Headers {
            source_mac: self.tcb.hop.source_mac,
            destination_mac: self.tcb.hop.mac,
            source: self.endpoint.local_ip,
            destination: self.endpoint.remote_ip,
            source_port: self.endpoint.local_port,
            destination_port: self.endpoint.remote_port,
            seq,
            ack,
            flags: bits,
            window,
            urgent: 0,
            tos,
            ttl: if ttl == 0 { DEFAULT_TTL } else { ttl },
            ipv4_id: self.pool.next_ipv4_id(),
            options: with,
            checksum: TxChecksum::Whole,
        }
    }

    /// What every segment with an ACK settles.
    fn acknowledged(&mut self) {
        self.tcb.clear(flag::ACK_NOW | flag::ACK_OWED);
        self.tcb.delayed_ack_at = NEVER;
        self.tcb.unacked_bytes = 0;
        self.tcb.quick_acks = self.tcb.quick_acks.saturating_sub(1);
    }

    /// Sends a segment without data. `false` when there is no chunk for it.
    #[inline(never)]
    pub(crate) fn send_bare(
        &mut self,
        memory: &mut impl Memory,
        seq: u32,
        bits: u16,
        options: tcp::Options,
    ) -> bool {
        self.send_bare_with(memory, seq, bits, options, None)
    }

    /// The same with a Fast Open option behind the others.
    #[inline(always)]
    pub(super) fn send_bare_with(
        &mut self,
        memory: &mut impl Memory,
        seq: u32,
        bits: u16,
        options: tcp::Options,
        fast_open: Option<&FastOpen>,
    ) -> bool {
        let window = if bits & (flags::RST | flags::ACK) == flags::RST {
            0
        } else if bits & flags::SYN != 0 {
            self.syn_window()
        } else {
            self.select_window()
        };
        let headers = self.headers(seq, bits, window, options);
        let queue_pair = self.tcb.hop.queue_pair;
        if !self
            .pool
            .send_bare_with(memory, queue_pair, &headers, fast_open)
        {
            return false;
        }
        self.tcb.segs_out = self.tcb.segs_out.wrapping_add(1);
        if bits & flags::ACK != 0 {
            self.acknowledged();
        }
        true
    }

    /// The window of a SYN, which is not scaled (RFC 7323 section 2.2).
    pub(super) fn syn_window(&mut self) -> u16 {
        self.tcb.tell_window(self.tcb.rcv_wnd);
        self.tcb.rcv_wnd.min(u32::from(u16::MAX)) as u16
    }

    /// Sends an acknowledgement now.
    pub(crate) fn send_ack(&mut self, memory: &mut impl Memory, now: Instant) {
        let options = self.options_now(now, true);
        let ece = if self.tcb.has(flag::ECN_DEMAND_CWR) {
            flags::ECE
        } else {
            0
        };
        let seq = self.ack_seq();
        if !self.send_bare(memory, seq, flags::ACK | ece, options) {
            // No chunk: owe it.
            self.tcb.clear(flag::ACK_NOW);
            self.tcb.set(flag::ACK_OWED);
            self.tcb.delayed_ack_at = self.tcb.delayed_ack_at.min(now.0.saturating_add(5_000_000));
        }
    }

    /// The sequence number of a segment without data: inside the peer's window (Linux:
    /// tcp_acceptable_seq).
    fn ack_seq(&self) -> u32 {
        let end = self.tcb.send_window_end();
        if before(end, self.tcb.snd_nxt) && self.tcb.snd_wnd != 0 {
            end
        } else {
            self.tcb.snd_nxt
        }
    }

    /// Sends a segment that the peer must answer with its state: one byte before the unacknowledged
    /// data (keepalive and window probes, RFC 9293 section 3.8.4). `false`: there was no memory.
    pub(crate) fn send_probe(&mut self, memory: &mut impl Memory, now: Instant) -> bool {
        let options = self.options_now(now, false);
        let seq = self.tcb.snd_una.wrapping_sub(1);
        let sent = self.send_bare(memory, seq, flags::ACK, options);
        if !sent {
            self.pool.count(Counter::TcpProbesUnsent);
        }
        sent
    }

    /// Whether an abort tells the peer: not when both directions have ended, unless something was
    /// not sent (net/ipv4/tcp.c:tcp_disconnect).
    pub(crate) fn is_reset_by_abort(&self) -> bool {
        match self.tcb.state() {
            TcpState::Closing | TcpState::LastAck => self.tcb.unsent_bytes() > 0,
            state => state.is_synchronised(),
        }
    }

    /// Resets the connection at the peer.
    pub(crate) fn send_reset(&mut self, memory: &mut impl Memory, now: Instant) {
        let options = self.options_now(now, true);
        let seq = self.ack_seq();
        self.send_bare(memory, seq, flags::RST | flags::ACK, options);
        self.pool.count(Counter::TcpResetsSent);
    }

    /// Puts a segment of the send queue on the transmit list, new or again. `false` when its last
    /// copy is still waiting to be sent, or something is wrong with it.
    #[inline(never)]
    pub(crate) fn transmit(&mut self, memory: &mut impl Memory, chunk: u32, now: Instant) -> bool {
        let Some(&segment) = self.segment(chunk) else {
            self.pool.count(Counter::CorruptList);
            return false;
        };
        self.transmit_segment(memory, chunk, &segment, now)
    }

    /// The same for who has just looked at it.
    #[inline(always)]
    pub(super) fn transmit_segment(
        &mut self,
        memory: &mut impl Memory,
        chunk: u32,
        segment: &SegmentSlot,
        now: Instant,
    ) -> bool {
        match self.pool.chunks.get(chunk as usize) {
            Some(slot) if slot.state == chunk_state::RETAINED => {}
            _ => return false,
        }
        let start = if self.is_plain(segment) {
            self.write_plain(memory, chunk, segment, now)
        } else {
            self.write_headers(memory, chunk, segment, now)
        };
        let Some(start) = start else {
            self.pool.count(Counter::BadChunk);
            return false;
        };
        self.launch(chunk, segment, start, now);
        self.acknowledged();
        true
    }

    /// Puts a segment whose frame begins at `start` of its chunk on the transmit list.
    #[inline(always)]
    pub(super) fn launch(&mut self, chunk: u32, segment: &SegmentSlot, start: u16, now: Instant) {
        if let Some(slot) = self.pool.chunks.get_mut(chunk as usize) {
            slot.offset = start;
            slot.len = segment.offset.wrapping_add(segment.len).wrapping_sub(start);
            slot.state = chunk_state::RETAINED_SENDING;
            if self.tcb.options.has(TcpOptions::AWAITS_CARD) {
                slot.queue_pair = ASKS_TIME;
            }
        }
        self.pool.append_transmit(self.tcb.hop.queue_pair, chunk);
        self.sent(chunk, now);
    }

    /// Whether the segment goes out in the plain form: data with timestamps, and nothing else to
    /// tell.
    #[inline]
    fn is_plain(&self, segment: &SegmentSlot) -> bool {
        const NEWS: u32 =
            flag::ECN | flag::DSACK | flag::ECN_DEMAND_CWR | flag::ECN_SEND_CWR | flag::NO_MEMORY;
        self.tcb.flags & (flag::TIMESTAMPS | NEWS) == flag::TIMESTAMPS
            && self.tcb.sack_count == 0
            && segment.len > 0
            && !segment.has(mark::FIN)
            && !before(segment.seq, self.tcb.snd_up)
            && self.is_v4()
    }

    /// Writes plain headers in front of the segment's payload: where the frame begins. What
    /// [`Connection::write_headers`] would write.
    #[inline(always)]
    fn write_plain(
        &mut self,
        memory: &mut impl Memory,
        chunk: u32,
        segment: &SegmentSlot,
        now: Instant,
    ) -> Option<u16> {
        let window = self.select_window();
        let tcb = &*self.tcb;
        let start = segment.offset.checked_sub(tcp::PLAIN as u16)?;
        let end = segment.offset.wrapping_add(segment.len);
        let frame = memory
            .chunk_mut(ChunkId(chunk))
            .get_mut(usize::from(start)..usize::from(end))?;
        let fields = tcp::Fields {
            destination_mac: tcb.hop.mac,
            source_mac: tcb.hop.source_mac,
            source: self.endpoint.local_ip.last_four(),
            destination: self.endpoint.remote_ip.last_four(),
            source_port: self.endpoint.local_port,
            destination_port: self.endpoint.remote_port,
            seq: segment.seq,
            ack: tcb.rcv_nxt,
            window,
            value: millis(now).wrapping_add(tcb.ts_offset),
            echo: tcb.ts_recent,
            push: segment.has(mark::PUSH),
            tos: tcb.options.tos,
            ttl: match tcb.options.ttl {
                0 => DEFAULT_TTL,
                ttl => ttl,
            },
            ipv4_id: self.pool.next_ipv4_id(),
            checksum: self.pool.head.tx_checksum(tcb.hop.queue_pair),
        };
        tcp::Plain::write(frame, &fields);
        Some(start)
    }

    /// Writes the headers in front of the segment's payload: where the frame begins.
    #[inline(never)]
    fn write_headers(
        &mut self,
        memory: &mut impl Memory,
        chunk: u32,
        segment: &SegmentSlot,
        now: Instant,
    ) -> Option<u16> {
        let is_new = !before(segment.seq, self.tcb.snd_nxt);
        let mut options = self.options_now(now, true);
        if options.sack_count > 0 && !self.fits(segment.len, &options) {
            options.sack_count = 0;
        }
        let bits = self.bits_of(segment, is_new);
        let window = self.select_window();
        let mut headers = self.headers(segment.seq, bits, window, options);
        headers.checksum = self.pool.head.tx_checksum(self.tcb.hop.queue_pair);
        if before(segment.seq, self.tcb.snd_up) {
            headers.flags |= flags::URG;
            headers.urgent = distance(segment.seq, self.tcb.snd_up).min(0xffff) as u16;
        }
        if is_new && segment.len > 0 && self.tcb.has(flag::ECN) {
            headers.tos = headers.tos & !3 | ECT_0;
        }
        let all = tcp::headers_len(self.is_v4(), &headers.options);
        let start = usize::from(segment.offset).checked_sub(all)?;
        let end = usize::from(segment.offset).saturating_add(usize::from(segment.len));
        let frame = memory.chunk_mut(ChunkId(chunk)).get_mut(start..end)?;
        tcp::emit(frame, &headers);
        Some(start as u16)
    }

    /// The control bits of a segment of the send queue.
    fn bits_of(&mut self, segment: &SegmentSlot, is_new: bool) -> u16 {
        let mut bits = flags::ACK;
        if segment.has(mark::PUSH | mark::FIN) && segment.len > 0 {
            bits |= flags::PSH;
        }
        if segment.has(mark::FIN) {
            bits |= flags::FIN;
        }
        if self.tcb.has(flag::ECN_DEMAND_CWR) {
            bits |= flags::ECE;
        }
        if is_new && segment.len > 0 && self.tcb.has(flag::ECN_SEND_CWR) {
            bits |= flags::CWR;
            self.tcb.clear(flag::ECN_SEND_CWR);
        }
        bits
    }

    /// Whether a segment of so many bytes may have these options.
    fn fits(&self, len: u16, options: &tcp::Options) -> bool {
        let len = usize::from(len);
        let most = usize::from(self.tcb.hop.mtu).saturating_add(ethernet::HEADER);
        // What has passed had timestamps at most.
        let passes =
            usize::from(self.tcb.searched_mss()).saturating_add(usize::from(self.timestamps_len()));
        let all = tcp::options_len(options).saturating_add(len);
        // The peer's MSS counts options as data (RFC 6691).
        all <= usize::from(self.tcb.mss_clamp).min(passes)
            && tcp::headers_len(self.is_v4(), options).saturating_add(len) <= most
    }

    /// Books of a segment that was put on the transmit list.
    #[inline(always)]
    fn sent(&mut self, chunk: u32, now: Instant) {
        let len = self.note_sent(chunk, now);
        self.tcb.last_sent_ms = millis(now);
        self.tcb.segs_out = self.tcb.segs_out.wrapping_add(1);
        self.tcb.bytes_sent = self.tcb.bytes_sent.wrapping_add(u64::from(len));
        if len > 0 {
            // An answer soon after a question: ACKs may wait for answers (Linux: ping-pong mode).
            let asked = self.tcb.bytes_received > 0;
            if asked && elapsed(millis(now), self.tcb.last_data_ms) < PINGPONG_MS {
                self.tcb.set(flag::PINGPONG);
            }
            self.tcb.data_segs_out = self.tcb.data_segs_out.wrapping_add(1);
        }
        self.pool.count(Counter::TcpSegmentsSent);
    }

    /// The segment is in the network from now on, for the rate sample and RACK; its length.
    #[inline(always)]
    pub(crate) fn note_sent(&mut self, chunk: u32, now: Instant) -> u16 {
        let now_us = micros(now) as u32;
        if self.tcb.packets_out == 0 {
            self.tcb.first_sent_us = now_us;
            self.tcb.delivered_us = now_us;
            // Not a time so long ago that it would be one to come.
            self.tcb.rack_sent_us = now_us;
            self.tcb.rack_order = self.tcb.sent_order;
        }
        self.tcb.sent_order = self.tcb.sent_order.wrapping_add(1);
        let order = self.tcb.sent_order;
        let (delivered, delivered_us) = (self.tcb.delivered, self.tcb.delivered_us);
        let first_sent_us = self.tcb.first_sent_us;
        let limited = self.tcb.app_limited != 0;
        let mut len = 0;
        if let Some(segment) = self.segment_mut(chunk) {
            segment.sent_us = now_us;
            segment.order = order;
            segment.delivered = delivered;
            segment.delivered_us = delivered_us;
            segment.first_sent_us = first_sent_us;
            if limited {
                segment.marks |= mark::APP_LIMITED;
            }
            len = segment.len;
        }
        len
    }

    /// Whether Nagle, cork or MSG_MORE hold this last, not full segment back.
    fn is_held(&self, len: u16) -> bool {
        let urgent = after(self.tcb.snd_up, self.tcb.snd_una);
        if len >= self.new_segment() || urgent || self.tcb.has(flag::FIN_QUEUED) {
            return false;
        }
        if self.tcb.options.has(TcpOptions::CORK) || self.tcb.has(flag::MORE) {
            return true;
        }
        // Minshall: only a small segment in flight holds the next small one back.
        !self.tcb.options.has(TcpOptions::NODELAY)
            && self.tcb.packets_out > 0
            && after(self.tcb.snd_sml, self.tcb.snd_una)
            && !after(self.tcb.snd_sml, self.tcb.snd_nxt)
    }

    /// Sends what was written to leave later.
    pub(crate) fn output_due(&mut self, memory: &mut impl Memory, now: Instant) {
        if self.tcb.has(flag::OUTPUT_DUE) {
            self.tcb.clear(flag::OUTPUT_DUE);
            self.output(memory, now, false);
        }
    }

    /// Sends what windows, Nagle and cork allow. `push`: Nagle and cork hold nothing back, the
    /// windows still do.
    pub(crate) fn output(&mut self, memory: &mut impl Memory, now: Instant, push: bool) {
        if !matches!(
            self.tcb.state(),
            TcpState::Established
                | TcpState::SynReceived
                | TcpState::CloseWait
                | TcpState::FinWait1
                | TcpState::Closing
                | TcpState::LastAck
        ) {
            return;
        }
        if self
            .tcb
            .has(flag::FIN_DUE | flag::CWND_LIMITED | flag::WINDOW_LIMITED)
        {
            if self.tcb.has(flag::FIN_DUE) {
                self.send_fin(memory, now);
                if self.tcb.has(flag::FIN_QUEUED) {
                    return;
                }
            }
            self.tcb.clear(flag::CWND_LIMITED | flag::WINDOW_LIMITED);
        }
        if self.tcb.mtu_search == search::PROBING {
            self.take_mtu_answer();
        }
        if self.tcb.unsent == NONE {
            self.note_limited_by_program();
            return;
        }
        self.restart_after_idle(now);
        let before_out = self.tcb.packets_out;
        if self.tcb.mtu_search == search::ON {
            self.search_mtu(memory, now);
        }
        for _ in 0..self.pool.chunks.len() {
            if !self.send_next(memory, now, push) {
                break;
            }
        }
        if self.tcb.packets_out > before_out || self.tcb.has(flag::CWND_LIMITED) {
            self.note_window_use();
        }
        if self.tcb.packets_out > before_out {
            self.tcb.burst = self.tcb.burst.wrapping_add(1);
            self.arm_after_send(before_out == 0, now);
        } else if self.tcb.packets_out == 0
            && self.tcb.unsent != NONE
            && self.tcb.pending == pending::NONE
            && self.tcb.paced_at == NEVER
        {
            self.arm_probe(now);
        }
        if self.tcb.unsent == NONE && !self.tcb.has(flag::CWND_LIMITED) {
            self.note_limited_by_program();
        }
    }

    /// Closed window, or a corked segment: the probe timer looks after it.
    fn arm_probe(&mut self, now: Instant) {
        let wait = if self.tcb.snd_wnd == 0 {
            u64::from(self.tcb.backed_off_rto()).saturating_mul(1000)
        } else {
            CORK_NS
        };
        self.tcb.pending = pending::PROBE;
        self.tcb.retransmit_at = now.0.saturating_add(wait);
        self.tcb.stuck_since = now.0;
    }

    /// Notes how much of the congestion window is used, for [`Self::uses_window`].
    pub(super) fn note_window_use(&mut self) {
        let is_used_up =
            self.tcb.has(flag::CWND_LIMITED) || self.tcb.in_flight() >= self.tcb.congestion.cwnd;
        let out = self.tcb.packets_out.min(u32::from(u16::MAX)) as u16;
        let is_new = !before(self.tcb.snd_una, self.tcb.usage_seq);
        if is_new || is_used_up || self.tcb.is_used_up == 0 && out > self.tcb.most_out {
            self.tcb.is_used_up = u8::from(is_used_up);
            self.tcb.most_out = out;
            self.tcb.usage_seq = self.tcb.snd_nxt;
        }
    }

    /// Whether the congestion window is used so far that it may grow (RFC 7661): up, or in slow
    /// start more than half (include/net/tcp.h:tcp_is_cwnd_limited).
    pub(super) fn uses_window(&self) -> bool {
        let congestion = &self.tcb.congestion;
        self.tcb.is_used_up != 0
            || congestion.cwnd < congestion.ssthresh
                && congestion.cwnd < u32::from(self.tcb.most_out).saturating_mul(2)
    }

    /// Nothing waits: until what is in flight now has arrived, rate samples say little
    /// (draft-cheng-iccrg-delivery-rate-estimation section 3.4).
    pub(super) fn note_limited_by_program(&mut self) {
        self.tcb.app_limited = self.tcb.delivered.wrapping_add(self.tcb.in_flight()).max(1);
    }

    /// Sends the first unsent segment if it may leave; whether it left. (Inlined: every write that
    /// is not an expected one takes this way; a search for the MTU, which calls it too, hardly
    /// ever.)
    #[inline(always)]
    pub(super) fn send_next(&mut self, memory: &mut impl Memory, now: Instant, push: bool) -> bool {
        let chunk = self.tcb.unsent;
        let Some(mut segment) = self.segment(chunk).copied() else {
            return false;
        };
        if self.tcb.in_flight() >= self.tcb.congestion.cwnd {
            self.tcb.set(flag::CWND_LIMITED);
            return false;
        }
        let room = distance(segment.seq, self.tcb.send_window_end());
        if self.must_pause(now) {
            return false;
        }
        let whole = u32::from(segment.len);
        let len = whole.min(u32::from(self.tcb.mss));
        if len < whole && !self.split(memory, chunk, self.tcb.mss) {
            return false;
        }
        // A FIN is inside the window as well, or waits for it by itself.
        let fin = u32::from(segment.has(mark::FIN) && len == whole);
        if len.saturating_add(fin) > room {
            // Part of it fits: only a worthwhile part leaves (RFC 9293 section 3.8.6.2.1).
            let worth = (self.tcb.max_window / 2).min(u32::from(self.tcb.mss));
            if room == 0 || room < worth {
                self.tcb.set(flag::WINDOW_LIMITED);
                return false;
            }
            if !self.split(memory, chunk, room as u16) {
                return false;
            }
        }
        if len < whole || len.saturating_add(fin) > room {
            match self.segment(chunk) {
                Some(&first) => segment = first,
                None => return false,
            }
        }
        if segment.next == NONE && !push && self.is_held(segment.len) {
            return false;
        }
        let full = self.new_segment();
        if !self.transmit_segment(memory, chunk, &segment, now) {
            return false;
        }
        self.pace(segment.len, now);
        self.left(&segment, full, now);
        if self.tcb.ca_state == super::tcb::ca::RECOVERY || self.tcb.ca_state == super::tcb::ca::CWR
        {
            self.tcb.prr_out = self.tcb.prr_out.saturating_add(1);
        }
        true
    }

    /// Cuts the first unsent segment where the peer's window ends, so that it fits whatever the
    /// part is worth, and pushes it: for a probe (net/ipv4/tcp_output.c:tcp_write_wakeup).
    pub(super) fn cut_at_window(&mut self, memory: &mut impl Memory) {
        let chunk = self.tcb.unsent;
        if let Some(segment) = self.segment(chunk) {
            let room = distance(segment.seq, self.tcb.send_window_end());
            let whole = u32::from(segment.len).saturating_add(u32::from(segment.has(mark::FIN)));
            if room < whole {
                self.split(memory, chunk, room as u16);
            }
        }
        if let Some(slot) = self.segment_mut(chunk) {
            slot.marks |= mark::PUSH;
        }
    }

    /// The first unsent segment has left for the first time; `full`: what a segment held then.
    #[inline]
    pub(super) fn left(&mut self, segment: &SegmentSlot, full: u16, now: Instant) {
        if self.tcb.packets_out == 0 {
            self.tcb.stuck_since = now.0;
        }
        self.tcb.packets_out = self.tcb.packets_out.saturating_add(1);
        let (chunk, burst) = (self.tcb.unsent, self.tcb.burst);
        if let Some(slot) = self.segment_mut(chunk) {
            slot.burst = burst;
        }
        self.tcb.unsent = segment.next;
        self.tcb.snd_nxt = segment.end();
        if segment.len < full {
            self.tcb.snd_sml = segment.end();
        }
    }

    /// Cuts a segment of the send queue in two after `len` bytes. `false` without a chunk.
    pub(crate) fn split(&mut self, memory: &mut impl Memory, chunk: u32, len: u16) -> bool {
        let Some(&old) = self.segment(chunk) else {
            return false;
        };
        let last = old.len.saturating_add(u16::from(old.has(mark::FIN)));
        if len == 0 || len >= last {
            return false;
        }
        let Some(fresh) = self.pool.retain() else {
            return false;
        };
        let rest = old.len.wrapping_sub(len);
        let from = usize::from(old.offset).saturating_add(usize::from(len));
        copy_between(
            memory,
            (chunk, from),
            (fresh.0, usize::from(PAYLOAD_AT)),
            usize::from(rest),
        );
        if let Some(slot) = self.pool.segments.get_mut(fresh.0 as usize) {
            *slot = old;
            slot.seq = old.seq.wrapping_add(u32::from(len));
            slot.offset = PAYLOAD_AT;
            slot.len = rest;
        }
        if let Some(slot) = self.segment_mut(chunk) {
            slot.len = len;
            slot.marks &= !(mark::FIN | mark::PUSH | mark::END);
            slot.next = fresh.0;
        }
        if self.tcb.queue_tail == chunk {
            self.tcb.queue_tail = fresh.0;
        }
        self.tcb.queued_chunks = self.tcb.queued_chunks.saturating_add(1);
        if before(old.seq, self.tcb.snd_nxt) {
            // It is in the network: there are two now.
            self.tcb.packets_out = self.tcb.packets_out.saturating_add(1);
            if old.has(mark::SACKED) {
                self.tcb.sacked_out = self.tcb.sacked_out.saturating_add(1);
            }
            if old.has(mark::LOST) {
                self.tcb.lost_out = self.tcb.lost_out.saturating_add(1);
            }
            if old.has(mark::RETRANSMITTED) {
                self.tcb.retrans_out = self.tcb.retrans_out.saturating_add(1);
            }
        }
        true
    }

    /// Congestion window after a pause (RFC 5681 section 4.1).
    #[inline]
    pub(super) fn restart_after_idle(&mut self, now: Instant) {
        if self.tcb.packets_out != 0 || self.tcb.unsent == NONE {
            return;
        }
        let idle_ms = elapsed(millis(now), self.tcb.last_sent_ms);
        let idle_us = u64::from(idle_ms).saturating_mul(1000);
        if self.tcb.last_sent_ms != 0
            && self.pool.head.tcp_defaults.slow_start_after_idle != 0
            && idle_us > u64::from(self.tcb.rto_us)
        {
            let rto_us = self.tcb.rto_us;
            self.tcb.congestion.on_idle(rto_us, idle_us);
        }
        self.tcb.delivered_us = micros(now) as u32;
    }
}

/// Copies bytes from one chunk to another, each named by (chunk, offset).
pub(crate) fn copy_between(
    memory: &mut impl Memory,
    from: (u32, usize),
    to: (u32, usize),
    len: usize,
) {
    let mut buffer = [0_u8; 256];
    let mut done = 0usize;
    while done < len {
        let count = len.saturating_sub(done).min(buffer.len());
        let start = from.1.saturating_add(done);
        let source = memory
            .chunk(ChunkId(from.0))
            .get(start..start.saturating_add(count));
        let (Some(source), Some(piece)) = (source, buffer.get_mut(..count)) else {
            return;
        };
        piece.copy_from_slice(source);
        let start = to.1.saturating_add(done);
        if let Some(target) = memory
            .chunk_mut(ChunkId(to.0))
            .get_mut(start..start.saturating_add(count))
        {
            target.copy_from_slice(piece);
        }
        done = done.saturating_add(count);
    }
}
