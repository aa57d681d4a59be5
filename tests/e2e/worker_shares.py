"""Shares of two workers on one port, each of which answers with its process id:
worker_shares.py ADDRESS PORT prints one worker, waits for its end, and looks after the other one.
"""

import collections
import http.client
import sys
import time

COUNT = 200


def ask(connection):
    connection.request("GET", "/")
    return connection.getresponse().read().decode()


def connect():
    connection = http.client.HTTPConnection(sys.argv[1], int(sys.argv[2]), timeout=15)
    return connection, ask(connection)


def shares(connections):
    counts = collections.Counter(worker for _, worker in connections)
    assert len(counts) == 2 and min(counts.values()) > COUNT / 5, counts
    return counts


first = [connect() for _ in range(COUNT)]
killed, kept = shares(first)
print(killed, flush=True)
theirs = [connection for connection, worker in first if worker == kept]
dead = [connection for connection, worker in first if worker == killed]
# Until it is dead its connections answer.
while True:
    try:
        assert ask(dead[0]) == killed
        time.sleep(0.01)
    except OSError:
        break
    except http.client.HTTPException:
        break
for connection in theirs:
    assert ask(connection) == kept, "a connection of the other worker"
next = shares([connect() for _ in range(COUNT)])
assert kept in next and killed not in next, next
print(dict(next))
