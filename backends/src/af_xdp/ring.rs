//! One of the four rings of an AF_XDP socket, mapped from its descriptor.
//!
//! ```text
//!   producer ──► next free entry        fill, TX: we produce, the kernel consumes
//!   consumer ──► next full entry        RX, completion: the kernel produces, we consume
//!   both count up and wrap at 2^32; entry = cursor & (entries - 1)
//! ```
//!
//! Both cursors live in the shared ring, none is cached: several processes use a ring in turn. The
//! consumer's acquire load of `producer` pairs with the producer's release store, and likewise for
//! `consumer` (Documentation/networking/af_xdp.rst).

#![expect(
    unsafe_code,
    reason = "UNSAFETY: pointers into the ring mapping, bounded here"
)]

use std::ffi::c_void;
use std::marker::PhantomData;
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicU32, Ordering};

use rustix::io::Errno;
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};
use rustix::net::xdp::XdpRingOffset;

/// A mapped ring of entries of type `T`.
#[derive(Debug)]
pub(super) struct Ring<T> {
    base: *mut u8,
    bytes: usize,
    producer: usize,
    consumer: usize,
    entries_at: usize,
    entries: u32,
    of: PhantomData<T>,
}

// SAFETY: the mapping belongs to no thread; use is serialised by the stack lock.
unsafe impl<T: Send> Send for Ring<T> {}

impl<T: Copy> Ring<T> {
    /// Maps the ring at `page_offset` of the socket.
    ///
    /// # Errors
    /// What mmap answers; `EINVAL` for a size that is no power of two.
    pub(super) fn map(
        fd: BorrowedFd<'_>,
        page_offset: u64,
        offsets: &XdpRingOffset,
        entries: u32,
    ) -> Result<Self, Errno> {
        if !entries.is_power_of_two() {
            return Err(Errno::INVAL);
        }
        let at = |offset: u64| usize::try_from(offset).map_err(|_| Errno::INVAL);
        let entries_at = at(offsets.desc)?;
        let bytes = entries_at + entries as usize * size_of::<T>();
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
        Ok(Self {
            base: base.cast(),
            bytes,
            producer: at(offsets.producer)?,
            consumer: at(offsets.consumer)?,
            entries_at,
            entries,
            of: PhantomData,
        })
    }

    fn cursor(&self, offset: usize) -> &AtomicU32 {
        // SAFETY: the kernel's offsets lie inside the mapping and are aligned to cache lines.
        unsafe { &*self.base.add(offset).cast::<AtomicU32>() }
    }

    fn entry(&self, cursor: u32) -> *mut T {
        let index = (cursor & (self.entries - 1)) as usize;
        // SAFETY: `index < entries`, and the mapping covers every entry.
        unsafe { self.base.add(self.entries_at).cast::<T>().add(index) }
    }

    /// Full entries, for the consumer.
    pub(super) fn filled(&self) -> u32 {
        let consumer = self.cursor(self.consumer).load(Ordering::Relaxed);
        let producer = self.cursor(self.producer).load(Ordering::Acquire);
        producer.wrapping_sub(consumer).min(self.entries)
    }

    /// Free entries, for the producer.
    pub(super) fn free(&self) -> u32 {
        let producer = self.cursor(self.producer).load(Ordering::Relaxed);
        let consumer = self.cursor(self.consumer).load(Ordering::Acquire);
        self.entries - producer.wrapping_sub(consumer).min(self.entries)
    }

    /// Consumes up to `limit` entries; returns their count.
    pub(super) fn consume(&mut self, limit: usize, mut each: impl FnMut(T)) -> usize {
        let count = self.filled().min(u32::try_from(limit).unwrap_or(u32::MAX));
        let consumer = self.cursor(self.consumer).load(Ordering::Relaxed);
        for step in 0..count {
            // SAFETY: the entry is full (acquired above) and ours until the cursor moves.
            each(unsafe { self.entry(consumer.wrapping_add(step)).read() });
        }
        if count > 0 {
            self.cursor(self.consumer)
                .store(consumer.wrapping_add(count), Ordering::Release);
        }
        count as usize
    }

    /// Produces entries as long as there is room; returns how many.
    pub(super) fn produce(&mut self, items: impl ExactSizeIterator<Item = T>) -> usize {
        let count = self
            .free()
            .min(u32::try_from(items.len()).unwrap_or(u32::MAX));
        let producer = self.cursor(self.producer).load(Ordering::Relaxed);
        for (step, item) in (0..count).zip(items) {
            // SAFETY: the entry is free (acquired above) and ours until the cursor moves.
            unsafe { self.entry(producer.wrapping_add(step)).write(item) };
        }
        if count > 0 {
            self.cursor(self.producer)
                .store(producer.wrapping_add(count), Ordering::Release);
        }
        count as usize
    }

    /// Every full entry, without consuming.
    pub(super) fn peek(&self, mut each: impl FnMut(T)) {
        let consumer = self.cursor(self.consumer).load(Ordering::Relaxed);
        for step in 0..self.filled() {
            // SAFETY: full entries are readable; a stale one is harmless to the caller (recovery).
            each(unsafe { self.entry(consumer.wrapping_add(step)).read() });
        }
    }
}

impl<T> Drop for Ring<T> {
    fn drop(&mut self) {
        let base: *mut c_void = self.base.cast();
        // SAFETY: mapped by `map`; no reference outlives `self`.
        let _ = unsafe { munmap(base, self.bytes) };
    }
}
