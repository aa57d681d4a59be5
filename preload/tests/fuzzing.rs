//! Replays the corpus, and inputs made from it, through the fuzz target. The library cannot be
//! linked to a test without its hooks, so the file is taken in here as in `fuzz/fuzz_targets`.

#[expect(unreachable_pub, reason = "parts of a library")]
#[path = "../src/udp"]
mod udp {
    mod asked;
    #[path = "../../tests/fuzz/control.rs"]
    pub mod fuzz;
}

#[path = "../../fuzz/replay.rs"]
mod replay;

#[test]
fn what_a_send_asks_for() {
    replay::replay("control", udp::fuzz::fuzz_control);
}
