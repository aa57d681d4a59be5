//! See `backends/tests/fuzz`.

#![no_main]

#[path = "../../backends/tests/fuzz/link.rs"]
mod link;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    link::fuzz_link(data);
});
