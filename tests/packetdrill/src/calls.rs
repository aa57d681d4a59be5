//! The calls on sockets: making, naming, connecting, accepting, options, the end.

use std::ffi::c_int;

use bypass_runtime::tcp_options::{
    FASTOPEN_KEY, RARE, READ, number, timestamping_of_shadow, usual_name,
};
use bypass_runtime::tcp_settings;
use bypass_stack::cplane::neighbour_state;
use bypass_stack::tcp::congestion;
use bypass_stack::{
    EndpointId, Family, FirstWrite, NextHop, OpenError, Shutdown, SocketAddress, TcpError, TcpOpen,
    TcpOptions, TcpState,
};
use libc::{IPPROTO_TCP, SOL_SOCKET};
use zerocopy::IntoBytes;

use crate::kernel::{self, Answer};
use crate::turns::{wait, with};
use crate::world::{MAC, PEER_MAC, Socket, World};

/// socket(2).
///
/// # Errors
/// As the kernel's.
pub fn socket(domain: c_int, kind: c_int, protocol: c_int) -> Answer {
    let fd = kernel::socket(domain, kind, protocol)?;
    let is_stream = kind & 0xf == libc::SOCK_STREAM;
    if is_stream && (domain == libc::AF_INET || domain == libc::AF_INET6) {
        kernel::choose_congestion(fd as c_int);
        with(|world| {
            world.follow_settings();
            world.follow_mtu();
            world.sockets.insert(fd as c_int, Socket::Fresh)
        });
    }
    Ok(fd)
}

/// What the descriptor is; `None`: none of ours.
#[must_use]
pub fn of(fd: c_int) -> Option<Socket> {
    with(|world| world.sockets.get(&fd).copied()).flatten()
}

fn open(world: &World, fd: c_int, local: SocketAddress) -> Result<TcpOpen, i32> {
    Ok(TcpOpen {
        family: kernel::family(fd).ok_or(libc::EAFNOSUPPORT)?,
        local,
        process: world.process,
        options: kernel::options(fd),
        shadow_cookie: 1,
        ifindex: 0,
    })
}

fn refused(error: OpenError) -> i32 {
    match error {
        OpenError::InUse => libc::EADDRNOTAVAIL,
        _ => libc::ENOBUFS,
    }
}

/// listen(2).
///
/// # Errors
/// As the kernel's.
pub fn listen(fd: c_int, backlog: c_int) -> Answer {
    kernel::listen(fd, backlog)?;
    let most = tcp_settings::most_backlog();
    let backlog = u32::try_from(backlog).unwrap_or(u32::MAX).min(most);
    with(|world| {
        world.follow_settings();
        if let Some(Socket::Listener(id)) = world.sockets.get(&fd) {
            let id = *id;
            let _ = world.stack().tcp_backlog(id, backlog);
            return Ok(0);
        }
        let local = kernel::local(fd).ok_or(libc::EBADF)?;
        let open = open(world, fd, local)?;
        let id = world.with(|stack, _, _| stack.tcp_listen(&open, backlog));
        let id = id.map_err(refused)?;
        let _ = world
            .stack()
            .tcp_set_cookie_keys(id, &kernel::cookie_keys(fd));
        world.sockets.insert(fd, Socket::Listener(id));
        Ok(0)
    })
    .unwrap_or(Err(libc::EBADF))
}

/// accept(2): the new descriptor, the peer's address and the family in which to tell it.
///
/// # Errors
/// As the kernel's.
pub fn accept(fd: c_int, listener: EndpointId) -> Result<(c_int, SocketAddress, Family), i32> {
    let nonblocking = kernel::is_nonblocking(fd);
    wait(None, |world| {
        let process = world.process;
        let taken = world.with(|stack, _, _| stack.tcp_accept(listener, process, 2));
        match taken {
            Ok(Some(id)) => Some(accepted(world, fd, id)),
            Ok(None) if nonblocking => Some(Err(libc::EAGAIN)),
            Ok(None) => None,
            Err(_) => Some(Err(libc::EINVAL)),
        }
    })
    .unwrap_or(Err(libc::EAGAIN))
}

fn accepted(
    world: &mut World,
    listener: c_int,
    id: EndpointId,
) -> Result<(c_int, SocketAddress, Family), i32> {
    let family = kernel::family(listener).ok_or(libc::EBADF)?;
    let domain = if family == Family::V4 {
        libc::AF_INET
    } else {
        libc::AF_INET6
    };
    let fd = kernel::socket(domain, libc::SOCK_STREAM, 0)? as c_int;
    let connecting = false;
    world
        .sockets
        .insert(fd, Socket::Connection { id, connecting });
    let status = world.stack().tcp_status(id).map_err(|_| libc::EBADF)?;
    Ok((fd, status.remote, family))
}

/// connect(2); no address dissolves the connection (AF_UNSPEC).
///
/// # Errors
/// As the kernel's.
pub fn connect(fd: c_int, remote: Option<SocketAddress>) -> Answer {
    let Some(remote) = remote else {
        return dissolve(fd);
    };
    match of(fd) {
        None => return Err(libc::EBADF),
        Some(Socket::Listener(_)) => return Err(libc::EISCONN),
        Some(Socket::Connection { id, connecting }) => {
            let status = with(|world| world.stack().tcp_status(id)).and_then(Result::ok);
            let state = status.map_or(TcpState::Closed, |status| status.state);
            return match state {
                _ if status.is_some_and(|status| status.deferred) => Err(libc::EISCONN),
                TcpState::SynSent | TcpState::SynReceived if kernel::is_nonblocking(fd) => {
                    Err(libc::EALREADY)
                }
                TcpState::Closed if !connecting => {
                    release(fd, id);
                    connect(fd, Some(remote))
                }
                _ if connecting => connected(fd, id),
                _ => Err(libc::EISCONN),
            };
        }
        Some(Socket::Fresh) => {}
    }
    let (id, _) = start(fd, remote, None)?;
    let status = with(|world| world.stack().tcp_status(id)).and_then(Result::ok);
    if status.is_some_and(|status| status.deferred) {
        return Ok(0);
    }
    if kernel::is_nonblocking(fd) {
        return Err(libc::EINPROGRESS);
    }
    connected(fd, id)
}

/// Sends the SYN, perhaps with the first bytes: how many of them.
pub(crate) fn start(
    fd: c_int,
    remote: SocketAddress,
    first: Option<FirstWrite<'_>>,
) -> Result<(EndpointId, usize), i32> {
    let family = kernel::family(fd).ok_or(libc::EBADF)?;
    let (source, mtu) = kernel::way_to(remote).ok_or(libc::ENETUNREACH)?;
    let bound = kernel::local(fd).ok_or(libc::EBADF)?;
    if bound.port == 0 {
        let ip = if bound.ip.is_unspecified() {
            source
        } else {
            bound.ip
        };
        kernel::bind(fd, &kernel::sockaddr(SocketAddress::new(ip, 0), family))?;
    }
    let mut local = kernel::local(fd).ok_or(libc::EBADF)?;
    if local.ip.is_unspecified() {
        local.ip = source;
    }
    let hop = NextHop {
        queue_pair: 0,
        neighbour_state: neighbour_state::REACHABLE,
        mtu,
        ifindex: 1,
        source: local.ip,
        source_mac: MAC,
        mac: PEER_MAC,
        generation: 1,
    };
    with(|world| {
        world.follow_settings();
        let open = open(world, fd, local)?;
        let begun = world.with(|stack, packets, now| match first {
            None => {
                let id = stack.tcp_connect(packets, &open, remote, &hop, now)?;
                Ok((id, 0))
            }
            Some(first) => {
                let id = stack.tcp_open(&open)?;
                let way = (remote, &hop);
                let taken = stack.tcp_start_with(packets, id, way, first, now);
                if taken.is_err() {
                    stack.tcp_close(packets, id, open.process, now);
                }
                Ok((id, taken?))
            }
        });
        let (id, taken) = begun.map_err(refused)?;
        let connecting = true;
        world
            .sockets
            .insert(fd, Socket::Connection { id, connecting });
        Ok((id, taken))
    })
    .unwrap_or(Err(libc::EBADF))
}

/// Waits for the end of a connect.
pub(crate) fn connected(fd: c_int, id: EndpointId) -> Answer {
    let nonblocking = kernel::is_nonblocking(fd);
    let state = wait(None, |world| {
        let status = world.stack().tcp_status(id).ok();
        let state = status.map_or(TcpState::Closed, |status| status.state);
        let waits = matches!(state, TcpState::SynSent | TcpState::SynReceived);
        (!waits || nonblocking).then_some(state)
    });
    match state {
        Some(TcpState::SynSent | TcpState::SynReceived) => Err(libc::EINPROGRESS),
        Some(TcpState::Closed) | None => {
            let error = with(|world| world.stack().tcp_take_error(id)).unwrap_or(0);
            release(fd, id);
            Err(if error == 0 {
                libc::ECONNABORTED
            } else {
                error
            })
        }
        Some(_) => {
            let connecting = false;
            with(|world| {
                world
                    .sockets
                    .insert(fd, Socket::Connection { id, connecting })
            });
            Ok(0)
        }
    }
}

fn dissolve(fd: c_int) -> Answer {
    if let Some(id) = of(fd).and_then(Socket::id) {
        with(|world| world.with(|stack, packets, now| stack.tcp_abort(packets, id, now)));
        release(fd, id);
    }
    Ok(0)
}

/// The socket has no connection any more and may be connected again.
fn release(fd: c_int, id: EndpointId) {
    with(|world| {
        let process = world.process;
        world.with(|stack, packets, now| stack.tcp_close(packets, id, process, now));
        world.sockets.insert(fd, Socket::Fresh)
    });
}

/// shutdown(2).
///
/// # Errors
/// As the kernel's.
pub fn shutdown(fd: c_int, how: c_int) -> Answer {
    let how = match how {
        libc::SHUT_RD => Shutdown::Read,
        libc::SHUT_WR => Shutdown::Write,
        libc::SHUT_RDWR => Shutdown::Both,
        _ => return Err(libc::EINVAL),
    };
    let Some(Socket::Connection { id, .. }) = of(fd) else {
        return Err(libc::ENOTCONN);
    };
    let done =
        with(|world| world.with(|stack, packets, now| stack.tcp_shutdown(packets, id, how, now)));
    match done {
        Some(Ok(())) => Ok(0),
        Some(Err(TcpError::Errno(errno))) => Err(errno),
        _ => Err(libc::ENOTCONN),
    }
}

/// close(2), with SO_LINGER.
///
/// # Errors
/// As the kernel's.
pub fn close(fd: c_int) -> Answer {
    let socket = with(|world| {
        world.sets.remove(&fd);
        for set in world.sets.values_mut() {
            set.forget(fd);
        }
        world.sockets.remove(&fd)
    });
    if let Some(id) = socket.flatten().and_then(Socket::id) {
        let options = with(|world| {
            let options = world.stack().tcp_options(id).ok().copied();
            let process = world.process;
            world.with(|stack, packets, now| stack.tcp_close(packets, id, process, now));
            options
        });
        let options = options.flatten().unwrap_or_default();
        if options.has(TcpOptions::LINGER) && options.linger_s > 0 {
            linger(id, options.linger_s);
        }
    }
    kernel::close(fd)
}

/// Waits until the peer has acknowledged everything.
fn linger(id: EndpointId, seconds: u32) {
    let now = with(|world| world.now).unwrap_or(0);
    let end = now + u64::from(seconds) * 1_000_000_000;
    wait(Some(end), |world| {
        let waits = world.stack().tcp_status(id).is_ok_and(|status| {
            matches!(
                status.state,
                TcpState::FinWait1 | TcpState::Closing | TcpState::LastAck
            )
        });
        (!waits).then_some(())
    });
}

/// The kernel has taken an option: the engine follows.
pub fn option_set(fd: c_int, (level, name): (c_int, c_int)) {
    let Some(id) = of(fd).and_then(Socket::id) else {
        return;
    };
    let (level, name) = usual_name(level, name);
    if (level, name) == (IPPROTO_TCP, FASTOPEN_KEY) {
        let keys = kernel::cookie_keys(fd);
        with(|world| world.stack().tcp_set_cookie_keys(id, &keys));
    }
    if (level, name) == (IPPROTO_TCP, libc::TCP_QUICKACK) {
        let mut value = [0; size_of::<c_int>()];
        let _ = kernel::option(fd, level, name, &mut value);
        let value = c_int::from_ne_bytes(value);
        with(|world| world.with(|stack, _, now| stack.tcp_set_quick_ack(id, value, now)));
    }
    if !READ.contains(&(level, name)) && !RARE.contains(&(level, name)) {
        return;
    }
    with(|world| {
        world.with(|stack, packets, now| {
            if let Ok(options) = stack.tcp_options(id) {
                kernel::follow(fd, level, name, options);
                let pushes = (level, name) == (IPPROTO_TCP, libc::TCP_NODELAY)
                    && options.has(TcpOptions::NODELAY);
                stack.tcp_options_changed(packets, id, now);
                if pushes {
                    stack.tcp_push(packets, id, now);
                }
            }
        });
    });
}

/// SO_TIMESTAMPING of a connection; `None`: the kernel's socket is all there is.
#[must_use]
pub fn set_timestamping(fd: c_int, flags: u32) -> Option<Answer> {
    let Socket::Connection { id, .. } = of(fd)? else {
        return None;
    };
    if timestamping_of_shadow(flags).is_none() {
        return Some(Err(libc::EINVAL));
    }
    with(|world| world.stack().tcp_set_timestamping(id, flags))?.ok()?;
    Some(Ok(0))
}

/// An option's value where the engine knows better than the kernel's socket.
#[must_use]
pub fn option(fd: c_int, level: c_int, name: c_int) -> Option<Vec<u8>> {
    let (level, name) = usual_name(level, name);
    let socket = of(fd)?;
    let id = socket.id()?;
    let is_listener = matches!(socket, Socket::Listener(_));
    with(|world| {
        let now = bypass_stack::Instant(world.now);
        let mut stack = world.stack();
        let status = stack.tcp_status(id).ok()?;
        let options = *stack.tcp_options(id).ok()?;
        match (level, name) {
            (IPPROTO_TCP, libc::TCP_QUICKACK) => {
                let quick = c_int::from(stack.tcp_quick_ack(id).ok()?);
                Some(quick.to_ne_bytes().into())
            }
            (SOL_SOCKET, libc::SO_ERROR) => Some(stack.tcp_socket_error(id).to_ne_bytes().into()),
            (IPPROTO_TCP, libc::TCP_INFO) if !is_listener => {
                let mut bytes = stack.tcp_info(id, now).ok()?.as_bytes().to_vec();
                // As long as the kernel's, with zeros for what the engine does not know.
                let mut kernels = [0; 512];
                let len = kernel::option(fd, level, name, &mut kernels).ok()?;
                bytes.resize(len, 0);
                Some(bytes)
            }
            (IPPROTO_TCP, libc::TCP_MAXSEG) if status.state != TcpState::Listen => {
                let mss = stack.tcp_info(id, now).ok()?.snd_mss;
                Some(mss.to_ne_bytes().into())
            }
            (IPPROTO_TCP, libc::TCP_CONGESTION) => {
                let mut bytes = congestion::name(options.congestion).as_bytes().to_vec();
                bytes.resize(16, 0);
                Some(bytes)
            }
            _ => Some(number(level, name, &options)?.to_ne_bytes().into()),
        }
    })?
}

/// An ioctl that asks for a number of bytes; `None`: none of those.
#[must_use]
pub fn queued(fd: c_int, request: u64) -> Option<Result<c_int, i32>> {
    /// `SIOCOUTQNSD` of linux/sockios.h.
    const SIOCOUTQNSD: u64 = 0x894b;
    let asked = [libc::FIONREAD, libc::TIOCOUTQ, SIOCOUTQNSD].contains(&request);
    let id = match of(fd)? {
        Socket::Listener(_) if asked => return Some(Err(libc::EINVAL)),
        Socket::Connection { id, .. } if asked => id,
        _ => return None,
    };
    let status = with(|world| world.stack().tcp_status(id))?.ok()?;
    let value = match request {
        libc::FIONREAD if status.state == TcpState::SynReceived => 0,
        libc::FIONREAD => status.readable,
        libc::TIOCOUTQ => status.unacked,
        _ => status.unsent,
    };
    Some(Ok(value as c_int))
}
