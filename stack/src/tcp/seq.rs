//! Sequence numbers: 32 bits that wrap (RFC 9293 section 3.4). All comparisons are of the signed
//! distance, so they hold for numbers less than 2 GiB apart.

/// Whether `a` comes before `b`.
#[inline]
pub(crate) const fn before(a: u32, b: u32) -> bool {
    (a.wrapping_sub(b) as i32) < 0
}

/// Whether `a` comes after `b`.
#[inline]
pub(crate) const fn after(a: u32, b: u32) -> bool {
    before(b, a)
}

/// The earlier of the two.
#[inline]
pub(crate) const fn earlier(a: u32, b: u32) -> u32 {
    if before(a, b) { a } else { b }
}

/// Bytes from `from` up to `to`; zero if `to` is not after it.
#[inline]
pub(crate) const fn distance(from: u32, to: u32) -> u32 {
    if before(from, to) {
        to.wrapping_sub(from)
    } else {
        0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn order_survives_the_wrap() {
        assert!(before(u32::MAX, 0));
        assert!(after(5, u32::MAX - 5));
        assert_eq!(distance(u32::MAX - 1, 2), 4);
        assert_eq!(distance(2, u32::MAX - 1), 0);
        assert_eq!(earlier(u32::MAX, 1), u32::MAX);
    }
}
