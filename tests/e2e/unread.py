"""Binds a UDP socket and never reads it: unread.py ADDRESS PORT."""

import socket
import sys
import time

endpoint = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
endpoint.bind((sys.argv[1], int(sys.argv[2])))
time.sleep(1000)
