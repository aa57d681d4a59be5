//! Generated files: the steering program's bytecode.
//!
//! Debian's clang makes the same bytes from the same source, so the object file is committed, a
//! normal
//! build needs no clang, and CI builds it again and compares.

use std::path::{Path, PathBuf};
use std::process::Command;

use bypass_tests::Result;

const FOLDER: &str = "backends/src/af_xdp/bpf";

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("..")
        .join(FOLDER)
}

/// Where Debian keeps `asm/types.h`.
fn headers() -> String {
    format!("-I/usr/include/{}-linux-gnu", std::env::consts::ARCH)
}

/// Builds the bytecode; with `check` it must equal the committed file.
///
/// # Errors
/// When clang fails, or the committed file is not what the source makes.
pub(crate) fn run(check: bool) -> Result<()> {
    let committed = folder().join("steer.bpf.o");
    let built = if check {
        std::env::temp_dir().join(format!("bypass-steer-{}.o", std::process::id()))
    } else {
        committed.clone()
    };
    // Inside the folder: the object names its source file as it was given.
    let status = Command::new("clang")
        .current_dir(folder())
        .args([
            "-O2",
            "-target",
            "bpf",
            &headers(),
            "-c",
            "steer.bpf.c",
            "-o",
        ])
        .arg(&built)
        .status()
        .map_err(|error| format!("cannot run clang: {error}; apt-get install clang"))?;
    if !status.success() {
        return Err("clang does not build steer.bpf.c".into());
    }
    if !check {
        return Ok(());
    }
    let same = std::fs::read(&built)? == std::fs::read(&committed)?;
    std::fs::remove_file(&built)?;
    if same {
        Ok(())
    } else {
        Err("steer.bpf.o is not what steer.bpf.c makes: run cargo xtask codegen".into())
    }
}
