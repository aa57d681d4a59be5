//! The stand-in for libciul.so.1, which cargo builds beside the tests.

use std::path::PathBuf;

use crate::Result;

/// Where it is.
///
/// # Errors
/// When it is not there.
pub fn stand_in() -> Result<PathBuf> {
    let own = std::env::current_exe()?;
    let beside = own.with_file_name("libfake_ciul.so");
    Ok(beside.canonicalize()?)
}
