//! Fast Open of a listener (RFC 7413 section 4.2, net/ipv4/tcp_fastopen.c): a SYN with a cookie
//! that is right makes a connection at once, which takes the SYN's data and may be accepted and
//! written to before the handshake is over. With anything else the SYN is an ordinary one.
//!
//! ```text
//!  SYN, cookie, data ─► child in SYN_RECEIVED ─► accept queue
//!                            │ SYN-ACK of the data
//!                       ACK ─► ESTABLISHED
//!  SYN, request ─► request
//!                     │ SYN-ACK, cookie
//! ```
//!
//! A cookie is SipHash of the two addresses with the listener's key, as the kernel has it: where
//! both have the same key, each takes the other's cookies.

use super::connection::{Connection, elapsed, may_answer, micros, millis};
use super::input::Arrived;
use super::mini::Mini;
use super::receive::Payload;
use super::secret::{Key, siphash};
use super::seq::{after, before};
use super::tcb::{NEVER, Range, Tcb, TcpState, fast, flag, pending};
use crate::counters::{Counter, DropReason};
use crate::stack::Stack;
use crate::tcp::options::TcpOptions;
use crate::tcp::{TcpDefaults, listen};
use crate::types::{EndpointId, Instant, IpAddress, Memory, Stale};
use crate::wire::tcp::{self, FastOpen, Segment, flags};

/// How long an accepted connection that was reset before its handshake was over counts among the
/// pending ones, milliseconds: whoever sends SYNs with another's address gets resets (RFC 7413
/// section 5.1).
const RESET_MS: u32 = 60_000;
/// Keys that a listener may have, the newer first: cookies of the older are taken, too.
const KEYS: usize = 2;
/// The longest time between two SYN-ACKs (Linux: TCP_RTO_MAX).
const LONGEST_NS: u64 = 120_000_000_000;

/// What Fast Open makes of a SYN.
#[derive(Clone, Copy, Debug)]
pub(super) enum Verdict {
    /// An ordinary request; its SYN-ACK has this option.
    Request(Option<FastOpen>),
    /// A connection at once; its SYN-ACK has this option.
    Connection(Option<FastOpen>),
}

/// A listener's books of connections whose handshake is not over.
#[derive(Clone, Copy, Debug, Default)]
struct Pending {
    count: u16,
    /// Those that were reset, and when the last one was, milliseconds.
    resets: u16,
    reset_ms: u32,
}

/// A listener has no use for SACK ranges: its books and keys lie in their place.
impl Tcb {
    fn fast_pending(&self) -> Pending {
        Pending {
            count: self.dsack.left as u16,
            resets: (self.dsack.left >> 16) as u16,
            reset_ms: self.dsack.right,
        }
    }

    fn set_fast_pending(&mut self, pending: Pending) {
        self.dsack = Range {
            left: u32::from(pending.resets) << 16 | u32::from(pending.count),
            right: pending.reset_ms,
        };
    }

    fn set_cookie_keys(&mut self, keys: &[Key]) {
        let words = keys.iter().take(KEYS).flatten();
        for (range, word) in self.sacks.iter_mut().zip(words) {
            *range = Range {
                left: *word as u32,
                right: (*word >> 32) as u32,
            };
        }
        self.sack_count = keys.len().min(KEYS) as u8;
    }

    /// Its keys; with none told, the stack's.
    fn cookie_keys(&self, own: Key) -> impl Iterator<Item = Key> + use<> {
        let word = |range: Range| u64::from(range.right) << 32 | u64::from(range.left);
        let [a, b, c, d] = self.sacks.map(word);
        let (keys, count) = match self.sack_count {
            0 => ([own, own], 1),
            count => ([[a, b], [c, d]], count as usize),
        };
        keys.into_iter().take(count)
    }
}

/// The cookie of a client (net/ipv4/tcp_fastopen.c:__tcp_fastopen_cookie_gen_cipher).
fn cookie(key: &Key, client: IpAddress, server: IpAddress) -> [u8; 8] {
    let hash = if client.is_v4() {
        siphash(key, [client.last_four(), server.last_four()].as_flattened())
    } else {
        siphash(key, [client.0, server.0].as_flattened())
    };
    hash.to_le_bytes()
}

impl Arrived<'_> {
    /// The Fast Open option of the segment.
    pub(super) fn fast_open(&self, memory: &impl Memory) -> Option<FastOpen> {
        let start = self.offset.checked_sub(self.segment.payload_offset)?;
        let chunk = memory.chunk(crate::types::ChunkId(self.chunk));
        let frame = chunk.get(usize::from(start)..usize::from(self.offset))?;
        FastOpen::find(tcp::options_of(frame, self.segment))
    }
}

impl Stack<'_> {
    /// Gives a listener the keys of its cookies (TCP_FASTOPEN_KEY or net.ipv4.tcp_fastopen_key),
    /// the newer first; without any it makes cookies with a key of the stack.
    ///
    /// # Errors
    /// [`Stale`], also when it does not listen.
    pub fn tcp_set_cookie_keys(&mut self, id: EndpointId, keys: &[Key]) -> Result<(), Stale> {
        let connection = self.tcp(id)?;
        if connection.tcb.state() != TcpState::Listen {
            return Err(Stale);
        }
        connection.tcb.set_cookie_keys(keys);
        Ok(())
    }

    /// What a SYN for a listener is to become.
    pub(super) fn judge_syn(
        &mut self,
        memory: &impl Memory,
        listener: u32,
        arrived: &Arrived<'_>,
        now: Instant,
    ) -> Verdict {
        let bits = self.head.tcp_defaults.fast_open;
        let Some(&tcb) = self.tcbs.get(listener as usize) else {
            return Verdict::Request(None);
        };
        let is_pressed = tcb.is_pressed != 0 || self.head.is_crowded != 0;
        if bits & TcpDefaults::FAST_OPEN_SERVER == 0
            || tcb.options.fast_open_queue == 0
            || is_pressed
        {
            return Verdict::Request(None);
        }
        let offered = arrived.fast_open(memory);
        let has_data = arrived.segment.payload_len > 0;
        if !has_data && offered.is_none() || !self.has_fast_place(listener, now) {
            return Verdict::Request(None);
        }
        if bits & TcpDefaults::FAST_OPEN_SERVER_NO_COOKIE != 0
            || tcb.options.has(TcpOptions::FAST_OPEN_NO_COOKIE)
        {
            return Verdict::Connection(None);
        }
        let Some(offered) = offered else {
            return Verdict::Request(None);
        };
        let (client, server) = (arrived.segment.source, arrived.segment.destination);
        let own = self.secret_key();
        let mut cookies = tcb.cookie_keys(own).map(|key| cookie(&key, client, server));
        let newest = cookies.next().unwrap_or_default();
        let told = FastOpen::new(&newest, offered.is_experimental);
        match offered.cookie() {
            [] => Verdict::Request(told),
            known if known == newest => Verdict::Connection(None),
            known if cookies.any(|cookie| known == cookie) => Verdict::Connection(told),
            _ => {
                self.count(Counter::TcpFastOpensRefused);
                Verdict::Request(told)
            }
        }
    }

    /// Whether one more connection of the listener may wait for the end of its handshake.
    fn has_fast_place(&mut self, listener: u32, now: Instant) -> bool {
        let Some(tcb) = self.tcbs.get_mut(listener as usize) else {
            return false;
        };
        let mut pending = tcb.fast_pending();
        if pending.resets > 0 && millis(now).wrapping_sub(pending.reset_ms) >= RESET_MS {
            pending.resets = 0;
            tcb.set_fast_pending(pending);
        }
        let has_place = pending.count.saturating_add(pending.resets) < tcb.options.fast_open_queue;
        if !has_place {
            self.count(Counter::TcpFastOpensFull);
        }
        has_place
    }

    /// Makes the connection of a SYN: it is on the accept queue, with the SYN's data. Whether it
    /// keeps the chunk; `None`: there was no place for it.
    pub(super) fn open_fast(
        &mut self,
        memory: &mut impl Memory,
        request: &Mini,
        arrived: &Arrived<'_>,
        option: Option<FastOpen>,
        now: Instant,
    ) -> Option<(u32, bool)> {
        let listener = self.tcbs.get(request.listener as usize).copied()?;
        let child = self.passive_child(request, &listener, now)?;
        self.count(Counter::TcpPassiveOpens);
        self.count(Counter::TcpFastOpens);
        self.flow_begins(request.local(), request.remote());
        if let Some(tcb) = self.tcbs.get_mut(request.listener as usize) {
            let mut pending = tcb.fast_pending();
            pending.count = pending.count.saturating_add(1);
            tcb.set_fast_pending(pending);
        }
        let mut connection = self.connection(child)?;
        let kept = connection.begin_fast(memory, arrived, option.as_ref(), now);
        self.queue_for_accept(request.listener, child);
        self.settle(child, now);
        Some((child, kept))
    }

    /// The handshake of a connection that Fast Open has made is over, or the connection has ended:
    /// its listener does not count it any more.
    #[cold]
    pub(super) fn fast_open_ended(&mut self, index: u32, now: Instant) {
        let Some(tcb) = self.tcbs.get_mut(index as usize) else {
            return;
        };
        // One that nobody has accepted takes a place of the accept queue instead.
        let was_reset =
            tcb.is_fast(fast::PENDING) && tcb.has(flag::RESET) && !tcb.has(flag::ACCEPTABLE);
        tcb.fast_open &= !fast::COUNTED;
        let (listener, generation) = (tcb.listener, tcb.listener_generation);
        let lives = self
            .endpoints
            .get(listener as usize)
            .is_some_and(|endpoint| endpoint.generation == generation);
        if lives
            && let Some(tcb) = self.tcbs.get_mut(listener as usize)
            && tcb.state() == TcpState::Listen
        {
            let mut pending = tcb.fast_pending();
            pending.count = pending.count.saturating_sub(1);
            if was_reset {
                pending.resets = pending.resets.saturating_add(1);
                pending.reset_ms = millis(now);
            }
            tcb.set_fast_pending(pending);
        }
    }
}

impl Connection<'_> {
    /// A connection that a SYN has made takes its data and answers it.
    fn begin_fast(
        &mut self,
        memory: &mut impl Memory,
        arrived: &Arrived<'_>,
        option: Option<&FastOpen>,
        now: Instant,
    ) -> bool {
        let segment = arrived.segment;
        let tcb = &mut *self.tcb;
        tcb.state = TcpState::SynReceived as u8;
        tcb.fast_open = fast::PENDING | fast::COUNTED;
        // The window of a SYN is not scaled (RFC 7323 section 2.2).
        tcb.snd_wnd = u32::from(segment.window);
        tcb.max_window = tcb.snd_wnd;
        tcb.snd_wl1 = segment.seq;
        tcb.delivered = 0;
        tcb.segs_in = 1;
        tcb.stuck_since = now.0;
        let mut kept = false;
        if segment.payload_len > 0 {
            tcb.data_segs_in = 1;
            let payload = Payload {
                chunk: arrived.chunk,
                offset: arrived.offset,
                len: segment.payload_len,
                seq: self.tcb.rcv_nxt,
                fin: false,
            };
            kept = self.take_data(memory, payload, now) == Ok(true);
            if self.tcb.rx_bytes > 0 {
                self.tcb.fast_open |= fast::DATA_TAKEN;
            }
            self.tcb.clear(flag::NO_MEMORY | flag::ACK_NOW);
        }
        self.send_syn(memory, option, now);
        self.arm_syn_ack(now);
        kept
    }

    fn arm_syn_ack(&mut self, now: Instant) {
        let wait = listen::SYNACK_NS << u32::from(self.tcb.syn_retries.min(7));
        self.tcb.pending = pending::SYN_ACK;
        self.tcb.retransmit_at = now.0.saturating_add(wait.min(LONGEST_NS));
    }

    /// The SYN-ACK was not answered in time (net/ipv4/tcp_timer.c:tcp_fastopen_synack_timer).
    /// Nothing else is sent again before it is.
    pub(super) fn fire_syn_ack(&mut self, memory: &mut impl Memory, now: Instant) {
        let most = match self.tcb.options.syn_count {
            0 => self.pool.head.tcp_defaults.synack_retries.saturating_add(1),
            set => set,
        };
        if self.tcb.syn_retries >= most {
            self.time_out();
            return;
        }
        self.tcb.syn_retries = self.tcb.syn_retries.saturating_add(1);
        self.tcb.total_retrans = self.tcb.total_retrans.wrapping_add(1);
        self.pool.count(Counter::TcpRetransmits);
        self.send_syn(memory, None, now);
        self.arm_syn_ack(now);
    }

    /// What only a connection that Fast Open has made does with a segment while its SYN-ACK is not
    /// acknowledged: answers the SYN that comes again, resets what acknowledges something else.
    /// `Ok(false)`: that was all.
    pub(super) fn look_at_handshake(
        &mut self,
        memory: &mut impl Memory,
        segment: &Segment,
        now: Instant,
    ) -> Result<bool, DropReason> {
        let kind = segment.flags & (flags::SYN | flags::ACK | flags::RST);
        if kind == flags::SYN && segment.seq == self.tcb.irs {
            let least_ms = self.pool.head.tcp_defaults.invalid_ratelimit_ms;
            if may_answer(&mut self.tcb.answered_ms, least_ms, segment, now) {
                self.tcb.fast_open |= fast::ANSWERED_AGAIN;
                self.send_syn(memory, None, now);
            }
            return Ok(false);
        }
        let is_answer = after(segment.ack, self.tcb.iss) && !after(segment.ack, self.tcb.snd_nxt);
        if kind == flags::ACK && !is_answer {
            self.send_bare(memory, segment.ack, flags::RST, tcp::Options::default());
            self.pool.count(Counter::TcpResetsSent);
            return Err(DropReason::TcpAck);
        }
        Ok(true)
    }

    /// The SYN-ACK is acknowledged, and with it perhaps data.
    pub(super) fn end_handshake(&mut self, memory: &mut impl Memory, ack: u32, now: Instant) {
        if before(ack, self.tcb.iss.wrapping_add(1)) {
            return;
        }
        let tcb = &mut *self.tcb;
        tcb.fast_open &= !fast::PENDING;
        tcb.delivered = tcb.delivered.wrapping_add(1);
        let is_one = tcb.syn_retries == 0 && tcb.fast_open & fast::ANSWERED_AGAIN == 0;
        if tcb.srtt8_us == 0 && is_one {
            let now_us = micros(now);
            let rtt = elapsed(now_us as u32, tcb.syn_sent_us);
            tcb.sample_rtt(rtt, millis(now));
        }
        if tcb.pending == pending::SYN_ACK {
            tcb.pending = pending::NONE;
            tcb.retransmit_at = NEVER;
        }
        if tcb.packets_out > 0 && tcb.pending == pending::NONE {
            self.arm_retransmit(now, true);
        }
        if self.tcb.state() == TcpState::SynReceived {
            self.tcb.state = TcpState::Established as u8;
            if self.tcb.options.has(TcpOptions::KEEPALIVE) {
                self.arm_keepalive(now);
            }
            self.writable_edge();
            if self.tcb.has(flag::SEND_SHUT) {
                self.send_fin(memory, now);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a kernel with this key has been seen to give.
    #[test]
    fn cookies_are_the_kernels() {
        let key = [0xed80_3d81_a0bf_63f7, 0xcebc_4a90_cd64_1d30];
        let at = IpAddress::from_v4;
        for (client, server, known) in [
            ([10, 248, 0, 2], [192, 168, 0, 2], 0x00ab_aaab_e8e9_54c2_u64),
            ([10, 248, 0, 3], [192, 168, 0, 2], 0x1313_a2da_994a_0951),
            ([10, 248, 0, 3], [192, 168, 0, 3], 0x76d2_c1c5_30f5_1f79),
        ] {
            assert_eq!(cookie(&key, at(client), at(server)), known.to_be_bytes());
        }
    }

    #[test]
    fn a_listener_has_up_to_two_keys() {
        let mut tcb = zerocopy::FromZeros::new_zeroed();
        let keys = |tcb: &Tcb| tcb.cookie_keys([1, 2]).collect::<std::vec::Vec<_>>();
        assert_eq!(keys(&tcb), [[1, 2]]);
        tcb.set_cookie_keys(&[[3 << 32, u64::MAX]]);
        assert_eq!(keys(&tcb), [[3 << 32, u64::MAX]]);
        tcb.set_cookie_keys(&[[7, 8], [9, 10], [11, 12]]);
        assert_eq!(keys(&tcb), [[7, 8], [9, 10]]);
    }
}
