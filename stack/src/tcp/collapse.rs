//! Collapsing a receive queue: small payloads are copied together when the packet memory is short,
//! so that a reader that is slow cannot keep out what the window has promised room for (Linux:
//! tcp_collapse).

use super::connection::Connection;
use super::output::copy_between;
use super::pool::SegmentSlot;
use crate::counters::Counter;
use crate::types::{Memory, QUEUE_PAIR_HAIRPIN, STAMP_AT};

/// Bytes of a chunk that are not payload at most: what a NIC leaves free, and headers.
const HEADROOM: usize = 384;

impl Connection<'_> {
    /// Packs the in-order queue if that frees a chunk, and if enough is unused that all of it need
    /// not be copied for every chunk; whether one is free.
    pub(crate) fn collapse(&mut self, memory: &mut impl Memory) -> bool {
        let chunks = self.tcb.rx_chunks.saturating_sub(self.tcb.ooo_count);
        let usable = memory.chunk_size().saturating_sub(HEADROOM) as u64;
        let bytes = u64::from(self.tcb.rx_bytes);
        let packed = bytes.saturating_add(bytes / 8).saturating_add(usable);
        if packed > u64::from(chunks).saturating_mul(usable) {
            return false;
        }
        let mut freed = false;
        let mut chunk = self.tcb.rx_head;
        for _ in 0..self.pool.chunks.len() {
            let Some(&slot) = self.segment(chunk) else {
                break;
            };
            let Some(&next) = self.segment(slot.next) else {
                break;
            };
            if self.fill_from_next(memory, chunk, slot, next) {
                freed = true;
                self.pool.count(Counter::TcpCompacted);
            } else {
                chunk = slot.next;
            }
        }
        freed
    }

    /// A chunk has bytes of the next one, and when that has come: by the NIC's clock only where
    /// there is room for it before the bytes.
    fn follow_arrival(&mut self, memory: &mut impl Memory, chunk: u32, slot: SegmentSlot) {
        const STAMP: usize = size_of::<u64>();
        let came = self.pool.chunks.get(slot.next as usize);
        let (at_ns, mut from) = came.map_or((0, QUEUE_PAIR_HAIRPIN), |came| {
            (came.timestamp_ns, came.queue_pair)
        });
        if usize::from(slot.offset) >= STAMP_AT + STAMP {
            copy_between(memory, (slot.next, STAMP_AT), (chunk, STAMP_AT), STAMP);
        } else {
            from = QUEUE_PAIR_HAIRPIN;
        }
        if let Some(slot) = self.pool.chunks.get_mut(chunk as usize) {
            (slot.timestamp_ns, slot.queue_pair) = (at_ns, from);
        }
    }

    /// Moves bytes of the next chunk into what is free behind a chunk's; whether the next one is
    /// empty then, and free.
    fn fill_from_next(
        &mut self,
        memory: &mut impl Memory,
        chunk: u32,
        slot: SegmentSlot,
        next: SegmentSlot,
    ) -> bool {
        let end = usize::from(slot.offset).saturating_add(usize::from(slot.len));
        let space = memory.chunk_size().saturating_sub(end);
        if slot.end() != next.seq {
            return false;
        }
        let count = usize::from(next.len).min(space);
        copy_between(
            memory,
            (slot.next, usize::from(next.offset)),
            (chunk, end),
            count,
        );
        let moved = count as u16;
        self.follow_arrival(memory, chunk, slot);
        let empty = moved == next.len;
        if let Some(slot) = self.segment_mut(chunk) {
            slot.len = slot.len.saturating_add(moved);
            if empty {
                slot.next = next.next;
            }
        }
        if !empty {
            if let Some(next) = self.segment_mut(slot.next) {
                next.seq = next.seq.wrapping_add(u32::from(moved));
                next.offset = next.offset.saturating_add(moved);
                next.len = next.len.saturating_sub(moved);
            }
            return false;
        }
        if self.tcb.rx_tail == slot.next {
            self.tcb.rx_tail = chunk;
        }
        self.release_received(slot.next);
        true
    }
}
