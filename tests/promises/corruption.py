"""Promises about wrong bits: none reaches a reader."""

import errno
import os
import random
import subprocess

from lib import compare, facts, hosts, tree
from lib.network import NODE
from lib.promises import promise


def data_offsets(path, chance, count):
    """Random offsets of `path` that lie in data, not in a hole."""
    runs, end = [], 0
    with path.open("rb") as file:
        while True:
            try:
                begin = os.lseek(file.fileno(), end, os.SEEK_DATA)
            except OSError:
                break
            end = os.lseek(file.fileno(), begin, os.SEEK_HOLE)
            runs.append((begin, end))
    chosen = chance.choices(runs, [end - begin for begin, end in runs], k=count)
    return sorted({chance.randrange(*run) for run in chosen})


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
def a_cut_or_zeroed_cache_is_filled_again(world):
    source = tree.small(world.dir / "source")
    world.published(source)
    mount = world.mount()
    compare.same(source, mount)
    files = [p for p in sorted(world.cache.rglob("*")) if p.is_file() and p.stat().st_size and p.name != "format"]
    for damage in (cut, zeroed):
        for path in (p for p in files if p.exists()):
            world.umount()
            hosts.until(lambda: world.node_pid() is None, what="the node's end")
            damage(path)
            world.mount()
            compare.same(source, mount)


def cut(path):
    os.truncate(path, path.stat().st_size // 2)


def zeroed(path):
    """Zeros as a lost write leaves them: the length stays."""
    length = path.stat().st_size
    os.truncate(path, 0)
    os.truncate(path, length)


@promise()
def a_cache_of_an_unknown_format_is_refused_by_name(world):
    world.published(tree.small(world.dir / "source"))
    world.mount()
    world.umount()
    hosts.until(lambda: world.node_pid() is None, what="the node's end")
    (world.cache / "format").write_text("distd cache 999\n")
    result = world.mount(code=None)
    assert result != world.mountpoint and "format" in result.err and "999" in result.err, result


@promise(seconds=240)
def flipped_bits_at_the_origin_are_named_and_never_served(world):
    source = tree.small(world.dir / "source")
    world.published(source)
    for server in list(world.servers):
        world.stop(server)
    log = max(segments(world.repo), key=lambda p: p.stat().st_blocks)
    chance = random.Random(5)
    offsets = data_offsets(log, chance, 24)
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


@promise(seconds=240, delay_ms=1, flip=0.002)
def flipped_bits_on_the_wire_reach_no_reader(world):
    """The relay flips bits under a checksum that still holds: only BLAKE3 can tell."""
    source = tree.small(world.dir / "source")
    (source / "big").write_bytes(tree.random_bytes("wire", 2 * tree.MIB))
    world.published(source)
    mount = world.mount(options="timeout=4")
    ended = []

    def read(path):
        """Whether the file could be read, which it then is right."""
        other = mount / path.relative_to(source)
        result = hosts.run(NODE, "cat", other, seconds=30)
        ended.append(result.code)
        if result.code == 0:
            assert compare.digest(other) == compare.digest(path), f"{other}: wrong bytes"
        else:
            assert os.strerror(errno.EIO) in result.err, result.err
        return result.code == 0

    for path in (p for p in sorted(source.rglob("*")) if p.is_file()):
        # The only source is at fault each time, and is asked again: no file stays unreadable.
        hosts.until(lambda path=path: read(path), 60, f"a whole {path}")
    print(f"{ended.count(0)} of {len(ended)} reads ended well")


@promise(seconds=240, delay_ms=5, loss=0.02)
def lost_datagrams_cost_time_and_nothing_else(world):
    source = world.dir / "source"
    source.mkdir()
    tree.incompressible(source / "file", 2 * tree.MIB)
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
