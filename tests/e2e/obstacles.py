"""Puts what doctor warns of into this network namespace: obstacles.py rule | obstacles.py INTERFACE.

`rule`: an nftables rule. INTERFACE: an XDP program that is not ours, until this process ends.
"""

import ctypes
import os
import signal
import socket
import struct
import sys


def attribute(kind, text):
    value = text.encode() + b"\0"
    return (struct.pack("=HH", 4 + len(value), kind) + value).ljust((4 + len(value) + 3) & ~3, b"\0")


def rule():
    """One batch of nfnetlink: table, chain, a rule without expressions."""
    names = [(0, ((1, "test"),)), (3, ((1, "test"), (3, "input"))), (6, ((1, "test"), (2, "input")))]
    batch = b""
    for number, kind, flags, family, subsystem, attributes in (
        (0, 0x10, 1, 0, 10, ()),
        *((index + 1, 10 << 8 | kind, 0xC05, 2, 0, of) for index, (kind, of) in enumerate(names)),
        (4, 0x11, 1, 0, 10, ()),
    ):
        body = struct.pack("=BB", family, 0) + struct.pack(">H", subsystem)
        body += b"".join(attribute(*one) for one in attributes)
        batch += struct.pack("=IHHII", 16 + len(body), kind, flags, number, 0) + body
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 12) as netlink:
        netlink.send(batch)
        for _ in names:
            error = struct.unpack("=i", netlink.recv(4096)[16:20])[0]
            if error:
                sys.exit(f"nftables: {os.strerror(-error)}")


def bpf(command, attributes):
    number = {"x86_64": 321, "aarch64": 280}[os.uname().machine]
    room = ctypes.create_string_buffer(attributes, 128)
    libc = ctypes.CDLL(None, use_errno=True)
    fd = libc.syscall(number, command, room, 128)
    if fd < 0:
        sys.exit(f"bpf({command}): {os.strerror(ctypes.get_errno())}")
    return fd


def program(interface):
    """An XDP program that passes everything: r0 = XDP_PASS; exit."""
    code = ctypes.create_string_buffer(struct.pack("<BBhiBBhi", 0xB7, 0, 0, 2, 0x95, 0, 0, 0))
    licence = ctypes.create_string_buffer(b"GPL")
    addresses = (ctypes.addressof(code), ctypes.addressof(licence))
    load = struct.pack("=IIQQIIQII16s", 6, 2, *addresses, 0, 0, 0, 0, 0, b"somebody_elses")
    bpf(28, struct.pack("=IIII", bpf(5, load), socket.if_nametoindex(interface), 37, 0))


if sys.argv[1] == "rule":
    rule()
else:
    program(sys.argv[1])
    print("ready", flush=True)
    signal.pause()
