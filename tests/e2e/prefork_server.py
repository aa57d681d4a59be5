"""A master that listens and keeps four workers: prefork_server.py ADDRESS PORT HOW. With `threads`
half of them are on epoll and half with threads; with `forks` each connection has a process, which
executes this program anew half of the time, with `serve` and the connection as 0. A request is a
number in a line of eight bytes; the answer is so many bytes, each of which follows from the number
and its place. A request for 0 says who serves."""

import asyncio
import os
import random
import select
import signal
import socket
import sys
import threading
import traceback

PATTERN = bytes(range(251)) * 1200


def answer(number):
    if number == 0:
        return b"%08d" % os.getpid()
    start = number % 251
    return PATTERN[start:start + number]


def serve(connection):
    with connection:
        try:
            while request := connection.recv(8, socket.MSG_WAITALL):
                connection.sendall(answer(int(request)))
        except OSError:
            pass


def connections(listener):
    while True:
        select.select([listener], [], [])
        try:
            connection = listener.accept()[0]
        except BlockingIOError:  # Another worker was first.
            continue
        connection.setblocking(True)
        yield connection


def by_forks(listener):
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    for connection in connections(listener):
        executes = random.random() < 0.5
        if os.fork() == 0:
            listener.close()
            if executes:
                os.dup2(connection.fileno(), 0)
                os.execv(sys.executable, [sys.executable, "-IS", __file__, "serve"])
            serve(connection)
            os._exit(0)
        connection.close()


def by_threads(listener):
    for connection in connections(listener):
        threading.Thread(target=serve, args=(connection,), daemon=True).start()


def by_epoll(listener):
    async def serve(reader, writer):
        try:
            while True:
                writer.write(answer(int(await reader.readexactly(8))))
                await writer.drain()
        except (asyncio.IncompleteReadError, OSError):
            writer.close()

    async def run():
        server = await asyncio.start_server(serve, sock=listener)
        await server.serve_forever()

    asyncio.run(run())


def work(listener, kind):
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    try:
        how[kind % 2](listener)
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(1)


def fork(listener, kind):
    child = os.fork()
    if child == 0:
        work(listener, kind)
    return child


def end(*_):
    for child in children:
        os.kill(child, signal.SIGKILL)
    os._exit(0)


if sys.argv[1] == "serve":
    try:
        serve(socket.socket(fileno=0))
    except OSError:  # No connection, if nobody could hand it over.
        pass
    sys.exit()
how = {"threads": [by_threads, by_epoll], "forks": [by_forks, by_forks]}[sys.argv[3]]
listener = socket.create_server((sys.argv[1], int(sys.argv[2])), backlog=256)
listener.setblocking(False)  # For all workers at once: they share its flags.
children = {}
signal.signal(signal.SIGTERM, end)
for kind in range(4):
    children[fork(listener, kind)] = kind
while True:
    kind = children.pop(os.wait()[0])
    children[fork(listener, kind)] = kind
