//! See `proto/tests/fuzz`.

#![no_main]

#[allow(dead_code, reason = "each target uses a part")]
#[path = "../../proto/tests/fuzz/mod.rs"]
mod fuzz;

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz::fuzz_options(data));
