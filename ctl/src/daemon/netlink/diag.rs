//! The UDP sockets of the network namespace: sock_diag(7), include/uapi/linux/inet_diag.h.

use std::collections::HashSet;
use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, netlink, recv, send, socket_with,
    sockopt,
};

use super::message::{self, kind};

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(2);
/// Bytes of an answer's part at most.
const DATAGRAM: usize = 64 * 1024;

/// The cookies (SO_COOKIE) of all UDP sockets that are bound, IPv4 and IPv6. A socket that is bound
/// anew meanwhile may be missing.
///
/// # Errors
/// What the kernel answers: `ENOENT` where it has no udp_diag.
pub(in crate::daemon) fn udp_cookies() -> Result<HashSet<u64>, Errno> {
    let socket = socket_with(
        AddressFamily::NETLINK,
        SocketType::RAW,
        SocketFlags::CLOEXEC,
        Some(netlink::SOCK_DIAG),
    )?;
    sockopt::set_socket_timeout(&socket, sockopt::Timeout::Recv, Some(PATIENCE))?;
    let mut found = HashSet::new();
    for family in [AddressFamily::INET, AddressFamily::INET6] {
        send(&socket, &request(family), SendFlags::empty())?;
        while !read_part(&socket, &mut found)? {}
    }
    Ok(found)
}

/// A request for all UDP sockets of a family.
fn request(family: AddressFamily) -> Vec<u8> {
    /// SOCK_DIAG_BY_FAMILY.
    const BY_FAMILY: u16 = 20;
    /// NLM_F_REQUEST | NLM_F_DUMP.
    const FLAGS: u16 = 0x301;
    const UDP: u8 = 17;
    // struct inet_diag_req_v2: in every state, with any addresses.
    let mut body = [0; 56];
    body[..2].copy_from_slice(&[family.as_raw() as u8, UDP]);
    body[4..8].copy_from_slice(&u32::MAX.to_ne_bytes());
    message::request(BY_FAMILY, FLAGS, 0, &body)
}

/// Reads one part of an answer; whether it was the last.
fn read_part(socket: &OwnedFd, found: &mut HashSet<u64>) -> Result<bool, Errno> {
    let mut buffer = vec![0; DATAGRAM];
    let (bytes, _) = recv(socket, &mut buffer[..], RecvFlags::empty())?;
    for message in message::messages(buffer.get(..bytes).unwrap_or_default()) {
        match (message.kind, message::errno(&message)) {
            (kind::ERROR | kind::DONE, 0) => return Ok(true),
            (kind::ERROR | kind::DONE, errno) => return Err(Errno::from_raw_os_error(errno)),
            _ => found.extend(cookie(message.body)),
        }
    }
    Ok(bytes == 0)
}

/// The cookie of a struct inet_diag_msg: two words, the lower one first.
fn cookie(body: &[u8]) -> Option<u64> {
    /// Behind family, state, timer and retransmissions, ports, addresses and the interface.
    const AT: usize = 4 + 4 + 32 + 4;
    let word = |at: usize| {
        let bytes = body.get(at..at.checked_add(4)?)?;
        Some(u64::from(u32::from_ne_bytes(bytes.try_into().ok()?)))
    };
    Some(word(AT)? | word(AT + 4)? << 32)
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket;

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
