//! Processes of their own, which tests can kill: this test binary again, running one ignored test.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::net::UdpSocket;
use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};

use bypass_proto::control::{Request, RequestKind};
use bypass_stack::{IpAddress, SocketAddress};

use super::bed::Bed;
use super::program::Program;
use crate::daemon::{DaemonOptions, run};

/// Tells the child what to do.
const VARIABLE: &str = "BYPASS_TEST_CHILD";

/// A child process that answers lines with lines; killed when dropped.
pub(super) struct Lines {
    child: Child,
    output: BufReader<std::process::ChildStdout>,
}

impl Lines {
    /// A program in the daemon's namespace with one filter for `address`; what came of it is the
    /// first line: "ready", or how it was refused.
    pub(super) fn program(bed: &Bed, address: &str, uid: u32) -> Self {
        Self::start(bed, "program_child", address, uid)
    }

    /// A daemon with the default policy.
    pub(super) fn daemon(bed: &Bed) -> Self {
        Self::daemon_with(bed, "/dev/null")
    }

    /// A daemon with this configuration file.
    pub(super) fn daemon_with(bed: &Bed, config: &str) -> Self {
        Self::start(bed, "daemon_child", config, 0)
    }

    fn start(bed: &Bed, test: &str, argument: &str, uid: u32) -> Self {
        // By descriptor: the user need not be able to reach the folder (/root is closed).
        let own = File::open("/proc/self/exe").expect("own program");
        let program = format!("/proc/self/fd/{}", own.as_raw_fd());
        let name = format!("daemon::tests::child::{test}");
        let mut child = bed.inside(|| {
            Command::new(program)
                .args(["--exact", &name, "--ignored", "--nocapture"])
                .env(VARIABLE, argument)
                .uid(uid)
                .gid(uid)
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .spawn()
                .expect("spawn")
        });
        let output = BufReader::new(child.stdout.take().expect("output"));
        Self { child, output }
    }

    /// The next line that begins with "> " (the test harness prints others).
    pub(super) fn read(&mut self) -> String {
        let mut line = String::new();
        loop {
            line.clear();
            assert_ne!(
                self.output.read_line(&mut line).expect("read"),
                0,
                "child has ended"
            );
            if let Some(text) = line.split("> ").nth(1) {
                return text.trim().to_owned();
            }
        }
    }

    /// Sends a line.
    pub(super) fn tell(&mut self, line: &str) {
        let input = self.child.stdin.as_mut().expect("input");
        writeln!(input, "{line}").expect("write");
    }

    /// Sends a line and reads the answer.
    pub(super) fn ask(&mut self, line: &str) -> String {
        self.tell(line);
        self.read()
    }

    /// Whatever the child says first; nothing when it has ended.
    pub(super) fn child_output(&mut self) -> String {
        let mut line = String::new();
        while self.output.read_line(&mut line).unwrap_or(0) != 0 && !line.contains("> ") {}
        line
    }

    pub(super) fn id(&self) -> u32 {
        self.child.id()
    }

    /// Ids of its threads.
    pub(super) fn threads(&self) -> Vec<u32> {
        let folder = std::fs::read_dir(format!("/proc/{}/task", self.id())).expect("threads");
        let names = folder.flatten().map(|entry| entry.file_name());
        names
            .filter_map(|name| name.to_str()?.parse().ok())
            .collect()
    }

    /// How often its threads have gone to sleep.
    pub(super) fn wake_ups(&self) -> u64 {
        let sleeps = |thread: u32| -> u64 {
            let path = format!("/proc/{}/task/{thread}/status", self.id());
            let status = std::fs::read_to_string(path).unwrap_or_default();
            let line = status
                .lines()
                .find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
            line.map_or(0, |number| number.trim().parse().expect("number"))
        };
        self.threads().into_iter().map(sleeps).sum()
    }

    /// `kill -9`; returns when the process is gone.
    pub(super) fn kill(&mut self) {
        self.child.kill().expect("kill");
        self.child.wait().expect("wait");
    }
}

impl Drop for Lines {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
#[ignore = "runs only as a child of other tests"]
#[expect(
    clippy::too_many_lines,
    reason = "one program: what it says is one conversation"
)]
fn program_child() {
    let Ok(address) = std::env::var(VARIABLE) else {
        return;
    };
    let socket = UdpSocket::bind(address.as_str()).expect("bind");
    let mut program = match Program::join() {
        Ok(program) => program,
        Err(error) => {
            println!("> join: {error:?}");
            return;
        }
    };
    let endpoint = program.open(&socket);
    match program.filter(&socket, endpoint) {
        Ok(_) => {
            program.map_queues();
            println!("> ready");
        }
        Err(error) => println!("> filter: {error:?}"),
    }
    for line in std::io::stdin().lines().map_while(Result::ok) {
        match line.as_str() {
            "held" => println!("> {}", program.held(endpoint)),
            "retransmits" => println!("> {}", program.retransmits()),
            "map" => println!("> {}", program.map_queues()),
            "queued" => println!("> {}", program.queued(endpoint)),
            "lock" => {
                std::mem::forget(program.attachment.lock().expect("lock"));
                println!("> locked");
            }
            _ if line.starts_with("connection ") => {
                let (local, remote) = line[11..].split_once(' ').expect("two addresses");
                let listener = std::net::TcpListener::bind(local).expect("bind");
                let granted = program.grant(&listener, local, endpoint, 1);
                program.enter(local, remote, endpoint);
                println!("> {}", granted.is_ok());
                std::mem::forget(listener);
            }
            "ports" => {
                let kept = program.ports("198.18.9.1");
                let kept: Vec<String> = kept.iter().map(u16::to_string).collect();
                println!("> {}", kept.join(" "));
            }
            "exec" => {
                let error = Command::new("sleep").arg("1000").exec();
                panic!("exec: {error}");
            }
            "fork" => {
                let mut locked = program.attachment.lock().expect("lock");
                let slot = locked.stack().fork_process(program.process).expect("slot");
                println!("> {}", slot.0);
            }
            "scribble" => {
                program.scribble();
                println!("> scribbled");
            }
            "close" => {
                let mut locked = program.attachment.lock().expect("lock");
                locked.stack().unhold(endpoint, program.process);
                println!("> closed");
            }
            "shutdown" => {
                let answer = program
                    .control
                    .ask(Request::new(RequestKind::Shutdown), None);
                println!("> {answer:?}");
            }
            _ if line.starts_with("connect ") => {
                let (local, remote) = line[8..].split_once(' ').expect("two addresses");
                program.connect(local, remote);
                println!("> connecting");
            }
            _ if line.starts_with("word ") => {
                let word = line.split(' ').nth(1).expect("word");
                program.write_lock_word(word.parse().expect("number"));
                println!("> written");
            }
            _ if line.starts_with("forked ") => {
                let numbers: Vec<u32> = line
                    .split(' ')
                    .skip(1)
                    .map(|word| word.parse().expect("number"))
                    .collect();
                let request = Request {
                    process: numbers[0],
                    pid: numbers[1],
                    ..Request::new(RequestKind::Forked)
                };
                program.control.tell(request).expect("tell");
                println!("> told");
            }
            _ => {
                let address = line.strip_prefix("forge ").expect("command");
                let address: std::net::SocketAddr = address.parse().expect("address");
                let local = SocketAddress::new(IpAddress::from(address.ip()), address.port());
                let mut locked = program.attachment.lock().expect("lock");
                locked
                    .stack()
                    .udp_rebind(endpoint, local, None)
                    .expect("rebind");
                println!("> forged");
            }
        }
    }
}

#[test]
#[ignore = "runs only as a child of other tests"]
fn daemon_child() {
    let Ok(config) = std::env::var(VARIABLE) else {
        return;
    };
    run(&DaemonOptions {
        foreground: true,
        config: Some(config.into()),
        ..DaemonOptions::default()
    })
    .expect("daemon");
}
