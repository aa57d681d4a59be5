//! A set of VIs: one wire and one table of filters for all of them, and each flow is one VI's by a
//! hash, as a card spreads them.
//!
//! ```text
//!   wire ── frame that a filter matches ── hash of its flow ──► the VI that is looked at, or
//!                                                               what waits for another one
//! ```

#![expect(
    unsafe_code,
    reason = "UNSAFETY: exports C functions that fill callers' structures; eventfds"
)]

use std::collections::{HashMap, VecDeque};
use std::ffi::{c_int, c_void};
use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};

use crate::config;
use crate::driver::{answer, born, died, domain_name};
use crate::filter::{Filters, Key, Shared, ef_filter_spec};
use crate::wire::{self, Wire, owned};

/// Most frames that wait for one VI: the others are lost, as with a full ring.
const MOST: usize = 4096;

/// What waits for a VI that is not looked at, and its bell.
struct Waiting {
    frames: VecDeque<Vec<u8>>,
    bell: OwnedFd,
}

/// A set of VIs.
pub(crate) struct Set {
    /// Interface of its domain.
    pub(crate) name: String,
    wire: Box<dyn Wire>,
    waiting: Vec<Waiting>,
    filters: Shared<Filters>,
    /// VIs that there are.
    taken: usize,
}

fn sets() -> MutexGuard<'static, HashMap<u32, Shared<Set>>> {
    static SETS: OnceLock<Mutex<HashMap<u32, Shared<Set>>>> = OnceLock::new();
    let sets = SETS.get_or_init(Mutex::default).lock();
    sets.expect("a panic ends the process")
}

/// `ef_vi_set`: a number, and its domain at 8.
fn number(set: *mut c_void) -> u32 {
    // SAFETY: written by `ef_vi_set_alloc_from_pd`.
    unsafe { set.cast::<u32>().read() }
}

fn found(set: *mut c_void) -> Result<Shared<Set>, i32> {
    sets().get(&number(set)).cloned().ok_or(libc::EINVAL)
}

impl Set {
    fn new(name: String, count: usize) -> Result<Self, i32> {
        let wire = config::get().wire.clone();
        let bell = || {
            // SAFETY: no pointers.
            owned(unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) })
        };
        let waiting = (0..count).map(|_| {
            Ok(Waiting {
                frames: VecDeque::new(),
                bell: bell()?,
            })
        });
        Ok(Self {
            wire: wire::open(&wire, &name)?,
            name,
            waiting: waiting.collect::<Result<_, i32>>()?,
            filters: Shared::default(),
            taken: 0,
        })
    }

    /// The VI that a frame is led to; `None` = it is the kernel's.
    fn owner(&self, frame: &[u8]) -> Option<usize> {
        let key = Key::of(frame)?;
        let is_led = self.filters.lock().expect("a panic ends the process");
        let hash = BuildHasherDefault::<DefaultHasher>::default().hash_one(key);
        is_led
            .matches(&key)
            .then_some(hash as usize % self.waiting.len())
    }

    fn receive(&mut self, at: usize, into: &mut [u8]) -> Option<usize> {
        let own = &mut self.waiting[at];
        if let Some(frame) = own.frames.pop_front() {
            if own.frames.is_empty() {
                let mut count = 0_u64;
                let place = (&raw mut count).cast();
                // SAFETY: eight bytes.
                let _ = unsafe { libc::read(own.bell.as_raw_fd(), place, 8) };
            }
            into[..frame.len()].copy_from_slice(&frame);
            return Some(frame.len());
        }
        // A wire may bring for ever what nobody wants.
        for _ in 0..64 {
            let length = self.wire.receive(into)?;
            let Some(owner) = self.owner(&into[..length]) else {
                continue;
            };
            if owner == at {
                return Some(length);
            }
            let other = &mut self.waiting[owner];
            if other.frames.len() < MOST {
                other.frames.push_back(into[..length].to_vec());
            }
            let one = 1_u64;
            // SAFETY: eight bytes.
            let _ = unsafe { libc::write(other.bell.as_raw_fd(), (&raw const one).cast(), 8) };
        }
        None
    }
}

/// A VI's end of the wire of its set.
struct Member {
    set: Shared<Set>,
    at: usize,
}

impl Member {
    fn set(&self) -> MutexGuard<'_, Set> {
        self.set.lock().expect("a panic ends the process")
    }
}

impl Wire for Member {
    fn send(&mut self, frame: &[u8]) {
        self.set().wire.send(frame);
    }

    fn receive(&mut self, into: &mut [u8]) -> Option<usize> {
        self.set().receive(self.at, into)
    }

    fn fds(&self) -> Vec<RawFd> {
        let set = self.set();
        let mut fds = set.wire.fds();
        fds.push(set.waiting[self.at].bell.as_raw_fd());
        fds
    }

    fn has_frames(&self) -> bool {
        let set = self.set();
        set.wire.has_frames() || !set.waiting[self.at].frames.is_empty()
    }
}

/// What a VI has: its end of the wire, filters of its set if it is of one, the interface.
pub(crate) type Place = (Box<dyn Wire>, Option<Shared<Filters>>, String);

/// The place of the next VI.
pub(crate) fn join(set: *mut c_void) -> Result<Place, i32> {
    let found = found(set)?;
    let mut set = found.lock().expect("a panic ends the process");
    let at = set.taken;
    if at >= set.waiting.len() {
        return Err(libc::ENOSPC);
    }
    set.taken += 1;
    let member = Member {
        set: Arc::clone(&found),
        at,
    };
    let filters = Some(Arc::clone(&set.filters));
    Ok((Box::new(member), filters, set.name.clone()))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ef_vi_set_alloc_from_pd(
    this: *mut c_void,
    _handle: c_int,
    pd: *mut c_void,
    _pd_handle: c_int,
    count: c_int,
) -> c_int {
    answer(config::check("set").and_then(|()| {
        let count = usize::try_from(count).map_err(|_| libc::EINVAL)?;
        let set = Set::new(domain_name(pd), count)?;
        let mut sets = sets();
        let number = (1..).find(|number| !sets.contains_key(number));
        let number = number.ok_or(libc::ENOSPC)?;
        sets.insert(number, Arc::new(Mutex::new(set)));
        born();
        // SAFETY: an ef_vi_set has 16 bytes.
        unsafe {
            this.cast::<u32>().write(number);
            this.cast::<*mut c_void>().add(1).write(pd);
        }
        Ok(())
    }))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ef_vi_set_free(this: *mut c_void, _handle: c_int) -> c_int {
    let Some(set) = sets().remove(&number(this)) else {
        return -libc::EINVAL;
    };
    let alone = Arc::into_inner(set).expect("fake libciul: a set is freed before its VIs");
    let set = alone.into_inner().expect("a panic ends the process");
    let filters = set.filters.lock().expect("a panic ends the process");
    (0..=filters.count()).for_each(|_| died());
    answer(config::check("free"))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ef_vi_set_filter_add(
    this: *mut c_void,
    _handle: c_int,
    spec: *const ef_filter_spec,
    cookie: *mut [c_int; 2],
) -> c_int {
    answer(config::check("filter").and_then(|()| {
        // SAFETY: the caller's specification.
        let key = unsafe { (*spec).key() }.ok_or(libc::EINVAL)?;
        let set = found(this)?;
        let mut set = set.lock().expect("a panic ends the process");
        let filters = Arc::clone(&set.filters);
        let mut filters = filters.lock().expect("a panic ends the process");
        let id = filters.add(key)?;
        set.wire.steal(&key);
        // SAFETY: a cookie has eight bytes.
        unsafe { cookie.write([id, 1]) };
        born();
        Ok(())
    }))
}

#[unsafe(no_mangle)]
pub unsafe extern "C" fn ef_vi_set_filter_del(
    this: *mut c_void,
    _handle: c_int,
    cookie: *const [c_int; 2],
) -> c_int {
    // SAFETY: a cookie.
    let [id, _] = unsafe { *cookie };
    answer(config::check("unfilter").and_then(|()| {
        let set = found(this)?;
        let mut set = set.lock().expect("a panic ends the process");
        let filters = Arc::clone(&set.filters);
        let key = filters
            .lock()
            .expect("a panic ends the process")
            .remove(id)?;
        set.wire.give_back(&key);
        died();
        Ok(())
    }))
}
