//! `cargo xtask test --hardware IFACE`: the check-list of docs/hardware.md, where a card is.
//!
//! Ten commands, each with what it must print. The first five ask what is there and change nothing;
//! without all of it the others are not tried. Nothing here is part of `cargo xtask ci`.

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use bypass_tests::program::wait_until;
use bypass_tests::{Result, ciul, paths};

use crate::build;

/// One command of the list, for `sh`: `$IFACE`, `$ADDRESS` (its IPv4 address), `$PEER` (a command
/// that runs another one on the machine at the other end) and `$CONFIG` are set.
struct Check {
    what: &'static str,
    /// What must run meanwhile.
    server: Option<&'static str>,
    command: &'static str,
    /// It prints one of these.
    wanted: &'static [&'static str],
    /// What to do when it does not.
    hint: &'static str,
}

const fn fact(
    what: &'static str,
    command: &'static str,
    wanted: &'static [&'static str],
    hint: &'static str,
) -> Check {
    Check {
        what,
        server: None,
        command,
        wanted,
        hint,
    }
}

/// How many of [`CHECKS`] only ask what is there, and how many the stand-in has in a card's place.
const FACTS: usize = 5;
const OF_CARD: usize = 4;

const CHECKS: [Check; 10] = [
    fact(
        "a card of Solarflare or AMD",
        "cat /sys/class/net/$IFACE/device/vendor",
        &["0x1924", "0x10ee"],
        "name an interface of such a card: lspci -d 1924: and lspci -d 10ee: list them",
    ),
    fact(
        "its driver",
        "ethtool -i $IFACE",
        &["driver: sfc", "driver: xilinx_efct"],
        "load the driver of the Onload release that is installed: modprobe sfc",
    ),
    fact(
        "the driver's device for programs",
        "ls /dev/sfc_char",
        &["/dev/sfc_char"],
        "modprobe sfc_char (of the same release)",
    ),
    fact(
        "the library",
        "ldconfig -p",
        &["libciul.so.1 "],
        "install the user-level libraries of Onload 8.1, 9.0, 9.1 or 9.2, then ldconfig",
    ),
    fact(
        "an address on a link that is up",
        "ip -brief -4 address show dev $IFACE up",
        &["/"],
        "ip link set $IFACE up; ip address add ADDRESS/LENGTH dev $IFACE",
    ),
    Check {
        what: "the backend",
        server: Some("bypassctl daemon --config $CONFIG"),
        command: "bypassctl doctor $IFACE",
        wanted: &["a card that ef_vi serves"],
        hint: "doctor says why: the ef_vi line",
    },
    Check {
        what: "a filter in the card",
        server: Some("bypassctl run -- sockperf server --ip $ADDRESS --port 7007"),
        command: "bypassctl filters list",
        wanted: &["ef_vi"],
        hint: "bypassctl explain --all says why the socket is the kernel's",
    },
    Check {
        what: "datagrams",
        server: None,
        command: "$PEER sockperf ping-pong --ip $ADDRESS --port 7007 --time 3",
        wanted: &["dropped messages = 0"],
        hint: "bypassctl stats: what the port has received, sent and discarded",
    },
    Check {
        what: "a stream",
        server: Some("bypassctl run -- iperf3 --server --one-off --bind $ADDRESS --port 7008"),
        command: "$PEER iperf3 --client $ADDRESS --port 7008 --time 3",
        wanted: &["iperf Done."],
        hint: "bypassctl stats: what the port has received, sent and discarded",
    },
    Check {
        what: "datagrams after a reset of the card",
        server: None,
        command: "ethtool --reset $IFACE all; sleep 2; \
                  $PEER sockperf ping-pong --ip $ADDRESS --port 7007 --time 3",
        wanted: &["dropped messages = 0"],
        hint: "bypassctl stats: resets counts VIs that were made again",
    },
];

/// Where and how the list is run.
#[derive(Debug, clap::Args)]
pub(crate) struct Hardware {
    /// Run the check-list of docs/hardware.md on this interface, in place of the tests
    #[arg(long, value_name = "IFACE")]
    hardware: Option<String>,
    /// Runs a command on the machine at the other end: "ssh peer"
    #[arg(long, value_name = "COMMAND", requires = "hardware")]
    peer: Option<String>,
    /// Try the list itself where no card is: the tests' stand-in drives the interface
    #[arg(long, requires = "hardware", hide = true)]
    stand_in: bool,
}

impl Hardware {
    /// Runs the list, if an interface is named: `None` = the tests are wanted.
    pub(crate) fn run(&self) -> Option<Result<()>> {
        let interface = self.hardware.as_deref()?;
        Some(self.check(interface))
    }

    fn check(&self, interface: &str) -> Result<()> {
        let mut run = Run::new(self, interface)?;
        let mut held = 0;
        for (at, check) in CHECKS.iter().enumerate() {
            let number = at + 1;
            if self.stand_in && at < OF_CARD {
                held += 1;
                println!("{number:2} {}: the stand-in has it", check.what);
                continue;
            }
            if at >= FACTS && held < FACTS {
                println!("{number:2} {}: not tried", check.what);
                continue;
            }
            if at == FACTS {
                build::release()?;
            }
            match run.one(check) {
                Ok(line) => {
                    held += 1;
                    println!("{number:2} {}: ok: {line}", check.what);
                }
                Err(why) => {
                    println!("{number:2} {}: MISSING: {why}", check.what);
                    println!("   {}", check.hint);
                }
            }
        }
        println!("{held} of {} hold", CHECKS.len());
        if held < CHECKS.len() {
            return Err(format!("{interface}: see above what is missing").into());
        }
        Ok(())
    }
}

/// A run of the list; what it has started ends with it.
struct Run<'h> {
    interface: &'h str,
    address: String,
    peer: Option<&'h str>,
    config: PathBuf,
    is_stand_in: bool,
    servers: Vec<Child>,
}

impl<'h> Run<'h> {
    fn new(options: &'h Hardware, interface: &'h str) -> Result<Self> {
        let config = paths::target().join("hardware.toml");
        let mut device = format!("[[device]]\nname = {interface:?}\nbackend = \"ef_vi\"\n");
        if options.stand_in {
            device += &format!("library = {:?}\n", ciul::stand_in()?);
        }
        std::fs::write(&config, device)?;
        Ok(Self {
            interface,
            address: address(interface).unwrap_or_default(),
            peer: options.peer.as_deref(),
            config,
            is_stand_in: options.stand_in,
            servers: Vec::new(),
        })
    }

    /// The line that says so, or what was printed in its place.
    fn one(&mut self, check: &Check) -> Result<String> {
        if check.command.contains("$PEER") && self.peer.is_none() {
            return Err("it needs the other end: --peer 'ssh HOST'".into());
        }
        if let Some(server) = check.server {
            let mut server = self.shell(&format!("exec {server}"));
            server.stdout(Stdio::null()).stderr(Stdio::null());
            self.servers.push(server.spawn()?);
        }
        // A server takes a moment.
        let patience = Duration::from_secs(if check.server.is_some() { 10 } else { 0 });
        let mut printed = (String::new(), String::new());
        let mut found = None;
        let is_there = || {
            printed = self.output(check.command);
            let is_wanted = |line: &&str| check.wanted.iter().any(|word| line.contains(word));
            found = printed.0.lines().find(is_wanted).map(str::to_owned);
            found.is_some()
        };
        // What is wanted and was not found is said below.
        let _ = wait_until(check.what, patience, is_there);
        let wanted = check.wanted.join("\" or \"");
        let (out, error) = &printed;
        let last = out.lines().chain(error.lines()).last().unwrap_or("nothing");
        found.ok_or_else(|| format!("`{}` prints no \"{wanted}\": {last}", check.command).into())
    }

    /// What a command prints, and what it complains of.
    fn output(&self, command: &str) -> (String, String) {
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        match self.shell(command).output() {
            Ok(run) => (text(run.stdout), text(run.stderr)),
            Err(error) => (String::new(), error.to_string()),
        }
    }

    fn shell(&self, command: &str) -> Command {
        let mut shell = Command::new("sh");
        let path = std::env::var("PATH").unwrap_or_default();
        shell
            .args(["-c", command])
            .env("PATH", format!("{}:{path}", paths::product().display()))
            .env("IFACE", self.interface)
            .env("ADDRESS", &self.address)
            .env("PEER", self.peer.unwrap_or_default())
            .env("CONFIG", &self.config)
            .stdin(Stdio::null());
        if self.is_stand_in {
            shell.env("FAKE_CIUL_WIRE", "packet");
        }
        shell
    }
}

impl Drop for Run<'_> {
    fn drop(&mut self) {
        if self.servers.is_empty() {
            return;
        }
        for server in &mut self.servers {
            // It may have ended.
            let _ = server.kill();
            let _ = server.wait();
        }
        self.output("bypassctl shutdown");
    }
}

/// The first IPv4 address of an interface.
fn address(interface: &str) -> Option<String> {
    let ip = ["-4", "-oneline", "address", "show", "dev", interface];
    let run = Command::new("ip").args(ip).output().ok()?;
    let text = String::from_utf8_lossy(&run.stdout).into_owned();
    let with_length = text
        .split_whitespace()
        .skip_while(|word| *word != "inet")
        .nth(1)?;
    with_length.split('/').next().map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOOPBACK: Hardware = Hardware {
        hardware: None,
        peer: None,
        stand_in: false,
    };

    #[test]
    fn the_document_has_every_command_and_what_it_prints() {
        let file = paths::repository().join("docs/hardware.md");
        let text = std::fs::read_to_string(file).unwrap();
        for check in CHECKS {
            for needle in [Some(check.command), check.server].into_iter().flatten() {
                assert!(text.contains(needle), "{needle}");
            }
            assert!(
                check.wanted.iter().any(|word| text.contains(word)),
                "{}",
                check.what
            );
        }
    }

    #[test]
    fn loopback_is_no_card_and_what_is_missing_is_said() {
        let mut run = Run::new(&LOOPBACK, "lo").unwrap();
        assert_eq!(run.address, "127.0.0.1");
        let why = run.one(&CHECKS[0]).unwrap_err().to_string();
        assert!(
            why.contains("prints no \"0x1924\" or \"0x10ee\": cat: "),
            "{why}"
        );
        let why = run.one(&CHECKS[7]).unwrap_err().to_string();
        assert!(why.contains("--peer"), "{why}");
        assert!(LOOPBACK.run().is_none());
        let refused = LOOPBACK.check("lo").unwrap_err().to_string();
        assert!(refused.contains("what is missing"), "{refused}");
    }
}
