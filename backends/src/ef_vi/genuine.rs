//! The backend over the genuine library's own ring code, without a card: `BYPASS_TEST_LIBCIUL=`
//! `/path/to/libciul.so.1`. Where that is not set, over the stand-in, which tests what is here.
//!
//! ```text
//!   EfViPort ── posts, sends, polls ──► libciul's EF10 code ──► rings in ordinary memory
//!            ── opens, allocates ──► functions below             ▲
//!                                        └── Card: the hardware's side, whose wire is a loop
//! ```
//!
//! What is absent: prime and sleep, filters (one lets everything by; it is seen that the library
//! takes each kind), cards other than EF10. Programs, a relay and a wire that ends in a kernel it
//! has in the end-to-end tests (`tests/fake-ciul/src/bridge.c`).

#![expect(
    unsafe_code,
    reason = "UNSAFETY: stands in for a driver and a card: memory of a C library by its addresses"
)]

use std::cell::RefCell;
use std::collections::{HashMap, VecDeque};
use std::ffi::{c_char, c_int, c_uint, c_void};
use std::path::Path;

use libloading::os::unix::Library;

use super::library::{Ciul, Cookie, Functions, RawRegistration, Specification};
use super::port::{Counts, EfViPort, Settings};
use super::tests::{Fake, RELEASES, STAMPED, around, datagrams, frame, mended, send};
use crate::relay::{CardFilter, Port};

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
/// Events of the card's controller: the time, and that it was started anew.
const TIME: u64 = 12 << 60 | 0x1a << 44;
const REBOOT: u64 = 12 << 60 | 0x15 << 44;
/// An event that says nothing: of the driver, that the ring has started.
const START: u64 = 5 << 60 | 2 << 56;
/// Where a buffer has its time, in quarters of nanoseconds.
const STAMP: usize = 10;
/// `EF_VI_RX_TIMESTAMPS`.
const STAMPS: u64 = 0x1_0000;
/// `EF_VI_TX_TIMESTAMPS`, and what two events more of each frame that was sent tell: quarters of
/// nanoseconds, seconds. The low 16 bits are where others have the descriptor, the high ones here.
const DEPARTURES: u64 = 0x2_0000;
const SENT: [u64; 2] = [0x51 << 24, 0x52 << 24];
const HIGH: u32 = 32;
const SECOND: u64 = 1_000_000_000;
/// The time is told four times a second.
const TOLD_NS: u64 = SECOND / 4;
/// The card's time when it starts, and how long a frame takes.
const BEGIN_NS: u64 = 1_700_000_000 * SECOND;
const FRAME_NS: u64 = 300_000;

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
    filters: i32,
    /// Whether it tells the time, which it is, and when it has told it.
    stamps: bool,
    /// Whether it tells when frames have left.
    departs: bool,
    now_ns: u64,
    told_ns: u64,
}

/// What quarters of nanoseconds are to a library that knows other counts too; not exported by the
/// stand-in.
type SetFormat = unsafe extern "C" fn(*mut c_void, c_int);

/// The library, a card for each VI, objects that live, times of frames.
#[derive(Default)]
struct World {
    functions: Option<Functions>,
    set_format: Option<SetFormat>,
    cards: HashMap<usize, Card>,
    live: i64,
    stamps: Vec<u64>,
    departures: Vec<u64>,
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

    fn transmit(&mut self, departures: &mut Vec<u64>) {
        let most = if self.departs { 1 } else { 64 };
        let end = self.doorbell(TX_DOORBELL) % ENTRIES;
        while self.tx_read != end && self.has_room() {
            let mut last = self.tx_read;
            for _ in 0..most {
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
            if self.departs {
                let now = self.stamp();
                departures.push(now);
                let quarters = now % SECOND * 4;
                let times = [
                    quarters & 0xffff | quarters >> 16 << HIGH,
                    (now / SECOND) & 0xffff,
                ];
                for (what, time) in SENT.iter().zip(times) {
                    self.raise(2 << 60 | what | time);
                }
            }
        }
    }

    /// A frame's time, which the card tells four times a second as a whole.
    fn stamp(&mut self) -> u64 {
        self.now_ns += FRAME_NS;
        let now = self.now_ns;
        if self.stamps && now - self.told_ns >= TOLD_NS {
            self.told_ns = now;
            let quarters = now % SECOND * 4;
            self.raise(TIME | ((quarters >> 26) << 38) | (now / SECOND));
        }
        now
    }

    fn receive(&mut self, stamps: &mut Vec<u64>) {
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
            let now = self.stamp();
            let quarters = (now % SECOND * 4) as u32;
            // SAFETY: the same; before the frame.
            unsafe { buffer.add(STAMP).cast::<u32>().write_unaligned(quarters) };
            self.rx_read = (self.rx_read + 1) % ENTRIES;
            self.received += 1;
            let error = if self.received.is_multiple_of(1000) {
                BAD
            } else {
                stamps.push(now);
                0
            };
            let bytes = (frame.len() + PREFIX) as u64;
            self.raise(bytes | error | (self.rx_read as u64 & 15) << 48);
        }
    }
}

/// A turn of each card.
pub(super) fn turn() {
    world(|world| {
        for card in world.cards.values_mut() {
            card.transmit(&mut world.departures);
            if card.filters > 0 {
                card.receive(&mut world.stamps);
            }
        }
    });
}

/// What each card does next.
fn cards(what: impl Fn(&mut Card)) {
    world(|world| world.cards.values_mut().for_each(what));
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
        if let Some(set) = world(|world| world.set_format) {
            set(vi, 1);
        }
    }
    let mut card = Card {
        rings,
        rx_read: 0,
        tx_read: 0,
        evq_write: 0,
        wire: VecDeque::new(),
        received: 0,
        filters: 0,
        stamps: flags & STAMPS != 0,
        departs: flags & DEPARTURES != 0,
        now_ns: BEGIN_NS,
        told_ns: 0,
    };
    card.stamp();
    world(|world| world.cards.insert(vi as usize, card));
    lives(1)
}

unsafe extern "C" fn vi_free(vi: *mut c_void, _: c_int) -> c_int {
    let card = world(|world| world.cards.remove(&(vi as usize))).expect("a VI");
    // SAFETY: made by `vi_alloc`; no card has it any more.
    drop(unsafe { Box::from_raw(card.rings) });
    lives(-1 - i64::from(card.filters))
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

/// One filter more, or less.
fn filtered(vi: *mut c_void, by: i32) -> c_int {
    world(|world| world.cards.get_mut(&(vi as usize)).expect("a VI").filters += by);
    lives(by.into())
}

unsafe extern "C" fn filter_add(
    vi: *mut c_void,
    _: c_int,
    _: *const Specification,
    _: *mut Cookie,
) -> c_int {
    filtered(vi, 1)
}

unsafe extern "C" fn filter_del(vi: *mut c_void, _: c_int, _: *const Cookie) -> c_int {
    filtered(vi, -1)
}

/// A library whose driver is here.
fn library(path: &Path) -> Ciul {
    let mut ciul = Ciul::load(path).unwrap();
    // SAFETY: loaded already, and as long as its functions are used.
    let library = unsafe { Library::new(path) }.unwrap();
    // SAFETY: a function of this name has this type in every release.
    let set_format = unsafe { library.get::<SetFormat>(b"ef_vi_set_ts_format") };
    world(|world| {
        world.functions = Some(ciul.functions);
        world.set_format = set_format.ok().map(|found| *found);
    });
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
        ef_vi_filter_del: filter_del,
        ..ciul.functions
    };
    ciul.is_stand_in = true;
    ciul
}

/// Datagrams around the loop by a library's ring code: what has come, and what was counted.
fn trace(path: &Path) -> (Vec<u32>, Counts) {
    let mut port = EfViPort::with(library(path), "eth9", Settings::default()).unwrap();
    assert_eq!(port.facts().mtu, 1500);
    assert_eq!(around(&mut port, 10), [], "no filter");
    port.add_filter(datagrams()).unwrap();
    let got = around(&mut port, 20_000);
    let counts = port.counts();
    drop(port);
    assert_eq!(world(|world| world.live), 0);
    (got, counts)
}

/// Does something over the stand-in as each release, and over the library that is to be tried.
fn over_each(what: impl Fn(&Path)) {
    for release in RELEASES {
        let fake = Fake::new(&[("LAYOUT", release)]);
        what(&fake.path);
    }
    match std::env::var_os("BYPASS_TEST_LIBCIUL") {
        Some(path) => what(Path::new(&path)),
        None => eprintln!("BYPASS_TEST_LIBCIUL is not set: no genuine library, the stand-in only"),
    }
}

#[test]
fn the_librarys_ring_code_carries_every_frame() {
    let traces = RefCell::new(Vec::new());
    over_each(|path| traces.borrow_mut().push(trace(path)));
    let traces = traces.into_inner();
    for (got, counts) in &traces {
        // Ten that came before the filter wait on the wire.
        assert_eq!(got.len() as u64, counts.received);
        assert_eq!((counts.sent, counts.received), (20_010, 19_990));
        assert_eq!(counts.discarded, [0, 0, 20, 0, 0, 0, 0, 0]);
        assert_eq!(*got, traces[0].0);
    }
}

/// Times of frames that go around one by one.
fn stamps(port: &mut EfViPort, count: u32) -> Vec<u64> {
    let mut got = Vec::new();
    for number in 0..count {
        assert!(send(port, &frame(7007, number)));
        port.flush();
        turn();
        port.receive(&mut |_, told| got.push(told.stamp));
    }
    port.receive(&mut |_, told| got.push(told.stamp));
    got
}

/// The library makes whole times of what the card writes, and a VI that is made again does too.
#[test]
fn frames_have_the_time_that_the_card_has_written() {
    over_each(|path| {
        world(|world| world.stamps.clear());
        let mut port = EfViPort::with(library(path), "eth9", STAMPED).unwrap();
        port.add_filter(datagrams()).unwrap();
        let mut got = stamps(&mut port, 9000);
        cards(|card| card.raise(REBOOT));
        mended(&mut port);
        got.extend(stamps(&mut port, 9000));
        assert_eq!((port.counts().resets, port.counts().filters_lost), (1, 0));
        assert_eq!(got.len(), 2 * (9000 - 9));
        assert_eq!(got, world(|world| std::mem::take(&mut world.stamps)));
        drop(port);
        assert_eq!(world(|world| world.live), 0);
    });
}

/// The library makes whole times of a card's three events of each frame that was sent. (8.1 has
/// them in steps of four nanoseconds.)
#[test]
fn departures_have_the_time_that_the_card_has_told() {
    over_each(|path| {
        world(|world| world.departures.clear());
        let mut port = EfViPort::with(library(path), "eth9", STAMPED).unwrap();
        let mut got = Vec::new();
        for number in 1..=9000 {
            let bytes = frame(7007, number);
            // SAFETY: the frame's bytes.
            assert!(unsafe { port.send_stamped(bytes.as_ptr(), bytes.len() as u32, number) });
            port.flush();
            turn();
            // Each half of a time is an event by itself, and others may be between.
            let _ = [(); 2].map(|()| port.receive(&mut |_, _| ()));
            got.extend(port.departed());
        }
        let wanted = world(|world| std::mem::take(&mut world.departures));
        let wanted = (1..).zip(wanted.iter().map(|time| time & !3));
        let got = got.iter().map(|frame| (frame.number, frame.at_ns & !3));
        assert!(got.eq(wanted));
        drop(port);
        assert_eq!(world(|world| world.live), 0);
    });
}

/// A ring without a free event, as a card leaves it that nobody has read for too long.
#[test]
fn a_ring_that_has_overflown_is_made_again() {
    over_each(|path| {
        let mut port = EfViPort::with(library(path), "eth9", Settings::default()).unwrap();
        port.add_filter(datagrams()).unwrap();
        cards(|card| (0..EVENTS).for_each(|_| card.raise(START)));
        mended(&mut port);
        assert_eq!(
            (port.counts().overflows, port.counts().filters_lost),
            (1, 0)
        );
        assert_eq!(around(&mut port, 100).len(), 100);
        drop(port);
        assert_eq!(world(|world| world.live), 0);
    });
}

/// Each kind of filter is one that the library's setters take, with a VLAN and without.
#[test]
fn the_library_takes_every_kind_of_filter() {
    const V6: [u8; 16] = [0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
    over_each(|path| {
        for vlan in [None, Some((7, 1400))] {
            let mut port =
                EfViPort::of_card(library(path), "eth9", vlan, Settings::default()).unwrap();
            for protocol in [6, 17] {
                for local in [datagrams().local, (V6, 80)] {
                    for remote in [None, Some((local.0, 4000))] {
                        let filter = CardFilter {
                            protocol,
                            local,
                            remote,
                        };
                        port.add_filter(filter).unwrap();
                    }
                }
            }
            assert_eq!(port.in_card().len(), 8);
            assert_eq!(around(&mut port, 100).len(), 100);
            drop(port);
            assert_eq!(world(|world| world.live), 0);
        }
    });
}
