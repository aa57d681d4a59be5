//! What goes wrong: programs and daemons killed, no privilege, an interface that
//! changes. Without the shim these only prove that the tests themselves are right.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use bypass_tests::counters::{KernelUdp, wait_for_udp_port};
use bypass_tests::leftovers::Leftovers;
use bypass_tests::program::{Program, Running, wait_until};
use bypass_tests::testbed::{Options, Side, Testbed};
use bypass_tests::{Result, daemon, paths};

use super::harness::Scene;
use super::programs::{ping_pong, receives_at, start_example};

pub(super) const PORT: u16 = 7007;

pub(crate) fn echo(scene: &Scene) -> Result<Running> {
    start_example(scene, "udpecho", PORT, &["--bind", &scene.host()])
}

/// Fails when the kernel did not carry (nearly) all of `exchanges` echoes since `before`.
pub(super) fn kernel_carried(scene: &Scene, before: KernelUdp, exchanges: u64) -> Result<()> {
    let carried = KernelUdp::read(&scene.bed, Side::Server)?
        .since(before)
        .total();
    if carried >= exchanges * 2 - exchanges / 10 {
        return Ok(());
    }
    Err(format!("the kernel carried {carried} datagrams of {exchanges} exchanges").into())
}

/// `count` exchanges with the server under test, which the bypass must carry where it is there.
fn bypass_carries(scene: &Scene, count: u32) -> Result<()> {
    let before = KernelUdp::read(&scene.bed, Side::Server)?;
    ping_pong(scene, &scene.host(), PORT, count)?;
    let carried = KernelUdp::read(&scene.bed, Side::Server)?.since(before);
    if scene.has_shim() && carried.total() > u64::from(count) / 10 {
        let carried = carried.total();
        return Err(format!("the kernel carried {carried} datagrams of {count} exchanges").into());
    }
    Ok(())
}

/// `kill -9` of a program: its filters are gone within 100 ms, the kernel answers for the port.
pub(crate) fn program_killed(scene: &Scene) -> Result<()> {
    let host = scene.host();
    // A second one keeps the daemon and the XDP program there.
    let keeper = start_example(scene, "udpecho", 7010, &["--bind", &host])?;
    // On a processor that is elsewhere 100 ms may pass before the daemon runs: one of some kills.
    let mut soon = false;
    for _ in 0..5 {
        let server = echo(scene)?;
        ping_pong(scene, &host, PORT, 500)?;
        ping_pong(scene, &host, 7010, 100)?;
        let filters = || daemon::list(&scene.bed, &["filters", "list"]).map(|list| list.len());
        if scene.has_shim() && filters()? != 2 {
            return Err("two filters expected".into());
        }
        let before = KernelUdp::read(&scene.bed, Side::Server)?;
        server.kill();
        std::thread::sleep(Duration::from_millis(100));
        let poke = || {
            let mut bash = scene.bed.program(Side::Client, "bash");
            let poked = bash.args(["-c", &format!("echo > /dev/udp/{host}/{PORT}")]);
            let poked = poked.run().is_ok();
            std::thread::sleep(Duration::from_millis(20));
            let now = KernelUdp::read(&scene.bed, Side::Server);
            poked && now.is_ok_and(|now| now.since(before).no_port > 0)
        };
        soon = poke();
        let what = "the kernel answers for the port of a killed program";
        wait_until(what, Duration::from_secs(20), || soon || poke())?;
        if scene.has_shim() {
            wait_until("one filter", Duration::from_secs(20), || {
                filters().is_ok_and(|count| count == 1)
            })?;
        }
        if soon {
            break;
        }
    }
    if !soon {
        return Err("the filters of a killed program are there after 100 ms".into());
    }
    ping_pong(scene, &host, 7010, 100)?;
    let again = echo(scene)?;
    ping_pong(scene, &host, PORT, 500)?;
    again.stop()?.check()?;
    keeper.stop()?.check()?;
    Ok(())
}

/// `kill -9` of the daemon: running programs go on; the next daemon takes over.
pub(crate) fn daemon_killed(scene: &Scene) -> Result<()> {
    let host = scene.host();
    let server = echo(scene)?;
    ping_pong(scene, &host, PORT, 500)?;
    if scene.has_shim() {
        let daemons = daemon::running(&scene.bed);
        let [pid] = daemons.as_slice() else {
            return Err(format!("one daemon expected: {daemons:?}").into());
        };
        if !keeps_its_stack(server.pid()) {
            return Err("the next daemon cannot find the stack".into());
        }
        kill(*pid)?;
        wait_until("the daemon is gone", Duration::from_secs(20), || {
            daemon::running(&scene.bed).is_empty()
        })?;
    }
    ping_pong(scene, &host, PORT, 2000)?;
    let second = start_example(scene, "udpecho", 7010, &["--bind", &host])?;
    ping_pong(scene, &host, 7010, 500)?;
    ping_pong(scene, &host, PORT, 500)?;
    if scene.has_shim() {
        let filters = daemon::list(&scene.bed, &["filters", "list"])?;
        if filters.len() != 2 {
            return Err(format!("the next daemon knows both filters: {filters:?}").into());
        }
    }
    second.stop()?.check()?;
    ping_pong(scene, &host, PORT, 500)?;
    server.stop()?.check()?;
    Ok(())
}

/// What an interface has not of what the configuration asks for the next daemon says too.
pub(crate) fn told_again(scene: &Scene) -> Result<()> {
    let name = scene.bed.interface(Side::Server);
    let file = scene.bed.folder().join("asks.toml");
    let asks = "backend = \"af_xdp\"\nzero_copy = true\nown_queue = true\n";
    fs::write(&file, format!("[[device]]\nname = {name:?}\n{asks}"))?;
    let file = file.display().to_string();
    let start = || daemon::start_with(&scene.bed, &["--config", &file], &[]);
    let says = |why: &[&str]| -> Result<()> {
        let told = daemon::bypassctl(&scene.bed, &["doctor", name])?.stdout;
        let missing = why.iter().find(|why| !told.contains(**why));
        missing.map_or(Ok(()), |why| Err(format!("no \"{why}\" in {told}").into()))
    };
    let first = scene.has_shim().then(start).transpose()?;
    let server = echo(scene)?;
    ping_pong(scene, &scene.host(), PORT, 100)?;
    if let Some(first) = first {
        let one = "all queues are served: it has one queue only";
        says(&["frames of queue 0 are copied: ", one])?;
        kill(first.pid())?;
        wait_until("the daemon is gone", Duration::from_secs(20), || {
            daemon::running(&scene.bed).is_empty()
        })?;
        let second = start()?;
        says(&["frames of queue 0 are copied: since before", one])?;
        ping_pong(scene, &scene.host(), PORT, 100)?;
        server.stop()?.check()?;
        second.stop()?;
        return Ok(());
    }
    server.stop()?.check()?;
    Ok(())
}

/// Whether a program keeps what the next daemon finds its stack by.
fn keeps_its_stack(pid: u32) -> bool {
    let entries = fs::read_dir(format!("/proc/{pid}/fd"));
    let links = entries.into_iter().flatten().flatten();
    let targets: Vec<String> = links
        .filter_map(|entry| fs::read_link(entry.path()).ok())
        .map(|target| target.display().to_string())
        .collect();
    let parts = [
        "bypass-image",
        "bypass-packets",
        "bypass-cplane",
        "bpf-map",
        "bpf_link",
    ];
    parts
        .iter()
        .all(|part| targets.iter().any(|target| target.contains(part)))
}

fn kill(pid: u32) -> Result<()> {
    let status = std::process::Command::new("kill")
        .args(["-9", &pid.to_string()])
        .status()?;
    if status.success() {
        Ok(())
    } else {
        Err(format!("kill {pid}: {status}").into())
    }
}

/// A folder with copies of the library, the tool and these files, which everybody may read.
pub(crate) fn readable_copies(scene: &Scene, mut files: Vec<PathBuf>) -> Result<PathBuf> {
    let folder = format!("{}-open", scene.bed.namespace(Side::Server));
    let folder = PathBuf::from("/tmp").join(folder);
    fs::create_dir_all(&folder)?;
    if scene.has_shim() {
        files.extend([paths::shim(), paths::bypassctl()]);
    }
    for from in files {
        fs::copy(&from, folder.join(from.file_name().unwrap_or_default()))?;
    }
    Ok(folder)
}

/// Starts the echo as uid 65534 without capabilities, on a copy that everybody may read.
fn unprivileged_echo(scene: &Scene) -> Result<Running> {
    let folder = readable_copies(scene, vec![paths::example("udpecho")?])?;
    let mut program = scene.bed.program(Side::Server, folder.join("udpecho"));
    program
        .user(65534)
        .args(["--bind", &scene.host(), "--port", &PORT.to_string()]);
    if scene.has_shim() {
        program.env("LD_PRELOAD", folder.join("libbypass.so"));
    }
    let running = program.spawn()?;
    let bound = wait_for_udp_port(&scene.bed, Side::Server, PORT);
    fs::remove_dir_all(&folder)?;
    bound.map_err(|error| format!("{error}\n{}{}", running.stdout(), running.stderr()))?;
    Ok(running)
}

/// No privilege and no daemon: the program runs on the kernel.
pub(crate) fn unprivileged_without_daemon(scene: &Scene) -> Result<()> {
    let before = KernelUdp::read(&scene.bed, Side::Server)?;
    let server = unprivileged_echo(scene)?;
    ping_pong(scene, &scene.host(), PORT, 500)?;
    kernel_carried(scene, before, 500)?;
    explains(scene, server.pid(), "no-daemon")?;
    server.stop()?.check()?;
    Ok(())
}

/// An echo that a shell starts after `preparation`, on an address.
fn prepared_echo(scene: &Scene, preparation: &str, address: &str) -> Result<Running> {
    let echo = paths::example("udpecho")?.display().to_string();
    let mut shell = scene.bed.program(Side::Server, "sh");
    let command = format!("{preparation}; exec {echo} --bind {address} --port {PORT}");
    let running = shell.column(scene.column).args(["-c", &command]).spawn()?;
    wait_for_udp_port(&scene.bed, Side::Server, PORT)
        .map_err(|error| format!("{error}\n{}{}", running.stdout(), running.stderr()))?;
    Ok(running)
}

/// No memory for the mappings of a stack: the program runs on the kernel.
pub(crate) fn memory_exhausted(scene: &Scene) -> Result<()> {
    let before = KernelUdp::read(&scene.bed, Side::Server)?;
    let server = prepared_echo(scene, "ulimit -v 60000", &scene.host())?;
    ping_pong(scene, &scene.host(), PORT, 500)?;
    kernel_carried(scene, before, 500)?;
    explains(scene, server.pid(), "\"system\"")?;
    server.stop()?.check()?;
    Ok(())
}

/// Limits too small for what we would like to have, and a configuration that never comes: the
/// program runs as it would without us.
pub(crate) fn small_limits(scene: &Scene) -> Result<()> {
    for limit in ["ulimit -f 0", "ulimit -n 6", "ulimit -n 9", "ulimit -l 0"] {
        let silent = format!("exec >/dev/null 2>&1; {limit}");
        let server = prepared_echo(scene, &silent, &scene.host())
            .map_err(|error| format!("{limit}: {error}"))?;
        ping_pong(scene, &scene.host(), PORT, 100).map_err(|error| format!("{limit}: {error}"))?;
        server.stop()?.check()?;
    }
    let fifo = scene.bed.folder().join("bypass.toml");
    rustix::fs::mkfifoat(rustix::fs::CWD, &fifo, 0o600.into())?;
    let fifo = fifo.display().to_string();
    on_the_kernel(scene, ("BYPASS_CONFIG", &fifo), "bad-config")
}

/// A program of the same user in another pid namespace is the kernel's while the first runs, and
/// has a stack when it is alone. (unshare itself ignores SIGTERM; its child gets one when it dies.)
pub(crate) fn two_pid_namespaces(scene: &Scene) -> Result<()> {
    let (host, port) = (scene.host(), 7010);
    let contained = || -> Result<Running> {
        let mut program = scene.bed.program(Side::Server, "unshare");
        program
            .column(scene.column)
            .args(["--pid", "--fork", "--kill-child=TERM"])
            .arg(paths::example("udpecho")?)
            .args(["--bind", &host, "--port", &port.to_string()]);
        let running = program.spawn()?;
        wait_for_udp_port(&scene.bed, Side::Server, port)?;
        ping_pong(scene, &host, port, 500)?;
        Ok(running)
    };
    let all = || -> Result<String> {
        let run = daemon::bypassctl(&scene.bed, &["explain", "--all", "--json"])?;
        Ok(run.stdout)
    };
    let first = echo(scene)?;
    let second = contained()?;
    let is_refused = !scene.has_shim() || all()?.contains("\"pid-namespace\"");
    ping_pong(scene, &host, PORT, 500)?;
    second.kill();
    first.stop()?.check()?;
    if !is_refused {
        return Err("the second one shares the stack".into());
    }
    wait_until("the daemon is gone", Duration::from_secs(20), || {
        daemon::running(&scene.bed).is_empty()
    })?;
    let before = KernelUdp::read(&scene.bed, Side::Server)?;
    let alone = contained()?;
    if scene.has_shim() {
        let carried = KernelUdp::read(&scene.bed, Side::Server)?.since(before);
        if carried.total() > 50 {
            let carried = carried.total();
            return Err(format!("alone: the kernel carried {carried} datagrams").into());
        }
    }
    alone.kill();
    Ok(())
}

/// No device but loopback: the program runs on the kernel.
pub(crate) fn no_device(scene: &Scene) -> Result<()> {
    let interface = scene.bed.interface(Side::Server);
    scene.bed.ip(Side::Server, &["link", "del", interface])?;
    let server = prepared_echo(scene, "true", "127.0.0.1")?;
    let mut client = scene.bed.program(Side::Server, paths::example("udprr")?);
    client.args(["--count", "500", "--port", &PORT.to_string(), "127.0.0.1"]);
    client.run()?.check()?;
    explains(scene, server.pid(), "\"loopback\"")?;
    let any = start_example(scene, "udpecho", 7010, &[])?;
    explains(scene, any.pid(), "\"no-interface\"")?;
    any.stop()?.check()?;
    server.stop()?.check()?;
    Ok(())
}

/// No privilege, but a daemon whose policy allows the user.
pub(crate) fn unprivileged_with_daemon(scene: &Scene) -> Result<()> {
    let mut daemon = None;
    if scene.has_shim() {
        let config = scene.bed.folder().join("daemon.toml");
        fs::write(&config, "[daemon]\nallow = [{ user = \"nobody\" }]\n")?;
        let config = config.display().to_string();
        daemon = Some(daemon::start(&scene.bed, &[("BYPASS_CONFIG", &config)])?);
    }
    let server = unprivileged_echo(scene)?;
    ping_pong(scene, &scene.host(), PORT, 1000)?;
    server.stop()?.check()?;
    if let Some(daemon) = daemon {
        daemon.stop()?;
    }
    Ok(())
}

/// A user's program that closes its socket behind the library's back does not keep the packets of
/// the port: whoever binds it next gets them.
pub(crate) fn socket_closed_unseen(scene: &Scene) -> Result<()> {
    // The page: mov eax, 3 (close); syscall; ret.
    let script = r"
import ctypes, mmap, os, socket, sys, time
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.bind((sys.argv[1], int(sys.argv[2])))
page = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
page.write(b'\xb8\x03\0\0\0\x0f\x05\xc3')
at = ctypes.addressof(ctypes.c_char.from_buffer(page))
print('bound', flush=True)
while not os.path.exists(sys.argv[3]): time.sleep(0.01)
print('closed', ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int)(at)(s.fileno()), flush=True)
time.sleep(60)
";
    let mut daemon = None;
    if scene.has_shim() {
        let config = scene.bed.folder().join("daemon.toml");
        fs::write(&config, "[daemon]\nallow = [{ user = \"nobody\" }]\n")?;
        let config = config.display().to_string();
        daemon = Some(daemon::start(&scene.bed, &[("BYPASS_CONFIG", &config)])?);
    }
    let folder = readable_copies(scene, Vec::new())?;
    let go = folder.join("go");
    let mut program = scene.bed.program(Side::Server, "/usr/bin/python3");
    program
        .user(65534)
        .args(["-c", script, &scene.host(), &PORT.to_string()])
        .arg(&go);
    if scene.has_shim() {
        program.env("LD_PRELOAD", folder.join("libbypass.so"));
    }
    let running = program.spawn()?;
    let says = |word: &str| {
        wait_until(word, Duration::from_secs(20), || {
            running.stdout().contains(word)
        })
        .map_err(|error| format!("{error}\n{}{}", running.stdout(), running.stderr()))
    };
    let filters = || daemon::list(&scene.bed, &["filters", "list"]).map_or(0, |list| list.len());
    says("bound")?;
    if scene.has_shim() {
        wait_until("the filter", Duration::from_secs(20), || filters() == 1)?;
    }
    fs::write(&go, "")?;
    says("closed 0")?;
    if scene.has_shim() {
        wait_until("the end of the filter", Duration::from_secs(20), || {
            filters() == 0
        })?;
    }
    let mut server = scene.bed.program(Side::Server, paths::example("udpecho")?);
    let server = server.args(["--port", &PORT.to_string()]).spawn()?;
    wait_for_udp_port(&scene.bed, Side::Server, PORT)?;
    ping_pong(scene, &scene.host(), PORT, 100)?;
    server.stop()?.check()?;
    running.kill();
    fs::remove_dir_all(&folder)?;
    if let Some(daemon) = daemon {
        daemon.stop()?;
    }
    Ok(())
}

/// `bypassctl explain PID` names the reason.
pub(crate) fn explains(scene: &Scene, pid: u32, reason: &str) -> Result<()> {
    explains_within(scene, pid, reason, Duration::from_secs(20))
}

/// [`explains`], within this time.
pub(crate) fn explains_within(
    scene: &Scene,
    pid: u32,
    reason: &str,
    limit: Duration,
) -> Result<()> {
    if !scene.has_shim() {
        return Ok(());
    }
    // The kernel shows a socket bound before the program's call has returned.
    let mut told = String::new();
    let arguments = ["explain", &pid.to_string(), "--json"];
    wait_until(reason, limit, || {
        let run = daemon::bypassctl(&scene.bed, &arguments);
        told = run.map_or_else(|error| error.to_string(), |run| run.stdout + &run.stderr);
        told.contains(reason)
    })
    .map_err(|error| format!("{error} in: {told}").into())
}

/// The echo with one more variable: it must run, and on the kernel.
pub(super) fn on_the_kernel(scene: &Scene, variable: (&str, &str), reason: &str) -> Result<()> {
    let before = KernelUdp::read(&scene.bed, Side::Server)?;
    let server = echo_with(scene, &scene.host(), variable)?;
    ping_pong(scene, &scene.host(), PORT, 500)?;
    kernel_carried(scene, before, 500)?;
    explains(scene, server.pid(), reason)?;
    server.stop()?.check()?;
    Ok(())
}

/// Starts the echo on an address with one more variable.
pub(super) fn echo_with(scene: &Scene, bind: &str, variable: (&str, &str)) -> Result<Running> {
    let program = scene.bed.program(Side::Server, paths::example("udpecho")?);
    spawn_echo(scene, program, bind, variable)
}

pub(super) fn spawn_echo(
    scene: &Scene,
    mut program: Program<'_>,
    bind: &str,
    variable: (&str, &str),
) -> Result<Running> {
    program.column(scene.column).env(variable.0, variable.1);
    let server = program
        .args(["--bind", bind, "--port", &PORT.to_string()])
        .spawn()?;
    wait_for_udp_port(&scene.bed, Side::Server, PORT)?;
    Ok(server)
}

/// Privileged, but told not to start a daemon.
pub(crate) fn no_daemon_wanted(scene: &Scene) -> Result<()> {
    on_the_kernel(scene, ("BYPASS_DAEMON", "never"), "no-daemon")
}

/// The daemon that a program starts is no child of it: neither SIGCHLD nor wait() tells of one; and
/// it may run on every processor although the program may not.
pub(crate) fn daemon_is_no_child(scene: &Scene) -> Result<()> {
    let python = format!(
        "import os, signal, socket, time\n\
         def told(*_): raise SystemExit('SIGCHLD')\n\
         signal.signal(signal.SIGCHLD, told)\n\
         listener = socket.create_server(('{}', {PORT}))\n\
         for _ in range(50):\n\
         \x20   try: raise SystemExit(f'a child: {{os.waitpid(-1, os.WNOHANG)}}')\n\
         \x20   except ChildProcessError: time.sleep(0.01)\n",
        scene.host()
    );
    let mut program = scene.bed.program(Side::Server, "/usr/bin/python3");
    program.column(scene.column).cpu(0).args(["-c", &python]);
    let running = program.spawn()?;
    if scene.has_shim() {
        // It is the program that starts it, and on the program's processors, for a moment.
        let all = allowed_processors("self")?;
        let mut seen = Vec::new();
        let is_everywhere = wait_until("a daemon on all", Duration::from_secs(20), || {
            let pids = daemon::running(&scene.bed).into_iter();
            let lists = pids.filter_map(|pid| allowed_processors(&pid.to_string()).ok());
            seen = lists.collect();
            !seen.is_empty() && seen.iter().all(|its| *its == all)
        });
        is_everywhere.map_err(|error| format!("{error} of {all}: {seen:?}"))?;
    }
    running.wait(Duration::from_secs(30))?.check()?;
    Ok(())
}

/// The processors that a process may run on, as the kernel lists them.
fn allowed_processors(pid: &str) -> Result<String> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let field = "Cpus_allowed_list:";
    let list = status.lines().find_map(|line| line.strip_prefix(field));
    Ok(list.ok_or("no list of processors")?.trim().to_owned())
}

/// A client of the same host reaches the server, whether the sockets of a stack talk directly or
/// through the kernel.
pub(crate) fn own_address(scene: &Scene) -> Result<()> {
    for (direct, reason) in [("0", "local-route"), ("1", "\"bypass\"")] {
        let variable = ("BYPASS_ACCELERATE_LOCAL", direct);
        let server = echo_with(scene, &scene.host(), variable)?;
        let before = KernelUdp::read(&scene.bed, Side::Server)?;
        let python = format!(
            "import signal, socket\n\
             s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n\
             s.settimeout(5)\n\
             s.connect((\"{}\", {PORT}))\n\
             for i in range(200):\n\
             \x20   s.send(b\"%d\" % i)\n\
             \x20   assert s.recv(64) == b\"%d\" % i\n\
             print(\"done\", flush=True)\n\
             signal.pause()\n",
            scene.host()
        );
        let mut client = scene.bed.program(Side::Server, "/usr/bin/python3");
        client.column(scene.column).env(variable.0, variable.1);
        let client = client.args(["-c", &python]).spawn()?;
        wait_until("200 answers", Duration::from_secs(30), || {
            client.stdout().contains("done")
        })
        .map_err(|error| format!("{error}: {}", client.stderr()))?;
        let carried = KernelUdp::read(&scene.bed, Side::Server)?
            .since(before)
            .total();
        let expected = if scene.has_shim() && direct == "1" {
            0..10
        } else {
            800..1000
        };
        if !expected.contains(&carried) {
            return Err(format!("local {direct}: the kernel carried {carried}").into());
        }
        explains(scene, client.pid(), reason)?;
        client.stop()?;
        server.stop()?.check()?;
    }
    Ok(())
}

/// A socket on the subnet's broadcast address, and what is broadcast to one on any address: the
/// kernel's, with the reason.
pub(crate) fn broadcast(scene: &Scene) -> Result<()> {
    let subnet = scene
        .host()
        .rsplit_once('.')
        .map(|(net, _)| format!("{net}.255"))
        .ok_or("no IPv4 address")?;
    let python = format!(
        "import signal, socket\n\
         for address, port in ((\"{subnet}\", {PORT}), (\"0.0.0.0\", 7008)):\n\
         \x20   s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n\
         \x20   s.bind((address, port))\n\
         \x20   print(\"ready\", port, flush=True)\n\
         \x20   print(\"got\", port, s.recv(64), flush=True)\n\
         \x20   if port == {PORT}: kept = s\n\
         signal.pause()\n"
    );
    let mut server = scene.bed.program(Side::Server, "/usr/bin/python3");
    let server = server.column(scene.column).args(["-c", &python]).spawn()?;
    let says = |what: &str| {
        wait_until(what, Duration::from_secs(30), || {
            server.stdout().contains(what)
        })
        .map_err(|error| format!("{error}: {}{}", server.stdout(), server.stderr()))
    };
    for port in [PORT, 7008] {
        says(&format!("ready {port}"))?;
        let send = format!(
            "import socket\n\
             s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n\
             s.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)\n\
             s.sendto(b\"all\", (\"{subnet}\", {port}))\n"
        );
        let mut client = scene.bed.program(Side::Client, "/usr/bin/python3");
        client.args(["-c", &send]).run()?.check()?;
        says(&format!("got {port} b'all'"))?;
    }
    explains(scene, server.pid(), "\"broadcast\"")?;
    server.stop()?;
    Ok(())
}

/// The interface goes down and comes back.
pub(crate) fn interface_down_and_up(scene: &Scene) -> Result<()> {
    let (host, bed) = (scene.host(), &scene.bed);
    let server = echo(scene)?;
    ping_pong(scene, &host, PORT, 500)?;
    let interface = bed.interface(Side::Server);
    bed.ip(Side::Server, &["link", "set", interface, "down"])?;
    std::thread::sleep(Duration::from_millis(300));
    bed.ip(Side::Server, &["link", "set", interface, "up"])?;
    // The kernel tells of a carrier that is back within a second.
    wait_until("the bypass carries again", Duration::from_secs(20), || {
        bypass_carries(scene, 20).is_ok()
    })?;
    bypass_carries(scene, 500)?;
    server.stop()?.check()?;
    Ok(())
}

/// The MTU shrinks and grows while datagrams of 1400 bytes are echoed.
pub(crate) fn mtu_changes(scene: &Scene) -> Result<()> {
    let (host, bed) = (scene.host(), &scene.bed);
    let server = echo(scene)?;
    let large = || -> Result<()> {
        let mut client = bed.program(Side::Client, paths::example("udprr")?);
        client.args(["--size", "1400", "--count", "200", "--warmup", "5", &host]);
        client.run()?.check()?;
        Ok(())
    };
    let set_mtu = |mtu: &str| -> Result<()> {
        for side in [Side::Server, Side::Client] {
            bed.ip(side, &["link", "set", bed.interface(side), "mtu", mtu])?;
        }
        // The stack hears of it a moment later; what it sends until then may be lost.
        wait_until("all is echoed", Duration::from_secs(20), || large().is_ok())
    };
    large()?;
    // Of both ends: a veth drops what is longer than the receiving end's MTU.
    set_mtu("1000")?;
    ping_pong(scene, &host, PORT, 200)?;
    set_mtu("1500")?;
    let by_bypass = || -> Result<bool> {
        let before = KernelUdp::read(bed, Side::Server)?;
        large()?;
        let carried = KernelUdp::read(bed, Side::Server)?.since(before);
        Ok(!scene.has_shim() || carried.total() <= 20)
    };
    wait_until("the bypass carries again", Duration::from_secs(20), || {
        by_bypass().is_ok_and(|carries| carries)
    })?;
    server.stop()?.check()?;
    Ok(())
}

/// The address goes away, and comes back: the program does not notice more than on the kernel.
pub(crate) fn address_removed(scene: &Scene) -> Result<()> {
    let (host, bed) = (scene.host(), &scene.bed);
    let interface = bed.interface(Side::Server);
    let server = echo(scene)?;
    ping_pong(scene, &host, PORT, 500)?;
    let address = format!("{host}/24");
    bed.ip(Side::Server, &["addr", "del", &address, "dev", interface])?;
    std::thread::sleep(Duration::from_millis(200));
    bed.ip(Side::Server, &["addr", "add", &address, "dev", interface])?;
    // The kernel tells of a carrier that is back within a second.
    wait_until("the bypass carries again", Duration::from_secs(20), || {
        bypass_carries(scene, 20).is_ok()
    })?;
    bypass_carries(scene, 500)?;
    server.stop()?.check()?;
    Ok(())
}

/// Every queue of an interface with several is served.
pub(crate) fn two_queues(scene: &Scene) -> Result<()> {
    let bed = Testbed::with(Options {
        queues: 2,
        ..Options::default()
    })?;
    let wide = Scene {
        bed,
        column: scene.column,
    };
    let pace = [
        "--threads",
        "8",
        "--batch",
        "8",
        "--rate",
        "4000",
        "--count",
        "6000",
    ];
    let sent = receives_at(&wide, &[], &pace)?;
    let kernel = KernelUdp::read(&wide.bed, Side::Server)?.received;
    if wide.has_shim() && kernel > sent / 20 {
        return Err(format!("the kernel carried {kernel} of {sent} datagrams").into());
    }
    let left = Leftovers::after(&wide.bed, Duration::from_secs(30));
    if wide.has_shim() && left != Leftovers::default() {
        return Err(format!("left behind: {left}").into());
    }
    Ok(())
}
