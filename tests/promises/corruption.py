"""Promises about wrong bits: none reaches a reader."""

import os
import random
import subprocess

from lib import compare, facts, hosts, tree
from lib.network import NODE
from lib.promises import promise


def data_offsets(path, chance, count):
    """Random offsets of `path` that lie in data, not in a hole."""
    length = path.stat().st_size
    with path.open("rb") as file:
        for _ in range(count):
            try:
                begin = os.lseek(file.fileno(), chance.randrange(length), os.SEEK_DATA)
                end = os.lseek(file.fileno(), begin, os.SEEK_HOLE)
            except OSError:
                continue
            yield chance.randrange(begin, min(end, begin + 65536))


def flip(path, offset, bit):
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 1 << bit]))


def segments(directory, at_least=1 << 16):
    files = sorted(p for p in directory.rglob("*") if p.is_file() and not p.is_symlink())
    return [p for p in files if p.stat().st_blocks * 512 >= at_least]


@promise(seconds=240)
def flipped_bits_in_the_cache_reach_no_reader(world):
    source = tree.small(world.dir / "source")
    world.published(source)
    mount = world.mount()
    compare.same(source, mount)
    chance = random.Random(4)
    for _ in range(5):
        world.umount()
        hosts.until(lambda: world.node_pid() is None, what="the node's end")
        for segment in segments(world.cache):
            for offset in data_offsets(segment, chance, 40):
                flip(segment, offset, chance.randrange(8))
        world.mount()
        compare.same(source, mount)
        assert facts.fetched_bytes(world.status()) > 0, "wrong blocks were served, or none was hit"


@promise(seconds=240)
def a_cut_or_emptied_cache_is_filled_again(world):
    source = tree.small(world.dir / "source")
    world.published(source)
    mount = world.mount()
    compare.same(source, mount)
    files = [p for p in sorted(world.cache.rglob("*")) if p.is_file() and p.stat().st_size]
    for path in files:
        world.umount()
        hosts.until(lambda: world.node_pid() is None, what="the node's end")
        length = path.stat().st_size
        os.truncate(path, length // 2)
        if hash(path.name) % 2:
            path.write_bytes(bytes(length if length < 1 << 24 else 4096))
        world.mount()
        compare.same(source, mount)


@promise(seconds=240)
def flipped_bits_at_the_origin_are_named_and_never_served(world):
    source = tree.small(world.dir / "source")
    world.published(source)
    for server in list(world.servers):
        world.stop(server)
    log = max(segments(world.repo), key=lambda p: p.stat().st_blocks)
    chance = random.Random(5)
    offsets = sorted(set(data_offsets(log, chance, 24)))
    for offset in offsets:
        flip(log, offset, 3)
    verdict = world.origin("verify", code=4)
    assert "verif" in (verdict.out + verdict.err).lower() or "expected" in verdict.err, verdict
    world.serve()
    mount = world.mount(options="timeout=3", code=None)
    if mount == world.mountpoint:
        for path in (p for p in source.rglob("*") if p.is_file() and not p.is_symlink()):
            other = mount / path.relative_to(source)
            done = hosts.run(NODE, "cat", other, seconds=60)
            if done.code == 0:
                assert compare.digest(other) == compare.digest(path), f"{other}: wrong bytes"
        world.umount()
    for server in list(world.servers):
        world.stop(server)
    for offset in offsets:
        flip(log, offset, 3)
    world.origin("verify")


@promise(seconds=240, delay_ms=1, flip=0.02)
def flipped_bits_on_the_wire_reach_no_reader(world):
    source = tree.small(world.dir / "source")
    world.published(source)
    mount = world.mount()
    compare.same(source, mount)


@promise(seconds=240, delay_ms=5, loss=0.05)
def lost_datagrams_cost_time_and_nothing_else(world):
    source = tree.small(world.dir / "source")
    world.published(source)
    mount = world.mount()
    compare.same(source, mount)


@promise(seconds=120)
def verify_of_a_sound_repository_says_so(world):
    source = tree.small(world.dir / "source")
    world.init()
    world.publish(source, "v1")
    world.origin("verify")
    subprocess.run(["rm", "-rf", source], check=True)
    world.origin("verify")
