//! The relay's turn without copies: frames stay in the stack's chunks, which the port has then.
//!
//! ```text
//!   fill ring ──► stock ──► card ──► RX ring         TX ring ──► card ──► completion ring
//!                   ▲        │
//!                   └────────┴──► (a copy) the kernel
//! ```
//!
//! Others may write to a chunk at any time. So the head of a frame is copied before steering looks
//! at it, a frame for the kernel is copied whole, and lengths are the port's word.
//!
//! What finds no chunk in stock comes into memory of the port's own and is copied, as is what the
//! stack sends out of a chunk that the port has already.

#![expect(
    unsafe_code,
    reason = "UNSAFETY: reads and passes on bytes that others may change"
)]

use super::COUNTERS;
use super::face::Face;
use super::hands::Hands;
use super::port::{BURST, InPlace, Lent};
use super::rings::Shown;
use super::steering::{Filters, HEAD, Verdict};
use super::worker::{Inflow, Relay, SHORTEST, Stack, send_patiently};
use crate::ring::Ring;

impl Relay {
    /// One burst in, one out; how many frames. For a stack and a port that can.
    #[inline(never)]
    pub(super) fn turn_in_place(&mut self) -> usize {
        let Self {
            port,
            face,
            filters,
            stack,
            counters,
            frame,
            ..
        } = self;
        let (Some(port), Some(stack)) = (port.in_place(), stack) else {
            return 0;
        };
        let mut way = Way {
            face,
            filters,
            counters,
            copy: frame,
        };
        let frames = receive(port, stack, &mut way);
        frames + transmit(port, stack)
    }
}

/// Where frames go that come in.
struct Way<'a> {
    face: &'a Face,
    filters: &'a Filters,
    counters: &'a mut [u64; COUNTERS.len()],
    copy: &'a mut [u8],
}

/// Gives the port as many chunks of the fill ring as it wants.
fn supply(port: &mut dyn InPlace, fill: &mut Ring<u32>, (hands, shown): (&mut Hands, &Shown)) {
    let mut chunks = [0; BURST];
    let mut count = 0;
    // They are marked before they leave the ring.
    for chunk in fill.take(port.wants().min(BURST)) {
        if let Some(place) = chunks.get_mut(count).filter(|_| hands.take(chunk, shown)) {
            *place = chunk;
            count += 1;
        }
    }
    port.supply(chunks.get(..count).unwrap_or_default());
}

fn receive(port: &mut dyn InPlace, stack: &mut Stack, way: &mut Way<'_>) -> usize {
    let (rings, flows) = (&mut stack.rings, &stack.flows);
    let (Some(hands), Some(shown)) = (&mut stack.hands, &rings.shown) else {
        return 0;
    };
    supply(port, &mut rings.fill, (hands, shown));
    let mut inflow = Inflow {
        memory: &stack.memory,
        fill: rings.fill.take(usize::MAX),
        rx: rings.rx.enter(),
        missed: 0,
    };
    let mut kept = [0; BURST];
    let mut count = 0;
    let frames = port.lend(&mut |frame: Lent| {
        let Some(chunk) = frame.chunk else {
            // SAFETY: memory of the port's own, the frame's until the burst ends.
            let bytes = unsafe { std::slice::from_raw_parts(frame.bytes, frame.length as usize) };
            let verdict = way.filters.steer(bytes, Some(flows));
            way.counters[verdict as usize] += 1;
            match verdict {
                Verdict::Led => inflow.enter(bytes, frame.told),
                _ => way.face.give(bytes),
            }
            return false;
        };
        let (head, length) = (head(frame), frame.length as usize);
        let head = head.get(..length.min(HEAD)).unwrap_or_default();
        let verdict = way.filters.steer_head(head, length as u64, Some(flows));
        way.counters[verdict as usize] += 1;
        if verdict != Verdict::Led {
            give_copy(way, frame);
            return false;
        }
        let is_kept = inflow.keep(frame, chunk);
        if let Some(place) = kept.get_mut(count).filter(|_| is_kept) {
            *place = chunk;
            count += 1;
        }
        is_kept
    });
    let (entered, missed) = inflow.end();
    // They are in the RX ring.
    for chunk in kept.iter().take(count) {
        hands.give(*chunk, shown);
    }
    if entered > 0 || missed > 0 {
        stack.rings.count_missed(missed);
        stack.ring();
    }
    frames
}

/// The first bytes of a frame in a chunk, and what is behind a shorter one.
#[inline]
fn head(frame: Lent) -> [u8; HEAD] {
    // SAFETY: a chunk has more than this behind its headroom, where the port puts frames.
    unsafe { frame.bytes.cast::<[u8; HEAD]>().read() }
}

/// Gives the kernel a copy: the chunk is the port's again with the end of the burst.
#[cold]
fn give_copy(way: &mut Way<'_>, frame: Lent) {
    if let Some(copy) = way.copy.get_mut(..frame.length as usize) {
        // SAFETY: as many bytes are in the chunk; the copy is elsewhere.
        unsafe { std::ptr::copy_nonoverlapping(frame.bytes, copy.as_mut_ptr(), copy.len()) };
        way.face.give(copy);
    }
}

fn transmit(port: &mut dyn InPlace, stack: &mut Stack) -> usize {
    let rings = &mut stack.rings;
    let (Some(hands), Some(shown)) = (&mut stack.hands, &rings.shown) else {
        return 0;
    };
    let mut done = rings.completion.enter();
    // Each that is sent finds room when it has left.
    let room = done.room().min(port.most_sending());
    let most = BURST
        .min(room.saturating_sub(hands.sending))
        .min(port.room());
    let mut tx = rings.tx.take(most);
    for slot in tx.by_ref() {
        let place = stack.memory.place(slot.chunk, slot.offset, slot.len);
        let place = place.filter(|_| slot.len >= SHORTEST);
        let is_sent = place.is_some_and(|bytes| {
            let is_taken = hands.take(slot.chunk, shown);
            // SAFETY: the frame is in that chunk, which the port did not have.
            is_taken && unsafe { port.send_chunk(bytes, slot.len, slot.chunk) } || {
                if is_taken {
                    hands.give(slot.chunk, shown);
                }
                send_patiently(port, bytes, slot.len);
                false
            }
        });
        match is_sent {
            true => hands.sending += 1,
            false => _ = done.push(slot.chunk),
        }
    }
    let count = tx.taken() as usize;
    drop((tx, done));
    if count > 0 {
        port.flush();
    }
    complete(port, &mut rings.completion, (hands, shown));
    count
}

/// Gives the stack the chunks whose frames have left.
fn complete(
    port: &mut dyn InPlace,
    completion: &mut Ring<u32>,
    (hands, shown): (&mut Hands, &Shown),
) {
    let mut chunks = [0; BURST];
    while hands.sending > 0 {
        let left = port.completed(&mut chunks);
        let left = chunks.get(..left).unwrap_or_default();
        completion.produce(left.iter().copied());
        for chunk in left {
            hands.give(*chunk, shown);
        }
        hands.sending = hands.sending.saturating_sub(left.len());
        if left.len() < BURST {
            break;
        }
    }
}
