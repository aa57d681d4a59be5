//! See `stack/tests/fuzz`.

#![no_main]

#[allow(dead_code, reason = "each target uses a part")]
#[path = "../../stack/tests/common/mod.rs"]
mod common;
#[allow(dead_code, reason = "each target uses a part")]
#[path = "../../stack/tests/fuzz/mod.rs"]
mod fuzz;

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz::connections::fuzz_tcp(data));
