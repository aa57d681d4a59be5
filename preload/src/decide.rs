//! Whether a socket is accelerated, and the step that makes it so.
//!
//! Policy is asked when a call fixes an address (bind, connect, the first send); the endpoint and
//! its
//! filter are made in that same call. What the kernel has received by then is read from the shadow.

use std::os::fd::BorrowedFd;

use bypass_proto::control::{Request, RequestKind};
use bypass_proto::policy::{Address, Decision, Program, Protocol, Query, Role, User};
use bypass_proto::reason::FallThrough;
use bypass_stack::cplane::{self, CplaneReason, Lookup};
use bypass_stack::{EndpointId, Family, IpAddress, OpenError, ProcessId, SocketAddress, UdpOpen};

use crate::context::Joined;
use crate::family::uring;
use crate::fdtable::{self, Entry};
use crate::{config, context, interface, process, report, shadow, wait};

/// `IPPROTO_UDP` as the policy and the control messages name it.
pub const UDP: u8 = 17;
/// `IPPROTO_TCP` likewise.
pub const TCP: u8 = 6;

/// Asks the policy about a UDP socket whose addresses are now `local` and `remote`; notes the
/// answer in the table and in the report.
pub fn decide(fd: i32, role: Role) -> Entry {
    let Some(local) = shadow::local(fd) else {
        return Entry::Candidate;
    };
    let remote = shadow::remote(fd);
    let verdict = ask_policy(fd, Protocol::Udp, role, local, remote);
    let (reason, rule) = match verdict {
        Ok((rule, _)) => (None, rule),
        Err((reason, rule)) => (Some(reason), rule),
    };
    report::note(fd, reason, rule, UDP, role, Some((local, remote)));
    match verdict {
        Ok((_, only)) => activate_on(fd, only),
        Err(_) => {
            fdtable::set(fd, Entry::Other);
            Entry::Other
        }
    }
}

/// The rule that accelerates and the interface that it restricts the socket to (0 = none), or the
/// reason and rule that do not.
pub type Verdict = Result<(Option<usize>, u32), (FallThrough, Option<usize>)>;

/// Asks the policy about a socket with these addresses.
///
/// # Errors
/// The reason that keeps the socket with the kernel, and the rule that says so.
pub fn ask_policy(
    fd: i32,
    protocol: Protocol,
    role: Role,
    local: SocketAddress,
    remote: Option<SocketAddress>,
) -> Verdict {
    let config = config::get();
    if config.is_secure() {
        return Err((FallThrough::Secure, None));
    }
    if config.options.disable {
        return Err((FallThrough::Disabled, None));
    }
    if let Some(reason) = uring::keeps_out() {
        return Err((reason, None));
    }
    // The tool and its daemon never accelerate themselves.
    if config.program.ends_with("/bypassctl") {
        return Err((FallThrough::Program, None));
    }
    let Ok(policy) = &config.policy else {
        return Err((FallThrough::BadConfig, None));
    };
    let interface = if policy.names_interfaces() {
        interface::of_socket(bound_device(fd), local.ip)
    } else {
        None
    };
    let query = Query {
        program: Program {
            file: &config.program,
            started_as: &config.started_as,
        },
        user: User {
            uid: config.uid,
            name: None,
        },
        protocol,
        role,
        local: Some(Address {
            ip: local.ip.0,
            port: local.port,
        }),
        remote: remote.map(|remote| Address {
            ip: remote.ip.0,
            port: remote.port,
        }),
        interface: interface.as_deref(),
    };
    match policy.decide(&query) {
        Decision::Accelerate {
            rule,
            interface: Some(name),
            ..
        } => match interface::index(name) {
            Some(only) => Ok((rule, only)),
            None => Err((FallThrough::NoInterface, rule)),
        },
        Decision::Accelerate { rule, .. } => Ok((rule, 0)),
        Decision::Kernel { reason, rule } => Err((reason, rule)),
    }
}

/// Makes a decided socket's endpoint and filter. On failure the socket stays with the kernel for
/// good and the reason is in the report.
pub fn activate(fd: i32) -> Entry {
    activate_on(fd, 0)
}

/// [`activate`], on this interface only; 0 = all.
fn activate_on(fd: i32, only: u32) -> Entry {
    report::begin();
    match try_activate(fd, only) {
        Ok(endpoint) => {
            let entry = Entry::Udp(endpoint);
            fdtable::set(fd, entry);
            report::accelerated(fd, endpoint);
            wait::epoll_set::activated(fd, endpoint, true);
            entry
        }
        Err(reason) => {
            fdtable::set(fd, Entry::Other);
            report::refused(fd, reason);
            Entry::Other
        }
    }
}

/// Activates the socket if it is decided; what it is then.
#[inline]
pub fn ready(fd: i32) -> Entry {
    match fdtable::get(fd) {
        Entry::Bound => activate(fd),
        entry => entry,
    }
}

fn try_activate(fd: i32, only: u32) -> Result<EndpointId, FallThrough> {
    let family = shadow::family(fd).ok_or(FallThrough::NotInet)?;
    let local = shadow::local(fd).ok_or(FallThrough::Undecided)?;
    let remote = shadow::remote(fd);
    let joined = context::join()?;
    if let Some(reason) = stays(joined, local, remote) {
        return Err(reason);
    }
    let cookie = shadow::cookie(fd);
    let mut options = shadow::options(fd, family);
    options.shim_words[shadow::ONLY_WORD] = only;
    let ifindex = match bound_device(fd) {
        0 => only,
        device => device,
    };
    let open = UdpOpen {
        family,
        local,
        remote,
        process: context::process(),
        options,
        shadow_cookie: cookie,
        ifindex,
    };
    let endpoint = {
        let mut locked = joined.attachment.lock().map_err(|_| FallThrough::System)?;
        // After a fork the socket may be accelerated already, by a relative of this process.
        if process::has_relatives()
            && let Some(endpoint) = locked.stack().udp_find(cookie)
        {
            locked.stack().hold(endpoint, context::process());
            return Ok(endpoint);
        }
        locked.stack().udp_open(&open).map_err(not_opened)?
    };
    match add_filter(fd, endpoint, (UDP, 0), family, (local, remote), ifindex) {
        Ok(filter) => {
            if let Ok(mut locked) = joined.attachment.lock() {
                locked.stack().set_filter(endpoint, filter);
            }
            joined.refresh();
            Ok(endpoint)
        }
        Err(reason) => {
            if let Ok(mut locked) = joined.attachment.lock() {
                locked.stack().unhold(endpoint, context::process());
            }
            Err(reason)
        }
    }
}

/// Why the stack has opened no endpoint.
pub fn not_opened(error: OpenError) -> FallThrough {
    match error {
        OpenError::Resting => FallThrough::Rollback,
        OpenError::Full | OpenError::NoProcess | OpenError::InUse => FallThrough::Limit,
    }
}

/// Why addresses keep a socket in the kernel that the policy alone cannot see: a subnet's broadcast
/// address, or a peer that is one of this host's own addresses, which only
/// BYPASS_ACCELERATE_LOCAL accelerates.
fn stays(
    joined: &Joined,
    local: SocketAddress,
    remote: Option<SocketAddress>,
) -> Option<FallThrough> {
    let kind = |to: IpAddress, from: IpAddress| {
        let ask = |table: &_| cplane::lookup(table, to, from, 0, 0);
        joined.cplane.read(ask)
    };
    let is_broadcast = |found| found == Some(Lookup::Kernel(CplaneReason::Broadcast));
    if !local.ip.is_unspecified() && is_broadcast(kind(local.ip, IpAddress::UNSPECIFIED)) {
        return Some(FallThrough::Broadcast);
    }
    let found = kind(remote?.ip, local.ip);
    if is_broadcast(found) {
        return Some(FallThrough::Broadcast);
    }
    let is_local = found == Some(Lookup::Local) && !config::get().options.accelerate_local;
    is_local.then_some(FallThrough::LocalRoute)
}

/// SO_BINDTODEVICE as an interface index; 0 = none.
pub fn bound_device(fd: i32) -> u32 {
    shadow::option::<i32>(fd, libc::SOL_SOCKET, shadow::SO_BINDTOIFINDEX)
        .unwrap_or(0)
        .max(0) as u32
}

/// Asks the daemon to steer the socket's packets to the endpoint. `listen` is 1 for a TCP listener,
/// else 0.
///
/// # Errors
/// The reason that the daemon's refusal is for the socket.
pub fn add_filter(
    fd: i32,
    endpoint: EndpointId,
    (protocol, listen): (u8, u8),
    family: Family,
    (local, remote): (SocketAddress, Option<SocketAddress>),
    ifindex: u32,
) -> Result<u32, FallThrough> {
    let remote = remote.unwrap_or(SocketAddress::new(IpAddress::UNSPECIFIED, 0));
    let request = Request {
        local: local.ip.0,
        local_port: local.port,
        remote: remote.ip.0,
        remote_port: remote.port,
        protocol,
        listen,
        family: match family {
            Family::V4 => 0,
            Family::Dual => 1,
            Family::V6 => 2,
        },
        ifindex,
        endpoint_index: endpoint.index,
        endpoint_generation: endpoint.generation,
        ..Request::new(RequestKind::AddFilter)
    };
    #[expect(
        unsafe_code,
        reason = "UNSAFETY: borrows the program's descriptor for one call"
    )]
    // SAFETY: the program's descriptor is open during its own call on it.
    let proof = unsafe { BorrowedFd::borrow_raw(fd) };
    let answer = context::with_control(|control| control.ask(request, Some(proof)));
    answer
        .map(|answer| answer.reply.filter)
        .map_err(context::reason_of)
}

/// Gives a filter back to the daemon.
pub fn remove_filter(filter: u32) {
    if filter != 0 {
        let request = Request {
            filter,
            ..Request::new(RequestKind::RemoveFilter)
        };
        let _ = context::with_control(|control| control.tell(request));
    }
}

/// Waits until the daemon has done what it was told: it answers in order.
pub fn settle() {
    let request = Request::new(RequestKind::QueuePairs);
    let _ = context::with_control(|control| control.ask(request, None));
}

/// The socket's addresses or its device have changed (connect, a dissolved association,
/// SO_BINDTODEVICE): the endpoint and its filter follow. The new filter is in place before the old
/// one goes.
pub fn follow(fd: i32, endpoint: EndpointId) {
    let (Some(joined), Some(family), Some(local)) =
        (context::joined(), shadow::family(fd), shadow::local(fd))
    else {
        return;
    };
    let remote = shadow::remote(fd);
    let Ok(mut locked) = joined.attachment.lock() else {
        return;
    };
    let stack = locked.stack();
    let (Ok(status), Ok(options)) = (stack.udp_status(endpoint), stack.udp_options(endpoint))
    else {
        return;
    };
    let only = options.shim_words[shadow::ONLY_WORD];
    drop(locked);
    let ifindex = match bound_device(fd) {
        0 => only,
        device => device,
    };
    if (status.local, status.remote, status.ifindex) == (local, remote, ifindex) {
        return;
    }
    let filter = if let Some(reason) = stays(joined, local, remote) {
        Err(reason)
    } else if only != 0 && only != ifindex {
        // A rule has accelerated the socket on one interface, and it has left for another.
        Err(FallThrough::NoInterface)
    } else {
        add_filter(fd, endpoint, (UDP, 0), family, (local, remote), ifindex)
    };
    match filter {
        Ok(filter) => {
            if let Ok(mut locked) = joined.attachment.lock() {
                let _ = locked.stack().udp_bind_device(endpoint, ifindex);
                let _ = locked.stack().udp_rebind(endpoint, local, remote);
                locked.stack().set_filter(endpoint, filter);
            }
            remove_filter(status.filter);
            joined.refresh();
            report::addresses(fd, local, remote);
        }
        Err(reason) => {
            wait::epoll_set::handed_over(endpoint);
            release(fd, endpoint);
            report::refused(fd, reason);
        }
    }
}

/// Every descriptor of this process lets go of the endpoint.
pub fn release_all(endpoint: EndpointId) {
    for (fd, entry) in fdtable::entries(0, u32::MAX - 1) {
        if entry == Entry::Udp(endpoint) {
            fdtable::set(fd, Entry::Other);
        }
    }
    abolish(-1, endpoint);
    settle();
}

/// The endpoint ends, for every process that holds it: the socket is the kernel's from here on, and
/// so is what was not read yet.
pub fn abolish(fd: i32, endpoint: EndpointId) {
    fdtable::replace(fd, Entry::Udp(endpoint), Entry::Other);
    let Some(joined) = context::joined() else {
        return;
    };
    wait::epoll_set::handed_over(endpoint);
    let Ok(mut locked) = joined.attachment.lock() else {
        return;
    };
    let filter = locked
        .stack()
        .udp_status(endpoint)
        .map_or(0, |status| status.filter);
    drop(locked);
    hand_over(filter);
    let Ok(mut locked) = joined.attachment.lock() else {
        return;
    };
    let holders = locked.stack().holders(endpoint);
    for slot in 0..128_u8 {
        if holders[usize::from(slot / 64)] >> (slot % 64) & 1 == 1 {
            locked.stack().unhold(endpoint, ProcessId(slot));
        }
    }
}

/// Gives a filter back to the daemon, which gives what the endpoint has not read to the kernel's
/// socket.
fn hand_over(filter: u32) {
    if filter != 0 {
        let request = Request {
            filter,
            ..Request::new(RequestKind::HandOver)
        };
        // Refused, or without a daemon, what was not read is lost.
        let _ = context::with_control(|control| control.ask(request, None));
    }
}

/// This process lets go of the endpoint: the socket is the kernel's from here on.
pub fn release(fd: i32, endpoint: EndpointId) {
    fdtable::replace(fd, Entry::Udp(endpoint), Entry::Other);
    let Some(joined) = context::joined() else {
        return;
    };
    let Ok(mut locked) = joined.attachment.lock() else {
        return;
    };
    let filter = locked
        .stack()
        .udp_status(endpoint)
        .map_or(0, |status| status.filter);
    let gone = locked.stack().unhold(endpoint, context::process());
    drop(locked);
    if gone {
        remove_filter(filter);
    }
}

/// A candidate's first datagram has gone by the kernel, which has given it a port: from now on the
/// socket can be accelerated.
pub fn after_first_send(fd: i32, sent: isize) {
    if sent > 0 && fdtable::get(fd) == Entry::Candidate {
        decide(fd, Role::Send);
    }
}
