//! TCP options: reading any, writing those of RFC 9293, 7323 and 2018.
//!
//! Malformed options end the reading and are no error, as Linux does it: a length below 2 or behind
//! the header stops, an option of the wrong length is skipped, the last of equal ones counts.
//! Written is Linux's layout, so that the usual segment has one form that one compare recognises.

use super::MAX_OPTIONS;
use crate::wire::checksum::Sum;

/// Option kinds (IANA).
mod kind {
    pub(super) const END: u8 = 0;
    pub(super) const NOP: u8 = 1;
    pub(super) const MSS: u8 = 2;
    pub(super) const WINDOW_SCALE: u8 = 3;
    pub(super) const SACK_PERMITTED: u8 = 4;
    pub(super) const SACK: u8 = 5;
    pub(super) const TIMESTAMPS: u8 = 8;
}

/// NOP, NOP, timestamps of 10 bytes.
pub(super) const NOP_NOP_TIMESTAMPS: u32 =
    u32::from_be_bytes([kind::NOP, kind::NOP, kind::TIMESTAMPS, 10]);
/// SACK permitted of 2 bytes, timestamps of 10.
const SACK_PERMITTED_TIMESTAMPS: u32 =
    u32::from_be_bytes([kind::SACK_PERMITTED, 2, kind::TIMESTAMPS, 10]);
/// Bytes of the timestamps option with what fills it up to words.
const TIMESTAMPS_LEN: usize = 12;
/// Largest shift of the window (RFC 7323 section 2.3).
const WINDOW_SCALE_MAX: u8 = 14;

/// Timestamps (RFC 7323 section 3).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Timestamps {
    /// TSval: the sender's clock.
    pub value: u32,
    /// TSecr: the clock value that it echoes.
    pub echo: u32,
}

/// A block of data that arrived beyond the acknowledgment (RFC 2018 section 3).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SackBlock {
    /// First sequence number.
    pub left: u32,
    /// Sequence number behind the last.
    pub right: u32,
}

/// Options of a segment (RFC 9293, 7323, 2018).
///
/// MSS, window scale and SACK permitted are found only in a SYN. Written are as many SACK blocks as
/// fit behind the other options.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// Largest segment that the sender takes, bytes; 0 on the wire counts as none.
    pub mss: Option<u16>,
    /// Shift of the sender's window, 0 to 14; larger ones count as 14.
    pub window_scale: Option<u8>,
    /// Whether the sender understands SACK.
    pub sack_permitted: bool,
    /// Timestamps.
    pub timestamps: Option<Timestamps>,
    /// SACK blocks, in the order of the segment.
    pub sack: [SackBlock; 4],
    /// How many of them there are, at most 4.
    pub sack_count: u8,
}

impl Options {
    /// No option at all.
    const NONE: Self = Self {
        mss: None,
        window_scale: None,
        sack_permitted: false,
        timestamps: None,
        sack: [SackBlock { left: 0, right: 0 }; 4],
        sack_count: 0,
    };

    /// The SACK blocks.
    #[inline]
    #[must_use]
    pub fn sack_blocks(&self) -> &[SackBlock] {
        self.sack
            .get(..usize::from(self.sack_count))
            .unwrap_or(&self.sack)
    }

    /// Whether there is at most a timestamp.
    #[inline]
    fn is_plain(&self) -> bool {
        self.sack_count == 0
            && self.mss.is_none()
            && self.window_scale.is_none()
            && !self.sack_permitted
    }
}

/// Reads the options of a header; `syn` says whether the segment is a SYN.
#[inline]
pub(super) fn parse(bytes: &[u8], syn: bool) -> Options {
    if let Ok(&[a, b, c, d, v0, v1, v2, v3, e0, e1, e2, e3]) =
        <&[u8; TIMESTAMPS_LEN]>::try_from(bytes)
        && u32::from_be_bytes([a, b, c, d]) == NOP_NOP_TIMESTAMPS
    {
        return Options {
            timestamps: Some(Timestamps {
                value: u32::from_be_bytes([v0, v1, v2, v3]),
                echo: u32::from_be_bytes([e0, e1, e2, e3]),
            }),
            ..Options::NONE
        };
    }
    if bytes.is_empty() {
        return Options::NONE;
    }
    walk(bytes, syn)
}

/// Reads options in any layout.
fn walk(bytes: &[u8], syn: bool) -> Options {
    let mut found = Options::NONE;
    let mut rest = bytes;
    while let [kind, behind @ ..] = rest {
        match *kind {
            kind::END => break,
            kind::NOP => {
                rest = behind;
                continue;
            }
            _ => {}
        }
        let Some(len) = behind.first().map(|len| usize::from(*len)) else {
            break;
        };
        // The range is none when the length is below 2.
        let (Some(body), Some(next)) = (rest.get(2..len), rest.get(len..)) else {
            break;
        };
        read(&mut found, *kind, body, syn);
        rest = next;
    }
    found
}

/// Takes one option in; `body` is what is behind kind and length.
fn read(found: &mut Options, kind: u8, body: &[u8], syn: bool) {
    match (kind, body) {
        (kind::MSS, &[high, low]) if syn => {
            let mss = u16::from_be_bytes([high, low]);
            if mss != 0 {
                found.mss = Some(mss);
            }
        }
        (kind::WINDOW_SCALE, &[shift]) if syn => {
            found.window_scale = Some(shift.min(WINDOW_SCALE_MAX));
        }
        (kind::SACK_PERMITTED, []) if syn => found.sack_permitted = true,
        (kind::TIMESTAMPS, &[a, b, c, d, e, f, g, h]) => {
            found.timestamps = Some(Timestamps {
                value: u32::from_be_bytes([a, b, c, d]),
                echo: u32::from_be_bytes([e, f, g, h]),
            });
        }
        (kind::SACK, _) => {
            let (blocks, rest) = body.as_chunks::<8>();
            if rest.is_empty() && !blocks.is_empty() {
                found.sack_count = blocks.len().min(found.sack.len()) as u8;
                for (place, &[a, b, c, d, e, f, g, h]) in found.sack.iter_mut().zip(blocks) {
                    place.left = u32::from_be_bytes([a, b, c, d]);
                    place.right = u32::from_be_bytes([e, f, g, h]);
                }
            }
        }
        _ => {}
    }
}

/// Bytes that the options take on the wire: a multiple of 4, at most 40.
#[inline]
#[must_use]
pub fn options_len(options: &Options) -> usize {
    if options.is_plain() {
        return if options.timestamps.is_some() {
            TIMESTAMPS_LEN
        } else {
            0
        };
    }
    let (fixed, blocks) = lengths(options);
    match blocks {
        0 => fixed,
        _ => fixed.wrapping_add(4).wrapping_add(blocks.wrapping_mul(8)),
    }
}

/// Bytes of the options other than SACK blocks, and how many blocks fit behind them.
fn lengths(options: &Options) -> (usize, usize) {
    let mut fixed = 0usize;
    if options.mss.is_some() {
        fixed = fixed.wrapping_add(4);
    }
    if options.timestamps.is_some() {
        fixed = fixed.wrapping_add(TIMESTAMPS_LEN);
    } else if options.sack_permitted {
        fixed = fixed.wrapping_add(4);
    }
    if options.window_scale.is_some() {
        fixed = fixed.wrapping_add(4);
    }
    let room = MAX_OPTIONS.saturating_sub(fixed).saturating_sub(4) / 8;
    (fixed, options.sack_blocks().len().min(room))
}

/// Writes the options into their [`options_len`] bytes and adds them to the sum.
#[inline]
pub(super) fn emit(bytes: &mut [u8], options: &Options, sum: Sum) -> Sum {
    if !options.is_plain() {
        lay_out(bytes, options);
        return sum.bytes(bytes);
    }
    let (Some(stamps), Some(place)) = (
        options.timestamps,
        bytes.first_chunk_mut::<TIMESTAMPS_LEN>(),
    ) else {
        return sum;
    };
    let first = (u64::from(NOP_NOP_TIMESTAMPS) << 32 | u64::from(stamps.value)).to_be_bytes();
    let [a, b, c, d, e, f, g, h] = first;
    let [i, j, k, l] = stamps.echo.to_be_bytes();
    *place = [a, b, c, d, e, f, g, h, i, j, k, l];
    sum.word(first).pair(stamps.echo)
}

/// Writes options that are more than timestamps.
fn lay_out(bytes: &mut [u8], options: &Options) {
    let mut words = bytes.as_chunks_mut::<4>().0.iter_mut();
    let mut put = |word: u32| {
        if let Some(place) = words.next() {
            *place = word.to_be_bytes();
        }
    };
    if let Some(mss) = options.mss {
        put(u32::from_be_bytes([kind::MSS, 4, 0, 0]) | u32::from(mss));
    }
    if let Some(stamps) = options.timestamps {
        put(if options.sack_permitted {
            SACK_PERMITTED_TIMESTAMPS
        } else {
            NOP_NOP_TIMESTAMPS
        });
        put(stamps.value);
        put(stamps.echo);
    } else if options.sack_permitted {
        put(u32::from_be_bytes([
            kind::NOP,
            kind::NOP,
            kind::SACK_PERMITTED,
            2,
        ]));
    }
    if let Some(shift) = options.window_scale {
        put(u32::from_be_bytes([
            kind::NOP,
            kind::WINDOW_SCALE,
            3,
            shift,
        ]));
    }
    let (_, count) = lengths(options);
    if count > 0 {
        let len = count.wrapping_mul(8).wrapping_add(2) as u8;
        put(u32::from_be_bytes([kind::NOP, kind::NOP, kind::SACK, len]));
    }
    for block in options.sack_blocks().iter().take(count) {
        put(block.left);
        put(block.right);
    }
}
