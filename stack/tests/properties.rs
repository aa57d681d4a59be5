//! Properties: checksum against the plain one, parse∘emit, demux against a naive oracle, and random
//! operations with the image's own check after each.

mod common;

use bypass_stack::wire::{self, TxChecksum, checksum::Sum, tcp};
use bypass_stack::*;
use common::*;
use proptest::prelude::*;

fn address() -> impl Strategy<Value = IpAddress> {
    prop_oneof![
        (1u8..4).prop_map(|host| IpAddress::from_v4([198, 18, 0, host])),
        (1u8..4).prop_map(|host| {
            let mut octets = [0; 16];
            (octets[0], octets[1], octets[15]) = (0x20, 1, host);
            IpAddress(octets)
        }),
    ]
}

fn headers() -> impl Strategy<Value = wire::Headers> {
    let v4 = (any::<[u8; 3]>(), any::<[u8; 3]>()).prop_map(|(a, b)| {
        (
            IpAddress::from_v4([9, a[0], a[1], a[2]]),
            IpAddress::from_v4([10, b[0], b[1], b[2]]),
        )
    });
    let v6 = (any::<[u8; 14]>(), any::<[u8; 14]>()).prop_map(|(a, b)| {
        let whole = |part: [u8; 14]| {
            let mut octets = [0x20; 16];
            octets[2..].copy_from_slice(&part);
            IpAddress(octets)
        };
        (whole(a), whole(b))
    });
    (
        prop_oneof![v4, v6],
        any::<([u8; 6], [u8; 6])>(),
        any::<(u16, u8, u16, bool, bool)>(),
        1u16..,
        1u8..,
    )
        .prop_map(
            |(ips, macs, (source_port, tos, ipv4_id, df, off), destination_port, ttl)| {
                wire::Headers {
                    source_mac: macs.0,
                    destination_mac: macs.1,
                    source: ips.0,
                    destination: ips.1,
                    source_port,
                    destination_port,
                    tos,
                    ttl,
                    ipv4_id,
                    dont_fragment: df,
                    checksum: if off && ips.0.is_v4() {
                        TxChecksum::Off
                    } else {
                        TxChecksum::Whole
                    },
                }
            },
        )
}

fn tcp_options() -> impl Strategy<Value = tcp::Options> {
    let pair = || any::<(u32, u32)>();
    (
        proptest::option::of(1u16..),
        proptest::option::of(0u8..=14),
        any::<bool>(),
        proptest::option::of(pair()),
        proptest::collection::vec(pair(), 0..=4),
    )
        .prop_map(|(mss, window_scale, sack_permitted, stamps, blocks)| {
            let mut sack = [tcp::SackBlock::default(); 4];
            for (place, (left, right)) in sack.iter_mut().zip(&blocks) {
                (place.left, place.right) = (*left, *right);
            }
            tcp::Options {
                mss,
                window_scale,
                sack_permitted,
                timestamps: stamps.map(|(value, echo)| tcp::Timestamps { value, echo }),
                sack,
                sack_count: blocks.len() as u8,
            }
        })
}

/// What a parser finds of options that were written into a segment with these flags: SYN-only
/// options elsewhere do not count, and blocks that did not fit are missing.
fn found_options(written: &tcp::Options, flags: u16) -> tcp::Options {
    let mut found = *written;
    let mut fixed = [written.mss.is_some(), written.window_scale.is_some()]
        .map(|there| 4 * usize::from(there))
        .iter()
        .sum::<usize>();
    fixed += match (written.timestamps, written.sack_permitted) {
        (Some(_), _) => 12,
        (None, true) => 4,
        (None, false) => 0,
    };
    let room = (40 - fixed).saturating_sub(4) / 8;
    found.sack_count = found.sack_count.min(room as u8);
    found.sack[usize::from(found.sack_count)..].fill(tcp::SackBlock::default());
    if flags & tcp::flags::SYN == 0 {
        (found.mss, found.window_scale, found.sack_permitted) = (None, None, false);
    }
    found
}

/// What an endpoint of the oracle looks like.
#[derive(Clone, Debug)]
struct Model {
    id: EndpointId,
    family: Family,
    local: SocketAddress,
    remote: Option<SocketAddress>,
    reuse_port: bool,
    order: usize,
}

impl Model {
    fn score(&self, local: SocketAddress, remote: SocketAddress) -> Option<(bool, bool, bool)> {
        let family_fits = match self.family {
            Family::V4 => local.ip.is_v4(),
            Family::V6 => !local.ip.is_v4(),
            Family::Dual => true,
        };
        let any = self.local.ip.is_unspecified();
        if !family_fits
            || self.local.port != local.port
            || !(any || self.local.ip == local.ip)
            || self.remote.is_some_and(|connected| connected != remote)
        {
            return None;
        }
        Some((self.remote.is_some(), !any, self.family == Family::V4))
    }
}

/// Every endpoint that may take the datagram, by the rule in words.
fn oracle(models: &[Model], local: SocketAddress, remote: SocketAddress) -> Vec<EndpointId> {
    let best = models
        .iter()
        .filter_map(|model| model.score(local, remote))
        .max();
    let Some(best) = best else { return Vec::new() };
    let equals: Vec<_> = models
        .iter()
        .filter(|model| model.score(local, remote) == Some(best))
        .collect();
    let youngest = equals.iter().max_by_key(|model| model.order).unwrap();
    if !youngest.reuse_port || youngest.remote.is_some() {
        return vec![youngest.id];
    }
    equals
        .iter()
        .filter(|model| model.reuse_port && model.family == youngest.family)
        .map(|model| model.id)
        .collect()
}

fn open_strategy() -> impl Strategy<Value = (Family, SocketAddress, Option<SocketAddress>, bool)> {
    let family = prop_oneof![Just(Family::V4), Just(Family::V6), Just(Family::Dual)];
    let ip = prop_oneof![Just(IpAddress::UNSPECIFIED), address()];
    let remote = proptest::option::of((address(), 1u16..3));
    (family, ip, 1u16..3, remote, any::<bool>()).prop_map(|(family, ip, port, remote, reuse)| {
        let remote = remote.map(|(ip, port)| SocketAddress::new(ip, port));
        (family, SocketAddress::new(ip, port), remote, reuse)
    })
}

/// One step of the random test.
#[derive(Clone, Debug)]
enum Step {
    Open(Family, SocketAddress, Option<SocketAddress>, bool),
    Close(usize),
    Rebind(usize, SocketAddress, Option<SocketAddress>),
    Frame(SocketAddress, SocketAddress, usize),
    Pop(usize),
    Send(usize, SocketAddress, usize),
    Hairpin(usize, SocketAddress),
    Take,
    Release(usize),
    Transmit,
    Untransmit,
    Fork(u8),
    Exit(u8),
    Park(usize),
    Recover,
}

fn step() -> impl Strategy<Value = Step> {
    let at = || (address(), 1u16..3).prop_map(|(ip, port)| SocketAddress::new(ip, port));
    prop_oneof![
        4 => open_strategy().prop_map(|(a, b, c, d)| Step::Open(a, b, c, d)),
        2 => any::<usize>().prop_map(Step::Close),
        2 => (any::<usize>(), open_strategy()).prop_map(|(i, (_, b, c, _))| Step::Rebind(i, b, c)),
        12 => (at(), at(), 0usize..1400).prop_map(|(a, b, len)| Step::Frame(a, b, len)),
        6 => any::<usize>().prop_map(Step::Pop),
        6 => (any::<usize>(), at(), 0usize..1500).prop_map(|(i, to, len)| Step::Send(i, to, len)),
        3 => (any::<usize>(), at()).prop_map(|(i, to)| Step::Hairpin(i, to)),
        2 => Just(Step::Take),
        3 => any::<usize>().prop_map(Step::Release),
        5 => Just(Step::Transmit),
        1 => Just(Step::Untransmit),
        1 => any::<u8>().prop_map(Step::Fork),
        1 => any::<u8>().prop_map(Step::Exit),
        1 => any::<usize>().prop_map(Step::Park),
        1 => Just(Step::Recover),
    ]
}

/// The rig with what lives in it.
struct World {
    rig: Rig,
    ids: Vec<EndpointId>,
    /// Chunks that the "NIC" has.
    out: Vec<Transmit>,
}

impl World {
    fn id(&self, pick: usize) -> EndpointId {
        if self.ids.is_empty() {
            EndpointId::NONE
        } else {
            self.ids[pick % self.ids.len()]
        }
    }

    #[expect(clippy::too_many_lines, reason = "a table of operations")]
    fn run(&mut self, step: &Step) {
        let process = self.rig.process;
        match *step {
            Step::Open(family, local, remote, reuse) => {
                let mut open = UdpOpen {
                    family,
                    ..udp_open(process, local, remote)
                };
                open.options.set(UdpOptions::REUSE_PORT, reuse);
                open.options.rcvbuf_bytes = 4000;
                self.ids.extend(self.rig.stack().udp_open(&open));
            }
            Step::Close(pick) => {
                let id = self.id(pick);
                self.rig.stack().unhold(id, process);
            }
            Step::Rebind(pick, local, remote) => {
                let id = self.id(pick);
                let _ = self.rig.stack().udp_rebind(id, local, remote);
            }
            Step::Frame(from, to, len) => {
                if from.ip.is_v4() == to.ip.is_v4() && self.rig.stack().free_chunks() > 0 {
                    self.rig.frame(&datagram(from, to, &vec![1; len]));
                }
            }
            Step::Pop(pick) => {
                let id = self.id(pick);
                let _ = self.rig.stack().udp_pop(id);
            }
            Step::Send(pick, to, len) => {
                let id = self.id(pick);
                let (mut stack, packets) = self.rig.both();
                let hop = via("198.18.0.1:1");
                let _ = stack.udp_send(packets, id, to, &hop, len, |into| into.fill(2));
            }
            Step::Hairpin(pick, to) => {
                let id = self.id(pick);
                let (mut stack, packets) = self.rig.both();
                let source = at("198.18.0.1:1").ip;
                let _ = stack.udp_hairpin(packets, id, source, to, 9, |into| into.fill(3), 4);
            }
            Step::Take => {
                if let Some(chunk) = self.rig.stack().take_chunk() {
                    self.out.push(Transmit {
                        chunk,
                        offset: 0,
                        len: 0,
                        stamp: 0,
                    });
                }
            }
            Step::Release(pick) => {
                if !self.out.is_empty() {
                    let at = pick % self.out.len();
                    let chunk = self.out.swap_remove(at).chunk;
                    self.rig.stack().release_chunk(chunk);
                }
            }
            Step::Transmit => self.out.extend(self.rig.stack().poll_transmit(0)),
            Step::Untransmit => {
                if let Some(transmit) = self.out.pop_if(|transmit| transmit.len != 0) {
                    self.rig.stack().untransmit(0, transmit);
                }
            }
            Step::Fork(parent) => {
                self.rig.stack().fork_process(ProcessId(parent % 4));
            }
            Step::Exit(process) => {
                self.rig.stack().remove_process(ProcessId(1 + process % 4));
            }
            Step::Park(pick) => {
                let id = self.id(pick);
                let mut stack = self.rig.stack();
                if let Some(waiter) = stack.add_waiter(process) {
                    stack.park(id, waiter);
                    if pick % 2 == 0 {
                        stack.remove_waiter(waiter);
                    }
                }
                stack.take_wakeups();
            }
            Step::Recover => {
                let out: Vec<_> = self.out.iter().map(|transmit| transmit.chunk).collect();
                self.rig.recover(&out);
                // They are in rings now, whatever they were.
                self.out.iter_mut().for_each(|transmit| transmit.len = 0);
            }
        }
    }
}

proptest! {
    #[test]
    fn checksum_equals_the_plain_one(bytes: Vec<u8>, more in any::<[u16; 3]>()) {
        let sum = more.iter().fold(Sum::new().bytes(&bytes), |sum, field| sum.field(*field));
        let mut padded = bytes.clone();
        if bytes.len() % 2 == 1 {
            padded.push(0);
        }
        padded.extend(more.iter().flat_map(|field| field.to_be_bytes()));
        let same = |sum: u16| if sum == 0xffff { 0 } else { sum };
        prop_assert_eq!(same(sum.fold()), same(plain_sum(&[&padded])));
    }

    #[test]
    fn checksum_of_long_runs_of_ones_carries(len in 0usize..5000) {
        let bytes = vec![0xff; len];
        prop_assert_eq!(Sum::new().bytes(&bytes).fold(), plain_sum(&[&bytes]));
    }

    #[test]
    fn what_is_emitted_parses_as_itself(
        headers in headers(),
        payload in proptest::collection::vec(any::<u8>(), 0..1500),
    ) {
        let is_v4 = headers.source.is_v4();
        let all = if is_v4 { wire::ipv4::ALL } else { wire::ipv6::ALL };
        let mut frame = vec![0xaa; all];
        frame.extend(&payload);
        if is_v4 {
            wire::ipv4::emit(&mut frame, &headers);
        } else {
            wire::ipv6::emit(&mut frame, &headers);
        }
        let mac = headers.destination_mac;
        let found = wire::parse(&frame, &mac, RxChecksum::Unknown).unwrap();
        prop_assert_eq!(found, wire::Datagram {
            source: headers.source,
            destination: headers.destination,
            source_port: headers.source_port,
            destination_port: headers.destination_port,
            tos: headers.tos,
            ttl: headers.ttl,
            payload_offset: all as u16,
            payload_len: payload.len() as u16,
        });
        prop_assert_eq!(&frame[all..], &payload[..]);
    }

    #[test]
    fn what_tcp_emits_parses_as_itself(
        udp in headers(),
        (seq, ack, window, urgent) in any::<(u32, u32, u16, u16)>(),
        flags in 0u16..512,
        options in tcp_options(),
        payload in proptest::collection::vec(any::<u8>(), 0..1500),
    ) {
        let headers = tcp::Headers {
            source_mac: udp.source_mac,
            destination_mac: [2, 0, 0, 0, 0, udp.destination_mac[5]],
            source: udp.source,
            destination: udp.destination,
            source_port: udp.source_port,
            destination_port: udp.destination_port,
            seq,
            ack,
            flags,
            window,
            urgent,
            tos: udp.tos,
            ttl: udp.ttl,
            ipv4_id: udp.ipv4_id,
            options,
checksum: TxChecksum::Whole,
        };
        let len = tcp::headers_len(udp.source.is_v4(), &options);
        let mut frame = vec![0xaa; len];
        frame.extend(&payload);
        tcp::emit(&mut frame, &headers);
        prop_assert!(tcp::is_tcp(&frame));
        let found = tcp::parse(&frame, &headers.destination_mac, RxChecksum::Unknown).unwrap();
        prop_assert_eq!(found, tcp::Segment {
            source: headers.source,
            destination: headers.destination,
            source_port: headers.source_port,
            destination_port: headers.destination_port,
            source_mac: headers.source_mac,
            seq,
            ack,
            flags,
            window,
            urgent,
            tos: headers.tos,
            ttl: headers.ttl,
            payload_offset: len as u16,
            payload_len: payload.len() as u16,
            options: found_options(&options, flags),
        });
        prop_assert_eq!(&frame[len..], &payload[..]);
    }

    #[test]
    fn arbitrary_frames_never_panic(mut frame: Vec<u8>, kind in 0u8..4, partial: bool) {
        let head: &[u8] = match kind {
            0 => &[8, 0, 0x45],
            1 => &[0x86, 0xdd, 0x60],
            _ => &[],
        };
        if frame.len() > 14 {
            frame[12..12 + head.len()].copy_from_slice(head);
        }
        let _ = wire::parse(&frame, &[0; 6], known(partial));
        let _ = tcp::is_tcp(&frame);
        let _ = tcp::parse(&frame, &[0; 6], known(partial));
    }

    #[test]
    fn demux_agrees_with_the_oracle(
        opens in proptest::collection::vec(open_strategy(), 0..12),
        queries in proptest::collection::vec((address(), 1u16..3, address(), 1u16..3), 1..30),
    ) {
        let mut rig = Rig::new(CAPS);
        let mut models = Vec::new();
        for (order, (family, local, remote, reuse_port)) in opens.into_iter().enumerate() {
            let mut open = UdpOpen { family, ..udp_open(rig.process, local, remote) };
            open.options.set(UdpOptions::REUSE_PORT, reuse_port);
            let id = rig.stack().udp_open(&open).unwrap();
            models.push(Model { id, family, local, remote, reuse_port, order });
        }
        for (local, local_port, remote, remote_port) in queries {
            let local = SocketAddress::new(local, local_port);
            let remote = SocketAddress::new(remote, remote_port);
            let found = rig.stack().udp_lookup(local, remote);
            let allowed = oracle(&models, local, remote);
            match found {
                Some(id) => prop_assert!(allowed.contains(&id), "{:?} {:?}", id, allowed),
                None => prop_assert!(allowed.is_empty(), "{:?}", allowed),
            }
        }
    }

    #[test]
    fn random_operations_keep_the_image_sound(
        steps in proptest::collection::vec(step(), 1..120),
    ) {
        let caps = Capacities { endpoints: 6, chunks: 24, chunk_size: 2048 };
        let mut world = World { rig: Rig::new(caps), ids: Vec::new(), out: Vec::new() };
        for step in &steps {
            world.run(step);
            let problems = problems(zerocopy::IntoBytes::as_bytes(&world.rig.words[..]));
            prop_assert!(problems.is_empty(), "{:?} after {:?}", problems, step);
        }
    }
}
