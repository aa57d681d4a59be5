//! What needs the driver: handles, protection domains, VIs, registered memory, filters.

#![expect(
    unsafe_code,
    reason = "UNSAFETY: exports C functions that fill callers' structures; driver handles"
)]

use std::alloc::{Layout as Pages, alloc_zeroed, dealloc};
use std::collections::HashMap;
use std::ffi::{CStr, CString, c_char, c_int, c_uint, c_void};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicI64, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, OnceLock};

use crate::config;
use crate::filter::ef_filter_spec;
use crate::nic::{self, Nic, Rings};
use crate::set::{self, Place};
use crate::vendor;
use crate::vi::{RX_EVENT_MERGE, RX_TIMESTAMPS, TX_TIMESTAMPS, Vi};
use crate::wire::{self, owned};

/// Number of the last VI: those of programs begin at 16.
static LAST_VI: AtomicU32 = AtomicU32::new(15);
/// What was made and not freed: handles, domains, VIs, registrations, filters.
static LIVE: AtomicI64 = AtomicI64::new(0);
const RING: usize = 4096;
/// VI flags: descriptors hold plain addresses.
const PLAIN: u64 = 0x60;

pub(crate) fn born() {
    LIVE.fetch_add(1, Ordering::Relaxed);
}

pub(crate) fn died() {
    LIVE.fetch_sub(1, Ordering::Relaxed);
}

/// How many objects live. No release has this function.
#[unsafe(no_mangle)]
pub extern "C" fn fake_ciul_live() -> i64 {
    LIVE.load(Ordering::Relaxed)
}

/// A driver handle: an epoll set that is readable when a primed VI has an event.
#[derive(Clone)]
pub(crate) struct Bell(Arc<Inner>);

struct Inner {
    epoll: OwnedFd,
    now: OwnedFd,
}

impl Bell {
    fn new() -> Result<Self, i32> {
        // SAFETY: no pointers.
        let epoll = owned(unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) })?;
        // SAFETY: no pointers.
        let now = owned(unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) })?;
        let bell = Self(Arc::new(Inner { epoll, now }));
        bell.control(libc::EPOLL_CTL_ADD, bell.0.now.as_raw_fd(), libc::EPOLLIN);
        Ok(bell)
    }

    fn control(&self, what: c_int, fd: RawFd, events: c_int) {
        let mut event = libc::epoll_event {
            events: events as u32,
            u64: 0,
        };
        // SAFETY: a whole event. An interface that is gone is gone from the set.
        let _ = unsafe { libc::epoll_ctl(self.0.epoll.as_raw_fd(), what, fd, &raw mut event) };
    }

    pub(crate) fn watch(&self, wire: &[RawFd]) {
        for fd in wire {
            self.control(libc::EPOLL_CTL_ADD, *fd, 0);
        }
    }

    pub(crate) fn arm(&self, wire: &[RawFd], is_now: bool) {
        if is_now {
            let one = 1_u64;
            // SAFETY: eight bytes.
            let _ = unsafe { libc::write(self.0.now.as_raw_fd(), (&raw const one).cast(), 8) };
        }
        for fd in wire {
            self.control(libc::EPOLL_CTL_MOD, *fd, libc::EPOLLIN);
        }
    }

    pub(crate) fn disarm(&self, wire: &[RawFd]) {
        let mut count = 0_u64;
        // SAFETY: eight bytes.
        let _ = unsafe { libc::read(self.0.now.as_raw_fd(), (&raw mut count).cast(), 8) };
        for fd in wire {
            self.control(libc::EPOLL_CTL_MOD, *fd, 0);
        }
    }
}

fn handles() -> std::sync::MutexGuard<'static, HashMap<c_int, Bell>> {
    static HANDLES: OnceLock<Mutex<HashMap<c_int, Bell>>> = OnceLock::new();
    let handles = HANDLES.get_or_init(Mutex::default);
    handles.lock().expect("a panic ends the process")
}

pub(crate) fn answer(result: Result<(), i32>) -> c_int {
    result.map_or_else(|errno| -errno, |()| 0)
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ef_driver_open(handle: *mut c_int) -> c_int {
    answer(config::check("open").and_then(|()| {
        let bell = Bell::new()?;
        let fd = bell.0.epoll.as_raw_fd();
        handles().insert(fd, bell);
        born();
        // SAFETY: the caller's place.
        unsafe { handle.write(fd) };
        Ok(())
    }))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ef_driver_close(handle: c_int) -> c_int {
    match handles().remove(&handle) {
        Some(_) => {
            died();
            answer(config::check("free"))
        }
        None => -libc::EBADF,
    }
}

/// `ef_pd`: the name is at 8.
fn pd_name(pd: *mut c_void) -> *mut *mut c_char {
    pd.cast::<*mut c_char>().wrapping_add(1)
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ef_pd_alloc_by_name(
    pd: *mut c_void,
    _handle: c_int,
    name: *const c_char,
    _flags: c_uint,
) -> c_int {
    answer(config::check("pd").map(|()| {
        // SAFETY: the caller's string.
        let name: CString = unsafe { CStr::from_ptr(name) }.to_owned();
        // SAFETY: an ef_pd has 40 bytes.
        unsafe { pd_name(pd).write(name.into_raw()) };
        born();
    }))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ef_pd_interface_name(pd: *mut c_void) -> *const c_char {
    // SAFETY: written by `ef_pd_alloc_by_name`.
    unsafe { pd_name(pd).read() }
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ef_pd_free(pd: *mut c_void, _handle: c_int) -> c_int {
    // SAFETY: made by `ef_pd_alloc_by_name`.
    drop(unsafe { CString::from_raw(pd_name(pd).read()) });
    died();
    answer(config::check("free"))
}

/// The interface of a domain.
pub(crate) fn domain_name(pd: *mut c_void) -> String {
    // SAFETY: a domain of ours.
    let name = unsafe { CStr::from_ptr(pd_name(pd).read()) };
    name.to_string_lossy().into_owned()
}

/// Memory of a VI: event ring, descriptors, ids, io, state. Bytes, and what they are.
const PARTS: [(usize, u8); 7] = [
    (RING * 8, 0xff),
    (RING * 8, 0),
    (RING * 8, 0),
    (RING * 4, 0xff),
    (RING * 4, 0xff),
    (8192, 0),
    (16_384, 0),
];

fn pages(bytes: usize) -> Pages {
    Pages::from_size_align(bytes, 4096).expect("a size")
}

fn ring(wanted: c_int, otherwise: usize) -> Result<c_int, i32> {
    let entries = if wanted < 0 {
        otherwise
    } else {
        wanted as usize
    };
    let is_one = entries.is_power_of_two() && (512..=RING).contains(&entries);
    is_one.then_some(entries as c_int).ok_or(libc::EINVAL)
}

/// Sizes of a VI's rings, and its flags.
struct Shape {
    evq: c_int,
    rxq: c_int,
    txq: c_int,
    flags: u64,
}

/// Whether a VI with these flags is to fail.
fn check_flags(flags: u64) -> Result<(), i32> {
    if flags & (RX_TIMESTAMPS | TX_TIMESTAMPS) != 0 {
        config::check("stamps")?;
    }
    if flags & TX_TIMESTAMPS != 0 {
        config::check("departures")?;
    }
    Ok(())
}

/// Makes a VI, with filters of a set or its own.
fn make_vi(this: *mut c_void, handle: c_int, shape: &Shape, place: Place) -> Result<(), i32> {
    let (merges, lends, prefix) = {
        let config = config::get();
        (config.merges, config.lends, config.prefix)
    };
    let merge = if merges { RX_EVENT_MERGE } else { 0 };
    let (evq, rxq) = (ring(shape.evq, 1024)?, ring(shape.rxq, 512)?);
    let txq = ring(shape.txq, 512)?;
    let bell = handles().get(&handle).cloned().ok_or(libc::EBADF)?;
    let parts = PARTS.map(|(bytes, fill)| {
        // SAFETY: sizes are not zero.
        let part = unsafe { alloc_zeroed(pages(bytes)) };
        // SAFETY: as many bytes.
        unsafe { part.write_bytes(fill, bytes) };
        part
    });
    let rings = Rings {
        parts,
        events: evq as u32,
        rx: rxq as u32,
        tx: txq as u32,
        prefix: prefix as u32,
        flags: shape.flags | merge,
    };
    set_up(this, &rings, if lends { 3 } else { 1 });
    let number = LAST_VI.fetch_add(1, Ordering::Relaxed) + 1;
    // `vi_resource_id` and `vi_i`, at the same place in all releases.
    // SAFETY: the caller's ef_vi.
    unsafe {
        this.cast::<u32>()
            .add(1)
            .cast::<[u32; 2]>()
            .write([number + 0x100, number])
    };
    nic::insert(Vi::at(this), Nic::new(rings, bell, place));
    born();
    Ok(())
}

/// Has the library's code know its memory, of a card of this architecture.
fn set_up(this: *mut c_void, rings: &Rings, architecture: c_int) {
    let [ring, rxd, txd, rx_ids, tx_ids, io, state] = rings.parts.map(|part| part.cast::<c_void>());
    let [evq, rxq, txq] = [rings.events, rings.rx, rings.tx].map(|entries| entries as c_int);
    let code = vendor::code();
    // SAFETY: the caller's ef_vi, and parts of these sizes.
    unsafe {
        (code.init)(
            this,
            architecture,
            b'B'.into(),
            2,
            rings.flags | PLAIN,
            0,
            state,
        );
        (code.init_io)(this, io);
        (code.init_evq)(this, evq, ring, rings.events - 24);
        (code.init_rxq)(this, rxq, rxd, rx_ids, rings.prefix as c_int);
        (code.init_txq)(this, txq, txd, tx_ids);
        (code.init_state)(this);
        (code.add_queue)(this, this);
    }
    code.lend_turns(this);
}

/// Whether the card has room for one VI only, and has one.
fn check_room() -> Result<(), i32> {
    let is_small = config::get().is_small;
    if is_small && nic::count() > 0 {
        return Err(libc::EBUSY);
    }
    Ok(())
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ef_vi_alloc_from_pd(
    this: *mut c_void,
    handle: c_int,
    pd: *mut c_void,
    _pd_handle: c_int,
    evq: c_int,
    rxq: c_int,
    txq: c_int,
    _evq_vi: *mut c_void,
    _evq_handle: c_int,
    flags: u64,
) -> c_int {
    let shape = Shape {
        evq,
        rxq,
        txq,
        flags,
    };
    answer(check_flags(flags).and_then(|()| {
        config::check("alloc")?;
        check_room()?;
        let (name, wire) = (domain_name(pd), config::get().wire.clone());
        let wire = wire::open(&wire, &name)?;
        make_vi(this, handle, &shape, (wire, None, name))
    }))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ef_vi_alloc_from_set(
    this: *mut c_void,
    handle: c_int,
    set: *mut c_void,
    _set_handle: c_int,
    _index: c_int,
    evq: c_int,
    rxq: c_int,
    txq: c_int,
    _evq_vi: *mut c_void,
    _evq_handle: c_int,
    flags: u64,
) -> c_int {
    let shape = Shape {
        evq,
        rxq,
        txq,
        flags,
    };
    answer(check_flags(flags).and_then(|()| {
        config::check("member")?;
        check_room()?;
        make_vi(this, handle, &shape, set::join(set)?)
    }))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ef_vi_free(this: *mut c_void, _handle: c_int) -> c_int {
    let vi = Vi::at(this);
    let Some(nic) = nic::remove(vi) else {
        return -libc::EINVAL;
    };
    // Its filters go with it.
    for _ in 0..nic.filter_count() {
        died();
    }
    let parts = nic.rings.parts;
    drop(nic);
    for (part, (bytes, _)) in parts.into_iter().zip(PARTS) {
        // SAFETY: made by `ef_vi_alloc_from_pd` with this size.
        unsafe { dealloc(part, pages(bytes)) };
    }
    died();
    answer(config::check("free"))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ef_vi_flush(_vi: *mut c_void, _handle: c_int) -> c_int {
    0
}

fn card(vi: *mut c_void) -> ([u8; 6], u32) {
    let config = config::get().wire.clone();
    let name = config.split_once(':').map(|(_, name)| name.to_owned());
    let name = name.or_else(|| nic::with(Vi::at(vi), |nic| nic.name.clone()));
    wire::facts(&name.unwrap_or_default())
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ef_vi_mtu(vi: *mut c_void, _handle: c_int) -> c_uint {
    // The whole frame without its checksum; 0 when the driver does not answer.
    config::check("mtu").map_or(0, |()| card(vi).1 + 14)
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ef_vi_get_mac(
    vi: *mut c_void,
    _handle: c_int,
    mac: *mut [u8; 6],
) -> c_int {
    answer(config::check("mac").map(|()| {
        // SAFETY: six bytes.
        unsafe { mac.write(card(vi).0) };
    }))
}

/// `ef_memreg`: an address for each page, and where it was allocated.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn ef_memreg_alloc(
    registration: *mut [*mut u64; 2],
    _handle: c_int,
    _pd: *mut c_void,
    _pd_handle: c_int,
    memory: *mut c_void,
    bytes: usize,
) -> c_int {
    answer(config::check("memreg").and_then(|()| {
        if !(memory as usize).is_multiple_of(4096) || bytes == 0 {
            return Err(libc::EINVAL);
        }
        let count = bytes.div_ceil(4096);
        // SAFETY: `malloc` of as many words.
        let addresses: *mut u64 = unsafe { libc::malloc(count * 8) }.cast();
        for page in 0..count {
            // SAFETY: there are as many.
            unsafe {
                addresses
                    .add(page)
                    .write(memory as u64 + page as u64 * 4096)
            };
        }
        // SAFETY: an ef_memreg has 16 bytes.
        unsafe { registration.write([addresses, addresses]) };
        born();
        Ok(())
    }))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ef_memreg_free(registration: *mut [*mut u64; 2], _handle: c_int) -> c_int {
    // SAFETY: made by `ef_memreg_alloc`.
    unsafe { libc::free((*registration)[1].cast()) };
    died();
    answer(config::check("free"))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ef_vi_prime(this: *mut c_void, _handle: c_int, at: c_uint) -> c_int {
    answer(config::check("prime").and_then(|()| {
        let primed = nic::with(Vi::at(this), |nic| {
            let current = nic.rings.read();
            assert_eq!(current, at, "fake libciul: primed at another event");
            nic.prime();
        });
        primed.ok_or(libc::EINVAL)
    }))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ef_vi_filter_add(
    this: *mut c_void,
    _handle: c_int,
    spec: *const ef_filter_spec,
    cookie: *mut [c_int; 2],
) -> c_int {
    answer(config::check("filter").and_then(|()| {
        // SAFETY: the caller's specification.
        let key = unsafe { (*spec).key() }.ok_or(libc::EINVAL)?;
        let added = nic::with(Vi::at(this), |nic| nic.add_filter(key));
        let id = added.ok_or(libc::EINVAL)??;
        // SAFETY: a cookie has eight bytes.
        unsafe { cookie.write([id, 1]) };
        born();
        Ok(())
    }))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ef_vi_filter_del(
    this: *mut c_void,
    _handle: c_int,
    cookie: *const [c_int; 2],
) -> c_int {
    // SAFETY: a cookie.
    let [id, _] = unsafe { *cookie };
    answer(config::check("unfilter").and_then(|()| {
        let removed = nic::with(Vi::at(this), |nic| nic.remove_filter(id));
        removed.ok_or(libc::EINVAL)??;
        died();
        Ok(())
    }))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn efct_vi_rxpkt_get(this: *mut c_void, id: c_uint) -> *const c_void {
    if config::check("lend").is_err() {
        return std::ptr::null();
    }
    nic::with(Vi::at(this), |nic| nic.lent(id)).unwrap_or(std::ptr::null())
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn efct_vi_rxpkt_release(this: *mut c_void, id: c_uint) {
    nic::with(Vi::at(this), |nic| nic.give_back(id));
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ef_vi_capabilities_get(
    _handle: c_int,
    _ifindex: c_int,
    _capability: c_uint,
    _value: *mut std::ffi::c_ulong,
) -> c_int {
    -libc::EOPNOTSUPP
}

#[unsafe(no_mangle)]
pub extern "C" fn ef_vi_version_str() -> *const c_char {
    config::get().layout.version.as_ptr()
}

#[unsafe(no_mangle)]
pub extern "C" fn ef_vi_driver_interface_str() -> *const c_char {
    c"00000000000000000000000000000000".as_ptr()
}
