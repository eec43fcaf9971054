#!/usr/bin/env python3
"""A link with delay, rate, loss and bit flips between two network namespaces.

The kernel need not have netem: a TUN device stands in each namespace, and this process carries the
packets from one to the other, late, at a bounded rate, and not all of them.

  relay.py --left NETNS,DEVICE,ADDRESS/BITS --right NETNS,DEVICE,ADDRESS/BITS
           [--delay-ms D]      one way, so that the round trip is 2 D      (default 0)
           [--rate-mbit R]     of each direction                           (default: unlimited)
           [--buffer-ms B]     what the rate's queue holds; beyond: dropped (default 100)
           [--loss P] [--flip P] of the packets, 0..1                       (default 0)
           [--seed N] [--mtu M] [--counters FILE]

Prints `ready` when both devices are up; runs until SIGTERM or SIGINT, then prints one line of JSON with
what each direction carried. With --counters the same line is written to FILE at each SIGUSR1.
NETNS is a name below /run/netns. A flipped packet keeps a checksum that the receiving kernel accepts
(UDP over IPv4 allows none), so the flip reaches the program: that is the point.
"""

import argparse
import collections
import ctypes
import errno
import fcntl
import json
import os
import random
import select
import signal
import struct
import subprocess
import sys
import time

TUNSETIFF = 0x400454CA
IFF_TUN, IFF_NO_PI = 0x0001, 0x1000
CLONE_NEWNET = 0x40000000
UDP, IPV4_HEADER_BYTES, UDP_HEADER_BYTES = 17, 20, 8
BATCH_PACKETS = 64


class Direction:
    """Packets under way from one TUN device to the other, in order of arrival time."""

    def __init__(self, options, chance):
        self.delay_s = options.delay_ms / 1000
        self.bytes_per_s = options.rate_mbit * 125_000 if options.rate_mbit else None
        self.buffer_s = options.buffer_ms / 1000
        self.loss, self.flip = options.loss, options.flip
        self.chance = chance
        self.free_at = 0.0
        self.underway = collections.deque()
        self.counters = dict.fromkeys(("packets", "bytes", "lost", "overflowed", "flipped"), 0)

    def take(self, packet, now):
        counters = self.counters
        counters["packets"] += 1
        counters["bytes"] += len(packet)
        if self.loss and self.chance.random() < self.loss:
            counters["lost"] += 1
            return
        if self.flip and self.chance.random() < self.flip:
            packet = flipped(packet, self.chance)
            counters["flipped"] += 1
        leaves = now
        if self.bytes_per_s:
            leaves = max(now, self.free_at)
            if leaves - now > self.buffer_s:
                counters["overflowed"] += 1
                return
            leaves += len(packet) / self.bytes_per_s
            self.free_at = leaves
        self.underway.append((leaves + self.delay_s, packet))


def flipped(packet, chance):
    """The packet with one bit of its UDP payload turned round; others pass as they are."""
    payload = IPV4_HEADER_BYTES + UDP_HEADER_BYTES
    if packet[0] != 0x45 or packet[9] != UDP or len(packet) <= payload:
        return packet
    changed = bytearray(packet)
    bit = chance.randrange(8 * (len(packet) - payload))
    changed[payload + bit // 8] ^= 1 << bit % 8
    changed[IPV4_HEADER_BYTES + 6 : payload] = b"\0\0"
    return bytes(changed)


def open_tun(side, mtu):
    """Makes the device inside its namespace; the descriptor then works from any namespace."""
    netns, device, address = side.split(",")
    libc = ctypes.CDLL(None, use_errno=True)
    own = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    there = os.open(f"/run/netns/{netns}", os.O_RDONLY | os.O_CLOEXEC)
    try:
        enter(libc, there)
        tun = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        fcntl.ioctl(tun, TUNSETIFF, struct.pack("16sH22x", device.encode(), IFF_TUN | IFF_NO_PI))
        subprocess.run(["ip", "address", "add", address, "dev", device], check=True)
        # A short device queue would drop what the sender's kernel bursts before this process runs.
        subprocess.run(["ip", "link", "set", device, "mtu", str(mtu), "txqueuelen", "10000", "up"], check=True)
    finally:
        enter(libc, own)
        os.close(there)
        os.close(own)
    return tun


def enter(libc, namespace):
    if libc.setns(namespace, CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), "setns")


def carry(tuns, directions, stopped):
    """Moves packets until `stopped` holds something."""
    while not stopped:
        now = time.monotonic()
        wake = min((d.underway[0][0] for d in directions if d.underway), default=now + 1)
        readable, _, _ = select.select(tuns, [], [], max(0, wake - now))
        now = time.monotonic()
        for tun in readable:
            direction = directions[tuns.index(tun)]
            for _ in range(BATCH_PACKETS):
                try:
                    direction.take(os.read(tun, 65536), now)
                except BlockingIOError:
                    break
        now = time.monotonic()
        for target, direction in zip(reversed(tuns), directions):
            underway = direction.underway
            while underway and underway[0][0] <= now:
                deliver(target, underway.popleft()[1])


def deliver(tun, packet):
    try:
        os.write(tun, packet)
    except OSError as error:
        # A full or downed device loses packets, as a cable would.
        if error.errno not in (errno.EAGAIN, errno.ENOBUFS, errno.EIO, errno.EINVAL):
            raise


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--left", required=True)
    parser.add_argument("--right", required=True)
    for name, default in (("delay-ms", 0.0), ("rate-mbit", 0.0), ("buffer-ms", 100.0), ("loss", 0.0), ("flip", 0.0)):
        parser.add_argument(f"--{name}", type=float, default=default)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--mtu", type=int, default=1500)
    parser.add_argument("--counters")
    return parser.parse_args()


def main():
    options = parse_arguments()
    chance = random.Random(options.seed)
    directions = [Direction(options, chance), Direction(options, chance)]
    tuns = [open_tun(options.left, options.mtu), open_tun(options.right, options.mtu)]

    def report():
        return json.dumps({"left_to_right": directions[0].counters, "right_to_left": directions[1].counters})

    def write_counters(*_):
        if options.counters:
            with open(options.counters + ".new", "w", encoding="ascii") as out:
                out.write(report() + "\n")
            os.rename(options.counters + ".new", options.counters)

    stopped = []
    signal.signal(signal.SIGUSR1, write_counters)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopped.append(True))
    print("ready", flush=True)
    carry(tuns, directions, stopped)
    print(report(), flush=True)


if __name__ == "__main__":
    sys.exit(main())
