"""Python's asyncio: datagram endpoints, timers, threads and a subprocess in one loop."""

import asyncio
import os

HOST, PEER = os.environ["HOST4"], os.environ["PEER4"]
ECHO, REFUSED = 7007, 7008


def say(call, value):
    print(call, "=", value, flush=True)


class Answers(asyncio.DatagramProtocol):
    def __init__(self):
        self.queue = asyncio.Queue()
        self.lost = asyncio.get_running_loop().create_future()

    def datagram_received(self, data, address):
        self.queue.put_nowait((data, address))

    def error_received(self, error):
        self.queue.put_nowait(type(error).__name__)

    def connection_lost(self, error):
        self.lost.set_result(error)


async def main():
    loop = asyncio.get_running_loop()
    transport, answers = await loop.create_datagram_endpoint(Answers, local_addr=(HOST, 5001))
    say("own", transport.get_extra_info("sockname"))
    for size in (1, 200, 1472):
        transport.sendto(b"a" * size, (PEER, ECHO))
        data, address = await asyncio.wait_for(answers.queue.get(), 5)
        say("answer", (len(data), address))
    for number in range(20):
        transport.sendto(b"%02d" % number, (PEER, ECHO))
    got = sorted([(await asyncio.wait_for(answers.queue.get(), 5))[0] for _ in range(20)])
    say("twenty answers", got)
    try:
        await asyncio.wait_for(answers.queue.get(), 0.1)
    except asyncio.TimeoutError:
        say("nothing more", True)
    process = await asyncio.create_subprocess_exec(
        "/bin/echo", "from a child", stdout=asyncio.subprocess.PIPE)
    output, _ = await process.communicate()
    say("child", (output, process.returncode))
    say("thread", await asyncio.to_thread(lambda: 6 * 7))
    transport.sendto(b"after the child", (PEER, ECHO))
    say("answer", (await asyncio.wait_for(answers.queue.get(), 5))[0])
    transport.close()
    say("closed", await asyncio.wait_for(answers.lost, 5))

    transport, answers = await loop.create_datagram_endpoint(Answers, remote_addr=(PEER, REFUSED))
    transport.sendto(b"anybody?")
    say("refused", await asyncio.wait_for(answers.queue.get(), 5))
    transport.close()


asyncio.run(main())
print("end")
