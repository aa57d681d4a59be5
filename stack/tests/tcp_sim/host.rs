//! A host: a stack with the rings of its queue pair, and a listener.

use super::super::common::*;
use super::plan::Plan;
use bypass_stack::inspect::Image;
use bypass_stack::*;
use std::collections::{HashSet, VecDeque};
use zerocopy::IntoBytes;

/// The port on which every host listens.
pub const PORT: u16 = 80;

/// A frame in the TX ring.
#[derive(Debug)]
struct InRing {
    done_at: u64,
    transmit: Transmit,
    bytes: Vec<u8>,
}

/// A host.
#[derive(Debug)]
pub struct Host {
    pub rig: Rig,
    pub ip: IpAddress,
    mac: [u8; 6],
    pub mtu: u16,
    pub listener: EndpointId,
    /// The listener's, and another one, which may die.
    pub processes: [ProcessId; 2],
    ring: VecDeque<InRing>,
    ring_frames: usize,
    posted: VecDeque<ChunkId>,
    fill: usize,
    next_accept: u64,
    pub flows: HashSet<(SocketAddress, SocketAddress)>,
    chunks: u32,
}

impl Host {
    pub fn new(number: usize, plan: &Plan, seed: u64) -> Self {
        let caps = Capacities {
            endpoints: plan.endpoints,
            chunks: plan.chunks,
            chunk_size: 2048,
        };
        let mut rig = Rig {
            words: image_words(&caps),
            packets: Packets::new(&caps),
            process: ProcessId(0),
        };
        let ip = address(number, plan.ipv6);
        let mac = [2, 0, 0, 0, 1, number as u8];
        let mut stack = Stack::create(rig.words.as_mut_bytes(), caps, seed).unwrap();
        let process = stack.add_process(100, 1, 0).unwrap();
        let other = stack.add_process(101, 1, 0).unwrap();
        let info = &mut stack.queue_pairs_mut()[0];
        info.ifindex = 3;
        info.mac = mac;
        info.mtu = plan.mtu[number];
        info.flags = QueuePairInfo::LIVE;
        if plan.partial {
            info.flags |= QueuePairInfo::COMPLETES_CHECKSUMS;
        }
        stack.bump_queue_pairs();
        *stack.tcp_defaults_mut() = plan.defaults;
        let mut open = tcp_open(process, SocketAddress::new(ip, PORT));
        open.options.fast_open_queue = 8 * u16::from(plan.fast);
        let listener = stack.tcp_listen(&open, plan.backlog).unwrap();
        stack.tcp_set_cookie_keys(listener, &[[seed, 1]]).unwrap();
        rig.process = process;
        let mut host = Self {
            rig,
            ip,
            mac,
            mtu: plan.mtu[number],
            listener,
            processes: [process, other],
            ring: VecDeque::new(),
            ring_frames: plan.ring_frames,
            posted: VecDeque::new(),
            fill: plan.fill,
            next_accept: 0,
            flows: HashSet::new(),
            chunks: plan.chunks,
        };
        host.refill();
        host
    }

    /// The way to the other host.
    pub fn hop(&self) -> NextHop {
        NextHop {
            queue_pair: 0,
            neighbour_state: cplane::neighbour_state::REACHABLE,
            mtu: self.mtu,
            ifindex: 3,
            source: self.ip,
            source_mac: self.mac,
            mac: [2, 0, 0, 0, 1, 1 - self.mac[5]],
            generation: 1,
        }
    }

    pub fn both(&mut self) -> (Stack<'_>, &mut Packets) {
        self.rig.both()
    }

    /// Whether nothing waits for time to pass.
    pub fn is_quiet(&mut self) -> bool {
        self.ring.is_empty() && self.rig.stack().next_deadline().is_none()
    }

    /// When something will happen here by itself.
    pub fn next_at(&mut self) -> Option<u64> {
        let done = self.ring.front().map(|entry| entry.done_at);
        let timer = self.rig.stack().next_deadline().map(|at| at.0);
        let accept = (self.accept_queue() > 0).then_some(self.next_accept);
        [done, timer, accept].into_iter().flatten().min()
    }

    fn accept_queue(&mut self) -> u32 {
        let listener = self.listener;
        self.rig
            .stack()
            .tcp_status(listener)
            .map_or(0, |status| status.accept_queue)
    }

    fn refill(&mut self) {
        while self.posted.len() < self.fill && self.rig.stack().free_chunks() > 0 {
            let chunk = self.rig.stack().take_chunk().unwrap();
            self.posted.push_back(chunk);
        }
    }

    /// A frame arrives; none when the fill ring is empty.
    pub fn receive(&mut self, bytes: &[u8], partial: bool, now: u64) -> Option<FrameOutcome> {
        let chunk = self.posted.pop_front()?;
        let offset = 256;
        let (mut stack, packets) = self.rig.both();
        packets.chunk_mut(chunk)[offset..offset + bytes.len()].copy_from_slice(bytes);
        let frame = RxFrame {
            chunk,
            offset: offset as u32,
            len: bytes.len() as u32,
            queue_pair: 0,
            checksum: known(partial),
            timestamp_ns: now,
        };
        let outcome = stack.handle_frame(packets, frame, Instant(now));
        Some(outcome)
    }

    /// Runs the timers that are due; whether there were any.
    pub fn run_timers(&mut self, now: u64) -> bool {
        let (mut stack, packets) = self.rig.both();
        let due = stack.next_deadline().is_some_and(|at| at.0 <= now);
        stack.run_timers(packets, Instant(now));
        due
    }

    /// The second process dies, and another one starts.
    pub fn kill(&mut self) {
        let process = self.processes[1];
        let mut stack = self.rig.stack();
        stack.remove_process(process);
        self.processes[1] = stack.add_process(102, 1, 0).unwrap();
    }

    /// The lock's owner has died inside an update.
    pub fn recover(&mut self) {
        let chunks: Vec<_> = self
            .ring
            .iter()
            .map(|entry| entry.transmit.chunk)
            .chain(self.posted.iter().copied())
            .collect();
        self.rig.recover(&chunks);
        self.flows.clear();
        self.rig.check();
    }

    /// The NIC is done with frames; until then they must not have changed.
    pub fn complete(&mut self, now: u64) {
        while self.ring.front().is_some_and(|entry| entry.done_at <= now) {
            let entry = self.ring.pop_front().unwrap();
            let (mut stack, packets) = self.rig.both();
            let from = entry.transmit.offset as usize;
            let there = &packets.chunk(entry.transmit.chunk)[from..from + entry.bytes.len()];
            assert_eq!(there, entry.bytes, "changed under the NIC");
            stack.release_chunk(entry.transmit.chunk);
        }
    }

    /// End of a batch: flush, changes of steering, frames into the ring. Returns those.
    pub fn transmit(&mut self, now: u64, random: &mut Random) -> Vec<Vec<u8>> {
        let mut sent = Vec::new();
        let (mut stack, packets) = self.rig.both();
        stack.flush(packets, Instant(now));
        assert!(!stack.has_flush());
        while let Some(change) = stack.take_flow_change() {
            let flow = (change.local, change.remote);
            let fresh = if change.begins {
                self.flows.insert(flow)
            } else {
                self.flows.remove(&flow)
            };
            assert!(fresh, "{change:?} twice");
        }
        while let Some(transmit) = stack.poll_transmit(0) {
            if self.ring.len() >= self.ring_frames {
                stack.untransmit(0, transmit);
                break;
            }
            let from = transmit.offset as usize;
            let bytes = packets.chunk(transmit.chunk)[from..from + transmit.len as usize].to_vec();
            let before = self.ring.back().map_or(now, |entry| entry.done_at);
            sent.push(bytes.clone());
            self.ring.push_back(InRing {
                done_at: before.max(now) + random.below(20_000),
                transmit,
                bytes,
            });
        }
        self.refill();
        sent
    }

    /// Takes a connection that waits, now and then.
    pub fn accept(&mut self, now: u64) -> Option<(EndpointId, TcpStatus)> {
        if now < self.next_accept || self.accept_queue() == 0 {
            return None;
        }
        self.next_accept = now + 10_000;
        let (process, listener) = (self.rig.process, self.listener);
        let mut stack = self.rig.stack();
        let id = stack.tcp_accept(listener, process, 5).unwrap()?;
        let status = stack.tcp_status(id).unwrap();
        Some((id, status))
    }

    /// Nothing is left but the listener, which goes now.
    pub fn finish(&mut self, now: u64) {
        let (listener, process) = (self.listener, self.rig.process);
        let (mut stack, packets) = self.rig.both();
        assert!(stack.tcp_close(packets, listener, process, Instant(now)));
        stack.flush(packets, Instant(now));
        self.rig.check();
        for chunk in self.posted.drain(..) {
            self.rig.stack().release_chunk(chunk);
        }
        let image = Image::attach(self.rig.words.as_bytes()).unwrap();
        let left: Vec<_> = image.endpoints().collect();
        assert!(left.is_empty(), "{left:?}");
        for counter in [
            Counter::CorruptList,
            Counter::BadChunk,
            Counter::DoubleRelease,
            Counter::TcpFlowChangesLost,
        ] {
            assert_eq!(image.counter(counter), 0, "{}", counter.sentence());
        }
        assert_eq!(image.dropped(DropReason::Corrupt), 0);
        assert_eq!(self.rig.stack().free_chunks(), self.chunks);
        assert!(self.flows.is_empty(), "{:?}", self.flows);
    }

    /// A line for a failure's message.
    pub fn describe(&self) -> String {
        let image = Image::attach(self.rig.words.as_bytes()).unwrap();
        let counters: Vec<_> = Counter::ALL
            .iter()
            .map(|counter| (counter.name(), image.counter(*counter)))
            .filter(|(_, value)| *value > 0)
            .collect();
        let drops: Vec<_> = DropReason::ALL
            .iter()
            .map(|reason| (reason.name(), image.dropped(*reason)))
            .filter(|(_, value)| *value > 0)
            .collect();
        format!("{:?} {counters:?} {drops:?}", image.chunks())
    }

    pub fn counter(&self, counter: Counter) -> u64 {
        Image::attach(self.rig.words.as_bytes())
            .unwrap()
            .counter(counter)
    }
}

/// A host's address.
pub fn address(number: usize, ipv6: bool) -> IpAddress {
    if ipv6 {
        let mut octets = [0x20; 16];
        octets[15] = 1 + number as u8;
        IpAddress(octets)
    } else {
        IpAddress::from_v4([198, 18, 0, 1 + number as u8])
    }
}

pub fn tcp_open(process: ProcessId, local: SocketAddress) -> TcpOpen {
    TcpOpen {
        family: if local.ip.is_v4() {
            Family::V4
        } else {
            Family::V6
        },
        local,
        process,
        options: TcpOptions::new(),
        shadow_cookie: 9,
        ifindex: 0,
    }
}
