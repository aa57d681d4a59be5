//! Programs that serve their sockets by io_uring, where the shim sees no call: whatever they have
//! becomes the kernel's when they make the ring.

use std::time::Duration;

use bypass_tests::Result;
use bypass_tests::program::{Running, wait_until};
use bypass_tests::testbed::Side;

use super::harness::{Scene, compiled};
use super::reasons::reasons;
use super::streams::{client, subject};

const PORT: u16 = 7007;
const PATIENCE: Duration = Duration::from_secs(20);

/// The echo, which makes its ring first, when its sockets are bound, or when they are used.
fn echo(scene: &Scene, order: &str) -> Result<Running> {
    let program = compiled(scene, "ring_echo", &["-luring"])?;
    let mut echo = subject(scene, Side::Server, &program);
    echo.args([&scene.host(), &PORT.to_string(), order]);
    let echo = echo.spawn()?;
    let ready = wait_until("the echo", PATIENCE, || echo.stdout().contains("ready"));
    ready.map_err(|error| format!("{error}\n{}", echo.stderr()))?;
    Ok(echo)
}

/// Twenty connections at once, and datagrams beside them; the first connection and the first
/// datagram come before the ring where the server waits for them.
fn exchange(scene: &Scene, order: &str, server: &Running) -> Result<()> {
    let script = r"
import asyncio, random, socket, sys
host, is_used = sys.argv[1], sys.argv[2] == 'used'
u = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); u.connect((host, 7007)); u.settimeout(10)
def datagrams():
    for n in range(50):
        if n or not is_used: u.send(b'datagram %d' % n)
        assert u.recv(2000) == b'datagram %d' % n, n
async def one(n, r, w):
    data = random.Random(n).randbytes(300000)
    async def send():
        w.write(data); await w.drain(); w.write_eof()
    got, _ = await asyncio.gather(r.read(), send())
    assert got == data, (n, len(got)); w.close()
async def main():
    if is_used:
        r, w = await asyncio.open_connection(host, 7007)
        w.write(b'hello'); u.send(b'datagram 0')
        await one(100, r, w)
    async def fresh(n): await one(n, *await asyncio.open_connection(host, 7007))
    await asyncio.wait_for(asyncio.gather(*map(fresh, range(20))), 40)
    datagrams()
asyncio.run(asyncio.wait_for(main(), 50))
";
    let done = client(scene, "python3", &["-c", script, &scene.host(), order]);
    done.map(drop)
        .map_err(|error| format!("{error}\n{}", server.stderr()).into())
}

/// All of that, and every socket that is told of is the kernel's, because of the ring.
fn served(scene: &Scene, order: &str) -> Result<()> {
    let server = echo(scene, order)?;
    exchange(scene, order, &server)?;
    if scene.has_shim() {
        let reasons = reasons(scene, server.pid())?;
        if reasons.len() < 2 || reasons.iter().any(|reason| reason != "io_uring") {
            return Err(format!("{reasons:?}").into());
        }
    }
    server.stop()?;
    Ok(())
}

pub(crate) fn made_first(scene: &Scene) -> Result<()> {
    served(scene, "first")
}

pub(crate) fn made_of_bound(scene: &Scene) -> Result<()> {
    served(scene, "bound")
}

/// A connection that has been read from goes on by the ring, and so does a datagram that waits.
pub(crate) fn made_of_used(scene: &Scene) -> Result<()> {
    served(scene, "used")
}
