//! Hairpin: what one endpoint sends to another of the same stack.
//!
//! A datagram goes straight onto the receiver's queue. A segment must stay on its send queue until
//! it is acknowledged, so it is put on a transmit list like any other, that of
//! [`QUEUE_PAIR_HAIRPIN`], and comes in again as a copy.

use crate::counters::Counter;
use crate::demux::{Addresses, specific};
use crate::image::chunk_state;
use crate::receive_buffer::Charge;
use crate::send::SendError;
use crate::stack::{RxChecksum, RxFrame, Stack, Transmit};
use crate::types::{
    ChunkId, EndpointId, Instant, IpAddress, Memory, QUEUE_PAIR_HAIRPIN, SocketAddress,
};
use crate::udp::Arrival;

/// Frames that come in again in one call at most: about a ring full.
const FRAMES: usize = 1024;

/// What became of a hairpin datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hairpin {
    /// On the receiver's queue.
    Delivered,
    /// The receiver was full.
    Dropped,
    /// No endpoint of this stack takes it: send it through the kernel.
    NoEndpoint,
}

impl Stack<'_> {
    /// Sends a datagram to another endpoint of this same stack, without a frame.
    ///
    /// `source` is the sender's address if the endpoint `from` is bound to any. `fill` is called
    /// only when there is a chunk for the payload.
    #[expect(
        clippy::too_many_arguments,
        reason = "the datagram's parts, as in udp_send"
    )]
    pub fn udp_hairpin(
        &mut self,
        memory: &mut impl Memory,
        from: EndpointId,
        source: IpAddress,
        to: SocketAddress,
        len: usize,
        fill: impl FnOnce(&mut [u8]),
        timestamp_ns: u64,
    ) -> Result<Hairpin, SendError> {
        let sender = self.endpoint(from).map_err(|_| SendError::Stale)?;
        let options = self.udp_of(from).map_err(|_| SendError::Stale)?.options;
        let remote = SocketAddress::new(specific(sender.local_ip, source), sender.local_port);
        let is_v4 = to.ip.is_v4();
        let addresses = Addresses {
            local: to,
            remote,
            ifindex: 0,
            is_v4,
        };
        if remote.ip.is_v4() != is_v4 || to.port == 0 {
            return Err(SendError::Address);
        }
        let Some(index) = self.find(&addresses) else {
            return Ok(Hairpin::NoEndpoint);
        };
        let size = memory
            .chunk_size()
            .min(self.capacities().chunk_size as usize);
        if len > size {
            return Err(SendError::TooBig);
        }
        let charge = Charge::of(len as u16, is_v4);
        if self.refuses(index, charge).is_some() {
            self.count_endpoint_drop(index);
            self.count(Counter::HairpinDropped);
            return Ok(Hairpin::Dropped);
        }
        let chunk = self
            .take_free(chunk_state::POSTED)
            .ok_or(SendError::NoChunk)?;
        let Some(payload) = memory.chunk_mut(chunk).get_mut(..len) else {
            self.put_free(chunk.0);
            return Err(SendError::TooBig);
        };
        fill(payload);
        let (tos, ttl) = options.tos_and_ttl(is_v4);
        let arrival = Arrival {
            remote,
            local: to.ip,
            offset: 0,
            len: len as u16,
            charge,
            tos,
            ttl,
            queue_pair: QUEUE_PAIR_HAIRPIN,
            timestamp_ns,
        };
        if self.deliver(index, chunk, &arrival).is_err() {
            self.put_free(chunk.0);
            self.count(Counter::HairpinDropped);
            return Ok(Hairpin::Dropped);
        }
        if let Ok(sender) = self.udp_state(from) {
            sender.tx_datagrams = sender.tx_datagrams.wrapping_add(1);
        }
        self.count(Counter::HairpinDelivered);
        Ok(Hairpin::Delivered)
    }

    /// Takes in what was sent to endpoints of this same stack, oldest first; says how many frames.
    /// To be called until it says 0, or again soon: the answers are sent in the same way.
    ///
    /// `timestamp_ns` is the wall clock's time, for SO_TIMESTAMP.
    pub fn take_hairpin(
        &mut self,
        memory: &mut impl Memory,
        timestamp_ns: u64,
        now: Instant,
    ) -> usize {
        let mut frames = 0usize;
        while frames < FRAMES
            && let Some(sent) = self.poll_transmit(QUEUE_PAIR_HAIRPIN)
        {
            frames = frames.saturating_add(1);
            let copy = self.take_chunk();
            let copied = copy.is_some_and(|copy| copy_frame(memory, sent, copy));
            self.release_chunk(sent.chunk);
            let Some(chunk) = copy else {
                self.count(Counter::HairpinDropped);
                continue;
            };
            if !copied {
                self.release_chunk(chunk);
                self.count(Counter::HairpinDropped);
                continue;
            }
            self.count(Counter::HairpinDelivered);
            let frame = RxFrame {
                chunk,
                offset: sent.offset,
                len: sent.len,
                queue_pair: QUEUE_PAIR_HAIRPIN,
                checksum: RxChecksum::Unknown,
                timestamp_ns,
            };
            self.handle_frame(memory, frame, now);
        }
        frames
    }
}

/// Copies a frame to the same place in another chunk. `false` if it is not within a chunk.
fn copy_frame(memory: &mut impl Memory, from: Transmit, to: ChunkId) -> bool {
    const STEP: usize = 512;
    let mut at = from.offset as usize;
    let end = at.saturating_add(from.len as usize);
    let mut step = [0; STEP];
    while at < end {
        let next = at.saturating_add(STEP).min(end);
        let Some(piece) = step.get_mut(..next.saturating_sub(at)) else {
            return false;
        };
        match memory.chunk(from.chunk).get(at..next) {
            Some(bytes) => piece.copy_from_slice(bytes),
            None => return false,
        }
        match memory.chunk_mut(to).get_mut(at..next) {
            Some(bytes) => bytes.copy_from_slice(piece),
            None => return false,
        }
        at = next;
    }
    true
}
