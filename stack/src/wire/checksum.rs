//! The Internet checksum (RFC 1071).
//!
//! Sums are taken over 64-bit words in native byte order, which gives the one's complement sum
//! in that order (RFC 1071 section 2(B)); only header fields are converted. A [`Sum`] must be fed
//! an even number of bytes in every part but the last.

/// An unfolded one's complement sum in native byte order.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sum(u128);

impl Sum {
    /// The empty sum.
    #[must_use]
    pub const fn new() -> Self {
        Self(0)
    }

    /// Adds a 16-bit field given in host order.
    #[inline]
    #[must_use]
    pub fn field(self, value: u16) -> Self {
        Self(self.0.wrapping_add(u128::from(value.to_be())))
    }

    /// Adds an aligned 64-bit piece, as it is in memory.
    #[inline]
    #[must_use]
    pub fn word(self, bytes: [u8; 8]) -> Self {
        Self(self.0.wrapping_add(u128::from(u64::from_ne_bytes(bytes))))
    }

    /// Adds bytes; an odd last one is padded with zero.
    #[inline]
    #[must_use]
    pub fn bytes(self, bytes: &[u8]) -> Self {
        let mut even = self.0;
        let mut odd = 0u128;
        let (blocks, mut rest) = bytes.as_chunks::<32>();
        for block in blocks {
            // Two sums, so that the two chains of additions with carry do not wait for each other.
            let (words, _) = block.as_chunks::<8>();
            if let [a, b, c, d] = *words {
                even = even.wrapping_add(u128::from(u64::from_ne_bytes(a)));
                odd = odd.wrapping_add(u128::from(u64::from_ne_bytes(b)));
                even = even.wrapping_add(u128::from(u64::from_ne_bytes(c)));
                odd = odd.wrapping_add(u128::from(u64::from_ne_bytes(d)));
            }
        }
        // At most 31 bytes are left; every piece starts at an even place.
        if let Some((piece, behind)) = rest.split_first_chunk::<16>() {
            let (words, _) = piece.as_chunks::<8>();
            if let [a, b] = *words {
                even = even.wrapping_add(u128::from(u64::from_ne_bytes(a)));
                odd = odd.wrapping_add(u128::from(u64::from_ne_bytes(b)));
            }
            rest = behind;
        }
        if let Some((piece, behind)) = rest.split_first_chunk::<8>() {
            even = even.wrapping_add(u128::from(u64::from_ne_bytes(*piece)));
            rest = behind;
        }
        let mut tail = 0u64;
        if let Some((piece, behind)) = rest.split_first_chunk::<4>() {
            tail = u64::from(u32::from_ne_bytes(*piece));
            rest = behind;
        }
        if let Some((piece, behind)) = rest.split_first_chunk::<2>() {
            tail = tail.wrapping_add(u64::from(u16::from_ne_bytes(*piece)));
            rest = behind;
        }
        if let [last] = *rest {
            tail = tail.wrapping_add(u64::from(u16::from_ne_bytes([last, 0])));
        }
        Self(even.wrapping_add(odd).wrapping_add(u128::from(tail)))
    }

    /// The 16-bit one's complement sum in host order, not complemented.
    #[inline]
    #[must_use]
    pub fn fold(self) -> u16 {
        // The carries are few, so that low + carries carries at most once.
        let (low, carry) = (self.0 as u64).overflowing_add((self.0 >> 64) as u64);
        let (high, low) = (low >> 32, low & 0xffff_ffff);
        let sum = low.wrapping_add(high).wrapping_add(u64::from(carry));
        let sum = (sum & 0xffff).wrapping_add(sum >> 16);
        let sum = (sum & 0xffff).wrapping_add(sum >> 16);
        let sum = (sum & 0xffff).wrapping_add(sum >> 16);
        u16::from_be(sum as u16)
    }
}
