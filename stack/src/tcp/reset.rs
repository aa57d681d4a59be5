//! The TCP parts of an image as they are at first, and after the lock's owner has died inside an
//! update: connections whose books cannot be trusted are reset.

use super::input::errno;
use super::mini;
use super::tcb::{NEVER, TcpState, flag};
use crate::image::{NONE, kind};
use crate::stack::Stack;
use zerocopy::FromZeros;

impl Stack<'_> {
    /// Empties wheel, lists and minisockets; connections end with ECONNRESET, listeners stay.
    pub(crate) fn reset_tcp(&mut self) {
        self.head.wheel.reset();
        self.head.flush_head = NONE;
        self.head.flow_changes.zero();
        self.head.ended.zero();
        self.rebuild_ports();
        self.mini_buckets.fill(NONE);
        self.head.live_minis = 0;
        self.head.received_chunks = 0;
        self.head.retained_chunks = 0;
        let mut next = NONE;
        for (index, mini) in self.minis.iter_mut().enumerate().rev() {
            mini.zero();
            mini.kind = mini::kind::FREE;
            mini.timer_tick = NEVER;
            mini.next = next;
            next = index as u32;
        }
        self.head.free_mini = next;
        for slot in self.segments.iter_mut() {
            slot.zero();
            slot.owner = NONE;
        }
        for (tcb, endpoint) in self.tcbs.iter_mut().zip(self.endpoints.iter()) {
            let state = tcb.state();
            let options = tcb.options;
            let (backlog, edges) = (tcb.backlog, (tcb.in_edge, tcb.out_edge));
            tcb.flush_next = NONE;
            tcb.on_flush = 0;
            tcb.reset(options);
            if endpoint.kind != kind::TCP {
                continue;
            }
            tcb.backlog = backlog;
            tcb.in_edge = edges.0.wrapping_add(1);
            tcb.out_edge = edges.1.wrapping_add(1);
            if state == TcpState::Listen {
                tcb.state = TcpState::Listen as u8;
            } else {
                tcb.set(flag::SEND_SHUT | flag::RECEIVE_SHUT | flag::RESET);
                tcb.error = errno::ECONNRESET;
            }
        }
    }

    /// Whether an endpoint stays in the tables after [`Stack::reset_tcp`].
    pub(crate) fn keeps_its_place(&self, index: u32) -> bool {
        let is_tcp = self
            .endpoints
            .get(index as usize)
            .is_some_and(|endpoint| endpoint.kind == kind::TCP);
        !is_tcp
            || self
                .tcbs
                .get(index as usize)
                .is_some_and(|tcb| tcb.state() == TcpState::Listen)
    }
}
