//! C socket addresses to and from ours.

#![expect(
    unsafe_code,
    reason = "UNSAFETY: reads and writes sockaddr structures of the caller"
)]

use std::mem::{offset_of, size_of, zeroed};

use bypass_stack::{Family, IpAddress, SocketAddress};
use libc::{
    AF_INET, AF_INET6, iovec, sockaddr, sockaddr_in, sockaddr_in6, sockaddr_storage, socklen_t,
};

/// An address that a caller passed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Given {
    /// None at all (null pointer).
    Nothing,
    /// An IPv4 or IPv6 address without scope.
    Inet(SocketAddress),
    /// Anything else: the kernel knows what to say about it.
    Foreign,
}

/// Whether no program can have this pointer: it is in the first page, or in the kernel's half of
/// the addresses, which a signed number has below zero. The kernel's EFAULT is the answer.
/// (Other wild pointers fault in the program: docs/adr/0015.)
#[inline]
pub fn is_nowhere<T>(pointer: *const T) -> bool {
    (pointer as isize) < 4096
}

/// Whether a pointer is in the kernel's half: it refuses such a one before it does anything, while
/// one to the first page it refuses only when it comes to use it.
#[inline]
pub fn is_kernels<T>(pointer: *const T) -> bool {
    (pointer as isize) < 0
}

/// Whether the kernel refuses to read or write this part of a message.
#[inline]
pub fn is_unreachable(part: &iovec) -> bool {
    is_nowhere(part.iov_base) && (part.iov_len != 0 || is_kernels(part.iov_base))
}

/// Whether an argument that may be left out is there, but [nowhere](is_nowhere).
#[inline]
pub fn is_wild<T>(pointer: *const T) -> bool {
    !pointer.is_null() && is_nowhere(pointer)
}

/// Reads a caller's address.
///
/// # Safety
/// `address` is null or readable for `len` bytes.
pub unsafe fn read(address: *const sockaddr, len: socklen_t) -> Given {
    if address.is_null() {
        return Given::Nothing;
    }
    let len = len as usize;
    if len < size_of::<libc::sa_family_t>()
        || len > size_of::<sockaddr_storage>()
        || is_nowhere(address)
    {
        return Given::Foreign;
    }
    // SAFETY: at least the family is readable; C addresses may be unaligned.
    let family = i32::from(unsafe { address.cast::<libc::sa_family_t>().read_unaligned() });
    if family == AF_INET && len >= size_of::<sockaddr_in>() {
        // SAFETY: `len` covers the structure.
        let v4 = unsafe { address.cast::<sockaddr_in>().read_unaligned() };
        let ip = IpAddress::from_v4(v4.sin_addr.s_addr.to_ne_bytes());
        return Given::Inet(SocketAddress::new(ip, u16::from_be(v4.sin_port)));
    }
    // The kernel takes 24 bytes too (SIN6_LEN_RFC2133): without the scope.
    if family == AF_INET6 && len >= offset_of!(sockaddr_in6, sin6_scope_id) {
        // SAFETY: plain integers; all zero is a value.
        let mut v6: sockaddr_in6 = unsafe { zeroed() };
        let bytes = len.min(size_of::<sockaddr_in6>());
        // SAFETY: `bytes` is covered by both the caller's `len` and the structure.
        unsafe {
            std::ptr::copy_nonoverlapping(address.cast::<u8>(), (&raw mut v6).cast::<u8>(), bytes);
        }
        if v6.sin6_scope_id != 0 {
            return Given::Foreign;
        }
        let ip = IpAddress(v6.sin6_addr.s6_addr);
        return Given::Inet(SocketAddress::new(normal(ip), u16::from_be(v6.sin6_port)));
    }
    Given::Foreign
}

/// `::ffff:0.0.0.0` means "any" like `::` and `0.0.0.0`.
fn normal(ip: IpAddress) -> IpAddress {
    if ip.to_v4() == Some([0; 4]) {
        IpAddress::UNSPECIFIED
    } else {
        ip
    }
}

/// Writes an address where a caller wants it, cut to `*len`, and sets `*len` to the full length.
///
/// # Safety
/// `to` is writable for `*len` bytes; `len` is null or the caller's.
pub unsafe fn write(from: SocketAddress, family: Family, to: *mut sockaddr, len: *mut socklen_t) {
    if len.is_null() {
        return;
    }
    // SAFETY: not null, and the caller's to write.
    let room = unsafe { len.read_unaligned() } as usize;
    // SAFETY: plain integers; all zero is a value.
    let mut storage: sockaddr_storage = unsafe { zeroed() };
    let full = fill(from, family, &mut storage);
    let source = (&raw const storage).cast::<u8>();
    if room != 0 {
        // SAFETY: `room` bytes are writable, `full` bytes of `storage` are readable.
        unsafe { std::ptr::copy_nonoverlapping(source, to.cast::<u8>(), room.min(full)) };
    }
    // SAFETY: as above.
    unsafe { len.write_unaligned(full as socklen_t) };
}

/// Fills a sockaddr as a socket of this family shows the address; returns its length.
pub fn fill(from: SocketAddress, family: Family, storage: &mut sockaddr_storage) -> usize {
    if family == Family::V4 {
        let v4 = sockaddr_in {
            sin_family: AF_INET as libc::sa_family_t,
            sin_port: from.port.to_be(),
            sin_addr: libc::in_addr {
                s_addr: u32::from_ne_bytes(from.ip.to_v4().unwrap_or_default()),
            },
            sin_zero: [0; 8],
        };
        // SAFETY: a sockaddr_storage is large and aligned enough for every address.
        unsafe { (&raw mut *storage).cast::<sockaddr_in>().write(v4) };
        return size_of::<sockaddr_in>();
    }
    let v6 = sockaddr_in6 {
        sin6_family: AF_INET6 as libc::sa_family_t,
        sin6_port: from.port.to_be(),
        sin6_flowinfo: 0,
        sin6_addr: libc::in6_addr { s6_addr: from.ip.0 },
        sin6_scope_id: 0,
    };
    // SAFETY: as above.
    unsafe { (&raw mut *storage).cast::<sockaddr_in6>().write(v6) };
    size_of::<sockaddr_in6>()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_families_survive_the_round_trip() {
        for (family, ip) in [
            (Family::V4, IpAddress::from_v4([198, 18, 0, 1])),
            (Family::Dual, IpAddress::from_v4([198, 18, 0, 1])),
            (Family::V6, IpAddress([0xfd; 16])),
        ] {
            let from = SocketAddress::new(ip, 53);
            // SAFETY: plain integers.
            let mut storage: sockaddr_storage = unsafe { zeroed() };
            let len = fill(from, family, &mut storage);
            // SAFETY: `storage` is readable for its whole size.
            let given = unsafe { read((&raw const storage).cast(), len as socklen_t) };
            assert_eq!(given, Given::Inet(from));
        }
    }
}
