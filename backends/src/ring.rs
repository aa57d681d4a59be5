//! One of the four rings of an AF_XDP socket.
//!
//! ```text
//!                consumer                    producer
//!                   ▼                           ▼
//!   ┌──────┬──────┬──────┬──────┬──────┬──────┬──────┬──────┐
//!   │ free │ free │ full │ full │ full │ full │ free │ free │     entry = cursor & (entries - 1)
//!   └──────┴──────┴──────┴──────┴──────┴──────┴──────┴──────┘     filled = producer - consumer
//!
//!   fill, TX          we produce, the kernel consumes
//!   RX, completion    the kernel produces, we consume
//! ```
//!
//! Cursors count up and wrap at 2^32. Both live in the shared ring and none is cached here:
//! several processes use a ring in turn, under a lock that is not this module's.
//!
//! Ordering (Documentation/networking/af_xdp.rst; the kernel's side is `xsk_queue.h`):
//!
//! - Acquire load of the other side's cursor: pairs with the kernel's release store of it, so that
//!   entries (RX, completion), or that they are empty (fill, TX), are visible.
//! - Release store of our own cursor: pairs with the kernel's acquire load, so that entries are
//!   written before they count as full, and read before they count as free.
//! - Relaxed load of our own cursor: its last writer was another holder of the lock, which orders.
//!
//! A process that maps the ring can write anything into it. So a cursor is only ever believed up
//! to the number of entries, and entries are plain numbers of which none is invalid.

#![expect(
    unsafe_code,
    reason = "UNSAFETY: pointers into the ring mapping, bounded here"
)]

use std::marker::PhantomData;
use std::os::fd::BorrowedFd;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, Ordering, fence};

use rustix::io::Errno;
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};
use rustix::net::xdp::{XdpDesc, XdpRingOffset};

/// What a ring may hold.
///
/// # Safety
/// Every bit pattern is a valid value, and there is no padding.
pub(crate) unsafe trait Entry: Copy {}
// SAFETY: an integer.
unsafe impl Entry for u64 {}
// SAFETY: three integers (one in a transparent flags type that keeps unknown bits), 8 + 4 + 4
// bytes.
unsafe impl Entry for XdpDesc {}

/// Memory of a ring.
#[derive(Debug)]
struct Memory {
    base: NonNull<u8>,
    bytes: usize,
    /// Unmapped when dropped; else somebody else's (tests).
    is_mapping: bool,
}

impl Drop for Memory {
    fn drop(&mut self) {
        if self.is_mapping {
            // SAFETY: `Ring::map` made the mapping, of this size; its only references are made
            // and dropped inside methods of `Ring`, which owns this.
            let _ = unsafe { munmap(self.base.as_ptr().cast(), self.bytes) };
        }
    }
}

/// A ring of entries of type `T`.
#[derive(Debug)]
pub(crate) struct Ring<T> {
    memory: Memory,
    /// Byte offsets.
    producer: usize,
    consumer: usize,
    first_entry: usize,
    /// Where the kernel says whether it must be woken; it does not in rings that are not its own.
    flags: Option<usize>,
    /// A power of two.
    entries: u32,
    of: PhantomData<T>,
}

// SAFETY: the memory belongs to no thread; cursors are atomics, and entries are touched by `&mut`
// methods (and `peek`, whose values may be stale) only.
unsafe impl<T: Entry> Send for Ring<T> {}

impl<T: Entry> Ring<T> {
    /// Maps the ring at `page_offset` of an XSK, which has `entries` entries.
    ///
    /// # Errors
    /// `EINVAL` for a size that is no power of two or larger than the ring; what mmap answers.
    pub(crate) fn map(
        fd: BorrowedFd<'_>,
        page_offset: u64,
        offsets: &XdpRingOffset,
        entries: u32,
    ) -> Result<Self, Errno> {
        if !entries.is_power_of_two() {
            return Err(Errno::INVAL);
        }
        let at = |offset: u64| usize::try_from(offset).map_err(|_| Errno::INVAL);
        let first_entry = at(offsets.desc)?;
        let bytes = first_entry + entries as usize * size_of::<T>();
        // SAFETY: a null hint replaces nothing; the kernel checks size and offset.
        let base = unsafe {
            mmap(
                std::ptr::null_mut(),
                bytes,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::SHARED | MapFlags::POPULATE,
                fd,
                page_offset,
            )
        }?;
        let memory = Memory {
            base: NonNull::new(base.cast()).ok_or(Errno::FAULT)?,
            bytes,
            is_mapping: true,
        };
        let mut ring = Self::over(
            memory,
            at(offsets.producer)?,
            at(offsets.consumer)?,
            first_entry,
            entries,
        )?;
        let flags = offsets.flags.map(at).transpose()?;
        ring.flags = flags.filter(|flags| flags.is_multiple_of(4) && flags + 4 <= bytes);
        Ok(ring)
    }

    /// A ring in `memory`; `EINVAL` unless everything lies in it, aligned.
    fn over(
        memory: Memory,
        producer: usize,
        consumer: usize,
        first_entry: usize,
        entries: u32,
    ) -> Result<Self, Errno> {
        let base = memory.base.as_ptr() as usize;
        let holds = |offset: usize, bytes: usize, align: usize| {
            offset
                .checked_add(bytes)
                .is_some_and(|end| end <= memory.bytes)
                && (base + offset).is_multiple_of(align)
        };
        let is_sound = entries.is_power_of_two()
            && holds(producer, 4, 4)
            && holds(consumer, 4, 4)
            && holds(
                first_entry,
                entries as usize * size_of::<T>(),
                align_of::<T>(),
            );
        if !is_sound {
            return Err(Errno::INVAL);
        }
        Ok(Self {
            memory,
            producer,
            consumer,
            first_entry,
            flags: None,
            entries,
            of: PhantomData,
        })
    }

    fn cursor(&self, offset: usize) -> &AtomicU32 {
        // SAFETY: `over` has checked that both cursors lie in the memory, aligned, and `map` that
        // the flags do; it lives as long as `self`, and nobody touches them but by atomic accesses.
        unsafe { &*self.memory.base.as_ptr().add(offset).cast::<AtomicU32>() }
    }

    fn entry(&self, cursor: u32) -> *mut T {
        let index = (cursor & (self.entries - 1)) as usize;
        let offset = self.first_entry + index * size_of::<T>();
        // SAFETY: `over` has checked that all entries lie in the memory, aligned.
        unsafe { self.memory.base.as_ptr().add(offset).cast::<T>() }
    }

    /// The consumer's view: first full entry and how many there are.
    fn full(&self) -> (u32, u32) {
        let consumer = self.cursor(self.consumer).load(Ordering::Relaxed);
        let producer = self.cursor(self.producer).load(Ordering::Acquire);
        (consumer, producer.wrapping_sub(consumer).min(self.entries))
    }

    /// The producer's view: first free entry and how many there are.
    fn empty(&self) -> (u32, u32) {
        let producer = self.cursor(self.producer).load(Ordering::Relaxed);
        let consumer = self.cursor(self.consumer).load(Ordering::Acquire);
        let filled = producer.wrapping_sub(consumer).min(self.entries);
        (producer, self.entries - filled)
    }

    /// Whether the kernel sleeps until it is told of new entries (`XDP_RING_NEED_WAKEUP`). Entries
    /// are visible to it before its answer is.
    pub(crate) fn must_wake(&self) -> bool {
        const NEED_WAKEUP: u32 = 1;
        let Some(flags) = self.flags.map(|offset| self.cursor(offset)) else {
            return false;
        };
        fence(Ordering::SeqCst);
        flags.load(Ordering::Relaxed) & NEED_WAKEUP != 0
    }

    /// Full entries.
    pub(crate) fn filled(&self) -> u32 {
        self.full().1
    }

    /// Free entries.
    pub(crate) fn free(&self) -> u32 {
        self.empty().1
    }

    /// Consumes up to `limit` entries; returns their count.
    pub(crate) fn consume(&mut self, limit: usize, each: impl FnMut(T)) -> usize {
        let mut taking = self.take(limit);
        taking.by_ref().for_each(each);
        taking.taken() as usize
    }

    /// Up to `limit` entries that are full now, one after the other. What was taken is consumed
    /// when that is dropped, at once.
    #[inline]
    pub(crate) fn take(&mut self, limit: usize) -> Taking<'_, T> {
        let (first, filled) = self.full();
        let filled = filled.min(u32::try_from(limit).unwrap_or(u32::MAX));
        Taking {
            first,
            next: first,
            end: first.wrapping_add(filled),
            ring: self,
        }
    }

    /// Room for as many entries as are free now. What is entered is produced when that is dropped,
    /// at once.
    #[inline]
    pub(crate) fn enter(&mut self) -> Entering<'_, T> {
        let (first, free) = self.empty();
        Entering {
            first,
            next: first,
            end: first.wrapping_add(free),
            ring: self,
        }
    }

    /// Reads up to `limit` entries, which stay; returns their count.
    pub(crate) fn look(&mut self, limit: usize, mut each: impl FnMut(T)) -> usize {
        let (consumer, filled) = self.full();
        let count = filled.min(u32::try_from(limit).unwrap_or(u32::MAX));
        for step in 0..count {
            // SAFETY: the place lies in the memory (`entry`); the producer leaves it alone until
            // the cursor moves, and a misbehaving one can only change the number that is read.
            each(unsafe { self.entry(consumer.wrapping_add(step)).read_volatile() });
        }
        count as usize
    }

    /// Consumes entries that were looked at.
    pub(crate) fn advance(&mut self, count: usize) {
        if count > 0 {
            let consumer = self.cursor(self.consumer);
            let next = consumer.load(Ordering::Relaxed).wrapping_add(count as u32);
            consumer.store(next, Ordering::Release);
        }
    }

    /// Produces entries as long as there is room; returns how many.
    pub(crate) fn produce(&mut self, items: impl ExactSizeIterator<Item = T>) -> usize {
        let mut entering = self.enter();
        let room = entering.room();
        items.take(room).for_each(|item| entering.put(item));
        entering.entered() as usize
    }

    /// Every full entry, without consuming it. The other side may be at work: an entry may be
    /// stale by the time it is seen.
    pub(crate) fn peek(&self, mut each: impl FnMut(T)) {
        let (consumer, filled) = self.full();
        for step in 0..filled {
            // SAFETY: as in `look`.
            each(unsafe { self.entry(consumer.wrapping_add(step)).read_volatile() });
        }
    }
}

/// Entries that are being taken; see [`Ring::take`].
#[derive(Debug)]
pub(crate) struct Taking<'a, T: Entry> {
    ring: &'a mut Ring<T>,
    first: u32,
    next: u32,
    end: u32,
}

impl<T: Entry> Taking<'_, T> {
    /// How many were.
    pub(crate) fn taken(&self) -> u32 {
        self.next.wrapping_sub(self.first)
    }
}

impl<T: Entry> Iterator for Taking<'_, T> {
    type Item = T;

    #[inline]
    fn next(&mut self) -> Option<T> {
        if self.next == self.end {
            return None;
        }
        // SAFETY: as in `look`.
        let item = unsafe { self.ring.entry(self.next).read_volatile() };
        self.next = self.next.wrapping_add(1);
        Some(item)
    }
}

impl<T: Entry> Drop for Taking<'_, T> {
    fn drop(&mut self) {
        if self.next != self.first {
            let consumer = self.ring.cursor(self.ring.consumer);
            consumer.store(self.next, Ordering::Release);
        }
    }
}

/// Entries that are being entered; see [`Ring::enter`].
#[derive(Debug)]
pub(crate) struct Entering<'a, T: Entry> {
    ring: &'a mut Ring<T>,
    first: u32,
    next: u32,
    end: u32,
}

impl<T: Entry> Entering<'_, T> {
    /// How many were.
    pub(crate) fn entered(&self) -> u32 {
        self.next.wrapping_sub(self.first)
    }

    /// For how many there still is room.
    pub(crate) fn room(&self) -> usize {
        self.end.wrapping_sub(self.next) as usize
    }

    /// Enters one; whether there was room.
    #[inline]
    pub(crate) fn push(&mut self, item: T) -> bool {
        let has_room = self.room() > 0;
        if has_room {
            self.put(item);
        }
        has_room
    }

    /// Enters one, for which there is room. (Otherwise an old one is lost.)
    #[inline]
    fn put(&mut self, item: T) {
        // SAFETY: the place lies in the memory (`entry`); the consumer does not read it until
        // the cursor moves.
        unsafe { self.ring.entry(self.next).write(item) };
        self.next = self.next.wrapping_add(1);
    }
}

impl<T: Entry> Drop for Entering<'_, T> {
    fn drop(&mut self) {
        if self.next != self.first {
            let producer = self.ring.cursor(self.ring.producer);
            producer.store(self.next, Ordering::Release);
        }
    }
}

#[cfg(test)]
pub(crate) mod testing {
    //! Rings over plain memory: no NIC, no root.

    use super::*;

    /// Bytes before the entries: a cache line for each cursor.
    const HEAD: usize = 128;

    /// Memory for a ring, which both ends share.
    #[derive(Debug)]
    pub(crate) struct Shared {
        words: Box<[u64]>,
    }

    impl Shared {
        pub(crate) fn new<T>(entries: u32) -> Self {
            let bytes = HEAD + entries as usize * size_of::<T>();
            Self {
                words: vec![0; bytes / 8].into(),
            }
        }

        /// Both cursors, as if so many entries had gone through.
        pub(crate) fn start_at(&mut self, cursor: u32) {
            self.words[0] = u64::from_ne_bytes(word(cursor));
            self.words[8] = u64::from_ne_bytes(word(cursor));
        }

        /// One end. The memory must outlive it.
        pub(crate) fn end<T: Entry>(&mut self, entries: u32) -> Result<Ring<T>, Errno> {
            let memory = Memory {
                base: NonNull::new(self.words.as_mut_ptr().cast()).unwrap(),
                bytes: self.words.len() * 8,
                is_mapping: false,
            };
            Ring::over(memory, 0, 64, HEAD, entries)
        }
    }

    fn word(cursor: u32) -> [u8; 8] {
        let mut bytes = [0; 8];
        bytes[..4].copy_from_slice(&cursor.to_ne_bytes());
        bytes
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use proptest::prelude::*;
    use rustix::net::xdp::XdpDescOptions;

    use super::testing::Shared;
    use super::*;

    #[derive(Clone, Debug)]
    enum Step {
        Produce(usize),
        Consume(usize),
        Peek,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            (0_usize..20).prop_map(Step::Produce),
            (0_usize..20).prop_map(Step::Consume),
            Just(Step::Peek),
        ]
    }

    proptest! {
        /// Two ends of one memory behave as one bounded queue, at every place of the cursors, the
        /// wrap at 2^32 included.
        #[test]
        fn a_ring_is_a_bounded_queue(
            power in 0_u32..5,
            start in prop_oneof![Just(0), (u32::MAX - 40)..=u32::MAX, any::<u32>()],
            steps in prop::collection::vec(step(), 1..60),
        ) {
            let entries = 1_u32 << power;
            let mut shared = Shared::new::<u64>(entries);
            shared.start_at(start);
            let mut producer: Ring<u64> = shared.end(entries).unwrap();
            let mut consumer: Ring<u64> = shared.end(entries).unwrap();
            let mut oracle: VecDeque<u64> = VecDeque::new();
            let mut next = 0_u64;
            for step in steps {
                match step {
                    Step::Produce(count) => {
                        let items: Vec<u64> = (next..).take(count).collect();
                        let fits = count.min(entries as usize - oracle.len());
                        prop_assert_eq!(producer.produce(items.iter().copied()), fits);
                        oracle.extend(&items[..fits]);
                        next += fits as u64;
                    }
                    Step::Consume(limit) => {
                        let mut got = Vec::new();
                        let count = consumer.consume(limit, |item| got.push(item));
                        prop_assert_eq!(count, got.len());
                        prop_assert_eq!(count, limit.min(oracle.len()));
                        let expected: Vec<u64> = oracle.drain(..count).collect();
                        prop_assert_eq!(got, expected);
                    }
                    Step::Peek => {
                        let mut got = Vec::new();
                        consumer.peek(|item| got.push(item));
                        prop_assert_eq!(&got, &oracle.iter().copied().collect::<Vec<_>>());
                    }
                }
                prop_assert_eq!(consumer.filled() as usize, oracle.len());
                prop_assert_eq!(producer.free() as usize, entries as usize - oracle.len());
            }
        }

        /// Whatever another process has written into cursors, nothing outside of the ring is read,
        /// and no more than its entries.
        #[test]
        fn broken_cursors_stay_inside(producer in any::<u32>(), consumer in any::<u32>()) {
            let mut shared = Shared::new::<XdpDesc>(8);
            let mut ring: Ring<XdpDesc> = shared.end(8).unwrap();
            ring.cursor(ring.producer).store(producer, Ordering::Relaxed);
            ring.cursor(ring.consumer).store(consumer, Ordering::Relaxed);
            let mut seen = 0;
            ring.peek(|_| seen += 1);
            prop_assert!(seen <= 8);
            let consumed = ring.consume(100, drop);
            prop_assert!(consumed <= 8);
            let options = XdpDescOptions::empty();
            let zero = XdpDesc { addr: 0, len: 0, options };
            prop_assert!(ring.produce(vec![zero; 100].into_iter()) <= 8);
        }
    }

    #[test]
    fn two_threads_see_every_entry_in_order() {
        const COUNT: u64 = 200_000;
        let mut shared = Shared::new::<u64>(64);
        let mut producer: Ring<u64> = shared.end(64).unwrap();
        let mut consumer: Ring<u64> = shared.end(64).unwrap();
        std::thread::scope(|scope| {
            scope.spawn(move || {
                let mut next = 0;
                while next < COUNT {
                    let last = (next + 7).min(COUNT);
                    let batch: Vec<u64> = (next..last).collect();
                    next += producer.produce(batch.into_iter()) as u64;
                    std::thread::yield_now();
                }
            });
            let mut expected = 0;
            while expected < COUNT {
                consumer.consume(13, |item| {
                    assert_eq!(item, expected);
                    expected += 1;
                });
                std::thread::yield_now();
            }
        });
    }

    #[test]
    fn the_kernel_is_woken_when_it_says_so() {
        const FLAGS: usize = 32;
        let mut shared = Shared::new::<u64>(8);
        let mut ring: Ring<u64> = shared.end(8).unwrap();
        ring.cursor(FLAGS).store(1, Ordering::Relaxed);
        assert!(!ring.must_wake(), "it has no place to say it");
        ring.flags = Some(FLAGS);
        assert!(ring.must_wake());
        ring.cursor(FLAGS).store(2, Ordering::Relaxed);
        assert!(!ring.must_wake());
    }

    #[test]
    fn a_ring_must_lie_in_its_memory() {
        let mut shared = Shared::new::<u64>(8);
        assert!(shared.end::<u64>(8).is_ok());
        assert_eq!(shared.end::<u64>(16).err(), Some(Errno::INVAL));
        assert_eq!(shared.end::<u64>(6).err(), Some(Errno::INVAL));
        assert_eq!(shared.end::<u64>(0).err(), Some(Errno::INVAL));
    }
}
