//! Runs of equal datagrams in one sendmmsg leave as one send, which the kernel cuts.
//!
//! ```text
//!   sendmmsg            shadow: sendmsg                     the kernel
//!   64 x 22 bytes ────► 1,408 bytes, UDP_SEGMENT 22 ──────► 64 frames
//! ```
//!
//! In copy mode the kernel sends every frame of a TX ring by itself: a buffer, a pass through the
//! driver and a poll of the other end for each. What it cuts out of one send passes them together,
//! at about half the price (docs/adr/0019). The shadow has the socket's address and options, so
//! the datagrams are the same.

#![expect(
    unsafe_code,
    reason = "UNSAFETY: reads the messages of a sendmmsg, calls the original sendmsg"
)]

use std::mem::{size_of, zeroed};

use bypass_stack::SocketAddress;
use libc::{MSG_DONTWAIT, c_int, iovec, mmsghdr, msghdr};
use rustix::io::Errno;

use crate::address::{self, Given};
use crate::errno::from_c;
use crate::symbols;

use super::send::LARGEST;

/// Fewest datagrams that are worth it. (Four cost as much as four frames.)
pub const FEWEST: usize = 8;
/// Most datagrams of a send: UDP_MAX_SEGMENTS of linux/udp.h before 6.9.
const MOST: usize = 64;

/// The messages at the start of a sendmmsg that go to one address and have one size, the last of
/// them perhaps a smaller one.
#[derive(Clone, Copy, Debug)]
pub struct Run {
    /// How many they are.
    pub count: usize,
    /// Payload bytes of each but the last.
    pub size: usize,
    /// Payload bytes of all.
    pub total: usize,
}

/// How sending a run ended.
#[derive(Debug, PartialEq, Eq)]
pub enum Sent {
    /// All of it has been sent.
    All,
    /// Nothing was sent, and no error is owed to the program: its datagrams go one by one.
    Nothing,
    /// Nothing was sent, with the error of the first datagram.
    Failed(Errno),
}

impl Run {
    /// Looks for a run to `to` of datagrams of at most `largest` bytes. `connected` is the
    /// socket's peer.
    ///
    /// # Safety
    /// The messages describe buffers that the caller may read.
    pub unsafe fn find(
        messages: &[mmsghdr],
        to: SocketAddress,
        connected: Option<SocketAddress>,
        largest: usize,
    ) -> Option<Self> {
        if messages.len() < FEWEST {
            return None;
        }
        // SAFETY: the caller's promise.
        let size = unsafe { payload(&messages[0].msg_hdr, to, connected) }?.iov_len;
        if size == 0 || size > largest {
            return None;
        }
        let mut run = Self {
            count: 0,
            size,
            total: 0,
        };
        for message in messages.iter().take(MOST) {
            // SAFETY: the caller's promise.
            let Some(next) = (unsafe { payload(&message.msg_hdr, to, connected) }) else {
                break;
            };
            if next.iov_len == 0 || next.iov_len > size || run.total + next.iov_len > LARGEST {
                break;
            }
            run.count += 1;
            run.total += next.iov_len;
            if next.iov_len < size {
                break;
            }
        }
        (run.count >= FEWEST).then_some(run)
    }

    /// Sends the run by the shadow, never waiting.
    ///
    /// # Safety
    /// The messages are those in which the run was [found](Run::find).
    pub unsafe fn send(self, fd: c_int, messages: &[mmsghdr], call_flags: c_int) -> Sent {
        // SAFETY: null pointers and no bytes.
        let mut vectors: [iovec; MOST] = unsafe { zeroed() };
        for (vector, message) in vectors.iter_mut().zip(&messages[..self.count]) {
            // SAFETY: each message has one vector.
            *vector = unsafe { message.msg_hdr.msg_iov.read_unaligned() };
        }
        let mut control = SegmentSize::new(self.size as u16);
        let message = msghdr {
            msg_iov: vectors.as_mut_ptr(),
            msg_iovlen: self.count,
            msg_control: (&raw mut control).cast(),
            msg_controllen: size_of::<SegmentSize>(),
            ..messages[0].msg_hdr
        };
        // SAFETY: the caller's promise for buffers and address; ours for the vectors and control.
        let sent = unsafe { symbols::sendmsg::original()(fd, &message, call_flags | MSG_DONTWAIT) };
        match from_c(sent) {
            Ok(_) => Sent::All,
            // A full send buffer, a page that is not there: one by one it shows which of them.
            Err(Errno::AGAIN | Errno::FAULT | Errno::NOBUFS | Errno::NOMEM) => Sent::Nothing,
            // It does not cut here: no checksums on the socket, IPsec, a smaller MTU by now.
            Err(Errno::IO | Errno::INVAL | Errno::MSGSIZE) => Sent::Nothing,
            Err(errno) => Sent::Failed(errno),
        }
    }
}

/// The only vector of a message to `to` without ancillary data.
///
/// # Safety
/// The message describes buffers that the caller may read.
unsafe fn payload(
    message: &msghdr,
    to: SocketAddress,
    connected: Option<SocketAddress>,
) -> Option<iovec> {
    if message.msg_iovlen != 1
        || address::is_nowhere(message.msg_iov)
        || !message.msg_control.is_null() && message.msg_controllen != 0
    {
        return None;
    }
    // SAFETY: the caller's promise.
    let given = match unsafe { address::read(message.msg_name.cast(), message.msg_namelen) } {
        Given::Inet(given) => Some(given),
        Given::Nothing => connected,
        Given::Foreign => None,
    };
    // SAFETY: an array of one vector, the caller's to read.
    let vector = unsafe { message.msg_iov.read_unaligned() };
    (given == Some(to) && !address::is_unreachable(&vector)).then_some(vector)
}

/// A control message with UDP_SEGMENT.
#[repr(C)]
struct SegmentSize {
    header: libc::cmsghdr,
    size: u16,
    padding: [u8; 6],
}

impl SegmentSize {
    fn new(size: u16) -> Self {
        // SAFETY: plain integers.
        let mut header: libc::cmsghdr = unsafe { zeroed() };
        header.cmsg_len = (size_of::<libc::cmsghdr>() + size_of::<u16>()) as _;
        header.cmsg_level = libc::SOL_UDP;
        header.cmsg_type = libc::UDP_SEGMENT;
        Self {
            header,
            size,
            padding: [0; 6],
        }
    }
}
