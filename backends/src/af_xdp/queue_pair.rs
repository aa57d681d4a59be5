//! The client's side of a queue: four rings and a doorbell.
//!
//! ```text
//!   fill        chunks ───────►  ┌────────┐ ◄── frames ── NIC
//!   RX          frames ◄───────  │ kernel │
//!   TX          frames ───────►  │        │ ─── frames ─► NIC
//!   completion  chunks ◄───────  └────────┘
//! ```
//!
//! Everything is reached through the XSK's descriptor, so that an unprivileged program can use
//! what the daemon has opened. The mappings keep the XSK alive, not only the descriptor: a queue
//! is free again when the last process has dropped both. (Dropping closes by libc's `close`, as all
//! of std's descriptors do: in a host program the owner sees to it that the hook lets it through.)

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::sockopt;
use rustix::net::xdp::{
    XDP_PGOFF_RX_RING, XDP_PGOFF_TX_RING, XDP_UMEM_PGOFF_COMPLETION_RING, XDP_UMEM_PGOFF_FILL_RING,
    XdpDesc, XdpDescOptions,
};

use super::umem::Chunks;
use super::xsk;
use crate::api::{QueueError, QueuePair, Received, Transmit};
use crate::ring::Ring;

/// An AF_XDP queue, mapped into this process.
#[derive(Debug)]
pub struct AfXdpQueuePair {
    fill: Ring<u64>,
    completion: Ring<u64>,
    rx: Ring<XdpDesc>,
    tx: Ring<XdpDesc>,
    fd: OwnedFd,
    chunks: Chunks,
    is_zero_copy: bool,
}

impl AfXdpQueuePair {
    /// Maps the rings of an XSK, each of `ring_entries` entries, over chunks of `chunk_size` bytes.
    /// Needs no privilege.
    ///
    /// # Errors
    /// `EINVAL` for sizes that are no power of two; else what the kernel answers.
    pub fn map(fd: OwnedFd, chunk_size: u32, ring_entries: u32) -> Result<Self, Errno> {
        let chunks = Chunks::new(chunk_size).ok_or(Errno::INVAL)?;
        let offsets = sockopt::xdp_mmap_offsets(&fd)?;
        let xsk = fd.as_fd();
        Ok(Self {
            fill: Ring::map(xsk, XDP_UMEM_PGOFF_FILL_RING, &offsets.fr, ring_entries)?,
            completion: Ring::map(
                xsk,
                XDP_UMEM_PGOFF_COMPLETION_RING,
                &offsets.cr,
                ring_entries,
            )?,
            rx: Ring::map(xsk, XDP_PGOFF_RX_RING, &offsets.rx, ring_entries)?,
            tx: Ring::map(xsk, XDP_PGOFF_TX_RING, &offsets.tx, ring_entries)?,
            is_zero_copy: xsk::is_zero_copy(xsk),
            fd,
            chunks,
        })
    }
}

impl QueuePair for AfXdpQueuePair {
    fn receive(&mut self, into: &mut [Received]) -> usize {
        let chunks = self.chunks;
        let mut slots = into.iter_mut();
        self.rx.look(slots.len(), |descriptor| {
            if let Some(slot) = slots.next() {
                let (chunk, offset) = chunks.place(descriptor.addr);
                *slot = Received {
                    chunk,
                    offset,
                    len: descriptor.len,
                    is_checksum_good: false,
                };
            }
        })
    }

    fn received(&mut self, count: usize) {
        self.rx.advance(count);
    }

    fn rx_pending(&self) -> bool {
        self.rx.filled() > 0
    }

    fn missed(&self) -> Option<u32> {
        if self.rx.free() > 0 && self.fill.filled() > 0 {
            return None;
        }
        let told = sockopt::xdp_statistics(&self.fd).ok()?;
        // Without a chunk the kernel counts rx_dropped; rx_fill_ring_empty_descs counts its tries.
        let total = told.rx_dropped.wrapping_add(told.rx_ring_full.unwrap_or(0));
        Some(total as u32)
    }

    fn fill_space(&self) -> u32 {
        self.fill.free()
    }

    fn fill(&mut self, chunks: &[u32]) -> usize {
        let place = self.chunks;
        self.fill
            .produce(chunks.iter().map(|&chunk| place.address(chunk, 0)))
    }

    fn wake_receiver(&self) {
        if self.is_zero_copy && self.fill.must_wake() {
            xsk::wake_receiver(self.fd.as_fd());
        }
    }

    fn submit(&mut self, frames: &[Transmit]) -> usize {
        let place = self.chunks;
        self.tx.produce(frames.iter().map(|frame| XdpDesc {
            addr: place.address(frame.chunk, frame.offset),
            len: frame.len,
            options: XdpDescOptions::empty(),
        }))
    }

    fn complete(&mut self, into: &mut [u32]) -> usize {
        let chunks = self.chunks;
        let mut slots = into.iter_mut();
        self.completion.consume(slots.len(), |address| {
            if let Some(slot) = slots.next() {
                *slot = chunks.place(address).0;
            }
        })
    }

    fn tx_pending(&self) -> bool {
        self.tx.filled() > 0
    }

    fn needs_doorbell(&self) -> bool {
        // In copy mode every burst needs a call; whatever is in the ring has not been taken. (A
        // driver without copies may be about to take it: then the call costs time, no more.)
        self.tx_pending()
    }

    fn ring_doorbell(&self) -> Result<(), QueueError> {
        xsk::ring_while(self.fd.as_fd(), || Some(self.tx.filled()))
    }

    fn in_rings(&self, each: &mut dyn FnMut(u32)) {
        let chunk = |address| self.chunks.place(address).0;
        self.fill.peek(|address| each(chunk(address)));
        self.completion.peek(|address| each(chunk(address)));
        self.rx.peek(|descriptor| each(chunk(descriptor.addr)));
        self.tx.peek(|descriptor| each(chunk(descriptor.addr)));
    }

    fn wait_fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.fd.as_fd())
    }
}
