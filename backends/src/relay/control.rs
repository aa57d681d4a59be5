//! What daemon and relay say to each other: packets of one size, descriptors beside them.
//!
//! The relay of a device listens on an abstract address with the device's name in it, which the
//! kernel scopes to the network namespace. So a daemon finds the relay that one before has started,
//! and the one that it starts by the same way: it binds the address, gives the socket to the relay,
//! and connects. Anybody can bind or connect to an abstract address: both ends look at whose the
//! other one is.
//!
//! ```text
//!   relay ─► daemon   Ready { facts }, three tables, the board (and the rings of the port's stack)
//!                     Failed { words }
//!   daemon ─► relay   Attach { sizes }, packet memory, flow table, rings, bell
//!                     Detach
//!                     Steer ─► Steered (or why not): filters of a card
//!                     List ─► Listed, a roster of the card's filters
//!                     End
//! ```

#![expect(
    unsafe_code,
    reason = "UNSAFETY: messages are plain bytes of fixed structures"
)]

use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType, accept_with, bind,
    connect, listen, recvmsg, sendmsg, socket_with, sockopt,
};

/// First word of a message; changes with its layout.
const MAGIC: u32 = u32::from_le_bytes(*b"BYD4");
/// Most descriptors of a message.
const FDS: usize = 8;

/// What a message is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Kind {
    /// The port is open.
    Ready = 1,
    /// It is not, and why.
    Failed = 2,
    /// A stack gets the port.
    Attach = 3,
    /// No stack has it any more.
    Detach = 4,
    /// The relay is to end.
    End = 5,
    /// The tables have changed: the card's filters are to follow.
    Steer = 6,
    /// They do, or why not.
    Steered = 7,
    /// Which filters the card has is asked.
    List = 8,
    /// Those it has.
    Listed = 9,
}

/// A message. Which fields mean something depends on the kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Message {
    pub(super) magic: u32,
    pub(super) kind: u32,
    /// Interface index of the device's face in the kernel.
    pub ifindex: u32,
    /// MTU of the port in bytes.
    pub mtu: u32,
    /// Bytes of a chunk.
    pub chunk_size: u32,
    /// Entries of each ring.
    pub entries: u32,
    /// 1 = the relay sleeps until frames come, 0 = it looks for them at intervals.
    pub sleeps: u32,
    /// 1 = the kernel has the port as an interface of its own, see [`super::Facts`].
    pub is_bifurcated: u32,
    /// 1 = the port tells of checksums, see [`super::Offloads`].
    pub rx_checksums: u32,
    /// 1 = it completes them.
    pub tx_checksums: u32,
    /// Which request an answer belongs to.
    pub number: u32,
    /// MAC address of the port.
    pub mac: [u8; 6],
    /// 1 = a port that is not bifurcated takes rules. Relays before this word say 0.
    pub has_rules: u8,
    /// 1 = the port tells when frames have left. Relays before this word say 0.
    pub stamps_sent: u8,
    /// Name of the driver (Ready), or what DPDK said (Failed), padded with NULs. Behind the first
    /// NUL of a Ready is why the port takes no rules, then the interface at which there are rules
    /// that lead to it, then why there are none.
    pub(super) text: [u8; 1024],
}

impl Message {
    /// A message of this kind with every other field zero.
    #[must_use]
    pub fn new(kind: Kind) -> Self {
        Self {
            magic: MAGIC,
            kind: kind as u32,
            ifindex: 0,
            mtu: 0,
            chunk_size: 0,
            entries: 0,
            sleeps: 0,
            is_bifurcated: 0,
            rx_checksums: 0,
            tx_checksums: 0,
            number: 0,
            mac: [0; 6],
            has_rules: 0,
            stamps_sent: 0,
            text: [0; 1024],
        }
    }

    /// The same with a text, cut to what fits.
    #[must_use]
    pub fn with_text(mut self, text: &str) -> Self {
        let most = self.text.len() - 1;
        let length = text.len().min(most);
        self.text[..length].copy_from_slice(&text.as_bytes()[..length]);
        self
    }

    /// The text, up to its first NUL.
    #[must_use]
    pub fn text(&self) -> String {
        self.part(0)
    }

    /// What is between the NULs of the text, by number.
    pub(super) fn part(&self, number: usize) -> String {
        let mut parts = self.text.split(|byte| *byte == 0);
        let part = parts.nth(number).unwrap_or_default();
        String::from_utf8_lossy(part).into_owned()
    }

    /// What it is; `None` = nothing that this version knows.
    #[must_use]
    pub fn kind(&self) -> Option<Kind> {
        use Kind::{Attach, Detach, End, Failed, List, Listed, Ready, Steer, Steered};
        let kinds = [
            Ready, Failed, Attach, Detach, End, Steer, Steered, List, Listed,
        ];
        kinds.into_iter().find(|kind| *kind as u32 == self.kind)
    }

    fn bytes(&self) -> &[u8] {
        // SAFETY: a structure of integers without padding, read as bytes.
        unsafe { std::slice::from_raw_parts((&raw const *self).cast(), size_of::<Self>()) }
    }

    /// Sends it with descriptors.
    ///
    /// # Errors
    /// What `sendmsg` answers.
    pub fn send(&self, to: impl AsFd, fds: &[BorrowedFd<'_>]) -> Result<(), Errno> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        if !fds.is_empty() {
            ancillary.push(SendAncillaryMessage::ScmRights(fds));
        }
        let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
        sendmsg(to, &[IoSlice::new(self.bytes())], &mut ancillary, flags).map(drop)
    }

    /// Takes the next message and its descriptors.
    ///
    /// # Errors
    /// `EAGAIN` when there is none now, `ECONNRESET` when the other end is gone, `EPROTO` for
    /// rubbish.
    pub fn receive(from: impl AsFd) -> Result<(Self, Vec<OwnedFd>), Errno> {
        let mut message = Self::new(Kind::End);
        // SAFETY: a structure of integers, for which any bytes are valid, written as bytes.
        let bytes = unsafe {
            std::slice::from_raw_parts_mut((&raw mut message).cast::<u8>(), size_of::<Self>())
        };
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let mut vectors = [std::io::IoSliceMut::new(bytes)];
        let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
        let received = recvmsg(from, &mut vectors, &mut ancillary, flags)?.bytes;
        let fds = ancillary.drain().filter_map(|message| match message {
            RecvAncillaryMessage::ScmRights(fds) => Some(fds),
            _ => None,
        });
        let fds: Vec<OwnedFd> = fds.flatten().collect();
        match received {
            0 => Err(Errno::CONNRESET),
            bytes if bytes == size_of::<Self>() && message.magic == MAGIC => Ok((message, fds)),
            _ => Err(Errno::PROTO),
        }
    }
}

fn address(device: &str) -> Result<SocketAddrUnix, Errno> {
    SocketAddrUnix::new_abstract_name(format!("bypass-relay/{device}").as_bytes())
}

fn stream() -> Result<OwnedFd, Errno> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)
}

/// Claims the address of a device's relay in this network namespace.
///
/// # Errors
/// `EADDRINUSE` when there is a relay already.
pub fn claim(device: &str) -> Result<OwnedFd, Errno> {
    let listener = stream()?;
    bind(&listener, &address(device)?)?;
    listen(&listener, 4)?;
    Ok(listener)
}

/// Connects to the relay of a device.
///
/// # Errors
/// `ECONNREFUSED` when there is none, `EPERM` when another user has taken its address.
pub fn connect_to(device: &str) -> Result<OwnedFd, Errno> {
    let socket = stream()?;
    connect(&socket, &address(device)?)?;
    is_ours(&socket).then_some(socket).ok_or(Errno::PERM)
}

/// Takes the next daemon that connects, if it is one of our user.
pub fn accept_daemon(listener: impl AsFd) -> Option<OwnedFd> {
    let daemon = accept_with(listener, SocketFlags::CLOEXEC).ok()?;
    is_ours(&daemon).then_some(daemon)
}

fn is_ours(socket: &OwnedFd) -> bool {
    let other = sockopt::socket_peercred(socket);
    other.is_ok_and(|other| other.uid == rustix::process::geteuid())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_and_descriptors_arrive_whole() {
        let name = format!("test-{}", std::process::id());
        assert_eq!(connect_to(&name).unwrap_err(), Errno::CONNREFUSED);
        let listener = claim(&name).unwrap();
        assert_eq!(claim(&name).unwrap_err(), Errno::ADDRINUSE);
        let daemon = connect_to(&name).unwrap();
        let relay = accept_daemon(&listener).unwrap();
        let sent = Message {
            mtu: 1500,
            ..Message::new(Kind::Ready).with_text("net_tap")
        };
        sent.send(&relay, &[listener.as_fd(), relay.as_fd()])
            .unwrap();
        let (got, fds) = Message::receive(&daemon).unwrap();
        assert_eq!((got, fds.len()), (sent, 2));
        assert_eq!(
            (got.kind(), got.text().as_str()),
            (Some(Kind::Ready), "net_tap")
        );
        assert_eq!(Message::receive(&daemon).unwrap_err(), Errno::AGAIN);
        rustix::io::write(&relay, b"rubbish").unwrap();
        assert_eq!(Message::receive(&daemon).unwrap_err(), Errno::PROTO);
        drop((relay, fds, listener));
        assert_eq!(Message::receive(&daemon).unwrap_err(), Errno::CONNRESET);
        let long = Message::new(Kind::Failed).with_text(&"x".repeat(5000));
        assert_eq!(long.text().len(), 1023);
    }
}
