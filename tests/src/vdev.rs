//! Virtual devices of DPDK that the port of a test bed may be, and what ends their wire.
//!
//! ```text
//!   net_tap             the driver makes the wire's other end, which is moved to the client's side
//!   net_af_xdp, net_af_packet
//!                       one end of a veth, whose other end is the client's
//!   net_memif, net_virtio_user, net_vhost
//!                       shared memory with testpmd, which forwards from and to the client's TAP
//! ```

use std::path::Path;
use std::time::Duration;

use crate::Result;
use crate::program::{Running, wait_until};
use crate::testbed::{Side, Testbed};

/// A driver of DPDK for a device that is no card.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Vdev {
    /// A TAP device.
    Tap,
    /// A veth, by AF_XDP.
    AfXdp,
    /// A veth, by AF_PACKET.
    AfPacket,
    /// Shared memory, with testpmd at the other end.
    Memif,
    /// The guest's end of vhost-user.
    VirtioUser,
    /// The host's end of vhost-user.
    Vhost,
}

/// The other program with a port.
const TESTPMD: &str = "dpdk-testpmd";

impl Vdev {
    /// The driver's name, as `bypassctl stacks` has it.
    #[must_use]
    pub fn driver(self) -> &'static str {
        match self {
            Self::Tap => "net_tap",
            Self::AfXdp => "net_af_xdp",
            Self::AfPacket => "net_af_packet",
            Self::Memif => "net_memif",
            Self::VirtioUser => "net_virtio_user",
            Self::Vhost => "net_vhost",
        }
    }

    /// Why it cannot be tried here.
    ///
    /// # Panics
    /// When `BYPASS_TEST_REQUIRE_SHIM` is set: then what is missing is a failure, not a skip.
    #[must_use]
    pub fn is_missing(self) -> Option<String> {
        self.testpmd_arguments(Path::new(""))?;
        if Path::new("/usr/bin").join(TESTPMD).exists() {
            return None;
        }
        let why = format!("{TESTPMD} is not there: apt install dpdk-dev");
        assert!(
            std::env::var_os("BYPASS_TEST_REQUIRE_SHIM").is_none(),
            "{}: {why}",
            self.driver()
        );
        Some(why)
    }

    /// The port's device arguments; sockets are in `folder`.
    pub(crate) fn devargs(self, folder: &Path) -> String {
        let socket = folder.join("vdev.sock");
        let socket = socket.display();
        match self {
            Self::Tap => "net_tap0,iface=wire".into(),
            Self::AfXdp => "net_af_xdp0,iface=wire".into(),
            Self::AfPacket => "net_af_packet0,iface=wire".into(),
            Self::Memif => format!(
                "net_memif0,role=server,socket={socket},socket-abstract=no,mac=02:18:00:00:00:01"
            ),
            Self::VirtioUser => format!("net_virtio_user0,path={socket},mac=02:18:00:00:00:01"),
            Self::Vhost => format!("net_vhost0,iface={socket}"),
        }
    }

    /// testpmd's end of it, where it has one.
    fn testpmd_arguments(self, folder: &Path) -> Option<String> {
        let socket = folder.join("vdev.sock");
        let socket = socket.display();
        match self {
            Self::Tap | Self::AfXdp | Self::AfPacket => None,
            Self::Memif => Some(format!(
                "net_memif0,role=client,socket={socket},socket-abstract=no"
            )),
            Self::VirtioUser => Some(format!("net_vhost0,iface={socket}")),
            Self::Vhost => Some(format!("net_virtio_user0,path={socket}")),
        }
    }
}

impl Testbed {
    /// What must be there before the port is opened: the veth, or a testpmd that makes the socket.
    pub(crate) fn before_port(&mut self, vdev: Vdev) -> Result<()> {
        match vdev {
            Vdev::AfXdp => self.add_wire(),
            Vdev::AfPacket => {
                self.add_wire()?;
                // The kernel gets a copy of each frame at the wire: it is to take none for its own.
                let quiet = "net.ipv4.conf.wire.rp_filter=1";
                let no_v6 = "net.ipv6.conf.wire.disable_ipv6=1";
                let mut sysctl = self.program(Side::Server, "sysctl");
                sysctl.args(["-w", quiet, no_v6]).run()?.check()?;
                // Frames of more than the MTU have no place in the driver's ring.
                let mut ethtool = self.program(Side::Client, "ethtool");
                ethtool.args(["-K", self.interface(Side::Client), "tso", "off"]);
                ethtool.run()?.check().map(drop)
            }
            Vdev::VirtioUser => {
                self.start_testpmd(vdev)?;
                self.wait_for_socket()
            }
            Vdev::Tap | Vdev::Memif | Vdev::Vhost => Ok(()),
        }
    }

    /// What needs the open port.
    pub(crate) fn after_port(&mut self, vdev: Vdev) -> Result<()> {
        match vdev {
            Vdev::Tap => self.plug_in(),
            Vdev::AfXdp | Vdev::AfPacket => self.wait_for_port(),
            Vdev::VirtioUser => {
                self.wait_for_port()?;
                self.wait_for_testpmd()
            }
            Vdev::Memif | Vdev::Vhost => {
                self.wait_for_port()?;
                self.wait_for_socket()?;
                self.start_testpmd(vdev)?;
                self.wait_for_testpmd()
            }
        }
    }

    fn add_wire(&self) -> Result<()> {
        let client = self.namespace(Side::Client);
        let mut link = vec!["link", "add", "wire", "type", "veth", "peer", "name"];
        link.extend([self.interface(Side::Client), "netns", &client]);
        self.ip(Side::Server, &link)?;
        self.ip(Side::Server, &["link", "set", "wire", "up"])?;
        Ok(())
    }

    fn start_testpmd(&mut self, vdev: Vdev) -> Result<()> {
        let device = vdev.testpmd_arguments(self.folder()).unwrap_or_default();
        let tap = format!(
            "iface={},mac=02:18:00:00:00:02",
            self.interface(Side::Client)
        );
        // A line is to be seen when it is written.
        let mut testpmd = self.program(Side::Client, "stdbuf");
        testpmd.args(["-oL", TESTPMD, "--no-huge", "--no-shconf", "-m", "64"]);
        testpmd.args(["--no-pci", "--no-telemetry", "--lcores"]);
        let any = allowed_processors()?;
        testpmd.arg(format!("0@({any}),1@({any})"));
        testpmd.arg(format!("--file-prefix={}", self.namespace(Side::Client)));
        testpmd.arg(format!("--vdev={device}"));
        testpmd.arg(format!("--vdev=net_tap0,{tap}"));
        // With statistics it does not wait for its input's end.
        let how = ["--", "--forward-mode=io", "--total-num-mbufs=4096"];
        testpmd.args(how).arg("--stats-period=60");
        let running = testpmd.spawn()?;
        self.testpmd = Some(running);
        Ok(())
    }

    fn wait_for_socket(&self) -> Result<()> {
        let socket = self.folder().join("vdev.sock");
        let there = wait_until("the device's socket", Duration::from_secs(60), || {
            socket.exists()
        });
        there.map_err(|error| format!("{error}: {}", self.testpmd_said()).into())
    }

    /// Waits until it forwards: it has set up its TAP then, and leaves it alone.
    fn wait_for_testpmd(&self) -> Result<()> {
        let forwards = wait_until("testpmd forwards", Duration::from_secs(60), || {
            self.testpmd_said()
                .contains("forwards packets on 2 streams")
        });
        forwards.map_err(|error| format!("{error}: {}", self.testpmd_said()).into())
    }

    fn testpmd_said(&self) -> String {
        let said = |running: &Running| format!("{}{}", running.stdout(), running.stderr());
        self.testpmd.as_ref().map(said).unwrap_or_default()
    }
}

/// The processors that this process may use, as `0-3,7`.
fn allowed_processors() -> Result<String> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let list = status
        .lines()
        .find_map(|line| line.strip_prefix("Cpus_allowed_list:"));
    Ok(list.ok_or("no list of processors")?.trim().to_owned())
}
