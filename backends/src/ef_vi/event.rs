//! Events of a VI: 16 bytes that the library writes, read by the release's numbers.

/// An `ef_event`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C, align(4))]
pub(super) struct RawEvent(pub(super) [u8; 16]);

/// Why a frame was received that is none.
pub(super) const DISCARDS: [&str; 8] = [
    "checksum",
    "multicast mismatch",
    "frame checksum",
    "truncated",
    "rights",
    "event error",
    "other",
    "inner checksum",
];

/// An event that is no whole frame, understood.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Event {
    /// A buffer has a part of a frame.
    Part { id: u32 },
    /// A buffer comes back for nothing.
    Discarded { id: u32, why: u16 },
    /// Several buffers: to be unbundled. `why` = they come back for nothing.
    Merged { why: Option<u16> },
    /// A frame in the card's own buffer: to be given back.
    Lent { packet: u32, bytes: u16 },
    /// The same, of no use.
    LentBad { packet: u32 },
    /// Frames were sent: to be unbundled.
    Sent,
    /// One frame was sent: when, nanoseconds since 1970, 0 = not known.
    SentAt { id: u32, at_ns: u64 },
    /// Sending has stopped.
    TxError { why: u16 },
    /// A frame found no buffer.
    NoBuffer,
    /// Events were lost.
    Overflow,
    /// The card was reset: the VI is dead.
    Reset,
    /// Nothing of ours.
    Other,
}

impl RawEvent {
    pub(super) const NONE: Self = Self([0; 16]);

    fn u16(self, at: usize) -> u16 {
        u16::from_le_bytes([self.0[at], self.0[at + 1]])
    }

    fn u32(self, at: usize) -> u32 {
        u32::from(self.u16(at)) | u32::from(self.u16(at + 2)) << 16
    }

    /// When a frame was sent. (8.1 says in the two lowest bits of the nanoseconds what the clock is
    /// worth, the others in the highest.)
    fn time(self) -> u64 {
        const NANOSECONDS: u32 = (1 << 30) - 1;
        let seconds = u64::from(self.u32(8));
        let rest = u64::from(self.u32(12) & NANOSECONDS);
        seconds * 1_000_000_000 + rest
    }

    /// Buffer, and bytes with the prefix, if it is of a frame in one buffer: most events are.
    pub(super) fn whole_frame(self) -> Option<(u32, u16)> {
        const START: u16 = 1;
        const CONTINUES: u16 = 2;
        let is_whole = self.u16(0) == 0 && self.u16(10) & (START | CONTINUES) == START;
        is_whole.then(|| (self.u32(4), self.u16(8)))
    }

    /// What else it says, where RX_REF has this number.
    pub(super) fn read(self, rx_ref: u16) -> Event {
        match self.u16(0) {
            0 => Event::Part { id: self.u32(4) },
            1 => Event::Sent,
            2 => Event::Discarded {
                id: self.u32(4),
                why: self.u16(12),
            },
            3 => Event::TxError { why: self.u16(8) },
            4 => Event::NoBuffer,
            6 => Event::Overflow,
            7 => Event::SentAt {
                id: self.u32(4),
                at_ns: self.time(),
            },
            9 => Event::Merged { why: None },
            11 => Event::Merged {
                why: Some(self.u16(8)),
            },
            12 => Event::Reset,
            kind if kind == rx_ref => Event::Lent {
                packet: self.u32(4),
                bytes: self.u16(2),
            },
            kind if kind == rx_ref + 1 => Event::LentBad {
                packet: self.u32(4),
            },
            _ => Event::Other,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn raw(bytes: &[(usize, u8)]) -> RawEvent {
        let mut event = RawEvent::NONE;
        for (at, byte) in bytes {
            event.0[*at] = *byte;
        }
        event
    }

    #[test]
    fn bytes_are_where_the_release_has_them() {
        let received = raw(&[(4, 7), (8, 74), (10, 1)]).whole_frame();
        assert_eq!(received, Some((7, 74)));
        for flags in [0, 2, 3] {
            let part = raw(&[(4, 7), (8, 74), (10, flags)]);
            assert_eq!(part.whole_frame(), None);
            assert_eq!(part.read(14), Event::Part { id: 7 });
        }
        let bad = raw(&[(0, 2), (5, 1), (12, 2)]).read(14);
        assert_eq!(bad, Event::Discarded { id: 256, why: 2 });
        let sent = raw(&[(0, 7), (4, 9), (8, 2), (12, 5), (15, 0xc0)]).read(14);
        let at_ns = 2_000_000_005;
        assert_eq!(sent, Event::SentAt { id: 9, at_ns });
        let merged = raw(&[(0, 11), (8, 3)]).read(14);
        assert_eq!(merged, Event::Merged { why: Some(3) });
    }

    /// 8.1 has a number more before it.
    #[test]
    fn what_is_lent_has_another_number_in_8_1() {
        let (packet, bytes) = (9, 60);
        let lent = |kind| raw(&[(0, kind), (2, 60), (4, 9)]);
        assert_eq!(lent(14).read(14), Event::Lent { packet, bytes });
        assert_eq!(lent(15).read(14), Event::LentBad { packet });
        assert_eq!(lent(14).read(15), Event::Other);
        assert_eq!(lent(15).read(15), Event::Lent { packet, bytes });
        assert_eq!(lent(16).read(15), Event::LentBad { packet });
    }
}
