//! A connection in FIN_WAIT_2 that no program holds: all that it waits for is the peer's FIN, and
//! it needs no more than a time wait does. What else comes is answered as Linux answers it, whose
//! orphan is a minisocket then (net/ipv4/tcp_minisocks.c:tcp_timewait_state_process).

use super::connection::{Connection, may_answer};
use super::input::{Arrived, length};
use super::mini::is_in_window;
use super::reset::Reset;
use super::seq::{after, before};
use super::tcb::{TcpState, flag};
use crate::counters::{Counter, DropReason};
use crate::types::{Instant, Memory};
use crate::wire::tcp::flags;

impl Connection<'_> {
    /// Whether it only waits for the peer's FIN.
    pub(super) fn is_waiting_orphan(&self) -> bool {
        self.tcb.state() == TcpState::FinWait2 && self.tcb.has(flag::ORPHAN)
    }

    /// Takes a segment; data is reset, for nobody will read it.
    pub(super) fn input_orphan(
        &mut self,
        memory: &mut impl Memory,
        arrived: &Arrived<'_>,
        now: Instant,
    ) -> Result<(), DropReason> {
        let segment = arrived.segment;
        let next = self.tcb.rcv_nxt;
        let end = segment.seq.wrapping_add(length(segment));
        let is_old = self.is_old_timestamp(segment, now);
        if is_old || !is_in_window(segment, next, self.tcb.receive_window()) {
            let least_ms = self.pool.head.tcp_defaults.invalid_ratelimit_ms;
            if segment.flags & flags::RST == 0
                && may_answer(&mut self.tcb.answered_ms, least_ms, segment, now)
            {
                self.tcb.set(flag::ACK_NOW);
            }
            return Err(if is_old {
                DropReason::TcpOldTimestamp
            } else {
                DropReason::TcpWindow
            });
        }
        if segment.flags & flags::RST != 0 {
            self.pool.count(Counter::TcpResetsReceived);
            self.finish(0);
            return Ok(());
        }
        let has_ack = segment.flags & flags::ACK != 0;
        let is_new = has_ack && after(end, next) && end != segment.seq;
        let is_fin = segment.flags & flags::FIN != 0 && end == next.wrapping_add(1);
        let is_syn = segment.flags & flags::SYN != 0 && !before(segment.seq, next);
        if is_syn || is_new && !is_fin {
            self.pool.send_reset(memory, &Reset::answering(arrived));
            self.finish(0);
        } else if is_new {
            self.take_fin(now);
            if let Some(timestamps) = segment.options.timestamps {
                self.tcb.ts_recent = timestamps.value;
            }
        }
        Ok(())
    }
}
