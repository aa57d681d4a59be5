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

use std::path::PathBuf;

/// A folder of inputs: each as it is, cut off, and with bytes changed. Something must be in each.
fn replay(kind: &str, body: impl Fn(&[u8]) -> usize) {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("tests/corpus")
        .join(kind);
    let entries = std::fs::read_dir(folder).expect("corpus");
    let files = entries.map(|entry| entry.expect("entry").path());
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut random = |below: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state % below as u64) as usize
    };
    let mut count = 0;
    for file in files {
        let input = std::fs::read(&file).expect("input");
        assert!(body(&input) > 0, "{}", file.display());
        count += 1;
        for _ in 0..2000 {
            let mut changed = input.clone();
            for _ in 0..random(8) {
                let place = random(input.len());
                changed[place] = random(256) as u8;
            }
            changed.truncate(random(2 * input.len()));
            body(&changed);
        }
    }
    assert!(count > 0);
}

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
