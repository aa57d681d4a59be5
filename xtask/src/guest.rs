//! `cargo xtask guest`: programs over a virtual function of an emulated card, driven by DPDK.
//!
//! A Debian kernel boots in QEMU with an igb card behind an IOMMU; nothing of this machine is in it
//! but what is built here. Debian's packages are unpacked below the target folder, once, never
//! installed. The scripts are in `tests/vm/`, which has a README of its own.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use bypass_tests::{Result, paths, plugin};

use crate::progress::step;
use crate::{build, packages};

/// How long the guest may take, in seconds. On two free processors it takes less than a minute.
const LIMIT: &str = "300";
/// Programs of this machine that the guest runs, besides the product.
const PROGRAMS: [&str; 5] = [
    "/usr/sbin/knotd",
    "/usr/bin/dnsperf",
    "/usr/bin/redis-server",
    "/usr/bin/redis-benchmark",
    "/usr/sbin/nginx",
];
/// Programs of `examples/c`.
const EXAMPLES: [&str; 4] = ["udpecho", "udprr", "tcpecho", "tcprr"];

/// Prepares the guest, boots it, and runs the job in it.
///
/// # Errors
/// When something cannot be had, or a check in the guest has failed.
pub(crate) fn run() -> Result<()> {
    packages::install_missing()?;
    build::release()?;
    let folder = paths::target().join("vm");
    let [debian, image, job] = ["debian", "image", "job"].map(|name| folder.join(name));
    step("unpacking QEMU, a kernel and a userland of Debian", || {
        script("prepare.sh", &[debian.as_os_str()])
    })?;
    if !is_newer(&image.join("base.cpio"), &scripts().join("mkinitrd.sh")) {
        step("making the guest's first file system", || {
            script("mkinitrd.sh", &[debian.as_os_str(), image.as_os_str()])
        })?;
    }
    step("gathering the programs", || gather(&job))?;
    step("the guest", || {
        let arguments = [&debian, &image, &job].map(|path| path.as_os_str());
        let mut all = arguments.to_vec();
        all.push(LIMIT.as_ref());
        script("run-vm.sh", &all)
    })
}

fn script(name: &str, arguments: &[&std::ffi::OsStr]) -> Result<()> {
    let path = scripts().join(name);
    let status = Command::new(&path)
        .args(arguments)
        .stdin(Stdio::null())
        .status()?;
    match status.code() {
        Some(0) => Ok(()),
        Some(124) => Err(format!("{name}: not done in {LIMIT} s").into()),
        Some(125) => Err(format!("{name}: the guest has ended without a word").into()),
        _ => Err(format!("{name}: {status}").into()),
    }
}

fn is_newer(made: &Path, from: &Path) -> bool {
    let time = |path: &Path| fs::metadata(path).and_then(|facts| facts.modified());
    matches!((time(made), time(from)), (Ok(made), Ok(from)) if made > from)
}

fn scripts() -> PathBuf {
    paths::repository().join("tests/vm")
}

/// Fills the folder that becomes `/job` in the guest: the product, programs, and what they link.
fn gather(job: &Path) -> Result<()> {
    if job.exists() {
        fs::remove_dir_all(job)?;
    }
    let [bin, lib] = ["bin", "lib"].map(|name| job.join(name));
    fs::create_dir_all(&bin)?;
    fs::create_dir_all(&lib)?;
    fs::copy(scripts().join("guest.sh"), job.join("guest.sh"))?;
    fs::copy(scripts().join("dpdk.sh"), job.join("run.sh"))?;
    let mut files = vec![paths::shim(), paths::bypassctl(), plugin::build()?];
    files.extend(PROGRAMS.iter().map(PathBuf::from));
    for name in EXAMPLES {
        files.push(paths::example(name)?);
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
