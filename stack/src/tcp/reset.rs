//! The TCP parts of an image as they are at first, and after the lock's owner has died inside an
//! update: connections whose books cannot be trusted are reset, at both ends.

use super::input::{Arrived, errno, length};
use super::mini::{self, Mini};
use super::notices::Places;
use super::pool::Pool;
use super::tcb::{Hop, Tcb, TcpState, flag};
use crate::counters::Counter;
use crate::image::{Endpoint, NONE, kind};
use crate::stack::Stack;
use crate::types::{Memory, SocketAddress};
use crate::wire::TxChecksum;
use crate::wire::tcp::{self, flags};
use zerocopy::FromZeros;

/// A reset that no connection of ours sends.
pub(crate) struct Reset {
    pub(crate) local: SocketAddress,
    pub(crate) remote: SocketAddress,
    pub(crate) hop: Hop,
    pub(crate) seq: u32,
    /// `None`: it acknowledges nothing.
    pub(crate) ack: Option<u32>,
}

impl Reset {
    /// To the sender of a segment that belongs to nothing (RFC 9293 section 3.10.7.1).
    pub(crate) fn answering(arrived: &Arrived<'_>) -> Self {
        let segment = arrived.segment;
        let (seq, ack) = if segment.flags & flags::ACK != 0 {
            (segment.ack, None)
        } else {
            (0, Some(segment.seq.wrapping_add(length(segment))))
        };
        Self {
            local: arrived.local(),
            remote: arrived.remote(),
            hop: arrived.hop(),
            seq,
            ack,
        }
    }
}

/// What a recovery sends a peer is taken at once when the peer has all that was sent, else it asks
/// back (RFC 5961 section 3.2) and is answered with the right number. It acknowledges nothing, so
/// that one to which the connection is not more than a SYN sends that again instead of giving up.
impl Reset {
    /// To the peer of a connection, unless it cannot know of it.
    fn of_connection(endpoint: &Endpoint, tcb: &Tcb) -> Option<Self> {
        let known = endpoint.kind == kind::TCP && tcb.state().is_synchronised();
        known.then(|| Self {
            local: SocketAddress::new(endpoint.local_ip, endpoint.local_port),
            remote: SocketAddress::new(endpoint.remote_ip, endpoint.remote_port),
            hop: tcb.hop,
            seq: tcb.snd_nxt,
            ack: None,
        })
    }

    /// To the sender of a SYN that was answered: for it the connection may stand.
    fn of_request(mini: &Mini) -> Option<Self> {
        (mini.kind == mini::kind::REQUEST).then(|| Self {
            local: mini.local(),
            remote: mini.remote(),
            hop: mini.hop,
            seq: mini.snd_nxt,
            ack: None,
        })
    }
}

impl Pool<'_> {
    /// Sends a reset, if there is memory for it.
    pub(crate) fn send_reset(&mut self, memory: &mut impl Memory, reset: &Reset) {
        let headers = tcp::Headers {
            source_mac: reset.hop.source_mac,
            destination_mac: reset.hop.mac,
            source: reset.local.ip,
            destination: reset.remote.ip,
            source_port: reset.local.port,
            destination_port: reset.remote.port,
            seq: reset.seq,
            ack: reset.ack.unwrap_or(0),
            flags: flags::RST | reset.ack.map_or(0, |_| flags::ACK),
            window: 0,
            urgent: 0,
            tos: 0,
            ttl: 64,
            ipv4_id: 0,
            options: tcp::Options::default(),
            checksum: TxChecksum::Whole,
        };
        self.count(Counter::TcpResetsSent);
        self.send_bare(memory, reset.hop.queue_pair, &headers);
    }
}

impl Stack<'_> {
    /// Sends a reset, if there is memory for it.
    pub(crate) fn send_reset(&mut self, memory: &mut impl Memory, reset: &Reset) {
        self.pool().send_reset(memory, reset);
    }

    /// Resets every connection at its peer, which may wait for an answer and would never hear that
    /// there is none. Before [`Stack::reset_tcp`], with the chunks and the transmit lists sound.
    pub(crate) fn reset_peers(&mut self, memory: &mut impl Memory) {
        for index in 0..self.tcbs.len() {
            let both = self.endpoints.get(index).zip(self.tcbs.get(index));
            if let Some(reset) =
                both.and_then(|(endpoint, tcb)| Reset::of_connection(endpoint, tcb))
            {
                self.send_reset(memory, &reset);
            }
        }
        // How many were used is the dead program's word.
        let used = self.minis.len().min(self.head.used_minis as usize);
        for index in 0..used {
            if let Some(reset) = self.minis.get(index).and_then(Reset::of_request) {
                self.send_reset(memory, &reset);
            }
        }
    }

    /// Empties wheel and lists, and counts no minisocket as used.
    pub(crate) fn begin_tcp(&mut self) {
        self.head.wheel.reset();
        self.head.flush_head = NONE;
        self.head.flow_changes.zero();
        self.head.ended.zero();
        self.head.notice_queues = Places::NEW;
        self.head.notices = Places::NEW;
        self.rebuild_ports();
        self.mini_buckets.fill(NONE);
        self.head.live_minis = 0;
        self.head.requests = 0;
        self.head.time_waits = 0;
        self.head.pressed = 0;
        self.head.pressed_listeners = [0; 64];
        self.head.is_crowded = 0;
        self.head.received_chunks = 0;
        self.head.retained_chunks = 0;
        self.head.free_mini = NONE;
        self.head.used_minis = 0;
        for slot in self.segments.iter_mut() {
            slot.zero();
            slot.owner = NONE;
        }
    }

    /// Empties wheel, lists and minisockets; connections end with ECONNRESET, listeners stay.
    pub(crate) fn reset_tcp(&mut self) {
        let used = self.head.used_minis as usize;
        self.begin_tcp();
        for mini in self.minis.iter_mut().take(used) {
            mini.kind = mini::kind::FREE;
        }
        for (tcb, endpoint) in self.tcbs.iter_mut().zip(self.endpoints.iter()) {
            let state = tcb.state();
            let options = tcb.options;
            let (backlog, edges) = (tcb.backlog, (tcb.in_edge, tcb.out_edge));
            let keys = (tcb.sacks, tcb.sack_count);
            tcb.flush_next = NONE;
            tcb.on_flush = 0;
            tcb.reset(options);
            if endpoint.kind != kind::TCP {
                continue;
            }
            tcb.backlog = backlog;
            tcb.in_edge = edges.0.wrapping_add(1);
            tcb.out_edge = edges.1.wrapping_add(1);
            if state == TcpState::Listen {
                tcb.state = TcpState::Listen as u8;
                // Those of its cookies.
                (tcb.sacks, tcb.sack_count) = keys;
            } else {
                tcb.set(flag::SEND_SHUT | flag::RECEIVE_SHUT | flag::RESET);
                tcb.error = errno::ECONNRESET;
            }
        }
    }

    /// Whether an endpoint stays in the tables after [`Stack::reset_tcp`].
    pub(crate) fn keeps_its_place(&self, index: u32) -> bool {
        let is_tcp = self
            .endpoints
            .get(index as usize)
            .is_some_and(|endpoint| endpoint.kind == kind::TCP);
        !is_tcp
            || self
                .tcbs
                .get(index as usize)
                .is_some_and(|tcb| tcb.state() == TcpState::Listen)
    }
}
