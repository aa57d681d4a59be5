"""An echo by Python's multiprocessing: each connection in a process, which is forked, started anew,
or forked by a third one, in turns. Arguments: address, port."""
import multiprocessing, socket, sys


def serve(connection):
    while data := connection.recv(65536):
        connection.sendall(data)
    connection.close()


if __name__ == "__main__":
    listener = socket.create_server((sys.argv[1], int(sys.argv[2])), backlog=256)
    ways = [multiprocessing.get_context(way) for way in ("fork", "spawn", "forkserver")]
    children = []
    while True:
        connection, _ = listener.accept()
        child = ways[len(children) % 3].Process(target=serve, args=(connection,))
        child.start()
        connection.close()
        children.append(child)
