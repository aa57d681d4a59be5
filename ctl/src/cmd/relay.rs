//! `bypassctl relay`: the process that has DPDK, or a card. The daemon starts one for each device.
//!
//! Standard input is the socket that daemons connect to; the plugin is beside this program or
//! wherever libraries are. Whatever fails is told to the daemon, in DPDK's own words.

use std::ffi::OsStr;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use bypass_backends::dpdk::{DpdkPort, LIBRARY, Plugin};
use bypass_backends::ef_vi::{self, EfViPort, Settings};
use bypass_backends::relay::{PhysicalRules, Port, Relay, tell_failure};

use crate::Failure;
use crate::source::pci::Machine;

/// Memory of DPDK without huge pages, in MiB: its chunks and rings take a third of it.
const PLAIN_MEMORY: &str = "64";
/// Free huge pages below which they are not used, in KiB.
const HUGE_MEMORY: u64 = 64 << 10;

/// Relay a port (started by the daemon).
#[derive(Debug, clap::Args)]
#[command(hide = true)]
pub struct RelayCommand {
    /// Name of the interface.
    #[arg(long)]
    name: String,
    /// The device in DPDK's words.
    #[arg(long, default_value = "")]
    devargs: String,
    /// It is a card, by ef_vi.
    #[arg(long)]
    ef_vi: bool,
    /// The library of ef_vi.
    #[arg(long)]
    library: Option<PathBuf>,
    /// A card by ef_vi says when each frame has come.
    #[arg(long)]
    timestamps: bool,
    /// A card by ef_vi has so many queues.
    #[arg(long, default_value_t = 1)]
    queues: u32,
    /// More arguments for DPDK's environment.
    #[arg(long, allow_hyphen_values = true)]
    eal: Vec<String>,
    /// Rules at the physical function lead to the device too.
    #[arg(long)]
    physical_rules: bool,
    /// Frames stay in the stack's memory.
    #[arg(long)]
    zero_copy: bool,
    /// The plugin.
    #[arg(long)]
    plugin: Option<PathBuf>,
}

impl RelayCommand {
    /// Relays until the daemon and all programs are gone, or the daemon says so.
    ///
    /// # Errors
    /// What it has told the daemon too.
    pub fn execute(&self) -> Result<(), Failure> {
        let listener = std::io::stdin()
            .as_fd()
            .try_clone_to_owned()
            .map_err(|error| Failure::usage(format!("the daemon starts relays: {error}")))?;
        match self.open(&listener) {
            Ok(mut relay) => {
                relay.run();
                Ok(())
            }
            Err(words) => {
                tell_failure(&listener, &words);
                Err(Failure::new(words))
            }
        }
    }

    fn open(&self, listener: &OwnedFd) -> Result<Relay, String> {
        let listener = listener.try_clone().map_err(|error| error.to_string())?;
        let mut physical = None;
        let port: Box<dyn Port> = if self.ef_vi {
            let library = self.library.as_deref();
            let library = library.unwrap_or_else(|| Path::new(ef_vi::LIBRARY));
            let settings = Settings {
                timestamps: self.timestamps,
                queues: self.queues,
            };
            Box::new(EfViPort::open(library, &self.name, settings)?)
        } else {
            let mut port = self.open_dpdk()?;
            physical = self.physical_rules.then(|| {
                let (rules, mac) = self.open_physical()?;
                port.answer_to(mac);
                Ok(rules)
            });
            Box::new(port)
        };
        let relay = Relay::new(&self.name, port, listener, random()?)?;
        Ok(relay.with_physical(physical))
    }

    /// Rules at the physical function, and its MAC address.
    fn open_physical(&self) -> Result<(PhysicalRules, [u8; 6]), String> {
        let physical = self.address().and_then(|it| Machine::here().physical(it));
        let (interface, number) = physical.ok_or_else(|| {
            "it is no virtual function whose physical one is an interface here".to_owned()
        })?;
        let rules = PhysicalRules::open(&interface, number)?;
        // Without it the frames that they lead here were nobody's.
        let mac = rules.mac();
        let mac = mac.ok_or_else(|| format!("{interface} has no MAC address"))?;
        Ok((rules, mac))
    }

    fn open_dpdk(&self) -> Result<DpdkPort, String> {
        let plugin = Plugin::load(&self.plugin())?;
        let port = plugin.open(&self.arguments(), self.zero_copy);
        let port = port.map_err(|words| match self.obstacle() {
            Some(obstacle) => format!("{words}; {obstacle}"),
            None => words,
        })?;
        self.check_mac(port.facts().mac)?;
        Ok(port)
    }

    /// A virtual function gets its MAC address from the physical one, and the card leads it nothing
    /// that is for another. While the physical one is not up, DPDK's driver makes one up.
    fn check_mac(&self, mac: [u8; 6]) -> Result<(), String> {
        let given = self.address().and_then(|it| Machine::here().given_mac(it));
        match given {
            Some(given) if given != mac => Err(another_mac(given, mac)),
            _ => Ok(()),
        }
    }

    fn is_virtual(&self) -> bool {
        self.devargs.starts_with("net_")
    }

    /// Of a device of PCI.
    fn address(&self) -> Option<&str> {
        self.devargs
            .split(',')
            .next()
            .filter(|_| !self.is_virtual())
    }

    /// What shows to stand in the way of a device of PCI: DPDK passes over it without a word.
    fn obstacle(&self) -> Option<String> {
        Machine::here().obstacle(self.address()?)
    }

    fn plugin(&self) -> PathBuf {
        if let Some(named) = &self.plugin {
            return named.clone();
        }
        let folder = std::env::current_exe().ok();
        let folder = folder.as_deref().and_then(|own| own.parent());
        let places = ["", "../lib/", "../lib/bypass/"];
        let beside = folder.and_then(|folder| {
            let paths = places.iter().map(|place| folder.join(place).join(LIBRARY));
            paths.into_iter().find(|path| path.exists())
        });
        beside.unwrap_or_else(|| LIBRARY.into())
    }

    /// What DPDK's environment is told: one thread, on whatever processors we have.
    fn arguments(&self) -> Vec<String> {
        let mut arguments = vec![
            format!("--lcores=0@({})", allowed_processors()),
            format!("--file-prefix=bypass-{}", self.name),
            "--no-telemetry".to_owned(),
            "--log-level=5".to_owned(),
        ];
        let memory: &[&str] = if self.eal.iter().any(|word| is_about_memory(word)) {
            &[]
        } else if has_huge_pages() {
            &["--in-memory"]
        } else {
            &["--no-huge", "--no-shconf", "-m", PLAIN_MEMORY]
        };
        arguments.extend(memory.iter().map(|word| (*word).to_owned()));
        if self.is_virtual() {
            arguments.extend(["--no-pci".to_owned(), format!("--vdev={}", self.devargs)]);
        } else {
            arguments.extend(["-a".to_owned(), self.devargs.clone()]);
        }
        arguments.extend(self.eal.iter().cloned());
        arguments
    }
}

/// What to do about a MAC address that a virtual function has not from its physical one.
fn another_mac(given: [u8; 6], own: [u8; 6]) -> String {
    let [given, own] = [given, own].map(|it| it.map(|byte| format!("{byte:02x}")).join(":"));
    format!(
        "its MAC address is {own}, and its physical function has noted {given} for it: ip link set \
         that one up, or have it note the other with ip link set … vf … mac"
    )
}

/// The processors that this process may use, as `0-3,7`.
fn allowed_processors() -> String {
    field("/proc/self/status", "Cpus_allowed_list:").unwrap_or_else(|| "0".to_owned())
}

/// Whether there are enough of them for what a port needs.
fn has_huge_pages() -> bool {
    let number = |name| -> Option<u64> {
        let text = field("/proc/meminfo", name)?;
        text.split_whitespace().next()?.parse().ok()
    };
    let free = number("HugePages_Free:").zip(number("Hugepagesize:"));
    free.is_some_and(|(pages, kib)| pages.saturating_mul(kib) >= HUGE_MEMORY)
}

/// Whether an argument says where DPDK's memory is from: then nothing else is said of it.
fn is_about_memory(argument: &str) -> bool {
    let names = [
        "--in-memory",
        "--no-huge",
        "--huge-dir",
        "--legacy-mem",
        "--socket-mem",
    ];
    names.iter().any(|name| argument.starts_with(name))
}

/// The rest of the line that begins with `name`.
fn field(file: impl AsRef<OsStr>, name: &str) -> Option<String> {
    let text = std::fs::read_to_string(file.as_ref()).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    Some(line.trim().to_owned())
}

fn random() -> Result<u64, String> {
    use std::io::Read;
    let mut bytes = [0; 8];
    std::fs::File::open("/dev/urandom")
        .and_then(|mut file| file.read_exact(&mut bytes))
        .map_err(|error| format!("reading /dev/urandom: {error}"))?;
    Ok(u64::from_ne_bytes(bytes))
}
