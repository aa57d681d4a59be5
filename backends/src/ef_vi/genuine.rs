//! The backend over the genuine library's own ring code, without a card: `BYPASS_TEST_LIBCIUL=`
//! `/path/to/libciul.so.1`. Where that is not set, over the stand-in, which tests what is here.
//!
//! ```text
//!   EfViPort ── posts, sends, polls ──► libciul's EF10 code ──► rings in ordinary memory
//!            ── opens, allocates ──► functions below             ▲
//!                                        └── Card: the hardware's side, whose wire is a loop
//! ```
//!
//! What is absent: prime and sleep, filters (one lets everything by), cards other than EF10.

#![expect(
    unsafe_code,
    reason = "UNSAFETY: stands in for a driver and a card: memory of a C library by its addresses"
)]

use std::cell::RefCell;
use std::collections::VecDeque;
use std::ffi::{c_char, c_int, c_uint, c_void};
use std::path::Path;

use super::library::{Ciul, Cookie, Functions, RawRegistration, Specification};
use super::port::{Counts, EfViPort};
use super::tests::{Fake, RELEASES, around, datagrams};
use crate::relay::Port;

const EVENTS: usize = 1024;
const ENTRIES: usize = 512;
const PREFIX: usize = 14;
/// Doorbells in the io page.
const RX_DOORBELL: usize = 0x830;
const TX_DOORBELL: usize = 0xa18;
const EMPTY: u64 = u64::MAX;
/// Descriptors hold plain addresses.
const PLAIN: u64 = 0x60;
/// An event's bit for a wrong frame checksum.
const BAD: u64 = 1 << 24;

/// What a VI's memory is in a driver's mapping.
#[repr(C, align(4096))]
struct Rings {
    events: [u64; EVENTS],
    io: [u64; 1024],
    rx: [u64; ENTRIES],
    tx: [u64; ENTRIES],
    state: [u64; 2048],
    rx_ids: [u32; ENTRIES],
    tx_ids: [u32; ENTRIES],
}

/// A card with one VI, whose wire ends in itself.
struct Card {
    rings: *mut Rings,
    rx_read: usize,
    tx_read: usize,
    evq_write: usize,
    wire: VecDeque<Vec<u8>>,
    /// Frames that have come; each thousandth has a wrong checksum.
    received: u64,
}

/// The library, the card, objects that live, and filters among them.
#[derive(Default)]
struct World {
    functions: Option<Functions>,
    card: Option<Card>,
    live: i64,
    filters: u32,
}

thread_local! {
    static WORLD: RefCell<World> = RefCell::default();
}

fn world<T>(what: impl FnOnce(&mut World) -> T) -> T {
    WORLD.with_borrow_mut(what)
}

fn lives(by: i64) -> c_int {
    world(|world| world.live += by);
    0
}

impl Card {
    fn doorbell(&self, at: usize) -> usize {
        // SAFETY: inside of the io page, which the library writes.
        let word = unsafe { (&raw mut (*self.rings).io).cast::<u32>().byte_add(at) };
        // SAFETY: the same.
        unsafe { word.read_volatile() as usize }
    }

    fn event(&self, at: usize) -> *mut u64 {
        // SAFETY: masked by the ring's size.
        unsafe {
            (&raw mut (*self.rings).events)
                .cast::<u64>()
                .add(at % EVENTS)
        }
    }

    /// Whether 16 event slots are free.
    fn has_room(&self) -> bool {
        // SAFETY: a slot of the ring.
        unsafe { self.event(self.evq_write + 16).read_volatile() == EMPTY }
    }

    fn raise(&mut self, event: u64) {
        // SAFETY: a slot of the ring, which is free.
        unsafe { self.event(self.evq_write).write_volatile(event) };
        self.evq_write += 1;
    }

    /// Address and length of a descriptor.
    fn descriptor(ring: *const [u64; ENTRIES], at: usize) -> (*mut u8, usize) {
        // SAFETY: callers' positions are inside of the ring.
        let word = unsafe { ring.cast::<u64>().add(at).read_volatile() };
        assert_eq!(word >> 62, 0, "frames are in one descriptor each");
        (
            (word & 0xffff_ffff_ffff) as *mut u8,
            (word >> 48) as usize & 0x3fff,
        )
    }

    fn transmit(&mut self) {
        let end = self.doorbell(TX_DOORBELL) % ENTRIES;
        while self.tx_read != end && self.has_room() {
            let mut last = self.tx_read;
            for _ in 0..64 {
                if self.tx_read == end {
                    break;
                }
                last = self.tx_read;
                // SAFETY: the rings live as long as the VI.
                let (bytes, length) =
                    Self::descriptor(unsafe { &raw const (*self.rings).tx }, last);
                // SAFETY: what is posted is registered memory.
                let frame = unsafe { std::slice::from_raw_parts(bytes, length) };
                self.wire.push_back(frame.to_vec());
                self.tx_read = (last + 1) % ENTRIES;
            }
            self.raise(2 << 60 | last as u64);
        }
    }

    fn receive(&mut self) {
        while self.rx_read != self.doorbell(RX_DOORBELL) % ENTRIES && self.has_room() {
            let Some(frame) = self.wire.pop_front() else {
                return;
            };
            // SAFETY: the rings live as long as the VI.
            let ring = unsafe { &raw const (*self.rings).rx };
            let (buffer, room) = Self::descriptor(ring, self.rx_read);
            assert!(frame.len() + PREFIX <= room, "a buffer of {room} bytes");
            // SAFETY: what is posted is registered memory, of as many bytes.
            unsafe {
                std::ptr::copy_nonoverlapping(frame.as_ptr(), buffer.add(PREFIX), frame.len())
            };
            self.rx_read = (self.rx_read + 1) % ENTRIES;
            self.received += 1;
            let error = if self.received.is_multiple_of(1000) {
                BAD
            } else {
                0
            };
            let bytes = (frame.len() + PREFIX) as u64;
            self.raise(bytes | error | (self.rx_read as u64 & 15) << 48);
        }
    }
}

/// A turn of the card, if there is one.
pub(super) fn turn() {
    world(|world| {
        if let Some(card) = &mut world.card {
            card.transmit();
            if world.filters > 0 {
                card.receive();
            }
        }
    });
}

unsafe extern "C" fn open(handle: *mut c_int) -> c_int {
    // SAFETY: the caller's place. Nobody sleeps on it here.
    unsafe { handle.write(c_int::MAX) };
    lives(1)
}

unsafe extern "C" fn close(_handle: c_int) -> c_int {
    lives(-1)
}

unsafe extern "C" fn pd_alloc(_: *mut c_void, _: c_int, _: *const c_char, _: c_uint) -> c_int {
    lives(1)
}

unsafe extern "C" fn pd_free(_: *mut c_void, _: c_int) -> c_int {
    lives(-1)
}

unsafe extern "C" fn vi_alloc(
    vi: *mut c_void,
    _: c_int,
    _: *mut c_void,
    _: c_int,
    _: c_int,
    rxq: c_int,
    txq: c_int,
    _: *mut c_void,
    _: c_int,
    flags: u64,
) -> c_int {
    assert_eq!([rxq, txq], [ENTRIES as c_int; 2]);
    let rings = Box::into_raw(Box::new(Rings {
        events: [EMPTY; EVENTS],
        io: [0; 1024],
        rx: [0; ENTRIES],
        tx: [0; ENTRIES],
        state: [0; 2048],
        rx_ids: [u32::MAX; ENTRIES],
        tx_ids: [u32::MAX; ENTRIES],
    }));
    let library = world(|world| world.functions).expect("it is set");
    // SAFETY: the caller's ef_vi; parts that live until the VI is freed, of these sizes.
    unsafe {
        let state = (&raw mut (*rings).state).cast();
        (library.ef_vi_init)(vi, 1, b'B'.into(), 2, flags | PLAIN, 0, state);
        (library.ef_vi_init_io)(vi, (&raw mut (*rings).io).cast());
        (library.ef_vi_init_evq)(vi, EVENTS as c_int, (&raw mut (*rings).events).cast(), 1000);
        let (ring, ids) = (&raw mut (*rings).rx, &raw mut (*rings).rx_ids);
        (library.ef_vi_init_rxq)(vi, rxq, ring.cast(), ids.cast(), PREFIX as c_int);
        let (ring, ids) = (&raw mut (*rings).tx, &raw mut (*rings).tx_ids);
        (library.ef_vi_init_txq)(vi, txq, ring.cast(), ids.cast());
        (library.ef_vi_init_state)(vi);
        (library.ef_vi_add_queue)(vi, vi);
    }
    let card = Card {
        rings,
        rx_read: 0,
        tx_read: 0,
        evq_write: 0,
        wire: VecDeque::new(),
        received: 0,
    };
    world(|world| world.card = Some(card));
    lives(1)
}

unsafe extern "C" fn vi_free(_: *mut c_void, _: c_int) -> c_int {
    let card = world(|world| world.card.take()).expect("a VI");
    // SAFETY: made by `vi_alloc`; no card has it any more.
    drop(unsafe { Box::from_raw(card.rings) });
    world(|world| world.filters = 0);
    lives(-1)
}

unsafe extern "C" fn mtu(_: *mut c_void, _: c_int) -> c_uint {
    1514
}

unsafe extern "C" fn mac(_: *mut c_void, _: c_int, mac: *mut [u8; 6]) -> c_int {
    // SAFETY: the caller's place.
    unsafe { mac.write([2, 0, 0, 0, 0, 9]) };
    0
}

unsafe extern "C" fn register(
    made: *mut RawRegistration,
    _: c_int,
    _: *mut c_void,
    _: c_int,
    memory: *mut c_void,
    bytes: usize,
) -> c_int {
    let pages = (0..bytes / 4096).map(|page| memory as u64 + 4096 * page as u64);
    let addresses = Box::leak(Box::new(pages.collect::<Vec<u64>>()));
    let registration = RawRegistration {
        addresses: addresses.as_mut_ptr(),
        base: (&raw mut *addresses).cast(),
    };
    // SAFETY: the caller's place.
    unsafe { made.write(registration) };
    lives(1)
}

unsafe extern "C" fn unregister(made: *mut RawRegistration, _: c_int) -> c_int {
    // SAFETY: made by `register`.
    drop(unsafe { Box::from_raw((*made).base.cast::<Vec<u64>>()) });
    lives(-1)
}

unsafe extern "C" fn filter_add(
    _: *mut c_void,
    _: c_int,
    _: *const Specification,
    _: *mut Cookie,
) -> c_int {
    world(|world| world.filters += 1);
    0
}

/// A library whose driver is here.
fn library(path: &Path) -> Ciul {
    let mut ciul = Ciul::load(path).unwrap();
    world(|world| world.functions = Some(ciul.functions));
    ciul.functions = Functions {
        ef_driver_open: open,
        ef_driver_close: close,
        ef_pd_alloc_by_name: pd_alloc,
        ef_pd_free: pd_free,
        ef_vi_alloc_from_pd: vi_alloc,
        ef_vi_free: vi_free,
        ef_vi_mtu: mtu,
        ef_vi_get_mac: mac,
        ef_memreg_alloc: register,
        ef_memreg_free: unregister,
        ef_vi_filter_add: filter_add,
        ..ciul.functions
    };
    ciul.is_stand_in = true;
    ciul
}

/// Datagrams around the loop by a library's ring code: what has come, and what was counted.
fn trace(path: &Path) -> (Vec<u32>, Counts) {
    let mut port = EfViPort::with(library(path), "eth9", false).unwrap();
    assert_eq!(port.facts().mtu, 1500);
    assert_eq!(around(&mut port, 10), [], "no filter");
    port.add_filter(datagrams()).unwrap();
    let got = around(&mut port, 20_000);
    let counts = port.counts();
    drop(port);
    assert_eq!(world(|world| world.live), 0);
    (got, counts)
}

#[test]
fn the_librarys_ring_code_carries_every_frame() {
    let mut traces = Vec::new();
    for release in RELEASES {
        let fake = Fake::new(&[("LAYOUT", release)]);
        traces.push(trace(&fake.path));
    }
    match std::env::var_os("BYPASS_TEST_LIBCIUL") {
        Some(path) => traces.push(trace(Path::new(&path))),
        None => eprintln!("BYPASS_TEST_LIBCIUL is not set: no genuine library, the stand-in only"),
    }
    for (got, counts) in &traces {
        // Ten that came before the filter wait on the wire.
        assert_eq!(got.len() as u64, counts.received);
        assert_eq!((counts.sent, counts.received), (20_010, 19_990));
        assert_eq!(counts.discarded, [0, 0, 20, 0, 0, 0, 0, 0]);
        assert_eq!(*got, traces[0].0);
    }
}
