//! Numbers that a stranger must not guess: initial sequence numbers (RFC 6528) and timestamp
//! offsets (RFC 7323 section 5.4). Both are SipHash-2-4 of the connection's addresses under the
//! stack's key.

use crate::types::SocketAddress;

/// A key of SipHash, random bits.
pub type Key = [u64; 2];

/// What a hash is for, so that one does not reveal another.
#[derive(Clone, Copy)]
enum Purpose {
    Isn,
    TimestampOffset,
}

/// SipHash-2-4 (Aumasson and Bernstein, 2012) of a message.
#[must_use]
pub fn siphash(key: &Key, message: &[u8]) -> u64 {
    let [k0, k1] = *key;
    let mut v = [
        k0 ^ 0x736f_6d65_7073_6575,
        k1 ^ 0x646f_7261_6e64_6f6d,
        k0 ^ 0x6c79_6765_6e65_7261,
        k1 ^ 0x7465_6462_7974_6573,
    ];
    let (words, rest) = message.as_chunks::<8>();
    for word in words {
        absorb(&mut v, u64::from_le_bytes(*word));
    }
    let mut last = [0; 8];
    for (place, byte) in last.iter_mut().zip(rest) {
        *place = *byte;
    }
    last[7] = message.len() as u8;
    absorb(&mut v, u64::from_le_bytes(last));
    v[2] ^= 0xff;
    for _ in 0..4 {
        round(&mut v);
    }
    v[0] ^ v[1] ^ v[2] ^ v[3]
}

/// Takes a word of the message in.
#[inline]
fn absorb(v: &mut [u64; 4], word: u64) {
    v[3] ^= word;
    round(v);
    round(v);
    v[0] ^= word;
}

/// One SipRound.
#[inline]
fn round(v: &mut [u64; 4]) {
    let [a, b, c, d] = *v;
    let (a, b) = (a.wrapping_add(b), b.rotate_left(13));
    let (a, b) = (a.rotate_left(32), b ^ a);
    let (c, d) = (c.wrapping_add(d), d.rotate_left(16));
    let d = d ^ c;
    let (a, d) = (a.wrapping_add(d), d.rotate_left(21));
    let d = d ^ a;
    let (c, b) = (c.wrapping_add(b), b.rotate_left(17));
    let (c, b) = (c.rotate_left(32), b ^ c);
    *v = [a, b, c, d];
}

/// The hash of a connection for one purpose.
fn connection(key: &Key, purpose: Purpose, local: SocketAddress, remote: SocketAddress) -> u64 {
    let mut message = [0; 48];
    let ports = u64::from(local.port) << 48 | u64::from(remote.port) << 32;
    let words = [local.ip.words(), remote.ip.words(), (ports, purpose as u64)];
    let (places, _) = message.as_chunks_mut::<16>();
    for (place, (high, low)) in places.iter_mut().zip(words) {
        *place = (u128::from(high) << 64 | u128::from(low)).to_le_bytes();
    }
    siphash(key, &message)
}

/// The initial sequence number of a connection: a keyed hash of the addresses plus a clock that
/// ticks every 64 ns (RFC 6528 section 3; the tick is Linux's). `now_ns` is any monotonic clock.
#[must_use]
pub fn isn(key: &Key, local: SocketAddress, remote: SocketAddress, now_ns: u64) -> u32 {
    let hash = connection(key, Purpose::Isn, local, remote);
    (hash as u32).wrapping_add((now_ns >> 6) as u32)
}

/// What a connection adds to the millisecond clock for its timestamps. The same addresses always
/// give the same offset, so that a reused pair of addresses keeps its timestamps going forward
/// (RFC 6191).
#[must_use]
pub fn timestamp_offset(key: &Key, local: SocketAddress, remote: SocketAddress) -> u32 {
    connection(key, Purpose::TimestampOffset, local, remote) as u32
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::IpAddress;
    use std::collections::HashSet;
    use std::hash::Hasher;
    use std::vec::Vec;

    const KEY: Key = [0x0706_0504_0302_0100, 0x0f0e_0d0c_0b0a_0908];
    const SECOND: u64 = 1_000_000_000;

    fn at(host: u8, port: u16) -> SocketAddress {
        SocketAddress::new(IpAddress::from_v4([198, 18, 0, host]), port)
    }

    #[test]
    fn siphash_is_the_authors_and_the_standard_librarys() {
        // The vector of appendix A of the paper.
        let message: Vec<u8> = (0..15).collect();
        assert_eq!(siphash(&KEY, &message), 0xa129_ca61_49be_45e5);
        let message: Vec<u8> = (0..200u8).map(|n| n.wrapping_mul(37)).collect();
        for len in 0..message.len() {
            for key in [KEY, [0, 0], [u64::MAX, 1]] {
                #[expect(deprecated, reason = "the oracle: a keyed SipHash-2-4")]
                let mut oracle = core::hash::SipHasher::new_with_keys(key[0], key[1]);
                oracle.write(&message[..len]);
                assert_eq!(siphash(&key, &message[..len]), oracle.finish(), "{len}");
            }
        }
    }

    #[test]
    fn sequence_numbers_tick_every_64_ns_and_differ_by_connection() {
        let first = isn(&KEY, at(1, 80), at(2, 5000), 0);
        assert_eq!(isn(&KEY, at(1, 80), at(2, 5000), 63), first);
        let later = isn(&KEY, at(1, 80), at(2, 5000), SECOND);
        assert_eq!(later.wrapping_sub(first), 15_625_000);
        let others: HashSet<u32> = [
            first,
            isn(&KEY, at(2, 80), at(1, 5000), 0),
            isn(&KEY, at(1, 5000), at(2, 80), 0),
            isn(&KEY, at(1, 80), at(2, 5001), 0),
            isn(&KEY, at(1, 81), at(2, 5000), 0),
            isn(&[1, 2], at(1, 80), at(2, 5000), 0),
            timestamp_offset(&KEY, at(1, 80), at(2, 5000)),
            timestamp_offset(&KEY, at(1, 80), at(2, 5001)),
        ]
        .into();
        assert_eq!(others.len(), 8);
    }
}
