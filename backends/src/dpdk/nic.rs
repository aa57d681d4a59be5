//! The daemon's side of a port: what the relay has told of it, its filters, and its queue.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::io::Errno;

use super::control::{Kind, Message, connect_to};
use super::rings::Pair;
use super::steering::Filters;

/// A connection to a relay that has said nothing yet, or has a port.
#[derive(Debug)]
pub struct Link(OwnedFd);

/// What a relay says first.
#[derive(Debug)]
pub enum Answer {
    /// It has a port.
    Ready(DpdkNic),
    /// It has none, in DPDK's own words.
    Failed(String),
}

/// A port of a relay.
#[derive(Clone, Debug)]
pub struct DpdkNic {
    /// Interface index of its face in the kernel.
    pub ifindex: u32,
    /// Name of its driver.
    pub driver: String,
    /// Whether the relay sleeps until frames come.
    pub sleeps: bool,
    /// Its filters, which the relay reads.
    pub filters: Arc<Filters>,
    /// What it has counted, see [`super::read_board`].
    pub board: Arc<OwnedFd>,
    /// The rings of the stack that had it before this daemon came.
    pub rings: Option<Arc<OwnedFd>>,
}

/// The stack's side of a queue pair that was opened.
#[derive(Debug)]
pub struct OpenQueue {
    /// The rings.
    pub rings: OwnedFd,
    /// The stack's end of the bell.
    pub bell: OwnedFd,
}

impl Link {
    /// Connects to the relay of a device.
    ///
    /// # Errors
    /// `ECONNREFUSED` when there is none.
    pub fn connect(device: &str) -> Result<Self, Errno> {
        connect_to(device).map(Self)
    }

    /// What the relay says; `None` = nothing new.
    ///
    /// # Errors
    /// `ECONNRESET` when it is gone.
    pub fn hear(&self) -> Result<Option<Answer>, Errno> {
        let (message, fds) = match Message::receive(&self.0) {
            Err(Errno::AGAIN) => return Ok(None),
            answer => answer?,
        };
        match message.kind() {
            Some(Kind::Ready) => nic(&message, fds).map(|nic| Some(Answer::Ready(nic))),
            Some(Kind::Failed) => Ok(Some(Answer::Failed(message.text()))),
            _ => Ok(None),
        }
    }

    /// Gives the port to a stack: one queue pair over its packet memory, with rings of `entries`.
    ///
    /// # Errors
    /// What the kernel answers.
    pub fn attach(
        &self,
        packets: BorrowedFd<'_>,
        chunk_size: u32,
        flows: BorrowedFd<'_>,
        entries: u32,
    ) -> Result<OpenQueue, Errno> {
        let pair = Pair::create(entries)?;
        let message = Message {
            chunk_size,
            entries,
            ..Message::new(Kind::Attach)
        };
        let fds = [packets, flows, pair.rings.as_fd(), pair.relay.as_fd()];
        message.send(&self.0, &fds)?;
        Ok(OpenQueue {
            rings: pair.rings,
            bell: pair.stack,
        })
    }

    /// Takes the port from its stack: everything is the kernel's.
    pub fn detach(&self) {
        // A relay that is gone has no stack.
        let _ = Message::new(Kind::Detach).send(&self.0, &[]);
    }

    /// Has the relay end.
    pub fn end(&self) {
        let _ = Message::new(Kind::End).send(&self.0, &[]);
    }
}

impl AsFd for Link {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

fn nic(message: &Message, fds: Vec<OwnedFd>) -> Result<DpdkNic, Errno> {
    let mut fds = fds.into_iter();
    let mut next = || fds.next().ok_or(Errno::PROTO);
    let filters = Filters::map([next()?, next()?, next()?])?;
    let board = Arc::new(next()?);
    Ok(DpdkNic {
        ifindex: message.ifindex,
        driver: message.text(),
        sleeps: message.sleeps != 0,
        filters: Arc::new(filters),
        board,
        rings: fds.next().map(Arc::new),
    })
}
