"""A datagram echo on socketserver, a thread for each request: socketserver_echo.py ADDRESS PORT."""

import socketserver
import sys


class Echo(socketserver.BaseRequestHandler):
    def handle(self):
        data, endpoint = self.request
        endpoint.sendto(data, self.client_address)


with socketserver.ThreadingUDPServer((sys.argv[1], int(sys.argv[2])), Echo) as server:
    server.serve_forever()
