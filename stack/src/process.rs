//! Processes, holders and waiters.
//!
//! A *process* slot stands for one process that has the image mapped. A *holder* is a process
//! that has a file descriptor of an endpoint; the last one's end destroys the endpoint. A *waiter*
//! is one thread or epoll set of a process that may *park*: it names the endpoints whose arrivals
//! are to wake it.
//!
//! Both kinds of slot are small numbers that are used again. A process slot is given back only
//! after its bits are gone from every endpoint, and a waiter slot likewise, so a new user never
//! inherits anything.

use crate::counters::Counter;
use crate::image::{UdpOptions, kind, process_state};
use crate::stack::Stack;
use crate::tcp::TcpOptions;
use crate::tcp::tcb::flag;
use crate::types::{
    EndpointId, PROCESSES, ProcessId, Stale, WaiterId, WatcherId, has_bit, set_bit,
};
use crate::udp::OpenError;

impl Stack<'_> {
    /// Takes a process slot. `start_time` tells two processes with one pid apart (field 22 of
    /// /proc/PID/stat). `None` when all 128 are taken.
    pub fn add_process(&mut self, pid: u32, start_time: u64, uid: u32) -> Option<ProcessId> {
        let free = self
            .head
            .processes
            .iter_mut()
            .zip(0u8..)
            .find(|(slot, _)| slot.live == 0);
        let Some((slot, index)) = free else {
            self.count(Counter::ProcessesFull);
            return None;
        };
        slot.live = process_state::LIVE;
        slot.generation = slot.generation.wrapping_add(1);
        slot.pid = pid;
        slot.start_time = start_time;
        slot.uid = uid;
        set_bit(&mut self.head.live_processes, index, true);
        self.clear_held(ProcessId(index));
        self.count(Counter::ProcessesAdded);
        Some(ProcessId(index))
    }

    /// How many slots for processes are free.
    #[must_use]
    pub fn free_processes(&self) -> usize {
        let slots = self.head.processes.iter();
        slots.filter(|slot| slot.live == 0).count()
    }

    /// Says which process owns a slot, after a fork.
    pub fn set_process_pid(&mut self, process: ProcessId, pid: u32, start_time: u64) {
        if let Some(slot) = self.head.processes.get_mut(usize::from(process.0))
            && slot.live != 0
        {
            slot.pid = pid;
            slot.start_time = start_time;
        }
    }

    /// The process that owns a slot: 0 = nobody has said so yet, `None` = the slot is not in use.
    #[must_use]
    pub fn process_pid(&self, process: ProcessId) -> Option<u32> {
        let slot = self.head.processes.get(usize::from(process.0))?;
        (slot.live != 0).then_some(slot.pid)
    }

    /// Whether the slot is in use.
    pub(crate) fn is_process(&self, process: ProcessId) -> bool {
        self.head
            .processes
            .get(usize::from(process.0))
            .is_some_and(|slot| slot.live != 0)
    }

    /// Says whether a process rests: then it opens no endpoints ([`OpenError::Resting`]), and
    /// neither does what it forks. What it has stays as it is.
    pub fn rest_process(&mut self, process: ProcessId, on: bool) {
        if let Some(slot) = self.head.processes.get_mut(usize::from(process.0))
            && slot.live != 0
        {
            if on {
                slot.live |= process_state::RESTS;
            } else {
                slot.live &= !process_state::RESTS;
            }
        }
    }

    /// Whether the process may open an endpoint.
    pub(crate) fn may_open(&self, process: ProcessId) -> Result<(), OpenError> {
        let slot = self.head.processes.get(usize::from(process.0));
        match slot.map_or(0, |slot| slot.live) {
            0 => Err(OpenError::NoProcess),
            live if live & process_state::RESTS != 0 => Err(OpenError::Resting),
            _ => Ok(()),
        }
    }

    /// Says whether a UDP endpoint or a listener rests: nothing new is led to it and whoever has it
    /// uses its shadow, as soon as what has come before is taken. For the shim; the stack itself
    /// goes on with whatever comes.
    ///
    /// # Errors
    /// [`Stale`].
    pub fn rest(&mut self, id: EndpointId, on: bool) -> Result<(), Stale> {
        self.endpoint(id)?;
        if let Ok(udp) = self.udp_state(id) {
            udp.options.set(UdpOptions::RESTING, on);
        } else if let Some(tcb) = self.tcbs.get_mut(id.index as usize) {
            tcb.options.set(TcpOptions::RESTING, on);
        }
        Ok(())
    }

    /// Whether [`Stack::rest`] holds for the endpoint.
    #[must_use]
    pub fn rests(&self, id: EndpointId) -> bool {
        let index = id.index as usize;
        let (udp, tcb) = (self.udp.get(index), self.tcbs.get(index));
        self.endpoint(id).is_ok_and(|endpoint| match endpoint.kind {
            kind::UDP => udp.is_some_and(|udp| udp.options.has(UdpOptions::RESTING)),
            _ => tcb.is_some_and(|tcb| tcb.options.has(TcpOptions::RESTING)),
        })
    }

    /// Gives a slot back: the process holds nothing any more and its waiters are gone. Returns
    /// how many endpoints nobody holds any more.
    pub fn remove_process(&mut self, process: ProcessId) -> u32 {
        if !self.is_process(process) {
            return 0;
        }
        for waiter in 0..=u8::MAX {
            if self.waiter_process(WaiterId(waiter)) == Some(process) {
                self.remove_waiter(WaiterId(waiter));
            }
            if self.watcher_process(WatcherId(waiter)) == Some(process) {
                self.remove_watcher(WatcherId(waiter));
            }
        }
        let (orphaned, _) = self.unhold_some(process, 0, u32::MAX);
        self.clear_held(process);
        set_bit(&mut self.head.live_processes, process.0, false);
        if let Some(slot) = self.head.processes.get_mut(usize::from(process.0)) {
            slot.live = 0;
            slot.pid = 0;
        }
        self.count(Counter::ProcessesRemoved);
        // It may have been killed between what it did to others' endpoints and waking them.
        self.wake_everybody();
        orphaned
    }

    /// Takes the process from so many of its endpoints at most, from an index on: how many nobody
    /// holds any more, and where to go on.
    pub fn unhold_some(&mut self, process: ProcessId, from: u32, most: u32) -> (u32, Option<u32>) {
        let (mut orphaned, mut from) = (0u32, from);
        for _ in 0..most {
            let Some(id) = self.next_held(process, from) else {
                return (orphaned, None);
            };
            orphaned = orphaned.wrapping_add(u32::from(self.unhold(id, process)));
            from = id.index.saturating_add(1);
        }
        (orphaned, Some(from))
    }

    /// Wakes every waiter: somebody may have ended who should have woken some.
    pub fn wake_everybody(&mut self) {
        for (slot, waiter) in self.head.waiters.iter().zip(0u8..) {
            if slot.live != 0 {
                set_bit(&mut self.head.wakeups, waiter, true);
            }
        }
    }

    /// Takes a slot for the child that `parent` is about to fork; it holds what the parent holds.
    /// Until [`Stack::set_process_pid`] its pid is 0 and its start time the parent's pid.
    pub fn fork_process(&mut self, parent: ProcessId) -> Option<ProcessId> {
        let slot = self
            .head
            .processes
            .get(usize::from(parent.0))
            .filter(|slot| slot.live != 0)?;
        let (pid, uid, live) = (slot.pid, slot.uid, slot.live);
        let child = self.add_process(0, pid.into(), uid)?;
        self.rest_process(child, live & process_state::RESTS != 0);
        self.copy_held(parent, child);
        Some(child)
    }

    /// The parent says who its child is, unless somebody has said so: the child may have ended
    /// before it could, and the slot may be another process's child's by now.
    pub fn name_child(&mut self, parent: ProcessId, child: ProcessId, pid: u32) {
        let slot = |of: ProcessId| self.head.processes.get(usize::from(of.0));
        if let (Some(by), Some(of)) = (slot(parent), slot(child))
            && (of.pid, of.start_time) == (0, by.pid.into())
        {
            self.set_process_pid(child, pid, 0);
        }
    }

    /// Takes a waiter slot for a thread or epoll set of a process. `None` when all 128 are taken
    /// or the process is unknown.
    pub fn add_waiter(&mut self, process: ProcessId) -> Option<WaiterId> {
        if !self.is_process(process) {
            return None;
        }
        let free = self
            .head
            .waiters
            .iter_mut()
            .zip(0u8..)
            .find(|(slot, _)| slot.live == 0);
        let Some((slot, index)) = free else {
            self.count(Counter::ProcessesFull);
            return None;
        };
        slot.live = 1;
        slot.process = u32::from(process.0);
        Some(WaiterId(index))
    }

    /// Gives a waiter slot back; it is parked nowhere any more.
    pub fn remove_waiter(&mut self, waiter: WaiterId) {
        let Some(slot) = self.head.waiters.get_mut(usize::from(waiter.0)) else {
            return;
        };
        slot.live = 0;
        set_bit(&mut self.head.wakeups, waiter.0, false);
        for endpoint in self.endpoints.iter_mut() {
            set_bit(&mut endpoint.waiters, waiter.0, false);
        }
        for watcher in &mut self.head.watchers {
            set_bit(&mut watcher.waiters, waiter.0, false);
        }
    }

    /// The process of a waiter, if the slot is in use.
    #[must_use]
    pub fn waiter_process(&self, waiter: WaiterId) -> Option<ProcessId> {
        let slot = self.head.waiters.get(usize::from(waiter.0))?;
        if slot.live == 0 {
            None
        } else {
            u8::try_from(slot.process).ok().map(ProcessId)
        }
    }

    /// Asks for a wake-up of the waiter at every arrival on the endpoint, until
    /// [`Stack::unpark`]. Check for queued datagrams under the same lock, after parking. A stale
    /// endpoint or unused waiter is ignored.
    pub fn park(&mut self, id: EndpointId, waiter: WaiterId) {
        if self.waiter_process(waiter).is_some()
            && let Ok(endpoint) = self.endpoint_mut(id)
        {
            set_bit(&mut endpoint.waiters, waiter.0, true);
        }
    }

    /// Takes [`Stack::park`] back.
    pub fn unpark(&mut self, id: EndpointId, waiter: WaiterId) {
        if let Ok(endpoint) = self.endpoint_mut(id) {
            set_bit(&mut endpoint.waiters, waiter.0, false);
        }
    }

    /// Makes a process a holder of the endpoint. A stale endpoint or unused slot is ignored.
    pub fn hold(&mut self, id: EndpointId, process: ProcessId) {
        if self.is_process(process) && self.endpoint(id).is_ok() {
            self.set_holder(id.index, process, true);
        }
    }

    /// Ends a process's hold. `true` if it was the last one: the endpoint is destroyed. A TCP
    /// endpoint closes instead, with the next [`Stack::flush`].
    pub fn unhold(&mut self, id: EndpointId, process: ProcessId) -> bool {
        let Ok(endpoint) = self.endpoint(id) else {
            return false;
        };
        let is_tcp = endpoint.kind == kind::TCP;
        self.set_holder(id.index, process, false);
        if self.holders_of(id.index) != [0, 0] {
            return false;
        }
        if is_tcp {
            // It closes in order, at the next flush, which has the memory for it.
            if let Some(tcb) = self.tcbs.get_mut(id.index as usize) {
                tcb.set(flag::CLOSE_DUE);
            }
            self.push_flush(id.index);
            return true;
        }
        self.destroy(id);
        true
    }

    /// The processes that hold the endpoint, a bit per slot; none for a stale id.
    #[must_use]
    pub fn holders(&self, id: EndpointId) -> [u64; 2] {
        self.endpoint(id)
            .map_or([0, 0], |_| self.holders_of(id.index))
    }

    /// Frees the waiters of processes that are gone, and takes slots that are not in use out of
    /// every set. Part of a recovery.
    pub(crate) fn clear_dead_slots(&mut self) {
        let mut processes = [0u64; 2];
        for (slot, index) in self.head.processes.iter().zip(0u8..) {
            set_bit(&mut processes, index, slot.live != 0);
        }
        self.head.live_processes = processes;
        for process in (0..PROCESSES as u8).filter(|slot| !has_bit(&processes, *slot)) {
            self.clear_held(ProcessId(process));
        }
        self.clear_beyond();
        let mut waiters = [0u64; 2];
        for (slot, index) in self.head.waiters.iter_mut().zip(0u8..) {
            let process = u8::try_from(slot.process).unwrap_or(u8::MAX);
            if !has_bit(&processes, process) {
                slot.live = 0;
            }
            set_bit(&mut waiters, index, slot.live != 0);
        }
        self.head.wakeups = both(self.head.wakeups, waiters);
        for watcher in &mut self.head.watchers {
            let process = u8::try_from(watcher.process).unwrap_or(u8::MAX);
            if !has_bit(&processes, process) {
                watcher.live = 0;
            }
            watcher.waiters = both(watcher.waiters, waiters);
        }
        for endpoint in self.endpoints.iter_mut() {
            endpoint.waiters = both(endpoint.waiters, waiters);
        }
    }
}

/// What is in both maps.
fn both([a, b]: [u64; 2], [c, d]: [u64; 2]) -> [u64; 2] {
    [a & c, b & d]
}
