//! One program in a namespace of the test bed: built up, run to its end or in the background.
//!
//! `ip netns exec … env VARIABLES PROGRAM` becomes PROGRAM by two execs, so the process id is that
//! of the program, and the shim is loaded by the program only. Output goes to files, so that a
//! daemon which inherits it keeps nobody waiting.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::testbed::{Side, Testbed};
use crate::{Result, paths};

/// With or without the shim.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Column {
    /// The plain kernel.
    Native,
    /// `LD_PRELOAD=libbypass.so`.
    Shim,
}

impl Column {
    /// The columns that can run now: native, and shim once it is built.
    ///
    /// # Panics
    /// When `BYPASS_TEST_REQUIRE_SHIM` is set and the shim is not built: then a missing column is a
    /// failure, not a skip.
    #[must_use]
    pub fn available() -> &'static [Self] {
        if paths::shim_is_built() {
            return &[Self::Native, Self::Shim];
        }
        assert!(
            std::env::var_os("BYPASS_TEST_REQUIRE_SHIM").is_none(),
            "the shim is not built: {}",
            paths::shim().display()
        );
        &[Self::Native]
    }

    /// Name for tables and messages.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Native => "kernel",
            Self::Shim => "shim",
        }
    }
}

/// A program to run; see the module.
#[derive(Debug)]
pub struct Program<'a> {
    bed: &'a Testbed,
    side: Side,
    program: OsString,
    arguments: Vec<OsString>,
    environment: Vec<OsString>,
    prefix: Vec<OsString>,
    processors: Option<String>,
    timeout: Duration,
    input: Option<PathBuf>,
}

impl<'a> Program<'a> {
    pub(crate) fn new(bed: &'a Testbed, side: Side, program: &OsStr) -> Self {
        Self {
            bed,
            side,
            program: program.to_owned(),
            arguments: Vec::new(),
            environment: Vec::new(),
            prefix: Vec::new(),
            processors: bed.processors(side),
            timeout: Duration::from_secs(60),
            input: None,
        }
    }

    /// Adds arguments.
    pub fn args<I: IntoIterator<Item = S>, S: AsRef<OsStr>>(&mut self, arguments: I) -> &mut Self {
        self.arguments
            .extend(arguments.into_iter().map(|text| text.as_ref().to_owned()));
        self
    }

    /// Adds one argument.
    pub fn arg(&mut self, argument: impl AsRef<OsStr>) -> &mut Self {
        self.arguments.push(argument.as_ref().to_owned());
        self
    }

    /// Sets an environment variable for the program only.
    pub fn env(&mut self, name: &str, value: impl AsRef<OsStr>) -> &mut Self {
        let mut pair = OsString::from(format!("{name}="));
        pair.push(value.as_ref());
        self.environment.push(pair);
        self
    }

    /// Runs the program in this column.
    pub fn column(&mut self, column: Column) -> &mut Self {
        if column == Column::Shim {
            self.env("LD_PRELOAD", paths::shim());
        }
        self
    }

    /// Runs the program as this user and group id, without any capability.
    pub fn user(&mut self, id: u32) -> &mut Self {
        self.prefix.extend(
            [
                "setpriv",
                &format!("--reuid={id}"),
                &format!("--regid={id}"),
                "--clear-groups",
            ]
            .map(OsString::from),
        );
        self
    }

    /// Leaves root these capabilities only, named as in capabilities(7).
    pub fn capabilities<'n>(&mut self, names: impl IntoIterator<Item = &'n str>) -> &mut Self {
        let mut set = "--bounding-set=-all".to_owned();
        for name in names {
            let name = name.trim_start_matches("CAP_").to_lowercase();
            set += &format!(",+{name}");
        }
        self.prefix.extend(["setpriv".into(), set.into()]);
        self
    }

    /// Keeps the program on this processor.
    pub fn cpu(&mut self, cpu: u32) -> &mut Self {
        self.processors = Some(cpu.to_string());
        self
    }

    /// Longest time that [`Program::run`] waits; 60 s by default.
    pub fn timeout(&mut self, timeout: Duration) -> &mut Self {
        self.timeout = timeout;
        self
    }

    /// Standard input from this file; empty by default.
    pub fn input(&mut self, file: impl Into<PathBuf>) -> &mut Self {
        self.input = Some(file.into());
        self
    }

    /// Starts the program in the background. It is killed when the answer is dropped.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn spawn(&self) -> Result<Running> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let base = self.program_name();
        let stdout = self.bed.folder().join(format!("{number}-{base}.out"));
        let stderr = self.bed.folder().join(format!("{number}-{base}.err"));
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.bed.namespace(self.side)]);
        command.args(&self.prefix);
        if let Some(processors) = &self.processors {
            command.args(["taskset", "-c", processors]);
        }
        command
            .args(["env", "-u", "LD_PRELOAD"])
            .args(&self.environment);
        command.arg(&self.program).args(&self.arguments);
        command.stdin(match &self.input {
            Some(file) => Stdio::from(File::open(file)?),
            None => Stdio::null(),
        });
        command
            .stdout(File::create(&stdout)?)
            .stderr(File::create(&stderr)?);
        let child = command.spawn()?;
        Ok(Running {
            name: base,
            child,
            stdout,
            stderr,
        })
    }

    /// Runs the program to its end.
    ///
    /// # Errors
    /// When it cannot be started or outlives the time limit (it is killed then).
    pub fn run(&self) -> Result<Finished> {
        self.spawn()?.wait(self.timeout)
    }

    fn program_name(&self) -> String {
        let path = std::path::Path::new(&self.program);
        path.file_name()
            .unwrap_or(&self.program)
            .to_string_lossy()
            .into_owned()
    }
}

/// A program in the background. Dropping it kills it.
#[derive(Debug)]
pub struct Running {
    name: String,
    child: Child,
    stdout: PathBuf,
    stderr: PathBuf,
}

impl Running {
    /// Process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it has printed on standard output so far.
    #[must_use]
    pub fn stdout(&self) -> String {
        read_text(&self.stdout)
    }

    /// What it has printed on standard error so far.
    #[must_use]
    pub fn stderr(&self) -> String {
        read_text(&self.stderr)
    }

    /// Whether it still runs.
    pub fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw);
        if let Some(pid) = pid {
            // A process that is gone already needs no signal.
            let _ = kill_process(pid, signal);
        }
    }

    /// Waits for the end.
    ///
    /// # Errors
    /// After `limit`; the program is killed then, and the text has what it printed.
    pub fn wait(mut self, limit: Duration) -> Result<Finished> {
        let deadline = Instant::now() + limit;
        loop {
            if let Some(status) = self.child.try_wait()? {
                let (stdout, stderr) = (self.stdout(), self.stderr());
                return Ok(Finished {
                    name: self.name.clone(),
                    status,
                    stdout,
                    stderr,
                });
            }
            if Instant::now() >= deadline {
                let text = format!(
                    "{} did not end within {} s\nstdout: {}\nstderr: {}",
                    self.name,
                    limit.as_secs(),
                    self.stdout(),
                    self.stderr()
                );
                return Err(text.into());
            }
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Asks the program to end (SIGTERM), waits up to 20 s, kills it then.
    ///
    /// # Errors
    /// When it had to be killed.
    pub fn stop(self) -> Result<Finished> {
        self.signal(Signal::TERM);
        self.wait(Duration::from_secs(20))
    }

    /// Kills the program (SIGKILL) and waits for it.
    pub fn kill(mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// How a program ended.
#[derive(Debug)]
pub struct Finished {
    /// Name of the program.
    pub name: String,
    /// Exit status.
    pub status: ExitStatus,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

impl Finished {
    /// The answer itself if the program ended with 0.
    ///
    /// # Errors
    /// When it did not; the text has what it printed.
    pub fn check(self) -> Result<Self> {
        if self.status.success() {
            return Ok(self);
        }
        Err(format!(
            "{} ended with {}\nstdout: {}\nstderr: {}",
            self.name, self.status, self.stdout, self.stderr
        )
        .into())
    }

    /// The last line of standard output as JSON.
    ///
    /// # Errors
    /// When it is no JSON.
    pub fn json(&self) -> Result<serde_json::Value> {
        let line = self
            .stdout
            .lines()
            .rev()
            .find(|line| !line.trim().is_empty())
            .unwrap_or("");
        serde_json::from_str(line).map_err(|error| {
            format!(
                "{}: no JSON ({error}): {}\n{}",
                self.name, self.stdout, self.stderr
            )
            .into()
        })
    }
}

/// Calls `ready` every 10 ms until it is true.
///
/// # Errors
/// After `limit`; the text is `what`.
pub fn wait_until(what: &str, limit: Duration, mut ready: impl FnMut() -> bool) -> Result<()> {
    let deadline = Instant::now() + limit;
    while !ready() {
        if Instant::now() >= deadline {
            return Err(format!("not within {} ms: {what}", limit.as_millis()).into());
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}

fn read_text(path: &std::path::Path) -> String {
    std::fs::read(path)
        .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
        .unwrap_or_default()
}
