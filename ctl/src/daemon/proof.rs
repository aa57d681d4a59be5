//! Whether a program may have the packets of an address: it must show the kernel socket that is
//! bound there.
//!
//! Possession of the socket is the proof, so everything that the request claims is compared with
//! what the kernel says of it: domain, type, protocol, both addresses, the interface it is
//! bound to, and that it was made in this network namespace (a user can make a namespace of his
//! own in which any address and port is free).

use std::os::fd::{AsFd, OwnedFd};

use bypass_proto::control::{Refusal, Request};
use bypass_stack::{IpAddress, SocketAddress};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, SocketAddrAny, SocketAddrV4, SocketAddrV6, SocketType, getpeername, getsockname,
    sockopt,
};

use super::filters::Wish;
use super::sockopt as own;

/// IPPROTO_UDP. TCP has no endpoints yet.
const UDP: u8 = 17;

/// What a request asks for, as far as it makes sense by itself.
///
/// # Errors
/// [`Refusal::Malformed`].
pub(super) fn wish(request: &Request) -> Result<Wish, Refusal> {
    let local = SocketAddress::new(normal(IpAddress(request.local)), request.local_port);
    let remote = SocketAddress::new(normal(IpAddress(request.remote)), request.remote_port);
    let is_v4 = |ip: IpAddress| ip.is_v4();
    let is_any = local.ip.is_unspecified();
    let is_remote_whole = remote.ip.is_unspecified() == (remote.port == 0);
    let (v4, v6) = match request.family {
        0 => (true, false),
        1 => (true, true),
        2 => (false, true),
        _ => return Err(Refusal::Malformed),
    };
    let fits = |ip: IpAddress| ip.is_unspecified() || if is_v4(ip) { v4 } else { v6 };
    if request.protocol != UDP
        || local.port == 0
        || !is_remote_whole
        || !fits(local.ip)
        || !fits(remote.ip)
        || local.ip.is_multicast()
        || local.ip.is_limited_broadcast()
    {
        return Err(Refusal::Malformed);
    }
    Ok(Wish {
        local,
        remote,
        protocol: request.protocol,
        v4: v4 && (is_any || is_v4(local.ip)),
        v6: v6 && (is_any || !is_v4(local.ip)),
        ifindex: request.ifindex,
    })
}

/// Checks a socket against the wish.
///
/// # Errors
/// [`Refusal::Malformed`] when it is no such socket, [`Refusal::NotOwner`] when it is not bound
/// where the wish says.
pub(super) fn check(
    socket: &OwnedFd,
    request: &Request,
    wish: &Wish,
    namespace: u64,
) -> Result<(), Refusal> {
    let malformed = |_| Refusal::Malformed;
    let domain = if request.family == 0 {
        AddressFamily::INET
    } else {
        AddressFamily::INET6
    };
    if sockopt::socket_domain(socket).map_err(malformed)? != domain
        || sockopt::socket_type(socket).map_err(malformed)? != SocketType::DGRAM
    {
        return Err(Refusal::Malformed);
    }
    let protocol = sockopt::socket_protocol(socket).map_err(malformed)?;
    if protocol.is_none_or(|protocol| protocol.as_raw().get() != u32::from(wish.protocol)) {
        return Err(Refusal::Malformed);
    }
    if domain == AddressFamily::INET6
        && sockopt::ipv6_v6only(socket).map_err(malformed)? != (request.family == 2)
    {
        return Err(Refusal::Malformed);
    }
    if own::namespace_cookie(socket) != Ok(namespace) {
        return Err(Refusal::NotOwner);
    }
    let bound = own::bound_interface(socket).map_err(malformed)?;
    let local = getsockname(socket).ok().and_then(address);
    let remote = match getpeername(socket.as_fd()) {
        Ok(remote) => remote
            .and_then(address)
            .unwrap_or(SocketAddress::UNSPECIFIED),
        Err(Errno::NOTCONN) => SocketAddress::UNSPECIFIED,
        Err(_) => return Err(Refusal::Malformed),
    };
    let is_there =
        local == Some(wish.local) && remote == wish.remote && (bound == 0 || bound == wish.ifindex);
    if is_there {
        Ok(())
    } else {
        Err(Refusal::NotOwner)
    }
}

fn address(address: SocketAddrAny) -> Option<SocketAddress> {
    if let Ok(v4) = SocketAddrV4::try_from(address.clone()) {
        return Some(SocketAddress::new(
            IpAddress::from_v4(v4.ip().octets()),
            v4.port(),
        ));
    }
    let v6 = SocketAddrV6::try_from(address).ok()?;
    Some(SocketAddress::new(
        normal(IpAddress(v6.ip().octets())),
        v6.port(),
    ))
}

/// ::ffff:0.0.0.0 is "any" like the others.
fn normal(ip: IpAddress) -> IpAddress {
    ip.to_v4().map_or(ip, IpAddress::from_v4)
}
