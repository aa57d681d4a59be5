//! The calls of the socket layer: listen, connect, accept, send, receive, shut down, close.

use super::connection::{Connection, micros};
use super::input::errno;
use super::listen::window_scale;
use super::mini;
use super::options::TcpOptions;
use super::output::PAYLOAD_AT;
use super::pool::mark;
use super::seq::distance;
use super::tcb::{Hop, TcpState, flag, pending};
use super::wheel::MINI;
use crate::counters::Counter;
use crate::cplane::NextHop;
use crate::image::{NONE, UdpOptions, chunk_state, kind};
use crate::readiness::{Readiness, event};
use crate::stack::Stack;
use crate::types::{
    ChunkId, EndpointId, Family, Instant, Memory, ProcessId, SocketAddress, Stale, set_bit,
};
use crate::udp::OpenError;

/// How long a write without room waits when no acknowledgement is due.
const ROOM_NS: u64 = 10_000_000;

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
    /// Bytes to read in order (FIONREAD).
    pub readable: u32,
    /// Bytes sent or written and not acknowledged (SIOCOUTQ).
    pub unacked: u32,
    /// Bytes written and not sent (SIOCOUTQNSD).
    pub unsent: u32,
    /// Bytes that a write would take now.
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

    fn tcp_index(&self, id: EndpointId) -> Result<u32, Stale> {
        let endpoint = self.endpoint(id)?;
        if endpoint.kind == kind::TCP {
            Ok(id.index)
        } else {
            Err(Stale)
        }
    }

    fn tcp(&mut self, id: EndpointId) -> Result<Connection<'_>, Stale> {
        let index = self.tcp_index(id)?;
        self.connection(index).ok_or(Stale)
    }

    /// Opens an endpoint that is closed: it holds a place, so that its steering can be prepared
    /// before [`Stack::tcp_start`] sends the SYN.
    ///
    /// # Errors
    /// [`OpenError::Full`], [`OpenError::NoProcess`].
    pub fn tcp_open(&mut self, open: &TcpOpen) -> Result<EndpointId, OpenError> {
        if !self.is_process(open.process) {
            return Err(OpenError::NoProcess);
        }
        let index = self.take_endpoint(kind::TCP).ok_or(OpenError::Full)?;
        let endpoint = self
            .endpoints
            .get_mut(index as usize)
            .ok_or(OpenError::Full)?;
        endpoint.family = open.family as u8;
        endpoint.ifindex = open.ifindex;
        endpoint.local_ip = open.local.ip;
        endpoint.local_port = open.local.port;
        endpoint.options = UdpOptions::new();
        endpoint.shadow_cookie = open.shadow_cookie;
        set_bit(&mut endpoint.holders, open.process.0, true);
        let generation = endpoint.generation;
        if let Some(tcb) = self.tcbs.get_mut(index as usize) {
            tcb.reset(open.options);
        }
        Ok(EndpointId { index, generation })
    }

    /// Opens a listener.
    ///
    /// # Errors
    /// [`OpenError::Full`], [`OpenError::NoProcess`].
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

    /// Connects a closed endpoint from its local address: its SYN is on the transmit list.
    ///
    /// # Errors
    /// [`OpenError::InUse`] when the 4-tuple is taken, [`OpenError::NoProcess`] when the endpoint
    /// is gone or was connected before; it stays as it was.
    pub fn tcp_start(
        &mut self,
        memory: &mut impl Memory,
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
        if self.find_connection(&local, &remote).is_some()
            || self.find_mini(&local, &remote).is_some()
        {
            return Err(OpenError::InUse);
        }
        let key = self.secret_key();
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
            tcb.iss = super::secret::isn(&key, local, remote, now.0);
            tcb.ts_offset = super::secret::timestamp_offset(&key, local, remote);
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
        if let Some(mut connection) = self.connection(index) {
            connection.send_syn(memory, now);
            connection.arm_rto(now);
        }
        self.settle(index, now);
        Ok(())
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
        set_bit(&mut endpoint.holders, process.0, true);
        endpoint.shadow_cookie = shadow_cookie;
        Ok(Some(EndpointId {
            index: child,
            generation: endpoint.generation,
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
        let mut connection = self.tcp(id)?;
        connection.may_send()?;
        if len == 0 {
            return Ok(0);
        }
        let space = connection.send_space();
        let taken = connection.append(memory, len.min(space as usize), fill);
        if taken == 0 {
            connection.wait_for_room(now);
            self.settle(id.index, now);
            return Err(TcpError::WouldBlock);
        }
        if taken < len {
            connection.tcb.set(flag::NO_SPACE);
        }
        if ending == Ending::More {
            connection.tcb.set(flag::MORE);
        } else {
            connection.tcb.clear(flag::MORE);
        }
        if ending == Ending::Urgent {
            connection.tcb.snd_up = connection.tcb.write_seq;
        }
        connection.output(memory, now, false);
        self.settle(id.index, now);
        Ok(taken)
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
        let connection = self.tcp(id)?;
        Ok(connection
            .front(skip)
            .map(|(chunk, offset, len)| Span { chunk, offset, len }))
    }

    /// The program has read `bytes`: their chunks are free, the window may open.
    ///
    /// # Errors
    /// [`Stale`].
    pub fn tcp_consume(&mut self, id: EndpointId, bytes: usize, now: Instant) -> Result<(), Stale> {
        let mut connection = self.tcp(id)?;
        connection.consume(bytes, now);
        self.settle(id.index, now);
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
        if how != Shutdown::Write {
            connection.tcb.set(flag::RECEIVE_SHUT);
            connection.readable_edge();
        }
        if how != Shutdown::Read {
            if state == TcpState::SynSent {
                connection.finish(0);
            } else {
                connection.send_fin(memory, now);
            }
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
        let Ok(connection) = self.tcp(id) else {
            return false;
        };
        set_bit(&mut connection.endpoint.holders, process.0, false);
        if connection.endpoint.holders != [0, 0] {
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
                if abort || connection.tcb.rx_bytes > 0 {
                    connection.send_reset(memory, now);
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
            if connection.tcb.state().is_synchronised() {
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
            unacked: distance(tcb.snd_una, tcb.write_seq),
            unsent: tcb.unsent_bytes(),
            send_space: self.send_space_of(tcb),
            error: tcb.error,
            eof: tcb.has(flag::RECEIVE_SHUT),
            peer_fin: tcb.has(flag::FIN_RECEIVED),
            send_shut: tcb.has(flag::SEND_SHUT),
            accept_queue: tcb.accept_count,
            filter: endpoint.filter,
            family: Family::from_byte(endpoint.family),
        })
    }

    fn send_space_of(&self, tcb: &super::tcb::Tcb) -> u32 {
        // Only read: the view changes nothing.
        let room = super::pool::send_room(self.head, self.chunks.len(), tcb.queued_chunks);
        tcb.send_space(&self.head.tcp_defaults, room)
    }

    /// SO_ERROR: the pending error, which is then none.
    pub fn tcp_take_error(&mut self, id: EndpointId) -> i32 {
        match self.tcp(id) {
            Ok(connection) => core::mem::take(&mut connection.tcb.error),
            Err(Stale) => 0,
        }
    }

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

    /// Acts on changed options: what NODELAY or an ended CORK lets go leaves, keepalive is armed.
    pub fn tcp_options_changed(&mut self, memory: &mut impl Memory, id: EndpointId, now: Instant) {
        if let Ok(mut connection) = self.tcp(id) {
            if connection.tcb.options.has(TcpOptions::KEEPALIVE)
                && connection.tcb.state().is_synchronised()
            {
                connection.arm_keepalive(now);
            }
            let corked = connection.tcb.options.has(TcpOptions::CORK);
            connection.output(memory, now, !corked);
            self.settle(id.index, now);
        }
    }

    /// An ICMP error that the shadow socket has told of (RFC 1122 section 4.2.3.9): fatal while
    /// connecting, else only remembered.
    pub fn tcp_unreachable(&mut self, id: EndpointId, error: i32, now: Instant) {
        if let Ok(mut connection) = self.tcp(id)
            && connection.tcb.state() == TcpState::SynSent
        {
            connection.finish(error);
            self.settle(id.index, now);
        }
    }

    /// [`Stack::readiness`] of a TCP endpoint (net/ipv4/tcp.c:tcp_poll).
    pub(crate) fn tcp_readiness(&self, index: u32) -> Option<Readiness> {
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
            if !matches!(state, TcpState::SynSent | TcpState::SynReceived) {
                let urgent = u32::from(tcb.skips_urgent());
                if tcb.rx_bytes.saturating_sub(urgent) >= tcb.options.rcvlowat.max(1) {
                    events |= event::IN | event::RDNORM;
                }
                if tcb.has(flag::SEND_SHUT) || tcb.is_writable(self.send_space_of(tcb)) {
                    events |= event::OUT | event::WRNORM;
                }
                if tcb.urgent & super::urgent::VALID != 0 {
                    events |= event::PRI;
                }
            }
            if tcb.error != 0 {
                events |= event::ERR;
            }
        }
        Some(Readiness {
            events,
            in_edge: tcb.in_edge,
            out_edge: tcb.out_edge,
        })
    }

    /// Sends the ACKs that the frames and calls since the last flush owe, and closes what dead
    /// processes have left.
    pub fn flush(&mut self, memory: &mut impl Memory, now: Instant) {
        for _ in 0..self.tcbs.len() {
            let index = self.head.flush_head;
            let Some(tcb) = self.tcbs.get_mut(index as usize) else {
                self.head.flush_head = NONE;
                return;
            };
            self.head.flush_head = core::mem::replace(&mut tcb.flush_next, NONE);
            tcb.on_flush = 0;
            if tcb.has(flag::CLOSE_DUE) {
                self.close_now(memory, index, now);
            }
            if let Some(mut connection) = self.connection(index)
                && connection.tcb.has(flag::ACK_NOW)
            {
                if connection.tcb.state().is_synchronised() {
                    connection.send_ack(memory, now);
                } else {
                    connection.tcb.clear(flag::ACK_NOW);
                }
                self.settle(index, now);
            }
        }
    }

    /// Whether [`Stack::flush`] has something to do.
    #[must_use]
    pub fn has_flush(&self) -> bool {
        self.head.flush_head != NONE
    }

    /// Puts a connection on the list of [`Stack::flush`].
    pub(crate) fn push_flush(&mut self, index: u32) {
        if let Some(tcb) = self.tcbs.get_mut(index as usize)
            && tcb.on_flush == 0
        {
            tcb.on_flush = 1;
            tcb.flush_next = self.head.flush_head;
            self.head.flush_head = index;
        }
    }

    /// Draws the consequences of a step: time wait, owed ACKs, timers, the end.
    pub(crate) fn settle(&mut self, index: u32, now: Instant) {
        let Some(tcb) = self.tcbs.get(index as usize) else {
            return;
        };
        if tcb.state() == TcpState::TimeWait && !tcb.has(flag::ACK_NOW) {
            self.enter_time_wait(index, now);
        }
        let Some(tcb) = self.tcbs.get_mut(index as usize) else {
            return;
        };
        let deadline = tcb.deadline();
        tcb.note_busy(micros(now));
        let closed = tcb.state() == TcpState::Closed;
        let orphan = tcb.has(flag::ORPHAN);
        if tcb.has(flag::ACK_NOW) && !closed {
            self.push_flush(index);
        }
        self.arm(index, deadline, now);
        if closed {
            self.leave_tables(index);
            if orphan {
                self.end_tcp(index);
            }
        }
    }

    /// A closed connection is in no table; its flow has ended unless a time wait goes on with it.
    fn leave_tables(&mut self, index: u32) {
        let Some(endpoint) = self.endpoints.get(index as usize) else {
            return;
        };
        if endpoint.kind != kind::TCP || endpoint.table == crate::image::table::NONE {
            return;
        }
        let local = SocketAddress::new(endpoint.local_ip, endpoint.local_port);
        let remote = SocketAddress::new(endpoint.remote_ip, endpoint.remote_port);
        let connected = endpoint.connected != 0;
        self.unlink_endpoint(index);
        if connected && self.find_mini(&local, &remote).is_none() {
            self.flow_ended(local, remote);
        }
    }

    /// The rest of the connection goes on as a minisocket (RFC 9293 section 3.6.1).
    fn enter_time_wait(&mut self, index: u32, now: Instant) {
        let Some(connection) = self.connection(index) else {
            return;
        };
        let local =
            SocketAddress::new(connection.endpoint.local_ip, connection.endpoint.local_port);
        let remote = SocketAddress::new(
            connection.endpoint.remote_ip,
            connection.endpoint.remote_port,
        );
        let tcb = *connection.tcb;
        if let Some(mini) = self.add_mini(mini::kind::TIME_WAIT, local, remote, now) {
            let deadline = now.0.saturating_add(super::listen::TIME_WAIT_NS);
            if let Some(entry) = self.minis.get_mut(mini as usize) {
                entry.negotiated = tcb.flags as u8 & 0xf;
                entry.rcv_wscale = tcb.rcv_wscale;
                entry.snd_wscale = tcb.snd_wscale;
                entry.hop = tcb.hop;
                entry.rcv_nxt = tcb.rcv_nxt;
                entry.snd_nxt = tcb.snd_nxt;
                entry.rcv_wnd = tcb.receive_window();
                entry.ts_recent = tcb.ts_recent;
                entry.ts_offset = tcb.ts_offset;
                entry.deadline = deadline;
                entry.tos = tcb.options.tos;
            }
            self.arm(mini | MINI, deadline, now);
        } else {
            self.count(Counter::TcpTimeWaitFull);
        }
        if let Some(mut connection) = self.connection(index) {
            connection.finish(0);
        }
    }

    /// The end of a closed orphan.
    fn end_tcp(&mut self, index: u32) {
        let Some(mut connection) = self.connection(index) else {
            return;
        };
        connection.drop_receive_queue();
        connection.drop_out_of_order();
        connection.drop_send_queue();
        let id = EndpointId {
            index,
            generation: connection.endpoint.generation,
        };
        let filter = connection.endpoint.filter;
        self.disarm(index);
        if filter != 0 {
            self.note_ended(filter);
        }
        self.destroy(id);
    }
}

impl Connection<'_> {
    /// Whether the program may write: the pending error first, then the state.
    fn may_send(&mut self) -> Result<(), TcpError> {
        let error = core::mem::take(&mut self.tcb.error);
        if error != 0 {
            return Err(TcpError::Errno(error));
        }
        if self.tcb.has(flag::SEND_SHUT) {
            return Err(TcpError::Errno(errno::EPIPE));
        }
        match self.tcb.state() {
            TcpState::Established | TcpState::CloseWait => Ok(()),
            TcpState::SynSent | TcpState::SynReceived => {
                self.tcb.set(flag::NO_SPACE);
                Err(TcpError::WouldBlock)
            }
            TcpState::Listen => Err(TcpError::Errno(errno::EPIPE)),
            _ => Err(TcpError::Errno(errno::EPIPE)),
        }
    }

    /// A write found no room. Acknowledgements make room; when none is due, because others hold the
    /// packet memory, the timer looks again.
    pub(crate) fn wait_for_room(&mut self, now: Instant) {
        self.tcb.set(flag::NO_SPACE);
        if self.tcb.packets_out == 0 && self.tcb.pending == pending::NONE {
            self.tcb.pending = pending::PROBE;
            self.tcb.retransmit_at = now.0.saturating_add(ROOM_NS);
        }
    }

    fn send_space(&self) -> u32 {
        let room = self.pool.send_room(self.tcb.queued_chunks);
        self.tcb.send_space(&self.pool.head.tcp_defaults, room)
    }

    /// Whether a poll would call it writable.
    pub(crate) fn is_writable(&self) -> bool {
        self.tcb.is_writable(self.send_space())
    }

    /// Puts bytes on the send queue: behind the last unsent segment while it has room, then in
    /// fresh chunks. Returns how many.
    fn append(
        &mut self,
        memory: &mut impl Memory,
        len: usize,
        fill: &mut dyn FnMut(&mut [u8]),
    ) -> usize {
        let mut done = 0usize;
        let room = memory.chunk_size().saturating_sub(usize::from(PAYLOAD_AT));
        let goal = usize::from(self.tcb.mss.max(1)).min(room);
        while done < len {
            let left = len.saturating_sub(done);
            let (chunk, have) = match self.open_tail(goal) {
                Some(tail) => tail,
                None if self.pool.send_room(self.tcb.queued_chunks) == 0 => break,
                None => match self.push_segment() {
                    Some(chunk) => (chunk, 0),
                    None => break,
                },
            };
            let take = left.min(goal.saturating_sub(have));
            let at = usize::from(PAYLOAD_AT).saturating_add(have);
            let Some(piece) = memory
                .chunk_mut(ChunkId(chunk))
                .get_mut(at..at.saturating_add(take))
            else {
                break;
            };
            fill(piece);
            if let Some(slot) = self.segment_mut(chunk) {
                slot.len = slot.len.saturating_add(take as u16);
            }
            self.tcb.write_seq = self.tcb.write_seq.wrapping_add(take as u32);
            done = done.saturating_add(take);
        }
        let tail = self.tcb.queue_tail;
        if done > 0
            && let Some(slot) = self.segment_mut(tail)
        {
            slot.marks |= mark::PUSH;
        }
        done
    }

    /// The last segment, if it is unsent and has room, with the bytes it has.
    fn open_tail(&self, goal: usize) -> Option<(u32, usize)> {
        if self.tcb.unsent == NONE {
            return None;
        }
        let tail = self.tcb.queue_tail;
        let slot = self.segment(tail)?;
        let free = slot.offset == PAYLOAD_AT
            && usize::from(slot.len) < goal
            && !slot.has(mark::FIN)
            && self
                .pool
                .chunks
                .get(tail as usize)
                .is_some_and(|chunk| chunk.state == chunk_state::RETAINED);
        free.then_some((tail, usize::from(slot.len)))
    }

    /// A fresh, empty segment at the end of the send queue.
    fn push_segment(&mut self) -> Option<u32> {
        let chunk = self.pool.retain()?.0;
        let fresh = Self::fresh_segment(self.index, self.tcb.write_seq, PAYLOAD_AT);
        if let Some(slot) = self.pool.segments.get_mut(chunk as usize) {
            *slot = fresh;
        }
        let tail = self.tcb.queue_tail;
        if self.tcb.queue_head == NONE {
            self.tcb.queue_head = chunk;
        } else if let Some(last) = self.segment_mut(tail) {
            last.next = chunk;
        }
        self.tcb.queue_tail = chunk;
        if self.tcb.unsent == NONE {
            self.tcb.unsent = chunk;
        }
        self.tcb.queued_chunks = self.tcb.queued_chunks.saturating_add(1);
        Some(chunk)
    }

    /// Ends our direction: the FIN goes behind the data. It may use the chunks that data may not;
    /// when there are none at all it waits for one.
    pub(crate) fn send_fin(&mut self, memory: &mut impl Memory, now: Instant) {
        if self.tcb.has(flag::FIN_QUEUED) {
            return;
        }
        self.tcb.clear(flag::FIN_DUE);
        let next = match self.tcb.state() {
            TcpState::Established => TcpState::FinWait1,
            TcpState::SynReceived => {
                // Once the handshake is over (RFC 9293 section 3.10.4).
                self.tcb.set(flag::SEND_SHUT);
                return;
            }
            TcpState::CloseWait => TcpState::LastAck,
            _ => return,
        };
        self.tcb.set(flag::SEND_SHUT);
        let tail = self.tcb.queue_tail;
        let unsent_tail = self.tcb.unsent != NONE
            && self
                .segment(tail)
                .is_some_and(|slot| !super::seq::before(slot.seq, self.tcb.snd_nxt));
        let chunk = if unsent_tail {
            Some(tail)
        } else {
            self.push_segment()
        };
        let Some(chunk) = chunk else {
            self.tcb.set(flag::FIN_DUE);
            self.wait_for_room(now);
            return;
        };
        if let Some(slot) = self.segment_mut(chunk) {
            slot.marks |= mark::FIN;
        }
        self.tcb.set(flag::FIN_QUEUED);
        self.tcb.state = next as u8;
        self.output(memory, now, false);
    }
}

impl super::tcb::Tcb {
    /// Most bytes that the send queue may hold: SO_SNDBUF, or with autotuning twice the congestion
    /// window (Linux: tcp_sndbuf_expand).
    fn send_limit(&self, defaults: &super::TcpDefaults) -> u32 {
        let set = self.options.sndbuf_bytes;
        if self.options.has(TcpOptions::SNDBUF_LOCKED) {
            return set;
        }
        let window = self
            .congestion
            .cwnd
            .saturating_mul(2)
            .saturating_mul(u32::from(self.mss));
        set.max(window).min(defaults.wmem[2].max(set))
    }

    /// Bytes that a write would take now, when the send queue may take `room` more chunks.
    pub(crate) fn send_space(&self, defaults: &super::TcpDefaults, room: u32) -> u32 {
        let used = distance(self.snd_una, self.write_seq);
        self.send_limit(defaults)
            .saturating_sub(used)
            .min(room.saturating_mul(u32::from(self.mss)))
    }

    /// Whether a third of the buffer is free and the unsent part is small enough (Linux:
    /// sk_stream_is_writeable, TCP_NOTSENT_LOWAT).
    pub(crate) fn is_writable(&self, space: u32) -> bool {
        let used = distance(self.snd_una, self.write_seq);
        space >= (used / 2).max(1) && self.unsent_bytes() < self.options.notsent_lowat
    }
}
