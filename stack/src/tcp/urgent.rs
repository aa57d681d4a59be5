//! Urgent data: one byte beside the stream, as Linux reads RFC 9293 section 3.8.5 and RFC 6093
//! (net/ipv4/tcp_input.c:tcp_check_urg, net/ipv4/tcp.c:tcp_recv_urg).

use super::connection::Connection;
use super::input::{Arrived, errno};
use super::options::TcpOptions;
use super::seq::{after, before, distance};
use super::socket::TcpError;
use super::tcb::Tcb;
use crate::stack::Stack;
use crate::types::{ChunkId, EndpointId, Instant, Memory, Stale};
use crate::wire::tcp::flags;

/// Bits of [`Tcb::urgent`] above the byte (Linux: TCP_URG_VALID, TCP_URG_NOTYET, TCP_URG_READ).
pub(crate) const VALID: u16 = 0x100;
/// The byte is announced and has not come.
const AWAITED: u16 = 0x200;
/// The byte was read; the mark is still ahead.
const READ: u16 = 0x400;

impl Tcb {
    /// Bytes up to the urgent mark, when it is not behind the reader.
    pub(crate) fn mark_distance(&self) -> Option<u32> {
        (self.urgent != 0 && !before(self.rcv_up, self.copied_seq))
            .then(|| distance(self.copied_seq, self.rcv_up))
    }

    /// Whether the next byte of the stream is the urgent one and not part of it.
    pub(crate) fn skips_urgent(&self) -> bool {
        self.mark_distance() == Some(0)
            && after(self.rcv_nxt, self.rcv_up)
            && !self.options.has(TcpOptions::OOBINLINE)
    }

    /// Bytes that a read may take now: up to the mark, behind it without the urgent byte.
    pub(crate) fn readable(&self) -> u32 {
        if self.options.has(TcpOptions::OOBINLINE) {
            return self.rx_bytes;
        }
        match self.mark_distance() {
            Some(0) if self.skips_urgent() => self.rx_bytes.saturating_sub(1),
            Some(mark) if mark > 0 => self.rx_bytes.min(mark),
            _ => self.rx_bytes,
        }
    }
}

impl Connection<'_> {
    /// The urgent pointer names the byte behind the urgent one (RFC 6093 section 2.1).
    pub(crate) fn take_urgent(
        &mut self,
        memory: &impl Memory,
        arrived: &Arrived<'_>,
        now: Instant,
    ) {
        let segment = arrived.segment;
        if segment.flags & flags::URG != 0 {
            // 0 is taken for 1, as Linux does.
            let behind = u32::from(segment.urgent).max(1);
            let up = segment.seq.wrapping_add(behind).wrapping_sub(1);
            let old = self.tcb.urgent != 0 && !after(up, self.tcb.rcv_up);
            if !before(up, self.tcb.copied_seq) && !before(up, self.tcb.rcv_nxt) && !old {
                if self.tcb.skips_urgent() {
                    // The old urgent byte stays out of the stream (tcp_check_urg).
                    self.tcb.urgent = 0;
                    self.consume(1, now);
                }
                self.tcb.rcv_up = up;
                self.tcb.urgent = AWAITED;
            }
        }
        if self.tcb.urgent != AWAITED {
            return;
        }
        let at = self.tcb.rcv_up.wrapping_sub(segment.seq);
        if at >= u32::from(segment.payload_len) {
            return;
        }
        let place = usize::from(arrived.offset).saturating_add(at as usize);
        if let Some(&byte) = memory.chunk(ChunkId(arrived.chunk)).get(place) {
            self.tcb.urgent = VALID | u16::from(byte);
            self.readable_edge();
        }
    }
}

impl Stack<'_> {
    /// recv(2) with MSG_OOB: the urgent byte. `peek` leaves it.
    ///
    /// # Errors
    /// EINVAL when there is none, it was read, or SO_OOBINLINE leaves it in the stream;
    /// [`TcpError::WouldBlock`] when it is announced and has not come.
    pub fn tcp_receive_urgent(&mut self, id: EndpointId, peek: bool) -> Result<u8, TcpError> {
        self.tcp_status(id)?;
        let connection = self.connection(id.index).ok_or(Stale)?;
        let inline = connection.tcb.options.has(TcpOptions::OOBINLINE);
        match connection.tcb.urgent {
            AWAITED if !inline => Err(TcpError::WouldBlock),
            found if found & VALID != 0 && !inline => {
                if !peek {
                    connection.tcb.urgent = READ;
                }
                Ok(found as u8)
            }
            _ => Err(TcpError::Errno(errno::EINVAL)),
        }
    }

    /// A read has found no byte: it passes an urgent one that is no part of the stream and stands
    /// in its way (net/ipv4/tcp.c:tcp_recvmsg_locked).
    ///
    /// # Errors
    /// [`Stale`].
    pub fn tcp_pass_urgent(&mut self, id: EndpointId, now: Instant) -> Result<(), Stale> {
        let connection = self.tcp(id)?;
        if connection.tcb.skips_urgent() {
            connection.tcb.urgent = 0;
            self.tcp_consume(id, 1, now)?;
        }
        Ok(())
    }

    /// SIOCATMARK: whether the next byte of the stream is the urgent one.
    ///
    /// # Errors
    /// [`Stale`].
    pub fn tcp_at_mark(&self, id: EndpointId) -> Result<bool, Stale> {
        self.tcp_status(id)?;
        let tcb = self.tcbs.get(id.index as usize).ok_or(Stale)?;
        Ok(tcb.mark_distance() == Some(0))
    }

    /// Whether the urgent byte has come and is the next one: a splice does not pass it, whether it
    /// is part of the stream or not (net/ipv4/tcp.c:tcp_read_sock).
    ///
    /// # Errors
    /// [`Stale`].
    pub fn tcp_stops_splice(&self, id: EndpointId) -> Result<bool, Stale> {
        let tcb = self.tcbs.get(id.index as usize).ok_or(Stale)?;
        Ok(self.tcp_at_mark(id)? && tcb.rx_bytes > 0)
    }
}
