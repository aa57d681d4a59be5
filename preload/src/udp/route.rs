//! The way to an address, remembered: most sends go where the one before went.

use std::cell::Cell;

use bypass_stack::IpAddress;
use bypass_stack::cplane::{self, CplaneReason, Lookup};

use crate::context::Joined;

/// A question to the control plane and its answer.
#[derive(Clone, Copy)]
struct Known {
    /// The table's sequence word when it was asked.
    sequence: u64,
    to: IpAddress,
    bound: IpAddress,
    ifindex: u32,
    hash: u32,
    answer: Lookup,
}

thread_local! {
    /// This thread's last question. Used only under the stack lock, so that no signal handler sees
    /// it half written. No destructor.
    static LAST: Cell<Option<Known>> = const { Cell::new(None) };
}

/// [`cplane::lookup`], answered from memory while the table has not changed. The caller holds the
/// stack lock.
pub(super) fn lookup(
    joined: &Joined,
    to: IpAddress,
    bound: IpAddress,
    ifindex: u32,
    hash: u32,
) -> Lookup {
    let sequence = joined.cplane.version();
    if let (Some(sequence), Some(known)) = (sequence, LAST.with(Cell::get))
        && known.sequence == sequence
        && (known.to, known.bound) == (to, bound)
        && (known.ifindex, known.hash) == (ifindex, hash)
    {
        return known.answer;
    }
    let answer = joined
        .cplane
        .read(|table| cplane::lookup(table, to, bound, ifindex, hash))
        .unwrap_or(Lookup::Kernel(CplaneReason::NoRoute));
    LAST.with(|last| {
        last.set(sequence.map(|sequence| Known {
            sequence,
            to,
            bound,
            ifindex,
            hash,
            answer,
        }));
    });
    answer
}
