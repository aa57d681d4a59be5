//! One peer port of a script: its numbers, what we have sent to it and what it sends.

use super::segment::{Base, Cookie, Described, Expected, option_bytes};
use crate::common::{MAC, PEER_MAC, TcpFields, at, fix_ipv4, tcp_frame};
use bypass_stack::wire::tcp::{self, FastOpen, Segment, flags};
use bypass_stack::{RxChecksum, SocketAddress};

/// The peer's initial sequence number: it wraps after a kibibyte.
const PEER_ISN: u32 = 0xffff_fbff;

/// One peer port and its numbers.
#[derive(Debug)]
pub struct Flow {
    pub base: Base,
    has_base: bool,
    /// Numbers count from the last SYN of ours, not from the first.
    each_syn: bool,
    /// The peer's next sequence number, and the end of what we have sent; relative.
    peer_next: u32,
    ours_end: u32,
    /// The last TSval that we have sent.
    last_value: Option<u32>,
    /// The last TSval of the peer.
    peer_value: u32,
}

/// A segment of ours that the script has not looked at yet.
pub struct Sent {
    /// When, ns.
    pub at: u64,
    pub flow: u16,
    pub segment: Segment,
    pub fast_open: Option<FastOpen>,
    payload: Vec<u8>,
}

/// Our address; every socket of a script uses port 80.
pub fn local(is_v4: bool) -> SocketAddress {
    at(if is_v4 {
        "198.18.0.1:80"
    } else {
        "[2001:db8::1]:80"
    })
}

/// The address of a numbered peer.
pub fn remote(flow: u16, is_v4: bool) -> SocketAddress {
    let port = 40_000 + flow;
    at(&if is_v4 {
        format!("198.18.0.2:{port}")
    } else {
        format!("[2001:db8::2]:{port}")
    })
}

impl Sent {
    /// Takes a frame apart.
    pub fn of(frame: &[u8], at: u64) -> Self {
        let segment = tcp::parse(frame, &PEER_MAC, RxChecksum::Unknown).expect("a sound frame");
        let start = usize::from(segment.payload_offset);
        Self {
            at,
            flow: segment.destination_port - 40_000,
            payload: frame[start..start + usize::from(segment.payload_len)].to_vec(),
            fast_open: FastOpen::find(tcp::options_of(frame, &segment)),
            segment,
        }
    }

    /// Whether its payload is what was written there.
    pub fn bytes_are_ours(&self, base: &Base) -> bool {
        let is_syn = self.segment.flags & flags::SYN != 0;
        let first = self.segment.seq.wrapping_sub(base.ours) + u32::from(is_syn);
        self.payload
            .iter()
            .enumerate()
            .all(|(nth, byte)| *byte == our_byte(first.wrapping_add(nth as u32)))
    }
}

/// A line's segment with the cookie that it means.
pub fn with_cookie(mut said: Described, known: &[u8]) -> Described {
    if said.fast_open == Some(Expected::Value(Cookie::Known)) {
        said.fast_open = Some(Expected::Value(Cookie::Bytes(known.to_vec())));
    }
    said
}

impl Flow {
    pub fn new(each_syn: bool) -> Self {
        Self {
            base: Base {
                ours: 0,
                peers: PEER_ISN,
                timestamp: 0,
            },
            has_base: false,
            each_syn,
            peer_next: 0,
            ours_end: 0,
            last_value: None,
            peer_value: 0,
        }
    }

    /// Learns the zero points from our SYN, and the end of what we have sent; `clock` is the time
    /// of the script in milliseconds.
    pub fn note_sent(&mut self, segment: &Segment, clock: u32) {
        let is_syn = segment.flags & flags::SYN != 0 && segment.flags & flags::RST == 0;
        if is_syn && (!self.has_base || self.each_syn && self.base.ours != segment.seq) {
            self.base.ours = segment.seq;
            self.has_base = true;
            self.ours_end = 0;
        }
        if let Some(timestamps) = segment.options.timestamps {
            if self.last_value.is_none() {
                self.base.timestamp = timestamps.value.wrapping_sub(clock);
            }
            self.last_value = Some(timestamps.value);
        }
        let end = segment
            .seq
            .wrapping_sub(self.base.ours)
            .wrapping_add(u32::from(segment.payload_len))
            .wrapping_add(u32::from(segment.flags & flags::SYN != 0))
            .wrapping_add(u32::from(segment.flags & flags::FIN != 0));
        if segment.flags & flags::RST == 0 && end.wrapping_sub(self.ours_end) < 1 << 30 {
            self.ours_end = end;
        }
    }

    /// The peer's next number, and the end of what we have sent; relative.
    pub fn ends(&self) -> (u32, u32) {
        (self.peer_next, self.ours_end)
    }

    /// The relative number of the last byte that we have sent, which is in flight if any is.
    pub fn newest(&self) -> u32 {
        self.ours_end.wrapping_sub(1)
    }

    /// The frame of a segment that the peer sends.
    pub fn injected(
        &mut self,
        said: &Described,
        remote: SocketAddress,
        local: SocketAddress,
    ) -> Vec<u8> {
        let is_syn = said.flags & flags::SYN != 0;
        let seq = said.seq.unwrap_or(self.peer_next);
        let len = said.len.unwrap_or(0);
        let ack = if said.flags & flags::ACK != 0 {
            self.base
                .ours
                .wrapping_add(said.ack.unwrap_or(self.ours_end))
        } else {
            0
        };
        let timestamps = self.timestamps_of(said, is_syn);
        let end = seq
            .wrapping_add(u32::from(len))
            .wrapping_add(u32::from(is_syn))
            .wrapping_add(u32::from(said.flags & flags::FIN != 0));
        let fresh = end.wrapping_sub(self.peer_next);
        if seq.wrapping_sub(self.peer_next) as i32 <= 0 && (fresh as i32) > 0 {
            self.peer_next = end;
        }
        let options = option_bytes(said, &self.base, timestamps);
        let payload: Vec<u8> = (0..u32::from(len))
            .map(|nth| peer_byte(seq.wrapping_add(u32::from(is_syn)).wrapping_add(nth)))
            .collect();
        let fields = TcpFields {
            seq: self.base.peers.wrapping_add(seq),
            ack,
            flags: said.flags,
            window: said.window.unwrap_or(u16::MAX),
            urgent: said.urgent.unwrap_or(0),
            options: &options,
            payload: &payload,
        };
        let mut frame = tcp_frame(remote, local, &fields);
        set_ecn(&mut frame, said.ecn.unwrap_or(0));
        frame
    }

    /// TSval and TSecr of an injected segment.
    fn timestamps_of(&mut self, said: &Described, is_syn: bool) -> Option<(u32, u32)> {
        let natural = if self.peer_value != 0 && said.timestamps.is_none() && !is_syn {
            Some((None, None))
        } else {
            match said.timestamps {
                Some(Expected::Value(pair)) => Some(pair),
                _ => None,
            }
        };
        natural.map(|(value, echo)| {
            if let Some(value) = value {
                self.peer_value = value;
            }
            let echo = match echo {
                Some(echo) => self.base.timestamp.wrapping_add(echo),
                None => self.last_value.unwrap_or(0),
            };
            (self.peer_value, echo)
        })
    }
}

/// The byte of our stream at a relative sequence number.
pub fn our_byte(seq: u32) -> u8 {
    (seq.wrapping_mul(31) % 251) as u8
}

/// The byte of the peer's stream.
pub fn peer_byte(seq: u32) -> u8 {
    (seq.wrapping_mul(17) % 249) as u8
}

fn set_ecn(frame: &mut [u8], ecn: u8) {
    assert_eq!(frame[..6], MAC);
    if frame[12] == 8 {
        frame[15] = frame[15] & !3 | ecn;
        fix_ipv4(frame);
    } else {
        frame[15] = frame[15] & 0xcf | ecn << 4;
    }
}
