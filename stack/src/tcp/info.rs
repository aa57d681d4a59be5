//! TCP_INFO: the kernel's structure, filled from a control block (include/uapi/linux/tcp.h).

use super::connection::{elapsed, micros, millis};
use super::seq::distance;
use super::tcb::{Tcb, TcpState, fast, flag};
use crate::stack::Stack;
use crate::types::{EndpointId, Instant, Stale};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout};

/// What programs know as "no slow start threshold yet" (include/net/tcp.h:TCP_INFINITE_SSTHRESH).
const NO_THRESHOLD: u32 = 0x7fff_ffff;

/// `struct tcp_info` of Linux 6.12, in its layout. Times are microseconds unless named otherwise.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
#[expect(missing_docs, reason = "the fields are those of linux/tcp.h")]
pub struct TcpInfo {
    pub state: u8,
    pub ca_state: u8,
    pub retransmits: u8,
    pub probes: u8,
    pub backoff: u8,
    pub options: u8,
    /// snd_wscale in the low four bits, rcv_wscale in the high ones.
    pub wscale: u8,
    /// delivery_rate_app_limited in bit 0, fastopen_client_fail in the two bits above it.
    pub rate_flags: u8,
    pub rto: u32,
    pub ato: u32,
    pub snd_mss: u32,
    pub rcv_mss: u32,
    pub unacked: u32,
    pub sacked: u32,
    pub lost: u32,
    pub retrans: u32,
    pub fackets: u32,
    pub last_data_sent_ms: u32,
    pub last_ack_sent_ms: u32,
    pub last_data_recv_ms: u32,
    pub last_ack_recv_ms: u32,
    pub pmtu: u32,
    pub rcv_ssthresh: u32,
    pub rtt: u32,
    pub rttvar: u32,
    pub snd_ssthresh: u32,
    pub snd_cwnd: u32,
    pub advmss: u32,
    pub reordering: u32,
    pub rcv_rtt: u32,
    pub rcv_space: u32,
    pub total_retrans: u32,
    pub pacing_rate: u64,
    pub max_pacing_rate: u64,
    pub bytes_acked: u64,
    pub bytes_received: u64,
    pub segs_out: u32,
    pub segs_in: u32,
    pub notsent_bytes: u32,
    pub min_rtt: u32,
    pub data_segs_in: u32,
    pub data_segs_out: u32,
    pub delivery_rate: u64,
    pub busy_time: u64,
    pub rwnd_limited: u64,
    pub sndbuf_limited: u64,
    pub delivered: u32,
    pub delivered_ce: u32,
    pub bytes_sent: u64,
    pub bytes_retrans: u64,
    pub dsack_dups: u32,
    pub reord_seen: u32,
    pub rcv_ooopack: u32,
    pub snd_wnd: u32,
    pub rcv_wnd: u32,
    pub rehash: u32,
    pub total_rto: u16,
    pub total_rto_recoveries: u16,
    pub total_rto_time: u32,
}

const _: () = assert!(size_of::<TcpInfo>() == 248);

/// Bits of `options` (linux/tcp.h TCPI_OPT_*).
const OPT_TIMESTAMPS: u8 = 1;
const OPT_SACK: u8 = 2;
const OPT_WSCALE: u8 = 4;
const OPT_ECN: u8 = 8;
const OPT_SYN_DATA: u8 = 32;

impl Stack<'_> {
    /// TCP_INFO of a connection or listener.
    ///
    /// # Errors
    /// [`Stale`].
    pub fn tcp_info(&self, id: EndpointId, now: Instant) -> Result<TcpInfo, Stale> {
        self.tcp_status(id)?;
        let tcb = self.tcbs.get(id.index as usize).ok_or(Stale)?;
        let mut info = TcpInfo::new_zeroed();
        info.note_state(tcb);
        info.note_path(tcb, now);
        info.note_counts(tcb);
        info.note_rates(tcb, now);
        Ok(info)
    }
}

impl TcpInfo {
    fn note_state(&mut self, tcb: &Tcb) {
        self.state = tcb.state;
        self.ca_state = tcb.ca_state;
        self.retransmits = if tcb.state() == TcpState::SynSent {
            tcb.syn_retries
        } else {
            tcb.retransmits
        };
        self.probes = tcb.probes_out;
        self.backoff = tcb.backoff;
        for (bit, option) in [
            (flag::TIMESTAMPS, OPT_TIMESTAMPS),
            (flag::SACK, OPT_SACK),
            (flag::SCALING, OPT_WSCALE),
            (flag::ECN, OPT_ECN),
        ] {
            if tcb.has(bit) {
                self.options |= option;
            }
        }
        if tcb.is_fast(fast::DATA_TAKEN) {
            self.options |= OPT_SYN_DATA;
        }
        self.wscale = tcb.snd_wscale & 15 | tcb.rcv_wscale << 4;
        self.rate_flags = u8::from(tcb.app_limited != 0) | (tcb.fast_failure() << 1) as u8;
        self.rto = tcb.backed_off_rto();
        self.ato = 40_000;
        self.snd_mss = u32::from(tcb.mss);
        self.rcv_mss = u32::from(tcb.rcv_mss);
        if tcb.state() == TcpState::Listen {
            self.unacked = tcb.accept_count;
            self.sacked = tcb.backlog;
        } else {
            self.unacked = tcb.packets_out;
            self.sacked = tcb.sacked_out;
        }
    }

    fn note_path(&mut self, tcb: &Tcb, now: Instant) {
        self.lost = tcb.lost_out;
        self.retrans = tcb.retrans_out;
        let since = |then_ms: u32| elapsed(millis(now), then_ms);
        self.last_data_sent_ms = since(tcb.last_sent_ms);
        self.last_data_recv_ms = since(tcb.last_data_ms);
        self.last_ack_recv_ms = since(tcb.last_received_ms);
        self.pmtu = u32::from(tcb.hop.mtu);
        self.rcv_ssthresh = tcb.options.rcvbuf_bytes / 2;
        self.rtt = tcb.srtt_us();
        self.rttvar = tcb.mdev4_us >> 2;
        self.min_rtt = tcb.min_rtt_us;
        self.snd_ssthresh = tcb.congestion.ssthresh.min(NO_THRESHOLD);
        self.snd_cwnd = tcb.congestion.cwnd;
        self.snd_wnd = tcb.snd_wnd;
        self.rcv_wnd = tcb.rcv_wnd;
        let stamps = if tcb.has(flag::TIMESTAMPS) { 12 } else { 0 };
        self.advmss = u32::from(tcb.advertised_mss).saturating_sub(stamps);
        self.reordering = u32::from(tcb.reordering);
        self.rcv_rtt = tcb.rcv_rtt_us;
        self.rcv_space = tcb.drs_space.max(tcb.options.rcvbuf_bytes / 2);
    }

    fn note_counts(&mut self, tcb: &Tcb) {
        self.total_retrans = tcb.total_retrans;
        self.bytes_acked = tcb.bytes_acked;
        self.bytes_received = tcb.bytes_received;
        self.segs_out = tcb.segs_out;
        self.segs_in = tcb.segs_in;
        self.notsent_bytes = distance(tcb.snd_nxt, tcb.write_seq);
        self.data_segs_in = tcb.data_segs_in;
        self.data_segs_out = tcb.data_segs_out;
        self.delivered = tcb.delivered;
        self.delivered_ce = tcb.delivered_ce;
        self.bytes_sent = tcb.bytes_sent;
        self.bytes_retrans = tcb.bytes_retrans;
        self.dsack_dups = tcb.dsack_dups;
        self.reord_seen = tcb.reord_seen;
        self.rcv_ooopack = tcb.rcv_ooopack;
    }

    fn note_rates(&mut self, tcb: &Tcb, now: Instant) {
        self.pacing_rate = tcb.pacing_rate().unwrap_or_else(|| tcb.nominal_rate());
        self.max_pacing_rate = tcb.options.max_pacing_rate;
        self.delivery_rate = u64::from(tcb.rate_delivered)
            .saturating_mul(u64::from(tcb.mss))
            .saturating_mul(1_000_000)
            .checked_div(u64::from(tcb.rate_interval_us))
            .unwrap_or(0);
        let [sending, window, buffer] = tcb.busy_until(micros(now));
        self.busy_time = sending.saturating_add(window).saturating_add(buffer);
        self.rwnd_limited = window;
        self.sndbuf_limited = buffer;
    }
}
