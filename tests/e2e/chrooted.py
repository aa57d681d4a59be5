"""A server whose worker changes its root, then its user: chrooted.py ADDRESS PORT FOLDER WHEN.

WHEN is `before` or `after`: the listener is made before the root is changed, by the master, or
after, by the worker. The worker sends back what each connection sends.
"""

import encodings.idna  # Taken now: there are no files in the new root.
import os
import signal
import socket
import sys

address, port, folder, when = sys.argv[1:]


def listener():
    made = socket.socket()
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    made.bind((address, int(port)))
    made.listen()
    return made


def work(listening):
    os.chroot(folder)
    os.chdir("/")
    os.setgroups([])
    os.setgid(65534)
    os.setuid(65534)
    listening = listening or listener()
    while True:
        connection = listening.accept()[0]
        with connection:
            while got := connection.recv(65536):
                connection.sendall(got)


made = listener() if when == "before" else None
child = os.fork()
if child == 0:
    work(made)
signal.signal(signal.SIGTERM, lambda *_: os.kill(child, signal.SIGTERM))
os.waitpid(child, 0)
