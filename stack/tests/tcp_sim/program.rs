//! A connection and the programs at its ends. What a program sends follows from the connection's
//! number, the direction and the place in the stream, so that a receiver can check every byte.

use super::super::common::*;
use super::host::{Host, PORT, address, tcp_open};
use super::plan::Plan;
use super::{SECOND, seeded};
use bypass_stack::*;

pub const ECONNREFUSED: i32 = 111;
pub const ECONNRESET: i32 = 104;
pub const EPIPE: i32 = 32;
pub const ETIMEDOUT: i32 = 110;

/// How a program ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// Sends all, says so (SHUT_WR), reads to the end, closes.
    Orderly,
    /// Closes as soon as all is written; for connections on which nothing comes.
    AfterWrite,
    /// Closes after so many bytes were read, whatever is unread.
    Early(u64),
    /// Resets after so many bytes were written.
    Abort(u64),
    /// SO_LINGER with no time: closes, which resets, when all is written.
    Linger,
}

/// How a connection comes about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// connect() to a listener.
    Usual,
    /// Both connect to each other at the same time.
    Crossing,
    /// Nobody listens.
    Refused,
}

/// Where a program is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// Will connect, or wait to be accepted.
    Waiting,
    Connecting,
    Open,
    Closed,
}

/// A program's end of a connection.
#[derive(Debug, Clone)]
pub struct Side {
    pub id: Option<EndpointId>,
    pub state: State,
    pub end: End,
    /// Bytes to send, sent, and received.
    pub to_send: u64,
    pub sent: u64,
    pub received: u64,
    /// Error that it was told.
    pub error: i32,
    /// It has read the end of the stream.
    pub saw_end: bool,
    shut: bool,
    /// Waits for edges of readiness, rather than looking again after a while.
    by_edges: bool,
    /// Reads and writes a few pieces, then waits until one of the two is possible, whether or not a
    /// call has found that it was not (level-triggered epoll).
    by_level: bool,
    edges: Option<(u32, u32)>,
    /// When it does something next; none = when an edge comes.
    pub next_at: Option<u64>,
    think_ns: u64,
    fruitless: u32,
    progress: u64,
    /// Most bytes of one write and one read.
    piece: u64,
    pub options: TcpOptions,
    /// Writes with its connect.
    pub fast: bool,
    pub closed_at: u64,
    /// Stops reading for so long when so many bytes were read.
    pause: Option<(u64, u64)>,
    /// Which of the host's processes it is.
    pub process: usize,
    /// Something happened that ends connections.
    pub doomed: bool,
}

/// A connection.
#[derive(Debug)]
pub struct Pair {
    pub number: u16,
    pub kind: Kind,
    /// The host that connects.
    pub client: usize,
    pub addresses: [SocketAddress; 2],
    pub sides: [Side; 2],
    /// Begins when that one is over, with the same addresses.
    pub after: Option<usize>,
}

/// The byte at a place of a stream.
pub fn byte(number: u16, side: usize, at: u64) -> u8 {
    let mixed =
        (at ^ u64::from(number) << 40 ^ (side as u64) << 56).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (mixed >> 29) as u8
}

impl Side {
    /// A program that sends so much and does not dawdle.
    pub fn plain(to_send: u64) -> Self {
        let mut options = TcpOptions::new();
        // So that a peer that vanished (its reset was lost) is noticed.
        options.set(TcpOptions::KEEPALIVE, true);
        options.keep_idle_s = 10;
        options.keep_interval_s = 5;
        Self {
            id: None,
            state: State::Waiting,
            end: End::Orderly,
            to_send,
            sent: 0,
            received: 0,
            error: 0,
            saw_end: false,
            shut: false,
            by_edges: true,
            by_level: false,
            edges: None,
            next_at: None,
            think_ns: 1000,
            fruitless: 0,
            progress: 0,
            piece: 1 << 20,
            options,
            fast: false,
            closed_at: 0,
            pause: None,
            process: 0,
            doomed: false,
        }
    }

    /// It stops reading for `span_ns` when `bytes` were read.
    pub fn pause(&mut self, bytes: u64, span_ns: u64) {
        self.pause = Some((bytes, span_ns));
    }

    fn draw(plan: &Plan, random: &mut Random) -> Self {
        let to_send = match random.below(4) {
            0 => 0,
            1 => random.below(2000),
            2 => random.below(50_000),
            _ => random.below(400_000),
        };
        let mut side = Self::plain(to_send);
        side.by_edges = random.chance(60);
        let think_ns = [1_000, 100_000, 10_000_000, 300_000_000][random.below(4) as usize];
        // Much shorter than the way to the other host is of no interest, only of many steps.
        side.think_ns = (plan.delay_ns / 4).max(think_ns);
        side.piece = [100, 1448, 20_000, 1 << 20][random.below(4) as usize];
        // Small pieces with long thoughts in between would take for ever.
        if side.piece < 2000 && side.think_ns > 10_000_000 {
            side.to_send = side.to_send.min(20_000);
        }
        if random.chance(10) {
            side.pause = Some((random.below(100_000), random.below(40 * SECOND)));
        }
        side.process = usize::from(random.chance(20));
        side.end = match random.below(20) {
            0 => End::Early(random.below(side.to_send + 2000)),
            1 => End::Abort(random.below(side.to_send + 1)),
            2 => End::Linger,
            3..=6 => End::AfterWrite,
            _ => End::Orderly,
        };
        let options = &mut side.options;
        options.set(TcpOptions::NODELAY, random.chance(40));
        options.set(TcpOptions::CORK, random.chance(5));
        options.congestion = random.below(3) as u8;
        if random.chance(30) {
            options.rcvbuf_bytes = [2304, 10_000, 60_000][random.below(3) as usize];
            options.set(TcpOptions::RCVBUF_LOCKED, true);
        }
        if random.chance(30) {
            options.sndbuf_bytes = [4608, 10_000, 60_000][random.below(3) as usize];
            options.set(TcpOptions::SNDBUF_LOCKED, true);
        }
        if random.chance(10) {
            options.max_seg = 200 + random.below(1000) as u16;
        }
        options.set(TcpOptions::LINGER, matches!(side.end, End::Linger));
        side.by_level = side.by_edges && random.chance(40);
        side
    }

    /// Bytes that it means to write in all.
    fn limit(&self) -> u64 {
        match self.end {
            End::Abort(at) => self.to_send.min(at),
            _ => self.to_send,
        }
    }

    /// Whether it does something now.
    pub fn is_due(&self, now: u64) -> bool {
        self.next_at.is_some_and(|at| at <= now)
    }

    /// How many pieces it reads or writes at a time.
    fn budget(&self, random: &mut Random) -> u64 {
        if self.by_edges && !self.by_level {
            u64::MAX
        } else {
            1 + random.below(3)
        }
    }

    /// Whether nothing was heard from the peer for as long as its keepalive waits: the answers to
    /// ten probes were all lost, as on a link that is overloaded for minutes.
    fn is_given_up(&self) -> bool {
        self.error == ETIMEDOUT && self.options.has(TcpOptions::KEEPALIVE)
    }

    fn expects_errors(&self) -> bool {
        self.doomed || !matches!(self.end, End::Orderly | End::AfterWrite)
    }
}

impl Pair {
    /// A connection between these programs, made by host 0 now.
    pub fn new(number: u16, plan: &Plan, now: u64, sides: [Side; 2]) -> Self {
        let mut pair = Self {
            number,
            kind: Kind::Usual,
            client: 0,
            addresses: [
                SocketAddress::new(address(0, plan.ipv6), 10_000 + number),
                SocketAddress::new(address(1, plan.ipv6), PORT),
            ],
            sides,
            after: None,
        };
        pair.sides[0].next_at = Some(now);
        pair.sides[0].fast = plan.fast;
        pair
    }

    pub fn draw(number: u16, plan: &Plan, now: u64, random: &mut Random) -> Self {
        let mut sides = [Side::draw(plan, random), Side::draw(plan, random)];
        let start = now + random.below(3) * random.below(SECOND);
        for side in 0..2 {
            if sides[side].end == End::AfterWrite && sides[1 - side].to_send > 0 {
                sides[side].end = End::Orderly;
            }
        }
        let mut pair = Self::new(number, plan, start, sides);
        pair.client = random.below(2) as usize;
        if pair.client == 1 {
            pair.addresses[0].ip = address(1, plan.ipv6);
            pair.addresses[1].ip = address(0, plan.ipv6);
        }
        match random.below(12) {
            0 => {
                pair.kind = Kind::Crossing;
                pair.addresses[1].port = 20_000 + number;
                pair.sides[1].next_at = Some(start);
            }
            1 => {
                pair.kind = Kind::Refused;
                pair.addresses[1].port = 81;
                pair.sides[1].state = State::Closed;
            }
            _ => {}
        }
        pair
    }

    /// A connection that uses the addresses of another one again.
    pub fn draw_after(before: usize, world: &super::World, random: &mut Random) -> Self {
        let number = world.pairs.len() as u16;
        let first = &world.pairs[before];
        let mut again = Self::draw(number, &world.plan, world.now, random);
        again.addresses = first.addresses;
        again.client = first.client;
        again.kind = first.kind;
        again.sides[1].state = if again.kind == Kind::Refused {
            State::Closed
        } else {
            State::Waiting
        };
        again.after = Some(before);
        again.sides[0].next_at = None;
        again.sides[1].next_at = None;
        again
    }

    /// The connection before it is over.
    pub fn begin(&mut self, at: u64) {
        self.after = None;
        self.sides[0].next_at = Some(at);
    }

    /// The connection before it ended in a way that makes it unclear when it can begin.
    pub fn cancel(&mut self) {
        self.after = None;
        for side in &mut self.sides {
            side.state = State::Closed;
            side.doomed = true;
        }
    }

    pub fn host_of(&self, side: usize) -> usize {
        self.client ^ side
    }

    pub fn is_over(&self) -> bool {
        let [client, server] = &self.sides;
        let unheard_of = server.state == State::Waiting && self.may_miss_accept();
        client.state == State::Closed && (server.state == State::Closed || unheard_of)
    }

    /// Whether the server may never hear of the connection.
    fn may_miss_accept(&self) -> bool {
        let [client, server] = &self.sides;
        client.expects_errors() || client.error != 0 || server.doomed
    }

    pub fn next_at(&self) -> Option<u64> {
        self.sides.iter().filter_map(|side| side.next_at).min()
    }

    /// Whether an accepted connection is this one.
    pub fn awaits(&self, status: &TcpStatus) -> bool {
        let [client, server] = &self.sides;
        let begun = client.state != State::Waiting && server.state == State::Waiting;
        begun && status.remote == self.addresses[0] && status.local == self.addresses[1]
    }

    pub fn accepted(&mut self, id: EndpointId, host: &mut Host, now: u64) {
        let side = &mut self.sides[1];
        // Only the first process accepts.
        side.process = 0;
        let (mut stack, packets) = host.both();
        *stack.tcp_options(id).unwrap() = side.options;
        stack.tcp_options_changed(packets, id, Instant(now));
        assert_eq!(side.state, State::Waiting, "accepted twice");
        side.id = Some(id);
        side.state = State::Open;
        side.next_at = Some(now);
    }

    /// Lets a program do what it does now; whether it did anything.
    pub fn run(&mut self, which: usize, host: &mut Host, now: u64, random: &mut Random) -> bool {
        self.notice_edges(which, host, now);
        if !self.sides[which].is_due(now) {
            return false;
        }
        self.sides[which].next_at = None;
        match self.sides[which].state {
            State::Waiting => self.connect(which, host, now),
            State::Connecting => self.connecting(which, host, now),
            State::Open => self.work(which, host, now, random),
            State::Closed => {}
        }
        let side = &mut self.sides[which];
        if side.state == State::Closed {
            side.next_at = None;
        } else if side.state != State::Waiting && side.next_at.is_none() && !side.by_edges {
            // Looks less and less often while nothing happens.
            let progress = side.sent + side.received;
            side.fruitless = if progress == side.progress {
                (side.fruitless + 1).min(20)
            } else {
                0
            };
            side.progress = progress;
            let think_ns = (side.think_ns << side.fruitless).min(side.think_ns.max(SECOND / 2));
            side.next_at = Some(now + 1 + random.below(think_ns));
        }
        true
    }

    /// Wakes a program whose endpoint has something new.
    fn notice_edges(&mut self, which: usize, host: &mut Host, now: u64) {
        let side = &mut self.sides[which];
        let (Some(id), Some(edges), None) = (side.id, side.edges, side.next_at) else {
            return;
        };
        if side.state == State::Closed {
            return;
        }
        let ready = host.rig.stack().readiness(id).unwrap();
        if (ready.in_edge, ready.out_edge) != edges {
            side.next_at = Some(now);
        }
    }

    fn connect(&mut self, which: usize, host: &mut Host, now: u64) {
        let [local, remote] = if which == 0 {
            self.addresses
        } else {
            [self.addresses[1], self.addresses[0]]
        };
        let side = &mut self.sides[which];
        let open = TcpOpen {
            options: side.options,
            ..tcp_open(host.processes[side.process], local)
        };
        let hop = host.hop();
        let (mut stack, packets) = host.both();
        let number = self.number;
        let result = if side.fast {
            let mut at = 0;
            let fill = &mut |into: &mut [u8]| {
                for place in into {
                    *place = byte(number, which, at);
                    at += 1;
                }
            };
            let first = FirstWrite {
                len: side.limit().min(side.piece) as usize,
                fill,
                waits: false,
            };
            stack.tcp_open(&open).and_then(|id| {
                let start = (remote, &hop);
                side.sent = stack.tcp_start_with(packets, id, start, first, Instant(now))? as u64;
                Ok(id)
            })
        } else {
            stack.tcp_connect(packets, &open, remote, &hop, Instant(now))
        };
        match result {
            Ok(id) => {
                side.id = Some(id);
                side.state = State::Connecting;
                let ready = stack.readiness(id).unwrap();
                assert_eq!(ready.events & (event::IN | event::OUT), 0);
                side.edges = Some((ready.in_edge, ready.out_edge));
            }
            Err(OpenError::InUse | OpenError::Full) => side.next_at = Some(now + 5 * SECOND),
            Err(error) => panic!("{error:?}"),
        }
    }

    fn connecting(&mut self, which: usize, host: &mut Host, now: u64) {
        let side = &mut self.sides[which];
        let id = side.id.unwrap();
        let mut stack = host.rig.stack();
        let ready = stack.readiness(id).unwrap();
        let status = stack.tcp_status(id).unwrap();
        side.edges = Some((ready.in_edge, ready.out_edge));
        if ready.events & event::ERR != 0 || status.state == TcpState::Closed {
            self.fail(which, host, now);
        } else if ready.events & event::OUT != 0 {
            assert!(status.state != TcpState::SynSent, "{status:?}");
            side.state = State::Open;
            side.next_at = Some(now);
        }
    }

    /// Takes the pending error and closes.
    fn fail(&mut self, which: usize, host: &mut Host, now: u64) {
        let id = self.sides[which].id.unwrap();
        let error = host.rig.stack().tcp_take_error(id);
        if error != 0 {
            self.sides[which].error = error;
        }
        self.close(which, host, now);
    }

    fn close(&mut self, which: usize, host: &mut Host, now: u64) {
        let side = &mut self.sides[which];
        let process = host.processes[side.process];
        let (mut stack, packets) = host.both();
        assert!(stack.tcp_close(packets, side.id.unwrap(), process, Instant(now)));
        side.state = State::Closed;
        side.closed_at = now;
    }

    fn abort(&mut self, which: usize, host: &mut Host, now: u64) {
        let id = self.sides[which].id.unwrap();
        let (mut stack, packets) = host.both();
        stack.tcp_abort(packets, id, Instant(now));
        self.close(which, host, now);
    }

    /// Reads, writes and perhaps ends.
    fn work(&mut self, which: usize, host: &mut Host, now: u64, random: &mut Random) {
        let id = self.sides[which].id.unwrap();
        // Edges from here on are news.
        let ready = host.rig.stack().readiness(id).unwrap();
        self.sides[which].edges = Some((ready.in_edge, ready.out_edge));
        let mut budget = self.sides[which].budget(random);
        while budget > 0 && self.read(which, host, now, random) {
            budget -= 1;
        }
        let side = &mut self.sides[which];
        let received = side.received;
        if let Some((_, pause)) = side.pause.take_if(|(at, _)| *at <= received) {
            // Nothing wakes it before.
            side.next_at = Some(now + pause);
            return;
        }
        let mut budget = self.sides[which].budget(random);
        while budget > 0 && self.write(which, host, now, random) {
            budget -= 1;
        }
        if self.sides[which].state == State::Open {
            self.maybe_end(which, host, now);
        }
        if self.sides[which].state == State::Open && self.sides[which].by_level {
            self.wait_by_level(which, host, now);
        }
    }

    /// epoll_wait: goes on at once when something is possible, else with the next edge.
    fn wait_by_level(&mut self, which: usize, host: &mut Host, now: u64) {
        let side = &mut self.sides[which];
        let id = side.id.unwrap();
        let ready = host.rig.stack().readiness(id).unwrap();
        side.edges = Some((ready.in_edge, ready.out_edge));
        let writes = side.sent < side.limit() && ready.events & event::OUT != 0;
        if writes || ready.events & event::IN != 0 && !side.saw_end {
            side.next_at = Some(now + 1);
        }
    }

    /// Reads a piece; whether there may be more.
    fn read(&mut self, which: usize, host: &mut Host, now: u64, random: &mut Random) -> bool {
        let side = &mut self.sides[which];
        if side.state != State::Open {
            return false;
        }
        let id = side.id.unwrap();
        let (mut stack, packets) = host.both();
        let readable = stack.tcp_readable(id).unwrap();
        let want = (1 + random.below(side.piece)).min(readable as u64) as usize;
        let mut got = 0;
        while got < want {
            let span = stack.tcp_front(id, got).unwrap().expect("as it said");
            let (from, len) = (span.offset as usize, (span.len as usize).min(want - got));
            for (n, found) in packets.chunk(span.chunk)[from..from + len]
                .iter()
                .enumerate()
            {
                let at = side.received + (got + n) as u64;
                assert_eq!(*found, byte(self.number, 1 - which, at), "byte {at}");
            }
            got += len;
            if len == span.len as usize {
                let walked = stack.tcp_front(id, got).unwrap();
                assert_eq!(stack.tcp_behind(id, &span, got).unwrap(), walked);
            }
        }
        if want == 0 {
            assert_eq!(stack.tcp_front(id, 0).unwrap(), None);
            let status = stack.tcp_status(id).unwrap();
            side.saw_end |= status.peer_fin;
            return false;
        }
        // Now and then only a look (MSG_PEEK).
        if random.chance(90) {
            stack.tcp_consume(id, want, Instant(now)).unwrap();
            side.received += want as u64;
        }
        let most = self.sides[1 - which].to_send;
        assert!(self.sides[which].received <= most);
        true
    }

    /// Writes a piece; whether there may be room for more.
    fn write(&mut self, which: usize, host: &mut Host, now: u64, random: &mut Random) -> bool {
        let number = self.number;
        let side = &mut self.sides[which];
        let limit = side.limit();
        if side.state != State::Open || side.sent >= limit {
            return false;
        }
        let want = (1 + random.below(side.piece)).min(limit - side.sent) as usize;
        let more = random.chance(5) && (want as u64) < limit - side.sent;
        let id = side.id.unwrap();
        let mut at = side.sent;
        let (mut stack, packets) = host.both();
        let sure = stack.tcp_status(id).unwrap().send_space as usize;
        let fill = &mut |into: &mut [u8]| {
            for place in into {
                *place = byte(number, which, at);
                at += 1;
            }
        };
        let sent = if !more && side.sent.is_multiple_of(3) {
            stack.tcp_send_later(packets, id, want, fill, Instant(now))
        } else {
            stack.tcp_send(packets, id, want, more, fill, Instant(now))
        };
        match sent {
            Ok(taken) => {
                assert!(taken > 0 && taken <= want);
                assert!(taken >= sure.min(want), "{taken} of {sure} were taken");
                assert_eq!(at - side.sent, taken as u64, "filled what was taken");
                side.sent = at;
                true
            }
            Err(TcpError::WouldBlock) => false,
            Err(TcpError::Errno(error)) => {
                side.error = error;
                self.fail(which, host, now);
                false
            }
            Err(TcpError::Stale) => panic!("stale"),
        }
    }

    /// Ends as planned, or because of an error.
    fn maybe_end(&mut self, which: usize, host: &mut Host, now: u64) {
        let side = &mut self.sides[which];
        let id = side.id.unwrap();
        let status = host.rig.stack().tcp_status(id).unwrap();
        if status.error != 0 || status.state == TcpState::Closed && !side.shut {
            return self.fail(which, host, now);
        }
        let all_sent = side.sent == side.to_send;
        match side.end {
            End::Early(bytes) if side.received >= bytes || side.saw_end => {
                self.close(which, host, now);
            }
            End::Abort(bytes) if side.sent >= bytes => self.abort(which, host, now),
            End::Linger | End::AfterWrite if all_sent => self.close(which, host, now),
            End::Orderly | End::Early(_) if all_sent && !side.shut => {
                side.shut = true;
                let (mut stack, packets) = host.both();
                let done = stack.tcp_shutdown(packets, id, Shutdown::Write, Instant(now));
                assert_eq!(done, Ok(()));
                self.maybe_close(which, host, now);
            }
            _ => self.maybe_close(which, host, now),
        }
    }

    /// Closes when both directions are done.
    fn maybe_close(&mut self, which: usize, host: &mut Host, now: u64) {
        let side = &self.sides[which];
        if side.shut && side.saw_end {
            self.close(which, host, now);
        }
    }

    /// A program's connection leaves with its bytes and comes back as another endpoint; whether it
    /// did.
    #[expect(clippy::too_many_lines, reason = "one move, from export to import")]
    pub fn relocate(&mut self, which: usize, host: &mut Host, now: u64) -> bool {
        let via = host.hop();
        let side = &mut self.sides[which];
        let (State::Open, Some(id)) = (side.state, side.id) else {
            return false;
        };
        let process = host.processes[side.process];
        let (mut stack, packets) = host.both();
        let Ok(record) = stack.tcp_record(id, Instant(now)) else {
            return false;
        };
        let collect = |part| {
            let mut bytes = Vec::new();
            let each = &mut |span: Span| {
                let from = span.offset as usize;
                bytes.extend_from_slice(&packets.chunk(span.chunk)[from..][..span.len as usize]);
            };
            stack.tcp_part(id, part, each).unwrap();
            bytes
        };
        let (written, unread) = (collect(Part::Written), collect(Part::Unread));
        let (sent, unsent) = written.split_at(record.snd_nxt.wrapping_sub(record.snd_una) as usize);
        assert_eq!(
            unsent.len() as u32,
            record.write_seq.wrapping_sub(record.snd_nxt)
        );
        assert_eq!(
            unread.len() as u32,
            record.rcv_nxt.wrapping_sub(record.copied_seq)
        );
        let options = *stack.tcp_options(id).unwrap();
        match stack.tcp_leave(id, Instant(now)) {
            Ok(()) => {}
            Err(CannotMove::Full) => return false,
            Err(other) => panic!("{other:?}"),
        }
        assert!(!stack.is_live(id));
        assert!(!stack.has_flow(record.local(), record.remote()));
        let open = TcpOpen {
            options,
            ..tcp_open(process, record.local())
        };
        let cargo = Cargo {
            sent,
            unsent,
            unread: &unread,
        };
        let came = stack.tcp_import(packets, &open, (&record, cargo), &via, Instant(now));
        let Ok(id) = came else {
            // The bytes lie in more chunks than before and there are not so many.
            assert_eq!(came, Err(OpenError::Full));
            side.state = State::Closed;
            side.next_at = None;
            for side in &mut self.sides {
                side.doomed = true;
            }
            return false;
        };
        let side = &mut self.sides[which];
        side.id = Some(id);
        side.edges = None;
        side.next_at = Some(now);
        true
    }

    /// Everything ended as the programs' plans allow.
    pub fn check_outcome(&self, plan: &Plan) {
        let [client, server] = &self.sides;
        if self.kind == Kind::Refused {
            let lost = plan.is_very_bad() && client.error == ETIMEDOUT;
            let refused = client.error == ECONNREFUSED || lost || client.doomed;
            assert!(refused, "{self:?}");
            return;
        }
        if client.doomed && client.id.is_none() {
            return; // It never began.
        }
        let may_fail = client.expects_errors() || server.expects_errors();
        if client.error == ETIMEDOUT && server.state == State::Waiting && plan.loses() {
            return; // Every SYN was lost; rare.
        }
        for (which, side) in self.sides.iter().enumerate() {
            let peer = &self.sides[1 - which];
            // A closed connection gives up after 100 s without an answer (tcp_orphan_retries),
            // which a very bad wire can bring about.
            let starved = plan.is_very_bad() && peer.state == State::Closed;
            if starved && side.error == ECONNRESET && peer.error == 0 {
                continue;
            }
            if plan.is_very_bad() && (side.is_given_up() || peer.is_given_up()) {
                continue;
            }
            if may_fail {
                let known = [0, ECONNRESET, EPIPE, ECONNREFUSED, ETIMEDOUT];
                assert!(known.contains(&side.error), "{self:?}");
            } else {
                assert_eq!(side.error, 0, "{self:?}");
                assert_eq!(side.sent, side.to_send, "{self:?}");
                if side.end == End::Orderly {
                    assert_eq!(side.received, peer.to_send, "{self:?}");
                    assert!(side.saw_end, "{self:?}");
                }
            }
        }
    }

    /// A line for a failure's message.
    pub fn describe(&self, which: usize, host: &mut Host, now: u64) -> String {
        let side = &self.sides[which];
        let mut stack = host.rig.stack();
        let state = side.id.map(|id| {
            let info = stack.tcp_info(id, Instant(now));
            (stack.tcp_status(id), stack.readiness(id), info)
        });
        format!(
            "{} {which}: {:?} {:?} {:?} sent {}/{} received {}/{} end {} edges {} next {:?} {state:?}",
            self.number,
            self.kind,
            side.state,
            side.end,
            side.sent,
            side.to_send,
            side.received,
            self.sides[1 - which].to_send,
            side.saw_end,
            side.by_edges,
            side.next_at,
        )
    }
}

/// Some numbers for a test that wants others than a plan's.
pub fn random(seed: u64) -> Random {
    seeded(seed)
}
