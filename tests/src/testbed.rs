//! Two network namespaces joined by a veth.
//!
//! ```text
//!   namespace bypPID-N-s                          namespace bypPID-N-c
//!   server side, native or under the shim         client side, always the plain kernel
//!   198.18.7.1/24  fd98:7::1/64                   198.18.7.2/24  fd98:7::2/64
//!        [byp-s] ======================= veth ======================= [byp-c]
//! ```
//!
//! A janitor process holds the reading end of a pipe whose writing end only the owner has. When the
//! owner drops the test bed, panics, is interrupted or killed, the pipe closes and the janitor
//! kills what still runs in the two namespaces and removes them. So there is one way to clean up,
//! and it works after SIGKILL as well.

use std::ffi::OsStr;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use bypass_backends::sim::Faults;

use crate::Result;
use crate::emulated_link::EmulatedLink;
use crate::program::{Program, Running, wait_until};
use crate::tap::Tap;
use crate::vdev::Vdev;

/// Which end of the veth.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The end that the shim may serve.
    Server,
    /// The end that is always the plain kernel, unless a test says otherwise.
    Client,
}

/// What may differ between test beds.
#[derive(Clone, Debug)]
pub struct Options {
    /// Receive and transmit queues of both ends.
    pub queues: u32,
    /// MTU of both ends in bytes.
    pub mtu: u32,
    /// Third number of the IPv4 addresses: 198.18.`subnet`.1 and .2.
    pub subnet: u8,
    /// An emulated link between two TAP devices, from this seed, in place of the veth.
    pub emulated: Option<(Faults, u64)>,
    /// A DPDK port on the server side (a virtual device, no card), whose wire ends in the kernel of
    /// the client's side, in place of the veth. A daemon runs from the beginning.
    pub port: Option<Vdev>,
    /// Its frames stay in the stack's memory, where its driver can.
    pub zero_copy: bool,
    /// The programs of each side have half of the processors, as on two machines.
    pub apart: bool,
    /// The server's interface is a card, whose queue libciul's stand-in has, with these faults. A
    /// daemon runs from the beginning.
    pub card: Option<&'static str>,
    /// The card says when frames have come.
    pub timestamps: bool,
    /// Queues over which the card spreads flows.
    pub card_queues: u32,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            queues: 1,
            mtu: 1500,
            subnet: 7,
            emulated: None,
            port: None,
            zero_copy: false,
            apart: false,
            card: None,
            timestamps: false,
            card_queues: 1,
        }
    }
}

impl Options {
    /// The default ones with the server's interface on the backend that `BYPASS_TEST_BACKEND`
    /// names: `af_xdp` (as without the variable), `dpdk` (net_tap) or `ef_vi` (the stand-in).
    ///
    /// # Errors
    /// For another name.
    pub fn of_backend() -> Result<Self> {
        let name = std::env::var("BYPASS_TEST_BACKEND");
        let (port, card) = match name.as_deref().unwrap_or("af_xdp") {
            "af_xdp" => (None, None),
            "dpdk" => (Some(Vdev::Tap), None),
            "ef_vi" => (None, Some("")),
            other => return Err(format!("BYPASS_TEST_BACKEND={other}?").into()),
        };
        Ok(Self {
            port,
            card,
            ..Self::default()
        })
    }
}

/// Two namespaces joined by a veth; see the module.
#[derive(Debug)]
pub struct Testbed {
    name: String,
    options: Options,
    folder: PathBuf,
    janitor: Child,
    link: Option<EmulatedLink>,
    pub(crate) testpmd: Option<Running>,
}

/// What the janitor does when its input ends; `$1` and `$2` are the namespaces, `$3` the folder.
const JANITOR: &str = r#"
trap '' INT TERM HUP
read -r keep
for ns in "$1" "$2"; do
    for try in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do
        pids=$(ip netns pids "$ns" 2>/dev/null)
        [ -z "$pids" ] && break
        kill -9 $pids 2>/dev/null
        sleep 0.05
    done
    ip netns delete "$ns" 2>/dev/null
done
[ "$keep" = keep ] || rm -rf "$3"
"#;

impl Testbed {
    /// A test bed with the default options.
    ///
    /// # Errors
    /// When a step fails, most often for want of root.
    pub fn new() -> Result<Self> {
        Self::with(Options::default())
    }

    /// A test bed with these options.
    ///
    /// # Errors
    /// When a step fails, most often for want of root.
    pub fn with(options: Options) -> Result<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("byp{}-{number}", std::process::id());
        let folder = std::env::temp_dir().join(&name);
        std::fs::create_dir_all(&folder)?;
        let janitor = Command::new("sh")
            .args(["-c", JANITOR, "janitor"])
            .args([format!("{name}-s"), format!("{name}-c")])
            .arg(&folder)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .current_dir("/")
            .process_group(0)
            .spawn()?;
        let mut bed = Self {
            name,
            options,
            folder,
            janitor,
            link: None,
            testpmd: None,
        };
        bed.set_up()?;
        Ok(bed)
    }

    fn set_up(&mut self) -> Result<()> {
        let sides = [Side::Server, Side::Client];
        for side in sides {
            ip(["netns", "add", &self.namespace(side)])?;
        }
        match self.options.emulated {
            Some((faults, seed)) => self.emulate_link(faults, seed)?,
            None => match self.options.port {
                Some(vdev) => self.open_port(vdev)?,
                None => self.add_veth()?,
            },
        }
        for side in sides {
            self.ip(side, &["link", "set", "lo", "up"])?;
            self.ip(side, &["link", "set", self.interface(side), "up"])?;
        }
        // After both ends are up: before it, IPv6 keeps silent for a second.
        for side in sides {
            let interface = self.interface(side);
            let v4 = format!("{}/24", self.ipv4(side));
            let v6 = format!("{}/64", self.ipv6(side));
            self.ip(side, &["addr", "add", &v4, "dev", interface])?;
            self.ip(side, &["addr", "add", &v6, "dev", interface, "nodad"])?;
        }
        self.wait_for_link()?;
        if self.options.card.is_some() {
            self.start_card()?;
        }
        if self.options.port.is_some() {
            self.wait_for_daemon()?;
        }
        Ok(())
    }

    /// Waits until the daemon, which runs already, has heard of the addresses: a program that asks
    /// before that gets the kernel.
    fn wait_for_daemon(&self) -> Result<()> {
        let bind = format!("udp:{}:7", self.ipv4(Side::Server));
        let mut told = String::new();
        let knows = wait_until(
            "the daemon knows the address",
            Duration::from_secs(60),
            || {
                let mut ask = self.program(Side::Server, crate::paths::bypassctl());
                ask.args([
                    "explain",
                    "--dry-run",
                    "--json",
                    "--bind",
                    &bind,
                    "--",
                    "true",
                ]);
                let Ok(answer) = ask.run() else { return false };
                told = answer.stdout;
                answer.status.success() && !told.contains("no-interface")
            },
        );
        knows.map_err(|error| format!("{error}: {told}{}", self.why_no_port()).into())
    }

    fn add_veth(&self) -> Result<()> {
        let (server, client) = (self.namespace(Side::Server), self.namespace(Side::Client));
        let queues = self.options.queues.to_string();
        let mtu = self.options.mtu.to_string();
        let mut link = vec![
            "link",
            "add",
            self.interface(Side::Server),
            "netns",
            &server,
        ];
        let size = ["mtu", &mtu, "numtxqueues", &queues, "numrxqueues", &queues];
        link.extend(size);
        link.extend(["type", "veth", "peer", "name", self.interface(Side::Client)]);
        link.extend(["netns", &client]);
        link.extend(size);
        ip(link).map(drop)
    }

    /// Makes the devices here, under names that no other test bed has, and moves them.
    fn emulate_link(&mut self, faults: Faults, seed: u64) -> Result<()> {
        let mtu = self.options.mtu.to_string();
        let device = |side| -> Result<Tap> {
            let name = self.namespace(side);
            let tap = Tap::create(&name)?;
            let mut link = vec!["link", "set", "dev", &name, "netns", &name];
            link.extend(["name", self.interface(side), "mtu", &mtu]);
            // Only the link loses: bursts find room in the device.
            link.extend(["txqueuelen", "10000"]);
            ip(link)?;
            Ok(tap)
        };
        let taps = [device(Side::Server)?, device(Side::Client)?];
        self.link = Some(EmulatedLink::start(taps, faults, seed)?);
        Ok(())
    }

    /// Starts a daemon that drives the server's interface as a card. No NIC leaves checksums to its
    /// peer: the other end must make them.
    fn start_card(&self) -> Result<()> {
        let peer = ["-K", self.interface(Side::Client), "tx", "off"];
        self.program(Side::Client, "ethtool")
            .args(peer)
            .run()?
            .check()?;
        let mut daemon = self.program(Side::Server, crate::paths::bypassctl());
        self.add_card(&mut daemon, &self.device_file())?;
        daemon.args(["daemon", "--config"]).arg(self.device_file());
        daemon.run()?.check()?;
        self.wait_for_card()
    }

    /// Whether the server's interface is a card.
    #[must_use]
    pub fn has_card(&self) -> bool {
        self.options.card.is_some()
    }

    /// Whether the server's interface has a relay: that of a card or of a DPDK port.
    #[must_use]
    pub fn has_relay(&self) -> bool {
        self.options.port.is_some() || self.has_card()
    }

    /// Gives a daemon with this configuration file the card.
    ///
    /// # Errors
    /// When there is no library for it, or the file cannot be written.
    pub fn add_card(&self, daemon: &mut Program<'_>, file: &Path) -> Result<()> {
        let name = self.interface(Side::Server);
        let library = crate::ciul::library(&self.folder)?.display().to_string();
        let device = format!("name = {name:?}\nbackend = \"ef_vi\"\nlibrary = {library:?}\n");
        let stamps = self.options.timestamps;
        let queues = self.options.card_queues;
        let device = format!("{device}timestamps = {stamps}\nqueues = {queues}\n");
        let device = format!("\n[[device]]\n{device}");
        let mut text = std::fs::read_to_string(file).unwrap_or_default();
        if !text.contains(&device) {
            text += &device;
            std::fs::write(file, text)?;
        }
        daemon
            .env("FAKE_CIUL_WIRE", "packet")
            .env("FAKE_CIUL_FAULT", self.options.card.unwrap_or_default());
        Ok(())
    }

    pub(crate) fn wait_for_card(&self) -> Result<()> {
        let is_open = || self.why_no_port().contains("a card that ef_vi serves");
        let open = wait_until("the card is open", Duration::from_secs(20), is_open);
        open.map_err(|error| format!("{error}: {}", self.why_no_port()))?;
        self.wait_for_daemon()
    }

    /// Starts a daemon with a device and plugs in the other end of its wire.
    fn open_port(&mut self, vdev: Vdev) -> Result<()> {
        self.before_port(vdev)?;
        let devargs = vdev.devargs(&self.folder);
        let zero_copy =
            self.options.zero_copy || std::env::var_os("BYPASS_TEST_ZERO_COPY").is_some();
        let device = self.device(&devargs, if zero_copy { "zero_copy = true\n" } else { "" });
        let not_wire = "[daemon]\ninterfaces = { exclude = [\"wire\"] }\n";
        std::fs::write(self.device_file(), format!("{not_wire}{device}"))?;
        let mut daemon = self.program(Side::Server, crate::paths::bypassctl());
        daemon.args(["daemon", "--config"]).arg(self.device_file());
        daemon.run()?.check()?;
        self.after_port(vdev)
    }

    /// Waits until the port is open. DPDK loads all of its drivers first, which takes seconds on a
    /// machine with much to do.
    pub(crate) fn wait_for_port(&self) -> Result<()> {
        let is_open = || self.why_no_port().contains("side of a DPDK port");
        let open = wait_until("the port is open", Duration::from_secs(60), is_open);
        open.map_err(|error| format!("{error}: {}", self.why_no_port()).into())
    }

    /// The device that is the port.
    #[must_use]
    pub fn vdev(&self) -> Option<Vdev> {
        self.options.port
    }

    /// Moves the other end of the port's wire, which its driver has made beside it, to the client's
    /// side; again after each start of the relay. The driver has given it the port's MAC address.
    ///
    /// # Errors
    /// When there is none in time.
    pub fn plug_in(&self) -> Result<()> {
        // Not before the port is open: its driver finds the wire by its name.
        self.wait_for_port()?;
        let namespace = self.namespace(Side::Client);
        let peer = self.interface(Side::Client);
        let mac = "02:18:00:00:00:02";
        let to = [
            "link", "set", "dev", "wire", "netns", &namespace, "name", peer,
        ];
        self.ip(Side::Server, &to)?;
        self.ip(Side::Client, &["link", "set", peer, "address", mac])?;
        Ok(())
    }

    /// What doctor says of the port.
    fn why_no_port(&self) -> String {
        let mut doctor = self.program(Side::Server, crate::paths::bypassctl());
        let told = doctor.args(["doctor", self.interface(Side::Server)]).run();
        told.map_or_else(|error| error.to_string(), |run| run.stdout)
    }

    /// The daemon's configuration file of a bed with a port.
    #[must_use]
    pub fn device_file(&self) -> PathBuf {
        self.folder.join("device.toml")
    }

    /// A `[[device]]` that the server's interface is the face of; `more` are lines of it.
    #[must_use]
    pub fn device(&self, devargs: &str, more: &str) -> String {
        let name = self.interface(Side::Server);
        format!("[[device]]\nname = {name:?}\nbackend = \"dpdk\"\ndevargs = {devargs:?}\n{more}")
    }

    /// Makes the two sides find each other's MAC, so that no test meets an unresolved neighbour.
    fn wait_for_link(&self) -> Result<()> {
        let peers = [self.ipv4(Side::Client), self.ipv6(Side::Client)];
        for peer in &peers {
            wait_until(&format!("{peer} answers"), Duration::from_secs(20), || {
                let send = format!("echo > /dev/udp/{peer}/9");
                let _ = self.program(Side::Server, "bash").args(["-c", &send]).run();
                let seen = self.ip(Side::Server, &["neigh", "show", "to", peer]);
                seen.is_ok_and(|text| text.contains("lladdr"))
            })?;
        }
        Ok(())
    }

    /// Name of the network namespace of a side.
    #[must_use]
    pub fn namespace(&self, side: Side) -> String {
        match side {
            Side::Server => format!("{}-s", self.name),
            Side::Client => format!("{}-c", self.name),
        }
    }

    /// Name of the veth end of a side.
    #[must_use]
    pub fn interface(&self, side: Side) -> &'static str {
        match side {
            Side::Server => "byp-s",
            Side::Client => "byp-c",
        }
    }

    /// Side whose interface counts every frame. (The server's is a port's face for the kernel,
    /// which sees its own frames only.)
    #[must_use]
    pub fn counting_side(&self) -> Side {
        if self.options.port.is_some() {
            Side::Client
        } else {
            Side::Server
        }
    }

    /// IPv4 address of a side.
    #[must_use]
    pub fn ipv4(&self, side: Side) -> String {
        format!("198.18.{}.{}", self.options.subnet, host_number(side))
    }

    /// IPv6 address of a side.
    #[must_use]
    pub fn ipv6(&self, side: Side) -> String {
        format!("fd98:{}::{}", self.options.subnet, host_number(side))
    }

    /// Folder for files of this test bed; removed with it.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// A program to run in the namespace of a side; native unless told otherwise.
    pub fn program(&self, side: Side, program: impl AsRef<OsStr>) -> Program<'_> {
        Program::new(self, side, program.as_ref())
    }

    /// The processors of a side's programs, as taskset(1) takes them; all of them by default.
    pub(crate) fn processors(&self, side: Side) -> Option<String> {
        let count = std::thread::available_parallelism().map_or(1, usize::from);
        let half = count / 2;
        (self.options.apart && half > 0).then(|| match side {
            Side::Server => format!("0-{}", half - 1),
            Side::Client => format!("{half}-{}", count - 1),
        })
    }

    /// Runs `ip ARGUMENTS` in the namespace of a side.
    ///
    /// # Errors
    /// When `ip` fails; the text is its standard error.
    pub fn ip(&self, side: Side, arguments: &[&str]) -> Result<String> {
        let namespace = self.namespace(side);
        let mut all = vec!["-n", namespace.as_str()];
        all.extend(arguments);
        ip(all)
    }

    /// Ids of the processes in the namespace of a side.
    #[must_use]
    pub fn processes(&self, side: Side) -> Vec<u32> {
        let list = ip(["netns", "pids", &self.namespace(side)]).unwrap_or_default();
        list.lines()
            .filter_map(|line| line.trim().parse().ok())
            .collect()
    }
}

impl Drop for Testbed {
    fn drop(&mut self) {
        drop(self.janitor.stdin.take());
        // A janitor that cannot be waited for has nothing left to do.
        let _ = self.janitor.wait();
        drop(self.link.take());
    }
}

fn host_number(side: Side) -> u8 {
    match side {
        Side::Server => 1,
        Side::Client => 2,
    }
}

/// Runs `ip` and gives what it printed.
fn ip<'a>(arguments: impl IntoIterator<Item = &'a str>) -> Result<String> {
    let arguments: Vec<&str> = arguments.into_iter().collect();
    let run = Command::new("ip").args(&arguments).output()?;
    if run.status.success() {
        return Ok(String::from_utf8_lossy(&run.stdout).into_owned());
    }
    let why = String::from_utf8_lossy(&run.stderr);
    Err(format!("ip {}: {}", arguments.join(" "), why.trim()).into())
}
