//! Sending datagrams.
//!
//! A datagram is copied once, by the caller's `fill`, into a free chunk; headers go in front of
//! it, and the frame on the transmit list of its next hop's queue pair. What the stack cannot
//! send (too big for the interface, other family) the caller gives to the kernel through the
//! shadow socket.

use crate::counters::Counter;
use crate::cplane::NextHop;
use crate::demux::specific;
use crate::image::{UdpOptions, chunk_state};
use crate::stack::Stack;
use crate::types::{EndpointId, IpAddress, Memory, SocketAddress};
use crate::wire::{self, TxChecksum, ipv4, ipv6};

/// Place of the payload in a chunk that we send: a cache line, room for either family's headers.
const PAYLOAD_AT: usize = 64;

/// Why a datagram was not sent. In all cases the caller may use the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SendError {
    /// The endpoint does not exist any more.
    Stale,
    /// No free chunk: the device is slower than the program. Like ENOBUFS, or wait.
    NoChunk,
    /// Longer than the interface's MTU or a chunk allows.
    TooBig,
    /// Source and destination are of different families, a port is zero, or the next hop's queue
    /// pair does not exist.
    Address,
}

/// The headers of a datagram of this endpoint.
#[inline]
fn headers(
    options: &UdpOptions,
    (source, source_port): (IpAddress, u16),
    to: SocketAddress,
    via: &NextHop,
    ipv4_id: u32,
    checksum: TxChecksum,
) -> wire::Headers {
    let (tos, ttl) = options.tos_and_ttl(to.ip.is_v4());
    wire::Headers {
        source_mac: via.source_mac,
        destination_mac: via.mac,
        source,
        destination: to.ip,
        source_port,
        destination_port: to.port,
        tos,
        ttl,
        ipv4_id: ipv4_id as u16,
        dont_fragment: options.has(UdpOptions::DONT_FRAGMENT),
        checksum: match options.has(UdpOptions::CHECKSUM_OFF) {
            true => TxChecksum::Off,
            false => checksum,
        },
    }
}

impl Stack<'_> {
    /// Builds a datagram and puts it on the transmit list of `via.queue_pair`.
    ///
    /// `fill` writes the payload into a slice of `len` bytes; it is called only when the datagram
    /// will be sent. The source address is the endpoint's if it is specific, else `via.source`.
    #[inline]
    pub fn udp_send(
        &mut self,
        memory: &mut impl Memory,
        id: EndpointId,
        to: SocketAddress,
        via: &NextHop,
        len: usize,
        fill: impl FnOnce(&mut [u8]),
    ) -> Result<(), SendError> {
        let endpoint = self.endpoint(id).map_err(|_| SendError::Stale)?;
        let source = specific(endpoint.local_ip, via.source);
        let is_v4 = to.ip.is_v4();
        if is_v4 != source.is_v4()
            || source.is_unspecified()
            || to.port == 0
            || endpoint.local_port == 0
            || usize::from(via.queue_pair) >= self.head.queue_pairs.len()
        {
            return Err(SendError::Address);
        }
        let all = if is_v4 { ipv4::ALL } else { ipv6::ALL };
        let frame_len = all.saturating_add(len);
        let end = PAYLOAD_AT.saturating_add(len);
        if frame_len > usize::from(via.mtu).saturating_add(wire::ethernet::HEADER)
            || end > memory.chunk_size()
            || end > self.capacities().chunk_size as usize
        {
            return Err(SendError::TooBig);
        }
        let checksum = self.head.tx_checksum(via.queue_pair);
        let ipv4_id = self.head.ipv4_id.wrapping_add(1);
        let udp = self.udp.get(id.index as usize).ok_or(SendError::Stale)?;
        let from = (source, endpoint.local_port);
        let headers = headers(&udp.options, from, to, via, ipv4_id, checksum);
        let chunk = self
            .take_free(chunk_state::SENDING)
            .ok_or(SendError::NoChunk)?;
        let offset = PAYLOAD_AT.wrapping_sub(all);
        let Some(frame) = memory.chunk_mut(chunk).get_mut(offset..end) else {
            self.put_free(chunk.0);
            return Err(SendError::TooBig);
        };
        if let Some(payload) = frame.get_mut(all..) {
            fill(payload);
        }
        self.head.ipv4_id = self.head.ipv4_id.wrapping_add(1);
        if is_v4 {
            ipv4::emit(frame, &headers)
        } else {
            ipv6::emit(frame, &headers)
        }
        if let Some(slot) = self.chunks.get_mut(chunk.0 as usize) {
            slot.offset = offset as u16;
            slot.len = frame_len as u16;
        }
        self.append_transmit(via.queue_pair, chunk.0);
        if let Some(udp) = self.udp.get_mut(id.index as usize) {
            udp.tx_datagrams = udp.tx_datagrams.wrapping_add(1);
        }
        self.count(Counter::DatagramsSent);
        self.count_by(Counter::BytesSent, len as u64);
        Ok(())
    }
}
