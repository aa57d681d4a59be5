//! Numbers that a stranger must not guess: initial sequence numbers (RFC 6528), timestamp offsets
//! (RFC 7323 section 5.4) and SYN cookies (RFC 4987 section 3.6).
//!
//! All are SipHash-2-4 of the connection's addresses under the stack's key. A cookie is an initial
//! sequence number that carries the MSS of a SYN for which nothing is remembered:
//!
//! | bits | |
//! |---|---|
//! | 31-24 | count of 64-second periods, low bits |
//! | 23-0 | keyed hash of the connection and that count, plus the index of the MSS |
//!
//! to which a second hash of the connection and the peer's sequence number are added. What else
//! the SYN offered is in the low bits of the timestamp of the SYN-ACK, if the peer echoes one.

use crate::types::SocketAddress;

/// A key of SipHash, random bits.
pub type Key = [u64; 2];

/// What a hash is for, so that one does not reveal another.
#[derive(Clone, Copy)]
enum Purpose {
    Isn,
    TimestampOffset,
    CookieBase,
    CookieData,
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
fn connection(
    key: &Key,
    purpose: Purpose,
    local: SocketAddress,
    remote: SocketAddress,
    more: u32,
) -> u64 {
    let mut message = [0; 48];
    let ports = u64::from(local.port) << 16 | u64::from(remote.port);
    let words = [
        local.ip.words(),
        remote.ip.words(),
        (ports << 32 | u64::from(more), purpose as u64),
    ];
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
    let hash = connection(key, Purpose::Isn, local, remote, 0);
    (hash as u32).wrapping_add((now_ns >> 6) as u32)
}

/// What a connection adds to the millisecond clock for its timestamps. The same addresses always
/// give the same offset, so that a reused pair of addresses keeps its timestamps going forward
/// (RFC 6191).
#[must_use]
pub fn timestamp_offset(key: &Key, local: SocketAddress, remote: SocketAddress) -> u32 {
    connection(key, Purpose::TimestampOffset, local, remote, 0) as u32
}

/// MSS values, bytes, that a cookie can say: ascending. A SYN's is rounded down, and counts as the
/// first if it is below that.
const MSS: [u16; 8] = [64, 536, 1220, 1340, 1400, 1440, 1460, 8940];
/// Length of a period of the count.
const PERIOD_NS: u64 = 64_000_000_000;
/// Periods for which a cookie is taken: the current one and the one before, hence 64 to 128 s.
const PERIODS: u32 = 2;
/// The part of a cookie below the count.
const DATA: u32 = 0x00ff_ffff;

/// The count of 64-second periods.
fn period(now_ns: u64) -> u32 {
    (now_ns / PERIOD_NS) as u32
}

/// The initial sequence number that stands for a SYN with this sequence number and MSS. `local`
/// is our address, `remote` the SYN's sender.
#[must_use]
pub fn cookie_make(
    key: &Key,
    local: SocketAddress,
    remote: SocketAddress,
    peer_isn: u32,
    mss: u16,
    now_ns: u64,
) -> u32 {
    let index = MSS.iter().rposition(|entry| *entry <= mss).unwrap_or(0) as u32;
    let period = period(now_ns);
    let data = (connection(key, Purpose::CookieData, local, remote, period) as u32)
        .wrapping_add(index)
        & DATA;
    (connection(key, Purpose::CookieBase, local, remote, 0) as u32)
        .wrapping_add(peer_isn)
        .wrapping_add(period << 24)
        .wrapping_add(data)
}

/// The MSS that a cookie says, if it is one of ours for this connection and not older than 128 s.
/// `peer_isn` is the acknowledging segment's sequence number less 1, `cookie` its acknowledgment
/// number less 1.
#[must_use]
pub fn cookie_check(
    key: &Key,
    local: SocketAddress,
    remote: SocketAddress,
    peer_isn: u32,
    cookie: u32,
    now_ns: u64,
) -> Option<u16> {
    let base = connection(key, Purpose::CookieBase, local, remote, 0) as u32;
    let rest = cookie.wrapping_sub(base).wrapping_sub(peer_isn);
    let now = period(now_ns);
    let age = now.wrapping_sub(rest >> 24) & 0xff;
    if age >= PERIODS {
        return None;
    }
    let period = now.wrapping_sub(age);
    let hash = connection(key, Purpose::CookieData, local, remote, period) as u32;
    MSS.get((rest.wrapping_sub(hash) & DATA) as usize).copied()
}

/// What a SYN offered besides its MSS.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CookieOptions {
    /// Shift of the peer's window, 0 to 14.
    pub window_scale: Option<u8>,
    /// Whether the peer understands SACK.
    pub sack_permitted: bool,
    /// Whether the peer asked for ECN.
    pub ecn: bool,
}

/// Bits of a timestamp that carry options.
const OPTION_BITS: u32 = 6;
/// Those with the window's shift; all ones is none.
const SCALE_BITS: u32 = 15;
/// The one with SACK.
const SACK_BIT: u32 = 16;
/// The one with ECN.
const ECN_BIT: u32 = 32;

/// The timestamp for the SYN-ACK of a cookie, before the connection's offset is added: at most
/// `clock`, the millisecond clock, and less than 64 ms before it.
#[must_use]
pub fn cookie_timestamp(clock: u32, options: &CookieOptions) -> u32 {
    let mut bits = options
        .window_scale
        .map_or(SCALE_BITS, |shift| u32::from(shift.min(14)));
    if options.sack_permitted {
        bits |= SACK_BIT;
    }
    if options.ecn {
        bits |= ECN_BIT;
    }
    let stamp = clock >> OPTION_BITS << OPTION_BITS | bits;
    if stamp > clock {
        stamp.wrapping_sub(1 << OPTION_BITS)
    } else {
        stamp
    }
}

/// What [`cookie_timestamp`] put into a timestamp that came back, less the connection's offset.
#[must_use]
pub fn cookie_options(stamp: u32) -> CookieOptions {
    let shift = (stamp & SCALE_BITS) as u8;
    CookieOptions {
        window_scale: (shift != SCALE_BITS as u8).then_some(shift.min(14)),
        sack_permitted: stamp & SACK_BIT != 0,
        ecn: stamp & ECN_BIT != 0,
    }
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

    #[test]
    fn a_cookie_says_the_mss_rounded_down() {
        for (mss, said) in [
            (0, 64),
            (63, 64),
            (64, 64),
            (535, 64),
            (536, 536),
            (1219, 536),
            (1220, 1220),
            (1459, 1440),
            (1460, 1460),
            (8939, 1460),
            (65535, 8940),
        ] {
            let cookie = cookie_make(&KEY, at(1, 80), at(2, 5000), 7, mss, 900 * SECOND);
            let found = cookie_check(&KEY, at(1, 80), at(2, 5000), 7, cookie, 900 * SECOND);
            assert_eq!(found, Some(said), "{mss}");
        }
    }

    #[test]
    fn a_cookie_is_for_one_connection_and_128_seconds() {
        let made = 64 * SECOND * 1000;
        let cookie = cookie_make(&KEY, at(1, 80), at(2, 5000), 7, 1460, made);
        let check =
            |key: &Key, local, remote, isn, now| cookie_check(key, local, remote, isn, cookie, now);
        let (local, remote) = (at(1, 80), at(2, 5000));
        assert_eq!(
            check(&KEY, local, remote, 7, made + 127 * SECOND),
            Some(1460)
        );
        assert_eq!(check(&KEY, local, remote, 7, made + 128 * SECOND), None);
        assert_eq!(check(&KEY, local, remote, 7, made - SECOND), None);
        assert_eq!(check(&[1, 2], local, remote, 7, made), None);
        assert_eq!(check(&KEY, local, at(2, 5001), 7, made), None);
        assert_eq!(check(&KEY, local, at(3, 5000), 7, made), None);
        assert_eq!(check(&KEY, at(1, 81), remote, 7, made), None);
        assert_eq!(check(&KEY, local, remote, 1000, made), None);
        // The count of periods wraps at 8 bits in the cookie.
        let cookie = cookie_make(&KEY, local, remote, 7, 1460, 255 * PERIOD_NS);
        let found = cookie_check(&KEY, local, remote, 7, cookie, 256 * PERIOD_NS);
        assert_eq!(found, Some(1460));
    }

    #[test]
    fn guessed_cookies_are_hardly_ever_taken() {
        // 8 indices and 2 periods of 2^32: one guess in 2^28 is expected to be right.
        let (local, remote) = (at(1, 80), at(2, 5000));
        let taken = (0..1_000_000u32)
            .map(|n| n.wrapping_mul(0x9e37_79b1))
            .filter(|guess| cookie_check(&KEY, local, remote, 7, *guess, 900 * SECOND).is_some())
            .count();
        assert!(taken <= 1, "{taken}");
    }

    #[test]
    fn timestamps_carry_what_the_syn_offered() {
        let shifts = (0..=14).map(Some).chain([None]);
        for window_scale in shifts {
            for bits in 0..4 {
                let options = CookieOptions {
                    window_scale,
                    sack_permitted: bits & 1 != 0,
                    ecn: bits & 2 != 0,
                };
                for clock in [64, 65, 127, 128, 0x8000_0000, u32::MAX - 3, u32::MAX] {
                    let stamp = cookie_timestamp(clock, &options);
                    assert!(stamp <= clock && clock - stamp < 64, "{clock} {stamp}");
                    assert_eq!(cookie_options(stamp), options);
                }
            }
        }
    }
}
