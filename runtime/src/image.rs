//! The image memfd: one page of shared header, then the stack image.
//!
//! ```text
//! 0        4096                                    end
//! | header | stack image (bypass_stack::Stack)      |
//!   magic, id, lock word, recoveries, pumps, frames, due, returned
//! ```
//!
//! The header's words are atomics; the stack image is touched only by whoever holds the lock word.

#![expect(
    unsafe_code,
    reason = "UNSAFETY: bytes of the mapping become header and stack, here only"
)]

use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use bypass_stack::tcp::secret::siphash;
use bypass_stack::{Capacities, HEAD_BYTES, LayoutError, Stack, stated_bytes};
use rustix::fs::{Mode, OFlags, SeekFrom, fstat, seek};
use rustix::io::{Errno, pread};

use crate::map::{Mapping, is_sealed, sealed_memfd};

/// Name of an image memfd, as `/proc/PID/fd` shows it after `/memfd:`.
pub const NAME: &str = "bypass-image";
/// Offset of the stack image in the memfd.
pub const STACK_OFFSET: usize = 4096;
/// "BYPIMAGE" in memory.
const MAGIC: u64 = u64::from_le_bytes(*b"BYPIMAGE");

/// First page of the image memfd.
#[derive(Debug)]
#[repr(C)]
pub struct SharedHeader {
    magic: AtomicU64,
    id: AtomicU64,
    lock: AtomicU32,
    recoveries: AtomicU32,
    pumps: AtomicU32,
    frames: AtomicU32,
    due: AtomicU64,
    returned: AtomicU32,
}

const _: () = assert!(size_of::<SharedHeader>() <= STACK_OFFSET);

/// Why an image cannot be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ImageError {
    /// The kernel refused a call.
    System(Errno),
    /// Not an image: wrong magic, unsealed, or too small.
    NotAnImage,
    /// The stack refuses the layout (another version, or damaged).
    Layout(LayoutError),
}

impl From<Errno> for ImageError {
    fn from(errno: Errno) -> Self {
        Self::System(errno)
    }
}

/// A number of this boot of the host, 0 if there is none. Local users may know it, which reveals
/// the clock that they have anyway; peers cannot.
fn boot_seed() -> u64 {
    let path = "/proc/sys/kernel/random/boot_id";
    let mut text = [0; 36];
    let read = rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
        .and_then(|file| rustix::io::read(&file, &mut text));
    match read {
        Ok(36) => siphash(&[0, 0], &text),
        _ => 0,
    }
}

/// A copy of the head of the stack in an image memfd: of what does not grow with its capacities.
///
/// # Errors
/// `EINVAL` for a file that is too short, or what the kernel answers.
pub fn copy_head(image: impl AsFd) -> Result<Vec<u8>, Errno> {
    let mut head = vec![0; HEAD_BYTES];
    read_at(&image, &mut head, STACK_OFFSET)?;
    Ok(head)
}

/// A copy of the stack in an image memfd, whoever has made that: no more than its head says there
/// is, or the head alone if that says nonsense. Holes, which cost their maker nothing, are not
/// read.
///
/// # Errors
/// `EFBIG` for a stack of more than a gigabyte, `EINVAL` for a file that is too short, or what the
/// kernel answers.
pub fn copy_stack(image: impl AsFd) -> Result<Vec<u8>, Errno> {
    const LARGEST: usize = 1 << 30;
    let head = copy_head(&image)?;
    let Ok(stated) = stated_bytes(&head) else {
        return Ok(head);
    };
    let size = usize::try_from(fstat(&image)?.st_size).unwrap_or(0);
    let size = size.saturating_sub(STACK_OFFSET).min(stated);
    if size > LARGEST {
        return Err(Errno::FBIG);
    }
    let mut bytes = vec![0; size];
    let end = (STACK_OFFSET + size) as u64;
    let mut at = STACK_OFFSET as u64;
    while at < end {
        let from = match seek(&image, SeekFrom::Data(at)) {
            Ok(from) => from.clamp(at, end),
            Err(Errno::NXIO) => break,
            Err(errno) => return Err(errno),
        };
        let to = match seek(&image, SeekFrom::Hole(from)) {
            // Whoever makes holes meanwhile does not keep us here.
            Ok(to) => to.clamp(from + 1, end.max(from + 1)),
            Err(Errno::NXIO) => break,
            Err(errno) => return Err(errno),
        };
        let piece = from as usize - STACK_OFFSET..to.min(end) as usize - STACK_OFFSET;
        if let Some(piece) = bytes.get_mut(piece) {
            read_at(&image, piece, from as usize)?;
        }
        at = to;
    }
    Ok(bytes)
}

/// Reads as many bytes as there is room for.
fn read_at(file: impl AsFd, mut room: &mut [u8], mut offset: usize) -> Result<(), Errno> {
    while !room.is_empty() {
        let read = pread(&file, &mut *room, offset as u64)?;
        if read == 0 {
            return Err(Errno::INVAL);
        }
        offset += read;
        room = room.get_mut(read..).unwrap_or_default();
    }
    Ok(())
}

/// A mapped image.
#[derive(Debug)]
pub struct Image {
    mapping: Mapping,
}

impl Image {
    /// Makes a new image with an empty stack in it.
    ///
    /// # Errors
    /// [`ImageError::System`] when memory is refused, [`ImageError::Layout`] for capacities that
    /// make no stack.
    pub fn create(capacities: Capacities, id: u64) -> Result<(OwnedFd, Self), ImageError> {
        let bytes = STACK_OFFSET + bypass_stack::image_bytes(&capacities);
        let fd = sealed_memfd(NAME, bytes)?;
        let image = Self {
            mapping: Mapping::new(&fd, true)?,
        };
        // SAFETY: the memfd was made above, so nobody else has it yet.
        let stack = unsafe { image.stack_bytes() };
        let mut stack = Stack::create(stack, capacities, id).map_err(ImageError::Layout)?;
        stack.set_timestamp_seed(boot_seed());
        image.header().id.store(id, Ordering::Relaxed);
        image.header().magic.store(MAGIC, Ordering::Release);
        Ok((fd, image))
    }

    /// Maps an existing image for running its stack.
    ///
    /// # Errors
    /// [`ImageError::NotAnImage`] for any other file, or what the kernel answers.
    pub fn map(fd: impl AsFd) -> Result<Self, ImageError> {
        if !is_sealed(&fd) {
            return Err(ImageError::NotAnImage);
        }
        let mapping = Mapping::new(fd, true)?;
        if mapping.bytes() <= STACK_OFFSET {
            return Err(ImageError::NotAnImage);
        }
        let image = Self { mapping };
        if image.header().magic.load(Ordering::Acquire) != MAGIC {
            return Err(ImageError::NotAnImage);
        }
        Ok(image)
    }

    /// The header: atomics only, so shared references are sound whatever others write.
    fn header(&self) -> &SharedHeader {
        // SAFETY: the mapping is page aligned, at least a page long (`create` and `map` check) and
        // lives as long as `self`; every bit pattern is valid for atomics of integers.
        unsafe { &*self.mapping.as_ptr().cast::<SharedHeader>() }
    }

    /// The lock word of the stack.
    #[must_use]
    pub fn lock_word(&self) -> &AtomicU32 {
        &self.header().lock
    }

    /// The image's random identity: names its wake sockets.
    #[must_use]
    pub fn id(&self) -> u64 {
        self.header().id.load(Ordering::Relaxed)
    }

    /// How often a dead owner's lock was taken over.
    #[must_use]
    pub fn recoveries(&self) -> u32 {
        self.header().recoveries.load(Ordering::Relaxed)
    }

    /// Changes whenever somebody pumps the stack; wraps.
    #[must_use]
    pub fn pumps(&self) -> u32 {
        self.header().pumps.load(Ordering::Relaxed)
    }

    /// Frames taken in by all pumps; wraps.
    #[must_use]
    pub fn frames(&self) -> u32 {
        self.header().frames.load(Ordering::Relaxed)
    }

    /// Notes a pump that took in `frames`. The caller holds the lock, so nothing is lost between
    /// load and store.
    #[inline]
    pub fn count_pump(&self, frames: u32) {
        let add = |counter: &AtomicU32, more: u32| {
            let sum = counter.load(Ordering::Relaxed).wrapping_add(more);
            counter.store(sum, Ordering::Relaxed);
        };
        add(&self.header().pumps, 1);
        add(&self.header().frames, frames);
    }

    /// When the stack has something to do that no frame brings: nanoseconds of `CLOCK_MONOTONIC`;
    /// 0 = never, as of the last time that its lock was given back.
    #[must_use]
    pub fn due(&self) -> u64 {
        self.header().due.load(Ordering::Relaxed)
    }

    /// Notes it, before the lock is given back.
    #[inline]
    pub fn set_due(&self, due: u64) {
        self.header().due.store(due, Ordering::Relaxed);
    }

    /// Changes whenever connections have come (back) from the kernel; wraps.
    #[must_use]
    #[inline]
    pub fn returned(&self) -> u32 {
        self.header().returned.load(Ordering::Acquire)
    }

    /// Notes that some have.
    pub fn count_returned(&self) {
        self.header().returned.fetch_add(1, Ordering::Release);
    }

    /// Notes one take-over.
    pub fn count_recovery(&self) {
        self.header().recoveries.fetch_add(1, Ordering::Relaxed);
    }

    /// The stack image's bytes.
    ///
    /// # Safety
    /// - The result lives no longer than `self`, whatever its lifetime says.
    /// - It (and what is made of it) is used only while [`Self::lock_word`] is held, or before
    ///   anybody else has the memfd, and at most one such reference is used at a time.
    pub(crate) unsafe fn stack_bytes(&self) -> &'static mut [u8] {
        let length = self.mapping.bytes() - STACK_OFFSET;
        // SAFETY: the offset is inside the mapping (checked by `create` and `map`).
        let start = unsafe { self.mapping.as_ptr().add(STACK_OFFSET) };
        // SAFETY: `length` bytes from `start` are mapped; exclusion and lifetime are the caller's.
        unsafe { std::slice::from_raw_parts_mut(start, length) }
    }
}
