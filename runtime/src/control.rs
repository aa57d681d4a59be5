//! The client's side of the daemon's control socket.

use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use bypass_proto::control::{ADDRESS, MAGIC, MAX_FDS, Refusal, Reply, ReplyKind, Request, VERSION};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::{Errno, IoSlice, IoSliceMut};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags,
    SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType,
    connect, recvmsg, sendmsg, socket_with, sockopt,
};
use zerocopy::{FromBytes, IntoBytes};

/// How long the daemon may take to answer (it may load a program and open queues meanwhile).
const ANSWER_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(5);

/// Why a request brought nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ControlError {
    /// Nobody answers at the address, or the daemon is gone.
    NoDaemon(Errno),
    /// The daemon says no, and why (`detail` is an errno or 0).
    Refused {
        /// Why.
        refusal: Refusal,
        /// errno behind [`Refusal::System`].
        detail: u32,
    },
    /// The answer makes no sense.
    Malformed,
}

/// An answer with its descriptors.
#[derive(Debug)]
pub struct Answer {
    /// The reply.
    pub reply: Reply,
    /// Its descriptors, in order.
    pub fds: Vec<OwnedFd>,
}

/// A connection to the daemon.
#[derive(Debug)]
pub struct Control {
    fd: OwnedFd,
    sequence: u32,
}

impl Control {
    /// Connects to the daemon of this network namespace.
    ///
    /// # Errors
    /// [`ControlError::NoDaemon`].
    pub fn connect() -> Result<Self, ControlError> {
        Self::open().map_err(ControlError::NoDaemon)
    }

    fn open() -> Result<Self, Errno> {
        let fd = socket_with(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        )?;
        connect(&fd, &SocketAddrUnix::new_abstract_name(ADDRESS)?)?;
        sockopt::set_socket_timeout(&fd, sockopt::Timeout::Recv, Some(ANSWER_TIMEOUT))?;
        sockopt::set_socket_timeout(&fd, sockopt::Timeout::Send, Some(ANSWER_TIMEOUT))?;
        Ok(Self { fd, sequence: 0 })
    }

    /// Replaces the descriptor by what `move_fd` makes of it (out of the program's way).
    #[must_use]
    pub fn moved(self, move_fd: impl FnOnce(OwnedFd) -> OwnedFd) -> Self {
        Self {
            fd: move_fd(self.fd),
            sequence: self.sequence,
        }
    }

    /// Whether the daemon has its end still open.
    #[must_use]
    pub fn is_up(&self) -> bool {
        let mut fds = [PollFd::new(&self.fd, PollFlags::empty())];
        matches!(poll(&mut fds, Some(&Timespec::default())), Ok(0))
    }

    /// Sends a request that has no reply.
    ///
    /// # Errors
    /// [`ControlError::NoDaemon`] when the daemon is gone.
    pub fn tell(&mut self, mut request: Request) -> Result<(), ControlError> {
        self.sequence = self.sequence.wrapping_add(1);
        request.sequence = self.sequence;
        self.send(&request, None).map_err(ControlError::NoDaemon)
    }

    /// Sends a request, with a descriptor if need be, and waits for its reply.
    ///
    /// # Errors
    /// Each [`ControlError`].
    pub fn ask(
        &mut self,
        mut request: Request,
        proof: Option<BorrowedFd<'_>>,
    ) -> Result<Answer, ControlError> {
        self.sequence = self.sequence.wrapping_add(1);
        request.sequence = self.sequence;
        self.send(&request, proof).map_err(ControlError::NoDaemon)?;
        loop {
            let answer = self.receive()?;
            if answer.reply.sequence != self.sequence {
                continue; // A late answer to a request that timed out.
            }
            if ReplyKind::from_wire(answer.reply.kind) == Some(ReplyKind::Refused) {
                let refusal = Refusal::from_wire(answer.reply.refusal);
                return Err(refusal.map_or(ControlError::Malformed, |refusal| {
                    ControlError::Refused {
                        refusal,
                        detail: answer.reply.detail,
                    }
                }));
            }
            return Ok(answer);
        }
    }

    fn send(&self, request: &Request, proof: Option<BorrowedFd<'_>>) -> Result<(), Errno> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        let proof = proof.map(|fd| [fd]);
        if let Some(fds) = &proof {
            ancillary.push(SendAncillaryMessage::ScmRights(fds));
        }
        let bytes = [IoSlice::new(request.as_bytes())];
        loop {
            match sendmsg(&self.fd, &bytes, &mut ancillary, SendFlags::NOSIGNAL) {
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno),
                Ok(_) => return Ok(()),
            }
        }
    }

    fn receive(&self) -> Result<Answer, ControlError> {
        let mut bytes = [0_u8; size_of::<Reply>()];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let received = loop {
            let mut into = [IoSliceMut::new(&mut bytes)];
            match recvmsg(&self.fd, &mut into, &mut ancillary, RecvFlags::CMSG_CLOEXEC) {
                Err(Errno::INTR) => {}
                Err(errno) => return Err(ControlError::NoDaemon(errno)),
                Ok(received) => break received,
            }
        };
        let mut fds = Vec::new();
        for message in ancillary.drain() {
            if let RecvAncillaryMessage::ScmRights(rights) = message {
                fds.extend(rights);
            }
        }
        if received.bytes == 0 {
            return Err(ControlError::NoDaemon(Errno::CONNRESET));
        }
        let reply = Reply::read_from_bytes(bytes.get(..received.bytes).unwrap_or_default())
            .map_err(|_| ControlError::Malformed)?;
        if reply.magic != MAGIC || reply.version != VERSION {
            return Err(ControlError::Malformed);
        }
        if fds.len() < usize::from(reply.fds) && received.flags.contains(ReturnFlags::CTRUNC) {
            // The kernel drops what has no room in this process's table of descriptors.
            return Err(ControlError::Refused {
                refusal: Refusal::System,
                detail: Errno::MFILE.raw_os_error().cast_unsigned(),
            });
        }
        if usize::from(reply.fds) != fds.len() {
            return Err(ControlError::Malformed);
        }
        Ok(Answer { reply, fds })
    }
}

impl AsFd for Control {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}
