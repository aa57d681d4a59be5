//! Chunks: the free list, and the one rule of their life.
//!
//! ```text
//!         take_chunk            handle_frame delivers          udp_pop
//!  Free ------------> Posted ---------------------> Queued ----------------> Free
//!   |                    | release_chunk, or dropped
//!   |                    +-----------------------------------------------> Free
//!   |  udp_send                        poll_transmit              release_chunk
//!   +-----------> Sending (on a list) --------------> Sending (in a ring) -> Free
//!                         <-------------- untransmit
//! ```
//!
//! Every chunk is in exactly one of these places; `inspect::Image::check` verifies it. A chunk
//! that is on a list cannot be released from outside: the call is counted and ignored, because
//! the caller's books are wrong and the list's are not.

use crate::counters::Counter;
use crate::image::{ChunkSlot, Endpoint, NONE, chunk_state, kind, table};
use crate::receive_buffer::Charge;
use crate::stack::Stack;
use crate::types::{ChunkId, Memory};

/// Calls its argument with every chunk id that is in a ring now.
pub type EachInRings<'a> = dyn FnMut(&mut dyn FnMut(ChunkId)) + 'a;

impl Stack<'_> {
    /// Takes a free chunk to post it in a fill ring. `None` when there is none (counted).
    pub fn take_chunk(&mut self) -> Option<ChunkId> {
        self.take_free(chunk_state::POSTED)
    }

    /// Gives a posted chunk, or a sent one that the NIC is done with, back to the free list.
    ///
    /// A free chunk ([`Counter::DoubleRelease`]) and an id out of range or on a list
    /// ([`Counter::BadChunk`]) are counted and ignored.
    pub fn release_chunk(&mut self, id: ChunkId) {
        match self.chunks.get_mut(id.0 as usize) {
            Some(slot) if slot.state == chunk_state::FREE => self.count(Counter::DoubleRelease),
            Some(slot)
                if slot.state == chunk_state::POSTED
                    || slot.state == chunk_state::SENDING && slot.owner == NONE =>
            {
                self.put_free(id.0);
            }
            Some(slot) if slot.state == chunk_state::RETAINED_SENDING && slot.owner == NONE => {
                // The connection keeps it until it is acknowledged.
                slot.state = chunk_state::RETAINED;
            }
            _ => self.count(Counter::BadChunk),
        }
    }

    /// Chunks on the free list.
    #[must_use]
    pub fn free_chunks(&self) -> u32 {
        self.head.free_chunks
    }

    /// Takes a free chunk into another state.
    pub(crate) fn take_free(&mut self, state: u8) -> Option<ChunkId> {
        self.pool().take(state)
    }

    /// Puts a chunk on the free list, whatever it was. The caller has taken it off its list.
    pub(crate) fn put_free(&mut self, index: u32) {
        self.pool().free(index);
    }

    /// Rebuilds every list after a lock owner has died inside an update.
    ///
    /// `in_rings` calls its argument with each chunk id that is now in a fill, RX, TX or
    /// completion ring of any queue pair; those become posted. UDP's receive queues stay as far as
    /// they are whole, so that who dies takes no datagrams of others along. Frames to send and what
    /// connections hold are lost (counted); endpoints, their options and holders stay, but those
    /// that no live process holds are destroyed.
    pub fn recover(&mut self, memory: &mut impl Memory, in_rings: &mut EachInRings<'_>) {
        self.clear_dead_slots();
        let mut lost = 0u64;
        for slot in self.chunks.iter_mut() {
            let listed = chunk_state::is_sending(slot.state) && slot.owner != NONE;
            if listed || matches!(slot.state, chunk_state::RETAINED | chunk_state::RECEIVED) {
                lost = lost.saturating_add(1);
            }
            if slot.state != chunk_state::QUEUED {
                slot.state = chunk_state::FREE;
            }
        }
        let chunks: &mut [ChunkSlot] = self.chunks;
        in_rings(&mut |id| {
            if let Some(slot) = chunks.get_mut(id.0 as usize) {
                slot.state = chunk_state::POSTED;
            }
        });
        lost = lost.saturating_add(self.keep_queues());
        self.rebuild_free_chunks();
        for list in &mut self.head.transmit {
            list.head = NONE;
            list.tail = NONE;
            list.count = 0;
        }
        self.reset_peers(memory);
        self.reset_tcp();
        self.rebuild_endpoints();
        self.rebuild_watchers();
        self.wake_everybody();
        self.count(Counter::Recoveries);
        self.count_by(Counter::RecoveredDatagrams, lost);
    }

    /// Finds every receive queue again, and frees the queued chunks that are on none; how many.
    fn keep_queues(&mut self) -> u64 {
        for index in 0..self.endpoints.len() as u32 {
            self.keep_queue(index);
        }
        let mut lost = 0u64;
        for slot in self.chunks.iter_mut() {
            match slot.state {
                chunk_state::RECEIVED => slot.state = chunk_state::QUEUED,
                chunk_state::QUEUED => {
                    slot.state = chunk_state::FREE;
                    lost = lost.saturating_add(1);
                }
                _ => {}
            }
        }
        lost
    }

    /// Makes an endpoint's receive queue anew, up to the first chunk that is not queued there: what
    /// is still in an RX ring is received once more. Its chunks are marked as received meanwhile,
    /// so that each is met once.
    fn keep_queue(&mut self, index: u32) {
        let is_held = self.holders_of(index) != [0, 0];
        let Some(endpoint) = self.endpoints.get(index as usize) else {
            return;
        };
        let Some(udp) = self.udp.get_mut(index as usize) else {
            return;
        };
        let is_held = endpoint.kind == kind::UDP && is_held;
        let mut next = if is_held { udp.queue_head } else { NONE };
        (udp.queue_head, udp.queue_tail) = (NONE, NONE);
        (udp.queued, udp.queued_bytes) = (0, 0);
        while let Some(slot) = self
            .chunks
            .get_mut(next as usize)
            .filter(|slot| slot.state == chunk_state::QUEUED && slot.owner == index)
        {
            let chunk = core::mem::replace(&mut next, slot.next);
            slot.state = chunk_state::RECEIVED;
            slot.next = NONE;
            udp.queued = udp.queued.saturating_add(1);
            let bytes = Charge(slot.charge).bytes();
            udp.queued_bytes = udp.queued_bytes.saturating_add(bytes);
            match self.chunks.get_mut(udp.queue_tail as usize) {
                Some(tail) => tail.next = chunk,
                None => udp.queue_head = chunk,
            }
            udp.queue_tail = chunk;
        }
    }

    /// Makes the free list of every chunk in state free, lowest index first. Queued ones stay.
    pub(crate) fn rebuild_free_chunks(&mut self) {
        let mut first = NONE;
        let mut count = 0u32;
        for (index, slot) in self.chunks.iter_mut().enumerate().rev() {
            if slot.state == chunk_state::QUEUED {
                continue;
            }
            slot.owner = NONE;
            slot.next = NONE;
            if slot.state == chunk_state::FREE {
                slot.next = first;
                first = index as u32;
                count = count.saturating_add(1);
            }
        }
        self.head.free_chunk = first;
        self.head.free_chunks = count;
    }

    /// Makes free list and demux tables anew.
    fn rebuild_endpoints(&mut self) {
        self.ports.fill(NONE);
        self.flows.fill(NONE);
        self.head.free_endpoint = NONE;
        self.head.live_endpoints = 0;
        self.head.connected_endpoints = 0;
        for index in (0..self.endpoints.len() as u32).rev() {
            let is_held = self.holders_of(index) != [0, 0];
            let Some(endpoint) = self.endpoints.get_mut(index as usize) else {
                return;
            };
            endpoint.table = table::NONE;
            endpoint.next = NONE;
            endpoint.previous = NONE;
            if endpoint.is_live() && is_held {
                self.head.live_endpoints = self.head.live_endpoints.saturating_add(1);
                if self.keeps_its_place(index) {
                    self.link_endpoint(index);
                }
            } else {
                if endpoint.kind != kind::FREE {
                    endpoint.generation = next_generation(endpoint.generation);
                }
                endpoint.kind = kind::FREE;
                endpoint.next = self.head.free_endpoint;
                self.head.free_endpoint = index;
                self.clear_holders(index);
            }
        }
    }
}

/// The generation after this one; zero is never live.
pub(crate) fn next_generation(generation: u32) -> u32 {
    generation.wrapping_add(1).max(1)
}

impl Endpoint {
    /// Whether the slot is in use.
    pub(crate) fn is_live(&self) -> bool {
        matches!(self.kind, kind::UDP | kind::TCP)
    }
}
