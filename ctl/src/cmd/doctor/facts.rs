//! Facts that only bpf() and ethtool's ioctl give.

#![expect(
    unsafe_code,
    reason = "UNSAFETY: bpf() and ioctl() take pointers to structures"
)]

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};

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

/// Offloads that ethtool's old single-value commands read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(super) enum Offload {
    /// `ETHTOOL_GRXCSUM`.
    RxChecksum = 0x14,
    /// `ETHTOOL_GTXCSUM`.
    TxChecksum = 0x16,
    /// `ETHTOOL_GTSO`.
    SegmentationTcp = 0x1e,
    /// `ETHTOOL_GGRO`.
    Gro = 0x2b,
    /// `ETHTOOL_GFLAGS`: bit 15 is LRO.
    Flags = 0x25,
}

/// Value of an offload of an interface; `None` when the driver does not say.
pub(super) fn offload(interface: &str, offload: Offload) -> Option<u32> {
    // struct ethtool_value: command, data.
    let mut value = [offload as u32, 0];
    ethtool(interface, &mut value)?;
    Some(value[1])
}

/// Version of a card's firmware, as its driver tells it.
pub(super) fn firmware(interface: &str) -> Option<String> {
    /// `ETHTOOL_GDRVINFO`, and the words of a struct ethtool_drvinfo.
    const COMMAND: u32 = 3;
    const WORDS: usize = 49;
    /// Offset and size of its version of the firmware.
    const VERSION: std::ops::Range<usize> = 68..100;
    let mut info = [0; WORDS];
    info[0] = COMMAND;
    ethtool(interface, &mut info)?;
    let bytes: Vec<u8> = info.iter().flat_map(|word| word.to_ne_bytes()).collect();
    let version = bytes.get(VERSION)?.split(|byte| *byte == 0).next()?;
    let version = String::from_utf8_lossy(version).trim().to_owned();
    (!version.is_empty()).then_some(version)
}

/// Gives an interface's driver one of ethtool's commands, whose structure is `words`.
fn ethtool<const WORDS: usize>(interface: &str, words: &mut [u32; WORDS]) -> Option<()> {
    const SIOCETHTOOL: libc::c_ulong = 0x8946;
    let socket = socket_with(
        AddressFamily::INET,
        SocketType::DGRAM,
        SocketFlags::CLOEXEC,
        None,
    );
    let socket = socket.ok()?;
    // struct ifreq: 16 bytes of name, then a union of 24 bytes that begins with the pointer.
    let mut request = [0_u64; 5];
    let mut name = [0_u8; 16];
    for (to, from) in name.iter_mut().take(15).zip(interface.bytes()) {
        *to = from;
    }
    for (word, bytes) in request.iter_mut().zip(name.chunks_exact(8)) {
        *word = u64::from_ne_bytes(bytes.try_into().ok()?);
    }
    request[2] = words.as_mut_ptr().expose_provenance() as u64;
    // SAFETY: the request has the size of a struct ifreq and points at the live structure of the
    // command in its first word, as large as callers say, which is all that it writes.
    let answer = unsafe { libc::ioctl(socket.as_raw_fd(), SIOCETHTOOL as _, request.as_mut_ptr()) };
    // The kernel wrote it behind the compiler's back.
    // SAFETY: an initialised array.
    *words = unsafe { std::ptr::read_volatile(&raw const *words) };
    (answer == 0).then_some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn offloads_of_a_missing_interface_are_unknown() {
        assert_eq!(offload("no-such-if", Offload::Gro), None);
        assert_eq!(firmware("no-such-if"), None);
        // Loopback has a driver, and no firmware.
        assert_eq!(firmware("lo"), None);
        assert_eq!(program_name(u32::MAX), None);
    }
}
