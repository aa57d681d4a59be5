//! What happens to a world besides its wire: cuts, forged segments, processes and lock owners that
//! die.

use super::super::common::*;
use super::host::{PORT, address};
use super::program::State;
use super::wire::Flight;
use super::{SECOND, World};
use bypass_stack::wire::TxChecksum;
use bypass_stack::wire::tcp::{self, flags};

/// A trouble.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trouble {
    /// Nothing more reaches a host.
    Cut(usize),
    /// It does again.
    Mend(usize),
    /// Somebody who knows the addresses, but no numbers, sends a segment.
    Forge,
    /// Somebody sends a host's listener SYNs from addresses where nobody answers.
    Flood(usize),
    /// A host's second process dies.
    Kill(usize),
    /// A host's lock owner dies inside an update.
    Recover(usize),
    /// A connection of a host leaves and comes back, as if another TCP had taken it.
    Move(usize),
}

impl Trouble {
    /// Whether it ends another one.
    pub fn is_an_end(&self) -> bool {
        matches!(self, Self::Mend(_))
    }

    /// Troubles for a world: the next one last.
    pub fn draw(world: &World, random: &mut Random) -> Vec<(u64, Self)> {
        let mut drawn = Vec::new();
        let soon = |random: &mut Random| {
            let span = 1 << (20 + random.below(16));
            world.now + random.below(span)
        };
        let host = |random: &mut Random| random.below(2) as usize;
        if random.chance(20) {
            let (at, host) = (soon(random), host(random));
            drawn.push((at, Self::Cut(host)));
            drawn.push((at + random.below(6 * SECOND), Self::Mend(host)));
        }
        if random.chance(30) {
            for _ in 0..random.below(40) {
                drawn.push((soon(random), Self::Forge));
            }
        }
        if random.chance(10) {
            drawn.push((soon(random), Self::Kill(host(random))));
        }
        if random.chance(4) {
            drawn.push((soon(random), Self::Recover(host(random))));
        }
        if random.chance(35) {
            for _ in 0..1 + random.below(20) {
                drawn.push((soon(random), Self::Move(host(random))));
            }
        }
        drawn.sort_by_key(|(at, _)| core::cmp::Reverse(*at));
        drawn
    }
}

impl World {
    pub(super) fn happens(&mut self, trouble: Trouble) {
        match trouble {
            Trouble::Cut(host) => self.wire.cut[host] = true,
            Trouble::Mend(host) => self.wire.cut[host] = false,
            Trouble::Forge => self.forge(),
            Trouble::Flood(host) => self.flood(host),
            Trouble::Kill(host) => {
                self.hosts[host].kill();
                self.each_side_of(host, |side| {
                    if side.process == 1 && !matches!(side.state, State::Waiting | State::Closed) {
                        side.state = State::Closed;
                        side.next_at = None;
                        side.doomed = true;
                    }
                });
                self.stirred[host] = true;
            }
            Trouble::Recover(host) => {
                self.hosts[host].recover();
                self.each_side_of(host, |side| side.doomed = true);
                self.stirred[host] = true;
            }
            Trouble::Move(host) => {
                for pair in &mut self.pairs {
                    for side in 0..2 {
                        if pair.host_of(side) == host {
                            pair.relocate(side, &mut self.hosts[host], self.now);
                        }
                    }
                }
                self.stirred[host] = true;
            }
        }
    }

    fn each_side_of(&mut self, host: usize, mut each: impl FnMut(&mut super::Side)) {
        for pair in &mut self.pairs {
            for side in 0..2 {
                if pair.host_of(side) == host {
                    each(&mut pair.sides[side]);
                }
            }
        }
    }

    /// A burst of SYNs from strangers.
    fn flood(&mut self, to: usize) {
        for _ in 0..50 {
            let random = &mut self.random;
            let stranger = address(2 + random.below(250) as usize, self.plan.ipv6);
            let headers = tcp::Headers {
                source_mac: PEER_MAC,
                destination_mac: [2, 0, 0, 0, 1, to as u8],
                source: stranger,
                destination: address(to, self.plan.ipv6),
                source_port: 1024 + random.below(60_000) as u16,
                destination_port: PORT,
                seq: random.next() as u32,
                ack: 0,
                flags: flags::SYN,
                window: 65535,
                urgent: 0,
                tos: 0,
                ttl: 64,
                ipv4_id: 0,
                options: tcp::Options {
                    mss: Some(1400),
                    ..tcp::Options::default()
                },
                checksum: TxChecksum::Whole,
            };
            let mut bytes = vec![0; tcp::headers_len(stranger.is_v4(), &headers.options)];
            tcp::emit(&mut bytes, &headers);
            self.wire.forge(Flight {
                due: self.now + random.below(1_000_000),
                to,
                bytes,
                incarnation: u32::MAX,
            });
        }
    }

    /// A segment with numbers that are far outside the window, to a connection in use.
    fn forge(&mut self) {
        let number = self.random.below(self.pairs.len() as u64) as usize;
        let pair = &self.pairs[number];
        if pair.sides.iter().any(|side| side.state != State::Open) {
            return;
        }
        let which = self.random.below(2) as usize;
        let (from, to) = (pair.addresses[which], pair.addresses[1 - which]);
        let Some((reached, told)) = self.monitor.window(from, to) else {
            return;
        };
        let far = 1 << 24;
        let outside = u64::from(reached.wrapping_sub(told).wrapping_sub(2 * far));
        let seq = told
            .wrapping_add(far)
            .wrapping_add(self.random.below(outside) as u32);
        let bits = [
            flags::RST,
            flags::RST | flags::ACK,
            flags::SYN,
            flags::SYN | flags::ACK,
            flags::ACK,
            flags::ACK | flags::FIN,
            flags::ACK | flags::PSH,
            flags::SYN | flags::FIN | flags::RST,
            0,
        ][self.random.below(9) as usize];
        let random = &mut self.random;
        let headers = tcp::Headers {
            source_mac: PEER_MAC,
            destination_mac: [2, 0, 0, 0, 1, pair.host_of(1 - which) as u8],
            source: from.ip,
            destination: to.ip,
            source_port: from.port,
            destination_port: to.port,
            seq,
            ack: random.next() as u32,
            flags: bits,
            window: random.next() as u16,
            urgent: 0,
            tos: 0,
            ttl: 64,
            ipv4_id: 0,
            options: tcp::Options {
                timestamps: random.chance(50).then(|| tcp::Timestamps {
                    value: random.next() as u32,
                    echo: random.next() as u32,
                }),
                ..tcp::Options::default()
            },
            checksum: TxChecksum::Whole,
        };
        let len = tcp::headers_len(from.ip.is_v4(), &headers.options) + random.below(200) as usize;
        let mut bytes = vec![0x66; len];
        tcp::emit(&mut bytes, &headers);
        self.wire.forge(Flight {
            due: self.now,
            to: pair.host_of(1 - which),
            bytes,
            incarnation: u32::MAX,
        });
    }
}
