//! Which options a program has set on a socket that is not connected yet.
//!
//! A connect needs some thirty of them, and most programs set two. So the others are those of a
//! socket that was just made, read once a second; what is not known for sure is read from the
//! shadow. A socket here has one descriptor: a duplicate, or one that is passed on, is the kernel's
//! from then on, and a fork forgets what was known.

#![expect(unsafe_code, reason = "UNSAFETY: a socket of our own")]

use std::ffi::c_int;
use std::sync::atomic::{AtomicU32, Ordering};

use bypass_runtime::clock;
use bypass_runtime::tcp_options::{READ, usual_name};
use bypass_stack::{Family, TcpOptions};

use super::options::{of_shadow, read_one};
use crate::fdtable::{self, Entry, NUMBERS};
use crate::locks::Mutex;
use crate::{shadow, symbols};

/// All is known of this descriptor; the other bits say which of [`READ`] were set.
const KNOWN: u32 = 1 << 31;
/// For so long a new socket's options are believed, in nanoseconds: as [`super::defaults`].
const FRESH_NS: u64 = 1_000_000_000;

static SET: [AtomicU32; NUMBERS] = [const { AtomicU32::new(0) }; NUMBERS];
/// What a new socket has, by address family, and when that was read.
static NEW: Mutex<[Option<(TcpOptions, u64)>; 2]> = Mutex::new([None; 2]);

const _: () = assert!(READ.len() < 31);

fn word(fd: c_int) -> Option<&'static AtomicU32> {
    SET.get(usize::try_from(fd).ok()?)
}

/// The program has made this socket just now.
pub fn born(fd: c_int) {
    if let Some(word) = word(fd) {
        word.store(KNOWN, Ordering::Relaxed);
    }
}

/// The program has set an option of a socket.
pub fn note(fd: c_int, level: c_int, name: c_int) {
    let Some(word) = word(fd) else { return };
    let (level, name) = usual_name(level, name);
    let is_buffer = level == libc::SOL_SOCKET && matches!(name, libc::SO_RCVBUF | libc::SO_SNDBUF);
    match READ.iter().position(|known| *known == (level, name)) {
        Some(index) if !is_buffer => word.fetch_or(1 << index, Ordering::Relaxed),
        _ => word.swap(0, Ordering::Relaxed),
    };
}

/// Another process has the sockets too, and may change them.
pub fn forget_all() {
    for (fd, entry) in fdtable::entries(0, u32::MAX - 1) {
        if entry == Entry::TcpCandidate
            && let Some(word) = word(fd)
        {
            word.store(0, Ordering::Relaxed);
        }
    }
}

/// The options of a socket that is about to connect.
pub fn options(fd: c_int, family: Family) -> TcpOptions {
    let set = word(fd).map_or(0, |word| word.swap(0, Ordering::Relaxed));
    let new = if set & KNOWN != 0 { new(family) } else { None };
    let Some(mut options) = new else {
        return of_shadow(fd);
    };
    for (index, (level, name)) in READ.into_iter().enumerate() {
        if set >> index & 1 != 0 {
            read_one(fd, level, name, &mut options);
        }
    }
    options.set(TcpOptions::NONBLOCKING, shadow::is_nonblocking(fd));
    options
}

/// What a new socket has.
fn new(family: Family) -> Option<TcpOptions> {
    let (domain, index) = match family {
        Family::V4 => (libc::AF_INET, 0),
        Family::V6 | Family::Dual => (libc::AF_INET6, 1),
    };
    let now = clock::now().0;
    // Whoever has it is reading, or did not survive a fork.
    let mut known = NEW.try_lock()?;
    let place = known.get_mut(index)?;
    if let Some((options, read_at)) = place
        && now.wrapping_sub(*read_at) < FRESH_NS
    {
        return Some(*options);
    }
    let kind = libc::SOCK_STREAM | libc::SOCK_CLOEXEC;
    // SAFETY: plain integers.
    let fd = unsafe { symbols::socket::original()(domain, kind, 0) };
    if fd < 0 {
        return None;
    }
    let options = of_shadow(fd);
    // SAFETY: our own descriptor.
    unsafe { symbols::close::original()(fd) };
    *place = Some((options, now));
    Some(options)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_followed_is_read_anew() {
        let fd = 900_001;
        let known = || word(fd).map(|word| word.load(Ordering::Relaxed) & KNOWN != 0);
        note(fd, libc::IPPROTO_TCP, libc::TCP_NODELAY);
        assert_eq!(known(), Some(false), "nobody has seen it being made");
        born(fd);
        note(fd, libc::IPPROTO_TCP, libc::TCP_NODELAY);
        assert_eq!(known(), Some(true));
        note(fd, libc::SOL_SOCKET, libc::SO_RCVBUF);
        assert_eq!(known(), Some(false), "a buffer's size changes the other's");
        born(fd);
        note(fd, libc::IPPROTO_TCP, libc::TCP_MAXSEG);
        assert_eq!(known(), Some(false));
        note(-1, libc::IPPROTO_TCP, libc::TCP_MAXSEG);
    }
}
