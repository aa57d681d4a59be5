//! A stack's packet memory as the relay sees it: bytes that others may write meanwhile.
//!
//! The relay copies into chunks that the fill ring names and out of those that the TX ring names,
//! and believes neither: every place is checked against the memory, and nothing becomes a slice.

#![expect(
    unsafe_code,
    reason = "UNSAFETY: copies into a mapping that other processes have too"
)]

use std::os::fd::BorrowedFd;
use std::ptr::NonNull;

use rustix::fs::SealFlags;
use rustix::io::Errno;
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

use crate::af_xdp::{HEADROOM, longest_frame};

/// Bytes from the start of a chunk to when its frame has come by the device's clock, nanoseconds
/// since 1970 in the host's order, 0 = not known: right before the frame.
pub const STAMP_AT: usize = HEADROOM as usize - size_of::<u64>();

/// The mapped memory.
#[derive(Debug)]
pub struct Memory {
    base: NonNull<u8>,
    bytes: usize,
    chunk_size: u32,
}

impl Memory {
    /// Maps packet memory in chunks of `chunk_size`.
    ///
    /// # Errors
    /// `EINVAL` when it may shrink or the size is none; what `mmap` answers.
    pub(super) fn map(fd: BorrowedFd<'_>, chunk_size: u32) -> Result<Self, Errno> {
        let is_sealed = rustix::fs::fcntl_get_seals(fd)?.contains(SealFlags::SHRINK);
        let bytes = usize::try_from(rustix::fs::fstat(fd)?.st_size).unwrap_or(0);
        if !is_sealed || bytes == 0 || longest_frame(chunk_size) == 0 {
            return Err(Errno::INVAL);
        }
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        let none = std::ptr::null_mut();
        // SAFETY: a null hint replaces nothing; the file has as many bytes and cannot shrink.
        let base = unsafe { mmap(none, bytes, protection, MapFlags::SHARED, fd, 0) }?;
        Ok(Self {
            base: NonNull::new(base.cast()).ok_or(Errno::FAULT)?,
            bytes,
            chunk_size,
        })
    }

    /// Where it is mapped, its bytes, and those of a chunk.
    #[must_use]
    pub fn range(&self) -> (*mut u8, usize, u32) {
        (self.base.as_ptr(), self.bytes, self.chunk_size)
    }

    /// How many chunks it has.
    pub(super) fn chunks(&self) -> u32 {
        u32::try_from(self.bytes / self.chunk_size as usize).unwrap_or(u32::MAX)
    }

    /// Where in its chunk a frame is that the port has put there, marked as one without a stamp
    /// (see [`STAMP_AT`]); `None` when it is not in that chunk, behind the headroom.
    pub(super) fn received(&self, chunk: u32, bytes: *const u8, length: u32) -> Option<u32> {
        let first = self.base.as_ptr() as usize + chunk as usize * self.chunk_size as usize;
        let offset = u32::try_from((bytes as usize).checked_sub(first)?).ok()?;
        let frame = self.place(chunk, offset, length)?;
        if offset < HEADROOM {
            return None;
        }
        // SAFETY: `place` has checked that the frame is mapped, and it is behind the headroom.
        unsafe {
            frame
                .sub(HEADROOM as usize - STAMP_AT)
                .cast::<u64>()
                .write_unaligned(0);
        }
        Some(offset)
    }

    /// Address of bytes inside of a chunk.
    pub(super) fn place(&self, chunk: u32, offset: u32, length: u32) -> Option<*mut u8> {
        let is_inside = offset.checked_add(length)? <= self.chunk_size;
        let first = chunk as usize * self.chunk_size as usize;
        let is_chunk = first + self.chunk_size as usize <= self.bytes;
        // SAFETY: inside of the mapping.
        let place = || unsafe { self.base.as_ptr().add(first + offset as usize) };
        (is_inside && is_chunk).then(place)
    }

    /// Whether a chunk holds a frame.
    pub(super) fn holds(&self, frame: &[u8]) -> bool {
        frame.len() <= longest_frame(self.chunk_size) as usize
    }

    /// Copies a frame into a chunk, behind the headroom that AF_XDP leaves too, and its stamp (see
    /// [`STAMP_AT`]); where the frame begins there. `None` when there is no such chunk, or the
    /// frame is too long for it.
    pub(super) fn store(&self, chunk: u32, frame: &[u8], stamp: u64) -> Option<u32> {
        let to = self.place(chunk, HEADROOM, frame.len() as u32)?;
        // SAFETY: `place` has checked that as many bytes are mapped there, behind the headroom;
        // the frame is elsewhere.
        unsafe {
            to.sub(HEADROOM as usize - STAMP_AT)
                .cast::<u64>()
                .write_unaligned(stamp);
            std::ptr::copy_nonoverlapping(frame.as_ptr(), to, frame.len());
        }
        Some(HEADROOM)
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: mapped by `map`, of this size; addresses of it are used while it lives only.
        let _ = unsafe { munmap(self.base.as_ptr().cast(), self.bytes) };
    }
}
