//! Finds out which layout the library has, on ordinary memory: without card, driver or header.
//!
//! ```text
//!   A  ef_vi_init on scratch memory: where the state's address is, where pointers into the library
//!      begin (ops), where those of known functions are
//!   B  where values that were passed are found again: flags, rings' sizes, the prefix
//!   C  which words of the state count, when descriptors are posted, sent and done
//!   ─► all of it is one row of the table, or the library is refused
//! ```

#![expect(
    unsafe_code,
    reason = "UNSAFETY: calls the library's initialisers on scratch memory and looks at it"
)]

use std::ffi::{c_int, c_void};

use super::event::RawEvent;
use super::layout::{LAYOUTS, Layout};
use super::library::Ciul;
use super::reason::CiulError;

/// Descriptors hold plain addresses: `EF_VI_TX_PHYS_ADDR | EF_VI_RX_PHYS_ADDR`.
const PLAIN: u32 = 0x60;
/// Rings of different sizes, so that each is known by its mask.
const EVENTS: usize = 1024;
const RX: usize = 512;
const TX: usize = 256;
const CAPACITY: u32 = 1000;
const PREFIX: u32 = 14;
/// What EF10 uses of a buffer.
const BUFFER: u32 = 1792;
/// Fills the structure before the library does.
const FILL: u8 = 0xee;

/// Scratch memory. Larger than any release needs.
#[repr(C, align(4096))]
struct Scratch {
    vi: [u64; 1024],
    state: [u32; 4096],
    io: [u8; 8192],
    events: [u64; EVENTS],
    rx: [u64; RX],
    tx: [u64; TX],
    rx_ids: [u32; RX],
    tx_ids: [u32; TX],
    packet: [u8; 2048],
}

/// What was seen. A field that is not found, or twice, is `None`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Seen {
    size: Option<usize>,
    ep_state: Option<usize>,
    ops: Option<usize>,
    eventq_poll: Option<usize>,
    has_timestamp: bool,
    has_capacity: bool,
    rx_buffer_len: Option<usize>,
    vi_flags: Option<usize>,
    nic_type: Option<usize>,
    evq_mask: Option<usize>,
    rxq: Option<usize>,
    txq: Option<usize>,
    rx_prefix_len: Option<usize>,
    counts: Counts,
}

/// Words of the state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Counts {
    tx_previous: Option<usize>,
    tx_added: Option<usize>,
    rx_posted: Option<usize>,
    rx_added: Option<usize>,
}

/// The layout of a library.
///
/// # Errors
/// A sentence, when what is seen is no release's.
pub(super) fn layout(ciul: &Ciul) -> Result<Layout, String> {
    let mut scratch = Scratch::new();
    let size = scratch.size(ciul)?;
    let mut seen = scratch.operations(ciul)?;
    scratch.fields(ciul, &mut seen)?;
    seen.size = size;
    let row = LAYOUTS.iter().find(|row| seen.agrees(row));
    let row = row.ok_or_else(|| seen.refusal(ciul))?;
    // The right words are needed before anything is called by them.
    seen.counts = scratch.counts(ciul, row);
    if !seen.counts.agree(row) {
        return Err(seen.refusal(ciul));
    }
    Ok(*row)
}

/// Of a call that answers a number, or an errno below zero.
fn check(call: &'static str, answer: c_int) -> Result<(), String> {
    let done = CiulError::check(call, answer);
    done.map_err(|why| format!("the layout of libciul is not known: {why}"))
}

impl Seen {
    fn agrees(&self, row: &Layout) -> bool {
        // An older initialiser need not zero the whole structure: then its size is not seen.
        let is_like = self.size.is_none_or(|size| size == row.size) && self.has_ops_of(row);
        is_like && self.has_capacity == row.has_capacity && {
            let fields = [
                (self.rx_buffer_len, row.rx_buffer_len),
                (self.vi_flags, row.vi_flags),
                (self.nic_type, row.nic_type),
                (self.evq_mask, row.evq_mask),
                (self.rxq, row.rxq),
                (self.txq, row.txq),
                (self.rx_prefix_len, row.rx_prefix_len),
            ];
            fields.iter().all(|(seen, wanted)| *seen == Some(*wanted))
        }
    }

    fn has_ops_of(&self, row: &Layout) -> bool {
        let places = [
            (self.ep_state, row.ep_state),
            (self.ops, row.ops),
            (self.eventq_poll, row.eventq_poll),
        ];
        let is_there = places.iter().all(|(seen, wanted)| *seen == Some(*wanted));
        is_there && self.has_timestamp == row.has_timestamp
    }

    /// Both answers: whose size it is, and whose operations.
    fn refusal(&self, ciul: &Ciul) -> String {
        let name = |row: Option<&Layout>| row.map_or("no release", |row| row.name);
        let by_size = LAYOUTS.iter().find(|row| self.size == Some(row.size));
        let by_ops = LAYOUTS.iter().find(|row| self.has_ops_of(row));
        let size = self
            .size
            .map_or_else(|| "?".to_owned(), |size| size.to_string());
        format!(
            "libciul layout unknown: {}, sizeof {size}: its size is that of {}, its operations \
             are those of {}",
            ciul.version(),
            name(by_size),
            name(by_ops),
        )
    }
}

impl Counts {
    fn agree(&self, row: &Layout) -> bool {
        let wanted = Self {
            tx_previous: Some(row.tx_previous),
            tx_added: Some(row.tx_added),
            rx_posted: Some(row.rx_posted),
            rx_added: Some(row.rx_added),
        };
        *self == wanted
    }
}

impl Scratch {
    fn new() -> Box<Self> {
        Box::new(Self {
            vi: [0; 1024],
            state: [0; 4096],
            io: [0; 8192],
            events: [u64::MAX; EVENTS],
            rx: [0; RX],
            tx: [0; TX],
            rx_ids: [u32::MAX; RX],
            tx_ids: [u32::MAX; TX],
            packet: [0; 2048],
        })
    }

    fn vi(&mut self) -> *mut c_void {
        self.vi.as_mut_ptr().cast()
    }

    /// On a structure that is not initialised nothing else may be called.
    fn init(&mut self, ciul: &Ciul) -> Result<(), String> {
        let state = self.state.as_mut_ptr().cast();
        let (vi, flags) = (self.vi(), u64::from(PLAIN));
        // SAFETY: more memory than a VI and its state need; the library only writes there.
        let answer = unsafe { (ciul.functions.ef_vi_init)(vi, 1, b'B'.into(), 2, flags, 0, state) };
        check("ef_vi_init", answer)
    }

    /// Size of the structure: what the initialiser has touched. `None` when it leaves holes.
    fn size(&mut self, ciul: &Ciul) -> Result<Option<usize>, String> {
        const UNTOUCHED: u64 = u64::from_ne_bytes([FILL; 8]);
        self.vi.fill(UNTOUCHED);
        self.init(ciul)?;
        let words = self.vi.iter().position(|word| *word == UNTOUCHED);
        let is_end = |words: &usize| self.vi[*words..].iter().all(|word| *word == UNTOUCHED);
        Ok(words.filter(is_end).map(|words| 8 * words))
    }

    /// Step A.
    fn operations(&mut self, ciul: &Ciul) -> Result<Seen, String> {
        self.vi.fill(0);
        self.init(ciul)?;
        let state = self.state.as_ptr() as usize;
        let slot = |wanted: Option<usize>| {
            let wanted = wanted? as u64;
            self.vi.iter().position(|word| *word == wanted)
        };
        let is_code = |word: &u64| *word != 0 && ciul.owns(*word as usize);
        let [poll, prime, timestamp] = ciul.marks;
        let holds = |slot: Option<usize>, function: Option<usize>| {
            function.is_some()
                && slot.and_then(|slot| self.vi.get(slot)) == function.map(|at| at as u64).as_ref()
        };
        let polls = slot(poll).filter(|slot| holds(Some(slot + 1), prime));
        Ok(Seen {
            ep_state: slot(Some(state)).map(|slot| 8 * slot),
            ops: self.vi.iter().position(is_code).map(|slot| 8 * slot),
            eventq_poll: polls.map(|slot| 8 * slot),
            has_timestamp: holds(polls.and_then(|slot| slot.checked_sub(1)), timestamp),
            rx_buffer_len: self.field(BUFFER),
            vi_flags: self.field(PLAIN),
            nic_type: self.field(u32::from_le_bytes([1, b'B', 2, 0])),
            ..Seen::default()
        })
    }

    /// Step B.
    fn fields(&mut self, ciul: &Ciul, seen: &mut Seen) -> Result<(), String> {
        let vi = self.vi();
        let functions = &ciul.functions;
        let (rx, tx) = (self.rx.as_mut_ptr().cast(), self.tx.as_mut_ptr().cast());
        let (rx_ids, tx_ids) = (self.rx_ids.as_mut_ptr(), self.tx_ids.as_mut_ptr());
        // SAFETY: an initialised VI; each ring and page is as large as is said, and of `self`.
        let label = unsafe {
            (functions.ef_vi_init_io)(vi, self.io.as_mut_ptr().cast());
            let events = self.events.as_mut_ptr().cast();
            (functions.ef_vi_init_evq)(vi, EVENTS as c_int, events, CAPACITY);
            (functions.ef_vi_init_rxq)(vi, RX as c_int, rx, rx_ids.cast(), PREFIX as c_int);
            (functions.ef_vi_init_txq)(vi, TX as c_int, tx, tx_ids.cast());
            (functions.ef_vi_init_state)(vi);
            (functions.ef_vi_add_queue)(vi, vi)
        };
        check("ef_vi_add_queue", label)?;
        // SAFETY: an initialised VI.
        let capacity = unsafe { (functions.ef_eventq_capacity)(vi) };
        if !(1..EVENTS as c_int).contains(&capacity) {
            return Ok(());
        }
        seen.has_capacity = capacity == CAPACITY as c_int;
        seen.evq_mask = self.field(8 * EVENTS as u32 - 1);
        seen.rxq = self.field(RX as u32 - 1);
        seen.txq = self.field(TX as u32 - 1);
        seen.rx_prefix_len = self.field(PREFIX);
        Ok(())
    }

    /// Where the structure has a value, if it has it once.
    fn field(&self, value: u32) -> Option<usize> {
        let halves = self
            .vi
            .iter()
            .flat_map(|word| [*word as u32, (*word >> 32) as u32]);
        let mut places = halves.enumerate().filter(|(_, half)| *half == value);
        let (at, _) = places.next()?;
        places.next().is_none().then_some(4 * at)
    }

    /// Which word of the state has a value, if one has it.
    fn word(&self, value: u32) -> Option<usize> {
        self.other_word(value, None)
    }

    /// The same besides a word that is known.
    fn other_word(&self, value: u32, known: Option<usize>) -> Option<usize> {
        let words = self.state[..64].iter().enumerate();
        let mut places = words.filter(|(at, word)| **word == value && known != Some(4 * at));
        let (at, _) = places.next()?;
        places.next().is_none().then_some(4 * at)
    }

    /// Step C, with a row that agrees so far.
    fn counts(&mut self, ciul: &Ciul, row: &Layout) -> Counts {
        type Push = unsafe extern "C" fn(*mut c_void);
        type Poll = unsafe extern "C" fn(*mut c_void, *mut RawEvent, c_int) -> c_int;
        let (vi, functions) = (self.vi(), &ciul.functions);
        let packet = self.packet.as_ptr() as u64;
        let mut counts = Counts::default();
        for id in 0..9 {
            // SAFETY: an initialised VI; the packet is never written, nothing being behind it.
            unsafe { (functions.ef_vi_receive_post)(vi, packet, id) };
        }
        (counts.rx_posted, counts.rx_added) = (self.word(8), self.word(9));
        for id in 0..2 {
            // SAFETY: as above.
            unsafe { (functions.ef_vi_transmit_init)(vi, packet, 60, id) };
        }
        counts.tx_added = self.word(2);
        let push = self.vi[row.transmit_push() / 8] as usize;
        // SAFETY: the fourth operation, as the row has it, whose type is the same in all releases.
        let push: Push = unsafe { std::mem::transmute(push) };
        // SAFETY: an initialised VI.
        unsafe { push(vi) };
        counts.tx_previous = self.other_word(2, counts.tx_added);
        // The first descriptor is filled: 74 bytes.
        self.events[0] = (60 + u64::from(PREFIX)) | 1 << 48;
        let mut events = [RawEvent::NONE; 4];
        let poll = self.vi[row.eventq_poll / 8] as usize;
        // SAFETY: this word was seen to be the address of this function.
        let poll: Poll = unsafe { std::mem::transmute(poll) };
        // SAFETY: an initialised VI, and room for four.
        let count = unsafe { poll(vi, events.as_mut_ptr(), 4) };
        let received = events[0].whole_frame() == Some((0, 74));
        let is_done = self.state[0] == 8 && self.state[row.rx_added / 4 + 1] == 1;
        if count != 1 || !received || !is_done {
            counts.rx_added = None;
        }
        counts
    }
}
