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

use super::filters::{TCP, Wish};
use super::sockopt as own;

/// IPPROTO_UDP.
pub(super) const UDP: u8 = 17;

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
    let is_tcp = request.protocol == TCP;
    let fits = |ip: IpAddress| ip.is_unspecified() || if is_v4(ip) { v4 } else { v6 };
    if ![TCP, UDP].contains(&request.protocol)
        || request.listen > u8::from(is_tcp)
        || local.port == 0
        || !is_remote_whole
        || !fits(local.ip)
        || !fits(remote.ip)
        || is_tcp && remote != SocketAddress::UNSPECIFIED
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
        listens: !is_tcp || request.listen == 1,
    })
}

/// Checks a socket against the wish of a user's program.
///
/// # Errors
/// [`Refusal::Malformed`] when it is no such socket, [`Refusal::NotOwner`] when it is not bound
/// where the wish says.
pub(super) fn check(
    socket: &OwnedFd,
    request: &Request,
    wish: &Wish,
    namespace: u64,
    uid: u32,
) -> Result<(), Refusal> {
    let malformed = |_| Refusal::Malformed;
    let domain = if request.family == 0 {
        AddressFamily::INET
    } else {
        AddressFamily::INET6
    };
    let kind = if wish.protocol == TCP {
        SocketType::STREAM
    } else {
        SocketType::DGRAM
    };
    if sockopt::socket_domain(socket).map_err(malformed)? != domain
        || sockopt::socket_type(socket).map_err(malformed)? != kind
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
    let local = bound_to(socket);
    let remote = match getpeername(socket.as_fd()) {
        Ok(remote) => remote
            .and_then(address)
            .unwrap_or(SocketAddress::UNSPECIFIED),
        Err(Errno::NOTCONN) => SocketAddress::UNSPECIFIED,
        Err(_) => return Err(Refusal::Malformed),
    };
    let is_there =
        local == Some(wish.local) && remote == wish.remote && (bound == 0 || bound == wish.ifindex);
    if is_there && (wish.protocol != TCP || uid == 0 || is_exclusive(socket).map_err(malformed)?) {
        Ok(())
    } else {
        Err(Refusal::NotOwner)
    }
}

/// Whether no other user can have bound a TCP socket to the same address and port. Among sockets
/// with SO_REUSEADDR several may, as long as none listens (socket(7)); a group with SO_REUSEPORT is
/// one user's.
fn is_exclusive(socket: &OwnedFd) -> Result<bool, Errno> {
    Ok(sockopt::socket_acceptconn(socket)? || !sockopt::socket_reuseaddr(socket)?)
}

/// Where a socket is bound.
pub(super) fn bound_to(socket: impl AsFd) -> Option<SocketAddress> {
    getsockname(socket).ok().and_then(address)
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
pub(super) fn normal(ip: IpAddress) -> IpAddress {
    ip.to_v4().map_or(ip, IpAddress::from_v4)
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, SocketAddr};

    use bypass_proto::control::RequestKind;
    use rustix::net::{bind, listen, socket};

    use super::*;

    #[test]
    fn a_port_that_others_may_share_is_no_proof() {
        let fd = socket(AddressFamily::INET, SocketType::STREAM, None).expect("socket");
        sockopt::set_socket_reuseaddr(&fd, true).expect("option");
        bind(&fd, &SocketAddr::from((Ipv4Addr::LOCALHOST, 0))).expect("bind");
        let local = getsockname(&fd).ok().and_then(address).expect("address");
        let request = Request {
            local: local.ip.0,
            local_port: local.port,
            protocol: TCP,
            ..Request::new(RequestKind::AddFilter)
        };
        let wish = wish(&request).expect("wish");
        let namespace = own::namespace_cookie(&fd).expect("cookie");
        let by = |uid| check(&fd, &request, &wish, namespace, uid);
        assert_eq!((by(0), by(1000)), (Ok(()), Err(Refusal::NotOwner)));
        listen(&fd, 1).expect("listen");
        assert_eq!(by(1000), Ok(()));
        assert_eq!(
            check(&fd, &request, &wish, namespace + 1, 0),
            Err(Refusal::NotOwner)
        );
    }
}
