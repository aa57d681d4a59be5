//! The Internet checksum (RFC 1071).
//!
//! Sums are taken over 64-bit words in native byte order, which gives the one's complement sum
//! in that order (RFC 1071 section 2(B)); only header fields are converted. A [`Sum`] must be fed
//! an even number of bytes in every part but the last.

/// An unfolded one's complement sum in native byte order.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sum {
    /// Sum of 64-bit pieces.
    wide: u128,
    /// Sum of shorter pieces; their count is far below 2^32, so that it has no carry.
    narrow: u64,
}

impl Sum {
    /// The empty sum.
    #[must_use]
    pub const fn new() -> Self {
        Self { wide: 0, narrow: 0 }
    }

    /// Adds a 16-bit field given in host order.
    #[inline]
    #[must_use]
    pub fn field(self, value: u16) -> Self {
        self.short(u64::from(value.to_be()))
    }

    /// Adds a 32-bit field, or two of 16 bits, given in host order.
    #[inline]
    #[must_use]
    pub fn pair(self, value: u32) -> Self {
        self.short(u64::from(value.to_be()))
    }

    /// Adds an aligned 64-bit piece, as it is in memory.
    #[inline]
    #[must_use]
    pub fn word(self, bytes: [u8; 8]) -> Self {
        Self {
            wide: self
                .wide
                .wrapping_add(u128::from(u64::from_ne_bytes(bytes))),
            ..self
        }
    }

    /// As [`Sum::bytes`], for what is long or of any length: out of line, and what crosses the call
    /// fits a register.
    #[inline]
    #[must_use]
    pub fn payload(self, bytes: &[u8]) -> Self {
        self.word(sum_of(bytes).to_ne_bytes())
    }

    /// Adds a piece of at most 32 bits in native order.
    #[inline]
    fn short(self, piece: u64) -> Self {
        Self {
            narrow: self.narrow.wrapping_add(piece),
            ..self
        }
    }

    /// Adds bytes; an odd last one is padded with zero.
    #[inline]
    #[must_use]
    pub fn bytes(self, bytes: &[u8]) -> Self {
        let mut even = self.wide;
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
        Self {
            wide: even.wrapping_add(odd),
            narrow: self.narrow.wrapping_add(tail),
        }
    }

    /// The same in 64 bits.
    #[inline]
    fn folded(self) -> u64 {
        let (sum, first) = (self.wide as u64).overflowing_add((self.wide >> 64) as u64);
        let (sum, second) = sum.overflowing_add(self.narrow);
        // What carries leaves a small sum behind: this one cannot carry again.
        sum.wrapping_add(u64::from(first))
            .wrapping_add(u64::from(second))
    }

    /// The 16-bit one's complement sum in host order, not complemented.
    #[inline]
    #[must_use]
    pub fn fold(self) -> u16 {
        let sum = self.folded();
        // The upper half of a number plus itself with the halves exchanged is the sum of the two
        // halves, carry included.
        let sum = (sum.wrapping_add(sum.rotate_left(32)) >> 32) as u32;
        let sum = (sum.wrapping_add(sum.rotate_left(16)) >> 16) as u16;
        u16::from_be(sum)
    }
}

/// The one's complement sum of bytes, in 64 bits.
#[inline(never)]
fn sum_of(bytes: &[u8]) -> u64 {
    Sum::new().bytes(bytes).folded()
}
