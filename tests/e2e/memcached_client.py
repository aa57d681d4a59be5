"""Stores over TCP and reads 300 values over memcached's UDP protocol; ends with 0 if all came."""

import socket
import struct
import sys

host, port = sys.argv[1], int(sys.argv[2])
with socket.create_connection((host, port)) as tcp:
    for number in range(10):
        value = b"%d" % number * 900
        tcp.sendall(b"set k%d 0 0 %d\r\n%s\r\n" % (number, len(value), value))
        assert tcp.recv(100) == b"STORED\r\n"

sockets = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(4)]
for udp in sockets:
    udp.settimeout(5)
    udp.connect((host, port))
for request in range(300):
    udp = sockets[request % 4]
    number = request % 10
    udp.send(struct.pack(">HHHH", request, 0, 1, 0) + b"get k%d\r\n" % number)
    answer = udp.recv(2000)
    identity, sequence, total, _ = struct.unpack(">HHHH", answer[:8])
    assert (identity, sequence, total) == (request, 0, 1), answer[:8]
    assert answer[8:] == b"VALUE k%d 0 900\r\n" % number + b"%d" % number * 900 + b"\r\nEND\r\n"
print("300 values")
