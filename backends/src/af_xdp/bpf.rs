//! The bpf() system call: maps, programs, links. linux/bpf.h gives the layouts.

#![expect(
    unsafe_code,
    reason = "UNSAFETY: the bpf() system call and the descriptors it makes"
)]

use std::arch::asm;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use rustix::io::Errno;
use zerocopy::{FromBytes, Immutable, IntoBytes};

/// `SYS_bpf`.
#[cfg(target_arch = "x86_64")]
const SYS_BPF: usize = 321;
/// `SYS_bpf`.
#[cfg(target_arch = "aarch64")]
const SYS_BPF: usize = 280;

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
/// `BPF_XDP` of enum bpf_attach_type.
const ATTACH_XDP: u32 = 37;

/// # Safety
/// The attribute holds valid pointers for what the command reads and writes.
unsafe fn call<T>(command: usize, attribute: &mut T) -> Result<usize, Errno> {
    let result: isize;
    let pointer = (&raw mut *attribute) as usize;
    #[cfg(target_arch = "x86_64")]
    // SAFETY: the caller's promise; the kernel changes rax, rcx, r11 only.
    unsafe {
        asm!(
            "syscall",
            inlateout("rax") SYS_BPF as isize => result,
            in("rdi") command, in("rsi") pointer, in("rdx") size_of::<T>(),
            lateout("rcx") _, lateout("r11") _, options(nostack)
        );
    }
    #[cfg(target_arch = "aarch64")]
    // SAFETY: the caller's promise; the kernel changes x0 only.
    unsafe {
        asm!(
            "svc 0",
            in("x8") SYS_BPF, inlateout("x0") command as isize => result,
            in("x1") pointer, in("x2") size_of::<T>(), options(nostack)
        );
    }
    if result < 0 {
        Err(Errno::from_raw_os_error(-result as i32))
    } else {
        Ok(result as usize)
    }
}

fn owned(result: usize) -> OwnedFd {
    // SAFETY: the kernel has just made this descriptor for us.
    unsafe { OwnedFd::from_raw_fd(result as i32) }
}

fn name16(name: &str) -> [u8; 16] {
    let mut bytes = [0; 16];
    for (to, from) in bytes.iter_mut().take(15).zip(name.bytes()) {
        *to = from;
    }
    bytes
}

/// What a map is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct MapShape {
    pub(super) kind: u32,
    pub(super) key_size: u32,
    pub(super) value_size: u32,
    pub(super) entries: u32,
}

pub(super) fn create_map(name: &str, shape: MapShape) -> Result<OwnedFd, Errno> {
    #[repr(C)]
    struct Attribute {
        kind: u32,
        key_size: u32,
        value_size: u32,
        entries: u32,
        flags: u32,
        inner: u32,
        numa: u32,
        name: [u8; 16],
    }
    let MapShape {
        kind,
        key_size,
        value_size,
        entries,
    } = shape;
    let mut attribute = Attribute {
        kind,
        key_size,
        value_size,
        entries,
        flags: 0,
        inner: 0,
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

/// Writes an element.
pub(super) fn update<K: IntoBytes + Immutable, V: IntoBytes + Immutable>(
    map: BorrowedFd<'_>,
    key: &K,
    value: &V,
) -> Result<(), Errno> {
    let mut attribute = element(
        map,
        key.as_bytes().as_ptr() as u64,
        value.as_bytes().as_ptr() as u64,
    );
    // SAFETY: key and value have the sizes that the map was made with (types of `program`).
    unsafe { call(MAP_UPDATE, &mut attribute) }.map(drop)
}

/// Reads an element.
pub(super) fn find<K: IntoBytes + Immutable, V: FromBytes + IntoBytes>(
    map: BorrowedFd<'_>,
    key: &K,
) -> Result<V, Errno> {
    let mut value = V::new_zeroed();
    let mut attribute = element(
        map,
        key.as_bytes().as_ptr() as u64,
        value.as_mut_bytes().as_mut_ptr() as u64,
    );
    // SAFETY: as in `update`; the kernel writes the value.
    unsafe { call(MAP_LOOKUP, &mut attribute) }.map(|_| value)
}

/// Removes an element.
pub(super) fn remove<K: IntoBytes + Immutable>(map: BorrowedFd<'_>, key: &K) -> Result<(), Errno> {
    let mut attribute = element(map, key.as_bytes().as_ptr() as u64, 0);
    // SAFETY: as in `update`.
    unsafe { call(MAP_DELETE, &mut attribute) }.map(drop)
}

/// Every key of a map. Keys that come or go meanwhile may be missed.
pub(super) fn keys<K: FromBytes + IntoBytes + Immutable + Copy>(map: BorrowedFd<'_>) -> Vec<K> {
    let mut keys: Vec<K> = Vec::new();
    loop {
        let mut next = K::new_zeroed();
        let after = keys.last().map_or(0, |key| key.as_bytes().as_ptr() as u64);
        let mut attribute = element(map, after, next.as_mut_bytes().as_mut_ptr() as u64);
        // SAFETY: as in `update`; the kernel writes the next key.
        if unsafe { call(MAP_NEXT_KEY, &mut attribute) }.is_err() {
            return keys;
        }
        keys.push(next);
    }
}

/// Sums a per-CPU counter.
pub(super) fn sum(map: BorrowedFd<'_>, index: u32, cpus: usize) -> u64 {
    let mut values = vec![0_u64; cpus];
    let mut attribute = element(map, (&raw const index) as u64, values.as_mut_ptr() as u64);
    // SAFETY: the kernel writes one value for each possible CPU; `cpus` counts them.
    match unsafe { call(MAP_LOOKUP, &mut attribute) } {
        Ok(_) => values.iter().sum(),
        Err(_) => 0,
    }
}

/// Loads an XDP program.
///
/// # Errors
/// The kernel's errno and the verifier's log.
pub(super) fn load_xdp(name: &str, instructions: &[u64]) -> Result<OwnedFd, (Errno, String)> {
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
    let mut log = vec![0_u8; 64 * 1024];
    let license = c"Dual MIT/GPL";
    let mut attribute = Attribute {
        kind: PROG_TYPE_XDP,
        count: u32::try_from(instructions.len()).unwrap_or(0),
        instructions: instructions.as_ptr() as u64,
        license: license.as_ptr() as u64,
        log_level: 1,
        log_size: log.len() as u32,
        log: log.as_mut_ptr() as u64,
        kernel_version: 0,
        flags: 0,
        name: name16(name),
        ifindex: 0,
        attach: ATTACH_XDP,
    };
    // SAFETY: all pointers are to live buffers of the stated sizes.
    unsafe { call(PROG_LOAD, &mut attribute) }
        .map(owned)
        .map_err(|errno| {
            let end = log.iter().position(|&byte| byte == 0).unwrap_or(0);
            (errno, String::from_utf8_lossy(&log[..end]).into_owned())
        })
}

/// Attaches a program to an interface for as long as the link lives.
pub(super) fn attach_xdp(
    program: BorrowedFd<'_>,
    ifindex: u32,
    flags: u32,
) -> Result<OwnedFd, Errno> {
    let mut attribute = [
        program.as_raw_fd().cast_unsigned(),
        ifindex,
        ATTACH_XDP,
        flags,
        0,
        0,
        0,
        0,
    ];
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
    // SAFETY: the kernel writes at most `len` bytes.
    unsafe { call(INFO_BY_FD, &mut attribute) }.map(drop)
}

fn fd_by_id(command: usize, id: u32) -> Result<OwnedFd, Errno> {
    let mut attribute = [id, 0, 0];
    // SAFETY: the attribute holds no pointers.
    unsafe { call(command, &mut attribute) }.map(owned)
}

/// What a link attaches: program id and interface (0 = the interface is gone).
pub(super) fn link_target(link: BorrowedFd<'_>) -> Result<(u32, u32), Errno> {
    let mut words = [0_u32; 8]; // bpf_link_info: type, id, prog_id, (union at 16:) ifindex
    info(link, &mut words)?;
    Ok((words[2], words[4]))
}

/// The maps of a program: name and descriptor.
pub(super) fn maps_of(program_id: u32) -> Result<Vec<(String, OwnedFd)>, Errno> {
    let program = fd_by_id(PROG_FD_BY_ID, program_id)?;
    let program = std::os::fd::AsFd::as_fd(&program);
    let mut ids = [0_u32; 16];
    // bpf_prog_info: nr_map_ids at byte 52, map_ids (pointer) at 56.
    let mut words = [0_u64; 16];
    let bytes = words.as_mut_bytes();
    bytes[52..56].copy_from_slice(&16_u32.to_ne_bytes());
    bytes[56..64].copy_from_slice(&(ids.as_mut_ptr() as u64).to_ne_bytes());
    info(program, &mut words)?;
    let count = u32::from_ne_bytes(words.as_bytes()[52..56].try_into().unwrap_or_default());
    let mut maps = Vec::new();
    for &id in ids.iter().take(count as usize) {
        let map = fd_by_id(MAP_FD_BY_ID, id)?;
        let mut words = [0_u64; 11]; // bpf_map_info: name at byte 24
        info(std::os::fd::AsFd::as_fd(&map), &mut words)?;
        let name: Vec<u8> = words.as_bytes()[24..40]
            .iter()
            .copied()
            .take_while(|&byte| byte != 0)
            .collect();
        maps.push((String::from_utf8_lossy(&name).into_owned(), map));
    }
    Ok(maps)
}
