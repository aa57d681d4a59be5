//! The client's side of a queue: four rings and a doorbell.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::sockopt;
use rustix::net::xdp::{
    XDP_PGOFF_RX_RING, XDP_PGOFF_TX_RING, XDP_UMEM_PGOFF_COMPLETION_RING, XDP_UMEM_PGOFF_FILL_RING,
    XdpDesc, XdpDescOptions,
};

use super::ring::Ring;
use crate::api::{QueuePair, Received, Transmit};

/// An AF_XDP queue, mapped into this process.
#[derive(Debug)]
pub struct AfXdpQueuePair {
    fill: Ring<u64>,
    completion: Ring<u64>,
    rx: Ring<XdpDesc>,
    tx: Ring<XdpDesc>,
    fd: OwnedFd,
    chunk_size: u32,
}

impl AfXdpQueuePair {
    /// Maps the rings of an XSK, each of `ring_entries` entries, over chunks of `chunk_size` bytes.
    /// Needs no privilege.
    ///
    /// # Errors
    /// `EINVAL` for sizes that are no power of two; else what the kernel answers.
    pub fn map(fd: OwnedFd, chunk_size: u32, ring_entries: u32) -> Result<Self, Errno> {
        if !chunk_size.is_power_of_two() {
            return Err(Errno::INVAL);
        }
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
            fd,
            chunk_size,
        })
    }

    /// Chunk and offset of an address in the packet memory.
    fn place(chunk_size: u32, address: u64) -> (u32, u32) {
        let shift = chunk_size.trailing_zeros();
        (
            (address >> shift) as u32,
            (address as u32) & (chunk_size - 1),
        )
    }
}

impl QueuePair for AfXdpQueuePair {
    fn receive(&mut self, into: &mut [Received]) -> usize {
        let chunk_size = self.chunk_size;
        let mut slots = into.iter_mut();
        self.rx.consume(slots.len(), |descriptor| {
            if let Some(slot) = slots.next() {
                let (chunk, offset) = Self::place(chunk_size, descriptor.addr);
                *slot = Received {
                    chunk,
                    offset,
                    len: descriptor.len,
                };
            }
        })
    }

    fn rx_pending(&self) -> bool {
        self.rx.filled() > 0
    }

    fn fill_space(&self) -> u32 {
        self.fill.free()
    }

    fn fill(&mut self, chunks: &[u32]) -> usize {
        let chunk_size = u64::from(self.chunk_size);
        self.fill
            .produce(chunks.iter().map(|&chunk| u64::from(chunk) * chunk_size))
    }

    fn submit(&mut self, frames: &[Transmit]) -> usize {
        let chunk_size = u64::from(self.chunk_size);
        self.tx.produce(frames.iter().map(|frame| XdpDesc {
            addr: u64::from(frame.chunk) * chunk_size + u64::from(frame.offset),
            len: frame.len,
            options: XdpDescOptions::empty(),
        }))
    }

    fn complete(&mut self, into: &mut [u32]) -> usize {
        let chunk_size = self.chunk_size;
        let mut slots = into.iter_mut();
        self.completion.consume(slots.len(), |address| {
            if let Some(slot) = slots.next() {
                *slot = Self::place(chunk_size, address).0;
            }
        })
    }

    fn needs_doorbell(&self) -> bool {
        // In copy mode every burst needs a call; whatever is in the ring has not been taken.
        self.tx.filled() > 0
    }

    fn in_rings(&self, each: &mut dyn FnMut(u32)) {
        let chunk = |address| Self::place(self.chunk_size, address).0;
        self.fill.peek(|address| each(chunk(address)));
        self.completion.peek(|address| each(chunk(address)));
        self.rx.peek(|descriptor| each(chunk(descriptor.addr)));
        self.tx.peek(|descriptor| each(chunk(descriptor.addr)));
    }

    fn wait_fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.fd.as_fd())
    }
}

#[cfg(test)]
mod tests {
    use super::AfXdpQueuePair;

    #[test]
    fn an_address_is_a_chunk_and_an_offset() {
        assert_eq!(AfXdpQueuePair::place(2048, 3 * 2048 + 256), (3, 256));
        assert_eq!(AfXdpQueuePair::place(4096, 4095), (0, 4095));
    }
}
