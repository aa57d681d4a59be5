//! Runs actions on our stack and writes down what it did, as a packet script: each action with its
//! result, the segments that we sent, and what a program can see of its sockets.

use super::machine::Machine;
use super::sockets::TOLD;
use super::words::{Outcome, Words, span};
use crate::common::problems;
use std::collections::BTreeSet;
use zerocopy::IntoBytes;

const MS: f64 = 1e6;
/// Chunks of the packet memory: more than any scenario fills.
const CHUNKS: u32 = 512;

/// A script that is being written.
pub struct Recorder {
    pub machine: Machine,
    /// What a script says that does the same.
    pub script: Vec<String>,
    /// Sockets that the program has not closed.
    pub open: BTreeSet<String>,
}

/// What our stack does with these actions; the error is a fault of the stack or of an action.
pub fn record(actions: &[String], is_v4: bool) -> Outcome<Vec<String>> {
    let mut recorder = Recorder::new(is_v4);
    for action in actions {
        recorder.act(action)?;
    }
    recorder.finish()
}

impl Recorder {
    pub fn new(is_v4: bool) -> Self {
        let mut machine = Machine::new(is_v4, CHUNKS);
        // As the bench of the kernel: no limit on the answers to what is out of the window.
        machine.each_syn = true;
        let mut stack = machine.rig.stack();
        stack.tcp_defaults_mut().challenge_acks = 255;
        stack.tcp_defaults_mut().invalid_ratelimit_ms = 0;
        Self {
            machine,
            script: Vec::new(),
            open: BTreeSet::new(),
        }
    }

    /// The whole script; what the stack holds must go away.
    pub fn finish(mut self) -> Outcome<Vec<String>> {
        self.machine.finish(CHUNKS)?;
        Ok(self.script)
    }

    /// Does one action and writes down what comes of it.
    pub fn act(&mut self, action: &str) -> Outcome<()> {
        let mut words = Words::of(action);
        let verb = words.want("action")?;
        let name = words.next().unwrap_or_default();
        match verb {
            wait if wait.starts_with('+') => self.wait(span(&wait[1..])?),
            "connect" | "send" | "recv" | "shutdown" => self.told(action)?,
            "abort" => {
                // As the bench does it.
                self.machine.line(&format!("option {name} linger=0"))?;
                self.machine.line(&format!("close {name}"))?;
                self.script.push(action.to_owned());
            }
            "accept" => self.accept(name, words.want("socket")?)?,
            "error" => {
                let found = self.machine.take_error(name)?;
                self.script.push(format!("expect {name} error={found}"));
            }
            _ => {
                self.machine.line(action)?;
                self.script.push(action.to_owned());
            }
        }
        match verb {
            "listen" | "connect" => _ = self.open.insert(name.to_owned()),
            "close" | "abort" => _ = self.open.remove(name),
            _ => {}
        }
        self.take_segments(self.machine.now);
        for name in &self.open {
            let seen = self.machine.observe(name)?;
            self.script.push(format!("expect {name} {seen}"));
        }
        let found = problems(self.machine.rig.words.as_bytes());
        if found.is_empty() {
            Ok(())
        } else {
            Err(format!("{action}: image: {found:?}"))
        }
    }

    /// A call with a result, which is asked for.
    fn told(&mut self, action: &str) -> Outcome<()> {
        let error = self.machine.line(&format!("{action} -> ?"));
        let error = error.err().unwrap_or_default();
        let told = error
            .strip_prefix(TOLD)
            .and_then(|text| text.split_once(','));
        let (result, _) = told.ok_or_else(|| error.clone())?;
        self.script.push(format!("{action} -> {result}"));
        Ok(())
    }

    fn accept(&mut self, listener: &str, child: &str) -> Outcome<()> {
        let name = match self.machine.line(&format!("accept {listener} {child}")) {
            Ok(()) => {
                self.open.insert(child.to_owned());
                child
            }
            Err(_) => {
                self.machine.line(&format!("accept {listener} none"))?;
                "none"
            }
        };
        self.script.push(format!("accept {listener} {name}"));
        Ok(())
    }

    /// Lets so many nanoseconds pass.
    fn wait(&mut self, wait: u64) {
        let mut since = self.machine.now;
        let end = since + wait;
        loop {
            self.machine.pass(end);
            if !self.take_segments(since) {
                break;
            }
            since = self.machine.now;
        }
        let left = (end - since) as f64 / MS;
        self.script.push(format!("+{left}ms quiet"));
    }

    /// Writes down what we have sent since then; whether that was anything.
    fn take_segments(&mut self, since: u64) -> bool {
        let (mut since, mut any) = (since, false);
        while let Some((flow, text, at)) = self.machine.take_sent() {
            let wait = match at.saturating_sub(since) {
                0 => String::new(),
                wait => format!("+{}ms ", wait as f64 / MS),
            };
            self.script.push(format!("{wait}>{flow} {text}"));
            (since, any) = (since.max(at), true);
        }
        any
    }
}
