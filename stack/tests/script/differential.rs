//! Random scenarios for our stack and for the host's kernel: ours runs first and what it does is
//! written down as a packet script (`recorder`), which the kernel is then played (`kernel`). A
//! difference is cut down to the actions that it needs.

use super::kernel::{Bench, SCRIPTS};
use super::known;
use super::recorder::{Recorder, record};
use super::words::Outcome;
use crate::common::Random;
use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// Namespaces at work, half of them for each family.
const BENCHES: u64 = 24;

/// How often the kernel may disagree by chance: its timers run in real time, and on a machine that
/// stands still for a moment they come before the next line.
const TRIES: usize = 6;
/// As long as this it may do so oftener: a loss probe is due after two ticks.
const TRYING: Duration = Duration::from_secs(4);

/// What came of some scenarios.
#[derive(Debug, Default)]
pub struct Report {
    /// Those in which the kernel does all that our stack does.
    pub agreed: u64,
    /// Those that end with a known difference, by its name.
    pub known: BTreeMap<&'static str, u64>,
    /// What differs otherwise, as scripts of as few lines as can be.
    pub found: Vec<String>,
}

/// How one scenario ended.
enum End {
    Agreed,
    Known(&'static str),
    Found(String),
}

impl Report {
    fn add(&mut self, end: End) {
        match end {
            End::Agreed => self.agreed += 1,
            End::Known(name) => *self.known.entry(name).or_default() += 1,
            End::Found(script) => self.found.push(script),
        }
    }
}

/// Runs these scenarios.
pub fn run(seeds: std::ops::Range<u64>) -> Report {
    // Even ones are of IPv4, odd ones of IPv6.
    let next = [0, 1].map(|family| AtomicU64::new(seeds.start + (seeds.start + family) % 2));
    let report = Mutex::new(Report::default());
    while next
        .iter()
        .any(|next| next.load(Ordering::Relaxed) < seeds.end)
    {
        std::thread::scope(|scope| {
            for nth in 0..BENCHES {
                let (next, report, seeds) = (&next, &report, &seeds);
                scope.spawn(move || {
                    let is_v4 = nth % 2 == 0;
                    let mut bench = Bench::new(is_v4).expect("a namespace");
                    for _ in 0..SCRIPTS / 4 {
                        let seed = next[(nth % 2) as usize].fetch_add(2, Ordering::Relaxed);
                        if seed >= seeds.end {
                            return;
                        }
                        let end = scenario(&mut bench, seed, is_v4);
                        report.lock().unwrap().add(end);
                    }
                });
            }
        });
    }
    report.into_inner().unwrap()
}

/// One scenario; a difference is cut down.
fn scenario(bench: &mut Bench, seed: u64, is_v4: bool) -> End {
    let family = if is_v4 { 4 } else { 6 };
    let fault = |error: String| End::Found(format!("# seed {seed}\nfamily {family}\n# {error}"));
    let (mut actions, script) = match generate(seed, is_v4) {
        Ok(made) => made,
        Err(error) => return fault(error),
    };
    let mut last = match difference(bench, &script, TRIES) {
        End::Found(difference) => difference,
        end => return end,
    };
    let mut nth = actions.len();
    while nth > 0 {
        nth -= 1;
        let mut fewer = actions.clone();
        fewer.remove(nth);
        let Ok(script) = record(&fewer, is_v4) else {
            continue;
        };
        if let End::Found(found) = difference(bench, &script, 2) {
            (actions, last) = (fewer, found);
            nth = nth.min(actions.len());
        }
    }
    fault(last)
}

/// The script up to the line that the kernel disagrees with, if it does every time.
fn difference(bench: &mut Bench, script: &[String], tries: usize) -> End {
    let began = Instant::now();
    let mut tried = 0;
    let (nth, error) = loop {
        let Err((nth, error)) = bench.play(script) else {
            return End::Agreed;
        };
        tried += 1;
        if tried < tries {
            continue;
        }
        if let Some(name) = known::kind(script, nth, &error) {
            return End::Known(name);
        }
        if tries < TRIES || began.elapsed() > TRYING {
            break (nth, error);
        }
    };
    let end = script.len().min(nth + 1);
    let lines = script[..end].iter().enumerate();
    // What program and kernel agree about before is not needed to see it.
    let kept = lines.filter(|(at, line)| *at == nth || !line.starts_with("expect "));
    let kept: Vec<_> = kept.map(|(_, line)| line.as_str()).collect();
    End::Found(format!("kernel: {error}\n{}", kept.join("\n")))
}

/// What a seed stands for: actions, and the script of what our stack does with them.
fn generate(seed: u64, is_v4: bool) -> Outcome<(Vec<String>, Vec<String>)> {
    let mut random = Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1);
    random.next();
    let mut scenario = Scenario {
        random,
        recorder: Recorder::new(is_v4),
        actions: Vec::new(),
        timestamps: false,
        waits: 2,
    };
    scenario.handshake()?;
    for _ in 0..4 + scenario.random.below(12) {
        let action = scenario.next();
        scenario.act(action)?;
    }
    scenario.act("+20ms quiet".to_owned())?;
    let Scenario {
        recorder, actions, ..
    } = scenario;
    Ok((actions, recorder.finish()?))
}

/// A scenario that grows as our stack goes through it.
struct Scenario {
    random: Random,
    recorder: Recorder,
    actions: Vec<String>,
    /// The peer has timestamps.
    timestamps: bool,
    /// How often time may still pass: never enough for a retransmission.
    waits: u32,
}

impl Scenario {
    fn act(&mut self, action: String) -> Outcome<()> {
        let done = self.recorder.act(&action);
        self.actions.push(action);
        done.map_err(|error| format!("{error}\n{}", self.actions.join("\n")))
    }

    fn pick<'a>(&mut self, of: &[&'a str]) -> &'a str {
        of[self.random.below(of.len() as u64) as usize]
    }

    /// Options of the peer's SYN.
    fn options(&mut self) -> String {
        let mut text = String::new();
        if self.random.chance(80) {
            text.push_str(self.pick(&[" mss 1460", " mss 1000", " mss 536"]));
        }
        if self.random.chance(80) {
            text.push_str(" sackok");
        }
        if self.random.chance(50) {
            text.push_str(" ts 1000");
            self.timestamps = true;
        }
        if self.random.chance(70) {
            text.push_str(self.pick(&[" wscale 7", " wscale 0", " wscale 14"]));
        }
        text
    }

    /// Up to an established connection, mostly.
    fn handshake(&mut self) -> Outcome<()> {
        if self.random.chance(30) {
            let option = self.option();
            self.act(format!("option next {option}"))?;
        }
        let options = self.options();
        let passive = self.random.chance(50);
        self.act(if passive { "listen L" } else { "connect S" }.to_owned())?;
        if self.random.chance(10) {
            let segment = self.segment();
            self.act(segment)?;
        }
        if passive {
            self.act(format!("< SYN seq 0 win 65535{options}"))?;
        } else {
            self.act(format!("< SYN ACK seq 0 ack 1 win 65535{options}"))?;
        }
        if passive && self.random.chance(95) {
            if self.random.chance(10) {
                let segment = self.segment();
                self.act(segment)?;
            }
            self.act("< ACK seq 1 ack 1".to_owned())?;
            self.act("accept L S".to_owned())?;
        }
        Ok(())
    }

    fn option(&mut self) -> String {
        let usual = [
            "nodelay=1",
            "cork=1",
            "oobinline=1",
            "rcvlowat=500",
            "recverr=1",
        ];
        self.pick(&usual).to_owned()
    }

    /// The next action: a call, a segment of the peer, or time.
    fn next(&mut self) -> String {
        if self.random.chance(55) || !self.recorder.open.contains("S") {
            return self.segment();
        }
        if self.waits > 0 && self.random.chance(8) {
            self.waits -= 1;
            return "+60ms quiet".to_owned();
        }
        match self.random.below(20) {
            0..6 => {
                let len = self.pick(&["1", "100", "1000", "1448", "3000", "0"]);
                format!("send S {len}")
            }
            6..12 => format!("recv S {}", self.pick(&["1", "100", "1000", "5000", "0"])),
            12..15 => format!("shutdown S {}", self.pick(&["wr", "rd", "rdwr"])),
            15 => "close S".to_owned(),
            16 => "abort S".to_owned(),
            17 => "error S".to_owned(),
            18 => {
                let error = self.pick(&["EHOSTUNREACH", "EPROTO", "ECONNREFUSED"]);
                let (_, end) = self.recorder.machine.flow(1).ends();
                format!("unreachable S {error} {}", end.wrapping_sub(1))
            }
            _ => format!("option S {}", self.option()),
        }
    }

    /// A number near to this one.
    fn near(&mut self, number: u32) -> u32 {
        let by = self.pick(&["1", "100", "1000", "1448", "3000", "70000", "2000000000"]);
        let by: u32 = by.parse().expect("a number");
        if self.random.chance(50) {
            number.wrapping_add(by)
        } else {
            number.wrapping_sub(by)
        }
    }

    /// A segment of the peer: mostly sound, in every way that one can be odd.
    fn segment(&mut self) -> String {
        let (mut seq, mut ack) = self.recorder.machine.flow(1).ends();
        let flags = match self.random.below(20) {
            0..12 => "ACK",
            12..14 => "PSH ACK",
            14..16 => "FIN ACK",
            16 => "RST",
            17 => "RST ACK",
            18 => "SYN",
            _ => self.pick(&["SYN ACK", "FIN", "", "URG ACK"]),
        };
        if self.random.chance(30) {
            seq = self.near(seq);
        }
        if self.random.chance(25) {
            ack = self.near(ack);
        }
        let mut text = format!("< {flags} seq {seq} ack {ack}");
        if self.random.chance(50) {
            let len = self.pick(&["1", "100", "500", "1000"]);
            text.push_str(&format!(" len {len}"));
        }
        if self.random.chance(15) {
            let window = self.pick(&["0", "1", "500", "1000", "65535"]);
            text.push_str(&format!(" win {window}"));
        }
        if flags.contains("URG") {
            text.push_str(&format!(" urg {}", self.pick(&["0", "1", "50", "2000"])));
        }
        if self.timestamps && self.random.chance(20) {
            text.push_str(self.pick(&[" ts 900", " ts 1001", " ts 2000", " ts 1000 0"]));
        }
        if self.random.chance(8) {
            let (left, right) = (self.near(ack), self.near(ack));
            text.push_str(&format!(" sack {left}-{right}"));
        }
        text
    }
}
