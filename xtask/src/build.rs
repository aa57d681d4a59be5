//! Builds the product, and tells where cargo is.

use std::process::Command;

use bypass_tests::{Result, paths, plugin};

use crate::progress::step;

/// A `cargo` command in the repository, with one target folder for the packages that are no members
/// of the workspace too.
pub(crate) fn cargo() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command
        .current_dir(paths::repository())
        .env("CARGO_TARGET_DIR", paths::target());
    command
}

/// Builds `libbypass.so`, `bypassctl` and, where DPDK's headers are, `libbypass_dpdk.so` for
/// release; not when `BYPASS_TEST_DIR` says that they
/// are somewhere already.
///
/// # Errors
/// When cargo fails.
pub(crate) fn release() -> Result<()> {
    if std::env::var_os("BYPASS_TEST_DIR").is_some() {
        return Ok(());
    }
    if let Err(why) = plugin::build() {
        println!("libbypass_dpdk.so is not built: {why}");
    }
    step("building libbypass.so and bypassctl", || {
        let status = cargo()
            .args([
                "build",
                "--quiet",
                "--release",
                "-p",
                "bypass-preload",
                "-p",
                "bypass-ctl",
            ])
            .status()?;
        if status.success() {
            Ok(())
        } else {
            Err("the build failed".into())
        }
    })
}
