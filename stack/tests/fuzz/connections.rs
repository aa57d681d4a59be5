//! Segments into every state, interleaved with calls and time.

use super::super::common::*;
use bypass_stack::tcp::notices::{TX_ACK, TX_SCHED, TX_SOFTWARE};
use bypass_stack::wire::tcp::{self, flags};
use bypass_stack::*;
use std::collections::BTreeMap;

const CAPS: Capacities = Capacities {
    endpoints: 8,
    chunks: 64,
    chunk_size: 2048,
};
/// Steps of an input that are done.
const MOST_STEPS: usize = 200;
/// How far the timers run at the end: every retry and wait is over.
const END_NS: u64 = 4_000_000_000_000_000;

/// What the peer knows of a flow: our next number, and what we have acknowledged.
#[derive(Debug, Default, Clone, Copy)]
struct Known {
    end: u32,
    acked: u32,
    stamp: u32,
}

struct Machine<'a> {
    rig: Rig,
    data: std::slice::Iter<'a, u8>,
    is_v4: bool,
    now: u64,
    sockets: Vec<EndpointId>,
    flows: BTreeMap<u16, Known>,
    balance: i64,
}

/// The input is a program of one-byte actions with their operands: the peer's segments, near the
/// numbers that fit or far from them, socket calls, time. Must not panic and must end; the image is
/// sound after every step; when every socket is gone and time has passed, so are chunks, endpoints,
/// flows and timers.
pub fn fuzz_tcp(data: &[u8]) {
    let mut machine = Machine {
        rig: Rig::new(CAPS),
        data: data.iter(),
        is_v4: data.first().is_none_or(|byte| byte.is_multiple_of(2)),
        now: 1_000_000_000,
        sockets: Vec::new(),
        flows: BTreeMap::new(),
        balance: 0,
    };
    for _ in 0..MOST_STEPS {
        let Some(action) = machine.data.next() else {
            break;
        };
        machine.act(*action);
        machine.rig.check();
    }
    machine.finish();
}

impl Machine<'_> {
    fn byte(&mut self) -> u8 {
        self.data.next().copied().unwrap_or(0)
    }

    fn address(&self, host: u8, port: u16) -> SocketAddress {
        at(&if self.is_v4 {
            format!("198.18.0.{host}:{port}")
        } else {
            format!("[2001:db8::{host}]:{port}")
        })
    }

    /// A distance: none mostly, small, or anything.
    fn distance(&mut self) -> u32 {
        match self.byte() {
            byte @ 0..=127 => u32::from(byte & 1) * u32::from(byte >> 1 & 1),
            byte @ 128..=191 => u32::from(byte & 31).wrapping_sub(16),
            byte @ 192..=239 => u32::from(byte & 63) * 536,
            _ => u32::from_le_bytes([self.byte(), self.byte(), self.byte(), self.byte()]),
        }
    }

    fn socket(&mut self) -> Option<EndpointId> {
        let nth = usize::from(self.byte());
        (!self.sockets.is_empty()).then(|| self.sockets[nth % self.sockets.len()])
    }

    fn with<T>(&mut self, act: impl FnOnce(&mut Stack<'_>, &mut Packets, Instant) -> T) -> T {
        let now = Instant(self.now);
        let (mut stack, packets) = self.rig.both();
        let result = act(&mut stack, packets, now);
        stack.flush(packets, now);
        while let Some(change) = stack.take_flow_change() {
            self.balance += if change.begins { 1 } else { -1 };
        }
        while stack.take_ended().is_some() {}
        result
    }

    fn act(&mut self, action: u8) {
        match action % 16 {
            0..=5 => self.segment(),
            6 => self.drain(),
            7 => self.open(),
            8 => self.accept(),
            9 | 10 => self.send_or_read(action.is_multiple_of(2)),
            11 => {
                let wait = 1_000_u64 << (self.byte() % 28);
                self.pass(self.now + wait);
            }
            12 => self.end(),
            13 => self.set_options(),
            14 => self.icmp(),
            _ if self.byte().is_multiple_of(2) => self.notices(),
            _ => {
                let wait = u64::from(self.byte()) * 1_000_000;
                self.pass(self.now + wait);
            }
        }
    }

    fn open_of(&mut self) -> TcpOpen {
        let mut options = TcpOptions::new();
        if self.byte().is_multiple_of(2) {
            options.set(TcpOptions::KEEPALIVE, true);
            options.keep_idle_s = 1 + u32::from(self.byte());
        }
        let rare = self.byte();
        if rare.is_multiple_of(4) {
            options.rcvbuf_bytes = 2304;
            options.set(TcpOptions::RCVBUF_LOCKED, true);
        }
        if rare & 64 != 0 {
            // A SYN with data makes a connection at once; it needs no cookie, which nobody guesses.
            let bits = TcpDefaults::FAST_OPEN_SERVER | TcpDefaults::FAST_OPEN_SERVER_NO_COOKIE;
            self.rig.stack().tcp_defaults_mut().fast_open |= bits;
            options.fast_open_queue = 2;
        }
        self.rig.stack().tcp_defaults_mut().fast_open_pause_s = u32::from(rare & 1);
        options.set(TcpOptions::FAST_OPEN_CONNECT, rare & 32 != 0);
        options.set(TcpOptions::FAST_OPEN_NO_COOKIE, rare & 2 != 0);
        TcpOpen {
            family: if self.is_v4 { Family::V4 } else { Family::V6 },
            local: self.address(1, 80),
            process: self.rig.process,
            options,
            shadow_cookie: 1,
            ifindex: 0,
        }
    }

    fn open(&mut self) {
        let open = self.open_of();
        let kind = self.byte();
        let remote = self.address(2, 40_000 + u16::from(kind % 4));
        let mut hop = via("198.18.0.1:0");
        hop.source = open.local.ip;
        let result = if kind.is_multiple_of(3) {
            self.with(|stack, _, _| stack.tcp_listen(&open, u32::from(kind % 5)))
        } else if kind & 64 != 0 {
            let first = FirstWrite {
                len: usize::from(kind) * 16,
                fill: &mut |piece| piece.fill(9),
                waits: kind & 128 != 0,
            };
            self.with(|stack, packets, now| {
                let id = stack.tcp_open(&open)?;
                // Where it fails it stays, not connected, until it is closed.
                let _ = stack.tcp_start_with(packets, id, (remote, &hop), first, now);
                Ok(id)
            })
        } else {
            self.with(|stack, packets, now| stack.tcp_connect(packets, &open, remote, &hop, now))
        };
        self.sockets.extend(result.ok());
    }

    fn accept(&mut self) {
        let process = self.rig.process;
        if let Some(id) = self.socket() {
            let child = self.with(|stack, _, _| stack.tcp_accept(id, process, 2));
            self.sockets.extend(child.ok().flatten());
        }
    }

    fn send_or_read(&mut self, send: bool) {
        let Some(id) = self.socket() else { return };
        let len = usize::from(self.byte()) * 40;
        let (how, urgent) = (self.byte() % 4, self.byte().is_multiple_of(16));
        self.with(|stack, packets, now| {
            let fill = &mut |piece: &mut [u8]| piece.fill(9);
            let sure = stack.tcp_status(id).map_or(0, |status| status.send_space) as usize;
            let has_all = |taken: usize| assert!(taken >= sure.min(len), "{taken} of {sure}");
            if send && urgent {
                let _ = stack.tcp_send_urgent(packets, id, len, fill, now);
            } else if send && how == 2 {
                let waits = len.is_multiple_of(80);
                let first = FirstWrite { len, fill, waits };
                let _ = stack.tcp_send_first(packets, id, first, now);
            } else if send && how == 1 {
                let taken = stack.tcp_send_later(packets, id, len, fill, now);
                let _ = taken.map(has_all);
            } else if send {
                let taken = stack.tcp_send(packets, id, len, how == 0, fill, now);
                let _ = taken.map(has_all);
            } else if urgent {
                let _ = stack.tcp_receive_urgent(id, false);
            } else if let Ok(readable) = stack.tcp_readable(id) {
                let take = readable.min(len);
                assert!(take == 0 || stack.tcp_front(id, 0).unwrap().is_some());
                let _ = stack.tcp_consume(id, take, now);
            }
        });
    }

    /// What sends ask the error queue to tell, and what is read of it.
    fn notices(&mut self) {
        let Some(id) = self.socket() else { return };
        let (which, value) = (self.byte(), u32::from(self.byte()));
        self.with(|stack, _, now| {
            let _ = match which % 4 {
                0 => stack.tcp_copied(id, now),
                1 => stack.tcp_await(id, TX_SCHED | TX_SOFTWARE | TX_ACK, now),
                2 => stack.tcp_set_timestamping(id, value * 128),
                _ => stack.tcp_take_notice(id).map(|_| ()),
            };
        });
    }

    fn end(&mut self) {
        let Some(id) = self.socket() else { return };
        let process = self.rig.process;
        let how = self.byte();
        self.with(|stack, packets, now| {
            let _ = match how % 8 {
                0 | 1 => stack.tcp_shutdown(packets, id, Shutdown::Write, now),
                2 => stack.tcp_shutdown(packets, id, Shutdown::Read, now),
                3 => stack.tcp_shutdown(packets, id, Shutdown::Both, now),
                4 => {
                    stack.tcp_abort(packets, id, now);
                    Ok(())
                }
                _ => {
                    stack.tcp_close(packets, id, process, now);
                    Ok(())
                }
            };
        });
    }

    fn set_options(&mut self) {
        let Some(id) = self.socket() else { return };
        let (which, value) = (self.byte(), self.byte());
        if let Ok(options) = self.rig.stack().tcp_options(id) {
            match which % 8 {
                0 => options.set(TcpOptions::NODELAY, value.is_multiple_of(2)),
                1 => options.set(TcpOptions::CORK, value.is_multiple_of(2)),
                2 => options.notsent_lowat = u32::from(value) * 16,
                3 => options.rcvlowat = u32::from(value),
                4 => options.window_clamp = u32::from(value) * 64,
                5 => options.user_timeout_ms = u32::from(value) * 10,
                6 => options.set(TcpOptions::OOBINLINE, value.is_multiple_of(2)),
                _ => options.congestion = value % 4,
            }
        }
        self.with(|stack, packets, now| stack.tcp_options_changed(packets, id, now));
    }

    fn icmp(&mut self) {
        let Some(id) = self.socket() else { return };
        let mtu = u16::from_le_bytes([self.byte(), self.byte()]);
        let known = self.flows.values().next().copied().unwrap_or_default();
        let quoted = known.end.wrapping_sub(1).wrapping_add(self.distance());
        self.with(|stack, packets, now| {
            let _ = stack.tcp_path_mtu(packets, id, mtu, Some(quoted), now);
            if mtu.is_multiple_of(8) {
                stack.tcp_unreachable(id, (113, mtu.is_multiple_of(16)), Some(quoted), now);
            }
        });
    }

    /// The peer sends a segment that nearly fits.
    #[expect(clippy::too_many_lines, reason = "a table of what a segment can be")]
    fn segment(&mut self) {
        const USUAL: [u16; 8] = [
            flags::ACK,
            flags::ACK,
            flags::ACK,
            flags::SYN,
            flags::SYN | flags::ACK,
            flags::FIN | flags::ACK,
            flags::RST,
            flags::ACK | flags::URG,
        ];
        let kind = self.byte();
        let port = 40_000 + u16::from(kind % 4);
        let known = self.flows.get(&port).copied().unwrap_or_default();
        let bits = match self.byte() {
            byte @ 0..=223 => USUAL[usize::from(byte % 8)],
            byte => u16::from(byte) << 4 ^ u16::from(self.byte()),
        };
        let seq = known.acked.wrapping_add(self.distance());
        let ack = known.end.wrapping_add(self.distance());
        let window = u16::from(self.byte()) << (kind >> 5);
        let mut options = Vec::new();
        if bits & flags::SYN != 0 {
            options.extend([2, 4, self.byte(), 180, 4, 2, 1, 1, 1, 3, 3, self.byte()]);
            if kind & 32 != 0 {
                // A cookie, for connections of ours to come.
                options.extend([34, 6, 1, 2, 3, self.byte(), 1, 1]);
            }
        }
        if kind & 8 == 0 {
            options.extend([1, 1, 8, 10]);
            let stamp = known.acked.wrapping_add(self.distance());
            options.extend(stamp.to_be_bytes());
            options.extend(known.stamp.wrapping_add(self.distance()).to_be_bytes());
        }
        if kind & 16 != 0 {
            let left = known.end.wrapping_add(self.distance()).wrapping_sub(3000);
            options.extend([1, 1, 5, 10]);
            options.extend(left.to_be_bytes());
            options.extend(
                left.wrapping_add(self.distance())
                    .wrapping_add(536)
                    .to_be_bytes(),
            );
        }
        options.truncate(40);
        let len = match self.byte() {
            byte @ 0..=127 => usize::from(byte % 4) * 268,
            byte => usize::from(byte),
        };
        let payload = vec![7; len];
        let fields = TcpFields {
            seq,
            ack,
            flags: bits & 0x1ff,
            window,
            urgent: u16::from(kind),
            options: &options,
            payload: &payload,
        };
        let frame = tcp_frame(self.address(2, port), self.address(1, 80), &fields);
        self.with(|stack, packets, now| {
            let Some(chunk) = stack.take_chunk() else {
                return;
            };
            packets.chunk_mut(chunk)[192..192 + frame.len()].copy_from_slice(&frame);
            let frame = RxFrame {
                chunk,
                offset: 192,
                len: frame.len() as u32,
                queue_pair: 0,
                checksum: RxChecksum::Unknown,
                timestamp_ns: 0,
            };
            stack.handle_frame(packets, frame, now);
        });
        if !kind.is_multiple_of(3) {
            self.drain();
        }
    }

    /// The NIC sends what waits; the peer learns the numbers.
    fn drain(&mut self) {
        while let Some(frame) = self.rig.sent(0) {
            let segment =
                tcp::parse(&frame, &PEER_MAC, RxChecksum::Unknown).expect("a sound frame");
            let known = self.flows.entry(segment.destination_port).or_default();
            let taken = u32::from(segment.payload_len)
                + u32::from(segment.flags & flags::SYN != 0)
                + u32::from(segment.flags & flags::FIN != 0);
            known.end = segment.seq.wrapping_add(taken);
            if segment.flags & flags::ACK != 0 {
                known.acked = segment.ack;
            }
            known.stamp = segment.options.timestamps.map_or(0, |stamps| stamps.value);
        }
    }

    fn pass(&mut self, until: u64) {
        for _ in 0..20_000 {
            let next = self.rig.stack().next_deadline().map(|at| at.0);
            let Some(next) = next.filter(|&next| next <= until) else {
                self.now = self.now.max(until);
                return;
            };
            self.now = self.now.max(next);
            self.with(|stack, packets, now| stack.run_timers(packets, now));
            self.drain();
        }
        panic!("the timers do not end: {}", self.now);
    }

    fn finish(mut self) {
        let process = self.rig.process;
        for id in core::mem::take(&mut self.sockets) {
            self.with(|stack, packets, now| {
                stack.tcp_abort(packets, id, now);
                stack.tcp_close(packets, id, process, now);
            });
        }
        self.drain();
        self.pass(self.now + END_NS);
        self.rig.check();
        let stack = self.rig.stack();
        assert_eq!(stack.next_deadline(), None);
        assert_eq!(stack.free_chunks(), CAPS.chunks);
        let counters = stack.counters();
        assert_eq!(
            counters.get(Counter::EndpointsOpened),
            counters.get(Counter::EndpointsDestroyed)
        );
        assert_eq!(counters.get(Counter::CorruptList), 0);
        assert_eq!(self.balance, 0, "flows");
    }
}
