//! The contract between a stack's runner and a backend.

use std::os::fd::BorrowedFd;

/// A frame that came in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Received {
    /// Chunk that holds it.
    pub chunk: u32,
    /// Bytes from the start of the chunk to the frame.
    pub offset: u32,
    /// Bytes of the frame.
    pub len: u32,
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
}

/// One RX and one TX path of a NIC.
///
/// Several processes may use one queue pair in turn, each with its own mapping, under the stack
/// lock:
/// an implementation keeps no cursor between two calls that lives in one process only.
pub trait QueuePair: Send {
    /// Takes received frames, as many as there are and fit; returns their count. Their chunks are
    /// the
    /// caller's from then on.
    fn receive(&mut self, into: &mut [Received]) -> usize;
    /// Whether frames wait to be received. Cheap.
    fn rx_pending(&self) -> bool;
    /// Free entries of the fill ring.
    fn fill_space(&self) -> u32;
    /// Gives free chunks to the NIC; returns how many fitted.
    fn fill(&mut self, chunks: &[u32]) -> usize;
    /// Queues frames for sending; returns how many fitted.
    fn submit(&mut self, frames: &[Transmit]) -> usize;
    /// Takes back chunks that have been sent; returns their count.
    fn complete(&mut self, into: &mut [u32]) -> usize;
    /// Whether the NIC must be told about frames that were submitted.
    fn needs_doorbell(&self) -> bool;
    /// Calls `each` with every chunk that lies in one of the rings now, for recovery.
    fn in_rings(&self, each: &mut dyn FnMut(u32));
    /// Descriptor that is readable while frames wait, and that takes the doorbell.
    fn wait_fd(&self) -> Option<BorrowedFd<'_>>;
}
