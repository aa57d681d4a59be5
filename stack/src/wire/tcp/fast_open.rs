//! The Fast Open option (RFC 7413 section 4.1.1): a cookie, or the request for one. Read and
//! written apart from the other options, because only SYNs and their answers have it.

/// Option kind (IANA), and the one that shared experiments use with their own number behind it (RFC
/// 6994).
const KIND: u8 = 34;
const EXPERIMENT: u8 = 254;
/// Number of the experiment.
const NUMBER: [u8; 2] = [0xf9, 0x89];
const END: u8 = 0;
const NOP: u8 = 1;
/// Fewest and most bytes of a cookie.
const LEAST: usize = 4;
const MOST: usize = 16;

/// A Fast Open option.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FastOpen {
    bytes: [u8; MOST],
    len: u8,
    /// It came, or goes, in the form of the experiment.
    pub is_experimental: bool,
}

impl FastOpen {
    /// Most bytes that an option takes with what fills it up to words.
    pub const MOST: usize = 20;

    /// The request for a cookie.
    #[must_use]
    pub const fn request(is_experimental: bool) -> Self {
        Self {
            bytes: [0; MOST],
            len: 0,
            is_experimental,
        }
    }

    /// A cookie of 4 to 16 bytes, an even number, or with none a request; `None` for others.
    #[must_use]
    pub fn new(cookie: &[u8], is_experimental: bool) -> Option<Self> {
        let mut made = Self::request(is_experimental);
        if !cookie.is_empty() && cookie.len() < LEAST || !cookie.len().is_multiple_of(2) {
            return None;
        }
        made.bytes.get_mut(..cookie.len())?.copy_from_slice(cookie);
        made.len = cookie.len() as u8;
        Some(made)
    }

    /// The cookie; empty in a request.
    #[must_use]
    pub fn cookie(&self) -> &[u8] {
        self.bytes
            .get(..usize::from(self.len))
            .unwrap_or(&self.bytes)
    }

    /// Finds the option in those of a SYN. Of several the last one counts; a cookie of an
    /// impossible length is none (net/ipv4/tcp_input.c:tcp_parse_fastopen_option).
    #[must_use]
    pub fn find(options: &[u8]) -> Option<Self> {
        let mut found = None;
        let mut rest = options;
        while let [kind, behind @ ..] = rest {
            if *kind == END {
                break;
            }
            if *kind == NOP {
                rest = behind;
                continue;
            }
            let len = behind.first().map_or(0, |len| usize::from(*len));
            let (Some(body), Some(next)) = (rest.get(2..len), rest.get(len..)) else {
                break;
            };
            let cookie = match *kind {
                KIND => Some((body, false)),
                EXPERIMENT => body.strip_prefix(&NUMBER).map(|cookie| (cookie, true)),
                _ => None,
            };
            if let Some((cookie, is_experimental)) = cookie
                && cookie.len().is_multiple_of(2)
            {
                found = Self::new(cookie, is_experimental);
            }
            rest = next;
        }
        found
    }

    /// Writes the option with what fills it up to words; how many bytes that is.
    #[must_use]
    pub fn write(&self, into: &mut [u8; Self::MOST]) -> usize {
        let cookie = self.cookie();
        let head: &[u8] = if self.is_experimental {
            &[EXPERIMENT, self.len.wrapping_add(4), NUMBER[0], NUMBER[1]]
        } else {
            &[KIND, self.len.wrapping_add(2)]
        };
        *into = [NOP; Self::MOST];
        for (place, byte) in into.iter_mut().zip(head.iter().chain(cookie)) {
            *place = *byte;
        }
        head.len().saturating_add(cookie.len()).next_multiple_of(4)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::vec::Vec;

    #[test]
    fn what_is_written_is_found() {
        for len in [0, 4, 6, 8, 14, 16] {
            for is_experimental in [false, true] {
                let cookie: Vec<u8> = (1..=len).collect();
                let option = FastOpen::new(&cookie, is_experimental).unwrap();
                let mut bytes = [0; FastOpen::MOST];
                let all = option.write(&mut bytes);
                assert!(all.is_multiple_of(4));
                let options = [&[2, 4, 5, 180], &bytes[..all], &[1, 1, 4, 2]].concat();
                assert_eq!(FastOpen::find(&options), Some(option));
            }
        }
    }

    #[test]
    fn impossible_lengths_are_none() {
        for body in [
            &[34, 3, 1][..],
            &[34, 4, 1, 2],
            &[34, 9],
            &[34, 1],
            &[254, 4, 0xf9, 0x88],
        ] {
            assert_eq!(FastOpen::find(body), None, "{body:?}");
        }
        let long = [&[34, 20][..], &[7; 18]].concat();
        assert_eq!(FastOpen::find(&long), None);
        // The last one counts, unless its length is odd.
        let both = [34, 6, 1, 2, 3, 4, 34, 2, 34, 3, 9];
        assert_eq!(FastOpen::find(&both), Some(FastOpen::request(false)));
    }
}
