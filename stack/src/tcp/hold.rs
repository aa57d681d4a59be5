//! What connections hold of the chunks, and whether that leaves too little for the others.
//!
//! All receive sides together may hold half of the chunks, all send sides three eighths
//! ([`super::pool`]). When three quarters of either are taken memory is *short*: windows close and
//! writes wait for everybody. It is so until both are down to a half. Who takes so much is often
//! busy, and gives back as fast as it takes; whoever is *slow*, because its program does not read
//! or its peer does not, keeps what it has, and may be served by somebody else
//! ([`Hold::slow_chunks`]).
//!
//! ```text
//!   receive sides   0 ─────────── 1/4 ─────────── 3/8 ────── 1/2 of all chunks
//!   send sides      0 ─────────── 3/16 ────────── 9/32 ───── 3/8
//!                      no longer short <──┘           └──> short from here
//!   free ones       1/8 ────── 5/64 ────── 1/16, which sends leave to the NICs
//!     no longer short <┘          └──> short from here
//! ```

use crate::image::kind;
use crate::stack::Stack;
use crate::types::EndpointId;

/// Bytes that would take more than so many times the time between two looks are kept slowly.
const PATIENCE: u32 = 4;

/// What one side of a connection holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Kept {
    /// Chunks.
    pub chunks: u32,
    /// Bytes in them, in order.
    pub bytes: u32,
    /// Sequence number of the first byte that is kept.
    pub from: u32,
}

/// What a connection holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hold {
    /// The connection.
    pub endpoint: EndpointId,
    /// What its program has not read, and what came out of order.
    pub receive: Kept,
    /// What its peer has not acknowledged, and what has not left.
    pub send: Kept,
}

/// How short the memory is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Shortage {
    /// Whether it has become so.
    pub is_short: bool,
    /// Chunks that connections hold above what ends it; 0 = there is enough.
    pub excess: u32,
}

impl Shortage {
    /// Of `held` chunks where at most `most` may be held.
    fn of(held: u32, most: u32) -> Self {
        Self {
            is_short: held > 0 && held >= most.saturating_sub(most >> 2),
            excess: held.saturating_sub(most >> 1),
        }
    }

    /// Of `free` chunks, of which sends leave `reserve` to the NICs.
    fn of_free(free: u32, reserve: u32) -> Self {
        Self {
            is_short: free <= reserve.saturating_add(reserve >> 2),
            excess: reserve.saturating_mul(2).saturating_sub(free),
        }
    }
}

impl Kept {
    /// Chunks that were not given back since `before`, nor will soon.
    fn slow_chunks(self, before: Self) -> u32 {
        let gone = self.from.wrapping_sub(before.from);
        match gone.saturating_mul(PATIENCE) < self.bytes {
            true => self.chunks.min(before.chunks),
            false => 0,
        }
    }
}

impl Hold {
    /// Chunks that it has kept since it was looked at `before`, and gives back so slowly that it
    /// would take four times as long.
    #[must_use]
    pub fn slow_chunks(&self, before: &Self) -> u32 {
        if self.endpoint != before.endpoint {
            return 0;
        }
        let receive = self.receive.slow_chunks(before.receive);
        receive.saturating_add(self.send.slow_chunks(before.send))
    }
}

impl Stack<'_> {
    /// Whether connections hold so many chunks that others have to wait for them.
    #[must_use]
    pub fn shortage(&self) -> Shortage {
        let chunks = self.chunks.len() as u32;
        let receive = Shortage::of(self.head.received_chunks, chunks / 2);
        let send = Shortage::of(self.head.retained_chunks, (chunks / 8).saturating_mul(3));
        let free = Shortage::of_free(self.head.free_chunks, chunks / 16);
        let excess = receive.excess.saturating_add(send.excess);
        Shortage {
            is_short: receive.is_short || send.is_short || free.is_short,
            excess: excess.saturating_add(free.excess),
        }
    }

    /// What the connections hold that a process has, in the order of their indices.
    pub fn holds(&self) -> impl Iterator<Item = Hold> + '_ {
        let all = (0_u32..).zip(self.endpoints.iter());
        all.filter_map(|(index, endpoint)| {
            let tcb = self.tcbs.get(index as usize)?;
            let (receive, send) = (tcb.rx_chunks, tcb.queued_chunks);
            if endpoint.kind != kind::TCP
                || receive.saturating_add(send) == 0
                || self.holders_of(index) == [0, 0]
            {
                return None;
            }
            Some(Hold {
                endpoint: EndpointId {
                    index,
                    generation: endpoint.generation,
                },
                receive: Kept {
                    chunks: receive,
                    bytes: tcb.rx_bytes,
                    from: tcb.copied_seq,
                },
                send: Kept {
                    chunks: send,
                    bytes: tcb.write_seq.wrapping_sub(tcb.snd_una),
                    from: tcb.snd_una,
                },
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn queue(chunks: u32, bytes: u32, from: u32) -> Kept {
        Kept {
            chunks,
            bytes,
            from,
        }
    }

    fn hold(receive: Kept, send: Kept) -> Hold {
        let endpoint = EndpointId {
            index: 3,
            generation: 9,
        };
        Hold {
            endpoint,
            receive,
            send,
        }
    }

    #[test]
    fn short_begins_at_three_quarters_and_ends_at_a_half() {
        let of = |held| Shortage::of(held, 128);
        assert_eq!(Shortage::of(0, 0), Shortage::default());
        assert_eq!((of(64).is_short, of(64).excess), (false, 0));
        assert_eq!((of(95).is_short, of(95).excess), (false, 31));
        assert_eq!((of(96).is_short, of(96).excess), (true, 32));
        let free = |free| Shortage::of_free(free, 32);
        assert_eq!((free(64).is_short, free(64).excess), (false, 0));
        assert_eq!((free(41).is_short, free(41).excess), (false, 23));
        assert_eq!((free(40).is_short, free(40).excess), (true, 24));
    }

    #[test]
    fn slow_is_who_keeps_what_it_has() {
        let nothing = Kept::default();
        let before = hold(queue(10, 10_000, u32::MAX - 100), nothing);
        let later = |bytes, from| hold(queue(12, bytes, from), nothing).slow_chunks(&before);
        // Nothing was read, or a little, beyond the end of the numbers too.
        assert_eq!(later(12_000, u32::MAX - 100), 10);
        assert_eq!(later(12_000, 2800), 10);
        // A quarter was: in four such times all of it will be.
        assert_eq!(later(12_000, 2899), 0);
        assert_eq!(later(12_000, 60_000), 0);
        let other = EndpointId {
            index: 3,
            generation: 10,
        };
        let again = Hold {
            endpoint: other,
            ..before
        };
        assert_eq!(again.slow_chunks(&before), 0);
    }

    #[test]
    fn both_sides_count() {
        let before = hold(queue(4, 4000, 0), queue(7, 9000, 500));
        assert_eq!(before.slow_chunks(&before), 11);
        let acked = hold(before.receive, queue(7, 9000, 9500));
        assert_eq!(acked.slow_chunks(&before), 4);
    }
}
