//! Looks at every frame on the wire and holds what must always be true of it, whatever was lost.

use super::super::common::known;
use super::wire::Flight;
use bypass_stack::SocketAddress;
use bypass_stack::wire::tcp::{self, Segment, flags};
use std::collections::HashMap;

/// One direction of a connection, from its sender's side.
#[derive(Debug, Default, Clone)]
struct Direction {
    /// What its SYN said.
    isn: Option<u32>,
    scale: Option<u8>,
    mss: Option<u16>,
    /// End of the window that its sender may use, by what has reached it.
    granted: Option<u32>,
    /// End of what has reached the receiver.
    reached: Option<u32>,
    /// Furthest end of the windows that its *receiver* has told, and whether the last one has
    /// closed the window before it.
    told: Option<u32>,
    taken_back: bool,
    /// The window of its SYN, bytes.
    syn_window: u16,
    timestamp: Option<u32>,
}

type Addresses = (SocketAddress, SocketAddress);

/// The monitor.
#[derive(Debug, Default)]
pub struct Monitor {
    /// SYNs may carry data, and those who get it may answer at once.
    fast: bool,
    /// Checksums may be partial.
    partial: bool,
    directions: HashMap<Addresses, Direction>,
    incarnations: HashMap<Addresses, u32>,
    /// Segments with data, and their bytes, that were sent.
    pub segments: u64,
    pub bytes: u64,
}

fn after(a: u32, b: u32) -> bool {
    b.wrapping_sub(a) as i32 <= -1
}

/// A segment in a line.
pub fn line(segment: &Segment) -> String {
    let names = [
        (flags::SYN, 'S'),
        (flags::FIN, 'F'),
        (flags::RST, 'R'),
        (flags::PSH, 'P'),
        (flags::ACK, '.'),
        (flags::ECE, 'E'),
        (flags::CWR, 'W'),
    ];
    let bits: String = names
        .into_iter()
        .filter(|(bit, _)| segment.flags & bit != 0)
        .map(|(_, name)| name)
        .collect();
    let blocks: Vec<_> = segment
        .options
        .sack_blocks()
        .iter()
        .map(|block| format!("{}-{}", block.left, block.right))
        .collect();
    format!(
        "{}>{} {bits} {}+{} ack {} win {} {:?} {blocks:?}",
        segment.source_port,
        segment.destination_port,
        segment.seq,
        segment.payload_len,
        segment.ack,
        segment.window,
        segment
            .options
            .timestamps
            .map(|stamps| (stamps.value, stamps.echo)),
    )
}

fn addresses(segment: &Segment) -> (Addresses, Addresses) {
    let from = SocketAddress::new(segment.source, segment.source_port);
    let to = SocketAddress::new(segment.destination, segment.destination_port);
    ((from, to), (to, from))
}

fn end(segment: &Segment) -> u32 {
    let fin = u32::from(segment.flags & flags::FIN != 0);
    segment
        .seq
        .wrapping_add(u32::from(segment.payload_len))
        .wrapping_add(fin)
}

impl Monitor {
    pub fn new(fast: bool, partial: bool) -> Self {
        Self {
            fast,
            partial,
            ..Self::default()
        }
    }

    /// A host has sent a frame: the number of the connection.
    pub fn sent(&mut self, frame: &[u8], now: u64) -> u32 {
        let segment =
            tcp::parse(frame, &[0; 6], known(self.partial)).expect("a stack sends good segments");
        assert!(segment.payload_len == 0 || segment.flags & flags::SYN == 0 || self.fast);
        let (there, back) = addresses(&segment);
        if segment.flags & flags::SYN != 0 {
            self.syn(&segment);
        } else if segment.flags & flags::RST == 0 {
            self.check(&segment, now);
        }
        let key = there.min(back);
        self.incarnations.get(&key).copied().unwrap_or(0)
    }

    /// A SYN or SYN-ACK, perhaps again.
    fn syn(&mut self, segment: &Segment) {
        let (there, back) = addresses(segment);
        let again = self
            .directions
            .get(&there)
            .is_some_and(|direction| direction.isn == Some(segment.seq));
        if again {
            return;
        }
        if segment.flags & flags::ACK == 0 && !self.is_crossing(&back) {
            // A new connection.
            self.directions.remove(&back);
            *self.incarnations.entry(there.min(back)).or_default() += 1;
        }
        let answered = self.directions.get(&back).filter(|_| self.fast);
        let early = answered.map(|back| {
            let start = segment.seq.wrapping_add(1);
            start.wrapping_add(u32::from(back.syn_window))
        });
        let direction = Direction {
            isn: Some(segment.seq),
            scale: segment.options.window_scale,
            mss: segment.options.mss,
            syn_window: segment.window,
            // The SYN itself, and nothing before the other side has spoken.
            granted: self
                .directions
                .get(&there)
                .and_then(|d| d.granted)
                .or(early),
            ..Direction::default()
        };
        self.directions.insert(there, direction);
    }

    /// Whether the other side has sent a SYN too and nothing was heard since.
    fn is_crossing(&self, back: &Addresses) -> bool {
        self.directions
            .get(back)
            .is_some_and(|direction| direction.isn.is_some() && direction.granted.is_none())
    }

    fn check(&mut self, segment: &Segment, now: u64) {
        let (there, back) = addresses(segment);
        let Some(opposite) = self.directions.get(&back).cloned() else {
            return;
        };
        let Some(direction) = self.directions.get_mut(&there) else {
            return;
        };
        let occupies = segment.payload_len > 0 || segment.flags & flags::FIN != 0;
        if occupies {
            self.segments += 1;
            self.bytes += u64::from(segment.payload_len);
            let granted = direction.granted.expect("a window before data");
            assert!(
                !after(end(segment), granted),
                "beyond the window by {}: {segment:?} at {now}",
                end(segment).wrapping_sub(granted)
            );
            let len = usize::from(segment.payload_len) + tcp::options_len(&segment.options);
            let most = usize::from(opposite.mss.unwrap_or(536));
            assert!(len <= most, "larger than the peer takes: {segment:?}");
        }
        assert!(segment.flags & flags::ACK != 0, "{segment:?}");
        if let Some(reached) = opposite.reached {
            assert!(
                !after(segment.ack, reached),
                "acknowledges what has not come: {segment:?}"
            );
            for block in segment.options.sack_blocks() {
                assert!(after(block.right, block.left), "{segment:?}");
                assert!(!after(block.right, reached), "{segment:?}");
            }
        }
        if let Some(stamps) = segment.options.timestamps {
            let last = direction.timestamp.replace(stamps.value);
            assert!(
                last.is_none_or(|last| !after(last, stamps.value)),
                "time goes backwards: {segment:?}"
            );
        }
        // The window never shrinks (RFC 9293 section 3.8.6), but for what its unit hides, and when
        // the packet memory is full: then it closes, and grows again.
        let scale = scale(direction, &opposite);
        let told = segment.ack.wrapping_add(u32::from(segment.window) << scale);
        let unit = (1u32 << scale) - 1;
        if let Some(opposite) = self.directions.get_mut(&back) {
            if let Some(before) = opposite.told {
                let shrinks = after(before, told.wrapping_add(unit));
                opposite.taken_back = shrinks && (segment.window == 0 || opposite.taken_back);
                assert!(
                    !shrinks || opposite.taken_back,
                    "the window shrinks by {}: {segment:?}",
                    before.wrapping_sub(told)
                );
            }
            opposite.told = opposite.told.filter(|before| after(*before, told));
            opposite.told = opposite.told.or(Some(told));
        }
    }

    /// What the receiver of a direction has got, and the end of its window.
    pub fn window(&self, from: SocketAddress, to: SocketAddress) -> Option<(u32, u32)> {
        let direction = self.directions.get(&(from, to))?;
        direction.reached.zip(direction.told)
    }

    /// A frame has reached a host, whole.
    pub fn delivered(&mut self, flight: &Flight, partial: bool) {
        let Ok(segment) = tcp::parse(&flight.bytes, &[0; 6], known(partial)) else {
            return;
        };
        let (there, back) = addresses(&segment);
        let known = self.incarnations.get(&there.min(back)).copied();
        if known.unwrap_or(0) != flight.incarnation || segment.flags & flags::RST != 0 {
            return;
        }
        let (Some(direction), Some(opposite)) = (
            self.directions.get(&there).cloned(),
            self.directions.get(&back).cloned(),
        ) else {
            if let Some(direction) = self.directions.get_mut(&there) {
                direction.reached = Some(end(&segment).wrapping_add(1));
            }
            return;
        };
        let syn = u32::from(segment.flags & flags::SYN != 0);
        let end = end(&segment).wrapping_add(syn);
        if let Some(direction) = self.directions.get_mut(&there) {
            let later = direction.reached.is_none_or(|reached| after(end, reached));
            if later {
                direction.reached = Some(end);
            }
        }
        if segment.flags & flags::ACK == 0 {
            return;
        }
        let scale = if syn == 1 {
            0
        } else {
            scale(&direction, &opposite)
        };
        let granted = segment.ack.wrapping_add(u32::from(segment.window) << scale);
        if let Some(opposite) = self.directions.get_mut(&back) {
            let later = opposite.granted.is_none_or(|before| after(granted, before));
            if later {
                opposite.granted = Some(granted);
            }
        }
    }
}

/// The shift of the window that this direction's sender tells.
fn scale(direction: &Direction, opposite: &Direction) -> u32 {
    match (direction.scale, opposite.scale) {
        (Some(scale), Some(_)) => u32::from(scale),
        _ => 0,
    }
}
