//! A `struct ef_vi` in memory: fields and operations by their offsets.
//!
//! Whatever its size, it has 4 KiB; operations are pointers inside of it, which the library's own
//! header would call inline.

#![expect(
    unsafe_code,
    reason = "UNSAFETY: reads fields and calls functions at offsets that the calibration has found"
)]

use std::ffi::{c_int, c_uint, c_void};

use super::event::RawEvent;
use super::layout::Layout;

/// Offset of `vi_i`, in every known release.
const INSTANCE: usize = 8;

/// Memory of a VI, and more.
#[derive(Debug)]
#[repr(C, align(64))]
pub(super) struct Place(pub(super) [u8; 4096]);

/// A VI that the library has initialised, with the layout that it has.
#[derive(Debug)]
pub(super) struct RawVi {
    place: Box<Place>,
    pub(super) layout: Layout,
}

/// `struct iovec`.
#[repr(C)]
struct Part {
    base: *const c_void,
    bytes: usize,
}

impl RawVi {
    /// Memory for a VI that is to be.
    pub(super) fn new(layout: Layout) -> Self {
        Self {
            place: Box::new(Place([0; 4096])),
            layout,
        }
    }

    /// What the library takes for a VI.
    pub(super) fn pointer(&mut self) -> *mut c_void {
        (&raw mut *self.place).cast()
    }

    /// A field's four bytes.
    pub(super) fn field(&self, at: usize) -> u32 {
        self.place.0[at..]
            .first_chunk()
            .map_or(0, |bytes| u32::from_ne_bytes(*bytes))
    }

    fn address(&self, at: usize) -> usize {
        self.place.0[at..]
            .first_chunk()
            .map_or(0, |bytes| usize::from_ne_bytes(*bytes))
    }

    /// A word of the state.
    fn word(&self, at: usize) -> u32 {
        let state = self.address(self.layout.ep_state) as *const u32;
        // SAFETY: the library's own state of an initialised VI; these words begin it.
        unsafe { state.byte_add(at).read_volatile() }
    }

    /// Bytes of events that were read, wrapping: `ef_eventq_current`.
    pub(super) fn current(&self) -> c_uint {
        self.word(0)
    }

    /// Its number among the card's VIs.
    pub(super) fn instance(&self) -> u32 {
        self.field(INSTANCE)
    }

    /// Bytes of a buffer before the frame.
    pub(super) fn prefix(&self) -> u32 {
        self.field(self.layout.rx_prefix_len)
    }

    /// Bytes of a buffer that the card uses.
    pub(super) fn buffer(&self) -> u32 {
        self.field(self.layout.rx_buffer_len)
    }

    /// The card's architecture: 1 EF10, 3 EFCT, 5 EF10CT.
    pub(super) fn architecture(&self) -> u8 {
        self.place.0[self.layout.nic_type]
    }

    /// Reads events; how many.
    pub(super) fn poll(&mut self, events: &mut [RawEvent]) -> usize {
        type Poll = unsafe extern "C" fn(*mut c_void, *mut RawEvent, c_int) -> c_int;
        let poll = self.address(self.layout.eventq_poll);
        // SAFETY: the calibration has found this operation there, with this type.
        let poll: Poll = unsafe { std::mem::transmute(poll) };
        // SAFETY: an initialised VI; there is room for as many events.
        let count = unsafe { poll(self.pointer(), events.as_mut_ptr(), events.len() as c_int) };
        usize::try_from(count).unwrap_or(0).min(events.len())
    }

    /// Enters a free buffer; whether there was room. It counts with the next push.
    pub(super) fn receive_init(&mut self, address: u64, id: u32) -> bool {
        type Init = unsafe extern "C" fn(*mut c_void, u64, c_int) -> c_int;
        let init = self.address(self.layout.receive_init);
        // SAFETY: the calibration has found this operation there, with this type.
        let init: Init = unsafe { std::mem::transmute(init) };
        // SAFETY: an initialised VI; the address is of registered memory.
        unsafe { init(self.pointer(), address, id as c_int) == 0 }
    }

    /// Tells the card of free buffers: of multiples of eight.
    pub(super) fn receive_push(&mut self) {
        self.push(self.layout.receive_push);
    }

    /// Tells the card of frames to send.
    pub(super) fn transmit_push(&mut self) {
        self.push(self.layout.transmit_push());
    }

    fn push(&mut self, at: usize) {
        type Push = unsafe extern "C" fn(*mut c_void);
        let push = self.address(at);
        // SAFETY: the calibration has found this operation there, with this type.
        let push: Push = unsafe { std::mem::transmute(push) };
        // SAFETY: an initialised VI.
        unsafe { push(self.pointer()) }
    }

    /// Writes a frame into the card itself, and what it would have read if that came too late.
    ///
    /// # Safety
    /// - The bytes are mapped and registered at `address`.
    pub(super) unsafe fn cut_through(
        &mut self,
        bytes: *const u8,
        length: usize,
        address: u64,
        id: u32,
    ) -> bool {
        type Send = unsafe extern "C" fn(*mut c_void, usize, *const Part, c_int, c_uint);
        type Fallback = unsafe extern "C" fn(*mut c_void, u64, usize, c_int) -> c_int;
        /// Whole frames only: none is begun before it is there.
        const STORE_AND_FORWARD: c_uint = 0xffff;
        let send = self.address(self.layout.transmitv_ctpio);
        let fallback = self.address(self.layout.transmit_ctpio_fallback);
        // SAFETY: the calibration has found this operation there, with this type.
        let send: Send = unsafe { std::mem::transmute(send) };
        // SAFETY: the same.
        let fallback: Fallback = unsafe { std::mem::transmute(fallback) };
        let part = Part {
            base: bytes.cast(),
            bytes: length,
        };
        // SAFETY: an initialised VI; the caller's bytes.
        unsafe {
            send(
                self.pointer(),
                length,
                &raw const part,
                1,
                STORE_AND_FORWARD,
            )
        };
        // SAFETY: the same.
        unsafe { fallback(self.pointer(), address, length, id as c_int) == 0 }
    }
}
