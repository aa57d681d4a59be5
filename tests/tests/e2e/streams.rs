//! TCP programs: redis, nginx, memcached, Python, Node, curl, iperf3, socat.

use std::fs;
use std::io::Write;
use std::path::PathBuf;
use std::time::Duration;

use bypass_tests::Result;
use bypass_tests::counters::wait_for_tcp_port;
use bypass_tests::program::{Finished, Program, Running, wait_until};
use bypass_tests::services::wait_for_listener;
use bypass_tests::testbed::Side;

use super::harness::Scene;

/// The program under test, in the scene's column.
pub(crate) fn subject<'s>(scene: &'s Scene, side: Side, name: &str) -> Program<'s> {
    let mut program = scene.bed.program(side, name);
    program.column(scene.column);
    program
}

pub(crate) fn started(scene: &Scene, program: &Program<'_>, port: u16) -> Result<Running> {
    let running = program.spawn()?;
    wait_for_listener(&scene.bed, port, scene.has_shim())
        .map_err(|error| format!("{error}\n{}{}", running.stdout(), running.stderr()))?;
    Ok(running)
}

/// Runs a client on the kernel.
pub(crate) fn client(scene: &Scene, name: &str, arguments: &[&str]) -> Result<Finished> {
    let mut program = scene.bed.program(Side::Client, name);
    program.args(arguments).timeout(Duration::from_secs(60));
    program.run()?.check()
}

/// A file of this many pseudo-random bytes in the bed's folder.
pub(crate) fn noise(scene: &Scene, name: &str, bytes: usize) -> Result<PathBuf> {
    let file = scene.bed.folder().join(name);
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let content: Vec<u8> = std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 32) as u8
    })
    .take(bytes)
    .collect();
    fs::write(&file, content)?;
    Ok(file)
}

/// Fetches a URL with curl on the kernel; the bytes must be those of the file.
pub(crate) fn fetch(scene: &Scene, url: &str, wanted: &PathBuf) -> Result<()> {
    let got = scene.bed.folder().join("fetched");
    let into = got.display().to_string();
    client(
        scene,
        "curl",
        &["-sS", "--fail", "-m", "50", "-o", &into, url],
    )?;
    if fs::read(&got)? == fs::read(wanted)? {
        Ok(())
    } else {
        Err(format!("{url}: other bytes than {}", wanted.display()).into())
    }
}

/// `local` is BYPASS_ACCELERATE_LOCAL.
pub(crate) fn start_redis(scene: &Scene, local: &str) -> Result<Running> {
    let folder = scene.bed.folder().display().to_string();
    let mut redis = subject(scene, Side::Server, "redis-server");
    redis.env("BYPASS_ACCELERATE_LOCAL", local);
    redis.args(["--port", "6379", "--bind", &scene.host(), "--save", ""]);
    redis.args([
        "--appendonly",
        "no",
        "--protected-mode",
        "no",
        "--dir",
        &folder,
    ]);
    started(scene, &redis, 6379)
}

fn redis_benchmark(scene: &Scene, arguments: &[&str]) -> Result<()> {
    let host = scene.host();
    let mut all = vec!["-h", &host, "-q", "-t", "set,get,lrange_100"];
    all.extend(arguments);
    let run = client(scene, "redis-benchmark", &all)?;
    if run.stdout.matches("requests per second").count() < 3 || run.stdout.contains("rror") {
        return Err(format!("redis-benchmark: {}{}", run.stdout, run.stderr).into());
    }
    Ok(())
}

pub(crate) fn redis(scene: &Scene) -> Result<()> {
    let server = start_redis(scene, "0")?;
    redis_benchmark(scene, &["-n", "5000", "-c", "1"])?;
    redis_benchmark(scene, &["-n", "20000", "-c", "50"])?;
    redis_benchmark(scene, &["-n", "40000", "-c", "50", "-P", "16"])?;
    server.stop()?;
    Ok(())
}

pub(crate) fn redis_large_values(scene: &Scene) -> Result<()> {
    let server = start_redis(scene, "0")?;
    let host = scene.host();
    let file = noise(scene, "value", 3 << 20)?;
    let mut set = scene.bed.program(Side::Client, "redis-cli");
    set.args(["-h", &host, "-x", "set", "k"])
        .input(file.clone());
    set.run()?.check()?;
    let script = format!(
        "import socket,sys\n\
         s=socket.create_connection(('{host}',6379))\n\
         s.sendall(b'GET k\\r\\n'); f=s.makefile('rb')\n\
         n=int(f.readline()[1:]); sys.exit(0 if f.read(n)==open('{}','rb').read() else 1)",
        file.display()
    );
    client(scene, "python3", &["-c", &script])?;
    server.stop()?;
    Ok(())
}

/// A program ends with bytes on their way to a peer that reads late: the peer gets them all.
pub(crate) fn last_words(scene: &Scene) -> Result<()> {
    let sink = "import socket, time\n\
         s = socket.create_server(('', 5050))\n\
         s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)\n\
         print('listens', flush=True)\n\
         for i in range(2):\n\
         \x20   c, _ = s.accept()\n\
         \x20   time.sleep(0.5)\n\
         \x20   got = b''.join(iter(lambda: c.recv(65536), b''))\n\
         \x20   print(len(got), got == bytes(range(256)) * 4096, flush=True)\n";
    let mut peer = scene.bed.program(Side::Client, "python3");
    let peer = peer.args(["-c", sink]).spawn()?;
    wait_until("the peer listens", Duration::from_secs(20), || {
        peer.stdout().contains("listens")
    })?;
    for end in ["os._exit(0)", "os.kill(os.getpid(), 9)"] {
        let talker = format!(
            "import socket, os\n\
             s = socket.socket()\n\
             s.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 << 20)\n\
             s.connect(('{}', 5050))\n\
             s.sendall(bytes(range(256)) * 4096)\n\
             {end}\n",
            scene.peer()
        );
        let mut program = subject(scene, Side::Server, "/usr/bin/python3");
        program.args(["-c", &talker]).run()?;
    }
    let heard = peer.wait(Duration::from_secs(20))?.check()?.stdout;
    if heard.matches("1048576 True").count() != 2 {
        return Err(format!("not the whole megabyte twice: {heard}").into());
    }
    Ok(())
}

/// The peer gets another MAC address under an open connection, as a router does that takes over.
pub(crate) fn neighbour_moves(scene: &Scene) -> Result<()> {
    let server = start_redis(scene, "0")?;
    let (host, bed) = (scene.host(), &scene.bed);
    let python = format!(
        "import socket, sys\n\
         s = socket.create_connection(('{host}', 6379))\n\
         s.settimeout(20)\n\
         f = s.makefile('rb')\n\
         print('connected', flush=True)\n\
         for line in sys.stdin:\n\
         \x20   s.sendall(b'PING\\r\\n')\n\
         \x20   assert f.readline() == b'+PONG\\r\\n'\n\
         \x20   print('pong', flush=True)\n"
    );
    let fifo = bed.folder().join("lines");
    client(scene, "mkfifo", &[&fifo.display().to_string()])?;
    let mut peer = bed.program(Side::Client, "sh");
    let line = format!("exec python3 -c \"$0\" < {}", fifo.display());
    let peer = peer.args(["-c", &line, &python]).spawn()?;
    let mut lines = fs::OpenOptions::new().write(true).open(&fifo)?;
    let pongs = |count: usize| {
        wait_until("an answer", Duration::from_secs(20), || {
            peer.stdout().matches("pong").count() >= count
        })
        .map_err(|error| format!("{error}: {}", peer.stderr()))
    };
    writeln!(lines, "before")?;
    pongs(1)?;
    let interface = bed.interface(Side::Client);
    let address = ["link", "set", interface, "address", "02:00:00:00:00:77"];
    bed.ip(Side::Client, &address)?;
    // The peer asks for the server, which so learns the new address.
    bed.ip(Side::Client, &["neigh", "flush", "all"])?;
    client(scene, "ping", &["-c1", "-W5", &host])?;
    writeln!(lines, "after")?;
    pongs(2)?;
    drop(lines);
    peer.wait(Duration::from_secs(20))?.check()?;
    server.stop()?;
    Ok(())
}

/// Server and client are two programs of one host, and of one stack: neither wire nor kernel.
pub(crate) fn redis_own_address(scene: &Scene) -> Result<()> {
    let server = start_redis(scene, "1")?;
    let mut load = subject(scene, Side::Server, "redis-benchmark");
    load.env("BYPASS_ACCELERATE_LOCAL", "1");
    load.args(["-h", &scene.host(), "-q", "-t", "set,get,lrange_100"]);
    load.args(["-n", "4000", "-c", "20", "-d", "5000", "-P", "4"]);
    let run = load.run()?.check()?;
    if run.stdout.matches("requests per second").count() < 3 {
        return Err(format!("redis-benchmark: {}{}", run.stdout, run.stderr).into());
    }
    let file = noise(scene, "value", 3 << 20)?;
    for (arguments, input) in [
        (&["-x", "set", "k"][..], Some(&file)),
        (&["--raw", "get", "k"][..], None),
    ] {
        let mut client = subject(scene, Side::Server, "sh");
        client.env("BYPASS_ACCELERATE_LOCAL", "1");
        let got = scene.bed.folder().join("got").display().to_string();
        let line = format!(
            "redis-cli -h {} {} > {got}",
            scene.host(),
            arguments.join(" ")
        );
        client.args(["-c", &line]);
        if let Some(file) = input {
            client.input(file.clone());
        }
        client.run()?.check()?;
    }
    let mut got = fs::read(scene.bed.folder().join("got"))?;
    // redis-cli ends its answer with a newline.
    got.pop();
    if got != fs::read(&file)? {
        return Err("another value came back".into());
    }
    server.stop()?;
    Ok(())
}

/// A connection from a port that was bound begins where another one is in TIME_WAIT: programs that
/// bind their clients (Tcl does) get a port again by chance.
pub(crate) fn time_wait_followed(scene: &Scene) -> Result<()> {
    let script = r#"
import socket, sys
def bound():
    s = socket.socket()
    s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    s.bind((sys.argv[1], 7020))
    return s
server = socket.create_server((sys.argv[1], 7021))
def connect():
    client = bound()
    client.connect(server.getsockname())
    accepted = server.accept()[0]
    client.send(b"hello")
    assert accepted.recv(5) == b"hello"
    client.close()
    assert accepted.recv(5) == b""
    accepted.close()
connect()
connect()
"#;
    let mut python = subject(scene, Side::Server, "/usr/bin/python3");
    python.env("BYPASS_ACCELERATE_LOCAL", "1");
    python.args(["-c", script, &scene.host()]).run()?.check()?;
    Ok(())
}

fn start_nginx(scene: &Scene) -> Result<Running> {
    let folder = scene.bed.folder().join("nginx");
    fs::create_dir_all(folder.join("www"))?;
    fs::copy(noise(scene, "large", 5 << 20)?, folder.join("www/large"))?;
    fs::copy(noise(scene, "small", 612)?, folder.join("www/small"))?;
    let config = folder.join("nginx.conf");
    let (here, host) = (folder.display(), scene.host());
    fs::write(
        &config,
        format!(
            "daemon off; master_process off; pid {here}/pid; error_log stderr; user root;\n\
             events {{ worker_connections 1024; }}\n\
             http {{ access_log off; sendfile on; tcp_nopush on; keepalive_requests 1000000;\n\
             client_body_temp_path {here}/b; proxy_temp_path {here}/p;\n\
             fastcgi_temp_path {here}/f; uwsgi_temp_path {here}/u; scgi_temp_path {here}/s;\n\
             server {{ listen {host}:8080; root {here}/www; }} }}\n"
        ),
    )?;
    let mut nginx = subject(scene, Side::Server, "/usr/sbin/nginx");
    nginx.arg("-c").arg(&config);
    started(scene, &nginx, 8080)
}

pub(crate) fn nginx_files(scene: &Scene) -> Result<()> {
    let server = start_nginx(scene)?;
    let host = scene.host();
    for name in ["small", "large"] {
        let file = scene.bed.folder().join(name);
        fetch(scene, &format!("http://{host}:8080/{name}"), &file)?;
    }
    server.stop()?;
    Ok(())
}

fn apache_bench(scene: &Scene, arguments: &[&str]) -> Result<()> {
    let url = format!("http://{}:8080/small", scene.host());
    let mut all = vec!["-q", "-n", "5000", "-c", "20"];
    all.extend(arguments);
    all.push(&url);
    let run = client(scene, "ab", &all)?;
    let ok = |line: &str| run.stdout.lines().any(|have| have.trim_end() == line);
    if ok("Complete requests:      5000") && ok("Failed requests:        0") {
        Ok(())
    } else {
        Err(format!("ab: {}{}", run.stdout, run.stderr).into())
    }
}

pub(crate) fn nginx_keepalive(scene: &Scene) -> Result<()> {
    let server = start_nginx(scene)?;
    apache_bench(scene, &["-k"])?;
    server.stop()?;
    Ok(())
}

pub(crate) fn nginx_close(scene: &Scene) -> Result<()> {
    let server = start_nginx(scene)?;
    apache_bench(scene, &[])?;
    server.stop()?;
    Ok(())
}

pub(crate) fn memcached_threads(scene: &Scene) -> Result<()> {
    let host = scene.host();
    let mut server = subject(scene, Side::Server, "memcached");
    server.args([
        "-u", "root", "-l", &host, "-p", "11211", "-U", "0", "-t", "4",
    ]);
    let server = started(scene, &server, 11211)?;
    let script = format!(
        "import socket\n\
         cs=[socket.create_connection(('{host}',11211)) for _ in range(200)]\n\
         fs=[c.makefile('rb') for c in cs]\n\
         for r in range(5):\n\
         \x20 for i,c in enumerate(cs):\n\
         \x20  c.sendall(b'set k%d 0 0 %d\\r\\n%s\\r\\n'%(i,100+i,b'v'*(100+i)))\n\
         \x20 for f in fs: assert f.readline()==b'STORED\\r\\n'\n\
         \x20 for i,c in enumerate(cs): c.sendall(b'get k%d\\r\\n'%i)\n\
         \x20 for i,f in enumerate(fs):\n\
         \x20  assert f.readline()==b'VALUE k%d 0 %d\\r\\n'%(i,100+i)\n\
         \x20  assert f.read(100+i)==b'v'*(100+i); f.readline(); assert f.readline()==b'END\\r\\n'\n"
    );
    client(scene, "python3", &["-c", &script])?;
    server.stop()?;
    Ok(())
}

pub(crate) fn python_http_server(scene: &Scene) -> Result<()> {
    let file = noise(scene, "page", 2 << 20)?;
    let host = scene.host();
    let folder = scene.bed.folder().display().to_string();
    let mut server = subject(scene, Side::Server, "python3");
    server.args(["-m", "http.server", "--bind", &host, "-d", &folder, "8000"]);
    let server = started(scene, &server, 8000)?;
    fetch(scene, &format!("http://{host}:8000/page"), &file)?;
    server.stop()?;
    Ok(())
}

pub(crate) fn python_asyncio_streams(scene: &Scene) -> Result<()> {
    let host = scene.host();
    let echo = format!(
        "import asyncio\n\
         async def serve(r,w):\n\
         \x20 while d:=await r.read(65536): w.write(d); await w.drain()\n\
         \x20 w.close()\n\
         async def main():\n\
         \x20 s=await asyncio.start_server(serve,'{host}',9000)\n\
         \x20 async with s: await s.serve_forever()\n\
         asyncio.run(main())"
    );
    let mut server = subject(scene, Side::Server, "python3");
    server.args(["-c", &echo]);
    let server = started(scene, &server, 9000)?;
    let ask = format!(
        "import socket,threading,hashlib,os\n\
         s=socket.create_connection(('{host}',9000)); d=os.urandom(4<<20)\n\
         t=threading.Thread(target=lambda:(s.sendall(d),s.shutdown(1))); t.start()\n\
         got=b''.join(iter(lambda:s.recv(65536),b'')); t.join(); assert got==d,(len(got),len(d))"
    );
    client(scene, "python3", &["-c", &ask])?;
    server.stop()?;
    Ok(())
}

/// curl as the program under test, nginx on the kernel of the other side.
pub(crate) fn curl_client(scene: &Scene) -> Result<()> {
    let file = noise(scene, "remote", 3 << 20)?;
    let peer = scene.peer();
    let folder = scene.bed.folder().display().to_string();
    let mut server = scene.bed.program(Side::Client, "python3");
    let server = server
        .args(["-m", "http.server", "--bind", &peer, "-d", &folder, "8000"])
        .spawn()?;
    wait_for_tcp_port(&scene.bed, Side::Client, 8000)?;
    let got = scene.bed.folder().join("got");
    let mut curl = subject(scene, Side::Server, "curl");
    curl.args(["-sS", "--fail", "-m", "50", "-o"]).arg(&got);
    curl.arg(format!("http://{peer}:8000/remote"));
    curl.run()?.check()?;
    server.stop()?;
    if fs::read(&got)? != fs::read(&file)? {
        return Err("curl got other bytes".into());
    }
    Ok(())
}

/// The peer's MAC address is not known when the program connects: the connection waits for it as
/// the kernel's would, and is none of the kernel's.
pub(crate) fn unknown_neighbour(scene: &Scene) -> Result<()> {
    // The daemon is there before, and knows the peer.
    curl_client(scene)?;
    scene.bed.ip(Side::Server, &["neigh", "flush", "all"])?;
    curl_client(scene)
}

/// Bytes that iperf3 carries at least in its second.
const QUICK: f64 = 10e6;
/// The same on a bad link, or for the slower of two directions on a busy machine.
pub(crate) const SLOW: f64 = 0.5e6;

/// One second of iperf3 on the kernel with these arguments; every sum has `least` bytes.
pub(crate) fn iperf3(scene: &Scene, arguments: &[&str], least: f64) -> Result<()> {
    let host = scene.host();
    let mut server = subject(scene, Side::Server, "iperf3");
    server.args(["-s", "-B", &host]);
    let server = started(scene, &server, 5201)?;
    let mut all = vec!["-c", &host, "-t", "1", "-J"];
    all.extend(arguments);
    let run = client(scene, "iperf3", &all)?;
    let report: serde_json::Value = serde_json::from_str(&run.stdout)?;
    server.stop()?;
    // With --bidir both directions have a sum.
    let both = arguments.contains(&"--bidir");
    let sums: &[&str] = if both {
        &["sum_received", "sum_received_bidir_reverse"]
    } else {
        &["sum_received"]
    };
    let bytes = |sum: &&str| report["end"][*sum]["bytes"].as_f64().unwrap_or(0.0);
    if sums.iter().all(|sum| bytes(sum) > least) {
        Ok(())
    } else {
        Err(format!("iperf3: {}", report["end"]).into())
    }
}

pub(crate) fn iperf3_stream_in(scene: &Scene) -> Result<()> {
    iperf3(scene, &[], QUICK)
}

pub(crate) fn iperf3_stream_out(scene: &Scene) -> Result<()> {
    iperf3(scene, &["-R"], QUICK)
}

pub(crate) fn iperf3_both_ways(scene: &Scene) -> Result<()> {
    iperf3(scene, &["--bidir"], SLOW)
}

pub(crate) fn iperf3_four_streams(scene: &Scene) -> Result<()> {
    iperf3(scene, &["-P", "4"], QUICK)
}

/// A port whose listener was closed is free at once, for the same program and for the next one.
pub(crate) fn listener_again(scene: &Scene) -> Result<()> {
    let script = format!(
        "import socket\n\
         for n in range(100):\n\
         \x20s=socket.socket(); s.setsockopt(socket.SOL_SOCKET,socket.SO_REUSEADDR,n%2)\n\
         \x20s.bind(('{}',9000)); s.listen(10); s.close()",
        scene.host()
    );
    for _ in 0..5 {
        let mut program = subject(scene, Side::Server, "python3");
        program.args(["-c", &script]);
        program.run()?.check()?;
    }
    Ok(())
}

/// A refused connection, and one to an address that does not answer.
pub(crate) fn refused_connections(scene: &Scene) -> Result<()> {
    let script = format!(
        "import socket,errno\n\
         s=socket.socket()\n\
         try: s.connect(('{}',9)); raise SystemExit('connected')\n\
         except OSError as e: assert e.errno==errno.ECONNREFUSED,e\n\
         s=socket.socket(); s.setblocking(False)\n\
         r=s.connect_ex(('{}',9)); assert r in (errno.EINPROGRESS,errno.ECONNREFUSED),r\n\
         import select; p=select.poll(); p.register(s,select.POLLOUT); assert p.poll(5000)\n\
         assert s.getsockopt(socket.SOL_SOCKET,socket.SO_ERROR) in (errno.ECONNREFUSED,0)",
        scene.peer(),
        scene.peer()
    );
    let mut program = subject(scene, Side::Server, "python3");
    program.args(["-c", &script]);
    program.run()?.check()?;
    Ok(())
}
