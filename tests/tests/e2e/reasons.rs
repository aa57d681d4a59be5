//! Options, rules and limits, and the reason that `bypassctl explain` and standard error give then
//! for each socket of a program.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::Duration;

use bypass_tests::program::{Column, Running, wait_until};
use bypass_tests::testbed::Side;
use bypass_tests::{Result, daemon};
use serde_json::Value;

use super::faults::readable_copies;
use super::harness::{Scene, script};

const NOBODY: u32 = 65534;
const UDP: &str = "udp:198.18.7.1:7007";
const MORE_UDP: &str = "udp:198.18.7.1:7008";
const TCP: &str = "tcp:198.18.7.1:7007";
/// What an accelerated socket has in the place of a reason.
const BYPASS: &str = "bypass";

/// A program in its circumstances.
#[derive(Clone, Copy, Default)]
struct Row {
    /// Configuration of a daemon that is started for it; empty: the program starts one.
    daemon: &'static str,
    /// A command of bypassctl before the program starts.
    command: &'static str,
    /// Another program, root's, has an accelerated socket.
    beside: bool,
    variables: &'static [(&'static str, &'static str)],
    user: Option<u32>,
    /// Sockets as `open_sockets.py` takes them, and the reason of each.
    sockets: &'static [(&'static str, &'static str)],
    /// What standard error has; nothing at all where this is empty.
    told: &'static [&'static str],
}

const BY_VARIABLE: [Row; 6] = [
    Row {
        sockets: &[
            (UDP, BYPASS),
            (TCP, BYPASS),
            ("udp:127.0.0.1:7007", "loopback"),
            ("udp:224.0.0.5:7007", "multicast"),
            ("raw:0.0.0.0:0", "socket-type"),
        ],
        ..EMPTY
    },
    Row {
        variables: &[("BYPASS_TCP", "0"), ("BYPASS_LOG", "info")],
        sockets: &[(UDP, BYPASS), (TCP, "tcp-off")],
        told: &[
            "udp 198.18.7.1:7007: accelerated\n",
            ": kernel: TCP acceleration is switched off (BYPASS_TCP=0). -> unset BYPASS_TCP",
        ],
        ..EMPTY
    },
    Row {
        variables: &[("BYPASS_DISABLE", "1"), ("BYPASS_LOG", "debug")],
        sockets: &[(UDP, "disabled"), (TCP, "disabled")],
        told: &["udp 198.18.7.1:7007: kernel: BYPASS_DISABLE is set."],
        ..EMPTY
    },
    Row {
        variables: &[("BYPASS_DAEMON", "never"), ("BYPASS_LOG", "off")],
        command: "shutdown",
        sockets: &[(UDP, "no-daemon")],
        ..EMPTY
    },
    Row {
        variables: &[("BYPASS_DAEMON", "never")],
        sockets: &[(UDP, "no-daemon"), (TCP, "no-daemon")],
        told: &["all sockets stay with the kernel: No daemon answers"],
        ..EMPTY
    },
    // Variables that are not understood change nothing, and who asks is told.
    Row {
        variables: &[
            ("BYPASS_PROFILE", "fast"),
            ("BYPASS_SPINUS", "1"),
            ("BYPASS_LOG", "info"),
        ],
        sockets: &[(UDP, BYPASS)],
        told: &[
            "BYPASS_PROFILE=fast: expected latency, throughput, safe; the default stays",
            "unknown variable BYPASS_SPINUS: ignored",
        ],
        ..EMPTY
    },
];

const BY_DAEMON: [Row; 8] = [
    Row {
        daemon: "[daemon]\nallow = []\n",
        user: Some(NOBODY),
        sockets: &[(UDP, "not-allowed")],
        told: &["all sockets stay with the kernel: The daemon's policy does not allow this user."],
        ..EMPTY
    },
    Row {
        daemon: "[daemon]\nallow = []\n",
        sockets: &[(UDP, BYPASS)],
        ..EMPTY
    },
    Row {
        daemon: "[daemon]\nfilters_per_client = 1\n",
        sockets: &[(UDP, BYPASS), (MORE_UDP, "limit")],
        ..EMPTY
    },
    Row {
        daemon: "[daemon]\nclients = 1\n",
        beside: true,
        sockets: &[(UDP, "limit")],
        ..EMPTY
    },
    Row {
        daemon: "[daemon]\ninterfaces = { exclude = [\"byp-*\"] }\n",
        sockets: &[(UDP, "no-interface")],
        ..EMPTY
    },
    Row {
        daemon: "[daemon]\ninterfaces = { include = [\"eth?\", \"byp-?\"], exclude = [\"eth0\"] }\n",
        sockets: &[(UDP, BYPASS)],
        ..EMPTY
    },
    Row {
        daemon: "[daemon]\n",
        command: "filters add udp 198.18.7.1:7007",
        sockets: &[(UDP, "static-filter"), (MORE_UDP, BYPASS)],
        ..EMPTY
    },
    Row {
        daemon: "[daemon]\n",
        beside: true,
        user: Some(NOBODY),
        sockets: &[(UDP, "queue-busy")],
        ..EMPTY
    },
];

const EMPTY: Row = Row {
    daemon: "",
    command: "",
    beside: false,
    variables: &[],
    user: None,
    sockets: &[],
    told: &[],
};

/// Starts the program that opens these sockets and waits until it has.
fn open(scene: &Scene, row: &Row, folder: &Path, sockets: &[&str]) -> Result<Running> {
    let mut program = scene.bed.program(Side::Server, "/usr/bin/python3");
    if let Some(id) = row.user {
        program.user(id);
    }
    if scene.column == Column::Shim {
        program.env("LD_PRELOAD", folder.join("libbypass.so"));
    }
    for (name, value) in row.variables {
        program.env(name, value);
    }
    program.arg("-I").arg(folder.join("open_sockets.py"));
    let running = program.args(sockets).spawn()?;
    wait_until("the sockets are open", Duration::from_secs(20), || {
        running.stdout().contains("ready")
    })
    .map_err(|error| format!("{error}: {}", running.stderr()))?;
    Ok(running)
}

/// The reasons that `bypassctl explain` gives, in the order of the sockets.
pub(super) fn reasons(scene: &Scene, pid: u32) -> Result<Vec<String>> {
    let mut list = daemon::list(&scene.bed, &["explain", &pid.to_string()])?;
    list.sort_by_key(|socket| socket["fd"].as_i64());
    let reason = |socket: &Value| match socket["reason"].as_str() {
        Some(reason) => reason.to_owned(),
        None => socket["served_by"].as_str().unwrap_or_default().to_owned(),
    };
    Ok(list.iter().map(reason).collect())
}

fn try_row(scene: &Scene, row: &Row, folder: &Path) -> Result<()> {
    let sockets: Vec<&str> = row.sockets.iter().map(|(socket, _)| *socket).collect();
    if !scene.has_shim() {
        open(scene, row, folder, &sockets)?.kill();
        return Ok(());
    }
    let mut own = None;
    if !row.daemon.is_empty() {
        daemon::stop_all(&scene.bed);
        wait_until("no daemon", Duration::from_secs(20), || {
            daemon::running(&scene.bed).is_empty()
        })?;
        let file = scene.bed.folder().join("daemon.toml");
        fs::write(&file, row.daemon)?;
        let arguments = ["--config", &file.display().to_string()];
        own = Some(daemon::start_with(&scene.bed, &arguments, &[])?);
    }
    if !row.command.is_empty() {
        let words: Vec<&str> = row.command.split_whitespace().collect();
        daemon::bypassctl(&scene.bed, &words)?.check()?;
    }
    let beside = if row.beside {
        Some(open(scene, &EMPTY, folder, &["udp:198.18.7.1:7010"])?)
    } else {
        None
    };
    let running = open(scene, row, folder, &sockets)?;
    let found = reasons(scene, running.pid())?;
    let expected: Vec<&str> = row.sockets.iter().map(|(_, reason)| *reason).collect();
    let told = running.stderr();
    if found != expected {
        return Err(format!("{found:?} in the place of {expected:?}: {told}").into());
    }
    if let Some(missing) = row.told.iter().find(|text| !told.contains(**text)) {
        return Err(format!("no {missing:?} in {told:?}").into());
    }
    if row.told.is_empty() && !told.is_empty() {
        return Err(format!("said without need: {told:?}").into());
    }
    running.kill();
    drop(beside);
    if let Some(daemon) = own {
        daemon.stop()?;
    }
    Ok(())
}

fn table(scene: &Scene, rows: &[Row]) -> Result<()> {
    let folder = readable_copies(scene, vec![script("open_sockets.py")])?;
    for row in rows {
        try_row(scene, row, &folder).map_err(|error| {
            let what = (row.daemon, row.variables, row.command);
            format!("{what:?}: {error}")
        })?;
    }
    fs::remove_dir_all(folder)?;
    Ok(())
}

/// What variables of the environment decide, and the sockets themselves.
pub(crate) fn by_variable(scene: &Scene) -> Result<()> {
    table(scene, &BY_VARIABLE)
}

/// What the daemon's configuration, static filters and other programs decide.
pub(crate) fn by_daemon(scene: &Scene) -> Result<()> {
    table(scene, &BY_DAEMON)
}

/// A setuid program that has the library all the same, as by ld.so.preload: every socket is the
/// kernel's, and what the caller's variables say is not heard. (For such a program ld.so takes it
/// by a name without a folder only, from a folder of the system, and setuid itself.)
pub(crate) fn setuid_program(scene: &Scene) -> Result<()> {
    if !scene.has_shim() {
        return Ok(());
    }
    let python = fs::canonicalize("/usr/bin/python3")?;
    let name = python.file_name().ok_or("no name")?.to_owned();
    let folder = readable_copies(scene, vec![script("open_sockets.py"), python])?;
    for file in [folder.join(&name), folder.join("libbypass.so")] {
        fs::set_permissions(&file, fs::Permissions::from_mode(0o4755))?;
    }
    // In a mount namespace of its own the library stands in for one of libc's.
    let start = format!(
        "mount --bind {0}/libbypass.so $(ls /lib/*/libpcprofile.so) && \
         exec setpriv --reuid={NOBODY} --regid={NOBODY} --clear-groups \
         env LD_PRELOAD=libpcprofile.so BYPASS_LOG=info BYPASS_CONFIG=/etc/shadow \
         {0}/{1} -I {0}/open_sockets.py {UDP} {TCP}",
        folder.display(),
        name.display()
    );
    let mut shell = scene.bed.program(Side::Server, "unshare");
    let running = shell.args(["--mount", "sh", "-c", &start]).spawn()?;
    wait_until("the sockets are open", Duration::from_secs(20), || {
        running.stdout().contains("ready")
    })
    .map_err(|error| format!("{error}: {}", running.stderr()))?;
    let found = reasons(scene, running.pid())?;
    if found != ["secure", "secure"] || !running.stderr().is_empty() {
        return Err(format!("{found:?}, {:?}", running.stderr()).into());
    }
    running.kill();
    fs::remove_dir_all(folder)?;
    Ok(())
}
