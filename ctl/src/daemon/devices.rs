//! Devices of the configuration, cards for ef_vi that are there, and their relays.
//!
//! A device becomes an interface when its relay, a process of its own, says that it has opened it.
//! The relay listens on an address of the network namespace: a daemon connects to the one that is
//! there, or starts one. A relay that ends is started again; one that could not open its device
//! later, or when the configuration is read again.
//!
//! ```text
//!   starting ── it has the port ──► ready ── it is gone ──► lost ── a second later ──► starting
//!      └─────── it has not ───────► failed ── a little later ───────► starting
//! ```

use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bypass_backends::ef_vi;
use bypass_backends::relay::{self, Answer, Link, RelayNic};
use bypass_proto::policy::{Backend, Device as Wanted};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::time::Timespec;

use super::server::{Server, Token};

/// Time between the end of a relay and the start of the next one: of one that had its port, and the
/// longest of those that had not, for each of which it doubles.
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));
/// How long a daemon that begins waits for a relay that runs already to say so, and how long for
/// the end of one that is to end.
const PATIENCE: Duration = Duration::from_secs(1);

/// A device of the configuration, or a card.
#[derive(Debug)]
struct Device {
    /// In events.
    number: u64,
    wanted: Wanted,
    link: Option<Arc<Link>>,
    child: Option<Child>,
    nic: Option<RelayNic>,
    /// Why it is not there.
    reason: String,
    retry: Option<Instant>,
    /// How long after its next failure.
    pause: Duration,
    /// It is a card whose interface the next backend serves until the configuration is read again.
    is_given_up: bool,
}

/// All devices, in the configuration's order.
#[derive(Debug, Default)]
pub(super) struct Devices {
    list: Vec<Device>,
    last_number: u64,
}

impl Device {
    fn new(number: u64, wanted: Wanted) -> Self {
        Self {
            number,
            wanted,
            link: None,
            child: None,
            nic: None,
            reason: "it is being opened".to_owned(),
            retry: None,
            pause: RETRY.0,
            is_given_up: false,
        }
    }

    /// Finds its relay, or starts one. Whether there was one.
    fn start(&mut self) -> bool {
        self.retry = None;
        self.is_given_up = false;
        let name = &self.wanted.name;
        let (link, found) = match Link::connect(name) {
            Ok(link) => (Ok(link), true),
            Err(Errno::PERM) => (
                Err("another user has taken its relay's address".to_owned()),
                false,
            ),
            Err(_) => (
                self.spawn().and_then(|()| connect(&self.wanted.name)),
                false,
            ),
        };
        match link {
            Ok(link) => self.link = Some(Arc::new(link)),
            Err(reason) => self.fail(reason),
        }
        found
    }

    /// Notes why it is not there; it is tried again later.
    fn fail(&mut self, reason: String) {
        if self.reason != reason {
            eprintln!("bypassctl: device {}: {reason}", self.wanted.name);
        }
        self.reason = reason;
        self.link = None;
        // A card's interface has the next backend meanwhile, and stays with it.
        self.is_given_up = self.wanted.backend == Backend::EfVi;
        self.retry = None;
        if !self.is_given_up {
            self.try_later();
        }
    }

    fn try_later(&mut self) {
        self.retry = Some(Instant::now() + self.pause);
        self.pause = (self.pause * 2).min(RETRY.1);
    }

    fn spawn(&mut self) -> Result<(), String> {
        self.bury();
        let wanted = &self.wanted;
        let failed = |what: &str, error: &dyn std::fmt::Display| format!("{what}: {error}");
        let listener = relay::claim(&wanted.name)
            .map_err(|errno| failed("claiming the address of its relay", &errno))?;
        let own = std::env::current_exe().map_err(|error| failed("finding bypassctl", &error))?;
        let mut command = Command::new(own);
        command.args(["relay", "--name", &wanted.name]);
        match wanted.backend {
            Backend::EfVi => command.arg("--ef-vi"),
            _ => command.args(["--devargs", &wanted.devargs]),
        };
        if let Some(library) = &wanted.library {
            command.arg("--library").arg(library);
        }
        if wanted.timestamps {
            command.arg("--timestamps");
        }
        if let Some(queues) = wanted.queues {
            command.args(["--queues", &queues.to_string()]);
        }
        if wanted.physical_rules {
            command.arg("--physical-rules");
        }
        if wanted.zero_copy {
            command.arg("--zero-copy");
        }
        for argument in &wanted.eal {
            command.args(["--eal", argument]);
        }
        if let Some(plugin) = &wanted.plugin {
            command.arg("--plugin").arg(plugin);
        }
        // DPDK writes its usage to standard output. What is for the terminal is not for the relay.
        command.stdin(Stdio::from(listener)).stdout(Stdio::null());
        command.process_group(0).current_dir("/");
        let child = command.spawn();
        self.child = Some(child.map_err(|error| failed("starting its relay", &error))?);
        Ok(())
    }

    /// Takes leave of a relay that has ended, or is to.
    fn bury(&mut self) {
        if let Some(mut child) = self.child.take() {
            // One that has ended already needs no signal.
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Whether this interface is its face.
    fn is(&self, name: &str) -> bool {
        self.wanted.name == name
    }
}

/// What has a relay: devices of the configuration, and cards for ef_vi that it does not name.
fn with_cards<'n>(configured: &[Wanted], cards: impl Iterator<Item = &'n str>) -> Vec<Wanted> {
    let is_named = |name: &str| configured.iter().any(|device| device.name == name);
    let relayed = configured.iter().filter(|it| it.backend.has_relay());
    let others = cards.filter(|name| !is_named(name)).map(Wanted::card);
    relayed.cloned().chain(others).collect()
}

/// [`PATIENCE`], for `poll`.
fn patience() -> Timespec {
    Timespec {
        tv_sec: PATIENCE.as_secs() as i64,
        tv_nsec: 0,
    }
}

fn connect(name: &str) -> Result<Link, String> {
    Link::connect(name).map_err(|errno| format!("connecting to its relay: {errno}"))
}

impl Devices {
    /// How many there are.
    pub(super) fn count(&self) -> usize {
        self.list.len()
    }

    /// Adds one, with the connection to its relay if there is one already; its number.
    fn add(&mut self, wanted: Wanted, link: Option<Arc<Link>>) -> u64 {
        self.last_number += 1;
        let device = Device::new(self.last_number, wanted);
        self.list.push(Device { link, ..device });
        self.last_number
    }

    fn get_mut(&mut self, number: u64) -> Option<&mut Device> {
        let mut devices = self.list.iter_mut();
        devices.find(|device| device.number == number)
    }

    /// The port behind an interface, with the connection to its relay.
    pub(super) fn port(&self, ifindex: u32) -> Option<(&RelayNic, Arc<Link>)> {
        self.list.iter().find_map(|device| {
            let nic = device.nic.as_ref().filter(|nic| nic.ifindex == ifindex)?;
            Some((nic, Arc::clone(device.link.as_ref()?)))
        })
    }

    /// Why an interface is not to be used: it is the face of a device whose relay is not there.
    pub(super) fn unfit(&self, name: &str) -> Option<String> {
        let device = self.list.iter().find(|device| device.is(name))?;
        let is_missing = device.nic.is_none() && !device.is_given_up;
        is_missing.then(|| device.reason.clone())
    }

    /// Why a card is not driven as one, the next backend serving its interface.
    pub(super) fn given_up(&self, name: &str) -> Option<&str> {
        let device = self.list.iter().find(|device| device.is(name))?;
        device.is_given_up.then_some(device.reason.as_str())
    }

    /// Whether an interface is the face of a device.
    pub(super) fn has(&self, name: &str) -> bool {
        self.list.iter().any(|device| device.is(name))
    }

    /// The PCI address of the device that an interface is the face of.
    pub(super) fn address(&self, name: &str) -> Option<&str> {
        let device = self.list.iter().find(|device| device.is(name))?;
        let first = device.wanted.devargs.split(',').next()?;
        first.contains(':').then_some(first)
    }

    /// Devices without an interface, with the reason.
    pub(super) fn failed(&self) -> impl Iterator<Item = (&str, &str)> {
        let without = self.list.iter().filter(|device| device.nic.is_none());
        without.map(|device| (device.wanted.name.as_str(), device.reason.as_str()))
    }

    /// Ports that are open: name and what they have counted.
    pub(super) fn counted(&self) -> impl Iterator<Item = (&str, Backend, Vec<(String, u64)>)> {
        self.list.iter().filter_map(|device| {
            let board = &device.nic.as_ref()?.board;
            let numbers = relay::read_board(&**board);
            Some((device.wanted.name.as_str(), device.wanted.backend, numbers))
        })
    }

    /// Whether there is none.
    pub(super) fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// When the next relay is to be started.
    pub(super) fn due(&self) -> Option<Instant> {
        self.list.iter().filter_map(|device| device.retry).min()
    }
}

impl Server {
    /// Brings the devices in line with the configuration. Those that failed are tried again.
    pub(super) fn follow_devices(&mut self) {
        let links = self.mirror.links().map(|link| link.name.as_str());
        let cards = links.filter(|name| ef_vi::check_card(name).is_ok());
        let wanted = with_cards(&self.config.policy.devices, cards);
        let is_wanted = |device: &Device| wanted.contains(&device.wanted);
        let list = std::mem::take(&mut self.devices.list);
        let (kept, gone): (Vec<Device>, Vec<Device>) = list.into_iter().partition(is_wanted);
        let is_new = |wanted: &&Wanted| !kept.iter().any(|device| device.wanted == **wanted);
        let new: Vec<Wanted> = wanted.iter().filter(is_new).cloned().collect();
        self.devices.list = kept;
        for device in gone {
            self.end_device(device);
        }
        for wanted in new {
            self.devices.add(wanted, None);
        }
        self.start_devices(|device| device.link.is_none());
    }

    /// Starts again what has ended.
    pub(super) fn restart_devices(&mut self) {
        let now = Instant::now();
        self.start_devices(|device| device.retry.is_some_and(|at| at <= now));
    }

    fn start_devices(&mut self, which: impl Fn(&Device) -> bool) {
        let picked = self.devices.list.iter().filter(|device| which(device));
        let numbers: Vec<u64> = picked.map(|device| device.number).collect();
        for number in numbers {
            self.start_device(number);
        }
    }

    fn start_device(&mut self, number: u64) {
        let Some(device) = self.devices.get_mut(number) else {
            return;
        };
        let found = device.start();
        self.begin_device(number, found);
    }

    /// Takes what the relay of an interface has that no device of ours is, if a daemon before has
    /// left one to a stack. It ends when the devices are brought in line the next time.
    pub(super) fn find_relay(&mut self, name: &str) {
        if self.devices.list.iter().any(|device| device.is(name)) {
            return;
        }
        if let Ok(link) = Link::connect(name) {
            let link = Some(Arc::new(link));
            let number = self.devices.add(Wanted::card(name), link);
            self.begin_device(number, true);
        }
    }

    /// Listens to the relay of a device, at once if it was `found` at work.
    fn begin_device(&mut self, number: u64, found: bool) {
        let Some(link) = self.devices.get_mut(number).and_then(|it| it.link.clone()) else {
            return;
        };
        if let Err(errno) = self.listen_to(&*link, Token::Relay(number)) {
            if let Some(device) = self.devices.get_mut(number) {
                device.fail(format!("listening to its relay: {errno}"));
            }
            return;
        }
        if found {
            // What it has must be known before its stack is adopted.
            let mut waiting = [PollFd::new(&*link, PollFlags::IN)];
            let _ = poll(&mut waiting, Some(&patience()));
            self.hear_relay(number);
        }
    }

    fn end_device(&mut self, mut device: Device) {
        if let Some(nic) = &device.nic {
            self.close_interface(nic.ifindex);
        }
        if let Some(link) = &device.link {
            link.end();
            // It says nothing more, but hangs up. (One of a daemon before is no child.)
            let mut waiting = [PollFd::new(&**link, PollFlags::empty())];
            let _ = poll(&mut waiting, Some(&patience()));
        }
        // The address is free for another relay only when this one is gone.
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline
            && let Some(child) = &mut device.child
            && child.try_wait().is_ok_and(|ended| ended.is_none())
        {
            std::thread::sleep(Duration::from_millis(5));
        }
        device.bury();
    }

    /// A relay says something, or is gone.
    pub(super) fn hear_relay(&mut self, number: u64) {
        let Some(device) = self.devices.get_mut(number) else {
            return;
        };
        let Some(link) = device.link.clone() else {
            return;
        };
        match link.hear() {
            Ok(None) => {}
            Ok(Some(Answer::Ready(nic))) => {
                let ifindex = nic.ifindex;
                device.nic = Some(nic);
                if self
                    .nics
                    .get(ifindex)
                    .is_some_and(|nic| !nic.backend().has_relay())
                {
                    // A card that was served by another backend until now.
                    self.close_interface(ifindex);
                }
                // Its interface may be newer than what we know.
                self.mirror.refresh_now(&mut self.counters);
                self.follow_mirror();
                self.reconcile_all();
                self.unpublished = true;
            }
            Ok(Some(Answer::Failed(words))) => {
                device.fail(words);
                device.bury();
                // The next backend may have it.
                self.reconcile_all();
                self.unpublished = true;
            }
            Err(errno) => self.relay_is_gone(number, errno),
        }
    }

    fn relay_is_gone(&mut self, number: u64, errno: Errno) {
        let Some(device) = self.devices.get_mut(number) else {
            return;
        };
        device.link = None;
        device.reason = format!("its relay has ended: {errno}");
        let nic = device.nic.take();
        if nic.is_some() {
            device.pause = RETRY.0;
        }
        device.try_later();
        if let Some(nic) = nic {
            self.close_interface(nic.ifindex);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_card_is_a_device_unless_the_configuration_says_another_thing() {
        let device = |name, backend| Wanted {
            backend,
            ..Wanted::card(name)
        };
        let configured = [
            device("vf0", Backend::Dpdk),
            device("eth1", Backend::AfXdp),
            Wanted {
                timestamps: true,
                ..Wanted::card("eth2")
            },
        ];
        let wanted = with_cards(&configured, ["eth1", "eth2", "eth3"].into_iter());
        let told = wanted
            .iter()
            .map(|it| (it.name.as_str(), it.backend, it.timestamps));
        let told: Vec<_> = told.collect();
        let cards = [
            ("eth2", Backend::EfVi, true),
            ("eth3", Backend::EfVi, false),
        ];
        assert_eq!(
            told,
            [&[("vf0", Backend::Dpdk, false)][..], &cards].concat()
        );
        assert_eq!(with_cards(&[], std::iter::empty()), []);
    }
}
