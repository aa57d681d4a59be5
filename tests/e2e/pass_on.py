"""An echo server whose connections move while data flows: after some bytes, another for each, a
connection is passed to a worker process, which goes on with it. Arguments: address, port.
A connection that the worker gets with a wrong peer, or unconnected, is closed at once."""
import os, random, selectors, socket, sys

# The worker is a relative, or it would be the same program without the shim: both are kernel
# sockets to it.
parents, workers = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
is_worker = os.fork() == 0


class Echo:
    """One connection: what came and was not sent back yet, and when it moves."""

    def __init__(self, sock, moves_after):
        self.sock, self.moves_after = sock, moves_after
        self.held, self.ended = b"", False

    def wanted(self):
        # Reading goes on while writing waits: both directions are busy.
        read = selectors.EVENT_READ if not self.ended and len(self.held) < 300000 else 0
        return read | (selectors.EVENT_WRITE if self.held else 0)

    def turn(self, events):
        """Whether it goes on here."""
        if events & selectors.EVENT_READ:
            data = self.sock.recv(65536)
            self.held += data
            self.ended = not data
            self.moves_after -= len(data)
        if self.held:
            try:
                self.held = self.held[self.sock.send(self.held):]
            except BlockingIOError:
                pass
        if not self.ended and self.moves_after < 0:
            return False
        return bool(self.held) or not self.ended


def serve(selector, fresh):
    while True:
        for key, events in selector.select():
            if key.data is None:
                for echo in fresh():
                    echo.sock.setblocking(False)
                    selector.register(echo.sock, selectors.EVENT_READ, echo)
                continue
            echo = key.data
            if echo.turn(events):
                wanted = echo.wanted()
                if wanted != key.events:
                    selector.modify(echo.sock, wanted, echo)
                continue
            selector.unregister(echo.sock)
            if not echo.ended:
                # What it holds goes along; what the socket holds is the socket's.
                note = repr(echo.sock.getpeername()).encode() + b"\n" + echo.held
                socket.send_fds(parents, [note], [echo.sock.fileno()])
            echo.sock.close()


def accepted():
    sock, _ = listener.accept()
    return [Echo(sock, random.randrange(400000))]


def passed():
    note, fds, _, _ = socket.recv_fds(workers, 1 << 20, 1)
    if not fds:
        os._exit(0)
    sock = socket.socket(fileno=fds[0])
    peer, held = note.split(b"\n", 1)
    if repr(sock.getpeername()).encode() != peer:
        sock.close()
        return []
    echo = Echo(sock, 1 << 62)
    echo.held = held
    return [echo]


selector = selectors.DefaultSelector()
if is_worker:
    parents.close()
    selector.register(workers, selectors.EVENT_READ)
    serve(selector, passed)
workers.close()
parents.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 21)
listener = socket.create_server((sys.argv[1], int(sys.argv[2])), backlog=256)
selector.register(listener, selectors.EVENT_READ)
serve(selector, accepted)
