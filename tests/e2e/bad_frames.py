"""Sends malformed Ethernet frames: bad_frames.py INTERFACE PEER_MAC OWN_IP PEER_IP PORT SEED.

Hand-made ones first (truncated at every length, lying lengths, bad checksums, options, fragments
that overlap, zero ports, VLAN tags, too large), then two thousand random changes of a good one.
"""

import random
import socket
import struct
import sys

interface, peer_mac, own_ip, peer_ip, port, seed = sys.argv[1:7]
port = int(port)
wire = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
wire.bind((interface, 0))
own_mac = wire.getsockname()[4]
ethernet = bytes.fromhex(peer_mac.replace(":", "")) + own_mac
source, destination = socket.inet_aton(own_ip), socket.inet_aton(peer_ip)


def checksum(data):
    if len(data) % 2:
        data += b"\0"
    total = sum(struct.unpack(f">{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def udp(payload, sport=9999, dport=port, length=None, bad=False):
    length = 8 + len(payload) if length is None else length
    head = struct.pack(">HHHH", sport, dport, length, 0)
    pseudo = source + destination + struct.pack(">BBH", 0, 17, 8 + len(payload))
    value = checksum(pseudo + head + payload) ^ (0x5555 if bad else 0)
    return struct.pack(">HHHH", sport, dport, length, value or 0xFFFF) + payload


def ipv4(content, version=0x45, total=None, fragment=0, options=b"", bad=False, ident=1):
    protocol = 17
    total = 20 + len(options) + len(content) if total is None else total
    fields = [version, 0, total, ident, fragment, 64, protocol, 0]
    head = struct.pack(">BBHHHBBH", *fields) + source + destination + options
    fields[-1] = checksum(head) ^ (0x1234 if bad else 0)
    return struct.pack(">BBHHHBBH", *fields) + source + destination + options + content


def frame(packet, kind=b"\x08\x00"):
    return ethernet + kind + packet


good = frame(ipv4(udp(b"x" * 40)))
frames = [good[:length] for length in range(14, len(good))]
for length in (0, 1, 7, 8, 9, 47, 49, 1000, 65535):
    frames.append(frame(ipv4(udp(b"x" * 40, length=length))))
for total in (0, 19, 20, 27, 28, 67, 69, 1500, 65535):
    frames.append(frame(ipv4(udp(b"x" * 40), total=total)))
for version in (0x44, 0x40, 0x4F, 0x65, 0x00, 0xFF):
    frames.append(frame(ipv4(udp(b"x" * 40), version=version)))
frames.append(frame(ipv4(udp(b"x" * 40, bad=True))))
frames.append(frame(ipv4(udp(b"x" * 40), bad=True)))
frames.append(frame(ipv4(udp(b"x", sport=0))))
frames.append(frame(ipv4(udp(b"x", dport=0))))
frames.append(frame(ipv4(udp(b"x" * 20), version=0x46, options=b"\x01\x01\x01\x00")))
frames.append(frame(ipv4(udp(b"x" * 20), version=0x4F, options=b"\x07\x27\x04" + b"\0" * 37)))
for offset in (0, 1, 2, 3):
    frames.append(frame(ipv4(udp(b"y" * 64), fragment=0x2000 | offset, ident=7)))
    frames.append(frame(ipv4(b"z" * 64, fragment=offset, ident=7)))
for tags in (1, 2, 3):
    tagged = b"\0\x05\x81\0" * (tags - 1) + b"\0\x05\x08\0" + ipv4(udp(b"v"))
    frames.append(frame(tagged, b"\x81\0"))
frames.append(frame(ipv4(udp(b"m" * 1472))))
frames.append(frame(b"\x60" + b"\0" * 39, b"\x86\xdd"))
frames.append(frame(struct.pack(">IHBB", 0x60000000, 8, 17, 64) + b"\0" * 40, b"\x86\xdd"))
chance = random.Random(int(seed))
for _ in range(2000):
    changed = bytearray(good)
    for _ in range(chance.randrange(1, 6)):
        changed[chance.randrange(12, len(changed))] = chance.randrange(256)
    frames.append(bytes(changed[: chance.randrange(14, len(changed) + 1)]))
for bad in frames:
    try:
        wire.send(bad)
    except OSError:
        pass  # larger than the MTU, or refused by the driver
print(len(frames), "frames, seed", seed)
