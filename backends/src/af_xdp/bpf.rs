//! The bpf() system call: maps, programs, links. linux/bpf.h gives the layouts.
//!
//! A [`Map`] knows the types of its keys and values: it exists only after the kernel has confirmed
//! the sizes, so that a map that somebody else made (a daemon of another version, see
//! `Nic::from_link`) is never read into a value that is too small for it.

#![expect(
    unsafe_code,
    reason = "UNSAFETY: the bpf() system call and the descriptors it makes"
)]

use std::collections::HashSet;
use std::hash::Hash;
use std::marker::PhantomData;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use rustix::io::Errno;
use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::syscall::{self, syscall};

const MAP_CREATE: usize = 0;
const MAP_LOOKUP: usize = 1;
const MAP_UPDATE: usize = 2;
const MAP_DELETE: usize = 3;
const MAP_NEXT_KEY: usize = 4;
const PROG_LOAD: usize = 5;
const PROG_FD_BY_ID: usize = 13;
const MAP_FD_BY_ID: usize = 14;
const INFO_BY_FD: usize = 15;
const LINK_CREATE: usize = 28;

const PROG_TYPE_XDP: u32 = 6;
/// `BPF_F_XDP_HAS_FRAGS`.
const XDP_HAS_FRAGS: u32 = 1 << 5;
/// `BPF_XDP` of enum bpf_attach_type.
const ATTACH_XDP: u32 = 37;
/// `BPF_LINK_TYPE_XDP` of enum bpf_link_type.
const LINK_TYPE_XDP: u32 = 6;
/// More maps than our program has.
const MOST_MAPS: usize = 16;
/// Room for the verifier's log; what does not fit is cut at its beginning.
const LOG_BYTES: usize = 256 * 1024;

/// # Safety
/// The attribute holds valid pointers for what the command reads and writes.
unsafe fn call<T>(command: usize, attribute: &mut T) -> Result<usize, Errno> {
    let pointer = (&raw mut *attribute) as usize;
    // SAFETY: the kernel reads and writes `size_of::<T>()` bytes of `attribute`, which is borrowed
    // for the call; the rest is the caller's promise.
    unsafe { syscall(syscall::BPF, [command, pointer, size_of::<T>(), 0, 0]) }
}

fn owned(result: usize) -> OwnedFd {
    // SAFETY: only used on the answer of a command that makes a descriptor: it is new, and ours.
    unsafe { OwnedFd::from_raw_fd(result as i32) }
}

fn name16(name: &str) -> [u8; 16] {
    let mut bytes = [0; 16];
    for (to, from) in bytes.iter_mut().take(15).zip(name.bytes()) {
        *to = from;
    }
    bytes
}

fn name_of(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|&byte| byte == 0);
    String::from_utf8_lossy(&bytes[..end.unwrap_or(bytes.len())]).into_owned()
}

/// What a map is. Sizes in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct MapShape {
    /// `BPF_MAP_TYPE_…`.
    pub(super) kind: u32,
    pub(super) key_size: u32,
    pub(super) value_size: u32,
    /// Most entries.
    pub(super) entries: u32,
    /// `BPF_F_…`.
    pub(super) flags: u32,
}

/// Makes a map; a map of maps takes such maps as `inner` is one.
///
/// # Errors
/// `EPERM` without CAP_BPF, `ENOMEM`.
pub(super) fn create_map(
    name: &str,
    shape: MapShape,
    inner: Option<BorrowedFd<'_>>,
) -> Result<OwnedFd, Errno> {
    #[repr(C)]
    struct Attribute {
        shape: [u32; 5],
        inner: u32,
        numa: u32,
        name: [u8; 16],
    }
    let mut attribute = Attribute {
        shape: [
            shape.kind,
            shape.key_size,
            shape.value_size,
            shape.entries,
            shape.flags,
        ],
        inner: inner.map_or(0, |map| map.as_raw_fd().cast_unsigned()),
        numa: 0,
        name: name16(name),
    };
    // SAFETY: the attribute holds no pointers.
    unsafe { call(MAP_CREATE, &mut attribute) }.map(owned)
}

#[repr(C)]
struct Element {
    map: u32,
    pad: u32,
    key: u64,
    value: u64,
    flags: u64,
}

fn element(map: BorrowedFd<'_>, key: u64, value: u64) -> Element {
    Element {
        map: map.as_raw_fd().cast_unsigned(),
        pad: 0,
        key,
        value,
        flags: 0,
    }
}

fn address<T: IntoBytes + Immutable>(of: &T) -> u64 {
    of.as_bytes().as_ptr() as u64
}

/// A map whose keys are `K` and whose values are `V`. Not for per-CPU maps.
#[derive(Debug)]
pub(super) struct Map<K, V> {
    fd: OwnedFd,
    entries: u32,
    of: PhantomData<fn(K) -> V>,
}

impl<K, V> Map<K, V>
where
    K: FromBytes + IntoBytes + Immutable + Copy + Eq + Hash,
    V: FromBytes + IntoBytes + Immutable,
{
    /// Takes a map for what it must be.
    ///
    /// # Errors
    /// `EINVAL` when it is another kind of map, or its sizes are not those of `K` and `V`.
    pub(super) fn new(fd: OwnedFd, kind: u32) -> Result<Self, Errno> {
        let (_, shape) = map_info(fd.as_fd())?;
        let sizes = (size_of::<K>() as u32, size_of::<V>() as u32);
        if (shape.kind, shape.key_size, shape.value_size) != (kind, sizes.0, sizes.1) {
            return Err(Errno::INVAL);
        }
        Ok(Self {
            fd,
            entries: shape.entries,
            of: PhantomData,
        })
    }

    /// Writes an element.
    ///
    /// # Errors
    /// `E2BIG` when a hash map is full or an index outside the array.
    pub(super) fn update(&self, key: &K, value: &V) -> Result<(), Errno> {
        let mut attribute = element(self.fd.as_fd(), address(key), address(value));
        // SAFETY: the kernel reads a key and a value, whose sizes `new` has compared.
        unsafe { call(MAP_UPDATE, &mut attribute) }.map(drop)
    }

    /// Reads an element.
    ///
    /// # Errors
    /// `ENOENT` when there is none.
    pub(super) fn find(&self, key: &K) -> Result<V, Errno> {
        let mut value = V::new_zeroed();
        let place = value.as_mut_bytes().as_mut_ptr() as u64;
        let mut attribute = element(self.fd.as_fd(), address(key), place);
        // SAFETY: the kernel reads a key and writes a value, whose sizes `new` has compared.
        unsafe { call(MAP_LOOKUP, &mut attribute) }.map(|_| value)
    }

    /// Removes an element.
    ///
    /// # Errors
    /// `ENOENT` when there is none.
    pub(super) fn remove(&self, key: &K) -> Result<(), Errno> {
        let mut attribute = element(self.fd.as_fd(), address(key), 0);
        // SAFETY: the kernel reads a key, whose size `new` has compared.
        unsafe { call(MAP_DELETE, &mut attribute) }.map(drop)
    }

    /// Every key, each once. Keys that come or go meanwhile may be missed.
    pub(super) fn keys(&self) -> Vec<K> {
        let mut keys: Vec<K> = Vec::new();
        let mut seen = HashSet::new();
        // The kernel begins anew when the last key is gone: a bound, so that this ends.
        for _ in 0..self.entries.saturating_mul(2) {
            let mut next = K::new_zeroed();
            let after = keys.last().map_or(0, address);
            let place = next.as_mut_bytes().as_mut_ptr() as u64;
            let mut attribute = element(self.fd.as_fd(), after, place);
            // SAFETY: the kernel reads a key (or none) and writes one, whose size `new` compared.
            if unsafe { call(MAP_NEXT_KEY, &mut attribute) }.is_err() || !seen.insert(next) {
                break;
            }
            keys.push(next);
        }
        keys
    }
}

/// A per-CPU array of 64-bit counters.
#[derive(Debug)]
pub(super) struct CounterMap {
    fd: OwnedFd,
}

impl CounterMap {
    /// `BPF_MAP_TYPE_PERCPU_ARRAY`.
    const KIND: u32 = 6;

    /// Takes a map for what it must be.
    ///
    /// # Errors
    /// `EINVAL` when it is another kind of map, or has another number of counters.
    pub(super) fn new(fd: OwnedFd, counters: usize) -> Result<Self, Errno> {
        let (_, shape) = map_info(fd.as_fd())?;
        let expected = MapShape {
            kind: Self::KIND,
            key_size: 4,
            value_size: 8,
            entries: counters as u32,
            flags: shape.flags,
        };
        if shape == expected {
            Ok(Self { fd })
        } else {
            Err(Errno::INVAL)
        }
    }

    /// A counter's value, summed over `cpus`, which must be the number of possible CPUs or more.
    pub(super) fn sum(&self, index: u32, cpus: usize) -> u64 {
        let mut values = vec![0_u64; cpus];
        let place = values.as_mut_ptr() as u64;
        let mut attribute = element(self.fd.as_fd(), address(&index), place);
        // SAFETY: the kernel writes eight bytes for each possible CPU; `cpus` counts them.
        match unsafe { call(MAP_LOOKUP, &mut attribute) } {
            Ok(_) => values.iter().sum(),
            Err(_) => 0,
        }
    }
}

/// Loads an XDP program, as one that can do with the beginning of a frame: without that drivers
/// refuse it where frames are larger than a page, and a veth refuses its peer such an MTU.
///
/// # Errors
/// The kernel's errno and the end of the verifier's log, which is empty when the verifier did not
/// come to it (`EPERM`).
pub(super) fn load_xdp(name: &str, instructions: &[u64]) -> Result<OwnedFd, (Errno, String)> {
    // Without a log first: one that is too small for it would make a good program fail.
    load(name, instructions, &mut []).or_else(|_| {
        let mut log = vec![0_u8; LOG_BYTES];
        load(name, instructions, &mut log).map_err(|errno| (errno, name_of(&log)))
    })
}

fn load(name: &str, instructions: &[u64], log: &mut [u8]) -> Result<OwnedFd, Errno> {
    #[repr(C)]
    struct Attribute {
        kind: u32,
        count: u32,
        instructions: u64,
        license: u64,
        log_level: u32,
        log_size: u32,
        log: u64,
        kernel_version: u32,
        flags: u32,
        name: [u8; 16],
        ifindex: u32,
        attach: u32,
    }
    let license = c"Dual MIT/GPL";
    let has_log = !log.is_empty();
    let mut attribute = Attribute {
        kind: PROG_TYPE_XDP,
        count: instructions.len() as u32,
        instructions: instructions.as_ptr() as u64,
        license: license.as_ptr() as u64,
        log_level: has_log.into(),
        log_size: log.len() as u32,
        log: if has_log { log.as_mut_ptr() as u64 } else { 0 },
        kernel_version: 0,
        flags: XDP_HAS_FRAGS,
        name: name16(name),
        ifindex: 0,
        attach: ATTACH_XDP,
    };
    // SAFETY: the kernel reads `count` instructions and a C string, and writes at most `log_size`
    // bytes of the log; all three live until the call returns.
    unsafe { call(PROG_LOAD, &mut attribute) }.map(owned)
}

/// Attaches a program to an interface for as long as the link lives. `flags` is `XDP_FLAGS_…`.
///
/// # Errors
/// `EBUSY` or `EEXIST` when another program is attached; what the driver answers.
pub(super) fn attach_xdp(
    program: BorrowedFd<'_>,
    ifindex: u32,
    flags: u32,
) -> Result<OwnedFd, Errno> {
    let program = program.as_raw_fd().cast_unsigned();
    let mut attribute = [program, ifindex, ATTACH_XDP, flags, 0, 0, 0, 0];
    // SAFETY: the attribute holds no pointers.
    unsafe { call(LINK_CREATE, &mut attribute) }.map(owned)
}

fn info<T: FromBytes + IntoBytes>(fd: BorrowedFd<'_>, value: &mut T) -> Result<(), Errno> {
    #[repr(C)]
    struct Attribute {
        fd: u32,
        len: u32,
        info: u64,
    }
    let mut attribute = Attribute {
        fd: fd.as_raw_fd().cast_unsigned(),
        len: size_of::<T>() as u32,
        info: value.as_mut_bytes().as_mut_ptr() as u64,
    };
    // SAFETY: the kernel writes at most `len` bytes to `info`, and where the structure itself asks
    // for arrays, to those (`maps_of`).
    unsafe { call(INFO_BY_FD, &mut attribute) }.map(drop)
}

fn fd_by_id(command: usize, id: u32) -> Result<OwnedFd, Errno> {
    let mut attribute = [id, 0, 0];
    // SAFETY: the attribute holds no pointers.
    unsafe { call(command, &mut attribute) }.map(owned)
}

/// What a link attaches: program id and interface (0 = the interface is gone).
///
/// # Errors
/// `EINVAL` when it is no descriptor of an XDP link.
pub(super) fn link_target(link: BorrowedFd<'_>) -> Result<(u32, u32), Errno> {
    // struct bpf_link_info: type, id, prog_id, padding, ifindex of the union's xdp.
    let mut words = [0_u32; 8];
    info(link, &mut words)?;
    let [kind, _, program, _, ifindex, ..] = words;
    if kind == LINK_TYPE_XDP {
        Ok((program, ifindex))
    } else {
        Err(Errno::INVAL)
    }
}

/// Name and shape of a map.
///
/// # Errors
/// `EINVAL` when it is no descriptor of one, `EPERM` where bpf() is for privileged users only.
pub(super) fn map_info(map: BorrowedFd<'_>) -> Result<(String, MapShape), Errno> {
    // struct bpf_map_info: type, id, key_size, value_size, max_entries, map_flags, name[16].
    let mut words = [0_u32; 10];
    info(map, &mut words)?;
    let [kind, _, key_size, value_size, entries, flags, ..] = words;
    let shape = MapShape {
        kind,
        key_size,
        value_size,
        entries,
        flags,
    };
    Ok((name_of(&words.as_bytes()[24..]), shape))
}

/// The maps of a program: name and descriptor.
///
/// # Errors
/// `EPERM` without CAP_SYS_ADMIN, `ENOENT` when the program is gone.
pub(super) fn maps_of(program_id: u32) -> Result<Vec<(String, OwnedFd)>, Errno> {
    let program = fd_by_id(PROG_FD_BY_ID, program_id)?;
    let mut ids = [0_u32; MOST_MAPS];
    // struct bpf_prog_info: nr_map_ids at byte 52, map_ids (an address) at byte 56.
    let mut words = [0_u64; 16];
    let bytes = words.as_mut_bytes();
    bytes[52..56].copy_from_slice(&(MOST_MAPS as u32).to_ne_bytes());
    bytes[56..64].copy_from_slice(&(ids.as_mut_ptr() as u64).to_ne_bytes());
    info(program.as_fd(), &mut words)?;
    let count = u32::from_ne_bytes(words.as_bytes()[52..56].try_into().unwrap_or_default());
    ids.iter()
        .take(count as usize)
        .map(|&id| {
            let map = fd_by_id(MAP_FD_BY_ID, id)?;
            let (name, _) = map_info(map.as_fd())?;
            Ok((name, map))
        })
        .collect()
}
