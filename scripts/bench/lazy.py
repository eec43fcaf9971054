"""The measuring part of lazy.sh."""

import argparse
import json
import os
import pathlib
import random
import sys
import time

import bench
from bench import call, on
from swarm import ORIGIN, PORT, Distd, address, bridge, sent_by_origin, together
from transfer import MIB

FILE = 256 << 10


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--mib", type=int, default=256)
    parser.add_argument("--nodes", type=int, default=16)
    parser.add_argument("--mbit", type=int, default=100)
    parser.add_argument("--seconds", type=float, default=8)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--scratch", type=pathlib.Path, required=True)
    options = parser.parse_args()
    (options.scratch / "share").mkdir()
    os.chmod(options.scratch, 0o755)
    count = options.mib * MIB // FILE
    for number in range(count):
        (options.scratch / "share" / str(number)).write_bytes(os.urandom(FILE))
    nodes = [f"n{number}" for number in range(1, options.nodes + 1)]
    bridge([ORIGIN, *nodes], options.mbit)
    readers = Readers()
    readers.scratch, readers.nodes = options.scratch / "readers", nodes
    readers.scratch.mkdir()
    readers.content = options.scratch / "share" / "0"
    readers.start()
    before, begin = sent_by_origin(), time.monotonic()
    readers.read(random.Random(1).sample(range(count), count // 10), options.seconds)
    seconds, sent = time.monotonic() - begin, sent_by_origin() - before
    readers.close()
    wanted = count // 10 * FILE
    row = {
        "way": f"distd, {options.nodes} lazy readers of the same tenth", "payload / tenth": readers.payload() / wanted,
        "interface / tenth": sent / wanted, "s": seconds, "slowest file, s": readers.slowest, "notes": readers.notes(),
    }
    bench.show([row], options.json)


class Readers(Distd):
    """Each node mounts the release, finds the others by itself, and reads some files of it when it needs them."""

    def read(self, wanted, seconds):
        mounts, reads = [], []
        for node in self.nodes:
            point, cache = self.scratch / f"{node}.mnt", self.scratch / node
            point.mkdir()
            options = f"cache={cache},prefetch=none,listen={address(node)}:{PORT}"
            mounts.append((node, [self.fs, "mount", self.source([ORIGIN]), point, "-o", options]))
            order = random.Random(node).sample(wanted, len(wanted))
            files = [str(point / str(number)) for number in order]
            reads.append((node, [sys.executable, "-c", READER, str(seconds), self.scratch / f"{node}.slowest", *files]))
        together(mounts)
        together(reads)
        self.slowest = max(float((self.scratch / f"{node}.slowest").read_text()) for node in self.nodes)
        self.wanted = wanted

    def close(self):
        for host in self.leaves:
            self.end[host] = json.loads(call(*on(host, self.fs, "status", "--json", "--cache", self.scratch / host)))["swarms"][0]
        for node in self.leaves:
            for number in self.wanted:
                call("cmp", self.scratch / f"{node}.mnt" / str(number), self.content.parent / str(number))
            call(*on(node, self.fs, "umount", self.scratch / f"{node}.mnt"))
        for server in self.servers:
            bench.stop(server)


# Reads each file at its time; writes down how long the slowest one took.
READER = """
import pathlib, sys, time
begin, slowest = time.monotonic(), 0
files = sys.argv[3:]
for i, name in enumerate(files):
    time.sleep(max(0, begin + float(sys.argv[1]) * i / len(files) - time.monotonic()))
    at = time.monotonic()
    with open(name, "rb") as file:
        while file.read(1 << 20):
            pass
    slowest = max(slowest, time.monotonic() - at)
pathlib.Path(sys.argv[2]).write_text(str(slowest))
"""


if __name__ == "__main__":
    main()
