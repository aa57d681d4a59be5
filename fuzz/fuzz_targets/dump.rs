//! See `ctl/tests/fuzz`.

#![no_main]

#[allow(dead_code, reason = "parts of a program")]
#[path = "../../ctl/src/cmd/doctor"]
mod doctor {
    #[path = "../../../tests/fuzz/doctor.rs"]
    pub mod fuzz;
    mod netlink;
}

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    doctor::fuzz::fuzz_dump(data);
});
