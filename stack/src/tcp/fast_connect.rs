//! Fast Open of a connection of ours (RFC 7413 section 4.2, net/ipv4/tcp_fastopen.c): with a cookie
//! of the peer the SYN carries the first bytes, without one it asks for a cookie and the bytes
//! follow the handshake.
//!
//! ```text
//!  first write ─► SYN, cookie, data ─► SYN-ACK of all of it: done
//!                      │                       of a part or none: the rest goes out again at once
//!                      └─ no answer ─► SYN without both
//! ```
//!
//! The bytes lie on the send queue as any others. With TCP_FASTOPEN_CONNECT a connect to a peer
//! whose cookie is known sends nothing: the SYN waits for the first write.

use super::connection::Connection;
use super::cookies::{Ends, form};
use super::input::Arrived;
use super::options::TcpOptions;
use super::output::PAYLOAD_AT;
use super::pool::{SegmentSlot, mark};
use super::receive::Payload;
use super::socket::TcpError;
use super::tcb::{Tcb, TcpState, fast, flag};
use crate::counters::Counter;
use crate::cplane::NextHop;
use crate::image::NONE;
use crate::stack::Stack;
use crate::tcp::TcpDefaults;
use crate::types::{ChunkId, EndpointId, Instant, Memory, SocketAddress};
use crate::udp::OpenError;
use crate::wire::tcp::{self, FastOpen, flags};
use zerocopy::FromZeros;

/// What a SYN leaves free for options, its own and those that boxes on the path add (Linux:
/// MAX_TCP_OPTION_SPACE).
const OPTION_ROOM: u16 = 40;
/// How long the ACK of a SYN-ACK waits for the bytes of who waits for the connection (Linux:
/// TCP_DELACK_MAX).
const ACK_NS: u64 = 200_000_000;

/// What a program writes with its connect.
pub struct FirstWrite<'a> {
    /// Bytes.
    pub len: usize,
    /// Is called with the pieces to write to, those that the SYN has room for.
    pub fill: &'a mut dyn FnMut(&mut [u8]),
    /// The caller waits until the connection is made, and then writes the rest.
    pub waits: bool,
}

impl core::fmt::Debug for FirstWrite<'_> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        let mut shown = f.debug_struct("FirstWrite");
        shown.field("len", &self.len).field("waits", &self.waits);
        shown.finish_non_exhaustive()
    }
}

/// What a SYN to a peer may have.
struct Ticket {
    option: Option<FastOpen>,
    may_carry: bool,
    /// The MSS that the peer last told, bytes; 0 = unknown.
    mss: u16,
}

impl Tcb {
    /// Why Fast Open has failed, as TCP_INFO tells it; 0 = it has not.
    pub(super) fn fast_failure(&self) -> u16 {
        self.fast_open >> fast::FAILURE & 3
    }

    fn set_fast_failure(&mut self, why: u16) {
        self.fast_open = self.fast_open & !(3 << fast::FAILURE) | why << fast::FAILURE;
    }
}

impl Stack<'_> {
    /// Forgets what was learnt of peers: cookies, and with what they do not get on.
    pub fn tcp_forget_peers(&mut self) {
        self.head.cookies.zero();
    }

    /// Connects as [`Stack::tcp_start`] does, with the first bytes in the SYN if the peer's cookie
    /// is known (send(2) with MSG_FASTOPEN). Returns how many of them.
    ///
    /// # Errors
    /// As [`Stack::tcp_start`].
    pub fn tcp_start_with(
        &mut self,
        memory: &mut impl Memory,
        id: EndpointId,
        (remote, via): (SocketAddress, &NextHop),
        first: FirstWrite<'_>,
        now: Instant,
    ) -> Result<usize, OpenError> {
        self.prepare(id, remote, via, now)?;
        let connection = self.connection(id.index);
        let taken = connection.map(|mut connection| connection.open_fast(memory, first, now));
        self.settle(id.index, now);
        Ok(taken.unwrap_or(0))
    }

    /// The first write on a connection whose SYN waits for it: the SYN leaves, with as many of the
    /// bytes as it takes. Returns how many.
    ///
    /// # Errors
    /// [`TcpError::WouldBlock`]: its SYN does not wait.
    pub fn tcp_send_first(
        &mut self,
        memory: &mut impl Memory,
        id: EndpointId,
        first: FirstWrite<'_>,
        now: Instant,
    ) -> Result<usize, TcpError> {
        let now = self.forward(now);
        let mut connection = self.tcp(id)?;
        if connection.tcb.state() != TcpState::SynSent || !connection.tcb.is_fast(fast::DEFERRED) {
            return Err(TcpError::WouldBlock);
        }
        let taken = connection.open_fast(memory, first, now);
        self.settle(id.index, now);
        Ok(taken)
    }
}

impl Connection<'_> {
    fn ends(&self) -> Ends {
        (self.endpoint.local_ip, self.endpoint.remote_ip)
    }

    /// What the SYN may have (net/ipv4/tcp_fastopen.c:tcp_fastopen_cookie_check).
    fn ticket(&mut self, now: Instant) -> Ticket {
        let ends = self.ends();
        let head = &mut *self.pool.head;
        let (cookie, mss) = head.cookies.of(ends);
        let bare = |may_carry| Ticket {
            option: None,
            may_carry,
            mss,
        };
        let defaults = &head.tcp_defaults;
        if defaults.fast_open_pause_s != 0 {
            match head.cookies.pauses(defaults.fast_open_pause_s, now) {
                Some(true) => return bare(false),
                Some(false) => self.tcb.fast_open |= fast::PROVES,
                None => {}
            }
        }
        if defaults.fast_open & TcpDefaults::FAST_OPEN_CLIENT_NO_COOKIE != 0
            || self.tcb.options.has(TcpOptions::FAST_OPEN_NO_COOKIE)
        {
            return bare(true);
        }
        let may_carry = !cookie.cookie().is_empty();
        if !may_carry {
            self.tcb.set_fast_failure(fast::NO_COOKIE);
        }
        Ticket {
            option: Some(cookie),
            may_carry,
            mss,
        }
    }

    /// connect with TCP_FASTOPEN_CONNECT (net/ipv4/tcp_fastopen.c:tcp_fastopen_defer_connect).
    pub(super) fn begin_fast_connect(&mut self, memory: &mut impl Memory, now: Instant) {
        let ticket = self.ticket(now);
        if ticket.may_carry {
            self.tcb.fast_open |= fast::DEFERRED;
            self.tcb.mss = self.room_in_syn(ticket.mss);
        } else {
            self.send_first(memory, ticket.option, now);
        }
    }

    /// Sends the SYN with what it may carry of the first bytes; how many those are.
    fn open_fast(
        &mut self,
        memory: &mut impl Memory,
        first: FirstWrite<'_>,
        now: Instant,
    ) -> usize {
        self.tcb.fast_open &= !fast::DEFERRED;
        self.tcb.stuck_since = now.0;
        let ticket = self.ticket(now);
        let mut taken = 0;
        if ticket.may_carry {
            self.tcb.mss = self.room_in_syn(ticket.mss);
            let room = self.pool.send_room(self.tcb.queued_chunks).min(1);
            let most = usize::from(self.tcb.mss).saturating_mul(room as usize);
            taken = self.append(memory, first.len.min(most), first.fill);
        }
        if first.waits && taken < first.len {
            self.tcb.fast_open |= fast::WAITED_FOR;
        }
        self.send_first(memory, ticket.option, now);
        taken
    }

    /// Bytes that a SYN takes (net/ipv4/tcp_output.c:tcp_send_syn_data): of the MSS that the peer
    /// last told, TCP_MAXSEG and the path's MTU, and of one chunk.
    fn room_in_syn(&self, told: u16) -> u16 {
        let told = if told == 0 { u16::MAX } else { told };
        let ip = if self.is_v4() { 40 } else { 60 };
        let chunk = self.pool.head.chunk_size;
        let chunk = chunk.saturating_sub(u32::from(PAYLOAD_AT));
        told.min(self.tcb.advertised_mss)
            .min(self.tcb.hop.mtu.saturating_sub(ip))
            .saturating_sub(OPTION_ROOM)
            .min(chunk.min(u32::from(u16::MAX)) as u16)
    }

    /// Sends the SYN with what is on the queue.
    fn send_first(&mut self, memory: &mut impl Memory, option: Option<FastOpen>, now: Instant) {
        if let Some(option) = option {
            self.tcb.fast_open |= fast::ASKED;
            if option.is_experimental {
                self.tcb.fast_open |= fast::EXPERIMENTAL;
            }
        }
        let queued = self.segment(self.tcb.unsent).copied();
        match queued {
            Some(segment) if self.send_syn_with(memory, &segment, option.as_ref(), now) => {
                self.tcb.fast_open |= fast::DATA_SENT;
            }
            _ => self.send_syn(memory, option.as_ref(), now),
        }
        self.arm_rto(now);
    }

    /// Sends the SYN in front of the first segment of the queue; whether it left.
    fn send_syn_with(
        &mut self,
        memory: &mut impl Memory,
        segment: &SegmentSlot,
        option: Option<&FastOpen>,
        now: Instant,
    ) -> bool {
        let (bits, options) = self.begin_syn(now);
        let window = self.syn_window();
        let iss = self.tcb.iss;
        let headers = self.headers(iss, bits, window, options);
        let mut bytes = [0; FastOpen::MOST];
        let more = option.map_or(0, |option| option.write(&mut bytes));
        let known = tcp::headers_len(self.is_v4(), &headers.options);
        let all = known.saturating_add(more);
        let Some(start) = usize::from(segment.offset).checked_sub(all) else {
            return false;
        };
        let end = usize::from(segment.offset).saturating_add(usize::from(segment.len));
        let chunk = self.tcb.unsent;
        let Some(frame) = memory.chunk_mut(ChunkId(chunk)).get_mut(start..end) else {
            return false;
        };
        for (place, byte) in frame.iter_mut().skip(known).zip(bytes.iter().take(more)) {
            *place = *byte;
        }
        tcp::emit_with(frame, &headers, more);
        self.launch(chunk, segment, start as u16, now);
        self.left(segment, self.new_segment(), now);
        self.tcb.burst = self.tcb.burst.wrapping_add(1);
        true
    }

    /// The SYN again at once, without data: the path has no room for so much
    /// (net/ipv4/tcp_input.c:tcp_simple_retransmit).
    pub(super) fn repeat_syn(&mut self, memory: &mut impl Memory, now: Instant) {
        let ip = if self.is_v4() { 40 } else { 60 };
        let by_path = self.tcb.hop.mtu.saturating_sub(ip);
        self.tcb.advertised_mss = self.tcb.advertised_mss.min(by_path);
        self.tcb.total_retrans = self.tcb.total_retrans.wrapping_add(1);
        self.pool.count(Counter::TcpRetransmits);
        self.tcb.clear(flag::ECN);
        self.send_syn(memory, None, now);
        self.arm_rto(now);
    }

    /// The SYN-ACK of a connection that may have had Fast Open. What it does not acknowledge of the
    /// SYN's data goes out again at once; that is the ACK then. `true` when its chunk is kept.
    pub(super) fn connected_fast(
        &mut self,
        memory: &mut impl Memory,
        arrived: &Arrived<'_>,
        now: Instant,
    ) -> bool {
        let mut kept = false;
        if self.tcb.is_fast(fast::ASKED | fast::DATA_SENT) {
            self.take_cookie(memory, arrived);
            if self.tcb.packets_out > 0 {
                self.send_rest_again(memory, now);
                return false;
            }
            if self.tcb.is_fast(fast::DATA_SENT) {
                self.tcb.fast_open |= fast::DATA_TAKEN;
                self.pool.count(Counter::TcpFastConnects);
            }
            kept = self.take_early_data(memory, arrived, now);
        }
        if self.tcb.is_fast(fast::WAITED_FOR) {
            // It answers soon: so will the ACKs of what comes then (Linux: ping-pong mode).
            self.tcb.set(flag::ACK_OWED | flag::PINGPONG);
            self.tcb.delayed_ack_at = now.0.saturating_add(ACK_NS);
        } else {
            self.send_ack(memory, now);
        }
        self.output(memory, now, false);
        kept
    }

    /// Remembers what the SYN-ACK tells for the next connection
    /// (net/ipv4/tcp_input.c:tcp_rcv_fastopen_synack).
    fn take_cookie(&mut self, memory: &impl Memory, arrived: &Arrived<'_>) {
        let is_asked = self.tcb.is_fast(fast::ASKED);
        let offered = arrived.fast_open(memory).filter(|_| is_asked);
        let has_refused = is_asked
            && self.tcb.total_retrans == 0
            && offered.is_none()
            && !self.tcb.is_fast(fast::DATA_SENT);
        let next = match has_refused {
            false => form::USUAL,
            true if self.tcb.is_fast(fast::EXPERIMENTAL) => form::USUAL_AGAIN,
            true => form::EXPERIMENT,
        };
        let ends = self.ends();
        let mss = arrived.segment.options.mss.unwrap_or(0);
        let cookies = &mut self.pool.head.cookies;
        cookies.learn(ends, mss, offered.as_ref(), next);
    }

    /// The peer has not taken all of the SYN's data. That says nothing about the path.
    fn send_rest_again(&mut self, memory: &mut impl Memory, now: Instant) {
        self.tcb.set_fast_failure(if self.tcb.total_retrans > 0 {
            fast::SYN_REPEATED
        } else {
            fast::NOT_ACKNOWLEDGED
        });
        self.pool.count(Counter::TcpFastConnectsFailed);
        self.lose_all();
        self.repair_without_blame();
        self.retransmit_lost(memory, now);
        if self.tcb.retrans_out == 0 {
            // It is still on its way to the NIC, or there is no memory: the timer repeats it.
            self.send_ack(memory, now);
        }
        self.output(memory, now, false);
    }

    /// Data that comes with the SYN-ACK (net/ipv4/tcp_fastopen.c:tcp_fastopen_add_skb).
    fn take_early_data(
        &mut self,
        memory: &mut impl Memory,
        arrived: &Arrived<'_>,
        now: Instant,
    ) -> bool {
        let segment = arrived.segment;
        let fin = segment.flags & flags::FIN != 0;
        if segment.payload_len == 0 && !fin {
            return false;
        }
        let payload = Payload {
            chunk: arrived.chunk,
            offset: arrived.offset,
            len: segment.payload_len,
            seq: self.tcb.rcv_nxt,
            fin,
        };
        let before = self.tcb.rcv_nxt;
        let kept = self.take_data(memory, payload, now) == Ok(true);
        self.tcb.clear(flag::NO_MEMORY);
        if self.tcb.rcv_nxt != before {
            self.tcb.fast_open |= fast::DATA_TAKEN;
        }
        kept
    }

    /// Connections of ours do without Fast Open for a while.
    #[cold]
    fn pause_fast_open(&mut self, now: Instant) {
        if self.pool.head.tcp_defaults.fast_open_pause_s != 0 {
            self.pool.head.cookies.pause(now);
            self.pool.count(Counter::TcpFastConnectsPaused);
        }
    }

    /// A timeout after so many others. The third in a row, or the end of the connection before it,
    /// may be the doing of a box that Fast Open confuses, during the handshake or after it
    /// (net/ipv4/tcp_fastopen.c:tcp_fastopen_active_detect_blackhole).
    pub(super) fn suspect_timeout(&mut self, before: u8, is_over: bool, now: Instant) {
        let is_one = self
            .tcb
            .is_fast(fast::ASKED | fast::DATA_SENT | fast::DATA_TAKEN);
        if is_one && (before == 2 || before < 2 && is_over) {
            self.pause_fast_open(now);
            self.pool.count(Counter::TcpFastConnectsFailed);
        }
    }

    /// A reset that does not fit is also what a box answers whose books differ from ours.
    pub(super) fn suspect_reset(&mut self, now: Instant) {
        if self.tcb.is_fast(fast::ASKED)
            && self.tcb.data_segs_in == 0
            && self.tcb.state() == TcpState::Established
        {
            self.pause_fast_open(now);
        }
    }

    /// The connection ends: only a FIN has come, behind data that a box has swallowed, or data, so
    /// that Fast Open works (net/ipv4/tcp_fastopen.c:tcp_fastopen_active_disable_ofo_check).
    #[cold]
    pub(super) fn judge_path(&mut self) {
        if self.tcb.data_segs_in > 0 {
            if self.tcb.is_fast(fast::PROVES) {
                self.pool.head.cookies.has_proved();
            }
            return;
        }
        let first = self.segment(self.tcb.ooo_head);
        let is_fin = first.is_some_and(|slot| slot.next == NONE && slot.has(mark::FIN));
        if is_fin {
            let now = Instant(self.pool.head.latest_ns);
            self.pause_fast_open(now);
        }
    }
}
