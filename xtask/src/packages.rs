//! The Debian packages that building and testing need.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use bypass_tests::Result;

use crate::progress::step;

/// Package and the program or file that shows that it is there.
const PACKAGES: &[(&str, &str)] = &[
    ("binutils", "/usr/bin/nm"),
    ("apache2-bin", "/usr/sbin/apache2"),
    ("apache2-utils", "/usr/bin/ab"),
    ("bind9-dnsutils", "/usr/bin/dig"),
    ("clang", "/usr/bin/clang"),
    ("cpio", "/usr/bin/cpio"),
    ("curl", "/usr/bin/curl"),
    ("default-jdk-headless", "/usr/bin/javac"),
    ("dnsperf", "/usr/bin/dnsperf"),
    ("ethtool", "/usr/sbin/ethtool"),
    ("gcc", "/usr/bin/gcc"),
    ("gunicorn", "/usr/bin/gunicorn"),
    ("haproxy", "/usr/sbin/haproxy"),
    ("iperf3", "/usr/bin/iperf3"),
    ("iproute2", "/usr/sbin/ip"),
    ("iputils-ping", "/usr/bin/ping"),
    ("knot", "/usr/sbin/knotd"),
    ("kmod", "/usr/sbin/modprobe"),
    ("libc6-dev", "/usr/include/stdio.h"),
    (
        "libpython3.11-testsuite",
        "/usr/lib/python3.11/test/test_socket.py",
    ),
    ("libmemcached-tools", "/usr/bin/memcaslap"),
    ("dpdk-dev", "/usr/bin/dpdk-testpmd"),
    ("libdpdk-dev", "/usr/include/dpdk/rte_ethdev.h"),
    ("liblwip-dev", "/usr/include/lwip/netif/tapif.h"),
    ("liburing-dev", "/usr/include/liburing.h"),
    ("linux-libc-dev", "/usr/include/linux/if_xdp.h"),
    ("make", "/usr/bin/make"),
    ("memcached", "/usr/bin/memcached"),
    ("nginx-light", "/usr/sbin/nginx"),
    ("nodejs", "/usr/bin/node"),
    ("nsd", "/usr/sbin/nsd"),
    ("openssh-server", "/usr/sbin/sshd"),
    ("openssl", "/usr/bin/openssl"),
    ("pkgconf", "/usr/bin/pkg-config"),
    ("postgresql", "/usr/lib/postgresql/15/bin/postgres"),
    ("procps", "/usr/bin/ps"),
    ("python3", "/usr/bin/python3"),
    (
        "python3-uvloop",
        "/usr/lib/python3/dist-packages/uvloop/__init__.py",
    ),
    ("redis-server", "/usr/bin/redis-server"),
    ("redis-tools", "/usr/bin/redis-benchmark"),
    ("socat", "/usr/bin/socat"),
    ("sockperf", "/usr/bin/sockperf"),
    ("strace", "/usr/bin/strace"),
    ("sudo", "/usr/bin/sudo"),
    ("unbound", "/usr/sbin/unbound"),
    ("util-linux", "/usr/bin/setpriv"),
    ("valgrind", "/usr/bin/valgrind"),
    ("wrk", "/usr/bin/wrk"),
    ("xz-utils", "/usr/bin/xz"),
    ("zstd", "/usr/bin/zstd"),
    ("xinetd", "/usr/sbin/xinetd"),
];

/// Installs what is missing.
///
/// # Errors
/// When `apt-get` fails, or something is missing and we are not root.
pub(crate) fn install_missing() -> Result<()> {
    let missing: Vec<&str> = PACKAGES
        .iter()
        .filter(|(_, file)| !Path::new(file).exists())
        .map(|(package, _)| *package)
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    step(&format!("installing {}", missing.join(" ")), || {
        let _quiet = NoServices::new();
        apt_get(&["update"])?;
        let mut arguments = vec!["install", "--yes", "--no-install-recommends"];
        arguments.extend(&missing);
        apt_get(&arguments)
    })
}

fn apt_get(arguments: &[&str]) -> Result<()> {
    let run = Command::new("apt-get")
        .args(arguments)
        .env("DEBIAN_FRONTEND", "noninteractive")
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .output()?;
    if run.status.success() {
        return Ok(());
    }
    let why = String::from_utf8_lossy(&run.stderr);
    Err(format!("apt-get {} failed:\n{why}", arguments.join(" ")).into())
}

/// Keeps the packages' services from being started while it lives; our tests start them
/// themselves. Debian asks this file before it starts a service.
struct NoServices {
    ours: bool,
}

const POLICY: &str = "/usr/sbin/policy-rc.d";

impl NoServices {
    fn new() -> Self {
        use std::os::unix::fs::PermissionsExt;
        let ours = !Path::new(POLICY).exists()
            && fs::write(POLICY, "#!/bin/sh\nexit 101\n").is_ok()
            && fs::set_permissions(POLICY, fs::Permissions::from_mode(0o755)).is_ok();
        Self { ours }
    }
}

impl Drop for NoServices {
    fn drop(&mut self) {
        if self.ours {
            // What cannot be removed was removed by somebody else.
            let _ = fs::remove_file(POLICY);
        }
    }
}
