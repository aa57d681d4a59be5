"""Sends numbered datagrams from many ports to a group: group_flood.py ADDRESS PORT FLOWS FOLDER

FOLDER has the logs of the members (group_member.py). They tell how many datagrams are on their way,
which is never more than any queue has room for: what is lost is lost for another reason. A file
FOLDER/left* for each member that has left says that there may be some that nobody will read. Ends a
while after there is a file FOLDER/stop; prints how many datagrams each flow had.
"""

import os
import socket
import struct
import sys
import time

WINDOW = 64
# What is not read for so long, in seconds, is taken for lost: once for each that has left, and else.
PATIENCE, LONG_PATIENCE = 0.05, 10
LAST_ROUNDS = 20

address, port, flows, folder = sys.argv[1:]
stop = os.path.join(folder, "stop")


def received():
    files = list(os.scandir(folder))
    left = sum(file.name.startswith("left") for file in files)
    return sum(file.stat().st_size // 8 for file in files), left


def endpoint():
    made = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    made.connect((address, int(port)))
    return made


endpoints = [endpoint() for _ in range(int(flows))]
sent = lost = forgiven = rounds = 0
last = None
while last is None or rounds < last:
    for flow, sender in enumerate(endpoints):
        since, (seen, left) = time.monotonic(), received()
        while sent - lost - seen > WINDOW:
            time.sleep(0.0005)
            before, (seen, left) = seen, received()
            patience = PATIENCE if left > forgiven else LONG_PATIENCE
            if seen != before:
                since = time.monotonic()
            elif time.monotonic() - since > patience:
                lost, forgiven = sent - seen, left
        sender.send(struct.pack("<II", flow, rounds))
        sent += 1
    rounds += 1
    if last is None and os.path.exists(stop):
        last = rounds + LAST_ROUNDS
print(rounds)
