//! A network interface opened for AF_XDP: the attached steering program, its queues and filters.
//!
//! The link descriptor is the lease: when the last copy of it is closed the program is detached.
//! Clients keep copies, so the daemon's death detaches nothing.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::xdp::{SocketAddrXdp, SocketAddrXdpFlags, XdpUmemReg, XdpUmemRegFlags};
use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, socket_with, sockopt};

use super::netdev::{self, Interface};
use super::program::{self, COUNTERS, Flow, Listener, Maps, Target};
use super::{bpf, xdp_option};

/// Queues of one slot in the `xsks` map.
pub const QUEUES_PER_SLOT: u32 = 64;
/// Entries of each ring of a queue.
pub const RING_ENTRIES: u32 = 2048;

/// `XDP_FLAGS_SKB_MODE`.
const SKB_MODE: u32 = 1 << 1;
/// `XDP_FLAGS_DRV_MODE`.
const DRV_MODE: u32 = 1 << 2;
/// How long a bind is repeated: a queue stays busy for some milliseconds after its owner died.
const BIND_PATIENCE: Duration = Duration::from_secs(1);
/// Frames that one doorbell may send.
const TX_BUDGET: u32 = 256;

/// How the program is, or is to be, attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Native where the driver can, else generic (only asked for, never the answer).
    Auto,
    /// In the driver.
    Native,
    /// In the kernel's generic receive path: every driver, slower.
    Generic,
}

/// What to open.
#[derive(Clone, Copy, Debug)]
pub struct NicConfig {
    /// Interface index.
    pub ifindex: u32,
    /// How to attach.
    pub mode: Mode,
}

/// Why an interface or queue could not be opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NicError {
    /// The kernel's errno.
    pub errno: Errno,
    /// What was tried.
    pub what: String,
}

impl std::fmt::Display for NicError {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "{}: {}", self.what, self.errno)
    }
}

impl std::error::Error for NicError {}

fn failed(what: &str) -> impl FnOnce(Errno) -> NicError + '_ {
    move |errno| NicError {
        errno,
        what: what.to_owned(),
    }
}

/// Packet memory of a stack, as it is mapped in this process.
#[derive(Clone, Copy, Debug)]
pub struct PacketMemory {
    /// First byte, page aligned.
    pub address: *mut u8,
    /// Size.
    pub bytes: usize,
    /// Size of one chunk in bytes: 2048 or 4096.
    pub chunk_size: u32,
}

/// A filter of the steering program.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FilterKey {
    /// A local address, or any.
    Listener(Listener),
    /// An exact flow.
    Flow(Flow),
}

/// What a filter has counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FilterCounters {
    /// Frames redirected.
    pub packets: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// An interface with the steering program attached.
#[derive(Debug)]
pub struct Nic {
    /// Facts about the interface.
    pub interface: Interface,
    /// How the program is attached.
    pub mode: Mode,
    /// RX queues, each of which is to be opened.
    pub queue_count: u32,
    link: OwnedFd,
    maps: Maps,
}

impl Nic {
    /// Loads the program and attaches it.
    ///
    /// # Errors
    /// With the step that failed; `EBUSY` or `EEXIST` when another XDP program is attached,
    /// `ERANGE`
    /// when the MTU (or a veth peer's) is too large.
    pub fn open(config: NicConfig) -> Result<Self, NicError> {
        let before =
            netdev::interface(config.ifindex).map_err(failed("asking for the interface"))?;
        let (program, maps) = program::load().map_err(|error| NicError {
            errno: error.errno,
            what: error.what,
        })?;
        let modes: &[Mode] = match config.mode {
            Mode::Auto => &[Mode::Native, Mode::Generic],
            Mode::Native => &[Mode::Native],
            Mode::Generic => &[Mode::Generic],
        };
        let mut error = NicError {
            errno: Errno::OPNOTSUPP,
            what: "attaching".to_owned(),
        };
        for &mode in modes {
            let flags = if mode == Mode::Native {
                DRV_MODE
            } else {
                SKB_MODE
            };
            match bpf::attach_xdp(program.as_fd(), config.ifindex, flags) {
                Ok(link) => {
                    // Attaching may change the number of queues (virtio_net).
                    let interface = netdev::interface(config.ifindex).unwrap_or(before);
                    let queue_count = interface.queues;
                    return Ok(Self {
                        interface,
                        mode,
                        queue_count,
                        link,
                        maps,
                    });
                }
                Err(errno) => {
                    error = NicError {
                        errno,
                        what: format!("attaching the XDP program to {}", before.name),
                    };
                    if errno != Errno::OPNOTSUPP && errno != Errno::INVAL {
                        break;
                    }
                }
            }
        }
        Err(error)
    }

    /// Takes over an interface from a link that somebody else keeps.
    ///
    /// # Errors
    /// `ENODEV` when the interface is gone, `EINVAL` when the link is not of our program.
    pub fn from_link(link: OwnedFd) -> Result<Self, NicError> {
        let (program, ifindex) =
            bpf::link_target(link.as_fd()).map_err(failed("asking for the link's target"))?;
        let interface = netdev::interface(ifindex).map_err(failed("asking for the interface"))?;
        let maps = bpf::maps_of(program).map_err(failed("asking for the program's maps"))?;
        let maps = Maps::from_named(maps)
            .ok_or(Errno::INVAL)
            .map_err(failed("recognising the program"))?;
        let queue_count = interface.queues;
        Ok(Self {
            interface,
            mode: Mode::Native,
            queue_count,
            link,
            maps,
        })
    }

    /// The lease on the attachment.
    #[must_use]
    pub fn link(&self) -> BorrowedFd<'_> {
        self.link.as_fd()
    }

    /// Opens a queue over packet memory, with rings of `ring_entries`, and lets the filters of
    /// `slot` reach it.
    ///
    /// # Errors
    /// `EBUSY` when another process has the queue.
    pub fn open_queue(
        &self,
        queue_id: u32,
        memory: &PacketMemory,
        ring_entries: u32,
        slot: u32,
    ) -> Result<OwnedFd, NicError> {
        let fd = socket_with(
            AddressFamily::XDP,
            SocketType::RAW,
            SocketFlags::CLOEXEC,
            None,
        )
        .map_err(failed("making the AF_XDP socket"))?;
        let registration = XdpUmemReg {
            addr: memory.address as u64,
            len: memory.bytes as u64,
            chunk_size: memory.chunk_size,
            headroom: 0,
            flags: XdpUmemRegFlags::empty(),
            tx_metadata_len: 0,
        };
        sockopt::set_xdp_umem_reg(&fd, registration)
            .map_err(failed("registering packet memory"))?;
        sockopt::set_xdp_umem_fill_ring_size(&fd, ring_entries)
            .and_then(|()| sockopt::set_xdp_umem_completion_ring_size(&fd, ring_entries))
            .and_then(|()| sockopt::set_xdp_rx_ring_size(&fd, ring_entries))
            .and_then(|()| sockopt::set_xdp_tx_ring_size(&fd, ring_entries))
            .map_err(failed("sizing the rings"))?;
        let _ = sockopt::set_socket_send_buffer_size_force(&fd, 16 << 20);
        self.bind(&fd, queue_id)?;
        // Kernels before 6.18 lack it: a doorbell then sends 32 frames.
        let _ = xdp_option::set_tx_budget(fd.as_fd(), TX_BUDGET);
        let index = slot * QUEUES_PER_SLOT + queue_id;
        bpf::update(
            self.maps.xsks.as_fd(),
            &index,
            &fd.as_raw_fd().cast_unsigned(),
        )
        .map_err(failed("entering the queue in the program's map"))?;
        Ok(fd)
    }

    fn bind(&self, fd: &OwnedFd, queue_id: u32) -> Result<(), NicError> {
        let flags = SocketAddrXdpFlags::XDP_COPY | SocketAddrXdpFlags::XDP_USE_NEED_WAKEUP;
        let address = SocketAddrXdp::new(flags, self.interface.ifindex, queue_id);
        let mut waited = Duration::ZERO;
        let mut pause = Duration::from_millis(1);
        loop {
            match bind(fd, &address) {
                Err(Errno::BUSY) if waited < BIND_PATIENCE => {
                    let time = rustix::time::Timespec {
                        tv_sec: 0,
                        tv_nsec: pause.subsec_nanos().into(),
                    };
                    let _ = rustix::thread::nanosleep(&time);
                    waited += pause;
                    pause = (pause * 2).min(Duration::from_millis(50));
                }
                answer => return answer.map_err(failed("binding the queue")),
            }
        }
    }

    /// Takes a queue out of the program's map: its frames pass to the kernel.
    pub fn close_queue(&self, queue_id: u32, slot: u32) {
        let index = slot * QUEUES_PER_SLOT + queue_id;
        let _ = bpf::remove(self.maps.xsks.as_fd(), &index);
    }

    /// Leads matching frames to the queues of `slot`.
    ///
    /// # Errors
    /// `E2BIG` when the map is full.
    pub fn add_filter(&self, filter: FilterKey, slot: u32) -> Result<(), NicError> {
        self.enter(
            filter,
            Target {
                slot,
                ..Target::default()
            },
        )
    }

    /// Keeps matching frames in the kernel, whatever less exact filters say.
    ///
    /// # Errors
    /// `E2BIG` when the map is full.
    pub fn keep_in_kernel(&self, filter: FilterKey) -> Result<(), NicError> {
        self.enter(
            filter,
            Target {
                flags: Target::KEEP_IN_KERNEL,
                ..Target::default()
            },
        )
    }

    fn enter(&self, filter: FilterKey, target: Target) -> Result<(), NicError> {
        match &filter {
            FilterKey::Listener(key) => bpf::update(self.maps.listeners.as_fd(), key, &target),
            FilterKey::Flow(key) => bpf::update(self.maps.flows.as_fd(), key, &target),
        }
        .map_err(failed("entering the filter"))
    }

    /// Removes a filter; one that is not there is no error.
    pub fn remove_filter(&self, filter: FilterKey) {
        let _ = match &filter {
            FilterKey::Listener(key) => bpf::remove(self.maps.listeners.as_fd(), key),
            FilterKey::Flow(key) => bpf::remove(self.maps.flows.as_fd(), key),
        };
    }

    /// What a filter does and has counted.
    #[must_use]
    pub fn target(&self, filter: FilterKey) -> Option<Target> {
        match &filter {
            FilterKey::Listener(key) => bpf::find(self.maps.listeners.as_fd(), key),
            FilterKey::Flow(key) => bpf::find(self.maps.flows.as_fd(), key),
        }
        .ok()
    }

    /// What a filter has counted.
    #[must_use]
    pub fn filter_counters(&self, filter: FilterKey) -> FilterCounters {
        self.target(filter)
            .map_or_else(FilterCounters::default, |target| FilterCounters {
                packets: target.packets,
                bytes: target.bytes,
            })
    }

    /// Every filter in the program's maps.
    #[must_use]
    pub fn filters(&self) -> Vec<FilterKey> {
        let listeners = bpf::keys(self.maps.listeners.as_fd())
            .into_iter()
            .map(FilterKey::Listener);
        let flows = bpf::keys(self.maps.flows.as_fd())
            .into_iter()
            .map(FilterKey::Flow);
        listeners.chain(flows).collect()
    }

    /// The program's counters, in the order of [`COUNTERS`].
    #[must_use]
    pub fn counters(&self) -> Vec<u64> {
        let cpus = possible_cpus();
        (0..COUNTERS.len() as u32)
            .map(|index| bpf::sum(self.maps.counters.as_fd(), index, cpus))
            .collect()
    }
}

/// Possible CPUs: a per-CPU map has a value for each. `/sys/devices/system/cpu/possible` is "0-7".
fn possible_cpus() -> usize {
    const MOST: usize = 4096;
    let read = || -> Option<usize> {
        let file = rustix::fs::open(
            "/sys/devices/system/cpu/possible",
            rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::CLOEXEC,
            rustix::fs::Mode::empty(),
        )
        .ok()?;
        let mut text = [0; 64];
        let count = rustix::io::read(&file, &mut text).ok()?;
        let text = std::str::from_utf8(text.get(..count)?).ok()?;
        let last = text
            .trim()
            .rsplit(['-', ','])
            .next()?
            .parse::<usize>()
            .ok()?;
        Some(last + 1)
    };
    read().unwrap_or(MOST).min(MOST)
}
