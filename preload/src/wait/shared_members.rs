//! The accelerated members of an epoll set that a fork has shared, in memory that both sides have.
//!
//! ```text
//!   version | who sleeps on the set | slots in use | slot 0: stamp, endpoint, fd, events, ... | 1
//! ```
//!
//! Each process has its own [`super::members::Table`], with members in the same slots. What one
//! process adds, changes or takes out it writes here, and counts the version up; the others see
//! that by one load when they next use the set, and take over the slots whose stamps differ. What a
//! report changes (an edge was seen, a one-shot member is disarmed) stands here only.
//!
//! Members are read and written under the stack lock. Only processes that have forked from each
//! other have this memory, and what one writes wrong makes another report wrongly, no more.

#![expect(
    unsafe_code,
    reason = "UNSAFETY: an anonymous mapping, read as atomic words"
)]

use std::mem::size_of;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};

use bypass_runtime::attachment::Attachment;
use bypass_stack::{EndpointId, WaiterId};
use rustix::io::Errno;
use rustix::mm::{MapFlags, ProtFlags};

use super::members::{Member, State};

/// Waiters that sleep on a set, one bit for each of the stack.
#[derive(Debug, Default)]
#[repr(C)]
pub struct Sleepers([AtomicU64; 2]);

impl Sleepers {
    fn word(&self, waiter: WaiterId) -> Option<(&AtomicU64, u64)> {
        let word = self.0.get(usize::from(waiter.0 / 64))?;
        Some((word, 1 << (waiter.0 % 64)))
    }

    /// This one is about to sleep.
    pub fn add(&self, waiter: WaiterId) {
        if let Some((word, bit)) = self.word(waiter) {
            word.fetch_or(bit, Ordering::SeqCst);
        }
    }

    /// It does not sleep any more.
    pub fn remove(&self, waiter: WaiterId) {
        if let Some((word, bit)) = self.word(waiter) {
            word.fetch_and(!bit, Ordering::SeqCst);
        }
    }

    /// Wakes them all. (Of one that was killed in its sleep the bit goes by that.)
    pub fn wake(&self, attachment: &Attachment) {
        for (word, first) in self.0.iter().zip([0, 64]) {
            let mut left = match word.load(Ordering::SeqCst) {
                0 => continue,
                _ => word.swap(0, Ordering::SeqCst),
            };
            while left != 0 {
                attachment.wake(WaiterId(first + left.trailing_zeros() as u8));
                left &= left - 1;
            }
        }
    }

    /// There is none.
    pub fn clear(&self) {
        self.0
            .iter()
            .for_each(|word| word.store(0, Ordering::SeqCst));
    }
}

/// One slot.
#[derive(Debug, Default)]
#[repr(C)]
struct Slot {
    /// The version that has last changed it, and the bits of `flags`.
    stamp: AtomicU64,
    endpoint: AtomicU64,
    /// The descriptor's number where it was added, and the events asked for.
    asked: AtomicU64,
    data: AtomicU64,
    /// The edges when it was last reported.
    seen: AtomicU64,
}

/// Bits of a slot's stamp.
mod flags {
    pub const USED: u64 = 1;
    pub const SHADOWED: u64 = 1 << 1;
    pub const FRESH: u64 = 1 << 2;
    pub const DISARMED: u64 = 1 << 3;
}

#[derive(Debug)]
#[repr(C)]
struct Header {
    /// Counted up by every change of a member.
    version: AtomicU64,
    /// Slots that were ever used, from the first.
    used: AtomicU64,
    sleepers: Sleepers,
}

/// The mapping.
#[derive(Debug)]
pub struct SharedMembers {
    header: NonNull<Header>,
    slots: usize,
    /// The version that this process has.
    has: u64,
}

// SAFETY: plain shared memory, which is only read and written as atomic words.
unsafe impl Send for SharedMembers {}

fn pair(high: u32, low: u32) -> u64 {
    u64::from(high) << 32 | u64::from(low)
}

fn halves(word: u64) -> (u32, u32) {
    ((word >> 32) as u32, word as u32)
}

impl SharedMembers {
    /// Memory for so many members, which every child from here on has too.
    ///
    /// # Errors
    /// What `mmap` answers.
    pub fn new(slots: usize) -> Result<Self, Errno> {
        let bytes = Self::bytes(slots);
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        let flags = MapFlags::SHARED | MapFlags::NORESERVE;
        // SAFETY: the kernel chooses a free range.
        let address =
            unsafe { rustix::mm::mmap_anonymous(std::ptr::null_mut(), bytes, protection, flags) }?;
        let header = NonNull::new(address.cast()).ok_or(Errno::NOMEM)?;
        Ok(Self {
            header,
            slots,
            has: 0,
        })
    }

    fn bytes(slots: usize) -> usize {
        size_of::<Header>() + slots * size_of::<Slot>()
    }

    fn header(&self) -> &Header {
        // SAFETY: mapped as long as `self` lives, aligned to a page; zeros are a value of it.
        unsafe { self.header.as_ref() }
    }

    fn slot(&self, slot: u32) -> Option<&Slot> {
        let index = slot as usize;
        // SAFETY: inside of the mapping, behind the header, whose size is a multiple of eight.
        (index < self.slots)
            .then(|| unsafe { self.header.add(1).cast::<Slot>().add(index).as_ref() })
    }

    /// Who sleeps on this set, in whichever process.
    pub fn sleepers(&self) -> &Sleepers {
        &self.header().sleepers
    }

    /// Slots that may hold something.
    pub fn used(&self) -> u32 {
        let used = self.header().used.load(Ordering::Relaxed);
        used.min(self.slots as u64) as u32
    }

    /// Whether another process has changed a member since this one last looked.
    #[inline]
    pub fn is_news(&self) -> bool {
        self.header().version.load(Ordering::Acquire) != self.has
    }

    /// This process has seen all changes.
    pub fn seen(&mut self) {
        self.has = self.header().version.load(Ordering::Acquire);
    }

    /// Whether there is such a slot and no member in it.
    pub fn is_free(&self, slot: u32) -> bool {
        let found = self.slot(slot);
        found.is_some_and(|it| it.stamp.load(Ordering::Relaxed) & flags::USED == 0)
    }

    /// Writes what is in a slot now; its stamp.
    pub fn publish(&mut self, slot: u32, member: Option<&Member>) -> u32 {
        let version = self.header().version.load(Ordering::Relaxed);
        let next = version.wrapping_add(1);
        let Some(there) = self.slot(slot) else {
            return 0;
        };
        if let Some(member) = member {
            let (id, fd) = (member.endpoint, member.fd.cast_unsigned());
            let store = |word: &AtomicU64, value| word.store(value, Ordering::Relaxed);
            store(&there.endpoint, pair(id.index, id.generation));
            store(&there.asked, pair(fd, member.events));
            store(&there.data, member.data);
        }
        there.write_state(next as u32, member);
        let header = self.header();
        header
            .used
            .fetch_max(u64::from(slot) + 1, Ordering::Relaxed);
        header.version.store(next, Ordering::Release);
        if self.has == version {
            self.has = next;
        }
        next as u32
    }

    /// The member in a slot, and the stamp of its last change.
    pub fn read(&self, slot: u32) -> Option<(Member, u32)> {
        let there = self.slot(slot)?;
        let load = |word: &AtomicU64| word.load(Ordering::Relaxed);
        let (stamp, bits) = halves(load(&there.stamp));
        if u64::from(bits) & flags::USED == 0 {
            return None;
        }
        let (index, generation) = halves(load(&there.endpoint));
        let (fd, events) = halves(load(&there.asked));
        let endpoint = EndpointId { index, generation };
        let shadowed = u64::from(bits) & flags::SHADOWED != 0;
        let data = load(&there.data);
        let mut member = Member::new(fd.cast_signed(), endpoint, shadowed, events, data);
        member.state = there.state();
        Some((member, stamp))
    }

    /// The stamp of a slot's last change, if there is a member in it.
    pub fn stamp(&self, slot: u32) -> Option<u32> {
        let (stamp, bits) = halves(self.slot(slot)?.stamp.load(Ordering::Relaxed));
        (u64::from(bits) & flags::USED != 0).then_some(stamp)
    }

    /// What reports have made of the member, in whichever process.
    pub fn recall(&self, slot: u32, member: &mut Member) {
        if let Some(there) = self.slot(slot) {
            member.state = there.state();
        }
    }

    /// What a report has made of it.
    pub fn note(&self, slot: u32, member: &Member) {
        if let Some(there) = self.slot(slot) {
            let (stamp, _) = halves(there.stamp.load(Ordering::Relaxed));
            there.write_state(stamp, Some(member));
        }
    }
}

impl Slot {
    fn state(&self) -> State {
        let bits = self.stamp.load(Ordering::Relaxed);
        State {
            seen: halves(self.seen.load(Ordering::Relaxed)),
            fresh: bits & flags::FRESH != 0,
            disarmed: bits & flags::DISARMED != 0,
        }
    }

    fn write_state(&self, stamp: u32, member: Option<&Member>) {
        let mut bits = 0;
        if let Some(member) = member {
            let state = member.state;
            for (flag, on) in [
                (flags::USED, true),
                (flags::SHADOWED, member.shadowed),
                (flags::FRESH, state.fresh),
                (flags::DISARMED, state.disarmed),
            ] {
                bits |= if on { flag } else { 0 };
            }
            let (input, output) = state.seen;
            self.seen.store(pair(input, output), Ordering::Relaxed);
        }
        let word = u64::from(stamp) << 32 | bits;
        self.stamp.store(word, Ordering::Relaxed);
    }
}

impl Drop for SharedMembers {
    fn drop(&mut self) {
        // SAFETY: mapped by `new`; every reference into it is borrowed from `self`.
        let _ = unsafe { rustix::mm::munmap(self.header.as_ptr().cast(), Self::bytes(self.slots)) };
    }
}

#[cfg(test)]
mod tests {
    use std::mem::ManuallyDrop;

    use super::*;

    /// The mapping as a relative has it.
    fn relative(of: &SharedMembers) -> ManuallyDrop<SharedMembers> {
        ManuallyDrop::new(SharedMembers { ..*of })
    }

    fn member(index: u32, data: u64) -> Member {
        let endpoint = EndpointId {
            index,
            generation: 9,
        };
        Member::new(-1, endpoint, true, 0x4000_0001, data)
    }

    #[test]
    fn a_relative_reads_what_was_published() {
        let mut one = SharedMembers::new(4).expect("memory");
        let mut other = relative(&one);
        assert!(!other.is_news() && one.is_free(3) && !one.is_free(4));
        let stamp = one.publish(3, Some(&member(5, 77)));
        assert!(other.is_news() && !one.is_news());
        assert_eq!((other.used(), other.stamp(3)), (4, Some(stamp)));
        let (read, at) = other.read(3).expect("a member");
        assert_eq!((read.fd, read.data, at), (-1, 77, stamp));
        assert_eq!(
            (read.endpoint, read.events),
            (member(5, 77).endpoint, 0x4000_0001)
        );
        assert!(read.shadowed && read.state.fresh && !read.state.disarmed);
        other.seen();
        other.publish(3, None);
        assert!(one.is_news() && one.read(3).is_none() && one.stamp(3).is_none());
        // Nothing was seen yet of the relative's change, so that its own does not hide it.
        one.publish(1, Some(&member(6, 78)));
        assert!(one.is_news());
    }

    #[test]
    fn what_a_report_changes_stands_for_all_and_is_no_news() {
        let mut one = SharedMembers::new(1).expect("memory");
        let stamp = one.publish(0, Some(&member(5, 77)));
        let mut other = relative(&one);
        let mut told = member(5, 77);
        (told.state.seen, told.state.fresh, told.state.disarmed) = ((3, 4), false, true);
        other.note(0, &told);
        assert!(!one.is_news() && one.stamp(0) == Some(stamp));
        let mut mine = member(5, 77);
        one.recall(0, &mut mine);
        assert_eq!((mine.state.seen, mine.state.fresh), ((3, 4), false));
        assert!(mine.state.disarmed);
        other.publish(1, Some(&told));
        assert_eq!((one.used(), one.read(1).is_none()), (1, true));
    }
}
