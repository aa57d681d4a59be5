//! Replays the corpora, and inputs made from them, through the fuzz targets. The parsers are part
//! of a program, so their files are taken in here as in `fuzz/fuzz_targets`.

#[expect(unreachable_pub, reason = "parts of a program")]
#[path = "../src/daemon"]
mod daemon {
    #[path = "../../tests/fuzz/daemon.rs"]
    pub mod fuzz;
    mod proc_text;
}

#[path = "fuzz/netlink.rs"]
mod netlink;
#[expect(dead_code, reason = "part of a program")]
#[path = "../src/source/rtnetlink.rs"]
mod rtnetlink;

#[path = "../../fuzz/replay.rs"]
mod replay;

use replay::replay;

#[test]
fn what_is_read_of_rtnetlink() {
    replay("netlink", netlink::fuzz_netlink);
}

#[test]
fn what_the_daemon_reads_of_proc() {
    replay("proc", daemon::fuzz::fuzz_proc);
}
