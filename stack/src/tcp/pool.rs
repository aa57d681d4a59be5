//! What connections share and change while one of them is worked on: chunks, what they are as TCP
//! segments, transmit lists, counters.

use super::output::PAYLOAD_AT;
use crate::counters::Counter;
use crate::image::{ChunkSlot, Head, NONE, ReadyLink, chunk_state};
use crate::types::{ChunkId, Memory};
use crate::wire::tcp::{self, FastOpen};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// What a chunk is on a connection's send, receive or out-of-order queue.
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, KnownLayout, Immutable)]
#[repr(C)]
pub(crate) struct SegmentSlot {
    /// Next of the queue.
    pub(crate) next: u32,
    /// The connection.
    pub(crate) owner: u32,
    /// First sequence number.
    pub(crate) seq: u32,
    /// When it was last sent, microseconds, wrapping.
    pub(crate) sent_us: u32,
    /// The connection's counts when it was sent, for the rate sample.
    pub(crate) delivered: u32,
    pub(crate) delivered_us: u32,
    pub(crate) first_sent_us: u32,
    /// Bytes from the start of the chunk to the payload.
    pub(crate) offset: u16,
    /// Bytes of payload.
    pub(crate) len: u16,
    /// Bits of [`mark`].
    pub(crate) marks: u8,
    pub(crate) retransmits: u8,
    /// The burst that it left in ([`super::send_buffer`]).
    pub(crate) burst: u16,
    /// Bytes of the burst on the queue up to the end of this.
    pub(crate) in_burst: u16,
    /// Number of the transmission, wrapping: tells what left first in one microsecond.
    pub(crate) order: u16,
}

const _: () = assert!(size_of::<SegmentSlot>() == 40);

/// Bits of [`SegmentSlot::marks`].
pub(crate) mod mark {
    /// Ends the stream.
    pub(crate) const FIN: u8 = 1;
    /// The peer has told that it has it (RFC 2018).
    pub(crate) const SACKED: u8 = 2;
    /// Believed lost.
    pub(crate) const LOST: u8 = 4;
    /// Sent again, and that copy is believed to be in the network.
    pub(crate) const RETRANSMITTED: u8 = 8;
    /// The program's write ended here.
    pub(crate) const PUSH: u8 = 16;
    /// Was sent more than once.
    pub(crate) const EVER_RETRANSMITTED: u8 = 32;
    /// The sender had nothing more to send when this left.
    pub(crate) const APP_LIMITED: u8 = 64;
    /// Ends a record (MSG_EOR): nothing is put behind it.
    pub(crate) const END: u8 = 128;
}

impl SegmentSlot {
    pub(crate) fn has(&self, mark: u8) -> bool {
        self.marks & mark != 0
    }

    /// Whether it left after what left then, as that transmission.
    #[inline(always)]
    pub(crate) fn left_after(&self, sent_us: u32, order: u16) -> bool {
        let later = self.sent_us.wrapping_sub(sent_us) as i32;
        later > 0 || later == 0 && self.order.wrapping_sub(order) as i16 > 0
    }

    /// The sequence number behind it.
    pub(crate) fn end(&self) -> u32 {
        self.seq
            .wrapping_add(u32::from(self.len))
            .wrapping_add(u32::from(self.marks & mark::FIN))
    }
}

/// The shared parts of a stack.
#[derive(Debug)]
pub(crate) struct Pool<'a> {
    pub(crate) head: &'a mut Head,
    pub(crate) chunks: &'a mut [ChunkSlot],
    pub(crate) segments: &'a mut [SegmentSlot],
    pub(crate) ready: &'a mut [ReadyLink],
}

/// Chunks that a connection may hold whatever the others hold.
pub(crate) const ALWAYS: u32 = 4;

/// Chunks that are for the NICs alone: without them no acknowledgement comes in that frees others.
fn reserve(chunks: usize) -> u32 {
    (chunks / 16) as u32
}

/// Chunks that one connection may hold on its receive side, or on its send side.
pub(crate) fn share(chunks: usize) -> u32 {
    (chunks / 4) as u32
}

/// How many more chunks the send queue of a connection that holds `held` may take: its share, and
/// three eighths of all for all connections together.
pub(crate) fn send_room(head: &Head, chunks: usize, held: u32) -> u32 {
    let all = (chunks / 8).saturating_mul(3) as u32;
    let least = ALWAYS.saturating_sub(held);
    let most = head.free_chunks.saturating_sub(reserve(chunks));
    all.saturating_sub(head.retained_chunks)
        .min(share(chunks).saturating_sub(held))
        .max(least)
        .min(most)
}

/// Puts bytes at the end of a frame.
pub(super) fn put_behind(frame: &mut [u8], bytes: Option<&[u8]>) {
    let Some(bytes) = bytes else {
        return;
    };
    let start = frame.len().saturating_sub(bytes.len());
    for (place, byte) in frame.iter_mut().skip(start).zip(bytes) {
        *place = *byte;
    }
}

impl Pool<'_> {
    /// How many more chunks the receive side of a connection that holds `held` may take, `in_order`
    /// of them for data in order: its share, and half of all for all connections together. What
    /// waits for a gap to be filled cannot keep out what fills it.
    ///
    /// A frame that is kept was a NIC's already, so the free ones do not count here: the NICs have
    /// what the queues of connections have not.
    pub(crate) fn receive_room(&self, held: u32, in_order: u32) -> u32 {
        let chunks = self.chunks.len();
        let all = (chunks / 2) as u32;
        let queued = self
            .head
            .received_chunks
            .saturating_add(self.head.retained_chunks);
        let most = (chunks as u32)
            .saturating_sub(reserve(chunks))
            .saturating_sub(queued);
        all.saturating_sub(self.head.received_chunks)
            .min(share(chunks).saturating_sub(held))
            .max(ALWAYS.saturating_sub(in_order))
            .min(most)
    }

    /// [`Pool::receive_room`] is at least this, which is quick to know: what the share leaves while
    /// no more than a quarter of all chunks are on queues; else nothing is known.
    #[inline]
    pub(crate) fn least_receive_room(&self, held: u32) -> u32 {
        let quarter = (self.chunks.len() / 4) as u32;
        let head = &*self.head;
        let queued = head.received_chunks.saturating_add(head.retained_chunks);
        if queued <= quarter {
            quarter.saturating_sub(held)
        } else {
            0
        }
    }

    /// Whether it is the others, and not its own share, that bounds what the receive side of a
    /// connection that holds `held` may still take.
    pub(crate) fn is_crowded(&self, held: u32) -> bool {
        let chunks = self.chunks.len();
        self.receive_room(held, ALWAYS) < share(chunks).saturating_sub(held)
    }

    /// How many more chunks of the same connection may hold data that came out of order.
    pub(crate) fn out_of_order_room(&self, held: u32) -> u32 {
        self.receive_room(held.saturating_add(ALWAYS), ALWAYS)
    }

    /// [`send_room`].
    pub(crate) fn send_room(&self, held: u32) -> u32 {
        send_room(self.head, self.chunks.len(), held)
    }

    /// Takes a free chunk for a send queue.
    pub(crate) fn retain(&mut self) -> Option<ChunkId> {
        let chunk = self.take(chunk_state::RETAINED)?;
        self.head.retained_chunks = self.head.retained_chunks.saturating_add(1);
        Some(chunk)
    }

    /// Takes a free chunk into another state.
    pub(crate) fn take(&mut self, state: u8) -> Option<ChunkId> {
        let index = self.head.free_chunk;
        match self.chunks.get_mut(index as usize) {
            Some(slot) if slot.state == chunk_state::FREE => {
                self.head.free_chunk = slot.next;
                self.head.free_chunks = self.head.free_chunks.saturating_sub(1);
                slot.state = state;
                slot.owner = NONE;
                slot.next = NONE;
                Some(ChunkId(index))
            }
            _ => {
                if index != NONE {
                    self.head.free_chunk = NONE;
                    self.head.free_chunks = 0;
                    self.count(Counter::CorruptList);
                }
                self.count(Counter::NoChunk);
                None
            }
        }
    }

    /// Puts a chunk on the free list, whatever it was. The caller has taken it off its list.
    pub(crate) fn free(&mut self, index: u32) {
        if let Some(slot) = self.chunks.get_mut(index as usize) {
            slot.state = chunk_state::FREE;
            slot.owner = NONE;
            slot.next = self.head.free_chunk;
            self.head.free_chunk = index;
            self.head.free_chunks = self.head.free_chunks.saturating_add(1);
        }
    }

    /// Lets a chunk go that a send queue has held: free now, or when the NIC is done with it.
    pub(crate) fn drop_retained(&mut self, index: u32) {
        self.head.retained_chunks = self.head.retained_chunks.saturating_sub(1);
        match self.chunks.get_mut(index as usize) {
            Some(slot) if slot.state == chunk_state::RETAINED => self.free(index),
            Some(slot) if slot.state == chunk_state::RETAINED_SENDING => {
                slot.state = chunk_state::SENDING;
            }
            _ => self.count(Counter::CorruptList),
        }
    }

    /// Appends a chunk that is sent, not on a list, to a transmit list. `false` if the queue pair
    /// does not exist.
    pub(crate) fn append_transmit(&mut self, queue_pair: u8, chunk: u32) -> bool {
        let owner = u32::from(queue_pair);
        let Some(list) = self.head.transmit.get_mut(usize::from(queue_pair)) else {
            return false;
        };
        let tail = list.tail;
        let mut broken = false;
        if list.head == NONE {
            list.head = chunk;
            list.count = 0;
        } else {
            match self.chunks.get_mut(tail as usize) {
                Some(last) if chunk_state::is_sending(last.state) && last.owner == owner => {
                    last.next = chunk;
                }
                _ => {
                    list.head = chunk;
                    list.count = 0;
                    broken = true;
                }
            }
        }
        list.tail = chunk;
        list.count = list.count.saturating_add(1);
        if let Some(slot) = self.chunks.get_mut(chunk as usize) {
            slot.owner = owner;
            slot.next = NONE;
        }
        if broken {
            self.count(Counter::CorruptList);
        }
        true
    }

    /// Sends a segment without data. `false` when there is no chunk or no such queue pair.
    pub(crate) fn send_bare(
        &mut self,
        memory: &mut impl Memory,
        queue_pair: u8,
        headers: &tcp::Headers,
    ) -> bool {
        self.send_bare_with(memory, queue_pair, headers, None)
    }

    /// The same with a Fast Open option behind the others.
    #[inline]
    pub(crate) fn send_bare_with(
        &mut self,
        memory: &mut impl Memory,
        queue_pair: u8,
        headers: &tcp::Headers,
        option: Option<&FastOpen>,
    ) -> bool {
        let Some(chunk) = self.take(chunk_state::SENDING) else {
            return false;
        };
        let mut bytes = [0; FastOpen::MOST];
        let more = option.map_or(0, |option| option.write(&mut bytes));
        let all = tcp::headers_len(headers.destination.is_v4(), &headers.options);
        let all = all.saturating_add(more);
        let end = usize::from(PAYLOAD_AT);
        let start = end.saturating_sub(all);
        let Some(frame) = memory.chunk_mut(chunk).get_mut(start..end) else {
            self.free(chunk.0);
            return false;
        };
        put_behind(frame, bytes.get(..more));
        tcp::emit_with(frame, headers, more);
        if let Some(slot) = self.chunks.get_mut(chunk.0 as usize) {
            slot.offset = start as u16;
            slot.len = all as u16;
        }
        if !self.append_transmit(queue_pair, chunk.0) {
            self.free(chunk.0);
            return false;
        }
        self.count(Counter::TcpSegmentsSent);
        true
    }

    /// The slot of a chunk that is on a queue of this connection.
    pub(crate) fn segment(&self, owner: u32, index: u32) -> Option<&SegmentSlot> {
        self.segments
            .get(index as usize)
            .filter(|slot| slot.owner == owner)
    }

    /// The same, to change.
    pub(crate) fn segment_mut(&mut self, owner: u32, index: u32) -> Option<&mut SegmentSlot> {
        self.segments
            .get_mut(index as usize)
            .filter(|slot| slot.owner == owner)
    }

    pub(crate) fn count(&mut self, counter: Counter) {
        self.count_by(counter, 1);
    }

    pub(crate) fn count_by(&mut self, counter: Counter, amount: u64) {
        if let Some(value) = self.head.counters.get_mut(counter as usize) {
            *value = value.wrapping_add(amount);
        }
    }

    /// The next identification for IPv4 headers.
    pub(crate) fn next_ipv4_id(&mut self) -> u16 {
        self.head.ipv4_id = self.head.ipv4_id.wrapping_add(1);
        self.head.ipv4_id as u16
    }
}
