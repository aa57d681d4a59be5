"""The program under test, whose peer is lwIP (tests/lwip/peer.c has the cases).

lwip_counterpart.py OWN-IPV4 OWN-IPV6 LWIP-IPV4 LWIP-IPV6
"""
import socket
import struct
import sys
import threading
import time

CASES = "bsrw"
PATTERN = bytes((i * 7 % 251) ^ (i >> 12 & 255) for i in range(300_000))


def both_ways(connection):
    """Writes and reads at once; each direction ends by itself."""
    def write():
        connection.sendall(PATTERN)
        connection.shutdown(socket.SHUT_WR)
    writer = threading.Thread(target=write)
    writer.start()
    got = b"".join(iter(lambda: connection.recv(65536), b""))
    writer.join()
    assert got == PATTERN, len(got)


def to_a_slow_reader(connection):
    connection.sendall(PATTERN)
    connection.shutdown(socket.SHUT_WR)
    assert connection.recv(1) == b""


def is_reset(connection):
    try:
        found = connection.recv(1)
    except ConnectionResetError:
        return
    raise AssertionError(f"no reset: {found}")


def resets(connection):
    go = connection.recv(1) + connection.recv(1)
    assert go == b"go", go
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def run(name, connection):
    connection.settimeout(20)
    with connection:
        # Bytes that lwIP does not read make its close a reset.
        connection.sendall(b"r" * 1000 if name == "r" else name.encode())
        {"b": both_ways, "s": to_a_slow_reader, "r": is_reset, "w": resets}[name](connection)


def connected(family, receive_buffer, lwip):
    """A connection to lwIP, which may not listen yet."""
    limit = time.monotonic() + 20
    while True:
        connection = socket.socket(family)
        if receive_buffer:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        try:
            connection.connect((lwip, 5001))
            return connection
        except ConnectionRefusedError:
            connection.close()
            assert time.monotonic() < limit, "lwIP does not listen"
            time.sleep(0.01)


def both_directions(family, receive_buffer, own, lwip):
    """Every case over connections that we make, and over those that lwIP makes."""
    with socket.socket(family) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if receive_buffer:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        listener.bind((own, 5002))
        listener.listen()
        listener.settimeout(20)
        for name in CASES:
            run(name, connected(family, receive_buffer, lwip))
        for name in CASES:
            run(name, listener.accept()[0])


own4, own6, lwip4, lwip6 = sys.argv[1:]
both_directions(socket.AF_INET, 0, own4, lwip4)
# With the smallest windows that there are.
both_directions(socket.AF_INET6, 4096, own6, lwip6)
print("done")
