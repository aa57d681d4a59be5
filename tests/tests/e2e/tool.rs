//! What `bypassctl` answers with, to scripts: the exit code of every command (0 fine, 1 failed,
//! 2 wrong usage, 3 nothing to do), and JSON of every list.

use std::fs;
use std::time::Duration;

use bypass_tests::program::wait_until;
use bypass_tests::testbed::Side;
use bypass_tests::{Result, daemon, paths};
use serde_json::Value;

use super::faults::{echo, explains};
use super::harness::{Scene, script};
use super::programs::ping_pong;

const NOBODY: u32 = 65534;
/// Everything that prints a list with `--json`.
const LISTS: [&str; 7] = [
    "filters list",
    "sockets",
    "sockets --all",
    "stats",
    "stats --zeros",
    "stacks",
    "explain --all",
];

/// Runs the commands of a table, words in a line, and compares their exit codes.
fn expect(scene: &Scene, state: &str, table: &[(i32, &str)], user: Option<u32>) -> Result<()> {
    for (code, line) in table {
        let mut program = scene.bed.program(Side::Server, paths::bypassctl());
        if let Some(id) = user {
            program.user(id);
        }
        let run = program.args(line.split_whitespace()).run()?;
        if run.status.code() != Some(*code) {
            let (status, text) = (run.status, run.stdout + &run.stderr);
            return Err(format!("{state}: bypassctl {line}: {status}, not {code}: {text}").into());
        }
        // Who fails says why, and says it to the terminal, not into what a script reads.
        if *code != 0 && !line.starts_with("run ") && run.stderr.is_empty() {
            return Err(format!("{state}: bypassctl {line}: code {code} without a word").into());
        }
    }
    Ok(())
}

/// Every list is a JSON array of objects; whether each has something in it.
fn lists(scene: &Scene) -> Result<Vec<bool>> {
    let read = |line: &&str| {
        let mut words: Vec<&str> = line.split_whitespace().collect();
        words.push("--json");
        let run = daemon::bypassctl(&scene.bed, &words)?.check()?;
        let list: Vec<Value> = serde_json::from_str(&run.stdout)
            .map_err(|error| format!("bypassctl {line}: {error}: {}", run.stdout))?;
        if let Some(odd) = list.iter().find(|entry| !entry.is_object()) {
            return Err(format!("bypassctl {line} has {odd}").into());
        }
        Ok(!list.is_empty())
    };
    LISTS.iter().map(read).collect()
}

/// Each command without a daemon, with one and a program, and as a user who may nothing.
pub(crate) fn exit_codes(scene: &Scene) -> Result<()> {
    if !scene.has_shim() {
        return Ok(());
    }
    expect(scene, "wrong usage", &WRONG, None)?;
    expect(scene, "no daemon", &ALONE, None)?;
    let other = scene
        .bed
        .program(Side::Server, "sleep")
        .arg("600")
        .spawn()?;
    let explain = format!("explain {}", other.pid());
    expect(scene, "no daemon", &[(3, &explain)], None)?;
    if lists(scene)?.contains(&true) {
        return Err("a list has something in it, and nothing runs".into());
    }
    let config = scene.bed.folder().join("tool.toml");
    fs::write(&config, "")?;
    let arguments = ["--config", &config.display().to_string()];
    let daemon = daemon::start_with(&scene.bed, &arguments, &[])?;
    let server = echo(scene)?;
    let filter = || -> Option<Value> {
        let filters = daemon::list(&scene.bed, &["filters", "list"]).ok()?;
        filters.first().map(|filter| filter["id"].clone())
    };
    let limit = Duration::from_secs(20);
    wait_until("the echo's filter", limit, || filter().is_some())?;
    let filter = filter().ok_or("no filter")?;
    let pid = server.pid();
    let own = format!("filters del {filter}");
    let [own_explain, one_json] = ["", "--json"].map(|json| format!("explain {pid} {json}"));
    let [back, forth] = ["rollback", "adopt"].map(|word| format!("{word} {pid}"));
    let nothing = format!("rollback {}", other.pid());
    let mut table: Vec<(i32, &str)> = vec![
        (1, &own),
        (0, &own_explain),
        (0, &one_json),
        (3, &explain),
        (3, &nothing),
    ];
    table.extend(SERVED);
    table.extend([(0, &back[..]), (0, &forth)]);
    expect(scene, "with a program", &table, None)?;
    if lists(scene)?.contains(&false) {
        return Err("a list has nothing in it, and a program runs".into());
    }
    expect(scene, "as nobody", &REFUSED, Some(NOBODY))?;
    fs::write(&config, "[[rule]\n")?;
    expect(scene, "bad configuration", &[(1, "reload")], None)?;
    server.stop()?.check()?;
    expect(scene, "the end", &[(0, "shutdown")], None)?;
    daemon.wait(limit)?.check()?;
    Ok(())
}

/// Doctor has a line in this state that has this text, and what to do where it is not ok.
fn finds(scene: &Scene, state: &str, text: &str) -> Result<()> {
    let run = daemon::bypassctl(&scene.bed, &["doctor", "--json"])?;
    let lines: Vec<Value> = serde_json::from_str(&run.stdout)?;
    let fits = |line: &Value| {
        let has_advice = line["do"].as_str().is_some_and(|text| !text.is_empty());
        line["what"]
            .as_str()
            .is_some_and(|what| what.contains(text))
            && line["state"] == state
            && has_advice == (state != "ok")
    };
    let code = i32::from(lines.iter().any(|line| line["state"] == "fail"));
    if !lines.iter().any(fits) || run.status.code() != Some(code) {
        return Err(format!("no {state} of {text:?}: {} {}", run.status, run.stdout).into());
    }
    Ok(())
}

/// Doctor sees what is in the way, and that it is gone: rules of a firewall, a large MTU, an XDP
/// program that is not ours. That one keeps sockets in the kernel.
pub(crate) fn doctor(scene: &Scene) -> Result<()> {
    if !scene.has_shim() {
        return Ok(());
    }
    let bed = &scene.bed;
    let obstacle = |what: &str| {
        let mut python = bed.program(Side::Server, "/usr/bin/python3");
        python.arg("-I").arg(script("obstacles.py")).arg(what);
        python.spawn()
    };
    let set_mtu = |mtu: &str| -> Result<()> {
        for side in [Side::Server, Side::Client] {
            bed.ip(side, &["link", "set", bed.interface(side), "mtu", mtu])?;
        }
        Ok(())
    };
    for text in [
        "kernel",
        "native XDP",
        "MTU 1500",
        "no XDP program",
        "library",
    ] {
        finds(scene, "ok", text)?;
    }
    finds(scene, "ok", "no nftables")?;
    let rule = obstacle("rule")?.wait(Duration::from_secs(20))?;
    if rule.status.success() {
        finds(scene, "warn", "1 nftables rules in test")?;
    } else {
        println!("skipped: {}", rule.stderr);
    }
    set_mtu("9000")?;
    finds(scene, "fail", "MTU 9000")?;
    set_mtu("1500")?;
    finds(scene, "ok", "MTU 1500")?;
    let foreign = obstacle(bed.interface(Side::Server))?;
    wait_until("the other program", Duration::from_secs(20), || {
        foreign.stdout().contains("ready")
    })
    .map_err(|error| format!("{error}: {}", foreign.stderr()))?;
    finds(scene, "fail", "(somebody_elses) in native mode")?;
    let server = echo(scene)?;
    explains(scene, server.pid(), "\"queue-busy\"")?;
    server.stop()?.check()?;
    foreign.kill();
    finds(scene, "ok", "no XDP program")?;
    // Another daemon: this one looks at an interface that it could not open after seconds only.
    daemon::stop_all(bed);
    wait_until("no daemon", Duration::from_secs(20), || {
        daemon::running(bed).is_empty()
    })?;
    let server = echo(scene)?;
    explains(scene, server.pid(), "\"bypass\"")?;
    finds(scene, "ok", "the daemon serves it in native mode")?;
    server.stop()?.check()?;
    Ok(())
}

/// `stats --watch` prints again and again, with the change per second.
pub(crate) fn stats_again(scene: &Scene) -> Result<()> {
    let server = echo(scene)?;
    ping_pong(scene, &scene.host(), 7007, 100)?;
    if scene.has_shim() {
        let mut watch = scene.bed.program(Side::Server, paths::bypassctl());
        let watch = watch.args(["stats", "--watch", "1"]).spawn()?;
        let tables = |count: usize| {
            wait_until("tables", Duration::from_secs(20), || {
                watch.stdout().matches("PER SECOND").count() >= count
            })
        };
        tables(1)?;
        ping_pong(scene, &scene.host(), 7007, 2000)?;
        tables(3)?;
        let text = watch.stdout();
        // OF, KIND, NAME, VALUE, PER SECOND; the first table knows of no change yet.
        let rates: Vec<&str> = text
            .lines()
            .filter(|line| line.contains(" datagrams-received "))
            .filter_map(|line| line.split_whitespace().nth(4))
            .collect();
        let rises = |rate: &str| rate.parse::<u64>().is_ok_and(|rate| rate > 100);
        if rates.first() != Some(&"-") || !rates.iter().any(|rate| rises(rate)) {
            return Err(format!("{rates:?}: {text}").into());
        }
        watch.kill();
    }
    server.stop()?.check()?;
    Ok(())
}

const WRONG: [(i32, &str); 22] = [
    (2, ""),
    (2, "no-such-command"),
    (2, "run"),
    (2, "run --profile fast -- true"),
    (2, "daemon --no-such-option"),
    (2, "filters"),
    (2, "filters list --no-such-option"),
    (2, "filters add"),
    (2, "filters add sctp 198.18.7.1:53"),
    (2, "filters add udp 198.18.7.1"),
    (2, "filters add udp *:53 --for-user no-such-user"),
    (2, "filters del x"),
    (2, "sockets extra"),
    (2, "stats --watch 0"),
    (2, "explain"),
    (2, "explain --all --user root"),
    (2, "rollback"),
    (2, "rollback 0"),
    (2, "adopt --port 0"),
    (2, "stacks extra"),
    (2, "completions no-such-shell"),
    (2, "man a b"),
];

const ALONE: [(i32, &str); 30] = [
    (0, "--help"),
    (0, "--version"),
    (0, "run -- true"),
    (1, "run -- false"),
    (1, "run -- /no/such/program"),
    (3, "filters list"),
    (3, "filters add udp 198.18.7.1:53"),
    (3, "filters del 7"),
    (3, "sockets"),
    (3, "sockets --all"),
    (3, "stats"),
    (3, "explain --all"),
    (1, "explain 4194305"),
    (0, "explain --dry-run -- /bin/true"),
    (0, "explain --dry-run -- /no/such/program"),
    (3, "rollback --all"),
    (3, "adopt --port 53"),
    (3, "stacks"),
    (3, "dump"),
    (0, "dump --json"),
    (0, "doctor"),
    (0, "doctor --json"),
    (0, "doctor byp-s"),
    (1, "doctor no-such-interface"),
    (3, "shutdown"),
    (3, "reload"),
    (0, "completions bash"),
    (0, "man"),
    (1, "man /proc/no/such/folder"),
    (1, "daemon --foreground --config /no/such/file"),
];

const SERVED: [(i32, &str); 17] = [
    (3, "daemon --foreground"),
    (0, "filters list"),
    (0, "filters add udp 198.18.7.1:9 --json"),
    (3, "filters add udp 198.18.7.1:9"),
    (1, "filters add udp 198.18.7.1:10 --interface no-such-one"),
    (3, "filters del 999999"),
    (0, "sockets"),
    (0, "sockets --all"),
    (0, "stats"),
    (0, "explain --all"),
    (0, "stacks"),
    (0, "dump"),
    (0, "dump --json"),
    (3, "dump ffffffff"),
    (0, "reload"),
    (0, "rollback --port 9"),
    (0, "adopt --port 9"),
];

const REFUSED: [(i32, &str); 6] = [
    (1, "filters add udp 198.18.7.1:11"),
    (1, "shutdown"),
    (1, "reload"),
    (1, "rollback --all"),
    (1, "adopt --all"),
    (0, "filters list"),
];
