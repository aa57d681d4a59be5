//! Input: a segment meets the state of its connection (RFC 9293 section 3.10.7, RFC 5961, RFC
//! 7323).

use super::ack::Told;
use super::connection::{Connection, elapsed, may_answer, micros, millis, timestamps};
use super::listen::{Taken, initial_window};
use super::mini;
use super::receive::Payload;
use super::seq::{after, before, distance};
use super::tcb::{Hop, NEVER, TcpState, flag};
use crate::counters::{Counter, DropReason};
use crate::cplane::NextHop;
use crate::image::NONE;
use crate::stack::{FrameOutcome, RxFrame, Stack};
use crate::types::{EndpointId, Instant, IpAddress, Memory, QUEUE_PAIR_HAIRPIN, SocketAddress};
use crate::wire::tcp::{self, FastOpen, Segment, flags};

/// Linux's errno values that connections end with.
pub(crate) mod errno {
    pub(crate) const EINVAL: i32 = 22;
    pub(crate) const EPIPE: i32 = 32;
    pub(crate) const EMSGSIZE: i32 = 90;
    pub(crate) const ECONNRESET: i32 = 104;
    pub(crate) const ENOTCONN: i32 = 107;
    pub(crate) const ETIMEDOUT: i32 = 110;
    pub(crate) const ECONNREFUSED: i32 = 111;
    pub(crate) const EINPROGRESS: i32 = 115;
}

/// Segments of a new connection's first flight (RFC 6928).
const INITIAL_WINDOW: u32 = 10;
/// A timestamp older than this says nothing (RFC 7323 section 5.5): 24 days in milliseconds.
pub(super) const TIMESTAMP_AGE_MS: u32 = 24 * 24 * 3600 * 1000;
/// By how much a timestamp may be older (Linux: TCP_PAWS_WINDOW).
const TIMESTAMP_SLACK: i32 = 1;
/// Congestion-experienced (RFC 3168).
const CE: u8 = 3;

/// The largest segment to send: the peer's MSS or its family's default (RFC 9293 section 3.7.1) and
/// TCP_MAXSEG (0 = none), not below 48 (Linux: tcp_min_snd_mss, CVE-2019-11479).
pub(crate) fn bounded_mss(peers: Option<u16>, is_v4: bool, max_seg: u16) -> u16 {
    let most = if max_seg == 0 { u16::MAX } else { max_seg };
    let default = if is_v4 { 536 } else { 1220 };
    peers.unwrap_or(default).min(most).max(48)
}

/// Sequence numbers that a segment takes.
pub(crate) fn length(segment: &Segment) -> u32 {
    u32::from(segment.payload_len)
        .wrapping_add(u32::from(segment.flags & flags::SYN != 0))
        .wrapping_add(u32::from(segment.flags & flags::FIN != 0))
}

/// A segment with where it came from and how its sender is reached.
#[derive(Debug)]
pub(crate) struct Arrived<'a> {
    pub(crate) segment: &'a Segment,
    /// Our end of the link that it came by.
    pub(crate) own: Hop,
    pub(crate) chunk: u32,
    pub(crate) offset: u16,
}

impl Arrived<'_> {
    #[inline]
    pub(crate) fn local(&self) -> SocketAddress {
        SocketAddress::new(self.segment.destination, self.segment.destination_port)
    }

    #[inline]
    pub(crate) fn remote(&self) -> SocketAddress {
        SocketAddress::new(self.segment.source, self.segment.source_port)
    }

    /// The way back to the sender.
    pub(crate) fn hop(&self) -> Hop {
        Hop {
            mac: self.segment.source_mac,
            ..self.own
        }
    }
}

/// Who takes a segment that has no connection yet.
enum Taker {
    /// Nobody keeps it.
    Nobody,
    /// A request became a connection, and the segment is its.
    Connection(u32),
    /// A connection that has begun with it, and keeps it.
    FastOpen(u32),
}

impl Stack<'_> {
    /// Takes a TCP frame: its connection, request, listener or time wait, or the answer that there
    /// is none. The chunk is kept only by a connection that has queued its data.
    #[inline(never)]
    pub(crate) fn receive_tcp(
        &mut self,
        memory: &mut impl Memory,
        frame: RxFrame,
        now: Instant,
    ) -> Result<FrameOutcome, DropReason> {
        if let Some(outcome) = self.receive_expected(memory, frame, now) {
            return Ok(outcome);
        }
        let own = self.hop_to_us(frame.queue_pair)?;
        let end = (frame.offset as usize).saturating_add(frame.len as usize);
        let bytes = memory
            .chunk(frame.chunk)
            .get(frame.offset as usize..end)
            .ok_or(DropReason::Truncated)?;
        let segment = tcp::parse(bytes, &own.source_mac, frame.checksum)?;
        self.count(Counter::TcpSegmentsReceived);
        let arrived = Arrived {
            segment: &segment,
            own,
            chunk: frame.chunk.0,
            offset: (frame.offset as u16).wrapping_add(segment.payload_offset),
        };
        let mut index = self.find_connection(&arrived.local(), &arrived.remote());
        if index.is_none() {
            match self.without_connection(memory, &arrived, now)? {
                Taker::Connection(child) => index = Some(child),
                Taker::FastOpen(child) => return Ok(self.delivered(child)),
                Taker::Nobody => return Ok(self.handled(frame.chunk.0)),
            }
        }
        let Some(index) = index else {
            return Err(DropReason::NoEndpoint);
        };
        let Some(mut connection) = self.connection(index) else {
            return Err(DropReason::Corrupt);
        };
        let is_early = connection.tcb.is_early();
        let taken = connection.input(memory, &arrived, now);
        let generation = connection.endpoint.generation;
        if is_early && !connection.tcb.is_early() {
            self.fast_open_ended(index, now);
        }
        self.settle_at(index, now);
        if taken? {
            Ok(FrameOutcome::Delivered(EndpointId { index, generation }))
        } else {
            Ok(self.handled(frame.chunk.0))
        }
    }

    /// Our end of the link that a frame came by: the hop back, but for the peer's address.
    fn hop_to_us(&self, queue_pair: u8) -> Result<Hop, DropReason> {
        if queue_pair == QUEUE_PAIR_HAIRPIN {
            return Ok(Hop::of(&NextHop::hairpin(IpAddress::UNSPECIFIED)));
        }
        let info = self.head.queue_pairs.get(usize::from(queue_pair));
        let info = info.ok_or(DropReason::Corrupt)?;
        Ok(Hop {
            ifindex: info.ifindex,
            generation: 0,
            mtu: info.mtu,
            source_mac: info.mac,
            mac: [0; 6],
            queue_pair,
            reserved: 0,
        })
    }

    /// The frame has done its work: its chunk is free.
    fn handled(&mut self, chunk: u32) -> FrameOutcome {
        self.pool().free(chunk);
        FrameOutcome::Handled
    }

    /// A connection that has just begun has kept the frame.
    fn delivered(&self, index: u32) -> FrameOutcome {
        let endpoint = self.endpoints.get(index as usize);
        let generation = endpoint.map_or(0, |endpoint| endpoint.generation);
        FrameOutcome::Delivered(EndpointId { index, generation })
    }

    /// A segment without a connection.
    fn without_connection(
        &mut self,
        memory: &mut impl Memory,
        arrived: &Arrived<'_>,
        now: Instant,
    ) -> Result<Taker, DropReason> {
        if let Some(index) = self.find_mini(&arrived.local(), &arrived.remote()) {
            match self.minis.get(index as usize).map(|mini| mini.kind) {
                Some(mini::kind::REQUEST) => {
                    let child = self.take_request_segment(memory, index, arrived, now)?;
                    return Ok(child.map_or(Taker::Nobody, Taker::Connection));
                }
                Some(mini::kind::LEFT) => return Err(DropReason::TcpLeft),
                _ => {}
            }
            if !self.take_time_wait_segment(memory, index, arrived, now)? {
                return Ok(Taker::Nobody);
            }
        }
        let bits = arrived.segment.flags;
        if bits & flags::RST != 0 {
            return Err(DropReason::NoEndpoint);
        }
        let listener = self.find_listener(&arrived.local(), &arrived.remote(), arrived.own.ifindex);
        match listener {
            Some(listener) if bits & (flags::SYN | flags::ACK) == flags::SYN => {
                if bits & flags::FIN != 0 {
                    return Err(DropReason::TcpFlags);
                }
                match self.take_syn(memory, listener, arrived, now)? {
                    Taken::FastOpen(child, true) => Ok(Taker::FastOpen(child)),
                    Taken::FastOpen(_, false) | Taken::Request => Ok(Taker::Nobody),
                }
            }
            Some(_) if bits & flags::ACK == 0 => Err(DropReason::TcpFlags),
            _ => {
                self.reset_reply(memory, arrived);
                Err(DropReason::NoEndpoint)
            }
        }
    }
}

impl Connection<'_> {
    /// A connection begins to carry data: windows, segment size, buffers, timers.
    pub(crate) fn start(&mut self, snd_una: u32, now: Instant) {
        let tcb = &mut *self.tcb;
        // What our SYN has carried is on the queue until it is acknowledged.
        if tcb.queue_head == NONE {
            tcb.snd_nxt = snd_una;
            tcb.write_seq = snd_una;
        }
        tcb.snd_una = snd_una;
        tcb.snd_sml = snd_una;
        tcb.snd_up = snd_una;
        tcb.high_seq = snd_una.wrapping_sub(1);
        tcb.round_delivered = 0;
        tcb.usage_seq = snd_una;
        tcb.rcv_mss = tcb.advertised_mss.clamp(1, 536);
        tcb.last_received_ms = millis(now);
        tcb.last_data_ms = millis(now);
        // The SYN or SYN-ACK was delivered.
        tcb.delivered = 1;
        tcb.congestion = super::congestion::Congestion::new(tcb.options.congestion, INITIAL_WINDOW);
        if self.pool.head.tcp_defaults.mtu_probing > 1 {
            self.begin_mtu_search(now);
        }
        self.tcb.mss = self.current_mss();
        let is_v4 = self.endpoint.remote_ip.is_v4();
        let header = if is_v4 { 40 } else { 60 };
        let max_seg = self.tcb.options.max_seg;
        let by_path = self.tcb.hop.mtu.saturating_sub(header);
        self.tcb.advertised_mss = bounded_mss(Some(by_path), is_v4, max_seg);
        self.tcb.rcv_mss = self.tcb.advertised_mss.min(536);
        self.grow_send_buffer();
        self.quick_ack_mode();
        if self.tcb.options.has(super::options::TcpOptions::KEEPALIVE) {
            self.arm_keepalive(now);
        }
    }

    /// A segment for this connection. `true` when its chunk is kept.
    pub(crate) fn input(
        &mut self,
        memory: &mut impl Memory,
        arrived: &Arrived<'_>,
        now: Instant,
    ) -> Result<bool, DropReason> {
        let segment = arrived.segment;
        self.tcb.segs_in = self.tcb.segs_in.wrapping_add(1);
        if segment.payload_len > 0 {
            self.tcb.data_segs_in = self.tcb.data_segs_in.wrapping_add(1);
        }
        match self.tcb.state() {
            TcpState::SynSent => return self.input_syn_sent(memory, arrived, now),
            TcpState::Closed | TcpState::Listen | TcpState::TimeWait => {
                return Err(DropReason::NoEndpoint);
            }
            TcpState::FinWait2 if self.is_waiting_orphan() => {
                self.input_orphan(memory, arrived, now)?;
                return Ok(false);
            }
            _ => {}
        }
        if self.tcb.is_early() && !self.look_at_handshake(memory, segment, now)? {
            return Ok(false);
        }
        if segment.flags & (flags::ACK | flags::RST | flags::SYN) == 0 {
            // Not even answered, wherever it lies (net/ipv4/tcp_input.c:tcp_rcv_established).
            return Err(DropReason::TcpFlags);
        }
        if !self.is_expected(segment, now) && !self.is_acceptable(segment, now)? {
            return Ok(false);
        }
        if segment.flags & flags::ACK == 0 {
            return Err(DropReason::TcpFlags);
        }
        if segment.tos & 3 == CE && self.tcb.has(flag::ECN) {
            self.tcb.set(flag::ECN_DEMAND_CWR | flag::ACK_NOW);
        }
        if segment.flags & flags::CWR != 0 && self.tcb.has(flag::ECN) {
            self.tcb.clear(flag::ECN_DEMAND_CWR);
            if segment.payload_len > 0 {
                // The sender waits to see the end of ECE.
                self.tcb.set(flag::ACK_NOW);
            }
        }
        if !self.take_ack(memory, segment, now) {
            return Err(DropReason::TcpAck);
        }
        if self.tcb.is_early() {
            self.end_handshake(memory, segment.ack, now);
        }
        self.after_ack(memory, now);
        let kept = self.take_payload(memory, arrived, now);
        self.output(memory, now, false);
        if self.tcb.has(flag::NO_SPACE) && self.tcb.may_carry_data() {
            self.look_for_room(now);
        }
        kept
    }

    /// Header prediction (Jacobson): the next segment of a stream, or an ACK beside it, which needs
    /// no look at the rules for all others.
    #[inline]
    fn is_expected(&self, segment: &Segment, now: Instant) -> bool {
        segment.flags & !(flags::PSH | flags::URG) == flags::ACK
            && segment.seq == self.tcb.rcv_nxt
            && !self.is_old_timestamp(segment, now)
    }

    /// RFC 9293 section 3.10.7.4 steps one to four, with RFC 5961 and PAWS. `Ok(false)`: the
    /// segment has done all it can.
    fn is_acceptable(&mut self, segment: &Segment, now: Instant) -> Result<bool, DropReason> {
        let is_reset = segment.flags & flags::RST != 0;
        if self.is_old_timestamp(segment, now) && !is_reset && !self.is_overtaken_ack(segment) {
            let overtaken = length(segment) == 0 && before(segment.seq, self.tcb.rcv_nxt);
            if segment.flags & flags::SYN != 0 {
                self.challenge(now);
            } else if !overtaken {
                self.answer_unacceptable(segment, now);
            }
            return Err(DropReason::TcpOldTimestamp);
        }
        let end = segment.seq.wrapping_add(length(segment));
        let limit = self.tcb.rcv_nxt.wrapping_add(self.tcb.acceptable_window());
        if is_reset && self.is_reset_of_fin(segment.seq) {
            self.take_reset();
            return Ok(false);
        }
        if before(end, self.tcb.rcv_wup) || after(segment.seq, limit) {
            if is_reset {
                return Err(DropReason::TcpWindow);
            }
            if segment.flags & flags::SYN != 0 {
                self.challenge(now);
                return Err(DropReason::TcpWindow);
            }
            self.answer_unacceptable(segment, now);
            return Err(DropReason::TcpWindow);
        }
        if is_reset {
            if self.is_exact_reset(segment.seq) {
                self.take_reset();
                return Ok(false);
            }
            self.suspect_reset(now);
            self.challenge(now);
            return Err(DropReason::TcpWindow);
        }
        if segment.flags & flags::SYN != 0 {
            if self.tcb.state() == TcpState::SynReceived
                && segment.flags & flags::ACK != 0
                && segment.seq.wrapping_add(1) == self.tcb.rcv_nxt
                && !self.tcb.is_early()
            {
                // The other half of a simultaneous open: to a receiver the SYN once more.
                self.note_duplicate(segment.seq, self.tcb.rcv_nxt);
                self.tcb.set(flag::ACK_NOW);
                return Ok(true);
            }
            self.challenge(now);
            return Err(DropReason::TcpFlags);
        }
        Ok(true)
    }

    /// RFC 5961 section 3.2: the next number, or as Linux has it the end of what came out of order.
    fn is_exact_reset(&self, seq: u32) -> bool {
        let told = self.tcb.sacks.iter().take(self.tcb.sack_count as usize);
        let highest = told
            .map(|range| range.right)
            .reduce(|a, b| if after(b, a) { b } else { a });
        let by_range = self.tcb.has(flag::SACK) && self.tcb.ooo_count > 0 && highest == Some(seq);
        seq == self.tcb.rcv_nxt || by_range
    }

    /// Some peers reset behind their FIN with the FIN's own number
    /// (net/ipv4/tcp_input.c:tcp_reset_check).
    fn is_reset_of_fin(&self, seq: u32) -> bool {
        seq == self.tcb.rcv_nxt.wrapping_sub(1)
            && matches!(
                self.tcb.state(),
                TcpState::CloseWait | TcpState::LastAck | TcpState::Closing
            )
    }

    /// Tells the sender of an unacceptable segment where we stand, within reason, and what of its
    /// data has come before (RFC 2883 section 4, net/ipv4/tcp_input.c:tcp_send_dupack).
    fn answer_unacceptable(&mut self, segment: &Segment, now: Instant) {
        let end = segment.seq.wrapping_add(length(segment));
        if segment.seq != end && before(segment.seq, self.tcb.rcv_nxt) {
            let known = super::seq::earlier(end, self.tcb.rcv_nxt);
            self.tell_duplicate(segment.seq, known);
            self.quick_ack_mode();
        }
        let least_ms = self.pool.head.tcp_defaults.invalid_ratelimit_ms;
        if may_answer(&mut self.tcb.answered_ms, least_ms, segment, now) {
            self.tcb.set(flag::ACK_NOW);
        }
    }

    /// Protection against wrapped sequence numbers (RFC 7323 section 5.3).
    pub(super) fn is_old_timestamp(&self, segment: &Segment, now: Instant) -> bool {
        let Some(timestamps) = segment.options.timestamps else {
            return false;
        };
        let age = self.tcb.ts_recent.wrapping_sub(timestamps.value) as i32;
        self.tcb.has(flag::TIMESTAMPS)
            && self.tcb.ts_recent != 0
            && age > TIMESTAMP_SLACK
            && millis(now).wrapping_sub(self.tcb.ts_recent_ms) < TIMESTAMP_AGE_MS
    }

    /// Whether it is a pure ACK that tells nothing new, a little late: the network has changed the
    /// order, nobody has wrapped a number (net/ipv4/tcp_input.c:tcp_disordered_ack_check).
    fn is_overtaken_ack(&self, segment: &Segment) -> bool {
        let Some(timestamps) = segment.options.timestamps else {
            return false;
        };
        let age_ms = self.tcb.ts_recent.wrapping_sub(timestamps.value);
        segment.flags & flags::ACK != 0
            && length(segment) == 0
            && segment.seq == self.tcb.rcv_nxt
            && segment.ack == self.tcb.snd_una
            && !self
                .tcb
                .tells_window(segment.seq, segment.ack, segment.window)
            && age_ms <= (self.tcb.rto_us / 1000).saturating_mul(12) / 10
    }

    /// RFC 7323 section 4.3.
    pub(crate) fn take_timestamp(&mut self, segment: &Segment, now: Instant) {
        let Some(timestamps) = segment.options.timestamps else {
            return;
        };
        if !self.tcb.has(flag::TIMESTAMPS) || after(segment.seq, self.tcb.rcv_wup) {
            return;
        }
        let aged = millis(now).wrapping_sub(self.tcb.ts_recent_ms) >= TIMESTAMP_AGE_MS;
        if aged || !before(timestamps.value, self.tcb.ts_recent) {
            self.tcb.ts_recent = timestamps.value;
            self.tcb.ts_recent_ms = millis(now);
        }
        if segment.payload_len > 0 {
            self.sample_sender(timestamps.echo, now);
        }
    }

    /// The receiver's own round trip, for the size of its buffer, from the timestamp that data
    /// echoes.
    #[inline]
    pub(super) fn sample_sender(&mut self, echo: u32, now: Instant) {
        let sent = echo.wrapping_sub(self.tcb.ts_offset);
        let ms = millis(now).wrapping_sub(sent);
        if echo != 0 && ms < 1 << 20 {
            let rtt = ms.max(1).wrapping_mul(1000);
            let known = self.tcb.rcv_rtt_us;
            self.tcb.rcv_rtt_us = if known == 0 { rtt } else { known.min(rtt) };
        }
    }

    /// Answers a suspicious segment with the truth, not more often than the budget allows (RFC 5961
    /// section 7; the budget is the connection's own: CVE-2016-5696).
    pub(crate) fn challenge(&mut self, now: Instant) {
        let second = (now.0 / 1_000_000_000) as u32;
        if self.tcb.challenge_s != second {
            self.tcb.challenge_s = second;
            self.tcb.challenge_acks = 0;
        }
        let budget = self.pool.head.tcp_defaults.challenge_acks.max(1);
        if u16::from(self.tcb.challenge_acks) < budget {
            self.tcb.challenge_acks = self.tcb.challenge_acks.saturating_add(1);
            self.tcb.set(flag::ACK_NOW);
            self.pool.count(Counter::TcpChallengeAcks);
        }
    }

    /// The peer has reset the connection.
    fn take_reset(&mut self) {
        let error = match self.tcb.state() {
            TcpState::SynSent => errno::ECONNREFUSED,
            TcpState::CloseWait => errno::EPIPE,
            _ => errno::ECONNRESET,
        };
        self.tcb.set(flag::RESET);
        self.pool.count(Counter::TcpResetsReceived);
        self.finish(error);
    }

    /// RFC 9293 section 3.10.7.3.
    fn input_syn_sent(
        &mut self,
        memory: &mut impl Memory,
        arrived: &Arrived<'_>,
        now: Instant,
    ) -> Result<bool, DropReason> {
        let segment = arrived.segment;
        let has_ack = segment.flags & flags::ACK != 0;
        let acked =
            has_ack && after(segment.ack, self.tcb.iss) && !after(segment.ack, self.tcb.snd_nxt);
        if has_ack && !acked {
            if segment.flags & flags::RST == 0 {
                let options = tcp::Options::default();
                self.send_bare(memory, segment.ack, flags::RST, options);
                self.pool.count(Counter::TcpResetsSent);
            }
            return Err(DropReason::TcpAck);
        }
        if acked && self.is_foreign_echo(segment, now) {
            // Of an old connection, as its numbers happen to fit (Linux: PAWSActiveRejected).
            if segment.flags & flags::RST == 0 {
                let options = tcp::Options::default();
                self.send_bare(memory, segment.ack, flags::RST, options);
                self.pool.count(Counter::TcpResetsSent);
            }
            return Err(DropReason::TcpOldTimestamp);
        }
        if segment.flags & flags::RST != 0 {
            if acked {
                self.take_reset();
                return Ok(false);
            }
            return Err(DropReason::TcpAck);
        }
        if segment.flags & flags::SYN == 0 {
            return Err(DropReason::TcpFlags);
        }
        self.take_syn_options(segment, now);
        self.tcb.hop.mac = arrived.segment.source_mac;
        if acked {
            return Ok(self.connected(memory, arrived, now));
        }
        self.crossed(memory, now);
        Ok(false)
    }

    /// Whether a SYN-ACK echoes a timestamp that none of our SYNs had.
    fn is_foreign_echo(&self, segment: &Segment, now: Instant) -> bool {
        let Some(timestamps) = segment.options.timestamps else {
            return false;
        };
        let first = millis(Instant(self.tcb.stuck_since)).wrapping_add(self.tcb.ts_offset);
        let last = millis(now).wrapping_add(self.tcb.ts_offset);
        self.tcb.has(flag::TIMESTAMPS)
            && timestamps.echo != 0
            && (before(timestamps.echo, first) || after(timestamps.echo, last))
    }

    fn take_syn_options(&mut self, segment: &Segment, now: Instant) {
        let options = &segment.options;
        self.tcb.irs = segment.seq;
        self.tcb.rcv_nxt = segment.seq.wrapping_add(1);
        self.tcb.rcv_edge = self.tcb.rcv_nxt;
        self.tcb.tell_window(self.tcb.rcv_wnd);
        self.tcb.copied_seq = self.tcb.rcv_nxt;
        self.tcb.drs_seq = self.tcb.rcv_nxt;
        let is_v4 = self.endpoint.remote_ip.is_v4();
        self.tcb.mss_clamp = bounded_mss(options.mss, is_v4, self.tcb.options.max_seg);
        match options.timestamps {
            Some(timestamps) if self.tcb.has(flag::TIMESTAMPS) => {
                self.tcb.ts_recent = timestamps.value;
                self.tcb.ts_recent_ms = millis(now);
            }
            _ => self.tcb.clear(flag::TIMESTAMPS),
        }
        if !options.sack_permitted {
            self.tcb.clear(flag::SACK);
        }
        match options.window_scale {
            Some(scale) if self.tcb.has(flag::SCALING) => self.tcb.snd_wscale = scale.min(14),
            _ => {
                self.tcb.clear(flag::SCALING);
                self.tcb.snd_wscale = 0;
                self.tcb.rcv_wscale = 0;
            }
        }
        if segment.flags & (flags::ECE | flags::CWR) != flags::ECE {
            self.tcb.clear(flag::ECN);
        }
        self.tcb.snd_wnd = u32::from(segment.window);
        self.tcb.snd_wl1 = segment.seq;
        self.tcb.max_window = self.tcb.snd_wnd;
    }

    /// The SYN-ACK has come. `true` when its chunk is kept.
    fn connected(&mut self, memory: &mut impl Memory, arrived: &Arrived<'_>, now: Instant) -> bool {
        let ack = arrived.segment.ack;
        let clean = self.tcb.syn_retries == 0;
        let sent_us = self.tcb.syn_sent_us;
        self.tcb.state = TcpState::Established as u8;
        self.stop_timers();
        if self.tcb.packets_out > 0 {
            self.take_cumulative(ack, &mut Told::default(), now);
        }
        self.start(ack, now);
        self.after_syn_losses(u32::from(self.tcb.syn_retries));
        if clean {
            let now_us = micros(now);
            self.tcb
                .sample_rtt(elapsed(now_us as u32, sent_us), millis(now));
        }
        // Linux counts the SYN among the bytes, in an active open.
        self.tcb.bytes_acked = u64::from(distance(self.tcb.iss, ack));
        self.tcb.clear(flag::CONNECTING);
        self.writable_edge();
        if self.tcb.fast_open != 0 {
            return self.connected_fast(memory, arrived, now);
        }
        self.send_ack(memory, now);
        false
    }

    /// More than one lost SYN or SYN-ACK: the path is loaded, the first window is one segment (RFC
    /// 5681 section 3.1, net/ipv4/tcp_input.c:tcp_init_transfer).
    pub(crate) fn after_syn_losses(&mut self, retransmits: u32) {
        self.tcb.backoff = 0;
        if retransmits > 1 {
            self.tcb.congestion.cwnd = 1;
        }
    }

    /// SYNs have crossed (RFC 9293 figure 8): ours goes out again as a SYN-ACK.
    fn crossed(&mut self, memory: &mut impl Memory, now: Instant) {
        self.tcb.state = TcpState::SynReceived as u8;
        self.pool.count(Counter::TcpSimultaneousOpens);
        self.send_syn(memory, None, now);
    }

    /// Sends our SYN, or SYN-ACK when the peer's has come, with a Fast Open option behind the
    /// others.
    pub(crate) fn send_syn(
        &mut self,
        memory: &mut impl Memory,
        fast_open: Option<&FastOpen>,
        now: Instant,
    ) {
        let (bits, options) = self.begin_syn(now);
        let iss = self.tcb.iss;
        self.send_bare_with(memory, iss, bits, options, fast_open);
    }

    /// The control bits and options of our SYN or SYN-ACK, which leaves now.
    pub(super) fn begin_syn(&mut self, now: Instant) -> (u16, tcp::Options) {
        let answer = self.tcb.state() != TcpState::SynSent;
        let options = tcp::Options {
            mss: Some(self.tcb.advertised_mss),
            window_scale: self.tcb.has(flag::SCALING).then_some(self.tcb.rcv_wscale),
            sack_permitted: self.tcb.has(flag::SACK),
            timestamps: timestamps(
                self.tcb.has(flag::TIMESTAMPS),
                self.tcb.ts_offset,
                self.tcb.ts_recent,
                now,
            ),
            ..tcp::Options::default()
        };
        let bits = match (answer, self.tcb.has(flag::ECN)) {
            (true, true) => flags::SYN | flags::ACK | flags::ECE,
            (true, false) => flags::SYN | flags::ACK,
            (false, true) => flags::SYN | flags::ECE | flags::CWR,
            (false, false) => flags::SYN,
        };
        let window = initial_window(self.receive_capacity(), self.tcb.advertised_mss);
        // An ACK of a repeated SYN may have told a larger one.
        let told = if answer { self.tcb.rcv_wnd } else { 0 };
        self.tcb.rcv_wnd = window.max(told);
        self.tcb.syn_sent_us = micros(now) as u32;
        (bits, options)
    }

    /// What the acknowledgement of everything, or of our FIN, changes.
    fn after_ack(&mut self, memory: &mut impl Memory, now: Instant) {
        let all = self.tcb.snd_una == self.tcb.snd_nxt && self.tcb.unsent == NONE;
        let fin_acked = all && self.tcb.has(flag::FIN_QUEUED);
        let is_answered = !self.tcb.is_early() && after(self.tcb.snd_una, self.tcb.iss);
        match self.tcb.state() {
            TcpState::SynReceived if is_answered => {
                self.tcb.state = TcpState::Established as u8;
                self.stop_timers();
                let una = self.tcb.snd_una;
                self.start(una, now);
                self.after_syn_losses(u32::from(self.tcb.syn_retries));
                self.tcb.clear(flag::CONNECTING);
                self.arm_retransmit(now, true);
                self.writable_edge();
                if self.tcb.has(flag::SEND_SHUT) {
                    self.send_fin(memory, now);
                }
            }
            TcpState::FinWait1 if fin_acked => {
                self.tcb.state = TcpState::FinWait2 as u8;
                self.writable_edge();
                if self.tcb.has(flag::ORPHAN) {
                    self.limit_fin_wait(now);
                }
            }
            TcpState::Closing if fin_acked => {
                self.tcb.state = TcpState::TimeWait as u8;
                self.stop_timers();
            }
            TcpState::LastAck if fin_acked => self.finish(0),
            _ => {}
        }
    }

    /// FIN_WAIT_2 without a program does not last for ever; with a negative TCP_LINGER2 not at all.
    pub(crate) fn limit_fin_wait(&mut self, now: Instant) {
        self.drop_out_of_order();
        if self.tcb.options.linger2_s < 0 {
            self.finish(0);
            return;
        }
        let seconds = match self.tcb.options.linger2_s {
            0 => u64::from(self.pool.head.tcp_defaults.fin_timeout_s),
            set => u64::try_from(set).unwrap_or(0),
        };
        self.tcb.keepalive_at = now.0.saturating_add(seconds.saturating_mul(1_000_000_000));
    }

    fn take_payload(
        &mut self,
        memory: &mut impl Memory,
        arrived: &Arrived<'_>,
        now: Instant,
    ) -> Result<bool, DropReason> {
        let segment = arrived.segment;
        let fin = segment.flags & flags::FIN != 0;
        if self.tcb.state().is_synchronised() && self.tcb.state() != TcpState::TimeWait {
            self.take_urgent(memory, arrived, now);
        }
        if segment.payload_len == 0 && !fin {
            return Ok(false);
        }
        match self.tcb.state() {
            TcpState::Established | TcpState::FinWait1 | TcpState::FinWait2 => {}
            TcpState::CloseWait | TcpState::Closing | TcpState::LastAck
                if before(segment.seq, self.tcb.rcv_nxt) => {}
            // The peer has said that it is done: what would be new is ignored (RFC 9293 section
            // 3.10.7.4 step seven).
            _ => return Ok(false),
        }
        let end = segment.seq.wrapping_add(u32::from(segment.payload_len));
        if self.tcb.state() != TcpState::Established
            && self.tcb.has(flag::RECEIVE_SHUT)
            && after(end, self.tcb.rcv_nxt)
        {
            // Both sides are shut: nobody will read this (RFC 2525 section 2.17, Linux:
            // TCPAbortOnData). Or the peer goes on behind its FIN.
            self.send_bare(memory, segment.ack, flags::RST, tcp::Options::default());
            self.pool.count(Counter::TcpResetsSent);
            self.finish(match self.tcb.state() {
                TcpState::CloseWait => errno::EPIPE,
                _ => errno::ECONNRESET,
            });
            return Ok(false);
        }
        if self.is_waiting_orphan() && !fin {
            // It has only just become one: its FIN was acknowledged.
            return Ok(false);
        }
        let payload = Payload {
            chunk: arrived.chunk,
            offset: arrived.offset,
            len: segment.payload_len,
            seq: segment.seq,
            fin,
        };
        let kept = self.take_data(memory, payload, now);
        if self.tcb.has(flag::FIN_RECEIVED) {
            self.tcb.delayed_ack_at = NEVER;
        }
        kept
    }
}
