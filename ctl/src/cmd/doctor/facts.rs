//! Facts that only bpf() gives.

#![expect(unsafe_code, reason = "UNSAFETY: bpf() takes pointers to structures")]

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

/// Commands of bpf(2).
const MAP_CREATE: libc::c_long = 0;
const PROG_GET_FD_BY_ID: libc::c_long = 13;
const OBJ_GET_INFO_BY_FD: libc::c_long = 15;
/// `BPF_MAP_TYPE_ARRAY`.
const ARRAY: u32 = 2;
/// Offset and size of the name in `struct bpf_prog_info`.
const NAME: std::ops::Range<usize> = 64..80;

/// `union bpf_attr`, as far as these commands use it.
#[repr(C, align(8))]
struct Attribute([u32; 32]);

fn call(command: libc::c_long, attribute: &mut Attribute) -> io::Result<RawFd> {
    let bytes = size_of::<Attribute>() as libc::c_long;
    let attribute = &raw mut *attribute;
    // SAFETY: bpf() reads and writes at most `bytes` bytes of the attribute, which are ours; the
    // one pointer that a caller puts in there is of a live buffer of the length beside it.
    let answer = unsafe { libc::syscall(libc::SYS_bpf, command, attribute, bytes) };
    if answer < 0 {
        return Err(io::Error::last_os_error());
    }
    RawFd::try_from(answer).map_err(|_| io::Error::from_raw_os_error(libc::EBADF))
}

fn owned(fd: RawFd) -> OwnedFd {
    // SAFETY: only called with the descriptor that the kernel has just made for us.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

/// Whether a map can be made; it is gone at once.
pub(super) fn bpf() -> io::Result<()> {
    let mut attribute = Attribute([0; 32]);
    // Type, size of key, size of value, entries.
    attribute.0[..4].copy_from_slice(&[ARRAY, 4, 4, 1]);
    call(MAP_CREATE, &mut attribute).map(owned).map(drop)
}

/// Name of a loaded BPF program.
pub(super) fn program_name(id: u32) -> Option<String> {
    let mut attribute = Attribute([0; 32]);
    attribute.0[0] = id;
    let program = owned(call(PROG_GET_FD_BY_ID, &mut attribute).ok()?);
    let mut info = [0_u64; 32];
    let mut attribute = Attribute([0; 32]);
    let address = info.as_mut_ptr() as u64;
    attribute.0[0] = u32::try_from(program.as_raw_fd()).ok()?;
    attribute.0[1] = size_of_val(&info) as u32;
    attribute.0[2] = address as u32;
    attribute.0[3] = (address >> 32) as u32;
    if cfg!(target_endian = "big") {
        attribute.0.swap(2, 3);
    }
    call(OBJ_GET_INFO_BY_FD, &mut attribute).ok()?;
    let bytes: Vec<u8> = info.iter().flat_map(|word| word.to_ne_bytes()).collect();
    let name = bytes.get(NAME)?.split(|byte| *byte == 0).next()?;
    Some(String::from_utf8_lossy(name).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_that_is_not_there_has_no_name() {
        assert_eq!(program_name(u32::MAX), None);
    }
}
