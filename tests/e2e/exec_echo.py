"""As inetd: each connection becomes the standard input and output of a program, which sends back
what it gets. Arguments: address, port."""
import os, signal, socket, sys

signal.signal(signal.SIGCHLD, signal.SIG_IGN)
listener = socket.create_server((sys.argv[1], int(sys.argv[2])), backlog=256)
while True:
    sock, _ = listener.accept()
    # Something has come already, and something has been sent.
    first = sock.recv(1)
    sock.send(first)
    if os.fork() == 0:
        os.dup2(sock.fileno(), 0)
        os.dup2(sock.fileno(), 1)
        os.execvp("cat", ["cat"])
    sock.close()
