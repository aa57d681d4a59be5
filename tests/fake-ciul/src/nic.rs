//! The hardware's side of a VI's rings: a NIC in software between them and a wire.
//!
//! It works inside of the calls of the library: a turn at each poll, and at each doorbell of TX.

#![expect(
    unsafe_code,
    reason = "UNSAFETY: reads and writes rings and buffers by their addresses, as a card does"
)]

use std::collections::HashMap;
use std::ffi::c_void;
use std::sync::{Mutex, MutexGuard, OnceLock};

use crate::config;
use crate::driver::Bell;
use crate::filter::{Filters, Key, Shared};
use crate::set::Place;
use crate::vi::{
    BAD_FRAME, RX_DOORBELL, RX_EVENT_MERGE, RX_TIMESTAMPS, SENT_HIGH, SENT_LOW, TX_DOORBELL,
    TX_TIMESTAMPS, UNKNOWN, Vi, ef_event,
};
use crate::wire::Wire;

/// Frames of one turn, and of one completion that is in time, at most.
const TURN: usize = 32;
/// Most frames that are lent at a time.
const LENT: usize = 512;
/// Most frames of one completion.
const BUNDLE: u32 = 64;
/// Most turns between two completions that are late.
const LATE_TURNS: u32 = 24;
const FRAME: usize = 65_536;
/// Nanoseconds.
const SECOND: u64 = 1_000_000_000;
/// The time is told four times a second.
const TOLD_NS: u64 = SECOND / 4;
/// The event of it: seconds 0-31, high bits of the quarters of nanoseconds 38-43.
const TIME: u64 = 12 << 60 | 0x1a << 44;
const EMPTY: u64 = u64::MAX;

/// Memory of a VI, and what it was set up with: what a card knows of it, whoever's the library is.
pub(crate) struct Rings {
    /// Event ring, RX and TX descriptors, ids of both, io, state.
    pub(crate) parts: [*mut u8; 7],
    /// Entries.
    pub(crate) events: u32,
    pub(crate) rx: u32,
    pub(crate) tx: u32,
    /// Bytes of a buffer before the frame.
    pub(crate) prefix: u32,
    pub(crate) flags: u64,
}

// SAFETY: the memory is the VI's, which one thread works on at a time.
unsafe impl Send for Rings {}

impl Rings {
    /// Slot of the event that was the nth.
    fn event(&self, nth: u32) -> *mut u64 {
        let at = nth & (self.events - 1);
        // SAFETY: inside of the ring.
        unsafe { self.parts[0].cast::<u64>().add(at as usize) }
    }

    /// Address and length of a descriptor.
    fn descriptor(ring: *mut u8, at: u32) -> (*mut u8, usize) {
        // SAFETY: callers' positions are inside of the ring.
        let word = unsafe { ring.cast::<u64>().add(at as usize).read_volatile() };
        let address = (word & 0xffff_ffff_ffff) as *mut u8;
        (address, (word >> 48) as usize & 0x3fff)
    }

    /// A word that the library writes to the io page.
    fn doorbell(&self, at: usize) -> u32 {
        // SAFETY: the io page has 8 KiB.
        unsafe { self.parts[5].add(at).cast::<u32>().read_volatile() }
    }

    /// Bytes of events that the library has read, wrapping.
    pub(crate) fn read(&self) -> u32 {
        // SAFETY: the state begins with them.
        unsafe { self.parts[6].cast::<u32>().read_volatile() }
    }

    /// Whether an event waits.
    fn has_event(&self) -> bool {
        // SAFETY: inside of the ring.
        unsafe { self.event(self.read() / 8).read_volatile() != EMPTY }
    }
}

/// One VI's share of a card.
pub(crate) struct Nic {
    pub(crate) rings: Rings,
    pub(crate) wire: Box<dyn Wire>,
    pub(crate) bell: Bell,
    /// Interface of its protection domain.
    pub(crate) name: String,
    filters: Shared<Filters>,
    /// Its filters are its set's.
    is_member: bool,
    rx_read: u32,
    tx_read: u32,
    evq_write: u32,
    late: Late,
    /// When the time was told.
    told_ns: u64,
    /// When the frame of each descriptor was sent.
    times: Vec<u64>,
    specials: Vec<ef_event>,
    is_dead: bool,
    is_tx_stopped: bool,
    has_cut_through: bool,
    is_primed: bool,
    lent: HashMap<u32, (Box<[u8]>, u64)>,
    last_lent: u32,
    frame: Vec<u8>,
}

/// Completions that come late and in bundles, out of step with what is sent and received: as
/// drawn, always in the same way.
#[derive(Default)]
struct Late {
    /// Descriptor whose completion is the next to be told.
    told: u32,
    /// Turns until that.
    turns: u32,
    drawn: u32,
}

impl Late {
    /// A number from 1 to `most`.
    fn draw(&mut self, most: u32) -> u32 {
        // Numerical Recipes' linear congruential generator; its low bits are poor.
        self.drawn = self
            .drawn
            .wrapping_mul(1_664_525)
            .wrapping_add(1_013_904_223);
        1 + (self.drawn >> 8) % most
    }
}

static NICS: OnceLock<Mutex<HashMap<usize, Nic>>> = OnceLock::new();

fn nics() -> &'static Mutex<HashMap<usize, Nic>> {
    NICS.get_or_init(Mutex::default)
}

/// Does something with the card behind a VI; `None` when there is none (ordinary memory).
pub(crate) fn with<T>(vi: Vi, what: impl FnOnce(&mut Nic) -> T) -> Option<T> {
    let mut nics = nics().lock().expect("a panic ends the process");
    nics.get_mut(&vi.place()).map(what)
}

/// Gives a VI, whose rings are set up, a card.
pub(crate) fn insert(vi: Vi, nic: Nic) {
    let mut nics = nics().lock().expect("a panic ends the process");
    nics.insert(vi.place(), nic);
}

/// How many VIs there are.
pub(crate) fn count() -> usize {
    nics().lock().expect("a panic ends the process").len()
}

pub(crate) fn remove(vi: Vi) -> Option<Nic> {
    let mut nics = nics().lock().expect("a panic ends the process");
    nics.remove(&vi.place())
}

/// The card's clock, nanoseconds since 1970: a million seconds ahead, so that nobody takes it for
/// the host's.
pub(crate) fn clock() -> u64 {
    const AHEAD: std::time::Duration = std::time::Duration::from_secs(1_000_000);
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    (now.expect("a time after 1970") + AHEAD).as_nanos() as u64
}

/// The time whose second has so many quarters of nanoseconds: the one next to the time that the
/// card has told, or else the last one.
pub(crate) fn stamp_of(quarters: u32, told: Option<u64>) -> u64 {
    let rest = u64::from(quarters) / 4;
    // The card tells the time four times a second, as of then.
    let now = told.map_or_else(clock, |told| told + SECOND / 2);
    let stamp = now / SECOND * SECOND + rest;
    if stamp > now { stamp - SECOND } else { stamp }
}

impl Nic {
    /// Of a VI by itself, or with the filters of its set.
    pub(crate) fn new(rings: Rings, bell: Bell, (wire, filters, name): Place) -> Self {
        bell.watch(&wire.fds());
        Self {
            times: vec![0; rings.tx as usize],
            rings,
            wire,
            bell,
            name,
            is_member: filters.is_some(),
            filters: filters.unwrap_or_default(),
            rx_read: 0,
            tx_read: 0,
            evq_write: 0,
            late: Late::default(),
            told_ns: 0,
            specials: Vec::new(),
            is_dead: false,
            is_tx_stopped: false,
            has_cut_through: false,
            is_primed: false,
            lent: HashMap::new(),
            last_lent: 0,
            frame: vec![0; FRAME],
        }
    }

    fn filters(&self) -> MutexGuard<'_, Filters> {
        self.filters.lock().expect("a panic ends the process")
    }

    pub(crate) fn add_filter(&mut self, key: Key) -> Result<i32, i32> {
        // A card could: for frames of this VI only, of which nobody has a use.
        if self.is_member {
            return Err(libc::EINVAL);
        }
        let id = self.filters().add(key)?;
        self.wire.steal(&key);
        Ok(id)
    }

    /// How many go with it.
    pub(crate) fn filter_count(&self) -> usize {
        if self.is_member {
            0
        } else {
            self.filters().count()
        }
    }

    pub(crate) fn remove_filter(&mut self, id: i32) -> Result<(), i32> {
        let key = self.filters().remove(id)?;
        self.wire.give_back(&key);
        Ok(())
    }

    pub(crate) fn lent(&self, id: u32) -> *const c_void {
        let frame = self
            .lent
            .get(&id)
            .expect("fake libciul: a frame that is not lent");
        frame.0.as_ptr().cast()
    }

    /// When one has come that is lent and begins there.
    pub(crate) fn lent_stamp(&self, packet: *const u8) -> Option<u64> {
        let mut lent = self.lent.values();
        let found = lent.find(|(frame, _)| frame.as_ptr() == packet);
        found.map(|(_, stamp)| *stamp)
    }

    pub(crate) fn give_back(&mut self, id: u32) {
        self.lent
            .remove(&id)
            .expect("fake libciul: a frame given back twice");
    }

    /// The descriptor becomes readable with the next event, or now.
    pub(crate) fn prime(&mut self) {
        self.is_primed = true;
        // The vendor's doorbell does not tell of itself.
        self.transmit();
        let is_untold = config::get().is_late && self.late.told != self.tx_read;
        let has_more = self.wire.has_frames() || is_untold;
        let is_now = self.rings.has_event() || !self.specials.is_empty() || has_more;
        self.bell.arm(&self.wire.fds(), is_now);
    }

    /// Moves what there is; events that do not come by the ring, at most so many.
    pub(crate) fn turn(&mut self, most: usize) -> Vec<ef_event> {
        self.transmit();
        self.receive();
        if config::get().is_late {
            self.tell_late();
        }
        let count = self.specials.len().min(most);
        let specials: Vec<ef_event> = self.specials.drain(..count).collect();
        if self.is_primed && (self.rings.has_event() || count > 0) {
            self.is_primed = false;
            self.bell.disarm(&self.wire.fds());
        }
        specials
    }

    fn raise(&mut self, event: u64) {
        // SAFETY: inside of the ring.
        unsafe { self.rings.event(self.evq_write).write_volatile(event) };
        self.evq_write = self.evq_write.wrapping_add(1);
    }

    /// Whether the event ring has 16 free slots.
    fn has_room(&self) -> bool {
        let slot = self.rings.event(self.evq_write.wrapping_add(16));
        // SAFETY: inside of the ring.
        unsafe { slot.read_volatile() == EMPTY }
    }

    /// Sends what the doorbell has told of.
    pub(crate) fn transmit(&mut self) {
        let write = self.rings.doorbell(TX_DOORBELL);
        let mask = self.rings.tx - 1;
        let is_alone = config::get().is_timed || self.tells_departures();
        let turn = if is_alone { 1 } else { TURN };
        while self.tx_read != write & mask && !self.is_dead && !self.is_tx_stopped {
            if !self.has_room() {
                return;
            }
            let mut last = self.tx_read;
            for _ in 0..turn {
                if self.tx_read == write & mask {
                    break;
                }
                last = self.tx_read;
                self.send(last);
                self.tx_read = (self.tx_read + 1) & mask;
                if config::get().strikes("txerr").is_some() {
                    self.is_tx_stopped = true;
                    let done = last.wrapping_add(1) as u16;
                    self.specials.push(ef_event::new(3).u16(4, done).u16(8, 2));
                    return;
                }
            }
            if !config::get().is_late {
                self.tell_sent(last);
            }
        }
    }

    /// Tells of some of the frames that were sent, when it is time.
    fn tell_late(&mut self) {
        let mask = self.rings.tx - 1;
        let sent = self.tx_read.wrapping_sub(self.late.told) & mask;
        if sent == 0 || self.is_dead || !self.has_room() {
            return;
        }
        if self.late.turns > 0 {
            self.late.turns -= 1;
            return;
        }
        self.late.turns = self.late.draw(LATE_TURNS);
        if self.tells_departures() {
            let last = self.late.told;
            self.late.told = last.wrapping_add(1) & mask;
            self.tell_sent(last);
            return;
        }
        let count = self.late.draw(BUNDLE).min(sent);
        self.late.told = self.late.told.wrapping_add(count) & mask;
        let last = self.late.told.wrapping_sub(1) & mask;
        self.raise(2 << 60 | u64::from(last));
    }

    fn send(&mut self, at: u32) {
        let (address, length) = Rings::descriptor(self.rings.parts[2], at);
        if let Some(time) = self.times.get_mut(at as usize) {
            *time = clock();
        }
        if std::mem::take(&mut self.has_cut_through) {
            return;
        }
        // SAFETY: whoever posts a descriptor has registered the memory.
        let frame = unsafe { std::slice::from_raw_parts(address, length) };
        self.wire.send(frame);
    }

    /// Whether each frame that was sent has its time.
    fn tells_departures(&self) -> bool {
        self.rings.flags & TX_TIMESTAMPS != 0
    }

    /// Tells that the frames up to this descriptor were sent; of one frame also when, if it does.
    fn tell_sent(&mut self, last: u32) {
        self.raise(2 << 60 | u64::from(last));
        if !self.tells_departures() {
            return;
        }
        let time = self.times.get(last as usize).copied().unwrap_or_default();
        self.tell_time(time);
        let quarters = time % SECOND * 4;
        let halves = (quarters >> 16) << 32 | quarters & 0xffff;
        self.raise(2 << 60 | SENT_LOW | halves);
        let is_unknown = config::get().strikes("untimed").is_some();
        let seconds = (time / SECOND) & 0xffff | if is_unknown { UNKNOWN } else { 0 };
        self.raise(2 << 60 | SENT_HIGH | seconds);
    }

    /// A frame that goes before its descriptor comes.
    pub(crate) fn cut_through(&mut self, frame: &[u8]) {
        self.wire.send(frame);
        self.has_cut_through = true;
    }

    fn receive(&mut self) {
        let mut entered = 0;
        let mut is_bad = false;
        let merges = self.rings.flags & RX_EVENT_MERGE != 0;
        let most = if merges { 8 } else { 16 };
        while !self.is_dead && entered < most && self.has_buffer() {
            if !self.has_room() {
                return;
            }
            let mut frame = std::mem::take(&mut self.frame);
            let length = self.next(&mut frame);
            if let Some(length) = length {
                if !self.lends() {
                    is_bad = config::get().strikes("discard").is_some();
                    self.place(&frame[..length]);
                    entered += 1;
                    if !merges {
                        self.tell(length, is_bad);
                    }
                } else {
                    self.lend(&frame[..length]);
                }
                self.strike();
            }
            self.frame = frame;
            if length.is_none() {
                break;
            }
        }
        if entered > 0 && merges {
            self.tell(0, is_bad);
        }
    }

    fn lends(&self) -> bool {
        config::get().lends
    }

    /// Whether there is a place for a frame: one of its own that is not lent, or a posted one.
    fn has_buffer(&self) -> bool {
        if self.lends() {
            return self.lent.len() < LENT;
        }
        self.rx_read != self.rings.doorbell(RX_DOORBELL)
    }

    /// The next frame of the wire that a filter matches.
    fn next(&mut self, into: &mut [u8]) -> Option<usize> {
        // A wire may bring for ever what nobody wants.
        for _ in 0..64 {
            let length = self.wire.receive(into)?;
            let Some(key) = Key::of(&into[..length]) else {
                continue;
            };
            if self.filters().matches(&key) {
                return Some(length);
            }
        }
        None
    }

    /// A frame's time, of which the card tells what a frame has no room for.
    fn stamp(&mut self) -> u32 {
        let now = clock();
        self.tell_time(now);
        (now % SECOND * 4) as u32
    }

    /// Tells the time, if it was not a moment ago.
    fn tell_time(&mut self, now: u64) {
        if now.saturating_sub(self.told_ns) >= TOLD_NS {
            self.told_ns = now;
            let quarters = now % SECOND * 4;
            self.raise(TIME | ((quarters >> 26) << 38) | (now / SECOND));
        }
    }

    /// Writes a frame to the next buffer.
    fn place(&mut self, frame: &[u8]) {
        let (to, most) = Rings::descriptor(self.rings.parts[1], self.rx_read);
        let prefix = self.rings.prefix;
        assert!(
            frame.len() + prefix as usize <= most,
            "fake libciul: a frame too long"
        );
        if prefix >= 10 {
            // SAFETY: the buffer has as many bytes before the frame.
            unsafe { to.add(8).cast::<u16>().write_unaligned(frame.len() as u16) };
        }
        if prefix >= 14 && self.rings.flags & RX_TIMESTAMPS != 0 {
            let quarters = self.stamp();
            // SAFETY: the same.
            unsafe { to.add(10).cast::<u32>().write_unaligned(quarters) };
        }
        // SAFETY: compared above; whoever posts a buffer has registered the memory.
        unsafe {
            std::ptr::copy_nonoverlapping(frame.as_ptr(), to.add(prefix as usize), frame.len());
        }
        self.rx_read = (self.rx_read + 1) & (self.rings.rx - 1);
    }

    fn tell(&mut self, length: usize, is_bad: bool) {
        let bytes = length as u64 + u64::from(self.rings.prefix);
        let error = if is_bad { BAD_FRAME } else { 0 };
        self.raise(bytes | error | u64::from(self.rx_read & 15) << 48);
    }

    fn lend(&mut self, frame: &[u8]) {
        self.last_lent += 1;
        let id = self.last_lent;
        self.lent.insert(id, (frame.into(), clock()));
        let event = ef_event::new(config::get().layout.rx_ref);
        self.specials
            .push(event.u16(2, frame.len() as u16).u32(4, id));
    }

    fn strike(&mut self) {
        if let Some(kind) = config::get().strikes("event") {
            self.specials.push(ef_event::new(kind as u16));
        }
        for (what, kind) in [("reset", 12), ("oflow", 6)] {
            if config::get().strikes(what).is_some() {
                self.is_dead = true;
                self.specials.push(ef_event::new(kind));
            }
        }
    }
}
