"""Members of a SO_REUSEPORT group, a thread each: group_member.py ADDRESS PORT LOG[=COUNT]...

A member writes down what it reads as it is, eight bytes (flow, number) each: its log has what it had
when it was killed, and is there when it takes part. With a COUNT its socket is closed after so many;
a sole member leaves that to the end of its process.
"""

import os
import socket
import sys
import threading


def serve(address, port, log, count, is_sole):
    endpoint = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    endpoint.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    endpoint.bind((address, port))
    log = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    while count:
        os.write(log, endpoint.recv(64))
        count -= 1
    if is_sole:
        os._exit(0)
    endpoint.close()


def main():
    address, port, *members = sys.argv[1:]
    for member in members:
        log, _, count = member.partition("=")
        argument = (address, int(port), log, int(count or -1), len(members) == 1)
        threading.Thread(target=serve, args=argument).start()


main()
