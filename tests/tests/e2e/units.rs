//! Programs that are confined, as by the directives of a systemd unit: what `ctl/README.md` says of
//! each. systemd itself does not run here: each directive's effect is had by other means.

use std::fs;
use std::path::Path;
use std::time::Duration;

use bypass_tests::program::{Running, wait_until};
use bypass_tests::services::wait_for_listener;
use bypass_tests::testbed::Side;
use bypass_tests::{Result, daemon};

use super::faults::readable_copies;
use super::harness::{Scene, script};
use super::reasons::reasons;
use super::streams::client;

const PATIENCE: Duration = Duration::from_secs(20);
const PORT: u16 = 7007;
const OPENED: [&str; 2] = ["udp:198.18.7.1:7007", "tcp:198.18.7.1:7007"];
/// What an accelerated socket has in the place of a reason.
const BYPASS: &str = "bypass";

/// What a directive does to a program of user nobody. The files of the test are in /mnt.
#[derive(Clone, Copy)]
struct Unit {
    directives: &'static str,
    /// Commands in a mount namespace of the program's own.
    mounts: &'static str,
    /// What root runs the program by.
    by_root: &'static str,
    /// More options of setpriv.
    privileges: &'static str,
    /// What its user runs it by.
    by_user: &'static str,
    sockets: [&'static str; 2],
    /// The reason of both, or [`BYPASS`].
    reason: &'static str,
}

const FREE: Unit = Unit {
    directives: "User=nobody",
    mounts: "",
    by_root: "",
    privileges: "",
    by_user: "",
    sockets: OPENED,
    reason: BYPASS,
};

const FILES: &str = "mount -t tmpfs none /tmp && mount -t tmpfs none /home && \
    mount -t tmpfs none /dev && mount -o remount,bind,ro / && ";
const PROC: &str = "mount -t proc -o hidepid=invisible,subset=pid proc /proc && ";
const ROOT: &str = "mount -t tmpfs none /srv && mkdir /srv/usr /srv/mnt && \
    mount --bind /usr /srv/usr && mount --bind /mnt /srv/mnt && \
    ln -s usr/lib usr/lib64 usr/bin /srv && ";
const CONFINED: &str = "/usr/bin/python3 -I /mnt/confined.py";

const UNITS: [Unit; 14] = [
    FREE,
    Unit {
        directives: "NoNewPrivileges=yes CapabilityBoundingSet=",
        privileges: "--no-new-privs --bounding-set=-all",
        ..FREE
    },
    Unit {
        directives: "PrivateTmp= ProtectHome= PrivateDevices= ProtectSystem=strict",
        mounts: FILES,
        ..FREE
    },
    Unit {
        directives: "ProtectProc=invisible ProcSubset=pid",
        mounts: PROC,
        ..FREE
    },
    Unit {
        directives: "RootDirectory=, without /proc, /dev and /etc",
        mounts: ROOT,
        by_root: "chroot /srv",
        ..FREE
    },
    Unit {
        directives: "PrivateUsers=yes",
        by_user: "unshare --user --map-current-user",
        ..FREE
    },
    Unit {
        directives: "PrivateIPC=yes ProtectHostname=yes ProtectControlGroups=private",
        by_root: "unshare --ipc --uts --cgroup",
        ..FREE
    },
    Unit {
        directives: "LimitNOFILE=64 LimitMEMLOCK=0",
        by_root: "prlimit --nofile=64 --memlock=0",
        ..FREE
    },
    Unit {
        directives: "MemoryDenyWriteExecute=yes",
        by_user: "CONFINED --mdwe --",
        ..FREE
    },
    Unit {
        directives: "SystemCallFilter=@system-service",
        by_user: "CONFINED --calls @system-service --",
        ..FREE
    },
    Unit {
        directives: "SystemCallFilter=@system-service ~@privileged ~@resources",
        by_user: "CONFINED --calls @system-service ~@privileged ~@resources --",
        ..FREE
    },
    Unit {
        directives: "RestrictAddressFamilies=AF_UNIX AF_INET",
        by_user: "CONFINED --families unix,inet --",
        ..FREE
    },
    // These two take the daemon from it.
    Unit {
        directives: "RestrictAddressFamilies=AF_INET",
        by_user: "CONFINED --families inet --",
        reason: "no-daemon",
        ..FREE
    },
    Unit {
        directives: "PrivateNetwork=yes",
        by_root: "unshare --net",
        sockets: ["udp:0.0.0.0:7007", "tcp:0.0.0.0:7007"],
        reason: "no-daemon",
        ..FREE
    },
];

/// All that leaves the program accelerated, at once.
const ALL: Unit = Unit {
    directives: "all at once",
    mounts: "mount -t tmpfs none /tmp && mount -t tmpfs none /home && \
        mount -t proc -o hidepid=invisible,subset=pid proc /proc && \
        mount -o remount,bind,ro / && ",
    by_root: "prlimit --nofile=64 --memlock=0 unshare --ipc --uts --cgroup",
    privileges: "--no-new-privs --bounding-set=-all",
    by_user: "unshare --user --map-current-user \
        CONFINED --mdwe --families unix,inet --calls @system-service ~@privileged ~@resources --",
    ..FREE
};

/// Starts a program so confined; its command ends with the program's own arguments.
fn confined(scene: &Scene, unit: &Unit, folder: &Path, command: &str) -> Result<Running> {
    let preload = match scene.has_shim() {
        true => "LD_PRELOAD=/mnt/libbypass.so",
        false => "",
    };
    let text = format!(
        "mount --bind {} /mnt && {} exec {} setpriv --reuid=65534 --regid=65534 --clear-groups {} \
         {} env {preload} {command}",
        folder.display(),
        unit.mounts,
        unit.by_root,
        unit.privileges,
        unit.by_user.replace("CONFINED", CONFINED),
    );
    let mut shell = scene.bed.program(Side::Server, "unshare");
    shell.args(["--mount", "sh", "-c", &text]).spawn()
}

/// Both sockets of a program so confined are served as the table says.
fn try_unit(scene: &Scene, unit: &Unit, folder: &Path) -> Result<()> {
    let command = format!(
        "/usr/bin/python3 -I /mnt/open_sockets.py {}",
        unit.sockets.join(" ")
    );
    let mut running = confined(scene, unit, folder, &command)?;
    let mut ended = false;
    let ready = wait_until("the sockets are open", PATIENCE, || {
        ended = !running.is_running();
        ended || running.stdout().contains("ready")
    });
    let told = running.stderr();
    ready.map_err(|error| format!("{error}: {told}"))?;
    if ended {
        let run = running.wait(PATIENCE)?;
        if run.status.code() == Some(77) {
            println!("{}: skipped, systemd-analyze is not here", unit.directives);
            return Ok(());
        }
        return Err(format!("it ended with {}: {told}", run.status).into());
    }
    if scene.has_shim() {
        let found = reasons(scene, running.pid())?;
        if found != [unit.reason; 2] {
            return Err(format!("{found:?} in the place of {}: {told}", unit.reason).into());
        }
    }
    running.kill();
    Ok(())
}

/// A daemon of the system's, as a unit would start it; none natively.
fn a_daemon(scene: &Scene) -> Result<Option<Running>> {
    let start = || daemon::start_as_unit(&scene.bed);
    scene.has_shim().then(start).transpose()
}

fn ends(daemon: Option<Running>) -> Result<()> {
    daemon.map_or(Ok(()), |daemon| daemon.stop().map(|_| ()))
}

/// Directive by directive.
pub(crate) fn directives(scene: &Scene) -> Result<()> {
    let files = vec![script("open_sockets.py"), script("confined.py")];
    let folder = readable_copies(scene, files)?;
    let daemon = a_daemon(scene)?;
    for unit in &UNITS {
        try_unit(scene, unit, &folder).map_err(|error| format!("{}: {error}", unit.directives))?;
    }
    fs::remove_dir_all(folder)?;
    ends(daemon)
}

/// Connections to a program that may do next to nothing.
pub(crate) fn hardened(scene: &Scene) -> Result<()> {
    let echo = bypass_tests::paths::example("tcpecho")?;
    let folder = readable_copies(scene, vec![echo, script("confined.py")])?;
    let daemon = a_daemon(scene)?;
    let command = format!("/mnt/tcpecho --bind {} --port {PORT}", scene.host());
    let server = confined(scene, &ALL, &folder, &command)?;
    let listens = wait_for_listener(&scene.bed, PORT, scene.has_shim());
    listens.map_err(|error| format!("{error}: {}", server.stderr()))?;
    echoes(scene, PORT)?;
    server.kill();
    fs::remove_dir_all(folder)?;
    ends(daemon)
}

/// Twenty connections, on each of which what is sent comes back.
fn echoes(scene: &Scene, port: u16) -> Result<()> {
    let text = format!(
        "import socket\n\
         for size in range(1, 100001, 5000):\n\
         \x20   s = socket.create_connection(('{}', {port}), 10); back = s.makefile('rb')\n\
         \x20   for part in b'x' * size, b'y' * 10:\n\
         \x20       s.sendall(part); assert back.read(len(part)) == part\n\
         \x20   s.close()",
        scene.host()
    );
    client(scene, "python3", &["-c", &text])?;
    Ok(())
}

/// A worker that has changed its root to an empty folder, and its user. Its listener is from
/// before, or its own: then it joins from there.
pub(crate) fn chrooted(scene: &Scene) -> Result<()> {
    let daemon = a_daemon(scene)?;
    let root = scene.bed.folder().join("root");
    fs::create_dir_all(&root)?;
    for when in ["before", "after"] {
        let mut server = scene.bed.program(Side::Server, "/usr/bin/python3");
        server.column(scene.column).arg(script("chrooted.py"));
        server.args([&scene.host(), &PORT.to_string()]).arg(&root);
        let server = server.arg(when).spawn()?;
        let listens = wait_for_listener(&scene.bed, PORT, scene.has_shim());
        listens.map_err(|error| format!("{when}: {error}: {}", server.stderr()))?;
        echoes(scene, PORT).map_err(|error| format!("{when}: {error}: {}", server.stderr()))?;
        server.stop()?;
    }
    ends(daemon)
}
