//! See `preload/tests/fuzz`.

#![no_main]

#[allow(dead_code, reason = "each target uses a part")]
#[path = "../../preload/src/udp"]
mod udp {
    mod asked;
    #[path = "../../tests/fuzz/control.rs"]
    pub mod fuzz;
}

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    udp::fuzz::fuzz_control(data);
});
