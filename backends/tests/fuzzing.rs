//! Replays the corpus, and inputs made from it, through the fuzz target. What reads netlink is no
//! public part of the crate, so its file is taken in here as in `fuzz/fuzz_targets`.

#[expect(unreachable_pub, reason = "parts of a crate")]
#[path = "../src/af_xdp"]
mod af_xdp {
    #[path = "../../tests/fuzz/xdp.rs"]
    pub mod fuzz;
    mod netlink;
}

#[path = "../../fuzz/replay.rs"]
mod replay;

#[test]
fn what_the_backend_reads_of_netlink() {
    replay::replay("xdp", af_xdp::fuzz::fuzz_xdp);
}
