//! Runs a script against the kernel of this host: a network namespace with a TUN device, real
//! sockets, and the same peers. Times are real, so only the order of segments is held and that
//! none comes much too early; see `tests/tcp_scripts/kernel.txt`.

mod packet;
mod sockets;
mod system;

use super::flow::{Flow, Sent, local, remote, with_cookie};
use super::machine::flow_number;
use super::segment::{Described, compare, compare_cookie, show};
use super::source::{Source, place};
use super::words::{Outcome, Words, fit, number, span};
use bypass_stack::SocketAddress;
use sockets::Sockets;
use std::collections::{BTreeMap, VecDeque};
use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

/// How long a busy machine may take for what is due.
const PATIENCE: Duration = Duration::from_secs(2);

/// The same on a bench: longer than the kernel delays an acknowledgement (TCP_DELACK_MAX).
const BENCH_PATIENCE: Duration = Duration::from_millis(300);

/// A script under way.
struct Kernel {
    tun: File,
    is_v4: bool,
    mtu: u16,
    /// How long to wait for a segment that is due.
    patience: Duration,
    started: Instant,
    /// Time that has passed by the script's waits, for what it calls our timestamps.
    waited: Duration,
    sockets: Sockets,
    /// Numbers count from the last SYN of ours.
    each_syn: bool,
    flows: BTreeMap<u16, Flow>,
    /// Flow 0 of this script, counted from the first one of the namespace.
    first_flow: u16,
    sent: VecDeque<Sent>,
    /// The last Fast Open cookie that we have sent.
    cookie: Vec<u8>,
}

/// The settings that scripts take for granted, and what makes a kernel's run independent of the
/// host: those of `TcpDefaults::new`.
const SETTINGS: [(&str, &str); 9] = [
    ("ipv4/tcp_rmem", "4096 131072 6291456"),
    ("ipv4/tcp_wmem", "4096 16384 4194304"),
    ("ipv4/tcp_congestion_control", "reno"),
    ("ipv4/tcp_no_metrics_save", "1"),
    ("ipv4/tcp_autocorking", "0"),
    ("ipv6/conf/default/accept_dad", "0"),
    ("ipv6/conf/default/router_solicitations", "0"),
    ("ipv6/conf/all/disable_ipv6", "0"),
    ("ipv6/conf/default/addr_gen_mode", "1"),
];

/// Runs a script over IPv4 or IPv6 in a namespace of its own; the error names file and line.
pub fn run(path: &Path, is_v4: bool) -> Outcome<()> {
    let Some(source) = Source::read(path, is_v4)? else {
        return Ok(());
    };
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| run_here(path, &source, is_v4));
        thread.join().map_err(|_| format!("{path:?}: panic"))?
    })
}

/// A namespace in which one script after the other can be played.
pub struct Bench(Kernel);

/// Ports of the peer that one script of a bench may use.
const FLOWS: u16 = 2;
/// After so many scripts a bench has used up its ports.
pub const SCRIPTS: u16 = 12_000;

impl Bench {
    /// Moves this thread into a namespace of its own, without limits on answers to what is
    /// out of the window.
    pub fn new(is_v4: bool) -> Outcome<Self> {
        let mut kernel = Kernel::new(is_v4).map_err(|error| format!("no namespace: {error}"))?;
        kernel.patience = BENCH_PATIENCE;
        kernel.each_syn = true;
        set("ipv4/tcp_invalid_ratelimit", "0").map_err(|error| error.to_string())?;
        Ok(Self(kernel))
    }

    /// Plays these lines with fresh ports; the error says which line the kernel disagrees with,
    /// and how.
    pub fn play(&mut self, lines: &[String]) -> Result<(), (usize, String)> {
        self.0.restart();
        for (nth, line) in lines.iter().enumerate() {
            self.0.line(line).map_err(|error| (nth, error))?;
        }
        self.0.nothing_sent().map_err(|error| (lines.len(), error))
    }
}

/// The same, in the namespace that this thread makes.
fn run_here(path: &Path, source: &Source, is_v4: bool) -> Outcome<()> {
    let mut kernel = Kernel::new(is_v4).map_err(|error| format!("no namespace: {error}"))?;
    let mut last = 0;
    for (nth, line) in &source.lines {
        last = *nth;
        kernel
            .line(line)
            .map_err(|error| format!("{}: {line}\n    {error}", place(path, last, is_v4)))?;
    }
    kernel
        .nothing_sent()
        .map_err(|error| format!("{}: at the end\n    {error}", place(path, last, is_v4)))
}

fn set(name: &str, value: &str) -> std::io::Result<()> {
    std::fs::write(format!("/proc/sys/net/{name}"), value)
}

/// Runs `ip`.
fn ip(arguments: &str) -> std::io::Result<()> {
    let status = Command::new("ip")
        .args(arguments.split_whitespace())
        .status()?;
    if status.success() {
        Ok(())
    } else {
        Err(std::io::Error::other(format!("ip {arguments}")))
    }
}

impl Kernel {
    fn new(is_v4: bool) -> std::io::Result<Self> {
        system::new_namespace()?;
        for (name, value) in SETTINGS {
            set(name, value)?;
        }
        let tun = system::tun()?;
        if is_v4 {
            ip("addr add 198.18.0.1/24 dev tun0")?;
        } else {
            ip("addr add 2001:db8::1/64 dev tun0 nodad")?;
        }
        // Segments one by one, as our stack makes them: no super-segments that are held back.
        ip("link set tun0 gso_max_segs 1")?;
        ip("link set tun0 up")?;
        ip("link set lo up")?;
        Ok(Self {
            tun,
            is_v4,
            mtu: 1500,
            patience: PATIENCE,
            started: Instant::now(),
            waited: Duration::ZERO,
            sockets: Sockets::default(),
            each_syn: false,
            flows: BTreeMap::new(),
            first_flow: 0,
            sent: VecDeque::new(),
            cookie: Vec::new(),
        })
    }

    /// Forgets a script: its sockets are aborted, and the next one has ports of its own.
    fn restart(&mut self) {
        self.sockets.abort();
        self.collect();
        self.sent.clear();
        self.flows.clear();
        self.first_flow += FLOWS;
        self.cookie.clear();
        self.started = Instant::now();
        self.waited = Duration::ZERO;
    }

    fn local(&self) -> SocketAddress {
        local(self.is_v4)
    }

    fn remote(&self, flow: u16) -> SocketAddress {
        remote(self.first_flow + flow, self.is_v4)
    }

    fn flow(&mut self, number: u16) -> &mut Flow {
        let each_syn = self.each_syn;
        self.flows
            .entry(number)
            .or_insert_with(|| Flow::new(each_syn))
    }

    fn now(&self) -> u64 {
        self.started.elapsed().as_nanos() as u64
    }

    /// Takes what the kernel has sent so far.
    fn collect(&mut self) {
        let mut bytes = [0; 2048];
        loop {
            let len = match self.tun.read(&mut bytes) {
                Ok(len) => len,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(error) => panic!("the TUN device: {error}"),
            };
            let Some(frame) = packet::frame_of(&bytes[..len]) else {
                continue;
            };
            let mut sent = Sent::of(&frame, self.now());
            // What an earlier script has left may still send.
            let Some(flow) = sent.flow.checked_sub(self.first_flow) else {
                continue;
            };
            sent.flow = flow;
            let clock = self.waited.as_millis() as u32;
            self.flow(sent.flow).note_sent(&sent.segment, clock);
            self.sent.push_back(sent);
        }
    }

    /// Waits for a segment until then.
    fn wait_for_segment(&mut self, until: Instant) {
        loop {
            self.collect();
            let left = until.saturating_duration_since(Instant::now());
            if !self.sent.is_empty() || left.is_zero() {
                return;
            }
            sockets::wait(&self.tun, left);
        }
    }

    fn nothing_sent(&mut self) -> Outcome<()> {
        self.collect();
        match self.sent.front() {
            None => Ok(()),
            Some(sent) => {
                let base = self.flows[&sent.flow].base;
                let text = show(&sent.segment, &base);
                Err(format!("unexpected: >{} {text}", sent.flow))
            }
        }
    }

    /// Runs one line.
    fn line(&mut self, line: &str) -> Outcome<()> {
        let mut words = Words::of(line);
        let mut wait = Duration::ZERO;
        if let Some(time) = words.peek().and_then(|word| word.strip_prefix('+')) {
            wait = Duration::from_nanos(span(time)?);
            words.next();
        }
        self.waited += wait;
        let verb = words.want("action")?;
        if let Some(number) = verb.strip_prefix('>') {
            return self.expect_segment(flow_number(number)?, wait, &mut words);
        }
        if !wait.is_zero() {
            self.nothing_sent()?;
            std::thread::sleep(wait);
        }
        if verb != "repeat" {
            self.nothing_sent()?;
        }
        if let Some(number) = verb.strip_prefix('<') {
            return self.inject(flow_number(number)?, &mut words);
        }
        self.act(verb, &mut words)?;
        words.end()
    }

    fn act(&mut self, verb: &str, words: &mut Words<'_>) -> Outcome<()> {
        match verb {
            "quiet" => Ok(()),
            "mtu" => {
                self.mtu = fit(words.want("bytes")?)?;
                ip(&format!("link set tun0 mtu {}", self.mtu)).map_err(|error| error.to_string())
            }
            // Counters and edges are those of our stack, and lateness has no meaning here.
            "count" | "edges" | "late" => {
                while words.next().is_some() {}
                Ok(())
            }
            "default" => set_default(words),
            "repeat" => self.repeat(words),
            "forget" => {
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

    /// The next segment of the kernel's must be this one.
    fn expect_segment(&mut self, flow: u16, wait: Duration, words: &mut Words<'_>) -> Outcome<()> {
        let wanted = normal(Described::parse(words)?);
        let began = Instant::now();
        self.wait_for_segment(began + wait + self.patience);
        let Some(mut sent) = self.sent.pop_front() else {
            return Err("nothing was sent".to_owned());
        };
        let base = self.flows[&sent.flow].base;
        let found = format!(">{} {}", sent.flow, show(&sent.segment, &base));
        if sent.flow != flow {
            return Err(format!("wrong flow: {found}"));
        }
        if began.elapsed() < wait / 2 {
            return Err(format!(
                "at {:?} instead of {wait:?}: {found}",
                began.elapsed()
            ));
        }
        let mss = self.mtu - if self.is_v4 { 40 } else { 60 };
        // How much memory a window stands for is each stack's own affair; zero is zero.
        if wanted.window.is_some_and(|window| window != 0) && sent.segment.window != 0 {
            sent.segment.window = wanted.window.unwrap_or(0);
        }
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
        self.write(packet::packet_of(&frame))
    }

    fn write(&mut self, packet: &[u8]) -> Outcome<()> {
        self.tun
            .write_all(packet)
            .map_err(|error| format!("the TUN device: {error}"))
    }
}

/// Without what depends on the clock: our timestamps' values.
fn normal(mut wanted: Described) -> Described {
    use super::segment::Expected;
    if let Some(Expected::Value((_, echo))) = wanted.timestamps {
        wanted.timestamps = Some(Expected::Value((None, echo)));
    }
    wanted
}

fn set_default(words: &mut Words<'_>) -> Outcome<()> {
    let name = words.want("setting")?;
    let value = number(words.want("value")?)?;
    let (setting, text) = match name {
        "challenge-acks" => ("challenge_ack_limit".to_owned(), value.to_string()),
        "rmem-max" => ("rmem".to_owned(), format!("4096 131072 {value}")),
        "fastopen-pause" => (
            "fastopen_blackhole_timeout_sec".to_owned(),
            value.to_string(),
        ),
        "max-syn-backlog" => ("max_syn_backlog".to_owned(), value.to_string()),
        _ => (name.replace('-', "_"), value.to_string()),
    };
    set(&format!("ipv4/tcp_{setting}"), &text).map_err(|error| format!("{name}: {error}"))
}
