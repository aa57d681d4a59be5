//! Runs `cargo test` and counts what passed and failed.

use std::io::{BufRead as _, BufReader};
use std::process::Stdio;

use bypass_tests::Result;

use crate::build::cargo;

/// Tests passed and failed.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    pub(crate) passed: u64,
    pub(crate) failed: u64,
    /// What was printed of the failed ones, a line each.
    report: Vec<String>,
    /// What one should know of a run that passes: what could not be run, or had to be run again.
    remarks: Vec<String>,
}

impl Tally {
    pub(crate) fn add(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.report.extend(other.report);
        self.remarks.extend(other.remarks);
    }

    /// Something that cannot be run here: a failure where this variable of the environment says
    /// that it must.
    pub(crate) fn not_run(&mut self, name: &str, why: &str, required: &str) {
        if std::env::var_os(required).is_some() {
            self.check(name, Err(format!("not run: {why}").into()));
        } else {
            self.remark(format!("{name}: NOT RUN: {why}"));
        }
    }

    /// What is said now, and again in the end.
    pub(crate) fn remark(&mut self, line: String) {
        println!("{line}");
        self.remarks.push(line);
    }

    /// One check that is no Rust test.
    pub(crate) fn check(&mut self, name: &str, result: Result<()>) {
        match result {
            Ok(()) => self.passed += 1,
            Err(error) => {
                let line = format!("{name}: {error}");
                println!("{line}");
                self.report.push(line);
                self.failed += 1;
            }
        }
    }

    /// Says again what failed, and the remarks, where a log that is cut short still shows it, then
    /// `N passed, N failed`.
    ///
    /// # Errors
    /// When something failed.
    pub(crate) fn end(&self) -> Result<()> {
        for line in self.remarks.iter().chain(&self.report) {
            println!("{line}");
        }
        println!("{} passed, {} failed", self.passed, self.failed);
        if self.failed == 0 {
            Ok(())
        } else {
            Err("there are failures".into())
        }
    }
}

/// Runs `cargo test ARGUMENTS`, shows failures only, and counts.
///
/// # Errors
/// When cargo cannot be started.
pub(crate) fn run(arguments: &[&str], environment: &[(&str, &str)]) -> Result<Tally> {
    let mut command = cargo();
    command
        .args(["test", "--quiet", "--no-fail-fast"])
        .args(arguments);
    command
        .envs(environment.iter().copied())
        .env_remove("RUST_BACKTRACE");
    let mut child = command.stdout(Stdio::piped()).spawn()?;
    let output = child.stdout.take().ok_or("no output")?;
    let mut tally = Tally::default();
    for line in BufReader::new(output).lines() {
        let line = line?;
        match parse(&line) {
            Some(some) => tally.add(some),
            None if is_noise(&line) => {}
            None => {
                println!("{line}");
                tally.report.push(line);
            }
        }
    }
    let status = child.wait()?;
    // It did not compile, or a test program died without a result.
    if !status.success() && tally.failed == 0 {
        tally.failed = 1;
        tally
            .report
            .push(format!("cargo test {}: {status}", arguments.join(" ")));
    }
    if tally.failed == 0 {
        tally.report.clear();
    }
    Ok(tally)
}

/// `test result: ok. 3 passed; 1 failed; …`.
fn parse(line: &str) -> Option<Tally> {
    let rest = line.trim().strip_prefix("test result: ")?;
    let count = |word: &str| -> Option<u64> {
        let words: Vec<&str> = rest.split_whitespace().collect();
        let at = words.iter().position(|w| w.trim_end_matches(';') == word)?;
        words.get(at.checked_sub(1)?)?.parse().ok()
    };
    Some(Tally {
        passed: count("passed")?,
        failed: count("failed")?,
        ..Tally::default()
    })
}

/// Blank lines, "running n tests", and the dots of those that passed or are ignored.
fn is_noise(line: &str) -> bool {
    let text = line.trim();
    text.is_empty()
        || text.starts_with("running ") && text.ends_with(['t', 's'])
        || text
            .split(' ')
            .next()
            .is_some_and(|dots| dots.chars().all(|c| matches!(c, '.' | 'i')))
}

#[cfg(test)]
mod tests {
    use super::{Tally, is_noise, parse};

    #[test]
    fn results_are_counted() {
        let line =
            "test result: FAILED. 41 passed; 1 failed; 0 ignored; 0 measured; 2 filtered out";
        assert_eq!(
            parse(line),
            Some(Tally {
                passed: 41,
                failed: 1,
                ..Tally::default()
            })
        );
        assert_eq!(parse("running 3 tests"), None);
    }

    #[test]
    fn noise_is_told_from_failures() {
        assert!(is_noise("running 3 tests"));
        assert!(is_noise("..i.... 7/9"));
        assert!(is_noise(""));
        assert!(!is_noise("udp_echo: kernel (-) and shim (+) differ:"));
    }
}
