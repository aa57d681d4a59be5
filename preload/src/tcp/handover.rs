//! A connection becomes the kernel's: exec, SCM_RIGHTS, an option that only the kernel has.
//!
//! The daemon makes the shadow into the connection (TCP_REPAIR, which is privileged) and ends the
//! endpoint, for every process that holds it. So the descriptor keeps its number and its open file,
//! and whoever has it finds a plain kernel socket: this process at once, others by their next call
//! on it, which meets an endpoint that is gone, or by their next wait.

#![expect(
    unsafe_code,
    reason = "UNSAFETY: borrows the program's descriptor for one call"
)]

use std::ffi::c_int;
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicU64, Ordering};

use bypass_proto::control::{Refusal, Request, RequestKind};
use bypass_proto::options::Log;
use bypass_proto::reason::FallThrough;
use bypass_runtime::attachment::Locked;
use bypass_runtime::clock;
use bypass_runtime::control::ControlError;
use bypass_stack::{Counter, EndpointId, FirstWrite, TcpState};
use rustix::io::Errno;

use super::{guest, with_stack};
use crate::decide::TCP;
use crate::fdtable::{self, Entry};
use crate::report::Fate;
use crate::wait::call::Call;
use crate::wait::{self, Woken, epoll_set};
use crate::{context, log, report, sharing};

/// Times that the daemon is asked again when the stack was busy.
const TRIES: u32 = 20;
/// How long a handshake is waited for.
const HANDSHAKE_MS: u32 = 3000;
/// How long it is waited before the daemon is asked again.
const PAUSE: rustix::thread::Timespec = rustix::thread::Timespec {
    tv_sec: 0,
    tv_nsec: 1_000_000,
};

/// Connections that have left the stack when this process last looked.
static SEEN: AtomicU64 = AtomicU64::new(0);

/// Makes the connection the kernel's; `false`: it is not, and nothing has changed.
pub fn hand_over(fd: c_int, endpoint: EndpointId, why: FallThrough) -> bool {
    if !is_made(fd, endpoint) {
        return false;
    }
    if with_stack(|_, locked, _| locked.stack().is_live(endpoint)) != Some(true) {
        return moved(fd, endpoint);
    }
    let request = Request {
        protocol: TCP,
        endpoint_index: endpoint.index,
        endpoint_generation: endpoint.generation,
        ..Request::new(RequestKind::HandOver)
    };
    // SAFETY: the program's descriptor is open during its own call on it.
    let proof = unsafe { BorrowedFd::borrow_raw(fd) };
    let mut tries = TRIES;
    let deadline = super::deadline(HANDSHAKE_MS);
    while tries > 0 {
        match context::with_control(|control| control.ask(request, Some(proof))) {
            Ok(_) => break,
            Err(error) if is_refused(error, Errno::BUSY) => {
                tries -= 1;
                std::thread::yield_now();
            }
            // The other end, which is in this stack too, waits to be accepted.
            Err(error) if is_refused(error, Errno::ALREADY) && deadline > Some(clock::now()) => {
                let _ = rustix::thread::nanosleep(&PAUSE);
            }
            // Another thread or process was faster, or it stays.
            Err(error) => {
                log::at(Log::Info, format_args!("fd {fd} stays: {error:?}"));
                break;
            }
        }
    }
    let gone = with_stack(|_, locked, _| !locked.stack().is_live(endpoint)) == Some(true);
    if gone {
        settle(endpoint, why);
        super::return_filters();
    }
    gone
}

fn is_refused(error: ControlError, why: Errno) -> bool {
    let errno = why.raw_os_error().unsigned_abs();
    matches!(error, ControlError::Refused { refusal: Refusal::System, detail } if detail == errno)
}

/// Waits for the end of the handshake; `false`: there is no connection.
fn is_made(fd: c_int, endpoint: EndpointId) -> bool {
    let deadline = super::deadline(HANDSHAKE_MS);
    let mut call = Call::default();
    loop {
        let status = with_stack(|_, locked, _| locked.stack().tcp_status(endpoint));
        match status {
            Some(Ok(status)) if status.state == TcpState::Closed => return false,
            Some(Ok(status)) if status.deferred => {
                // Nothing would come of waiting: the SYN leaves without data.
                let fill: &mut dyn FnMut(&mut [u8]) = &mut |_| {};
                let (len, waits) = (0, false);
                with_stack(|_, locked, now| {
                    let (stack, packets) = locked.parts();
                    let first = FirstWrite { len, fill, waits };
                    stack.tcp_send_first(packets, endpoint, first, now)
                });
            }
            Some(Ok(status))
                if matches!(status.state, TcpState::SynSent | TcpState::SynReceived) => {}
            Some(_) => return true,
            None => return false,
        }
        match wait::block::until_made(fd, endpoint, (deadline, &mut call)) {
            Woken::TimedOut => return false,
            Woken::Ready | Woken::Interrupted => {}
        }
    }
}

/// Whether the connection behind a descriptor is the kernel's by now, because another thread or
/// process has handed it over: then the descriptor is no concern of ours any more.
#[cold]
pub fn moved(fd: c_int, endpoint: EndpointId) -> bool {
    let live = with_stack(|_, locked, _| locked.stack().is_live(endpoint));
    if live != Some(false) {
        return false;
    }
    settle(endpoint, FallThrough::Passed);
    // It may be in the stack again by now, as another endpoint.
    match fdtable::look(fd) {
        Entry::Other | Entry::Guest => true,
        Entry::Tcp(now) => now != endpoint,
        _ => false,
    }
}

/// Whether connections have left the stack since this process last looked.
pub fn is_news(locked: &mut Locked<'_>) -> bool {
    let left = locked.stack().counters().get(Counter::TcpHandedOver);
    left != SEEN.load(Ordering::Relaxed)
}

/// Finds the descriptors of this process whose connections have left the stack: by one look at the
/// table, however many have.
#[cold]
pub fn follow() {
    // Once more, for descriptors that were duplicated meanwhile.
    let _ = follow_once() && follow_once();
}

/// Whether there were any.
fn follow_once() -> bool {
    let mut gone = Vec::new();
    with_stack(|_, locked, _| {
        let left = locked.stack().counters().get(Counter::TcpHandedOver);
        SEEN.store(left, Ordering::Relaxed);
        for (fd, entry) in fdtable::entries(0, u32::MAX - 1) {
            if let Entry::Tcp(endpoint) = entry
                && !locked.stack().is_live(endpoint)
            {
                gone.push((fd, endpoint));
            }
        }
    });
    gone.sort_unstable_by_key(|(_, endpoint)| (endpoint.index, endpoint.generation));
    for of_one in gone.chunk_by(|(_, one), (_, other)| one == other) {
        if let Some((_, endpoint)) = of_one.first() {
            let numbers = of_one.iter().map(|(fd, _)| *fd);
            release(*endpoint, numbers, FallThrough::Passed);
        }
    }
    !gone.is_empty()
}

/// The endpoint is gone and its descriptors are the kernel's, in epoll sets too.
fn settle(endpoint: EndpointId, why: FallThrough) {
    let all = fdtable::entries(0, u32::MAX - 1);
    let its = all.filter(|(_, entry)| *entry == Entry::Tcp(endpoint));
    release(endpoint, its.map(|(fd, _)| fd), why);
}

/// Gives these descriptors of an endpoint that is gone, and its members of epoll sets, to the
/// kernel.
fn release(endpoint: EndpointId, numbers: impl Iterator<Item = c_int>, why: FallThrough) {
    let numbers: Vec<c_int> = numbers.collect();
    if epoll_set::has_one_shot(endpoint) {
        // Nobody knows later whether the kernel has told of it.
        let is_back = |fd: &c_int| report::fate(*fd, endpoint) == Fate::MayReturn;
        for fd in numbers.iter().copied().filter(is_back) {
            report::refused(fd, FallThrough::Option);
        }
    }
    epoll_set::left(endpoint);
    for fd in numbers {
        if fdtable::leads_to(fd, endpoint) {
            report::left(fd, endpoint, why);
            guest::leaves(fd, endpoint);
        }
    }
    sharing::ended(Entry::Tcp(endpoint));
}
