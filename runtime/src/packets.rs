//! Packet memory: the chunks that queues fill and the stack reads and writes.

#![expect(
    unsafe_code,
    reason = "UNSAFETY: chunks of the mapping become slices, here only"
)]

use std::os::fd::{AsFd, OwnedFd};

use bypass_stack::{ChunkId, Memory, STAMP_AT};
use rustix::io::Errno;

use crate::map::{Mapping, is_sealed, sealed_memfd};

const _: () = assert!(STAMP_AT == bypass_backends::relay::STAMP_AT);

/// Name of a packet memory memfd.
pub const NAME: &str = "bypass-packets";

/// A mapped packet memory, cut into chunks of one size.
///
/// The NIC (the kernel, for AF_XDP) writes only into chunks that are posted in a fill ring and
/// reads only chunks that are in a TX ring; the stack touches only the others. That is the stack's
/// chunk states, and the reason why slices of single chunks are sound while the kernel writes
/// elsewhere in the same memory.
#[derive(Debug)]
pub struct Packets {
    mapping: Mapping,
    chunk_size: usize,
    chunks: usize,
}

impl Packets {
    /// Makes packet memory of `chunks` chunks of `chunk_size` bytes.
    ///
    /// # Errors
    /// What the kernel answers to memfd_create, ftruncate or mmap.
    pub fn create(chunks: u32, chunk_size: u32) -> Result<(OwnedFd, Self), Errno> {
        let fd = sealed_memfd(NAME, chunks as usize * chunk_size as usize)?;
        let packets = Self::map(&fd, chunk_size)?;
        Ok((fd, packets))
    }

    /// Maps existing packet memory.
    ///
    /// # Errors
    /// `EINVAL` when the memory is not sealed or holds no whole chunk.
    pub fn map(fd: impl AsFd, chunk_size: u32) -> Result<Self, Errno> {
        if !is_sealed(&fd) || !(2048..=1 << 16).contains(&chunk_size) {
            return Err(Errno::INVAL);
        }
        let mapping = Mapping::new(fd, true)?;
        let chunk_size = chunk_size as usize;
        let chunks = mapping.bytes() / chunk_size;
        if chunks == 0 {
            return Err(Errno::INVAL);
        }
        Ok(Self {
            mapping,
            chunk_size,
            chunks,
        })
    }

    /// First byte of the memory and its size, for registering it with a NIC.
    #[must_use]
    pub fn range(&self) -> (*mut u8, usize) {
        (self.mapping.as_ptr(), self.mapping.bytes())
    }

    /// When the frame of a chunk has come by the clock of a NIC that stamps, nanoseconds since
    /// 1970; 0 = not known.
    #[must_use]
    pub fn stamp(&self, chunk: ChunkId) -> u64 {
        let stamp = self.chunk(chunk).get(STAMP_AT..);
        stamp
            .and_then(|bytes| bytes.first_chunk())
            .map_or(0, |bytes| u64::from_ne_bytes(*bytes))
    }

    /// Address of a chunk, or `None` when there is no such chunk.
    fn address(&self, chunk: ChunkId) -> Option<*mut u8> {
        let index = chunk.0 as usize;
        if index >= self.chunks {
            return None;
        }
        // SAFETY: `index < chunks`, so the chunk lies inside the mapping.
        Some(unsafe { self.mapping.as_ptr().add(index * self.chunk_size) })
    }
}

impl Memory for Packets {
    fn chunk_size(&self) -> usize {
        self.chunk_size
    }

    fn chunk(&self, chunk: ChunkId) -> &[u8] {
        let Some(address) = self.address(chunk) else {
            return &[];
        };
        // SAFETY: the chunk is mapped for `chunk_size` bytes while `self` lives, and is not in the
        // NIC's hands (see the type); a process that breaks that rule can change the bytes, which
        // are then wrong data, never an invalid value.
        unsafe { std::slice::from_raw_parts(address, self.chunk_size) }
    }

    fn chunk_mut(&mut self, chunk: ChunkId) -> &mut [u8] {
        let Some(address) = self.address(chunk) else {
            return &mut [];
        };
        // SAFETY: as in `chunk`; `&mut self` makes this the only slice of this process.
        unsafe { std::slice::from_raw_parts_mut(address, self.chunk_size) }
    }
}
