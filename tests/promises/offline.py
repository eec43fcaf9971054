"""Promises about a network that is gone: nothing hangs, and what is local keeps working."""

import errno
import os
import signal
import subprocess
import time

from lib import compare, hosts, tree
from lib.facts import settled
from lib.network import NODE
from lib.promises import promise


def some_read_some_not(world, options=""):
    """A mount with `read` local and `unread` not, and the origin gone."""
    source = tree.small(world.dir / "source")
    for name in ("read", "unread", "unread2"):
        tree.incompressible(source / name, 4 * tree.MIB, seed=name)
    world.published(source)
    mount = world.mount(options=",".join(x for x in ("timeout=3", "background=none", options) if x))
    os.listdir(mount)
    compare.digest(mount / "read")
    settled(world)
    return source, mount


def within(seconds, action):
    begin = time.monotonic()
    result = action()
    took = time.monotonic() - begin
    assert took < seconds, f"took {took:.2f} s"
    return result


def reads_end_and_the_rest_works(world, source, mount):
    assert within(2, lambda: compare.digest(mount / "read")) == compare.digest(source / "read")
    begin = time.monotonic()
    missing = hosts.run(NODE, "cat", mount / "unread", seconds=20)
    took = time.monotonic() - begin
    assert missing.code != 0 and os.strerror(errno.EIO) in missing.err, missing.err
    assert 1 < took < 6, f"EIO after {took:.1f} s with timeout=3"
    # While one reader waits, names and attributes are answered at once.
    waiting = subprocess.Popen(["cat", mount / "unread2"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    time.sleep(0.3)
    for words in (["ls", "-l", mount], ["ls", "-lR", mount / "lib"], ["stat", mount / "unread2"], ["df", mount]):
        within(1, lambda words=words: subprocess.run(words, check=True, capture_output=True))
    waiting.kill()
    within(2, lambda: waiting.wait(5))
    for pid in filter(str.isdigit, os.listdir("/proc")):
        assert hosts.state(pid) != "D", f"process {pid} is in D state"


@promise(seconds=120)
def with_the_origin_stopped_what_was_read_stays_readable(world):
    source, mount = some_read_some_not(world)
    world.stop(world.servers[0], signal.SIGKILL)
    reads_end_and_the_rest_works(world, source, mount)


@promise(seconds=120)
def with_the_link_dead_what_was_read_stays_readable(world):
    source, mount = some_read_some_not(world)
    world.network.unplug()
    reads_end_and_the_rest_works(world, source, mount)


@promise(seconds=120)
def mounting_again_works_from_the_cache(world):
    source, mount = some_read_some_not(world)
    world.stop(world.servers[0], signal.SIGKILL)
    world.umount()
    hosts.until(lambda: world.node_pid() is None, what="the node's end")
    within(6, lambda: world.mount(options="timeout=3"))
    assert compare.digest(mount / "read") == compare.digest(source / "read")
    assert sorted(os.listdir(mount)) == sorted(os.listdir(source))


@promise(seconds=120)
def reads_go_on_when_the_origin_comes_back(world):
    source, mount = some_read_some_not(world)
    world.stop(world.servers[0], signal.SIGKILL)
    assert hosts.run(NODE, "cat", mount / "unread", seconds=20).code != 0
    world.serve()

    def readable():
        return hosts.run(NODE, "cmp", mount / "unread", source / "unread", seconds=20).code == 0

    hosts.until(readable, 40, "a read after the origin's return")


@promise(seconds=120)
def every_waiting_caller_dies_when_killed(world):
    """FAULTS F2: whatever waits for a silent network ends within a second of its signal."""
    _, mount = some_read_some_not(world, "timeout=20")
    world.network.unplug()
    callers = {
        "cat": ["cat", mount / "unread"],
        "second cat": ["cat", mount / "unread"],
        "mmap": ["python3", "-c", "import mmap, signal, sys; signal.signal(signal.SIGINT, signal.SIG_DFL); f = open(sys.argv[1], 'rb'); mmap.mmap(f.fileno(), 0, prot=mmap.PROT_READ)[9]", mount / "unread2"],
        "exec": ["sh", "-c", f"exec {mount / 'unread'}"],
        "find": ["find", mount],
    }
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGKILL):
        started = {name: subprocess.Popen(w, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) for name, w in callers.items()}
        time.sleep(0.5)
        for name, process in started.items():
            process.send_signal(number)
        for name, process in started.items():
            try:
                process.wait(4)
            except subprocess.TimeoutExpired:
                process.kill()
                raise AssertionError(f"{name} outlives {number.name} in state {hosts.state(process.pid)}") from None


@promise(seconds=120)
def umount_works_with_the_network_gone(world):
    _, mount = some_read_some_not(world)
    world.network.unplug()
    within(5, world.umount)
    assert not world.mounts()
    hosts.until(lambda: world.node_pid() is None, what="the node's end")


@promise(seconds=60)
def a_mapped_page_that_does_not_come_is_sigbus(world):
    source, mount = some_read_some_not(world)
    world.stop(world.servers[0], signal.SIGKILL)
    program = "import mmap, sys; f = open(sys.argv[1], 'rb'); mmap.mmap(f.fileno(), 0, prot=mmap.PROT_READ)[9]"
    begin = time.monotonic()
    ended = subprocess.run(["python3", "-c", program, mount / "unread"], capture_output=True, timeout=20, check=False)
    took = time.monotonic() - begin
    assert ended.returncode == -signal.SIGBUS, ended
    assert took < 6, f"SIGBUS after {took:.1f} s with timeout=3"


@promise(seconds=90)
def the_kernels_own_deadline_ends_no_mount(world):
    """FAULTS F14: where the administrator bounds FUSE requests, reads end before that bound."""
    for name, seconds in (("default_request_timeout", "0"), ("max_request_timeout", "4")):
        bound = world.dir / name
        bound.write_text(seconds)
        # For this test alone: what the node reads, not what the kernel does.
        subprocess.run(["mount", "--bind", bound, f"/proc/sys/fs/fuse/{name}"], check=True)
        world.overlays.append(f"/proc/sys/fs/fuse/{name}")
    _, mount = some_read_some_not(world, "timeout=30")
    world.network.unplug()
    begin = time.monotonic()
    assert hosts.run(NODE, "cat", mount / "unread", seconds=20).code != 0
    took = time.monotonic() - begin
    assert 1 < took < 4, f"EIO after {took:.1f} s with a bound of 4 s"
    assert "4 s" in (world.cache / "node.log").read_text()


@promise(seconds=120)
def many_readers_of_a_dead_network_end_by_the_deadline(world):
    """FAULTS F1: 100 readers of 100 files, the link going down under them."""
    source = world.dir / "source"
    source.mkdir()
    for number in range(100):
        tree.incompressible(source / f"file{number}", tree.MIB, seed=number)
    world.published(source)
    mount = world.mount(options="timeout=3")
    settled(world)
    compared = [["cmp", "-s", mount / f"file{n}", source / f"file{n}"] for n in range(100)]
    readers = [subprocess.Popen(words) for words in compared[:40]]
    world.network.unplug()
    readers += [subprocess.Popen(words) for words in compared[40:]]
    begin = time.monotonic()
    ended = [reader.wait(20) for reader in readers]
    assert time.monotonic() - begin < 3 + 4
    assert set(ended) <= {0, 2} and 2 in ended, "a difference, not an error"
