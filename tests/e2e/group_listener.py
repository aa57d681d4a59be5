"""A member of a SO_REUSEPORT group of listeners: group_listener.py ADDRESS PORT NAME LEAVE. Whoever
sends a byte is told NAME. When the file LEAVE is there the listener accepts what waits and is
closed; the program ends with the last of its connections."""

import os
import selectors
import socket
import sys

address, port, name, leave = sys.argv[1:]
ready = selectors.DefaultSelector()
connections = 0


def accept(listener):
    global connections
    while True:
        try:
            connection = listener.accept()[0]
        except BlockingIOError:
            return
        connections += 1
        ready.register(connection, selectors.EVENT_READ)


def serve(connection):
    global connections
    try:
        if connection.recv(1):
            connection.sendall(name.encode())
            return
    except OSError:
        pass
    connections -= 1
    ready.unregister(connection)
    connection.close()


listener = socket.socket()
listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
listener.bind((address, int(port)))
listener.listen(1024)
listener.setblocking(False)
ready.register(listener, selectors.EVENT_READ)
print("listens", flush=True)
while listener or connections:
    for key, _ in ready.select(0.02):
        if key.fileobj is listener:
            accept(listener)
        else:
            serve(key.fileobj)
    if listener and os.path.exists(leave):
        accept(listener)
        ready.unregister(listener)
        listener.close()
        listener = None
