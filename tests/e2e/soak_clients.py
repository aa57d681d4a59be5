"""Clients of soak_server.py, all at once: soak_clients.py ADDRESS PORT SECONDS COUNT SOURCE...

COUNT connections from the SOURCE addresses stay open and ask in turns, while others come, ask and
close; reset in the middle of an answer; and read so slowly that their answers wait in the server.
Every byte is compared. Two processes share the work, for one may not have so many files. Each says
`open` when all its connections are, and in the end what it did and how long the slowest answer to a
reader that is not slow took."""

import asyncio
import os
import random
import resource
import socket
import struct
import sys
import time

PROCESSES = 2
ADDRESS, PORT, SECONDS, COUNT = sys.argv[1], *map(int, sys.argv[2:5])
SOURCES = sys.argv[5:]
PATTERN = bytes(range(251)) * 1200
LARGE = 300_000
PATIENCE = 20
SLOW = 50
most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
draw = random.Random()
counts = dict.fromkeys(["held", "asked", "churned", "reset", "slow"], 0)
slowest = 0.0


async def connect(**how):
    source = (draw.choice(SOURCES), 0)
    opened = asyncio.open_connection(ADDRESS, PORT, local_addr=source, **how)
    return await asyncio.wait_for(opened, PATIENCE)


async def check(reader, number):
    start = number % 251
    got = await asyncio.wait_for(reader.readexactly(number), PATIENCE)
    assert got == PATTERN[start:start + number], f"wrong bytes in the answer to {number}"


async def ask(reader, writer, number):
    global slowest
    since = time.monotonic()
    writer.write(b"%08d" % number)
    await check(reader, number)
    slowest = max(slowest, time.monotonic() - since)
    counts["asked"] += 1


async def hold(held):
    while len(held) < COUNT // PROCESSES:
        held.append(None)
        place = len(held) - 1
        held[place] = await connect()
        await ask(*held[place], 100)
        counts["held"] += 1


async def take_turns(mine, until):
    while time.monotonic() < until:
        await ask(*draw.choice(mine), draw.choice([1, 100, 5000]))


async def churn(until):
    while time.monotonic() < until:
        reader, writer = await connect()
        for _ in range(draw.randrange(1, 4)):
            await ask(reader, writer, draw.choice([1, 5000, LARGE]))
        writer.close()
        counts["churned"] += 1


async def reset(until):
    while time.monotonic() < until:
        reader, writer = await connect()
        writer.write(b"%08d" % LARGE)
        await asyncio.wait_for(reader.readexactly(draw.randrange(LARGE)), PATIENCE)
        linger = struct.pack("ii", 1, 0)
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        writer.transport.abort()
        counts["reset"] += 1


async def read_slowly(until):
    reader, writer = await connect(limit=4096)
    writer.write(b"%08d" % LARGE * 4)
    got = b""
    while len(got) < 4 * LARGE:
        wanted = 1000 if time.monotonic() < until else 65_536
        piece = await asyncio.wait_for(reader.read(wanted), PATIENCE)
        assert piece, "a slow reader was cut"
        got += piece
        if time.monotonic() < until:
            await asyncio.sleep(0.2)
    start = LARGE % 251
    assert got == PATTERN[start:start + LARGE] * 4, "wrong bytes for a slow reader"
    writer.close()
    counts["slow"] += 1


async def main():
    held = []
    await asyncio.gather(*(hold(held) for _ in range(32)))
    print("open", flush=True)
    until = time.monotonic() + SECONDS
    shares = [held[nth::8] for nth in range(8)]
    tasks = [take_turns(mine, until) for mine in shares]
    tasks += [churn(until) for _ in range(4)] + [reset(until) for _ in range(4)]
    tasks += [read_slowly(until) for _ in range(SLOW)]
    await asyncio.gather(*tasks)
    for reader, writer in held:
        await ask(reader, writer, 100)
    print(counts, f"slowest {slowest:.2f} s", flush=True)
    for _, writer in held:
        writer.close()


children = []
for number in range(PROCESSES):
    child = os.fork()
    if child == 0:
        draw.seed(number)
        asyncio.run(main())
        sys.exit()
    children.append(child)
outcomes = [os.waitpid(child, 0)[1] for child in children]
sys.exit(any(outcomes))
