//! The host's `net.ipv4.tcp_*` settings, as the engine uses them. The owner of the image writes
//! them ([`crate::Stack::tcp_defaults_mut`]); a fresh image has Linux's own defaults.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Settings of one stack (Documentation/networking/ip-sysctl.rst of the kernel).
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct TcpDefaults {
    /// tcp_rmem: least, initial and greatest receive buffer, bytes.
    pub rmem: [u32; 3],
    /// tcp_wmem: least, initial and greatest send buffer, bytes.
    pub wmem: [u32; 3],
    /// tcp_syn_retries.
    pub syn_retries: u8,
    /// tcp_synack_retries.
    pub synack_retries: u8,
    /// tcp_retries2.
    pub retries2: u8,
    /// tcp_orphan_retries; 0 = 8.
    pub orphan_retries: u8,
    /// tcp_syn_linear_timeouts.
    pub syn_linear_timeouts: u8,
    /// tcp_timestamps is on.
    pub timestamps: u8,
    /// tcp_sack is on.
    pub sack: u8,
    /// tcp_window_scaling is on.
    pub window_scaling: u8,
    /// tcp_ecn: 0 off, 1 on, 2 when the peer asks.
    pub ecn: u8,
    /// tcp_slow_start_after_idle is on.
    pub slow_start_after_idle: u8,
    /// tcp_moderate_rcvbuf is on.
    pub moderate_rcvbuf: u8,
    /// tcp_rfc1337 is on.
    pub rfc1337: u8,
    /// tcp_abort_on_overflow is on.
    pub abort_on_overflow: u8,
    /// tcp_congestion_control by number: 0 cubic, 1 reno, 2 bbr.
    pub congestion: u8,
    /// tcp_mtu_probing: 0 off, 1 after a black hole was met, 2 always.
    pub mtu_probing: u8,
    /// tcp_syncookies: 0 off, 1 when a queue is full, 2 always.
    pub syncookies: u8,
    /// tcp_fin_timeout, seconds.
    pub fin_timeout_s: u32,
    /// tcp_max_syn_backlog.
    pub max_syn_backlog: u32,
    /// tcp_challenge_ack_limit per connection and second.
    pub challenge_acks: u16,
    /// tcp_invalid_ratelimit, milliseconds: segments without data from outside the window are
    /// answered not more often, or two ends that disagree would talk for ever; 0 = always.
    pub invalid_ratelimit_ms: u16,
    /// tcp_base_mss, bytes: the payload with which a search for the path's MTU begins.
    pub base_mss: u32,
    /// tcp_mtu_probe_floor, bytes: the least payload to which a search goes down.
    pub mtu_probe_floor: u32,
    /// tcp_probe_interval, seconds: after so long a search begins anew.
    pub probe_interval_s: u32,
    /// tcp_probe_threshold, bytes: a search ends when it is so near.
    pub probe_threshold: u32,
    /// tcp_fastopen: bits of [`TcpDefaults::FAST_OPEN_SERVER`] and the others.
    pub fast_open: u32,
    /// tcp_fastopen_blackhole_timeout_sec, seconds: how long connections of ours do without Fast
    /// Open after a path has shown that it does not carry it; 0 = they do not stop.
    pub fast_open_pause_s: u32,
}

impl TcpDefaults {
    /// Connections of ours may send data in the SYN (bits of [`TcpDefaults::fast_open`]).
    pub const FAST_OPEN_CLIENT: u32 = 1;
    /// Listeners may take data of a SYN.
    pub const FAST_OPEN_SERVER: u32 = 2;
    /// A client needs no cookie.
    pub const FAST_OPEN_CLIENT_NO_COOKIE: u32 = 4;
    /// A listener asks for none.
    pub const FAST_OPEN_SERVER_NO_COOKIE: u32 = 0x200;

    /// Linux 6.12's defaults on a host with some gigabytes of memory.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            rmem: [4096, 131_072, 6_291_456],
            wmem: [4096, 16_384, 4_194_304],
            syn_retries: 6,
            synack_retries: 5,
            retries2: 15,
            orphan_retries: 0,
            syn_linear_timeouts: 4,
            timestamps: 1,
            sack: 1,
            window_scaling: 1,
            ecn: 2,
            slow_start_after_idle: 1,
            moderate_rcvbuf: 1,
            rfc1337: 0,
            abort_on_overflow: 0,
            congestion: 0,
            mtu_probing: 0,
            syncookies: 1,
            fin_timeout_s: 60,
            max_syn_backlog: 4096,
            challenge_acks: 2,
            invalid_ratelimit_ms: 500,
            base_mss: 1024,
            mtu_probe_floor: 48,
            probe_interval_s: 600,
            probe_threshold: 8,
            fast_open: 1,
            fast_open_pause_s: 0,
        }
    }
}

impl Default for TcpDefaults {
    fn default() -> Self {
        Self::new()
    }
}
