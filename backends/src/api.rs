//! The contract between a stack's runner and a backend.
//!
//! ```text
//!            fill                            receive
//!   free ───────────► posted ──(a frame)──► received ──► the caller's, until it gives it back
//!    ▲
//!    └── complete ◄── sent ◄──(doorbell)── submitted ◄── submit
//! ```
//!
//! Chunks are numbers: a backend moves them between its rings and never frees, makes or reads one.
//! What goes in by [`QueuePair::fill`] or [`QueuePair::submit`] comes out exactly once.

use std::os::fd::BorrowedFd;

use rustix::io::Errno;

/// A frame that came in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Received {
    /// Chunk that holds it.
    pub chunk: u32,
    /// Bytes from the start of the chunk to the frame.
    pub offset: u32,
    /// Bytes of the frame.
    pub len: u32,
    /// Whether the NIC has found its UDP or TCP checksum right.
    pub is_checksum_good: bool,
}

/// A frame to send.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Transmit {
    /// Chunk that holds it.
    pub chunk: u32,
    /// Bytes from the start of the chunk to the frame.
    pub offset: u32,
    /// Bytes of the frame.
    pub len: u32,
    /// Not 0: the number by which is to be told when the frame has left ([`QueuePair::departed`]),
    /// if the NIC tells that.
    pub stamp: u32,
}

/// What an error of a queue pair asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Severity {
    /// Nothing is lost: the same call works once the cause has gone (link down).
    Restart,
    /// The queue pair is of no more use (device gone).
    Fatal,
}

/// Why a queue pair could not do something.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueueError {
    /// What to do about it.
    pub severity: Severity,
    /// What was tried.
    pub operation: &'static str,
    /// The kernel's errno.
    pub errno: Errno,
}

impl std::fmt::Display for QueueError {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "{}: {}", self.operation, self.errno)
    }
}

impl std::error::Error for QueueError {}

/// One RX and one TX path of a NIC.
///
/// Several processes may use one queue pair in turn, each with its own mapping, under the stack
/// lock: an implementation keeps no cursor between two calls that lives in one process only.
/// [`Self::ring_doorbell`] and [`Self::wait_fd`] alone may be used without the lock.
pub trait QueuePair: Send {
    /// Reads the oldest received frames, as many as there are and fit; returns their count. They
    /// stay in the ring until [`Self::received`]: who dies before leaves them to be received
    /// again. Numbers and sizes are as trustworthy as the others who map the rings: check them
    /// against the packet memory before use.
    fn receive(&mut self, into: &mut [Received]) -> usize;
    /// Takes so many of the frames that [`Self::receive`] has read off the ring, before their
    /// chunks go to another.
    fn received(&mut self, count: usize);
    /// Whether frames wait to be received. Cheap.
    fn rx_pending(&self) -> bool;
    /// How many frames the NIC has lost since the queue was opened, wrapping, because the RX ring
    /// was full or the fill ring empty; `None` while neither is the case, which is cheap to see.
    fn missed(&self) -> Option<u32> {
        None
    }
    /// Free entries of the fill ring.
    fn fill_space(&self) -> u32;
    /// Gives free chunks to the NIC; returns how many fitted.
    fn fill(&mut self, chunks: &[u32]) -> usize;
    /// Tells a NIC that waits for chunks that there are some. Cheap when it does not.
    fn wake_receiver(&self) {}
    /// Queues frames for sending; returns how many fitted. They go with the next doorbell.
    fn submit(&mut self, frames: &[Transmit]) -> usize;
    /// Takes back chunks that have been sent, in any order; returns their count.
    fn complete(&mut self, into: &mut [u32]) -> usize;
    /// Takes the numbers of frames that have left, and when by the NIC's clock, nanoseconds since
    /// 1970, 0 = not known. To be called after [`Self::receive`]: what comes later wakes who waits.
    fn departed(&mut self, _each: &mut dyn FnMut(u32, u64)) {}
    /// Whether submitted frames wait for the NIC to take them. Cheap.
    fn tx_pending(&self) -> bool;
    /// Whether the NIC must be told about frames that were submitted.
    fn needs_doorbell(&self) -> bool;
    /// Tells the NIC about submitted frames, in a bounded number of system calls. Frames that
    /// cannot go now stay submitted and go with a later doorbell.
    ///
    /// # Errors
    /// See [`Severity`].
    fn ring_doorbell(&self) -> Result<(), QueueError>;
    /// Calls `each` with every chunk that lies in one of the rings now, for recovery.
    fn in_rings(&self, each: &mut dyn FnMut(u32));
    /// Descriptor that is readable while frames wait, and that takes the doorbell.
    fn wait_fd(&self) -> Option<BorrowedFd<'_>>;
}
