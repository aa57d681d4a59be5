"""Sends TCP for ADDRESS back with both addresses exchanged: reflect.py INTERFACE ADDRESS."""

import socket
import sys

SO_RCVBUFFORCE = 33
link = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x0800))
link.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 16 << 20)
link.bind((sys.argv[1], 0x0800))
address = socket.inet_aton(sys.argv[2])
print("ready", flush=True)
frame = bytearray(65536)
while True:
    size, where = link.recvfrom_into(frame)
    if where[2] != socket.PACKET_OUTGOING and frame[23] == 6 and frame[30:34] == address:
        frame[0:6], frame[6:12] = frame[6:12], frame[0:6]
        frame[26:30], frame[30:34] = frame[30:34], frame[26:30]
        link.send(memoryview(frame)[:size])
