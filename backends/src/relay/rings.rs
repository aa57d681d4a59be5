//! The rings between a stack and the relay: one memfd and a pair of sockets.
//!
//! ```text
//!   memfd:  | header page | fill | completion | RX | TX | departures | hands |
//!                                                                         each on its own pages
//!
//!              rings under the stack lock                      the relay's one thread
//!   stack ──── fill, TX ──────────────────────────────────────────────────────► relay
//!   stack ◄─── completion, RX, departures ────────────────────────────────────  relay
//!         ◄─── a datagram when any came and none is on its way (`rung`) ──── bell
//!         ──── a datagram when there is to send and the relay sleeps ─────────►
//! ```
//!
//! The stack's end of the pair is readable while frames wait and takes the doorbell, as the
//! descriptor of an XSK does, so that whoever waits or rings need not know which of both it is.
//!
//! Both ends are datagram sockets: an end whose other one is gone is not readable for ever.
//!
//! # The bell
//!
//! Frames first, then the bell: the relay enters frames in the RX ring and then makes `rung` 1; if
//! it was 0 it sends a datagram. The stack takes the datagram only when it has emptied the ring,
//! makes `rung` 0 and looks at the ring once more: a frame that came before that is seen, one that
//! comes after it rings anew. All of it is sequentially consistent. Departures are as frames: the
//! stack looks after them when it has looked after the bell.
//!
//! # Departures
//!
//! When frames have left by the port's clock, of those whose number asks for it. There is a ring of
//! them only where the port can tell: the size of the memfd says so.
//!
//! # Hands
//!
//! A bit for each chunk that the port has and no ring: only where frames stay in chunks, which the
//! size says too. The relay writes it for whoever recovers the stack, and believes its own copy
//! only. A chunk is marked before it leaves the ring from which it comes, and until it is in the
//! next one.

#![expect(
    unsafe_code,
    reason = "UNSAFETY: the header page becomes atomics, here only"
)]

use std::os::fd::{BorrowedFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};

use rustix::fs::{MemfdFlags, SealFlags};
use rustix::io::Errno;
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};
use rustix::net::xdp::XdpRingOffset;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

use crate::ring::{Entry, Ring};

/// Name of the memfd.
const NAME: &str = "bypass-rings";
/// Bytes of the header.
const PAGE: usize = 4096;
/// Bytes before the entries of a ring: a cache line for each cursor.
const HEAD: u64 = 128;
/// Chunks that may be in the port's hands: those with a number below.
pub(super) const MOST_CHUNKS: u32 = 1 << 20;
/// Bytes of the hands. (No ring of departures is as large.)
const HANDS: usize = MOST_CHUNKS as usize / 8;
/// Largest ring.
const MOST_ENTRIES: u32 = 1 << 16;

/// [`Slot::flags`]: the UDP or TCP checksum was found right.
pub(super) const CHECKSUM_GOOD: u32 = 1;

/// A frame in the RX or TX ring.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub(super) struct Slot {
    pub(super) chunk: u32,
    pub(super) offset: u32,
    pub(super) len: u32,
    /// Received: [`CHECKSUM_GOOD`], or 0. To send: the number by which its departure is told, or 0.
    pub(super) flags: u32,
}

/// When a frame has left.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Departure {
    /// Nanoseconds since 1970 by the port's clock; 0 = not known.
    pub at_ns: u64,
    /// The frame's.
    pub number: u32,
    /// Zero.
    pub spare: u32,
}

// SAFETY: four integers.
unsafe impl Entry for Slot {}
// SAFETY: three integers.
unsafe impl Entry for Departure {}
// SAFETY: an integer.
unsafe impl Entry for u32 {}

/// A word on a cache line of its own.
#[repr(C, align(64))]
struct Line(AtomicU32);

/// The header page.
#[repr(C)]
struct Header {
    /// Not 0: a datagram is on its way to the stack, or waits there.
    rung: Line,
    /// Not 0: the relay sleeps, or is about to.
    sleeps: Line,
    /// Frames that found no chunk or no room, wrapping.
    missed: Line,
    /// Not 0: frames stay in chunks.
    in_place: Line,
}

/// What the two ends of a queue pair are made of.
#[derive(Debug)]
pub struct Pair {
    /// The rings.
    pub rings: OwnedFd,
    /// The stack's end of the bell.
    pub stack: OwnedFd,
    /// The relay's end.
    pub relay: OwnedFd,
}

impl Pair {
    /// Makes rings of `entries` (a power of two) and a bell; one of departures if the port tells
    /// of them, and hands if frames are to stay in chunks.
    ///
    /// # Errors
    /// `EINVAL` for another size; what the kernel answers.
    pub fn create(entries: u32, departs: bool, has_hands: bool) -> Result<Self, Errno> {
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let hands = if has_hands { HANDS } else { 0 };
        let rings = rustix::fs::memfd_create(NAME, flags)?;
        rustix::fs::ftruncate(&rings, (size(entries, departs)? + hands) as u64)?;
        let seals = SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL;
        rustix::fs::fcntl_add_seals(&rings, seals)?;
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let (stack, relay) = socketpair(AddressFamily::UNIX, SocketType::DGRAM, flags, None)?;
        Ok(Self {
            rings,
            stack,
            relay,
        })
    }
}

/// `SIOCOUTQ` of linux/sockios.h.
const SIOCOUTQ: rustix::ioctl::Opcode = 0x5411;

/// Whether a datagram that was sent at this end still waits at the other one. One that is taken
/// does not, nor one whose end is gone.
pub(super) fn is_unread(bell: &OwnedFd) -> bool {
    // SAFETY: SIOCOUTQ writes an integer.
    let waiting = unsafe {
        rustix::ioctl::ioctl(
            bell,
            rustix::ioctl::Getter::<SIOCOUTQ, core::ffi::c_int>::new(),
        )
    };
    waiting.is_ok_and(|bytes| bytes > 0)
}

/// Pages of a ring with entries of `T`.
fn ring_bytes<T>(entries: u32) -> usize {
    (HEAD as usize + entries as usize * size_of::<T>()).next_multiple_of(PAGE)
}

/// Bytes of the memfd, with a ring of departures or without.
fn size(entries: u32, departs: bool) -> Result<usize, Errno> {
    if !entries.is_power_of_two() || entries > MOST_ENTRIES {
        return Err(Errno::INVAL);
    }
    let last = if departs {
        ring_bytes::<Departure>(entries)
    } else {
        0
    };
    Ok(PAGE + 2 * ring_bytes::<u32>(entries) + 2 * ring_bytes::<Slot>(entries) + last)
}

/// The rings, mapped: by the stack's side or the relay's.
#[derive(Debug)]
pub(super) struct Rings {
    pub(super) fill: Ring<u32>,
    pub(super) completion: Ring<u32>,
    pub(super) rx: Ring<Slot>,
    pub(super) tx: Ring<Slot>,
    pub(super) departures: Option<Ring<Departure>>,
    header: NonNull<Header>,
    pub(super) shown: Option<Shown>,
}

// SAFETY: the mappings belong to no thread; the header is atomics only.
unsafe impl Send for Rings {}

impl Rings {
    /// Maps the memfd of a queue pair with rings of `entries`.
    ///
    /// # Errors
    /// `EINVAL` unless it is one: sealed, and of that size.
    pub(super) fn map(fd: BorrowedFd<'_>, entries: u32) -> Result<Self, Errno> {
        let at = size(entries, false)?;
        let is_sealed = rustix::fs::fcntl_get_seals(fd)?.contains(SealFlags::SHRINK);
        let bytes = usize::try_from(rustix::fs::fstat(fd)?.st_size).unwrap_or(0);
        let with = size(entries, true)?;
        let (departs, has_hands) = (
            bytes == with || bytes == with + HANDS,
            bytes == at + HANDS || bytes == with + HANDS,
        );
        if !is_sealed || !departs && !has_hands && bytes != at {
            return Err(Errno::INVAL);
        }
        let departures = departs.then(|| ring(fd, at, entries)).transpose()?;
        let (small, large) = (ring_bytes::<u32>(entries), ring_bytes::<Slot>(entries));
        let fill = ring(fd, PAGE, entries)?;
        let completion = ring(fd, PAGE + small, entries)?;
        let rx = ring(fd, PAGE + 2 * small, entries)?;
        let tx = ring(fd, PAGE + 2 * small + large, entries)?;
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        let none = std::ptr::null_mut();
        // SAFETY: a null hint replaces nothing; the file is larger than a page and cannot shrink.
        let header = unsafe { mmap(none, PAGE, protection, MapFlags::SHARED, fd, 0) }?;
        let header = NonNull::new(header.cast()).ok_or(Errno::FAULT)?;
        let hands = has_hands.then(|| {
            let at = (bytes - HANDS) as u64;
            // SAFETY: as above; the last pages of the file are these.
            unsafe { mmap(none, HANDS, protection, MapFlags::SHARED, fd, at) }
        });
        let shown = hands.transpose()?.and_then(|at| NonNull::new(at.cast()));
        Ok(Self {
            fill,
            completion,
            rx,
            tx,
            departures,
            header,
            shown: shown.map(Shown),
        })
    }

    fn header(&self) -> &Header {
        // SAFETY: `map` has mapped a page there, aligned, which lives as long as `self`; atomics
        // are valid for any bits.
        unsafe { self.header.as_ref() }
    }

    /// Says that frames stay in chunks.
    pub(super) fn say_in_place(&self) {
        self.header().in_place.0.store(1, Ordering::Relaxed);
    }

    /// Whether the stack has frames or departures to take.
    pub(super) fn has_news(&self) -> bool {
        let departures = self.departures.as_ref();
        self.rx.filled() > 0 || departures.is_some_and(|ring| ring.filled() > 0)
    }

    /// Whether a datagram is on its way to the stack.
    pub(super) fn is_rung(&self) -> bool {
        self.header().rung.0.load(Ordering::SeqCst) != 0
    }

    /// Notes that the stack has taken the datagram.
    pub(super) fn take_bell(&self) {
        self.header().rung.0.store(0, Ordering::SeqCst);
        fence(Ordering::SeqCst);
    }

    /// Whether a datagram must be sent for frames that have been entered.
    pub(super) fn must_ring(&self) -> bool {
        fence(Ordering::SeqCst);
        self.header().rung.0.swap(1, Ordering::SeqCst) == 0
    }

    /// Whether the relay sleeps and nobody has woken it yet: then whoever asks must.
    pub(super) fn must_wake(&self) -> bool {
        fence(Ordering::SeqCst);
        let sleeps = &self.header().sleeps.0;
        sleeps.load(Ordering::SeqCst) != 0 && sleeps.swap(0, Ordering::SeqCst) != 0
    }

    /// Says that the relay goes to sleep; whether it may: there is nothing to send, or no room to
    /// say that it was sent.
    pub(super) fn fall_asleep(&self) -> bool {
        self.header().sleeps.0.store(1, Ordering::SeqCst);
        fence(Ordering::SeqCst);
        let may = self.tx.filled() == 0 || self.completion.free() == 0;
        if !may {
            self.wake_up();
        }
        may
    }

    /// Says that the relay is awake.
    pub(super) fn wake_up(&self) {
        self.header().sleeps.0.store(0, Ordering::Relaxed);
    }

    /// Frames that found no chunk or no room, wrapping.
    pub(super) fn missed(&self) -> u32 {
        self.header().missed.0.load(Ordering::Relaxed)
    }

    /// Counts frames that found no chunk or no room.
    pub(super) fn count_missed(&self, frames: u32) {
        self.header().missed.0.fetch_add(frames, Ordering::Relaxed);
    }
}

impl Drop for Rings {
    fn drop(&mut self) {
        // SAFETY: mapped by `map`, of this size; every reference into it borrows `self`.
        let _ = unsafe { munmap(self.header.as_ptr().cast(), PAGE) };
    }
}

/// The hands, mapped.
#[derive(Debug)]
pub(super) struct Shown(NonNull<AtomicU64>);

// SAFETY: as `Rings`: atomics only.
unsafe impl Send for Shown {}

impl Shown {
    /// 64 chunks a word.
    #[inline]
    pub(super) fn words(&self) -> &[AtomicU64] {
        // SAFETY: `Rings::map` has mapped as many bytes there, which live as long as `self`;
        // atomics are valid for any bits.
        unsafe { std::slice::from_raw_parts(self.0.as_ptr(), HANDS / 8) }
    }
}

impl Drop for Shown {
    fn drop(&mut self) {
        // SAFETY: mapped by `Rings::map`, of this size; every reference into it borrows `self`.
        let _ = unsafe { munmap(self.0.as_ptr().cast(), HANDS) };
    }
}

/// Whether frames stay in chunks, as the relay has said it of these rings.
#[must_use]
pub fn is_in_place(rings: BorrowedFd<'_>) -> bool {
    let mut word = [0_u8; 4];
    let at = std::mem::offset_of!(Header, in_place) as u64;
    rustix::io::pread(rings, &mut word, at).is_ok_and(|_| word != [0; 4])
}

fn ring<T: Entry>(fd: BorrowedFd<'_>, at: usize, entries: u32) -> Result<Ring<T>, Errno> {
    let offsets = XdpRingOffset {
        producer: 0,
        consumer: HEAD / 2,
        desc: HEAD,
        flags: None,
    };
    Ring::map(fd, at as u64, &offsets, entries)
}

#[cfg(test)]
mod tests {
    use rustix::net::{RecvFlags, SendFlags, recv, send};

    use super::*;

    #[test]
    fn a_datagram_is_unread_until_it_is_taken_or_its_end_is_gone() {
        let Pair { stack, relay, .. } = Pair::create(8, false, false).unwrap();
        let ring = || send(&relay, &[], SendFlags::NOSIGNAL);
        assert!(!is_unread(&relay));
        ring().unwrap();
        assert!(is_unread(&relay));
        recv(&stack, &mut [0_u8; 1][..], RecvFlags::DONTWAIT).unwrap();
        assert!(!is_unread(&relay));
        ring().unwrap();
        drop(stack);
        assert!(!is_unread(&relay));
        assert_eq!(ring(), Err(Errno::CONNREFUSED));
    }
}
