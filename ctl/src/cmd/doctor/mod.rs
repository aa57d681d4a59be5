//! `bypassctl doctor`: tests this machine and says what to do.
//!
//! Each test is one line: `ok`, `warn` (works, but less well or not for everybody) or `fail` (the
//! bypass cannot work). Nothing is changed: the tests make a socket and a BPF map and let them go.

mod card;
mod facts;
mod firewall;
mod interfaces;
mod machine;
mod programs;

use serde_json::{Value, json};

use crate::{Failure, render};

/// Test this machine: kernel, privileges, interfaces, firewall, daemon.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  bypassctl doctor
  sudo bypassctl doctor eth0 --json

Run it as root in the network namespace of the programs: only then everything is tested.
Exit code 1 when a test fails.")]
pub struct Doctor {
    /// Test this interface only (default: all).
    interface: Option<String>,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

impl Doctor {
    /// Runs every test.
    ///
    /// # Errors
    /// Exit code 1 when one fails.
    pub fn execute(&self) -> Result<(), Failure> {
        let mut findings = Findings::default();
        machine::test(&mut findings);
        interfaces::test(self.interface.as_deref(), &mut findings);
        firewall::test(&mut findings);
        programs::test(&mut findings);
        let list: Vec<Value> = findings.0.iter().map(Finding::object).collect();
        if self.json {
            render::json(&Value::Array(list));
        } else {
            let columns = [("STATE", "state"), ("WHAT", "what"), ("WHAT TO DO", "do")];
            render::objects(&columns, &list);
        }
        match findings
            .0
            .iter()
            .filter(|finding| finding.state == State::Fail)
            .count()
        {
            0 => Ok(()),
            count => Err(Failure::new(format!(
                "{count} tests failed: see above what to do"
            ))),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Ok,
    Warn,
    Fail,
}

#[derive(Debug)]
struct Finding {
    state: State,
    what: String,
    todo: String,
}

impl Finding {
    fn object(&self) -> Value {
        let state = match self.state {
            State::Ok => "ok",
            State::Warn => "warn",
            State::Fail => "fail",
        };
        let todo = if self.todo.is_empty() {
            Value::Null
        } else {
            self.todo.as_str().into()
        };
        json!({ "state": state, "what": self.what, "do": todo })
    }
}

/// What the tests found, in their order.
#[derive(Debug, Default)]
struct Findings(Vec<Finding>);

impl Findings {
    fn ok(&mut self, what: impl Into<String>) {
        self.add(State::Ok, what, "");
    }

    fn warn(&mut self, what: impl Into<String>, todo: &str) {
        self.add(State::Warn, what, todo);
    }

    fn fail(&mut self, what: impl Into<String>, todo: &str) {
        self.add(State::Fail, what, todo);
    }

    fn add(&mut self, state: State, what: impl Into<String>, todo: &str) {
        self.0.push(Finding {
            state,
            what: what.into(),
            todo: todo.to_owned(),
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_line_that_is_not_ok_says_what_to_do() {
        let mut findings = Findings::default();
        machine::test(&mut findings);
        interfaces::test(None, &mut findings);
        firewall::test(&mut findings);
        programs::test(&mut findings);
        assert!(findings.0.len() > 5);
        for finding in &findings.0 {
            let silent = finding.todo.is_empty();
            assert_eq!(finding.state == State::Ok, silent, "{finding:?}");
        }
    }

    #[test]
    fn an_interface_that_does_not_exist_fails() {
        let mut findings = Findings::default();
        interfaces::test(Some("no-such-if"), &mut findings);
        assert!(matches!(
            findings.0.as_slice(),
            [Finding {
                state: State::Fail,
                ..
            }]
        ));
    }
}
