//! See `ctl/tests/fuzz`.

#![no_main]

#[path = "../../ctl/tests/fuzz/netlink.rs"]
mod fuzz;
#[allow(dead_code, reason = "each target uses a part")]
#[path = "../../ctl/src/source/rtnetlink.rs"]
mod rtnetlink;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    fuzz::fuzz_netlink(data);
});
