//! What the policy says: rules, a configuration with an error, and programs that are the kernel's.

use std::fs;

use bypass_tests::counters::{KernelUdp, wait_for_tcp_port};
use bypass_tests::program::Program;
use bypass_tests::testbed::Side;
use bypass_tests::{Result, paths};

use super::faults::{PORT, echo_with, explains, kernel_carried, on_the_kernel, spawn_echo};
use super::harness::Scene;
use super::programs::ping_pong;

/// A configuration with an error: a message with line and column, the program on the kernel.
pub(crate) fn bad_configuration(scene: &Scene) -> Result<()> {
    let config = scene.bed.folder().join("bad.toml");
    fs::write(
        &config,
        "[[rule]]\nprotocol = \"udp\"\naktion = \"kernel\"\n",
    )?;
    let config = config.display().to_string();
    on_the_kernel(scene, ("BYPASS_CONFIG", &config), "bad-config")?;
    if scene.has_shim() {
        let mut program = scene.bed.program(Side::Server, paths::bypassctl());
        program
            .env("BYPASS_CONFIG", &config)
            .args(["explain", "--dry-run", "--", "udpecho"]);
        let run = program.run()?;
        let text = format!("{}{}", run.stdout, run.stderr);
        if run.status.success() || !text.contains('3') || !text.contains("aktion") {
            return Err(format!("no message with the place: {} {text}", run.status).into());
        }
    }
    Ok(())
}

/// A super-server, a login server and sudo are never accelerated, and do their work.
pub(crate) fn programs_of_the_kernel(scene: &Scene) -> Result<()> {
    let (host, folder) = (scene.host(), scene.bed.folder());
    let config = folder.join("xinetd.conf");
    fs::write(
        &config,
        format!(
            "service echo\n{{\n type = INTERNAL UNLISTED\n socket_type = stream\n protocol = tcp\n \
             user = root\n wait = no\n bind = {host}\n port = {PORT}\n}}\n"
        ),
    )?;
    let mut xinetd = scene.bed.program(Side::Server, "/usr/sbin/xinetd");
    xinetd.args(["-dontfork", "-f"]).arg(&config);
    xinetd.arg("-pidfile").arg(folder.join("xinetd.pid"));
    speaks_on_the_kernel(scene, &mut xinetd, "a line")?;

    let key = folder.join("host_key");
    let mut keygen = scene.bed.program(Side::Server, "ssh-keygen");
    keygen.args(["-q", "-t", "ed25519", "-N", "", "-f"]);
    keygen.arg(&key).run()?.check()?;
    fs::create_dir_all("/run/sshd")?;
    let mut sshd = scene.bed.program(Side::Server, "/usr/sbin/sshd");
    sshd.args(["-D", "-e", "-f", "/dev/null", "-h"]).arg(&key);
    sshd.args(["-o", &format!("ListenAddress={host}:{PORT}")]);
    speaks_on_the_kernel(scene, &mut sshd, "SSH-2.0")?;

    // It takes the library from what it runs.
    let mut sudo = scene.bed.program(Side::Server, "/usr/bin/sudo");
    sudo.arg(paths::example("udpecho")?);
    let before = KernelUdp::read(&scene.bed, Side::Server)?;
    let server = spawn_echo(scene, sudo, &host, ("SUDO_PROMPT", ""))?;
    ping_pong(scene, &host, PORT, 200)?;
    kernel_carried(scene, before, 200)?;
    server.stop()?;
    Ok(())
}

/// A TCP server answers "a line" with something that begins so; `explain` says that its program
/// stays with the kernel.
fn speaks_on_the_kernel(scene: &Scene, program: &mut Program<'_>, answer: &str) -> Result<()> {
    let server = program.column(scene.column).spawn()?;
    wait_for_tcp_port(&scene.bed, Side::Server, PORT)
        .map_err(|error| format!("{error}\n{}{}", server.stdout(), server.stderr()))?;
    let mut client = scene.bed.program(Side::Client, "/bin/bash");
    let talk = format!(
        "exec 3<>/dev/tcp/{}/{PORT}; echo a line >&3; head -1 <&3",
        scene.host()
    );
    let said = client.args(["-c", &talk]).run()?.check()?.stdout;
    if !said.starts_with(answer) {
        return Err(format!("{answer:?} expected, not {said:?}").into());
    }
    explains(scene, server.pid(), "\"program\"")?;
    server.stop()?;
    Ok(())
}

/// A rule keeps a port in the kernel.
pub(crate) fn kernel_by_rule(scene: &Scene) -> Result<()> {
    let config = scene.bed.folder().join("rule.toml");
    fs::write(
        &config,
        format!(
            "[[rule]]\nprotocol = \"udp\"\nlocal = \"0.0.0.0/0:{PORT}\"\naction = \"kernel\"\n"
        ),
    )?;
    let config = config.display().to_string();
    on_the_kernel(scene, ("BYPASS_CONFIG", &config), "rule")
}

/// Writes a configuration of rules; its path.
fn rules(scene: &Scene, text: &str) -> Result<String> {
    let config = scene.bed.folder().join("rules.toml");
    fs::write(&config, text)?;
    Ok(config.display().to_string())
}

/// Rules that ask for an interface: a socket's is that of its address; one bound to any address is
/// accelerated on the rule's only.
pub(crate) fn rules_of_interfaces(scene: &Scene) -> Result<()> {
    let own = scene.bed.interface(Side::Server);
    let kernel = |name: &str| format!("[[rule]]\ninterface = \"{name}\"\naction = \"kernel\"\n");
    let only = |name: &str| format!("[[rule]]\ninterface = \"{name}\"\naction = \"accelerate\"\n");
    let config = rules(scene, &kernel(own))?;
    on_the_kernel(scene, ("BYPASS_CONFIG", &config), "\"rule\"")?;
    let any_wanting_lo = rules(scene, &only("lo"))?;
    let server = echo_with(scene, "0.0.0.0", ("BYPASS_CONFIG", &any_wanting_lo))?;
    ping_pong(scene, &scene.host(), PORT, 100)?;
    explains(scene, server.pid(), "no-interface")?;
    server.stop()?.check()?;
    for (bind, text) in [
        (scene.host(), kernel("lo")),
        ("0.0.0.0".to_owned(), only(own)),
        (scene.host(), only(own)),
    ] {
        let config = rules(scene, &text)?;
        let server = echo_with(scene, &bind, ("BYPASS_CONFIG", &config))?;
        ping_pong(scene, &scene.host(), PORT, 100)?;
        explains(scene, server.pid(), "\"bypass\"").map_err(|error| format!("{text}: {error}"))?;
        server.stop()?.check()?;
    }
    Ok(())
}

/// Rules mean a program by its file or by the link that it was started by, as Debian's
/// redis-server is one to redis-check-rdb.
pub(crate) fn rule_of_a_link(scene: &Scene) -> Result<()> {
    let link = scene.bed.folder().join("linked");
    std::os::unix::fs::symlink(paths::example("udpecho")?, &link)?;
    for (name, reason) in [
        ("linked", "\"rule\""),
        ("udpecho", "\"rule\""),
        ("other", "\"bypass\""),
    ] {
        let text = format!("[[rule]]\nprogram = \"{name}\"\naction = \"kernel\"\n");
        let config = rules(scene, &text)?;
        let program = scene.bed.program(Side::Server, &link);
        let server = spawn_echo(scene, program, &scene.host(), ("BYPASS_CONFIG", &config))?;
        ping_pong(scene, &scene.host(), PORT, 100)?;
        explains(scene, server.pid(), reason)?;
        server.stop()?.check()?;
    }
    Ok(())
}

/// A rule wants a backend that is not there.
pub(crate) fn rule_of_a_backend(scene: &Scene) -> Result<()> {
    let config = rules(
        scene,
        "[[rule]]\naction = \"accelerate\"\nbackend = \"shm\"\n",
    )?;
    on_the_kernel(scene, ("BYPASS_CONFIG", &config), "\"backend\"")
}
