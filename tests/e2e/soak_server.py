"""Two processes that hold very many connections: soak_server.py ADDRESS PORT. A request is a number
in a line of eight bytes; the answer is so many bytes, each of which follows from the number and its
place. More than a peer takes is not written: it waits for the socket."""

import asyncio
import os
import resource
import signal
import socket
import sys

WORKERS = 2
PATTERN = bytes(range(251)) * 1200
most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


async def serve(reader, writer):
    try:
        while True:
            number = int(await reader.readexactly(8))
            start = number % 251
            writer.write(PATTERN[start:start + number])
            await writer.drain()
    except (asyncio.IncompleteReadError, OSError):
        writer.close()


async def work():
    server = await asyncio.start_server(serve, sock=listener, backlog=4096)
    await server.serve_forever()


def fork():
    child = os.fork()
    if child == 0:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        asyncio.run(work())
    return child


def end(*_):
    for child in children:
        os.kill(child, signal.SIGKILL)
    os._exit(0)


listener = socket.create_server((sys.argv[1], int(sys.argv[2])), backlog=4096)
listener.setblocking(False)  # For both at once: they share its flags.
children = [fork() for _ in range(WORKERS)]
signal.signal(signal.SIGTERM, end)
os.wait()
sys.exit("a worker has ended")
