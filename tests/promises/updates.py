"""Promises about updates: a node fetches what changed, as frames, and what it makes of them is right."""

import json
import os
import random
import threading
import time

from lib import compare, hosts, tree
from lib.facts import settled
from lib.network import NODE
from lib.promises import promise
from promises.corruption import flip, segments
from promises.prefetch import is_local

KIB = 1 << 10
BLOCK = 4 * KIB
# Where the content begins in a segment file.
CONTENT = 32 * tree.MIB


def words(seed, length):
    """Bytes that compress, as programs and texts do: to about a third."""
    chance = random.Random(seed)
    known = [chance.randbytes(chance.randrange(3, 12)) for _ in range(700)]
    parts, have = [], 0
    while have < length:
        part = chance.choice(known)
        parts.append(part)
        have += len(part)
    return b"".join(parts)[:length]


def relinked(content, seed, every=1500):
    """The same with a few bytes changed here and there: no block stays as it was."""
    chance, changed = random.Random(seed), bytearray(content)
    at = chance.randrange(every)
    while at < len(changed):
        changed[at] ^= chance.randrange(1, 256)
        at += chance.randrange(1, 2 * every)
    return bytes(changed)


def release(directory, version, sizes):
    """Files whose content is that of version 1, changed once for each version since."""
    directory.mkdir(exist_ok=True)
    for name, size in sizes.items():
        content = words(name, size)
        for step in range(2, version + 1):
            content = relinked(content, f"{name}{step}")
        (directory / name).write_bytes(content)
    return directory


SIZES = {"large": 3 * tree.MIB + 5 * KIB, "middle": 700 * KIB, "small": 100 * KIB, "tiny": 9 * KIB}


def swarm(world):
    return world.status()["swarms"][0]


def prefetch(world, mount):
    return json.loads(world.fs("prefetch", mount, "--wait", "--json", "--cache", world.cache).out)


def node_ends(world):
    hosts.until(lambda: world.node_pid() is None, what="the node's end")


def held(world):
    """A source whose first release is published, and in the cache of a node that has ended."""
    source = release(world.dir / "source", 1, SIZES)
    world.published(source)
    prefetch(world, world.mount())
    world.umount()
    node_ends(world)
    return source


@promise(seconds=120)
def an_update_moves_delta_frames_and_little_else(world):
    source = release(world.dir / "source", 1, SIZES)
    world.published(source)
    mount = world.mount(options="prefetch=full")
    hosts.until(lambda: swarm(world)["full_frames"] > 0, 20, "the first release, as full frames")
    settled(world)
    first = swarm(world)
    total = sum(SIZES.values())
    assert first["fetched_data_bytes"] + first["fetched_frame_bytes"] < total * 2 // 3, first
    release(source, 2, SIZES)
    published = world.publish(source, "v2")
    hosts.until(lambda: os.getxattr(mount, "user.distd.version") == b"v2", 5, "the new release")
    hosts.until(lambda: all(is_local(mount / name) for name in SIZES), 20, "v2 local")
    settled(world)
    status = swarm(world)
    moved = status["received_bytes"] - first["received_bytes"]
    print(f"{published['new_bytes']} new bytes, {moved} received, {status['delta_frames']} delta frames")
    assert status["delta_frames"] > 10 and status["refused_frames"] == 0, status
    assert moved < total // 5, f"{moved} bytes for an update of {total}"
    world.stop(world.servers[0])
    compare.same(source, mount)


@promise(seconds=120)
def a_release_that_was_skipped_costs_little_more(world):
    source = held(world)
    for version in (2, 3):
        release(source, version, SIZES)
        world.publish(source, f"v{version}")
    mount = world.mount(options="prefetch=none")
    prefetch(world, mount)
    status = swarm(world)
    total = sum(SIZES.values())
    print(f"{status['received_bytes']} received for {total}, {status['delta_frames']} delta frames")
    assert status["full_frames"] < status["delta_frames"] // 4, status
    assert status["received_bytes"] < total // 3, status
    world.stop(world.servers[0])
    compare.same(source, mount)


@promise(seconds=120, delay_ms=5)
def reading_one_changed_file_moves_less_than_the_file(world):
    source = held(world)
    release(source, 2, SIZES)
    world.publish(source, "v2")
    mount = world.mount(options="prefetch=none")
    before = settled(world), swarm(world)
    assert compare.digest(mount / "small") == compare.digest(source / "small")
    after = settled(world), swarm(world)
    moved = after[1]["received_bytes"] - before[1]["received_bytes"]
    print(f"{moved} received for {SIZES['small']}")
    assert after[1]["delta_frames"] > before[1]["delta_frames"]
    assert moved < SIZES["small"] // 2, (before, after)
    compare.same(source, mount)


@promise(seconds=120)
def a_newcomer_fetches_full_frames(world):
    source = release(world.dir / "source", 1, SIZES)
    world.published(source)
    mount = world.mount()
    settled(world)
    compare.same(source, mount)
    status = swarm(world)
    total = sum(SIZES.values())
    moved = status["fetched_data_bytes"] + status["fetched_frame_bytes"]
    print(f"{moved} of {total}, {status['full_frames']} full frames")
    assert status["full_frames"] > 10 and moved < total * 3 // 4, status


@promise(seconds=120)
def get_over_an_older_release_moves_what_the_mount_would(world):
    source = release(world.dir / "source", 1, SIZES)
    world.published(source)
    directory = world.dir / "out"
    world.fs("get", world.url(), directory, "--cache", world.cache)
    node_ends(world)
    release(source, 2, SIZES)
    world.publish(source, "v2")
    point = world.dir / "other"
    point.mkdir()
    world.mount(world.url(release="v2"), point, options="prefetch=none")
    world.fs("get", world.url(), directory, "--cache", world.cache)
    status = swarm(world)
    total = sum(SIZES.values())
    print(f"{status['received_bytes']} received for {total}")
    assert status["received_bytes"] < total // 4, status
    compare.same(source, directory)


@promise(seconds=180)
def a_base_that_was_damaged_costs_bytes_and_nothing_else(world):
    source = held(world)
    release(source, 2, SIZES)
    world.publish(source, "v2")
    chance = random.Random(8)
    first = words("large", SIZES["large"])
    for segment in segments(world.cache):
        place = segment.read_bytes().find(first[: 2 * BLOCK])
        assert place >= 0, "the content of version 1 is not in the cache"
        for block in range(0, len(first) // BLOCK, 40):
            flip(segment, place + block * BLOCK + chance.randrange(BLOCK), 2)
    mount = world.mount(options="prefetch=none")
    prefetch(world, mount)
    status = swarm(world)
    assert status["refused_frames"] > 0 and status["delta_frames"] > 0, status
    compare.same(source, mount)


@promise(seconds=180)
def damaged_frames_at_the_origin_cost_bytes_and_nothing_else(world):
    source = held(world)
    munros = json.loads(world.origin("list", "--json").out)["munros"]
    release(source, 2, SIZES)
    published = world.publish(source, "v2")
    for server in list(world.servers):
        world.stop(server)
    # Section F of the second epoch begins behind its section P, on a munro boundary; delta frames come first.
    behind = CONTENT + (munros + -(-published["new_bytes"] // tree.MIB)) * tree.MIB
    (segment,) = segments(world.repo / "log")
    with segment.open("rb") as file:
        place = os.lseek(file.fileno(), behind, os.SEEK_DATA)
    flip(segment, place + 100, 5)
    world.origin("verify", code=4)
    world.serve()
    mount = world.mount(options="prefetch=none")
    begin = time.monotonic()
    prefetch(world, mount)
    status = swarm(world)
    print(f"{status['delta_frames']} delta, {status['full_frames']} full frames, {time.monotonic() - begin:.1f} s")
    assert status["full_frames"] > 0, status
    compare.same(source, mount)


@promise(seconds=120, delay_ms=20, rate_mbit=4)
def a_read_keeps_its_deadline_when_the_origin_is_cut_off(world):
    source = held(world)
    release(source, 2, SIZES)
    world.publish(source, "v2")
    mount = world.mount(options="prefetch=none,timeout=3")
    settled(world)
    threading.Timer(0.05, world.network.unplug).start()
    begin = time.monotonic()
    done = hosts.run(NODE, "cat", mount / "large", seconds=30)
    took = time.monotonic() - begin
    print(f"exit {done.code} after {took:.1f} s")
    assert done.code != 0 and took < 6, (done.code, took)
    world.network.plug()
    hosts.until(lambda: hosts.run(NODE, "cat", mount / "large", seconds=30).code == 0, 40, "the file")
    compare.same(source, mount)
