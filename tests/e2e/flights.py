"""Flights of datagrams of many sizes, each of which comes back as it was.

echo: python3 flights.py echo ADDRESS PORT
ask:  python3 flights.py ask ADDRESS PORT SOCKETS COUNT ROUNDS

Each round sends COUNT datagrams at once, by SOCKETS sockets in turn. What is not answered is sent
again, a few at a time. Prints how many were not answered the first time.
"""

import json
import select
import socket
import struct
import sys

SO_RCVBUFFORCE = 33
NUMBER = struct.Struct("!II")
# Bytes of payload: less than a frame's least, odd, more than a page's half, whole frames.
SIZES = [8, 17, 18, 19, 63, 512, 1001, 1471, 1472]
ATTEMPTS = 20
PATTERN = bytes(range(256)) * 7


def opened():
    made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    made.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 16 << 20)
    return made


def echo(at):
    server = opened()
    server.bind(at)
    while True:
        datagram, peer = server.recvfrom(2048)
        server.sendto(datagram, peer)


def made(turn, number):
    """The datagram of this number: its size and bytes follow from it."""
    size = SIZES[number % len(SIZES)]
    return (NUMBER.pack(turn, number) + PATTERN[number % 256 :])[:size]


def gather(sockets, due, patience):
    """Takes answers until none is due or none has come for so long, seconds."""
    poll = select.poll()
    by_number = {s.fileno(): (place, s) for place, s in enumerate(sockets)}
    for fd in by_number:
        poll.register(fd, select.POLLIN)
    last = {}
    while due:
        ready = poll.poll(patience * 1000)
        if not ready:
            return
        for fd, _ in ready:
            place, from_ = by_number[fd]
            datagram = from_.recv(2048)
            turn, number = NUMBER.unpack_from(datagram)
            if datagram != made(turn, number) or number % len(sockets) != place:
                sys.exit(f"turn {turn}: datagram {number} is another one: {datagram.hex()}")
            # What was sent again may come twice; what was not, may not.
            if turn in due and number in due[turn]:
                due[turn].remove(number)
                if number < last.get((turn, place), 0):
                    sys.exit(f"turn {turn}: {number} behind {last[(turn, place)]}")
                last[(turn, place)] = number
                if not due[turn]:
                    del due[turn]


def ask(at, sockets, count, rounds):
    sockets = [opened() for _ in range(sockets)]
    for s in sockets:
        s.connect(at)
    again = 0
    for turn in range(rounds):
        due = {turn: set(range(count))}
        for number in range(count):
            sockets[number % len(sockets)].send(made(turn, number))
        gather(sockets, due, 0.5)
        left = sorted(due.get(turn, ()))
        again += len(left)
        for number in left:
            for _ in range(ATTEMPTS):
                due = {turn: {number}}
                sockets[number % len(sockets)].send(made(turn, number))
                gather(sockets, due, 1)
                if not due:
                    break
            else:
                sys.exit(f"turn {turn}: nobody answers {number}")
    print(json.dumps({"again": again}))


address = (sys.argv[2], int(sys.argv[3]))
if sys.argv[1] == "echo":
    echo(address)
else:
    ask(address, *map(int, sys.argv[4:7]))
