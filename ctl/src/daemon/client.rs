//! One connection: requests in, replies out, never waiting for either.
//!
//! A reply that the socket does not take at once is kept, and no further request is read before it
//! is gone; so what a client can make the daemon keep is one answer. Who does not read within
//! [`PATIENCE`] is dropped.

use std::collections::VecDeque;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use bypass_proto::control::{MAX_FDS, MAX_TEXT, Refusal, Reply, ReplyKind, Request};
use rustix::io::{Errno, IoSlice, IoSliceMut};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};
use zerocopy::IntoBytes;

use super::foreign::Foreign;
use super::process::Process;

/// How long a client may leave a reply unread.
pub(super) const PATIENCE: Duration = Duration::from_secs(5);
/// Malformed messages until a client is dropped.
const MISTAKES: u32 = 64;
/// Room for as many descriptors as a message can have (SCM_MAX_FD): those that do not fit the
/// kernel would close here and now, however long that takes. A request carries one at most.
const REQUEST_FDS: usize = 253;

/// A connection.
#[derive(Debug)]
pub(super) struct Client {
    fd: Foreign,
    /// Its number.
    pub number: u64,
    /// The process that connected, as it was then (user and group are the socket's).
    pub peer: Process,
    /// User of the stack that requests on this connection mean, once that is known.
    pub stack: Option<u32>,
    /// Whether it is over the limit: its first request is refused, then it is closed.
    pub surplus: bool,
    outbox: VecDeque<Packet>,
    stuck_since: Option<Instant>,
    mistakes: u32,
}

/// A packet to send, with its descriptors.
#[derive(Debug)]
struct Packet {
    bytes: Vec<u8>,
    fds: Vec<OwnedFd>,
}

/// What came from a client.
#[derive(Debug)]
pub(super) enum Incoming {
    /// A request that is well-formed so far; its descriptors.
    Request(Box<Request>, Vec<Foreign>),
    /// A message that is refused as it is; its sequence number where it had one.
    Refuse(Refusal, u32),
    /// Nothing now.
    Nothing,
    /// The connection is over.
    Closed,
    /// One malformed message too many.
    Rubbish,
}

impl Client {
    /// A connection just accepted.
    pub(super) fn new(fd: Foreign, number: u64, peer: Process, surplus: bool) -> Self {
        Self {
            fd,
            number,
            peer,
            stack: None,
            surplus,
            outbox: VecDeque::new(),
            stuck_since: None,
            mistakes: 0,
        }
    }

    /// Reads one message.
    pub(super) fn receive(&mut self) -> Incoming {
        // One byte more than a request, so that a longer message is seen to be one.
        let mut bytes = [0_u8; size_of::<Request>() + 1];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(REQUEST_FDS))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
        let received = {
            let mut into = [IoSliceMut::new(&mut bytes)];
            recvmsg(&self.fd, &mut into, &mut ancillary, flags)
        };
        let received = match received {
            Ok(received) => received,
            Err(Errno::AGAIN | Errno::INTR) => return Incoming::Nothing,
            Err(_) => return Incoming::Closed,
        };
        let mut fds: Vec<Foreign> = Vec::new();
        for message in ancillary.drain() {
            if let RecvAncillaryMessage::ScmRights(rights) = message {
                fds.extend(rights.map(Foreign::from));
            }
        }
        if received.bytes == 0 && fds.is_empty() {
            return Incoming::Closed;
        }
        let is_cut = received
            .flags
            .intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC);
        let bytes = bytes.get(..received.bytes).unwrap_or_default();
        match Request::parse(bytes) {
            Ok(request) if !is_cut && fds.len() <= 1 => Incoming::Request(Box::new(request), fds),
            Ok(request) => self.mistake(Refusal::Malformed, request.sequence),
            Err((refusal, sequence)) => self.mistake(refusal, sequence),
        }
    }

    fn mistake(&mut self, refusal: Refusal, sequence: u32) -> Incoming {
        self.mistakes += 1;
        if self.mistakes > MISTAKES {
            return Incoming::Rubbish;
        }
        Incoming::Refuse(refusal, sequence)
    }

    /// Sends a reply with descriptors, or keeps it until there is room.
    ///
    /// # Errors
    /// The connection is of no use any more.
    pub(super) fn reply(&mut self, mut reply: Reply, fds: &[BorrowedFd<'_>]) -> Result<(), Errno> {
        reply.fds = fds.len() as u16;
        self.send(reply.as_bytes(), fds)
    }

    /// Sends a text in packets, then the end.
    ///
    /// # Errors
    /// The connection is of no use any more.
    pub(super) fn reply_text(&mut self, sequence: u32, text: &str) -> Result<(), Errno> {
        for part in text.as_bytes().chunks(MAX_TEXT) {
            self.send(part, &[])?;
        }
        self.reply(
            Reply {
                sequence,
                ..Reply::new(ReplyKind::End)
            },
            &[],
        )
    }

    fn send(&mut self, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> Result<(), Errno> {
        if self.outbox.is_empty() {
            match send_packet(&self.fd, bytes, fds) {
                Err(Errno::AGAIN) => self.stuck_since = Some(Instant::now()),
                sent => return sent,
            }
        }
        let kept: Result<Vec<OwnedFd>, _> = fds.iter().map(|fd| fd.try_clone_to_owned()).collect();
        let fds = kept.map_err(|_| Errno::MFILE)?;
        self.outbox.push_back(Packet {
            bytes: bytes.to_vec(),
            fds,
        });
        Ok(())
    }

    /// Sends what was kept, as far as there is room.
    ///
    /// # Errors
    /// The connection is of no use any more.
    pub(super) fn flush(&mut self) -> Result<(), Errno> {
        while let Some(packet) = self.outbox.front() {
            let fds: Vec<BorrowedFd<'_>> = packet.fds.iter().map(AsFd::as_fd).collect();
            match send_packet(&self.fd, &packet.bytes, &fds) {
                Ok(()) => {
                    self.outbox.pop_front();
                    self.stuck_since = Some(Instant::now());
                }
                Err(Errno::AGAIN) => return Ok(()),
                Err(errno) => return Err(errno),
            }
        }
        self.stuck_since = None;
        Ok(())
    }

    /// Whether replies wait for the client to read.
    pub(super) fn is_stuck(&self) -> bool {
        !self.outbox.is_empty()
    }

    /// Whether the client has left its replies unread for too long.
    pub(super) fn is_hopeless(&self) -> bool {
        self.stuck_since
            .is_some_and(|since| since.elapsed() > PATIENCE)
    }
}

impl AsFd for Client {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

fn send_packet(fd: &OwnedFd, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> Result<(), Errno> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(Errno::TOOBIG);
    }
    let parts = [IoSlice::new(bytes)];
    let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
    loop {
        match sendmsg(fd, &parts, &mut ancillary, flags) {
            Err(Errno::INTR) => {}
            sent => return sent.map(|_| ()),
        }
    }
}
