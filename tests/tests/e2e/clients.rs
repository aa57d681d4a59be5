//! Programs under test that connect to servers on the kernel, and haproxy, which does both.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use bypass_tests::Result;
use bypass_tests::counters::wait_for_tcp_port;
use bypass_tests::program::{Finished, Running, wait_until};
use bypass_tests::testbed::Side;

use super::harness::Scene;
use super::streams::{client, fetch, noise, started, subject};
use super::web::{certificate, no_failures, same, upstream};

/// Runs the program under test as a client.
fn run(scene: &Scene, name: &str, arguments: &[&str]) -> Result<Finished> {
    let mut program = subject(scene, Side::Server, name);
    program.args(arguments).run()?.check()
}

pub(crate) fn apache_bench(scene: &Scene) -> Result<()> {
    noise(scene, "small", 700)?;
    let server = upstream(scene)?;
    let url = format!("http://{}:8081/small", scene.peer());
    for more in [&["-n", "400"][..], &["-n", "4000", "-k"]] {
        let mut all = vec!["-q", "-c", "20"];
        all.extend(more);
        all.push(&url);
        no_failures(&run(scene, "ab", &all)?)?;
    }
    server.stop()?;
    Ok(())
}

/// Two threads with sixteen connections each.
pub(crate) fn wrk(scene: &Scene) -> Result<()> {
    noise(scene, "small", 700)?;
    let server = upstream(scene)?;
    let url = format!("http://{}:8081/small", scene.peer());
    let run = run(scene, "wrk", &["-t2", "-c32", "-d1s", &url])?;
    let (bad, good) = (["Socket errors", "Non-2xx"], "requests in");
    if bad.iter().any(|bad| run.stdout.contains(bad)) || !run.stdout.contains(good) {
        return Err(format!("wrk: {}", run.stdout).into());
    }
    server.stop()?;
    Ok(())
}

/// HTTPS by openssl's own server: HTTP/1.0, each file a connection that the server ends.
pub(crate) fn curl_tls(scene: &Scene) -> Result<()> {
    let file = noise(scene, "file", 2 << 20)?;
    let (key, certificate) = certificate(scene)?;
    let at = format!("{}:8443", scene.peer());
    let server = in_folder(
        scene,
        Side::Client,
        false,
        &format!("exec openssl s_server -quiet -accept {at} -WWW -key {key} -cert {certificate}"),
    )?;
    wait_for_tcp_port(&scene.bed, Side::Client, 8443)?;
    let got = scene.bed.folder().join("got");
    let into = got.display().to_string();
    let url = format!("https://{at}/file");
    for _ in 0..3 {
        let all = [
            "-sS",
            "--fail",
            "-m",
            "50",
            "--cacert",
            &certificate,
            "-o",
            &into,
            &url,
        ];
        run(scene, "curl", &all)?;
        same(&got, &file)?;
    }
    server.kill();
    Ok(())
}

/// A shell command in the bed's folder.
fn in_folder(scene: &Scene, side: Side, tested: bool, command: &str) -> Result<Running> {
    let folder = scene.bed.folder().display();
    let mut shell = if tested {
        subject(scene, side, "sh")
    } else {
        scene.bed.program(side, "sh")
    };
    shell
        .args(["-c", &format!("cd {folder}; {command}")])
        .spawn()
}

/// openssl's server under test: curl on the kernel.
pub(crate) fn openssl_server(scene: &Scene) -> Result<()> {
    let file = noise(scene, "file", 2 << 20)?;
    let (key, certificate) = certificate(scene)?;
    let at = format!("{}:8443", scene.host());
    let folder = scene.bed.folder().display().to_string();
    let mut server = subject(scene, Side::Server, "env");
    server.args(["-C", &folder, "openssl", "s_server", "-quiet", "-WWW"]);
    server.args(["-accept", &at, "-key", &key, "-cert", &certificate]);
    let server = started(scene, &server, 8443)?;
    let got = scene.bed.folder().join("got");
    let into = got.display().to_string();
    let url = format!("https://{at}/file");
    for _ in 0..3 {
        let all = [
            "-sS",
            "--fail",
            "-m",
            "50",
            "--cacert",
            &certificate,
            "-o",
            &into,
            &url,
        ];
        client(scene, "curl", &all)?;
        same(&got, &file)?;
    }
    server.kill();
    Ok(())
}

/// openssl's client under test asks nginx for a file.
pub(crate) fn openssl_client(scene: &Scene) -> Result<()> {
    let file = noise(scene, "file", 1 << 20)?;
    let (key, certificate) = certificate(scene)?;
    let at = format!("{}:8443", scene.peer());
    let server = in_folder(
        scene,
        Side::Client,
        false,
        &format!("exec openssl s_server -quiet -accept {at} -WWW -key {key} -cert {certificate}"),
    )?;
    wait_for_tcp_port(&scene.bed, Side::Client, 8443)?;
    let request = scene.bed.folder().join("request");
    fs::write(&request, "GET /file HTTP/1.0\r\n\r\n")?;
    let got = scene.bed.folder().join("got");
    let script = format!(
        "exec openssl s_client -quiet -ign_eof -CAfile {certificate} -connect {at} <{} >{}",
        request.display(),
        got.display()
    );
    let run = in_folder(scene, Side::Server, true, &script)?.wait(Duration::from_secs(30))?;
    let (got, file) = (fs::read(&got)?, fs::read(file)?);
    if !got.ends_with(&file) {
        return Err(format!("{} bytes of {}: {}", got.len(), file.len(), run.stderr).into());
    }
    server.kill();
    Ok(())
}

/// haproxy with two threads, master and worker, in front of nginx.
pub(crate) fn haproxy(scene: &Scene) -> Result<()> {
    let large = noise(scene, "large", 3 << 20)?;
    noise(scene, "small", 300)?;
    let (host, peer) = (scene.host(), scene.peer());
    let behind = upstream(scene)?;
    let config = scene.bed.folder().join("haproxy.cfg");
    fs::write(
        &config,
        format!(
            "global\n nbthread 2\n maxconn 500\n user nobody\n group nogroup\n\
             defaults\n mode http\n timeout connect 5s\n timeout client 20s\n timeout server 20s\n\
             listen web\n bind {host}:8080\n server one {peer}:8081\n\
             listen raw\n mode tcp\n bind {host}:8082\n server one {peer}:8081\n"
        ),
    )?;
    let mut server = subject(scene, Side::Server, "/usr/sbin/haproxy");
    server.args(["-W", "-db", "-f"]).arg(&config);
    let server = started(scene, &server, 8080)?;
    for port in [8080, 8082] {
        fetch(scene, &format!("http://{host}:{port}/large"), &large)?;
        let url = format!("http://{host}:{port}/small");
        for more in [&["-n", "400"][..], &["-n", "2000", "-k"]] {
            let mut all = vec!["-q", "-c", "20"];
            all.extend(more);
            all.push(&url);
            no_failures(&client(scene, "ab", &all)?)?;
        }
    }
    server.signal(rustix::process::Signal::TERM);
    server.wait(Duration::from_secs(20))?;
    behind.stop()?;
    Ok(())
}

/// A server of PostgreSQL in the bed's folder, as the user `nobody`.
struct Database {
    server: Running,
    url: String,
}

fn postgres(scene: &Scene, side: Side) -> Result<Database> {
    let programs = fs::read_dir("/usr/lib/postgresql")?
        .flatten()
        .map(|entry| entry.path().join("bin"))
        .find(|folder| folder.join("initdb").exists())
        .ok_or("no PostgreSQL")?;
    let data = scene.bed.folder().join("postgres");
    fs::create_dir_all(&data)?;
    std::os::unix::fs::chown(&data, Some(NOBODY), Some(NOBODY))?;
    let mut make = scene.bed.program(side, programs.join("initdb"));
    make.user(NOBODY)
        .args(["-A", "trust", "-U", "postgres", "--no-sync", "-D"]);
    make.arg(&data).run()?.check()?;
    let at = scene.bed.ipv4(side);
    fs::write(data.join("pg_hba.conf"), "host all all 0.0.0.0/0 trust\n")?;
    let mut server = if side == Side::Server {
        subject(
            scene,
            side,
            programs.join("postgres").to_string_lossy().as_ref(),
        )
    } else {
        scene.bed.program(side, programs.join("postgres"))
    };
    server
        .user(NOBODY)
        .args(["-F", "-k", "", "-h", &at, "-p", "5432", "-D"]);
    let server = server.arg(&data).spawn()?;
    wait_for_tcp_port(&scene.bed, side, 5432)?;
    let url = format!("host={at} user=postgres dbname=postgres");
    Ok(Database { server, url })
}

const NOBODY: u32 = 65534;

/// Megabytes to the server and back, and a thousand small questions.
const SQL: &str = "create table t as select i, repeat(md5(i::text), 20) as text \
                   from generate_series(1, 5000) i";

fn use_database(database: &Database, psql: &dyn Fn(&[&str]) -> Result<Finished>) -> Result<()> {
    wait_until("an answer of PostgreSQL", Duration::from_secs(20), || {
        psql(&[&database.url, "-Atc", "select 1"]).is_ok()
    })?;
    psql(&[&database.url, "-c", SQL])?;
    let all = psql(&[&database.url, "-Atc", "select * from t order by i"])?;
    let sum = psql(&[
        &database.url,
        "-Atc",
        "select sum(length(text)+length(i::text)+2) from t",
    ])?;
    if all.stdout.len().to_string() != sum.stdout.trim() {
        return Err(format!("{} bytes of {}", all.stdout.len(), sum.stdout).into());
    }
    Ok(())
}

/// psql and pgbench under test.
pub(crate) fn postgres_client(scene: &Scene) -> Result<()> {
    let database = postgres(scene, Side::Client)?;
    use_database(&database, &|arguments| run(scene, "psql", arguments))?;
    let many = [
        "-n",
        "-S",
        "-c",
        "4",
        "-j",
        "2",
        "-t",
        "200",
        "-i",
        "-q",
        &database.url,
    ];
    run(scene, "pgbench", &many[8..])?;
    let many = ["-n", "-S", "-c", "4", "-j", "2", "-t", "200", &database.url];
    run(scene, "pgbench", &many)?;
    database.server.stop()?;
    Ok(())
}

/// The server under test, which forks for each connection, as a user without privileges.
pub(crate) fn postgres_server(scene: &Scene) -> Result<()> {
    let database = postgres(scene, Side::Server)?;
    use_database(&database, &|arguments| client(scene, "psql", arguments))?;
    database.server.signal(rustix::process::Signal::INT);
    database.server.wait(Duration::from_secs(20))?;
    Ok(())
}

/// socat listens and forks for each connection; what comes goes back through `cat`.
pub(crate) fn socat_fork(scene: &Scene) -> Result<()> {
    let file = noise(scene, "file", 1 << 20)?;
    let host = scene.host();
    let mut server = subject(scene, Side::Server, "socat");
    server.arg(format!("TCP-LISTEN:9000,bind={host},reuseaddr,fork"));
    let server = started(scene, server.arg("EXEC:cat"), 9000)?;
    for _ in 0..5 {
        socat_round(scene, &format!("TCP:{host}:9000"), &file, false)?;
    }
    server.signal(rustix::process::Signal::TERM);
    server.wait(Duration::from_secs(20))?;
    Ok(())
}

/// socat under test connects.
pub(crate) fn socat_client(scene: &Scene) -> Result<()> {
    let file = noise(scene, "file", 1 << 20)?;
    let peer = scene.peer();
    let mut server = scene.bed.program(Side::Client, "socat");
    server.arg(format!("TCP-LISTEN:9000,bind={peer},reuseaddr,fork"));
    let server = server.arg("EXEC:cat").spawn()?;
    wait_for_tcp_port(&scene.bed, Side::Client, 9000)?;
    for _ in 0..5 {
        socat_round(scene, &format!("TCP:{peer}:9000"), &file, true)?;
    }
    server.signal(rustix::process::Signal::TERM);
    server.wait(Duration::from_secs(20))?;
    Ok(())
}

fn socat_round(scene: &Scene, to: &str, file: &PathBuf, tested: bool) -> Result<()> {
    let got = scene.bed.folder().join("got");
    let side = if tested { Side::Server } else { Side::Client };
    let command = format!(
        "exec socat -t 20 - {to} <{} >{}",
        file.display(),
        got.display()
    );
    in_folder(scene, side, tested, &command)?
        .wait(Duration::from_secs(30))?
        .check()?;
    same(&got, file)
}

/// sockperf's TCP ping-pong, its server and its client under test in turn.
pub(crate) fn sockperf_tcp(scene: &Scene) -> Result<()> {
    for side in [Side::Server, Side::Client] {
        let other = if side == Side::Server {
            Side::Client
        } else {
            Side::Server
        };
        let at = scene.bed.ipv4(side);
        let mut server = scene.bed.program(side, "sockperf");
        if side == Side::Server {
            server = subject(scene, side, "sockperf");
        }
        server.args(["server", "--tcp", "-i", &at, "-p", "11111"]);
        let server = if side == Side::Server {
            started(scene, &server, 11111)?
        } else {
            let running = server.spawn()?;
            wait_for_tcp_port(&scene.bed, side, 11111)?;
            running
        };
        let mut client = scene.bed.program(other, "sockperf");
        if other == Side::Server {
            client = subject(scene, other, "sockperf");
        }
        client.args(["ping-pong", "--tcp", "-i", &at, "-p", "11111", "-t", "1"]);
        let run = client.run()?.check()?;
        if !run.stdout.contains("# dropped messages = 0;") || run.stdout.contains("rror") {
            return Err(format!("sockperf: {}", run.stdout).into());
        }
        server.signal(rustix::process::Signal::INT);
        server.wait(Duration::from_secs(20))?;
    }
    Ok(())
}
