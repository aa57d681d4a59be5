//! Runs a script: a stack, a clock that only the script moves, and the peers that it plays.

use super::flow::{Flow, Sent, local, remote, with_cookie};
use super::segment::{Described, compare, compare_cookie, describe, show};
use super::sockets::Sockets;
use super::source::{Source, place};
use super::words::{Outcome, Words, comparison, fit, holds, number, span};
use crate::common::{Rig, problems};
use bypass_stack::wire::icmp::{IcmpError, Trouble};
use bypass_stack::*;
use std::collections::{BTreeMap, VecDeque};
use std::path::Path;
use zerocopy::IntoBytes;

const MS: u64 = 1_000_000;
/// Script time zero.
const START: u64 = 5_000_000 * MS;
/// How much earlier and later than said a segment may leave: the timer wheel's ticks.
const EARLY: u64 = MS;
const LATE: u64 = 3 * MS;

/// A script under way.
pub struct Machine {
    pub rig: Rig,
    pub now: u64,
    pub is_v4: bool,
    pub mtu: u16,
    pub sockets: Sockets,
    /// Numbers count from the last SYN of ours.
    pub each_syn: bool,
    flows: BTreeMap<u16, Flow>,
    sent: VecDeque<Sent>,
    /// The last Fast Open cookie that we have sent.
    cookie: Vec<u8>,
    late: u64,
    nic_stopped: bool,
    flow_balance: i64,
}

/// Runs a script over IPv4 or IPv6; the error names file and line. A script may say that it is of
/// one family only: then the other is nothing to run. Gives the names of what was counted.
pub fn run(path: &Path, is_v4: bool) -> Outcome<Vec<&'static str>> {
    let Some(Source { chunks, lines }) = Source::read(path, is_v4)? else {
        return Ok(Vec::new());
    };
    let place = |line| place(path, line, is_v4);
    let mut machine = Machine::new(is_v4, chunks);
    let mut last = 0;
    for (nth, line) in lines {
        last = nth;
        machine
            .line(&line)
            .map_err(|error| format!("{}: {line}\n    {error}", place(nth)))?;
        let found = problems(machine.rig.words.as_bytes());
        if !found.is_empty() {
            return Err(format!("{}: {line}\n    image: {found:?}", place(nth)));
        }
    }
    machine
        .finish(chunks)
        .map_err(|error| format!("{}: at the end\n    {error}", place(last)))?;
    Ok(machine.counted())
}

impl Machine {
    /// The counters and reasons for drops that are not zero.
    fn counted(&mut self) -> Vec<&'static str> {
        let stack = self.rig.stack();
        let counters = stack.counters();
        let events = Counter::ALL
            .iter()
            .filter(|which| counters.get(**which) > 0);
        let drops = DropReason::ALL
            .iter()
            .filter(|which| counters.dropped(**which) > 0);
        events
            .map(|which| which.name())
            .chain(drops.map(|which| which.name()))
            .collect()
    }

    pub fn new(is_v4: bool, chunks: u32) -> Self {
        let caps = Capacities {
            endpoints: 16,
            chunks,
            chunk_size: 2048,
        };
        Self {
            rig: Rig::new(caps),
            now: START,
            is_v4,
            mtu: 1500,
            sockets: Sockets::default(),
            each_syn: false,
            flows: BTreeMap::new(),
            sent: VecDeque::new(),
            late: LATE,
            nic_stopped: false,
            flow_balance: 0,
            cookie: Vec::new(),
        }
    }

    /// Our address; every socket of a script uses port 80.
    pub fn local(&self) -> SocketAddress {
        local(self.is_v4)
    }

    /// The address of a numbered peer.
    pub fn remote(&self, flow: u16) -> SocketAddress {
        remote(flow, self.is_v4)
    }

    fn mss_of_mtu(&self) -> u16 {
        self.mtu - if self.is_v4 { 40 } else { 60 }
    }

    /// Does something with the stack, and what a holder of its lock does before it lets go.
    pub fn with<T>(
        &mut self,
        act: impl FnOnce(&mut Stack<'_>, &mut crate::common::Packets, Instant) -> T,
    ) -> T {
        let now = Instant(self.now);
        let (mut stack, packets) = self.rig.both();
        let result = act(&mut stack, packets, now);
        stack.flush(packets, now);
        self.collect();
        result
    }

    /// Takes what waits to be sent off the stack.
    fn collect(&mut self) {
        {
            let mut stack = self.rig.stack();
            while let Some(change) = stack.take_flow_change() {
                self.flow_balance += if change.begins { 1 } else { -1 };
            }
            while stack.take_ended().is_some() {}
        }
        if self.nic_stopped {
            return;
        }
        while let Some(frame) = self.rig.sent(0) {
            assert!(frame.len() <= usize::from(self.mtu) + 14, "frame too long");
            let sent = Sent::of(&frame, self.now);
            let clock = ((self.now - START) / MS) as u32;
            self.flow(sent.flow).note_sent(&sent.segment, clock);
            self.sent.push_back(sent);
        }
    }

    pub fn flow(&mut self, number: u16) -> &mut Flow {
        let each_syn = self.each_syn;
        self.flows
            .entry(number)
            .or_insert_with(|| Flow::new(each_syn))
    }

    /// Lets time pass up to `until`, or to the first segment of ours.
    pub fn pass(&mut self, until: u64) {
        while self.sent.is_empty() {
            let next = self.rig.stack().next_deadline().map(|at| at.0);
            let Some(next) = next.filter(|&next| next <= until) else {
                break;
            };
            self.now = self.now.max(next);
            self.with(|stack, packets, now| stack.run_timers(packets, now));
        }
        if self.sent.is_empty() {
            self.now = self.now.max(until);
        }
    }

    /// The time in the words of a script.
    fn clock(&self, at: u64) -> String {
        format!("{:.3}ms", (at - START) as f64 / 1e6)
    }

    /// The next segment of ours that no line has expected: the flow, what it says, when it left.
    pub fn take_sent(&mut self) -> Option<(u16, String, u64)> {
        let sent = self.sent.pop_front()?;
        let text = describe(&sent.segment, &self.flows[&sent.flow].base);
        Some((sent.flow, text, sent.at))
    }

    fn nothing_sent(&self) -> Outcome<()> {
        match self.sent.front() {
            None => Ok(()),
            Some(sent) => {
                let base = self.flows[&sent.flow].base;
                Err(format!(
                    "unexpected at {}: >{} {}",
                    self.clock(sent.at),
                    sent.flow,
                    show(&sent.segment, &base)
                ))
            }
        }
    }

    /// Runs one line.
    pub fn line(&mut self, line: &str) -> Outcome<()> {
        let mut words = Words::of(line);
        let mut wait = None;
        if let Some(time) = words.peek().and_then(|word| word.strip_prefix('+')) {
            wait = Some(span(time)?);
            words.next();
        }
        let verb = words.want("action")?;
        if let Some(number) = verb.strip_prefix('>') {
            return self.expect_segment(flow_number(number)?, wait, &mut words);
        }
        if let Some(wait) = wait {
            self.nothing_sent()?;
            self.pass(self.now + wait);
        }
        if let Some(number) = verb.strip_prefix('<') {
            self.nothing_sent()?;
            return self.inject(flow_number(number)?, &mut words);
        }
        if verb != "nic" && verb != "repeat" {
            self.nothing_sent()?;
        }
        self.act(verb, &mut words)?;
        words.end()
    }

    fn act(&mut self, verb: &str, words: &mut Words<'_>) -> Outcome<()> {
        match verb {
            "quiet" => Ok(()),
            "mtu" => {
                self.mtu = fit(words.want("bytes")?)?;
                let mtu = self.mtu;
                self.rig.stack().queue_pairs_mut()[0].mtu = mtu;
                Ok(())
            }
            "late" => {
                self.late = span(words.want("time")?)?;
                Ok(())
            }
            "nic" => {
                self.nic_stopped = match words.want("stop or go")? {
                    "stop" => true,
                    "go" => false,
                    word => return Err(format!("neither stop nor go: {word}")),
                };
                self.collect();
                Ok(())
            }
            "default" => self.set_default(words),
            "count" => self.count(words),
            "repeat" => self.repeat(words),
            "forget" => {
                // A new incarnation of the flow: the peer and we start with fresh numbers.
                let number = flow_number(words.next().unwrap_or(""))?;
                let base = self.flow(number).base.peers;
                self.flows.remove(&number);
                self.flow(number).base.peers = base;
                Ok(())
            }
            _ => self.call(verb, words),
        }
    }

    /// `repeat N LINE`.
    fn repeat(&mut self, words: &mut Words<'_>) -> Outcome<()> {
        let times: u32 = fit(words.want("count")?)?;
        let mut rest = Vec::new();
        while let Some(word) = words.next() {
            rest.push(word);
        }
        let line = rest.join(" ");
        for nth in 0..times {
            self.line(&line)
                .map_err(|error| format!("time {}: {error}", nth + 1))?;
        }
        Ok(())
    }

    fn set_default(&mut self, words: &mut Words<'_>) -> Outcome<()> {
        let name = words.want("setting")?;
        let value = number(words.want("value")?)?;
        let mut stack = self.rig.stack();
        let defaults = stack.tcp_defaults_mut();
        match name {
            "ecn" => defaults.ecn = value as u8,
            "timestamps" => defaults.timestamps = value as u8,
            "sack" => defaults.sack = value as u8,
            "window-scaling" => defaults.window_scaling = value as u8,
            "syn-retries" => defaults.syn_retries = value as u8,
            "syn-linear-timeouts" => defaults.syn_linear_timeouts = value as u8,
            "synack-retries" => defaults.synack_retries = value as u8,
            "retries2" => defaults.retries2 = value as u8,
            "orphan-retries" => defaults.orphan_retries = value as u8,
            "fin-timeout" => defaults.fin_timeout_s = value as u32,
            "slow-start-after-idle" => defaults.slow_start_after_idle = value as u8,
            "moderate-rcvbuf" => defaults.moderate_rcvbuf = value as u8,
            "rfc1337" => defaults.rfc1337 = value as u8,
            "abort-on-overflow" => defaults.abort_on_overflow = value as u8,
            "max-syn-backlog" => defaults.max_syn_backlog = value as u32,
            "fastopen" => defaults.fast_open = value as u32,
            "fastopen-pause" => defaults.fast_open_pause_s = value as u32,
            "syncookies" => defaults.syncookies = value as u8,
            "invalid-ratelimit" => defaults.invalid_ratelimit_ms = value as u16,
            "challenge-acks" => defaults.challenge_acks = value as u16,
            "mtu-probing" => defaults.mtu_probing = value as u8,
            "base-mss" => defaults.base_mss = value as u32,
            "mtu-probe-floor" => defaults.mtu_probe_floor = value as u32,
            "rmem-max" => defaults.rmem[2] = value as u32,
            _ => return Err(format!("no such setting: {name}")),
        }
        Ok(())
    }

    /// `count NAME=N`: a counter or, behind `drop:`, a reason for a drop.
    fn count(&mut self, words: &mut Words<'_>) -> Outcome<()> {
        while let Some(word) = words.next() {
            let (name, sign, value) = comparison(word)?;
            let stack = self.rig.stack();
            let counters = stack.counters();
            let found = if let Some(name) = name.strip_prefix("drop:") {
                DropReason::ALL
                    .iter()
                    .find(|reason| reason.name() == name)
                    .map(|reason| counters.dropped(*reason))
            } else {
                Counter::ALL
                    .iter()
                    .find(|counter| counter.name() == name)
                    .map(|counter| counters.get(*counter))
            };
            let found = found.ok_or_else(|| format!("no such counter: {name}"))?;
            if !holds(found, sign, number(value)?) {
                return Err(format!("{name} is {found}, expected {sign}{value}"));
            }
        }
        Ok(())
    }

    /// An ICMP error about a segment of ours on flow 1 with this relative number.
    pub fn icmp(&mut self, seq: u32, trouble: Trouble) {
        let error = IcmpError {
            local: self.local(),
            remote: self.remote(1),
            protocol: 6,
            seq: self.our_seq(seq),
            trouble,
        };
        self.with(|stack, packets, now| stack.tcp_icmp(packets, &error, now));
    }

    /// A sequence number of ours on flow 1 as it is on the wire.
    pub fn our_seq(&mut self, relative: u32) -> u32 {
        self.flow(1).base.ours.wrapping_add(relative)
    }

    /// The next segment of ours must be this one, at this time.
    fn expect_segment(
        &mut self,
        flow: u16,
        wait: Option<u64>,
        words: &mut Words<'_>,
    ) -> Outcome<()> {
        let wanted = Described::parse(words)?;
        let due = self.now + wait.unwrap_or(0);
        let (early, late) = if wait.is_some_and(|wait| wait > 0) {
            (EARLY, self.late)
        } else {
            (0, 0)
        };
        if self.sent.is_empty() {
            self.pass(due + late);
        }
        let Some(sent) = self.sent.pop_front() else {
            return Err(format!("nothing was sent up to {}", self.clock(self.now)));
        };
        let base = self.flows[&sent.flow].base;
        let found = format!(">{} {}", sent.flow, show(&sent.segment, &base));
        if sent.flow != flow {
            return Err(format!("wrong flow: {found}"));
        }
        if sent.at + early < due || sent.at > due + late {
            return Err(format!(
                "at {} instead of {}: {found}",
                self.clock(sent.at),
                self.clock(due)
            ));
        }
        let mss = self.mss_of_mtu();
        if let Some(option) = &sent.fast_open {
            self.cookie = option.cookie().to_vec();
        }
        compare(&sent.segment, &wanted, &base, mss)
            .and_then(|()| compare_cookie(sent.fast_open.as_ref(), &wanted))
            .map_err(|wrong| format!("{wrong} differ in: {found}"))?;
        if sent.bytes_are_ours(&base) {
            Ok(())
        } else {
            Err(format!("wrong bytes in: {found}"))
        }
    }

    /// The peer sends a segment.
    fn inject(&mut self, number: u16, words: &mut Words<'_>) -> Outcome<()> {
        let said = with_cookie(Described::parse(words)?, &self.cookie);
        let (remote, local) = (self.remote(number), self.local());
        let frame = self.flow(number).injected(&said, remote, local);
        self.deliver(&frame, said.batch);
        Ok(())
    }

    fn deliver(&mut self, frame: &[u8], batch: bool) {
        let now = Instant(self.now);
        let (mut stack, packets) = self.rig.both();
        let Some(chunk) = stack.take_chunk() else {
            return;
        };
        packets.chunk_mut(chunk)[192..192 + frame.len()].copy_from_slice(frame);
        let frame = RxFrame {
            chunk,
            offset: 192,
            len: frame.len() as u32,
            queue_pair: 0,
            checksum: RxChecksum::Unknown,
            timestamp_ns: 0,
        };
        stack.handle_frame(packets, frame, now);
        if !batch {
            stack.flush(packets, now);
        }
        self.collect();
    }

    /// Whatever the script leaves must go away: chunks, flows, timers.
    pub fn finish(&mut self, chunks: u32) -> Outcome<()> {
        self.nothing_sent()?;
        self.nic_stopped = false;
        for id in self.sockets.all() {
            let process = self.rig.process;
            self.with(|stack, packets, now| {
                stack.tcp_abort(packets, id, now);
                stack.tcp_close(packets, id, process, now);
            });
        }
        let end = self.now + 2_000_000 * MS;
        while self.now < end {
            self.sent.clear();
            self.pass(end);
        }
        let stack = self.rig.stack();
        if let Some(at) = stack.next_deadline() {
            return Err(format!("a timer is left: {}", self.clock(at.0)));
        }
        let free = stack.free_chunks();
        if free != chunks {
            return Err(format!("{} chunks were lost", chunks - free));
        }
        let opened = stack.counters().get(Counter::EndpointsOpened);
        let destroyed = stack.counters().get(Counter::EndpointsDestroyed);
        if opened != destroyed {
            return Err(format!("{} endpoints are left", opened - destroyed));
        }
        if self.flow_balance != 0 {
            return Err(format!("{} flows were not ended", self.flow_balance));
        }
        let corrupt = self.rig.stack().counters().get(Counter::CorruptList);
        if corrupt != 0 {
            return Err(format!("corrupt-list is {corrupt}"));
        }
        Ok(())
    }
}

/// The number behind `<` or `>`; none is flow 1.
pub fn flow_number(word: &str) -> Outcome<u16> {
    if word.is_empty() { Ok(1) } else { fit(word) }
}
