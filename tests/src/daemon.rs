//! `bypassctl` as the tests use it: run in the server's namespace, its JSON read.

use std::fs::Metadata;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::program::{Finished, Program, Running, wait_until};
use crate::testbed::{Side, Testbed};
use crate::{Result, paths};

/// Runs `bypassctl ARGUMENTS` on the server side to its end, whatever that is.
///
/// # Errors
/// When it cannot be run or does not end in time.
pub fn bypassctl(bed: &Testbed, arguments: &[&str]) -> Result<Finished> {
    let mut program = bed.program(Side::Server, paths::bypassctl());
    program
        .args(arguments)
        .timeout(Duration::from_secs(30))
        .run()
}

/// Runs `bypassctl ARGUMENTS --json` and reads the list that it prints.
///
/// # Errors
/// When it fails, or prints no JSON list (an object with one list in it is taken as well).
pub fn list(bed: &Testbed, arguments: &[&str]) -> Result<Vec<Value>> {
    let mut all = arguments.to_vec();
    all.push("--json");
    let run = bypassctl(bed, &all)?;
    // 3 is "nothing to do": an empty list.
    if run.status.code() == Some(3) {
        return Ok(Vec::new());
    }
    let run = run.check()?;
    let json: Value = serde_json::from_str(&run.stdout)
        .map_err(|error| format!("bypassctl {}: {error}: {}", all.join(" "), run.stdout))?;
    match json {
        Value::Array(list) => Ok(list),
        Value::Object(map) => map
            .into_iter()
            .find_map(|(_, value)| {
                if let Value::Array(list) = value {
                    Some(list)
                } else {
                    None
                }
            })
            .ok_or_else(|| format!("no list in {}", run.stdout).into()),
        _ => Err(format!("no list: {}", run.stdout).into()),
    }
}

/// A counter of `bypassctl stats`, over all stacks.
///
/// # Errors
/// When the tool fails.
pub fn counter(bed: &Testbed, name: &str) -> Result<u64> {
    let all = list(bed, &["stats"])?;
    let named = all.iter().filter(|counter| counter["name"] == name);
    Ok(named.filter_map(|counter| counter["value"].as_u64()).sum())
}

/// Starts a daemon on the server side, with these variables, and waits until it answers.
///
/// # Errors
/// When it does not answer in time.
pub fn start(bed: &Testbed, environment: &[(&str, &str)]) -> Result<Running> {
    start_with(bed, &[], environment)
}

/// [`start`], with arguments. On a bed with a card the daemon that is there makes room, and this
/// one has the card too.
///
/// # Errors
/// The same.
pub fn start_with(
    bed: &Testbed,
    arguments: &[&str],
    environment: &[(&str, &str)],
) -> Result<Running> {
    let mut program = bed.program(Side::Server, paths::bypassctl());
    for (name, value) in environment {
        program.env(name, value);
    }
    program.args(["daemon", "--foreground"]).args(arguments);
    if !bed.has_card() {
        return answering(bed, &program);
    }
    // There may be none now.
    bypassctl(bed, &["shutdown"])?;
    wait_until("no daemon", Duration::from_secs(20), || {
        all_running(bed).is_empty()
    })?;
    let of_file = environment
        .iter()
        .find(|(name, _)| *name == "BYPASS_CONFIG");
    let file = match (arguments, of_file) {
        (["--config", file], _) => (*file).to_owned(),
        (_, Some((_, file))) => (*file).to_owned(),
        _ => bed.device_file().display().to_string(),
    };
    if arguments.is_empty() {
        program.args(["--config", &file]);
    }
    bed.add_card(&mut program, Path::new(&file))?;
    let daemon = answering(bed, &program)?;
    bed.wait_for_card()?;
    Ok(daemon)
}

/// Starts a daemon with the capabilities that `ctl/bypass.service` leaves it.
///
/// # Errors
/// As [`start`]; or when the unit cannot be read.
pub fn start_as_unit(bed: &Testbed) -> Result<Running> {
    let unit = std::fs::read_to_string(paths::repository().join("ctl/bypass.service"))?;
    let sets = unit
        .lines()
        .filter_map(|line| line.strip_prefix("CapabilityBoundingSet="));
    let mut program = bed.program(Side::Server, paths::bypassctl());
    program
        .capabilities(sets.flat_map(str::split_whitespace))
        .args(["daemon", "--foreground"]);
    answering(bed, &program)
}

/// Starts a daemon and waits until it answers.
fn answering(bed: &Testbed, program: &Program<'_>) -> Result<Running> {
    let daemon = program.spawn()?;
    wait_until("the daemon answers", Duration::from_secs(20), || {
        let sockets = bed
            .program(Side::Server, "cat")
            .args(["/proc/net/unix"])
            .run();
        sockets.is_ok_and(|run| run.stdout.contains("@bypass-daemon"))
    })
    .map_err(|error| format!("{error}\n{}{}", daemon.stdout(), daemon.stderr()))?;
    Ok(daemon)
}

/// Asks every daemon on the server side to end (SIGTERM).
pub fn stop_all(bed: &Testbed) {
    for pid in running(bed) {
        let pid = i32::try_from(pid).ok().and_then(Pid::from_raw);
        if let Some(pid) = pid {
            // A daemon that has left by itself needs no signal.
            let _ = kill_process(pid, Signal::TERM);
        }
    }
}

/// Process ids of the daemons on the server side.
#[must_use]
pub fn running(bed: &Testbed) -> Vec<u32> {
    let mut pids = all_running(bed);
    pids.retain(|pid| !is_relay(*pid));
    pids
}

fn is_relay(pid: u32) -> bool {
    let words = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    words.split(|byte| *byte == 0).nth(1) == Some(b"relay")
}

/// The same with their relays.
#[must_use]
pub fn all_running(bed: &Testbed) -> Vec<u32> {
    let program = paths::bypassctl();
    bed.processes(Side::Server)
        .into_iter()
        .filter(|pid| runs(*pid, &program))
        .collect()
}

/// Whether a process runs this program: by the file itself, for in a chroot its path is another.
#[must_use]
pub fn runs(pid: u32, program: &Path) -> bool {
    let exe = std::fs::metadata(format!("/proc/{pid}/exe"));
    let file = std::fs::metadata(program);
    let identity = |found: Metadata| (found.dev(), found.ino());
    matches!((exe.map(identity), file.map(identity)), (Ok(one), Ok(two)) if one == two)
}
