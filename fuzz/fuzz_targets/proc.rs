//! See `ctl/tests/fuzz`.

#![no_main]

#[allow(dead_code, reason = "each target uses a part")]
#[path = "../../ctl/src/daemon"]
mod daemon {
    #[path = "../../tests/fuzz/daemon.rs"]
    pub mod fuzz;
    mod proc_text;
}

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    daemon::fuzz::fuzz_proc(data);
});
