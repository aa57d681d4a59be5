//! `cargo xtask guest`: programs over a virtual function of an emulated card, driven by DPDK.
//!
//! A Debian kernel boots in QEMU with an igb card behind an IOMMU; nothing of this machine is in it
//! but what is built here. Debian's packages are unpacked below the target folder, once, never
//! installed. The scripts are in `tests/vm/`, which has a README of its own.
//!
//! `cargo xtask test` has the guest run [`Beside`] other tests.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::thread::{self, JoinHandle};

use bypass_tests::{Result, ciul, paths, plugin};

use crate::cargo_tests::Tally;
use crate::progress::step;
use crate::{build, packages};

/// A guest that takes so many seconds to boot, where five are usual, is on a machine that has no
/// time for it. Checks that fail there say nothing: programs have limits of their own.
const SLOW: f64 = 40.0;
/// How long a download may take, in seconds. It takes half a minute.
const PATIENCE: &str = "600";
/// A second card on the igb's wire. Without copies it works behind the IOMMU only.
const VIRTIO: [&str; 6] = [
    "-device",
    "pcie-root-port,id=rp2,chassis=2,slot=2",
    "-netdev",
    "hubport,id=n1,hubid=1",
    "-device",
    "virtio-net-pci,bus=rp2,netdev=n1,mac=02:18:06:00:00:02,iommu_platform=on",
];
/// What a guest is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// What every test run checks.
    Usual,
    /// That, and what takes long.
    All,
    /// AF_XDP without copies, on the newest kernel: those of the other guests do not have it.
    ZeroCopy,
}

impl Kind {
    /// The folder of its kernel, and that kernel in `prepare.sh`'s words.
    fn kernel(self) -> [&'static str; 2] {
        match self {
            Self::Usual | Self::All => ["vm", "12"],
            Self::ZeroCopy => ["vm13", "13"],
        }
    }

    /// An empty file in its job that says it.
    fn mark(self) -> Option<&'static str> {
        match self {
            Self::Usual => None,
            Self::All => Some("all"),
            Self::ZeroCopy => Some("zero"),
        }
    }

    /// How long it may take, in seconds. On two free processors it takes a tenth of that; a machine
    /// with much else to do must not fail.
    fn limit(self) -> &'static str {
        match self {
            Self::Usual | Self::ZeroCopy => "600",
            Self::All => "3600",
        }
    }
}
/// Programs of this machine that the guest runs, besides the product.
const PROGRAMS: [&str; 7] = [
    "/usr/sbin/knotd",
    "/usr/bin/dnsperf",
    "/usr/bin/redis-server",
    "/usr/bin/redis-benchmark",
    "/usr/sbin/nginx",
    "/usr/bin/memcached",
    "/usr/bin/sockperf",
];
/// Programs of `examples/c`.
const EXAMPLES: [&str; 6] = [
    "udpecho",
    "udprr",
    "udpreceiver",
    "udpsender",
    "tcpecho",
    "tcprr",
];
/// Programs of `tests/conformance`.
const CASES: [&str; 3] = ["conformance", "peer", "forged"];

/// Prepares the guest, boots it, and runs the checks in it: those of every test run, or all.
///
/// # Errors
/// When something cannot be had, or a check in the guest has failed.
pub(crate) fn run(all: bool) -> Result<()> {
    packages::install_missing()?;
    build::release()?;
    let kinds = match all {
        true => &[Kind::All, Kind::ZeroCopy][..],
        false => &[Kind::Usual],
    };
    let mut tally = Tally::default();
    for &kind in kinds {
        let folders = prepare(kind)?;
        tally.add(step("the guest", || boot(&folders, kind, true))?);
    }
    tally.end()
}

/// A guest beside other tests.
#[derive(Debug)]
pub(crate) struct Beside {
    boot: mpsc::Sender<()>,
    thread: JoinHandle<Tally>,
}

impl Beside {
    /// Begins to download what is missing.
    pub(crate) fn prepare() -> Self {
        let (boot, may_boot) = mpsc::channel();
        let thread = thread::spawn(move || {
            let prepared = prepare(Kind::Usual);
            let mut tally = Tally::default();
            if may_boot.recv().is_err() {
                // The tests have ended before.
                return tally;
            }
            match prepared.map_err(|why| why.to_string()) {
                Ok(folders) => match boot_twice(&folders) {
                    Ok(checks) => tally.add(checks),
                    Err(why) => tally.check("guest", Err(why)),
                },
                Err(why) => tally.not_run("guest", &why, "BYPASS_TEST_REQUIRE_GUEST"),
            }
            tally
        });
        Self { boot, thread }
    }

    /// Boots it: the product is built, and what runs now does not need all processors.
    pub(crate) fn boot(&self) {
        // A thread that is gone has told why.
        let _ = self.boot.send(());
    }

    /// Waits for its end: what was checked.
    pub(crate) fn end(self) -> Tally {
        self.boot();
        let failed = |_| {
            let mut tally = Tally::default();
            tally.check("guest", Err("its thread has panicked".into()));
            tally
        };
        self.thread.join().unwrap_or_else(failed)
    }
}

/// A guest that ends without a verdict is QEMU's end, not the product's, and one that hardly gets
/// to run proves nothing: it is booted once more.
fn boot_twice(folders: &Folders) -> Result<Tally> {
    let once = || step("the guest", || boot(folders, Kind::Usual, false));
    once().or_else(|why| {
        println!("guest: {why}; once more");
        let mut tally = once()?;
        tally.remark(format!("guest: booted twice: {why}"));
        Ok(tally)
    })
}

/// Where everything is.
#[derive(Debug)]
struct Folders {
    debian: PathBuf,
    image: PathBuf,
    job: PathBuf,
}

/// Downloads and unpacks what is missing.
fn prepare(kind: Kind) -> Result<Folders> {
    let [folder, kernel] = kind.kernel();
    let folder = paths::target().join(folder);
    let [debian, image, job] = ["debian", "image", "job"].map(|name| folder.join(name));
    let made = image.join("base.cpio");
    let prepared = debian.join("prepared");
    if !prepared.exists() {
        step("unpacking QEMU, a kernel and a userland of Debian", || {
            let arguments = [debian.as_os_str(), OsStr::new(kernel)];
            script("prepare.sh", &arguments).or_else(|_| script("prepare.sh", &arguments))
        })?;
    }
    if ![prepared, scripts().join("mkinitrd.sh")]
        .iter()
        .all(|from| is_newer(&made, from))
    {
        step("making the guest's first file system", || {
            script("mkinitrd.sh", &[debian.as_os_str(), image.as_os_str()])
        })?;
    }
    Ok(Folders { debian, image, job })
}

/// Boots the guest with the programs of this moment; what was checked. What it says is shown, or
/// only what fails.
///
/// # Errors
/// When the guest ends without a verdict, or not in time.
fn boot(folders: &Folders, kind: Kind, is_shown: bool) -> Result<Tally> {
    step("gathering the programs", || gather(&folders.job, kind))?;
    let limit = kind.limit();
    let mut child = Command::new(scripts().join("run-vm.sh"))
        .args([&folders.debian, &folders.image, &folders.job])
        .arg(limit)
        .args(if kind == Kind::Usual {
            &[][..]
        } else {
            &VIRTIO
        })
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()?;
    let output = child.stdout.take().ok_or("no output")?;
    let (mut tally, mut said, mut boot_time) = (Tally::default(), String::new(), 0.0);
    for line in BufReader::new(output).split(b'\n') {
        let line = String::from_utf8_lossy(&line?).into_owned();
        if is_shown {
            println!("{line}");
        }
        match line.split_once(' ') {
            Some(("ok", _)) => tally.passed += 1,
            Some(("GUEST-UP", time)) => boot_time = time.trim().parse().unwrap_or(0.0),
            Some(("FAIL", what)) => {
                tally.check(&format!("guest: {}", what.trim()), Err("failed".into()));
            }
            _ => {}
        }
        said += &line;
        said.push('\n');
    }
    let code = child.wait()?.code();
    if code != Some(0) && !is_shown {
        println!("{said}");
    }
    match code {
        Some(0) => {}
        Some(124) => return Err(format!("not done in {limit} s").into()),
        Some(125) => return Err("QEMU has ended without a verdict".into()),
        _ if boot_time > SLOW => {
            return Err(format!("checks fail where it took {boot_time} s to boot").into());
        }
        _ if tally.failed == 0 => {
            tally.check("guest", Err("the job has failed".into()));
        }
        _ => {}
    }
    Ok(tally)
}

/// Runs a script that prepares something.
///
/// # Errors
/// What it wrote last on standard error.
fn script(name: &str, arguments: &[&OsStr]) -> Result<()> {
    let run = Command::new("timeout")
        .arg(PATIENCE)
        .arg(scripts().join(name))
        .args(arguments)
        .stdin(Stdio::null())
        .output()?;
    if run.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&run.stderr);
    let lines: Vec<&str> = said.lines().collect();
    let last = lines[lines.len().saturating_sub(6)..].join("\n");
    let why = match run.status.code() {
        Some(124) => format!("not done in {PATIENCE} s"),
        _ => run.status.to_string(),
    };
    Err(format!("{name}: {why}\n{last}").into())
}

fn is_newer(made: &Path, from: &Path) -> bool {
    let time = |path: &Path| fs::metadata(path).and_then(|facts| facts.modified());
    matches!((time(made), time(from)), (Ok(made), Ok(from)) if made > from)
}

fn scripts() -> PathBuf {
    paths::repository().join("tests/vm")
}

/// Fills the folder that becomes `/job` in the guest: the product, programs, and what they link.
fn gather(job: &Path, kind: Kind) -> Result<()> {
    if job.exists() {
        fs::remove_dir_all(job)?;
    }
    let [bin, lib] = ["bin", "lib"].map(|name| job.join(name));
    fs::create_dir_all(&bin)?;
    fs::create_dir_all(&lib)?;
    for name in [
        "guest.sh",
        "port.sh",
        "programs.sh",
        "life.sh",
        "ratio.sh",
        "xdp.sh",
        "zero.sh",
        "vlan.sh",
        "cases.sh",
        "run.sh",
    ] {
        fs::copy(scripts().join(name), job.join(name))?;
    }
    if let Some(mark) = kind.mark() {
        fs::write(job.join(mark), "")?;
    }
    let mut files = vec![paths::shim(), paths::bypassctl(), plugin::build()?];
    files.push(ciul::stand_in()?);
    files.extend(PROGRAMS.iter().map(PathBuf::from));
    for name in EXAMPLES {
        files.push(paths::example(name)?);
    }
    for name in CASES {
        files.push(paths::test_program("conformance", name)?);
    }
    for file in &files {
        let name = file.file_name().ok_or("a file without a name")?;
        fs::copy(file, bin.join(name))?;
    }
    for library in libraries(&files)? {
        let name = library.file_name().ok_or("a file without a name")?;
        fs::copy(&library, lib.join(name))?;
    }
    Ok(())
}

/// What these link, but what the guest has as it is: the C library, and all of DPDK.
fn libraries(files: &[PathBuf]) -> Result<BTreeSet<PathBuf>> {
    let run = Command::new("ldd").args(files).output()?;
    let text = String::from_utf8_lossy(&run.stdout).into_owned();
    let paths = text
        .lines()
        .filter_map(|line| line.split("=> ").nth(1)?.split(' ').next())
        .filter(|path| path.starts_with('/'))
        .filter(|path| !path.contains("/libc.so") && !path.contains("/librte_"));
    Ok(paths.map(PathBuf::from).collect())
}
