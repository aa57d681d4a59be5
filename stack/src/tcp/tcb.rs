//! The state of one connection: plain data in the image, beside the endpoint of the same index.

use super::congestion::Congestion;
use super::connection::micros;
use super::options::TcpOptions;
use super::seq;
use crate::cplane::NextHop;
use crate::image::NONE;
use crate::types::Instant;
use core::mem::offset_of;
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout};

/// Connection states by Linux's numbers (include/net/tcp_states.h), which TCP_INFO shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum TcpState {
    /// Data flows both ways.
    Established = 1,
    /// A SYN was sent.
    SynSent = 2,
    /// SYNs have crossed (simultaneous open).
    SynReceived = 3,
    /// Our FIN was sent.
    FinWait1 = 4,
    /// Our FIN was acknowledged.
    FinWait2 = 5,
    /// Both sides are done; late segments are awaited.
    TimeWait = 6,
    /// No connection.
    Closed = 7,
    /// The peer's FIN has come.
    CloseWait = 8,
    /// The peer's FIN has come and ours was sent.
    LastAck = 9,
    /// Waits for connections.
    Listen = 10,
    /// FINs have crossed.
    Closing = 11,
}

impl TcpState {
    /// The state stored as this byte; anything unknown is closed.
    #[must_use]
    pub const fn from_byte(byte: u8) -> Self {
        match byte {
            1 => Self::Established,
            2 => Self::SynSent,
            3 => Self::SynReceived,
            4 => Self::FinWait1,
            5 => Self::FinWait2,
            6 => Self::TimeWait,
            8 => Self::CloseWait,
            9 => Self::LastAck,
            10 => Self::Listen,
            11 => Self::Closing,
            _ => Self::Closed,
        }
    }

    /// Whether the state is one of synchronised sequence numbers (RFC 9293 section 3.10.7.4).
    #[must_use]
    pub const fn is_synchronised(self) -> bool {
        !matches!(self, Self::Closed | Self::Listen | Self::SynSent)
    }

    /// Whether new data may still be sent by the program.
    #[must_use]
    pub const fn can_send(self) -> bool {
        matches!(self, Self::Established | Self::CloseWait)
    }
}

/// Congestion states by Linux's numbers (enum tcp_ca_state).
pub(crate) mod ca {
    /// Nothing is missing.
    pub(crate) const OPEN: u8 = 0;
    /// Something may be missing.
    pub(crate) const DISORDER: u8 = 1;
    /// The window shrinks because of ECN.
    pub(crate) const CWR: u8 = 2;
    /// Fast recovery.
    pub(crate) const RECOVERY: u8 = 3;
    /// After a retransmission timeout.
    pub(crate) const LOSS: u8 = 4;
}

/// What the retransmission timer means when it fires.
pub(crate) mod pending {
    /// It is not armed.
    pub(crate) const NONE: u8 = 0;
    /// Retransmission timeout (RFC 6298).
    pub(crate) const RTO: u8 = 1;
    /// Tail loss probe (RFC 8985 section 7).
    pub(crate) const TLP: u8 = 2;
    /// Reordering timeout (RFC 8985 section 6.3).
    pub(crate) const REORDER: u8 = 3;
    /// Zero-window probe.
    pub(crate) const PROBE: u8 = 4;
    /// The SYN-ACK of a connection that Fast Open has made.
    pub(crate) const SYN_ACK: u8 = 5;
}

/// Bits of [`Tcb::fast_open`] (RFC 7413).
pub(crate) mod fast {
    /// A listener has made the connection of a SYN, and its SYN-ACK is not acknowledged.
    pub(crate) const PENDING: u16 = 1;
    /// The listener counts it among those.
    pub(crate) const COUNTED: u16 = 2;
    /// Data of the SYN was taken: ours by the peer, or the peer's by us.
    pub(crate) const DATA_TAKEN: u16 = 4;
    /// Our SYN had a cookie or the request for one.
    pub(crate) const ASKED: u16 = 8;
    /// In the form of the experiment.
    pub(crate) const EXPERIMENTAL: u16 = 16;
    /// Our SYN had data.
    pub(crate) const DATA_SENT: u16 = 32;
    /// The SYN waits for the first write (TCP_FASTOPEN_CONNECT).
    pub(crate) const DEFERRED: u16 = 64;
    /// Whoever has made the connection waits for its end, to write more at once.
    pub(crate) const WAITED_FOR: u16 = 128;
    /// The first after a pause of Fast Open: data from the peer ends the count of pauses.
    pub(crate) const PROVES: u16 = 256;
    /// The SYN came again, and was answered again: the handshake measures no round trip.
    pub(crate) const ANSWERED_AGAIN: u16 = 1 << 15;
    /// Where what TCP_INFO tells of a failure begins, and how it was one (enum
    /// tcp_fastopen_client_fail).
    pub(crate) const FAILURE: u32 = 9;
    /// There was no cookie.
    pub(crate) const NO_COOKIE: u16 = 1;
    /// The peer did not take all of the data.
    pub(crate) const NOT_ACKNOWLEDGED: u16 = 2;
    /// The SYN was sent again, without data.
    pub(crate) const SYN_REPEATED: u16 = 3;
}

/// What the search for the path's MTU is at ([`super::mtu_search`]).
pub(crate) mod search {
    /// ICMP messages tell it.
    pub(crate) const OFF: u8 = 0;
    /// Between probes.
    pub(crate) const ON: u8 = 1;
    /// A probe is in flight.
    pub(crate) const PROBING: u8 = 2;
}

/// What a sender is doing, for TCP_INFO (include/linux/tcp.h: enum tcp_chrono).
pub(crate) mod busy {
    /// Nothing to send and nothing in flight.
    pub(crate) const IDLE: u8 = 0;
    /// Data is in flight or waits for the congestion window.
    pub(crate) const SENDING: u8 = 1;
    /// Data waits for the peer's window.
    pub(crate) const WINDOW: u8 = 2;
    /// The program has more than the send buffer takes.
    pub(crate) const BUFFER: u8 = 3;
}

/// Bits of [`Tcb::flags`].
pub(crate) mod flag {
    /// Timestamps were negotiated.
    pub(crate) const TIMESTAMPS: u32 = 1;
    /// Selective acknowledgements were negotiated.
    pub(crate) const SACK: u32 = 2;
    /// Window scaling was negotiated.
    pub(crate) const SCALING: u32 = 4;
    /// ECN was negotiated.
    pub(crate) const ECN: u32 = 8;
    /// An ACK must leave with the end of this batch.
    pub(crate) const ACK_NOW: u32 = 16;
    /// An acknowledgement is owed; it may ride on data.
    pub(crate) const ACK_OWED: u32 = 32;
    /// A request/response exchange: ACKs wait for the answer.
    pub(crate) const PINGPONG: u32 = 64;
    /// The program has said that it sends no more.
    pub(crate) const SEND_SHUT: u32 = 128;
    /// The program has said that it receives no more.
    pub(crate) const RECEIVE_SHUT: u32 = 256;
    /// A FIN is on the send queue.
    pub(crate) const FIN_QUEUED: u32 = 512;
    /// The peer's FIN was taken in order.
    pub(crate) const FIN_RECEIVED: u32 = 1024;
    /// No descriptor refers to it any more.
    pub(crate) const ORPHAN: u32 = 2048;
    /// A write found no room: the next room is an edge.
    pub(crate) const NO_SPACE: u32 = 4096;
    /// Answer CE with ECE until CWR comes.
    pub(crate) const ECN_DEMAND_CWR: u32 = 8192;
    /// The next new data segment carries CWR.
    pub(crate) const ECN_SEND_CWR: u32 = 1 << 14;
    /// The connect has not been reported to the program yet.
    pub(crate) const CONNECTING: u32 = 1 << 15;
    /// The send side has a duplicate-SACK block to tell.
    pub(crate) const DSACK: u32 = 1 << 16;
    /// What was written leaves at the next flush.
    pub(crate) const OUTPUT_DUE: u32 = 1 << 17;
    /// A timeout that may prove spurious (RFC 5682).
    pub(crate) const FRTO: u32 = 1 << 18;
    /// Reordering was seen.
    pub(crate) const REORDER_SEEN: u32 = 1 << 19;
    /// The connection waits in its listener's accept queue.
    pub(crate) const ACCEPTABLE: u32 = 1 << 20;
    /// A probe of the tail is out (RFC 8985 section 7.4).
    pub(crate) const TLP_OUT: u32 = 1 << 21;
    /// The probe was a retransmission.
    pub(crate) const TLP_RETRANSMITTED: u32 = 1 << 22;
    /// The sender is limited by the congestion window.
    pub(crate) const CWND_LIMITED: u32 = 1 << 23;
    /// A reset has ended the connection.
    pub(crate) const RESET: u32 = 1 << 24;
    /// The call that is sending says that more data follows (MSG_MORE).
    pub(crate) const MORE: u32 = 1 << 25;
    /// The last holder died: close at the next flush.
    pub(crate) const CLOSE_DUE: u32 = 1 << 26;
    /// The peer has told of a duplicate that reordering may have caused.
    pub(crate) const DSACK_SEEN: u32 = 1 << 27;
    /// The peer's window holds data back.
    pub(crate) const WINDOW_LIMITED: u32 = 1 << 28;
    /// Our FIN waits for a chunk.
    pub(crate) const FIN_DUE: u32 = 1 << 29;
    /// The window is small for want of packet memory, not because the program is slow.
    pub(crate) const STARVED: u32 = 1 << 30;
    /// Data in order found no memory: the next segment closes the window.
    pub(crate) const NO_MEMORY: u32 = 1 << 31;
}

/// No deadline.
pub(crate) const NEVER: u64 = u64::MAX;
/// Segments by which the order changes where nothing is known (net.ipv4.tcp_reordering).
pub(crate) const USUAL_REORDERING: u16 = 3;

/// A range of received sequence numbers to tell in SACK options.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub(crate) struct Range {
    pub(crate) left: u32,
    pub(crate) right: u32,
}

impl Range {
    /// Whether the two overlap or meet.
    pub(crate) fn touches(self, other: Self) -> bool {
        !seq::after(other.left, self.right) && !seq::after(self.left, other.right)
    }

    /// Both in one.
    pub(crate) fn joined(self, other: Self) -> Self {
        Self {
            left: seq::earlier(self.left, other.left),
            right: if seq::after(other.right, self.right) {
                other.right
            } else {
                self.right
            },
        }
    }
}

/// Where the connection's frames go.
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub(crate) struct Hop {
    pub(crate) ifindex: u32,
    pub(crate) generation: u32,
    pub(crate) mtu: u16,
    pub(crate) source_mac: [u8; 6],
    pub(crate) mac: [u8; 6],
    pub(crate) queue_pair: u8,
    pub(crate) reserved: u8,
}

impl Hop {
    /// The plain form of a next hop.
    pub(crate) fn of(via: &NextHop) -> Self {
        Self {
            ifindex: via.ifindex,
            generation: via.generation,
            mtu: via.mtu,
            source_mac: via.source_mac,
            mac: via.mac,
            queue_pair: via.queue_pair,
            reserved: 0,
        }
    }
}

/// The state of one connection or listener. Sequence numbers are host integers; times without a
/// unit in the name are nanoseconds of [`crate::Instant`]; windows are in bytes unscaled.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub(crate) struct Tcb {
    // What a request and its response touch, up to the first half of `congestion`: nine lines of a
    // cache, of which `options` has one and a half of its own that they do not touch.
    // First the receive side.
    pub(crate) rcv_nxt: u32,
    /// `rcv_nxt` when the last window was told.
    pub(crate) rcv_wup: u32,
    /// The window told then.
    pub(crate) rcv_wnd: u32,
    /// First byte that the program has not read.
    pub(crate) copied_seq: u32,
    pub(crate) ts_recent: u32,
    pub(crate) ts_recent_ms: u32,
    pub(crate) flags: u32,
    pub(crate) state: u8,
    pub(crate) ca_state: u8,
    pub(crate) pending: u8,
    pub(crate) rcv_wscale: u8,
    pub(crate) rx_head: u32,
    pub(crate) rx_tail: u32,
    /// Bytes in the receive queue, and in the out-of-order queue.
    pub(crate) rx_bytes: u32,
    pub(crate) ooo_bytes: u32,
    pub(crate) ooo_head: u32,
    /// The urgent byte, and above it its state.
    pub(crate) urgent: u16,
    /// The number of the burst that leaves next ([`super::send_buffer`]), wrapping.
    pub(crate) burst: u16,
    /// Chunks that the receive side holds.
    pub(crate) rx_chunks: u32,
    /// Bytes received since the last ACK left.
    pub(crate) unacked_bytes: u32,

    // Send side.
    pub(crate) snd_una: u32,
    pub(crate) snd_nxt: u32,
    pub(crate) snd_wnd: u32,
    pub(crate) snd_wl1: u32,
    /// End of the last small segment sent (Minshall's Nagle).
    pub(crate) snd_sml: u32,
    /// End of the data that the program has written.
    pub(crate) write_seq: u32,
    pub(crate) snd_up: u32,
    pub(crate) queue_head: u32,
    pub(crate) unsent: u32,
    pub(crate) queue_tail: u32,
    /// Chunks of the send queue.
    pub(crate) queued_chunks: u32,
    pub(crate) packets_out: u32,
    pub(crate) sacked_out: u32,
    pub(crate) lost_out: u32,
    pub(crate) retrans_out: u32,
    pub(crate) mss: u16,
    /// Most bytes that one segment of the peer had.
    pub(crate) rcv_mss: u16,

    pub(crate) snd_wscale: u8,
    pub(crate) backoff: u8,
    pub(crate) retransmits: u8,
    pub(crate) probes_out: u8,
    pub(crate) quick_acks: u8,
    /// What the search for the path's MTU is at: [`search`]. Its numbers are further down.
    pub(crate) mtu_search: u8,
    /// Runs in `sacks`.
    pub(crate) sack_count: u8,
    /// What the sender is doing now: [`busy`].
    pub(crate) busy: u8,
    // Round-trip time, microseconds.
    /// Smoothed, times 8.
    pub(crate) srtt8_us: u32,
    /// Mean deviation, times 4.
    pub(crate) mdev4_us: u32,
    pub(crate) mdev_max_us: u32,
    pub(crate) rttvar_us: u32,
    pub(crate) rtt_seq: u32,
    pub(crate) min_rtt_us: u32,
    pub(crate) min_rtt_at_ms: u32,
    pub(crate) rto_us: u32,
    pub(crate) rcv_rtt_us: u32,
    // What every ACK moves of loss recovery and the delivery rate
    // (draft-cheng-iccrg-delivery-rate-estimation).
    pub(crate) rack_sent_us: u32,
    /// [`SegmentSlot::order`](super::pool::SegmentSlot) of what was sent then.
    pub(crate) rack_order: u16,
    /// That of the last transmission.
    pub(crate) sent_order: u16,
    pub(crate) rack_rtt_us: u32,
    pub(crate) delivered: u32,
    pub(crate) app_limited: u32,

    pub(crate) rate_delivered: u32,
    pub(crate) rate_interval_us: u32,
    pub(crate) round_delivered: u32,
    /// Microseconds, wrapping.
    pub(crate) delivered_us: u32,
    pub(crate) first_sent_us: u32,
    pub(crate) ts_offset: u32,
    /// What had been sent when the use of the congestion window was noted, and what that was until
    /// all of it is acknowledged: most segments in flight, whether the window was in the way
    /// (net/ipv4/tcp_output.c:tcp_cwnd_validate).
    pub(crate) usage_seq: u32,
    pub(crate) most_out: u16,
    pub(crate) is_used_up: u8,
    /// Whether it is on the list of connections with something to flush.
    pub(crate) on_flush: u8,
    // Time.
    pub(crate) retransmit_at: u64,
    pub(crate) delayed_ack_at: u64,
    /// When a segment that pacing holds back may leave.
    pub(crate) paced_at: u64,
    /// Keepalive, FIN_WAIT_2's end, or the end of a lingering close.
    pub(crate) keepalive_at: u64,

    /// Before it no segment leaves (see [`super::pace`]); 0 without pacing.
    pub(crate) pace_at: u64,
    /// When the oldest unacknowledged data was first sent or the first probe of a zero window left.
    pub(crate) stuck_since: u64,
    /// Tick of the wheel under which it is filed; [`NEVER`] = not filed.
    pub(crate) timer_tick: u64,
    /// When anything came, and when data came; milliseconds, as all times of that unit wrapping.
    pub(crate) last_received_ms: u32,
    pub(crate) last_data_ms: u32,
    pub(crate) last_sent_ms: u32,
    /// Microseconds, wrapping.
    pub(crate) drs_time_us: u32,
    pub(crate) in_edge: u32,
    pub(crate) error: i32,
    /// The furthest end of any window told: what lies before it may be on its way.
    pub(crate) rcv_edge: u32,
    pub(crate) segs_in: u32,
    pub(crate) segs_out: u32,
    pub(crate) data_segs_in: u32,

    pub(crate) bytes_acked: u64,
    pub(crate) bytes_received: u64,
    pub(crate) bytes_sent: u64,
    pub(crate) data_segs_out: u32,
    pub(crate) out_edge: u32,
    /// Since when the sender does what it does, microseconds, and how long it has done so in all
    /// before that, by kind; for TCP_INFO.
    pub(crate) busy_since_us: u64,
    pub(crate) busy_us: [u64; 3],
    pub(crate) hop: Hop,
    pub(crate) options: TcpOptions,
    pub(crate) congestion: Congestion,

    // Rarely: loss, duplicates, urgent data, trouble.
    /// When a segment without data from outside the window was last answered, milliseconds; 0 =
    /// never.
    pub(crate) answered_ms: u32,
    pub(crate) max_window: u32,
    pub(crate) mss_clamp: u16,
    pub(crate) advertised_mss: u16,
    pub(crate) syn_retries: u8,
    pub(crate) challenge_acks: u8,
    pub(crate) rack_steps: u8,
    pub(crate) rack_persist: u8,
    pub(crate) reordering: u16,
    /// What Fast Open is at: bits of [`fast`].
    pub(crate) fast_open: u16,
    pub(crate) high_seq: u32,
    /// Timestamp of the first retransmission of an episode, milliseconds of our clock.
    pub(crate) retrans_stamp: u32,
    pub(crate) ooo_tail: u32,
    pub(crate) ooo_count: u32,
    pub(crate) challenge_s: u32,
    pub(crate) tlp_high_seq: u32,
    pub(crate) undo_marker: u32,
    pub(crate) undo_retrans: u32,
    pub(crate) prr_delivered: u32,
    pub(crate) prr_out: u32,
    pub(crate) prior_cwnd: u32,
    pub(crate) highest_sacked: u32,
    pub(crate) dsack: Range,
    /// Runs of out-of-order data to tell, the newest first.
    pub(crate) sacks: [Range; 4],
    pub(crate) delivered_ce: u32,
    pub(crate) iss: u32,
    pub(crate) irs: u32,
    /// The peer's urgent byte, while [`Tcb::urgent`] is not 0.
    pub(crate) rcv_up: u32,
    pub(crate) drs_seq: u32,
    pub(crate) drs_space: u32,
    /// Next in the list of connections with something to flush.
    pub(crate) flush_next: u32,
    pub(crate) timer_next: u32,
    pub(crate) timer_previous: u32,
    pub(crate) syn_sent_us: u32,
    /// `delivered` when RACK's window last grew.
    pub(crate) rack_delivered: u32,
    /// What an ICMP error has last said, and when, milliseconds; 0 = nothing.
    pub(crate) soft_error: i32,
    pub(crate) soft_error_ms: u32,

    /// While [`Tcb::mtu_search`] is on: the largest payload that is believed to pass, the largest
    /// that may, that of the probe, its first number, and when the search began, milliseconds.
    pub(crate) search_low: u16,
    pub(crate) search_high: u16,
    pub(crate) search_probe: u32,
    pub(crate) search_seq: u32,
    pub(crate) search_ms: u32,

    // Listener and its connections.
    pub(crate) listener: u32,
    pub(crate) listener_generation: u32,
    pub(crate) accept_next: u32,
    pub(crate) accept_head: u32,
    pub(crate) accept_tail: u32,
    pub(crate) accept_count: u32,
    pub(crate) backlog: u32,
    pub(crate) request_count: u32,
    /// Requests whose SYN-ACK has gone out once only.
    pub(crate) young_count: u32,
    /// New connections should go to the kernel's listener: 0 or 1.
    pub(crate) is_pressed: u32,

    // For TCP_INFO.
    pub(crate) bytes_retrans: u64,
    pub(crate) total_retrans: u32,
    pub(crate) dsack_dups: u32,
    pub(crate) reord_seen: u32,
    pub(crate) rcv_ooopack: u32,

    /// The place of its error queue, plus one; 0 = it has none ([`super::notices`]).
    pub(crate) notices: u32,
    /// Zero.
    pub(crate) spare: u32,
}

const _: () = assert!(offset_of!(Tcb, hop) == 6 * 64 && size_of::<Tcb>() <= 864);

impl Tcb {
    /// A fresh one: every link empty, every timer off.
    ///
    /// Its place on the list of [`crate::Stack::flush`] stays.
    pub(crate) fn reset(&mut self, options: TcpOptions) {
        let (flush_next, on_flush) = (self.flush_next, self.on_flush);
        self.zero();
        self.on_flush = on_flush;
        self.state = TcpState::Closed as u8;
        for link in [
            &mut self.rx_head,
            &mut self.rx_tail,
            &mut self.ooo_head,
            &mut self.ooo_tail,
            &mut self.queue_head,
            &mut self.unsent,
            &mut self.queue_tail,
            &mut self.timer_next,
            &mut self.timer_previous,
            &mut self.listener,
            &mut self.accept_next,
            &mut self.accept_head,
            &mut self.accept_tail,
        ] {
            *link = NONE;
        }
        self.flush_next = flush_next;
        self.timer_tick = NEVER;
        self.retransmit_at = NEVER;
        self.delayed_ack_at = NEVER;
        self.paced_at = NEVER;
        self.keepalive_at = NEVER;
        self.rto_us = super::rtt::INITIAL_RTO_US;
        self.min_rtt_us = u32::MAX;
        self.reordering = USUAL_REORDERING;
        self.rack_steps = 1;
        self.options = options;
        self.options
            .set(TcpOptions::AWAITS | TcpOptions::AWAITS_CARD, false);
    }

    pub(crate) fn state(&self) -> TcpState {
        TcpState::from_byte(self.state)
    }

    /// Whether the program may write, as far as the state goes.
    pub(crate) fn may_carry_data(&self) -> bool {
        match self.state() {
            TcpState::Established | TcpState::CloseWait => true,
            TcpState::SynReceived => self.is_early(),
            _ => false,
        }
    }

    /// Whether Fast Open has made the connection and its handshake is not over. (The state is asked
    /// first: no other segment looks at what is rarely used.)
    #[inline]
    pub(crate) fn is_early(&self) -> bool {
        let may_be = matches!(self.state(), TcpState::SynReceived | TcpState::FinWait1);
        may_be && self.is_fast(fast::PENDING)
    }

    /// Whether any of these bits of [`fast`] is set.
    pub(crate) fn is_fast(&self, bits: u16) -> bool {
        self.fast_open & bits != 0
    }

    /// Whether data may come, as far as the state goes.
    pub(crate) fn may_receive(&self) -> bool {
        matches!(
            self.state(),
            TcpState::Established | TcpState::FinWait1 | TcpState::FinWait2
        )
    }

    pub(crate) fn has(&self, flag: u32) -> bool {
        self.flags & flag != 0
    }

    pub(crate) fn set(&mut self, flag: u32) {
        self.flags |= flag;
    }

    pub(crate) fn clear(&mut self, flag: u32) {
        self.flags &= !flag;
    }

    /// Nothing lost, told out of order, sent again or probed for: an ACK only goes forward.
    pub(crate) fn is_calm(&self) -> bool {
        self.ca_state == ca::OPEN
            && self.sacked_out | self.lost_out | self.retrans_out == 0
            && self.has(flag::SACK)
            && !self.has(flag::TLP_OUT)
    }

    /// Segments that are in the network by our reckoning (RFC 6675's pipe).
    #[inline]
    pub(crate) fn in_flight(&self) -> u32 {
        if self.sacked_out | self.lost_out | self.retrans_out == 0 {
            return self.packets_out;
        }
        self.packets_out
            .saturating_sub(self.sacked_out.saturating_add(self.lost_out))
            .saturating_add(self.retrans_out)
    }

    /// A segment came out of order: the run that it belongs to is the newest to tell, the others
    /// follow in the order in which they were told (RFC 2018 section 4). What has grown together is
    /// one.
    pub(crate) fn note_range(&mut self, range: Range) {
        let mut newest = range;
        let mut rest = [Range::default(); 4];
        let mut count = 0usize;
        for old in self.sacks.iter().take(self.sack_count as usize).copied() {
            if newest.touches(old) {
                newest = newest.joined(old);
            } else if let Some(slot) = rest.get_mut(count) {
                *slot = old;
                count = count.wrapping_add(1);
            }
        }
        let [first, second, third, _] = rest;
        self.sacks = [newest, first, second, third];
        self.sack_count = count.saturating_add(1).min(self.sacks.len()) as u8;
    }

    /// Forgets runs that have become in order.
    pub(crate) fn drop_told(&mut self) {
        if self.ooo_head == NONE {
            self.sack_count = 0;
            return;
        }
        let mut count = 0usize;
        let old = self.sacks;
        for range in old.iter().take(self.sack_count as usize) {
            if seq::after(range.left, self.rcv_nxt)
                && let Some(slot) = self.sacks.get_mut(count)
            {
                *slot = *range;
                count = count.wrapping_add(1);
            }
        }
        self.sack_count = count as u8;
    }

    /// Keeps the times of what the sender was doing.
    #[inline]
    pub(crate) fn note_busy(&mut self, now: Instant) {
        let idle = self.packets_out == 0 && self.unsent == NONE;
        let kind = if idle {
            busy::IDLE
        } else if self.has(flag::WINDOW_LIMITED) {
            busy::WINDOW
        } else if self.unsent == NONE && self.has(flag::NO_SPACE) {
            busy::BUFFER
        } else {
            busy::SENDING
        };
        if kind == self.busy {
            return;
        }
        let now_us = micros(now);
        let span = now_us.saturating_sub(self.busy_since_us);
        if let Some(time) = self.busy_us.get_mut((self.busy as usize).wrapping_sub(1)) {
            *time = time.saturating_add(span);
        }
        self.busy = kind;
        self.busy_since_us = now_us;
    }

    /// How long the sender has been sending, held by the window, held by the buffer; microseconds.
    pub(crate) fn busy_until(&self, now_us: u64) -> [u64; 3] {
        let mut times = self.busy_us;
        let kind = (self.busy as usize).checked_sub(1);
        if let Some(time) = kind.and_then(|kind| times.get_mut(kind)) {
            *time = time.saturating_add(now_us.saturating_sub(self.busy_since_us));
        }
        times
    }

    /// What the peer may still send: the end of the window that was told, from `rcv_nxt`.
    pub(crate) fn receive_window(&self) -> u32 {
        seq::distance(self.rcv_nxt, self.rcv_wup.wrapping_add(self.rcv_wnd))
    }

    /// What the peer may have sent by some window that was told: what is on its way when a window
    /// is taken back is taken all the same (RFC 7323 section 2.4).
    pub(crate) fn acceptable_window(&self) -> u32 {
        self.receive_window()
            .max(seq::distance(self.rcv_nxt, self.rcv_edge))
    }

    /// A window was told.
    pub(crate) fn tell_window(&mut self, window: u32) {
        self.rcv_wnd = window;
        self.rcv_wup = self.rcv_nxt;
        let end = self.rcv_nxt.wrapping_add(window);
        if seq::after(end, self.rcv_edge) {
            self.rcv_edge = end;
        }
    }

    /// End of what we may send.
    pub(crate) fn send_window_end(&self) -> u32 {
        self.snd_una.wrapping_add(self.snd_wnd)
    }

    /// Bytes written and not acknowledged, and a FIN (net/ipv4/tcp.c:tcp_ioctl).
    pub(crate) fn unacked(&self) -> u32 {
        if matches!(self.state(), TcpState::SynSent | TcpState::SynReceived) {
            return 0;
        }
        let fin = u32::from(self.has(flag::FIN_QUEUED));
        seq::distance(self.snd_una, self.write_seq.wrapping_add(fin))
    }

    /// Bytes written and not sent, and a FIN.
    pub(crate) fn unsent_bytes(&self) -> u32 {
        let fin = u32::from(self.has(flag::FIN_QUEUED));
        seq::distance(self.snd_nxt, self.write_seq.wrapping_add(fin))
    }

    /// The earliest of its deadlines.
    pub(crate) fn deadline(&self) -> u64 {
        self.retransmit_at
            .min(self.delayed_ack_at)
            .min(self.paced_at)
            .min(self.keepalive_at)
    }
}
