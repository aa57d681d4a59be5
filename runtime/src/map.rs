//! A shared mapping of a memfd, unmapped when dropped.

#![expect(
    unsafe_code,
    reason = "UNSAFETY: mmap and munmap; the pointer stays inside `Mapping`"
)]

use std::ffi::c_void;
use std::os::fd::{AsFd, OwnedFd};
use std::ptr::NonNull;

use rustix::fs::{MemfdFlags, SealFlags};
use rustix::io::Errno;
use rustix::mm::{MapFlags, ProtFlags};
use rustix::process::{Resource, getrlimit};

/// A `MAP_SHARED` mapping of a whole memfd.
#[derive(Debug)]
pub struct Mapping {
    address: NonNull<u8>,
    bytes: usize,
}

// SAFETY: the mapping is plain shared memory that belongs to no thread; whoever turns it into
// references answers for exclusion (the stack lock, or the sequence lock).
unsafe impl Send for Mapping {}
// SAFETY: as above; `Mapping` itself hands out only raw pointers.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps the whole file, read-only or writable.
    ///
    /// # Errors
    /// `EINVAL` for an empty file; else what `fstat` or `mmap` answers.
    pub fn new(fd: impl AsFd, writable: bool) -> Result<Self, Errno> {
        let size = rustix::fs::fstat(fd.as_fd())?.st_size;
        let bytes = usize::try_from(size).map_err(|_| Errno::INVAL)?;
        if bytes == 0 {
            return Err(Errno::INVAL);
        }
        let protection = if writable {
            ProtFlags::READ | ProtFlags::WRITE
        } else {
            ProtFlags::READ
        };
        // SAFETY: a null hint lets the kernel choose a free range, so nothing that exists is
        // replaced; `bytes` is the size of the file.
        let address = unsafe {
            rustix::mm::mmap(
                std::ptr::null_mut(),
                bytes,
                protection,
                MapFlags::SHARED,
                fd,
                0,
            )
        }?;
        let address = NonNull::new(address.cast::<u8>()).ok_or(Errno::NOMEM)?;
        Ok(Self { address, bytes })
    }

    /// First byte. Valid for [`Self::bytes`] bytes as long as the mapping lives.
    #[must_use]
    pub fn as_ptr(&self) -> *mut u8 {
        self.address.as_ptr()
    }

    /// Size in bytes.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        let address: *mut c_void = self.address.as_ptr().cast();
        // SAFETY: the range was mapped by `new` and nothing outlives `self` (owners keep the
        // `Mapping` beside every reference they make from it).
        let _ = unsafe { rustix::mm::munmap(address, self.bytes) };
    }
}

/// Makes a memfd of this size that can neither shrink nor grow any more, so that a mapping of it
/// can never fault.
///
/// # Errors
/// What `memfd_create`, `ftruncate` or `fcntl(F_ADD_SEALS)` answers; `EFBIG` above `RLIMIT_FSIZE`,
/// where `ftruncate` would end the process (SIGXFSZ).
pub fn sealed_memfd(name: &str, bytes: usize) -> Result<OwnedFd, Errno> {
    let largest = getrlimit(Resource::Fsize).current;
    if largest.is_some_and(|largest| largest < bytes as u64) {
        return Err(Errno::FBIG);
    }
    let fd = rustix::fs::memfd_create(name, MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
    rustix::fs::ftruncate(&fd, bytes as u64)?;
    rustix::fs::fcntl_add_seals(&fd, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?;
    Ok(fd)
}

/// Whether the descriptor is a memfd that cannot shrink (what a receiver checks before it maps).
#[must_use]
pub fn is_sealed(fd: impl AsFd) -> bool {
    rustix::fs::fcntl_get_seals(fd).is_ok_and(|seals| seals.contains(SealFlags::SHRINK))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_mappings_of_one_memfd_see_the_same_bytes() {
        let fd = sealed_memfd("bypass-test", 8192).expect("memfd");
        assert!(is_sealed(&fd));
        let (one, two) = (
            Mapping::new(&fd, true).expect("map"),
            Mapping::new(&fd, false).expect("map"),
        );
        // SAFETY: both pointers are valid for 8192 bytes and no reference exists.
        unsafe { one.as_ptr().add(5000).write(7) };
        // SAFETY: as above.
        assert_eq!(unsafe { two.as_ptr().add(5000).read() }, 7);
        assert_eq!(rustix::fs::ftruncate(&fd, 4096), Err(Errno::PERM));
    }
}
