//! The UDP sockets of the network namespace: sock_diag(7), include/uapi/linux/inet_diag.h.

use std::collections::HashSet;

use bypass_backends::netlink;
use rustix::io::Errno;
use rustix::net::AddressFamily;
use rustix::net::netlink::SOCK_DIAG;

/// The cookies (SO_COOKIE) of all UDP sockets that are bound, IPv4 and IPv6. A socket that is bound
/// anew meanwhile may be missing.
///
/// # Errors
/// What the kernel answers: `ENOENT` where it has no udp_diag.
pub(in crate::daemon) fn udp_cookies() -> Result<HashSet<u64>, Errno> {
    /// SOCK_DIAG_BY_FAMILY.
    const BY_FAMILY: u16 = 20;
    let mut found = HashSet::new();
    for family in [AddressFamily::INET, AddressFamily::INET6] {
        netlink::dump(Some(SOCK_DIAG), BY_FAMILY, &all_udp(family), |message| {
            found.extend(cookie(message.body));
        })?;
    }
    Ok(found)
}

/// A struct inet_diag_req_v2 for all UDP sockets of a family, in every state, with any addresses.
fn all_udp(family: AddressFamily) -> [u8; 56] {
    const UDP: u8 = 17;
    let mut body = [0; 56];
    body[..2].copy_from_slice(&[family.as_raw() as u8, UDP]);
    body[4..8].copy_from_slice(&u32::MAX.to_ne_bytes());
    body
}

/// The cookie of a struct inet_diag_msg: two words, the lower one first.
fn cookie(body: &[u8]) -> Option<u64> {
    /// Behind family, state, timer and retransmissions, ports, addresses and the interface.
    const AT: usize = 4 + 4 + 32 + 4;
    let word = |at| netlink::word(body, at).map(u64::from);
    Some(word(AT)? | word(AT + 4)? << 32)
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;

    use rustix::net::sockopt;

    use super::*;

    #[test]
    fn bound_sockets_are_found_until_they_are_closed() {
        let sockets = ["127.0.0.1:0", "[::1]:0"].map(|at| UdpSocket::bind(at).expect("socket"));
        let cookies = sockets
            .each_ref()
            .map(|socket| sockopt::socket_cookie(socket).expect("cookie"));
        let there = udp_cookies().expect("udp_diag");
        assert!(cookies.iter().all(|cookie| there.contains(cookie)));
        drop(sockets);
        let there = udp_cookies().expect("udp_diag");
        assert!(!cookies.iter().any(|cookie| there.contains(cookie)));
    }
}
