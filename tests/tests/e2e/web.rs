//! Web servers and proxies as they are used: workers, upstreams, TLS, HTTP/2, compression.

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use bypass_tests::Result;
use bypass_tests::counters::wait_for_tcp_port;
use bypass_tests::program::{Finished, Program, Running, wait_until};
use bypass_tests::testbed::Side;
use rustix::process::{Pid, Signal, kill_process};

use super::harness::Scene;
use super::streams::{client, fetch, noise, started, subject};

/// Lines that every configuration of nginx needs to write into the bed's folder only.
fn nginx_paths(scene: &Scene) -> String {
    let here = scene.bed.folder().display().to_string();
    format!(
        "client_body_temp_path {here}/b; proxy_temp_path {here}/p; access_log off;\n\
         fastcgi_temp_path {here}/f; uwsgi_temp_path {here}/u; scgi_temp_path {here}/s;\n"
    )
}

/// Writes a configuration of nginx as one process whose `http` block has these lines.
fn nginx_config(scene: &Scene, name: &str, http: &str) -> Result<PathBuf> {
    let here = scene.bed.folder().display();
    let config = scene.bed.folder().join(name);
    fs::write(
        &config,
        format!(
            "daemon off; master_process off; pid {here}/{name}.pid; error_log stderr; user root;\n\
             events {{ worker_connections 1024; }}\n\
             http {{ {} {http} }}\n",
            nginx_paths(scene)
        ),
    )?;
    Ok(config)
}

/// nginx on the kernel of the other side, serving the bed's folder at port 8081.
pub(crate) fn upstream(scene: &Scene) -> Result<Running> {
    let http = format!(
        "server {{ listen {}:8081; root {}; }}",
        scene.peer(),
        scene.bed.folder().display()
    );
    let config = nginx_config(scene, "upstream", &http)?;
    let mut nginx = scene.bed.program(Side::Client, "/usr/sbin/nginx");
    let running = nginx.arg("-c").arg(&config).spawn()?;
    wait_for_tcp_port(&scene.bed, Side::Client, 8081)?;
    Ok(running)
}

/// nginx as the program under test with these lines in its `http` block.
fn nginx(scene: &Scene, http: &str, port: u16) -> Result<Running> {
    let config = nginx_config(scene, "under-test", http)?;
    let mut nginx = subject(scene, Side::Server, "/usr/sbin/nginx");
    nginx.arg("-c").arg(&config);
    started(scene, &nginx, port)
}

/// ab on the kernel against this URL; no request may fail.
fn apache_bench(scene: &Scene, url: &str, arguments: &[&str]) -> Result<()> {
    let mut all = vec!["-q"];
    all.extend(arguments);
    all.push(url);
    let run = client(scene, "ab", &all)?;
    no_failures(&run)
}

pub(crate) fn no_failures(run: &Finished) -> Result<()> {
    let failed = run.stdout.contains("Non-2xx responses");
    if !failed && run.stdout.contains("Failed requests:        0\n") {
        return Ok(());
    }
    Err(format!("{}: {}{}", run.name, run.stdout, run.stderr).into())
}

/// One connection from the client is one to the upstream: both are the program's, one accepted and
/// one made.
pub(crate) fn nginx_proxy(scene: &Scene) -> Result<()> {
    let large = noise(scene, "large", 3 << 20)?;
    noise(scene, "small", 300)?;
    let (host, peer) = (scene.host(), scene.peer());
    let upstream = upstream(scene)?;
    let server = nginx(
        scene,
        &format!(
            "upstream u {{ server {peer}:8081; keepalive 8; }}\n\
             server {{ listen {host}:8080; proxy_http_version 1.1;\n\
             location / {{ proxy_pass http://{peer}:8081; }}\n\
             location /kept/ {{ proxy_pass http://u/; proxy_set_header Connection \"\"; }} }}"
        ),
        8080,
    )?;
    fetch(scene, &format!("http://{host}:8080/large"), &large)?;
    fetch(scene, &format!("http://{host}:8080/kept/large"), &large)?;
    let many = ["-n", "600", "-c", "10"];
    apache_bench(scene, &format!("http://{host}:8080/small"), &many)?;
    let many = ["-n", "1500", "-c", "10", "-k"];
    apache_bench(scene, &format!("http://{host}:8080/kept/small"), &many)?;
    server.stop()?;
    upstream.stop()?;
    Ok(())
}

/// A body that the proxy reads from the client and writes to the upstream.
pub(crate) fn nginx_upload(scene: &Scene) -> Result<()> {
    let body = noise(scene, "body", 2 << 20)?;
    let (host, peer) = (scene.host(), scene.peer());
    let script = format!(
        "import http.server as h\n\
         class H(h.BaseHTTPRequestHandler):\n\
         \x20protocol_version='HTTP/1.1'\n\
         \x20def do_POST(s):\n\
         \x20 b=s.rfile.read(int(s.headers['Content-Length'])); s.send_response(200)\n\
         \x20 s.send_header('Content-Length',str(len(b))); s.end_headers(); s.wfile.write(b)\n\
         h.ThreadingHTTPServer(('{peer}',8081),H).serve_forever()"
    );
    let mut upstream = scene.bed.program(Side::Client, "python3");
    let upstream = upstream.args(["-c", &script]).spawn()?;
    wait_for_tcp_port(&scene.bed, Side::Client, 8081)?;
    let server = nginx(
        scene,
        &format!(
            "client_max_body_size 10m;\n\
             server {{ listen {host}:8080; location / {{ proxy_pass http://{peer}:8081; }}\n\
             location /u/ {{ proxy_request_buffering off; proxy_http_version 1.1;\n\
             proxy_pass http://{peer}:8081; }} }}"
        ),
        8080,
    )?;
    for path in ["x", "u/x"] {
        let got = scene.bed.folder().join("echoed");
        let mut curl = scene.bed.program(Side::Client, "curl");
        curl.args(["-sS", "--fail", "-m", "50", "--data-binary"]);
        curl.arg(format!("@{}", body.display()));
        curl.arg("-o").arg(&got);
        curl.arg(format!("http://{host}:8080/{path}"));
        curl.run()?.check()?;
        same(&got, &body)?;
    }
    server.stop()?;
    upstream.stop()?;
    Ok(())
}

pub(crate) fn same(got: &PathBuf, wanted: &PathBuf) -> Result<()> {
    if fs::read(got)? == fs::read(wanted)? {
        return Ok(());
    }
    Err(format!(
        "{} has other bytes than {}",
        got.display(),
        wanted.display()
    )
    .into())
}

pub(crate) fn nginx_gzip(scene: &Scene) -> Result<()> {
    let text: String = (0..60_000).map(|line| format!("line {line}\n")).collect();
    let page = scene.bed.folder().join("page.txt");
    fs::write(&page, text)?;
    let host = scene.host();
    let server = nginx(
        scene,
        &format!(
            "types {{ text/plain txt; }} gzip on; gzip_types text/plain;\n\
             server {{ listen {host}:8080; root {}; }}",
            scene.bed.folder().display()
        ),
        8080,
    )?;
    let got = scene.bed.folder().join("got");
    let url = format!("http://{host}:8080/page.txt");
    for _ in 0..10 {
        let mut curl = scene.bed.program(Side::Client, "curl");
        curl.args(["-sS", "--fail", "--compressed", "-m", "50", "-D", "-", "-o"]);
        let run = curl.arg(&got).arg(&url).run()?.check()?;
        if !run.stdout.contains("Content-Encoding: gzip") {
            return Err(format!("not compressed: {}", run.stdout).into());
        }
        same(&got, &page)?;
    }
    server.stop()?;
    Ok(())
}

/// A key and a certificate for the scene's host, signed by itself.
pub(crate) fn certificate(scene: &Scene) -> Result<(String, String)> {
    let file = |name| scene.bed.folder().join(name).display().to_string();
    let (key, certificate) = (file("key.pem"), file("certificate.pem"));
    let run = Command::new("openssl")
        .args(["req", "-x509", "-newkey", "ec", "-nodes", "-days", "2"])
        .args(["-pkeyopt", "ec_paramgen_curve:prime256v1"])
        .args(["-subj", "/CN=bypass", "-addext"])
        .arg(format!(
            "subjectAltName=IP:{},IP:{}",
            scene.host(),
            scene.peer()
        ))
        .args(["-keyout", &key, "-out", &certificate])
        .output()?;
    if run.status.success() {
        return Ok((key, certificate));
    }
    Err(String::from_utf8_lossy(&run.stderr).into_owned().into())
}

/// TLS with HTTP/1.1 and HTTP/2, the client in its turn accelerated or not by the caller.
fn nginx_tls(scene: &Scene) -> Result<(Running, String)> {
    let (key, certificate) = certificate(scene)?;
    let host = scene.host();
    let server = nginx(
        scene,
        &format!(
            "server {{ listen {host}:8443 ssl http2; root {};\n\
             ssl_certificate {certificate}; ssl_certificate_key {key}; }}",
            scene.bed.folder().display()
        ),
        8443,
    )?;
    Ok((server, certificate))
}

pub(crate) fn nginx_https(scene: &Scene) -> Result<()> {
    let large = noise(scene, "large", 3 << 20)?;
    let (server, certificate) = nginx_tls(scene)?;
    let url = format!("https://{}:8443/large", scene.host());
    for protocol in ["--http1.1", "--http2"] {
        let got = scene.bed.folder().join("got");
        let mut curl = scene.bed.program(Side::Client, "curl");
        curl.args(["-sS", "--fail", "-m", "50", "--cacert", &certificate]);
        curl.args([protocol, "-w", "%{http_version}", "-o"])
            .arg(&got);
        let run = curl.arg(&url).run()?.check()?;
        let wanted = if protocol == "--http2" { "2" } else { "1.1" };
        if run.stdout != wanted {
            return Err(format!("{protocol}: version {}", run.stdout).into());
        }
        same(&got, &large)?;
    }
    server.stop()?;
    Ok(())
}

/// Forty requests at once over one connection of HTTP/2.
pub(crate) fn nginx_http2_streams(scene: &Scene) -> Result<()> {
    let page = noise(scene, "page", 200_000)?;
    let (server, certificate) = nginx_tls(scene)?;
    let url = format!("https://{}:8443/page?[1-40]", scene.host());
    let got = scene.bed.folder().join("got");
    let into = format!("{}#1", got.display());
    client(
        scene,
        "curl",
        &[
            "-sS",
            "--fail",
            "-m",
            "50",
            "--http2",
            "--parallel",
            "--cacert",
            &certificate,
            "-o",
            &into,
            &url,
        ],
    )?;
    for number in 1..=40 {
        same(&PathBuf::from(format!("{}{number}", got.display())), &page)?;
    }
    server.stop()?;
    Ok(())
}

/// A server that has gone to the background. Dropping it kills it.
struct Background {
    pid: Option<Pid>,
}

impl Background {
    /// By its file with the process id.
    fn new(file: &PathBuf) -> Result<Self> {
        let text = fs::read_to_string(file)?;
        let pid = Pid::from_raw(text.trim().parse()?);
        Ok(Self { pid })
    }

    fn is_running(&self) -> bool {
        self.pid
            .is_some_and(|pid| rustix::process::test_kill_process(pid).is_ok())
    }

    /// Process ids of its children.
    fn children(&self) -> Vec<String> {
        let pid = self.pid.map_or(0, |pid| pid.as_raw_nonzero().get());
        let text = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"));
        let text = text.unwrap_or_default();
        text.split_whitespace().map(str::to_owned).collect()
    }

    /// Waits for the end.
    fn ended(self) -> Result<()> {
        wait_until("the end of the server", Duration::from_secs(20), || {
            !self.is_running()
        })
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        if self.is_running()
            && let Some(pid) = self.pid
        {
            // It may end by itself just now.
            let _ = kill_process(pid, Signal::TERM);
        }
    }
}

/// Debian's configuration of nginx, but for where it writes.
pub(crate) fn debian_nginx(scene: &Scene) -> Result<PathBuf> {
    let here = scene.bed.folder().display().to_string();
    let text = fs::read_to_string("/etc/nginx/nginx.conf")?
        .replace("/run/nginx.pid", &format!("{here}/pid"))
        .replace("/var/log/nginx", &here)
        .replace("worker_processes auto", "worker_processes 2");
    if !text.contains(&format!("{here}/pid")) {
        return Err("nginx.conf names another file for the process id".into());
    }
    let config = scene.bed.folder().join("nginx.conf");
    fs::write(&config, text)?;
    Ok(config)
}

/// Runs nginx to its end in the scene's column: it starts a server or signals one.
pub(crate) fn nginx_command(scene: &Scene, config: &PathBuf, arguments: &[&str]) -> Result<()> {
    let mut nginx: Program<'_> = subject(scene, Side::Server, "/usr/sbin/nginx");
    nginx.arg("-c").arg(config).args(arguments);
    nginx.run()?.check()?;
    Ok(())
}

/// Debian's default: a daemon with a master and workers of another user. New workers after a
/// reload, while a client works.
pub(crate) fn nginx_as_debian_starts_it(scene: &Scene) -> Result<()> {
    let config = debian_nginx(scene)?;
    nginx_command(scene, &config, &[])?;
    let pid = scene.bed.folder().join("pid");
    let server = Background::new(&pid)?;
    wait_for_tcp_port(&scene.bed, Side::Server, 80)?;
    let page = PathBuf::from("/var/www/html/index.nginx-debian.html");
    let url = format!("http://{}/index.nginx-debian.html", scene.host());
    let url6 = format!(
        "http://[{}]/index.nginx-debian.html",
        scene.bed.ipv6(Side::Server)
    );
    for round in 0..3 {
        fetch(scene, &url, &page)?;
        fetch(scene, &url6, &page)?;
        apache_bench(scene, &url, &["-n", "600", "-c", "20"])?;
        apache_bench(scene, &url, &["-n", "2000", "-c", "20", "-k"])?;
        if round < 2 {
            reload(scene, &config, &server, &url)?;
        }
    }
    nginx_command(scene, &config, &["-s", "quit"])?;
    server.ended()
}

/// New workers, while a client makes a connection for each request: none is lost.
fn reload(scene: &Scene, config: &PathBuf, server: &Background, url: &str) -> Result<()> {
    let before = server.children();
    let mut during = scene.bed.program(Side::Client, "ab");
    let during = during.args(["-q", "-n", "3000", "-c", "10", url]).spawn()?;
    nginx_command(scene, config, &["-s", "reload"])?;
    no_failures(&during.wait(Duration::from_secs(50))?.check()?)?;
    wait_until(
        "the end of the old workers",
        Duration::from_secs(20),
        || {
            let now = server.children();
            now.len() >= 2 && !now.iter().any(|pid| before.contains(pid))
        },
    )
}

/// Starts apache with one way of sharing work among processes, and settings of its; the page's URL.
pub(super) fn apache(
    scene: &Scene,
    (mpm, settings): (&str, &str),
    page: &PathBuf,
) -> Result<(Running, String)> {
    let (here, host) = (scene.bed.folder().display().to_string(), scene.host());
    let config = scene.bed.folder().join("apache.conf");
    let modules = "/usr/lib/apache2/modules";
    fs::write(
        &config,
        format!(
            "ServerRoot {here}\nServerName bypass\nPidFile {here}/pid\nErrorLog {here}/errors\n\
             DefaultRuntimeDir {here}\nMutex fcntl:{here}\nUser www-data\nGroup www-data\n\
             LoadModule mpm_{mpm}_module {modules}/mod_mpm_{mpm}.so\n\
             LoadModule authz_core_module {modules}/mod_authz_core.so\n\
             Listen {host}:8080\n{settings}\nDocumentRoot {here}\n"
        ),
    )?;
    // apache ends its whole process group.
    let mut server = subject(scene, Side::Server, "setsid");
    server
        .args(["/usr/sbin/apache2", "-D", "FOREGROUND", "-f"])
        .arg(&config);
    let server = started(scene, &server, 8080)?;
    let name = page.file_name().ok_or("no page")?.to_string_lossy();
    let url = format!("http://{host}:8080/{name}");
    fetch(scene, &url, page)?;
    Ok((server, url))
}

/// apache with processes that it forks in advance, each with its share of the connections.
pub(crate) fn apache_prefork(scene: &Scene) -> Result<()> {
    let page = noise(scene, "page", 300_000)?;
    let (server, url) = apache(scene, ("prefork", "StartServers 3"), &page)?;
    for _ in 0..4 {
        fetch(scene, &url, &page)?;
    }
    apache_bench(scene, &url, &["-n", "200", "-c", "4"])?;
    apache_bench(scene, &url, &["-n", "200", "-c", "4", "-k"])?;
    server.stop()?;
    Ok(())
}
