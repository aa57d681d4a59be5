"""Opens sockets and keeps them: open_sockets.py KIND:ADDRESS:PORT...

KIND is udp, tcp (a listener) or raw (ICMP). A bind that fails ends the program.
"""

import signal
import socket
import sys

KINDS = {
    "udp": (socket.SOCK_DGRAM, 0),
    "tcp": (socket.SOCK_STREAM, 0),
    "raw": (socket.SOCK_RAW, socket.IPPROTO_ICMP),
}
kept = []
for wanted in sys.argv[1:]:
    kind, address, port = wanted.split(":")
    opened = socket.socket(socket.AF_INET, *KINDS[kind])
    opened.bind((address, int(port)))
    if kind == "tcp":
        opened.listen()
    kept.append(opened)
print("ready", flush=True)
signal.pause()
