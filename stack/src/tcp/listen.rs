//! Passive open: a SYN becomes a request, the final ACK a connection on the accept queue (RFC 9293
//! section 3.10.7.2, RFC 4987; backlog as Linux counts it).

use super::connection::{elapsed, may_answer, micros, millis, timestamps};
use super::fast_open::Verdict;
use super::input::{Arrived, bounded_mss};
use super::mini::{Mini, is_in_window, kind};
use super::pool::Pool;
use super::reset::Reset;
use super::seq::{after, before};
use super::tcb::{TcpState, flag};
use super::wheel::MINI;
use crate::counters::{Counter, DropReason};
use crate::demux::{fold, weight};
use crate::image::NONE;
use crate::stack::Stack;
use crate::tcp::options::TcpOptions;
use crate::types::{Family, Instant, Memory, SocketAddress};
use crate::wire::TxChecksum;
use crate::wire::tcp::{self, FastOpen, Segment, flags};
use zerocopy::FromZeros;

/// How long an unconfirmed request waits before its SYN-ACK goes out again (RFC 6298: 1 s).
pub(super) const SYNACK_NS: u64 = 1_000_000_000;
/// A TIME_WAIT lasts this long (Linux: TCP_TIMEWAIT_LEN).
pub(crate) const TIME_WAIT_NS: u64 = 60_000_000_000;
/// The window scale that the greatest receive buffer asks for is at most this (RFC 7323).
const MAX_SCALE: u8 = 14;

/// What a SYN has become.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Taken {
    /// A request.
    Request,
    /// A connection by Fast Open; whether it keeps the frame's chunk.
    FastOpen(u32, bool),
}

/// The scale for a receive buffer that may grow to `most` bytes.
pub(crate) fn window_scale(most: u32) -> u8 {
    let mut scale = 0_u8;
    let mut space = most.max(65_535);
    while space > 65_535 && scale < MAX_SCALE {
        space >>= 1;
        scale = scale.wrapping_add(1);
    }
    scale
}

/// The window of a SYN: a whole number of segments, at most what the field holds (Linux:
/// tcp_select_initial_window).
pub(crate) fn initial_window(capacity: u32, mss: u16) -> u32 {
    let most = capacity.min(65_535);
    match most.checked_rem(u32::from(mss)) {
        Some(rest) if most > u32::from(mss) => most.saturating_sub(rest),
        _ => most,
    }
}

/// SYN-ACK timeouts that fit into TCP_DEFER_ACCEPT's time (net/ipv4/tcp.c:secs_to_retrans).
fn deferred_timeouts(seconds: u32) -> u8 {
    let (mut timeouts, mut period, mut step) = (0_u8, 0_u32, 1_u32);
    while period < seconds && timeouts < u8::MAX {
        period = period.saturating_add(step);
        step = step.saturating_mul(2).min(120);
        timeouts = timeouts.saturating_add(1);
    }
    timeouts
}

impl Stack<'_> {
    /// Whether a listener of this stack would take a connection that `from` makes to `to` without a
    /// wire (hairpin).
    #[must_use]
    pub fn tcp_listens(&self, to: SocketAddress, from: SocketAddress) -> bool {
        self.find_listener(&to, &from, 0).is_some()
    }

    /// The listener that takes a SYN.
    pub(crate) fn find_listener(
        &self,
        local: &SocketAddress,
        remote: &SocketAddress,
        ifindex: u32,
    ) -> Option<u32> {
        let score = |index: u32| -> Option<u32> {
            let endpoint = self.endpoints.get(index as usize)?;
            let tcb = self.tcbs.get(index as usize)?;
            if endpoint.kind != crate::image::kind::TCP
                || tcb.state() != TcpState::Listen
                || endpoint.local_port != local.port
            {
                return None;
            }
            let mut score = match (Family::from_byte(endpoint.family), local.ip.is_v4()) {
                (Family::V4, true) => 1,
                (Family::V6, false) | (Family::Dual, _) => 0,
                _ => return None,
            };
            if endpoint.local_ip == local.ip {
                score |= 16;
            } else if !endpoint.local_ip.is_unspecified() {
                return None;
            }
            if endpoint.ifindex != 0 {
                if endpoint.ifindex != ifindex {
                    return None;
                }
                score |= 4;
            }
            Some(score)
        };
        let first = self.port_chain(local.port);
        let chain = || {
            let mut index = first;
            (0..self.endpoints.len()).map_while(move |_| {
                let endpoint = self.endpoints.get(index as usize)?;
                let here = index;
                index = endpoint.next;
                Some(here)
            })
        };
        let best = chain().filter_map(score).max()?;
        let members = || chain().filter(|&index| score(index) == Some(best));
        let shared = |index: u32| {
            self.tcbs
                .get(index as usize)
                .is_some_and(|tcb| tcb.options.has(TcpOptions::REUSE_PORT))
        };
        if members().filter(|&index| shared(index)).nth(1).is_none() {
            return members().next();
        }
        let (high, low) = remote.ip.words();
        let hash = fold(
            low ^ high ^ self.head.seed,
            u64::from(remote.port) | 1 << 32 | u64::from(local.port) << 40,
        );
        members()
            .filter(|&index| shared(index))
            .max_by_key(|&index| weight(hash, index))
    }

    /// A SYN for a listener.
    pub(super) fn take_syn(
        &mut self,
        memory: &mut impl Memory,
        listener: u32,
        arrived: &Arrived<'_>,
        now: Instant,
    ) -> Result<Taken, DropReason> {
        let Some(tcb) = self.tcbs.get(listener as usize) else {
            return Err(DropReason::NoEndpoint);
        };
        let is_overrun = tcb.accept_count > tcb.backlog;
        let (local, remote) = (arrived.local(), arrived.remote());
        let admitted = !is_overrun && self.admits(listener);
        let mut option = None;
        if admitted {
            match self.judge_syn(memory, listener, arrived, now) {
                Verdict::Request(told) => option = told,
                Verdict::Connection(told) => {
                    let request = self.request_of(listener, arrived, now);
                    let opened =
                        request.and_then(|it| self.open_fast(memory, &it, arrived, told, now));
                    if let Some((child, kept)) = opened {
                        return Ok(Taken::FastOpen(child, kept));
                    }
                    option = told;
                }
            }
        }
        let added = admitted.then(|| self.add_mini(kind::REQUEST, local, remote, now));
        let Some(index) = added.flatten() else {
            if admitted {
                self.note_crowd();
            } else if !is_overrun {
                self.note_pressure(listener);
            }
            self.count(Counter::TcpListenOverflows);
            return Err(DropReason::TcpBacklog);
        };
        let Some(request) = self.request_of(listener, arrived, now) else {
            return Err(DropReason::NoEndpoint);
        };
        self.request_began(listener);
        if let Some(mini) = self.minis.get_mut(index as usize) {
            *mini = Mini {
                next: mini.next,
                previous: mini.previous,
                bucket: mini.bucket,
                timer_next: mini.timer_next,
                timer_previous: mini.timer_previous,
                timer_tick: mini.timer_tick,
                ..request
            };
        }
        self.count(Counter::TcpPassiveOpens);
        self.flow_begins(local, remote);
        self.send_synack(memory, index, option.as_ref(), now);
        self.arm(index | MINI, now.0.saturating_add(SYNACK_NS), now);
        Ok(Taken::Request)
    }

    /// What is remembered of a SYN.
    fn request_of(&self, listener: u32, arrived: &Arrived<'_>, now: Instant) -> Option<Mini> {
        let segment = arrived.segment;
        let defaults = &self.head.tcp_defaults;
        let generation = self.endpoints.get(listener as usize)?.generation;
        let options = &self.tcbs.get(listener as usize)?.options;
        let (local, remote) = (arrived.local(), arrived.remote());
        let negotiated = negotiate(segment, defaults);
        let mtu = arrived.own.mtu;
        let header = if local.ip.is_v4() { 40 } else { 60 };
        let by_path = mtu.saturating_sub(header);
        let is_v4 = local.ip.is_v4();
        let advertised = bounded_mss(Some(by_path), is_v4, options.max_seg);
        let capacity = options.rcvbuf_bytes / 2;
        let (key, clock_key) = (self.secret_key(), self.timestamp_key());
        let mut mini = Mini::new_zeroed();
        mini.kind = kind::REQUEST;
        mini.local_ip = local.ip;
        mini.local_port = local.port;
        mini.remote_ip = remote.ip;
        mini.remote_port = remote.port;
        mini.negotiated = negotiated as u8;
        mini.listener = listener;
        mini.listener_generation = generation;
        mini.hop = arrived.hop();
        mini.rcv_nxt = segment.seq.wrapping_add(1);
        mini.snd_nxt = super::secret::isn(&key, local, remote, now.0).wrapping_add(1);
        mini.ts_offset = super::secret::timestamp_offset(&clock_key, local, remote);
        mini.rcv_wnd = initial_window(capacity, advertised);
        if negotiated & flag::SCALING != 0 {
            let most = if options.has(TcpOptions::RCVBUF_LOCKED) {
                options.rcvbuf_bytes
            } else {
                defaults.rmem[2].max(options.rcvbuf_bytes)
            };
            mini.rcv_wscale = window_scale(most);
            mini.snd_wscale = segment.options.window_scale.unwrap_or(0).min(MAX_SCALE);
        }
        mini.peer_mss = bounded_mss(segment.options.mss, is_v4, options.max_seg);
        mini.ts_recent = segment.options.timestamps.map_or(0, |value| value.value);
        mini.ts_recent_ms = millis(now);
        mini.deadline = now.0.saturating_add(SYNACK_NS);
        mini.born = now.0;
        mini.tos = options.tos;
        Some(mini)
    }

    /// Sends the SYN-ACK of a request, with a Fast Open option behind the others.
    fn send_synack(
        &mut self,
        memory: &mut impl Memory,
        index: u32,
        fast_open: Option<&FastOpen>,
        now: Instant,
    ) {
        let Some(&mini) = self.minis.get(index as usize) else {
            return;
        };
        let header = if mini.local_ip.is_v4() { 40 } else { 60 };
        let mut mss = mini.hop.mtu.saturating_sub(header).max(64);
        if let Some(tcb) = self.tcbs.get(mini.listener as usize)
            && tcb.options.max_seg != 0
        {
            mss = mss.min(tcb.options.max_seg);
        }
        let options = tcp::Options {
            mss: Some(mss),
            window_scale: mini.has(flag::SCALING).then_some(mini.rcv_wscale),
            sack_permitted: mini.has(flag::SACK),
            timestamps: timestamps(
                mini.has(flag::TIMESTAMPS),
                mini.ts_offset,
                mini.ts_recent,
                now,
            ),
            ..tcp::Options::default()
        };
        let ece = if mini.has(flag::ECN) { flags::ECE } else { 0 };
        let mut headers = self.mini_headers(&mini, flags::SYN | flags::ACK | ece, options);
        headers.seq = mini.snd_nxt.wrapping_sub(1);
        headers.window = mini.rcv_wnd.min(65_535) as u16;
        let queue_pair = mini.hop.queue_pair;
        self.pool()
            .send_bare_with(memory, queue_pair, &headers, fast_open);
        if let Some(mini) = self.minis.get_mut(index as usize) {
            mini.synack_us = micros(now) as u32;
        }
    }

    /// Headers of a segment that a minisocket sends.
    fn mini_headers(&mut self, mini: &Mini, bits: u16, options: tcp::Options) -> tcp::Headers {
        tcp::Headers {
            source_mac: mini.hop.source_mac,
            destination_mac: mini.hop.mac,
            source: mini.local_ip,
            destination: mini.remote_ip,
            source_port: mini.local_port,
            destination_port: mini.remote_port,
            seq: mini.snd_nxt,
            ack: mini.rcv_nxt,
            flags: bits,
            window: (mini.rcv_wnd >> u32::from(mini.rcv_wscale.min(MAX_SCALE))).min(65_535) as u16,
            urgent: 0,
            tos: mini.tos,
            ttl: 64,
            ipv4_id: self.pool().next_ipv4_id(),
            options,
            checksum: TxChecksum::Whole,
        }
    }

    /// Tells the sender of an unacceptable segment where a minisocket stands, within reason.
    fn answer_by_mini(
        &mut self,
        memory: &mut impl Memory,
        index: u32,
        segment: &Segment,
        now: Instant,
    ) {
        let least_ms = self.head.tcp_defaults.invalid_ratelimit_ms;
        let Some(mini) = self.minis.get_mut(index as usize) else {
            return;
        };
        if !may_answer(&mut mini.answered_ms, least_ms, segment, now) {
            return;
        }
        let mini = *mini;
        let options = tcp::Options {
            timestamps: timestamps(
                mini.has(flag::TIMESTAMPS),
                mini.ts_offset,
                mini.ts_recent,
                now,
            ),
            ..tcp::Options::default()
        };
        let headers = self.mini_headers(&mini, flags::ACK, options);
        self.pool().send_bare(memory, mini.hop.queue_pair, &headers);
    }

    /// A segment for a request. `Ok(Some(index))`: it is a connection now and the segment is its.
    pub(crate) fn take_request_segment(
        &mut self,
        memory: &mut impl Memory,
        index: u32,
        arrived: &Arrived<'_>,
        now: Instant,
    ) -> Result<Option<u32>, DropReason> {
        let Some(&mini) = self.minis.get(index as usize) else {
            return Err(DropReason::Corrupt);
        };
        let segment = arrived.segment;
        let is_old = mini.has(flag::TIMESTAMPS)
            && segment
                .options
                .timestamps
                .is_some_and(|told| before(told.value, mini.ts_recent));
        let bits = segment.flags & (flags::SYN | flags::ACK | flags::RST);
        let is_again = segment.seq.wrapping_add(1) == mini.rcv_nxt;
        if bits == flags::SYN && is_again && !is_old {
            let least_ms = self.head.tcp_defaults.invalid_ratelimit_ms;
            if let Some(mini) = self.minis.get_mut(index as usize)
                && may_answer(&mut mini.answered_ms, least_ms, segment, now)
            {
                self.send_synack(memory, index, None, now);
            }
            return Ok(None);
        }
        // Linux looks at the number before anything else: who answers another SYN-ACK is told so.
        if bits & (flags::ACK | flags::RST) == flags::ACK && segment.ack != mini.snd_nxt {
            self.reset_reply(memory, arrived);
            return Err(DropReason::TcpAck);
        }
        if is_old || !is_in_window(segment, mini.rcv_nxt, mini.rcv_wnd) {
            if bits & flags::RST == 0 {
                self.answer_by_mini(memory, index, segment, now);
            }
            return Err(if is_old {
                DropReason::TcpOldTimestamp
            } else {
                DropReason::TcpWindow
            });
        }
        let bits = if is_again { bits & !flags::SYN } else { bits };
        if bits & (flags::RST | flags::SYN) != 0 {
            if bits & flags::RST != 0 && segment.seq != mini.rcv_nxt {
                // Perhaps blind (RFC 5961 section 3.2).
                self.answer_by_mini(memory, index, segment, now);
                return Err(DropReason::TcpWindow);
            }
            // Another SYN inside the window gets a reset (RFC 9293 section 3.10.7.4).
            self.reset_reply(memory, arrived);
            self.remove_mini(index);
            self.flow_ended(mini.local(), mini.remote());
            return Ok(None);
        }
        if bits & flags::ACK == 0 {
            return Err(DropReason::TcpFlags);
        }
        self.confirm(memory, index, &mini, arrived, now)
    }

    /// The final ACK of the handshake: the request becomes a connection.
    fn confirm(
        &mut self,
        memory: &mut impl Memory,
        index: u32,
        mini: &Mini,
        arrived: &Arrived<'_>,
        now: Instant,
    ) -> Result<Option<u32>, DropReason> {
        let listener = self.tcbs.get(mini.listener as usize).copied();
        let alive = self
            .endpoints
            .get(mini.listener as usize)
            .is_some_and(|endpoint| endpoint.generation == mini.listener_generation);
        let Some(listener) = listener.filter(|tcb| alive && tcb.state() == TcpState::Listen) else {
            self.remove_mini(index);
            self.flow_ended(mini.local(), mini.remote());
            return Err(DropReason::NoEndpoint);
        };
        let bare = arrived.segment.payload_len == 0 && arrived.segment.flags & flags::FIN == 0;
        if bare && mini.timeouts < deferred_timeouts(listener.options.defer_accept_s) {
            if let Some(mini) = self.minis.get_mut(index as usize) {
                mini.acked = 1;
            }
            return Ok(None);
        }
        if listener.accept_count > listener.backlog {
            self.count(Counter::TcpListenOverflows);
            if self.head.tcp_defaults.abort_on_overflow != 0 {
                self.reset_reply(memory, arrived);
                self.remove_mini(index);
                self.flow_ended(mini.local(), mini.remote());
            } else if let Some(mini) = self.minis.get_mut(index as usize) {
                mini.acked = 1;
            }
            return Err(DropReason::TcpBacklog);
        }
        let Some(child) = self.passive_child(mini, &listener, now) else {
            self.count(Counter::TcpListenOverflows);
            return Err(DropReason::TcpBacklog);
        };
        if mini.retransmits == 0
            && let Some(connection) = self.connection(child)
        {
            let now_us = micros(now);
            let rtt = elapsed(now_us as u32, mini.synack_us);
            connection.tcb.sample_rtt(rtt, millis(now));
        }
        self.remove_mini(index);
        self.queue_for_accept(mini.listener, child);
        Ok(Some(child))
    }

    /// Makes the endpoint and control block of a request's connection.
    pub(super) fn passive_child(
        &mut self,
        mini: &Mini,
        listener: &super::tcb::Tcb,
        now: Instant,
    ) -> Option<u32> {
        let parent = self.endpoints.get(mini.listener as usize)?;
        let (family, ifindex) = (parent.family, parent.ifindex);
        let child = self.take_endpoint(crate::image::kind::TCP)?;
        let endpoint = self.endpoints.get_mut(child as usize)?;
        endpoint.family = family;
        endpoint.ifindex = ifindex;
        endpoint.local_ip = mini.local_ip;
        endpoint.local_port = mini.local_port;
        endpoint.remote_ip = mini.remote_ip;
        endpoint.remote_port = mini.remote_port;
        endpoint.connected = 1;
        let tcb = self.tcbs.get_mut(child as usize)?;
        tcb.reset(listener.options);
        tcb.options.set(TcpOptions::NONBLOCKING, false);
        tcb.options.set(TcpOptions::RESTING, false);
        tcb.state = TcpState::Established as u8;
        tcb.flags = u32::from(mini.negotiated) | flag::ACCEPTABLE;
        tcb.listener = mini.listener;
        tcb.listener_generation = mini.listener_generation;
        tcb.hop = mini.hop;
        tcb.irs = mini.rcv_nxt.wrapping_sub(1);
        // The final ACK brings the window.
        tcb.snd_wl1 = tcb.irs;
        tcb.rcv_nxt = mini.rcv_nxt;
        tcb.copied_seq = mini.rcv_nxt;
        tcb.drs_seq = mini.rcv_nxt;
        tcb.rcv_edge = mini.rcv_nxt;
        tcb.tell_window(mini.rcv_wnd);
        tcb.rcv_wscale = mini.rcv_wscale;
        tcb.snd_wscale = mini.snd_wscale;
        tcb.iss = mini.snd_nxt.wrapping_sub(1);
        tcb.ts_recent = mini.ts_recent;
        tcb.ts_recent_ms = mini.ts_recent_ms;
        tcb.ts_offset = mini.ts_offset;
        tcb.mss_clamp = mini.peer_mss;
        let snd_nxt = mini.snd_nxt;
        self.link_endpoint(child);
        let mut connection = self.connection(child)?;
        connection.start(snd_nxt, now);
        connection.after_syn_losses(u32::from(mini.retransmits));
        Some(child)
    }

    pub(super) fn queue_for_accept(&mut self, listener: u32, child: u32) {
        let Some(tcb) = self.tcbs.get_mut(listener as usize) else {
            return;
        };
        let tail = core::mem::replace(&mut tcb.accept_tail, child);
        tcb.accept_count = tcb.accept_count.saturating_add(1);
        if tcb.accept_head == NONE {
            tcb.accept_head = child;
        } else if let Some(last) = self.tcbs.get_mut(tail as usize) {
            last.accept_next = child;
        }
        if let Some(mut connection) = self.connection(listener) {
            connection.readable_edge();
        }
    }

    /// A segment for a connection that is waiting for late ones (RFC 9293 section 3.10.7.4, RFC
    /// 6191, RFC 1337). `true`: a SYN that may open a new connection in its place.
    pub(crate) fn take_time_wait_segment(
        &mut self,
        memory: &mut impl Memory,
        index: u32,
        arrived: &Arrived<'_>,
        now: Instant,
    ) -> Result<bool, DropReason> {
        let Some(&mini) = self.minis.get(index as usize) else {
            return Err(DropReason::Corrupt);
        };
        let segment = arrived.segment;
        let old = mini.has(flag::TIMESTAMPS)
            && segment
                .options
                .timestamps
                .is_some_and(|value| before(value.value, mini.ts_recent));
        if segment.flags & flags::RST != 0 {
            if !old && segment.seq == mini.rcv_nxt && self.head.tcp_defaults.rfc1337 == 0 {
                self.end_time_wait(index);
            }
            return Ok(false);
        }
        let is_syn = segment.flags & (flags::SYN | flags::ACK) == flags::SYN;
        let newer = after(segment.seq, mini.rcv_nxt)
            || mini.has(flag::TIMESTAMPS)
                && segment
                    .options
                    .timestamps
                    .is_some_and(|value| after(value.value, mini.ts_recent));
        let wanted = is_syn && !old && newer;
        if wanted
            && self
                .find_listener(&arrived.local(), &arrived.remote(), arrived.own.ifindex)
                .is_some()
        {
            self.end_time_wait(index);
            return Ok(true);
        }
        if let Some(mini) = self.minis.get_mut(index as usize)
            && segment.flags & flags::FIN != 0
        {
            mini.deadline = now.0.saturating_add(TIME_WAIT_NS);
        }
        let is_bare = segment.payload_len == 0 && segment.flags & (flags::SYN | flags::FIN) == 0;
        if let Some(mini) = self.minis.get_mut(index as usize)
            && let Some(value) = segment
                .options
                .timestamps
                .filter(|_| mini.has(flag::TIMESTAMPS))
            && is_bare
            && !old
            && segment.seq == mini.rcv_nxt
        {
            mini.ts_recent = value.value;
        }
        // Whatever else it is, the peer must hear where we stand; of an ACK only when it is old
        // (net/ipv4/tcp_minisocks.c:tcp_timewait_state_process).
        if old
            || segment.payload_len > 0
            || segment.flags & (flags::SYN | flags::FIN) != 0
            || segment.seq != mini.rcv_nxt
        {
            self.answer_by_mini(memory, index, segment, now);
        }
        Ok(false)
    }

    pub(super) fn end_time_wait(&mut self, index: u32) {
        if let Some(&mini) = self.minis.get(index as usize) {
            self.remove_mini(index);
            self.flow_ended(mini.local(), mini.remote());
        }
    }

    /// A minisocket's timer has fired.
    pub(crate) fn serve_mini(&mut self, memory: &mut impl Memory, index: u32, now: Instant) {
        let Some(&mini) = self.minis.get(index as usize) else {
            return;
        };
        if mini.kind == kind::FREE {
            return;
        }
        if mini.deadline > now.0 {
            self.arm(index | MINI, mini.deadline, now);
            return;
        }
        match mini.kind {
            kind::TIME_WAIT => return self.end_time_wait(index),
            kind::LEFT => return self.remove_mini(index),
            _ => {}
        }
        self.serve_request(memory, index, &mini, now);
    }

    /// A SYN-ACK was not answered in time (net/ipv4/inet_connection_sock.c:syn_ack_recalc).
    fn serve_request(&mut self, memory: &mut impl Memory, index: u32, mini: &Mini, now: Instant) {
        let deferred = self
            .tcbs
            .get(mini.listener as usize)
            .map_or(0, |tcb| deferred_timeouts(tcb.options.defer_accept_s));
        let is_over = mini.acked == 0 || mini.timeouts >= deferred;
        if is_over && mini.timeouts >= self.most_synack_timeouts(mini.listener) {
            self.remove_mini(index);
            self.flow_ended(mini.local(), mini.remote());
            return;
        }
        if mini.timeouts == 0 {
            self.request_aged(mini.listener);
        }
        // While data is awaited behind the final ACK nothing is sent, until the time is over.
        let waits = mini.acked != 0 && mini.timeouts.saturating_add(1) < deferred;
        let timeouts = mini.timeouts.saturating_add(1);
        let wait = SYNACK_NS << u32::from(timeouts.min(7));
        let deadline = now.0.saturating_add(wait);
        if let Some(mini) = self.minis.get_mut(index as usize) {
            mini.timeouts = timeouts;
            mini.deadline = deadline;
            if !waits {
                mini.retransmits = mini.retransmits.saturating_add(1);
            }
        }
        if !waits {
            self.count(Counter::TcpRetransmits);
            self.send_synack(memory, index, None, now);
        }
        self.arm(index | MINI, deadline, now);
    }

    /// The pool, for what is sent outside a connection.
    pub(crate) fn pool(&mut self) -> Pool<'_> {
        Pool {
            head: self.head,
            chunks: self.chunks,
            segments: self.segments,
            ready: self.ready,
        }
    }

    /// The key of sequence numbers and timestamp offsets.
    pub(crate) fn secret_key(&self) -> [u64; 2] {
        let seed = self.head.seed;
        [seed, fold(seed | 1, 0x9e37_79b9_7f4a_7c15)]
    }

    /// The key of timestamp offsets.
    pub(crate) fn timestamp_key(&self) -> [u64; 2] {
        match self.head.timestamp_seed {
            0 => self.secret_key(),
            seed => [seed, fold(seed | 1, 0x9e37_79b9_7f4a_7c15)],
        }
    }

    /// Timestamp offsets come from this seed. Stacks of one host that have the same one go on where
    /// the stack before them ended, so that a peer whose side of a connection is in TIME_WAIT sees
    /// that a new one is newer (RFC 6191), and not old segments (RFC 7323 section 5).
    pub fn set_timestamp_seed(&mut self, seed: u64) {
        self.head.timestamp_seed = seed;
    }

    /// Answers a segment that belongs to nothing (RFC 9293 section 3.10.7.1).
    pub(crate) fn reset_reply(&mut self, memory: &mut impl Memory, arrived: &Arrived<'_>) {
        if arrived.segment.flags & flags::RST == 0 {
            self.send_reset(memory, &Reset::answering(arrived));
        }
    }
}

/// What both sides can do, as [`flag`] bits.
fn negotiate(segment: &Segment, defaults: &super::defaults::TcpDefaults) -> u32 {
    let options = &segment.options;
    let mut negotiated = 0;
    if defaults.timestamps != 0 && options.timestamps.is_some() {
        negotiated |= flag::TIMESTAMPS;
    }
    if defaults.sack != 0 && options.sack_permitted {
        negotiated |= flag::SACK;
    }
    if defaults.window_scaling != 0 && options.window_scale.is_some() {
        negotiated |= flag::SCALING;
    }
    // A classic ECN setup: ECE and CWR without AE (an accurate-ECN SYN has all three: answered as
    // classic, RFC 9768 section 3.1.2).
    if defaults.ecn != 0 && segment.flags & (flags::ECE | flags::CWR) == flags::ECE | flags::CWR {
        negotiated |= flag::ECN;
    }
    negotiated
}
