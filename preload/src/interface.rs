//! Names and numbers of interfaces, for rules that ask for one. Only called where a rule does.

#![expect(unsafe_code, reason = "UNSAFETY: walks the list that getifaddrs makes")]

use std::ffi::{CStr, CString};

use bypass_stack::IpAddress;

use crate::address::{self, Given};

/// Name of the interface that a socket is bound to, by device (0 = none) or by its address; `None`
/// when it is bound to any address, or to one that no interface has.
pub fn of_socket(device: u32, local: IpAddress) -> Option<String> {
    if device != 0 {
        return name(device);
    }
    if local.is_unspecified() {
        return None;
    }
    let mut list = std::ptr::null_mut();
    // SAFETY: `list` is writable; libc's list is freed below. None of its calls comes through our
    // hooks.
    if unsafe { libc::getifaddrs(&raw mut list) } != 0 {
        return None;
    }
    let mut found = None;
    let mut next = list;
    // SAFETY: null or an entry of the list.
    while let Some(entry) = unsafe { next.as_ref() } {
        if has(entry, local) {
            // SAFETY: libc's names end with NUL.
            let name = unsafe { CStr::from_ptr(entry.ifa_name) };
            found = name.to_str().ok().map(str::to_owned);
            break;
        }
        next = entry.ifa_next;
    }
    // SAFETY: made by getifaddrs, freed once.
    unsafe { libc::freeifaddrs(list) };
    found
}

/// Whether the entry is of this address.
fn has(entry: &libc::ifaddrs, ip: IpAddress) -> bool {
    // SAFETY: null or an address of the list.
    let Some(socket) = (unsafe { entry.ifa_addr.as_ref() }) else {
        return false;
    };
    let len = match i32::from(socket.sa_family) {
        libc::AF_INET => size_of::<libc::sockaddr_in>(),
        libc::AF_INET6 => size_of::<libc::sockaddr_in6>(),
        _ => return false,
    };
    // SAFETY: an address of its family's size.
    matches!(unsafe { address::read(socket, len as u32) }, Given::Inet(known) if known.ip == ip)
}

/// Name of an interface.
fn name(index: u32) -> Option<String> {
    let mut buffer = [0; libc::IF_NAMESIZE];
    // SAFETY: the buffer has the size that the call asks for.
    let named = unsafe { libc::if_indextoname(index, buffer.as_mut_ptr()) };
    if named.is_null() {
        return None;
    }
    // SAFETY: the call has written a string that ends with NUL.
    let name = unsafe { CStr::from_ptr(named) };
    name.to_str().ok().map(str::to_owned)
}

/// Number of the interface with this name, if there is one.
pub fn index(name: &str) -> Option<u32> {
    let name = CString::new(name).ok()?;
    // SAFETY: a string that ends with NUL.
    let index = unsafe { libc::if_nametoindex(name.as_ptr()) };
    (index != 0).then_some(index)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_is_found_by_name_device_and_address() {
        let lo = index("lo").expect("lo");
        let local = IpAddress::from_v4([127, 0, 0, 1]);
        assert_eq!(of_socket(0, local).as_deref(), Some("lo"));
        assert_eq!(of_socket(lo, IpAddress::UNSPECIFIED).as_deref(), Some("lo"));
        assert_eq!(of_socket(0, IpAddress::UNSPECIFIED), None);
        assert_eq!(of_socket(0, IpAddress::from_v4([192, 0, 2, 9])), None);
        assert_eq!(index("no-such-one"), None);
    }
}
