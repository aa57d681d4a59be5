//! A shared mapping that forks can leave out, and how a child gets it back.
//!
//! The page table of a large mapping of a BPF map is copied by every fork (such a mapping cannot be
//! faulted in later as a file's can). So the mapping is `MADV_DONTFORK`, and where it is stands in
//! a word on a page that forks wipe (`MADV_WIPEONFORK`, Linux 4.14). Whoever is about to use the
//! mapping looks at the word first ([`Unforked::mend`]), in whatever moment of a child's life: a
//! handler of pthread_atfork, a signal handler, a child of a clone that nobody has told us of.
//!
//! ```text
//!   word = address --fork--> null in the child --mend: mapped anew, wherever there is room-->
//! ```
//!
//! Not at the same place: by then something else may be there.

#![expect(
    unsafe_code,
    reason = "UNSAFETY: maps and unmaps what an atomic pointer leads to, here only"
)]

use std::os::fd::{AsFd, BorrowedFd, RawFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicPtr, Ordering};

use rustix::io::Errno;
use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap, mmap_anonymous, munmap};

/// A page: what the word costs.
const PAGE: usize = 4096;
/// Of both mappings.
const PROTECTION: ProtFlags = ProtFlags::READ.union(ProtFlags::WRITE);

/// A mapping that forks can leave out.
#[derive(Debug)]
pub struct Unforked {
    word: NonNull<AtomicPtr<u8>>,
    bytes: usize,
    /// What is mapped; -1 = forks inherit the mapping.
    fd: RawFd,
}

// SAFETY: the word is an atomic, the rest is numbers; neither belongs to a thread.
unsafe impl Send for Unforked {}
// SAFETY: as above.
unsafe impl Sync for Unforked {}

impl Unforked {
    /// Maps what `fd` is, from its beginning, for reading and writing. Forks inherit it.
    ///
    /// # Errors
    /// What `mmap` answers.
    pub(super) fn map(fd: impl AsFd, bytes: usize) -> Result<Self, Errno> {
        let address = map(fd.as_fd(), bytes)?;
        // SAFETY: a null hint lets the kernel choose a free range, so nothing is replaced.
        let page =
            unsafe { mmap_anonymous(std::ptr::null_mut(), PAGE, PROTECTION, MapFlags::PRIVATE) };
        let page = page.inspect_err(|_| unmap(address.as_ptr(), bytes))?;
        let this = Self {
            word: NonNull::new(page.cast()).ok_or(Errno::NOMEM)?,
            bytes,
            fd: -1,
        };
        this.word().store(address.as_ptr(), Ordering::Release);
        Ok(this)
    }

    /// Leaves the mapping out of forks.
    ///
    /// # Safety
    /// `fd` is what is mapped, and stays open as long as `self` lives, in every child too. In a
    /// child [`Self::mend`] succeeds before [`Self::address`] is asked for.
    ///
    /// # Errors
    /// What `madvise` answers: then forks inherit the mapping as before.
    pub(super) unsafe fn leave_out_of_forks(&mut self, fd: RawFd) -> Result<(), Errno> {
        leave_out(self.address(), self.bytes)?;
        // SAFETY: the range is our own page.
        let wiped = unsafe { madvise(self.word.as_ptr().cast(), PAGE, Advice::LinuxWipeOnFork) };
        if wiped.is_err() {
            // SAFETY: the range is the mapping; in this process nothing changes.
            unsafe {
                madvise(
                    self.address().as_ptr().cast(),
                    self.bytes,
                    Advice::LinuxDoFork,
                )
            }?;
        } else {
            self.fd = fd;
        }
        wiped
    }

    /// Makes sure that the mapping is here; one load if it is. If it is not, this is a child that
    /// uses it for the first time, and `begin` runs before it.
    ///
    /// # Errors
    /// What `mmap` and `madvise` answer: the mapping must not be touched, and the next call tries
    /// again.
    #[inline]
    pub fn mend(&self, begin: impl FnOnce()) -> Result<(), Errno> {
        if !self.word().load(Ordering::Acquire).is_null() {
            return Ok(());
        }
        begin();
        self.map_again()
    }

    #[cold]
    fn map_again(&self) -> Result<(), Errno> {
        // SAFETY: the word can be null only after `leave_out_of_forks`, which was promised that
        // the descriptor stays.
        let address = map(unsafe { BorrowedFd::borrow_raw(self.fd) }, self.bytes)?;
        let published = leave_out(address, self.bytes).map(|()| {
            let (word, null) = (self.word(), std::ptr::null_mut());
            word.compare_exchange(null, address.as_ptr(), Ordering::Release, Ordering::Relaxed)
                .is_ok()
        });
        // Another thread, or a handler that interrupted this one, may have been faster.
        if published != Ok(true) {
            unmap(address.as_ptr(), self.bytes);
        }
        published.map(|_| ())
    }

    /// Where the mapping is.
    pub(super) fn address(&self) -> NonNull<u8> {
        let address = self.word().load(Ordering::Acquire);
        debug_assert!(!address.is_null(), "a child must mend it first");
        // SAFETY: `map` has made it, and only forks take it away, after which `mend` is called
        // first, as `leave_out_of_forks` was promised.
        unsafe { NonNull::new_unchecked(address) }
    }

    fn word(&self) -> &AtomicPtr<u8> {
        // SAFETY: the page is ours until `self` is dropped; it is zero or what was stored.
        unsafe { self.word.as_ref() }
    }
}

impl Drop for Unforked {
    fn drop(&mut self) {
        let address = self.word().load(Ordering::Acquire);
        if !address.is_null() {
            unmap(address, self.bytes);
        }
        unmap(self.word.as_ptr().cast(), PAGE);
    }
}

fn map(fd: BorrowedFd<'_>, bytes: usize) -> Result<NonNull<u8>, Errno> {
    // SAFETY: a null hint lets the kernel choose a free range, so nothing is replaced. It refuses
    // more bytes than a BPF map has, so that no access inside of them can fault.
    let address = unsafe {
        let anywhere = std::ptr::null_mut();
        mmap(anywhere, bytes, PROTECTION, MapFlags::SHARED, fd, 0)
    }?;
    NonNull::new(address.cast()).ok_or(Errno::NOMEM)
}

fn leave_out(address: NonNull<u8>, bytes: usize) -> Result<(), Errno> {
    // SAFETY: the range is a mapping of this module; in this process nothing changes.
    unsafe { madvise(address.as_ptr().cast(), bytes, Advice::LinuxDontFork) }
}

fn unmap(address: *mut u8, bytes: usize) {
    // SAFETY: the range was mapped by this module, and nothing borrowed from it is left.
    let _ = unsafe { munmap(address.cast(), bytes) };
}
