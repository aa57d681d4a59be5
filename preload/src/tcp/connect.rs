//! connect: the kernel gives the source address and port, the daemon the right to the flow, the
//! stack makes the connection.

#![expect(
    unsafe_code,
    reason = "UNSAFETY: libc's originals on the program's socket"
)]

use std::ffi::c_int;

use bypass_proto::control::{Request, RequestKind};
use bypass_proto::policy::{Protocol, Role};
use bypass_proto::reason::FallThrough;
use bypass_runtime::clock;
use bypass_stack::cplane::{self, CplaneReason, Lookup};
use bypass_stack::{
    EndpointId, Family, FirstWrite, IpAddress, NextHop, OpenError, QUEUE_PAIR_HAIRPIN,
    SocketAddress, TcpOpen, TcpOptions, TcpState, event,
};
use rustix::io::Errno;

use super::{changed, defaults, flags, ports, with_stack};
use crate::address::Given;
use crate::decide::{self, TCP};
use crate::errno::Answer;
use crate::fdtable::{self, Entry};
use crate::wait::call::Call;
use crate::wait::{self, Woken};
use crate::{address, config, context, report, shadow, symbols};

/// How long a connect waits for a neighbour's MAC address, in nanoseconds. After that the kernel
/// connects, which goes on trying for three seconds (neigh/default/mcast_solicit).
const RESOLVING_NS: u64 = 100_000_000;
/// The same for a socket that does not block. A neighbour that is being resolved or has failed to
/// answer is not waited for again, so that nobody loses this time twice to an absent one.
const RESOLVING_NONBLOCKING_NS: u64 = 3_000_000;

/// connect on a TCP socket that is not connected. `None`: the kernel connects it.
pub fn begin(fd: c_int, to: Given) -> Option<Answer> {
    let Given::Inet(remote) = to else {
        return None;
    };
    Some(match begin_with(fd, remote, None)? {
        // Its SYN waits for the first write.
        Ok(begun) if begun.deferred => {
            set_connecting(begun.endpoint, true);
            Ok(0)
        }
        // Even when the answer is there already, a socket that does not block is told of it later.
        Ok(begun) if begun.nonblocking => {
            set_connecting(begun.endpoint, true);
            Err(Errno::INPROGRESS)
        }
        Ok(begun) => wait_for(fd, begun.endpoint),
        Err(errno) => Err(errno),
    })
}

/// A connection that has begun.
pub(super) struct Begun {
    pub(super) endpoint: EndpointId,
    /// Of the socket.
    pub(super) nonblocking: bool,
    /// Its SYN waits for the first write.
    pub(super) deferred: bool,
    /// Bytes that the SYN has taken.
    pub(super) taken: usize,
}

/// Begins a connection, whose SYN may have the first bytes. `None`: the kernel connects it.
pub(super) fn begin_with(
    fd: c_int,
    remote: SocketAddress,
    first: Option<FirstWrite<'_>>,
) -> Option<Result<Begun, Errno>> {
    report::begin();
    match try_begin(fd, remote, first) {
        Ok(begun) => Some(Ok(begun)),
        Err(Failure::Error(errno)) => Some(Err(errno)),
        Err(Failure::Kernel(reason)) => {
            // The socket is the kernel's from here on, whatever its connect answers.
            fdtable::set(fd, Entry::Other);
            report::refused(fd, reason);
            None
        }
    }
}

/// Why a connect does not begin.
enum Failure {
    /// The socket is the kernel's.
    Kernel(FallThrough),
    /// What the call answers; the socket may be connected again.
    Error(Errno),
}

impl From<FallThrough> for Failure {
    fn from(reason: FallThrough) -> Self {
        Self::Kernel(reason)
    }
}

/// Who connects: the shadow's family and address, and the only interface that the policy's rule
/// names (0 = any).
struct Caller {
    family: Family,
    bound: SocketAddress,
    only: u32,
}

/// Whether the socket may connect through the stack.
fn admit(fd: c_int, remote: SocketAddress) -> Result<Caller, FallThrough> {
    let family = shadow::family(fd).ok_or(FallThrough::NotInet)?;
    let fits = match family {
        Family::V4 => remote.ip.is_v4(),
        Family::V6 => !remote.ip.is_v4(),
        Family::Dual => true,
    };
    if !fits || remote.port == 0 || remote.ip.is_unspecified() {
        return Err(FallThrough::NextHop);
    }
    let bound = shadow::local(fd).ok_or(FallThrough::Undecided)?;
    let asked = decide::ask_policy(fd, Protocol::Tcp, Role::Connect, bound, Some(remote));
    let (reason, rule, only) = match asked {
        Ok((rule, only)) => (None, rule, only),
        Err((reason, rule)) => (Some(reason), rule, 0),
    };
    let place = Some((bound, Some(remote)));
    report::note(fd, reason, rule, TCP, Role::Connect, place);
    match reason {
        None => Ok(Caller {
            family,
            bound,
            only,
        }),
        Some(reason) => Err(reason),
    }
}

/// Everything up to the SYN.
fn try_begin(
    fd: c_int,
    remote: SocketAddress,
    first: Option<FirstWrite<'_>>,
) -> Result<Begun, Failure> {
    let Caller {
        family,
        bound,
        only,
    } = admit(fd, remote)?;
    let joined = context::join()?;
    defaults::follow();
    let ifindex = match decide::bound_device(fd) {
        0 => only,
        device => device,
    };
    let options = changed::options(fd, family);
    let patience = if options.has(TcpOptions::NONBLOCKING) {
        RESOLVING_NONBLOCKING_NS
    } else {
        RESOLVING_NS
    };
    let known = route(joined, bound, remote, (ifindex, patience))?;
    let source = match known {
        _ if !bound.ip.is_unspecified() => bound.ip,
        Some(next_hop) => next_hop.source,
        None => kernels_source(remote).ok_or(FallThrough::NextHop)?,
    };
    let mut open = TcpOpen {
        family,
        local: SocketAddress::new(source, bound.port),
        process: context::process(),
        options,
        shadow_cookie: shadow::cookie(fd),
        ifindex,
    };
    let endpoint = match ports::open(&open, remote) {
        Some((endpoint, local)) => {
            open.local = local;
            endpoint
        }
        None => open_bound(fd, &mut open, bound, remote)?,
    };
    joined.refresh();
    // The grant may have opened the first queue of the interface.
    let looked = known.map_or_else(
        || route(joined, open.local, remote, (ifindex, patience)),
        |next_hop| Ok(Some(next_hop)),
    );
    let sent = match looked {
        Ok(Some(next_hop)) => send_syn(endpoint, (remote, &next_hop), first),
        _ => Err(FallThrough::NextHop.into()),
    };
    let (taken, deferred) = sent.inspect_err(|_| drop_endpoint(endpoint))?;
    fdtable::set(fd, Entry::Tcp(endpoint));
    report::addresses(fd, open.local, Some(remote));
    report::accelerated(fd, endpoint);
    wait::epoll_set::activated(fd, endpoint, false);
    Ok(Begun {
        endpoint,
        nonblocking: open.options.has(TcpOptions::NONBLOCKING),
        deferred,
        taken,
    })
}

/// The first segment leaves by this hop, whose queue must be ours: how many bytes it has taken, and
/// whether it waits for a write instead.
fn send_syn(
    endpoint: EndpointId,
    (remote, next_hop): (SocketAddress, &NextHop),
    first: Option<FirstWrite<'_>>,
) -> Result<(usize, bool), Failure> {
    let sent = with_stack(|_, locked, now| {
        let queue = next_hop.queue_pair;
        if queue != QUEUE_PAIR_HAIRPIN && !locked.has_queue(usize::from(queue)) {
            return Err(OpenError::Full);
        }
        let (stack, packets) = locked.parts();
        let taken = match first {
            Some(first) => stack.tcp_start_with(packets, endpoint, (remote, next_hop), first, now),
            None => {
                let started = stack.tcp_start(packets, endpoint, remote, next_hop, now);
                started.map(|()| 0)
            }
        }?;
        let status = stack.tcp_status(endpoint);
        Ok((taken, status.is_ok_and(|status| status.deferred)))
    });
    match sent {
        Some(Ok(sent)) => Ok(sent),
        Some(Err(OpenError::InUse)) => Err(Failure::Error(Errno::ADDRNOTAVAIL)),
        _ => Err(FallThrough::Limit.into()),
    }
}

/// Opens an endpoint at a port that the shadow is bound to, and asks for its flows.
fn open_bound(
    fd: c_int,
    open: &mut TcpOpen,
    bound: SocketAddress,
    remote: SocketAddress,
) -> Result<EndpointId, Failure> {
    open.local = take_port(fd, open.family, bound, open.local.ip, remote)?;
    // A socket that is bound to an IPv6 address is IPV6_V6ONLY from then on.
    open.family = shadow::family(fd).unwrap_or(open.family);
    let opened = with_stack(|_, locked, _| locked.stack().tcp_open(open));
    let endpoint = opened
        .ok_or(FallThrough::System)?
        .map_err(decide::not_opened)?;
    // The daemon compares with the shadow, which may be bound to any address.
    let proof = if bound.port == 0 { open.local } else { bound };
    let place = (proof, None);
    match decide::add_filter(fd, endpoint, (TCP, 0), open.family, place, open.ifindex) {
        Ok(filter) => {
            with_stack(|_, locked, _| locked.stack().set_filter(endpoint, filter));
            Ok(endpoint)
        }
        Err(reason) => {
            drop_endpoint(endpoint);
            Err(reason.into())
        }
    }
}

fn drop_endpoint(endpoint: EndpointId) {
    with_stack(|_, locked, now| {
        let (stack, packets) = locked.parts();
        stack.tcp_close(packets, endpoint, context::process(), now)
    });
    super::return_filters();
}

/// How the connection's frames leave: by a queue of this stack, or by one that nobody has opened
/// yet (`None`).
fn route(
    joined: &'static context::Joined,
    bound: SocketAddress,
    remote: SocketAddress,
    (ifindex, patience): (u32, u64),
) -> Result<Option<NextHop>, FallThrough> {
    let hash = cplane::flow_hash(&bound, &remote);
    let look = || {
        joined
            .cplane
            .read(|table| cplane::lookup(table, remote.ip, bound.ip, ifindex, hash))
    };
    match look() {
        Some(Lookup::Via(next_hop)) => Ok(Some(next_hop)),
        Some(Lookup::Kernel(CplaneReason::NoBackend)) => Ok(None),
        Some(Lookup::Local) if is_served_here(bound, remote) => {
            Ok(Some(NextHop::hairpin(remote.ip)))
        }
        Some(Lookup::Local) => Err(FallThrough::LocalRoute),
        Some(Lookup::Kernel(CplaneReason::NeighbourMissing)) => {
            resolve(remote, ifindex)?;
            await_next_hop(look, patience).map(Some)
        }
        Some(Lookup::Kernel(_)) | None => Err(FallThrough::NextHop),
    }
}

/// Has the kernel find out the next hop's MAC address, as its own SYN would.
fn resolve(remote: SocketAddress, ifindex: u32) -> Result<(), FallThrough> {
    let request = Request {
        remote: remote.ip.0,
        ifindex,
        ..Request::new(RequestKind::Resolve)
    };
    context::with_control(|control| control.tell(request)).map_err(context::reason_of)
}

/// Looks again and again until the next hop is known, for so many nanoseconds.
fn await_next_hop(
    look: impl Fn() -> Option<Lookup>,
    patience: u64,
) -> Result<NextHop, FallThrough> {
    /// Between two looks: a neighbour on the same wire answers within some of these.
    const PAUSE: rustix::thread::Timespec = rustix::thread::Timespec {
        tv_sec: 0,
        tv_nsec: 50_000,
    };
    let end = clock::now().0.saturating_add(patience);
    loop {
        if let Some(Lookup::Via(next_hop)) = look() {
            return Ok(next_hop);
        }
        if clock::now().0 >= end {
            return Err(FallThrough::NextHop);
        }
        let _ = rustix::thread::nanosleep(&PAUSE);
    }
}

/// Whether this stack has a listener for an address of this host, and may be reached without the
/// kernel (docs/adr/0007).
fn is_served_here(bound: SocketAddress, remote: SocketAddress) -> bool {
    config::get().options.accelerate_local
        && with_stack(|_, locked, _| locked.stack().tcp_listens(remote, bound)) == Some(true)
}

/// The source address that the kernel would choose, by a socket that sends nothing.
fn kernels_source(remote: SocketAddress) -> Option<IpAddress> {
    let (domain, family) = if remote.ip.is_v4() {
        (libc::AF_INET, Family::V4)
    } else {
        (libc::AF_INET6, Family::V6)
    };
    // SAFETY: plain integers.
    let fd =
        unsafe { symbols::socket::original()(domain, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) };
    if fd < 0 {
        return None;
    }
    // SAFETY: plain integers; all zero is a value.
    let mut storage: libc::sockaddr_storage = unsafe { std::mem::zeroed() };
    let len = address::fill(remote, family, &mut storage);
    // SAFETY: `storage` is readable for `len` bytes.
    let result = unsafe {
        symbols::connect::original()(fd, (&raw const storage).cast(), len as libc::socklen_t)
    };
    let source = shadow::local(fd).filter(|_| result == 0);
    // SAFETY: our own descriptor.
    unsafe { symbols::close::original()(fd) };
    source
        .map(|source| source.ip)
        .filter(|ip| !ip.is_unspecified())
}

/// Binds the shadow, so that the port is this connection's: the kernel's own connect would choose
/// source and port in the same way, but later.
fn take_port(
    fd: c_int,
    family: Family,
    bound: SocketAddress,
    source: IpAddress,
    remote: SocketAddress,
) -> Result<SocketAddress, Failure> {
    if bound.port != 0 {
        return Ok(SocketAddress::new(source, bound.port));
    }
    let late = shadow::option::<c_int>(fd, libc::IPPROTO_IP, libc::IP_BIND_ADDRESS_NO_PORT);
    let late = late.unwrap_or(0) != 0;
    if late {
        set_late_port(fd, 0);
    }
    let taken = choose_port(fd, family, source, remote);
    if late {
        set_late_port(fd, 1);
    }
    taken
}

/// The port that the kernel chooses, unless a connection that the stack still closes has it: its
/// shadow is gone, so the kernel does not know. Then the next one that both have free.
fn choose_port(
    fd: c_int,
    family: Family,
    source: IpAddress,
    remote: SocketAddress,
) -> Result<SocketAddress, Failure> {
    let is_free = |local| {
        let asked = with_stack(|_, locked, _| locked.stack().tcp_is_free(local, remote));
        asked == Some(true)
    };
    let any = SocketAddress::new(source, 0);
    let local = bind_shadow(fd, family, any).ok_or(FallThrough::System)?;
    if is_free(local) {
        return Ok(local);
    }
    give_port_back(fd);
    let ports = bypass_runtime::tcp_settings::local_ports();
    let from = local.port.clamp(*ports.start(), *ports.end());
    (from..=*ports.end())
        .chain(*ports.start()..from)
        .map(|port| SocketAddress::new(source, port))
        .filter(|local| is_free(*local))
        .find_map(|local| bind_shadow(fd, family, local))
        .ok_or(Failure::Error(Errno::ADDRNOTAVAIL))
}

/// Binds the shadow; the address that it then has.
fn bind_shadow(fd: c_int, family: Family, local: SocketAddress) -> Option<SocketAddress> {
    // SAFETY: plain integers; all zero is a value.
    let mut storage: libc::sockaddr_storage = unsafe { std::mem::zeroed() };
    let len = address::fill(local, family, &mut storage);
    // SAFETY: `storage` is readable for `len` bytes.
    let result = unsafe {
        symbols::bind::original()(fd, (&raw const storage).cast(), len as libc::socklen_t)
    };
    let bound = shadow::local(fd).filter(|bound| result == 0 && bound.port != 0)?;
    Some(SocketAddress::new(local.ip, bound.port))
}

/// Unbinds the shadow from the port that the kernel chose: a listener that ends lets go of it
/// (net/ipv4/tcp.c:tcp_disconnect), a socket that is only bound does not.
fn give_port_back(fd: c_int) {
    // SAFETY: plain integers; the program does not know the port yet.
    unsafe {
        symbols::listen::original()(fd, 0);
        symbols::shutdown::original()(fd, libc::SHUT_RD);
    }
}

fn set_late_port(fd: c_int, on: c_int) {
    // SAFETY: the value is readable for its size.
    unsafe {
        symbols::setsockopt::original()(
            fd,
            libc::IPPROTO_IP,
            libc::IP_BIND_ADDRESS_NO_PORT,
            (&raw const on).cast(),
            size_of::<c_int>() as libc::socklen_t,
        );
    }
}

/// connect on a socket that has an endpoint: the same call again, or a new one.
pub fn again(fd: c_int, endpoint: EndpointId, to: Given) -> Option<Answer> {
    let status = with_stack(|_, locked, _| {
        let options = super::options_of(locked, endpoint);
        (locked.stack().tcp_status(endpoint), options)
    });
    let Some((Ok(status), Some(options))) = status else {
        return Some(Err(Errno::BADF));
    };
    if to == Given::Foreign {
        // AF_UNSPEC dissolves the connection; the kernel judges all else.
        return None;
    }
    let connecting = options.shim_flags & flags::CONNECTING != 0;
    match status.state {
        _ if status.deferred => Some(Err(Errno::ISCONN)),
        TcpState::SynSent | TcpState::SynReceived if options.has(TcpOptions::NONBLOCKING) => {
            Some(Err(Errno::ALREADY))
        }
        TcpState::Closed if !connecting => {
            release(fd, endpoint);
            begin(fd, to)
        }
        _ if connecting => Some(wait_for(fd, endpoint)),
        _ => Some(Err(Errno::ISCONN)),
    }
}

/// The socket has no connection any more and may be connected again.
pub fn release(fd: c_int, endpoint: EndpointId) {
    wait::epoll_set::released(endpoint);
    fdtable::replace(fd, Entry::Tcp(endpoint), Entry::TcpCandidate);
    drop_endpoint(endpoint);
}

/// Dissolves the connection (connect with AF_UNSPEC): reset, and a socket as new.
pub fn dissolve(fd: c_int, endpoint: EndpointId) {
    with_stack(|_, locked, now| {
        let (stack, packets) = locked.parts();
        stack.tcp_abort(packets, endpoint, now);
    });
    release(fd, endpoint);
}

/// Waits until the connection is made or has failed (net/ipv4/af_inet.c:__inet_stream_connect).
pub(super) fn wait_for(fd: c_int, endpoint: EndpointId) -> Answer {
    let mut deadline = None;
    let mut call = Call::default();
    loop {
        let looked = with_stack(|joined, locked, now| {
            locked.pump(now);
            let status = locked.stack().tcp_status(endpoint);
            let options = super::options_of(locked, endpoint);
            let generation = locked.stack().queue_pairs_generation();
            (joined, status, options, generation)
        });
        let Some((joined, Ok(status), Some(options), generation)) = looked else {
            return Err(Errno::CONNABORTED);
        };
        super::refresh(joined, generation);
        match status.state {
            TcpState::SynSent | TcpState::SynReceived => {}
            TcpState::Closed => return Err(failed(fd, endpoint)),
            _ => {
                set_connecting(endpoint, false);
                return Ok(0);
            }
        }
        set_connecting(endpoint, true);
        if options.has(TcpOptions::NONBLOCKING) {
            return Err(Errno::INPROGRESS);
        }
        if deadline.is_none() {
            deadline = super::deadline(options.sndtimeo_ms);
        }
        match wait::block::until(fd, endpoint, event::OUT, false, (deadline, &mut call)) {
            Woken::Ready => {}
            Woken::TimedOut => return Err(Errno::INPROGRESS),
            Woken::Interrupted if super::restarts(options.sndtimeo_ms) => {}
            Woken::Interrupted => return Err(Errno::INTR),
        }
    }
}

/// Takes the error of a failed connect; the socket may be connected again.
fn failed(fd: c_int, endpoint: EndpointId) -> Errno {
    let error = with_stack(|_, locked, _| locked.stack().tcp_take_error(endpoint)).unwrap_or(0);
    release(fd, endpoint);
    if error == 0 {
        Errno::CONNABORTED
    } else {
        Errno::from_raw_os_error(error)
    }
}

pub(super) fn set_connecting(endpoint: EndpointId, on: bool) {
    with_stack(|_, locked, _| {
        if let Ok(options) = locked.stack().tcp_options(endpoint) {
            if on {
                options.shim_flags |= flags::CONNECTING;
            } else {
                options.shim_flags &= !flags::CONNECTING;
            }
        }
    });
}
