"""Bursts of datagrams: whether they arrive in their order, and how many do not.

server: python3 bursts.py ADDRESS PORT                 sends datagrams to whoever asks
client: python3 bursts.py ADDRESS PORT ROUNDS COUNT    asks for COUNT and says how many are missing
"""

import json
import socket
import struct
import sys

SO_RCVBUFFORCE = 33
NUMBER = struct.Struct("!II")


def serve(at):
    socket_ = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    socket_.bind(at)
    while True:
        asked, peer = socket_.recvfrom(64)
        turn, count = NUMBER.unpack(asked)
        for number in range(count):
            socket_.sendto(NUMBER.pack(turn, number) + bytes(192), peer)


def gather(socket_, turn, count):
    """How many of a burst come; what is out of order ends the program."""
    came, due = 0, 0
    while due < count:
        try:
            of, number = NUMBER.unpack_from(socket_.recv(2048))
        except TimeoutError:
            break
        # What comes of a burst before it was waited for no longer.
        if of == turn:
            if number < due:
                sys.exit(f"turn {turn}: {number} when {due} was due")
            came, due = came + 1, number + 1
    return came


def ask(at, rounds, count):
    socket_ = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    socket_.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 16 << 20)
    socket_.settimeout(5)
    missing, turn = 0, 0
    for _ in range(rounds):
        came = 0
        # The question may be lost too.
        for _ in range(3):
            socket_.sendto(NUMBER.pack(turn, count), at)
            came = gather(socket_, turn, count)
            turn += 1
            if came > 0:
                break
            print("a question again", file=sys.stderr)
        missing += count - came
    print(json.dumps({"missing": missing}))


address = (sys.argv[1], int(sys.argv[2]))
if len(sys.argv) == 3:
    serve(address)
else:
    ask(address, int(sys.argv[3]), int(sys.argv[4]))
