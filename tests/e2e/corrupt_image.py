"""Scribbles over the stack image that a process has mapped: corrupt_image.py PID SEED."""

import mmap
import os
import random
import sys

pid, chance = sys.argv[1], random.Random(int(sys.argv[2]))
folder = f"/proc/{pid}/fd"
for name in os.listdir(folder):
    if os.readlink(f"{folder}/{name}").startswith("/memfd:bypass-image"):
        with open(f"{folder}/{name}", "r+b") as file:
            image = mmap.mmap(file.fileno(), 0)
            for _ in range(20000):
                image[chance.randrange(4096, len(image))] = chance.randrange(256)
            print("scribbled over", len(image), "bytes, seed", sys.argv[2])
            sys.exit(0)
sys.exit("no stack image")
