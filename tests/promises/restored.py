"""Promises about an origin whose repository is an older copy of itself (FAULTS O11)."""

import shutil
import subprocess

from lib import compare, hosts, tree
from lib.promises import promise

UNVERIFIED = 4


@promise(seconds=120)
def a_restored_origin_refuses_to_fork(world):
    source = tree.small(world.dir / "source")
    world.published(source)
    backup, newest = world.dir / "backup", world.dir / "newest"
    subprocess.run(["cp", "-a", world.repo, backup], check=True)
    (source / "second").write_text("x")
    world.publish(source, "v2")
    mount = world.mount()
    compare.same(source, mount)
    world.stop(world.servers[0])
    # The disk is lost, and an old backup put in its place.
    world.repo.rename(newest)
    backup.rename(world.repo)
    world.serve()
    hosts.until((world.repo / "ahead.json").exists, 60, "the node's news at the origin")
    (source / "third").write_text("x")
    for words in (("publish", source, "--track", "stable", "--release", "v3"), ("rollback", "--track", "stable", "--to", "v1")):
        refused = world.origin(*words, code=UNVERIFIED)
        assert "older copy" in refused.err and str(world.repo) in refused.err, refused
    assert "v3" not in world.origin("list").out
    assert (mount / "second").exists(), "the node goes on"
    # The newest copy is found after all; that an older one stood in its place is forgotten.
    world.stop(world.servers[0])
    shutil.copy(world.repo / "ahead.json", newest)
    shutil.rmtree(world.repo)
    newest.rename(world.repo)
    world.serve()
    world.publish(source, "v3")
    assert not (world.repo / "ahead.json").exists()
    hosts.until(lambda: (mount / "third").exists(), 60, "the new release at the node")
    compare.same(source, mount)


@promise(seconds=60)
def news_that_cannot_be_read_stops_a_publish(world):
    source = tree.small(world.dir / "source")
    world.init()
    world.publish(source, "v1")
    (world.repo / "ahead.json").write_text("not what serve writes")
    (source / "second").write_text("x")
    refused = world.publish(source, "v2", code=None)
    assert refused.code == 1 and "ahead.json" in refused.err, refused
    (world.repo / "ahead.json").unlink()
    world.publish(source, "v2")
