//! Servers whose processes come and go under load: new workers, new binaries, killed workers.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use bypass_tests::counters::wait_for_tcp_port;
use bypass_tests::program::{Running, wait_until};
use bypass_tests::testbed::Side;
use bypass_tests::{Result, daemon};
use rustix::process::{Pid, Signal, kill_process};

use super::harness::Scene;
use super::streams::{fetch, noise, started, subject};
use super::web::{apache, debian_nginx, nginx_command, no_failures};

/// How long a server may take for what it was told.
pub(super) const PATIENCE: Duration = Duration::from_secs(30);

/// A server in the background, by its file with the process id. Dropping it ends it.
pub(super) struct Master {
    file: PathBuf,
}

impl Master {
    /// The server whose process id is in the scene's folder.
    pub(super) fn of(scene: &Scene) -> Self {
        let file = scene.bed.folder().join("pid");
        Self { file }
    }

    pub(super) fn pid(&self) -> Result<u32> {
        Ok(fs::read_to_string(&self.file)?.trim().parse()?)
    }

    pub(super) fn workers(&self) -> Vec<u32> {
        let pid = self.pid().unwrap_or(0);
        let text = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"));
        let text = text.unwrap_or_default();
        let pids = text.split_whitespace().filter_map(|pid| pid.parse().ok());
        pids.collect()
    }

    /// Does something that replaces workers, and waits until none of the old ones is left.
    fn renewed(&self, change: impl FnOnce() -> Result<()>) -> Result<()> {
        let before = self.workers();
        change()?;
        wait_until("new workers", PATIENCE, || {
            let now = self.workers();
            now.len() >= before.len() && !now.iter().any(|pid| before.contains(pid))
        })
    }

    /// The same for a server that has as many as it needs.
    fn replaced(&self, change: impl FnOnce() -> Result<()>) -> Result<()> {
        let before = self.workers();
        change()?;
        wait_until("new workers", PATIENCE, || {
            let now = self.workers();
            !now.is_empty() && !now.iter().any(|pid| before.contains(pid))
        })
    }
}

impl Drop for Master {
    fn drop(&mut self) {
        if let Ok(pid) = self.pid() {
            signal(pid, Signal::TERM);
        }
    }
}

pub(super) fn signal(pid: u32, signal: Signal) {
    if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
        // It may have ended by itself.
        let _ = kill_process(pid, signal);
    }
}

pub(super) fn is_gone(pid: u32) -> bool {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    status.is_empty() || status.contains("State:\tZ")
}

/// ab on the kernel: a connection for each request, or few for all.
fn load(scene: &Scene, url: &str, arguments: &[&str]) -> Result<Running> {
    let mut ab = scene.bed.program(Side::Client, "ab");
    ab.arg("-q").args(arguments).arg(url).spawn()
}

/// Repeats `turn` as long as the clients work; none of their requests may fail.
pub(super) fn under_load(
    scene: &Scene,
    url: &str,
    arguments: &[&str],
    mut turn: impl FnMut() -> Result<()>,
) -> Result<()> {
    let mut clients = load(scene, url, arguments)?;
    while clients.is_running() {
        turn()?;
    }
    no_failures(&clients.wait(Duration::from_secs(5))?.check()?)
}

/// Debian's nginx with this many workers.
pub(super) fn nginx(scene: &Scene, workers: u32) -> Result<(PathBuf, Master, String)> {
    let config = debian_nginx(scene)?;
    let text = fs::read_to_string(&config)?;
    let wanted = format!("worker_processes {workers}");
    fs::write(&config, text.replace("worker_processes 2", &wanted))?;
    nginx_command(scene, &config, &[])?;
    wait_for_tcp_port(&scene.bed, Side::Server, 80)?;
    let master = Master::of(scene);
    // A signal that comes before the master has made its workers is noted and then forgotten.
    wait_until("all workers", PATIENCE, || {
        master.workers().len() == workers as usize
    })?;
    let url = format!("http://{}/index.nginx-debian.html", scene.host());
    Ok((config, master, url))
}

/// A reload after the other, with a connection for each request: no request fails. With
/// `BYPASS_RELOAD_SECONDS` a reload each second, for so long.
pub(crate) fn nginx_reloads(scene: &Scene) -> Result<()> {
    let seconds = std::env::var("BYPASS_RELOAD_SECONDS").ok();
    let (seconds, pause) = match &seconds {
        Some(seconds) => (seconds.as_str(), Duration::from_secs(1)),
        None => ("2", Duration::ZERO),
    };
    for workers in [2, 4] {
        let (config, master, url) = nginx(scene, workers)?;
        let mut wrk = scene.bed.program(Side::Client, "wrk");
        wrk.args(["-t", "1", "-c", "10", "--timeout", "10s", "-d", seconds]);
        let mut wrk = wrk.args(["-H", "Connection: close", &url]).spawn()?;
        let mut reloads = 0;
        while wrk.is_running() {
            let begun = Instant::now();
            master.renewed(|| nginx_command(scene, &config, &["-s", "reload"]))?;
            reloads += 1;
            std::thread::sleep(pause.saturating_sub(begun.elapsed()));
        }
        let told = wrk.wait(PATIENCE)?.check()?.stdout;
        // wrk tells of errors only when there are some.
        let has_failed = ["Socket errors", "Non-2xx"].map(|it| told.contains(it));
        if reloads == 0 || has_failed != [false; 2] || !told.contains("requests in") {
            return Err(format!("{workers} workers, {reloads} reloads: {told}").into());
        }
        let pid = master.pid()?;
        nginx_command(scene, &config, &["-s", "quit"])?;
        wait_until("the end of nginx", PATIENCE, || is_gone(pid))?;
    }
    Ok(())
}

/// A new binary takes over: USR2, WINCH, QUIT to the old master.
pub(crate) fn nginx_upgrade(scene: &Scene) -> Result<()> {
    let (config, master, url) = nginx(scene, 2)?;
    let mut is_upgraded = false;
    under_load(scene, &url, &["-n", "8000", "-c", "10"], || {
        if std::mem::replace(&mut is_upgraded, true) {
            std::thread::sleep(Duration::from_millis(5));
            return Ok(());
        }
        let (old, old_workers) = (master.pid()?, master.workers());
        signal(old, Signal::USR2);
        wait_until("the new master", PATIENCE, || {
            master.pid().is_ok_and(|pid| pid != old) && master.workers().len() >= 2
        })?;
        signal(old, Signal::WINCH);
        wait_until("the end of the old workers", PATIENCE, || {
            old_workers.iter().all(|pid| is_gone(*pid))
        })?;
        signal(old, Signal::QUIT);
        wait_until("the end of the old master", PATIENCE, || is_gone(old))
    })?;
    fetch(
        scene,
        &url,
        &PathBuf::from("/var/www/html/index.nginx-debian.html"),
    )?;
    nginx_command(scene, &config, &["-s", "quit"])
}

/// `-s quit` with a client that reads slowly: it gets everything.
pub(crate) fn nginx_quits(scene: &Scene) -> Result<()> {
    let large = noise(scene, "large", 3 << 20)?;
    let (config, master, _) = nginx(scene, 2)?;
    // Other scenes have the same address, in other namespaces, and the same /var/www.
    let bed = scene.bed.folder().file_name().unwrap_or_default();
    let name = format!("bypass-{}", bed.display());
    let root = PathBuf::from("/var/www/html").join(&name);
    fs::copy(&large, &root)?;
    let got = scene.bed.folder().join("got");
    let mut curl = scene.bed.program(Side::Client, "curl");
    curl.args(["-sS", "--fail", "--limit-rate", "1500k", "-m", "50", "-o"]);
    curl.arg(&got);
    let url = format!("http://{}/{name}", scene.host());
    let curl = curl.arg(url).spawn()?;
    let begun = wait_until("the download", PATIENCE, || {
        fs::metadata(&got).is_ok_and(|it| it.len() > 0)
    });
    let pid = master.pid()?;
    let quit = begun.and_then(|()| nginx_command(scene, &config, &["-s", "quit"]));
    let ended = curl.wait(PATIENCE);
    fs::remove_file(&root)?;
    quit?;
    ended?.check()?;
    super::web::same(&got, &large)?;
    wait_until("the end of nginx", PATIENCE, || is_gone(pid))
}

/// `kill -9` of a worker after the other: the master makes new ones. Only connections of a killed
/// worker may fail: each is one request here.
pub(crate) fn nginx_killed_workers(scene: &Scene) -> Result<()> {
    let (config, master, url) = nginx(scene, 2)?;
    workers_are_killed(scene, &master, (&url, "6000"))?;
    nginx_command(scene, &config, &["-s", "quit"])
}

/// Kills workers while so many requests are made: only those of their connections fail.
fn workers_are_killed(scene: &Scene, master: &Master, (url, requests): (&str, &str)) -> Result<()> {
    let mut clients = load(scene, url, &["-r", "-n", requests, "-c", "10"])?;
    let mut kills = 0;
    while clients.is_running() {
        if let Some(&pid) = master.workers().first() {
            signal(pid, Signal::KILL);
            kills += 1;
            wait_until("another worker", PATIENCE, || {
                let now = master.workers();
                now.len() >= 2 && !now.contains(&pid)
            })?;
        }
        std::thread::sleep(Duration::from_millis(300));
    }
    let run = clients.wait(Duration::from_secs(5))?.check()?;
    let failed = run.stdout.lines().find_map(|line| {
        let count = line.strip_prefix("Failed requests:")?;
        count.trim().parse::<u32>().ok()
    });
    // ab counts a failed request up to three times (length, receive, exception).
    if failed.is_none_or(|failed| failed > kills * 10 * 3) {
        return Err(format!("{kills} workers killed: {}", run.stdout).into());
    }
    under_load(scene, url, &["-n", "300", "-c", "10"], || {
        std::thread::sleep(Duration::from_millis(5));
        Ok(())
    })
}

/// A process and what it has forked, to the kernel and back.
pub(super) fn there_and_back(scene: &Scene, pid: u32) -> Result<()> {
    for command in ["rollback", "adopt"] {
        if scene.has_shim() {
            let run = daemon::bypassctl(&scene.bed, &[command, &pid.to_string()])?;
            run.check()?;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}

/// Master and workers to the kernel and back, again and again, under load of both kinds.
pub(crate) fn nginx_rolled_back(scene: &Scene) -> Result<()> {
    let (config, master, url) = nginx(scene, 2)?;
    let pid = master.pid()?;
    let turn = || there_and_back(scene, pid);
    under_load(scene, &url, &["-n", "4000", "-c", "10"], turn)?;
    under_load(scene, &url, &["-n", "8000", "-c", "10", "-k"], turn)?;
    nginx_command(scene, &config, &["-s", "quit"])
}

/// haproxy with a master and a worker; the URL of what it says.
pub(super) fn haproxy(scene: &Scene) -> Result<(Running, Master, String)> {
    let here = scene.bed.folder().display().to_string();
    let (config, host) = (format!("{here}/haproxy.cfg"), scene.host());
    fs::write(
        &config,
        format!(
            "global\n user nobody\n group nogroup\n pidfile {here}/pid\n\
             defaults\n mode http\n timeout client 20s\n timeout server 20s\n\
             timeout connect 5s\n\
             frontend web\n bind {host}:8080\n\
             http-request return status 200 content-type text/plain string served\n"
        ),
    )?;
    let mut server = subject(scene, Side::Server, "/usr/sbin/haproxy");
    server.args(["-W", "-db", "-f", &config]);
    let server = started(scene, &server, 8080)?;
    let master = Master::of(scene);
    // It listens before it notes its process id.
    wait_until("a worker", PATIENCE, || !master.workers().is_empty())?;
    Ok((server, master, format!("http://{host}:8080/")))
}

/// Ends haproxy. A signal that comes while the master begins anew is lost.
fn haproxy_ends(mut server: Running, master: &Master) -> Result<()> {
    let mut told: Option<Instant> = None;
    wait_until("the end of haproxy", PATIENCE, || {
        if told.is_none_or(|at| at.elapsed() > Duration::from_secs(1)) {
            signal(master.pid().unwrap_or(0), Signal::TERM);
            told = Some(Instant::now());
        }
        !server.is_running()
    })
}

/// Master and worker to the kernel and back, again and again: no request fails.
pub(crate) fn haproxy_rolled_back(scene: &Scene) -> Result<()> {
    let (server, master, url) = haproxy(scene)?;
    let pid = master.pid()?;
    let turn = || there_and_back(scene, pid);
    under_load(scene, &url, &["-n", "4000", "-c", "10"], turn)?;
    under_load(scene, &url, &["-n", "8000", "-c", "10", "-k"], turn)?;
    haproxy_ends(server, &master)
}

/// haproxy, reload after reload: its master executes itself anew, and the new worker gets the
/// listeners from the old one by SCM_RIGHTS. No request fails.
pub(crate) fn haproxy_reloads(scene: &Scene) -> Result<()> {
    let (server, master, url) = haproxy(scene)?;
    under_load(scene, &url, &["-n", "6000", "-c", "10"], || {
        let (pid, before) = (master.pid()?, master.workers());
        let mut told: Option<Instant> = None;
        wait_until("new workers", PATIENCE, || {
            // A signal that comes while the master begins anew is lost.
            if told.is_none_or(|at| at.elapsed() > Duration::from_secs(1)) {
                signal(pid, Signal::USR2);
                told = Some(Instant::now());
            }
            let now = master.workers();
            !now.is_empty() && !now.iter().any(|pid| before.contains(pid))
        })
    })?;
    haproxy_ends(server, &master)
}

/// Apache's ways of sharing work. A process whose threads are all busy closes connections that are
/// kept alive (event MPM): each has more threads than there are clients.
pub(super) const MPMS: [(&str, &str); 2] = [
    (
        "event",
        "StartServers 2\nThreadsPerChild 16\nMaxRequestWorkers 64",
    ),
    (
        "prefork",
        "StartServers 4\nMinSpareServers 4\nMaxSpareServers 8",
    ),
];

/// A body for each of Apache's ways, with the server's master and the URL of a page.
fn each_apache(scene: &Scene, body: impl Fn(&Master, &str) -> Result<()>) -> Result<()> {
    let page = noise(scene, "page", 20_000)?;
    for mpm in MPMS {
        let (server, url) = apache(scene, mpm, &page)?;
        let master = Master::of(scene);
        body(&master, &url)
            .map_err(|error| format!("{}: {error}\n{}", mpm.0, apache_errors(scene)))?;
        drop(master);
        server.wait(PATIENCE)?;
    }
    Ok(())
}

fn apache_errors(scene: &Scene) -> String {
    fs::read_to_string(scene.bed.folder().join("errors")).unwrap_or_default()
}

/// Graceful restarts: all processes are replaced, and no request fails.
pub(crate) fn apache_reloads(scene: &Scene) -> Result<()> {
    each_apache(scene, |master, url| {
        under_load(scene, url, &["-n", "2000", "-c", "8"], || {
            master.replaced(|| {
                signal(master.pid()?, Signal::USR1);
                Ok(())
            })
        })?;
        under_load(scene, url, &["-n", "1000", "-c", "8", "-k"], || {
            std::thread::sleep(Duration::from_millis(5));
            Ok(())
        })
    })
}

/// `kill -9` of a process after the other: only its own connections fail.
pub(crate) fn apache_killed_workers(scene: &Scene) -> Result<()> {
    each_apache(scene, |master, url| {
        workers_are_killed(scene, master, (url, "2000"))
    })
}

/// To the kernel and back, again and again: no request fails.
pub(crate) fn apache_rolled_back(scene: &Scene) -> Result<()> {
    each_apache(scene, |master, url| {
        let pid = master.pid()?;
        let turn = || there_and_back(scene, pid);
        under_load(scene, url, &["-n", "2000", "-c", "8"], turn)?;
        under_load(scene, url, &["-n", "2000", "-c", "8", "-k"], turn)
    })
}

/// A listener for each processor (SO_REUSEPORT), inherited by the processes: each of these has a
/// share of the connections, also after a restart.
pub(crate) fn apache_listeners(scene: &Scene) -> Result<()> {
    let log = scene.bed.folder().join("served");
    // Room for a process at each listener while old ones still end: Apache starts new ones at the
    // first listener that wants some.
    let settings = format!(
        "StartServers 2\nThreadsPerChild 16\nMinSpareThreads 32\nMaxSpareThreads 128\n\
         MaxRequestWorkers 160\nListenCoresBucketsRatio 1\nCustomLog {} %P",
        log.display()
    );
    let page = noise(scene, "page", 1000)?;
    let (server, url) = apache(scene, ("event", &settings), &page)?;
    let master = Master::of(scene);
    for _ in 0..2 {
        fs::write(&log, "")?;
        under_load(scene, &url, &["-n", "400", "-c", "8"], || {
            std::thread::sleep(Duration::from_millis(5));
            Ok(())
        })?;
        let text = fs::read_to_string(&log)?;
        let mut served = BTreeMap::<&str, u32>::new();
        for pid in text.lines() {
            *served.entry(pid).or_default() += 1;
        }
        if served.values().any(|&count| count > 300) {
            return Err(format!("400 requests by process: {served:?}").into());
        }
        master.replaced(|| {
            signal(master.pid()?, Signal::USR1);
            Ok(())
        })?;
    }
    drop(master);
    server.wait(PATIENCE)?;
    Ok(())
}
