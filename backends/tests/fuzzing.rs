//! Replays the corpus, and inputs made from it, through the fuzz target.

#[path = "fuzz/link.rs"]
mod link;

#[path = "../../fuzz/replay.rs"]
mod replay;

#[test]
fn what_the_backend_reads_of_netlink() {
    replay::replay("link", link::fuzz_link);
}
