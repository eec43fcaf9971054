"""Promises about what is fetched before anybody asks for it."""

import json
import os
import statistics
import subprocess
import time

from lib import compare, hosts, tree
from lib.facts import settled
from lib.network import NODE
from lib.promises import promise

KIB = 1 << 10


def local(path):
    """Local and total bytes of a file."""
    return [int(part) for part in os.getxattr(path, "user.distd.local").split(b"/")]


def is_local(path):
    have, total = local(path)
    return have == total


@promise(seconds=120)
def a_prefetched_release_needs_no_network(world):
    source = tree.small(world.dir / "source")
    tree.incompressible(source / "large", 32 * tree.MIB, seed=2)
    world.published(source)
    mount = world.mount(options="timeout=3")
    result = json.loads(world.fs("prefetch", mount, "--wait", "--json", "--cache", world.cache).out)
    assert result["local_bytes"] == result["total_bytes"] > 40 * tree.MIB, result
    again = world.fs("prefetch", "--wait", mount, "--cache", world.cache)
    assert "0 B of them new" in again.out, again.out
    world.stop(world.servers[0])
    compare.same(source, mount)


@promise(seconds=120)
def a_part_of_a_release_can_be_prefetched(world):
    source = world.dir / "source"
    for name in ("wanted", "other"):
        (source / name).mkdir(parents=True)
        tree.incompressible(source / name / "f", 4 * tree.MIB, seed=name)
    world.published(source)
    mount = world.mount()
    world.fs("prefetch", mount / "wanted", "--wait", "--cache", world.cache)
    assert is_local(mount / "wanted/f") and local(mount / "other/f")[0] == 0
    world.fs("prefetch", mount / "none", "--wait", "--cache", world.cache, code=7)


@promise(seconds=120)
def a_source_is_prefetched_without_a_mount(world):
    source = tree.small(world.dir / "source")
    world.published(source)
    world.fs("prefetch", world.url(), "--wait", "--cache", world.cache)
    hosts.until(lambda: world.node_pid() is None, what="the node's end")
    world.stop(world.servers[0])
    mount = world.mount(options="timeout=3")
    compare.same(source, mount)


@promise(seconds=120)
def the_option_full_brings_everything_also_after_a_switch(world):
    source = tree.small(world.dir / "source")
    world.published(source)
    mount = world.mount(options="prefetch=full")
    hosts.until(lambda: is_local(mount / "big") and is_local(mount / "lib/b/file1"), 20, "everything local")
    tree.incompressible(source / "new", 8 * tree.MIB, seed=3)
    world.publish(source, "v2")
    hosts.until(lambda: (mount / "new").exists() and is_local(mount / "new"), 20, "the new file local")
    world.stop(world.servers[0])
    compare.same(source, mount)


@promise(seconds=120)
def what_was_warm_is_warm_in_the_next_release(world):
    source = world.dir / "source"
    (source / "d").mkdir(parents=True)
    for name in ("warm", "cold", "part"):
        tree.incompressible(source / "d" / name, 4 * tree.MIB, seed=name)
    world.published(source)
    mount = world.mount()
    compare.digest(mount / "d/warm")
    with open(mount / "d/part", "rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)
        os.pread(file.fileno(), 4096, tree.MIB)
    for name in ("warm", "cold", "part"):
        tree.incompressible(source / "d" / name, 4 * tree.MIB, seed=name + "2")
    world.publish(source, "v2")
    hosts.until(lambda: os.getxattr(mount, "user.distd.version") == b"v2", 5, "the new release")
    hosts.until(lambda: is_local(mount / "d/warm"), 10, "what was warm")
    settled(world)
    assert 0 < local(mount / "d/part")[0] <= 128 * KIB, local(mount / "d/part")
    assert local(mount / "d/cold")[0] == 0
    world.stop(world.servers[0])
    assert compare.digest(mount / "d/warm") == compare.digest(source / "d/warm")


@promise(seconds=180, rate_mbit=100, delay_ms=5)
def a_prefetch_does_not_delay_who_waits(world):
    source = world.dir / "source"
    source.mkdir()
    for name in ("bulk", "read"):
        tree.incompressible(source / name, 64 * tree.MIB, seed=name)
    world.published(source)
    mount = world.mount()

    def times(first, count):
        taken = []
        with open(mount / "read", "rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)
            for index in range(first, first + count):
                begin = time.monotonic()
                os.pread(file.fileno(), 4096, index * 3 * tree.MIB // 4)
                taken.append(time.monotonic() - begin)
        return taken

    quiet = times(0, 12)
    bulk = subprocess.Popen(["nsenter", f"--net=/run/netns/{NODE}", world.distd_fs, "prefetch", mount / "bulk", "--wait", "--cache", world.cache])
    hosts.until(lambda: local(mount / "bulk")[0] > tree.MIB, 10, "the prefetch")
    busy = times(12, 20)
    still = bulk.poll() is None
    bulk.terminate()
    bulk.wait(20)
    print(f"quiet {statistics.median(quiet) * 1000:.1f} ms, beside a prefetch {statistics.median(busy) * 1000:.1f} ms, "
          f"longest {max(busy) * 1000:.1f} ms")
    assert still, "the prefetch had ended"
    assert statistics.median(busy) < statistics.median(quiet) + 0.05


@promise(seconds=120, rate_mbit=20, delay_ms=5)
def a_prefetch_ends_with_its_command(world):
    source = world.dir / "source"
    source.mkdir()
    tree.incompressible(source / "bulk", 96 * tree.MIB)
    world.published(source)
    mount = world.mount()
    hosts.run(NODE, "timeout", "-s", "KILL", "1", world.distd_fs, "prefetch", mount, "--wait", "--cache", world.cache)
    last = [-1, 0.0]

    def quiet():
        now = local(mount / "bulk")[0]
        if now != last[0]:
            last[:] = [now, time.monotonic()]
        return time.monotonic() - last[1] > 3

    # Its lease, and then what was asked for already; all of it would take 40 s.
    hosts.until(quiet, 60, "the end of the prefetch")
    assert tree.MIB < last[0] < 85 * tree.MIB, last[0]


@promise(seconds=120)
def a_profile_is_fetched_in_advance(world):
    source = world.dir / "source"
    (source / "bin").mkdir(parents=True)
    for name in ("bin/with space\n", "bin/used", "unused"):
        tree.incompressible(source / name, 2 * tree.MIB, seed=name)
    world.published(source)
    mount = world.mount()
    compare.digest(mount / "bin/used")
    with open(mount / "bin/with space\n", "rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_RANDOM)
        os.pread(file.fileno(), 4096, tree.MIB)
    profile = world.dir / "profile"
    world.fs("trace", mount, "--output", profile, "--cache", world.cache)
    lines = profile.read_text().splitlines()
    assert lines[1].endswith(" bin/used") and "with\\040space\\012" in lines[-1] and "unused" not in "".join(lines), lines
    assert world.fs("trace", mount, "--cache", world.cache).out == profile.read_text()
    world.umount()
    hosts.until(lambda: world.node_pid() is None, what="the node's end")
    (source / "more").write_text("more\n")
    world.publish(source, "v2", "stable", "--profile", profile)
    subprocess.run(["rm", "-rf", world.cache], check=True)
    world.mount(options="prefetch=profile")
    hosts.until(lambda: is_local(mount / "bin/used") and local(mount / "bin/with space\n")[0] > 0, 10, "the profile")
    settled(world)
    assert local(mount / "unused")[0] == 0 and local(mount / "bin/with space\n")[0] < 512 * KIB
    profile.write_text("nonsense\n")
    refused = world.publish(source, "v3", "stable", "--profile", profile, code=2)
    assert "line 1" in refused.err, refused.err


@promise(seconds=120)
def limits_of_bytes_a_second_are_kept(world):
    """8 MiB at 2 MiB a second: by what the node asks for, and by what the origin sends."""
    source = world.dir / "source"
    source.mkdir()
    for name in ("first", "second"):
        tree.incompressible(source / name, 8 * tree.MIB, seed=name)
    world.published(source)
    mount = world.mount(options="download=2M")

    def seconds(name):
        begin = time.monotonic()
        compare.digest(mount / name)
        return time.monotonic() - begin

    asked = seconds("first")
    world.umount()
    world.stop(world.servers[0])
    world.serve(7574, "--upload", "2M")
    world.mount()
    sent = seconds("second")
    print(f"download limited {asked:.2f} s, upload limited {sent:.2f} s of 4 s")
    assert 3.8 < asked < 5.5 and 3.8 < sent < 5.5, (asked, sent)
