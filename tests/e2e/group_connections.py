"""Connections to a SO_REUSEPORT group of listeners: group_connections.py ADDRESS PORT KEPT FOLDER.

Of KEPT connections, opened first, each is told by the same member again and again who it is. Others
come and go meanwhile. Each file of FOLDER whose name begins with `count` gets a line for each member
that has had one of 400 such connections. A member may be gone with its connections when there is
a file of FOLDER with the name `killed-` and its own. A new connection may be reset in the moment
in which a listener is closed (Linux resets what is not accepted yet): how many were is printed when
the file `stop` is there."""

import collections
import os
import socket
import sys

address, port, kept, folder = sys.argv[1:]
resets = 0


def ask(connection):
    connection.sendall(b"?")
    name = connection.recv(100)
    if not name:
        raise ConnectionResetError("ended")
    return name.decode()


def fresh():
    global resets
    while True:
        try:
            with socket.create_connection((address, int(port)), 10) as connection:
                return ask(connection)
        except ConnectionError:
            resets += 1


def there(name):
    return os.path.exists(os.path.join(folder, name))


def kept_ones_answer(members):
    for connection, name in list(members.items()):
        try:
            assert ask(connection) == name, name
        except ConnectionError:
            assert there(f"killed-{name}"), f"a connection of {name} is gone"
            del members[connection]


def count(file):
    names = collections.Counter(fresh() for _ in range(400))
    text = "".join(f"{name} {number}\n" for name, number in names.items())
    with open(file + ".new", "w") as new:
        new.write(text)
    os.rename(file + ".new", file)


members = {}
for _ in range(int(kept)):
    connection = socket.create_connection((address, int(port)), 10)
    members[connection] = ask(connection)
while not there("stop"):
    kept_ones_answer(members)
    fresh()
    for name in os.listdir(folder):
        path = os.path.join(folder, name)
        if name.startswith("count") and not name.endswith(".new") and not os.path.getsize(path):
            count(path)
kept_ones_answer(members)
print("resets", resets, "kept", len(members))
