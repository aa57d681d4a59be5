//! Receiving and sending on connections.

use std::ffi::c_int;

use bypass_runtime::error_queue::{TX_RECORD, is_cut, put_notice};
use bypass_stack::{
    EndpointId, FirstWrite, Instant, NoticeKind, SocketAddress, TcpDefaults, TcpError, TcpOptions,
    TcpState, event,
};
use libc::{MSG_DONTWAIT, MSG_EOR, MSG_MORE, MSG_OOB, MSG_PEEK, MSG_WAITALL, MSG_ZEROCOPY};

use crate::calls;
use crate::kernel::{self, Answer};
use crate::turns::{wait, with};
use crate::world::{Socket, World};

/// What a receive brings: the bytes, and what TCP_INQ tells.
#[derive(Debug, Default)]
pub struct Received {
    /// From the stream.
    pub bytes: Vec<u8>,
    /// Bytes behind them and one for the FIN, if the program has asked for it.
    pub inq: Option<u32>,
}

fn connection(fd: c_int) -> Result<EndpointId, i32> {
    match calls::of(fd) {
        Some(Socket::Connection { id, .. }) => Ok(id),
        Some(_) => Err(libc::ENOTCONN),
        None => Err(libc::EBADF),
    }
}

/// When a call that begins now and waits so long gives up; 0 = never.
fn deadline(ms: u32) -> Option<u64> {
    let now = with(|world| world.now)?;
    (ms != 0).then(|| now + u64::from(ms) * 1_000_000)
}

fn options_of(id: EndpointId) -> TcpOptions {
    with(|world| world.stack().tcp_options(id).ok().copied())
        .flatten()
        .unwrap_or_default()
}

/// Receives up to `most` bytes.
///
/// # Errors
/// As recv(2).
pub fn receive(fd: c_int, most: usize, flags: c_int) -> Result<Received, i32> {
    let id = connection(fd)?;
    let peek = flags & MSG_PEEK != 0;
    if flags & MSG_OOB != 0 {
        let byte = with(|world| world.stack().tcp_receive_urgent(id, peek));
        return match byte {
            Some(Ok(byte)) => Ok(Received {
                bytes: vec![byte],
                inq: None,
            }),
            Some(Err(TcpError::Errno(errno))) => Err(errno),
            _ => Err(libc::EAGAIN),
        };
    }
    let options = options_of(id);
    let dont_wait = flags & MSG_DONTWAIT != 0 || kernel::is_nonblocking(fd);
    let least = if flags & MSG_WAITALL != 0 {
        most
    } else {
        (options.rcvlowat.max(1) as usize).min(most)
    };
    let mut received = Received::default();
    let ended = wait(deadline(options.rcvtimeo_ms), |world| {
        take(world, id, most, peek, &mut received);
        let bytes = received.bytes.len();
        let input = world.stack().tcp_input(id).ok();
        let error = input.map_or(libc::EBADF, |input| input.error);
        let eof = input.is_none_or(|input| input.eof || input.state == TcpState::Closed);
        let told = options.has(TcpOptions::INQ);
        received.inq = input
            .filter(|_| told)
            .map(|input| input.readable + u32::from(input.peer_fin));
        if bytes >= least && (bytes > 0 || most == 0 && input.is_some_and(|i| i.readable > 0)) {
            return Some(Ok(()));
        }
        if bytes > 0 {
            return (dont_wait || error != 0 || eof).then_some(Ok(()));
        }
        let seen = input.is_some_and(|input| input.peer_fin);
        if error != 0 && !seen {
            world.stack().tcp_take_error(id);
            return Some(Err(error));
        }
        if eof {
            return Some(Ok(()));
        }
        dont_wait.then_some(Err(libc::EAGAIN))
    });
    match ended {
        Some(Err(errno)) => Err(errno),
        None if received.bytes.is_empty() => Err(libc::EAGAIN),
        _ => Ok(received),
    }
}

/// A notice of the error queue, as recvmsg shows it.
#[derive(Debug, Default)]
pub struct Told {
    /// `msg_flags`.
    pub flags: c_int,
    /// Control messages: level, type, data.
    pub messages: Vec<(c_int, c_int, Vec<u8>)>,
}

/// Takes a notice off the error queue.
///
/// # Errors
/// `EAGAIN`: there is none.
pub fn notice(fd: c_int) -> Result<Told, i32> {
    let id = connection(fd).map_err(|_| libc::EAGAIN)?;
    let found = with(|world| {
        let now = world.now;
        let mut stack = world.stack();
        let options = *stack.tcp_options(id).ok()?;
        let family = stack.tcp_status(id).ok()?.family;
        let notice = stack.tcp_take_notice(id).ok()??;
        Some((notice, (options, family), now))
    });
    let (notice, (options, family), now) = found.flatten().ok_or(libc::EAGAIN)?;
    // The wall clock is the script's.
    let is_stamp = notice.kind != NoticeKind::Copied;
    let at_ns = if is_stamp { notice.at.0 } else { now };
    let mut told = Told {
        flags: libc::MSG_ERRQUEUE,
        messages: Vec::new(),
    };
    if is_cut(&notice) {
        told.flags |= libc::MSG_TRUNC;
    }
    put_notice(
        &notice,
        (&options, family),
        at_ns,
        &mut |level, kind, bytes| {
            told.messages.push((level, kind, bytes.to_vec()));
        },
    );
    Ok(told)
}

/// Whether an urgent byte ends a splice.
pub fn stops_splice(fd: c_int) -> bool {
    let id = connection(fd).ok();
    let stops = |id| with(|world| world.stack().tcp_stops_splice(id) == Ok(true));
    id.and_then(stops).unwrap_or(false)
}

/// Copies what is there.
fn take(world: &mut World, id: EndpointId, most: usize, peek: bool, into: &mut Received) {
    if peek {
        into.bytes.clear();
    }
    let before = into.bytes.len();
    while into.bytes.len() < most {
        let skip = into.bytes.len() - before;
        let Ok(Some(span)) = world.stack().tcp_front(id, skip) else {
            break;
        };
        let start = span.offset as usize;
        let len = (span.len as usize).min(most - into.bytes.len());
        let bytes = world.bytes(span.chunk).get(start..start + len);
        into.bytes.extend_from_slice(bytes.unwrap_or_default());
    }
    let taken = into.bytes.len() - before;
    if taken > 0 && !peek {
        let _ = world.with(|stack, _, now| stack.tcp_consume(id, taken, now));
    }
}

/// Sends bytes.
///
/// # Errors
/// As send(2).
pub fn send(fd: c_int, bytes: &[u8], flags: c_int) -> Answer {
    let id = match connection(fd) {
        // net/ipv4/tcp.c:do_tcp_sendpages of a socket without a connection.
        Err(libc::ENOTCONN) => return Err(libc::EPIPE),
        found => found?,
    };
    let options = options_of(id);
    let dont_wait = flags & MSG_DONTWAIT != 0 || kernel::is_nonblocking(fd);
    let mut done = 0;
    if is_deferred(id) {
        return first(fd, id, bytes, flags);
    }
    let mut sleeps = false;
    let ended = wait(deadline(options.sndtimeo_ms), |world| {
        let answer = world.stack().readiness(id);
        if sleeps && answer.is_ok_and(|found| found.events & event::OUT == 0) {
            // What wakes a writer (net/core/stream.c:sk_stream_write_space).
            return None;
        }
        loop {
            match once(world, id, &bytes[done..], flags) {
                Ok(count) => done += count,
                Err(TcpError::WouldBlock) if dont_wait => return Some(Err(libc::EAGAIN)),
                Err(TcpError::WouldBlock) => {
                    sleeps = true;
                    return None;
                }
                Err(TcpError::Stale) => return Some(Err(libc::EBADF)),
                Err(TcpError::Errno(errno)) => return Some(Err(errno)),
            }
            if done >= bytes.len() {
                return Some(Ok(()));
            }
        }
    });
    if done > 0 {
        tell(id, &options, flags);
    }
    match ended {
        _ if done > 0 => Ok(done as isize),
        Some(Ok(())) => Ok(0),
        Some(Err(errno)) => Err(errno),
        None => Err(libc::EAGAIN),
    }
}

/// What the error queue is to tell of a send that is over.
fn tell(id: EndpointId, options: &TcpOptions, flags: c_int) {
    with(|world| {
        world.with(|stack, _, now| {
            if flags & MSG_ZEROCOPY != 0 && options.has(TcpOptions::ZEROCOPY) {
                let _ = stack.tcp_copied(id, now);
            }
            let _ = stack.tcp_await(id, options.timestamping & TX_RECORD, now);
        });
    });
}

fn is_deferred(id: EndpointId) -> bool {
    let status = with(|world| world.stack().tcp_status(id)).and_then(Result::ok);
    status.is_some_and(|status| status.deferred)
}

/// Sends with MSG_FASTOPEN (net/ipv4/tcp.c:tcp_sendmsg_fastopen); no address is none that connects.
///
/// # Errors
/// As sendto(2).
pub fn send_fast(fd: c_int, bytes: &[u8], flags: c_int, to: Option<SocketAddress>) -> Answer {
    let bits = with(|world| {
        world.follow_settings();
        world.stack().tcp_defaults().fast_open
    });
    let remote = to.ok_or(libc::EOPNOTSUPP)?;
    if bits.unwrap_or(0) & TcpDefaults::FAST_OPEN_CLIENT == 0 {
        return Err(libc::EOPNOTSUPP);
    }
    match calls::of(fd) {
        None => return Err(libc::EBADF),
        Some(Socket::Listener(_)) => return Err(libc::EISCONN),
        Some(Socket::Connection { id, .. }) if is_deferred(id) => {
            return first(fd, id, bytes, flags);
        }
        Some(Socket::Connection { id, connecting }) => {
            let status = with(|world| world.stack().tcp_status(id)).and_then(Result::ok);
            let state = status.map_or(TcpState::Closed, |status| status.state);
            let is_being_made = matches!(state, TcpState::SynSent | TcpState::SynReceived);
            if is_being_made && dont_wait(fd, flags) {
                return Err(libc::EALREADY);
            }
            if !connecting {
                return Err(libc::EISCONN);
            }
            calls::connected(fd, id)?;
            return send(fd, bytes, flags);
        }
        Some(Socket::Fresh) => {}
    }
    let mut rest = bytes;
    let fill = &mut |to: &mut [u8]| cut(&mut rest, to);
    let first = FirstWrite {
        len: bytes.len(),
        fill,
        waits: !dont_wait(fd, flags),
    };
    let (id, taken) = calls::start(fd, remote, Some(first))?;
    go_on(fd, id, (bytes, taken), flags)
}

fn dont_wait(fd: c_int, flags: c_int) -> bool {
    flags & MSG_DONTWAIT != 0 || kernel::is_nonblocking(fd)
}

/// The first bytes of `rest` go to a piece.
fn cut(rest: &mut &[u8], to: &mut [u8]) {
    let (piece, behind) = rest.split_at(to.len());
    to.copy_from_slice(piece);
    *rest = behind;
}

/// The first write on a connection whose SYN waits for it.
fn first(fd: c_int, id: EndpointId, bytes: &[u8], flags: c_int) -> Answer {
    let mut rest = bytes;
    let fill = &mut |to: &mut [u8]| cut(&mut rest, to);
    let first = FirstWrite {
        len: bytes.len(),
        fill,
        waits: !dont_wait(fd, flags),
    };
    let taken = with(|world| {
        world.with(|stack, packets, now| stack.tcp_send_first(packets, id, first, now))
    });
    let taken = taken.and_then(Result::ok).ok_or(libc::EBADF)?;
    go_on(fd, id, (bytes, taken), flags)
}

/// The SYN has left with the first bytes.
fn go_on(fd: c_int, id: EndpointId, (bytes, taken): (&[u8], usize), flags: c_int) -> Answer {
    let so_far = |errno| match taken {
        0 => Err(errno),
        taken => Ok(taken as isize),
    };
    if dont_wait(fd, flags) {
        return so_far(libc::EINPROGRESS);
    }
    calls::connected(fd, id)?;
    if taken >= bytes.len() {
        return Ok(taken as isize);
    }
    let sent = send(fd, &bytes[taken..], flags);
    sent.map(|sent| sent + taken as isize).or_else(so_far)
}

fn once(world: &mut World, id: EndpointId, rest: &[u8], flags: c_int) -> Result<usize, TcpError> {
    let mut rest = rest;
    let len = rest.len();
    let fill = &mut |to: &mut [u8]| cut(&mut rest, to);
    let more = flags & MSG_MORE != 0;
    world.with(|stack, packets, now: Instant| {
        let sent = if flags & MSG_OOB != 0 {
            stack.tcp_send_urgent(packets, id, len, fill, now)
        } else {
            stack.tcp_send(packets, id, len, more, fill, now)
        };
        if sent == Ok(len) && flags & MSG_EOR != 0 {
            let _ = stack.tcp_end_record(id);
        }
        sent
    })
}
