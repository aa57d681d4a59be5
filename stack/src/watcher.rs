//! Watchers: how an epoll set learns which of thousands of endpoints may be ready.
//!
//! A *watcher* is one epoll set of one process. An endpoint has at most one watcher; whatever
//! changes its readiness appends it to the watcher's *ready list* (once) and wakes the watcher's
//! parked waiters, so that a wait costs what is ready and not what is watched. A set that comes
//! second to an endpoint (a socket in two sets, a forked child's copy) asks it at each wait, and
//! parks on it, as poll does.
//!
//! ```text
//!   notify(endpoint) --> ready list of its watcher --> take_ready --> still ready and level-
//!                                                                     triggered: return_ready
//! ```
//!
//! The list is first in, first out: members that stay ready go to its end, so none starves
//! (fs/eventpoll.c:ep_send_events does the same).

use crate::counters::Counter;
use crate::image::{Head, NONE, ReadyLink, UNLISTED, WatcherSlot};
use crate::stack::Stack;
use crate::types::{EndpointId, ProcessId, WaiterId, WatcherId, set_bit};

impl Stack<'_> {
    /// Takes a watcher slot for an epoll set of a process. `None` when all 128 are taken or the
    /// process is unknown.
    pub fn add_watcher(&mut self, process: ProcessId) -> Option<WatcherId> {
        if !self.is_process(process) {
            return None;
        }
        let free = self
            .head
            .watchers
            .iter_mut()
            .zip(0u8..)
            .find(|(slot, _)| slot.live == 0);
        let Some((slot, index)) = free else {
            self.count(Counter::ProcessesFull);
            return None;
        };
        *slot = WatcherSlot {
            live: 1,
            process: u32::from(process.0),
            ..EMPTY
        };
        Some(WatcherId(index))
    }

    /// Gives a watcher slot back; it watches nothing any more.
    pub fn remove_watcher(&mut self, watcher: WatcherId) {
        let Some(slot) = self.head.watchers.get_mut(usize::from(watcher.0)) else {
            return;
        };
        let watched = slot.endpoints;
        *slot = EMPTY;
        if watched == 0 {
            return;
        }
        let number = u32::from(watcher.0).wrapping_add(1);
        for (endpoint, link) in self.endpoints.iter_mut().zip(self.ready.iter_mut()) {
            if endpoint.watcher == number {
                endpoint.watcher = 0;
                link.next = UNLISTED;
            }
        }
    }

    /// The process of a watcher, if the slot is in use.
    #[must_use]
    pub fn watcher_process(&self, watcher: WatcherId) -> Option<ProcessId> {
        let slot = self.head.watchers.get(usize::from(watcher.0))?;
        if slot.live == 0 {
            None
        } else {
            u8::try_from(slot.process).ok().map(ProcessId)
        }
    }

    /// Makes the watcher hear of the endpoint, beginning with now: it is put on the ready list.
    /// `false` when another watcher has it, or the endpoint is stale, or the slot not in use.
    pub fn watch(&mut self, id: EndpointId, watcher: WatcherId) -> bool {
        if self.watcher_process(watcher).is_none() {
            return false;
        }
        let number = u32::from(watcher.0).wrapping_add(1);
        let Ok(endpoint) = self.endpoint_mut(id) else {
            return false;
        };
        if endpoint.watcher == 0 {
            endpoint.watcher = number;
            if let Some(slot) = self.head.watchers.get_mut(usize::from(watcher.0)) {
                slot.endpoints = slot.endpoints.saturating_add(1);
            }
        } else if endpoint.watcher != number {
            return false;
        }
        self.list_ready(id.index);
        true
    }

    /// Takes [`Stack::watch`] back. Nothing happens when another watcher has the endpoint.
    pub fn unwatch(&mut self, id: EndpointId, watcher: WatcherId) {
        let number = u32::from(watcher.0).wrapping_add(1);
        if self
            .endpoint(id)
            .is_ok_and(|endpoint| endpoint.watcher == number)
        {
            self.end_watch(id.index);
        }
    }

    /// Asks for a wake-up of the waiter whenever an endpoint comes to the watcher's ready list,
    /// until [`Stack::unpark_watcher`]. Look at the list under the same lock, after parking.
    pub fn park_watcher(&mut self, watcher: WatcherId, waiter: WaiterId) {
        if self.waiter_process(waiter).is_some()
            && let Some(slot) = self.head.watchers.get_mut(usize::from(watcher.0))
        {
            set_bit(&mut slot.waiters, waiter.0, true);
        }
    }

    /// Takes [`Stack::park_watcher`] back.
    pub fn unpark_watcher(&mut self, watcher: WatcherId, waiter: WaiterId) {
        if let Some(slot) = self.head.watchers.get_mut(usize::from(watcher.0)) {
            set_bit(&mut slot.waiters, waiter.0, false);
        }
    }

    /// How many endpoints are on the watcher's ready list.
    #[must_use]
    pub fn ready_count(&self, watcher: WatcherId) -> u32 {
        self.head
            .watchers
            .get(usize::from(watcher.0))
            .map_or(0, |slot| slot.count)
    }

    /// The first endpoint of the watcher's ready list; it stays there.
    #[must_use]
    pub fn first_ready(&self, watcher: WatcherId) -> Option<EndpointId> {
        let slot = self.head.watchers.get(usize::from(watcher.0))?;
        if slot.live == 0 {
            return None;
        }
        self.endpoints
            .get(slot.head as usize)
            .map(|endpoint| EndpointId {
                index: slot.head,
                generation: endpoint.generation,
            })
    }

    /// Takes the first endpoint off the watcher's ready list.
    pub fn take_ready(&mut self, watcher: WatcherId) -> Option<EndpointId> {
        let first = self.first_ready(watcher)?;
        let number = u32::from(watcher.0).wrapping_add(1);
        let belongs = self
            .endpoints
            .get(first.index as usize)
            .is_some_and(|endpoint| endpoint.watcher == number);
        let listed = self
            .ready
            .get(first.index as usize)
            .is_some_and(|link| link.next != UNLISTED);
        if !belongs || !listed {
            self.rebuild_watcher(watcher);
            return None;
        }
        self.unlist(first.index);
        Some(first)
    }

    /// Puts an endpoint that [`Stack::take_ready`] gave, and that is ready still, at the end of
    /// its watcher's list. Wakes nobody: nothing has happened.
    pub fn return_ready(&mut self, id: EndpointId, watcher: WatcherId) {
        let number = u32::from(watcher.0).wrapping_add(1);
        if self
            .endpoint(id)
            .is_ok_and(|endpoint| endpoint.watcher == number)
        {
            let before = self.head.wakeups;
            self.list_ready(id.index);
            self.head.wakeups = before;
        }
    }

    /// The endpoint's readiness has changed: wakes whoever waits for it.
    #[inline]
    pub(crate) fn notify(&mut self, index: u32) {
        let Some(endpoint) = self.endpoints.get(index as usize) else {
            return;
        };
        let [low, high] = endpoint.waiters;
        self.head.wakeups[0] |= low;
        self.head.wakeups[1] |= high;
        if endpoint.watcher != 0 {
            self.list_ready(index);
        }
    }

    /// Appends an endpoint to its watcher's list, if it is not there, and wakes the waiters.
    fn list_ready(&mut self, index: u32) {
        if let Some(endpoint) = self.endpoints.get(index as usize) {
            list_ready(self.head, self.ready, endpoint.watcher, index);
        }
    }

    /// Takes an endpoint off its watcher's list, if it is there.
    fn unlist(&mut self, index: u32) {
        let Some(link) = self.ready.get_mut(index as usize) else {
            return;
        };
        let (next, previous) = (link.next, link.previous);
        if next == UNLISTED {
            return;
        }
        link.next = UNLISTED;
        let Some(slot) = self
            .endpoints
            .get(index as usize)
            .and_then(|endpoint| (endpoint.watcher as usize).checked_sub(1))
            .and_then(|number| self.head.watchers.get_mut(number))
        else {
            return;
        };
        if slot.head == index {
            slot.head = next;
        } else if let Some(before) = self.ready.get_mut(previous as usize)
            && before.next == index
        {
            before.next = next;
        }
        if slot.tail == index {
            slot.tail = previous;
        } else if let Some(after) = self.ready.get_mut(next as usize)
            && after.previous == index
        {
            after.previous = previous;
        }
        slot.count = slot.count.saturating_sub(1);
        if slot.head == NONE {
            slot.tail = NONE;
            slot.count = 0;
        }
    }

    /// The endpoint has no watcher any more.
    pub(crate) fn end_watch(&mut self, index: u32) {
        self.unlist(index);
        let Some(endpoint) = self.endpoints.get_mut(index as usize) else {
            return;
        };
        let number = core::mem::take(&mut endpoint.watcher);
        if let Some(slot) = (number as usize)
            .checked_sub(1)
            .and_then(|number| self.head.watchers.get_mut(number))
        {
            slot.endpoints = slot.endpoints.saturating_sub(1);
        }
    }

    /// Makes the watcher's list anew, of all its endpoints, after it was found broken.
    #[cold]
    fn rebuild_watcher(&mut self, watcher: WatcherId) {
        self.count(Counter::CorruptList);
        let number = u32::from(watcher.0).wrapping_add(1);
        self.list_all(|watched| watched == number);
    }

    /// Makes every list anew, of all watched endpoints: nothing that happened is lost. Part of a
    /// recovery.
    pub(crate) fn rebuild_watchers(&mut self) {
        self.list_all(|_| true);
    }

    /// Empties the lists of the chosen watchers (by number plus one) and lists all their endpoints.
    fn list_all(&mut self, chosen: impl Fn(u32) -> bool) {
        for (slot, number) in self.head.watchers.iter_mut().zip(1u32..) {
            if chosen(number) {
                (slot.head, slot.tail) = (NONE, NONE);
                (slot.count, slot.endpoints) = (0, 0);
            }
        }
        for index in 0..self.endpoints.len() as u32 {
            let Some(endpoint) = self.endpoints.get_mut(index as usize) else {
                return;
            };
            let (live, number) = (endpoint.is_live(), endpoint.watcher);
            if number != 0 && !chosen(number) {
                continue;
            }
            if let Some(link) = self.ready.get_mut(index as usize) {
                link.next = UNLISTED;
            }
            let slot = (number as usize)
                .checked_sub(1)
                .and_then(|number| self.head.watchers.get_mut(number))
                .filter(|slot| live && slot.live != 0);
            match slot {
                Some(slot) => {
                    slot.endpoints = slot.endpoints.saturating_add(1);
                    self.list_ready(index);
                }
                None => endpoint.watcher = 0,
            }
        }
    }
}

/// Appends the endpoint `index`, whose watcher's number plus one is `watcher`, to that watcher's
/// list, if it is not there, and wakes the watcher's waiters.
pub(crate) fn list_ready(head: &mut Head, ready: &mut [ReadyLink], watcher: u32, index: u32) {
    let slot = (watcher as usize)
        .checked_sub(1)
        .and_then(|number| head.watchers.get_mut(number));
    let Some(slot) = slot else { return };
    let [low, high] = slot.waiters;
    head.wakeups[0] |= low;
    head.wakeups[1] |= high;
    match ready.get_mut(index as usize) {
        Some(link) if link.next == UNLISTED => {
            link.next = NONE;
            link.previous = slot.tail;
        }
        _ => return,
    }
    match ready.get_mut(slot.tail as usize) {
        Some(last) if slot.head != NONE => last.next = index,
        _ => {
            slot.head = index;
            slot.count = 0;
            if let Some(link) = ready.get_mut(index as usize) {
                link.previous = NONE;
            }
        }
    }
    slot.tail = index;
    slot.count = slot.count.saturating_add(1);
}

/// A watcher slot that is not in use.
const EMPTY: WatcherSlot = WatcherSlot {
    live: 0,
    process: 0,
    head: NONE,
    tail: NONE,
    count: 0,
    endpoints: 0,
    waiters: [0; 2],
};

impl ReadyLink {
    /// Whether the endpoint is on a ready list.
    pub(crate) fn is_listed(&self) -> bool {
        self.next != UNLISTED
    }
}
