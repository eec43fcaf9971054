"""Promises about how little is fetched, and when."""

import os
import time

from lib import compare, hosts, tree
from lib.facts import settled
from lib.network import NODE
from lib.promises import promise

KIB = 1 << 10


def read(path, length, offset=0):
    """Reads past the page cache's read-ahead, as a program that wants one block does."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_RANDOM)
        return os.pread(descriptor, length, offset)
    finally:
        os.close(descriptor)


@promise(seconds=120)
def four_kib_of_a_large_file_fetch_under_64_kib(world):
    source = world.dir / "source"
    source.mkdir()
    tree.incompressible(source / "large", 64 * tree.MIB)
    world.published(source)
    mount = world.mount(options="background=none")
    before = settled(world)
    head = hosts.run(NODE, "head", "-c", "4096", mount / "large").out
    assert len(head.encode(errors="surrogateescape")) == 4096
    after = settled(world)
    assert after - before < 64 * KIB, f"{after - before} bytes for 4 KiB"
    hosts.run(NODE, "head", "-c", "4096", mount / "large")
    assert settled(world) == after, "a second read fetched again"


@promise(seconds=120)
def what_was_durable_is_not_fetched_again_after_kill_9(world):
    source = world.dir / "source"
    source.mkdir()
    tree.incompressible(source / "large", 16 * tree.MIB)
    world.published(source)
    mount = world.mount(options="background=none")
    assert compare.digest(mount / "large") == compare.digest(source / "large")
    world.fs("cache", "flush", "--cache", world.cache, code=None)
    time.sleep(6)  # recent fetches become durable within seconds; a crash may lose only those
    world.kill_node()
    world.mount(options="background=none")
    before = settled(world)
    assert compare.digest(mount / "large") == compare.digest(source / "large")
    assert settled(world) == before, "a durable block was fetched again"


@promise(seconds=120)
def umount_and_remount_fetch_nothing_again(world):
    source = tree.small(world.dir / "source")
    world.published(source)
    mount = world.mount()
    compare.same(source, mount)
    world.umount()
    hosts.until(lambda: world.node_pid() is None, what="the node's end")
    world.mount()
    compare.same(source, mount)
    assert settled(world) < 64 * KIB, f"{world.fetched_bytes()} bytes fetched for a tree that was local"


@promise(seconds=120)
def an_update_fetches_what_changed(world):
    source = world.dir / "source"
    source.mkdir()
    for name in "abcdefgh":
        tree.incompressible(source / name, 4 * tree.MIB, seed=name)
    world.published(source)
    mount = world.mount(world.url(release="v1"))
    compare.same(source, mount)
    world.umount()
    with (source / "c").open("r+b") as file:
        file.seek(tree.MIB)
        file.write(tree.random_bytes("new", 64 * KIB))
    world.publish(source, "v2")
    world.mount(world.url(release="v2"))
    compare.same(source, mount)
    fetched = settled(world)
    assert fetched < 512 * KIB, f"{fetched} bytes for 64 KiB of change"


@promise(seconds=300, delay_ms=5)
def a_hundred_thousand_files_are_visible_in_300_ms(world):
    begin = time.monotonic()
    source = tree.many(world.dir / "source", 2000, 50)
    made = time.monotonic()
    world.published(source)
    print(f"made in {made - begin:.1f} s, published in {time.monotonic() - made:.1f} s")
    begin = time.monotonic()
    mount = world.mount()
    visible = time.monotonic() - begin
    names = len(os.listdir(mount))
    begin = time.monotonic()
    found = hosts.run(NODE, "find", mount, "-type", "f", "-printf", ".", seconds=120).out
    took = time.monotonic() - begin
    print(f"visible in {visible * 1000:.0f} ms, find in {took:.2f} s")
    assert names == 50 and len(found) == 100_000
    assert visible < 0.3, f"visible after {visible:.3f} s"
    # 2,050 directories at one round trip of 10 ms each would be more than 20 s.
    assert took < 8, f"find took {took:.1f} s"


@promise(seconds=120)
def holes_and_zeros_are_not_fetched(world):
    source = world.dir / "source"
    source.mkdir()
    with (source / "sparse").open("wb") as file:
        file.truncate(256 * tree.MIB)
    (source / "zeros").write_bytes(bytes(32 * tree.MIB))
    world.published(source)
    mount = world.mount()
    before = settled(world)
    assert compare.digest(mount / "zeros") == compare.digest(source / "zeros")
    assert compare.digest(mount / "sparse") == compare.digest(source / "sparse")
    assert settled(world) - before < 64 * KIB
