//! Libraries of cards: the stand-in for libciul.so.1, which cargo builds beside the tests, and the
//! vendor's with the stand-in's driver and card (`BYPASS_TEST_LIBCIUL=/path/to/libciul.so.1`).

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::{Result, paths};

/// Where it is: beside this program, or in `deps/` beside it.
///
/// # Errors
/// When it is not there.
pub fn stand_in() -> Result<PathBuf> {
    let own = std::env::current_exe()?;
    let places = ["libfake_ciul.so", "deps/libfake_ciul.so"];
    let mut places = places.map(|place| own.with_file_name(place)).into_iter();
    let found = places.find(|place| place.exists());
    Ok(found.ok_or("the stand-in for libciul is not built")?)
}

/// The vendor's library, if one is to be tried.
///
/// # Errors
/// When it is not there.
pub fn vendors() -> Result<Option<PathBuf>> {
    let Some(path) = std::env::var_os("BYPASS_TEST_LIBCIUL") else {
        return Ok(None);
    };
    let found = Path::new(&path).canonicalize();
    Ok(Some(found.map_err(|error| {
        format!("BYPASS_TEST_LIBCIUL={}: {error}", path.display())
    })?))
}

/// The library that a card of the tests has: the stand-in, or where the vendor's is to be tried a
/// bridge in this folder, by which it has the stand-in's driver and card.
///
/// # Errors
/// When there is none, or the compiler fails.
pub fn library(folder: &Path) -> Result<PathBuf> {
    let stand_in = stand_in()?;
    let Some(vendors) = vendors()? else {
        return Ok(stand_in);
    };
    let bridge = folder.join("libciul-bridge.so");
    if bridge.exists() {
        return Ok(bridge);
    }
    let place = vendors.parent().ok_or("a library is in a folder")?;
    let mut compiler = Command::new("cc");
    compiler.args(["-O2", "-Wall", "-Wextra", "-Werror", "-fPIC", "-shared"]);
    for (name, path) in [("STAND_IN", &stand_in), ("VENDOR", &vendors)] {
        compiler.arg(format!("-D{name}={:?}", path.display().to_string()));
    }
    compiler.arg(paths::repository().join("tests/fake-ciul/src/bridge.c"));
    compiler.arg("-Wl,--no-as-needed").arg(&vendors);
    // Where it is found again; before anything else of its name.
    compiler.arg(format!(
        "-Wl,--disable-new-dtags,-rpath,{}",
        place.display()
    ));
    let run = compiler.arg("-o").arg(&bridge).output()?;
    if !run.status.success() {
        return Err(format!("cc failed:\n{}", String::from_utf8_lossy(&run.stderr)).into());
    }
    Ok(bridge)
}
