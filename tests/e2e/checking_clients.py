"""Clients of prefork_server.py: checking_clients.py ADDRESS PORT CLIENTS SEED STOP [cut].

Each makes one connection after the other, with some requests, and checks every byte, until the file
STOP is there. With `cut` a connection may end early, by the server's FIN or a reset; what came is
right all the same. That nothing comes for ten seconds, or that nobody answers a SYN, is a failure."""

import asyncio
import os
import random
import sys

ADDRESS, PORT, CLIENTS, SEED, STOP = sys.argv[1:6]
MAY_BE_CUT = sys.argv[6:] == ["cut"]
PATTERN = bytes(range(251)) * 1200
counts = {"connections": 0, "answers": 0, "cut": 0}


async def ask(reader, writer, number):
    writer.write(b"%08d" % number)
    start = number % 251
    wanted = PATTERN[start:start + number]
    got = b""
    while len(got) < number:
        piece = await asyncio.wait_for(reader.read(65536), 10)
        if not piece:
            raise EOFError
        got += piece
        assert wanted.startswith(got), f"wrong bytes in the answer to {number}"


async def connection(draw):
    try:
        reader, writer = await asyncio.wait_for(asyncio.open_connection(ADDRESS, int(PORT)), 10)
    except ConnectionResetError:  # It was answered, and cut before asyncio asked how it went.
        assert MAY_BE_CUT, "a connection was cut"
        counts["cut"] += 1
        return
    counts["connections"] += 1
    try:
        for _ in range(draw.randrange(1, 20)):
            await ask(reader, writer, draw.choice([1, 100, 5000, 100_000, 300_000]))
            counts["answers"] += 1
    except (EOFError, ConnectionError):
        assert MAY_BE_CUT, "a connection was cut"
        counts["cut"] += 1
    writer.close()


async def client(number):
    draw = random.Random(f"{SEED} {number}")
    while not os.path.exists(STOP):
        await connection(draw)


async def main():
    await asyncio.gather(*map(client, range(int(CLIENTS))))
    print(counts, flush=True)


asyncio.run(main())
