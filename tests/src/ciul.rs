//! The stand-in for libciul.so.1, which cargo builds beside the tests.

use std::path::PathBuf;

use crate::Result;

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
