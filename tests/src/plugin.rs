//! `libbypass_dpdk.so`, built beside `libbypass.so` where DPDK's headers are.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use crate::{Result, paths};

/// Name of the library.
const NAME: &str = "libbypass_dpdk.so";

/// The plugin, built if need be; `Err` says why there is none.
///
/// # Panics
/// When `BYPASS_TEST_REQUIRE_SHIM` is set and there is none: then what is missing is a failure, not
/// a skip.
pub fn path() -> std::result::Result<&'static Path, &'static str> {
    static BUILT: OnceLock<std::result::Result<PathBuf, String>> = OnceLock::new();
    let built = BUILT.get_or_init(|| build().map_err(|error| error.to_string()));
    let is_required = std::env::var_os("BYPASS_TEST_REQUIRE_SHIM").is_some();
    match built {
        Err(why) if is_required => panic!("no DPDK plugin: {why}"),
        Err(why) => Err(why),
        Ok(path) => Ok(path),
    }
}

/// Builds the plugin, unless it is newer than its source; where it is. Not when `BYPASS_TEST_DIR`
/// says that the product is somewhere already.
///
/// # Errors
/// When DPDK's headers are not there, or the compiler fails.
pub fn build() -> Result<PathBuf> {
    let plugin = paths::product().join(NAME);
    if std::env::var_os("BYPASS_TEST_DIR").is_some() {
        return Ok(plugin.canonicalize()?);
    }
    let source = paths::repository().join("backends/src/dpdk/plugin.c");
    let modified = |path: &Path| path.metadata().and_then(|facts| facts.modified()).ok();
    if modified(&plugin).is_some_and(|built| modified(&source).is_some_and(|it| it < built)) {
        return Ok(plugin);
    }
    std::fs::create_dir_all(paths::product())?;
    // Another process may build or load it at this moment.
    let fresh = plugin.with_extension(format!("so.{}", std::process::id()));
    compile(
        &source,
        &fresh,
        &["-fPIC", "-shared", "-fvisibility=hidden"],
    )?;
    std::fs::rename(&fresh, &plugin)?;
    Ok(plugin)
}

/// Compiles a source over DPDK's headers.
fn compile(source: &Path, to: &Path, arguments: &[&str]) -> Result<()> {
    let [compile, link] = [words(&["--cflags"])?, words(&["--libs"])?];
    let run = Command::new("cc")
        .args(["-O2", "-std=gnu11", "-Wall", "-Wextra", "-Werror"])
        .args(arguments)
        .arg("-o")
        .args([to, source])
        .args(compile)
        .arg("-Wl,--as-needed")
        .args(link)
        .output()?;
    if !run.status.success() {
        return Err(format!("cc failed:\n{}", String::from_utf8_lossy(&run.stderr)).into());
    }
    Ok(())
}

/// What `pkg-config` says of libdpdk.
fn words(arguments: &[&str]) -> Result<Vec<String>> {
    let run = Command::new("pkg-config")
        .args(arguments)
        .arg("libdpdk")
        .output();
    let run = run.map_err(|error| format!("pkg-config: {error}"))?;
    if !run.status.success() {
        let why = String::from_utf8_lossy(&run.stderr);
        return Err(format!("libdpdk is not there: {}", why.trim()).into());
    }
    let text = String::from_utf8_lossy(&run.stdout);
    Ok(text.split_whitespace().map(str::to_owned).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the plugin does with chunks; see `tests/plugin/in_place.c`.
    #[test]
    fn a_chunk_without_copies_is_in_one_place() {
        if let Some(said) = run("in_place") {
            assert!(said.ends_with("each chunk in one place\n"), "{said}");
        }
    }

    /// The plugin with a double of `rte_eth_tx_prepare`; see `tests/plugin/refused.c`.
    #[test]
    fn a_frame_whose_checksum_the_driver_refuses_is_dropped_and_counted() {
        if let Some(said) = run("refused") {
            assert!(said.ends_with("0 wait, 3 refused, 6 sent\n"), "{said}");
        }
    }

    /// Builds and runs a program over the plugin's source; what it says. `None` without DPDK.
    fn run(name: &str) -> Option<String> {
        if let Err(why) = words(&["--libs"]) {
            println!("skipped: {why}");
            return None;
        }
        let source = paths::repository().join(format!("tests/plugin/{name}.c"));
        let plugin = paths::repository().join("backends/src/dpdk");
        let program = std::env::temp_dir().join(format!("byp-{name}-{}", std::process::id()));
        let include = format!("-I{}", plugin.display());
        compile(&source, &program, &[&include]).unwrap();
        let run = Command::new(&program).output();
        // What is left in the folder for temporary files is no matter.
        let _ = std::fs::remove_file(&program);
        let run = run.unwrap();
        let said = String::from_utf8_lossy(&run.stdout).into_owned();
        assert!(run.status.success(), "{said}");
        Some(said)
    }
}
