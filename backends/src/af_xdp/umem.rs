//! Packet memory as AF_XDP sees it: chunks of one size, addressed by their byte offset.
//!
//! ```text
//!   address = chunk * chunk_size + offset
//!
//!   received:  | 256 bytes headroom (the kernel's) | frame ........... |     offset 256
//!   to send:   | anything | frame ........................... |             offset as submitted
//! ```
//!
//! A completion gives back the address that was submitted, a received frame an address inside of
//! the chunk that was posted; both lead to the chunk by division.

/// What the kernel keeps free before a received frame, in bytes (`XDP_PACKET_HEADROOM`).
pub const HEADROOM: u32 = 256;

/// Bytes of the longest frame that is received into a chunk.
#[must_use]
pub fn longest_frame(chunk_size: u32) -> u32 {
    chunk_size.saturating_sub(HEADROOM)
}

/// Packet memory of a stack, as it is mapped in this process.
///
/// The kernel pins the pages when a queue is opened over it and keeps no address of the mapping:
/// it may be unmapped afterwards.
#[derive(Clone, Copy, Debug)]
pub struct PacketMemory {
    /// First byte, page aligned.
    pub address: *mut u8,
    /// Size in bytes.
    pub bytes: usize,
    /// Size of one chunk in bytes: 2048 or 4096.
    pub chunk_size: u32,
}

/// How chunks are counted in packet memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Chunks {
    shift: u32,
}

impl Chunks {
    /// `None` unless the size is a power of two.
    pub(super) fn new(chunk_size: u32) -> Option<Self> {
        chunk_size.is_power_of_two().then(|| Self {
            shift: chunk_size.trailing_zeros(),
        })
    }

    /// Chunk and offset of an address. One beyond all chunks (another process of the stack may
    /// have written anything into the ring) gives `u32::MAX`, which is no chunk.
    pub(super) fn place(self, address: u64) -> (u32, u32) {
        let chunk = u32::try_from(address >> self.shift).unwrap_or(u32::MAX);
        let offset = address & ((1 << self.shift) - 1);
        (chunk, offset as u32)
    }

    /// The address of a byte of a chunk.
    pub(super) fn address(self, chunk: u32, offset: u32) -> u64 {
        (u64::from(chunk) << self.shift) + u64::from(offset)
    }
}

#[cfg(test)]
mod tests {
    use super::Chunks;

    #[test]
    fn an_address_is_a_chunk_and_an_offset() {
        let small = Chunks::new(2048).unwrap();
        assert_eq!(small.place(3 * 2048 + 256), (3, 256));
        assert_eq!(small.address(3, 256), 3 * 2048 + 256);
        let large = Chunks::new(4096).unwrap();
        assert_eq!(large.place(4095), (0, 4095));
        assert_eq!(large.place(u64::MAX), (u32::MAX, 4095));
        assert_eq!(Chunks::new(3000), None);
        assert_eq!(Chunks::new(0), None);
    }
}
