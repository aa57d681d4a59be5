//! What a TCP socket's options say to the engine, room for what the shim keeps with them, and the
//! calls that change them.

use super::tcb::flag;
use crate::stack::Stack;
use crate::types::{EndpointId, Instant, Memory, Stale};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Options of one TCP socket (tcp(7), socket(7), ip(7)); plain data in the image. A connection that
/// a listener accepts starts with the listener's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct TcpOptions {
    /// Bits that only the shim knows.
    pub shim_flags: u32,
    /// SO_RCVTIMEO in milliseconds, 0 = none. Not used by the stack.
    pub rcvtimeo_ms: u32,
    /// SO_SNDTIMEO in milliseconds, 0 = none. Not used by the stack.
    pub sndtimeo_ms: u32,
    /// TCP_KEEPIDLE in seconds.
    pub keep_idle_s: u32,
    /// TCP_KEEPINTVL in seconds.
    pub keep_interval_s: u32,
    /// SO_LINGER's time in seconds; valid with [`TcpOptions::LINGER`].
    pub linger_s: u32,
    /// TCP_USER_TIMEOUT in milliseconds, 0 = none.
    pub user_timeout_ms: u32,
    /// SO_RCVLOWAT in bytes, at least 1.
    pub rcvlowat: u32,
    /// TCP_DEFER_ACCEPT in seconds, 0 = off.
    pub defer_accept_s: u32,
    /// TCP_LINGER2 in seconds; 0 = the default, negative = FIN_WAIT_2 is skipped.
    pub linger2_s: i32,
    /// SO_TIMESTAMPING: its flags.
    pub timestamping: u32,
    /// Zero.
    pub spare: u32,
    /// TCP_MAXSEG as set, 0 = none.
    pub max_seg: u16,
    /// TCP_KEEPCNT.
    pub keep_count: u8,
    /// TCP_SYNCNT; 0 = the default.
    pub syn_count: u8,
    /// TCP_CONGESTION by number: 0 cubic, 1 reno, 2 bbr.
    pub congestion: u8,
    /// Zero.
    pub reserved: u8,
    /// TCP_FASTOPEN: connections of a listener that may wait for the end of their handshake, 0 =
    /// off.
    pub fast_open_queue: u16,
    // What every segment asks is last, beside the congestion state that follows in a connection.
    /// SO_MAX_PACING_RATE in bytes a second; [`TcpOptions::UNPACED`] = none.
    pub max_pacing_rate: u64,
    /// Receive buffer in bytes as `getsockopt(SO_RCVBUF)` returns it.
    pub rcvbuf_bytes: u32,
    /// Send buffer in bytes as `getsockopt(SO_SNDBUF)` returns it.
    pub sndbuf_bytes: u32,
    /// Bits: [`TcpOptions::NODELAY`] and the others.
    pub flags: u32,
    /// TCP_NOTSENT_LOWAT in bytes; `u32::MAX` = none.
    pub notsent_lowat: u32,
    /// TCP_WINDOW_CLAMP in bytes, 0 = none.
    pub window_clamp: u32,
    /// IP_TOS.
    pub tos: u8,
    /// IP_TTL; 0 = 64.
    pub ttl: u8,
    /// IPV6_TCLASS.
    pub traffic_class: u8,
    /// IPV6_UNICAST_HOPS; 0 = 64.
    pub hop_limit: u8,
}

impl TcpOptions {
    /// TCP_NODELAY.
    pub const NODELAY: u32 = 1;
    /// TCP_CORK.
    pub const CORK: u32 = 2;
    /// SO_KEEPALIVE.
    pub const KEEPALIVE: u32 = 4;
    /// SO_LINGER is on.
    pub const LINGER: u32 = 8;
    /// SO_OOBINLINE.
    pub const OOBINLINE: u32 = 16;
    /// SO_RCVBUF was set: no autotuning.
    pub const RCVBUF_LOCKED: u32 = 32;
    /// SO_SNDBUF was set: no autotuning.
    pub const SNDBUF_LOCKED: u32 = 64;
    /// O_NONBLOCK. Not used by the stack.
    pub const NONBLOCKING: u32 = 128;
    /// SO_REUSEPORT.
    pub const REUSE_PORT: u32 = 256;
    /// SO_REUSEADDR. Not used by the stack.
    pub const REUSE_ADDR: u32 = 512;
    /// IP_RECVERR or IPV6_RECVERR: ICMP errors are told at once.
    pub const RECVERR: u32 = 1024;
    /// The listener rests ([`crate::Stack::rest`]).
    pub const RESTING: u32 = 2048;
    /// TCP_INQ. Not used by the stack.
    pub const INQ: u32 = 4096;
    /// TCP_FASTOPEN_NO_COOKIE.
    pub const FAST_OPEN_NO_COOKIE: u32 = 8192;
    /// TCP_FASTOPEN_CONNECT.
    pub const FAST_OPEN_CONNECT: u32 = 1 << 14;
    /// SO_ZEROCOPY. Not used by the stack.
    pub const ZEROCOPY: u32 = 1 << 15;
    /// SO_TIMESTAMP or SO_TIMESTAMPNS. Not used by the stack.
    pub const TIMESTAMP: u32 = 1 << 16;
    /// SO_TIMESTAMPNS. Not used by the stack.
    pub const TIMESTAMPNS: u32 = 1 << 17;
    /// No option: a send awaits notices ([`super::notices`]).
    pub(crate) const AWAITS: u32 = 1 << 18;

    /// No option: one of them is the NIC's time of leaving.
    pub(crate) const AWAITS_CARD: u32 = 1 << 20;

    /// TCP_NOTSENT_LOWAT was set. Not used by the stack.
    pub const NOTSENT_LOWAT_SET: u32 = 1 << 19;

    /// No SO_MAX_PACING_RATE.
    pub const UNPACED: u64 = u64::MAX;

    /// Linux's defaults.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            rcvbuf_bytes: 131_072,
            sndbuf_bytes: 16_384,
            flags: 0,
            shim_flags: 0,
            rcvtimeo_ms: 0,
            max_pacing_rate: Self::UNPACED,
            sndtimeo_ms: 0,
            keep_idle_s: 7200,
            keep_interval_s: 75,
            linger_s: 0,
            user_timeout_ms: 0,
            notsent_lowat: u32::MAX,
            rcvlowat: 1,
            window_clamp: 0,
            defer_accept_s: 0,
            linger2_s: 0,
            max_seg: 0,
            keep_count: 9,
            syn_count: 0,
            congestion: 0,
            tos: 0,
            ttl: 0,
            traffic_class: 0,
            hop_limit: 0,
            reserved: 0,
            fast_open_queue: 0,
            timestamping: 0,
            spare: 0,
        }
    }

    /// Whether any of the flag bits is set.
    #[must_use]
    pub const fn has(&self, flag: u32) -> bool {
        self.flags & flag != 0
    }

    /// Sets or clears flag bits.
    pub const fn set(&mut self, flag: u32, on: bool) {
        if on {
            self.flags |= flag;
        } else {
            self.flags &= !flag;
        }
    }
}

impl Default for TcpOptions {
    fn default() -> Self {
        Self::new()
    }
}

impl Stack<'_> {
    /// The options, to read or change; call [`Stack::tcp_options_changed`] afterwards.
    ///
    /// # Errors
    /// [`Stale`].
    pub fn tcp_options(&mut self, id: EndpointId) -> Result<&mut TcpOptions, Stale> {
        let index = self.tcp_index(id)?;
        self.tcbs
            .get_mut(index as usize)
            .map(|tcb| &mut tcb.options)
            .ok_or(Stale)
    }

    /// Acts on changed options: what they hold back no more leaves, keepalive is armed, another
    /// congestion control takes over.
    pub fn tcp_options_changed(&mut self, memory: &mut impl Memory, id: EndpointId, now: Instant) {
        let now = self.forward(now);
        if let Ok(mut connection) = self.tcp(id) {
            if connection.tcb.options.has(TcpOptions::KEEPALIVE)
                && connection.tcb.state().is_synchronised()
            {
                connection.arm_keepalive(now);
            }
            let algorithm = connection.tcb.options.congestion;
            if connection.tcb.congestion.algorithm != algorithm {
                connection.tcb.congestion.set_algorithm(algorithm);
            }
            connection.output(memory, now, false);
            // A larger buffer, or a higher mark of what may be unsent, is room.
            if connection.tcb.has(flag::NO_SPACE) && connection.tcb.may_carry_data() {
                connection.look_for_room(now);
            }
            self.settle(id.index, now);
        }
    }

    /// Sends what has been written, a cork notwithstanding: that is what setting TCP_NODELAY does,
    /// and what is written later waits again (net/ipv4/tcp.c:__tcp_sock_set_nodelay). What the
    /// peer's window has no room for waits still.
    pub fn tcp_push(&mut self, memory: &mut impl Memory, id: EndpointId, now: Instant) {
        let now = self.forward(now);
        if let Ok(mut connection) = self.tcp(id) {
            connection.output(memory, now, true);
            self.settle(id.index, now);
        }
    }

    /// TCP_QUICKACK: acknowledgements wait for answers (0) or not, until the exchange itself says
    /// otherwise; the one that is owed leaves. With an even number they wait again after that
    /// (net/ipv4/tcp.c:__tcp_sock_set_quickack).
    ///
    /// # Errors
    /// [`Stale`].
    pub fn tcp_set_quick_ack(
        &mut self,
        id: EndpointId,
        value: i32,
        now: Instant,
    ) -> Result<(), Stale> {
        let tcb = self.tcp(id)?.tcb;
        if value != 0 && tcb.has(flag::ACK_OWED) && tcb.state().is_synchronised() {
            let is_read = tcb.rx_bytes == 0;
            if is_read || tcb.unacked_bytes > u32::from(tcb.rcv_mss) {
                tcb.set(flag::ACK_NOW);
            }
        }
        if value & 1 != 0 {
            tcb.clear(flag::PINGPONG);
        } else {
            tcb.set(flag::PINGPONG);
        }
        self.settle(id.index, now);
        Ok(())
    }

    /// What TCP_QUICKACK answers.
    ///
    /// # Errors
    /// [`Stale`].
    pub fn tcp_quick_ack(&mut self, id: EndpointId) -> Result<bool, Stale> {
        Ok(!self.tcp(id)?.tcb.has(flag::PINGPONG))
    }
}
