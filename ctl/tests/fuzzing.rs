//! Replays the corpora, and inputs made from them, through the fuzz targets. The parsers are part
//! of a program, so their files are taken in here as in `fuzz/fuzz_targets`.

#[expect(dead_code, unreachable_pub, reason = "parts of a program")]
#[path = "../src/daemon"]
mod daemon {
    #[path = "../../tests/fuzz/daemon.rs"]
    pub mod fuzz;
    pub mod netlink {
        pub mod message;
    }
    mod proc_text;
}

#[expect(dead_code, unreachable_pub, reason = "parts of a program")]
#[path = "../src/cmd/doctor"]
mod doctor {
    #[path = "../../../tests/fuzz/doctor.rs"]
    pub mod fuzz;
    mod netlink;
}

#[path = "../../fuzz/replay.rs"]
mod replay;

use replay::replay;

#[test]
fn what_the_daemon_reads_of_netlink() {
    replay("netlink", daemon::fuzz::fuzz_netlink);
}

#[test]
fn what_the_daemon_reads_of_proc() {
    replay("proc", daemon::fuzz::fuzz_proc);
}

#[test]
fn what_the_doctor_reads_of_netlink() {
    replay("links", doctor::fuzz::fuzz_dump);
}
