//! The calls of the socket layer: listen, connect, accept, send, receive, shut down, close.

use super::connection::Connection;
use super::input::errno;
use super::listen::window_scale;
use super::mini;
use super::options::TcpOptions;
use super::pool::mark;
use super::send_buffer::SendBuffer;
use super::tcb::{Hop, TcpState, fast, flag};
use crate::counters::Counter;
use crate::cplane::NextHop;
use crate::image::{NONE, kind};
use crate::readiness::{Readiness, event};
use crate::stack::Stack;
use crate::types::{
    ChunkId, EndpointId, Family, Instant, IpAddress, Memory, ProcessId, QUEUE_PAIR_HAIRPIN,
    SocketAddress, Stale,
};
use crate::udp::OpenError;

/// What [`Stack::tcp_listen`] and [`Stack::tcp_connect`] need.
#[derive(Clone, Copy, Debug)]
pub struct TcpOpen {
    /// Which packets it takes.
    pub family: Family,
    /// Local address. A connection needs a specific one with a port.
    pub local: SocketAddress,
    /// First holder.
    pub process: ProcessId,
    /// Options.
    pub options: TcpOptions,
    /// The shadow socket's SO_COOKIE, for tools.
    pub shadow_cookie: u64,
    /// SO_BINDTODEVICE's interface, or 0.
    pub ifindex: u32,
}

/// Why a call on a TCP endpoint did nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TcpError {
    /// The endpoint does not exist any more.
    Stale,
    /// Not now: wait until it is ready.
    WouldBlock,
    /// Linux's errno for the program.
    Errno(i32),
}

impl From<Stale> for TcpError {
    fn from(_: Stale) -> Self {
        Self::Stale
    }
}

/// Which direction [`Stack::tcp_shutdown`] ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shutdown {
    /// SHUT_RD.
    Read,
    /// SHUT_WR.
    Write,
    /// SHUT_RDWR.
    Both,
}

/// What stands behind the bytes of a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ending {
    /// Nothing: they may leave.
    Push,
    /// Nothing, and more calls: they may leave with the next flush.
    Later,
    /// More bytes soon (MSG_MORE).
    More,
    /// The last one is urgent (MSG_OOB).
    Urgent,
}

/// Contiguous bytes of a receive queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// Chunk that holds them.
    pub chunk: ChunkId,
    /// Bytes from the start of the chunk.
    pub offset: u32,
    /// How many.
    pub len: u32,
}

/// What a TCP endpoint looks like from outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TcpStatus {
    /// Its state.
    pub state: TcpState,
    /// Local address.
    pub local: SocketAddress,
    /// Remote address; unspecified for a listener.
    pub remote: SocketAddress,
    /// Bytes to read in order; FIONREAD says none of them at the urgent mark.
    pub readable: u32,
    /// Bytes sent or written and not acknowledged (SIOCOUTQ).
    pub unacked: u32,
    /// Bytes written and not sent (SIOCOUTQNSD).
    pub unsent: u32,
    /// Bytes that a write surely takes now.
    pub send_space: u32,
    /// Pending error, 0 = none.
    pub error: i32,
    /// Nothing more will come: FIN, reset or SHUT_RD.
    pub eof: bool,
    /// The peer has sent its FIN.
    pub peer_fin: bool,
    /// The program sends no more.
    pub send_shut: bool,
    /// Connections to accept.
    pub accept_queue: u32,
    /// The filter that feeds it, 0 = none.
    pub filter: u32,
    /// Which packets it takes.
    pub family: Family,
    /// Its SYN waits for the first write ([`Stack::tcp_send_first`]).
    pub deferred: bool,
}

/// What a TCP endpoint looks like to who reads from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TcpInput {
    /// Its state.
    pub state: TcpState,
    /// As [`TcpStatus::readable`].
    pub readable: u32,
    /// As [`TcpStatus::error`].
    pub error: i32,
    /// As [`TcpStatus::eof`].
    pub eof: bool,
    /// As [`TcpStatus::peer_fin`].
    pub peer_fin: bool,
}

/// An endpoint that is gone for good after its close.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ended {
    /// Its filter, which may go now.
    pub filter: u32,
}

impl Stack<'_> {
    /// The host's settings, for the owner of the image to fill in.
    pub fn tcp_defaults_mut(&mut self) -> &mut super::TcpDefaults {
        &mut self.head.tcp_defaults
    }

    /// The host's settings.
    #[must_use]
    pub fn tcp_defaults(&self) -> &super::TcpDefaults {
        &self.head.tcp_defaults
    }

    #[inline]
    pub(super) fn tcp_index(&self, id: EndpointId) -> Result<u32, Stale> {
        match self.endpoints.get(id.index as usize) {
            Some(found) if found.generation == id.generation && found.kind == kind::TCP => {
                Ok(id.index)
            }
            _ => Err(Stale),
        }
    }

    #[inline]
    pub(super) fn tcp(&mut self, id: EndpointId) -> Result<Connection<'_>, Stale> {
        match self.connection(id.index) {
            Some(found) if found.endpoint.generation == id.generation => Ok(found),
            _ => Err(Stale),
        }
    }

    /// Opens an endpoint that is closed: it holds a place, so that its steering can be prepared
    /// before [`Stack::tcp_start`] sends the SYN.
    ///
    /// # Errors
    /// [`OpenError::Full`], [`OpenError::NoProcess`], [`OpenError::Resting`].
    pub fn tcp_open(&mut self, open: &TcpOpen) -> Result<EndpointId, OpenError> {
        self.may_open(open.process)?;
        let index = self.take_endpoint(kind::TCP).ok_or(OpenError::Full)?;
        let endpoint = self
            .endpoints
            .get_mut(index as usize)
            .ok_or(OpenError::Full)?;
        endpoint.family = open.family as u8;
        endpoint.ifindex = open.ifindex;
        endpoint.local_ip = open.local.ip;
        endpoint.local_port = open.local.port;
        endpoint.shadow_cookie = open.shadow_cookie;
        let generation = endpoint.generation;
        self.set_holder(index, open.process, true);
        if let Some(tcb) = self.tcbs.get_mut(index as usize) {
            tcb.reset(open.options);
        }
        Ok(EndpointId { index, generation })
    }

    /// Opens a listener.
    ///
    /// # Errors
    /// [`OpenError::Full`], [`OpenError::NoProcess`], [`OpenError::Resting`].
    pub fn tcp_listen(&mut self, open: &TcpOpen, backlog: u32) -> Result<EndpointId, OpenError> {
        let id = self.tcp_open(open)?;
        if let Some(tcb) = self.tcbs.get_mut(id.index as usize) {
            tcb.state = TcpState::Listen as u8;
            tcb.backlog = backlog;
        }
        self.link_endpoint(id.index);
        Ok(id)
    }

    /// Changes a listener's backlog (listen(2) again).
    ///
    /// # Errors
    /// [`Stale`].
    pub fn tcp_backlog(&mut self, id: EndpointId, backlog: u32) -> Result<(), Stale> {
        self.tcp(id)?.tcb.backlog = backlog;
        Ok(())
    }

    /// Opens a connection: its SYN is on the transmit list.
    ///
    /// # Errors
    /// [`OpenError::InUse`] when the 4-tuple is taken, and as [`Stack::tcp_listen`].
    pub fn tcp_connect(
        &mut self,
        memory: &mut impl Memory,
        open: &TcpOpen,
        remote: SocketAddress,
        via: &NextHop,
        now: Instant,
    ) -> Result<EndpointId, OpenError> {
        let id = self.tcp_open(open)?;
        if let Err(error) = self.tcp_start(memory, id, remote, via, now) {
            self.destroy(id);
            return Err(error);
        }
        Ok(id)
    }

    /// Whether no connection has this 4-tuple, not even one in TIME_WAIT.
    #[must_use]
    pub fn tcp_is_free(&self, local: SocketAddress, remote: SocketAddress) -> bool {
        self.find_connection(&local, &remote).is_none() && self.find_mini(&local, &remote).is_none()
    }

    /// Connects a closed endpoint from its local address: its SYN is on the transmit list, or with
    /// TCP_FASTOPEN_CONNECT waits for the first write.
    ///
    /// # Errors
    /// [`OpenError::InUse`] when the 4-tuple is taken, also by a TIME_WAIT without timestamps;
    /// [`OpenError::NoProcess`] when the endpoint is gone or was connected before; it stays as it
    /// was.
    pub fn tcp_start(
        &mut self,
        memory: &mut impl Memory,
        id: EndpointId,
        remote: SocketAddress,
        via: &NextHop,
        now: Instant,
    ) -> Result<(), OpenError> {
        self.prepare(id, remote, via, now)?;
        if let Some(mut connection) = self.connection(id.index) {
            if connection.tcb.options.has(TcpOptions::FAST_OPEN_CONNECT) {
                connection.begin_fast_connect(memory, now);
            } else {
                connection.send_syn(memory, None, now);
                connection.arm_rto(now);
            }
        }
        self.settle(id.index, now);
        Ok(())
    }

    /// A connection whose SYN is still to be sent.
    ///
    /// # Errors
    /// As [`Stack::tcp_start`].
    pub(super) fn prepare(
        &mut self,
        id: EndpointId,
        remote: SocketAddress,
        via: &NextHop,
        now: Instant,
    ) -> Result<(), OpenError> {
        let connection = self.tcp(id).map_err(|Stale| OpenError::NoProcess)?;
        if connection.tcb.state() != TcpState::Closed || connection.endpoint.connected != 0 {
            return Err(OpenError::NoProcess);
        }
        let local =
            SocketAddress::new(connection.endpoint.local_ip, connection.endpoint.local_port);
        if self.find_connection(&local, &remote).is_some() {
            return Err(OpenError::InUse);
        }
        let iss = self.initial_number(local, remote, now)?;
        let clock_key = self.timestamp_key();
        let defaults = self.head.tcp_defaults;
        let index = id.index;
        if let Some(endpoint) = self.endpoints.get_mut(index as usize) {
            endpoint.remote_ip = remote.ip;
            endpoint.remote_port = remote.port;
            endpoint.connected = 1;
        }
        if let Some(tcb) = self.tcbs.get_mut(index as usize) {
            tcb.state = TcpState::SynSent as u8;
            tcb.hop = Hop::of(via);
            tcb.iss = iss;
            tcb.ts_offset = super::secret::timestamp_offset(&clock_key, local, remote);
            tcb.snd_una = tcb.iss;
            tcb.snd_nxt = tcb.iss.wrapping_add(1);
            tcb.write_seq = tcb.snd_nxt;
            tcb.stuck_since = now.0;
            tcb.set(flag::CONNECTING);
            for (on, bit) in [
                (defaults.timestamps, flag::TIMESTAMPS),
                (defaults.sack, flag::SACK),
                (defaults.window_scaling, flag::SCALING),
                (u8::from(defaults.ecn == 1), flag::ECN),
            ] {
                if on != 0 {
                    tcb.set(bit);
                }
            }
            if tcb.has(flag::SCALING) {
                let locked = tcb.options.has(TcpOptions::RCVBUF_LOCKED);
                let most = tcb.options.rcvbuf_bytes;
                tcb.rcv_wscale = window_scale(if locked {
                    most
                } else {
                    most.max(defaults.rmem[2])
                });
            }
            let header = if remote.ip.is_v4() { 40 } else { 60 };
            tcb.advertised_mss = via.mtu.saturating_sub(header).max(64);
            if tcb.options.max_seg != 0 {
                tcb.advertised_mss = tcb.advertised_mss.min(tcb.options.max_seg);
            }
        }
        self.link_endpoint(index);
        self.flow_begins(local, remote);
        self.count(Counter::TcpActiveOpens);
        Ok(())
    }

    /// The number that a connection begins with. In the place of a time wait, which ends, it is
    /// behind what that one has sent; only with timestamps, by which the peer can tell its segments
    /// from old ones (RFC 6191; net/ipv4/tcp_ipv4.c:tcp_twsk_unique for a port that was bound).
    fn initial_number(
        &mut self,
        local: SocketAddress,
        remote: SocketAddress,
        now: Instant,
    ) -> Result<u32, OpenError> {
        let Some(index) = self.find_mini(&local, &remote) else {
            let key = self.secret_key();
            return Ok(super::secret::isn(&key, local, remote, now.0));
        };
        let mini = self.minis.get(index as usize);
        let mini = mini.filter(|mini| mini.kind == mini::kind::TIME_WAIT);
        let mini = mini.filter(|mini| mini.has(flag::TIMESTAMPS));
        let after = mini.ok_or(OpenError::InUse)?.snd_nxt;
        self.end_time_wait(index);
        Ok(after.wrapping_add(65_535 + 2))
    }

    /// Takes the first connection off a listener's accept queue, for `process` to hold.
    ///
    /// # Errors
    /// [`Stale`].
    pub fn tcp_accept(
        &mut self,
        listener: EndpointId,
        process: ProcessId,
        shadow_cookie: u64,
    ) -> Result<Option<EndpointId>, Stale> {
        let index = self.tcp_index(listener)?;
        let Some(tcb) = self.tcbs.get(index as usize) else {
            return Err(Stale);
        };
        let child = tcb.accept_head;
        if child == NONE || tcb.state() != TcpState::Listen {
            return Ok(None);
        }
        let next = match self.tcbs.get_mut(child as usize) {
            Some(tcb) if tcb.has(flag::ACCEPTABLE) => {
                tcb.clear(flag::ACCEPTABLE);
                core::mem::replace(&mut tcb.accept_next, NONE)
            }
            _ => {
                self.count(Counter::CorruptList);
                NONE
            }
        };
        if let Some(tcb) = self.tcbs.get_mut(index as usize) {
            tcb.accept_head = next;
            tcb.accept_count = tcb.accept_count.saturating_sub(1);
            if next == NONE {
                tcb.accept_tail = NONE;
                tcb.accept_count = 0;
            }
        }
        let Some(endpoint) = self.endpoints.get_mut(child as usize) else {
            return Ok(None);
        };
        if endpoint.kind != kind::TCP {
            return Ok(None);
        }
        endpoint.shadow_cookie = shadow_cookie;
        let generation = endpoint.generation;
        self.set_holder(child, process, true);
        Ok(Some(EndpointId {
            index: child,
            generation,
        }))
    }

    /// Queues up to `len` bytes. `fill` is called with successive pieces to write to; `more` says
    /// that more follows (MSG_MORE). Returns how many bytes were taken, at least one unless `len`
    /// is zero.
    ///
    /// # Errors
    /// [`TcpError::WouldBlock`] when there is no room or the connection is being made;
    /// [`TcpError::Errno`]: the pending error, EPIPE, ENOTCONN.
    pub fn tcp_send(
        &mut self,
        memory: &mut impl Memory,
        id: EndpointId,
        len: usize,
        more: bool,
        fill: &mut dyn FnMut(&mut [u8]),
        now: Instant,
    ) -> Result<usize, TcpError> {
        let how = if more { Ending::More } else { Ending::Push };
        self.send_bytes(memory, id, (len, how), fill, now)
    }

    /// As [`Stack::tcp_send`], but what may leave does so with the next [`Stack::flush`]: what is
    /// written until then shares its segments, and its ACKs.
    ///
    /// # Errors
    /// As [`Stack::tcp_send`].
    pub fn tcp_send_later(
        &mut self,
        memory: &mut impl Memory,
        id: EndpointId,
        len: usize,
        fill: &mut dyn FnMut(&mut [u8]),
        now: Instant,
    ) -> Result<usize, TcpError> {
        self.send_bytes(memory, id, (len, Ending::Later), fill, now)
    }

    /// send(2) with MSG_OOB: as [`Stack::tcp_send`], and the last byte taken is urgent.
    ///
    /// # Errors
    /// As [`Stack::tcp_send`].
    pub fn tcp_send_urgent(
        &mut self,
        memory: &mut impl Memory,
        id: EndpointId,
        len: usize,
        fill: &mut dyn FnMut(&mut [u8]),
        now: Instant,
    ) -> Result<usize, TcpError> {
        self.send_bytes(memory, id, (len, Ending::Urgent), fill, now)
    }

    fn send_bytes(
        &mut self,
        memory: &mut impl Memory,
        id: EndpointId,
        (len, ending): (usize, Ending),
        fill: &mut dyn FnMut(&mut [u8]),
        now: Instant,
    ) -> Result<usize, TcpError> {
        let now = self.forward(now);
        let mut connection = self.tcp(id)?;
        if ending == Ending::Push
            && connection.expects_write(len)
            && let Some(taken) = connection.write_expected(memory, len, fill, now)
        {
            self.settle_at(id.index, now);
            return Ok(taken);
        }
        connection.may_send()?;
        if len == 0 {
            return Ok(0);
        }
        let taken = connection.write(memory, len, fill, now);
        if taken == 0 {
            connection.wait_for_room(now);
            self.settle_at(id.index, now);
            return Err(TcpError::WouldBlock);
        }
        if taken < len {
            connection.tcb.set(flag::NO_SPACE);
        }
        if ending == Ending::More {
            connection.tcb.set(flag::MORE);
            if taken == len {
                connection.mark_tail(mark::PUSH, false);
            }
        }
        if ending == Ending::Urgent {
            connection.tcb.snd_up = connection.tcb.write_seq;
        }
        if ending == Ending::Later && taken == len {
            connection.tcb.set(flag::OUTPUT_DUE);
        } else {
            connection.output(memory, now, false);
            connection.tcb.clear(flag::MORE);
        }
        self.settle_at(id.index, now);
        Ok(taken)
    }

    /// The bytes written last end a record (MSG_EOR): what is written later shares no segment with
    /// them (include/net/tcp.h:tcp_skb_can_collapse_to).
    ///
    /// # Errors
    /// [`Stale`].
    pub fn tcp_end_record(&mut self, id: EndpointId) -> Result<(), Stale> {
        self.tcp(id)?.mark_tail(mark::END, true);
        Ok(())
    }

    /// A caller that writes only as much as there is room for has found none: the next room is an
    /// edge, as after a write that found none.
    pub fn tcp_wait_for_room(&mut self, id: EndpointId, now: Instant) {
        if let Ok(mut connection) = self.tcp(id) {
            connection.wait_for_room(now);
            self.settle(id.index, now);
        }
    }

    /// Bytes to read in order.
    ///
    /// # Errors
    /// [`Stale`].
    pub fn tcp_readable(&self, id: EndpointId) -> Result<usize, Stale> {
        let index = self.tcp_index(id)?;
        self.tcbs
            .get(index as usize)
            .map(|tcb| tcb.readable() as usize)
            .ok_or(Stale)
    }

    /// The contiguous bytes behind the first `skip` unread ones.
    ///
    /// # Errors
    /// [`Stale`].
    pub fn tcp_front(&mut self, id: EndpointId, skip: usize) -> Result<Option<Span>, Stale> {
        Ok(self.tcp(id)?.front(skip))
    }

    /// The same when all of the first `skip` bytes were given by this and [`Stack::tcp_front`],
    /// those of `last` at the end, and nothing was consumed since: one step instead of a walk from
    /// the front of the queue.
    ///
    /// # Errors
    /// [`Stale`].
    pub fn tcp_behind(
        &mut self,
        id: EndpointId,
        last: &Span,
        skip: usize,
    ) -> Result<Option<Span>, Stale> {
        Ok(self.tcp(id)?.behind(last.chunk.0, skip))
    }

    /// When the bytes have come, nanoseconds since 1970, 0 = not known; and by which queue pair.
    #[must_use]
    pub fn tcp_arrival(&self, span: &Span) -> (u64, u8) {
        let slot = self.chunks.get(span.chunk.0 as usize);
        slot.map_or((0, QUEUE_PAIR_HAIRPIN), |slot| {
            (slot.timestamp_ns, slot.queue_pair)
        })
    }

    /// The program has read `bytes`: their chunks are free, the window may open.
    ///
    /// # Errors
    /// [`Stale`].
    pub fn tcp_consume(&mut self, id: EndpointId, bytes: usize, now: Instant) -> Result<(), Stale> {
        let mut connection = self.tcp(id)?;
        connection.consume(bytes, now);
        // No timer and no state hangs on what was read, only an ACK may be due.
        if connection.tcb.has(flag::ACK_NOW) {
            self.push_flush(id.index);
        }
        Ok(())
    }

    /// shutdown(2).
    ///
    /// # Errors
    /// `ENOTCONN` when there is no connection.
    pub fn tcp_shutdown(
        &mut self,
        memory: &mut impl Memory,
        id: EndpointId,
        how: Shutdown,
        now: Instant,
    ) -> Result<(), TcpError> {
        let mut connection = self.tcp(id)?;
        let state = connection.tcb.state();
        if state == TcpState::Listen {
            if how != Shutdown::Write {
                self.end_listener(memory, id.index, now);
            }
            return Ok(());
        }
        if state == TcpState::Closed {
            return Err(TcpError::Errno(errno::ENOTCONN));
        }
        if state == TcpState::SynSent {
            // Whatever is shut down (net/ipv4/af_inet.c:inet_shutdown), and then nothing is.
            connection.finish(errno::ECONNRESET);
            connection.tcb.clear(flag::SEND_SHUT | flag::RECEIVE_SHUT);
            self.settle(id.index, now);
            return Ok(());
        }
        if how != Shutdown::Write {
            connection.tcb.set(flag::RECEIVE_SHUT);
            connection.readable_edge();
        }
        if how != Shutdown::Read {
            connection.send_fin(memory, now);
            connection.writable_edge();
        }
        self.settle(id.index, now);
        Ok(())
    }

    /// Ends a process's hold. At the last one the connection closes: orderly with FIN, by reset
    /// when data is unread or SO_LINGER asks for it (RFC 2525 section 2.17). `true` at the last.
    pub fn tcp_close(
        &mut self,
        memory: &mut impl Memory,
        id: EndpointId,
        process: ProcessId,
        now: Instant,
    ) -> bool {
        if self.tcp(id).is_err() {
            return false;
        }
        self.set_holder(id.index, process, false);
        if self.holders_of(id.index) != [0, 0] {
            return false;
        }
        self.close_now(memory, id.index, now);
        true
    }

    /// The last holder is gone.
    pub(crate) fn close_now(&mut self, memory: &mut impl Memory, index: u32, now: Instant) {
        let Some(mut connection) = self.connection(index) else {
            return;
        };
        connection.endpoint.waiters = [0, 0];
        connection.tcb.set(flag::ORPHAN);
        connection.tcb.clear(flag::CLOSE_DUE);
        match connection.tcb.state() {
            TcpState::Listen => self.end_listener(memory, index, now),
            TcpState::Closed | TcpState::TimeWait => {}
            TcpState::SynSent => connection.finish(0),
            _ => {
                let options = &connection.tcb.options;
                let abort = options.has(TcpOptions::LINGER) && options.linger_s == 0;
                let is_unread = connection.tcb.rx_bytes > 0;
                if abort || is_unread {
                    connection.output_due(memory, now);
                    if is_unread || connection.is_reset_by_abort() {
                        connection.send_reset(memory, now);
                    }
                    connection.finish(0);
                } else {
                    connection.tcb.set(flag::RECEIVE_SHUT);
                    connection.send_fin(memory, now);
                    connection.tcb.keepalive_at = super::tcb::NEVER;
                    if connection.tcb.state() == TcpState::FinWait2 {
                        if connection.tcb.options.linger2_s < 0 {
                            connection.send_reset(memory, now);
                        }
                        connection.limit_fin_wait(now);
                    }
                }
            }
        }
        self.settle(index, now);
    }

    /// Resets the connection.
    pub fn tcp_abort(&mut self, memory: &mut impl Memory, id: EndpointId, now: Instant) {
        if let Ok(mut connection) = self.tcp(id) {
            if connection.tcb.state() == TcpState::Listen {
                self.end_listener(memory, id.index, now);
                return;
            }
            connection.output_due(memory, now);
            if connection.is_reset_by_abort() {
                connection.send_reset(memory, now);
            }
            connection.finish(errno::ECONNRESET);
            self.settle(id.index, now);
        }
    }

    /// A listener ends: what waits to be accepted is reset.
    fn end_listener(&mut self, memory: &mut impl Memory, index: u32, now: Instant) {
        let Some(generation) = self
            .endpoints
            .get(index as usize)
            .map(|endpoint| endpoint.generation)
        else {
            return;
        };
        self.remove_requests(index, generation);
        self.set_pressed(index, false);
        for _ in 0..self.tcbs.len() {
            let Some(tcb) = self.tcbs.get_mut(index as usize) else {
                break;
            };
            let child = tcb.accept_head;
            let Some(next) = self.tcbs.get(child as usize).map(|tcb| tcb.accept_next) else {
                break;
            };
            if let Some(tcb) = self.tcbs.get_mut(index as usize) {
                tcb.accept_head = next;
            }
            if let Some(mut connection) = self.connection(child) {
                connection.tcb.set(flag::ORPHAN);
                connection.tcb.clear(flag::ACCEPTABLE);
                if connection.tcb.state().is_synchronised() {
                    connection.send_reset(memory, now);
                }
                connection.finish(0);
            }
            self.settle(child, now);
        }
        if let Some(mut connection) = self.connection(index) {
            connection.tcb.accept_tail = NONE;
            connection.tcb.accept_count = 0;
            connection.finish(0);
        }
        self.settle(index, now);
    }

    /// The connections that go on although no program holds them, with their local addresses: bytes
    /// or the end of the stream are not acknowledged, or the peer has not ended its direction.
    pub fn tcp_orphans(&self) -> impl Iterator<Item = (EndpointId, IpAddress)> {
        let all = (0..).zip(self.endpoints.iter().zip(self.tcbs.iter()));
        let orphans = all.filter(|(_, (endpoint, tcb))| {
            endpoint.kind == kind::TCP
                && tcb.has(flag::ORPHAN)
                && !matches!(
                    tcb.state(),
                    TcpState::Closed | TcpState::Listen | TcpState::TimeWait
                )
        });
        orphans.map(|(index, (endpoint, _))| {
            let generation = endpoint.generation;
            (EndpointId { index, generation }, endpoint.local_ip)
        })
    }

    /// What the endpoint looks like.
    ///
    /// # Errors
    /// [`Stale`].
    pub fn tcp_status(&self, id: EndpointId) -> Result<TcpStatus, Stale> {
        let index = self.tcp_index(id)?;
        let endpoint = self.endpoint(id)?;
        let tcb = self.tcbs.get(index as usize).ok_or(Stale)?;
        Ok(TcpStatus {
            state: tcb.state(),
            local: SocketAddress::new(endpoint.local_ip, endpoint.local_port),
            remote: SocketAddress::new(endpoint.remote_ip, endpoint.remote_port),
            readable: tcb.readable(),
            unacked: tcb.unacked(),
            unsent: tcb.unsent_bytes(),
            send_space: self.send_buffer_of(index, tcb).space(),
            error: tcb.error,
            eof: tcb.has(flag::RECEIVE_SHUT),
            peer_fin: tcb.has(flag::FIN_RECEIVED),
            send_shut: tcb.has(flag::SEND_SHUT),
            accept_queue: tcb.accept_count,
            filter: endpoint.filter,
            family: Family::from_byte(endpoint.family),
            deferred: tcb.state() == TcpState::SynSent && tcb.is_fast(fast::DEFERRED),
        })
    }

    /// The part of [`Stack::tcp_status`] that a read needs.
    ///
    /// # Errors
    /// [`Stale`].
    pub fn tcp_input(&self, id: EndpointId) -> Result<TcpInput, Stale> {
        let index = self.tcp_index(id)?;
        let tcb = self.tcbs.get(index as usize).ok_or(Stale)?;
        Ok(TcpInput {
            state: tcb.state(),
            readable: tcb.readable(),
            error: tcb.error,
            eof: tcb.has(flag::RECEIVE_SHUT),
            peer_fin: tcb.has(flag::FIN_RECEIVED),
        })
    }

    fn send_buffer_of<'a>(&'a self, index: u32, tcb: &'a super::tcb::Tcb) -> SendBuffer<'a> {
        let room = super::pool::send_room(self.head, self.chunks.len(), tcb.queued_chunks);
        SendBuffer::new(tcb, self.segments, index, room)
    }

    /// The pending error, which is then none.
    pub fn tcp_take_error(&mut self, id: EndpointId) -> i32 {
        match self.tcp(id) {
            Ok(connection) => core::mem::take(&mut connection.tcb.error),
            Err(Stale) => 0,
        }
    }

    /// [`Stack::readiness`] of a TCP endpoint (net/ipv4/tcp.c:tcp_poll). Whoever is told that there
    /// is no room waits for some, without a write that found none: he must hear of it.
    pub(crate) fn tcp_readiness(&mut self, index: u32) -> Option<Readiness> {
        let readiness = self.look_at(index)?;
        if readiness.events & event::OUT == 0
            && let Some(mut connection) = self.connection(index)
            && connection.tcb.may_carry_data()
            && !connection.tcb.has(flag::NO_SPACE)
        {
            connection.watch_room();
            // The wheel's own time: at its next tick.
            let deadline = connection.tcb.deadline();
            self.arm_soon(index, deadline);
        }
        Some(readiness)
    }

    fn look_at(&self, index: u32) -> Option<Readiness> {
        let tcb = self.tcbs.get(index as usize)?;
        let state = tcb.state();
        let mut events = 0;
        if state == TcpState::Listen {
            if tcb.accept_count > 0 {
                events |= event::IN | event::RDNORM;
            }
        } else {
            let both = tcb.has(flag::SEND_SHUT) && tcb.has(flag::RECEIVE_SHUT);
            if both || state == TcpState::Closed {
                events |= event::HUP;
            }
            if tcb.has(flag::RECEIVE_SHUT) {
                events |= event::IN | event::RDNORM | event::RDHUP;
            }
            let is_being_made = matches!(state, TcpState::SynSent | TcpState::SynReceived);
            if state == TcpState::SynSent && tcb.is_fast(fast::DEFERRED) {
                events |= event::OUT | event::WRNORM;
            }
            if !is_being_made || tcb.is_early() {
                let urgent = u32::from(tcb.skips_urgent());
                let waiting = tcb.rx_bytes.saturating_sub(urgent);
                // A reader that waits for more than the window takes is told when that is full
                // (net/ipv4/tcp.c:tcp_epollin_ready).
                let is_full = tcb.receive_window() <= u32::from(tcb.rcv_mss);
                if waiting >= tcb.options.rcvlowat.max(1) || waiting > 0 && is_full {
                    events |= event::IN | event::RDNORM;
                }
                if tcb.has(flag::SEND_SHUT) || self.send_buffer_of(index, tcb).is_writable() {
                    events |= event::OUT | event::WRNORM;
                }
                if tcb.urgent & super::urgent::VALID != 0 {
                    events |= event::PRI;
                }
            }
            if tcb.error != 0 || self.has_notices(index) {
                events |= event::ERR;
            }
        }
        Some(Readiness {
            events,
            in_edge: tcb.in_edge,
            out_edge: tcb.out_edge,
        })
    }
}
