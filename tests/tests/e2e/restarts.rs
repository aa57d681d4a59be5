//! Servers that end and begin anew at once, on the port that they have had; and a server's logs.

use std::fs;
use std::time::Duration;

use bypass_tests::Result;
use bypass_tests::counters::wait_for_tcp_port;
use bypass_tests::program::wait_until;
use bypass_tests::testbed::Side;
use rustix::process::Signal;

use super::harness::Scene;
use super::reloads::{MPMS, Master, PATIENCE, haproxy, is_gone, nginx, signal, under_load};
use super::streams::noise;
use super::web::{apache, nginx_command};

/// So many requests, each with a connection of its own or not; none fails.
fn asked(scene: &Scene, url: &str, arguments: &[&str]) -> Result<()> {
    under_load(scene, url, arguments, || {
        std::thread::sleep(Duration::from_millis(5));
        Ok(())
    })
}

/// Apache ends and begins anew, in each of its ways: its port is free as soon as it has ended.
pub(crate) fn apache_restarts(scene: &Scene) -> Result<()> {
    let page = noise(scene, "page", 20_000)?;
    for turn in 0..6 {
        let mpm = MPMS[turn % MPMS.len()];
        let begun = apache(scene, mpm, &page);
        let (server, url) = begun.map_err(|error| format!("start {turn}: {error}"))?;
        asked(scene, &url, &["-n", "200", "-c", "8"])?;
        asked(scene, &url, &["-n", "200", "-c", "8", "-k"])?;
        drop(Master::of(scene));
        server.wait(PATIENCE)?;
    }
    Ok(())
}

/// haproxy's worker is killed, upon which its master ends; what starts it anew has the port.
pub(crate) fn haproxy_killed_workers(scene: &Scene) -> Result<()> {
    for turn in 0..6 {
        let begun = haproxy(scene);
        let (server, master, url) = begun.map_err(|error| format!("start {turn}: {error}"))?;
        asked(scene, &url, &["-n", "200", "-c", "8"])?;
        asked(scene, &url, &["-n", "200", "-c", "8", "-k"])?;
        for pid in master.workers() {
            signal(pid, Signal::KILL);
        }
        server.wait(PATIENCE)?;
    }
    Ok(())
}

/// nginx ends and begins anew, in turns with the scene's library and without any.
pub(crate) fn nginx_restarts(scene: &Scene) -> Result<()> {
    let (config, master, url) = nginx(scene, 2)?;
    for turn in 0..5 {
        asked(scene, &url, &["-n", "400", "-c", "8"])?;
        let pid = master.pid()?;
        nginx_command(scene, &config, &["-s", "quit"])?;
        wait_until("the end of nginx", PATIENCE, || is_gone(pid))?;
        if turn % 2 == 0 {
            let mut plain = scene.bed.program(Side::Server, "/usr/sbin/nginx");
            plain.arg("-c").arg(&config).run()?.check()?;
        } else {
            nginx_command(scene, &config, &[])?;
        }
        wait_for_tcp_port(&scene.bed, Side::Server, 80)?;
        wait_until("all workers", PATIENCE, || master.workers().len() == 2)?;
    }
    Ok(())
}

/// USR1 after a log was moved, again and again under load: nginx goes on in a new one, and no
/// request fails.
pub(crate) fn nginx_logs(scene: &Scene) -> Result<()> {
    let (config, master, url) = nginx(scene, 2)?;
    let log = scene.bed.folder().join("access.log");
    let moved = scene.bed.folder().join("access.log.1");
    let has_lines = || fs::metadata(&log).is_ok_and(|it| it.len() > 0);
    let mut turns = 0;
    under_load(scene, &url, &["-n", "6000", "-c", "10"], || {
        fs::rename(&log, &moved)?;
        signal(master.pid()?, Signal::USR1);
        wait_until("a new log", PATIENCE, || log.exists())?;
        turns += 1;
        std::thread::sleep(Duration::from_millis(20));
        Ok(())
    })?;
    asked(scene, &url, &["-n", "200", "-c", "10"])?;
    wait_until("lines in the new log", PATIENCE, has_lines)?;
    if turns < 2 {
        return Err(format!("the log was moved {turns} times").into());
    }
    nginx_command(scene, &config, &["-s", "quit"])
}
