//! See `backends/tests/fuzz`.

#![no_main]

#[allow(dead_code, reason = "each target uses a part")]
#[path = "../../backends/src/af_xdp"]
mod af_xdp {
    #[path = "../../tests/fuzz/xdp.rs"]
    pub mod fuzz;
    mod netlink;
}

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    af_xdp::fuzz::fuzz_xdp(data);
});
