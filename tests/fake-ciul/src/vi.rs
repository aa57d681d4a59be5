//! `struct ef_vi` and EF10's rings: what the genuine library does in ordinary memory.
//!
//! ```text
//!   rxd   u64 each: address bits 0-47, length 48-61             doorbell io + 0x830
//!   txd   the same, bit 62 = the frame goes on in the next one  doorbell io + 0xa18
//!   evq   u64 each, all ones = empty: code 60-63 (0 = RX, 2 = TX)
//!   ids   u32 each, all ones = none
//! ```

#![expect(
    unsafe_code,
    reason = "UNSAFETY: exports C functions on a structure whose layout is data"
)]

use std::ffi::{c_int, c_uint, c_void};

use crate::config;
use crate::layout::{Layout, slot};
use crate::nic::{self, Nic};

/// Doorbells in the io page: receive, transmit, event queue.
pub(crate) const RX_DOORBELL: usize = 0x830;
pub(crate) const TX_DOORBELL: usize = 0xa18;
const EVQ_DOORBELL: usize = 0x400;
const NONE: u64 = u64::MAX;
const NO_ID: u32 = u32::MAX;
const EAGAIN: c_int = -libc::EAGAIN;
/// What the card's controller tells: that it was started anew, and the time.
const REBOOT: u64 = 0x15;
const TIME: u64 = 0x1a;
/// In the state: seconds of the time that was told and its quarters of nanoseconds, without their
/// low 26 bits; whether it was.
const TOLD: usize = 8;
const IS_TOLD: usize = 20;
/// The first half of the time of a frame that was sent, quarters of nanoseconds.
const SENT: usize = 24;
/// What a TX event tells of a frame that has an event of its own (bits 24-30): quarters of
/// nanoseconds, then seconds (the low 16 bits). Their halves are in bits 0-15 and 32-47; of the
/// seconds the second half has bit 15 when the time is not known.
pub(crate) const SENT_LOW: u64 = 0x51 << 24;
pub(crate) const SENT_HIGH: u64 = 0x52 << 24;
const SENT_BITS: u64 = 0x7f << 24;
pub(crate) const UNKNOWN: u64 = 0x8000 << 32;
/// Events behind the one that is read next that are not cleared yet.
const CLEARED: c_int = 8;
/// An event's bits for errors of a frame that cards of this kind discard: frame checksum, IP's,
/// TCP's and UDP's, too long or broken.
const ERRORS: u64 = 1 << 24 | 1 << 25 | 1 << 26 | 1 << 29;
/// An event's bit for a wrong frame checksum.
pub(crate) const BAD_FRAME: u64 = 1 << 24;
/// EF10's architecture.
const EF10: c_int = 1;
/// Bytes of a receive buffer that EF10 uses.
pub(crate) const RX_BUFFER: u32 = 1792;
/// VI flags.
pub(crate) const RX_EVENT_MERGE: u64 = 0x20_0000;
pub(crate) const RX_TIMESTAMPS: u64 = 0x1_0000;
pub(crate) const TX_TIMESTAMPS: u64 = 0x2_0000;

/// `ef_event`: 16 bytes.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(4))]
pub struct ef_event(pub(crate) [u8; 16]);

impl ef_event {
    pub(crate) fn new(kind: u16) -> Self {
        Self([0; 16]).u16(0, kind)
    }

    pub(crate) fn u8(mut self, at: usize, value: u8) -> Self {
        self.0[at] = value;
        self
    }

    pub(crate) fn u16(mut self, at: usize, value: u16) -> Self {
        self.0[at..at + 2].copy_from_slice(&value.to_le_bytes());
        self
    }

    pub(crate) fn u32(mut self, at: usize, value: u32) -> Self {
        self.0[at..at + 4].copy_from_slice(&value.to_le_bytes());
        self
    }

    fn get_u16(&self, at: usize) -> u16 {
        u16::from_le_bytes([self.0[at], self.0[at + 1]])
    }
}

/// A `struct ef_vi` of the layout that is set.
#[derive(Clone, Copy)]
pub(crate) struct Vi {
    base: *mut u8,
    pub(crate) layout: &'static Layout,
}

impl Vi {
    pub(crate) fn at(base: *mut c_void) -> Self {
        Self {
            base: base.cast(),
            layout: config::get().layout,
        }
    }

    /// Where it is: one from another.
    pub(crate) fn place(self) -> usize {
        self.base as usize
    }

    fn get<T: Copy>(self, at: usize) -> T {
        // SAFETY: offsets are of the layout's table, inside of what callers must allocate.
        unsafe { self.base.add(at).cast::<T>().read_unaligned() }
    }

    pub(crate) fn set<T: Copy>(self, at: usize, value: T) {
        // SAFETY: as for `get`.
        unsafe { self.base.add(at).cast::<T>().write_unaligned(value) }
    }

    fn state(self, at: usize) -> *mut u32 {
        let state: *mut u8 = self.get(self.layout.ep_state);
        // SAFETY: inside of the state, which begins with these words.
        unsafe { state.add(at).cast() }
    }

    fn word(self, at: usize) -> u32 {
        // SAFETY: a word of the state.
        unsafe { self.state(at).read() }
    }

    fn set_word(self, at: usize, value: u32) {
        // SAFETY: a word of the state.
        unsafe { self.state(at).write(value) }
    }

    /// Word after `added`.
    fn rx_removed(self) -> usize {
        self.layout.rx_added + 4
    }

    fn tx_removed(self) -> usize {
        self.layout.tx_added + 4
    }

    fn rx_mask(self) -> u32 {
        self.get(self.layout.rxq)
    }

    fn tx_mask(self) -> u32 {
        self.get(self.layout.txq)
    }

    fn rxd(self) -> *mut u64 {
        self.get(self.layout.rxq + 8)
    }

    fn rx_ids(self) -> *mut u32 {
        self.get(self.layout.rxq + 16)
    }

    fn txd(self) -> *mut u64 {
        self.get(self.layout.rxq - 16)
    }

    fn tx_ids(self) -> *mut u32 {
        self.get(self.layout.rxq - 8)
    }

    fn evq(self) -> *mut u64 {
        self.get(self.layout.evq_mask - 8)
    }

    fn evq_slots(self) -> u32 {
        (self.get::<u32>(self.layout.evq_mask) + 1) / 8
    }

    fn io(self) -> *mut u8 {
        self.get(self.layout.evq_mask - 24)
    }

    fn flags(self) -> u64 {
        match self.layout.flags_bytes {
            4 => u64::from(self.get::<u32>(self.layout.vi_flags)),
            _ => self.get(self.layout.vi_flags),
        }
    }

    fn doorbell(self, at: usize, value: u32) {
        // SAFETY: the io page has 8 KiB.
        unsafe { self.io().add(at).cast::<u32>().write_volatile(value) }
    }

    /// Index of the event that is read next.
    fn evq_at(self) -> usize {
        (self.word(0) as usize / 8) & (self.evq_slots() as usize - 1)
    }

    /// Whether an event waits in the ring.
    fn has_event(self) -> bool {
        // SAFETY: inside of the ring.
        unsafe { self.evq().add(self.evq_at()).read_volatile() != NONE }
    }

    fn take_raw_event(self) -> Option<u64> {
        // SAFETY: inside of the ring.
        let place = unsafe { self.evq().add(self.evq_at()) };
        // SAFETY: the same.
        let event = unsafe { place.read_volatile() };
        if event == NONE {
            return None;
        }
        // SAFETY: the same.
        unsafe { place.write_volatile(NONE) };
        self.set_word(0, self.word(0).wrapping_add(8));
        Some(event)
    }

    /// Takes an event of the card's controller.
    fn hear(self, raw: u64) -> Option<ef_event> {
        match raw >> 44 & 0xff {
            REBOOT => return Some(ef_event::new(12)),
            TIME => {
                self.set_word(TOLD, raw as u32);
                self.set_word(TOLD + 4, (raw >> 38 & 0x3f) as u32);
                self.set_word(IS_TOLD, 1);
            }
            _ => {}
        }
        None
    }

    /// The time that the card has last told, nanoseconds since 1970.
    fn told(self) -> Option<u64> {
        let rest = u64::from(self.word(TOLD + 4)) << 26;
        let told = u64::from(self.word(TOLD)) * 1_000_000_000 + rest / 4;
        (self.word(IS_TOLD) == 1).then_some(told)
    }

    /// Whether the last event that was read is not cleared, or another one: the ring is full.
    fn has_overflown(self) -> bool {
        let before = self.evq_at().wrapping_sub(1) & (self.evq_slots() as usize - 1);
        // SAFETY: inside of the ring.
        unsafe { self.evq().add(before).read_volatile() != NONE }
    }

    /// Takes the id of the oldest descriptor off a ring.
    fn take_id(self, ids: *mut u32, mask: u32, removed: usize) -> u32 {
        let at = self.word(removed);
        // SAFETY: masked by the ring's size.
        let place = unsafe { ids.add((at & mask) as usize) };
        // SAFETY: the same.
        let id = unsafe { place.replace(NO_ID) };
        self.set_word(removed, at.wrapping_add(1));
        id
    }

    /// Whether each frame that was sent has its time.
    pub(crate) fn tells_departures(self) -> bool {
        self.flags() & TX_TIMESTAMPS != 0
    }

    /// Takes an event of TX of a VI that tells departures: three are one frame's.
    fn hear_sent(self, raw: u64) -> Option<ef_event> {
        let (low, high) = (raw & 0xffff, raw >> 32 & 0xffff);
        match raw & SENT_BITS {
            SENT_LOW => self.set_word(SENT, (high << 16 | low) as u32),
            SENT_HIGH if raw & UNKNOWN != 0 => return Some(self.sent_at(raw, 0)),
            SENT_HIGH => {
                let quarters = self.word(SENT);
                let base = self.told().unwrap_or_else(nic::clock) / 1_000_000_000;
                let near = (low as u16).wrapping_sub(base as u16).cast_signed();
                let seconds = base.saturating_add_signed(near.into());
                let at = seconds * 1_000_000_000 + u64::from(quarters / 4);
                return Some(self.sent_at(raw, at));
            }
            _ => {}
        }
        None
    }

    /// The event of the oldest frame that was sent, with a time, nanoseconds since 1970, 0 = none.
    fn sent_at(self, raw: u64, at: u64) -> ef_event {
        const SYNC: u32 = 3;
        let label = (raw >> 16) as u8 & 31;
        let id = self.take_id(self.tx_ids(), self.tx_mask(), self.tx_removed());
        let event = ef_event::new(7).u8(2, label).u32(4, id);
        let (seconds, rest) = ((at / 1_000_000_000) as u32, (at % 1_000_000_000) as u32);
        // What the clock is worth is in the lowest bits, or the highest.
        let rest = match self.layout.name {
            "8.1" => rest & !SYNC | SYNC,
            _ => rest | SYNC << 30,
        };
        event
            .u32(8, seconds)
            .u32(12, if at == 0 { 0 } else { rest })
    }

    fn received(self, raw: u64) -> ef_event {
        let bytes = (raw & 0x3fff) as u16;
        let low = (raw >> 48) as u32 & 15;
        let count = low.wrapping_sub(self.word(self.rx_removed())) & 15;
        let label = (raw >> 16) as u8 & 31;
        let is_bad = raw & ERRORS != 0;
        if self.flags() & RX_EVENT_MERGE != 0 {
            let kind = if is_bad { 11 } else { 9 };
            return ef_event::new(kind)
                .u8(2, label)
                .u16(4, count as u16)
                .u16(6, 1)
                .u16(8, if is_bad { 2 } else { 0 });
        }
        assert_eq!(count, 1, "fake libciul: an event for {count} descriptors");
        let id = self.take_id(self.rx_ids(), self.rx_mask(), self.rx_removed());
        ef_event::new(if is_bad { 2 } else { 0 })
            .u8(2, label)
            .u32(4, id)
            .u16(8, bytes)
            .u16(10, 1)
            .u16(12, if is_bad { 2 } else { 0 })
    }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ef_vi_init(
    vi: *mut c_void,
    arch: c_int,
    variant: c_int,
    revision: c_int,
    flags: u64,
    nic_flags: u8,
    state: *mut c_void,
) -> c_int {
    if let Err(errno) = config::check("init") {
        return -errno;
    }
    let vi = Vi::at(vi);
    let layout = vi.layout;
    if layout.flags_bytes == 4 {
        assert!(
            u32::try_from(flags).is_ok(),
            "flags above bit 31: {flags:#x}"
        );
    }
    // SAFETY: callers give at least as much.
    unsafe { vi.base.write_bytes(0, layout.size) };
    // Cards that lend their packets have no buffers of ours.
    if arch == EF10 {
        vi.set(layout.rx_buffer_len, RX_BUFFER);
    }
    vi.set(layout.ep_state, state);
    match layout.flags_bytes {
        4 => vi.set(layout.vi_flags, flags as u32),
        _ => vi.set(layout.vi_flags, flags),
    }
    let nic_type = [arch as u8, variant as u8, revision as u8, nic_flags];
    vi.set(layout.nic_type, nic_type);
    for (at, number) in layout.slots.iter().enumerate() {
        vi.set(layout.ops + 8 * at, op(*number));
    }
    0
}

/// The function of a slot.
fn op(number: usize) -> usize {
    match number {
        slot::TRANSMIT => transmit as *const () as usize,
        slot::TRANSMIT_PUSH => transmit_push as *const () as usize,
        slot::TRANSMITV_CTPIO => transmitv_ctpio as *const () as usize,
        slot::TRANSMIT_CTPIO_FALLBACK => transmit_ctpio_fallback as *const () as usize,
        slot::RECEIVE_INIT => receive_init as *const () as usize,
        slot::RECEIVE_PUSH => receive_push as *const () as usize,
        slot::RECEIVE_GET_TIMESTAMP => ef10_receive_get_precise_timestamp as *const () as usize,
        slot::EVENTQ_POLL | slot::FUTURE_EVENTQ_POLL => ef10_ef_eventq_poll as *const () as usize,
        slot::EVENTQ_PRIME => ef10_ef_eventq_prime as *const () as usize,
        slot::EVENTQ_HAS_MANY_EVENTS => ef10_ef_eventq_has_many_events as *const () as usize,
        other => nobodys(other),
    }
}

/// A function for a slot that nobody should call.
fn nobodys(number: usize) -> usize {
    extern "C" fn abort<const SLOT: usize>() -> c_int {
        panic!("fake libciul: slot {SLOT} of ops was called");
    }
    macro_rules! table {
        ($($number:literal)*) => {
            match number {
                $($number => abort::<$number> as *const () as usize,)*
                _ => abort::<99> as *const () as usize,
            }
        };
    }
    table!(1 2 4 5 6 7 8 9 11 12 13 14 15 16 17 18 24 25 26 27 28 31 32 33)
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ef_vi_init_io(vi: *mut c_void, io: *mut c_void) {
    let vi = Vi::at(vi);
    vi.set(vi.layout.evq_mask - 24, io);
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ef_vi_init_evq(
    vi: *mut c_void,
    entries: c_int,
    ring: *mut c_void,
    max_events: c_uint,
) {
    let vi = Vi::at(vi);
    vi.set(vi.layout.evq_mask, entries as u32 * 8 - 1);
    vi.set(vi.layout.evq_mask - 8, ring);
    // The others have no fourth argument: what is there is anything.
    if vi.layout.has_capacity {
        vi.set(vi.layout.evq_mask + 4, max_events);
    }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ef_vi_init_rxq(
    vi: *mut c_void,
    entries: c_int,
    descriptors: *mut c_void,
    ids: *mut c_void,
    prefix: c_int,
) {
    let vi = Vi::at(vi);
    vi.set(vi.layout.rxq, entries as u32 - 1);
    vi.set(vi.layout.rxq + 8, descriptors);
    vi.set(vi.layout.rxq + 16, ids);
    vi.set(vi.layout.rx_prefix_len, prefix);
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ef_vi_init_txq(
    vi: *mut c_void,
    entries: c_int,
    descriptors: *mut c_void,
    ids: *mut c_void,
) {
    let vi = Vi::at(vi);
    vi.set(vi.layout.txq, entries as u32 - 1);
    vi.set(vi.layout.rxq - 16, descriptors);
    vi.set(vi.layout.rxq - 8, ids);
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ef_vi_init_state(vi: *mut c_void) {
    let vi = Vi::at(vi);
    let state: *mut u8 = vi.get(vi.layout.ep_state);
    // SAFETY: the state's head is larger in every release.
    unsafe { state.write_bytes(0, 128) };
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ef_vi_add_queue(evq_vi: *mut c_void, vi: *mut c_void) -> c_int {
    if let Err(errno) = config::check("add") {
        return -errno;
    }
    let owner = Vi::at(evq_vi);
    let count = owner.layout.vi_qs + 32 * 8;
    let label: u32 = owner.get(count);
    owner.set(count, label + 1);
    owner.set(owner.layout.vi_qs + 8 * label as usize, vi);
    label as c_int
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ef_eventq_capacity(vi: *mut c_void) -> c_int {
    let vi = Vi::at(vi);
    if vi.layout.has_capacity {
        return vi.get(vi.layout.evq_mask + 4);
    }
    // One is never full, and those are free that are cleared behind.
    vi.evq_slots() as c_int - 2 - CLEARED
}

unsafe extern "C" fn receive_init(vi: *mut c_void, address: u64, id: c_int) -> c_int {
    let vi = Vi::at(vi);
    if let Err(errno) = config::check("receive") {
        return -errno;
    }
    let added = vi.word(vi.layout.rx_added);
    let fill = added.wrapping_sub(vi.word(vi.rx_removed()));
    if fill >= vi.rx_mask() {
        return EAGAIN;
    }
    let at = (added & vi.rx_mask()) as usize;
    let descriptor = address & 0xffff_ffff_ffff | u64::from(RX_BUFFER) << 48;
    // SAFETY: masked by the ring's size.
    unsafe { vi.rxd().add(at).write_volatile(descriptor) };
    // SAFETY: the same.
    unsafe { vi.rx_ids().add(at).write(id as u32) };
    vi.set_word(vi.layout.rx_added, added.wrapping_add(1));
    0
}

unsafe extern "C" fn receive_push(vi: *mut c_void) {
    let vi = Vi::at(vi);
    let posted = vi.word(vi.layout.rx_added) & !7;
    vi.set_word(vi.layout.rx_posted, posted);
    vi.doorbell(RX_DOORBELL, posted & vi.rx_mask());
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ef_vi_receive_post(vi: *mut c_void, address: u64, id: c_int) -> c_int {
    // SAFETY: the caller's word.
    match unsafe { receive_init(vi, address, id) } {
        // SAFETY: the same.
        0 => unsafe {
            receive_push(vi);
            0
        },
        error => error,
    }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ef_vi_receive_unbundle(
    vi: *mut c_void,
    event: *const ef_event,
    ids: *mut u32,
) -> c_int {
    let vi = Vi::at(vi);
    if let Err(errno) = config::check("unbundle") {
        return -errno;
    }
    // SAFETY: the caller's event.
    let count = unsafe { (*event).get_u16(4) };
    for nth in 0..count {
        let id = vi.take_id(vi.rx_ids(), vi.rx_mask(), vi.rx_removed());
        // SAFETY: callers give room for 15.
        unsafe { ids.add(nth.into()).write(id) };
    }
    count.into()
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ef_vi_receive_get_bytes(
    _vi: *mut c_void,
    packet: *const u8,
    bytes: *mut u16,
) -> c_int {
    if let Err(errno) = config::check("bytes") {
        return -errno;
    }
    // SAFETY: a received packet begins with its prefix, which has the length at 8.
    let length = unsafe { packet.add(8).cast::<u16>().read_unaligned() };
    // SAFETY: the caller's place.
    unsafe { *bytes = u16::from_le(length) };
    0
}

/// When a packet has come: by the prefix of its buffer, or as it is known of one that is lent.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ef_vi_receive_get_timestamp_with_sync_flags(
    vi: *mut c_void,
    packet: *const u8,
    time: *mut [i64; 2],
    worth: *mut c_uint,
) -> c_int {
    let vi = Vi::at(vi);
    assert!(vi.flags() & RX_TIMESTAMPS != 0, "fake libciul: no stamps");
    if let Err(errno) = config::check("stamp") {
        return -errno;
    }
    let lent = nic::with(vi, |nic| nic.lent_stamp(packet)).flatten();
    let stamp = match lent {
        Some(stamp) => stamp,
        None if vi.get::<u32>(vi.layout.rx_prefix_len) < 14 => return -libc::ENODATA,
        None => {
            // SAFETY: a received packet begins with its prefix, which has the time at 10.
            let quarters = unsafe { packet.add(10).cast::<u32>().read_unaligned() };
            nic::stamp_of(quarters, vi.told())
        }
    };
    let (seconds, rest) = (stamp / 1_000_000_000, stamp % 1_000_000_000);
    // SAFETY: the caller's places.
    unsafe {
        time.write([seconds as i64, rest as i64]);
        worth.write(3);
    }
    0
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ef_vi_transmit_init(
    vi: *mut c_void,
    address: u64,
    bytes: c_int,
    id: c_int,
) -> c_int {
    let vi = Vi::at(vi);
    if let Err(errno) = config::check("transmit") {
        return -errno;
    }
    let added = vi.word(vi.layout.tx_added);
    if added.wrapping_sub(vi.word(vi.tx_removed())) >= vi.tx_mask() {
        return EAGAIN;
    }
    let at = (added & vi.tx_mask()) as usize;
    let descriptor = address & 0xffff_ffff_ffff | (bytes as u64 & 0x3fff) << 48;
    // SAFETY: masked by the ring's size.
    unsafe { vi.txd().add(at).write_volatile(descriptor) };
    // SAFETY: the same.
    unsafe { vi.tx_ids().add(at).write(id as u32) };
    vi.set_word(vi.layout.tx_added, added.wrapping_add(1));
    0
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ef_vi_transmit_init_undo(vi: *mut c_void) {
    let vi = Vi::at(vi);
    let added = vi.word(vi.layout.tx_previous);
    vi.set_word(vi.layout.tx_added, added);
}

unsafe extern "C" fn transmit_push(vi: *mut c_void) {
    let vi = Vi::at(vi);
    let added = vi.word(vi.layout.tx_added);
    vi.set_word(vi.layout.tx_previous, added);
    vi.doorbell(TX_DOORBELL, added & vi.tx_mask());
    nic::with(vi, Nic::transmit);
}

unsafe extern "C" fn transmit(vi: *mut c_void, address: u64, bytes: c_int, id: c_int) -> c_int {
    // SAFETY: the caller's word.
    let error = unsafe { ef_vi_transmit_init(vi, address, bytes, id) };
    if error == 0 {
        // SAFETY: the same.
        unsafe { transmit_push(vi) };
    }
    error
}

/// Cut-through: the frame goes at once, its completion by the fallback that must follow.
unsafe extern "C" fn transmitv_ctpio(
    vi: *mut c_void,
    _length: usize,
    parts: *const libc::iovec,
    count: c_int,
    _threshold: c_uint,
) {
    let vi = Vi::at(vi);
    // SAFETY: the caller's vector.
    let parts = unsafe { std::slice::from_raw_parts(parts, count as usize) };
    let mut frame = Vec::new();
    for part in parts {
        // SAFETY: the caller's bytes.
        let bytes = unsafe { std::slice::from_raw_parts(part.iov_base.cast(), part.iov_len) };
        frame.extend_from_slice(bytes);
    }
    nic::with(vi, |nic| nic.cut_through(&frame));
}

unsafe extern "C" fn transmit_ctpio_fallback(
    vi: *mut c_void,
    address: u64,
    bytes: usize,
    id: c_int,
) -> c_int {
    // SAFETY: the caller's word.
    unsafe { transmit(vi, address, bytes as c_int, id) }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ef_vi_transmit_unbundle(
    vi: *mut c_void,
    event: *const ef_event,
    ids: *mut u32,
) -> c_int {
    let vi = Vi::at(vi);
    if let Err(errno) = config::check("complete") {
        return -errno;
    }
    // SAFETY: the caller's event.
    let last = u32::from(unsafe { (*event).get_u16(4) }) & vi.tx_mask();
    let mut count = 0;
    while vi.word(vi.tx_removed()) & vi.tx_mask() != last {
        let id = vi.take_id(vi.tx_ids(), vi.tx_mask(), vi.tx_removed());
        assert!(count < 64, "fake libciul: a completion for too many frames");
        // SAFETY: callers give room for 64.
        unsafe { ids.add(count).write(id) };
        count += 1;
    }
    count as c_int
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ef10_ef_eventq_poll(
    this: *mut c_void,
    events: *mut ef_event,
    most: c_int,
) -> c_int {
    let vi = Vi::at(this);
    assert!(most >= 2, "fake libciul: a poll for {most} events");
    if vi.has_overflown() {
        // SAFETY: the caller has room for `most`.
        unsafe { events.write(ef_event::new(6)) };
        return 1;
    }
    let mut count = 0;
    let mut put = |event| {
        // SAFETY: the caller has room for `most`.
        unsafe { events.add(count).write(event) };
        count += 1;
        count as c_int == most
    };
    let mut specials = nic::with(vi, |nic| nic.turn(most as usize)).unwrap_or_default();
    let mut is_full = false;
    let is_timed = config::get().is_timed;
    for event in specials.drain(..) {
        is_full = put(event);
    }
    while !is_full && let Some(raw) = vi.take_raw_event() {
        let label = (raw >> 16) as u8 & 31;
        is_full = match raw >> 60 {
            0 => put(vi.received(raw)),
            2 if vi.tells_departures() => vi.hear_sent(raw).is_some_and(&mut put),
            2 if is_timed => put(vi.sent_at(raw, 1_000_000_002)),
            2 => put(ef_event::new(1)
                .u8(2, label)
                .u16(4, (raw as u16).wrapping_add(1))),
            12 => vi.hear(raw).is_some_and(&mut put),
            _ => false,
        };
    }
    count as c_int
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ef10_ef_eventq_prime(vi: *mut c_void) {
    let vi = Vi::at(vi);
    vi.doorbell(EVQ_DOORBELL, vi.evq_at() as u32);
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ef10_ef_eventq_has_many_events(vi: *mut c_void, _most: c_int) -> c_int {
    Vi::at(vi).has_event().into()
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ef10_receive_get_precise_timestamp(
    _vi: *mut c_void,
    _packet: *const c_void,
    _time: *mut c_void,
) -> c_int {
    -libc::ENODATA
}
