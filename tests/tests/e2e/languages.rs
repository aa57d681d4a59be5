//! Servers on the event loops of languages: uvloop, Node, Java NIO, tokio, gunicorn.

use std::fs;
use std::path::PathBuf;

use bypass_tests::counters::wait_for_tcp_port;
use bypass_tests::program::{Program, Running};
use bypass_tests::testbed::Side;
use bypass_tests::{Result, paths};

use super::harness::Scene;
use super::streams::{client, fetch, noise, started, subject};

/// Runs an echo server at port 9000, and a client on the kernel that has thirty connections, sends
/// and reads on all of them at once, and shuts down its side of each.
fn echo(scene: &Scene, server: &Program<'_>) -> Result<()> {
    echo_client(scene, started(scene, server, 9000)?)
}

/// The client, and the end of the server.
fn echo_client(scene: &Scene, server: Running) -> Result<()> {
    let script = r"
import asyncio, random
async def one(n):
    r, w = await asyncio.open_connection('HOST', 9000)
    for length in (1, 1000, 200000):
        data = random.Random(n).randbytes(length)
        w.write(data)
        got = await r.readexactly(length)
        assert got == data, (n, length)
    data = random.Random(n).randbytes(50000)
    w.write(data); w.write_eof()
    assert await r.read() == data, n
    w.close()
async def main():
    for round in range(3): await asyncio.gather(*map(one, range(30)))
asyncio.run(main())
";
    let script = script.replace("HOST", &scene.host());
    client(scene, "python3", &["-c", &script])
        .map_err(|error| format!("{error}\n{}{}", server.stdout(), server.stderr()))?;
    server.stop()?;
    Ok(())
}

pub(crate) fn python_uvloop(scene: &Scene) -> Result<()> {
    let script = r"
import asyncio, uvloop
class Echo(asyncio.Protocol):
    def connection_made(self, transport): self.transport = transport
    def data_received(self, data): self.transport.write(data)
async def main():
    loop = asyncio.get_running_loop()
    server = await loop.create_server(Echo, 'HOST', 9000)
    await server.serve_forever()
uvloop.install()
asyncio.run(main())
";
    let mut server = subject(scene, Side::Server, "/usr/bin/python3");
    server.args(["-c", &script.replace("HOST", &scene.host())]);
    echo(scene, &server)
}

pub(crate) fn node_echo(scene: &Scene) -> Result<()> {
    let script = "require('net').createServer({allowHalfOpen:true},s=>s.pipe(s))\
                  .listen(9000,process.argv[1])";
    let mut server = subject(scene, Side::Server, "node");
    server.args(["-e", script, &scene.host()]);
    echo(scene, &server)
}

pub(crate) fn node_http(scene: &Scene) -> Result<()> {
    let page = noise(scene, "page", 2 << 20)?;
    let host = scene.host();
    let script = "const fs=require('fs'),[host,file]=process.argv.slice(1);\
                  require('http').createServer((q,r)=>{\
                  if(q.url=='/small')r.end('x'.repeat(300));\
                  else fs.createReadStream(file).pipe(r)}).listen(8000,host)";
    let mut server = subject(scene, Side::Server, "node");
    server.args(["-e", script, &host]).arg(&page);
    let server = started(scene, &server, 8000)?;
    fetch(scene, &format!("http://{host}:8000/page"), &page)?;
    for more in [&["-n", "500"][..], &["-n", "2000", "-k"]] {
        let mut all = vec!["-q", "-c", "20"];
        all.extend(more);
        let url = format!("http://{host}:8000/small");
        all.push(&url);
        let run = client(scene, "ab", &all)?;
        if !run.stdout.contains("Failed requests:        0\n") {
            return Err(format!("ab: {}{}", run.stdout, run.stderr).into());
        }
    }
    server.stop()?;
    Ok(())
}

/// Node's cluster whose master passes the listener to two workers, which accept by themselves.
pub(crate) fn node_cluster(scene: &Scene) -> Result<()> {
    node_cluster_of(scene, "none")
}

/// Node's cluster as it is by default: the master accepts and passes each connection.
pub(crate) fn node_cluster_by_turns(scene: &Scene) -> Result<()> {
    node_cluster_of(scene, "rr")
}

fn node_cluster_of(scene: &Scene, policy: &str) -> Result<()> {
    let script = "const c=require('cluster');\
                  if(c.isPrimary){c.fork();c.fork();\
                  process.on('SIGTERM',()=>{for(const w in c.workers)c.workers[w].kill();\
                  c.disconnect(()=>process.exit(0))})}\
                  else require('net').createServer({allowHalfOpen:true},s=>s.pipe(s))\
                  .listen(9000,process.env.BIND)";
    // The master of a cluster starts its workers from a file.
    let file = scene.bed.folder().join("cluster.js");
    fs::write(&file, script)?;
    let mut server = subject(scene, Side::Server, "node");
    server.env("BIND", scene.host());
    server.env("NODE_CLUSTER_SCHED_POLICY", policy).arg(&file);
    // What is passed is the kernel's: no filter stays to wait for.
    let server = server.spawn()?;
    wait_for_tcp_port(&scene.bed, Side::Server, 9000)?;
    echo_client(scene, server)
}

/// A server of `tests/e2e` in Java, compiled by the Java that runs it.
pub(crate) fn java_nio(scene: &Scene) -> Result<()> {
    let source = paths::repository().join("tests/e2e/NioEcho.java");
    let mut server = subject(scene, Side::Server, "java");
    server.args(["-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"]);
    server.arg(source).arg(scene.host());
    echo(scene, &server)
}

/// The server of `tests/examples/tokio-echo.rs`.
pub(crate) fn tokio_echo(scene: &Scene) -> Result<()> {
    let program = paths::rust_program("tokio-echo")?.display().to_string();
    let mut server = subject(scene, Side::Server, &program);
    server.arg(format!("{}:9000", scene.host()));
    echo(scene, &server)
}

/// A master that forks workers of a Python server.
pub(crate) fn gunicorn(scene: &Scene) -> Result<()> {
    let folder: PathBuf = scene.bed.folder().to_path_buf();
    let page = noise(scene, "page", 1 << 20)?;
    let app = format!(
        "page=open('{}','rb').read()\n\
         def app(environ,start):\n\
         \x20start('200 OK',[('Content-Length',str(len(page)))])\n\
         \x20return [page]\n",
        page.display()
    );
    fs::write(folder.join("pages.py"), app)?;
    let host = scene.host();
    let mut server = subject(scene, Side::Server, "/usr/bin/gunicorn");
    server.args(["-w", "2", "-b", &format!("{host}:8000"), "--chdir"]);
    server.arg(&folder).arg("pages:app");
    let server = started(scene, &server, 8000)?;
    for _ in 0..20 {
        fetch(scene, &format!("http://{host}:8000/"), &page)?;
    }
    server.stop()?;
    Ok(())
}
