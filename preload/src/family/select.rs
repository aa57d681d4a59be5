//! select and pselect, served by the same mechanism as poll when a descriptor is accelerated.

#![expect(
    unsafe_code,
    reason = "UNSAFETY: fd_set macros of libc on the caller's sets"
)]

use std::ffi::c_int;

use bypass_runtime::clock;
use bypass_stack::Instant;
use libc::{
    POLLERR, POLLHUP, POLLIN, POLLNVAL, POLLOUT, POLLPRI, POLLRDBAND, POLLRDNORM, POLLWRBAND,
    POLLWRNORM, fd_set, pollfd, sigset_t, timespec, timeval,
};
use rustix::io::Errno;

use crate::address::is_wild;
use crate::errno::{Answer, to_int};
use crate::family::poll;
use crate::{fdtable, symbols, wait};

/// What select calls readable, writable, exceptional (fs/select.c).
const READ: i16 = POLLRDNORM | POLLRDBAND | POLLIN | POLLHUP | POLLERR;
const WRITE: i16 = POLLWRBAND | POLLWRNORM | POLLOUT | POLLERR;
const EXCEPT: i16 = POLLPRI;

/// The three sets of a call.
#[derive(Clone, Copy)]
struct Sets {
    count: c_int,
    read: *mut fd_set,
    write: *mut fd_set,
    except: *mut fd_set,
}

pub unsafe fn select(
    count: c_int,
    read: *mut fd_set,
    write: *mut fd_set,
    except: *mut fd_set,
    timeout: *mut timeval,
) -> c_int {
    let sets = Sets {
        count,
        read,
        write,
        except,
    };
    if is_wild(timeout) || !sets.matter() {
        // SAFETY: the caller's arguments.
        return unsafe { symbols::select::original()(count, read, write, except, timeout) };
    }
    let deadline = match unsafe_timeout(timeout) {
        Ok(deadline) => deadline,
        Err(errno) => return to_int(Err(errno)),
    };
    let answer = sets.wait(deadline, None);
    // Linux writes back the time that is left.
    if let Some(deadline) = deadline {
        let left = deadline.0.saturating_sub(clock::now().0) / 1000;
        // SAFETY: a deadline exists only when the timeout is not null.
        unsafe {
            (*timeout).tv_sec = (left / 1_000_000) as i64;
            (*timeout).tv_usec = (left % 1_000_000) as i64;
        }
    }
    to_int(answer)
}

fn unsafe_timeout(timeout: *const timeval) -> Result<Option<Instant>, Errno> {
    // SAFETY: null or the caller's timeout.
    let Some(time) = (unsafe { timeout.as_ref() }) else {
        return Ok(None);
    };
    if time.tv_sec < 0 || time.tv_usec < 0 {
        return Err(Errno::INVAL);
    }
    let seconds = time.tv_sec + time.tv_usec / 1_000_000;
    let time = timespec {
        tv_sec: seconds,
        tv_nsec: time.tv_usec % 1_000_000 * 1000,
    };
    wait::deadline_of(Some(&time))
}

pub unsafe fn pselect(
    count: c_int,
    read: *mut fd_set,
    write: *mut fd_set,
    except: *mut fd_set,
    timeout: *const timespec,
    mask: *const sigset_t,
) -> c_int {
    let sets = Sets {
        count,
        read,
        write,
        except,
    };
    if is_wild(timeout) || is_wild(mask) || !sets.matter() {
        // SAFETY: the caller's arguments.
        return unsafe { symbols::pselect::original()(count, read, write, except, timeout, mask) };
    }
    // SAFETY: null or the caller's timeout.
    match wait::deadline_of(unsafe { timeout.as_ref() }) {
        Ok(deadline) => to_int(sets.wait(deadline, (!mask.is_null()).then_some(mask))),
        Err(errno) => to_int(Err(errno)),
    }
}

/// Bit of a descriptor in a set of any size (libc's macro stops at FD_SETSIZE).
fn has(set: *const fd_set, fd: c_int) -> bool {
    if set.is_null() {
        return false;
    }
    // SAFETY: the caller's sets have at least `count` bits, and `fd < count`.
    let byte = unsafe { set.cast::<u8>().add(fd as usize / 8).read() };
    byte >> (fd % 8) & 1 == 1
}

fn clear(set: *mut fd_set, count: c_int) {
    if set.is_null() {
        return;
    }
    // The kernel writes whole words.
    let words = (count as usize).div_ceil(64);
    // SAFETY: the caller's sets are made of whole words.
    unsafe { std::ptr::write_bytes(set.cast::<u64>(), 0, words) };
}

fn put(set: *mut fd_set, fd: c_int) {
    // SAFETY: as in `has`.
    unsafe {
        let byte = set.cast::<u8>().add(fd as usize / 8);
        byte.write(byte.read() | 1 << (fd % 8));
    }
}

impl Sets {
    /// Whether one of the descriptors needs us.
    fn matter(&self) -> bool {
        if [self.read, self.write, self.except]
            .into_iter()
            .any(|set| is_wild(set))
        {
            return false;
        }
        (0..self.count.clamp(0, 1 << 16)).any(|fd| {
            !fdtable::falls_through(fd)
                && (has(self.read, fd) || has(self.write, fd) || has(self.except, fd))
                && poll::matters(fd)
        })
    }

    /// select by way of poll.
    fn wait(&self, deadline: Option<Instant>, mask: Option<*const sigset_t>) -> Answer {
        let mut fds: Vec<pollfd> = Vec::with_capacity(16);
        for fd in 0..self.count {
            let mut events = 0;
            for (set, mark) in [
                (self.read, READ),
                (self.write, WRITE),
                (self.except, EXCEPT),
            ] {
                if has(set, fd) {
                    events |= mark & !(POLLHUP | POLLERR);
                }
            }
            if events != 0 {
                fds.push(pollfd {
                    fd,
                    events,
                    revents: 0,
                });
            }
        }
        poll::merged(&mut fds, deadline, mask)?;
        if fds.iter().any(|entry| entry.revents & POLLNVAL != 0) {
            return Err(Errno::BADF);
        }
        let asked = |entry: &pollfd, mark: i16| entry.events & mark & !(POLLHUP | POLLERR) != 0;
        let mut ready = 0;
        for (set, mark) in [
            (self.read, READ),
            (self.write, WRITE),
            (self.except, EXCEPT),
        ] {
            clear(set, self.count);
            for entry in &fds {
                if !set.is_null() && asked(entry, mark) && entry.revents & mark != 0 {
                    put(set, entry.fd);
                    ready += 1;
                }
            }
        }
        Ok(ready)
    }
}
