"""Python's socket module: the calls of an ordinary UDP program, one line each."""

import os
import select
import socket
import sys

HOST, PEER = os.environ["HOST4"], os.environ["PEER4"]
HOST6, PEER6 = os.environ["HOST6"], os.environ["PEER6"]
ECHO, REFUSED = 7007, 7008


def say(call, value):
    print(call, "=", value, flush=True)


def attempt(call, function, *arguments):
    try:
        say(call, function(*arguments))
    except OSError as error:
        say(call, type(error).__name__ + " " + str(error.errno))


with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as plain:
    plain.bind((HOST, 5001))
    say("getsockname", plain.getsockname())
    for size in (0, 1, 700, 1472):
        say("sendto", plain.sendto(b"p" * size, (PEER, ECHO)))
        data, address = plain.recvfrom(4096)
        say("recvfrom", (len(data), address))
    plain.settimeout(0.2)
    attempt("recv", plain.recv, 10)
    plain.setblocking(False)
    attempt("recv", plain.recv, 10)
    plain.setblocking(True)
    plain.connect((PEER, ECHO))
    say("getpeername", plain.getpeername())
    plain.sendall(b"connected")
    buffer = bytearray(20)
    say("recv_into", (plain.recv_into(buffer), bytes(buffer)))
    say("sendmsg", plain.sendmsg([b"one ", b"", b"two"]))
    say("recvmsg", plain.recvmsg(100)[0])
    say("sendmsg", plain.sendmsg([b"three"]))
    say("recvmsg_into", (plain.recvmsg_into([buffer[:2], buffer])[0], bytes(buffer)))
    duplicate = plain.dup()
    plain.send(b"dup")
    say("dup recv", duplicate.recv(10))
    duplicate.close()
    plain.send(b"after")
    say("recv", plain.recv(10))
    for option in ("SO_REUSEADDR", "SO_BROADCAST", "SO_TYPE", "SO_ERROR", "SO_DOMAIN"):
        say(option, plain.getsockopt(socket.SOL_SOCKET, getattr(socket, option)))
    attempt("listen", plain.listen)
    attempt("connect", plain.connect, (PEER, REFUSED))
    plain.send(b"anybody?")
    select.select([plain], [], [], 2)
    attempt("recv", plain.recv, 10)
attempt("closed recv", plain.recv, 10)

with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as six:
    six.bind((HOST6, 5002))
    say("sendto", six.sendto(b"six", (PEER6, ECHO)))
    say("recvfrom", six.recvfrom(100))

with socket.create_server(("127.0.0.1", 5003)) as server:
    client = socket.create_connection(("127.0.0.1", 5003))
    accepted, _ = server.accept()
    client.sendall(b"by TCP")
    say("TCP recv", accepted.recv(100))
    client.close()
    say("TCP recv", accepted.recv(100))
    accepted.close()

print("end", file=sys.stdout)
