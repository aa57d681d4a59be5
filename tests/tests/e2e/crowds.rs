//! More of something than a stack has room for.

use std::fs;
use std::time::Duration;

use bypass_tests::program::wait_until;
use bypass_tests::testbed::Side;
use bypass_tests::{Result, daemon, paths};

use super::harness::Scene;
use super::streams::started;

const PORT: u16 = 7007;
const PATIENCE: Duration = Duration::from_secs(20);

/// 300 connections to a stack of 64: all are served, those beyond by the kernel, and when most have
/// ended new ones are accelerated again.
#[expect(clippy::too_many_lines, reason = "one story")]
pub(crate) fn too_many_connections(scene: &Scene) -> Result<()> {
    let rules = scene.bed.folder().join("small.toml");
    fs::write(&rules, "[daemon]\nendpoints = 64\n")?;
    let _daemon = scene
        .has_shim()
        .then(|| {
            let rules = rules.display().to_string();
            daemon::start_with(&scene.bed, &["--config", &rules], &[])
        })
        .transpose()?;
    let mut server = scene.bed.program(Side::Server, paths::example("tcpecho")?);
    server.column(scene.column).args(["--bind", &scene.host()]);
    let server = started(scene, &server, PORT)?;
    let script = format!(
        "import os, socket, sys, time\n\
         def ask(s):\n\
         \x20   s.sendall(b'x' * 1000); assert len(s.recv(1000, socket.MSG_WAITALL)) == 1000\n\
         def fresh():\n\
         \x20   s = socket.create_connection(('{}', {PORT}), 15); s.settimeout(15)\n\
         \x20   ask(s); return s\n\
         all = [fresh() for _ in range(300)]\n\
         for s in all: ask(s)\n\
         for s in all[10:]: s.close()\n\
         print('few', flush=True)\n\
         while not os.path.exists(sys.argv[1]): time.sleep(0.01)\n\
         for s in all[:10] + [fresh()]: ask(s)\n\
         print('all', flush=True)",
        scene.host()
    );
    let go = scene.bed.folder().join("go");
    let mut client = scene.bed.program(Side::Client, "python3");
    let client = client.args(["-c", &script]).arg(&go).spawn()?;
    let state = || -> Option<String> {
        let stacks = daemon::list(&scene.bed, &["stacks"]).ok()?;
        Some(stacks.first()?["state"].as_str()?.to_owned())
    };
    let opens = || daemon::counter(&scene.bed, "tcp-passive-opens");
    let said = |what: &str| client.stdout().contains(what);
    if scene.has_shim() {
        wait_until("a crowd", PATIENCE, || {
            state().as_deref() == Some("crowded")
        })?;
    }
    let served = wait_until("all connections", PATIENCE, || said("few"));
    served.map_err(|error| format!("{error}: {}", client.stderr()))?;
    let mut before = 0;
    if scene.has_shim() {
        wait_until("room", PATIENCE, || state().as_deref() == Some("live"))?;
        before = opens()?;
        if before > 64 {
            return Err(format!("{before} connections in a stack of 64").into());
        }
    }
    fs::write(&go, "")?;
    let run = client.wait(PATIENCE)?.check()?;
    if !run.stdout.contains("all") {
        return Err("not all were served".into());
    }
    if scene.has_shim() && opens()? != before + 1 {
        return Err("the new one is not accelerated".into());
    }
    server.stop()?;
    Ok(())
}
