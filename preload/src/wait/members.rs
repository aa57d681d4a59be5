//! The accelerated members of one epoll set, found by endpoint and by readiness.
//!
//! A member is found by its endpoint's index in one step, and by the set's *watcher* in the image
//! when its endpoint may be ready: a wait looks at those, not at all. A member whose endpoint
//! another set watches (a socket in two sets, a forked child's copy) is *polled*: asked at each
//! wait. A set that processes have in common since a fork has [`SharedMembers`] beside.

use bypass_runtime::attachment::Locked;
use bypass_stack::{EndpointId, Readiness, WatcherId, event};
use libc::{EPOLLERR, EPOLLET, EPOLLEXCLUSIVE, EPOLLHUP, EPOLLONESHOT, epoll_event};
use rustix::io::Errno;

use super::shared_members::SharedMembers;
use crate::{context, fdtable};

/// Bits of `events` that are modes, not conditions.
const MODES: u32 = (EPOLLET | EPOLLONESHOT | EPOLLEXCLUSIVE | libc::EPOLLWAKEUP) as u32;
/// Reported whether asked for or not.
const ALWAYS: u32 = (EPOLLERR | EPOLLHUP) as u32;
/// What an arrival concerns: a member that asks for none of these hears of no arrival.
const ARRIVALS: u32 = event::IN | event::RDNORM | event::PRI | event::RDHUP;
/// What room to send concerns.
const ROOM: u32 = event::OUT | event::WRNORM;
/// No slot.
const NONE: u32 = u32::MAX;

/// What reports make of a member.
#[derive(Clone, Copy, Debug)]
pub struct State {
    /// The edges when it was last reported.
    pub seen: (u32, u32),
    /// Not reported since it was added or modified.
    pub fresh: bool,
    /// A one-shot member that has been reported.
    pub disarmed: bool,
}

impl State {
    /// Of a member that was just added or modified.
    const NEW: Self = Self {
        seen: (0, 0),
        fresh: true,
        disarmed: false,
    };
}

/// One descriptor in the set.
#[derive(Debug)]
pub struct Member {
    /// The descriptor that was added.
    pub fd: i32,
    /// Its endpoint.
    pub endpoint: EndpointId,
    /// What was asked for, with the modes.
    pub events: u32,
    /// The caller's word.
    pub data: u64,
    /// Whether the kernel tells of its shadow too.
    pub shadowed: bool,
    /// What the shadow has told in this wait.
    pub shadow: u32,
    /// What reports have made of it.
    pub state: State,
    /// Whether the descriptor is one of this process's. (A relative may have added one of its own.)
    pub ours: bool,
    /// Its last change in [`SharedMembers`] that this process has.
    stamp: u32,
    /// The pass in which it was last looked at.
    pass: u32,
    /// Asked at each wait.
    polled: bool,
    /// Another member with an endpoint of the same index.
    next: u32,
}

impl Member {
    /// A member that was just added.
    #[must_use]
    pub fn new(fd: i32, endpoint: EndpointId, shadowed: bool, events: u32, data: u64) -> Self {
        Self {
            fd,
            endpoint,
            events,
            data,
            shadowed,
            shadow: 0,
            state: State::NEW,
            ours: true,
            stamp: 0,
            pass: 0,
            polled: true,
            next: NONE,
        }
    }

    /// EPOLL_CTL_MOD.
    pub fn modify(&mut self, events: u32, data: u64) {
        (self.events, self.data) = (events, data);
        self.state = State {
            seen: self.state.seen,
            ..State::NEW
        };
        self.shadow = 0;
    }

    /// What the kernel is to report when the connection is its own.
    #[must_use]
    pub fn kernel_events(&self) -> u32 {
        if self.state.disarmed {
            // Nothing until it is modified; the kernel would report an error once.
            (EPOLLONESHOT | EPOLLET) as u32
        } else {
            self.events
        }
    }

    /// Whether it stays on the ready list while it is ready.
    fn is_level(&self) -> bool {
        self.events & EPOLLET as u32 == 0 && !self.state.disarmed
    }

    /// What epoll reports for this member when the endpoint is as `now`; `take` notes that it was
    /// reported (fs/eventpoll.c:ep_item_poll and ep_poll_callback).
    pub fn report(&mut self, now: &Readiness, take: bool) -> u32 {
        if self.state.disarmed {
            return 0;
        }
        let wanted = self.events & !MODES | ALWAYS;
        let mut result = (now.events | self.shadow) & wanted;
        if self.events & EPOLLET as u32 != 0 {
            let arrived = now.in_edge != self.state.seen.0;
            let room = now.out_edge != self.state.seen.1;
            let moved = self.state.fresh
                || self.shadow != 0
                || arrived && room
                || arrived && wanted & ARRIVALS != 0
                || room && wanted & ROOM != 0;
            if !moved {
                result = 0;
            }
        }
        if take {
            (self.state.fresh, self.state.seen) = (false, (now.in_edge, now.out_edge));
            if result != 0 {
                self.shadow = 0;
                self.state.disarmed = self.events & EPOLLONESHOT as u32 != 0;
            }
        }
        result
    }
}

/// The accelerated members of a set.
#[derive(Debug, Default)]
pub struct Table {
    slots: Vec<Option<Member>>,
    free: Vec<u32>,
    /// First slot by endpoint index, [`NONE`] = none.
    by_endpoint: Vec<u32>,
    len: usize,
    polled: Vec<u32>,
    /// Slots of members whose shadows have told something.
    told: Vec<u32>,
    watcher: Option<WatcherId>,
    pass: u32,
    /// Where the next pass over the polled begins.
    turn: usize,
    shared: Option<SharedMembers>,
}

/// What the member in a slot would report now; `None` when its endpoint is gone, or nobody has it
/// any more. `take` notes that it was reported.
fn report(
    slots: &mut [Option<Member>],
    shared: Option<&SharedMembers>,
    slot: u32,
    locked: &mut Locked<'_>,
    take: bool,
) -> Option<u32> {
    let member = slots.get_mut(slot as usize)?.as_mut()?;
    let now = locked.stack().readiness(member.endpoint).ok()?;
    let Some(shared) = shared else {
        return Some(member.report(&now, take));
    };
    if locked.stack().holders(member.endpoint) == [0, 0] {
        return None;
    }
    shared.recall(slot, member);
    let events = member.report(&now, take);
    if take {
        shared.note(slot, member);
    }
    Some(events)
}

impl Table {
    /// How many members.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is no member.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The members, in no order.
    pub fn iter(&self) -> impl Iterator<Item = (u32, &Member)> {
        (0_u32..)
            .zip(&self.slots)
            .filter_map(|(slot, member)| Some((slot, member.as_ref()?)))
    }

    /// The member in a slot.
    pub fn get_mut(&mut self, slot: u32) -> Option<&mut Member> {
        self.slots.get_mut(slot as usize)?.as_mut()
    }

    /// The slot of the member that was added as this descriptor with this endpoint.
    #[must_use]
    pub fn find(&self, fd: i32, endpoint: EndpointId) -> Option<u32> {
        self.chain(endpoint)
            .find(|(_, member)| member.fd == fd && member.endpoint == endpoint)
            .map(|(slot, _)| slot)
    }

    /// Members whose endpoint has this index, of whatever generation.
    fn chain(&self, endpoint: EndpointId) -> impl Iterator<Item = (u32, &Member)> {
        let mut slot = self.first(endpoint);
        std::iter::from_fn(move || {
            let member = self.slots.get(slot as usize)?.as_ref()?;
            let here = slot;
            slot = member.next;
            Some((here, member))
        })
    }

    fn first(&self, endpoint: EndpointId) -> u32 {
        self.by_endpoint
            .get(endpoint.index as usize)
            .copied()
            .unwrap_or(NONE)
    }

    /// Adds a member; its slot. It is polled until [`Table::watch_polled`].
    ///
    /// # Errors
    /// `ENOSPC` when the memory that processes share is full.
    pub fn insert(&mut self, member: Member) -> Result<u32, Errno> {
        let is_free = |slot| self.shared.as_ref().is_none_or(|it| it.is_free(slot));
        let slot = match self.free.pop() {
            Some(slot) if is_free(slot) => slot,
            _ if is_free(self.slots.len() as u32) => self.slots.len() as u32,
            _ => return Err(Errno::NOSPC),
        };
        self.put(slot, member);
        self.publish(slot);
        Ok(slot)
    }

    /// Puts a member into a slot that is free.
    fn put(&mut self, slot: u32, mut member: Member) {
        let index = member.endpoint.index as usize;
        if self.by_endpoint.len() <= index {
            self.by_endpoint.resize(index + 1, NONE);
        }
        member.next = self.by_endpoint[index];
        member.polled = true;
        while self.slots.len() < slot as usize {
            self.free.push(self.slots.len() as u32);
            self.slots.push(None);
        }
        if slot as usize == self.slots.len() {
            self.slots.push(Some(member));
        } else {
            self.slots[slot as usize] = Some(member);
        }
        self.by_endpoint[index] = slot;
        self.polled.push(slot);
        self.len += 1;
    }

    /// Takes a member out. Its endpoint is not watched any more when `locked` is given and no other
    /// member has it.
    pub fn remove(&mut self, slot: u32, locked: Option<&mut Locked<'_>>) -> Option<Member> {
        let member = self.take_out(slot, locked)?;
        self.publish(slot);
        Some(member)
    }

    fn take_out(&mut self, slot: u32, locked: Option<&mut Locked<'_>>) -> Option<Member> {
        let member = self.slots.get_mut(slot as usize)?.take()?;
        self.free.push(slot);
        self.len -= 1;
        if member.polled {
            self.polled.retain(|other| *other != slot);
        }
        if member.shadow != 0 {
            self.told.retain(|other| *other != slot);
        }
        let index = member.endpoint.index as usize;
        if self.by_endpoint.get(index) == Some(&slot) {
            self.by_endpoint[index] = member.next;
        } else {
            let before = self.chain(member.endpoint).find(|(_, m)| m.next == slot);
            if let Some((before, _)) = before
                && let Some(before) = self.get_mut(before)
            {
                before.next = member.next;
            }
        }
        let shared = self
            .chain(member.endpoint)
            .any(|(_, other)| other.endpoint == member.endpoint);
        if let (Some(locked), Some(watcher), false) = (locked, self.watcher, shared) {
            locked.stack().unwatch(member.endpoint, watcher);
        }
        Some(member)
    }

    /// Takes every member of the endpoint out that is a descriptor of this process's, giving each
    /// to `each`.
    pub fn remove_endpoint(
        &mut self,
        endpoint: EndpointId,
        locked: &mut Locked<'_>,
        mut each: impl FnMut(&Member),
    ) {
        self.follow(locked);
        loop {
            let slot = self
                .chain(endpoint)
                .find(|(_, member)| member.endpoint == endpoint && member.ours)
                .map(|(slot, _)| slot);
            if let (Some(shared), Some(slot)) = (&self.shared, slot)
                && let Some(Some(member)) = self.slots.get_mut(slot as usize)
            {
                shared.recall(slot, member);
            }
            match slot.and_then(|slot| self.remove(slot, Some(&mut *locked))) {
                Some(member) => each(&member),
                None => return,
            }
        }
    }

    /// The set is gone: its watcher too.
    pub fn unwatch_all(&mut self, locked: &mut Locked<'_>) {
        if let Some(watcher) = self.watcher.take() {
            for member in self.slots.iter().flatten() {
                locked.stack().unwatch(member.endpoint, watcher);
            }
            locked.stack().remove_watcher(watcher);
        }
    }

    /// Every child from here on has the members in common with this process.
    ///
    /// # Errors
    /// What `mmap` answers.
    pub fn share(&mut self, most: usize) -> Result<(), Errno> {
        let mut shared = SharedMembers::new(most.max(2 * self.slots.len()))?;
        for (slot, member) in (0_u32..).zip(&mut self.slots) {
            if let Some(member) = member {
                member.stamp = shared.publish(slot, Some(&*member));
            }
        }
        self.shared = Some(shared);
        Ok(())
    }

    /// What it has in common with other processes.
    #[must_use]
    pub fn shared(&self) -> Option<&SharedMembers> {
        self.shared.as_ref()
    }

    /// The member in this slot has changed: relatives hear of it.
    pub fn publish(&mut self, slot: u32) {
        if let Some(shared) = &mut self.shared
            && let Some(member) = self.slots.get_mut(slot as usize)
        {
            let stamp = shared.publish(slot, member.as_ref());
            if let Some(member) = member {
                member.stamp = stamp;
            }
        }
    }

    /// Takes over what relatives have changed.
    #[inline]
    pub fn follow(&mut self, locked: &mut Locked<'_>) {
        if self.shared.as_ref().is_some_and(SharedMembers::is_news) {
            self.take_over(locked);
        }
    }

    #[cold]
    fn take_over(&mut self, locked: &mut Locked<'_>) {
        let Some(mut shared) = self.shared.take() else {
            return;
        };
        let endpoints = locked.stack().capacities().endpoints;
        for slot in 0..shared.used().max(self.slots.len() as u32) {
            let mine = self.slots.get(slot as usize).and_then(Option::as_ref);
            if mine.map(|member| member.stamp) == shared.stamp(slot) {
                continue;
            }
            self.take_out(slot, Some(&mut *locked));
            if let Some((mut member, stamp)) = shared.read(slot)
                && member.endpoint.index < endpoints
            {
                member.stamp = stamp;
                member.ours = fdtable::leads_to(member.fd, member.endpoint);
                self.free.retain(|other| *other != slot);
                self.put(slot, member);
            }
        }
        shared.seen();
        self.shared = Some(shared);
    }

    /// The endpoint is this process's no more, but a relative's: its members stay.
    pub fn disown(&mut self, endpoint: EndpointId) {
        for member in self.slots.iter_mut().flatten() {
            member.ours &= member.endpoint != endpoint;
        }
    }

    /// Takes out members whose endpoints are gone; how many. (Whoever has handed one over to the
    /// kernel may still be about to add it there: only where room is needed.)
    pub fn reap(&mut self, locked: &mut Locked<'_>) -> usize {
        let before = self.len;
        for slot in 0..self.slots.len() as u32 {
            let member = self.slots.get(slot as usize).and_then(Option::as_ref);
            if member.is_some_and(|member| !locked.stack().is_live(member.endpoint)) {
                self.remove(slot, None);
            }
        }
        before - self.len
    }

    /// A forked child: the watcher is the parent's, so every member is polled.
    pub fn after_fork_in_child(&mut self) {
        self.watcher = None;
        self.polled.clear();
        for (slot, member) in (0_u32..).zip(&mut self.slots) {
            if let Some(member) = member {
                member.polled = true;
                self.polled.push(slot);
            }
        }
    }

    /// The member has changed: it is looked at by the next wait, and sleepers are woken.
    pub fn touch(&mut self, slot: u32, locked: Option<&mut Locked<'_>>) {
        let Some(member) = self.slots.get_mut(slot as usize).and_then(Option::as_mut) else {
            return;
        };
        if member.polled {
            return;
        }
        if let (Some(locked), Some(watcher)) = (locked, self.watcher)
            && locked.stack().watch(member.endpoint, watcher)
        {
            return;
        }
        member.polled = true;
        self.polled.push(slot);
    }

    /// Takes polled members over into the watcher's care, where no other watcher has them.
    pub fn watch_polled(&mut self, locked: &mut Locked<'_>) {
        if self.polled.is_empty() {
            return;
        }
        if self.watcher.is_none() {
            self.watcher = locked.stack().add_watcher(context::process());
        }
        let Some(watcher) = self.watcher else { return };
        let slots = &mut self.slots;
        self.polled.retain(|&slot| {
            let member = slots.get_mut(slot as usize).and_then(Option::as_mut);
            member.is_some_and(|member| {
                member.polled = !locked.stack().watch(member.endpoint, watcher);
                member.polled
            })
        });
    }

    /// The watcher, once there is one.
    #[must_use]
    pub fn watcher(&self) -> Option<WatcherId> {
        self.watcher
    }

    /// Endpoints that a sleeper must park on, beside the watcher.
    pub fn polled(&self) -> impl Iterator<Item = EndpointId> + '_ {
        self.polled
            .iter()
            .filter_map(|&slot| Some(self.slots.get(slot as usize)?.as_ref()?.endpoint))
    }

    /// A shadow has told something of the member in this slot; its descriptor.
    pub fn tell(&mut self, slot: u32, events: u32) -> Option<i32> {
        let member = self.slots.get_mut(slot as usize)?.as_mut()?;
        if member.shadow == 0 {
            self.told.push(slot);
        }
        member.shadow |= events;
        Some(member.fd)
    }

    /// Whether a member would be reported now. Members on the ready list that are not ready leave
    /// it.
    pub fn any_ready(&mut self, locked: &mut Locked<'_>) -> bool {
        self.follow(locked);
        self.watch_polled(locked);
        let (slots, shared) = (&mut self.slots, self.shared.as_ref());
        let mut is_ready = |slot, locked: &mut Locked<'_>| {
            report(slots, shared, slot, locked, false).is_some_and(|events| events != 0)
        };
        for &slot in self.told.iter().chain(&self.polled) {
            if is_ready(slot, locked) {
                return true;
            }
        }
        let Some(watcher) = self.watcher else {
            return false;
        };
        for _ in 0..locked.stack().ready_count(watcher) {
            let Some(endpoint) = locked.stack().first_ready(watcher) else {
                return false;
            };
            let mut slot = self.first(endpoint);
            while let Some(member) = self.slots.get(slot as usize).and_then(Option::as_ref) {
                let (here, ours) = (slot, member.endpoint == endpoint);
                slot = member.next;
                let (slots, shared) = (&mut self.slots, self.shared.as_ref());
                if ours && report(slots, shared, here, locked, false).is_some_and(|it| it != 0) {
                    return true;
                }
            }
            locked.stack().take_ready(watcher);
        }
        false
    }

    /// Collects members that are ready; returns how many.
    pub fn collect(&mut self, locked: &mut Locked<'_>, out: &mut [epoll_event]) -> usize {
        self.follow(locked);
        self.watch_polled(locked);
        self.pass = self.pass.wrapping_add(1);
        let mut found = 0;
        self.collect_told(locked, out, &mut found);
        self.collect_polled(locked, out, &mut found);
        self.collect_watched(locked, out, &mut found);
        found
    }

    fn collect_told(
        &mut self,
        locked: &mut Locked<'_>,
        out: &mut [epoll_event],
        found: &mut usize,
    ) {
        while let Some(slot) = self.told.pop() {
            if *found == out.len() {
                self.told.push(slot);
                return;
            }
            self.look(slot, locked, out, found);
            // What was not asked for is forgotten: a level-triggered overlay tells again.
            if let Some(member) = self.get_mut(slot) {
                member.shadow = 0;
            }
        }
    }

    fn collect_polled(
        &mut self,
        locked: &mut Locked<'_>,
        out: &mut [epoll_event],
        found: &mut usize,
    ) {
        let total = self.polled.len();
        let start = self.turn;
        for step in 0..total {
            if *found == out.len() {
                return;
            }
            let at = (start + step) % total;
            // Fewer, when one of them turns out to be gone.
            let Some(&slot) = self.polled.get(at) else {
                continue;
            };
            if self.look(slot, locked, out, found) {
                self.turn = (at + 1) % total;
            }
        }
    }

    fn collect_watched(
        &mut self,
        locked: &mut Locked<'_>,
        out: &mut [epoll_event],
        found: &mut usize,
    ) {
        let Some(watcher) = self.watcher else { return };
        for _ in 0..locked.stack().ready_count(watcher) {
            if *found == out.len() {
                return;
            }
            let Some(endpoint) = locked.stack().take_ready(watcher) else {
                return;
            };
            let mut slot = self.first(endpoint);
            let mut again = false;
            while let Some(member) = self.slots.get(slot as usize).and_then(Option::as_ref) {
                let (here, ours) = (slot, member.endpoint == endpoint);
                slot = member.next;
                if ours && *found == out.len() {
                    again = true;
                } else if ours && self.look(here, locked, out, found) {
                    again |= self.get_mut(here).is_some_and(|member| member.is_level());
                }
            }
            if again {
                locked.stack().return_ready(endpoint, watcher);
            }
        }
    }

    /// Looks at one member, once in a pass; whether it is ready.
    fn look(
        &mut self,
        slot: u32,
        locked: &mut Locked<'_>,
        out: &mut [epoll_event],
        found: &mut usize,
    ) -> bool {
        let pass = self.pass;
        let Some(member) = self.get_mut(slot) else {
            return false;
        };
        if member.pass == pass {
            return true;
        }
        let (endpoint, shadowed) = (member.endpoint, member.shadowed);
        let (slots, shared) = (&mut self.slots, self.shared.as_ref());
        let Some(events) = report(slots, shared, slot, locked, true) else {
            // A connection has gone to the kernel, and its member follows (`handed_over`); so do
            // all that relatives may be about to hand over.
            let nobodys = match shared {
                None => shadowed,
                Some(_) => locked.stack().is_live(endpoint),
            };
            if nobodys {
                let locked = shared.is_some().then_some(locked);
                self.remove(slot, locked);
            }
            return false;
        };
        let Some(member) = self.get_mut(slot).filter(|_| events != 0) else {
            return false;
        };
        member.pass = pass;
        out[*found] = epoll_event {
            events,
            u64: member.data,
        };
        *found += 1;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ENDPOINT: EndpointId = EndpointId {
        index: 3,
        generation: 9,
    };

    fn readiness(events: u32, in_edge: u32, out_edge: u32) -> Readiness {
        Readiness {
            events,
            in_edge,
            out_edge,
        }
    }

    #[test]
    fn level_reports_as_long_as_it_is_so() {
        let mut member = Member::new(5, ENDPOINT, true, event::IN, 7);
        assert_eq!(member.report(&readiness(event::OUT, 0, 0), true), 0);
        let ready = readiness(event::IN | event::OUT | event::HUP, 1, 0);
        for _ in 0..2 {
            assert_eq!(member.report(&ready, true), event::IN | event::HUP);
        }
    }

    #[test]
    fn an_edge_is_reported_once_with_all_that_is_ready() {
        let asked = event::IN | event::OUT | EPOLLET as u32;
        let mut member = Member::new(5, ENDPOINT, true, asked, 7);
        let at = |edge| readiness(event::IN | event::OUT, edge, 0);
        assert_eq!(member.report(&at(1), true), event::IN | event::OUT);
        assert_eq!(member.report(&at(1), true), 0);
        assert_eq!(member.report(&at(2), false), event::IN | event::OUT);
        assert_eq!(member.report(&at(2), true), event::IN | event::OUT);
        member.modify(asked, 8);
        assert_eq!(member.report(&at(2), true), event::IN | event::OUT);
    }

    #[test]
    fn an_edge_of_the_other_direction_is_not_heard() {
        let mut member = Member::new(5, ENDPOINT, true, event::OUT | EPOLLET as u32, 7);
        let ready = |a, b| readiness(event::IN | event::OUT, a, b);
        assert_eq!(member.report(&ready(0, 0), true), event::OUT);
        assert_eq!(member.report(&ready(1, 0), true), 0);
        assert_eq!(member.report(&ready(1, 1), true), event::OUT);
        // A reset or FIN moves both: whoever watches hears of it.
        let mut urgent = Member::new(5, ENDPOINT, true, EPOLLET as u32, 7);
        assert_eq!(urgent.report(&readiness(0, 0, 0), true), 0);
        assert_eq!(
            urgent.report(&readiness(event::HUP, 1, 1), true),
            event::HUP
        );
    }

    #[test]
    fn one_shot_is_disarmed_by_a_report() {
        let mut member = Member::new(5, ENDPOINT, true, event::IN | EPOLLONESHOT as u32, 7);
        let ready = readiness(event::IN | event::HUP, 1, 0);
        assert_eq!(member.report(&ready, false), event::IN | event::HUP);
        assert_ne!(member.report(&ready, true), 0);
        assert_eq!(member.report(&readiness(event::IN, 2, 0), true), 0);
        member.modify(event::IN, 7);
        assert_eq!(member.report(&ready, true), event::IN | event::HUP);
    }

    #[test]
    fn members_are_found_by_descriptor_and_endpoint() {
        let mut table = Table::default();
        let later = EndpointId {
            generation: 10,
            ..ENDPOINT
        };
        let mut insert = |member| table.insert(member).expect("room");
        let one = insert(Member::new(5, ENDPOINT, true, 1, 50));
        let two = insert(Member::new(6, ENDPOINT, true, 1, 60));
        let three = insert(Member::new(5, later, true, 1, 70));
        assert_eq!(table.find(5, ENDPOINT), Some(one));
        assert_eq!(table.find(6, ENDPOINT), Some(two));
        assert_eq!(table.find(5, later), Some(three));
        assert_eq!(table.find(7, later), None);
        assert_eq!(table.remove(two, None).map(|member| member.data), Some(60));
        assert_eq!((table.find(6, ENDPOINT), table.len()), (None, 2));
        assert_eq!(table.find(5, ENDPOINT), Some(one));
        assert_eq!(table.insert(Member::new(8, later, true, 1, 80)), Ok(two));
        assert!(table.remove(three, None).is_some() && table.remove(three, None).is_none());
        assert_eq!(table.find(8, later), Some(two));
        assert_eq!(table.polled().collect::<Vec<_>>().len(), 2);
    }
}
