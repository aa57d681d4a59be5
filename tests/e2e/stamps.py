"""Times of what comes by SO_TIMESTAMPING: stamps.py ADDRESS PORT [stream] answers each datagram, or
each read of connections one after the other, with two numbers, how many seconds the host's clock and
the NIC's are ahead of the program's own; null = no time."""

import json
import socket
import struct
import sys
import time

RX_HARDWARE, RX_SOFTWARE, SOFTWARE, RAW_HARDWARE = 1 << 2, 1 << 3, 1 << 4, 1 << 6
SO_TIMESTAMPING = 37
TIMES = struct.Struct("qqqqqq")


def ahead(seconds, nanoseconds):
    if (seconds, nanoseconds) == (0, 0):
        return None
    return seconds + nanoseconds / 1e9 - time.time()


def answer(beside):
    times = [TIMES.unpack(data) for _, kind, data in beside if kind == SO_TIMESTAMPING]
    host, _, nic = zip(*[iter(times[0])] * 2) if times else [(0, 0)] * 3
    return json.dumps([ahead(*host), ahead(*nic)]).encode()


is_stream = sys.argv[3:] == ["stream"]
server = socket.socket(type=socket.SOCK_STREAM if is_stream else socket.SOCK_DGRAM)
asked = RX_HARDWARE | RX_SOFTWARE | SOFTWARE | RAW_HARDWARE
server.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPING, asked)
server.bind((sys.argv[1], int(sys.argv[2])))
while not is_stream:
    _, beside, _, peer = server.recvmsg(2048, 512)
    server.sendto(answer(beside), peer)
server.listen()
while True:
    connection, _ = server.accept()
    with connection:
        while True:
            data, beside, _, _ = connection.recvmsg(2048, 512)
            if not data:
                break
            connection.sendall(answer(beside))
