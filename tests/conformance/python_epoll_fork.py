"""An epoll set from before os.fork: what one process registers, the other is told of."""

import os
import select
import socket

HOST, PEER = os.environ["HOST4"], os.environ["PEER4"]
ECHO, T_ECHO = 7007, 7107


def say(call, value):
    print(call, "=", value, flush=True)


def serve(poller, names, count):
    """Reads what comes to whatever is ready, until so much has."""
    got = {}
    while sum(map(len, got.values())) < count:
        for number, _ in poller.poll(5):
            kind, endpoint = names[number]
            got[kind] = got.get(kind, b"") + endpoint.recv(100)
    return sorted(got.items())


poller = select.epoll()
datagrams = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
datagrams.bind((HOST, 5021))
stream = socket.create_connection((PEER, T_ECHO))
names = {datagrams.fileno(): ("datagrams", datagrams), stream.fileno(): ("stream", stream)}
poller.register(datagrams, select.EPOLLIN)

# The child waits for what the parent registers after the fork.
ready, go = os.pipe()
child = os.fork()
if child == 0:
    os.close(go)
    os.read(ready, 1)
    say("child", serve(poller, names, 8))
    poller.unregister(datagrams)
    poller.modify(stream, select.EPOLLIN | select.EPOLLONESHOT)
    os._exit(0)
poller.register(stream, select.EPOLLIN)
datagrams.sendto(b"four", (PEER, ECHO))
stream.sendall(b"five")
os.close(go)
say("status", os.waitpid(child, 0)[1])

# The parent has what the child has left of the set.
datagrams.sendto(b"unseen", (PEER, ECHO))
select.select([datagrams], [], [], 5)
stream.sendall(b"six")
say("once", [names[number][0] for number, _ in poller.poll(5)])
say("no more", poller.poll(0))
say("recv", (datagrams.recv(10), stream.recv(10)))
try:
    poller.unregister(datagrams)
except FileNotFoundError as error:
    say("unregister", type(error).__name__)
print("end")
