//! What a UDP socket may keep unread: SO_RCVBUF as Linux counts it, and a share of the chunks.
//!
//! Linux charges a datagram with the memory that its sender's kernel has allocated for it
//! (`truesize`), which comes in powers of two. Programs tune SO_RCVBUF by what it keeps, so the
//! same is charged here, whatever a chunk costs. Measured on Linux 6.18 by SO_MEMINFO, every size
//! to 9000 bytes, and held by the conformance case `options_rcvbuf_keeps`.
//!
//! Chunks are shared: an endpoint may hold as many as are free beyond a quarter of all, so that `n`
//! unread sockets settle at the n+1st part of that each. Whoever is below them finds room.

use crate::counters::DropReason;

/// `struct sk_buff` itself, in bytes.
const BUFFER: u32 = 256;
/// `struct skb_shared_info`, behind the data.
const SHARED: u32 = 320;
/// The smallest allocation for data and what is behind it.
const SMALLEST: u32 = 576;
/// Room before a payload: link and network headers, their alignment, UDP's header; over IPv6 also
/// for a fragment header.
const IN_FRONT_V4: u32 = 59;
const IN_FRONT_V6: u32 = 72;
/// Datagrams that an endpoint may keep when chunks are scarce but there.
const FEW: u32 = 16;

/// What a datagram costs against the receive buffer, in units of 64 bytes: all that Linux charges
/// are multiples of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Charge(pub(crate) u16);

impl Charge {
    /// Of a datagram with this payload over IPv4 or IPv6.
    #[inline]
    pub(crate) fn of(len: u16, is_v4: bool) -> Self {
        let in_front = if is_v4 { IN_FRONT_V4 } else { IN_FRONT_V6 };
        let data = u32::from(len).wrapping_add(in_front.wrapping_add(SHARED));
        let allocated = if data <= SMALLEST {
            SMALLEST
        } else {
            data.next_power_of_two()
        };
        Self((allocated.wrapping_add(BUFFER) / 64) as u16)
    }

    /// In bytes.
    #[inline]
    pub(crate) fn bytes(self) -> u32 {
        u32::from(self.0).wrapping_mul(64)
    }
}

/// Whether an endpoint that keeps `queued` datagrams has its share of `all` chunks, of which `free`
/// are free.
#[inline]
pub(crate) fn has_its_share(queued: u32, free: u32, all: u32) -> bool {
    let quarter = all / 4;
    let below = queued < quarter && queued.saturating_add(quarter) < free;
    !below && (queued >= FEW || free <= all / 16)
}

/// Why an endpoint that keeps something already does not take one more datagram.
#[inline]
pub(crate) fn refuses(
    queued: u32,
    queued_bytes: u32,
    charge: Charge,
    rcvbuf_bytes: u32,
    (free, all): (u32, u32),
) -> Option<DropReason> {
    if queued_bytes.saturating_add(charge.bytes()) > rcvbuf_bytes {
        Some(DropReason::BufferFull)
    } else if has_its_share(queued, free, all) {
        Some(DropReason::ChunkShare)
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_datagram_costs_what_linux_charges() {
        let cost = |len, is_v4| Charge::of(len, is_v4).bytes();
        for (is_v4, steps) in [
            (true, [197, 645, 1669, 3717, 7813]),
            (false, [184, 632, 1656, 3704, 7800]),
        ] {
            let truesizes = [832, 1280, 2304, 4352, 8448, 16_640];
            assert_eq!(cost(0, is_v4), truesizes[0]);
            for (step, last) in steps.into_iter().enumerate() {
                assert_eq!(cost(last, is_v4), truesizes[step]);
                assert_eq!(cost(last + 1, is_v4), truesizes[step + 1]);
            }
        }
        assert_eq!(cost(u16::MAX, true), 131_072 + 256);
    }

    #[test]
    fn shares_leave_something_for_the_next() {
        const ALL: u32 = 16_384;
        for sockets in [1, 4, 16, 64, 200] {
            let mut room = [0; 200];
            let queued = &mut room[..sockets];
            let mut free = ALL - 2048;
            for _ in 0..ALL {
                for one in &mut *queued {
                    if *one == 0 || !has_its_share(*one, free, ALL) {
                        *one += 1;
                        free -= 1;
                    }
                }
            }
            assert!(free >= ALL / 4, "{sockets} sockets leave {free}");
            assert!(!has_its_share(FEW - 1, free, ALL), "{sockets}");
            let (most, least) = (queued.iter().max().unwrap(), queued.iter().min().unwrap());
            assert!(most - least <= 1, "{sockets} sockets: {least} to {most}");
        }
    }
}
