//! Connections that become the kernel's while they are in use.

use bypass_tests::program::{Finished, Program};
use bypass_tests::testbed::Side;
use bypass_tests::{Result, paths};

use super::harness::Scene;
use super::streams::{started, subject};

/// Clients on the kernel: so many connections at once, each of which sends and reads so many bytes
/// at the same time and compares.
pub(crate) fn echo_clients(scene: &Scene, connections: u32, bytes: u32) -> Program<'_> {
    let script = r"
import asyncio, random
async def one(n):
    r, w = await asyncio.open_connection('HOST', 9000, limit=1<<17)
    data = random.Random(n).randbytes(BYTES + n)
    async def send():
        at = 0
        while at < len(data):
            step = random.randrange(1, 40000)
            w.write(data[at:at + step]); at += step
            await w.drain()
        w.write_eof()
    sending = asyncio.ensure_future(send())
    got = b''
    while piece := await r.read(65536): got += piece
    await sending
    assert got == data, (n, len(got), len(data))
    w.close()
async def main(): await asyncio.gather(*map(one, range(CONNECTIONS)))
asyncio.run(asyncio.wait_for(main(), 40))
";
    let script = script
        .replace("HOST", &scene.host())
        .replace("CONNECTIONS", &connections.to_string())
        .replace("BYTES", &bytes.to_string());
    let mut clients = scene.bed.program(Side::Client, "python3");
    clients.args(["-c", &script]);
    clients
}

/// Serves with a program of `tests/e2e` and lets clients compare.
fn served(scene: &Scene, program: &str, connections: u32, bytes: u32) -> Result<()> {
    let mut server = subject(scene, Side::Server, "/usr/bin/python3");
    server.arg(paths::repository().join("tests/e2e").join(program));
    server.args([&scene.host(), "9000"]);
    let server = started(scene, &server, 9000)?;
    let clients = echo_clients(scene, connections, bytes);
    clients
        .run()
        .and_then(Finished::check)
        .map_err(|error| format!("{error}\n{}{}", server.stdout(), server.stderr()))?;
    server.kill();
    Ok(())
}

/// SCM_RIGHTS at random moments of streams that are busy both ways.
pub(crate) fn passed_in_the_middle(scene: &Scene) -> Result<()> {
    served(scene, "pass_on.py", 20, 500_000)
}

/// Many connections that move at about the same time.
pub(crate) fn passed_in_a_burst(scene: &Scene) -> Result<()> {
    served(scene, "pass_on.py", 200, 40_000)
}

/// The connection is the standard input and output of another program.
pub(crate) fn executed(scene: &Scene) -> Result<()> {
    served(scene, "exec_echo.py", 12, 200_000)
}
