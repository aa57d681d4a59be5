"""Writes to the connection that it accepts and makes no call of sockets after: asleep.py ADDRESS PORT."""

import socket
import sys
import time

BYTES = 256 << 10

listener = socket.socket()
listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 * BYTES)
listener.bind((sys.argv[1], int(sys.argv[2])))
listener.listen()
connection, _ = listener.accept()
connection.sendall(bytes(i % 251 for i in range(BYTES)))
print("asleep", flush=True)
time.sleep(1000)
