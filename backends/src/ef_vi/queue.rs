//! One VI with its packet memory: frames in and out by its rings.
//!
//! ```text
//!   Domain, Set ──► Virtual interface ──► Registration of Memory
//!                                    (dropped from the right to the left)
//! ```

#![expect(
    unsafe_code,
    reason = "UNSAFETY: makes and frees the library's objects; maps the packet memory"
)]

use std::ffi::{c_int, c_void};
use std::os::fd::{BorrowedFd, RawFd};
use std::ptr::NonNull;
use std::sync::Arc;

use rustix::io::Errno;
use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous, munmap};

use super::domain::{Domain, Handle, Set};
use super::event::RawEvent;
use super::group::Plan;
use super::layout::Layout;
use super::library::{Functions, GetStamp, RawRegistration, Time};
use super::raw::RawVi;
use super::reason::CiulError;
use super::vlan;
use crate::relay::Departure;

/// Bytes of an Ethernet header.
pub(super) const ETHERNET: u32 = 14;
/// Entries of each ring.
pub(super) const ENTRIES: u32 = 512;
/// Bytes of a buffer: two of them fill a page of the card.
pub(super) const BUFFER: usize = 2048;
/// Buffers for receiving: what the ring holds, in eights.
const RX_BUFFERS: u32 = ENTRIES - 8;
/// Buffers for sending: what the ring holds, each of them being one descriptor.
const TX_BUFFERS: u32 = ENTRIES - 1;
/// Buffers: for receiving, then for sending.
const BUFFERS: u32 = RX_BUFFERS + TX_BUFFERS;
const PAGE: usize = 4096;
/// Architectures of cards that take frames by cut-through only: X3, and X4's express path.
const EFCT: u8 = 3;
const EF10CT: u8 = 5;
/// `EF_VI_RX_TIMESTAMPS`: received frames have the time in their prefix.
const RX_STAMPS: u64 = 0x1_0000;
/// `EF_VI_TX_TIMESTAMPS`: each frame that is sent has an event of its own, with the time.
const TX_STAMPS: u64 = 0x2_0000;
/// Most frames that one event speaks of.
pub(super) const MOST_OF_ONE: usize = 64;

/// The VI itself.
#[derive(Debug)]
struct Interface {
    raw: RawVi,
    handle: Arc<Handle>,
}

impl Interface {
    /// A VI of a domain, or of a set there.
    fn of(
        domain: &mut Domain,
        set: Option<&mut Set>,
        handle: Arc<Handle>,
        layout: Layout,
        flags: u64,
    ) -> Result<Self, CiulError> {
        let mut raw = RawVi::new(layout);
        let (vi, fd) = (raw.pointer(), handle.fd);
        let functions = handle.ciul.functions;
        let (none, entries) = (std::ptr::null_mut(), ENTRIES as c_int);
        if let Some(set) = set {
            let alloc = functions.ef_vi_alloc_from_set;
            let (set, of) = (set.pointer(), set.handle.fd);
            // SAFETY: 4 KiB for a VI; a set; -1 is its next VI, and the driver's own size.
            let answer =
                unsafe { alloc(vi, fd, set, of, -1, -1, entries, entries, none, -1, flags) };
            CiulError::check("ef_vi_alloc_from_set", answer)?;
        } else {
            let alloc = functions.ef_vi_alloc_from_pd;
            let (pd, of) = (domain.pointer(), domain.handle.fd);
            // SAFETY: 4 KiB for a VI; a domain; -1 is the driver's own size.
            let answer = unsafe { alloc(vi, fd, pd, of, -1, entries, entries, none, -1, flags) };
            CiulError::check("ef_vi_alloc_from_pd", answer)?;
        }
        Ok(Self { raw, handle })
    }
}

impl Drop for Interface {
    fn drop(&mut self) {
        let free = self.handle.ciul.functions.ef_vi_free;
        // SAFETY: allocated by `of`. A dead one is freed as well.
        let _ = unsafe { free(self.raw.pointer(), self.handle.fd) };
    }
}

/// Packet memory: huge pages where some are free.
#[derive(Debug)]
struct Memory(NonNull<u8>);

/// One huge page, a little more than [`BUFFERS`] need.
const BYTES: usize = 2 << 20;
const _: () = assert!(BUFFERS as usize * BUFFER <= BYTES && BYTES.is_multiple_of(PAGE));

impl Memory {
    fn map() -> Result<Self, CiulError> {
        let (none, protection) = (std::ptr::null_mut(), ProtFlags::READ | ProtFlags::WRITE);
        // Locked by the registration; pages are there from the beginning.
        let flags = MapFlags::SHARED | MapFlags::POPULATE;
        // SAFETY: a null hint replaces nothing.
        let huge = unsafe { mmap_anonymous(none, BYTES, protection, flags | MapFlags::HUGETLB) };
        // SAFETY: the same.
        let mapped = huge.or_else(|_| unsafe { mmap_anonymous(none, BYTES, protection, flags) });
        let failed = |errno| CiulError {
            call: "mmap",
            errno,
        };
        let base = NonNull::new(mapped.map_err(failed)?.cast());
        base.map(Self).ok_or_else(|| failed(Errno::FAULT))
    }

    /// Where a buffer is.
    fn buffer(&self, id: u32) -> *mut u8 {
        // SAFETY: ids are below BUFFERS: they are checked, or our own.
        unsafe { self.0.as_ptr().add(id as usize * BUFFER) }
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: mapped by `map`, of this size; no card has it any more.
        let _ = unsafe { munmap(self.0.as_ptr().cast(), BYTES) };
    }
}

/// What the card knows of the memory.
#[derive(Debug)]
struct Registration {
    raw: RawRegistration,
    handle: Arc<Handle>,
}

impl Registration {
    fn of(memory: &Memory, domain: &mut Domain) -> Result<Self, CiulError> {
        let none = std::ptr::null_mut();
        let mut raw = RawRegistration {
            addresses: none,
            base: none,
        };
        let (pd, fd) = (domain.pointer(), domain.handle.fd);
        let alloc = domain.handle.ciul.functions.ef_memreg_alloc;
        let base = memory.0.as_ptr().cast();
        // SAFETY: a domain, and memory of this size that outlives the registration.
        let answer = unsafe { alloc(&raw mut raw, fd, pd, fd, base, BYTES) };
        CiulError::check("ef_memreg_alloc", answer)?;
        let handle = Arc::clone(&domain.handle);
        Ok(Self { raw, handle })
    }

    /// The card's address of a buffer.
    fn address(&self, id: u32) -> u64 {
        let at = id as usize * BUFFER;
        // SAFETY: there is an address for each page of the memory.
        let page = unsafe { self.raw.addresses.add(at / PAGE).read() };
        page | (at % PAGE) as u64
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        let free = self.handle.ciul.functions.ef_memreg_free;
        // SAFETY: made by `of`; the VI that used it is freed before.
        let _ = unsafe { free(&raw mut self.raw, self.handle.fd) };
    }
}

/// A queue pair of a card. Its fields are dropped in this order: the VI before the memory that its
/// rings name.
#[derive(Debug)]
pub(super) struct Queue {
    interface: Interface,
    registration: Registration,
    memory: Memory,
    /// Bytes of a receive buffer before the frame, and of the longest frame.
    prefix: u32,
    longest: u32,
    /// VLAN of all frames.
    vlan: Option<u16>,
    /// Whether the card sends only what is written into it.
    cuts_through: bool,
    /// Tells when a frame has come, where the card stamps them.
    get_stamp: Option<GetStamp>,
    /// Buffers in the RX ring of which the card was not told yet.
    unpushed: u32,
    /// Free ones that the library did not take when they were to be posted.
    unposted: Vec<u32>,
    /// Buffers to send from.
    free_tx: Vec<u32>,
    /// By which number the departure of each of them is told, 0 = it is not; none where the card
    /// does not tell.
    numbers: Box<[u32]>,
    /// Departures that have been told.
    departed: Vec<Departure>,
    /// Frames of which the card was not told yet.
    queued: u32,
}

impl Queue {
    /// Makes a VI of a domain, or of a set there, with its RX ring filled. Nothing is led to it.
    ///
    /// # Errors
    /// Which call has failed.
    pub(super) fn open(
        domain: &mut Domain,
        set: Option<&mut Set>,
        handle: Arc<Handle>,
        layout: Layout,
        plan: Plan,
    ) -> Result<Self, CiulError> {
        let get_stamp = handle.ciul.get_stamp.filter(|_| plan.stamps);
        let departs = get_stamp.is_some() && plan.departures;
        let flags = get_stamp.map_or(0, |_| RX_STAMPS) | if departs { TX_STAMPS } else { 0 };
        let interface = Interface::of(domain, set, handle, layout, flags)?;
        let memory = Memory::map()?;
        let registration = Registration::of(&memory, domain)?;
        let prefix = interface.raw.prefix();
        let cuts_through = [EFCT, EF10CT].contains(&interface.raw.architecture());
        // Those have buffers of their own, as long as ours, and say nothing of them.
        let buffer = if cuts_through {
            BUFFER as u32
        } else {
            interface.raw.buffer()
        };
        let mut queue = Self {
            prefix,
            longest: buffer.saturating_sub(prefix),
            cuts_through,
            vlan: plan.vlan,
            get_stamp,
            interface,
            registration,
            memory,
            unpushed: 0,
            unposted: Vec::new(),
            free_tx: (RX_BUFFERS..BUFFERS).collect(),
            numbers: vec![0; if departs { TX_BUFFERS as usize } else { 0 }].into(),
            departed: Vec::new(),
            queued: 0,
        };
        // Cards that lend their packets are given no buffers.
        if !queue.cuts_through {
            (0..RX_BUFFERS).for_each(|id| queue.post(id));
            queue.push_posted();
        }
        Ok(queue)
    }

    fn functions(&self) -> Functions {
        self.interface.handle.ciul.functions
    }

    fn vi(&mut self) -> *mut c_void {
        self.interface.raw.pointer()
    }

    /// The VI, and the descriptor of its handle.
    pub(super) fn vi_and_fd(&mut self) -> (*mut c_void, c_int) {
        (self.vi(), self.interface.handle.fd)
    }

    /// Descriptor that is readable when a primed VI has an event.
    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        let fd: RawFd = self.interface.handle.fd;
        // SAFETY: open as long as the handle is.
        unsafe { BorrowedFd::borrow_raw(fd) }
    }

    /// Bytes of events that it has read.
    #[cfg(test)]
    pub(super) fn current(&self) -> u32 {
        self.interface.raw.current()
    }

    /// Its number among the card's.
    pub(super) fn number(&self) -> u32 {
        self.interface.raw.instance()
    }

    /// MAC address and MTU.
    ///
    /// # Errors
    /// Which call has failed.
    pub(super) fn facts(&mut self) -> Result<([u8; 6], u32), CiulError> {
        let functions = self.functions();
        let (vi, fd) = self.vi_and_fd();
        let mut mac = [0; 6];
        // SAFETY: a VI; writes six bytes.
        let answer = unsafe { (functions.ef_vi_get_mac)(vi, fd, &raw mut mac) };
        CiulError::check("ef_vi_get_mac", answer)?;
        // SAFETY: a VI. The answer is the longest frame without its checksum, or 0.
        let frame = unsafe { (functions.ef_vi_mtu)(vi, fd) };
        let mtu = frame.checked_sub(ETHERNET).ok_or(CiulError {
            call: "ef_vi_mtu",
            errno: Errno::NODEV,
        })?;
        Ok((mac, mtu))
    }

    /// Whether the card stamps received frames.
    pub(super) fn has_stamps(&self) -> bool {
        self.get_stamp.is_some()
    }

    /// Whether it tells when frames have left.
    pub(super) fn tells_departures(&self) -> bool {
        !self.numbers.is_empty()
    }

    /// Bytes of the longest frame that a buffer takes.
    pub(super) fn longest(&self) -> u32 {
        self.longest
    }

    /// Reads events; how many.
    pub(super) fn poll(&mut self, events: &mut [RawEvent]) -> usize {
        self.interface.raw.poll(events)
    }

    /// The bytes of a received buffer without its prefix; `None` when they cannot be.
    pub(super) fn frame(&self, id: u32, bytes: u16) -> Option<&[u8]> {
        let length = u32::from(bytes).checked_sub(self.prefix)?;
        if id >= RX_BUFFERS || length > self.longest {
            return None;
        }
        // SAFETY: inside of the buffer, which the card has filled and which is not posted now.
        let bytes = unsafe {
            let start = self.memory.buffer(id).add(self.prefix as usize);
            std::slice::from_raw_parts(start, length as usize)
        };
        Some(bytes)
    }

    /// When the frame of a buffer has come by the card's clock, nanoseconds since 1970; 0 = not
    /// known. To be asked before the next [`Self::poll`].
    pub(super) fn stamp(&mut self, id: u32) -> u64 {
        match self.get_stamp {
            Some(get) if id < RX_BUFFERS => {
                let packet = self.memory.buffer(id);
                self.stamp_of(get, packet)
            }
            _ => 0,
        }
    }

    fn stamp_of(&mut self, get: GetStamp, packet: *const u8) -> u64 {
        let (mut time, mut worth) = (Time::default(), 0);
        // SAFETY: a VI that was made with stamps, and a packet that it has filled.
        let answer = unsafe { get(self.vi(), packet, &raw mut time, &raw mut worth) };
        let seconds = u64::try_from(time.seconds).ok().filter(|_| answer == 0);
        let whole = seconds.and_then(|seconds| seconds.checked_mul(1_000_000_000));
        whole.map_or(0, |whole| {
            whole.saturating_add_signed(time.nanoseconds.clamp(0, 999_999_999))
        })
    }

    /// The bytes of one buffer of a merged event, prefix included, as the card has written them.
    pub(super) fn merged_bytes(&mut self, id: u32) -> Option<u16> {
        if id >= RX_BUFFERS {
            return None;
        }
        let get = self.functions().ef_vi_receive_get_bytes;
        let mut bytes = 0;
        // SAFETY: a VI, and a buffer that it has filled.
        let answer = unsafe { get(self.vi(), self.memory.buffer(id), &raw mut bytes) };
        (answer == 0).then(|| bytes.saturating_add(self.prefix as u16))
    }

    /// Buffer ids of a merged event; how many. `None` = it has failed, and which buffers the card
    /// has is not known any more.
    pub(super) fn unbundle_rx(
        &mut self,
        event: &RawEvent,
        ids: &mut [u32; MOST_OF_ONE],
    ) -> Option<usize> {
        let unbundle = self.functions().ef_vi_receive_unbundle;
        // SAFETY: a VI's event, and room for more than 15.
        let count = unsafe { unbundle(self.vi(), &raw const *event, ids.as_mut_ptr()) };
        let count = usize::try_from(count).ok()?;
        Some(count.min(MOST_OF_ONE))
    }

    /// Posts a buffer that is free, or free again; the card learns of it with seven others.
    pub(super) fn post(&mut self, id: u32) {
        if id >= RX_BUFFERS {
            return;
        }
        let address = self.registration.address(id);
        if self.interface.raw.receive_init(address, id) {
            self.unpushed += 1;
        } else {
            self.put_aside(id);
        }
    }

    /// The ring has room for all of them: what is not taken is kept for the next look.
    #[cold]
    fn put_aside(&mut self, id: u32) {
        self.unposted.push(id);
    }

    #[cold]
    fn post_again(&mut self) {
        for id in std::mem::take(&mut self.unposted) {
            self.post(id);
        }
    }

    /// Tells the card of posted buffers, in eights: the doorbell counts so.
    pub(super) fn push_posted(&mut self) {
        if !self.unposted.is_empty() {
            self.post_again();
        }
        if self.unpushed >= 8 {
            self.interface.raw.receive_push();
            self.unpushed %= 8;
        }
    }

    /// How many frames there are buffers for. (As many as the ring has descriptors.)
    pub(super) fn room(&self) -> usize {
        self.free_tx.len()
    }

    /// Takes a copy of a frame for sending; whether there was room.
    ///
    /// # Safety
    /// - The bytes are mapped. They may change meanwhile: then it is the frame that changes.
    pub(super) unsafe fn send(&mut self, bytes: *const u8, length: u32) -> bool {
        let tag = if self.vlan.is_some() { vlan::BYTES } else { 0 };
        let whole = length as usize + tag;
        if whole > BUFFER || tag > 0 && (length as usize) < vlan::ADDRESSES {
            return true;
        }
        let Some(id) = self.free_tx.pop() else {
            return false;
        };
        let to = self.memory.buffer(id);
        // SAFETY: as many bytes are there by the caller's word, and with a tag in the buffer, which
        // is ours.
        unsafe {
            match self.vlan {
                None => std::ptr::copy_nonoverlapping(bytes, to, length as usize),
                Some(id) => vlan::copy_tagged(bytes, length as usize, id, to),
            }
        }
        let init = self.functions().ef_vi_transmit_init;
        let address = self.registration.address(id);
        let raw = &mut self.interface.raw;
        let taken = if self.cuts_through {
            // SAFETY: the buffer, registered at this address.
            unsafe { raw.cut_through(to, whole, address, id) }
        } else {
            // SAFETY: a VI, and an address of registered memory.
            unsafe { init(raw.pointer(), address, whole as c_int, id as c_int) == 0 }
        };
        if taken {
            self.queued += u32::from(!self.cuts_through);
        } else {
            self.free_tx.push(id);
        }
        taken
    }

    /// The same with the number by which its departure is told.
    ///
    /// # Safety
    /// - As for [`Self::send`].
    pub(super) unsafe fn send_stamped(
        &mut self,
        bytes: *const u8,
        length: u32,
        number: u32,
    ) -> bool {
        let (free, next) = (self.free_tx.len(), self.free_tx.last().copied());
        // SAFETY: the caller's word.
        let taken = unsafe { self.send(bytes, length) };
        let place = next.and_then(|id| self.numbers.get_mut((id - RX_BUFFERS) as usize));
        if let Some(place) = place.filter(|_| self.free_tx.len() < free) {
            *place = number;
        }
        taken
    }

    /// Tells the card of what was taken.
    pub(super) fn flush(&mut self) {
        if std::mem::take(&mut self.queued) > 0 {
            self.interface.raw.transmit_push();
        }
    }

    /// Takes back the buffers of a completion; how many. `None` = as for [`Self::unbundle_rx`].
    pub(super) fn unbundle_tx(&mut self, event: &RawEvent) -> Option<usize> {
        let unbundle = self.functions().ef_vi_transmit_unbundle;
        let mut ids = [0; MOST_OF_ONE];
        // SAFETY: a VI's event, and room for as many as one event speaks of.
        let count = unsafe { unbundle(self.vi(), &raw const *event, ids.as_mut_ptr()) };
        let count = usize::try_from(count).ok()?.min(MOST_OF_ONE);
        for id in &ids[..count] {
            self.sent(*id);
        }
        Some(count)
    }

    /// A frame was sent.
    pub(super) fn sent(&mut self, id: u32) {
        if (RX_BUFFERS..BUFFERS).contains(&id) {
            self.free_tx.push(id);
        }
    }

    /// A frame has left at this time, nanoseconds since 1970, 0 = not known.
    pub(super) fn sent_at(&mut self, id: u32, at_ns: u64) {
        self.sent(id);
        let place = id.checked_sub(RX_BUFFERS);
        let place = place.and_then(|place| self.numbers.get_mut(place as usize));
        let number = place.map_or(0, std::mem::take);
        if number != 0 {
            self.departed.push(Departure {
                at_ns,
                number,
                spare: 0,
            });
        }
    }

    /// The departures since the last call.
    pub(super) fn take_departed(&mut self) -> Vec<Departure> {
        std::mem::take(&mut self.departed)
    }

    /// The bytes of a frame that the card lends, or none.
    pub(super) fn with_lent<T>(
        &mut self,
        packet: u32,
        bytes: u16,
        what: impl FnOnce(&[u8], u64) -> T,
    ) -> Option<T> {
        let lending = self.interface.handle.ciul.lending?;
        // SAFETY: a VI, and a packet of an event of it that was not released.
        let start = unsafe { (lending.get)(self.vi(), packet) };
        if start.is_null() {
            return None;
        }
        // 8.1 has another function for these.
        let get = self
            .get_stamp
            .filter(|_| self.interface.raw.layout.has_timestamp);
        let stamp = get.map_or(0, |get| self.stamp_of(get, start));
        // SAFETY: ours to read until it is released; the event has told how long it is.
        let frame = unsafe { std::slice::from_raw_parts(start, bytes.into()) };
        Some(what(frame, stamp))
    }

    /// Gives a lent frame back, once.
    pub(super) fn release(&mut self, packet: u32) {
        if let Some(lending) = self.interface.handle.ciul.lending {
            // SAFETY: a VI, and a packet of an event of it, which was not released before.
            unsafe { (lending.release)(self.vi(), packet) };
        }
    }

    /// Asks for an interrupt with the next event that was not seen.
    pub(super) fn prime(&mut self) -> Result<(), CiulError> {
        let prime = self.functions().ef_vi_prime;
        let (current, fd) = (self.interface.raw.current(), self.interface.handle.fd);
        // SAFETY: a VI and its handle.
        CiulError::check("ef_vi_prime", unsafe { prime(self.vi(), fd, current) })
    }
}
