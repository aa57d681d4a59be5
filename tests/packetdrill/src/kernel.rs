//! The kernel's sockets behind the descriptors: they judge arguments and keep options.

#![expect(unsafe_code, reason = "UNSAFETY: system calls on memory of our own")]

use std::ffi::c_int;
use std::mem::{size_of, zeroed};
use std::sync::OnceLock;

use bypass_runtime::tcp_options::{Shadow, read};
use bypass_runtime::tcp_settings;
use bypass_stack::{Family, IpAddress, SocketAddress, TcpOptions};
use libc::{sockaddr_storage, socklen_t};

/// What a call answers: the value, or an errno.
pub type Answer = Result<isize, i32>;

/// errno of this thread's last call.
#[must_use]
pub fn errno() -> i32 {
    std::io::Error::last_os_error().raw_os_error().unwrap_or(0)
}

/// A C call's result as an answer.
///
/// # Errors
/// Its errno, when it is negative.
pub fn answer(result: isize) -> Answer {
    if result < 0 { Err(errno()) } else { Ok(result) }
}

/// A socket.
///
/// # Errors
/// As socket(2).
pub fn socket(domain: c_int, kind: c_int, protocol: c_int) -> Answer {
    // SAFETY: plain integers.
    answer(unsafe { libc::socket(domain, kind, protocol) } as isize)
}

/// Gives a new socket the algorithm that every script counts on. Their settings choose it too, but
/// a network namespace may only choose what the host's own does, while a socket may.
pub fn choose_congestion(fd: c_int) {
    let name = b"cubic";
    let (from, len) = (name.as_ptr().cast(), name.len() as socklen_t);
    // SAFETY: the name is readable for its length.
    unsafe { libc::setsockopt(fd, libc::IPPROTO_TCP, libc::TCP_CONGESTION, from, len) };
}

/// Closes it.
///
/// # Errors
/// As close(2).
pub fn close(fd: c_int) -> Answer {
    // SAFETY: plain integers; the descriptor is the caller's.
    answer(unsafe { libc::close(fd) } as isize)
}

/// The kernel's getsockopt. Not libc's symbol, which this library has a function of its own for.
pub fn option(fd: c_int, level: c_int, name: c_int, into: &mut [u8]) -> Result<usize, i32> {
    let mut len = into.len() as socklen_t;
    let to = into.as_mut_ptr();
    // SAFETY: `into` is writable for `len` bytes.
    let result = unsafe { libc::syscall(libc::SYS_getsockopt, fd, level, name, to, &raw mut len) };
    answer(result as isize).map(|_| len as usize)
}

fn int(fd: c_int, level: c_int, name: c_int) -> Option<c_int> {
    let mut bytes = [0; 4];
    option(fd, level, name, &mut bytes).ok()?;
    Some(c_int::from_ne_bytes(bytes))
}

/// Whether sends and receives on it do not wait.
#[must_use]
pub fn is_nonblocking(fd: c_int) -> bool {
    // SAFETY: F_GETFL takes no argument.
    let flags = unsafe { libc::fcntl(fd, libc::F_GETFL) };
    flags >= 0 && flags & libc::O_NONBLOCK != 0
}

/// The family of an IPv4 or IPv6 stream socket.
#[must_use]
pub fn family(fd: c_int) -> Option<Family> {
    match int(fd, libc::SOL_SOCKET, libc::SO_DOMAIN)? {
        libc::AF_INET => Some(Family::V4),
        _ if int(fd, libc::IPPROTO_IPV6, libc::IPV6_V6ONLY) == Some(1) => Some(Family::V6),
        libc::AF_INET6 => Some(Family::Dual),
        _ => None,
    }
}

/// A kernel socket that is asked for the engine's options.
struct Asked(c_int);

impl Shadow for Asked {
    fn option(&self, level: c_int, name: c_int, into: &mut [u8]) -> Option<usize> {
        option(self.0, level, name, into).ok()
    }

    fn fresh_buffers(&self) -> (c_int, c_int) {
        static FRESH: OnceLock<(c_int, c_int)> = OnceLock::new();
        *FRESH.get_or_init(|| {
            let fd = socket(libc::AF_INET, libc::SOCK_STREAM, 0).unwrap_or(-1) as c_int;
            let of = |name| int(fd, libc::SOL_SOCKET, name).unwrap_or(0);
            let sizes = (of(libc::SO_RCVBUF), of(libc::SO_SNDBUF));
            let _ = close(fd);
            sizes
        })
    }

    fn is_nonblocking(&self) -> bool {
        is_nonblocking(self.0)
    }

    fn notsent_lowat(&self) -> u32 {
        tcp_settings::notsent_lowat().unwrap_or(u32::MAX)
    }
}

/// Everything that the engine acts on.
#[must_use]
pub fn options(fd: c_int) -> TcpOptions {
    read(&Asked(fd))
}

/// The keys of its Fast Open cookies.
#[must_use]
pub fn cookie_keys(fd: c_int) -> Vec<[u64; 2]> {
    let mut keys = [[0; 2]; 2];
    let count = bypass_runtime::tcp_options::cookie_keys(&Asked(fd), &mut keys);
    keys.into_iter().take(count).collect()
}

/// One option that has changed.
pub fn follow(fd: c_int, level: c_int, name: c_int, options: &mut TcpOptions) {
    bypass_runtime::tcp_options::read_one(&Asked(fd), level, name, options);
}

/// The address in a sockaddr: (its family, the address).
#[must_use]
pub fn address_of(bytes: &[u8]) -> Option<SocketAddress> {
    let (family, rest) = bytes.split_first_chunk()?;
    let (port, rest) = rest.split_first_chunk()?;
    let ip = match c_int::from(u16::from_ne_bytes(*family)) {
        libc::AF_INET => IpAddress::from_v4(*rest.first_chunk()?),
        libc::AF_INET6 => IpAddress(*rest.get(4..)?.first_chunk()?),
        _ => return None,
    };
    Some(SocketAddress::new(ip, u16::from_be_bytes(*port)))
}

/// The sockaddr of an address, as a socket of this family shows it.
#[must_use]
pub fn sockaddr(address: SocketAddress, family: Family) -> Vec<u8> {
    let port = address.port.to_be_bytes();
    if family == Family::V4 {
        let ip = address.ip.to_v4().unwrap_or_default();
        let family = (libc::AF_INET as u16).to_ne_bytes();
        return [&family[..], &port, &ip, &[0; 8]].concat();
    }
    let family = (libc::AF_INET6 as u16).to_ne_bytes();
    [&family[..], &port, &[0; 4], &address.ip.0, &[0; 4]].concat()
}

/// Binds the kernel's socket.
///
/// # Errors
/// As bind(2).
pub fn bind(fd: c_int, address: &[u8]) -> Answer {
    let (to, len) = (address.as_ptr().cast(), address.len() as socklen_t);
    // SAFETY: `address` is readable for its length.
    answer(unsafe { libc::bind(fd, to, len) } as isize)
}

/// Where it is bound.
#[must_use]
pub fn local(fd: c_int) -> Option<SocketAddress> {
    // SAFETY: plain integers; all zero is a value.
    let mut storage: sockaddr_storage = unsafe { zeroed() };
    let mut len = size_of::<sockaddr_storage>() as socklen_t;
    // SAFETY: `storage` is writable for `len` bytes.
    let result = unsafe { libc::getsockname(fd, (&raw mut storage).cast(), &raw mut len) };
    let from = (&raw const storage).cast::<u8>();
    // SAFETY: all of `storage` is readable.
    let bytes = unsafe { std::slice::from_raw_parts(from, size_of::<sockaddr_storage>()) };
    (result == 0).then(|| address_of(bytes)).flatten()
}

/// Has the kernel's socket listen.
///
/// # Errors
/// As listen(2).
pub fn listen(fd: c_int, backlog: c_int) -> Answer {
    // SAFETY: plain integers.
    answer(unsafe { libc::listen(fd, backlog) } as isize)
}

/// The source address and the MTU that the kernel chooses towards an address.
#[must_use]
pub fn way_to(remote: SocketAddress) -> Option<(IpAddress, u16)> {
    let (domain, family) = if remote.ip.is_v4() {
        (libc::AF_INET, Family::V4)
    } else {
        (libc::AF_INET6, Family::V6)
    };
    let fd = socket(domain, libc::SOCK_DGRAM, 0).ok()? as c_int;
    let address = sockaddr(remote, family);
    let (to, len) = (address.as_ptr().cast(), address.len() as socklen_t);
    // SAFETY: `address` is readable for its length.
    let result = unsafe { libc::connect(fd, to, len) };
    let mtu = if remote.ip.is_v4() {
        int(fd, libc::IPPROTO_IP, libc::IP_MTU)
    } else {
        int(fd, libc::IPPROTO_IPV6, libc::IPV6_MTU)
    };
    let source = local(fd);
    let _ = close(fd);
    let mtu = u16::try_from(mtu?).ok()?;
    (result == 0).then_some((source?.ip, mtu))
}

/// The MTU of `tun0`.
#[must_use]
pub fn device_mtu() -> Option<u16> {
    let text = std::fs::read_to_string("/sys/class/net/tun0/mtu").ok()?;
    text.trim().parse().ok()
}
