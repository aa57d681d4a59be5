//! listen: the shadow listens, and so does an endpoint.

#![expect(unsafe_code, reason = "UNSAFETY: libc's originals")]

use std::ffi::c_int;

use bypass_proto::policy::{Protocol, Role};
use bypass_proto::reason::FallThrough;
use bypass_runtime::tcp_settings;
use bypass_stack::{EndpointId, TcpOpen, TcpOptions};

use super::{defaults, inherited, options, with_stack};
use crate::address::Given;
use crate::decide::{self, TCP};
use crate::fdtable::{self, Entry};
use crate::{context, process, report, shadow, symbols, wait};

/// The backlog as the kernel takes it: negative means the most.
fn cut(backlog: c_int) -> u32 {
    u32::try_from(backlog)
        .unwrap_or(u32::MAX)
        .min(tcp_settings::most_backlog())
}

/// The kernel's socket listens now: the endpoint follows.
pub fn listening(fd: c_int, backlog: c_int) {
    match fdtable::get(fd) {
        Entry::TcpCandidate => begin(fd, cut(backlog), true),
        Entry::Listener(endpoint) => {
            with_stack(|_, locked, _| locked.stack().tcp_backlog(endpoint, cut(backlog)));
        }
        _ => {}
    }
}

/// The kernel's socket has listened before this process had it: the endpoint that follows it has
/// another holder, or, `anew`, there is one again.
pub fn inherit(fd: c_int, anew: bool) {
    let backlog = shadow::backlog(fd).unwrap_or_else(tcp_settings::most_backlog);
    begin(fd, backlog, anew);
}

fn begin(fd: c_int, backlog: u32, anew: bool) {
    let Some(local) = shadow::local(fd) else {
        return;
    };
    let verdict = decide::ask_policy(fd, Protocol::Tcp, Role::Listen, local, None);
    let (reason, rule, only) = match verdict {
        Ok((rule, only)) => (None, rule, only),
        Err((reason, rule)) => (Some(reason), rule, 0),
    };
    report::note(fd, reason, rule, TCP, Role::Listen, Some((local, None)));
    if reason.is_some() {
        fdtable::set(fd, Entry::Other);
        return;
    }
    report::begin();
    match try_begin(fd, backlog, only, anew) {
        Ok(endpoint) => {
            fdtable::set(fd, Entry::Listener(endpoint));
            report::accelerated(fd, endpoint);
            wait::epoll_set::activated(fd, endpoint, true);
        }
        Err(reason) => {
            fdtable::set(fd, Entry::Other);
            report::refused(fd, reason);
        }
    }
}

fn try_begin(fd: c_int, backlog: u32, only: u32, anew: bool) -> Result<EndpointId, FallThrough> {
    let family = shadow::family(fd).ok_or(FallThrough::NotInet)?;
    let local = shadow::local(fd).ok_or(FallThrough::Undecided)?;
    let joined = context::join()?;
    defaults::follow();
    let cookie = shadow::cookie(fd);
    let ifindex = match decide::bound_device(fd) {
        0 => only,
        device => device,
    };
    let open = TcpOpen {
        family,
        local,
        process: context::process(),
        options: options::of_shadow(fd),
        shadow_cookie: cookie,
        ifindex,
    };
    let endpoint = {
        let mut locked = joined.attachment.lock().map_err(|_| FallThrough::System)?;
        // After a fork the socket may listen already, by a relative of this process.
        if process::has_relatives()
            && let Some(endpoint) = locked.stack().udp_find(cookie)
        {
            locked.stack().hold(endpoint, context::process());
            return Ok(endpoint);
        }
        if !anew {
            return Err(FallThrough::Passed);
        }
        let opened = locked.stack().tcp_listen(&open, backlog);
        opened.map_err(decide::not_opened)?
    };
    if open.options.fast_open_queue > 0 {
        options::follow_cookie_keys(fd, endpoint);
    }
    // A blocking accept must be able to ask the kernel without falling asleep there; what the
    // program wants is in the endpoint's options.
    set_nonblocking(fd, true);
    match decide::add_filter(fd, endpoint, (TCP, 1), family, (local, None), ifindex) {
        Ok(filter) => {
            if let Ok(mut locked) = joined.attachment.lock() {
                locked.stack().set_filter(endpoint, filter);
            }
            joined.refresh();
            inherited::note(fd, endpoint);
            Ok(endpoint)
        }
        Err(reason) => {
            set_nonblocking(fd, open.options.has(TcpOptions::NONBLOCKING));
            with_stack(|_, locked, now| {
                let (stack, packets) = locked.parts();
                stack.tcp_close(packets, endpoint, context::process(), now)
            });
            Err(reason)
        }
    }
}

/// The kernel says that the address of this socket is in use: the daemon may hold it still for a
/// listener that has been closed, here or in a program that has ended, or keep the port for
/// connections. Waits until it has done what it was told by then; whether to ask the kernel again.
#[cold]
pub fn may_be_held(fd: c_int, wanted: Given) -> bool {
    if fdtable::get(fd) != Entry::TcpCandidate {
        return false;
    }
    if let Given::Inet(wanted) = wanted {
        super::ports::forget(wanted.port);
    }
    super::return_filters();
    context::settle_if_running()
}

/// O_NONBLOCK of the shadow's open file description.
pub fn set_nonblocking(fd: c_int, on: bool) {
    // SAFETY: F_GETFL takes no argument.
    let flags = unsafe { symbols::fcntl::original()(fd, libc::F_GETFL, 0) };
    let wanted = if on {
        flags | libc::O_NONBLOCK
    } else {
        flags & !libc::O_NONBLOCK
    };
    if flags >= 0 && wanted != flags {
        // SAFETY: plain integers.
        unsafe { symbols::fcntl::original()(fd, libc::F_SETFL, wanted as usize) };
    }
}

/// The listener is the kernel's alone from here on (shutdown of the listening socket).
pub fn give_up(fd: c_int, endpoint: EndpointId) {
    let nonblocking = with_stack(|_, locked, now| {
        let options = super::options_of(locked, endpoint);
        let (stack, packets) = locked.parts();
        stack.tcp_close(packets, endpoint, context::process(), now);
        options.is_some_and(|options| options.has(TcpOptions::NONBLOCKING))
    });
    wait::epoll_set::handed_over(endpoint);
    inherited::forget(endpoint);
    fdtable::replace(fd, Entry::Listener(endpoint), Entry::Other);
    set_nonblocking(fd, nonblocking.unwrap_or(false));
    super::return_filters();
}
