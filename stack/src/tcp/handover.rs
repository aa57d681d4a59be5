//! A connection that moves between two TCPs of one host, this one and the kernel's or another
//! stack's: what the next one needs to go on with it, and how it leaves without a word.
//!
//! What moves is a [`ConnectionRecord`] and three runs of bytes: sent and not acknowledged, written
//! and not sent, received and not read. What came out of order does not move: the peer still has it
//! (RFC 2018 section 8) and sends it again. FINs have no place among the bytes; the record says who
//! has ended.
//!
//! ```text
//!   copied_seq      rcv_nxt          snd_una        snd_nxt        write_seq
//!      |--- unread ---|                 |---- sent ----|--- unsent ----|
//! ```

use super::connection::{Connection, millis};
use super::input::TIMESTAMP_AGE_MS;
use super::mini;
use super::receive::Payload;
use super::seq::{before, distance};
use super::socket::{Span, TcpOpen};
use super::tcb::{Hop, TcpState, flag};
use crate::counters::Counter;
use crate::cplane::NextHop;
use crate::image::{chunk_state, kind};
use crate::stack::Stack;
use crate::types::{
    ChunkId, EndpointId, Family, Instant, IpAddress, Memory, ProcessId, QUEUE_PAIR_HAIRPIN,
    SocketAddress, Stale, has_bit,
};
use crate::udp::OpenError;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// How long segments of a connection that has left are dropped without an answer: those that were
/// in a ring when its steering ended.
const LEFT_NS: u64 = 2_000_000_000;

/// A connection without its bytes and without its options. Plain data, native-endian: it never
/// leaves the host. Sequence numbers do not count FINs; windows are in bytes, unscaled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub struct ConnectionRecord {
    /// Our address (byte 0), IPv4 as v4-mapped.
    pub local_ip: IpAddress,
    /// The peer's (byte 16).
    pub remote_ip: IpAddress,
    /// Our port (byte 32), host order.
    pub local_port: u16,
    /// The peer's (byte 34).
    pub remote_port: u16,
    /// Bits (byte 36): [`ConnectionRecord::TIMESTAMPS`] and the others.
    pub flags: u32,
    /// First byte that the peer has not acknowledged (byte 40).
    pub snd_una: u32,
    /// End of what was sent (byte 44).
    pub snd_nxt: u32,
    /// End of what the program has written (byte 48).
    pub write_seq: u32,
    /// The segment that told the window (byte 52, RFC 9293 SND.WL1).
    pub snd_wl1: u32,
    /// The peer's window (byte 56).
    pub snd_wnd: u32,
    /// The largest that it has told (byte 60).
    pub max_window: u32,
    /// First byte that the program has not read (byte 64).
    pub copied_seq: u32,
    /// End of what has come in order (byte 68).
    pub rcv_nxt: u32,
    /// `rcv_nxt` when our window was told (byte 72).
    pub rcv_wup: u32,
    /// The window that was told then (byte 76).
    pub rcv_wnd: u32,
    /// Our timestamp clock now, milliseconds (byte 80); no segment has had a later one.
    pub ts_value: u32,
    /// The peer's latest timestamp, 0 = unknown (byte 84).
    pub ts_recent: u32,
    /// The peer's MSS as bounded by the path and TCP_MAXSEG (byte 88).
    pub mss_clamp: u16,
    /// The MSS that we have told (byte 90).
    pub advertised_mss: u16,
    /// Shift of the peer's windows (byte 92), and of ours (byte 93).
    pub snd_wscale: u8,
    /// See above.
    pub rcv_wscale: u8,
    /// [`TcpState`] (byte 94).
    pub state: u8,
    /// [`Family`] of the socket (byte 95).
    pub family: u8,
    /// Smoothed round-trip time in microseconds, 0 = unknown (byte 96).
    pub srtt_us: u32,
    /// Interface by which its segments come (byte 100), for link-local addresses.
    pub ifindex: u32,
}

const _: () = assert!(size_of::<ConnectionRecord>() == 104);

impl ConnectionRecord {
    /// Timestamps were negotiated.
    pub const TIMESTAMPS: u32 = flag::TIMESTAMPS;
    /// Selective acknowledgements were negotiated.
    pub const SACK: u32 = flag::SACK;
    /// Window scaling was negotiated.
    pub const SCALING: u32 = flag::SCALING;
    /// ECN was negotiated.
    pub const ECN: u32 = flag::ECN;
    /// The program has said that it sends no more: a FIN follows `write_seq`.
    pub const SEND_SHUT: u32 = flag::SEND_SHUT;
    /// The program has said that it receives no more.
    pub const RECEIVE_SHUT: u32 = flag::RECEIVE_SHUT;
    /// The peer's FIN has come behind `rcv_nxt`.
    pub const FIN_RECEIVED: u32 = flag::FIN_RECEIVED;
    /// Our FIN was sent behind all data, and perhaps acknowledged.
    pub const FIN_SENT: u32 = flag::FIN_QUEUED;

    const KEPT: u32 = Self::TIMESTAMPS
        | Self::SACK
        | Self::SCALING
        | Self::ECN
        | Self::SEND_SHUT
        | Self::RECEIVE_SHUT
        | Self::FIN_RECEIVED;

    /// Whether one of the bits is set.
    #[must_use]
    pub const fn has(&self, bits: u32) -> bool {
        self.flags & bits != 0
    }

    /// Our end.
    #[must_use]
    pub const fn local(&self) -> SocketAddress {
        SocketAddress::new(self.local_ip, self.local_port)
    }

    /// The peer's end.
    #[must_use]
    pub const fn remote(&self) -> SocketAddress {
        SocketAddress::new(self.remote_ip, self.remote_port)
    }

    /// Which packets its socket takes.
    #[must_use]
    pub fn family(&self) -> Family {
        Family::from_byte(self.family)
    }
}

/// Why a connection cannot move now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CannotMove {
    /// There is none: the endpoint is gone, listens, or its connection has ended.
    NoConnection,
    /// The handshake is not over.
    Handshake,
    /// No room to remember that it has left.
    Full,
}

impl From<Stale> for CannotMove {
    fn from(_: Stale) -> Self {
        Self::NoConnection
    }
}

/// The other end of a connection of this stack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Twin {
    /// Its endpoint.
    pub endpoint: EndpointId,
    /// Nobody has it any more.
    pub is_orphan: bool,
    /// Who has it.
    holders: [u64; 2],
}

impl Twin {
    /// Whether a process holds it.
    #[must_use]
    pub fn is_held_by(&self, process: ProcessId) -> bool {
        has_bit(&self.holders, process.0)
    }
}

/// A run of bytes of a connection that moves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// Written: sent and not acknowledged, then not sent.
    Written,
    /// Received in order and not read.
    Unread,
}

/// The bytes that a connection comes with.
#[derive(Clone, Copy, Debug, Default)]
pub struct Cargo<'a> {
    /// Sent and not acknowledged.
    pub sent: &'a [u8],
    /// Written and not sent.
    pub unsent: &'a [u8],
    /// Received and not read.
    pub unread: &'a [u8],
}

impl Stack<'_> {
    /// What the next TCP needs to know of a connection. Nothing changes.
    ///
    /// # Errors
    /// [`CannotMove::NoConnection`], [`CannotMove::Handshake`].
    pub fn tcp_record(&self, id: EndpointId, now: Instant) -> Result<ConnectionRecord, CannotMove> {
        let endpoint = self.endpoint(id)?;
        let tcb = self.tcbs.get(id.index as usize).ok_or(Stale)?;
        if endpoint.kind != kind::TCP {
            return Err(CannotMove::NoConnection);
        }
        match tcb.state() {
            TcpState::SynSent | TcpState::SynReceived => return Err(CannotMove::Handshake),
            TcpState::Listen | TcpState::Closed | TcpState::TimeWait => {
                return Err(CannotMove::NoConnection);
            }
            // Closed before the answer to its SYN-ACK has come.
            _ if tcb.is_early() => return Err(CannotMove::Handshake),
            _ => {}
        }
        let fin = u32::from(tcb.has(flag::FIN_RECEIVED));
        let written = |seq: u32| {
            if before(tcb.write_seq, seq) {
                tcb.write_seq
            } else {
                seq
            }
        };
        let rcv_nxt = tcb.rcv_nxt.wrapping_sub(fin);
        // The end of the window that was told stays where it is.
        let told_fin = u32::from(before(rcv_nxt, tcb.rcv_wup));
        let fin_sent = if before(tcb.write_seq, tcb.snd_nxt) {
            ConnectionRecord::FIN_SENT
        } else {
            0
        };
        Ok(ConnectionRecord {
            local_ip: endpoint.local_ip,
            remote_ip: endpoint.remote_ip,
            local_port: endpoint.local_port,
            remote_port: endpoint.remote_port,
            flags: tcb.flags & ConnectionRecord::KEPT | fin_sent,
            snd_una: written(tcb.snd_una),
            snd_nxt: written(tcb.snd_nxt),
            write_seq: tcb.write_seq,
            snd_wl1: tcb.snd_wl1,
            snd_wnd: tcb.snd_wnd,
            max_window: tcb.max_window.max(tcb.snd_wnd),
            copied_seq: rcv_nxt.wrapping_sub(tcb.rx_bytes),
            rcv_nxt,
            rcv_wup: tcb.rcv_wup.wrapping_sub(told_fin),
            rcv_wnd: tcb.rcv_wnd.saturating_add(told_fin),
            ts_value: millis(now).wrapping_add(tcb.ts_offset),
            ts_recent: tcb.ts_recent,
            mss_clamp: tcb.mss_clamp,
            advertised_mss: tcb.advertised_mss,
            snd_wscale: tcb.snd_wscale,
            rcv_wscale: tcb.rcv_wscale,
            state: tcb.state,
            family: endpoint.family,
            srtt_us: tcb.srtt_us(),
            ifindex: tcb.hop.ifindex,
        })
    }

    /// The other end of a connection, when that is in this stack too: both move or none does.
    ///
    /// # Errors
    /// As [`Stack::tcp_record`]; [`CannotMove::Handshake`] also while nobody has accepted the other
    /// end.
    pub fn tcp_twin(&self, id: EndpointId, now: Instant) -> Result<Option<Twin>, CannotMove> {
        let record = self.tcp_record(id, now)?;
        let (local, remote) = (record.local(), record.remote());
        let Some(index) = self.find_connection(&remote, &local) else {
            let mini = self.find_mini(&remote, &local);
            let mini = mini.and_then(|mini| self.minis.get(mini as usize));
            return match mini.is_some_and(|mini| mini.kind == mini::kind::REQUEST) {
                true => Err(CannotMove::Handshake),
                false => Ok(None),
            };
        };
        let slot = index as usize;
        let generation = self.endpoints.get(slot).ok_or(Stale)?.generation;
        let tcb = self.tcbs.get(slot).ok_or(Stale)?;
        let twin = Twin {
            endpoint: EndpointId { index, generation },
            is_orphan: tcb.has(flag::ORPHAN),
            holders: self.holders_of(index),
        };
        match self.tcp_record(twin.endpoint, now) {
            _ if twin.endpoint == id => Ok(None),
            Err(CannotMove::NoConnection) => Ok(None),
            Err(why) => Err(why),
            Ok(_) if tcb.has(flag::ACCEPTABLE) => Err(CannotMove::Handshake),
            Ok(_) => Ok(Some(twin)),
        }
    }

    /// Calls `each` with the stretches of a part, in order of sequence numbers.
    ///
    /// # Errors
    /// [`Stale`].
    pub fn tcp_part(
        &self,
        id: EndpointId,
        part: Part,
        each: &mut dyn FnMut(Span),
    ) -> Result<(), Stale> {
        self.endpoint(id)?;
        let tcb = self.tcbs.get(id.index as usize).ok_or(Stale)?;
        let mut chunk = match part {
            Part::Written => tcb.queue_head,
            Part::Unread => tcb.rx_head,
        };
        for _ in 0..self.segments.len() {
            let slot = self.segments.get(chunk as usize);
            let Some(slot) = slot.filter(|slot| slot.owner == id.index) else {
                break;
            };
            if slot.len > 0 {
                each(Span {
                    chunk: ChunkId(chunk),
                    offset: u32::from(slot.offset),
                    len: u32::from(slot.len),
                });
            }
            chunk = slot.next;
        }
        Ok(())
    }

    /// Whether so many connections could leave now ([`Stack::tcp_leave`]).
    #[must_use]
    pub fn tcp_may_leave(&self, count: u32) -> bool {
        let kept = self.head.live_minis.saturating_sub(self.head.time_waits);
        kept.saturating_add(count) as usize <= self.minis.len()
    }

    /// The connection has moved: its endpoint ends for every holder, without a word to the peer,
    /// and so does its steering. Its segments that are still on their way here are dropped and not
    /// answered. Whoever waits for it is woken.
    ///
    /// # Errors
    /// As [`Stack::tcp_record`], and [`CannotMove::Full`]: nothing has changed.
    pub fn tcp_leave(&mut self, id: EndpointId, now: Instant) -> Result<(), CannotMove> {
        let record = self.tcp_record(id, now)?;
        let (local, remote) = (record.local(), record.remote());
        if !self.tcp_keep_out(local, remote, now) {
            return Err(CannotMove::Full);
        }
        if let Some(mut connection) = self.connection(id.index) {
            connection.finish(0);
            connection.tcb.set(flag::ORPHAN);
            connection.tcb.clear(flag::CLOSE_DUE);
        }
        self.clear_holders(id.index);
        self.port_leaves(id.index);
        self.flow_ended(local, remote);
        self.count(Counter::TcpHandedOver);
        self.settle(id.index, now);
        Ok(())
    }

    /// Segments of a connection that the kernel has are dropped and not answered for a while, if
    /// some come here ([`Stack::tcp_import`] ends that). False when there is no room.
    #[must_use]
    pub fn tcp_keep_out(
        &mut self,
        local: SocketAddress,
        remote: SocketAddress,
        now: Instant,
    ) -> bool {
        let old = self.find_mini(&local, &remote);
        let Some(mini) = old.or_else(|| self.add_mini(mini::kind::LEFT, local, remote, now)) else {
            return false;
        };
        let deadline = now.0.saturating_add(LEFT_NS);
        match self.minis.get_mut(mini as usize) {
            Some(entry) if entry.kind == mini::kind::LEFT => entry.deadline = deadline,
            _ => return false,
        }
        self.arm(mini | super::wheel::MINI, deadline, now);
        true
    }

    /// A connection comes with its bytes: an endpoint goes on with it. What it has sent counts as
    /// sent now, and is sent again only when the peer does not acknowledge it.
    ///
    /// # Errors
    /// [`OpenError::InUse`] when its addresses are, [`OpenError::Full`] also for want of packet
    /// memory, [`OpenError::NoProcess`]: nothing has changed.
    pub fn tcp_import(
        &mut self,
        memory: &mut impl Memory,
        open: &TcpOpen,
        (record, cargo): (&ConnectionRecord, Cargo<'_>),
        via: &NextHop,
        now: Instant,
    ) -> Result<EndpointId, OpenError> {
        let (local, remote) = (record.local(), record.remote());
        if self.find_connection(&local, &remote).is_some() {
            return Err(OpenError::InUse);
        }
        let old = self.find_mini(&local, &remote);
        let has_left = |mini: u32| {
            let mini = self.minis.get(mini as usize);
            mini.is_some_and(|mini| mini.kind == mini::kind::LEFT)
        };
        if old.is_some_and(|mini| !has_left(mini)) {
            return Err(OpenError::InUse);
        }
        let id = self.tcp_open(&TcpOpen { local, ..*open })?;
        if let Some(endpoint) = self.endpoints.get_mut(id.index as usize) {
            endpoint.remote_ip = remote.ip;
            endpoint.remote_port = remote.port;
            endpoint.connected = 1;
        }
        let taken = self
            .connection(id.index)
            .is_some_and(|mut connection| connection.resume(memory, record, cargo, via, now));
        if !taken {
            if let Some(mut connection) = self.connection(id.index) {
                connection.drop_receive_queue();
                connection.drop_send_queue();
            }
            self.destroy(id);
            return Err(OpenError::Full);
        }
        if let Some(mini) = old {
            self.remove_mini(mini);
        }
        self.link_endpoint(id.index);
        self.flow_begins(local, remote);
        if let Some(mut connection) = self.connection(id.index) {
            connection.go_on(memory, record, now);
        }
        self.settle(id.index, now);
        Ok(id)
    }
}

impl Connection<'_> {
    /// Numbers, windows and bytes as the record has them; `false`: no room.
    fn resume(
        &mut self,
        memory: &mut impl Memory,
        record: &ConnectionRecord,
        cargo: Cargo<'_>,
        via: &NextHop,
        now: Instant,
    ) -> bool {
        let negotiated = ConnectionRecord::TIMESTAMPS
            | ConnectionRecord::SACK
            | ConnectionRecord::SCALING
            | ConnectionRecord::ECN;
        let tcb = &mut *self.tcb;
        tcb.state = TcpState::Established as u8;
        tcb.flags = record.flags & negotiated;
        tcb.hop = Hop::of(via);
        tcb.mss_clamp = record.mss_clamp;
        tcb.advertised_mss = record.advertised_mss;
        tcb.snd_wscale = record.snd_wscale.min(14);
        tcb.rcv_wscale = record.rcv_wscale.min(14);
        tcb.iss = record.snd_una.wrapping_sub(1);
        tcb.irs = record.copied_seq.wrapping_sub(1);
        tcb.rcv_nxt = record.copied_seq;
        tcb.copied_seq = record.copied_seq;
        tcb.drs_seq = record.copied_seq;
        tcb.ts_offset = record.ts_value.wrapping_sub(millis(now));
        tcb.ts_recent = record.ts_recent;
        // What is not known is old, and whatever the peer says next is newer.
        let age = if record.ts_recent == 0 {
            TIMESTAMP_AGE_MS
        } else {
            0
        };
        tcb.ts_recent_ms = millis(now).wrapping_sub(age);
        let told = record.advertised_mss;
        self.start(record.snd_una, now);
        self.tcb.advertised_mss = told;
        let tcb = &mut *self.tcb;
        tcb.snd_wl1 = record.snd_wl1;
        tcb.snd_wnd = record.snd_wnd;
        tcb.max_window = record.max_window;
        if record.srtt_us != 0 {
            tcb.sample_rtt(record.srtt_us, millis(now));
        }
        if !self.bring(memory, cargo.sent) {
            return false;
        }
        self.count_as_sent(now);
        if !self.bring(memory, cargo.unsent) || !self.bring_unread(memory, cargo.unread, now) {
            return false;
        }
        self.tcb.rcv_wup = record.rcv_wup;
        self.tcb.rcv_wnd = record.rcv_wnd;
        self.tcb.rcv_edge = record.rcv_wup.wrapping_add(record.rcv_wnd);
        let sound = self.tcb.snd_nxt == record.snd_nxt
            && self.tcb.write_seq == record.write_seq
            && self.tcb.rcv_nxt == record.rcv_nxt;
        sound && distance(record.rcv_wup, record.rcv_nxt) <= record.rcv_wnd
    }

    /// Puts bytes on the send queue; `false`: not all of them.
    fn bring(&mut self, memory: &mut impl Memory, bytes: &[u8]) -> bool {
        let mut rest = bytes;
        let mut fill = |to: &mut [u8]| {
            let (now, later) = rest.split_at_checked(to.len()).unwrap_or_default();
            if now.len() == to.len() {
                to.copy_from_slice(now);
            }
            rest = later;
        };
        self.append(memory, bytes.len(), &mut fill) == bytes.len()
    }

    /// Everything on the send queue was sent, by whoever had the connection.
    fn count_as_sent(&mut self, now: Instant) {
        for _ in 0..self.pool.chunks.len() {
            let chunk = self.tcb.unsent;
            let Some(&slot) = self.segment(chunk) else {
                break;
            };
            self.note_sent(chunk, now);
            self.tcb.packets_out = self.tcb.packets_out.saturating_add(1);
            self.tcb.unsent = slot.next;
            self.tcb.snd_nxt = slot.end();
            if slot.len < self.tcb.mss {
                self.tcb.snd_sml = slot.end();
            }
        }
        if self.tcb.packets_out > 0 {
            self.tcb.stuck_since = now.0;
            self.arm_rto(now);
        }
    }

    /// Puts bytes on the receive queue; `false`: not all of them.
    fn bring_unread(&mut self, memory: &mut impl Memory, bytes: &[u8], now: Instant) -> bool {
        let size = memory.chunk_size().min(usize::from(u16::MAX)).max(1);
        for piece in bytes.chunks(size) {
            if self
                .pool
                .receive_room(self.tcb.rx_chunks, self.tcb.rx_chunks)
                == 0
            {
                return false;
            }
            let Some(chunk) = self.pool.take(chunk_state::POSTED) else {
                return false;
            };
            if let Some(slot) = self.pool.chunks.get_mut(chunk.0 as usize) {
                slot.timestamp_ns = 0;
                slot.queue_pair = QUEUE_PAIR_HAIRPIN;
            }
            if let Some(to) = memory.chunk_mut(chunk).get_mut(..piece.len()) {
                to.copy_from_slice(piece);
            }
            let payload = Payload {
                chunk: chunk.0,
                offset: 0,
                len: piece.len() as u16,
                seq: self.tcb.rcv_nxt,
                fin: false,
            };
            if !self.take_in_order(memory, payload, now) {
                self.pool.free(chunk.0);
            }
        }
        true
    }

    /// Ends of directions, and what may leave now.
    fn go_on(&mut self, memory: &mut impl Memory, record: &ConnectionRecord, now: Instant) {
        if record.has(ConnectionRecord::FIN_RECEIVED) {
            self.take_fin(now);
        }
        if record.has(ConnectionRecord::RECEIVE_SHUT) {
            self.tcb.set(flag::RECEIVE_SHUT);
        }
        if record.has(ConnectionRecord::SEND_SHUT) {
            self.send_fin(memory, now);
            if record.has(ConnectionRecord::FIN_SENT) {
                // The peer may have acknowledged it already, whatever the congestion window says.
                self.count_as_sent(now);
            }
        } else {
            self.output(memory, now, false);
        }
        // The peer hears of the new owner, and tells its window.
        self.tcb.set(flag::ACK_NOW);
    }
}
