"""Python's selectors: the same datagrams waited for in every way the system has."""

import os
import select
import selectors
import socket
import threading
import time

HOST, PEER = os.environ["HOST4"], os.environ["PEER4"]
ECHO = 7007


def say(call, value):
    print(call, "=", value, flush=True)


def round_trip(kind, port):
    with kind() as selector, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as endpoint:
        endpoint.bind((HOST, port))
        endpoint.setblocking(False)
        near, far = socket.socketpair()
        selector.register(endpoint, selectors.EVENT_READ, "datagram")
        selector.register(near, selectors.EVENT_READ, "wake")
        say("idle", selector.select(0))
        for number in range(3):
            endpoint.sendto(b"%d" % number, (PEER, ECHO))
            say("ready", [key.data for key, _ in selector.select(5)])
            say("recv", endpoint.recv(10))
        threading.Timer(0.05, far.send, [b"x"]).start()
        say("ready", [key.data for key, _ in selector.select(5)])
        near.recv(1)
        selector.modify(endpoint, selectors.EVENT_READ | selectors.EVENT_WRITE, "both")
        say("writable", [(key.data, mask) for key, mask in selector.select(5)])
        selector.unregister(endpoint)
        endpoint.sendto(b"unseen", (PEER, ECHO))
        time.sleep(0.05)
        say("unregistered", selector.select(0.05))
        select.select([endpoint], [], [], 5)
        say("recv", endpoint.recv(10))
        near.close()
        far.close()


for index, name in enumerate(("SelectSelector", "PollSelector", "EpollSelector")):
    say("selector", name)
    round_trip(getattr(selectors, name), 5001 + index)
print("end")
