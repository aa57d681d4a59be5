//! The relay at work: one port, the programs of one stack, and the kernel.
//!
//! ```text
//!              ┌──────────────────────── relay ─────────────────────────┐
//!   port ────► │ burst ► steering ── matched ──► copy ► chunk ► RX ring │ ──► stack
//!              │             └── everything else ──► face               │ ──► kernel
//!   port ◄──── │ burst ◄─────────────── TX ring, face                   │
//!              └────────────────────────────────────────────────────────┘
//! ```
//!
//! One thread, which does a turn over all of that again and again while there is work, spins for a
//! moment after the last of it, and then sleeps: until something comes where the port has a
//! descriptor to wait on, else for a pause that grows.
//!
//! Frames are copied once each way, between the port's memory and the stack's chunks. So no card
//! ever writes into memory that programs have, no chunk is ever in the card's hands, and what
//! programs do to rings and memory is a matter of their own stack. Without copies, where that was
//! asked for: `in_place.rs`.
//!
//! It ends when it is told to, or when the daemon and the stack are gone.

use std::collections::BTreeSet;
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;
use std::time::{Duration, Instant};

use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, recv, send};
use rustix::time::Timespec;

use super::COUNTERS;
use super::board;
use super::control::{Kind, Message, accept_daemon};
use super::face::Face;
use super::hands::Hands;
use super::memory::Memory;
use super::physical::PhysicalRules;
use super::port::{BURST, CardFilter, Facts, Lent, Port, Told};
use super::rings::{CHECKSUM_GOOD, Rings, Slot, is_unread};
use super::roster;
use super::steering::{Filters, Verdict};
use crate::af_xdp::{FlowTable, HEADROOM};
use crate::ring::{Entering, Taking};

/// How long it looks for more work before it sleeps.
const SPIN: Duration = Duration::from_micros(20);
/// Turns between two looks at the TAP while nothing came from there.
const TAP_TURNS: u32 = 8;
/// Turns between two looks at the daemon while there is work.
const CONTROL_TURNS: u32 = 1024;
/// Pauses of a port without a descriptor to wait on: the first, and the longest.
const PAUSES: (Duration, Duration) = (Duration::from_micros(50), Duration::from_millis(1));
/// Longest sleep: a wake-up of a program that died a moment before it sent it is made good then.
const LONGEST: Duration = Duration::from_secs(1);
/// How often the port is asked whether its device is lost: to be seen, a link that is down for half
/// a second must be looked at more often, also on a machine with much to do.
const ASKING: Duration = Duration::from_millis(50);
/// How often a full TX queue is tried before a frame is dropped.
const SEND_TRIES: u32 = 64;
/// Bytes of an Ethernet header: drivers need not be ready for shorter frames.
pub(super) const SHORTEST: u32 = 14;
/// Bytes of the largest frame that the kernel sends.
const FRAME: usize = 1 << 16;
/// How long a relay that has neither daemon nor stack waits for either: a daemon that is started
/// again finds the interface as it was.
const PATIENCE: Duration = Duration::from_secs(5);

/// Looks, a second apart, after which a datagram that is said to be on its way is lost.
const DOUBTS: u8 = 3;

const LISTENER: u64 = 0;
const DAEMON: u64 = 1;
const BELL: u64 = 2;
const OTHER: u64 = 3;

/// The stack that has the port.
#[derive(Debug)]
pub(super) struct Stack {
    pub(super) memory: Rc<Memory>,
    pub(super) flows: FlowTable,
    pub(super) rings: Rings,
    /// The chunks that the port has, where frames stay in them.
    pub(super) hands: Option<Hands>,
    rings_fd: OwnedFd,
    bell: OwnedFd,
    /// Looks in a row that found a datagram said to be on its way, and none there.
    doubts: u8,
}

/// A relay at work; see the module.
#[derive(Debug)]
pub struct Relay {
    pub(super) port: Box<dyn Port>,
    facts: Facts,
    /// Rules at the physical function that lead to the port, or why there are none; `None` = nobody
    /// has asked for them.
    physical: Option<Result<PhysicalRules, String>>,
    /// Of the descriptor that is watched.
    epoch: Option<u64>,
    pub(super) face: Face,
    pub(super) filters: Filters,
    pub(super) stack: Option<Stack>,
    epoll: OwnedFd,
    listener: OwnedFd,
    daemon: Option<OwnedFd>,
    deserted: Option<Instant>,
    pub(super) counters: [u64; COUNTERS.len()],
    board: OwnedFd,
    written: Instant,
    asked: Instant,
    pub(super) frame: Vec<u8>,
    turns: u32,
    tap_is_quiet: bool,
    /// Whether a frame's departure was ever asked for.
    asks_departures: bool,
    is_lost: bool,
}

/// Tells daemons that ask at `listener` why there is no port, until none has asked for a while.
pub fn tell_failure(listener: &OwnedFd, words: &str) {
    let mut waiting = [rustix::event::PollFd::new(
        listener,
        rustix::event::PollFlags::IN,
    )];
    let patience = timespec(PATIENCE);
    if rustix::event::poll(&mut waiting, Some(&patience)).is_ok_and(|ready| ready > 0)
        && let Some(daemon) = accept_daemon(listener)
    {
        // A daemon that is gone wants no answer.
        let _ = Message::new(Kind::Failed)
            .with_text(words)
            .send(&daemon, &[]);
    }
}

impl Relay {
    /// Gives an open port its face in the kernel, under this name. Daemons connect to `listener`.
    ///
    /// # Errors
    /// A sentence.
    pub fn new(
        name: &str,
        port: Box<dyn Port>,
        listener: OwnedFd,
        seed: u64,
    ) -> Result<Self, String> {
        let failed = |what: &'static str| move |errno: Errno| format!("{what}: {errno}");
        let facts = port.facts();
        let face = Face::of(name, &facts)?;
        let filters = Filters::create(seed).map_err(failed("making the tables of filters"))?;
        let board = board::create().map_err(failed("making the board"))?;
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).map_err(failed("epoll_create"))?;
        let mut relay = Self {
            port,
            facts,
            physical: None,
            epoch: None,
            face,
            filters,
            stack: None,
            epoll,
            listener,
            daemon: None,
            deserted: None,
            counters: [0; COUNTERS.len()],
            board,
            written: Instant::now(),
            asked: Instant::now(),
            frame: vec![0; FRAME],
            turns: 0,
            tap_is_quiet: false,
            asks_departures: false,
            is_lost: false,
        };
        relay
            .watch(&relay.listener, LISTENER)
            .and_then(|()| {
                relay
                    .face
                    .tap()
                    .map_or(Ok(()), |tap| relay.watch(tap, OTHER))
            })
            .and_then(|()| relay.watch_port())
            .map_err(failed("filling the epoll set"))?;
        Ok(relay)
    }

    /// The same with rules at the physical function of the port's, or why there are none.
    #[must_use]
    pub fn with_physical(self, rules: Option<Result<PhysicalRules, String>>) -> Self {
        Self {
            physical: rules,
            ..self
        }
    }

    /// Watches the port's descriptor, if it is not watched yet.
    fn watch_port(&mut self) -> Result<(), Errno> {
        let epoch = self.port.epoch();
        if self.epoch != Some(epoch)
            && let Some(fd) = self.port.wait_fd()
        {
            epoll::add(&self.epoll, fd, EventData::new_u64(OTHER), EventFlags::IN)?;
            self.epoch = Some(epoch);
        }
        Ok(())
    }

    fn watch(&self, fd: impl AsFd, as_: u64) -> Result<(), Errno> {
        epoll::add(&self.epoll, fd, EventData::new_u64(as_), EventFlags::IN)
    }

    /// Relays until it is told to end, nobody needs it, or the device is lost: then its face stays
    /// for the next relay.
    pub fn run(&mut self) {
        let mut busy = Instant::now();
        let mut pause = PAUSES.0;
        while !self.is_lost && !self.is_deserted() {
            self.turns = self.turns.wrapping_add(1);
            let is_over = if self.turn() > 0 {
                busy = Instant::now();
                pause = PAUSES.0;
                self.turns.is_multiple_of(CONTROL_TURNS) && self.attend()
            } else if busy.elapsed() < SPIN {
                std::hint::spin_loop();
                false
            } else if self.port.wait_fd().is_some() {
                self.sleep(LONGEST)
            } else {
                let length = pause;
                pause = (pause * 2).min(PAUSES.1);
                self.sleep(length)
            };
            if is_over {
                break;
            }
        }
        if let Some(tap) = self.face.tap().filter(|_| !self.is_lost) {
            tap.end();
        }
    }

    /// Whether nobody has needed it for a while.
    fn is_deserted(&mut self) -> bool {
        if self.daemon.is_some() || self.stack.is_some() {
            self.deserted = None;
            return false;
        }
        let since = *self.deserted.get_or_insert_with(Instant::now);
        since.elapsed() >= PATIENCE
    }

    /// Moves what there is; how many frames. (For [`Self::run`], and for whoever counts.)
    pub fn turn(&mut self) -> usize {
        let is_in_place = self
            .stack
            .as_ref()
            .is_some_and(|stack| stack.hands.is_some());
        if is_in_place {
            return self.turn_in_place() + self.turn_of_kernel();
        }
        let mut frames = self.receive();
        if self.asks_departures {
            self.tell_departures();
        }
        frames += self.transmit();
        frames + self.turn_of_kernel()
    }

    /// What the kernel sends, looked for now and then while there is nothing.
    #[inline]
    fn turn_of_kernel(&mut self) -> usize {
        if self.tap_is_quiet && !self.turns.is_multiple_of(TAP_TURNS) {
            return 0;
        }
        let taken = self.exceptions();
        self.tap_is_quiet = taken == 0;
        taken
    }

    /// One burst of the port: to the stack what its filters match, to the kernel all else.
    fn receive(&mut self) -> usize {
        let Self {
            port,
            face,
            filters,
            stack,
            counters,
            ..
        } = self;
        let (flows, mut inflow) = stack.as_mut().map(Stack::inflow).unzip();
        let frames = port.receive(&mut |frame, told| {
            let verdict = filters.steer(frame, flows);
            counters[verdict as usize] += 1;
            match &mut inflow {
                Some(inflow) if verdict == Verdict::Led => inflow.enter(frame, told),
                _ => face.give(frame),
            }
        });
        let (entered, missed) = inflow.map_or((0, 0), Inflow::end);
        if let Some(stack) = stack
            && (entered > 0 || missed > 0)
        {
            stack.rings.count_missed(missed);
            stack.ring();
        }
        frames
    }

    /// What the stack sends. (By itself: within a turn the compiler has too few registers for it.)
    #[inline(never)]
    fn transmit(&mut self) -> usize {
        let Some(stack) = &mut self.stack else {
            return 0;
        };
        let (port, memory) = (&mut self.port, &*stack.memory);
        let mut done = stack.rings.completion.enter();
        let most = BURST.min(done.room()).min(port.room());
        for slot in stack.rings.tx.take(most) {
            let bytes = memory.place(slot.chunk, slot.offset, slot.len);
            if let Some(bytes) = bytes.filter(|_| slot.len >= SHORTEST) {
                if slot.flags == 0 {
                    send_patiently(&mut **port, bytes, slot.len);
                } else {
                    send_asked(&mut **port, bytes, slot.len, slot.flags);
                    self.asks_departures = true;
                }
            }
            done.push(slot.chunk);
        }
        let count = done.entered() as usize;
        drop(done);
        if count > 0 {
            port.flush();
        }
        count
    }

    /// Tells the stack when those of its frames have left that ask for it. What it has no room for
    /// is not told.
    #[cold]
    fn tell_departures(&mut self) {
        let departed = self.port.departed();
        if let Some(stack) = &mut self.stack
            && let Some(ring) = &mut stack.rings.departures
            && ring.produce(departed.into_iter()) > 0
        {
            stack.ring();
        }
    }

    /// What the kernel sends.
    fn exceptions(&mut self) -> usize {
        let Some(tap) = self.face.tap() else {
            return 0;
        };
        let mut count = 0;
        while count < BURST
            && let Some(frame) = tap.read(&mut self.frame)
        {
            send_patiently(&mut *self.port, frame.as_ptr(), frame.len() as u32);
            count += 1;
        }
        if count > 0 {
            self.port.flush();
        }
        count
    }

    /// Looks after the daemon and the board while there is work; whether the relay is to end.
    pub fn attend(&mut self) -> bool {
        self.now_and_then();
        self.wait(Duration::ZERO)
    }

    /// Asks for the device; once a second writes down what was counted, and without a daemon finds
    /// out whether the stack is there.
    fn now_and_then(&mut self) {
        if self.asked.elapsed() < ASKING {
            return;
        }
        self.asked = Instant::now();
        self.is_lost = self.port.is_lost();
        if self.written.elapsed() < LONGEST {
            return;
        }
        self.written = self.asked;
        if self.daemon.is_none() {
            let stack = self.stack.as_mut();
            if stack.is_some_and(|stack| !stack.is_there()) {
                self.leave_stack();
            }
        }
        let led = COUNTERS.iter().zip(self.counters);
        let steering = led.map(|((name, _), value)| ((*name).to_owned(), value));
        board::write(&self.board, steering.chain(self.port.statistics()));
        self.follow_rules();
    }

    /// Has the rules of a port that is not bifurcated follow the tables, which decide without them:
    /// so nobody waits for that.
    fn follow_rules(&mut self) {
        let has_rules = self.facts.no_rules.is_none() || matches!(self.physical, Some(Ok(_)));
        if self.facts.is_bifurcated || !has_rules {
            return;
        }
        let led = self.stack.as_ref().map(|_| self.filters.of_card());
        // What the port does not take, the tables match.
        let _ = self.lead(&led.into_iter().flatten().collect());
    }

    /// Makes these the rules of the port, and of its physical function.
    fn lead(&mut self, wanted: &BTreeSet<CardFilter>) -> Result<(), String> {
        if let Some(Ok(rules)) = &mut self.physical {
            rules.follow(wanted);
        }
        match self.facts.no_rules {
            None => self.port.lead(wanted),
            Some(_) => Ok(()),
        }
    }

    /// Sleeps until there is work or for so long; whether the relay is to end.
    fn sleep(&mut self, most: Duration) -> bool {
        // Frames of the kernel may have come since the last look.
        self.tap_is_quiet = false;
        self.now_and_then();
        let hands = self.stack.as_ref().and_then(|stack| stack.hands.as_ref());
        let is_sending = hands.is_some_and(|hands| hands.sending > 0);
        if self.port.flush() > 0 || is_sending {
            return self.wait(PAUSES.0);
        }
        if let Some(stack) = &self.stack
            && !stack.rings.fall_asleep()
        {
            if self.port.room() > 0 {
                return false;
            }
            // What the stack sends waits for the card: a little, and the daemon is heard meanwhile.
            return self.wait(PAUSES.0);
        }
        // A port without a descriptor to wait on now is looked at again soon.
        let may_sleep = self.watch_port().is_ok() && self.port.prime();
        let is_over = self.wait(if may_sleep { most } else { PAUSES.1.min(most) });
        if let Some(stack) = &self.stack {
            stack.rings.wake_up();
        }
        is_over
    }

    /// Waits for an event and answers it; whether the relay is to end.
    fn wait(&mut self, most: Duration) -> bool {
        let mut events = Vec::with_capacity(8);
        let buffer = rustix::buffer::spare_capacity(&mut events);
        if epoll::wait(&self.epoll, buffer, Some(&timespec(most))).is_err() {
            return false;
        }
        for event in events {
            let is_over = match event.data.u64() {
                LISTENER => self.greet(),
                DAEMON => self.obey(),
                BELL => self.bell_rang(),
                _ => false,
            };
            if is_over {
                return true;
            }
        }
        false
    }

    /// A program has woken us, or asks for a bell that it has missed.
    fn bell_rang(&mut self) -> bool {
        if let Some(stack) = &self.stack {
            let mut nothing = [0_u8; 1];
            while recv(&stack.bell, &mut nothing[..], RecvFlags::DONTWAIT).is_ok() {}
            if stack.rings.has_news() {
                stack.ring();
            }
        }
        false
    }

    /// Has the card lead what the daemon's tables lead, and tells it how that went.
    fn follow_filters(&mut self, number: u32) {
        let wanted = self.filters.of_card().collect();
        let answer = Message::new(Kind::Steered);
        let answer = match self.lead(&wanted) {
            Ok(()) => answer,
            Err(words) => answer.with_text(&words),
        };
        if let Some(daemon) = &self.daemon {
            // A daemon that is gone wants no answer.
            let _ = Message { number, ..answer }.send(daemon, &[]);
        }
    }

    /// Tells the daemon which filters the card has.
    fn list_filters(&mut self, number: u32) {
        self.follow_rules();
        let answer = Message {
            number,
            ..Message::new(Kind::Listed)
        };
        let mut filters = self.port.in_card();
        if let Some(Ok(rules)) = &self.physical {
            filters.extend(rules.in_card());
        }
        if let (Some(daemon), Ok(roster)) = (&self.daemon, roster::write(&filters)) {
            // A daemon that is gone wants no answer.
            let _ = answer.send(daemon, &[roster.as_fd()]);
        }
    }

    /// A daemon connects: the last one counts.
    fn greet(&mut self) -> bool {
        let Some(daemon) = accept_daemon(&self.listener) else {
            return false;
        };
        let why = self.facts.no_rules.as_deref();
        let [through, refused] = match &self.physical {
            None => ["", ""],
            Some(Ok(rules)) => [rules.interface(), ""],
            Some(Err(why)) => ["", why],
        };
        let driver = &self.facts.driver;
        let [in_place, copies] = match &self.facts.in_place {
            None => ["", ""],
            Some(Ok(())) => ["yes", ""],
            Some(Err(why)) => ["", why],
        };
        let text = format!(
            "{driver}\0{}\0{through}\0{refused}\0{in_place}\0{copies}",
            why.unwrap_or_default()
        );
        let has_rules = !self.facts.is_bifurcated && why.is_none();
        let ready = Message {
            ifindex: self.face.ifindex(),
            mtu: u32::from(self.facts.mtu),
            mac: self.facts.mac,
            sleeps: u32::from(self.port.wait_fd().is_some()),
            is_bifurcated: u32::from(self.facts.is_bifurcated),
            has_rules: has_rules.into(),
            rx_checksums: u32::from(self.facts.offloads.rx_checksums),
            tx_checksums: u32::from(self.facts.offloads.tx_checksums),
            stamps_sent: self.facts.stamps_sent.into(),
            ..Message::new(Kind::Ready).with_text(&text)
        };
        let mut fds = self.filters.fds().to_vec();
        fds.push(self.board.as_fd());
        fds.extend(self.stack.as_ref().map(|stack| stack.rings_fd.as_fd()));
        if ready.send(&daemon, &fds).is_ok() && self.watch(&daemon, DAEMON).is_ok() {
            self.daemon = Some(daemon);
            // Who sees it up asks the daemon after it has been told. (Up it is, if this fails.)
            if let Some(tap) = self.face.tap() {
                let _ = tap.bring_up();
            }
        }
        false
    }

    /// Has the port use the memory of a stack that offers it. If it cannot, frames are copied.
    fn adopt_memory(&mut self) {
        let stack = self.stack.as_mut();
        if let Some(stack) = stack.filter(|stack| stack.rings.shown.is_some())
            && let Some(port) = self.port.in_place()
            && port.adopt(Rc::clone(&stack.memory), HEADROOM).is_ok()
        {
            stack.hands = Some(Hands::new(&stack.memory));
            stack.rings.say_in_place();
        }
    }

    /// No stack has the port any more.
    fn leave_stack(&mut self) {
        let was_in_place = self.stack.take().is_some_and(|stack| stack.hands.is_some());
        if was_in_place && let Some(port) = self.port.in_place() {
            port.disown();
        }
    }

    /// Does what the daemon says; whether that is to end.
    fn obey(&mut self) -> bool {
        let Some(daemon) = &self.daemon else {
            return false;
        };
        match Message::receive(daemon) {
            Err(Errno::AGAIN) => {}
            Err(_) => self.daemon = None,
            Ok((message, fds)) => match message.kind() {
                Some(Kind::Attach) => {
                    self.leave_stack();
                    self.stack = Stack::map(&message, fds);
                    self.adopt_memory();
                    if let Some(stack) = &self.stack {
                        // Without it the stack's doorbell waits for the end of a sleep.
                        let _ = self.watch(&stack.bell, BELL);
                    }
                }
                Some(Kind::Detach) => {
                    self.leave_stack();
                    // What no stack has is the kernel's: no filter fails to go.
                    let _ = self.port.lead(&BTreeSet::new());
                    if let Some(Ok(rules)) = &mut self.physical {
                        rules.clear();
                    }
                }
                Some(Kind::End) => return true,
                Some(Kind::Steer) => self.follow_filters(message.number),
                Some(Kind::List) => self.list_filters(message.number),
                Some(Kind::Ready | Kind::Failed | Kind::Steered | Kind::Listed) | None => {}
            },
        }
        false
    }
}

impl Stack {
    fn map(message: &Message, fds: Vec<OwnedFd>) -> Option<Self> {
        let [packets, flows, rings_fd, bell] = <[_; 4]>::try_from(fds).ok()?;
        Some(Self {
            memory: Rc::new(Memory::map(packets.as_fd(), message.chunk_size).ok()?),
            hands: None,
            flows: FlowTable::map(&flows).ok()?,
            rings: Rings::map(rings_fd.as_fd(), message.entries).ok()?,
            rings_fd,
            bell,
            doubts: 0,
        })
    }

    /// Its table, and its way in for a burst.
    fn inflow(&mut self) -> (&FlowTable, Inflow<'_>) {
        let inflow = Inflow {
            memory: &self.memory,
            fill: self.rings.fill.take(usize::MAX),
            rx: self.rings.rx.enter(),
            missed: 0,
        };
        (&self.flows, inflow)
    }

    /// Whether somebody has the stack's end. To be asked once a second.
    ///
    /// Only a datagram finds that out. While one waits unread there is somebody; when none does
    /// and the word says so, it was taken a moment ago and the word follows, or it has gone with
    /// its end: only what stays so is sent for.
    fn is_there(&mut self) -> bool {
        if !self.rings.is_rung() {
            self.doubts = 0;
            return self.ring();
        }
        let is_in_doubt = !is_unread(&self.bell);
        self.doubts = if is_in_doubt { self.doubts + 1 } else { 0 };
        if self.doubts < DOUBTS {
            return true;
        }
        self.doubts = 0;
        self.rings.take_bell();
        self.ring()
    }

    /// Makes the stack's end readable, unless it is already; whether there is one that hears it.
    pub(super) fn ring(&self) -> bool {
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        !self.rings.must_ring() || send(&self.bell, &[], flags) != Err(Errno::CONNREFUSED)
    }
}

/// Frames of a burst on their way to the stack, which sees them when it ends.
#[derive(Debug)]
pub(super) struct Inflow<'a> {
    pub(super) memory: &'a Memory,
    pub(super) fill: Taking<'a, u32>,
    pub(super) rx: Entering<'a, Slot>,
    pub(super) missed: u32,
}

impl Inflow<'_> {
    /// Copies a frame into the next free chunk. What finds none, or no room, is counted, as is a
    /// segment that is too long.
    #[inline]
    pub(super) fn enter(&mut self, frame: &[u8], told: Told) {
        if self.place(frame, told).is_none() {
            self.missed += 1;
        }
    }

    fn place(&mut self, frame: &[u8], told: Told) -> Option<()> {
        if self.rx.room() == 0 || !self.memory.holds(frame) {
            return None;
        }
        let chunk = self.fill.next()?;
        let offset = self.memory.store(chunk, frame, told.stamp)?;
        let flags = if told.is_checksum_good {
            CHECKSUM_GOOD
        } else {
            0
        };
        let len = frame.len() as u32;
        self.rx.push(Slot {
            chunk,
            offset,
            len,
            flags,
        });
        Some(())
    }

    /// Enters a frame that stays in its chunk; whether there was room.
    #[inline]
    pub(super) fn keep(&mut self, frame: Lent, chunk: u32) -> bool {
        let Lent {
            bytes,
            length,
            told,
            ..
        } = frame;
        let offset = self.memory.received(chunk, bytes, length);
        let flags = if told.is_checksum_good {
            CHECKSUM_GOOD
        } else {
            0
        };
        let is_kept = offset.is_some_and(|offset| {
            self.rx.push(Slot {
                chunk,
                offset,
                len: length,
                flags,
            })
        });
        self.missed += u32::from(!is_kept);
        is_kept
    }

    /// How many were entered, and how many were not.
    pub(super) fn end(self) -> (u32, u32) {
        (self.rx.entered(), self.missed)
    }
}

/// Has the port take a frame; one for which there is no room for long is lost.
#[inline]
pub(super) fn send_patiently(port: &mut dyn Port, bytes: *const u8, length: u32) {
    for _ in 0..SEND_TRIES {
        #[expect(
            unsafe_code,
            reason = "UNSAFETY: passes bytes on that others may change"
        )]
        // SAFETY: the callers' bytes are mapped: a frame of the kernel, or checked by `Memory`.
        let taken = unsafe { port.send(bytes, length) };
        if taken {
            return;
        }
        port.flush();
    }
}

/// The same with the number by which its departure is told.
#[cold]
fn send_asked(port: &mut dyn Port, bytes: *const u8, length: u32, number: u32) {
    for _ in 0..SEND_TRIES {
        #[expect(
            unsafe_code,
            reason = "UNSAFETY: passes bytes on that others may change"
        )]
        // SAFETY: as in `send_patiently`.
        let taken = unsafe { port.send_stamped(bytes, length, number) };
        if taken {
            return;
        }
        port.flush();
    }
}

pub(super) fn timespec(duration: Duration) -> Timespec {
    Timespec {
        tv_sec: duration.as_secs() as i64,
        tv_nsec: i64::from(duration.subsec_nanos()),
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::BorrowedFd;
    use std::sync::{Arc, Mutex};

    use rustix::fs::{MemfdFlags, SealFlags};

    use super::super::control::claim;
    use super::super::nic::{Answer, Link, OpenQueue, RelayNic};
    use super::super::physical::tests::FakePhysical;
    use super::super::port::{InCard, Offloads};
    use super::*;
    use crate::af_xdp::{FilterKey, Listener};

    type Filters = BTreeSet<CardFilter>;

    /// A port in software that takes rules, or not, and notes what it is told: a double.
    #[derive(Debug)]
    struct FakePort {
        no_rules: Option<String>,
        told: Arc<Mutex<Vec<Filters>>>,
    }

    impl Port for FakePort {
        fn facts(&self) -> Facts {
            Facts {
                stamps_sent: false,
                mac: [2, 0x18, 0, 0, 0, 1],
                mtu: 1500,
                driver: "fake".to_owned(),
                // Else the relay makes a device; the tests take it back.
                is_bifurcated: true,
                in_place: None,
                offloads: Offloads::default(),
                no_rules: self.no_rules.clone(),
            }
        }

        fn receive(&mut self, _: &mut dyn FnMut(&[u8], Told)) -> usize {
            0
        }

        #[expect(unsafe_code, reason = "UNSAFETY: the trait's; nothing is read here")]
        unsafe fn send(&mut self, _: *const u8, _: u32) -> bool {
            true
        }

        fn flush(&mut self) -> u32 {
            0
        }

        fn statistics(&self) -> Vec<(String, u64)> {
            Vec::new()
        }

        fn wait_fd(&self) -> Option<BorrowedFd<'_>> {
            None
        }

        fn lead(&mut self, wanted: &Filters) -> Result<(), String> {
            self.told.lock().unwrap().push(wanted.clone());
            Ok(())
        }

        fn in_card(&self) -> Vec<InCard> {
            let told = self.told.lock().unwrap();
            let filter = |filter: &CardFilter| InCard {
                filter: *filter,
                queue: 0,
                cookie: [7, 0],
            };
            told.last().into_iter().flatten().map(filter).collect()
        }
    }

    /// A relay, not bifurcated, over such a port, the daemon's side, and a stack that has it.
    struct Bed {
        relay: Relay,
        link: Link,
        nic: RelayNic,
        told: Arc<Mutex<Vec<Filters>>>,
        _queue: OpenQueue,
    }

    impl Bed {
        fn new(name: &str, no_rules: Option<&str>, physical: Option<&FakePhysical>) -> Self {
            const CHUNK: u32 = 2048;
            let told = Arc::default();
            let port = FakePort {
                no_rules: no_rules.map(str::to_owned),
                told: Arc::clone(&told),
            };
            let device = format!("{name}-{}", std::process::id());
            let listener = claim(&device).unwrap();
            let relay = Relay::new("lo", Box::new(port), listener, 1).unwrap();
            let mut relay = relay.with_physical(physical.map(|it| it.open(0)));
            relay.facts.is_bifurcated = false;
            let link = Link::connect(&device).unwrap();
            relay.attend();
            let Some(Answer::Ready(nic)) = link.hear().unwrap() else {
                panic!("the relay says nothing");
            };
            let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
            let memory = rustix::fs::memfd_create("packets", flags).unwrap();
            rustix::fs::ftruncate(&memory, u64::from(CHUNK) * 64).unwrap();
            rustix::fs::fcntl_add_seals(&memory, SealFlags::SHRINK).unwrap();
            let flows = FlowTable::create(16, 1).unwrap();
            let queue = link.attach(memory.as_fd(), CHUNK, flows.as_fd(), (16, false, false));
            relay.attend();
            assert!(relay.stack.is_some());
            Self {
                relay,
                link,
                nic,
                told,
                _queue: queue.unwrap(),
            }
        }

        fn listener(port: u16) -> FilterKey {
            FilterKey::Listener(Listener::at([9; 16], port, 17))
        }

        /// What the port was told last.
        fn last(&self) -> Option<Filters> {
            self.told.lock().unwrap().last().cloned()
        }

        /// Has the relay attend until the port was told this.
        fn until(&mut self, ports: &[u16]) {
            let end = Instant::now() + Duration::from_secs(20);
            while self.last() != Some(filters(ports)) {
                assert!(Instant::now() < end, "{:?}", self.last());
                self.relay.attend();
                std::thread::yield_now();
            }
        }

        /// What the daemon gets for an answer when it asks for the filters in the card.
        fn listed(&mut self) -> Vec<InCard> {
            let number = self.link.ask_filters().unwrap();
            self.relay.attend();
            let end = Instant::now() + Duration::from_secs(20);
            self.link.filters_in_card(number, end).unwrap()
        }
    }

    fn filters(ports: &[u16]) -> Filters {
        let filter = |port: &u16| CardFilter {
            protocol: 17,
            local: ([9; 16], *port),
            remote: None,
        };
        ports.iter().map(filter).collect()
    }

    #[test]
    fn rules_follow_the_tables_by_themselves_and_before_they_are_told() {
        let mut bed = Bed::new("follow", None, None);
        bed.nic.filters.add(&Bed::listener(7), 2048).unwrap();
        bed.until(&[7]);
        bed.nic.filters.add(&Bed::listener(8), 2048).unwrap();
        // A filter that keeps its flows in the kernel wants none.
        bed.nic.filters.add(&Bed::listener(9), 0).unwrap();
        let listed = bed.listed();
        assert_eq!(bed.last(), Some(filters(&[7, 8])), "before the next second");
        assert_eq!(listed.len(), 2);
        bed.nic.filters.remove(&Bed::listener(7));
        bed.until(&[8]);
        bed.link.detach();
        bed.until(&[]);
    }

    #[test]
    fn a_port_without_rules_is_asked_for_none_and_its_physical_functions_are() {
        let card = FakePhysical::new(4);
        let mut bed = Bed::new("physical", Some("not at all"), Some(&card));
        assert_eq!(bed.nic.rules, Err("not at all".to_owned()));
        assert_eq!(bed.nic.physical, Some(Ok("eth0".to_owned())));
        bed.nic.filters.add(&Bed::listener(7), 2048).unwrap();
        let listed = bed.listed();
        assert_eq!(card.led(0), [7]);
        assert_eq!(listed[0].cookie, [0, super::super::PHYSICAL]);
        bed.link.detach();
        bed.relay.attend();
        assert_eq!(card.led(0), []);
        let mut plain = Bed::new("plain", Some("not at all"), None);
        plain.nic.filters.add(&Bed::listener(7), 2048).unwrap();
        assert_eq!((plain.listed(), plain.last()), (Vec::new(), None));
        assert_eq!(plain.nic.physical, None);
    }
}
