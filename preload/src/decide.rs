//! Whether a socket is accelerated, and the step that makes it so.
//!
//! Policy is asked when a call fixes an address (bind, connect, the first send); the endpoint and
//! its
//! filter are made in that same call. What the kernel has received by then is read from the shadow.

use std::os::fd::BorrowedFd;

use bypass_proto::control::{Request, RequestKind};
use bypass_proto::policy::{Address, Decision, Protocol, Query, Role, User};
use bypass_proto::reason::FallThrough;
use bypass_stack::{EndpointId, Family, IpAddress, ProcessId, SocketAddress, UdpOpen};

use crate::fdtable::{self, Entry};
use crate::{config, context, process, report, shadow, wait};

/// `IPPROTO_UDP` as the policy and the control messages name it.
const UDP: u8 = 17;

/// Asks the policy about a UDP socket whose addresses are now `local` and `remote`; notes the
/// answer in the table and in the report.
pub fn decide(fd: i32, role: Role) -> Entry {
    let Some(local) = shadow::local(fd) else {
        return Entry::Candidate;
    };
    let remote = shadow::remote(fd);
    let (entry, reason, rule) = match ask_policy(role, local, remote) {
        Ok(rule) => (Entry::Bound, None, rule),
        Err((reason, rule)) => (Entry::Other, Some(reason), rule),
    };
    fdtable::set(fd, entry);
    report::note(fd, reason, rule, UDP, role, Some((local, remote)));
    if entry == Entry::Bound {
        activate(fd)
    } else {
        entry
    }
}

/// The rule that accelerates, or the reason and rule that do not.
type Verdict = Result<Option<usize>, (FallThrough, Option<usize>)>;

fn ask_policy(role: Role, local: SocketAddress, remote: Option<SocketAddress>) -> Verdict {
    let config = config::get();
    if config.is_secure() {
        return Err((FallThrough::Secure, None));
    }
    if config.options.disable {
        return Err((FallThrough::Disabled, None));
    }
    // The tool and its daemon never accelerate themselves.
    if config.program.ends_with("/bypassctl") {
        return Err((FallThrough::Program, None));
    }
    let Ok(policy) = &config.policy else {
        return Err((FallThrough::BadConfig, None));
    };
    let query = Query {
        program: &config.program,
        user: User {
            uid: config.uid,
            name: None,
        },
        protocol: Protocol::Udp,
        role,
        local: Some(Address {
            ip: local.ip.0,
            port: local.port,
        }),
        remote: remote.map(|remote| Address {
            ip: remote.ip.0,
            port: remote.port,
        }),
        interface: None,
    };
    match policy.decide(&query) {
        Decision::Accelerate { rule, .. } => Ok(rule),
        Decision::Kernel { reason, rule } => Err((reason, rule)),
    }
}

/// Makes a decided socket's endpoint and filter. On failure the socket stays with the kernel for
/// good and the reason is in the report.
pub fn activate(fd: i32) -> Entry {
    match try_activate(fd) {
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

fn try_activate(fd: i32) -> Result<EndpointId, FallThrough> {
    let family = shadow::family(fd).ok_or(FallThrough::NotInet)?;
    let local = shadow::local(fd).ok_or(FallThrough::Undecided)?;
    let remote = shadow::remote(fd);
    let joined = context::join()?;
    let cookie = shadow::cookie(fd);
    let open = UdpOpen {
        family,
        local,
        remote,
        process: context::process(),
        options: shadow::options(fd, family),
        shadow_cookie: cookie,
        ifindex: bound_device(fd),
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
        locked
            .stack()
            .udp_open(&open)
            .map_err(|_| FallThrough::Limit)?
    };
    match add_filter(fd, endpoint, family, local, remote) {
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

/// SO_BINDTODEVICE as an interface index; 0 = none.
fn bound_device(fd: i32) -> u32 {
    /// `SO_BINDTOIFINDEX` of asm-generic/socket.h.
    const SO_BINDTOIFINDEX: i32 = 62;
    shadow::option::<i32>(fd, libc::SOL_SOCKET, SO_BINDTOIFINDEX)
        .unwrap_or(0)
        .max(0) as u32
}

/// Asks the daemon to steer the socket's packets to the endpoint.
pub fn add_filter(
    fd: i32,
    endpoint: EndpointId,
    family: Family,
    local: SocketAddress,
    remote: Option<SocketAddress>,
) -> Result<u32, FallThrough> {
    let remote = remote.unwrap_or(SocketAddress::new(IpAddress::UNSPECIFIED, 0));
    let request = Request {
        local: local.ip.0,
        local_port: local.port,
        remote: remote.ip.0,
        remote_port: remote.port,
        protocol: UDP,
        family: match family {
            Family::V4 => 0,
            Family::Dual => 1,
            Family::V6 => 2,
        },
        ifindex: bound_device(fd),
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

/// The socket's addresses have changed (connect, or a dissolved association): the endpoint and its
/// filter follow. The new filter is in place before the old one goes.
pub fn follow_addresses(fd: i32, endpoint: EndpointId) {
    let (Some(joined), Some(family), Some(local)) =
        (context::joined(), shadow::family(fd), shadow::local(fd))
    else {
        return;
    };
    let remote = shadow::remote(fd);
    let Ok(mut locked) = joined.attachment.lock() else {
        return;
    };
    let Ok(status) = locked.stack().udp_status(endpoint) else {
        return;
    };
    drop(locked);
    if status.local == local && status.remote == remote {
        return;
    }
    match add_filter(fd, endpoint, family, local, remote) {
        Ok(filter) => {
            if let Ok(mut locked) = joined.attachment.lock() {
                let _ = locked.stack().udp_rebind(endpoint, local, remote);
                locked.stack().set_filter(endpoint, filter);
            }
            remove_filter(status.filter);
            joined.refresh();
            report::addresses(fd, local, remote);
        }
        Err(reason) => {
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

/// The endpoint ends, for every process that holds it: the socket is the kernel's from here on.
pub fn abolish(fd: i32, endpoint: EndpointId) {
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
    let holders = locked.stack().holders(endpoint);
    for slot in 0..128_u8 {
        if holders[usize::from(slot / 64)] >> (slot % 64) & 1 == 1 {
            locked.stack().unhold(endpoint, ProcessId(slot));
        }
    }
    drop(locked);
    remove_filter(filter);
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
