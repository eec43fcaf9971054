"""Promises about `get`: a release as a plain directory."""

import json
import os
import pathlib
import random
import shutil
import signal
import stat
import subprocess
import time

from lib import compare, hosts, tree
from lib.network import NODE
from lib.promises import promise

KIB = 1 << 10
# 100 for the long run.
KILLS = int(os.environ.get("DISTD_KILLS", "12"))


def get(world, directory, *more, url=None, **options):
    """`distd-fs get --json`, and what it said."""
    done = world.fs("get", url or world.url(), directory, "--json", "--cache", world.cache, *more, **options)
    return json.loads(done.out) if done.code == 0 else done


def is_release(source, directory):
    """The directory is the source in everything that rsync compares and in what it leaves out."""
    compare.same(source, directory)
    compare.exactly(source, directory)
    assert not list(pathlib.Path(directory).glob(".distd-get*"))


@promise(seconds=180)
def an_odd_tree_arrives_as_it_was_published(world):
    source = tree.odd(world.dir / "source", crowd=300)
    world.published(source)
    directory = world.dir / "out"
    report = get(world, directory)
    assert report["skipped_devices"] == report["skipped_attributes"] == 0, report
    is_release(source, directory)
    sparse = os.stat(directory / "sparse")
    assert sparse.st_blocks * 512 < 1 << 20, "holes were filled"
    again = get(world, directory)
    assert again["written"] == again["touched"] == again["read_bytes"] == 0, again
    hosts.until(lambda: world.node_pid() is None, what="the node's end")


@promise(seconds=180)
def what_is_right_is_left_alone_and_the_rest_is_made_right(world):
    source = tree.odd(world.dir / "source", crowd=50)
    world.published(source)
    directory = world.dir / "out"
    get(world, directory)
    kept = {p: os.lstat(p).st_ino for p in directory.rglob("*") if not stat.S_ISDIR(os.lstat(p).st_mode)}
    changes = [
        lambda: (directory / "length-4096").write_bytes(b"x" * 4096),
        lambda: os.chmod(directory / "length-4097", 0o600),
        lambda: os.chown(directory / "repeated", 5, 6),
        lambda: os.utime(directory / "zeros", (1, 1)),
        lambda: os.setxattr(directory / "attributes/user", "user.more", b"more"),
        lambda: os.removexattr(directory / "attributes/capable", "security.capability"),
        lambda: (directory / "empty").unlink(),
        lambda: shutil.rmtree(directory / "links"),
        lambda: ((directory / "sparse").unlink(), (directory / "sparse").mkdir()),
        lambda: (shutil.rmtree(directory / "empty-directory"), (directory / "empty-directory").write_text("x")),
        lambda: ((directory / "special/fifo").unlink(), (directory / "special/fifo").write_text("x")),
        lambda: ((directory / "special/symlink").unlink(), (directory / "special/symlink").symlink_to("elsewhere")),
        lambda: os.link(directory / "length-1", directory / "extra-name"),
        lambda: (directory / "stranger").mkdir(),
        lambda: os.chmod(directory / "times", 0o700),
    ]
    for change in changes:
        change()
    os.utime(directory / "length-4096", ns=(0, os.stat(source / "length-4096").st_mtime_ns))
    report = get(world, directory)
    assert (directory / "stranger").is_dir() and (directory / "extra-name").exists()
    report = get(world, directory, "--delete")
    assert report["deleted"] == 2, report
    is_release(source, directory)
    same = [p for p, number in kept.items() if os.path.lexists(p) and os.lstat(p).st_ino == number]
    assert len(same) > len(kept) - 12, "files that were right were written anew"


@promise(seconds=120)
def hard_links_that_are_right_are_left_alone(world):
    source = world.dir / "source"
    (source / "d").mkdir(parents=True)
    # Names before, below and behind a directory, and one whose first name is not the first in the sort of all paths.
    for first, *others in (("d/x", "z"), ("a", "d/y", "d0"), ("d.", "d/w")):
        tree.incompressible(source / first, 200 * KIB, seed=first)
        for other in others:
            os.link(source / first, source / other)
    world.published(source)
    directory = world.dir / "out"
    get(world, directory)
    is_release(source, directory)
    inodes = {p: os.lstat(p).st_ino for p in directory.rglob("*")}
    again = get(world, directory, "--delete")
    assert again["written"] == again["touched"] == again["reused_bytes"] == again["read_bytes"] == 0, again
    assert inodes == {p: os.lstat(p).st_ino for p in directory.rglob("*")}
    is_release(source, directory)


@promise(seconds=180)
def an_update_reads_only_what_changed_and_moves_what_moved(world):
    source = world.dir / "source"
    (source / "d").mkdir(parents=True)
    for name in "abcdef":
        tree.incompressible(source / "d" / name, 2 * tree.MIB, seed=name)
    world.published(source)
    # A directory that never saw distd: a copy of v1.
    directory = world.dir / "out"
    shutil.copytree(source, directory, symlinks=True)
    (source / "d/a").rename(source / "moved")
    (source / "d/b").rename(source / "swap")
    (source / "d/c").rename(source / "d/b")
    (source / "swap").rename(source / "d/c")
    tree.incompressible(source / "d/d", 2 * tree.MIB, seed="new")
    world.publish(source, "v2")
    report = get(world, directory, "--delete")
    assert report["read_bytes"] == 2 * tree.MIB and report["reused_bytes"] == 6 * tree.MIB, report
    is_release(source, directory)


@promise(seconds=180)
def nothing_outside_is_touched(world):
    source = world.dir / "source"
    (source / "a/b").mkdir(parents=True)
    for path in ("a/b/file", "a/file", "file", "hard"):
        (source / path).write_text(path)
    world.published(source)
    outside = world.dir / "outside"
    (outside / "b").mkdir(parents=True)
    for name in ("file", "b/file", "precious"):
        (outside / name).write_text("outside\n")
        os.utime(outside / name, (1000, 1000))
    directory = world.dir / "out"
    directory.mkdir()
    (directory / "a").symlink_to(outside)
    (directory / "file").symlink_to(outside / "precious")
    os.link(outside / "precious", directory / "hard")
    (directory / ".distd-get").symlink_to(outside)
    (directory / "stranger").symlink_to(outside)
    (directory / "deep").mkdir()
    (directory / "deep/link").symlink_to(outside)
    get(world, directory, "--delete")
    is_release(source, directory)
    for name in ("file", "b/file", "precious"):
        assert (outside / name).read_text() == "outside\n" and os.stat(outside / name).st_mtime == 1000
    assert sorted(os.listdir(outside)) == ["b", "file", "precious"] and os.listdir(outside / "b") == ["file"]
    assert os.stat(outside / "precious").st_nlink == 1


def end_all(world):
    """kill -9 of the command and of its node."""
    def none_is_left():
        pid = world.node_pid()
        if pid is not None:
            os.kill(pid, signal.SIGKILL)
        return pid is None

    hosts.until(none_is_left, what="the end of both")


@promise(seconds=300 + 10 * KILLS)
def killed_at_any_point_and_run_again_it_ends_right(world):
    source = tree.odd(world.dir / "source", crowd=200)
    for name in ("one", "two"):
        tree.incompressible(source / name, 12 * tree.MIB, seed=name)
    world.published(source)
    old = world.dir / "old"
    shutil.copytree(source, old, symlinks=True, ignore=shutil.ignore_patterns("special", "names", "deep", "one"))
    (old / "two").write_bytes(b"x" * 12 * tree.MIB)
    directory = world.dir / "out"
    chance = random.Random(7)
    begin = time.monotonic()
    get(world, directory)
    whole = time.monotonic() - begin
    is_release(source, directory)
    for turn in range(KILLS):
        shutil.rmtree(directory)
        if turn % 2:
            shutil.copytree(old, directory, symlinks=True)
        command = hosts.start(NODE, world.distd_fs, "get", world.url(), directory, "--delete", "--cache", world.cache)
        time.sleep(chance.uniform(0, whole * 1.1))
        end_all(world)
        command.wait(20)
        if turn % 4 == 3:
            # Only the command is killed: its job ends with it, and the next one may start.
            command = hosts.start(NODE, world.distd_fs, "get", world.url(), directory, "--cache", world.cache)
            time.sleep(chance.uniform(0, whole * 0.5))
            command.kill()
            command.wait(20)
            hosts.until(lambda: world.fs("get", world.url(), directory, "--delete", "--cache", world.cache, code=None).code != 8, 20, "the end of the job")
        get(world, directory, "--delete")
        is_release(source, directory)


@promise(seconds=120)
def ended_while_it_looks_around_it_deletes_nothing(world):
    source = world.dir / "source"
    source.mkdir()
    sizes = [(4 << 30) + 4096 * number for number in range(4)]
    for number, size in enumerate(sizes):
        # A hole: nothing to store, and long to read.
        with (source / f"hole{number}").open("wb") as file:
            file.truncate(size)
    world.published(source)
    directory = world.dir / "out"
    (directory / "precious").mkdir(parents=True)
    (directory / "precious" / "file").write_text("kept")
    for number, size in enumerate(sizes):
        with (directory / f"other{number}").open("wb") as file:
            file.truncate(size)
    before = sorted(os.listdir(directory))
    command = hosts.start(NODE, world.distd_fs, "get", world.url(), directory, "--delete", "--cache", world.cache)
    time.sleep(1.5)
    command.terminate()
    command.wait(20)
    # Its job goes on until nobody has asked for it for 3 s.
    time.sleep(8)
    assert [name for name in sorted(os.listdir(directory)) if not name.startswith(".distd-get")] == before
    assert (directory / "precious" / "file").read_text() == "kept"


@promise(seconds=120)
def a_user_gets_what_a_user_may(world):
    source = tree.odd(world.dir / "source", crowd=20)
    for path in ("unreadable-by-others", "mode-0"):
        os.chmod(source / path, 0o644)
    world.published(source)
    home = world.dir / "home"
    home.mkdir()
    os.chown(home, 1234, 1234)
    os.chmod(world.dir, 0o755)

    def run(*more):
        done = hosts.run(NODE, world.distd_fs, "get", world.url(), home / "out", "--json", "--cache", home / "cache", *more, user=1234)
        assert done.code == 0, done
        return json.loads(done.out)

    report = run()
    assert report["skipped_devices"] == 2 and report["skipped_attributes"] > 0, report
    again = run()
    assert again["written"] == again["read_bytes"] == 0, again
    subprocess.run(["rsync", "-rlptX", "--dry-run", "--checksum", f"{source}/names/", f"{home}/out/names/"], check=True)
    assert compare.digest(home / "out/length-4097") == compare.digest(source / "length-4097")
    assert os.stat(home / "out/setuid").st_mode & 0o7777 == 0o4755


@promise(seconds=60)
def what_cannot_be_is_said(world):
    source = world.dir / "source"
    source.mkdir()
    (source / "file").write_text("x")
    world.published(source)
    directory = world.dir / "out"
    (directory / "file/deep").mkdir(parents=True)
    refused = world.fs("get", world.url(), directory, "--cache", world.cache, code=1)
    assert "--delete" in refused.err, refused.err
    missing = world.fs("get", world.url(release="v9"), directory, "--cache", world.cache, code=7)
    assert "v1" in missing.err, missing.err
    (world.dir / "plain").write_text("x")
    world.fs("get", world.url(), world.dir / "plain", "--cache", world.cache, code=1)
    unreachable = world.fs("get", world.url(port=9, identity="ab" * 32), directory, "--cache", world.cache, "--timeout", "2", code=None)
    assert unreachable.code in (2, 6), unreachable
    get(world, directory, "--delete")
    is_release(source, directory)
