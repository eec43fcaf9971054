"""Promises about the node's own commands: status, peers, pins, cache."""

import json
import os
import signal
import stat
import subprocess
import time

from lib import compare, facts, hosts, tree
from lib.facts import settled
from lib.network import ADDRESS, NODE
from lib.promises import promise


@promise()
def control_socket_is_the_owners_alone(world):
    world.published(tree.small(world.dir / "source"))
    world.mount()
    sockets = [p for p in world.cache.rglob("*") if stat.S_ISSOCK(p.lstat().st_mode)]
    assert sockets, "no control socket in the cache"
    for path in sockets:
        assert path.lstat().st_mode & 0o077 == 0, f"{path}: {oct(path.lstat().st_mode)}"
    assert world.cache.stat().st_mode & 0o077 == 0


@promise()
def status_and_peers_tell_in_words_and_in_json(world):
    source = tree.small(world.dir / "source")
    world.published(source)
    mount = world.mount()
    compare.same(source, mount)
    told = world.fs("status", "--cache", world.cache).out
    assert str(mount) in told and "v1" in told, told
    assert str(mount) in json.dumps(world.status())
    assert facts.fetched_bytes(world.status()) > 8 * tree.MIB
    peers = world.fs("peers", "--cache", world.cache, "--json").out
    assert json.loads(peers) and ADDRESS["origin"] in peers, peers
    assert ADDRESS["origin"] in world.fs("peers", "--cache", world.cache).out


@promise(seconds=120)
def pinned_releases_outlive_eviction(world):
    source = world.dir / "source"
    source.mkdir()
    for name in ("kept", "other"):
        tree.incompressible(source / name, 8 * tree.MIB, seed=name)
    world.published(source)
    mount = world.mount(options="background=none")
    compare.same(source, mount)
    world.fs("pin", mount / "kept", "--cache", world.cache)
    world.fs("cache", "clean", "--cache", world.cache)
    subprocess.run(["sh", "-c", "echo 3 > /proc/sys/vm/drop_caches"], check=False)
    before = settled(world)
    world.umount()
    hosts.until(lambda: world.node_pid() is None, what="the node's end")
    world.mount(options="background=none")
    before = settled(world)
    assert compare.digest(mount / "kept") == compare.digest(source / "kept")
    assert settled(world) - before < 64 << 10, "a pinned file was fetched again"
    assert compare.digest(mount / "other") == compare.digest(source / "other")
    assert settled(world) - before > 6 * tree.MIB, "clean left what nothing pins"
    world.fs("unpin", mount / "kept", "--cache", world.cache)


@promise(seconds=120)
def cache_commands_show_limit_and_evict(world):
    source = world.dir / "source"
    source.mkdir()
    for name in ("one", "two"):
        tree.incompressible(source / name, 8 * tree.MIB, seed=name)
    world.published(source)
    mount = world.mount(options="background=none")
    compare.same(source, mount)
    size = lambda: sum(p.stat().st_blocks * 512 for p in world.cache.rglob("*") if p.is_file())  # noqa: E731
    assert json.loads(world.fs("cache", "size", "--cache", world.cache, "--json").out)
    full = size()
    world.fs("cache", "evict", mount / "one", "--cache", world.cache)
    assert full - size() > 7 * tree.MIB, (full, size())
    world.fs("cache", "limit", "2M", "--cache", world.cache)
    hosts.until(lambda: size() < 6 * tree.MIB, 20, "the limit")
    compare.same(source, mount)


@promise(seconds=60)
def a_planted_cache_is_refused(world):
    """FAULTS L1: another user's directory, a link, a fifo where the cache should be."""
    world.published(tree.small(world.dir / "source"))
    world.cache.mkdir(mode=0o777)
    os.chmod(world.cache, 0o777)
    os.chown(world.cache, 1000, 1000)
    result = world.mount(code=None)
    assert result != world.mountpoint, "a cache that belongs to another user was used"
    world.cache.rmdir()
    os.mkfifo(world.cache)
    result = world.mount(code=None, seconds=20)
    assert result != world.mountpoint


@promise(seconds=60)
def a_node_started_twice_on_one_cache_is_one(world):
    source = tree.small(world.dir / "source")
    world.published(source)
    points = []
    for number in range(4):
        point = world.dir / f"m{number}"
        point.mkdir()
        points.append(point)
    words = [[world.distd_fs, "mount", world.url(), p, "-o", f"cache={world.cache}"] for p in points]
    started = [hosts.start(NODE, *w) for w in words]
    assert [p.wait(30) for p in started] == [0] * 4
    running = [p for p in os.listdir("/proc") if p.isdigit() and _program(p) == os.path.realpath(world.distd_fs)]
    assert len(running) == 1, running
    for point in points:
        compare.same(source, point)


def _program(pid):
    try:
        return os.readlink(f"/proc/{pid}/exe")
    except OSError:
        return None


@promise(seconds=90)
def a_node_serves_what_it_holds_to_another(world):
    source = tree.small(world.dir / "source")
    world.published(source)
    first = world.mount(options="listen=10.77.0.2:7575")
    compare.same(source, first)
    world.stop(world.servers[0], signal.SIGKILL)
    second, cache = world.dir / "second", world.dir / "second-cache"
    second.mkdir()
    from_the_first = f"distd://{world.id}@10.77.0.2:7575/stable"
    result = hosts.run("origin", world.distd_fs, "mount", from_the_first, second, "-o", f"cache={cache},timeout=5")
    assert result.code == 0, result
    compare.same(source, second)


@promise(seconds=60)
def a_dead_address_in_a_source_does_no_harm(world):
    source = tree.small(world.dir / "source")
    world.published(source)
    both = f"distd://{world.id}@10.77.0.1:7999,10.77.0.99:7574,10.77.0.1:7574/stable"
    begin = time.monotonic()
    compare.same(source, world.mount(both, options="timeout=5"))
    assert time.monotonic() - begin < 5


@promise(seconds=60)
def a_node_says_which_read_failed_and_whom_it_asked(world):
    source = world.dir / "source"
    source.mkdir()
    tree.incompressible(source / "wanted-in-vain", 4 * tree.MIB)
    world.published(source)
    mount = world.mount(options="timeout=1")
    settled(world)
    world.stop(world.servers[0], signal.SIGKILL)
    assert hosts.run(NODE, "cat", mount / "wanted-in-vain").code != 0
    lines = [x for x in (world.cache / "node.log").read_text().splitlines() if "wanted-in-vain" in x]
    assert lines and ADDRESS["origin"] in lines[0], lines
    assert len(lines) <= 3, f"{len(lines)} lines about one read"


@promise(seconds=60)
def a_swarm_is_left_after_its_last_umount(world):
    first = tree.small(world.dir / "source")
    world.published(first)
    url, repo = world.url(), world.repo
    world.repo = world.dir / "repo2"
    world.init()
    world.publish(first, "v1")
    world.serve(port=7575)
    point = world.dir / "mnt2"
    point.mkdir()
    world.mount(world.url(port=7575), point)
    mount = world.mount(url)
    assert len(world.status()["swarms"]) == 2
    world.umount(point)
    hosts.until(lambda: len(world.status()["swarms"]) == 1, 5, "the swarm's end")
    compare.same(first, mount)
    world.mount(world.url(port=7575), point)
    compare.same(first, point)
    assert len(world.status()["swarms"]) == 2
    world.repo = repo
