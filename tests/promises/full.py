"""Promises about disks without room."""

import os

from lib import compare, facts, tree
from lib.promises import promise


@promise(seconds=180)
def publish_onto_a_full_disk_fails_and_breaks_nothing(world):
    world.repo = world.disk("origin-disk", 96) / "repo"
    source = world.dir / "source"
    source.mkdir()
    tree.incompressible(source / "one", 24 * tree.MIB, seed=1)
    world.init()
    world.publish(source, "v1")
    before = world.origin("list", "--json").out
    tree.incompressible(source / "two", 120 * tree.MIB, seed=2)
    refused = world.publish(source, "v2", code=1)
    assert os.strerror(28).lower() in refused.err.lower() or "full" in refused.err, refused
    assert world.origin("list", "--json").out == before
    world.origin("verify")
    (source / "two").unlink()
    tree.incompressible(source / "three", 4 * tree.MIB, seed=3)
    world.publish(source, "v3")
    world.origin("verify")
    world.serve()
    compare.same(source, world.mount())


@promise(seconds=180)
def a_full_disk_under_the_cache_leaves_reads_right(world):
    world.cache = world.disk("node-disk", 40) / "cache"
    source = tree.small(world.dir / "source")
    for number in range(4):
        tree.incompressible(source / f"large{number}", 24 * tree.MIB, seed=number)
    world.published(source)
    mount = world.mount()
    for _ in range(2):
        compare.same(source, mount)
    assert facts.fetched_bytes(world.status()) > 96 * tree.MIB


@promise(seconds=180)
def a_quota_holds_and_reads_stay_right(world):
    source = tree.small(world.dir / "source")
    for number in range(4):
        tree.incompressible(source / f"large{number}", 16 * tree.MIB, seed=number)
    world.published(source)
    mount = world.mount(options="quota=16M")
    for _ in range(2):
        compare.same(source, mount)
    taken = sum(p.stat().st_blocks * 512 for p in world.cache.rglob("*") if p.is_file())
    assert taken < 24 << 20, f"a cache of 16 MiB takes {taken} bytes"
