//! The vendor's ring code in the place of ours: what a library at `FAKE_CIUL_VENDOR` does with
//! rings, while the driver and the card are those here.
//!
//! ```text
//!   backend ── opens, allocates, filters ──► driver.rs, by way of bridge.c
//!           ── posts, sends, unbundles ────► the vendor's library
//!           ── polls ──► poll ──► a turn of nic.rs
//!                             ──► the vendor's poll
//! ```

#![expect(
    unsafe_code,
    reason = "UNSAFETY: loads a C library, and changes an operation of its VIs"
)]

use std::ffi::{CStr, CString, c_int, c_uint, c_void};
use std::sync::OnceLock;

use crate::config;
use crate::nic;
use crate::vi::{self, Vi, ef_event};

type Init = unsafe extern "C" fn(*mut c_void, c_int, c_int, c_int, u64, u8, *mut c_void) -> c_int;
type InitRing = unsafe extern "C" fn(*mut c_void, c_int, *mut c_void, *mut c_void, c_int);
type Poll = unsafe extern "C" fn(*mut c_void, *mut ef_event, c_int) -> c_int;
/// Of what a card's times are; 1 = quarters of nanoseconds.
type SetFormat = unsafe extern "C" fn(*mut c_void, c_int);

/// What sets up a VI.
#[derive(Clone, Copy)]
pub(crate) struct Code {
    pub(crate) init: Init,
    pub(crate) init_io: unsafe extern "C" fn(*mut c_void, *mut c_void),
    pub(crate) init_evq: unsafe extern "C" fn(*mut c_void, c_int, *mut c_void, c_uint),
    pub(crate) init_rxq: InitRing,
    pub(crate) init_txq: unsafe extern "C" fn(*mut c_void, c_int, *mut c_void, *mut c_void),
    pub(crate) init_state: unsafe extern "C" fn(*mut c_void),
    pub(crate) add_queue: unsafe extern "C" fn(*mut c_void, *mut c_void) -> c_int,
    vendors: Option<(Poll, Option<SetFormat>)>,
}

const OURS: Code = Code {
    init: vi::ef_vi_init,
    init_io: vi::ef_vi_init_io,
    init_evq: vi::ef_vi_init_evq,
    init_rxq: vi::ef_vi_init_rxq,
    init_txq: vi::ef_vi_init_txq,
    init_state: vi::ef_vi_init_state,
    add_queue: vi::ef_vi_add_queue,
    vendors: None,
};

static VENDORS: OnceLock<Code> = OnceLock::new();

/// Whose code VIs have: the vendor's where a library of it is set.
pub(crate) fn code() -> Code {
    let Some(path) = config::get().vendor.clone() else {
        return OURS;
    };
    *VENDORS.get_or_init(|| load(&path))
}

fn load(path: &str) -> Code {
    let name = CString::new(path).expect("a path");
    // SAFETY: a string; constructors of the library prepare it and do nothing else.
    let library = unsafe { libc::dlopen(name.as_ptr(), libc::RTLD_NOW) };
    assert!(!library.is_null(), "fake libciul: {path} is not to be had");
    Code {
        init: needed(library, c"ef_vi_init"),
        init_io: needed(library, c"ef_vi_init_io"),
        init_evq: needed(library, c"ef_vi_init_evq"),
        init_rxq: needed(library, c"ef_vi_init_rxq"),
        init_txq: needed(library, c"ef_vi_init_txq"),
        init_state: needed(library, c"ef_vi_init_state"),
        add_queue: needed(library, c"ef_vi_add_queue"),
        vendors: Some((
            needed(library, c"ef10_ef_eventq_poll"),
            find(library, c"ef_vi_set_ts_format"),
        )),
    }
}

/// A function, of a type that it has in every release.
fn find<T: Copy>(library: *mut c_void, name: &CStr) -> Option<T> {
    const { assert!(size_of::<T>() == size_of::<*mut c_void>()) };
    // SAFETY: a library and a string.
    let found = unsafe { libc::dlsym(library, name.as_ptr()) };
    // SAFETY: a function pointer, as the caller says.
    (!found.is_null()).then(|| unsafe { std::mem::transmute_copy(&found) })
}

fn needed<T: Copy>(library: *mut c_void, name: &CStr) -> T {
    find(library, name).unwrap_or_else(|| panic!("fake libciul: the vendor's has no {name:?}"))
}

impl Code {
    /// Has the card of a VI its turn with each poll. Whatever the layout, the first place that has
    /// the function is the operation.
    pub(crate) fn lend_turns(&self, vi: *mut c_void) {
        const WORDS: usize = 4096 / size_of::<usize>();
        let Some((polls, set_format)) = self.vendors else {
            return;
        };
        for at in 0..WORDS {
            // SAFETY: backends give 4 KiB for a VI of any release.
            let place = unsafe { vi.cast::<usize>().add(at) };
            // SAFETY: the same.
            if unsafe { place.read() } == polls as usize {
                // SAFETY: the same.
                unsafe { place.write(poll as *const () as usize) };
                if let Some(set) = set_format {
                    // SAFETY: a VI that is set up.
                    unsafe { set(vi, 1) };
                }
                return;
            }
        }
        panic!("fake libciul: a VI of the vendor's without an operation that polls");
    }
}

/// A turn of the card, and then the vendor's poll.
unsafe extern "C" fn poll(this: *mut c_void, events: *mut ef_event, most: c_int) -> c_int {
    /// It wants room for as many.
    const LEAST: usize = 2;
    assert!(most >= LEAST as c_int, "fake libciul: a poll for {most}");
    let room = most as usize - LEAST;
    let specials = nic::with(Vi::at(this), |nic| nic.turn(room)).unwrap_or_default();
    for (at, event) in specials.iter().enumerate() {
        // SAFETY: the caller has room for `most`.
        unsafe { events.add(at).write(*event) };
    }
    let (count, code) = (specials.len(), code());
    let Some((polls, _)) = code.vendors else {
        return count as c_int;
    };
    // SAFETY: the same; a VI of the vendor's.
    let told = unsafe { polls(this, events.add(count), most - count as c_int) };
    told + count as c_int
}
