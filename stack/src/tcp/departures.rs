//! Departures: when sends have left by the NIC's clock (SOF_TIMESTAMPING_TX_HARDWARE).
//!
//! ```text
//!   send ── tcp_await ──► a notice that is awaited ◄── number ──┐
//!     └──► frame with its last byte, marked ──► poll_transmit ──┴── Transmit::stamp ──► NIC
//!   error queue ◄── told ── the notice of that number ◄── tcp_left ◄── number, time ──────┘
//! ```
//!
//! The number names the place of the notice, and which of those that were ever there. It is all
//! that waits for the NIC: the chunk is free when that is done with it, and the connection may end.
//! A number that is nobody's any more says nothing.
//!
//! A segment that is sent again takes the number along: the first time that comes is told. (Linux
//! tells each.) A frame that is lost on its way to the wire has none, and what is told of later
//! ones ends the wait for it.

use super::notices::{MOST, NoticeKind, NoticeSlot, OPT_TX_SWHW, TX_HARDWARE, TX_SOFTWARE};
use super::seq::{before, distance};
use crate::image::{ASKS_TIME, NONE, chunk_state};
use crate::stack::Stack;
use crate::types::{Instant, QUEUE_PAIR_HAIRPIN};

const _: () = assert!(QUEUE_PAIR_HAIRPIN < ASKS_TIME);

impl NoticeSlot {
    fn awaits_departure(&self) -> bool {
        self.kind & TX_HARDWARE != 0
    }
}

impl Stack<'_> {
    /// What can come of what is awaited of the send that has just ended: the NIC's time only where
    /// the NIC stamps, and no other beside it that was not asked for so
    /// (net/core/skbuff.c:__skb_tstamp_tx).
    pub(super) fn awaitable(&mut self, index: u32, asked: u32) -> u32 {
        if asked & TX_HARDWARE == 0 {
            return asked;
        }
        if !self.mark_last_frame(index) {
            return asked & !TX_HARDWARE;
        }
        let tcb = self.tcbs.get(index as usize);
        match tcb.map_or(0, |tcb| tcb.options.timestamping) & OPT_TX_SWHW {
            0 => asked & !TX_SOFTWARE,
            _ => asked,
        }
    }

    /// Marks the frame with the last byte that was written, if it was put on the transmit list: one
    /// that has yet to be is marked then. Whether it has not left, and its NIC stamps.
    fn mark_last_frame(&mut self, index: u32) -> bool {
        let Some(tcb) = self.tcbs.get(index as usize) else {
            return false;
        };
        let tail = tcb.queue_tail as usize;
        let segment = self.segments.get(tail);
        let Some(segment) = segment.filter(|segment| segment.owner == index) else {
            return false;
        };
        let is_last = segment.seq.wrapping_add(u32::from(segment.len)) == tcb.write_seq;
        if tcb.queue_head == NONE || !is_last || !self.head.stamps_sent(tcb.hop.queue_pair) {
            return false;
        }
        let is_unsent = !before(segment.seq, tcb.snd_nxt);
        match self.chunks.get_mut(tail) {
            Some(slot) if slot.state == chunk_state::RETAINED => is_unsent,
            Some(slot) if slot.state == chunk_state::RETAINED_SENDING && slot.owner != NONE => {
                slot.queue_pair = ASKS_TIME;
                true
            }
            _ => false,
        }
    }

    /// The number of a marked frame that is taken to be sent, 0 when nobody asks after all; its
    /// mark is gone.
    #[cold]
    pub(crate) fn number_of_frame(&mut self, chunk: u32) -> u32 {
        let (slot, segment) = (
            self.chunks.get_mut(chunk as usize),
            self.segments.get(chunk as usize),
        );
        let (Some(slot), Some(&segment)) = (slot, segment) else {
            return 0;
        };
        slot.queue_pair = 0;
        if slot.state != chunk_state::RETAINED_SENDING {
            return 0;
        }
        let mut number = 0;
        let mut place = self.first_awaited(segment.owner);
        for _ in 0..MOST {
            let Some(&slot) = self.notices.get(place as usize) else {
                break;
            };
            let last = distance(segment.seq, slot.first).wrapping_sub(1);
            if slot.awaits_departure() && last < u32::from(segment.len) {
                if slot.last != 0 {
                    number = slot.last;
                } else if number == 0 {
                    number = self.next_number(place);
                }
                if let Some(slot) = self.notices.get_mut(place as usize) {
                    (slot.last, slot.at) = (number, u64::from(segment.owner));
                }
            }
            place = slot.next;
        }
        number
    }

    /// A frame has left that had this number ([`crate::Transmit::stamp`]): when by the NIC's clock,
    /// nanoseconds since 1970, 0 = it does not know.
    pub fn tcp_left(&mut self, number: u32, at_ns: u64) {
        let place = number & !u32::MAX.checked_shl(self.place_bits()).unwrap_or(0);
        let slot = self.notices.get(place as usize);
        let Some(slot) = slot.filter(|slot| number != 0 && slot.last == number) else {
            return;
        };
        // Only if it is on that connection's list is it what it seems to be. It may come twice: a
        // segment was sent again.
        let index = slot.at as u32;
        let is_listed = self.awaited(index).any(|slot| slot.last == number);
        let Some(tcb) = self.tcbs.get(index as usize).filter(|_| is_listed) else {
            return;
        };
        let acked = tcb.snd_una;
        let mut place = self.first_awaited(index);
        let mut is_found = false;
        for _ in 0..MOST {
            let Some(slot) = self.notices.get_mut(place as usize) else {
                break;
            };
            let (end, is_awaited) = (slot.first, slot.awaits_departure());
            place = slot.next;
            if slot.last == number {
                is_found = true;
                slot.kind &= !TX_HARDWARE;
                if is_awaited && at_ns != 0 {
                    self.tell_of_send(index, NoticeKind::Stamped, end, Instant(at_ns));
                }
            } else if !is_found && !before(acked, end) {
                // Its frame left before, and nothing was told.
                slot.kind &= !TX_HARDWARE;
            }
        }
        self.end_awaits(index);
    }

    /// When as many sends as there may be await something: those that have arrived wait no longer
    /// for the NIC's time.
    pub(super) fn make_room(&mut self, index: u32) {
        let is_full = |queue: &super::notices::NoticeQueue| queue.lists()[1].2 >= MOST;
        let Some(tcb) = self.tcbs.get(index as usize) else {
            return;
        };
        if !self.notice_queue(index).is_some_and(is_full) {
            return;
        }
        let acked = tcb.snd_una;
        let mut place = self.first_awaited(index);
        for _ in 0..MOST {
            let Some(slot) = self.notices.get_mut(place as usize) else {
                break;
            };
            if !before(acked, slot.first) {
                slot.kind &= !TX_HARDWARE;
            }
            place = slot.next;
        }
        self.end_awaits(index);
    }

    fn first_awaited(&self, index: u32) -> u32 {
        let queue = self.notice_queue(index);
        queue.map_or(NONE, |queue| queue.awaited.head)
    }

    /// What a connection's sends await.
    fn awaited(&self, index: u32) -> impl Iterator<Item = &NoticeSlot> {
        let at = |place: u32| self.notices.get(place as usize);
        let first = at(self.first_awaited(index));
        core::iter::successors(first, move |slot| at(slot.next)).take(MOST.into())
    }

    /// Bits of a number that name the place.
    fn place_bits(&self) -> u32 {
        let last = self.notices.len().saturating_sub(1) as u32;
        u32::BITS.saturating_sub(last.leading_zeros())
    }

    /// A number for what is at a place.
    fn next_number(&mut self, place: u32) -> u32 {
        let bits = self.place_bits();
        self.head.stamped_frames = self.head.stamped_frames.wrapping_add(1);
        let most = u32::MAX.checked_shr(bits).unwrap_or(1);
        let which = (self.head.stamped_frames as u32).checked_rem(most);
        let which = which.unwrap_or(0).wrapping_add(1);
        which.checked_shl(bits).unwrap_or(0) | place
    }
}
