//! The test bed goes away whatever happens to its owner.

use std::fs;
use std::process::{Command, Stdio};
use std::time::Duration;

use bypass_tests::counters::{KernelUdp, wait_for_udp_port};
use bypass_tests::leftovers::Leftovers;
use bypass_tests::paths;
use bypass_tests::program::wait_until;
use bypass_tests::testbed::{Side, Testbed};

/// Set in a copy of this test program that is to be killed: the file for the name of its test bed.
const VICTIM: &str = "BYPASS_TESTBED_VICTIM";

fn exists(namespace: &str) -> bool {
    fs::exists(format!("/run/netns/{namespace}")).expect("the folder can be read")
}

#[test]
fn is_removed_when_it_is_dropped_with_what_runs_in_it() {
    let bed = Testbed::new().expect("root");
    let names = [bed.namespace(Side::Server), bed.namespace(Side::Client)];
    let folder = bed.folder().to_path_buf();
    let sleeper = bed
        .program(Side::Server, "sleep")
        .arg("100")
        .spawn()
        .expect("sleep");
    wait_until("sleep runs", Duration::from_secs(5), || {
        bed.processes(Side::Server).contains(&sleeper.pid())
    })
    .expect("it is listed");
    assert!(
        !Leftovers::in_testbed(&bed).0.is_empty(),
        "the sleeper is left"
    );
    drop(bed);
    assert_eq!(Leftovers::of_removed(&names, &folder), Leftovers::default());
}

#[test]
fn is_removed_when_its_owner_is_killed() {
    if let Some(file) = std::env::var_os(VICTIM) {
        let bed = Testbed::new().expect("root");
        let _sleeper = bed.program(Side::Client, "sleep").arg("100").spawn();
        fs::write(file, bed.namespace(Side::Server)).expect("the file can be written");
        std::thread::sleep(Duration::from_secs(60));
        return;
    }
    let file = std::env::temp_dir().join(format!("byp-victim-{}", std::process::id()));
    let mut victim = Command::new(std::env::current_exe().expect("it has a name"))
        .args(["--exact", "is_removed_when_its_owner_is_killed"])
        .env(VICTIM, &file)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("it starts");
    let name = || fs::read_to_string(&file).unwrap_or_default();
    let made = wait_until("the victim's test bed", Duration::from_secs(20), || {
        exists_named(&name())
    });
    victim.kill().expect("it runs");
    victim.wait().expect("it ends");
    let name = name();
    // It is gone or never was.
    let _ = fs::remove_file(&file);
    made.expect("it is made");
    wait_until("the namespace is gone", Duration::from_secs(10), || {
        !exists(&name)
    })
    .expect("the janitor works");
}

fn exists_named(namespace: &str) -> bool {
    !namespace.is_empty() && exists(namespace)
}

#[test]
fn counters_tell_what_the_kernel_carried() {
    let bed = Testbed::new().expect("root");
    let before = KernelUdp::read(&bed, Side::Server).expect("counters");
    let mut echo = bed.program(Side::Server, paths::example("udpecho").expect("it builds"));
    let _echo = echo
        .args(["--bind", &bed.ipv4(Side::Server)])
        .spawn()
        .expect("it starts");
    wait_for_udp_port(&bed, Side::Server, 7007).expect("it is bound");
    let mut client = bed.program(Side::Client, paths::example("udprr").expect("it builds"));
    client.args(["--count", "90", "--warmup", "10", &bed.ipv4(Side::Server)]);
    client
        .run()
        .and_then(|run| run.check())
        .expect("all answers come");
    let carried = KernelUdp::read(&bed, Side::Server)
        .expect("counters")
        .since(before);
    assert_eq!((carried.received, carried.sent), (100, 100));
}
