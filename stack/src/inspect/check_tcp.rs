//! [`Image::check`] of connections: their queues, counts, and chunks.

use super::Image;
use super::check::{Problem, ProblemKind};
use crate::image::{NONE, chunk_state, kind};
use crate::tcp::mini;
use crate::tcp::pool::mark;
use crate::tcp::seq::before;
use crate::tcp::tcb::Tcb;

/// What a queue of a connection holds.
#[derive(Default)]
struct Walked {
    chunks: u32,
    bytes: u32,
    last: Option<u32>,
    /// Sequence number behind the last segment.
    end: u32,
    sent: u32,
    sacked: u32,
    lost: u32,
    retransmitted: u32,
}

impl Image<'_> {
    /// There are as many minisockets of each kind as the counts say.
    fn check_minisockets(&self, report: &mut dyn FnMut(Problem)) {
        let head = self.slabs.head;
        for (which, told) in [
            (mini::kind::REQUEST, head.requests),
            (mini::kind::TIME_WAIT, head.time_waits),
        ] {
            let minis = self.slabs.minis.iter();
            let seen = minis.filter(|mini| mini.kind == which).count() as u32;
            if seen != told {
                report(count("minisockets", u32::from(which)));
            }
        }
    }

    /// Every chunk of a connection is on one of its queues, once; counts agree; queues are in order
    /// of sequence numbers.
    pub(super) fn check_connections(&self, report: &mut dyn FnMut(Problem)) {
        self.check_minisockets(report);
        let (mut retained, mut received) = (0u32, 0u32);
        for (index, endpoint) in self.live() {
            let Some(tcb) = self.slabs.tcbs.get(index as usize) else {
                continue;
            };
            if endpoint.kind != kind::TCP {
                continue;
            }
            retained = retained.saturating_add(self.check_send_queue(index, tcb, report));
            let in_order = self.walk_segments(index, tcb.rx_head, false, tcb, report);
            let early = self.walk_segments(index, tcb.ooo_head, false, tcb, report);
            let sound = in_order.bytes == tcb.rx_bytes
                && in_order.last.unwrap_or(NONE) == tcb.rx_tail
                && early.bytes == tcb.ooo_bytes
                && early.chunks == tcb.ooo_count
                && in_order.chunks.saturating_add(early.chunks) == tcb.rx_chunks
                && tcb.copied_seq.wrapping_add(tcb.rx_bytes) == in_order_end(tcb);
            if !sound {
                report(count("connection's receive queues", index));
            }
            received = received
                .saturating_add(in_order.chunks)
                .saturating_add(early.chunks);
        }
        let in_state = |wanted: fn(u8) -> bool| {
            let slots = self.slabs.chunks.iter();
            slots.filter(|slot| wanted(slot.state)).count() as u32
        };
        let is_retained =
            |state| matches!(state, chunk_state::RETAINED | chunk_state::RETAINED_SENDING);
        for (place, there, seen) in [
            ("send queues", in_state(is_retained), retained),
            (
                "connection's receive queues",
                in_state(|state| state == chunk_state::RECEIVED),
                received,
            ),
        ] {
            if there != seen {
                report(Problem {
                    kind: ProblemKind::ChunkLost,
                    place,
                    index: there.abs_diff(seen),
                });
            }
        }
    }

    fn check_send_queue(&self, index: u32, tcb: &Tcb, report: &mut dyn FnMut(Problem)) -> u32 {
        let walked = self.walk_segments(index, tcb.queue_head, true, tcb, report);
        let has_sack = tcb.has(crate::tcp::tcb::flag::SACK);
        let sound = walked.chunks == tcb.queued_chunks
            && walked.last.unwrap_or(NONE) == tcb.queue_tail
            && walked.sent == tcb.packets_out
            && (!has_sack || walked.sacked == tcb.sacked_out)
            && walked.lost == tcb.lost_out
            && walked.retransmitted == tcb.retrans_out;
        if !sound {
            report(count("send queue", index));
        }
        walked.chunks
    }

    fn walk_segments(
        &self,
        owner: u32,
        first: u32,
        is_send_queue: bool,
        tcb: &Tcb,
        report: &mut dyn FnMut(Problem),
    ) -> Walked {
        let mut walked = Walked::default();
        let (mut next, mut unsent) = (first, false);
        while next != NONE {
            unsent |= next == tcb.unsent;
            let both = self.slabs.segments.get(next as usize);
            let both = both.zip(self.slabs.chunks.get(next as usize));
            let kind = match both {
                None => ProblemKind::BadIndex,
                Some(_) if walked.chunks as usize >= self.slabs.chunks.len() => ProblemKind::Cycle,
                Some((segment, chunk))
                    if segment.owner != owner || belongs(chunk.state) != Some(is_send_queue) =>
                {
                    ProblemKind::Foreign
                }
                Some((segment, _)) if walked.chunks > 0 && before(segment.seq, walked.end) => {
                    ProblemKind::Count
                }
                Some((segment, _)) => {
                    walked.chunks = walked.chunks.saturating_add(1);
                    walked.bytes = walked.bytes.saturating_add(u32::from(segment.len));
                    walked.last = Some(next);
                    walked.end = segment.end();
                    if is_send_queue && !unsent {
                        walked.sent = walked.sent.saturating_add(1);
                        let one = |mark| u32::from(segment.has(mark));
                        walked.sacked = walked.sacked.saturating_add(one(mark::SACKED));
                        walked.lost = walked.lost.saturating_add(one(mark::LOST));
                        walked.retransmitted = walked
                            .retransmitted
                            .saturating_add(one(mark::RETRANSMITTED));
                    }
                    next = segment.next;
                    continue;
                }
            };
            report(Problem {
                kind,
                place: "connection's queue",
                index: next,
            });
            break;
        }
        walked
    }
}

/// The end of the in-order data: a FIN that was taken has a number, but no byte.
fn in_order_end(tcb: &Tcb) -> u32 {
    let fin = tcb.has(crate::tcp::tcb::flag::FIN_RECEIVED);
    tcb.rcv_nxt.wrapping_sub(u32::from(fin))
}

/// Whether a chunk in this state is on a send queue (`true`) or a receive queue.
fn belongs(state: u8) -> Option<bool> {
    match state {
        chunk_state::RETAINED | chunk_state::RETAINED_SENDING => Some(true),
        chunk_state::RECEIVED => Some(false),
        _ => None,
    }
}

fn count(place: &'static str, index: u32) -> Problem {
    Problem {
        kind: ProblemKind::Count,
        place,
        index,
    }
}
