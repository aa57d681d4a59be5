//! Where frames go to and come from.

#![expect(unsafe_code, reason = "UNSAFETY: sockets, and an ioctl, by libc")]

use std::collections::VecDeque;
use std::ffi::CString;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

use crate::filter::Key;
use crate::steal::Thief;

/// One end of a wire.
pub(crate) trait Wire: Send {
    fn send(&mut self, frame: &[u8]);
    /// The next frame that is there; its bytes.
    fn receive(&mut self, into: &mut [u8]) -> Option<usize>;
    /// Descriptors of which one is readable while frames wait.
    fn fds(&self) -> Vec<RawFd> {
        Vec::new()
    }
    /// Whether frames wait, where there is no descriptor.
    fn has_frames(&self) -> bool {
        false
    }
    /// From now on these frames are not the kernel's.
    fn steal(&mut self, _key: &Key) {}
    /// They are again.
    fn give_back(&mut self, _key: &Key) {}
}

/// The wire of this description, for a card with this name.
pub(crate) fn open(what: &str, card: &str) -> Result<Box<dyn Wire>, i32> {
    let (kind, name) = what.split_once(':').unwrap_or((what, card));
    Ok(match kind {
        "loop" => Box::new(Loop::default()),
        "null" => Box::new(Null),
        "pair" => Box::new(Pair::open(name)?),
        "tap" => Box::new(Tap::open(name)?),
        "packet" => Box::new(Packet::open(name)?),
        other => panic!("fake libciul: no wire {other}"),
    })
}

/// What is sent comes back.
#[derive(Default)]
struct Loop(VecDeque<Vec<u8>>);

impl Wire for Loop {
    fn send(&mut self, frame: &[u8]) {
        self.0.push_back(frame.to_vec());
    }

    fn receive(&mut self, into: &mut [u8]) -> Option<usize> {
        let frame = self.0.pop_front()?;
        into[..frame.len()].copy_from_slice(&frame);
        Some(frame.len())
    }

    fn has_frames(&self) -> bool {
        !self.0.is_empty()
    }
}

/// The same datagram from 198.18.0.2:4000 to 198.18.0.1:7007 whenever one is asked for; what is
/// sent is gone.
struct Null;

impl Wire for Null {
    fn send(&mut self, _frame: &[u8]) {}

    fn receive(&mut self, into: &mut [u8]) -> Option<usize> {
        const HEADERS: [u8; 42] = [
            2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0, // Ethernet
            0x45, 0, 0, 46, 0, 0, 0x40, 0, 64, 17, 0, 0, 198, 18, 0, 2, 198, 18, 0, 1, // IPv4
            0x0f, 0xa0, 0x1b, 0x5f, 0, 26, 0, 0, // UDP
        ];
        into[..60].fill(0);
        into[..HEADERS.len()].copy_from_slice(&HEADERS);
        Some(60)
    }

    fn has_frames(&self) -> bool {
        true
    }
}

/// A descriptor of a call that has made one.
pub(crate) fn owned(fd: RawFd) -> Result<OwnedFd, i32> {
    if fd < 0 {
        return Err(errno());
    }
    // SAFETY: a new descriptor.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

pub(crate) fn errno() -> i32 {
    std::io::Error::last_os_error()
        .raw_os_error()
        .unwrap_or(libc::EIO)
}

fn read(fd: &OwnedFd, into: &mut [u8]) -> Option<usize> {
    // SAFETY: room for as many bytes.
    let got = unsafe { libc::read(fd.as_raw_fd(), into.as_mut_ptr().cast(), into.len()) };
    usize::try_from(got).ok().filter(|got| *got > 0)
}

fn write(fd: &OwnedFd, frame: &[u8]) {
    // SAFETY: as many bytes. A frame for which there is no room is lost, as on a wire.
    let _ = unsafe { libc::write(fd.as_raw_fd(), frame.as_ptr().cast(), frame.len()) };
}

const SOCKET: i32 = libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;

/// Two processes, or two cards of one: datagram sockets by an abstract name and a side.
struct Pair {
    socket: OwnedFd,
    other: (libc::sockaddr_un, u32),
}

fn address(name: &str, side: usize) -> (libc::sockaddr_un, u32) {
    // SAFETY: zero is valid for integers.
    let mut address: libc::sockaddr_un = unsafe { std::mem::zeroed() };
    address.sun_family = libc::AF_UNIX as u16;
    let text = format!("\0fake-ciul/{name}/{side}");
    for (to, from) in address.sun_path.iter_mut().zip(text.bytes()) {
        *to = from as libc::c_char;
    }
    (
        address,
        (size_of::<libc::sa_family_t>() + text.len()) as u32,
    )
}

impl Pair {
    fn open(name: &str) -> Result<Self, i32> {
        // SAFETY: no pointers.
        let socket = owned(unsafe { libc::socket(libc::AF_UNIX, libc::SOCK_DGRAM | SOCKET, 0) })?;
        for side in 0..2 {
            let (own, length) = address(name, side);
            let place = (&raw const own).cast();
            // SAFETY: an address of this length.
            if unsafe { libc::bind(socket.as_raw_fd(), place, length) } == 0 {
                let other = address(name, 1 - side);
                return Ok(Self { socket, other });
            }
        }
        Err(errno())
    }
}

impl Wire for Pair {
    fn send(&mut self, frame: &[u8]) {
        let (address, length) = &self.other;
        let (to, bytes) = ((&raw const *address).cast(), frame.as_ptr().cast());
        // SAFETY: bytes and an address of these lengths. Without another side frames are lost.
        let _ =
            unsafe { libc::sendto(self.socket.as_raw_fd(), bytes, frame.len(), 0, to, *length) };
    }

    fn receive(&mut self, into: &mut [u8]) -> Option<usize> {
        read(&self.socket, into)
    }

    fn fds(&self) -> Vec<RawFd> {
        vec![self.socket.as_raw_fd()]
    }
}

/// A TAP device: the kernel behind it is the other end.
struct Tap(OwnedFd);

impl Tap {
    fn open(name: &str) -> Result<Self, i32> {
        let flags = libc::O_RDWR | libc::O_NONBLOCK | libc::O_CLOEXEC;
        // SAFETY: a string.
        let fd = owned(unsafe { libc::open(c"/dev/net/tun".as_ptr(), flags) })?;
        let mut request = request(name);
        request.ifr_ifru.ifru_flags = (libc::IFF_TAP | libc::IFF_NO_PI) as i16;
        // SAFETY: the request is a whole ifreq.
        match unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNSETIFF, &raw mut request) } {
            0 => Ok(Self(fd)),
            _ => Err(errno()),
        }
    }
}

impl Wire for Tap {
    fn send(&mut self, frame: &[u8]) {
        write(&self.0, frame);
    }

    fn receive(&mut self, into: &mut [u8]) -> Option<usize> {
        read(&self.0, into)
    }

    fn fds(&self) -> Vec<RawFd> {
        vec![self.0.as_raw_fd()]
    }
}

fn request(name: &str) -> libc::ifreq {
    // SAFETY: zero is valid for an ifreq.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().take(15).zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    request
}

/// MAC address and MTU of an interface; those of no card where there is none.
pub(crate) fn facts(name: &str) -> ([u8; 6], u32) {
    const NONE: ([u8; 6], u32) = ([2, 0x18, 0, 0, 0, 9], 1500);
    // SAFETY: no pointers.
    let Ok(socket) = owned(unsafe { libc::socket(libc::AF_INET, libc::SOCK_DGRAM | SOCKET, 0) })
    else {
        return NONE;
    };
    let mut asked = request(name);
    // SAFETY: a whole ifreq.
    if unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCGIFHWADDR, &raw mut asked) } != 0 {
        return NONE;
    }
    // SAFETY: the kernel has filled it.
    let data = unsafe { asked.ifr_ifru.ifru_hwaddr.sa_data };
    let mac = std::array::from_fn(|at| data[at] as u8);
    // SAFETY: a whole ifreq.
    if unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCGIFMTU, &raw mut asked) } != 0 {
        return NONE;
    }
    // SAFETY: the kernel has filled it.
    (mac, unsafe { asked.ifr_ifru.ifru_mtu } as u32)
}

/// An interface of the kernel, such as a veth end: a packet socket sees its frames, and those that
/// a filter matches are taken from the kernel.
struct Packet {
    socket: OwnedFd,
    thief: Thief,
}

impl Packet {
    fn open(name: &str) -> Result<Self, i32> {
        let text = CString::new(name).map_err(|_| libc::EINVAL)?;
        // SAFETY: a string.
        let ifindex = unsafe { libc::if_nametoindex(text.as_ptr()) };
        if ifindex == 0 {
            return Err(libc::ENODEV);
        }
        let thief = Thief::attach(ifindex)?;
        // SAFETY: no pointers.
        let raw = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | SOCKET, 0) };
        let socket = owned(raw)?;
        option(&socket, libc::SOL_PACKET, libc::PACKET_IGNORE_OUTGOING, 1)?;
        option(&socket, libc::SOL_PACKET, libc::PACKET_AUXDATA, 1)?;
        option(&socket, libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, 8 << 20)?;
        // SAFETY: zero is valid for integers.
        let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
        address.sll_family = libc::AF_PACKET as u16;
        address.sll_protocol = (libc::ETH_P_ALL as u16).to_be();
        address.sll_ifindex = ifindex as i32;
        let (place, length) = ((&raw const address).cast(), size_of_val(&address) as u32);
        // SAFETY: an address of this length.
        match unsafe { libc::bind(socket.as_raw_fd(), place, length) } {
            0 => Ok(Self { socket, thief }),
            _ => Err(errno()),
        }
    }
}

fn option(socket: &OwnedFd, level: i32, name: i32, value: i32) -> Result<(), i32> {
    let (place, length) = ((&raw const value).cast(), size_of_val(&value) as u32);
    // SAFETY: an int.
    match unsafe { libc::setsockopt(socket.as_raw_fd(), level, name, place, length) } {
        0 => Ok(()),
        _ => Err(errno()),
    }
}

/// Bytes of both addresses, and of a tag behind them.
const ADDRESSES: usize = 12;
const TAG: usize = 4;

/// Receives a frame with its tag, which the kernel tells apart from it.
fn receive_tagged(fd: &OwnedFd, into: &mut [u8]) -> Option<usize> {
    let mut vector = libc::iovec {
        iov_base: into.as_mut_ptr().cast(),
        iov_len: into.len().checked_sub(TAG)?,
    };
    let mut control = [0_u64; 8];
    // SAFETY: zero is valid for a msghdr.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = &raw mut vector;
    message.msg_iovlen = 1;
    message.msg_control = control.as_mut_ptr().cast();
    message.msg_controllen = size_of_val(&control) as _;
    // SAFETY: a frame's room, and that of what belongs to it.
    let got = unsafe { libc::recvmsg(fd.as_raw_fd(), &raw mut message, 0) };
    let got = usize::try_from(got).ok().filter(|got| *got > 0)?;
    // SAFETY: filled by the kernel.
    let header = unsafe { libc::CMSG_FIRSTHDR(&raw const message) };
    // SAFETY: inside of `control`, or null.
    let kind = unsafe { header.as_ref() }.map(|it| (it.cmsg_level, it.cmsg_type));
    if kind != Some((libc::SOL_PACKET, libc::PACKET_AUXDATA)) || got < ADDRESSES {
        return Some(got);
    }
    // SAFETY: of this type the data are a tpacket_auxdata.
    let auxiliary = unsafe {
        libc::CMSG_DATA(header)
            .cast::<libc::tpacket_auxdata>()
            .read_unaligned()
    };
    if auxiliary.tp_status & libc::TP_STATUS_VLAN_VALID == 0 {
        return Some(got);
    }
    into.copy_within(ADDRESSES..got, ADDRESSES + TAG);
    into[ADDRESSES..ADDRESSES + 2].copy_from_slice(&auxiliary.tp_vlan_tpid.to_be_bytes());
    into[ADDRESSES + 2..ADDRESSES + TAG].copy_from_slice(&auxiliary.tp_vlan_tci.to_be_bytes());
    Some(got + TAG)
}

impl Wire for Packet {
    fn send(&mut self, frame: &[u8]) {
        write(&self.socket, frame);
    }

    fn receive(&mut self, into: &mut [u8]) -> Option<usize> {
        receive_tagged(&self.socket, into)
    }

    fn fds(&self) -> Vec<RawFd> {
        vec![self.socket.as_raw_fd()]
    }

    fn steal(&mut self, key: &Key) {
        self.thief.add(key);
    }

    fn give_back(&mut self, key: &Key) {
        self.thief.remove(key);
    }
}
