//! Giving back what the dead held, and what could not be done at once.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

use bypass_runtime::flows::Flow;
use bypass_stack::inspect::Image;
use bypass_stack::{EndpointId, ProcessId};

use super::counters::Counter;
use super::filters::Filter;
use super::netlink::diag;
use super::process::{Process, mapped_images};
use super::rollback::WAY;
use super::server::Server;
use super::stacks::{Busy, StackEntry};

/// When to try again what a busy lock prevented: soon, then ever later.
const RETRY: (Duration, Duration) = (Duration::from_millis(20), Duration::from_secs(1));
/// Sweeps between two looks for processes that nobody has told us of.
const LOOK_EVERY: u32 = 10;
/// Endpoints that a dead process is taken from under one lock.
const UNHELD_AT_ONCE: u32 = 1024;
/// How long a forked child's slot may be without a process.
const BIRTH: Duration = Duration::from_secs(5);
/// How long a stack without a process lives at most, whatever its image says.
const LONGEST_PARTING: Duration = Duration::from_secs(120);
/// How long it has for the frames that its programs have left behind. A relay takes a millisecond,
/// or some turns of a busy processor; a queue without a link takes none.
const LAST_FRAMES: Duration = Duration::from_millis(500);

/// Work that waits.
#[derive(Debug, Default)]
pub(super) struct Chores {
    /// Slots of dead processes that could not be given back yet.
    slots: Vec<(u32, ProcessId)>,
    /// Stacks whose images may name processes that are not watched.
    unknown: Vec<u32>,
    /// Whether there are stacks that could not be adopted yet.
    unadopted: bool,
    /// Slots without a process, since when.
    unborn: Vec<(u32, ProcessId, Instant)>,
    retry_at: Option<Instant>,
    pause: Duration,
    sweeps: u32,
}

impl Chores {
    /// Gives a slot back at the next opportunity.
    pub(super) fn remove_slot(&mut self, uid: u32, slot: ProcessId) {
        if !self.slots.contains(&(uid, slot)) {
            self.slots.push((uid, slot));
        }
        self.try_again();
    }

    /// The slot has its process, or had it: the next child there is given time again.
    fn note_born(&mut self, uid: u32, slot: ProcessId) {
        self.unborn.retain(|(u, s, _)| (*u, *s) != (uid, slot));
    }

    /// The users for whose stacks something waits.
    fn users(&self) -> Vec<u32> {
        let slots = self.slots.iter().map(|(uid, _)| *uid);
        let mut users: Vec<u32> = slots.chain(self.unknown.iter().copied()).collect();
        users.sort_unstable();
        users.dedup();
        users
    }

    /// What waits for a stack: slots, and whether its image is to be looked into.
    fn take(&mut self, uid: u32) -> (Vec<ProcessId>, bool) {
        let slots = self.slots.extract_if(.., |(user, _)| *user == uid);
        let slots = slots.map(|(_, slot)| slot).collect();
        let unknown = self.unknown.extract_if(.., |user| *user == uid);
        (slots, unknown.count() != 0)
    }

    fn try_again(&mut self) {
        let pause = self.pause.clamp(RETRY.0, RETRY.1);
        self.retry_at.get_or_insert_with(|| Instant::now() + pause);
    }

    /// Looks into a stack's image at the next opportunity.
    pub(super) fn look_for_relatives(&mut self, uid: u32) {
        self.unknown.push(uid);
        self.try_again();
    }

    /// Looks for stacks to adopt at the next opportunity.
    pub(super) fn look_for_stacks(&mut self) {
        self.unadopted = true;
        self.try_again();
    }

    /// When something is to be tried again.
    pub(super) fn due(&self) -> Option<Instant> {
        self.retry_at
    }

    /// Whether that is now.
    pub(super) fn are_urgent(&self, now: Instant) -> bool {
        self.retry_at.is_some_and(|at| at <= now)
    }
}

impl Server {
    /// A watched process has ended, or runs another program now.
    pub(super) fn process_gone(&mut self, number: u64) {
        let Some(watched) = self.watch.remove(number) else {
            return;
        };
        self.counters.add(Counter::ProcessesGone);
        self.chores.note_born(watched.uid, watched.slot);
        // First: what is looked at next is not watched any more, and would be given back twice. In
        // between its parent may fork another child, which gets the slot.
        self.give_back(watched.uid, watched.slot);
        // A child may have been forked that nobody could tell of any more.
        self.find_relatives(watched.uid);
        self.drop_stack_without_process(watched.uid);
    }

    /// Gives a slot back: first the filters of endpoints that nobody else holds, then the slot.
    fn give_back(&mut self, uid: u32, slot: ProcessId) {
        let Some(stack) = self.stacks.get(uid) else {
            return;
        };
        let filters = self.filters.endpoints(uid);
        let (orphaned, is_busy, has_dead) = match stack.lock() {
            Ok(mut locked) => {
                let held = locked.stack();
                let holders = |endpoint| held.holders(endpoint);
                // Killed before it could tell that it had closed one.
                let has_dead = filters.iter().any(|(_, endpoint)| !held.is_live(*endpoint));
                (orphans(&filters, slot, holders), false, has_dead)
            }
            // Somebody keeps the lock. Reading without it may show an update half done, but no
            // update makes a dead process's endpoints others'.
            Err(Busy) => {
                let bytes = stack.copy_image().unwrap_or_default();
                let image = Image::attach(&bytes).ok();
                let holders = |endpoint| {
                    let found = image.and_then(|image| image.endpoint(endpoint));
                    found.map_or([0, 0], |found| found.holders)
                };
                (orphans(&filters, slot, holders), true, true)
            }
        };
        for (id, _) in orphaned {
            // A connection's goes when it has ended: its bytes may still be on their way.
            if !self
                .filters
                .get(id)
                .is_some_and(|filter| filter.is_of_connection())
            {
                self.counters.add(Counter::FiltersSwept);
                self.retire_filter(id);
            }
        }
        // Its connections close in order when the lock is given back, as in the kernel; their flows
        // stay until the stack says that they have ended.
        let stack = self.stacks.get(uid).filter(|_| !is_busy);
        match stack.and_then(|stack| remove_process(stack, slot)) {
            // A child that had what its relatives have: every flow would be looked at for nothing.
            Some(0) if !has_dead => {}
            // Connections that had nothing more to say have ended at once.
            Some(_) => self.sweep_filters(uid),
            None => {
                self.counters.add(Counter::StackLocksBusy);
                self.chores.remove_slot(uid, slot);
            }
        }
    }

    /// Looks into a stack's image for processes that are not watched: forked children whose parent
    /// could not tell, or did not yet.
    pub(super) fn find_relatives(&mut self, uid: u32) {
        let Some(stack) = self.stacks.get(uid) else {
            return;
        };
        let inode = stack.inode;
        let is_foreign = stack.has_foreign_pids;
        let Ok(head) = stack.copy_head() else {
            return;
        };
        let Ok(processes) = bypass_stack::inspect::processes(&head) else {
            return;
        };
        // Its programs may have written one number into all slots.
        let mut seen: HashMap<u32, Option<Process>> = HashMap::new();
        for known in processes {
            if self.watch.of_slot(uid, known.id).is_some()
                || self.chores.slots.contains(&(uid, known.id))
            {
                self.chores.note_born(uid, known.id);
                continue;
            }
            if known.pid == 0 {
                self.note_unborn(uid, known.id);
                continue;
            }
            // What the image says is the program's word; that it has the image mapped is a fact.
            let has_image = |found: &Process| mapped_images(found.pid).contains(&inode);
            let found = seen
                .entry(known.pid)
                .or_insert_with(|| Process::find(known.pid).filter(has_image))
                .as_ref()
                .filter(|process| [0, process.start_time].contains(&known.start_time));
            match found {
                Some(process) if self.watch_process(uid, process, known.id).is_ok() => {
                    self.counters.add(Counter::ProcessesFound);
                }
                // In a container's pid namespace the number means another process, or none. The
                // parent tells, and is understood there (`Server::forked`).
                _ if is_foreign => self.note_unborn(uid, known.id),
                _ => self.give_back(uid, known.id),
            }
        }
    }

    /// Gives back the slots of forked children that are not and will not be: whose parent is gone,
    /// while every process that has the image is in a slot. Looks at all processes, so that this is
    /// done once a second at most.
    fn bury(&mut self, uid: u32) {
        let unborn = self.chores.unborn.iter();
        let its = unborn.filter(|(user, _, _)| *user == uid);
        let unborn: Vec<ProcessId> = its.map(|(_, slot, _)| *slot).collect();
        let stack = self.stacks.get(uid).filter(|it| !it.has_foreign_pids);
        let Some(stack) = stack.filter(|_| !unborn.is_empty()) else {
            return;
        };
        let Ok(head) = stack.copy_head() else { return };
        let Ok(processes) = bypass_stack::inspect::processes(&head) else {
            return;
        };
        let has_image = |pid| mapped_images(pid).contains(&stack.inode);
        let is_watched = |pid| self.watch.of_pid(pid).iter().any(|(_, of)| *of == uid);
        let has_parent = |start_time| u32::try_from(start_time).is_ok_and(has_image);
        let alone = processes
            .filter(|known| known.pid == 0 && unborn.contains(&known.id))
            .filter(|known| known.start_time != 0 && !has_parent(known.start_time));
        let alone: Vec<ProcessId> = alone.map(|known| known.id).collect();
        // Whoever lives was there before its parent was found to be gone.
        if alone.is_empty()
            || super::process::others().any(|pid| !is_watched(pid) && has_image(pid))
        {
            return;
        }
        for slot in alone {
            self.chores.note_born(uid, slot);
            self.give_back(uid, slot);
        }
    }

    /// A slot that a parent has made for a child which has not said who it is.
    fn note_unborn(&mut self, uid: u32, slot: ProcessId) {
        let known = self
            .chores
            .unborn
            .iter()
            .find(|(u, s, _)| (*u, *s) == (uid, slot));
        match known.map(|(_, _, since)| since.elapsed() > BIRTH) {
            None => self.chores.unborn.push((uid, slot, Instant::now())),
            Some(false) => {}
            Some(true) => {
                self.chores.note_born(uid, slot);
                self.give_back(uid, slot);
            }
        }
    }

    /// Ends a stack that no process takes part in, when its connections have ended.
    pub(super) fn drop_stack_without_process(&mut self, uid: u32) {
        let is_unborn =
            |(user, _, since): &(u32, ProcessId, Instant)| *user == uid && since.elapsed() <= BIRTH;
        if self.watch.count(uid) != 0 || self.chores.unborn.iter().any(is_unborn) {
            if let Some(stack) = self.stacks.get_mut(uid) {
                stack.deserted = None;
            }
            return;
        }
        if let Some(stack) = self.stacks.get_mut(uid) {
            let since = *stack.deserted.get_or_insert_with(Instant::now);
            let has_tcp = self.filters.has_tcp(uid);
            if has_tcp && since.elapsed() < LONGEST_PARTING && self.bequeath(uid) {
                return;
            }
            if since.elapsed() < LAST_FRAMES && self.sends_last_frames(uid) {
                self.chores.look_for_relatives(uid);
                return;
            }
        }
        for id in self.filters.ids(|filter| filter.uid == uid) {
            self.counters.add(Counter::FiltersSwept);
            self.remove_filter(id);
        }
        let interfaces: Vec<u32> = self
            .nics
            .of_owner(uid)
            .map(|(ifindex, _)| ifindex)
            .collect();
        for ifindex in interfaces {
            self.close_interface(ifindex);
        }
        self.openings.forget(uid);
        self.chores.slots.retain(|(user, _)| *user != uid);
        self.chores.unborn.retain(|(user, _, _)| *user != uid);
        if self.stacks.remove(uid).is_some() {
            self.counters.add(Counter::StacksDropped);
        }
        // Others may have been waiting for its interfaces.
        self.reconcile_all();
    }

    /// Has a stack without a process send what it can; whether frames are left. (Giving the lock
    /// back sends.)
    fn sends_last_frames(&self, uid: u32) -> bool {
        let locked = self.stacks.get(uid).map(StackEntry::lock);
        locked.is_some_and(|locked| locked.map_or(true, |mut locked| locked.has_unsent()))
    }

    /// Everything that is looked at once a second.
    pub(super) fn sweep(&mut self) {
        self.do_chores();
        self.chores.sweeps = self.chores.sweeps.wrapping_add(1);
        let looks = self.chores.sweeps.is_multiple_of(LOOK_EVERY);
        if looks && self.stacks.len() != 0 {
            // The kernel does not announce that a neighbour has become stale.
            self.mirror.doubt_neighbours();
        }
        let users: Vec<u32> = self.stacks.iter().map(|stack| stack.uid).collect();
        for uid in users {
            let has_unborn = self.chores.unborn.iter().any(|(user, _, _)| *user == uid);
            if looks || has_unborn {
                self.find_relatives(uid);
            }
            self.bury(uid);
            self.sweep_filters(uid);
            self.note_crowd(uid);
            self.relieve(uid);
            self.drop_stack_without_process(uid);
        }
        self.sweep_proofs();
        self.set_alarms();
    }

    /// Removes the filters whose socket is gone although their endpoint lives. A dump may miss a
    /// socket that is just being bound, two do not.
    fn sweep_proofs(&mut self) {
        let ids = self.filters.ids(|filter| filter.socket.is_some());
        if ids.is_empty() {
            return;
        }
        // A kernel that cannot tell leaves them.
        let Ok(there) = diag::udp_cookies() else {
            return;
        };
        for id in ids {
            let Some(filter) = self.filters.get(id) else {
                continue;
            };
            let is_missed = filter.socket.is_some_and(|cookie| !there.contains(&cookie));
            if is_missed && filter.is_missed {
                self.counters.add(Counter::FiltersSwept);
                self.remove_filter(id);
            } else {
                self.filters.set_missed(id, is_missed);
            }
        }
    }

    /// While a stack has few endpoints left, new connections are the kernel's: its listeners are
    /// the shadows of the stack's, and programs accept from both.
    fn note_crowd(&mut self, uid: u32) {
        let Some(stack) = self.stacks.get_mut(uid) else {
            return;
        };
        let Ok(free) = stack
            .lock()
            .map(|mut locked| locked.stack().free_endpoints())
        else {
            return;
        };
        if stack.note_crowd(free) {
            self.counters.add(Counter::StacksCrowded);
            for id in self
                .filters
                .ids(|filter| filter.uid == uid && filter.wish.listens)
            {
                self.reconcile(id);
            }
        }
    }

    /// Gives back what the dead held before somebody is answered who asks for it: their listeners'
    /// ports, and their places in a stack that has no other. What cannot be had now is tried again
    /// when it would have been anyway.
    pub(super) fn bury_waiting(&mut self, asker: u32) {
        let stack = self.stacks.get(asker);
        let lacks_places = stack.is_some_and(StackEntry::lacks_places);
        if lacks_places {
            // Some may be of dead ones that nobody has told of yet.
            self.chores.look_for_relatives(asker);
        }
        for uid in self.chores.users() {
            let stack = self.stacks.get(uid);
            // Whoever has kept the asker's own lock may be about to give it back.
            if stack.is_some_and(|stack| stack.is_to_be_had(uid == asker)) {
                self.catch_up(uid);
            }
        }
        if lacks_places && let Some(stack) = self.stacks.get(asker) {
            stack.note_places();
        }
    }

    /// Tries again what waits for a stack.
    fn catch_up(&mut self, uid: u32) {
        let (slots, is_unknown) = self.chores.take(uid);
        for slot in slots {
            self.give_back(uid, slot);
        }
        if is_unknown {
            self.find_relatives(uid);
            self.drop_stack_without_process(uid);
        }
    }

    /// Tries again what waits.
    pub(super) fn do_chores(&mut self) {
        self.chores.retry_at = None;
        self.chores.pause = (self.chores.pause * 2).clamp(RETRY.0, RETRY.1);
        if std::mem::take(&mut self.chores.unadopted) {
            self.adopt_stacks();
        }
        for uid in self.chores.users() {
            self.catch_up(uid);
        }
        if self.chores.retry_at.is_none() {
            self.chores.pause = RETRY.0;
        }
    }

    /// The TCP flows of a stack; none when it has no filters for TCP, without which they are idle.
    fn tcp_flows(&self, uid: u32) -> Vec<Flow> {
        let stack = self.stacks.get(uid).filter(|_| self.filters.has_tcp(uid));
        stack.map_or_else(Vec::new, StackEntry::tcp_flows)
    }

    /// Removes the filters of endpoints that are gone and flows that the stack does not know (it
    /// tells of their ends itself, but a ring of changes may overflow), and the grants of listeners
    /// that were closed when their last connection is gone.
    pub(super) fn sweep_filters(&mut self, uid: u32) {
        let Some(stack) = self.stacks.get(uid) else {
            return;
        };
        let filters = self.filters.endpoints(uid);
        let lost = self.lost_ports(uid);
        let flows = self.tcp_flows(uid);
        let Ok(mut locked) = stack.lock() else {
            self.counters.add(Counter::StackLocksBusy);
            return;
        };
        stack.settle(&mut locked);
        for flow in flows {
            let image = locked.stack();
            if !image.has_flow(flow.local, flow.remote) && !image.is_live(flow.endpoint) {
                stack.flows.remove(flow.local, flow.remote);
            }
        }
        let stack = locked.stack();
        stack.ports_reclaim(bypass_runtime::clock::now(), |port| {
            lost.contains(&port.filter)
        });
        let kept: HashSet<u32> = stack.ports().map(|port| port.filter).collect();
        let dead = filters
            .into_iter()
            .filter(|(_, endpoint)| !stack.is_live(*endpoint));
        let dead: Vec<u32> = dead.map(|(id, _)| id).collect();
        drop(locked);
        let is_unkept =
            |filter: &Filter| filter.uid == uid && filter.is_port && !kept.contains(&filter.id);
        for id in self.filters.ids(is_unkept) {
            self.filters.set_not_kept(id);
        }
        for id in dead {
            self.counters.add(Counter::FiltersSwept);
            self.retire_filter(id);
        }
        for id in self
            .filters
            .ids(|filter| filter.uid == uid && filter.is_closing())
        {
            if self
                .filters
                .get(id)
                .is_some_and(|filter| !self.has_flows(&filter))
            {
                self.remove_filter(id);
            }
        }
    }
}

/// The filters whose endpoints nobody holds but this slot. Nobody at all holds a TCP
/// endpoint that is closed but not finished: that one is not an orphan.
fn orphans(
    all: &[(u32, EndpointId)],
    slot: ProcessId,
    holders: impl Fn(EndpointId) -> [u64; 2],
) -> Vec<(u32, EndpointId)> {
    let mut only = [0, 0];
    if let Some(word) = only.get_mut(usize::from(slot.0 >> 6)) {
        *word = 1 << (slot.0 & 63);
    }
    let is_orphaned = |(_, endpoint): &&(u32, EndpointId)| holders(*endpoint) == only;
    all.iter().filter(is_orphaned).copied().collect()
}

/// Gives a slot back, a part of its endpoints under one lock, so that others are served between;
/// how many endpoints nobody holds any more. `None` when somebody keeps the lock.
fn remove_process(stack: &StackEntry, slot: ProcessId) -> Option<u32> {
    let (mut orphaned, mut from) = (0u32, 0);
    loop {
        let mut locked = stack.lock().ok()?;
        let (some, next) = locked.stack().unhold_some(slot, from, UNHELD_AT_ONCE);
        orphaned = orphaned.saturating_add(some);
        let Some(next) = next else {
            locked.stack().remove_process(slot);
            return Some(orphaned);
        };
        from = next;
        drop(locked);
        std::thread::sleep(WAY);
    }
}
