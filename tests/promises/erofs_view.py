"""Promises about releases that the kernel itself shows, by EROFS on the log."""

import errno
import json
import os
import pathlib
import subprocess
import threading
import time

from lib import compare, hosts, tree
from lib.facts import settled
from lib.network import NODE
from lib.promises import promise
from promises.erofs_image import KINDS, image, loop_mount
from promises.follow import of_mount, plain, two_releases

VIEW = "view=erofs"


def lines(point=None):
    """Of the mount table: (mount point, type, source)."""
    table = pathlib.Path("/proc/self/mountinfo").read_text(encoding="utf-8").splitlines()
    found = [(words[4], words[words.index("-") + 1], words[words.index("-") + 2]) for words in map(str.split, table)]
    return [line for line in found if point is None or line[0] == str(point)]


def by_erofs(world, options="", **more):
    mount = world.mount(options=",".join(filter(None, (VIEW, options))), **more)
    assert [kind for _, kind, _ in lines(mount)] == ["erofs"], lines(mount)
    return mount


def version(world, mount):
    """As the node knows it: EROFS answers no `user.distd.*`."""
    told = world.fs("attributes", mount, "--json", "--cache", world.cache).out
    return json.loads(told)["attributes"]["version"]


def shows(world, mount, release, seconds=10.0):
    hosts.until(lambda: version(world, mount) == release, seconds, f"{release} on the mount")


def eio(path, at=0):
    """Reads a block past the page cache's back; the errno, or the bytes."""
    file = os.open(path, os.O_RDONLY)
    try:
        return os.pread(file, 4096, at)
    except OSError as error:
        return error.errno
    finally:
        os.close(file)


@promise(seconds=180)
def content_and_metadata_equal_the_source_in_both_views(world):
    source = tree.odd(world.dir / "source", 300)
    world.published(source)
    mount = by_erofs(world)
    compare.same(source, mount)
    compare.exactly(source, mount)
    beside = world.dir / "tree"
    beside.mkdir()
    world.mount(point=beside, options="view=tree")
    compare.same(source, beside)
    compare.same(beside, mount)


@promise(seconds=90)
def the_user_sees_one_mountpoint_and_nothing_stays(world):
    source = tree.small(world.dir / "source")
    world.published(source)
    world.install_helper()
    before = lines()
    words = ["mount", "-t", "fuse.distd", world.url(), world.mountpoint, "-o", f"cache={world.cache},{VIEW},allow_other,_netdev"]
    for _ in range(2):
        result = hosts.run(NODE, *words)
        assert result.code == 0, result
    assert [line for line in lines() if line not in before] == [(str(world.mountpoint), "erofs", world.url())]
    shown = subprocess.run(["findmnt", "-no", "SOURCE,OPTIONS", world.mountpoint], check=True, capture_output=True, text=True).stdout
    assert world.url() in shown and "ro,nosuid,nodev" in shown, shown
    status = of_mount(world, world.mountpoint)
    assert (status["view"], status["release"], status["follows"]) == ("erofs", "v1", "track")
    assert "by EROFS" in world.fs("status", "--cache", world.cache).out
    compare.same(source, world.mountpoint)
    subprocess.run(["umount", world.mountpoint], check=True)
    assert lines() == before
    hosts.until(lambda: world.node_pid() is None, what="the node's end")
    assert not list(pathlib.Path("/run/distd").glob("*.mount"))


@promise(seconds=90)
def files_in_use_outlive_a_lazy_unmount_and_then_nothing_stays(world):
    source = tree.small(world.dir / "source")
    world.published(source)
    mount = by_erofs(world, "prefetch=none")
    with (mount / "big").open("rb") as file:
        assert world.fs("umount", mount, code=8).err
        world.fs("umount", "--lazy", mount)
        assert not lines(mount)
        assert file.read() == (source / "big").read_bytes()
        by_erofs(world)
        compare.same(source, mount)
        world.umount()
        file.seek(0)
        assert file.read() == (source / "big").read_bytes()
    hosts.until(lambda: world.node_pid() is None, what="the node's end")


@promise(seconds=90)
def what_cannot_be_had_is_an_error_in_time_and_never_zeros(world):
    source = world.dir / "source"
    source.mkdir()
    for number in range(8):
        tree.incompressible(source / f"f{number}", 2 * tree.MIB, seed=number)
    world.published(source)
    mount = by_erofs(world, "timeout=3")
    right = {path.name: path.read_bytes() for path in source.iterdir()}
    assert (mount / "f3").read_bytes() == right["f3"]
    settled(world)
    world.network.unplug()
    begin = time.monotonic()
    assert eio(mount / "f6", tree.MIB) == errno.EIO
    took = time.monotonic() - begin
    assert 2 < took < 5, f"{took:.1f} s"
    for name, content in right.items():
        for at in range(0, 2 * tree.MIB, tree.MIB // 4):
            found = eio(mount / name, at) if name in ("f3", "f6") else None
            assert found in (None, errno.EIO, content[at : at + 4096]), f"{name} at {at}"
    # What is local is there at once, and so is what lies beside what is not.
    begin = time.monotonic()
    subprocess.run(["sh", "-c", "echo 3 > /proc/sys/vm/drop_caches"], check=True)
    assert (mount / "f3").read_bytes() == right["f3"] and sorted(os.listdir(mount)) == sorted(right)
    assert time.monotonic() - begin < 2, "the whole file was local"
    world.network.plug()
    hosts.until(lambda: eio(mount / "f6", tree.MIB) == right["f6"][tree.MIB : tree.MIB + 4096], 30, "the network")
    compare.same(source, mount)


@promise(seconds=120)
def what_is_local_does_not_fail_for_what_lies_beside_it(world):
    source = world.dir / "source"
    source.mkdir()
    for number in range(3):
        tree.incompressible(source / f"f{number}", 4 * tree.MIB, seed=number)
    world.published(source)
    mount = by_erofs(world, "timeout=5,prefetch=none")
    right = (source / "f1").read_bytes()
    # In one file: a run that is local, then one that nobody has any more, and so on.
    places = range(0, 4 * tree.MIB, tree.MIB // 2)
    for at in places:
        subprocess.run(["dd", f"if={mount}/f1", "of=/dev/null", "bs=64K", "count=1", "iflag=skip_bytes", f"skip={at}"], check=True, capture_output=True)
    settled(world)
    world.network.unplug()

    def read(advice, places):
        """How long each read of 16 KiB took; all of what is local is right."""
        subprocess.run(["sh", "-c", "echo 3 > /proc/sys/vm/drop_caches"], check=True)
        took = []
        with (mount / "f1").open("rb", buffering=0) as file:
            os.posix_fadvise(file.fileno(), 0, 0, advice)
            for at in places:
                for step in range(0, 64 << 10, 16 << 10):
                    begin = time.monotonic()
                    assert os.pread(file.fileno(), 16 << 10, at + step) == right[at + step : at + step + (16 << 10)], f"at {at + step}"
                    took.append(time.monotonic() - begin)
        return took

    # At once, but where nothing has arrived for the first time.
    here_and_there = read(os.POSIX_FADV_RANDOM, places)
    assert sum(here_and_there) < 3, here_and_there
    # A reader in order waits once where the kernel reads ahead, in his own time, into what is not there.
    in_order = read(os.POSIX_FADV_NORMAL, places[:3])
    assert all(took < 2 for index, took in enumerate(in_order) if index % 4 != 3), in_order
    assert max(in_order) < 8, in_order
    begin = time.monotonic()
    assert eio(mount / "f2", 0) == errno.EIO
    took = time.monotonic() - begin
    assert 4 < took < 8, f"{took:.1f} s"


@promise(seconds=120)
def what_a_mount_was_used_for_is_told_as_a_profile(world):
    source = world.dir / "source"
    (source / "dir").mkdir(parents=True)
    for number in range(40):
        tree.incompressible(source / "dir" / f"f{number:02}", 100 << 10, seed=number)
    world.published(source)
    mount = by_erofs(world, "prefetch=none")
    used = [f"dir/f{number:02}" for number in (31, 7, 19)]
    for name in used:
        assert compare.digest(mount / name) == compare.digest(source / name)
    told = json.loads(world.fs("trace", mount, "--json", "--cache", world.cache).out)
    lines_of = [line for line in told["profile"].splitlines() if line and not line.startswith("#")]
    named = list(dict.fromkeys(name for line in lines_of for name in used if name in line))
    assert named == used and len(lines_of) <= 12, told["profile"]
    profile = world.dir / "profile"
    world.fs("trace", mount, "--output", profile, "--cache", world.cache)
    (source / "more").write_text("more")
    world.publish(source, "v2", "stable", "--profile", profile)
    world.umount()
    world.fs("cache", "clean", "--cache", world.cache, code=None)
    hosts.until(lambda: world.node_pid() is None, what="the node's end")
    world.cache = world.dir / "other-cache"
    by_erofs(world, "prefetch=profile")
    hosts.until(lambda: settled(world) > 3 * (100 << 10), 20, "what the profile names")
    world.network.unplug()
    for name in used:
        assert compare.digest(mount / name) == compare.digest(source / name)


@promise(seconds=120)
def content_is_right_while_half_of_it_is_evicted(world):
    source = world.dir / "source"
    source.mkdir()
    for number in range(16):
        tree.incompressible(source / f"f{number}", tree.MIB + 5000 * number, seed=number)
    world.published(source)
    mount = by_erofs(world)
    compare.same(source, mount)
    for number in range(0, 16, 2):
        world.fs("cache", "evict", mount / f"f{number}", "--cache", world.cache)
    subprocess.run(["sh", "-c", "echo 3 > /proc/sys/vm/drop_caches"], check=True)
    compare.same(source, mount)


@promise(seconds=120)
def a_mount_follows_its_track_and_open_files_stay(world):
    sources = two_releases(world, plain)
    mount = by_erofs(world)
    file = (mount / "bin" / "f3").open("rb")
    directory = os.open(mount / "lib", os.O_RDONLY | os.O_DIRECTORY)
    empty, ends = [], []

    def watch():
        while not ends:
            if not os.listdir(mount):
                empty.append(time.monotonic())

    watcher = threading.Thread(target=watch)
    watcher.start()
    for release in ("v2", "v1", "v2"):
        world.origin("rollback", "stable", release)
        shows(world, mount, release)
        compare.same(sources[release], mount)
        assert len(lines(mount)) == 1
    ends.append(True)
    watcher.join()
    assert not empty, "the mount point was empty"
    assert file.read() == (sources["v1"] / "bin" / "f3").read_bytes()
    with open(os.open("f2", os.O_RDONLY, dir_fd=directory), "rb") as other:
        assert other.read() == (sources["v1"] / "lib" / "f2").read_bytes()
    os.close(directory)
    file.close()
    assert of_mount(world, mount)["switches"] == 3


@promise(seconds=120)
def a_switch_waits_for_what_is_mounted_below(world):
    sources = two_releases(world, plain)
    mount = by_erofs(world)
    subprocess.run(["mount", "-t", "tmpfs", "below", mount / "srv" / "db"], check=True)
    world.origin("rollback", "stable", "v2")
    hosts.until(lambda: of_mount(world, mount)["waits_for"] == ["/srv/db"], 10, "waiting")
    assert "waits for what is mounted on /srv/db" in world.fs("status", "--cache", world.cache).out
    assert version(world, mount) == "v1"
    subprocess.run(["umount", mount / "srv" / "db"], check=True)
    shows(world, mount, "v2")
    compare.same(sources["v2"], mount)


@promise(seconds=120)
def hold_and_release_switch_by_hand_and_a_pinned_release_stays(world):
    two_releases(world, plain)
    mount = by_erofs(world, "hold")
    pinned = world.dir / "pinned"
    pinned.mkdir()
    world.mount(world.url(release="v1"), pinned, VIEW)
    world.origin("rollback", "stable", "v2")
    hosts.until(lambda: of_mount(world, mount)["newest"] == "v2", what="the news")
    time.sleep(0.5)
    assert version(world, mount) == "v1"
    world.fs("release", "--once", mount, "--cache", world.cache)
    assert (version(world, mount), of_mount(world, mount)["follows"]) == ("v2", "held")
    world.origin("rollback", "stable", "v1")
    time.sleep(0.5)
    assert version(world, mount) == "v2"
    world.fs("release", mount, "--cache", world.cache)
    assert (version(world, mount), of_mount(world, mount)["follows"]) == ("v1", "track")
    assert (version(world, pinned), of_mount(world, pinned)["follows"]) == ("v1", "pinned")


@promise(seconds=90)
def a_second_mount_of_the_same_content_costs_no_fetch(world):
    source = world.dir / "source"
    source.mkdir()
    for number in range(10):
        tree.incompressible(source / f"f{number}", tree.MIB, seed=number)
    world.init()
    world.publish(source, "v1")
    tree.incompressible(source / "f0", tree.MIB, seed=99)
    world.publish(source, "v2")
    world.serve()
    first, second = world.mount(world.url(release="v1"), options=VIEW), world.dir / "second"
    second.mkdir()
    compare.digest(first / "f5")
    for number in range(10):
        compare.digest(first / f"f{number}")
    before = settled(world)
    world.mount(world.url(release="v2"), second, VIEW)
    for number in range(1, 10):
        assert compare.digest(second / f"f{number}") == compare.digest(source / f"f{number}")
    cost = settled(world) - before
    assert cost < 256 << 10, f"{cost} bytes"
    compare.same(source, second)
    # One superblock, one cache of the log: each mount's directory has the same files open in the kernel.
    connections = {record["connection"] for record in map(json.loads, (path.read_text() for path in pathlib.Path("/run/distd").glob("*.mount")))}
    assert len(connections) == 1, connections


def of_mounts(world):
    return {mount["directory"] for mount in world.status()["mounts"]}


@promise(seconds=90)
def an_image_inside_mounts_by_loop(world):
    source, inside = world.dir / "source", world.dir / "plain"
    for directory in (source, inside):
        directory.mkdir()
    for number in range(4):
        (inside / f"text{number}").write_text(f"line {number}\n" * 20_000)
    for kind in KINDS:
        image(source / f"{kind}.erofs", inside, kind)
    world.published(source)
    mount = by_erofs(world)
    for kind in KINDS:
        compare.same(inside, loop_mount(world, mount / f"{kind}.erofs", kind))


@promise(seconds=90)
def where_erofs_cannot_be_the_node_shows_the_release_and_says_why(world):
    source = tree.small(world.dir / "source")
    world.published(source)

    def auto(options, expected, **more):
        result = world.fs("mount", world.url(), world.mountpoint, "-o", f"cache={world.cache},view=auto{options}", **more)
        assert [kind for _, kind, _ in lines(world.mountpoint)] == [expected], lines(world.mountpoint)
        return result.out

    assert "takes allow_other" in auto("", "fuse.distd")
    world.umount()
    hosts.until(lambda: world.node_pid() is None, what="the node's end")
    assert "by EROFS" in auto(",allow_other", "erofs")
    world.umount()
    hosts.until(lambda: world.node_pid() is None, what="the node's end")
    # As on a kernel without EROFS: the program cannot make its superblock.
    pathlib.Path("/run/distd/erofs-trusted").unlink()
    words = ["setpriv", "--bounding-set=-sys_chroot", "--inh-caps=-sys_chroot"]
    result = hosts.run(NODE, *words, world.distd_fs, "mount", world.url(), world.mountpoint, "-o", f"cache={world.cache},view=auto,allow_other")
    assert result.code == 0 and "not by EROFS" in result.out, result
    compare.same(source, world.mountpoint)
    world.umount()
    hosts.until(lambda: world.node_pid() is None, what="the node's end")
    refused = hosts.run(NODE, *words, world.distd_fs, "mount", world.url(), world.mountpoint, "-o", f"cache={world.cache},view=erofs")
    assert refused.code == 1 and "view=tree" in refused.err, refused
    assert not lines(world.mountpoint)
