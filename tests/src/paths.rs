//! Where things are: the repository, the built shim and tool, the C programs of the tests.
//!
//! The C programs are built by `make` under a file lock the first time a process asks for one, so
//! that `cargo test` and `cargo nextest` need no preparation.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use crate::Result;

/// Root of the repository.
///
/// # Panics
/// When the crate has no parent folder, which cannot happen in a checkout.
#[must_use]
pub fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("tests/ has a parent")
        .to_path_buf()
}

/// Cargo's target folder: `CARGO_TARGET_DIR`, or `target` in the repository.
#[must_use]
pub fn target() -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| repository().join("target"), PathBuf::from)
}

/// Folder with `libbypass.so` and `bypassctl`: `BYPASS_TEST_DIR`, or the release build.
#[must_use]
pub fn product() -> PathBuf {
    std::env::var_os("BYPASS_TEST_DIR").map_or_else(|| target().join("release"), PathBuf::from)
}

/// The shim.
#[must_use]
pub fn shim() -> PathBuf {
    product().join("libbypass.so")
}

/// The tool.
#[must_use]
pub fn bypassctl() -> PathBuf {
    product().join("bypassctl")
}

/// Whether the shim column can run: library and tool are built and the library has hooks.
#[must_use]
pub fn shim_is_built() -> bool {
    static BUILT: OnceLock<bool> = OnceLock::new();
    *BUILT.get_or_init(|| {
        let symbols = Command::new("nm")
            .args(["-D", "--defined-only"])
            .arg(shim())
            .output();
        bypassctl().is_file()
            && symbols.is_ok_and(|out| String::from_utf8_lossy(&out.stdout).contains(" recvmmsg\n"))
    })
}

/// A program of `tests/conformance` or `tests/bench`, built if need be.
///
/// # Errors
/// When `make` fails.
pub fn test_program(folder: &str, name: &str) -> Result<PathBuf> {
    let out = target().join("c").join(folder);
    make(&repository().join("tests").join(folder), &out)?;
    Ok(out.join(name))
}

/// A program of `examples/c` (`bare/rx` for one of its sub-folder), built if need be.
///
/// # Errors
/// When `make` fails.
pub fn example(name: &str) -> Result<PathBuf> {
    let out = target().join("c/examples");
    make(&repository().join("examples/c"), &out)?;
    Ok(out.join(name))
}

/// A program of `tests/examples`, built if need be.
///
/// # Errors
/// When `cargo` fails.
pub fn rust_program(name: &str) -> Result<PathBuf> {
    let run = Command::new(env!("CARGO"))
        .args(["build", "-q", "-p", "bypass-tests", "--example", name])
        .current_dir(repository())
        .output()?;
    if run.status.success() {
        return Ok(target().join("debug/examples").join(name));
    }
    let why = String::from_utf8_lossy(&run.stderr);
    Err(format!("cargo build --example {name} failed:\n{why}").into())
}

/// Runs `make` in `folder` with the results in `out`, one at a time over all processes.
fn make(folder: &Path, out: &Path) -> Result<()> {
    std::fs::create_dir_all(out)?;
    let run = Command::new("flock")
        .arg(out.join(".lock"))
        .args(["make", "-s", "-C"])
        .arg(folder)
        .arg(format!("OUT={}", out.display()))
        .output()?;
    if run.status.success() {
        return Ok(());
    }
    Err(format!(
        "make in {} failed:\n{}",
        folder.display(),
        String::from_utf8_lossy(&run.stderr)
    )
    .into())
}
