//! The control-plane table: links, addresses, routes and neighbours, written by the daemon.
//!
//! One memfd: a sequence word (odd while the daemon writes) and, at [`TABLE_OFFSET`], the table.
//! Behind it is room for notes that only the daemon's successor reads.
//! A reader asks, then checks that the word did not change; if it did, it asks again.

#![expect(
    unsafe_code,
    reason = "UNSAFETY: bytes of the mapping become the table, here only"
)]

use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering, fence};

use bypass_stack::cplane::Table;
use rustix::io::Errno;

use crate::map::{Mapping, is_sealed, sealed_memfd};

/// Name of the table's memfd.
pub const NAME: &str = "bypass-cplane";
/// Offset of the table in the memfd.
pub const TABLE_OFFSET: usize = 64;
/// Attempts of a reader before it gives up (a write takes microseconds).
const ATTEMPTS: u32 = 1000;

/// Offset of the daemon's own notes behind the table, for the daemon after it.
pub const NOTES_OFFSET: usize = (TABLE_OFFSET + size_of::<Table>()).next_multiple_of(4096);
/// Room for them.
pub const NOTES_BYTES: usize = 16 * 1024;
/// Bytes of the memfd.
const BYTES: usize = NOTES_OFFSET + NOTES_BYTES;

const _: () = assert!(align_of::<Table>() <= TABLE_OFFSET);

/// A mapped control-plane table.
#[derive(Debug)]
pub struct Cplane {
    mapping: Mapping,
}

impl Cplane {
    /// Makes the table (daemon).
    ///
    /// # Errors
    /// What the kernel answers to memfd_create, ftruncate or mmap.
    pub fn create() -> Result<(OwnedFd, Self), Errno> {
        let fd = sealed_memfd(NAME, BYTES)?;
        let cplane = Self {
            mapping: Mapping::new(&fd, true)?,
        };
        Ok((fd, cplane))
    }

    /// Maps the table for reading.
    ///
    /// # Errors
    /// `EINVAL` when the file is not a table of this version's size.
    pub fn map(fd: impl AsFd) -> Result<Self, Errno> {
        if !is_sealed(&fd) {
            return Err(Errno::INVAL);
        }
        let mapping = Mapping::new(fd, false)?;
        if mapping.bytes() != BYTES {
            return Err(Errno::INVAL);
        }
        Ok(Self { mapping })
    }

    fn sequence(&self) -> &AtomicU64 {
        // SAFETY: the mapping is page aligned and longer than a word, and lives as long as `self`.
        unsafe { &*self.mapping.as_ptr().cast::<AtomicU64>() }
    }

    /// Address of the table.
    fn table(&self) -> *mut Table {
        // SAFETY: the mapping has `BYTES` bytes, so the offset lies inside.
        unsafe { self.mapping.as_ptr().add(TABLE_OFFSET) }.cast()
    }

    /// Changes with every write; `None` while the daemon writes (or has died writing). An answer is
    /// good for as long as the version is the one that was read before it was asked for.
    #[must_use]
    #[inline]
    pub fn version(&self) -> Option<u64> {
        let sequence = self.sequence().load(Ordering::Acquire);
        (sequence & 1 == 0).then_some(sequence)
    }

    /// A consistent answer of `ask`, or `None` when the daemon died while it wrote.
    ///
    /// `ask` may run several times and sees torn data when it does; it must be pure, and the
    /// table's own functions never panic or loop on any content.
    pub fn read<T>(&self, ask: impl Fn(&Table) -> T) -> Option<T> {
        for _ in 0..ATTEMPTS {
            let before = self.sequence().load(Ordering::Acquire);
            if before & 1 == 1 {
                std::hint::spin_loop();
                continue;
            }
            // SAFETY: the table lies inside the mapping, is aligned (checked above at compile
            // time) and has no invalid bit pattern. The daemon may write it meanwhile: the answer
            // is thrown away then (pairs with the fences in `write`).
            let answer = ask(unsafe { &*self.table() });
            fence(Ordering::Acquire);
            if self.sequence().load(Ordering::Relaxed) == before {
                return Some(answer);
            }
        }
        None
    }

    /// Changes the table. The caller is its only writer (the daemon, which alone maps it writable).
    pub fn write(&mut self, change: impl FnOnce(&mut Table)) {
        let before = self.sequence().load(Ordering::Relaxed);
        self.sequence().store(before | 1, Ordering::Relaxed);
        fence(Ordering::Release);
        // SAFETY: inside the mapping and aligned; `&mut self` excludes other references of this
        // process, readers elsewhere detect the change by the sequence word.
        change(unsafe { &mut *self.table() });
        fence(Ordering::Release);
        self.sequence()
            .store((before | 1).wrapping_add(1), Ordering::Release);
    }
}
