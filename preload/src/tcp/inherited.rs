//! Options that an accepted socket has from its listener and that only the kernel keeps: they are
//! set on its shadow again (net/core/sock.c:sk_clone copies them all).

#![expect(unsafe_code, reason = "UNSAFETY: setsockopt by libc's original")]

use std::ffi::c_int;
use std::sync::atomic::{AtomicBool, Ordering};

use bypass_stack::EndpointId;
use dashmap::DashMap;
use libc::{IPPROTO_IP, IPPROTO_TCP, SOCK_CLOEXEC, SOCK_STREAM, SOL_SOCKET, socklen_t};
use once_cell::sync::Lazy;

use crate::{process, shadow, sharing, symbols};

/// `TCP_THIN_LINEAR_TIMEOUTS` of linux/tcp.h.
const THIN_LINEAR_TIMEOUTS: c_int = 16;

/// The options, all of them one number.
const OPTIONS: [(c_int, c_int); 10] = [
    (SOL_SOCKET, libc::SO_DEBUG),
    (SOL_SOCKET, libc::SO_BROADCAST),
    (SOL_SOCKET, libc::SO_DONTROUTE),
    (IPPROTO_TCP, THIN_LINEAR_TIMEOUTS),
    (IPPROTO_IP, libc::IP_RECVERR),
    (IPPROTO_IP, libc::IP_MTU_DISCOVER),
    (IPPROTO_IP, libc::IP_FREEBIND),
    (IPPROTO_IP, libc::IP_BIND_ADDRESS_NO_PORT),
    (IPPROTO_IP, libc::IP_PKTINFO),
    (IPPROTO_IP, libc::IP_RECVTOS),
];

/// An option and its value.
type Setting = (c_int, c_int, c_int);

/// What listeners of this process have that a fresh socket has not.
static LISTENERS: Lazy<DashMap<EndpointId, Vec<Setting>>> =
    Lazy::new(|| DashMap::with_shard_amount(sharing::SHARDS));
/// Whether any has something.
static ANY: AtomicBool = AtomicBool::new(false);

/// What a fresh socket answers.
static FRESH: Lazy<[Option<c_int>; OPTIONS.len()]> = Lazy::new(|| {
    // SAFETY: plain integers.
    let fd = unsafe { symbols::socket::original()(libc::AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0) };
    let values = OPTIONS.map(|(level, name)| shadow::option(fd, level, name));
    // SAFETY: our own descriptor.
    unsafe { symbols::close::original()(fd) };
    values
});

/// Whether accepted sockets have this option from their listener's shadow.
pub fn knows(level: c_int, name: c_int) -> bool {
    OPTIONS.contains(&(level, name))
}

/// Notes what the listener has now.
pub fn note(fd: c_int, listener: EndpointId) {
    let settings: Vec<Setting> = OPTIONS
        .iter()
        .zip(FRESH.iter())
        .filter_map(|(&(level, name), &fresh)| {
            let value = shadow::option::<c_int>(fd, level, name)?;
            (Some(value) != fresh).then_some((level, name, value))
        })
        .collect();
    let _guard = process::no_fork();
    if settings.is_empty() {
        if ANY.load(Ordering::Acquire) {
            LISTENERS.remove(&listener);
        }
    } else {
        LISTENERS.insert(listener, settings);
        ANY.store(true, Ordering::Release);
    }
}

/// The listener is gone.
pub fn forget(listener: EndpointId) {
    if ANY.load(Ordering::Acquire) {
        let _guard = process::no_fork();
        LISTENERS.remove(&listener);
    }
}

/// Gives an accepted socket what its listener has.
pub fn give(listener: EndpointId, fd: c_int) {
    if !ANY.load(Ordering::Acquire) {
        return;
    }
    let _guard = process::no_fork();
    let Some(settings) = LISTENERS.get(&listener) else {
        return;
    };
    for (level, name, value) in settings.iter() {
        let len = size_of::<c_int>() as socklen_t;
        // SAFETY: the value is readable for its size.
        unsafe {
            symbols::setsockopt::original()(
                fd,
                *level,
                *name,
                std::ptr::from_ref(value).cast(),
                len,
            );
        }
    }
}
