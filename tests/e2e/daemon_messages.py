"""Sends nonsense to the daemon of this network namespace: daemon_messages.py SEED.

Whatever comes, the answer is a refusal, an end or a closed connection, never an attachment or a
filter; and after each of them an honest client is served. The layout: `proto/src/control.rs`.
"""

import array
import os
import random
import resource
import socket
import struct
import sys

ADDRESS = b"\0bypass-daemon"
MAGIC, VERSION, SIZE = int.from_bytes(b"BYPS", "little"), 2, 112
ATTACH, QUEUE_PAIRS, ADD_FILTER, REMOVE_FILTER, FORKED, QUERY = 1, 2, 3, 4, 5, 6
ATTACHED, PAIRS, FILTER, REFUSED, END = 1, 2, 3, 4, 5


def request(kind, magic=MAGIC, version=VERSION, query=0, rest=b""):
    return (struct.pack("<IHHII", magic, version, kind, 7, query) + rest).ljust(SIZE, b"\0")[:SIZE]


def connect():
    client = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    client.settimeout(5)
    client.connect(ADDRESS)
    return client


def honest():
    """A query of the stacks must be answered to its end."""
    with connect() as client:
        client.send(request(QUERY, query=2))
        for _ in range(1000):
            answer = client.recv(65536)
            assert answer, "an honest client was cut off"
            if len(answer) == 40 and struct.unpack("<I", answer[:4])[0] == MAGIC:
                kind = struct.unpack("<H", answer[6:8])[0]
                assert kind == END, f"an honest query was answered with kind {kind}"
                return
    raise AssertionError("no end of the answer")


def hostile(what, message, descriptors=(), allowed=(REFUSED, END)):
    with connect() as client:
        ancillary = []
        if descriptors:
            ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))]
        client.settimeout(1)
        try:
            client.sendmsg([message], ancillary)
            answer = client.recv(65536)
        except (TimeoutError, ConnectionError, BrokenPipeError):
            answer = b""
        if len(answer) == 40:
            kind = struct.unpack("<H", answer[6:8])[0]
            assert kind in allowed, f"{what}: answered with kind {kind}"
    honest()


honest()
for length in (0, 1, 7, 8, 79):
    hostile(f"{length} bytes", request(QUERY, query=2)[:length])
hostile("too long", request(ATTACH) + b"x" * 100)
hostile("huge", b"x" * 60000)
hostile("magic", request(ATTACH, magic=1))
hostile("version", request(ATTACH, version=99))
for kind in (0, 10, 77, 65535):
    hostile(f"kind {kind}", request(kind))
hostile("query of nothing", request(QUERY, query=99))
hostile("queue pairs before attaching", request(QUEUE_PAIRS))
hostile("a filter before attaching", request(ADD_FILTER))
hostile("a removal before attaching", request(REMOVE_FILTER))
hostile("a fork before attaching", request(FORKED, rest=b"\xff" * 64))

MALFORMED, NOT_OWNER = 2, 3


def attached(what, message, descriptors):
    """The refusal of a message that a client sends who has attached first."""
    with connect() as client:
        client.send(request(ATTACH))
        answer, received, _, _ = socket.recv_fds(client, 65536, 10)
        for fd in received:
            os.close(fd)
        kind = struct.unpack("<H", answer[6:8])[0]
        assert kind == ATTACHED and received, f"{what}: attaching was answered with kind {kind}"
        rights = array.array("i", descriptors)
        client.sendmsg([message], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])
        answer = client.recv(65536)
        kind, refusal = struct.unpack("<H4xH", answer[6:14])
        assert kind == REFUSED, f"{what}: answered with kind {kind}"
    honest()
    return refusal


def bound(kind, port):
    made = socket.socket(socket.AF_INET, kind)
    made.bind(("198.18.7.1", port))
    return made


file = os.open("/etc/passwd", os.O_RDONLY)
pipe = os.pipe()
unbound = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
stranger = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
elsewhere, stream = bound(socket.SOCK_DGRAM, 5354), bound(socket.SOCK_STREAM, 5353)
right = bound(socket.SOCK_DGRAM, 5353)
wanted = bytes(10) + b"\xff\xff" + socket.inet_aton("198.18.7.1") + bytes(16)
wanted += struct.pack("<HHBBBBIIIIII", 5353, 0, 17, 0, 0, 0, 0, 0, 0, 0, 0, 0)
for what, descriptors, expected in (
    ("no descriptor", (), MALFORMED),
    ("a file", (file,), MALFORMED),
    ("a pipe", (pipe[0],), MALFORMED),
    ("an unbound socket", (unbound.fileno(),), NOT_OWNER),
    ("a socket bound elsewhere", (elsewhere.fileno(),), NOT_OWNER),
    ("a TCP socket", (stream.fileno(),), MALFORMED),
    ("a UNIX socket", (stranger.fileno(),), MALFORMED),
    ("two descriptors", (right.fileno(), right.fileno()), MALFORMED),
    ("fifty descriptors", (file,) * 50, MALFORMED),
    ("an endpoint that is not there", (right.fileno(),), MALFORMED),
):
    refusal = attached(what, request(ADD_FILTER, rest=wanted), descriptors)
    assert refusal == expected, f"{what}: refused with {refusal}"

# Sockets whose last close waits for a peer that never reads. They are sent behind many questions, by
# processes that end at once (which does not wait), so the daemon mostly is the last to close.
listener = socket.create_server(("127.0.0.1", 0))
peers = []
for before in ((), (file,) * 20):
    child = os.fork()
    if child == 0:
        with connect() as client, socket.create_connection(listener.getsockname()) as slow:
            slow.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 1000))
            slow.setblocking(False)
            try:
                while True:
                    slow.send(bytes(65536))
            except BlockingIOError:
                pass
            for _ in range(40):
                client.send(request(QUERY, query=2))
            rights = array.array("i", (*before, slow.fileno()))
            client.sendmsg([request(REMOVE_FILTER)], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])
            os._exit(0)
    peers.append(listener.accept()[0])
    os.waitpid(child, 0)
    honest()

chance = random.Random(int(sys.argv[1]))
for number in range(300):
    kind = chance.choice((QUEUE_PAIRS, ADD_FILTER, REMOVE_FILTER, FORKED, 99))
    message = bytearray(request(kind))
    for _ in range(chance.randrange(1, 30)):
        message[chance.randrange(6 if number % 2 else 16, SIZE)] = chance.randrange(256)
    if struct.unpack("<H", message[6:8])[0] in (ATTACH, QUERY, 7, 8, 9):
        continue
    hostile(f"random {number}", bytes(message), (file,) * chance.randrange(3))

# Clients that never say anything, and one that never reads its answers.
resource.setrlimit(resource.RLIMIT_NOFILE, (5000, 5000))
silent = [connect() for _ in range(1000)]
for _ in range(10):
    honest()
for client in silent:
    client.close()
deaf = connect()
deaf.settimeout(0.2)
try:
    for _ in range(5000):
        deaf.send(request(QUERY, query=2))
except OSError:
    pass
honest()
deaf.close()
honest()
print("survived, seed", sys.argv[1])
