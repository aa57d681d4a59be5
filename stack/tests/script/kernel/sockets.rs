//! The calls of a script as system calls.

use super::super::flow::{local, our_byte, peer_byte};
use super::super::sockets::{CA, EVENTS, check_result, info_field};
use super::super::words::{Outcome, Words, comparison, errno_name, fit, holds, number};
use super::{Kernel, PATIENCE, packet, system};
use crate::common::{TcpFields, tcp_frame};
use bypass_stack::{SocketAddress, TcpInfo};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{self, AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, sockopt};
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};
use zerocopy::{FromZeros, IntoBytes};

/// The sockets of a script by name.
#[derive(Debug, Default)]
pub struct Sockets {
    named: BTreeMap<String, Socket>,
    /// Options of the next one.
    options: Vec<String>,
}

#[derive(Debug)]
struct Socket {
    /// None once it is closed.
    fd: Option<OwnedFd>,
    remote: Option<SocketAddress>,
    flow: u16,
    inline: bool,
    written: u32,
    read: u32,
}

impl Sockets {
    /// Closes all with a reset.
    pub fn abort(&mut self) {
        for socket in std::mem::take(self).named.into_values() {
            if let Some(fd) = &socket.fd {
                let _ = sockopt::set_socket_linger(fd, Some(Duration::ZERO));
            }
        }
    }

    fn get(&mut self, name: &str) -> Outcome<&mut Socket> {
        self.named
            .get_mut(name)
            .ok_or_else(|| format!("no such socket: {name}"))
    }
}

impl Socket {
    fn fd(&self) -> Outcome<&OwnedFd> {
        self.fd.as_ref().ok_or_else(|| "it is closed".to_owned())
    }
}

/// Waits until a descriptor is readable.
pub fn wait(fd: impl AsFd, at_most: Duration) {
    let span = Timespec {
        tv_sec: at_most.as_secs() as i64,
        tv_nsec: i64::from(at_most.subsec_nanos()),
    };
    let mut fds = [PollFd::new(&fd, PollFlags::IN)];
    let _ = poll(&mut fds, Some(&span));
}

fn system_address(address: SocketAddress) -> SocketAddr {
    let ip = match address.ip.to_v4() {
        Some(v4) => IpAddr::from(v4),
        None => IpAddr::from(address.ip.0),
    };
    SocketAddr::new(ip, address.port)
}

fn failed(what: &str) -> impl Fn(Errno) -> String + '_ {
    move |error| format!("{what}: {error}")
}

/// The result of a call as a script writes it.
fn result_name(result: Result<usize, Errno>) -> String {
    match result {
        Ok(count) => count.to_string(),
        Err(error) => errno_name(error.raw_os_error()),
    }
}

impl Kernel {
    /// A call on a socket.
    pub fn call(&mut self, verb: &str, words: &mut Words<'_>) -> Outcome<()> {
        let name = words.want("socket")?;
        match verb {
            "listen" => self.listen(name, words),
            "connect" => self.connect(name, words),
            "fast" => self.send_fast(name, words),
            "accept" => self.accept(name, words),
            "send" => self.send(name, words),
            "recv" => self.receive(name, words),
            "oob" => self.receive_urgent(name, words),
            "shutdown" => {
                let how = match words.want("direction")? {
                    "rd" => net::Shutdown::Read,
                    "wr" => net::Shutdown::Write,
                    "rdwr" => net::Shutdown::Both,
                    word => return Err(format!("no direction: {word}")),
                };
                let result = net::shutdown(self.sockets.get(name)?.fd()?, how);
                check_result(words, &result_name(result.map(|()| 0)), "0")
            }
            "close" => {
                self.sockets.get(name)?.fd = None;
                Ok(())
            }
            "abort" => {
                let socket = self.sockets.get(name)?;
                sockopt::set_socket_linger(socket.fd()?, Some(Duration::ZERO))
                    .map_err(failed("linger"))?;
                socket.fd = None;
                Ok(())
            }
            "path-mtu" => self.path_mtu(name, words),
            "unreachable" => self.unreachable(name, words),
            "option" => self.option(name, words),
            "expect" => self.expect(name, words),
            "info" => self.info(name, words),
            _ => Err(format!("not for the kernel: {verb}")),
        }
    }

    /// A bound socket with the options of the next one.
    fn open(&mut self) -> Outcome<OwnedFd> {
        let family = if self.is_v4 {
            AddressFamily::INET
        } else {
            AddressFamily::INET6
        };
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let fd =
            net::socket_with(family, SocketType::STREAM, flags, None).map_err(failed("socket"))?;
        sockopt::set_socket_reuseaddr(&fd, true).map_err(failed("reuse"))?;
        // The default of a namespace can be none that the first one restricts.
        set_option(&fd, "congestion=cubic")?;
        for word in std::mem::take(&mut self.sockets.options) {
            set_option(&fd, &word)?;
        }
        let until = Instant::now() + PATIENCE;
        loop {
            match net::bind(&fd, &system_address(local(self.is_v4))) {
                // A process that some other test has just forked still holds what was closed.
                Err(Errno::ADDRINUSE) if Instant::now() < until => std::thread::yield_now(),
                result => break result.map_err(failed("bind"))?,
            }
        }
        Ok(fd)
    }

    fn add(&mut self, name: &str, fd: OwnedFd, flow: Option<u16>) {
        let inline = sockopt::socket_oobinline(&fd).unwrap_or(false);
        let socket = Socket {
            fd: Some(fd),
            remote: flow.map(|flow| self.remote(flow)),
            flow: flow.unwrap_or(1),
            inline,
            written: 1,
            read: 1,
        };
        self.sockets.named.insert(name.to_owned(), socket);
    }

    fn listen(&mut self, name: &str, words: &mut Words<'_>) -> Outcome<()> {
        let backlog = match words.next() {
            Some(count) => fit::<u32>(count)?,
            None => 16,
        };
        let fd = self.open()?;
        net::listen(&fd, backlog as i32).map_err(failed("listen"))?;
        self.add(name, fd, None);
        Ok(())
    }

    fn connect(&mut self, name: &str, words: &mut Words<'_>) -> Outcome<()> {
        let flow = match words.peek() {
            None | Some("->") => 1,
            Some(number) => {
                words.next();
                fit(number)?
            }
        };
        let fd = self.open()?;
        let result = match net::connect(&fd, &system_address(self.remote(flow))) {
            Err(Errno::INPROGRESS) => Ok(0),
            result => result.map(|()| 0),
        };
        self.add(name, fd, Some(flow));
        check_result(words, &result_name(result), "0")
    }

    fn send_fast(&mut self, name: &str, words: &mut Words<'_>) -> Outcome<()> {
        let len: usize = fit(words.want("length")?)?;
        let flow = match words.peek() {
            None | Some("->") => 1,
            Some(_) => fit(words.want("flow")?)?,
        };
        let fd = self.open()?;
        let bytes: Vec<u8> = (1..=len as u32).map(our_byte).collect();
        let flags = SendFlags::from_bits_retain(libc::MSG_FASTOPEN as u32) | SendFlags::NOSIGNAL;
        let result = net::sendto(&fd, &bytes, flags, &system_address(self.remote(flow)));
        self.add(name, fd, Some(flow));
        self.sockets.get(name)?.written += result.unwrap_or(0) as u32;
        check_result(words, &result_name(result), &len.to_string())
    }

    fn accept(&mut self, name: &str, words: &mut Words<'_>) -> Outcome<()> {
        let child = words.want("socket")?;
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let found = net::acceptfrom_with(self.sockets.get(name)?.fd()?, flags);
        match (found, child) {
            (Err(Errno::AGAIN), "none") => Ok(()),
            (Err(error), _) => Err(format!("accept: {error}")),
            (Ok(_), "none") => Err("there is a connection".to_owned()),
            (Ok((fd, peer)), child) => {
                let peer = peer.and_then(|peer| SocketAddr::try_from(peer).ok());
                self.add(
                    child,
                    fd,
                    peer.map(|peer| peer.port() - self.remote(0).port),
                );
                Ok(())
            }
        }
    }

    fn send(&mut self, name: &str, words: &mut Words<'_>) -> Outcome<()> {
        let len: usize = fit(words.want("length")?)?;
        let mut flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        for (word, flag) in [
            ("more", SendFlags::MORE),
            ("eor", SendFlags::EOR),
            ("oob", SendFlags::OOB),
        ] {
            if words.peek() == Some(word) {
                words.next();
                flags |= flag;
            }
        }
        let socket = self.sockets.get(name)?;
        let bytes: Vec<u8> = (0..len as u32)
            .map(|nth| our_byte(socket.written.wrapping_add(nth)))
            .collect();
        let result = net::send(socket.fd()?, &bytes, flags);
        socket.written += result.unwrap_or(0) as u32;
        check_result(words, &result_name(result), &len.to_string())
    }

    fn receive(&mut self, name: &str, words: &mut Words<'_>) -> Outcome<()> {
        let most: usize = fit(words.want("length")?)?;
        let socket = self.sockets.get(name)?;
        let at_mark = system::ioctl_int(socket.fd()?, SIOCATMARK).unwrap_or(0) != 0;
        if most > 0 && at_mark && !socket.inline {
            socket.read += 1;
        }
        let mut bytes = vec![0; most];
        let result = net::recv(socket.fd()?, &mut bytes[..], RecvFlags::DONTWAIT).map(|r| r.0);
        let count = result.unwrap_or(0);
        let right = bytes[..count]
            .iter()
            .enumerate()
            .all(|(nth, byte)| *byte == peer_byte(socket.read.wrapping_add(nth as u32)));
        if !right {
            return Err("wrong bytes".to_owned());
        }
        socket.read += count as u32;
        check_result(words, &result_name(result), &most.to_string())
    }

    fn receive_urgent(&mut self, name: &str, words: &mut Words<'_>) -> Outcome<()> {
        let socket = self.sockets.get(name)?;
        let mut byte = [0; 1];
        let flags = RecvFlags::OOB | RecvFlags::DONTWAIT;
        let result = net::recv(socket.fd()?, &mut byte[..], flags).map(|r| r.0);
        let wanted = words.want("->").and_then(|_| words.want("result"))?;
        let same = match result {
            Ok(_) => fit::<u32>(wanted).is_ok_and(|seq| peer_byte(seq) == byte[0]),
            Err(_) => result_name(result) == wanted,
        };
        if same {
            Ok(())
        } else {
            Err(format!(
                "the urgent byte is {byte:?}, {result:?}, expected {wanted}"
            ))
        }
    }

    /// The packet of ours that an ICMP error quotes: a segment with this relative number.
    fn quoted(&mut self, name: &str, seq: Option<u32>) -> Outcome<Vec<u8>> {
        let number = self.sockets.get(name)?.flow;
        let (local, remote) = (self.local(), self.remote(number));
        let flow = self.flow(number);
        let fields = TcpFields {
            seq: flow
                .base
                .ours
                .wrapping_add(seq.unwrap_or_else(|| flow.newest())),
            ..TcpFields::default()
        };
        let frame = tcp_frame(local, remote, &fields);
        Ok(packet::packet_of(&frame).to_vec())
    }

    /// `path-mtu S BYTES [SEQ]`: a router says that a packet was too big.
    fn path_mtu(&mut self, name: &str, words: &mut Words<'_>) -> Outcome<()> {
        let mtu: u32 = fit(words.want("bytes")?)?;
        let seq = words.next().map(fit).transpose()?;
        let about = self.quoted(name, seq)?;
        let message = if self.is_v4 {
            packet::icmp(3, 4, mtu, &about)
        } else {
            packet::icmp(2, 0, mtu, &about)
        };
        self.write(&message)
    }

    /// `unreachable S ERRNO`.
    fn unreachable(&mut self, name: &str, words: &mut Words<'_>) -> Outcome<()> {
        let (v4, v6) = match words.want("errno")? {
            "EHOSTUNREACH" => ((3, 1), (1, 3)),
            "EPROTO" => ((12, 0), (4, 0)),
            "ECONNREFUSED" => ((3, 3), (1, 4)),
            word => return Err(format!("no ICMP error for {word}")),
        };
        let seq = words.next().map(fit).transpose()?;
        let about = self.quoted(name, seq)?;
        let (kind, code) = if self.is_v4 { v4 } else { v6 };
        self.write(&packet::icmp(kind, code, 0, &about))
    }

    fn option(&mut self, name: &str, words: &mut Words<'_>) -> Outcome<()> {
        while let Some(word) = words.next() {
            if name == "next" {
                self.sockets.options.push(word.to_owned());
            } else {
                let socket = self.sockets.get(name)?;
                set_option(socket.fd()?, word)?;
                socket.inline = sockopt::socket_oobinline(socket.fd()?).unwrap_or(false);
            }
        }
        Ok(())
    }

    fn expect(&mut self, name: &str, words: &mut Words<'_>) -> Outcome<()> {
        while let Some(word) = words.next() {
            let state = self.state(name)?;
            if word == "gone" {
                if state != "gone" && state != "TIME_WAIT" {
                    return Err(format!("it is not gone but {state}"));
                }
                continue;
            }
            let (bare, on) = match word.strip_prefix('!') {
                Some(bare) => (bare, false),
                None => (word, true),
            };
            let socket = self.sockets.get(name)?;
            if let Some((_, bit)) = EVENTS.iter().find(|(name, _)| *name == bare) {
                // A closed socket has no readiness that anybody could see.
                let Some(fd) = &socket.fd else { continue };
                let events = events(fd)?;
                if (events & bit != 0) != on {
                    return Err(format!("events are {events:#x}, expected {word}"));
                }
            } else if bare.starts_with(char::is_uppercase) {
                if state != word {
                    return Err(format!("the state is {state}, expected {word}"));
                }
            } else if socket.fd.is_some() {
                expect_field(socket, word)?;
            }
        }
        Ok(())
    }

    /// The state of a socket, closed by the program or not.
    fn state(&mut self, name: &str) -> Outcome<&'static str> {
        let is_v4 = self.is_v4;
        let socket = self.sockets.get(name)?;
        if let Some(fd) = &socket.fd {
            return Ok(state_name(tcp_info(fd)?.state));
        }
        let port = socket.remote.map_or(0, |remote| remote.port);
        let path = format!("/proc/thread-self/net/tcp{}", if is_v4 { "" } else { "6" });
        let table = std::fs::read_to_string(path).map_err(|error| error.to_string())?;
        let wanted = format!(":{port:04X}");
        for line in table.lines().skip(1) {
            let fields: Vec<_> = line.split_whitespace().collect();
            if fields[1].ends_with(":0050") && fields[2].ends_with(&wanted) {
                return Ok(state_name(u8::from_str_radix(fields[3], 16).unwrap_or(0)));
            }
        }
        Ok("gone")
    }

    fn info(&mut self, name: &str, words: &mut Words<'_>) -> Outcome<()> {
        let info = tcp_info(self.sockets.get(name)?.fd()?)?;
        while let Some(word) = words.next() {
            let (name, sign, value) = comparison(word)?;
            if REAL_TIME.contains(&name) {
                continue;
            }
            if name == "ca" {
                let found = CA.get(usize::from(info.ca_state)).copied().unwrap_or("?");
                if found != value {
                    return Err(format!("ca is {found}, expected {value}"));
                }
                continue;
            }
            let found = info_field(&info, name).ok_or_else(|| format!("no field: {name}"))?;
            if !holds(found, sign, number(value)?) {
                return Err(format!("{name} is {found}, expected {sign}{value}"));
            }
        }
        Ok(())
    }
}

/// Fields of TCP_INFO that say how long something took, or how much memory there is.
const REAL_TIME: [&str; 15] = [
    "rto",
    "ato",
    "rtt",
    "rttvar",
    "min_rtt",
    "last_data_sent",
    "last_data_recv",
    "last_ack_recv",
    "busy_time",
    "rwnd_limited",
    "sndbuf_limited",
    "delivery_rate",
    "rcv_wnd",
    "rcv_mss",
    "app_limited",
];

const SIOCATMARK: u64 = 0x8905;
/// `TCP_FASTOPEN_NO_COOKIE` of linux/tcp.h.
const FASTOPEN_NO_COOKIE: i32 = 34;
const SIOCOUTQNSD: u64 = 0x894b;

fn tcp_info(fd: &OwnedFd) -> Outcome<TcpInfo> {
    let mut info = TcpInfo::new_zeroed();
    system::get_option(fd, libc::IPPROTO_TCP, libc::TCP_INFO, info.as_mut_bytes())
        .map_err(|error| format!("TCP_INFO: {error}"))?;
    Ok(info)
}

/// What poll says at once.
fn events(fd: &OwnedFd) -> Outcome<u32> {
    let all = PollFlags::IN | PollFlags::OUT | PollFlags::PRI | PollFlags::RDHUP;
    let mut fds = [PollFd::new(fd, all)];
    poll(&mut fds, Some(&Timespec::default())).map_err(failed("poll"))?;
    Ok(u32::from(fds[0].revents().bits()))
}

/// A state of the kernel's as RFC 9293 writes it.
fn state_name(number: u8) -> &'static str {
    const NAMES: [&str; 12] = [
        "?",
        "ESTABLISHED",
        "SYN_SENT",
        "SYN_RECEIVED",
        "FIN_WAIT_1",
        "FIN_WAIT_2",
        "TIME_WAIT",
        "CLOSED",
        "CLOSE_WAIT",
        "LAST_ACK",
        "LISTEN",
        "CLOSING",
    ];
    NAMES.get(usize::from(number)).copied().unwrap_or("?")
}

fn expect_field(socket: &Socket, word: &str) -> Outcome<()> {
    let (name, sign, value) = comparison(word)?;
    let fd = socket.fd()?;
    let ioctl = |request| {
        system::ioctl_int(fd, request)
            .map(|value| value as u64)
            .map_err(|error| format!("{name}: {error}"))
    };
    let found = match name {
        "error" => {
            let found = sockopt::socket_error(fd).map_err(failed("SO_ERROR"))?;
            let found = errno_name(found.err().map_or(0, Errno::raw_os_error));
            return if found == value {
                Ok(())
            } else {
                Err(format!("the error is {found}, expected {value}"))
            };
        }
        "readable" => ioctl(libc::FIONREAD)?,
        "unacked" => ioctl(libc::TIOCOUTQ)?,
        "unsent" => ioctl(SIOCOUTQNSD)?,
        "atmark" => ioctl(SIOCATMARK)?,
        "accepts" => u64::from(tcp_info(fd)?.unacked),
        "eof" => {
            let mut byte = [0; 1];
            let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT;
            u64::from(net::recv(fd, &mut byte[..], flags).map(|r| r.0) == Ok(0))
        }
        // How much a write would take is no number that a program can see.
        "space" => return Ok(()),
        _ => return Err(format!("no such field: {name}")),
    };
    if holds(found, sign, number(value)?) {
        Ok(())
    } else {
        Err(format!("{name} is {found}, expected {sign}{value}"))
    }
}

/// Sets `NAME=VALUE`.
fn set_option(fd: &OwnedFd, word: &str) -> Outcome<()> {
    let (name, _, text) = comparison(word)?;
    let tcp = libc::IPPROTO_TCP;
    let socket = libc::SOL_SOCKET;
    if name == "congestion" {
        return system::set_option(fd, tcp, libc::TCP_CONGESTION, text.as_bytes())
            .map_err(|error| format!("{word}: {error}"));
    }
    let value = number(text)? as i32;
    let (level, option) = match name {
        "nodelay" => (tcp, libc::TCP_NODELAY),
        "cork" => (tcp, libc::TCP_CORK),
        "quickack" => (tcp, libc::TCP_QUICKACK),
        "keepalive" => (socket, libc::SO_KEEPALIVE),
        "oobinline" => (socket, libc::SO_OOBINLINE),
        "recverr" => {
            // A socket of IPv4 knows only the other one.
            let (level, name) = (libc::IPPROTO_IPV6, libc::IPV6_RECVERR);
            let _ = system::set_option(fd, level, name, &value.to_ne_bytes());
            (libc::IPPROTO_IP, libc::IP_RECVERR)
        }
        "keepidle" => (tcp, libc::TCP_KEEPIDLE),
        "keepintvl" => (tcp, libc::TCP_KEEPINTVL),
        "keepcnt" => (tcp, libc::TCP_KEEPCNT),
        "linger" => {
            let linger = Some(Duration::from_secs(value as u64));
            return sockopt::set_socket_linger(fd, linger).map_err(failed("linger"));
        }
        // The kernel doubles what it is told.
        "rcvbuf" => return set_number(fd, word, socket, libc::SO_RCVBUF, value / 2),
        "sndbuf" => return set_number(fd, word, socket, libc::SO_SNDBUF, value / 2),
        "rcvlowat" => (socket, libc::SO_RCVLOWAT),
        "notsent-lowat" => (tcp, libc::TCP_NOTSENT_LOWAT),
        "window-clamp" => (tcp, libc::TCP_WINDOW_CLAMP),
        "defer-accept" => (tcp, libc::TCP_DEFER_ACCEPT),
        "linger2" => (tcp, libc::TCP_LINGER2),
        "maxseg" => (tcp, libc::TCP_MAXSEG),
        "fastopen" => (tcp, libc::TCP_FASTOPEN),
        "fastopen-connect" => (tcp, libc::TCP_FASTOPEN_CONNECT),
        "fastopen-no-cookie" => (tcp, FASTOPEN_NO_COOKIE),
        "syncnt" => (tcp, libc::TCP_SYNCNT),
        "user-timeout-ms" => (tcp, libc::TCP_USER_TIMEOUT),
        _ => return Err(format!("no such option: {name}")),
    };
    set_number(fd, word, level, option, value)
}

fn set_number(fd: &OwnedFd, word: &str, level: i32, option: i32, value: i32) -> Outcome<()> {
    system::set_option(fd, level, option, &value.to_ne_bytes())
        .map_err(|error| format!("{word}: {error}"))
}
